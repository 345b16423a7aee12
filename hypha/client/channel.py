"""The websocket to the server: where it is, the handshake, and messages out in their order (``protocol.md`` 1)."""

from __future__ import annotations

import json
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, HandshakeError, WebSocketConnection, wrap_client_stream

import hypha
from hypha.client.stream import MessageStream, Pieces
from hypha.errors import HyphaError, InvalidArgument, LimitExceeded, PeerGone, PermissionDenied, by_code
from hypha.wire.dialect import TRIO_AGENT
from hypha.wire.frame import Buffer

#: Opens a connection to the server.
Dial = Callable[[], Awaitable[trio.abc.Stream]]

#: Seconds in which the server must let a client in, or refuse it.
HANDSHAKE_SECONDS = 30.0
_QUEUE_BYTES = 8 * 1024 * 1024  # that may wait to be sent; one message may always wait
_MAX_MESSAGE = 1 << 30  # bytes; the server has its own limit, which is lower
_BATCH_BYTES = 256 * 1024  # that are sent together
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True)
class Location:
    """Where a server is: ``http://host:port/base/path``, without a slash at the end."""

    url: str
    netloc: str
    host: str
    port: int
    path: str
    is_secure: bool

    async def dial(self) -> trio.abc.Stream:
        """Open a connection. Raises OSError."""
        if not self.is_secure:
            return await trio.open_tcp_stream(self.host, self.port)
        context = ssl.create_default_context()
        stream = await trio.open_ssl_over_tcp_stream(self.host, self.port, https_compatible=True, ssl_context=context)
        try:
            await stream.do_handshake()  # later its errors would be somebody else's
        except trio.BrokenResourceError as exc:
            await trio.aclose_forcefully(stream)
            raise ConnectionError(f"TLS: {exc.__cause__ or exc}") from exc
        return stream


def parse_server_url(text: object) -> Location:
    """Read ``http(s)://host[:port][/path]``, or what the server's websocket is called. Raises InvalidArgument."""
    problem = InvalidArgument(f"server_url {text!r}: write it as http://host:port or https://host/path")
    if not isinstance(text, str):
        raise problem
    try:
        parts = urlsplit(text)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:
        raise problem from None
    plain = text.isascii() and not any(letter.isspace() for letter in text)
    if parts.scheme not in _PORTS or not parts.hostname or port == 0 or parts.query or parts.fragment or not plain:
        raise problem
    secure = parts.scheme in {"https", "wss"}
    path = parts.path.rstrip("/").removesuffix("/ws")
    netloc = parts.netloc.rpartition("@")[2]
    url = f"{'https' if secure else 'http'}://{netloc}{path}"
    return Location(url, netloc, parts.hostname, port or _PORTS[parts.scheme], path, secure)


class Refused(Exception):
    """The server does not want this client, now or later. *error* says why."""

    def __init__(self, error: HyphaError) -> None:
        super().__init__(str(error))
        self.error = error


