"""A bare relay: trio, the server's own codec and memory settings, and one write for each target of a chunk.

What a message costs here is what it costs in this language, on this loop and with this codec when nothing is checked,
counted or bounded. What the server takes beyond that, the router and its promises take.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from functools import partial

import trio

from hypha.memory import tune_memory
from hypha.web.codec import Codec, message_head
from tests.bench.relays.program import run, serve_streams
from tests.bench.relays.routing import route

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_PARTS = 512
_READ = 2**18
_LARGEST = 2**24

Buffer = bytes | memoryview


class Peer:
    """A client and what waits to be written to it."""

    def __init__(self, name: str, stream: trio.SocketStream) -> None:
        self.name = name
        self.waiting: list[Buffer] = []
        self._stream = stream
        self._writing = False

    async def flush(self) -> None:
        """Write all that waits. Whoever writes already writes this, too."""
        if self._writing:
            return
        self._writing = True
        try:
            while self.waiting:
                buffers, self.waiting = self.waiting[:_PARTS], self.waiting[_PARTS:]
                rest = self._write_now(buffers)
                if rest:
                    await self._stream.send_all(rest)
        finally:
            self._writing = False

    def _write_now(self, buffers: Sequence[Buffer]) -> bytes:
        """Write what the socket takes at once, and return the rest."""
        try:
            sent = os.writev(self._stream.socket.fileno(), buffers)
        except BlockingIOError:
            sent = 0
        return b"" if sent == sum(map(len, buffers)) else b"".join(buffers)[sent:]


async def serve_stream(peers: dict[str, Peer], stream: trio.SocketStream) -> None:
    """One connection, from its handshake to its end."""
    async with stream:
        await serve_peer(peers, await upgrade(stream), stream)


async def serve_peer(peers: dict[str, Peer], client: str, stream: trio.SocketStream, early: bytes = b"") -> None:
    """The connection of *client* after its handshake, with the bytes that came *early*."""
    peer = peers[client] = Peer(client, stream)
    try:
        await pass_on(peers, peer, stream, early)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # an end as good as any other
    finally:
        del peers[client]


async def upgrade(stream: trio.SocketStream) -> str:
    """Answer the handshake; the ``client_id`` of its query."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await stream.receive_some(65536)
    key, client = re.search(rb"Sec-WebSocket-Key: (\S+)", head), re.search(rb"client_id=(\w+)", head)
    assert key
    assert client
    accept = base64.b64encode(hashlib.sha1(key[1] + _GUID).digest())
    answer = b"HTTP/1.1 101 \r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"
    await stream.send_all(answer % accept)
    return client[1].decode()


async def pass_on(peers: dict[str, Peer], peer: Peer, stream: trio.SocketStream, early: bytes) -> None:
    """Route every message until the client goes."""
    codec = Codec(_LARGEST)
    while True:
        data = early or await stream.receive_some(_READ)
        early = b""
        if not data:
            return
        touched = {}
        for message in codec.feed(bytes(data)):
            if not isinstance(message, bytes | bytearray):
                return  # a close frame, most likely
            target, header, body = route(peers, peer, message)
            target.waiting += (message_head(len(header) + len(body)), header, body)
            touched[target.name] = target
        for target in touched.values():
            await target.flush()


if __name__ == "__main__":
    tune_memory()
    run(partial(serve_streams, partial(serve_stream, {})))
