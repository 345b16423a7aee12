"""One websocket: from its bytes to the router, from the outbox to its bytes. Knows no Hypercorn.

The connection's task parses and routes every frame of a chunk, then flushes each touched outbox once
(``decisions.md`` 6 and 7). Its nursery holds the calls of the server's services that the peer makes, and a writer
while the socket is full; all of them end with the connection.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from hypha.broker.broker import Admission, Broker
from hypha.broker.outbox import Transport
from hypha.broker.session import PeerSession
from hypha.config import Limits
from hypha.errors import HyphaError, ProtocolViolation
from hypha.web import modern
from hypha.web.codec import Closed, Codec, Incoming, Message, Reply, message_head
from hypha.web.turnstile import Turnstile
from hypha.wire.dialect import Dialect
from hypha.wire.frame import Buffer, Frame, encode_header

logger = logging.getLogger(__name__)

_READ_SIZE, _LARGE_READ = 65536, 262_144
_WRITE_PARTS = 512  # buffers in one gathering write; the kernel takes at most 1024
_PONG_BYTES = 16 * 1024  # bytes that may wait for a peer while each of its pings is answered
_TURN_CALLS = 8  # of the server's own functions that begin in one turn: together they run before others have theirs
GOODBYE_SECONDS = 1.0
ARRIVAL_SECONDS = 1.0  # in which a client that connects begins to listen
CLEAN_CODES = frozenset({1000, 1001})


class WebsocketTransport:
    """The socket that serves a session (:class:`hypha.broker.outbox.Transport`)."""

    frame = staticmethod(message_head)

    def __init__(self, stream: trio.abc.Stream, codec: Codec, nursery: trio.Nursery, limits: Limits) -> None:
        self.codec = codec
        self.stream = stream
        self.reading = trio.CancelScope()
        self.ending: tuple[int, str] | None = None
        #: The last frame may have gone out in part: nothing can follow it.
        self.torn = False
        self.heard_at = self.pinged_at = trio.current_time()
        #: trio time at which the greeting was out, from when on a client is expected to listen.
        self.greeted_at = math.inf
        self._held: trio.Event | None = None
        self._nursery = nursery
        self._read_size = _READ_SIZE
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        expect_acknowledgements(stream, limits)

    @property
    def is_held(self) -> bool:
        """Whether nothing is written for the moment."""
        return self._held is not None

    def hold(self) -> None:
        """Let what others send wait: a modern client drops it until it listens, which its first message shows."""
        self._held = trio.Event()

    def release(self) -> None:
        """The opposite of :meth:`hold`."""
        if self._held is not None:
            self._held.set()
            self._held = None

    async def greet(self, text: str) -> bool:
        """Send a text before everything that waits. False when the socket is broken."""
        self.torn = True  # as long as it may be out in part
        try:
            await self.stream.send_all(self.codec.text(text))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        self.torn, self.greeted_at = False, trio.current_time()
        return True

    def write_now(self, buffers: Sequence[Buffer]) -> int:
        # The descriptor is asked for each time: a number kept after the close could be another connection's.
        descriptor = -1 if self._socket is None else self._socket.fileno()
        if descriptor < 0 or self._held is not None:
            return 0
        try:
            if len(buffers) == 1:
                return os.write(descriptor, buffers[0])
            return os.writev(descriptor, buffers[:_WRITE_PARTS])
        except OSError:
            return 0  # full, or broken: the writer task finds out which

    async def send_all(self, data: Buffer) -> None:
        if self._held is not None:
            await self._held.wait()
        await self.stream.send_all(data)

    async def receive(self) -> bytes | None:
        """The next bytes of the peer, None at the end."""
        try:
            if self._socket is None:
                return bytes(await self.stream.receive_some(_READ_SIZE)) or None
            while True:
                # Waiting first saves the look at a socket on which mostly nothing has come yet.
                await trio.lowlevel.wait_readable(self._socket)
                with suppress(BlockingIOError):
                    return self._read_now(self._socket.fileno())
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            return None

    def _read_now(self, descriptor: int) -> bytes | None:
        data = os.read(descriptor, self._read_size)
        # Who sends much at once is read in larger pieces, for each costs a turn.
        self._read_size = _LARGE_READ if len(data) >= _READ_SIZE else _READ_SIZE
        return data or None

    def start_soon(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        self._nursery.start_soon(task, *args)

    def close(self, code: int, reason: str) -> None:
        if self.ending is None:
            self.ending = (code, reason)
            self.reading.cancel()


def expect_acknowledgements(stream: trio.abc.Stream, limits: Limits) -> None:
    """Let the kernel break the connection when data is not acknowledged: the network is gone (``decisions.md`` 9)."""
    if not isinstance(stream, trio.SocketStream) or not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    if stream.socket.family in {socket.AF_INET, socket.AF_INET6}:
        milliseconds = int(limits.silence_seconds * 1000)
        stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


@dataclass(slots=True, eq=False)
class Connection:
    """An attached session and its transport; what the sweeper looks at."""

    broker: Broker
    session: PeerSession
    transport: WebsocketTransport
    _pong: bytes = b""

    async def converse(self, early: Iterable[Incoming]) -> int:
        """Greet a modern client, take what it has said *early*, and read on to the end; returns the close code."""
        if self.transport.is_held:
            if not await self.transport.greet(json.dumps(modern.connection_info(self.broker, self.session))):
                return 1006
            early = self.until_it_speaks(early)
        code = await self.take(early)
        return await self.read_all() if code is None else code

    async def read_all(self) -> int:
        """Read and route until the connection ends. Returns the close code, 1006 when there was none."""
        transport = self.transport
        while True:
            data = await transport.receive()
            if data is None:
                return 1006
            transport.heard_at = trio.current_time()
            items = transport.codec.feed(data)
            closed = await self.take(self.until_it_speaks(items) if transport.is_held else items)
            if closed is not None:
                return closed

    def until_it_speaks(self, items: Iterable[Incoming]) -> Iterator[Incoming]:
        """The same items, of which the first binary one shows that the client listens."""
        for item in items:
            if isinstance(item, Message):
                self.transport.release()
            yield item

    async def take(self, items: Iterable[Incoming]) -> int | None:
        """Route every message of a chunk, giving way after each turn. Returns a close code at the end."""
        limits, session = self.broker.limits, self.session
        read, route, clock = self.broker.reader.read, self.broker.router.route, time.perf_counter
        frames, calls, started = 0, session.server_calls, clock()
        for item in items:
            if isinstance(item, Message):
                try:
                    frame = read(item)
                except ProtocolViolation as exc:
                    self._drop(exc)
                else:
                    blocked = route(session, frame)
                    if blocked is not None:
                        await wait_and_route(self.broker, session, frame, blocked)
                        self.transport.heard_at = trio.current_time()  # nobody has listened since
            elif isinstance(item, Reply):
                self._answer(item.data)
            elif isinstance(item, str) and not session.dialect.legacy_manager:
                self._text(item)
            elif item is not None:
                return self._end(item)
            frames += 1
            if (
                frames >= limits.turn_frames
                or session.server_calls - calls >= _TURN_CALLS
                or clock() - started > limits.turn_seconds
            ):
                self._end_turn()
                await trio.lowlevel.checkpoint()
                frames, calls, started = 0, session.server_calls, clock()
        self._end_turn()
        return None

    def _answer(self, pong: bytes) -> None:
        """Answer a ping, in its place among what else the peer gets.

        Who does not read must not fill the queue: where bytes wait, one pong for the latest ping of each turn is
        enough (RFC 6455 section 5.5.3).
        """
        self._pong = pong
        if self.session.outbox.pending < _PONG_BYTES:
            self._put_pong()

    def _put_pong(self) -> None:
        self.session.outbox.put_raw(self._pong)
        self._pong = b""

    def _end_turn(self) -> None:
        if self._pong:
            self._put_pong()
        self.broker.flush()

    def _end(self, item: Closed | str) -> int:
        """The end of the conversation: the peer said goodbye, or said something that this server does not take."""
        if isinstance(item, Closed) and item.by_peer:
            self.session.outbox.end_with(item.reply)
            self.broker.flush()
            return item.code
        if isinstance(item, Closed):
            self.transport.close(item.code, item.reason)
        else:
            self.transport.close(1003, "this client generation sends binary messages only")
        return 1006

    def _text(self, text: str) -> None:
        reply = modern.answer(self.broker, self.session, text)
        if reply is not None:
            self.session.outbox.put_raw(self.transport.codec.text(reply))

    def _drop(self, violation: ProtocolViolation) -> None:
        """Count what is no message; the number stands in the line of the end."""
        self.session.malformed += 1
        if self.session.malformed == 1:
            logger.info("dropped a message from %s: %s", self.session.name, violation)

    def sweep(self, now: float) -> None:
        """Once a second: ping, and end what is silent or stalled (``decisions.md`` 8 and 9)."""
        limits, transport, outbox = self.broker.limits, self.transport, self.session.outbox
        if transport.is_held and now - transport.greeted_at > ARRIVAL_SECONDS:
            transport.release()
        name, patience = "silence_seconds", limits.silence_seconds
        if self.session.inbound:
            name, patience = "busy_silence_seconds", limits.busy_silence_seconds
        if now - transport.heard_at > patience:
            self.broker.lose(self.session, f"was silent for more than {name} = {patience:g}")
        elif outbox.stalled_since is not None and now - outbox.stalled_since > limits.stall_seconds:
            self.broker.lose(self.session, f"read nothing for more than stall_seconds = {limits.stall_seconds:g}")
        elif now - transport.pinged_at >= limits.ping_seconds:
            transport.pinged_at = now
            outbox.put_raw(transport.codec.ping())


async def wait_and_route(broker: Broker, sender: PeerSession, frame: Frame, blocked: PeerSession | None) -> None:
    """The only wait of the frame path: for room at a slow target, which is cut when there is none in time."""
    deadline = trio.current_time() + broker.limits.stall_seconds
    # Exactly what is put afterwards: with room for less it would have to wait again, at the end of the line.
    size = len(encode_header(frame.fields, sender.stamp)) + len(frame.body)
    while blocked is not None:
        broker.flush()
        with trio.move_on_at(deadline) as scope:
            await blocked.outbox.wait_room(size)
        if scope.cancelled_caught:
            broker.lose(blocked, f"made others wait for more than stall_seconds = {broker.limits.stall_seconds:g}")
        await trio.lowlevel.checkpoint_if_cancelled()  # the sender itself may have ended meanwhile
        blocked = broker.router.route(sender, frame)


class Swept(Protocol):
    """What :class:`Connections` holds: an attached session and its transport."""

    @property
    def transport(self) -> Transport: ...

    def sweep(self, now: float) -> None:
        """Once a second; *now* is trio time."""


class Connections:
    """The connections of clients that are open now."""

    def __init__(self, broker: Broker) -> None:
        #: Where connections wait when many begin or end at once.
        self.turnstile = Turnstile(broker.limits.turn_connections)
        self._broker = broker
        self._open: set[Swept] = set()
        self._ending: str | None = None

    def __len__(self) -> int:
        return len(self._open)

    def sweep(self, now: float) -> None:
        """Once a second; *now* is trio time."""
        for connection in list(self._open):
            connection.sweep(now)
        self._broker.flush()

    def say_goodbye(self, reason: str) -> None:
        """Tell every client to come back later (1012), and those that are just arriving too."""
        self._ending = reason
        # A client that comes back would wait for the answer of a call that nobody knows any more.
        self._broker.give_up_calls()
        for connection in self._open:
            connection.transport.close(1012, reason)

    @contextmanager
    def holding(self, connection: Swept) -> Iterator[None]:
        """Sweep *connection* within the block, and tell it when the server ends, also when that has begun."""
        self._open.add(connection)
        try:
            if self._ending is not None:
                connection.transport.close(1012, self._ending)
            yield
        finally:
            self._open.discard(connection)

    async def serve(
        self,
        stream: trio.abc.Stream,
        codec: Codec,
        early: Iterable[Incoming],
        admission: Admission,
        dialect: Dialect,
        *,
        base_url: str,
    ) -> None:
        """Serve an accepted websocket until it ends. Takes and closes *stream*. Cancel it freely.

        *early*: what *codec* has read already.
        """
        async with trio.open_nursery() as nursery:
            transport = WebsocketTransport(stream, codec, nursery, self._broker.limits)
            if not dialect.legacy_manager:
                transport.hold()
            try:
                session = self._broker.attach(admission, dialect, transport, base_url=base_url)
                await self._run(Connection(self._broker, session, transport), early)
            except HyphaError as exc:
                await _refuse(transport, dialect, exc)
            finally:
                nursery.cancel_scope.cancel()
                await _goodbye(transport)

    async def _run(self, connection: Connection, early: Iterable[Incoming]) -> None:
        session, transport = connection.session, connection.transport
        logger.info("%s connected", session.name)
        code: int | None = 1006
        try:
            with self.holding(connection):
                with transport.reading:
                    code = await connection.converse(early)
                transport.release()
                if transport.ending is not None:
                    code = transport.ending[0]
                if code != 1006:
                    await drain(session)
                await self.turnstile.wait()
        finally:
            clean = code in CLEAN_CODES
            self._broker.leave(session, clean=clean)
            transport.torn = transport.torn or session.outbox.torn
            logger.info("%s disconnected (code %s, %d malformed)", session.name, code, session.malformed)


async def drain(session: PeerSession) -> None:
    """Let what waits for a client whose connection ends go out, if it takes it soon."""
    with trio.move_on_after(GOODBYE_SECONDS):
        await session.outbox.wait_empty()


async def refuse(codec: Codec, stream: trio.abc.Stream, error: HyphaError) -> Closed:
    """Tell a modern client why it may not come in. Returns how to close the connection afterwards."""
    text = modern.refusal(error)
    if text is None:
        return Closed(modern.TRY_AGAIN_LATER, str(error), by_peer=False)
    await stream.send_all(codec.text(text))
    return Closed(error.close_code, str(error), by_peer=False)


async def _refuse(transport: WebsocketTransport, dialect: Dialect, error: HyphaError) -> None:
    ending = Closed(error.close_code, str(error), by_peer=False)
    if not dialect.legacy_manager:
        with trio.move_on_after(GOODBYE_SECONDS), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            ending = await refuse(transport.codec, transport.stream, error)
    transport.close(ending.code, ending.reason)


async def _goodbye(transport: WebsocketTransport) -> None:
    """Send the close frame, wait a moment for the peer's, close. Bounded, also under cancellation."""
    if transport.ending is not None and not transport.torn:
        with trio.move_on_after(GOODBYE_SECONDS, shield=True):
            await say_goodbye(transport.stream, transport.codec, *transport.ending)
    await trio.aclose_forcefully(transport.stream)


async def say_goodbye(stream: trio.abc.Stream, codec: Codec, code: int, reason: str) -> None:
    """Send the close frame and read until the peer has answered it, or is gone.

    What else comes is dropped. Unread, it would make of the close a reset, in which the close frame is lost.
    """
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(codec.close(code, reason))
        while data := bytes(await stream.receive_some(_READ_SIZE)):
            if any(isinstance(item, Closed) for item in codec.feed(data)):
                return
