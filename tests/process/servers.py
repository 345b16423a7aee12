"""Servers as real processes: how a test starts one, asks it, watches its processes, and sees that all are gone."""

from __future__ import annotations

import base64
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.house.processes import Result, Running, start

SERVER = (sys.executable, "-m", "hypha.server")
SINGLE = (*SERVER, "--single-process")
HYPERCORN = (sys.executable, "-m", "hypercorn", "hypha.server:app", "--worker-class", "trio", "-b", "127.0.0.1:0")

#: A request that any server of ours answers with a few bytes of JSON.
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass(frozen=True)
class Live:
    """A server that is ready on *port* of 127.0.0.1."""

    running: Running
    port: int

    @property
    def pid(self) -> int:
        return self.running.pid

    def workers(self) -> list[int]:
        """The processes that this server has started and that are still there."""
        return [pid for pid in group(self.pid) if pid != self.pid]

    def worker(self) -> int:
        (pid,) = self.workers()
        return pid

    def kill(self, number: signal.Signals, *, whole_group: bool = False) -> None:
        (os.killpg if whole_group else os.kill)(self.pid, number)

    async def ended(self) -> Result:
        """Wait for the end, and see that nothing is left: no process, no open port, no traceback."""
        result = await self.running.wait()
        await all_gone(group(self.pid))
        assert "Traceback" not in result.stdout + result.stderr, self.running.report()
        await refused(self.port)
        return result


@asynccontextmanager
async def live(command: Sequence[str], cwd: Path, environ: Mapping[str, str] | None = None) -> AsyncIterator[Live]:
    """Start *command* on a free port, in *cwd* and with its data directory there, and wait until it is ready."""
    flags = () if "hypercorn" in command or "--fd" in command else ("--port", "0")
    async with (
        trio.open_nursery() as nursery,
        start(nursery, [*command, *flags], cwd=cwd, environ=environ) as running,
    ):
        yield Live(running, await port_of(running, command))


async def port_of(running: Running, command: Sequence[str]) -> int:
    """The port that the server says it listens on, when it is ready."""
    if "hypercorn" in command:
        return int((await running.wait_for(r"Running on http://127\.0\.0\.1:(\d+)", "stderr"))[1])
    return int((await running.wait_for(r"^ +open +http://[^/ ]+:(\d+)"))[1])


def group(leader: int) -> list[int]:
    """The living processes of the process group *leader*: a server and all that it has started."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, _, member = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(member) == leader and state not in "ZX":
            found.append(int(entry))
    return sorted(found)


async def all_gone(pids: Sequence[int]) -> None:
    """Wait until all of *pids* have ended, whoever their parents are. Fails after 5 seconds."""
    with trio.fail_after(5):
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a fact about processes that no event tells."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110  it comes true in another process
            await trio.sleep(0.01)


async def ask(port: int) -> bytes:
    """The first bytes that the server answers to a request; a connection that has to wait is waited for."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(REQUEST)
        return bytes(await stream.receive_some(65536))


async def answers(port: int) -> bool:
    return (await ask(port)).startswith(b"HTTP/1.1 200 ")


async def refused(port: int) -> None:
    """Wait until nobody listens on *port* any more. Fails after 5 seconds."""

    def nobody() -> bool:
        with closing(socket.socket()) as sock:
            return sock.connect_ex(("127.0.0.1", port)) != 0

    await until(nobody, 5)


@asynccontextmanager
async def stalled_reader(port: int, path: str) -> AsyncIterator[None]:
    """A client that asks for *path*, which must be longer than all buffers, and stops reading after its beginning."""
    with trio.socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await sock.connect(("127.0.0.1", port))
        await sock.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert (await sock.recv(12)) == b"HTTP/1.1 200"
        yield


def big_mount(directory: Path) -> list[str]:
    """The flag that serves ``/files/big``, a file longer than all buffers."""
    (directory / "files").mkdir()
    with open(directory / "files" / "big", "wb") as file:
        file.truncate(64 * 1024 * 1024)
    return ["--static-mounts", "/files:files"]


def listens(pid: int, port: int) -> bool:
    """Whether the process *pid* itself holds the listening socket of *port*: its child may hold it, too."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    return not inodes.isdisjoint(_sockets(pid))


def _sockets(pid: int) -> Iterator[str]:
    """The inode of every socket that the process *pid* holds."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            yield os.readlink(link).removeprefix("socket:[").removesuffix("]")


def command_line(pid: int) -> str:
    """The arguments of the process *pid*, which every user of the machine can read."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@asynccontextmanager
async def websocket_peer(port: int) -> AsyncIterator[trio.SocketStream]:
    """An anonymous websocket client, connected; the stream behind the handshake."""
    request = "\r\n".join(
        [
            "GET /ws?client_id=process-test HTTP/1.1",
            "Host: localhost",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "\r\n",
        ]
    )
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(request.encode())
        assert (await stream.receive_some(12)) == b"HTTP/1.1 101"
        yield stream


async def close_code(stream: trio.SocketStream) -> int:
    """Read to the end what a websocket *stream* still brings; the code of the closing frame, which must be the last."""
    rest = b"".join([chunk async for chunk in stream])
    start = rest.rindex(b"\x88")  # RFC 6455 section 5.2: FIN and opcode 8, then the length, then the code
    assert len(rest) == start + 2 + rest[start + 1]
    return int.from_bytes(rest[start + 2 : start + 4], "big")
