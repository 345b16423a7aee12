"""The functions of this client that work for others: each call is a task of its own (``protocol.md`` 4)."""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from hypha.client.run import RAISED, own_error
from hypha.client.service import Offered
from hypha.client.store import Group
from hypha.client.values import encode_error
from hypha.errors import CallTimeout, HyphaError, InvalidArgument
from hypha.wire import calls, values
from hypha.wire.calls import CallBody
from hypha.wire.frame import Frame

if TYPE_CHECKING:
    from hypha.client.peer import Peer

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Running:
    """A function of ours that works for another peer, or is about to."""

    sender: str
    session: str
    frame: Frame
    offered: Offered
    body: CallBody
    scope: trio.CancelScope
    next_beat: float
    cancelled: bool = False


class Serving:
    """The calls that come in to *peer*. They run in the nursery of its connection, and end with it."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._running: dict[tuple[str, str], _Running] = {}
        #: Those of which no task has begun yet, in the order in which they came.
        self._arrived: deque[_Running] = deque()

    def clear(self) -> None:
        """The connection is over, and its nursery is cancelled."""
        self._arrived.clear()
        self._running.clear()

    def beat(self, now: float) -> None:
        """Send the heartbeats that are due (``protocol.md`` 4.6). *now*: trio time in seconds."""
        for running in list(self._running.values()):
            promise = running.body.promise
            if promise is None or promise.heartbeat is None or promise.interval is None or running.next_beat > now:
                continue
            running.next_beat = now + promise.interval
            self._peer.put(calls.heartbeat(running.sender, promise, running.session))

    def answer_at_once(self, frame: Frame, function: Callable[[], Any]) -> None:
        """Answer a call in the place that it has among others; what *function* raises is the answer, too."""
        sender, session = str(frame.fields.get("from", "")), frame.session or ""
        try:
            promise = calls.parse_call(frame.extra(), frame.session).promise
        except HyphaError as exc:
            if frame.wants_answer:
                self._peer.put(calls.rejection(sender, session, exc.remote_text(), exc.code))
            return
        try:
            succeeded, value = True, function()
        except HyphaError as exc:
            succeeded, value = False, values.error(exc.remote_text(), exc.code)
        if promise is not None:
            self._peer.put(calls.answer(sender, promise.resolve if succeeded else promise.reject, session, value))

    def start(self, frame: Frame, sender: str, find: Callable[[], Offered]) -> None:
        """Let the function that *find* gives work for *sender*."""
        key = sender, frame.session or secrets.token_hex(8)
        try:
            offered = find()
            body = calls.parse_call(frame.extra(), frame.session)
            if key in self._running:
                raise InvalidArgument("a call of that session is running")
        except HyphaError as exc:
            self.answer_at_once(frame, partial(_raise, exc))
            return
        if self._peer.nursery is None:
            return  # the connection is over
        now, interval = trio.current_time(), body.promise.interval if body.promise is not None else None
        scope = trio.CancelScope()
        if body.timeout is not None:
            scope.deadline = now + body.timeout
        running = _Running(sender, key[1], frame, offered, body, scope, now + 0.8 * (interval or 0.0))
        self._running[key] = running
        self._arrived.append(running)
        self._peer.nursery.start_soon(self._serve)

    async def _serve(self) -> None:
        """One call of another peer: ends with the function, when its caller gives up, or with the connection.

        Of those that have not begun it is the one that came first: tasks that are started together begin in any order.
        """
        if not self._arrived:
            return  # the connection is over
        running = self._arrived.popleft()
        promise = running.body.promise
        try:
            with running.scope:
                await self._run(running)
            if running.scope.cancelled_caught and promise is not None:
                # Nobody waits for it; the server strikes the call out.
                text = "the call was cancelled by its caller" if running.cancelled else "the caller's time is over"
                over = values.error(CallTimeout(text).remote_text(), CallTimeout.code)
                self._peer.put(calls.answer(running.sender, promise.reject, running.session, over))
        except Exception:  # a fault of ours, which one peer must not turn against all others
            logger.exception("a call of %s could not be answered", running.sender)
        finally:
            if self._running.get((running.sender, running.session)) is running:
                del self._running[running.sender, running.session]

    async def _run(self, running: _Running) -> None:
        promise, sender = running.body.promise, running.sender
        try:
            with self._peer.giving() as given:
                succeeded, value = await self._outcome(running, given)
                channel = self._peer.current
                if promise is None or channel is None:
                    return
                session = running.frame.session or promise.resolve.rpartition(".")[0]
                method = promise.resolve if succeeded else promise.reject
                fields = {"type": "method", "to": sender, "method": method, "parent": session}
                await self._peer.send(channel, fields, {"args": [value]}, session)
        except HyphaError as exc:
            if self._peer.current is not None:  # with a connection that is lost, so are all answers
                logger.warning("the answer to %s could not be sent: %s", sender, exc)
            error = values.error(exc.remote_text(), exc.code)
            if promise is not None:
                self._peer.put(calls.answer(sender, promise.reject, running.session, error))

    async def _outcome(self, running: _Running, given: list[Group]) -> tuple[bool, Any]:
        """What the function returns, encoded, or its error. Nothing that it raises ends the connection."""
        offered, sender = running.offered, running.sender
        try:
            args = [self._peer.decoder.decode(item, sender) for item in running.body.args]
            kwargs = {name: self._peer.decoder.decode(item, sender) for name, item in running.body.kwargs.items()}
            if offered.injects:
                told = {**running.frame.fields, "connection_type": "websocket"}
                kwargs["context"] = self._peer.decoder.decode(told, sender)
            if offered.native:
                value = await offered.function(*args, **kwargs)
            else:
                value = await self._peer.runner.call(offered.function, args, kwargs)
            return True, self._peer.encoder(sender, None, given).encode(value)
        except RAISED as exc:  # the program's own, which its caller gets
            error = own_error(exc)
            if error is None:
                raise
            logger.info("%s failed for %s: %r", running.frame.method, sender, error)
            return False, encode_error(error)

    def cancel(self, sender: str, session: object) -> None:
        """Stop the function that works for *sender* in its call *session*, if there is one."""
        running = self._running.get((sender, str(session)))
        if running is not None:
            running.cancelled = True
            running.scope.cancel()


def _raise(error: HyphaError) -> None:
    raise error
