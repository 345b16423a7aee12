"""``/rpc``: a stream of messages to a client, and a request for each of its own (``protocol.md`` 8.6).

It stands in for the websocket where a proxy lets none through, with the same sessions, router and limits. The stream is
the connection: its request owns a nursery with the writer and the client's calls of the server's services, and the
session is suspended when it ends. What the client posts is routed in the request that brings it.

Who posts proves that the session is its own (:meth:`hypha.broker.broker.Broker.recognize`). The published clients send
their token with each request. Without a token they send nothing of their own, but those that keep cookies send back
the one that came with the stream; it holds the session's identity. A browser adds it by itself, so it counts only with
the content type of messages, for which pages of other origins have to ask first (:mod:`hypha.web.cors`).
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope

from hypha.broker.broker import Broker, Credentials
from hypha.broker.session import PeerSession
from hypha.errors import HyphaError, InvalidArgument, ProtocolViolation, UnsupportedContent
from hypha.web import modern
from hypha.web.http import (
    MSGPACK,
    BodyRoom,
    Headers,
    base_url,
    bearer_token,
    cancel_when_gone,
    header,
    media_type,
    read_body,
    send_error,
    send_response,
    wrong_method,
)
from hypha.web.upgrade import parse_query
from hypha.web.ws import (
    ARRIVAL_SECONDS,
    GOODBYE_SECONDS,
    Connections,
    drain,
    expect_acknowledgements,
    wait_and_route,
)
from hypha.wire.address import Address
from hypha.wire.calls import encode_value
from hypha.wire.dialect import MODERN, MODERN_JAVASCRIPT
from hypha.wire.frame import Buffer, unpack_body

#: What the names of our cookies begin with; nothing behind the server may set one.
COOKIE_PREFIX = b"hypha-rpc-"

logger = logging.getLogger(__name__)

_PIECE_BYTES = 65536  # of one write
_MAX_CONTROL = 1000  # bytes of a message for the server alone; those of clients have thirty
#: What the published Python client's HTTP library writes.
_PYTHON_CLIENT = "python-httpx/"
_PING = {"type": "ping"}
_METHODS = "open the stream of a client with GET, send its messages with POST"


class StreamTransport:
    """The response that serves a session (:class:`hypha.broker.outbox.Transport`).

    One piece of at most 64 KiB is on its way at a time; what else there is waits in the outbox.
    """

    def __init__(self, send: ASGISendCallable, nursery: trio.Nursery) -> None:
        self.reading = trio.CancelScope()
        self.ending: tuple[int, str] | None = None
        self.greeted_at = math.inf
        self.wrote_at = trio.current_time()
        #: trio time since which a piece waits to be taken, None when none does.
        self.sending_since: float | None = None
        self._send = send
        self._nursery = nursery
        # What others send waits until the client listens, as on a websocket.
        self._held: trio.Event | None = trio.Event()
        self._place = trio.Semaphore(1, max_value=1)
        self._requests: set[trio.CancelScope] = set()

    @staticmethod
    def frame(size: int) -> bytes:
        return size.to_bytes(4, "big")

    @property
    def is_held(self) -> bool:
        """Whether nothing but the greeting is written yet."""
        return self._held is not None

    def release(self) -> None:
        """Write from now on: the client listens, which its first message shows."""
        if self._held is not None:
            self._held.set()
            self._held = None

    async def greet(self, headers: Headers, message: dict[str, Any]) -> None:
        """Begin the response, with *message* before everything that waits."""
        await self._place.acquire()
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._write(control(message))
        self.greeted_at = trio.current_time()

    def write_now(self, buffers: Sequence[Buffer]) -> int:
        if self._held is not None or not self._place.value:
            return 0
        self._place.acquire_nowait()
        piece = bytearray()
        for buffer in buffers:
            piece += memoryview(buffer)[: _PIECE_BYTES - len(piece)]
            if len(piece) == _PIECE_BYTES:
                break
        self._nursery.start_soon(self._write, bytes(piece))
        return len(piece)

    async def send_all(self, data: Buffer) -> None:
        if self._held is not None:
            await self._held.wait()
        await self._place.acquire()
        await self._write(bytes(data))

    async def _write(self, piece: bytes) -> None:
        """Write in the place that was acquired. When the client has left this does nothing, as its stream will tell.

        Cancelled, it keeps the place: the piece may be out in part, and nothing can follow it.
        """
        self.sending_since = trio.current_time()
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        self.sending_since, self.wrote_at = None, trio.current_time()
        self._place.release()

    async def finish(self) -> None:
        """End the response, unless the last piece cannot be ended in a moment."""
        with trio.move_on_after(GOODBYE_SECONDS):
            await self._place.acquire()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def start_soon(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        self._nursery.start_soon(task, *args)

    def close(self, code: int, reason: str) -> None:
        if self.ending is None:
            self.ending = (code, reason)
            self.end()

    def end(self) -> None:
        """Wake the stream's task, and the requests that wait in the client's name."""
        self.reading.cancel()
        for scope in self._requests:
            scope.cancel()

    @contextmanager
    def request(self) -> Iterator[trio.CancelScope]:
        """A scope that ends with the stream."""
        with trio.CancelScope() as scope:
            self._requests.add(scope)
            try:
                yield scope
            finally:
                self._requests.discard(scope)


def control(message: dict[str, Any]) -> bytes:
    """A message of the server alone, framed."""
    data = encode_value(message)
    return StreamTransport.frame(len(data)) + data


@dataclass(slots=True, eq=False)
class Stream:
    """An attached session and its transport; what the sweeper looks at."""

    broker: Broker
    session: PeerSession
    transport: StreamTransport

    async def listen(self, receive: ASGIReceiveCallable, headers: Headers) -> None:
        """Greet the client and wait until it leaves."""
        await self.transport.greet(headers, modern.connection_info(self.broker, self.session))
        while (await receive())["type"] != "http.disconnect":
            pass

    def sweep(self, now: float) -> None:
        """Once a second: ping a quiet stream, so that the client does not take it for dead, and end a stalled one."""
        limits, transport = self.broker.limits, self.transport
        since = transport.sending_since
        if transport.is_held and now - transport.greeted_at > ARRIVAL_SECONDS:
            transport.release()
        if since is not None and now - since > limits.stall_seconds:
            self.broker.lose(self.session, f"read nothing for more than stall_seconds = {limits.stall_seconds:g}")
        elif since is None and now - transport.wrote_at >= limits.ping_seconds:
            self.session.outbox.put_raw(control(_PING))


class Rpc:
    """Answers the requests for ``/rpc``. *bodies*: the memory for all request bodies."""

    def __init__(self, broker: Broker, connections: Connections, bodies: BodyRoom) -> None:
        self._broker = broker
        self._connections = connections
        self._bodies = bodies

    async def serve(self, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer one request. Cancel it freely."""
        query = parse_query(scope["query_string"])
        try:
            if scope["method"] == "GET":
                await self._open(query, scope, receive, send)
            elif scope["method"] == "POST":
                await self._take(query, scope, receive, send)
            else:
                await wrong_method(scope, send, _METHODS)
        except HyphaError as exc:
            logger.log(logging.INFO if scope["method"] == "GET" else logging.DEBUG, "refused a client: %s", exc)
            await send_error(send, exc)

    # --- from the server to the client ------------------------------------------------------------------------

    async def _open(
        self, query: dict[str, str], scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Attach a session and stream to it until either side ends."""
        client_id, workspace = query.get("client_id"), query.get("workspace")
        admission = await self._broker.admit_or_replace(
            Credentials(client_id, workspace, bearer_token(scope), query.get("reconnection_token"))
        )
        is_python = header(scope, b"user-agent").startswith(_PYTHON_CLIENT)
        limits, extensions = self._broker.limits, cast("dict[str, Any]", scope["extensions"])
        expect_acknowledgements(extensions["hypha.guard"].stream, limits)
        async with trio.open_nursery() as nursery:
            transport = StreamTransport(send, nursery)
            try:
                session = self._broker.attach(
                    admission,
                    MODERN if is_python else MODERN_JAVASCRIPT,
                    transport,
                    base_url=base_url(scope, self._broker.config.base_path),
                )
            except HyphaError as exc:  # somebody was faster
                await send_error(send, exc)
            else:
                await self._run(Stream(self._broker, session, transport), receive, self._headers(scope, session))
            nursery.cancel_scope.cancel()

    async def _run(self, stream: Stream, receive: ASGIReceiveCallable, headers: Headers) -> None:
        session, transport = stream.session, stream.transport
        logger.info("%s connected over HTTP", session.name)
        try:
            with self._connections.holding(stream):
                with transport.reading:
                    await stream.listen(receive, headers)
                transport.release()
                if transport.ending is not None:
                    await drain(session)
                await self._connections.turnstile.wait()
        finally:
            transport.end()
            self._broker.leave(session, clean=False)
            logger.info("%s disconnected (%d malformed)", session.name, session.malformed)
        if transport.ending is not None and not session.outbox.torn:
            await transport.finish()

    def _headers(self, scope: HTTPScope, session: PeerSession) -> Headers:
        attributes = f"Path={quote(self._broker.config.base_path)}/rpc; HttpOnly; SameSite=Strict"
        if scope["scheme"] == "https":
            attributes += "; Secure"
        return [
            (b"content-type", b"application/x-msgpack-stream"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # a proxy that collects a stream would deliver it at its end
            (b"x-content-type-options", b"nosniff"),
            (b"set-cookie", f"{cookie_name(session.address)}={session.identity}; {attributes}".encode()),
        ]

    # --- from the client to the server ------------------------------------------------------------------------

    async def _take(
        self, query: dict[str, str], scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Route one message, or answer one for the server alone. The 200 says that it has been taken."""
        session, transport = self._recognize(query, scope)  # before anything of the body is read
        with self._bodies.request(receive) as room:
            body = bytes(await read_body(scope, room.receive, self._broker.limits, message=True))
            if not body:
                raise ProtocolViolation("the request has no body; post one message")
            if not session.open:  # it may have been superseded meanwhile
                session, transport = self._recognize(query, scope)
            with transport.request() as ended:
                if not self._answer(session, body):
                    await self._route(session, transport, body, room.receive)
            if ended.cancelled_caught:
                raise InvalidArgument("the client's stream ended while its message waited")
        await send_response(send, 200, MSGPACK, b"")

    def _recognize(self, query: dict[str, str], scope: HTTPScope) -> tuple[PeerSession, StreamTransport]:
        address = Address(query.get("workspace", ""), query.get("client_id", ""))
        token = bearer_token(scope)
        identity = None if token else _cookie(scope, cookie_name(address))
        session = self._broker.recognize(Credentials(address.client, address.workspace, token), identity)
        if not isinstance(session.transport, StreamTransport):
            raise InvalidArgument("the client is connected by a websocket")
        return session, session.transport

    def _answer(self, session: PeerSession, body: bytes) -> bool:
        """Answer a message that is for the server alone. False for any other."""
        reply = modern.sign_of_life(self._broker, session, _control_type(body))
        if reply is None:
            return False
        session.outbox.put_raw(control(reply))
        self._broker.flush()
        return True

    async def _route(
        self, session: PeerSession, transport: StreamTransport, body: bytes, receive: ASGIReceiveCallable
    ) -> None:
        transport.release()
        try:
            frame = self._broker.reader.read(body)
        except ProtocolViolation:
            session.malformed += 1
            raise
        blocked = self._broker.router.route(session, frame)
        if blocked is not None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
                await wait_and_route(self._broker, session, frame, blocked)
                nursery.cancel_scope.cancel()
        self._broker.flush()


def cookie_name(address: Address) -> str:
    """The name of a session's cookie: several clients in one browser must not overwrite each other's."""
    return COOKIE_PREFIX.decode() + hashlib.sha256(str(address).encode()).hexdigest()[:16]


def _cookie(scope: HTTPScope, name: str) -> str | None:
    """The value of a cookie. Raises :class:`UnsupportedContent` for a body that any page could have sent."""
    for pair in header(scope, b"cookie").replace(",", ";").split(";"):
        key, _, value = pair.strip().partition("=")
        if key == name:
            if media_type(scope) != MSGPACK.decode():
                raise UnsupportedContent(f"post messages as {MSGPACK.decode()}")
            return value
    return None


def _control_type(body: bytes) -> object:
    """The type of a message for the server alone; what no such message is, has none or another one."""
    if len(body) > _MAX_CONTROL:
        return None
    try:
        return unpack_body(body).get("type")
    except ProtocolViolation:
        return None
