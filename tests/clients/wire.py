"""A network between a client and the server that a test can cut, and on which it can listen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Wire:
    """Forwards connections to a server; *url* is where clients find it.

    *opcodes*: those of all websocket frames that the server has sent through it (RFC 6455 section 5.2).
    *closes*: the codes of its close frames.
    *connects*: how many clients have connected, those that came back among them.
    """

    def __init__(self, server_url: str, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.opcodes: set[int] = set()
        self.closes: list[int] = []
        self.connects = 0
        self._host, _, server_port = server_url.removeprefix("http://").partition(":")
        self._port = int(server_port)
        self._open: set[trio.CancelScope] = set()
        self._farewell = b""
        self._news = trio.Event()

    async def heard(self, opcode: int) -> None:
        """Wait until the server has sent a frame with *opcode*."""
        while opcode not in self.opcodes:
            await self._news.wait()

    def note(self, opcode: int) -> None:
        """Remember the opcode of a frame."""
        self.opcodes.add(opcode)
        news, self._news = self._news, trio.Event()
        news.set()

    def cut(self) -> None:
        """End every connection without a word, as a network does."""
        for scope in self._open:
            scope.cancel()

    def close(self, code: int) -> None:
        """End every connection as a proxy does that says goodbye to its clients; the server sees a lost network."""
        self._farewell = bytes((0x88, 2)) + code.to_bytes(2)
        self.cut()

    async def serve(self, client: trio.SocketStream) -> None:
        """Forward one connection until an end closes it, or it is cut."""
        self.connects += 1
        frames = _Frames(self)
        async with client:
            with trio.CancelScope() as scope:
                self._open.add(scope)
                async with (
                    await trio.open_tcp_stream(self._host, self._port) as server,
                    trio.open_nursery() as both,
                ):
                    both.start_soon(_pump, client, server, None)
                    both.start_soon(_pump, server, client, frames)
            self._open.discard(scope)
            if scope.cancelled_caught and self._farewell:
                farewell, self._farewell = self._farewell, b""
                await client.send_all(farewell)
                await client.receive_some()  # the client's own close frame; who said goodbye first closes the socket


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, frames: _Frames | None) -> None:
    try:
        async for data in source:
            if frames is not None:
                frames.feed(data)
            await sink.send_all(data)
        await sink.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the test sees what this does to the two ends


class _Frames:
    """Reads the heads of the frames that a server sends, behind its answer to the handshake."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._data = bytearray()
        self._upgraded = False
        self._skip = 0

    def feed(self, data: bytes | bytearray) -> None:
        self._data += data
        if not self._upgraded:
            answer, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            self._upgraded, self._data = True, rest
            assert answer.startswith(b"HTTP/1.1 "), answer
            self._skip = 0 if answer.startswith(b"HTTP/1.1 101 ") else 2**62
        while self._next():
            pass

    def _next(self) -> bool:
        passed = min(self._skip, len(self._data))
        del self._data[:passed]
        self._skip -= passed
        if self._skip or len(self._data) < 2 or len(self._data) < (head := _head_size(self._data[1])):
            return False
        opcode = self._data[0] & 0x0F
        size = int.from_bytes(self._data[2:head]) if head > 2 else self._data[1]
        if opcode == 8 and len(self._data) < head + size:
            return False
        if opcode == 8:
            self._wire.closes.append(int.from_bytes(self._data[head : head + 2]))
        self._wire.note(opcode)
        self._skip = head + size
        return True


def _head_size(length: int) -> int:
    return {126: 4, 127: 10}.get(length, 2)


@asynccontextmanager
async def between(server_url: str) -> AsyncIterator[Wire]:
    """A wire to the server at *server_url*; everything on it ends with the block."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    wire = Wire(server_url, listener.socket.getsockname()[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, wire.serve, [listener])
        yield wire
        nursery.cancel_scope.cancel()
