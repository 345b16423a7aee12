"""Web applications of our own client: what they cost (issue 7, figures)."""

from __future__ import annotations

import re
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.clients.conftest import StartServer
from tests.house import processes
from tests.house.processes import Server
from tests.web.wires import exchange, read_answer, request_bytes

APPS = Path(__file__).with_name("trio_apps.py")
CONNECTIONS, CALLS, ROUNDS = 16, 50, 5
PIECE, UPLOAD = 65536, 100 * 2**20
EXTRA = 32 * 2**20
#: Of the calls over HTTP, that functions must reach at least.
SHARE = 0.5


@contextmanager
def highest_memory(pid: int) -> Iterator[list[int]]:
    """The resident bytes of a process before the block, and the most within it, looked at every 5 ms."""
    statm, stop = Path(f"/proc/{pid}/statm"), threading.Event()

    def resident() -> int:
        return int(statm.read_text().split()[1]) * 4096

    found = [resident(), 0]

    def watch() -> None:
        while not stop.wait(0.005):
            found[1] = max(found[1], resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


async def rate(server: Server, path: str) -> float:
    """Calls per second with :data:`CONNECTIONS` connections, one after the other on each."""

    async def ask() -> None:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            for _ in range(CALLS):
                answer = await exchange(stream, path)
                assert (answer.status, len(answer.body)) == (200, 5), answer

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(ask)
    return CONNECTIONS * CALLS / (time.perf_counter() - began)


@pytest.mark.slow
async def test_what_applications_cost(start_server: StartServer, tmp_path: Path, nursery: trio.Nursery) -> None:
    with start_server("--single-process") as server:
        async with processes.start(nursery, [sys.executable, APPS, server.url], cwd=tmp_path) as running:
            workspace = (await running.wait_for(r"^ready (\S+)$"))[1]
            paths = (f"/{workspace}/services/called/hello", f"/{workspace}/apps/functions/hello")
            rates = [[await rate(server, path) for path in paths] for _ in range(ROUNDS)]
            called, functions = (statistics.median(column) for column in zip(*rates, strict=True))
            print(f"functions {functions:.0f}/s, calls over HTTP {called:.0f}/s: {functions / called:.2f}")
            memory, seconds = await upload(server, f"/{workspace}/apps/app/")
            print(f"100 MB uploaded in {seconds:.1f} s with {memory / 2**20:.1f} MiB more memory at the server")
            assert re.search("Traceback", running.stderr) is None
    assert functions >= SHARE * called
    assert memory < EXTRA


async def upload(server: Server, path: str) -> tuple[int, float]:
    """How many bytes more the server has held while :data:`UPLOAD` bytes went through it, and for how many seconds."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        began = time.perf_counter()
        with highest_memory(server.pid) as found:
            await stream.send_all(request_bytes(path, "POST", {"Content-Length": str(UPLOAD)}))
            for _ in range(UPLOAD // PIECE):
                await stream.send_all(bytes(PIECE))
            answer = await read_answer(stream)
        assert answer.body == str(UPLOAD).encode()
        return found[1] - found[0], time.perf_counter() - began
