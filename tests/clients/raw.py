"""A peer that says what a test tells it to: websocket messages by hand, so that no client library hides a mistake.

It shares no code with the server: messages are written and read with msgpack alone (``protocol.md`` 2 and 4).
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlencode

import msgpack
import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

_NUMBERS = itertools.count(1)
_LARGEST = 2**26

#: Seconds in which everything is answered.
PATIENCE = 10.0

#: The server's own address in every workspace.
MANAGER = "workspace-manager"

_CACHE = "services.built-in.message_cache."


class Refused(Exception):
    """The call was rejected. The text is what the peer was told."""


class NotLetIn(Exception):
    """The server did not accept the websocket. The text is its answer, empty when there was none."""


@contextmanager
def refused(words: str) -> Iterator[None]:
    """Assert that a call in the block is refused, with *words* in what the peer is told."""
    with pytest.raises(Refused) as caught:
        yield
    assert words in str(caught.value)


class RawPeer:
    """A legacy connection in the hands of a test. *received* holds every message that came, decoded, in order.

    It refuses the calls that reach it, never answers them when it is *silent*, or always gives its *answers*, the
    arguments of a ``resolve``.
    """

    def __init__(self, websocket: WebSocketConnection, client: str) -> None:
        self.websocket = websocket
        self.client = client
        self.workspace = ""
        self.received: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.silent = False
        self.answers: list[Any] | None = None
        self._news = trio.Event()

    @property
    def name(self) -> str:
        """``workspace/client``."""
        return f"{self.workspace}/{self.client}"

    async def send(self, main: Any, *extra: Any) -> None:
        """Send one message: the header, and the values that follow it."""
        await self.websocket.send_message(b"".join(map(msgpack.packb, (main, *extra))))

    async def call(self, to: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call *method* and return the value as it travels. Raises :class:`Refused`."""
        session = f"raw{next(_NUMBERS)}"
        await self.send(header(to, method, session), self.body(session, args, kwargs))
        return await self.answer(session)

    def body(
        self, session: str, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None, **more: Any
    ) -> dict[str, Any]:
        """The second value of a call: arguments and an explicit promise, without heartbeats."""
        promise = {
            name: {"_rtype": "method", "_rtarget": self.client, "_rmethod": f"{session}.{name}", "_rpromise": False}
            for name in ("resolve", "reject")
        }
        extra: dict[str, Any] = {"args": [*args, kwargs] if kwargs else list(args), "promise": promise, **more}
        return {**extra, "with_kwargs": True} if kwargs else extra

    async def answer(self, session: str) -> Any:
        """Wait for the answer to the call *session*, not for ever. Raises :class:`Refused`."""
        with trio.fail_after(PATIENCE):
            message = await self.message(lambda main: main.get("method") in {f"{session}.resolve", f"{session}.reject"})
        (value,) = message["args"]
        if message["method"].endswith(".resolve"):
            return value
        if message["from"].endswith("/workspace-manager"):
            assert "Traceback" not in f"{value}", value
        raise Refused(value["_rvalue"])

    async def send_in_parts(self, to: str, package: bytes, size: int = 300) -> None:
        """Send *package*, a message for *to*, as clients send what is large (``protocol.md`` 2.7)."""
        key = f"key{next(_NUMBERS)}"
        await self.cache(to, "create", key)
        for start in range(0, len(package), size):
            await self.cache(to, "append", key, package[start : start + size])
        await self.cache(to, "process", key)

    async def cache(self, to: str, operation: str, key: str, *args: Any) -> Any:
        """Call a function of the message cache of *to*."""
        return await self.call(to, f"{_CACHE}{operation}", key, *args, *([] if operation == "remove" else [False]))

    async def message(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first message received, before or from now on, for which *wanted* is true."""
        while True:
            news = self._news
            for message in self.received:
                if wanted(message):
                    return message
            assert self.websocket.closed is None, f"closed with {self.websocket.closed}"
            await news.wait()

    async def closed(self) -> Any:
        """Wait until the server has closed the connection; the close code."""
        with trio.fail_after(PATIENCE):
            while self.websocket.closed is None:
                await self._news.wait()
        return self.websocket.closed.code

    async def read_all(self) -> None:
        """Keep what comes, until the connection ends."""
        try:
            while True:
                message = await self.websocket.get_message()
                if isinstance(message, str):
                    self.texts.append(message)
                else:
                    self.received.append(decode(message))
                    await self._answer_call(self.received[-1])
                self._tell()
        except ConnectionClosed:
            self._tell()

    async def _answer_call(self, message: dict[str, Any]) -> None:
        """Nobody waits for a service of this peer in vain, unless the test wants it so."""
        if self.silent or "session" not in message:
            return
        if self.answers is not None:
            await self.send(header(message["from"], f"{message['session']}.resolve"), {"args": self.answers})
        else:
            error = {"_rtype": "error", "_rvalue": "this peer offers nothing"}
            await self.send(header(message["from"], f"{message['session']}.reject"), {"args": [error]})

    def _tell(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()


def header(to: str, method: str, session: str | None = None, **more: Any) -> dict[str, Any]:
    """The first value of a call."""
    fields = {"type": "method", "from": "me", "to": to, "method": method, **more}
    return {**fields, "session": session} if session else fields


def decode(message: bytes) -> dict[str, Any]:
    """Header and body merged, as clients merge them."""
    unpacker = msgpack.Unpacker(max_buffer_size=_LARGEST)
    unpacker.feed(message)
    main: dict[str, Any] = {}
    for value in unpacker:
        main.update(value)
    return main


@asynccontextmanager
async def connected(url: str, **parameters: str) -> AsyncIterator[RawPeer]:
    """A raw peer at the server *url*, let in as legacy clients are. Closed with 1000 at the end of the block."""
    client = parameters.setdefault("client_id", f"raw-{next(_NUMBERS)}")
    async with await _open(url) as stream, trio.open_nursery() as nursery:
        path = f"/ws?{urlencode(parameters)}"
        websocket = await wrap_client_stream(nursery, stream, "localhost", path, max_message_size=_LARGEST)
        peer = RawPeer(websocket, client)
        nursery.start_soon(peer.read_all)
        about = await peer.call(MANAGER, "services.default.get_connection_info")
        peer.workspace = about["workspace"]
        yield peer
        assert peer.texts == []
        with trio.move_on_after(PATIENCE):
            await websocket.aclose()
        nursery.cancel_scope.cancel()


async def _open(url: str) -> trio.SocketStream:
    host, _, port = url.removeprefix("http://").partition(":")
    return await trio.open_tcp_stream(host, int(port))


@asynccontextmanager
async def upgraded(url: str, **parameters: str) -> AsyncIterator[trio.SocketStream]:
    """A stream behind the websocket handshake, for bytes that no library would write.

    Raises :class:`NotLetIn` when the server answers with something else.
    """
    async with await _open(url) as stream:
        query = urlencode({"client_id": f"bytes-{next(_NUMBERS)}", **parameters})
        request = f"GET /ws?{query} HTTP/1.1\r\nHost: localhost\r\n"
        upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        await stream.send_all(f"{request}{upgrade}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            byte = await stream.receive_some(1)
            if not byte:
                break
            answer += byte
        if not answer.startswith(b"HTTP/1.1 101 "):
            raise NotLetIn(answer.decode())
        yield stream


def masked(opcode: int, data: bytes, *, final: bool = True, reserved: int = 0) -> bytes:
    """One websocket frame as clients write it (RFC 6455 section 5.2), with a mask of zeros."""
    size = len(data)
    length = bytes((size,)) if size < 126 else b"\x7e" + struct.pack(">H", size) if size < 65536 else b""
    length = length or b"\x7f" + struct.pack(">Q", size)
    return bytes((0x80 * final | reserved | opcode, 0x80 | length[0])) + length[1:] + bytes(4) + data
