"""A relay without websocket and without header: eight bytes name the target, the rest is passed on unread.

Raw TCP under trio, as one writes it in a few lines: a length before each message, one write for each target of a chunk.
"""

from __future__ import annotations

from functools import partial

import trio

from tests.bench.relays.program import run, serve_streams

NAME = 8  # bytes of a client's name


class Peer:
    """A client. Two may send to it at once."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._sending = trio.Lock()

    async def send(self, data: bytes) -> None:
        async with self._sending:
            await self._stream.send_all(data)


async def serve_peer(peers: dict[bytes, Peer], stream: trio.SocketStream) -> None:
    """One connection. Its first message is its name, which is sent back; all others are passed on."""
    async with stream:
        name, buffer = b"", bytearray()
        try:
            while chunk := await stream.receive_some(65536):
                buffer += chunk
                if not name and len(buffer) >= 4 + NAME:
                    name = bytes(buffer[4 : 4 + NAME])
                    peers[name] = Peer(stream)
                    await peers[name].send(bytes(buffer[: 4 + NAME]))
                    del buffer[: 4 + NAME]
                for target, messages in take(buffer).items():
                    await peers[target].send(b"".join(messages))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # an end as good as any other
        finally:
            peers.pop(name, None)


def take(buffer: bytearray) -> dict[bytes, list[bytes]]:
    """Remove the whole messages from *buffer*; what each target gets of them."""
    found: dict[bytes, list[bytes]] = {}
    start = 0
    while len(buffer) >= start + 4:
        stop = start + 4 + int.from_bytes(buffer[start : start + 4], "big")
        if len(buffer) < stop:
            break
        body = start + 4 + NAME
        message = (stop - body).to_bytes(4, "big") + memoryview(buffer)[body:stop]
        found.setdefault(bytes(buffer[start + 4 : body]), []).append(message)
        start = stop
    del buffer[:start]
    return found


if __name__ == "__main__":
    run(partial(serve_streams, partial(serve_peer, {})))
