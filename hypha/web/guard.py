"""All that touches Hypercorn's inside: one barrier per connection, bounded sends, and the take-over of websockets.

:func:`install` puts subclasses in the place of some names of Hypercorn 0.18, before it serves; this works under
``python -m hypha.server``, under the plain ``hypercorn`` command and over memory streams. What is changed, and why
(measured, ``stack.md``; each has its test):

* one peer's protocol error must not reach the nursery that all connections share (F1);
* a peer that stops reading must not hold a send for ever: Hypercorn shields its sends (F2);
* a peer that leaves must be noticed also while its next request waits, and when it has made none;
* what comes before a request must not take long to read, even when all of it comes at once;
* a connection must end when it is idle after an answer, when its request was refused, when nobody reads its body; and
  not because of bytes behind its last request, before that is answered;
* who sends a body that is refused must be able to read why;
* connections beyond a limit must wait at the door (:mod:`hypha.web.accept`), and thousands at once must come in one
  after the other (:mod:`hypha.web.turnstile`);
* compression is never negotiated (F4), HTTP/2 never spoken (``decisions.md`` 4);
* a websocket's stream is handed to :mod:`hypha.web.ws`, with the bytes that came before it was accepted.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from types import MappingProxyType, ModuleType
from typing import Any, NoReturn, cast

import h11
import hypercorn.config
import hypercorn.protocol
import hypercorn.protocol.h11
import hypercorn.trio.run
import trio
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Body, Data, Request, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import AppWrapper

from hypha.errors import ConfigError
from hypha.web.accept import serve_bounded
from hypha.web.turnstile import Turnstile

logger = logging.getLogger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
#: What serves a websocket: its stream, and the bytes that have come already.
Serve = Callable[[trio.abc.Stream, bytes], Awaitable[None]]

_TESTED = ((0, 18), (0, 19))
_READ_SIZE = 65536
_SEND_SIZE = 65536  # bytes that a peer must take in each SEND_SECONDS
SEND_SECONDS = 10.0
_LINGER_SECONDS = 10.0  # for which the rest of a refused body is read and dropped
_LINGER_BYTES = 256 * 1024 * 1024  # of it, at most
_HEAD_LINES = 200  # of a request: browsers send some thirty
_HEAD_END = re.compile(rb"\n\r?\n")
_EARLY_LIMIT = 65536  # bytes that may come in before a websocket is taken over, or before their turn


class TakeOverFailed(Exception):
    """The peer left before its websocket was accepted."""


class HeldWebsocket(WSStream):
    """A websocket upgrade whose bytes are held for the take-over instead of being parsed.

    Hypercorn answers bytes that follow the upgrade request in one segment with an error that kills the server; a
    client that does not wait for the 101 sends just that.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.early = bytearray()

    async def handle(self, event: StreamEvent) -> None:
        if not isinstance(event, Body | Data):
            await super().handle(event)
        elif len(self.early) + len(event.data) <= _EARLY_LIMIT:
            self.early += event.data
        else:
            raise trio.BrokenResourceError("too many bytes before the websocket was accepted")

    async def _send_error_response(self, status_code: int) -> None:
        await super()._send_error_response(status_code)
        await self.send(StreamClosed(self.stream_id))  # it says "connection: close", and Hypercorn leaves it open


class HttpRequest(HTTPStream):
    """An HTTP request whose end is told to the application without waiting.

    Hypercorn queues it behind a body that an application need not read, and then nothing ends the connection.
    """

    async def handle(self, event: StreamEvent) -> None:
        await super().handle(event)
        if isinstance(event, Request) and not self.closed:
            self.app_put = partial(_hand_over, cast(Any, self.app_put).__self__)


async def _hand_over(queue: trio.MemorySendChannel[Any], event: Any) -> None:
    try:
        if event["type"] == "http.disconnect":
            queue.send_nowait(event)
        else:
            await queue.send(event)
    except trio.WouldBlock:
        queue.close()  # which wakes our reader, too
    except trio.ClosedResourceError:
        pass  # the application has answered


