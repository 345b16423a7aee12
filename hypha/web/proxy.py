"""Any function is also a plain HTTP call: ``/{workspace}/services/{service}/{function}`` (``protocol.md`` 8.2).

The service is found in memory and called through the router by the server's own session: no connection, no RPC
object and, when the response is out, no task is left of a request.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope

from hypha.broker.access import Principal
from hypha.broker.broker import Broker
from hypha.broker.own import Visit
from hypha.broker.session import PeerSession, Service
from hypha.errors import CallTimeout, HyphaError, NotFound, PermissionDenied, RemoteError, internal_error
from hypha.web.arguments import Arguments, read_arguments
from hypha.web.bearer import principal_of
from hypha.web.http import (
    JSON,
    MSGPACK,
    BodyRoom,
    RoomForOne,
    base_url,
    cancel_when_gone,
    header,
    media_type,
    send_error,
    send_response,
    wrong_method,
)
from hypha.web.lookup import Caller, Target, find, parameters, plain_value
from hypha.web.streaming import items, send_stream
from hypha.wire import values
from hypha.wire.calls import encode_value

_METHODS = "a function is called with GET and query parameters, or with POST and a map of arguments"


class Entry(Protocol):
    """What lets a request in without a token of its own."""

    @property
    def principal(self) -> Principal:
        """As whom it calls."""

    @property
    def not_there(self) -> NotFound:
        """What is told instead of what is not there: that names what else there is."""

    async def spend(self) -> None:
        """Count the call that is about to be made. Raises what says why it must not be."""

    def require_valid(self) -> None:
        """Raise :class:`NotFound` when it has ended meanwhile."""


@contextmanager
def _hiding(entry: Entry | None) -> Iterator[None]:
    try:
        yield
    except NotFound:
        if entry is None:
            raise
        raise entry.not_there from None


class Proxy:
    """Answers the requests that :func:`hypha.web.lookup.parse_path` recognises."""

    def __init__(self, broker: Broker, room: BodyRoom) -> None:
        self._broker = broker
        self._room = room

    async def serve(
        self,
        target: Target,
        scope: HTTPScope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        entry: Entry | None = None,
    ) -> None:
        """Answer one request. When the client leaves, the call is forgotten (``decisions.md`` 21).

        With an *entry* it needs no token, and one that it brings is not looked at.
        """
        if scope["method"] not in {"GET", "POST"}:
            await wrong_method(scope, send, _METHODS)
            return
        with self._room.request(receive) as room:
            await self._answer(target, scope, room, receive, send, entry)

    async def _answer(
        self,
        target: Target,
        scope: HTTPScope,
        room: RoomForOne,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        entry: Entry | None,
    ) -> None:
        as_msgpack = _wants_msgpack(scope)
        async with trio.open_nursery() as nursery:
            try:
                principal = principal_of(self._broker, scope) if entry is None else entry.principal
                arguments = await read_arguments(scope, room, self._broker.limits)
                nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
                with _hiding(entry):
                    service, caller = await find(self._broker, target, principal, arguments.mode)
                if entry is not None:
                    _require_peer(service)
                url = base_url(scope, scope["root_path"])
                value = await self._call(service, target.keys, caller, arguments, url, entry)
                encode = encode_value if as_msgpack else self._json
                if isinstance(service.session, PeerSession) and values.is_generator(value):
                    source = items(
                        self._broker,
                        service.session,
                        value,
                        caller,
                        arguments.patience,
                        (lambda: None) if entry is None else entry.require_valid,
                    )
                    await send_stream(source, send, encode, as_msgpack=as_msgpack)
                else:
                    await send_response(send, 200, MSGPACK if as_msgpack else JSON, encode(value))
            except RemoteError as exc:
                await send_error(send, _with_status(exc))
            except HyphaError as exc:
                await send_error(send, exc)
            except Exception as exc:  # noqa: BLE001  the call boundary: the client gets a reference, not a traceback
                await send_error(send, internal_error(exc))
            nursery.cancel_scope.cancel()

    async def _call(
        self,
        service: Service,
        keys: tuple[str, ...],
        caller: Caller,
        arguments: Arguments,
        base_url: str,
        entry: Entry | None,
    ) -> Any:
        with _hiding(entry):
            value = await plain_value(self._broker, service, keys, arguments.patience)
        if entry is not None:
            await entry.spend()
        if value is not None:
            return value[0]
        path, kwargs = ".".join(("services", service.id, *keys)), arguments.named(parameters(service, keys))
        server, patience = self._broker.server, arguments.patience
        if isinstance(service.session, PeerSession):
            return await server.call(
                service.session,
                path,
                arguments.args,
                kwargs,
                source=caller.source,
                stamp=caller.stamp(),
                patience=patience,
            )
        visit = Visit(caller.principal, caller.source.workspace, base_url, "HTTP")
        with trio.move_on_after(patience or math.inf):
            return await server.own.call(service, path, visit, arguments.args, kwargs)
        raise CallTimeout(f"there was no result for {patience:g} s")

    def _json(self, value: Any) -> bytes:
        plain = values.to_json(value, self._broker.limits.json_array_bytes)
        return json.dumps(plain, allow_nan=False, ensure_ascii=False).encode()


def _require_peer(service: Service) -> None:
    """Services of the server's own give out more than one call. Raises :class:`NotFound`."""
    if not isinstance(service.session, PeerSession):
        raise NotFound("services of the server's own are not called with a link")


def _wants_msgpack(scope: HTTPScope) -> bool:
    kind = media_type(scope)
    return kind == "application/msgpack" or "application/msgpack" in header(scope, b"accept").lower()


# --- the status of an error that a function raised (protocol.md 8.2) -----------------------------------------


class _BadArguments(RemoteError):
    status = 400


class _Forbidden(RemoteError):
    status = 403


class _Missing(RemoteError):
    status = 404


class _TookTooLong(RemoteError):
    status = 504


_STATUSES: dict[str, type[RemoteError]] = {
    "TypeError": _BadArguments,
    "ValueError": _BadArguments,
    "AssertionError": _BadArguments,
    "PermissionError": _Forbidden,
    "KeyError": _Missing,
    "TimeoutError": _TookTooLong,
}
#: How Python words a call that does not fit a function's signature. Synchronous functions of imjoy-rpc 0.5.6 reject
#: with the message alone, without the type (``protocol.md`` 4.3).
_SIGNATURE_ERROR = re.compile(r"[\w.<>]+\(\) (got an unexpected|got multiple values|missing \d+|takes )")


def _with_status(error: RemoteError) -> HyphaError:
    text = str(error)
    kind = text.partition(":")[0]
    if kind in _STATUSES:
        return _STATUSES[kind](text)
    if _SIGNATURE_ERROR.match(text):
        return _BadArguments(text)
    if text.startswith("Permission denied"):
        return PermissionDenied(text)
    return error
