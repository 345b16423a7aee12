"""One HTTP request at an application behind the server: ``serve({"scope", "receive", "send"})`` (``protocol.md`` 8.5).

Nothing is collected. A piece of the request is read from the client when the application has asked for the one before,
but for some 64 KiB that are read ahead, because only who reads notices that the client leaves. A piece of the answer is
acknowledged to the application when the client's socket has taken it. So either side sets the pace of the other, and a
request holds a few pieces at a time, however long it is.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import Any

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope

from hypha.broker.endpoint import Callbacks
from hypha.config import KIB
from hypha.errors import CallTimeout, HyphaError, InvalidArgument, NotAuthenticated, PeerGone
from hypha.web.app_headers import BadAnswer, body_bytes, checked_status, content_length, response_headers
from hypha.web.http import send_error
from hypha.web.mount import Mount

logger = logging.getLogger(__name__)

_AHEAD_BYTES = 64 * KIB
_NO_BODY = frozenset({204, 304})


async def serve_request(mount: Mount, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Answer one request.

    Whatever goes wrong before the answer has begun becomes an error; later it ends the connection, so that the client
    sees that the answer is not whole. A client that leaves is told to the application as ``http.disconnect``; a
    provider that can be told so is cancelled a moment later, any other has ``app_finish_seconds`` to end. It has the
    same time for what it does behind its answer.
    """
    failure: HyphaError | None = None
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as calling:
            exchange = _Exchange(mount, scope, receive, send, calling)
            callbacks = Callbacks(nursery, {"receive": exchange.receive, "send": exchange.send})
            nursery.start_soon(exchange.read)
            try:
                await mount.call("serve", [{"scope": mount.scope(scope)}], callbacks)
            except HyphaError as exc:
                failure = exc
        nursery.cancel_scope.cancel()
    await exchange.finish(failure)


class _Exchange:
    """What an application's ``receive`` and ``send`` do. *calling*: around its call, to be ended with the exchange."""

    def __init__(
        self,
        mount: Mount,
        scope: HTTPScope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        calling: trio.CancelScope,
    ) -> None:
        self._mount, self._limits = mount, mount.broker.limits
        self._receive, self._send = receive, send
        self._calling = calling
        self._is_head = scope["method"] == "HEAD"
        self._events: deque[dict[str, Any]] = deque()
        self._held = 0
        self._changed = trio.lowlevel.ParkingLot()
        self._gone = False
        self._verdict: HyphaError | None = None  # why the server itself has ended the exchange
        self._status = 0
        self._left: int | None = None  # bytes of the answer that are still to come, where it said how many
        self._complete = False

    # --- the request ------------------------------------------------------------------------------------------

    async def read(self) -> None:
        """Read what the client sends, and notice that it leaves; to the end of either."""
        more = True
        while not self._gone:
            with trio.move_on_after(self._limits.http_body_seconds if more else math.inf) as patience:
                more = await self._read_one()
            if patience.cancelled_caught:
                text = f"no byte of the request body came for http_body_seconds = {self._limits.http_body_seconds:g}"
                self._verdict = CallTimeout(text)
                self._leave()
            while self._held >= _AHEAD_BYTES:
                await self._changed.park()

    async def _read_one(self) -> bool:
        """Take one event; whether the body goes on behind it."""
        try:
            event = await self._receive()
        except trio.EndOfChannel:  # Hypercorn has no room for the disconnect behind a body that nobody reads
            event = {"type": "http.disconnect"}
        if event["type"] != "http.request":
            self._leave()
            return False
        told = {"type": "http.request", "body": event["body"], "more_body": event["more_body"]}
        self._events.append(told)
        self._held += len(event["body"])
        self._changed.unpark_all()
        return event["more_body"]

    def _leave(self) -> None:
        """The client is gone."""
        self._gone = True
        self._changed.unpark_all()
        if not self._complete:
            self._end_call(self._mount.finish_seconds(told=True))

    def _end_call(self, seconds: float) -> None:
        self._calling.deadline = min(self._calling.deadline, trio.current_time() + seconds)

    async def receive(self) -> dict[str, Any]:
        """For the application: the next piece of the request, or that the client is gone."""
        while not self._events:
            if self._gone:
                return {"type": "http.disconnect"}
            await self._changed.park()
        event = self._events.popleft()
        self._held -= len(event["body"])
        self._changed.unpark_all()
        return event

    # --- the answer -------------------------------------------------------------------------------------------

    async def send(self, message: object) -> None:
        """For the application: a piece of the answer; returns when the client has taken it.

        Raises :class:`PeerGone` when the client is gone, and :class:`InvalidArgument` or :class:`BadAnswer` for what
        is no piece of an answer, or is out of order.
        """
        kind = message.get("type") if isinstance(message, dict) else None
        if not isinstance(message, dict) or kind not in ("http.response.start", "http.response.body"):
            raise InvalidArgument(f"send takes the events of an HTTP response, not {kind!r:.100}")
        if self._gone and not self._complete:
            raise PeerGone("the client has left")
        self._require_valid()
        if kind == "http.response.start":
            await self._start(message)
        else:
            await self._body(message)

    def _require_valid(self) -> None:
        """An answer may take longer than the token lives for which it is given."""
        try:
            self._mount.require_valid()
        except NotAuthenticated as exc:
            self._verdict = exc
            self._calling.cancel()
            raise

    async def _start(self, message: dict[str, Any]) -> None:
        if self._status:
            raise InvalidArgument("the response has started already")
        status, headers = checked_status(message.get("status")), response_headers(message.get("headers"))
        self._left = None if self._is_head or status in _NO_BODY else content_length(headers)
        self._status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _body(self, message: dict[str, Any]) -> None:
        if not self._status or self._complete:
            raise InvalidArgument("the response has not started, or has ended")
        body, more = body_bytes(message.get("body")), message.get("more_body") is True
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise self._cut("the body is not as long as its Content-Length says")
        self._complete = not more  # before it is sent, which tells us that the request is over
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        if not more:
            self._end_call(self._mount.finish_seconds(told=False))

    def _cut(self, text: str) -> BadAnswer:
        """The answer cannot be ended as it has begun, so the connection is."""
        self._calling.cancel()
        return BadAnswer(text)

    async def finish(self, failure: HyphaError | None) -> None:
        """After the call: tell the client why there is no answer, where one can still be given."""
        failure = self._verdict or failure
        if failure is not None:
            logger.info("an application failed: %s", failure)
        if not self._status and (self._verdict is not None or not self._gone):
            await send_error(self._send, failure or BadAnswer("the application has ended without an answer"))
