"""Rows 17 and 30 of ``protocol.md`` section 12: ``login`` of the published clients that have it, and ``logout``.

What a client gets is reported to it over HTTP, as its users' programs do, and by a person on the page, in a browser.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import trio

from tests.clients.conftest import RunClient, StartClient, StartJavascript
from tests.clients.scripted import SCRIPTS
from tests.house import chromium
from tests.house.chromium import Browser, Page
from tests.house.environments import GENERATIONS, MODERN
from tests.house.processes import Running, Server

LEGACY = [GENERATIONS[-1], "imjoy-rpc-js"]
CURRENT = [MODERN, "hypha-rpc-js", "hypha-js"]

JAVASCRIPT = """
    const settings = Object.fromEntries(args.map((text) => {
      const [name, value] = text.split(/=(.*)/s);
      return [name, JSON.parse(value)];
    }));
    const show = async (context) => console.log("context", JSON.stringify(context));
    if (settings.logout) return client.logout({ server_url: url, logout_callback: show });
    const given = await client.login({ server_url: url, login_callback: show, login_timeout: 20, ...settings });
    const wanted = settings.workspace ? { workspace: settings.workspace } : {};
    const server = await connect({ token: given.token || given, ...wanted });
    assert.equal(await server.echo("in"), "in");
    console.log("in", JSON.stringify([given, server.config.workspace]));
    await server.disconnect();
"""

#: Another program of the person's, which gives out a token for its workspace.
OWNER = """
    import asyncio, sys
    from imjoy_rpc.hypha import connect_to_server

    async def main(url):
        server = await connect_to_server({"server_url": url})
        print("owner", server.config.workspace, await server.generate_token(), flush=True)
        await asyncio.Event().wait()

    asyncio.run(main(sys.argv[1]))
