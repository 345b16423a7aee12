"""A person with a browser: from the link in the terminal to programs that act as the person, over a kill."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.clients.conftest import RunClient, StartClient
from tests.clients.scripted import SCRIPTS
from tests.house import chromium
from tests.house.chromium import Browser, Page
from tests.house.environments import GENERATIONS, MODERN
from tests.house.processes import Running, start
from tests.process.servers import SERVER, all_gone, group

pytestmark = pytest.mark.slow

PASSWORD = "correct horse"
#: Waits until the browser has put the focus where the page wants it, which it does some time after loading.
FOCUSED = """(async () => {
    while (document.activeElement.name !== "name") await new Promise((done) => setTimeout(done, 10));
})()"""


@pytest.fixture
async def chrome(browser: str, tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Browser]:
    async with chromium.launch(nursery, browser, tmp_path / "profile") as running:
        yield running


@asynccontextmanager
async def serving(directory: Path, port: int = 0) -> AsyncIterator[tuple[Running, str]]:
    """A server in *directory*, and its address."""
    command = [*SERVER, "--port", str(port)]
    async with trio.open_nursery() as nursery, start(nursery, command, cwd=directory) as running:
        yield running, (await running.wait_for(r"^ +open +(http://\S+)"))[1]


async def join(running: Running, chrome: Browser) -> Page:
    """Open the printed link and make the first account."""
    page = await chrome.open((await running.wait_for(r"^ +owner +(http://\S+)"))[1])
    fill = (("name", "ada"), ("email", "ada@lab.example"), ("password", PASSWORD))
    for name, value in fill:
        await page.evaluate(f"document.querySelector('[name={name}]').value = {json.dumps(value)}")
    await page.leave("document.querySelector('button.main').click()")
    return page


async def make_token(page: Page, label: str) -> str:
    await page.evaluate(f"document.querySelector('[name=label]').value = {json.dumps(label)}")
    await page.leave("document.querySelector('form[action$=tokens] button').click()")
    token = str(await page.evaluate("document.querySelector('textarea').value"))
    await page.leave("document.querySelector('a').click()")
    return token


async def text_of(page: Page) -> str:
    return str(await page.evaluate("document.body.innerText"))


async def who(run_client: RunClient, generation: str, url: str, token: str) -> tuple[str, dict[str, Any]]:
    """Where a program with *token* is, and whom its service sees when it calls it itself."""
    result = await run_client(generation, SCRIPTS / "who.py", url, token)
    assert result.returncode == 0, result.stdout + result.stderr
    workspace, user = json.loads(result.stdout.partition("who ")[2].partition("\n")[0])
    return workspace, user


async def test_from_the_printed_link_to_programs_of_both_generations_over_a_kill(
    tmp_path: Path, chrome: Browser, run_client: RunClient, start_client: StartClient
) -> None:
    async with serving(tmp_path) as (running, url):
        page = await join(running, chrome)
        assert "administers this server" in await text_of(page)
        token = await make_token(page, "microscope")
        owner = await page.evaluate("document.querySelector('dd code').textContent")
        for generation in (GENERATIONS[-1], MODERN):
            workspace, user = await who(run_client, generation, url, token)
            assert (workspace, user["id"], user["email"]) == (owner, owner, "ada@lab.example")
            assert (user["is_anonymous"], user["roles"], user["scopes"]) == (False, [], [owner])
        pids = group(running.pid)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await all_gone(pids)
    async with serving(tmp_path, int(url.rpartition(":")[2])) as (running, again):
        assert again == url
        assert "account/join" not in running.stdout
        await page.go(f"{url}/account")
        assert "used " in await text_of(page)
        assert "Sign out" in await text_of(page)
        async with start_client(MODERN, SCRIPTS / "who.py", url, token, "serve") as program:
            await program.wait_for("^who ")
            async with httpx.AsyncClient() as client:
                call = f"{url}/{owner}/services/who/who"
                assert (await client.get(call)).status_code == 404
                answer = await client.get(call, headers={"Authorization": f"Bearer {token}"})
                assert (answer.status_code, answer.json()["id"]) == (200, owner)
                door = f"{url}/{owner}/services/door/open_door"
                refused = await client.get(door)
                assert (refused.status_code, "for friends" in refused.json()["detail"]) == (500, True)
                let_in = await client.get(door, headers={"Authorization": f"Bearer {token}"})
                assert (let_in.status_code, let_in.json()) == (200, "open")
                await page.go(f"{url}/account")
                await page.leave("document.querySelector('form[action$=revoke] button').click()")
                assert "The token is revoked" in await text_of(page)
                answer = await client.get(call, headers={"Authorization": f"Bearer {token}"})
                assert answer.status_code == 401
        result = await run_client(MODERN, SCRIPTS / "who.py", url, token)
        assert result.returncode != 0
        assert page.problems == []
        assert token not in running.stdout + running.stderr


async def test_with_a_keyboard_alone(tmp_path: Path, chrome: Browser) -> None:
    async with serving(tmp_path) as (running, url):
        page = await chrome.open((await running.wait_for(r"^ +owner +(http://\S+)"))[1])
        await page.evaluate(FOCUSED)
        for text in ("ada", "", PASSWORD):
            await page.type(text)
            await page.press("Enter" if text == PASSWORD else "Tab", leaves=text == PASSWORD)
        assert "administers this server" in await text_of(page)
        await focus(page, "name=label")
        await page.type("microscope")
        await page.press("Enter", leaves=True)
        await focus(page, "data-copies=token")
        await page.press(" ")
        await page.evaluate("""(async () => {
            const button = document.querySelector("[data-copies]");
            while (button.textContent !== "Copied") await new Promise((done) => setTimeout(done, 10));
        })()""")
        await focus(page, "href=account")
        await page.press("Enter", leaves=True)
        await focus(page, "aria-label=Revoke microscope")
        await page.press("Enter", leaves=True)
        assert "The token is revoked" in await text_of(page)
        await focus(page, "action=account/sign-out")
        await page.press("Enter", leaves=True)
        assert "Signed out" in await text_of(page)
        await page.go(f"{url}/login")
        await page.evaluate(FOCUSED)
        for text in ("ada", PASSWORD):
            await page.type(text)
            await page.press("Enter" if text == PASSWORD else "Tab", leaves=text == PASSWORD)
        assert "administers this server" in await text_of(page)
        assert page.problems == []


async def focus(page: Page, wanted: str) -> None:
    """Press Tab until the focus is on an element with that attribute, or on the button of such a form."""
    name, _, value = wanted.partition("=")
    is_there = f"""(() => {{
        const here = document.activeElement;
        const marked = (item) => item && (item.getAttribute({json.dumps(name)}) || "").endsWith({json.dumps(value)});
        return Boolean(marked(here) || (here.localName === "button" && marked(here.form)));
    }})()"""
    for _ in range(40):
        if await page.evaluate(is_there):
            return
        await page.press("Tab")
    pytest.fail(f"the keyboard does not lead to {wanted}")


@pytest.mark.parametrize("dark", [False, True])
async def test_on_a_phone_nothing_is_wider_than_the_screen_and_all_can_be_read(
    tmp_path: Path, chrome: Browser, dark: bool
) -> None:
    async with serving(tmp_path) as (running, _):
        page = await join(running, chrome)
        await make_token(page, "a microscope with a rather long name in a room with a rather long name, too")
        await page.show(360, 740, dark=dark)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        small = (
            "[...document.querySelectorAll('button')].filter((item) => item.offsetParent).map((b) => b.offsetHeight)"
        )
        assert min(await page.evaluate(small)) >= 36  # pixels: a finger
        colours = "[getComputedStyle(document.body).color, getComputedStyle(document.documentElement).colorScheme]"
        colour, scheme = await page.evaluate(colours)
        assert scheme == "light dark"
        assert (colour == "rgb(255, 255, 255)") == dark


async def test_a_page_of_an_application_cannot_act_as_who_is_signed_in(
    tmp_path: Path, chrome: Browser, start_client: StartClient
) -> None:
    async with serving(tmp_path) as (running, url):
        await join(running, chrome)
        async with start_client(GENERATIONS[-1], EVIL, url) as program:
            place = (await program.wait_for(r"^at (\S+)"))[1]
            page = await chrome.open(place)
            assert await page.evaluate("fetch('/account').then((answer) => answer.status)") == 403
            told = await page.evaluate("""(async () => {
                const frame = document.createElement("iframe");
                frame.src = "/account";
                document.body.append(frame);
                await new Promise((done) => { frame.onload = done; });
                try { return frame.contentDocument.body.innerText; } catch (error) { return String(error); }
            })()""")
            assert "ada" not in (told or "")
            opened = await page.evaluate(
                """(async () => {
                const other = window.open("/account");
                for (let turn = 0; turn < 200; turn += 1) {
                    if (other === null || other.closed) return "apart";
                    let text;
                    try { text = other.document.body?.innerText || ""; } catch { return "apart"; }
                    if (text.includes("ada")) return text;
                    await new Promise((done) => setTimeout(done, 10));
                }
                return "nothing";
            })()""",
                as_person=True,
            )
            assert opened == "apart"


#: A stranger, whose application tells the browser whatever it likes.
EVIL = """
    import asyncio, sys
    from imjoy_rpc.hypha import connect_to_server

    async def main(url):
        server = await connect_to_server({"server_url": url})
        headers = {"Content-Type": "text/html", "Cross-Origin-Opener-Policy": "same-origin"}
        page = lambda event, context=None: {"status": 200, "headers": headers, "body": "<!doctype html><p>evil"}
        await server.register_service(
            {"id": "evil", "name": "evil", "type": "functions", "config": {"visibility": "public"}, "index": page}
        )
        print(f"at {url}/{server.config.workspace}/apps/evil/", flush=True)
        await asyncio.Event().wait()

    asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("generation", [GENERATIONS[-1], MODERN])
