"""Traps of the stack that are no row of the neighbour test, with the servers as people start them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.attack.attacks import MIB, answered, call, packed, request, websocket
from tests.clients.raw import header, masked
from tests.house.processes import Server, serving
from tests.process.servers import HYPERCORN, SERVER
from tests.soak.legacy_peer import dial

pytestmark = pytest.mark.slow

COMMANDS = {"hypha.server": SERVER, "hypercorn": HYPERCORN}
SETTINGS = {
    "HYPHA_STATIC_MOUNTS": "/files:files",
    "HYPHA_LIMIT_SILENCE_SECONDS": "1",
    "HYPHA_LIMIT_PING_SECONDS": "0.5",
    "HYPHA_LOG_LEVEL": "error",
}


@pytest.fixture(params=COMMANDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    files = tmp_path / "files"
    files.mkdir()
    (files / "digits").write_text("0123456789")
    (tmp_path / "secret").write_text("secret")
    (files / "link").symlink_to(tmp_path / "secret")
    (files / "up").symlink_to(tmp_path)
    with serving(tmp_path, command=COMMANDS[request.param], environ=SETTINGS) as server:
        yield server


async def get(server: Server, path: str, *headers: str) -> bytes:
    async with await dial(server.port) as stream:
        await stream.send_all(request("GET", path, *headers, "Connection: close"))
        return b"".join([chunk async for chunk in stream])


async def test_links_do_not_lead_out_of_a_mount_and_the_end_of_a_file_can_be_asked_for(server: Server) -> None:
    """F6."""
    for path in ("/files/link", "/files/up/secret", "/files/../secret", "/files/%2e%2e/secret"):
        answer = await get(server, path)
        assert answer.startswith(b"HTTP/1.1 404 "), path
        assert b"secret" not in answer.partition(b"\r\n\r\n")[2].replace(path.encode(), b"")
    answer = await get(server, "/files/digits", "Range: bytes=-3")
    assert answer.startswith(b"HTTP/1.1 206 ")
    assert answer.endswith(b"\r\n\r\n789")


async def test_a_peer_that_answers_no_ping_is_let_go(server: Server) -> None:
    """F5: silent from the beginning, and within a frame."""
    beginnings = (b"", call("s"), masked(2, packed(header("x", "y"), {"args": [bytes(1000)]}))[:500])
    for data in beginnings:
        async with websocket(server.port) as stream:
            await stream.send_all(data)
            with trio.fail_after(5):
                rest = b"".join([chunk async for chunk in stream])
            assert b"\x03\xf4the client was silent for more than silence_seconds = " in rest  # 1012


async def test_a_client_may_send_much_as_soon_as_it_is_accepted(server: Server) -> None:
    """More than is held before the upgrade is answered, in the moment in which it is answered."""
    large = masked(2, packed(header("nobody", "services.x.y"), {"args": [bytes(4 * MIB)]}))
    for _ in range(30):
        async with websocket(server.port) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, large + call("s"))
            await answered(stream, "s")
