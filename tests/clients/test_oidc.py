"""A person with a browser signs in at a real provider, and comes back: over restarts, refusals, and without it.

The provider is ``oidc-provider`` in a process of its own (``js/provider.mjs``), and for browsers another site than
the server: ``127.0.0.1`` and ``localhost``.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import trio

from tests.clients.conftest import RunClient
from tests.clients.test_accounts import PASSWORD, chrome, join, make_token, text_of, who
from tests.house import npm
from tests.house.chromium import Browser, Page
from tests.house.environments import GENERATIONS, MODERN
from tests.house.processes import Running, start
from tests.process.servers import SERVER, refused

pytestmark = [pytest.mark.slow, pytest.mark.deadline(40)]

__all__ = ["chrome"]

CLIENT_ID, SECRET = "hypha", "canary-secret"


@asynccontextmanager
async def providing(node: str, directory: Path, *secret: str, port: int = 0) -> AsyncIterator[tuple[Running, str]]:
    """A provider, and its address."""
    if not (npm.directory() / "complete").is_file():
        pytest.fail(f"{npm.directory()} is missing; run 'python3 -m tests' once, which installs it")
    command: list[str | Path] = [node, npm.SOURCE / "provider.mjs", npm.modules(), CLIENT_ID, *secret]
    environ = {"PROVIDER_PORT": str(port)}
    async with trio.open_nursery() as nursery, start(nursery, command, cwd=directory, environ=environ) as running:
        yield running, (await running.wait_for(r"^issuer (\S+)"))[1]


@asynccontextmanager
async def serving(
    directory: Path, issuer: str, *flags: str, secret: str | None = SECRET, port: int = 0
) -> AsyncIterator[tuple[Running, str]]:
    """A server whose people can sign in there, and its address. It ends as it should."""
    command = [*SERVER, "--port", str(port), "--oidc-issuer", issuer, "--oidc-client-id", CLIENT_ID, *flags]
    command += ["--log-level", "debug"]
    environ = {} if secret is None else {"HYPHA_OIDC_CLIENT_SECRET": secret}
    async with (
        trio.open_nursery() as nursery,
        start(nursery, command, cwd=directory, environ=environ) as running,
    ):
        yield running, (await running.wait_for(r"^ +open +(http://\S+)"))[1]
        running.send_signal(signal.SIGTERM)
        result = await running.wait()
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), running.report()
    assert SECRET not in result.stdout + result.stderr


async def go_there(page: Page, issuer: str, form: str = "") -> None:
    """Press the button that leads to the provider, to where a person has something to do."""
    button = f"document.querySelector(\"form[action$='account/oidc']{form} button\").click()"
    await page.leave_for(button, rf"{re.escape(issuer)}/interaction/.*")


async def go_there_and_back(page: Page, url: str) -> None:
    """The same where nobody is asked anything any more."""
    button = "document.querySelector(\"form[action$='account/oidc'] button\").click()"
    await page.leave_for(button, f"{url}/account")


async def sign_in_there(page: Page, issuer: str, back: str, name: str = "ada") -> None:
    """Say who one is, and that the server may know it; the way back leads to *back*."""
    await page.evaluate(f"document.querySelector('[name=login]').value = {json.dumps(name)}")
    await page.leave_for(YES, rf"{re.escape(issuer)}/interaction/.*")
    assert await page.evaluate("document.querySelector('h1').textContent") == "May it know?"
    await page.leave_for(YES, back)


YES, NO = (f"document.querySelector('[value={answer}]').click()" for answer in ("yes", "no"))


async def sign_out(page: Page) -> None:
    await page.leave("document.querySelector('form[action$=sign-out] button').click()")


async def user_id(page: Page) -> str:
    return str(await page.evaluate("document.querySelector('dd code').textContent"))


async def test_from_an_address_that_is_welcome_to_a_program_over_a_restart(
    tmp_path: Path, chrome: Browser, node: str, run_client: RunClient
) -> None:
    welcome = ("--oidc-domains", "lab.example")
    async with providing(node, tmp_path, SECRET) as (_, issuer):
        async with serving(tmp_path, issuer, *welcome) as (running, url):
            await join(running, chrome)  # who administers the server has a password
            page = await chrome.open(f"{url}/account")
            await sign_out(page)
            await page.go(f"{url}/account")
            assert f"Continue with {urlsplit(issuer).netloc}" in await text_of(page)
            await go_there(page, issuer)
            await sign_in_there(page, issuer, f"{url}/account", "emmy")
            text = await text_of(page)
            assert ("emmy@lab.example" in text, "This account has none" in text) == (True, True)
            account, token = await user_id(page), await make_token(page, "microscope")
            for generation in (GENERATIONS[-1], MODERN):
                workspace, user = await who(run_client, generation, url, token)
                assert (workspace, user["id"], user["email"]) == (account, account, "emmy@lab.example")
            await sign_out(page)
            await page.go(f"{url}/account")
            await go_there_and_back(page, url)  # where one is signed in still
            assert await user_id(page) == account
        async with serving(tmp_path, issuer, *welcome, port=int(url.rpartition(":")[2])) as (running, again):
            assert again == url
            await page.go(f"{url}/account")
            assert await user_id(page) == account
            await sign_out(page)
            await page.go(f"{url}/account")
            await go_there_and_back(page, url)
            assert await user_id(page) == account
        assert page.problems == []


async def test_an_invitation_is_accepted_by_a_public_client_and_a_stranger_is_not(
    tmp_path: Path, chrome: Browser, node: str
) -> None:
    async with providing(node, tmp_path) as (_, issuer), serving(tmp_path, issuer, secret=None) as (running, url):
        page = await chrome.open((await running.wait_for(r"^ +owner +(http://\S+)"))[1])
        await go_there(page, issuer)
        await sign_in_there(page, issuer, f"{url}/account")
        assert "administers this server" in await text_of(page)
        await page.leave("document.querySelector('form[action$=invitations] button').click()")
        link = await page.evaluate("document.querySelector('textarea').value")
        stranger = await chrome.open_apart(f"{url}/account")
        await go_there(stranger, issuer)
        await sign_in_there(stranger, issuer, rf"{url}/account/oidc/callback\?.*", "bob")
        assert "ask whoever runs this server for an invitation" in await text_of(stranger)
        await stranger.go(link)
        await go_there_and_back(stranger, url)
        assert "bob@lab.example" in await text_of(stranger)
        assert page.problems == []
        assert [problem for problem in stranger.problems if "403" not in problem] == []


async def test_who_says_no_there_is_not_signed_in_and_can_try_again(tmp_path: Path, chrome: Browser, node: str) -> None:
    async with providing(node, tmp_path, SECRET) as (_, issuer), serving(tmp_path, issuer) as (running, url):
        page = await chrome.open((await running.wait_for(r"^ +owner +(http://\S+)"))[1])
        await go_there(page, issuer)
        await page.leave_for(NO, rf"{url}/account/oidc/callback\?.*")
        assert "You were not let in by the provider, which says 'access_denied somebody said no'." in await text_of(
            page
        )
        await page.leave("document.querySelector('a').click()")
        assert "Continue with" in await text_of(page)
        await page.go((await running.wait_for(r"^ +owner +(http://\S+)"))[1])  # which is not used up
        await go_there(page, issuer)
        await sign_in_there(page, issuer, f"{url}/account")
        assert "administers this server" in await text_of(page)


async def test_an_account_with_a_password_is_connected_and_a_provider_that_is_gone_keeps_nobody_out(
    tmp_path: Path, chrome: Browser, node: str
) -> None:
    async with providing(node, tmp_path, SECRET) as (provider, issuer), serving(tmp_path, issuer) as (running, url):
        page = await join(running, chrome)
        owner = await user_id(page)
        await go_there(page, issuer)
        await sign_in_there(page, issuer, f"{url}/account", "somebody-else")
        assert f"with a password and with {urlsplit(issuer).netloc}" in await text_of(page)
        await sign_out(page)
        await page.go(f"{url}/account")
        await go_there_and_back(page, url)
        assert await user_id(page) == owner
        await sign_out(page)
        async with httpx.AsyncClient() as client:
            begun = await client.post(f"{url}/account/oidc", data={"key": ""}, headers={"Origin": url})
            provider.kill_group()
            await refused(int(issuer.rpartition(":")[2]))
            state = parse_qs(urlsplit(begun.headers["refresh"]).query)["state"][0]
            answer = await client.get(
                f"{url}/account/oidc/callback", params={"state": state, "code": "x", "iss": issuer}
            )
            assert (answer.status_code, "cannot be reached; try later" in answer.text) == (502, True)
        await page.go(f"{url}/account")
        for name, value in (("name", "ada"), ("password", PASSWORD)):
            await page.evaluate(f"document.querySelector('[name={name}]').value = {json.dumps(value)}")
        await page.leave("document.querySelector('button.main').click()")
        assert await user_id(page) == owner
        await page.leave("document.querySelector('form[action$=disconnect] button').click()")
        assert "Signs in\nwith a password\n" in await text_of(page)


async def test_a_provider_that_was_never_there(tmp_path: Path, chrome: Browser) -> None:
    async with serving(tmp_path, "http://127.0.0.1:1") as (running, url):
        page = await join(running, chrome)
        await page.leave("document.querySelector(\"form[action$='account/oidc'] button\").click()")
        assert "The provider at http://127.0.0.1:1 cannot be reached; try later." in await text_of(page)
        assert [problem for problem in page.problems if "502" not in problem] == []
        await page.go(f"{url}/account")
        await sign_out(page)
        await page.go(f"{url}/account")
        for name, value in (("name", "ada"), ("password", PASSWORD)):
            await page.evaluate(f"document.querySelector('[name={name}]').value = {json.dumps(value)}")
        await page.leave("document.querySelector('button.main').click()")
        assert "administers this server" in await text_of(page)
