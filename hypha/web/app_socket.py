"""A websocket at an application behind the server: ``serve({"scope", "receive", "send"})`` (``protocol.md`` 8.5).

The application says whether the websocket is accepted. From then on the stream is ours, as it is for the websockets of
clients (:mod:`hypha.web.guard`): the same codec with the same limits reads it, and pings and silence are treated alike.
Messages go both ways at the pace of who takes them, as bodies do (:mod:`hypha.web.exchange`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, WebsocketScope

from hypha.broker.endpoint import Callbacks
from hypha.config import KIB
from hypha.errors import HyphaError, InvalidArgument, NotAuthenticated, PeerGone
from hypha.web.app_headers import BadAnswer, response_headers
from hypha.web.codec import Closed, Codec, Incoming, Reply, message_head
from hypha.web.guard import GuardedServer, TakeOverFailed
from hypha.web.mount import Mount
from hypha.web.upgrade import refuse_upgrade
from hypha.web.ws import GOODBYE_SECONDS, expect_acknowledgements

logger = logging.getLogger(__name__)

_AHEAD_BYTES = 64 * KIB
_READ_SIZE = _WRITE_SIZE = 64 * KIB
_RESTART = 1012, "the server is restarting"
_NO_CLOSE = 1006  # what applications are told of a connection that ended without a close frame


async def serve_socket(
    mount: Mount, scope: WebsocketScope, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> None:
    """Serve one websocket request until the websocket has ended, or was refused. Cancel it freely."""
    extensions: Any = scope.get("extensions", {})
    guard: GuardedServer = extensions["hypha.guard"]
    await receive()  # websocket.connect
    failure: HyphaError | None = None
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as calling:
            socket = _Socket(mount, scope, send, guard, nursery, calling)
            callbacks = Callbacks(nursery, {"receive": socket.receive, "send": socket.send})
            nursery.start_soon(socket.await_departure, receive)
            try:
                await mount.call("serve", [{"scope": mount.scope(scope)}], callbacks)
            except HyphaError as exc:
                logger.info("an application failed: %s", exc)
                failure = exc
        try:
            await socket.finish(failure)
        finally:
            await socket.close()
            nursery.cancel_scope.cancel()


class _Socket:
    """What an application's ``receive`` and ``send`` do. *calling*: around its call, to be ended with the websocket."""

    def __init__(
        self,
        mount: Mount,
        scope: WebsocketScope,
        send: ASGISendCallable,
        guard: GuardedServer,
        nursery: trio.Nursery,
        calling: trio.CancelScope,
    ) -> None:
        self._mount, self._limits = mount, mount.broker.limits
        self._subprotocols = scope["subprotocols"]
        self._http_send, self._guard = send, guard
        self._nursery, self._calling = nursery, calling
        self._codec = Codec(self._limits.frame_bytes)
        self._events: deque[dict[str, Any]] = deque([{"type": "websocket.connect"}])
        self._held = 0
        self._changed = trio.lowlevel.ParkingLot()
        self._stream: trio.abc.Stream | None = None
        self._handed_over, self._over = trio.Event(), trio.Event()
        self._sending = trio.Lock()
        self._heard_at = 0.0
        self._accepting = self._refused = self._closing = False
        #: The application has closed or refused it, and need not be told of the end.
        self._is_done = False
        #: What the application is told of the end, which has come.
        self._end: dict[str, Any] | None = None
        self._ended = trio.Event()

    # --- for the application ----------------------------------------------------------------------------------

    async def receive(self) -> dict[str, Any]:
        """The next event: the request, a message, or the end, as often as it is asked for."""
        while not self._events:
            if self._end is not None:
                return self._end
            await self._changed.park()
        event = self._events.popleft()
        self._held -= _size(event)
        self._changed.unpark_all()
        return event

    async def send(self, message: object) -> None:
        """Accept, send a message, or close; returns when the client has taken it.

        Raises :class:`PeerGone` when the client is gone, and :class:`InvalidArgument` or :class:`BadAnswer` for what
        is no such event, or is out of order.
        """
        kind = message.get("type") if isinstance(message, dict) else None
        if not isinstance(message, dict) or kind not in ("websocket.accept", "websocket.send", "websocket.close"):
            raise InvalidArgument(f"send takes the events of a websocket, not {kind!r:.100}")
        if self._end is not None:
            raise PeerGone("the client has left")
        is_open = self._stream is not None
        fits = {"websocket.accept": not is_open, "websocket.send": is_open, "websocket.close": True}
        if self._closing or self._refused or not fits[kind]:
            raise InvalidArgument(f"{kind} is out of order")
        if kind == "websocket.accept":
            await self._accept(message)
        elif kind == "websocket.send":
            await self._write(_frame(message, self._codec))
        else:
            await self._close_or_refuse(message)

    async def _accept(self, message: dict[str, Any]) -> None:
        accept: dict[str, Any] = {"headers": [], "subprotocol": message.get("subprotocol")}
        if accept["subprotocol"] is not None and accept["subprotocol"] not in self._subprotocols:
            raise BadAnswer("the subprotocol is none of those that the client offers")
        for name, value in response_headers(message.get("headers")):
            if not name.startswith(b"sec-websocket-") and name != b"content-length":
                accept["headers"].append((name, value))
        self._accepting = True
        try:
            await self._guard.take_over(_connected, self._http_send, self._serve, accept)
        except TakeOverFailed:
            self._leave(_NO_CLOSE, "")
            raise PeerGone("the client has left") from None
        await self._handed_over.wait()

    async def _close_or_refuse(self, message: dict[str, Any]) -> None:
        code, reason = message.get("code"), message.get("reason")
        self._is_done = True
        if self._stream is None:
            self._refused = True
            await refuse_upgrade(self._http_send, 403, "the application does not accept the websocket")
        else:
            text = reason if isinstance(reason, str) else ""
            await self._say_goodbye(code if isinstance(code, int) else 1000, text)
        self._end_call(self._mount.finish_seconds(told=False))

    # --- the connection ---------------------------------------------------------------------------------------

    async def _serve(self, stream: trio.abc.Stream, early: bytes) -> None:
        """In the task of the connection, which lasts as long as this."""
        if self._over.is_set():  # the call has ended just now
            await trio.aclose_forcefully(stream)
            return
        self._stream = stream
        self._heard_at = trio.current_time()
        expect_acknowledgements(stream, self._limits)
        for task in (self._keep, self._await_shutdown):
            self._nursery.start_soon(task)
        self._nursery.start_soon(self._read, early)
        self._handed_over.set()
        await self._over.wait()

    async def await_departure(self, receive: ASGIReceiveCallable) -> None:
        """Notice that the client leaves before the websocket was accepted. Nothing comes here afterwards."""
        await receive()
        self._leave(_NO_CLOSE, "")

    async def _read(self, early: bytes) -> None:
        """Read to the end of the websocket."""
        assert self._stream is not None
        data = early
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while not await self._take(self._codec.feed(data)):
                data = bytes(await self._stream.receive_some(_READ_SIZE))
                self._heard_at = trio.current_time()
                if not data:
                    break
        self._leave(_NO_CLOSE, "")

    async def _take(self, items: Iterable[Incoming]) -> bool:
        """Take what has come; whether it was the end."""
        for item in items:
            if isinstance(item, Reply):
                await self._write(item.data)
            elif isinstance(item, Closed):
                await self._write(item.reply if item.by_peer else self._codec.close(item.code, item.reason))
                self._leave(item.code, item.reason)
                return True
            elif item is not None:
                event: dict[str, Any] = {"type": "websocket.receive"}
                event |= {"text": item} if isinstance(item, str) else {"bytes": bytes(item)}
                self._events.append(event)
                self._held += _size(event)
                self._changed.unpark_all()
                await self._wait_room()
        return False

    async def _wait_room(self) -> None:
        while self._held >= _AHEAD_BYTES:
            await self._changed.park()
            self._heard_at = trio.current_time()  # nobody has listened since

    async def _write(self, data: bytes) -> None:
        """Write to the client, which is gone when it takes less than 64 KiB in ``stall_seconds``."""
        assert self._stream is not None
        async with self._sending:
            if self._end is not None:
                return
            sent = False
            with (
                suppress(trio.BrokenResourceError, trio.ClosedResourceError),
                trio.CancelScope() as patience,
            ):
                for start in range(0, len(data), _WRITE_SIZE):
                    patience.deadline = trio.current_time() + self._limits.stall_seconds
                    await self._stream.send_all(data[start : start + _WRITE_SIZE])
                sent = True
            if not sent:
                self._leave(_NO_CLOSE, "")

    async def _keep(self) -> None:
        """Ping, and end what is silent, or whose token has ended."""
        while True:
            await trio.sleep(self._limits.ping_seconds)
            silence = 0.0 if self._held >= _AHEAD_BYTES else trio.current_time() - self._heard_at
            if silence > self._limits.silence_seconds:
                self._leave(_NO_CLOSE, "")
            try:
                self._mount.require_valid()
            except NotAuthenticated as exc:
                await self._say_goodbye(exc.close_code, str(exc))
                self._leave(exc.close_code, str(exc))
            await self._write(self._codec.ping())

    async def _await_shutdown(self) -> None:
        await self._guard.terminated.wait()
        await self._say_goodbye(*_RESTART)
        self._leave(*_RESTART)

    # --- the end ----------------------------------------------------------------------------------------------

    def _leave(self, code: int, reason: str) -> None:
        """The websocket is over; only the first of its ends counts."""
        if self._end is None:
            self._end = {"type": "websocket.disconnect", "code": code, "reason": reason}
            self._ended.set()
            self._changed.unpark_all()
            if not self._is_done:
                self._end_call(self._mount.finish_seconds(told=True))

    def _end_call(self, seconds: float) -> None:
        self._calling.deadline = min(self._calling.deadline, trio.current_time() + seconds)

    async def _say_goodbye(self, code: int, reason: str) -> None:
        """Send the close frame and wait a moment for the client's, which the reader takes."""
        self._closing = True
        with trio.move_on_after(GOODBYE_SECONDS):
            await self._write(self._codec.close(code, reason))
            await self._ended.wait()

    async def finish(self, failure: HyphaError | None) -> None:
        """After the call: refuse what was not accepted, and close what is open."""
        if self._end is not None or self._refused:
            return
        if self._stream is None:
            if self._accepting:
                return
            error = failure or BadAnswer("the application has ended without an answer")
            await refuse_upgrade(self._http_send, error.status, str(error))
        elif self._guard.terminated.is_set():  # why the provider is gone, too
            await self._say_goodbye(*_RESTART)
        elif failure is not None:
            await self._say_goodbye(failure.close_code, str(failure))
        else:
            await self._say_goodbye(1000, "")

    async def close(self) -> None:
        """Let the connection go."""
        self._over.set()
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)


async def _connected() -> dict[str, Any]:
    return {"type": "websocket.connect"}


def _size(event: dict[str, Any]) -> int:
    return len(event.get("text") or event.get("bytes") or b"")


def _frame(message: dict[str, Any], codec: Codec) -> bytes:
    data, text = message.get("bytes"), message.get("text")
    if isinstance(data, bytes):
        return message_head(len(data)) + data
    if isinstance(text, str):
        return codec.text(text)
    raise BadAnswer("a message must have 'bytes' or 'text'")
