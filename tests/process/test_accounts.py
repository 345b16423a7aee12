"""The one secret that a server prints: the link with which its first account is made."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.process.servers import HYPERCORN, SERVER, SINGLE, Live, live

pytestmark = pytest.mark.slow


async def printed(server: Live, command: tuple[str, ...]) -> str:
    """The link, with the real address of the server."""
    if command == HYPERCORN:
        path = (await server.running.wait_for(r"^hypha: make an administrator.* at (/\S+)$", "stderr"))[1]
        return f"http://127.0.0.1:{server.port}{path}"
    return (await server.running.wait_for(r"^ +owner +(http://\S+)"))[1]


async def join(link: str, name: str) -> int:
    """The status of making an account with *link*."""
    parts = urlsplit(link)
    origin = f"{parts.scheme}://{parts.netloc}"
    fields = {"link": parse_qs(parts.query)["link"][0], "name": name, "password": "correct horse"}
    async with httpx.AsyncClient() as client:
        assert (await client.get(link)).status_code in {200, 404}
        answer = await client.post(f"{origin}/account/join", data=fields, headers={"Origin": origin})
    return answer.status_code


@pytest.mark.parametrize("command", [SERVER, SINGLE, HYPERCORN], ids=["parent", "single", "hypercorn"])
async def test_the_link_is_printed_until_there_is_an_account(command: tuple[str, ...], tmp_path: Path) -> None:
    links = []
    for _ in range(2):
        async with live(command, tmp_path) as server:
            links.append(await printed(server, command))
            port = server.port
            if len(links) == 2:
                old = re.sub(r":\d+/", f":{port}/", links[0])
                assert [await join(link, "ada") for link in (links[1], old)] == [303, 404]
            server.kill(signal.SIGTERM)
            await server.ended()
    assert links[0] != links[1]
    async with live(command, tmp_path) as server:
        server.kill(signal.SIGTERM)
        result = await server.ended()
    assert "account/join" not in result.stdout + result.stderr


async def test_another_administrator_when_it_is_asked_for(tmp_path: Path) -> None:
    command = (*SERVER, "--owner-link")
    for name in ("ada", "grace"):
        async with live(command, tmp_path) as server:
            assert await join(await printed(server, command), name) == 303
            server.kill(signal.SIGTERM)
            await server.ended()


async def test_a_link_that_is_printed_outlives_a_kill(tmp_path: Path) -> None:
    async with live(SERVER, tmp_path) as server:
        link = await printed(server, SERVER)
        os.kill(server.worker(), signal.SIGKILL)
        await server.running.wait_for(r"^hypha: back after", "stderr")
        assert await join(link, "ada") == 303
        server.kill(signal.SIGTERM)
        await server.ended()


async def test_a_link_outlives_the_worker_that_has_made_it(tmp_path: Path) -> None:
    async with live(SERVER, tmp_path) as server:
        link = await printed(server, SERVER)
        server.kill(signal.SIGHUP)
        await server.running.wait_for(r"^hypha: back after", "stderr")
        assert await join(link, "ada") == 303
        server.kill(signal.SIGTERM)
        result = await server.ended()
    assert link.partition("=")[2] not in result.stderr
