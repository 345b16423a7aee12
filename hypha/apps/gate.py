"""The one way out of the browser: a proxy that lets through what an app may reach.

That is this server at the address by which the pages know it, and the public Internet. The browser looks up no name
and connects to nothing else, whatever asks for it: a page, a worker, a websocket, a redirection.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import trio

from hypha.apps.public import connect
from hypha.config import KIB
from hypha.errors import HyphaError, PermissionDenied, ProtocolViolation

_HEAD_BYTES = 64 * KIB
_HEAD_SECONDS = 10.0
_CHUNK_BYTES = 64 * KIB
#: So many places of the Internet are connected to at once; the next one waits.
_REACHING = 16
_GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
#: What is between the browser and this proxy alone.
_DROPPED = ("proxy-", "connection:", "keep-alive:")

Place = tuple[str, int]
Dial = Callable[[], Awaitable[trio.abc.Stream]]


class Gate:
    """*own*: how pages call this server; it is reached through *dial*, whatever it listens on.

    *reach*: how everything else is connected to; by default the public Internet alone.
    """

    def __init__(
        self, own: Place, dial: Dial, reach: Callable[[str, int], Awaitable[trio.abc.Stream]] = connect
    ) -> None:
        self._own = (own[0].lower(), own[1])
        self._dial = dial
        self._reach = reach
        # Each look-up of a name holds one of the threads that the whole server shares.
        self._reaching = trio.CapacityLimiter(_REACHING)

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve on a free port of the loopback, which is told when it is open, until this is cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port: int = listeners[0].socket.getsockname()[1]
        task_status.started(port)
        await trio.serve_listeners(self.serve, listeners)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection of the browser. Raises nothing."""
        try:
            async with stream:
                await self._serve(stream)
        except _GONE:
            return

    async def _serve(self, stream: trio.abc.Stream) -> None:
        with trio.move_on_after(_HEAD_SECONDS) as patience:
            head, rest = await _read_head(stream)
        if patience.cancelled_caught or not head:
            return
        try:
            place, onward = _understand(head)
            upstream = await self._open(place)
        except HyphaError as error:
            await stream.send_all(_refusal(error))
            return
        async with upstream:
            if onward:
                await upstream.send_all(onward + rest)
            else:
                await stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await upstream.send_all(rest)
            await _relay(stream, upstream)

    async def _open(self, place: Place) -> trio.abc.Stream:
        if place == self._own:
            return await self._dial()
        async with self._reaching:
            return await self._reach(*place)


async def _relay(one: trio.abc.Stream, other: trio.abc.Stream) -> None:
    """Copy both ways until either side ends."""
    async with trio.open_nursery() as nursery:

        async def copy(source: trio.abc.Stream, target: trio.abc.Stream) -> None:
            try:
                while data := await source.receive_some(_CHUNK_BYTES):
                    await target.send_all(data)
            except _GONE:
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(copy, one, other)
        await copy(other, one)


async def _read_head(stream: trio.abc.Stream) -> tuple[bytes, bytes]:
    """The head of a request with its empty line, and what came behind it; nothing when there is no whole one."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some(_CHUNK_BYTES)
        if not more or len(data) > _HEAD_BYTES:
            return b"", b""
        data += more
    head, _, rest = bytes(data).partition(b"\r\n\r\n")
    return head, rest


def _understand(head: bytes) -> tuple[Place, bytes]:
    """Where a request is for, and how it goes on there; empty for a tunnel. Raises what the browser is told."""
    first, *lines = head.decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    target, _, version = rest.rpartition(" ")
    if method == "CONNECT":
        return _place(f"//{target}", None), b""
    if not target.startswith("http://"):
        raise PermissionDenied("only http and https leave the browser")
    url = urlsplit(target)
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    kept = [line for line in lines if not line.lower().startswith(_DROPPED)]
    # One request for each connection: the next one may be for another place.
    onward = "\r\n".join([f"{method} {path} {version}", *kept, "Connection: close", "", ""])
    return _place(target, 80), onward.encode("latin-1")


def _place(url: str, default: int | None) -> Place:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or default
    except ValueError:
        host = port = None
    if not host or port is None:
        raise ProtocolViolation("the request names no place")
    return host.lower(), port


def _refusal(error: HyphaError) -> bytes:
    body = f"{error}\n".encode()
    head = f"HTTP/1.1 {error.status} Refused\r\nContent-Type: text/plain; charset=utf-8\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
