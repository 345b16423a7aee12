"""The websocket handshake: who is it, may it come in, and which generation does it speak (``protocol.md`` 1)."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import unquote

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, WebsocketScope

from hypha.broker.broker import Admission, Broker, Credentials
from hypha.errors import HyphaError
from hypha.web import modern
from hypha.web.codec import Closed, Codec, Incoming, Message, Reply
from hypha.web.guard import GuardedServer, TakeOverFailed
from hypha.web.http import base_url, header
from hypha.web.ws import GOODBYE_SECONDS, Connections, refuse, say_goodbye
from hypha.wire.dialect import LEGACY, LEGACY_JAVASCRIPT, MODERN, MODERN_JAVASCRIPT, TRIO, TRIO_AGENT, Dialect

logger = logging.getLogger(__name__)

_LEGACY_KEYS = ("client_id", "workspace", "token", "reconnection_token")
#: What the websockets library writes; all published Python clients use it with its limit of 1 MiB a message.
_PYTHON_CLIENT = re.compile(r"Python/\S+ websockets/")


class Upgrade:
    """Turns websocket requests into attached sessions."""

    def __init__(self, broker: Broker, connections: Connections) -> None:
        self._broker = broker
        self._connections = connections

    async def serve(self, scope: WebsocketScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer one websocket request; when it is accepted, the connection goes on without us."""
        extensions: Any = scope.get("extensions", {})
        guard: GuardedServer = extensions["hypha.guard"]
        query = parse_query(scope["query_string"])
        try:
            if any(key in query for key in _LEGACY_KEYS):
                await self._legacy(guard, query, scope, receive, send)
            else:
                await self._modern(guard, scope, receive, send)
        except TakeOverFailed:
            logger.debug("a client left during the handshake")

    async def _legacy(
        self,
        guard: GuardedServer,
        query: dict[str, str],
        scope: WebsocketScope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
    ) -> None:
        """Credentials are in the query. A refusal is 403 before the upgrade: anything else hangs these clients."""
        try:
            admission = self._broker.admit(Credentials(*(query.get(key) for key in _LEGACY_KEYS)))
        except HyphaError as exc:
            logger.info("refused a client: %s", exc)
            await refuse_upgrade(send, 403, str(exc))
            return
        serve = partial(
            self._serve_legacy,
            admission=admission,
            dialect=LEGACY if is_python(scope) else LEGACY_JAVASCRIPT,
            base_url=base_url(scope, self._broker.config.base_path),
        )
        await guard.take_over(receive, send, serve)

    async def _serve_legacy(self, stream: trio.abc.Stream, early: bytes, **connection: Any) -> None:
        codec = Codec(self._broker.limits.frame_bytes)
        await self._connections.serve(stream, codec, codec.feed(early), **connection)

    async def _modern(
        self, guard: GuardedServer, scope: WebsocketScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Credentials come in a first text message, for which there is little time and little room."""
        shake_hands = partial(
            self._shake_hands,
            dialect=_modern_dialect(scope),
            base_url=base_url(scope, self._broker.config.base_path),
        )
        await guard.take_over(receive, send, shake_hands)

    async def _shake_hands(self, stream: trio.abc.Stream, early: bytes, **connection: Any) -> None:
        limits = self._broker.limits
        codec = Codec(limits.header_bytes, "header_bytes")
        ending: Closed | None = Closed(
            1008, f"no authentication came within handshake_seconds = {limits.handshake_seconds:g}", by_peer=False
        )
        admission: Admission | None = None
        with trio.move_on_after(limits.handshake_seconds):
            first, more = await _first_message(codec, stream, early)
            admission, ending = await self._let_in(codec, stream, first)
        if admission is not None:
            codec.raise_limit(limits.frame_bytes)
            await self._connections.serve(stream, codec, more, admission=admission, **connection)
        elif ending is not None:
            with trio.move_on_after(GOODBYE_SECONDS):
                await say_goodbye(stream, codec, ending.code, ending.reason)

    async def _let_in(
        self, codec: Codec, stream: trio.abc.Stream, first: Message | str | Closed
    ) -> tuple[Admission | None, Closed | None]:
        """Decide by the first message: an admission, or how the server ends, or neither when the client has left."""
        if isinstance(first, Closed):
            await stream.send_all(first.reply)
            return None, None if first.by_peer else first
        try:
            return await self._broker.admit_or_replace(modern.read_credentials(first)), None
        except HyphaError as exc:
            logger.info("refused a client: %s", exc)
            return None, await refuse(codec, stream, exc)


async def _first_message(
    codec: Codec, stream: trio.abc.Stream, data: bytes
) -> tuple[Message | str | Closed, Iterator[Incoming]]:
    """The first message, or the end, and what came behind it. Pings before it are answered."""
    while True:
        items = codec.feed(data)
        for item in items:
            if isinstance(item, Reply):
                await stream.send_all(item.data)
            elif item is not None:
                return item, items
        data = bytes(await stream.receive_some())
        if not data:
            raise trio.BrokenResourceError("the client left during the handshake")


def parse_query(query: bytes) -> dict[str, str]:
    """The parameters of a legacy handshake. The clients do not escape their values (``protocol.md`` 1.2)."""
    found: dict[str, str] = {}
    for part in query.decode("utf-8", errors="replace").split("&"):
        name, equals, value = part.partition("=")
        if equals:
            found[name] = unquote(value)  # a plus is a plus: nobody writes forms here
    return found


def is_python(scope: WebsocketScope) -> bool:
    """Whether a published Python client asks. All others are browsers, or behave like one."""
    return _PYTHON_CLIENT.match(header(scope, b"user-agent")) is not None


def _modern_dialect(scope: WebsocketScope) -> Dialect:
    if header(scope, b"user-agent").startswith(TRIO_AGENT):
        return TRIO
    return MODERN if is_python(scope) else MODERN_JAVASCRIPT


async def refuse_upgrade(send: ASGISendCallable, status: int, detail: str) -> None:
    """Answer a websocket request with an HTTP response."""
    body = json.dumps({"success": False, "detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body, "more_body": False})