async def test_a_program_that_logs_in_is_let_in_by_who_signs_in(
    tmp_path: Path, chrome: Browser, start_client: StartClient, generation: str
) -> None:
    async with serving(tmp_path) as (running, url):
        page = await join(running, chrome)
        owner = await page.evaluate("document.querySelector('dd code').textContent")
        await page.leave("document.querySelector('form[action$=sign-out] button').click()")
        async with start_client(generation, SCRIPTS / "log_in.py", url) as program:
            context = json.loads((await program.wait_for("^context (.*)$"))[1])
            await page.go(context["login_url"])
            await page.leave("document.querySelector('a.button').click()")
            for name, value in (("name", "ada"), ("password", PASSWORD)):
                await page.evaluate(f"document.querySelector('[name={name}]').value = {json.dumps(value)}")
            await page.leave("document.querySelector('button.main').click()")
            assert "A program in Python started to log in" in await text_of(page)
            await page.leave("document.querySelector('button.main').click()")
            assert "has its token and goes on" in await text_of(page)
            token, workspace = json.loads((await program.wait_for("^in (.*)$"))[1])
            assert workspace == owner
            assert (await program.wait()).returncode == 0
        await page.go(f"{url}/account")
        assert "login of a program in Python" in await text_of(page)
        assert token not in await page.evaluate("document.documentElement.outerHTML")
        assert page.problems == []
        assert token not in running.stdout + running.stderr