class Channel:
    """An open websocket and the messages that wait to be sent.

    They are sent by one task (:meth:`write`), because a send that is cancelled half way would break the connection.
    Those that come are given to ``stream.take``, but for the few that :meth:`receive` returns.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        #: The ``connection_info`` with which the server let us in.
        self.info: dict[str, Any] = {}
        self.stream = MessageStream(stream, self._wait_room)
        self._websocket: WebSocketConnection
        self._waiting: deque[Pieces | str] = deque()
        self._bytes = 0
        self._room = trio.lowlevel.ParkingLot()
        self._wanted = trio.Event()
        self._is_closed = False

    async def shake_hands(
        self, nursery: trio.Nursery, location: Location, credentials: Mapping[str, str | None]
    ) -> None:
        """Introduce ourselves. Raises :class:`Refused`, and what trio_websocket raises."""
        self._websocket = await wrap_client_stream(
            nursery,
            cast(trio.SocketStream, self.stream),  # any stream will do
            location.netloc,
            f"{location.path}/ws",
            extra_headers=[(b"user-agent", f"{TRIO_AGENT}{hypha.__version__}".encode())],
            max_message_size=_MAX_MESSAGE,
        )
        await self._websocket.send_message(json.dumps(credentials))
        self.info = _read_greeting(await self._websocket.get_message())

    async def receive(self) -> bytes | str:
        """The next message that is no whole binary one. Raises trio_websocket.ConnectionClosed."""
        return await self._websocket.get_message()

    async def _wait_room(self) -> None:
        """Read on only when there is room for answers. No checkpoint when there is."""
        while self._bytes > _QUEUE_BYTES and not self._is_closed:
            await self._room.park()

    def put(self, *message: Buffer) -> None:
        """Send a message, in pieces, as soon as possible, without waiting: for what is small."""
        self._enter(message)

    def put_text(self, text: str) -> None:
        """The same for a text message."""
        self._enter(text)

    def _enter(self, message: Pieces | str) -> None:
        size, limit = _size(message), self.info.get("frame_bytes")
        if limit is not None and size > limit:
            raise LimitExceeded(f"a message of {size} bytes is larger than frame_bytes = {limit} of the server")
        self._waiting.append(message)
        self._bytes += size
        self._wanted.set()

    async def send(self, *message: Buffer) -> None:
        """Wait for room in the queue and put a message there. One that is cancelled while it waits is not sent.

        Raises :class:`PeerGone` when the connection is lost meanwhile, and :class:`LimitExceeded`.
        """
        while self._bytes and self._bytes + _size(message) > _QUEUE_BYTES and not self._is_closed:
            await self._room.park()
        if self._is_closed:
            raise PeerGone("the connection to the server was lost during the call")
        self._enter(message)

    async def write(self) -> None:
        """Send what waits, for ever. Raises trio_websocket.ConnectionClosed and trio.BrokenResourceError."""
        while True:
            while self._waiting:
                first = self._waiting[0]
                if isinstance(first, str):
                    await self._websocket.send_message(first)
                    self._waiting.popleft()
                    self._sent([first])
                else:
                    batch = self._batch()
                    await self.stream.send_messages(batch)
                    self._sent(batch)
            self._wanted = trio.Event()
            await self._wanted.wait()

    def _batch(self) -> list[Pieces]:
        """Take the next messages that can be sent together."""
        batch: list[Pieces] = []
        size = 0
        while self._waiting and size < _BATCH_BYTES:
            message = self._waiting[0]
            if isinstance(message, str):
                break
            batch.append(message)
            size += _size(message)
            self._waiting.popleft()
        return batch

    def _sent(self, messages: Sequence[Pieces | str]) -> None:
        self._bytes -= sum(map(_size, messages))
        if self._room:
            self._room.unpark_all()

    async def is_alive(self, patience: float) -> bool:
        """Whether the server answers a ping within *patience* seconds."""
        with trio.move_on_after(patience):
            await self._websocket.ping()
            return True
        return False

    async def abandon(self) -> None:
        """Close the connection, whatever is under way. Who waits for room learns it."""
        self._is_closed = True
        self._room.unpark_all()
        await trio.aclose_forcefully(self.stream)

    async def close(self, patience: float) -> None:
        """Say goodbye: what waits goes out first, when the server takes it within *patience* seconds."""
        with trio.move_on_after(patience, shield=True):
            while self._bytes and not self._is_closed:
                await self._room.park()
            await self._websocket.aclose(1000)


async def open_channel(
    nursery: trio.Nursery, location: Location, dial: Dial, credentials: Mapping[str, str | None]
) -> Channel:
    """Connect and introduce ourselves. The tasks of the connection run in *nursery*.

    Raises :class:`Refused`, and :class:`PeerGone` when the server cannot be reached or does not answer.
    """
    channel: Channel | None = None
    try:
        with trio.fail_after(HANDSHAKE_SECONDS):
            channel = Channel(await dial())
            await channel.shake_hands(nursery, location, credentials)
            return channel
    except PeerGone as exc:
        raise PeerGone(f"cannot connect to {location.url}: {exc}") from None
    except (OSError, trio.BrokenResourceError, HandshakeError, ConnectionClosed, trio.TooSlowError) as exc:
        raise PeerGone(f"cannot connect to {location.url}: {reason_of(exc)}") from exc
    finally:
        if channel is not None and not channel.info:
            await channel.abandon()


def _size(message: Pieces | str) -> int:
    if isinstance(message, str):
        return len(message)
    return len(message[0]) if len(message) == 1 else sum(map(len, message))


def reason_of(exc: BaseException) -> str:
    """Why there is no connection, in words."""
    if isinstance(exc, trio.TooSlowError):
        return f"no answer within {HANDSHAKE_SECONDS:g} s"
    if isinstance(exc, ConnectionRejected):
        detail = (exc.body or b"").decode(errors="replace")[:200]
        return f"the server answered {exc.status_code} {detail}".strip()
    if isinstance(exc, ConnectionClosed) and exc.reason is not None:
        return f"the server closed the connection ({exc.reason.code} {exc.reason.reason or exc.reason.name})"
    return str(exc) or type(exc).__name__


def _read_greeting(first: bytes | str) -> dict[str, Any]:
    """What the server says first. Raises :class:`Refused`, and :class:`PeerGone` when it is no hypha server."""
    document = read_text(first)
    if document.get("type") == "connection_info" and _is_greeting(document):
        return document
    if document.get("type") == "error":
        raise Refused((by_code(document.get("code")) or PermissionDenied)(str(document.get("message"))))
    raise PeerGone("what answers there is no hypha server")


def read_text(message: bytes | str) -> dict[str, Any]:
    """A text message of the server, which is a map; empty when it is none."""
    try:
        document = json.loads(message) if isinstance(message, str) else None
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _is_greeting(document: dict[str, Any]) -> bool:
    texts = all(isinstance(document.get(name), str) for name in ("workspace", "client_id", "manager_id"))
    return texts and isinstance(document.get("frame_bytes", 1), int)
