"""HTTP by hand on a raw socket: calls that are counted, and clients that leave at each phase of a request."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tests.soak.legacy_peer import Disconnected, dial


def get(path: str) -> bytes:
    """A GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: soak\r\n\r\n".encode()


def post(path: str, arguments: dict[str, object]) -> bytes:
    """A POST request with JSON."""
    body = json.dumps(arguments).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


class HttpClient:
    """One connection, kept alive."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._read = b""

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to *request*. Raises :class:`Disconnected`."""
        await self.stream.send_all(request)
        while b"\r\n\r\n" not in self._read:
            await self._more()
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        (length,) = (int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
        while len(self._read) < length:
            await self._more()
        body, self._read = self._read[:length], self._read[length:]
        return int(lines[0].split(b" ", 2)[1]), body

    async def _more(self) -> None:
        data = await self.stream.receive_some(65536)
        if not data:
            raise Disconnected
        self._read += data


@asynccontextmanager
async def http_client(port: int) -> AsyncIterator[HttpClient]:
    """A client whose connection is closed at the end of the block."""
    async with await dial(port) as stream:
        yield HttpClient(stream)