@pytest.mark.parametrize("generation", [GENERATIONS[-1], MODERN])
async def test_a_link_is_shared_and_whoever_opens_it_calls(
    tmp_path: Path, chrome: Browser, start_client: StartClient, generation: str
) -> None:
    async with serving(tmp_path) as (running, url):
        page = await join(running, chrome)
        token = await make_token(page, "greeter")
        async with start_client(generation, GREETER, url, token) as program:
            await program.wait_for("^ready")
            await page.go(f"{url}/account")
            await page.evaluate("document.querySelector('form[action$=shares] [name=label]').value = 'reviewers'")
            await page.evaluate("document.querySelector('form[action$=shares] [name=calls]').value = '2'")
            await page.leave("document.querySelector('form[action$=shares] button').click()")
            link = await page.evaluate("document.querySelector('textarea').value")
            visitor = await chrome.open(link)
            assert "Greeter" in await text_of(visitor)
            schema = generation == MODERN
            field, value = ("[name=name]", "Ada") if schema else ("[name=_args]", '{"name": "Ada"}')
            await visitor.evaluate(f"document.querySelector({json.dumps(field)}).value = {json.dumps(value)}")
            await visitor.evaluate("document.querySelector('form button').click()")
            assert await shown_by(visitor, "Hello") == '"Hello Ada"'
            async with httpx.AsyncClient() as client:
                assert (await client.post(f"{link}/hello", json={"name": "Bob"})).json() == "Hello Bob"
                assert (await client.post(f"{link}/hello", json={"name": "Eve"})).status_code == 429
            await visitor.evaluate("document.querySelector('form button').click()")
            assert await shown_by(visitor, "used up") == "this link was for 2 calls, which are used up"
            await page.go(f"{url}/account")
            assert "calls: 2 of 2, the last just now" in await text_of(page)
            await page.leave("document.querySelector('form[action$=shares\\\\/revoke] button').click()")
            await visitor.go(link)
            assert "This link has ended, was revoked, or never was" in await text_of(visitor)
            assert [problem for problem in visitor.problems if "429" not in problem and "404" not in problem] == []
            secret = link.rpartition("/")[2]
            assert secret not in running.stdout + running.stderr


async def shown_by(page: Page, text: str) -> str:
    """What the first form of a shared service shows, when that holds *text*."""
    return str(
        await page.evaluate(f"""(async () => {{
            const place = document.querySelector("output");
            while (!place.textContent.includes({json.dumps(text)})) await new Promise((done) => setTimeout(done, 10));
            return place.textContent;
        }})()""")
    )


#: A program that offers a function to nobody but its own user.
GREETER = """
    import asyncio, sys

    try:
        from imjoy_rpc.hypha import connect_to_server
        described = lambda function: function
    except ModuleNotFoundError:
        from hypha_rpc import connect_to_server
        from hypha_rpc.utils.schema import schema_function as described

    @described
    def hello(name: str) -> str:
        '''Greet somebody.'''
        return "Hello " + name

    async def main(url, token):
        server = await connect_to_server({"server_url": url, "token": token})
        config = {"visibility": "protected"}
        await server.register_service({"id": "greeter", "name": "Greeter", "config": config, "hello": hello})
        print("ready", flush=True)
        await asyncio.Event().wait()

    asyncio.run(main(*sys.argv[1:]))
"""
