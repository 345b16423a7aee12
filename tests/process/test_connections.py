"""Connections beyond the limit wait in the kernel's queue, under both start commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.process.servers import HYPERCORN, REQUEST, SERVER, SINGLE, answers, live, until, websocket_peer

pytestmark = pytest.mark.slow

PING, PONG = b"\x89\x80\0\0\0\0", b"\x8a\x00"


def waiting(port: int) -> int:
    """Connections to *port* that nobody has accepted."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (queue,) = [row[4] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port]
    return int(queue.rpartition(":")[2], 16)


@pytest.mark.skipif(sys.platform != "linux", reason="the queue is read in /proc")
@pytest.mark.parametrize("command", [SERVER, SINGLE, HYPERCORN], ids=["parent", "single", "hypercorn"])
async def test_one_connection_too_many_waits(command: Sequence[str], tmp_path: Path) -> None:
    async with live(command, tmp_path, {"HYPHA_LIMIT_CONNECTIONS": "2"}) as server, AsyncExitStack() as streams:
        peers = [await streams.enter_async_context(websocket_peer(server.port)) for _ in range(2)]
        late = await streams.enter_async_context(await trio.open_tcp_stream("127.0.0.1", server.port))
        await late.send_all(REQUEST)
        for peer in peers:  # once both are answered, the server has looked at everything that came before
            await peer.send_all(PING)
            received = b""
            while not received.endswith(PONG):
                received += await peer.receive_some(4096)
        assert waiting(server.port) == 1
        await peers[0].aclose()
        assert (await late.receive_some(12)) == b"HTTP/1.1 200"
        assert waiting(server.port) == 0


@pytest.mark.parametrize("command", [SERVER, HYPERCORN], ids=["parent", "hypercorn"])
async def test_a_server_without_descriptors_goes_on_when_there_are_some(command: Sequence[str], tmp_path: Path) -> None:
    few = ["sh", "-c", 'ulimit -n 40; exec "$@"', "sh", *command]
    async with live(few, tmp_path) as server:
        async with AsyncExitStack() as streams:
            for _ in range(60):
                stream = await streams.enter_async_context(await trio.open_tcp_stream("127.0.0.1", server.port))
                await stream.send_all(b"GET")
            await server.running.wait_for("connections wait: .*Too many open files", "stderr")
        assert await answers(server.port)
        await until(lambda: waiting(server.port) == 0)
        assert server.running.report().count("connections wait") == 1