class StrictHttp(h11.Connection):
    """HTTP/1.1 with two differences.

    Bytes behind the last request of a connection do not exist (RFC 9112 section 9.6). To h11 they are an error, on
    which Hypercorn closes the connection, whether or not that request is answered.

    A request has at most :data:`_HEAD_LINES` lines in its head, before h11 reads them one by one: twenty thousand that
    come together are a tenth of a second in which nobody else is served.
    """

    def receive_data(self, data: bytes) -> None:
        if not data or self.their_state is not h11.MUST_CLOSE:
            super().receive_data(data)

    def next_event(self) -> Any:
        if self.their_state is h11.MUST_CLOSE and self.trailing_data[0]:
            return h11.NEED_DATA
        if self.their_state is h11.IDLE:
            self._check_head(self.trailing_data[0])
        return super().next_event()

    def _check_head(self, waiting: bytes) -> None:
        end = _HEAD_END.search(waiting)
        if waiting.count(b"\n", 0, end.start() if end else len(waiting)) >= _HEAD_LINES:
            raise h11.RemoteProtocolError(f"a request has more than {_HEAD_LINES} lines", error_status_hint=431)


class Http1Only(H11Protocol):
    """HTTP/1.1 and nothing else: an offer to upgrade to h2c is ignored, as RFC 9110 section 7.8 allows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connection = StrictHttp(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)

    async def _check_protocol(self, event: Any) -> None:
        return


class Turn:
    """When the next request of a connection may be read; Hypercorn's event for it, without its blindness.

    A request that was sent ahead waits here until the one before is answered. Nobody would notice meanwhile that the
    client has left, and an answer that could not be sent would never end the wait. So *read_ahead* is run here, which
    raises when the client leaves, and :meth:`close` ends the wait for good.
    """

    def __init__(self, read_ahead: Callable[[], Awaitable[None]]) -> None:
        self._read_ahead = read_ahead
        self._waiting = trio.CancelScope()
        self._closed = self._set = False

    async def set(self) -> None:
        self._set = True
        self._waiting.cancel()

    async def clear(self) -> None:
        self._set = False

    async def wait(self) -> None:
        """Raises trio.BrokenResourceError when the connection is over."""
        with trio.CancelScope() as self._waiting:
            if not self._set and not self._closed:
                await self._read_ahead()
        if self._closed:
            raise trio.BrokenResourceError("the connection is over")

    def is_set(self) -> bool:
        return self._set

    def close(self) -> None:
        """Nothing more will be read."""
        self._closed = True
        self._waiting.cancel()


class GuardedServer(TCPServer):
    """One connection. Puts itself into the ASGI scope as ``scope["extensions"]["hypha.guard"]``."""

    def __init__(self, app: Any, config: Any, context: Any, state: Any, stream: Any) -> None:
        async def guarded(scope: Any, receive: Any, send: Any, *spawners: Any) -> None:
            scope.setdefault("extensions", {})["hypha.guard"] = self
            await app(scope, receive, send, *spawners)

        super().__init__(cast("AppWrapper", guarded), config, context, state, stream)
        self._reading = trio.CancelScope()
        self._serve: Serve | None = None
        self._taking, self._taken = False, trio.Event()
        self._held = bytearray()
        self._lingers = False
        self._turnstile: Turnstile | None = state.get(TURNSTILE)
        self._waits = False
        self._turn = Turn(self._read_ahead)
        self._ahead = bytearray()

    async def run(self) -> None:
        try:
            await super().run()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            logger.debug("connection broken")
        except* Exception as group:  # the barrier: one connection's fault stays its own
            for error in group.exceptions:
                logger.warning("connection ended by an error: %r", error, exc_info=error)

    @property
    def terminated(self) -> Any:
        """The event that is set when Hypercorn begins to shut down."""
        return self.context.terminated

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Closed) and self._body_is_coming():
            self._lingers = True
            self._reading.cancel()
            return
        if not isinstance(event, RawData):
            # The application has just been told that its request is over, and frameworks cancel what still runs for
            # it: this very task. The idle clock must start, and what is to be closed must be closed, all the same.
            with trio.move_on_after(SEND_SECONDS, shield=True):
                await super().protocol_send(event)
            return
        async with self.send_lock:
            delivered = await self._send_bounded(event.data)
        if not delivered:
            self._turn.close()
            await trio.aclose_forcefully(self.stream)
            await self.protocol.handle(Closed())

    async def _send_bounded(self, data: bytes) -> bool:
        """Write *data*; False when the peer is gone or takes less than 64 KiB in :data:`SEND_SECONDS`."""
        view = memoryview(data)
        try:
            for start in range(0, len(view), _SEND_SIZE):
                with trio.fail_after(SEND_SECONDS):
                    await self.stream.send_all(view[start : start + _SEND_SIZE])
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            return False
        except trio.Cancelled:
            # Part of the data may be out: nothing that follows on this stream could be understood.
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self.stream)
            raise
        return True

    async def _read_data(self) -> None:
        if isinstance(self.protocol.protocol, Http1Only):
            self.protocol.protocol.can_read = self._turn
        while not self._taking and not self._lingers:
            with trio.CancelScope() as self._reading:
                data = self._take_ahead() or await self._receive()
            if self._reading.cancelled_caught:
                break
            await self._come_in()
            await self.protocol.handle(RawData(data))
            if not data:
                break
        if self._lingers:
            await self._linger()
        if self._taking:
            await self._taken.wait()
        await self.idle_task.stop()  # it would hold the connection for the rest of its time
        if self._serve is None:
            await self.protocol.handle(Closed())
        else:
            early = bytes(self._held) + self._take_ahead()
            del self.protocol, self._held  # nothing of the request is needed as long as the websocket lives
            await self._serve(self.stream, early)

    async def _come_in(self) -> None:
        """Wait for our turn with the first bytes of the connection: the work that they make begins with them."""
        if self._turnstile is not None:
            self._waits = True
            await self._turnstile.wait()
            self._turnstile, self._waits = None, False

    async def _idle_timeout(self) -> None:
        """As Hypercorn has it, but a connection that waits for its turn is not idle."""
        terminated = self.context.terminated
        waited = True
        while waited and not terminated.is_set():
            with trio.move_on_after(self.config.keep_alive_timeout):
                await terminated.wait()
            waited = self._waits
        with trio.CancelScope(shield=True):
            await self._initiate_server_close()

    def _body_is_coming(self) -> bool:
        """Whether a request was answered before all of it was there."""
        connection = self.protocol.protocol.connection
        return isinstance(connection, StrictHttp) and connection.their_state is h11.SEND_BODY

    async def _linger(self) -> None:
        """Drop what still comes of a body: unread, it would make of the close a reset, in which the answer is lost."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError), trio.move_on_after(_LINGER_SECONDS):
            if isinstance(self.stream, trio.abc.HalfCloseableStream):
                await self.stream.send_eof()
            left = _LINGER_BYTES
            while left > 0 and (data := await self._receive()):
                left -= len(data)

    async def _read_ahead(self) -> None:
        """Keep what comes, up to a limit. Raises trio.BrokenResourceError when the peer leaves."""
        while len(self._ahead) < _EARLY_LIMIT:
            data = await self._receive()
            if not data:
                raise trio.BrokenResourceError("the peer left")
            self._ahead += data
        await trio.sleep_forever()

    def _take_ahead(self) -> bytes:
        data = bytes(self._ahead)
        self._ahead.clear()
        return data

    async def _receive(self) -> bytes:
        try:
            return bytes(await self.stream.receive_some(_READ_SIZE))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    async def take_over(
        self, receive: Receive, send: Send, serve: Serve, accept: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Accept the websocket and let *serve* have its stream, with the bytes that came before it was taken.

        *accept*: what ASGI's event of that name says beside its type.

        Returns when it is accepted. *serve* runs in the place of the reader, in the task of the connection. The stream
        belongs to it alone; what it raises ends the connection. Raises :class:`TakeOverFailed` when the peer has left
        already.
        """
        held: object = getattr(self.protocol.protocol, "stream", None)
        if not isinstance(held, HeldWebsocket) or (await receive())["type"] != "websocket.connect":
            raise TakeOverFailed
        held.handshake.extensions = None
        # What comes from now on is the websocket's, and may be much: a client can answer before the accept returns.
        self._taking = True
        self._reading.cancel()
        try:
            await send({**accept, "type": "websocket.accept"})
            if held.closed:
                raise TakeOverFailed
            held.closed = True  # Hypercorn has nothing more to say
            self._serve, self._held = serve, held.early
        finally:
            self._taken.set()


#: Where an application writes, in the state of its lifespan, how many connections may be open at once, and where it
#: puts the :class:`Turnstile` through which they come in.
CONNECTIONS, TURNSTILE = "hypha.connections", "hypha.turnstile"
#: Where an application puts a function that takes the :class:`Door` when connections are accepted from now on.
OPENED = "hypha.opened"


class Door:
    """The server as it is open now. *sockets*: where it listens. *is_secure*: whether it speaks TLS there."""

    def __init__(
        self,
        handler: Callable[[trio.abc.Stream], Awaitable[object]],
        sockets: Sequence[Any],
        nursery: trio.Nursery,
        *,
        is_secure: bool = False,
    ) -> None:
        """*handler* serves one connection. Its tasks run in *nursery*, with those of all other connections."""
        self.sockets = tuple(sockets)
        self.is_secure = is_secure
        self._handler = handler
        self._nursery = nursery

    async def connect(self) -> trio.SocketStream:
        """A connection of this process to its own server, which needs no address and no permission of a firewall.

        Raises ConnectionRefusedError when the server ends.
        """
        await trio.lowlevel.checkpoint()
        ours, theirs = trio.socket.socketpair()
        try:
            self._nursery.start_soon(self._serve, trio.SocketStream(theirs))
        except RuntimeError:  # the nursery has ended
            ours.close()
            theirs.close()
            raise ConnectionRefusedError("the server is closed") from None
        return trio.SocketStream(ours)

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            await self._handler(stream)
        finally:
            await trio.aclose_forcefully(stream)


def _socket(listener: Any) -> Any:
    """The listening socket of a listener, also of one that speaks TLS."""
    return getattr(listener, "transport_listener", listener).socket


async def _serve_listeners(handler: Any, listeners: list[Any], *, handler_nursery: trio.Nursery) -> NoReturn:
    # The last argument that Hypercorn has prepared for each of its servers is a copy of the state of the lifespan.
    state = handler.args[-1]
    if OPENED in state:
        secure = any(isinstance(listener, trio.SSLListener) for listener in listeners)
        sockets = [_socket(listener) for listener in listeners]
        state[OPENED](Door(handler, sockets, handler_nursery, is_secure=secure))
    limit = state.get(CONNECTIONS)
    if limit is None:
        await trio.serve_listeners(handler, listeners, handler_nursery=handler_nursery)
    await serve_bounded(handler, listeners, handler_nursery=handler_nursery, limit=limit)


def _bounding(module: ModuleType) -> ModuleType:
    """Another trio, for the one module that accepts connections."""
    other = ModuleType(module.__name__)
    vars(other).update(vars(module), serve_listeners=_serve_listeners)
    return other


def install() -> None:
    """Put the guard in place for every Hypercorn server of this process that starts from now on.

    Raises :class:`ConfigError` for a version of Hypercorn with which it was not tested.
    """
    found = version("hypercorn")
    release = tuple(int(part) for part in re.findall(r"[0-9]+", found)[:2])
    if not _TESTED[0] <= release < _TESTED[1]:
        raise ConfigError(
            f"hypercorn {found} is installed, but hypha works with >=0.18,<0.19; "
            "run: pip install 'hypercorn>=0.18,<0.19'"
        )
    for owner, name, replacement in (
        (hypercorn.trio.run, "TCPServer", GuardedServer),
        (hypercorn.trio.run, "trio", _bounding(trio)),
        (hypercorn.protocol, "H11Protocol", Http1Only),
        (hypercorn.protocol.h11, "WSStream", HeldWebsocket),
        (hypercorn.protocol.h11, "HTTPStream", HttpRequest),
        (hypercorn.config.Config, "alpn_protocols", ["http/1.1"]),
    ):
        setattr(owner, name, replacement)