"""

Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def start(start_client: StartClient, start_javascript: StartJavascript, server: Server) -> Start:
    """``async with start(client, setting=value) as program``: one that logs in."""

    def begin(client: str, **settings: Any) -> AbstractAsyncContextManager[Running]:
        arguments = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
        if client.endswith("-js"):
            return start_javascript(JAVASCRIPT, server.url, *arguments, library=client.removesuffix("-js"))
        return start_client(client, SCRIPTS / "log_in.py", server.url, *arguments)

    return begin


async def context_of(program: Running) -> dict[str, str]:
    found: dict[str, str] = json.loads((await program.wait_for("^context (.*)$"))[1])
    return found


async def outcome_of(program: Running) -> tuple[Any, str]:
    """What the program was given, and the workspace to which that has brought it. It must end well."""
    given, workspace = json.loads((await program.wait_for("^in (.*)$"))[1])
    result = await program.wait()
    assert result.returncode == 0, result.stdout + result.stderr
    return given, workspace


async def post(url: str, **arguments: Any) -> Any:
    async with httpx.AsyncClient() as client:
        answer = await client.post(url, json=arguments)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("client", LEGACY)
async def test_row_17_login_with_a_report_over_http(client: str, start: Start, server: Server) -> None:
    async with start(client) as program:
        context = await context_of(program)
        assert urlsplit(context["login_url"]).path == "/public/apps/hypha-login/"
        assert parse_qs(urlsplit(context["login_url"]).query) == {"key": [context["key"]]}
        assert await post(context["check_url"], key=context["key"], timeout=0) is None
        token = await post(context["generate_url"])
        assert await post(context["report_url"], key=context["key"], token=token) is None
        given, workspace = await outcome_of(program)
        assert given == token
        assert workspace.isalnum()


@pytest.mark.parametrize("client", CURRENT)
async def test_row_30_login(client: str, start: Start, server: Server) -> None:
    async with start(client) as program:
        context = await context_of(program)
        token = await post(context["generate_url"])
        await post(context["report_url"], key=context["key"], token=token)
        assert (await outcome_of(program))[0] == token


@pytest.mark.parametrize("client", CURRENT)
async def test_row_30_login_to_a_workspace_with_the_profile(
    client: str, start: Start, start_client: StartClient, server: Server
) -> None:
    async with start_client(GENERATIONS[-1], OWNER, server.url) as owner:
        _, home, token = (await owner.wait_for("^owner (.*) (.*)$"))[0].split()
        async with start(client, workspace=home, expires_in=100, profile=True) as program:
            context = await context_of(program)
            query = parse_qs(urlsplit(context["login_url"]).query)
            assert query == {"key": [context["key"]], "workspace": [home], "expires_in": ["100"]}
            await post(context["report_url"], key=context["key"], token=token, name="Ada", email="ada@lab.example")
            given, workspace = await outcome_of(program)
        assert workspace == given["workspace"] == home
        assert (given["name"], given["email"], given["email_verified"]) == ("Ada", "ada@lab.example", False)
        assert given["user_id"] == token.partition("@imjoy@")[0]
        assert 90 < given["expires_in"] <= 100
        assert given["token"] not in token


@pytest.mark.parametrize("client", CURRENT)
async def test_row_30_logout(client: str, start: Start, server: Server) -> None:
    async with start(client, logout=True) as program:
        context = await context_of(program)
        assert (await program.wait()).returncode == 0
    async with httpx.AsyncClient() as browser:
        page = await browser.get(context["logout_url"])
    assert "nothing to log out of" in page.text


@pytest.mark.slow
@pytest.mark.parametrize("client", [LEGACY[0], MODERN])
async def test_nobody_logs_in(client: str, run_client: RunClient, server: Server) -> None:
    result = await run_client(client, SCRIPTS / "log_in.py", server.url, "login_timeout=3")
    assert result.returncode == 1
    assert "Login timeout" in result.stderr


# --- in a browser -----------------------------------------------------------------------------------------------


@pytest.fixture
async def chrome(browser: str, tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Browser]:
    async with chromium.launch(nursery, browser, tmp_path / "profile") as running:
        yield running


async def says(page: Page, text: str) -> None:
    """Wait until the page says *text*."""
    await page.evaluate(f"""(async () => {{
        const status = document.getElementById("status");
        while (!status.textContent.includes({json.dumps(text)})) await new Promise((done) => setTimeout(done, 10));
    }})()""")


@pytest.mark.slow
@pytest.mark.parametrize("client", [*LEGACY, *CURRENT])
async def test_a_button_of_the_page_completes_a_waiting_login(
    client: str, start: Start, chrome: Browser, server: Server
) -> None:
    async with start(client) as program:
        context = await context_of(program)
        page = await chrome.open(f"{server.url}/login?key={context['key']}")
        language = "JavaScript" if client.endswith("-js") else "Python"
        assert f"A program in {language} started to log in" in await page.evaluate("document.body.innerText")
        await page.evaluate("document.querySelector('#anonymous button').click()")
        await says(page, "you can close this page")
        token, workspace = await outcome_of(program)
        assert token not in await page.evaluate("location.href + document.documentElement.outerHTML")
        assert context["key"] not in await page.evaluate("location.href")
        assert page.problems == []
        await page.go(context["login_url"])
        assert "No program waits here any more" in await page.evaluate("document.body.innerText")
        assert workspace.isalnum()
    assert token not in server.log.read_text()


@pytest.mark.slow
async def test_a_token_is_pasted_and_only_a_good_one_is_taken(
    chrome: Browser, start: Start, start_client: StartClient, server: Server
) -> None:
    async with start_client(GENERATIONS[-1], OWNER, server.url) as owner:
        _, home, token = (await owner.wait_for("^owner (.*) (.*)$"))[0].split()
        async with start(MODERN, workspace=home) as program:
            page = await chrome.open((await context_of(program))["login_url"])
            assert home in await page.evaluate("document.body.innerText")
            assert await page.evaluate("document.querySelector('#anonymous')") is None
            for text, answer in (("nonsense", "not one of this server"), (f" {token} ", "you can close this page")):
                await page.evaluate(f"document.getElementById('token').value = '{text}'")
                await page.evaluate("document.querySelector('#paste button').click()")
                await says(page, answer)
            assert (await outcome_of(program))[1] == home


@pytest.mark.slow
async def test_a_page_of_another_origin_cannot_show_the_login_in_a_frame(
    chrome: Browser, server: Server, tmp_path: Path
) -> None:
    site = tmp_path / "evil.html"
    site.write_text(f'<!doctype html><iframe src="{server.url}/login?logout"></iframe>')
    page = await chrome.open(site.as_uri())
    assert any("frame-ancestors" in problem for problem in page.problems), page.problems
