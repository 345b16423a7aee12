"""Any function is also a plain HTTP call: ``/{workspace}/services/{service}/{function}`` (``protocol.md`` 8.2).

The service is found in memory and called through the router by the server's own session: no connection, no RPC
object and, when the response is out, no task is left of a request.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote

import msgpack
import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope

from hypha.broker.access import Level, Principal, level_in
from hypha.broker.broker import Broker
from hypha.broker.registry import Workspace, not_found_hint
from hypha.broker.session import Service
from hypha.errors import (
    HyphaError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RemoteError,
    UnsupportedContent,
    internal_error,
)
from hypha.web.http import JSON, MSGPACK, bearer_token, header, read_body, send_error, send_json, send_response
from hypha.wire import values
from hypha.wire.address import HTTP_CLIENT, Address, parse_service_id
from hypha.wire.frame import Fields, packer

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_MAX_INT = 2**63 - 1
#: Query parameters that speak to the server and are not passed on.
_OPTIONS = frozenset({"_args", "_timeout"})


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names."""

    workspace: str
    service: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Caller:
    """As whom an HTTP request calls. *source*: the address that the function sees as ``from``."""

    principal: Principal
    source: Address


def parse_path(path: str) -> Target | None:
    """The target of an undecoded *path*, or None when it is not the path of a function."""
    segments = [unquote(segment) for segment in path.split("/")]
    if len(segments) < 5 or segments[0] or segments[2] != "services" or not all(segments[1:]):
        return None
    keys = tuple(key for segment in segments[4:] for key in segment.split("."))
    return Target(segments[1], segments[3], keys)


class Proxy:
    """Answers the requests that :func:`parse_path` recognises."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def serve(
        self, target: Target, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Answer one request. When the client leaves, the call is forgotten (``decisions.md`` 21)."""
        if scope["method"] not in {"GET", "POST"}:
            await self._wrong_method(scope, send)
            return
        as_msgpack = _wants_msgpack(scope)
        async with trio.open_nursery() as nursery:
            try:
                principal = self._broker.authenticate(bearer_token(scope))
                args, kwargs, options = await self._arguments(scope, receive)
                nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
                value = await self._call(target, principal, args, kwargs, options)
                body = packer.pack(value) if as_msgpack else self._json(value)
                await send_response(send, 200, MSGPACK if as_msgpack else JSON, body)
            except HyphaError as exc:
                await send_error(send, exc)
            except Exception as exc:  # noqa: BLE001  the call boundary: the client gets a reference, not a traceback
                await send_error(send, internal_error(exc))
            nursery.cancel_scope.cancel()

    async def _wrong_method(self, scope: HTTPScope, send: ASGISendCallable) -> None:
        allow = [(b"allow", b"GET, POST, OPTIONS")]
        if scope["method"] == "OPTIONS":
            await send_response(send, 204, JSON, b"", allow)
        else:
            detail = "a function is called with GET and query parameters, or with POST and a map of arguments"
            await send_json(send, 405, {"success": False, "detail": detail}, allow)

    def _json(self, value: Any) -> bytes:
        plain = values.to_json(value, self._broker.limits.json_array_bytes)
        return json.dumps(plain, allow_nan=False, ensure_ascii=False).encode()

    # --- arguments --------------------------------------------------------------------------------------------

    async def _arguments(
        self, scope: HTTPScope, receive: ASGIReceiveCallable
    ) -> tuple[list[Any], dict[str, Any], dict[str, str]]:
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True, errors="strict")
        options = {name: texts[-1] for name, texts in query.items() if name in _OPTIONS}
        kwargs: dict[str, Any] = {name: _parameter(texts) for name, texts in query.items() if name not in _OPTIONS}
        args: list[Any] = []
        if "_args" in options:
            args, more = _as_arguments(_parse_json(options["_args"].encode(), "_args"))
            kwargs.update(more)
        if scope["method"] == "POST":
            body = await read_body(scope, receive, self._broker.limits)
            kwargs.update(_body_arguments(scope, body))
        return args, kwargs, options

    # --- the call ---------------------------------------------------------------------------------------------

    async def _call(
        self, target: Target, principal: Principal, args: list[Any], kwargs: dict[str, Any], options: dict[str, str]
    ) -> Any:
        service, caller = self._resolve(target, principal)
        patience = _patience(options.get("_timeout"))
        kind = await self._look_at(service, target.keys, caller)
        if kind is not None:
            return kind[0]
        path = ".".join(("services", service.id, *target.keys))
        try:
            return await self._broker.server.call(
                service.session, path, args, kwargs, source=caller.source, stamp=_stamp(caller), patience=patience
            )
        except RemoteError as exc:
            raise _with_status(exc) from exc

    def _resolve(self, target: Target, principal: Principal) -> tuple[Service, Caller]:
        """The oldest service of that name that the principal may call. One answer for all others: 404."""
        wanted = parse_service_id(target.service)
        registry = self._broker.registry
        workspace = registry.workspaces.get(target.workspace)
        if workspace is not None and wanted.workspace is None:
            caller = _caller(principal, workspace)
            same = [
                service
                for service in registry.named(wanted.service)
                if service.workspace == workspace.name and wanted.client in {None, service.client}
            ]
            permitted = registry.callable_by(principal, caller.source.workspace, same)
            if permitted:
                return permitted[0], caller
        hint = ""
        if workspace is not None:
            hint = not_found_hint(registry.near_names(wanted.service, principal, workspace.name))
        asked = f"no service {target.service!r} in workspace {target.workspace!r}"
        raise NotFound(f"{asked}, or it is not visible without a token{hint}")

    async def _look_at(self, service: Service, keys: tuple[str, ...], caller: Caller) -> tuple[Any] | None:
        """None when *keys* name a function of the service; otherwise the value that they name, in a tuple.

        What functions a service has is asked once and remembered with the registration, so that an unknown name is
        told at once, also for providers that never answer to one (``protocol.md`` 11.10).
        """
        if service.interface is None:
            service.interface = await self._fetch(service, caller)
        elif values.is_method(_lookup(service.interface, keys)):
            return None
        else:
            service.interface = await self._fetch(service, caller)  # it may have changed: it is a value
        found = _lookup(service.interface, keys)
        if values.is_method(found):
            return None
        if found is _MISSING:
            names = [name for name, value in service.interface.items() if values.is_method(value)]
            known = f"; it has {', '.join(sorted(names))}" if names else ""
            raise NotFound(f"service {service.id!r} has no function {'.'.join(keys)!r}{known}")
        return (found,)

    async def _fetch(self, service: Service, caller: Caller) -> dict[str, Any]:
        value = await self._broker.server.call(
            service.session, "services.built-in.get_service", [service.id], patience=self._broker.limits.call_seconds
        )
        if not isinstance(value, dict):
            raise NotFound(f"service {service.id!r} is not offered by its client any more")
        return value


_MISSING = object()


def _lookup(value: Any, keys: tuple[str, ...]) -> Any:
    """Walk maps and lists by *keys*; private names are nobody's business."""
    for key in keys:
        if isinstance(value, dict) and key in value and not key.startswith("_"):
            value = value[key]
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            return _MISSING
    return value


def _caller(principal: Principal, workspace: Workspace) -> Caller:
    """Members call from inside the workspace, everybody else from their own (``decisions.md`` 22)."""
    inside = level_in(principal, workspace) >= Level.READ
    home = workspace.name if inside else principal.home or principal.id
    return Caller(principal, Address(home, HTTP_CLIENT))


def _stamp(caller: Caller) -> Fields:
    workspace = caller.source.workspace
    return Fields.encode({"from": str(caller.source), "user": caller.principal.to_wire(workspace), "ws": workspace})


async def _cancel_when_gone(receive: ASGIReceiveCallable, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _wants_msgpack(scope: HTTPScope) -> bool:
    kind = header(scope, b"content-type").partition(";")[0].strip().lower()
    return kind == "application/msgpack" or "application/msgpack" in header(scope, b"accept").lower()


def _parameter(texts: list[str]) -> Any:
    """A query parameter: numbers become numbers, several of one name become a list (A20)."""
    found = [_coerce(text) for text in texts]
    return found[0] if len(found) == 1 else found


def _coerce(text: str) -> str | int | float:
    """A number when *text* is written as JSON writes numbers. ``007``, ``nan`` and ``true`` stay text."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return text
    if match.group(2) is None and match.group(3) is None:
        number = int(text)
        return number if abs(number) <= _MAX_INT else text
    value = float(text)
    return value if abs(value) != float("inf") else text


def _body_arguments(scope: HTTPScope, body: bytes) -> dict[str, Any]:
    """The keyword arguments in a request body: a map in JSON or msgpack. An empty body has none."""
    kind = header(scope, b"content-type").partition(";")[0].strip().lower() or "application/json"
    if header(scope, b"content-encoding").strip().lower() not in {"", "identity"}:
        raise UnsupportedContent("send the body without Content-Encoding")
    if not body:
        return {}
    if kind == "application/json":
        arguments = _parse_json(body, "the body")
    elif kind == "application/msgpack":
        arguments = _parse_msgpack(body)
    else:
        raise UnsupportedContent(f"Content-Type {kind[:100]!r}: send application/json or application/msgpack")
    if not isinstance(arguments, dict) or not all(isinstance(name, str) for name in arguments):
        raise InvalidArgument("the body must be a map of argument names to values")
    return arguments


def _parse_json(text: bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgument(f"{what} is not valid JSON: {exc}") from exc


def _parse_msgpack(body: bytes) -> Any:
    try:
        return msgpack.unpackb(body, strict_map_key=True)
    except ValueError as exc:
        raise InvalidArgument(f"the body is not one msgpack value: {exc}") from exc


def _as_arguments(value: Any) -> tuple[list[Any], dict[str, Any]]:
    if isinstance(value, list):
        return value, {}
    if isinstance(value, dict):
        return [], value
    raise InvalidArgument("_args must be a JSON list of arguments or a JSON map of argument names to values")


def _patience(text: str | None) -> float | None:
    if text is None:
        return None
    number = _coerce(text)
    if isinstance(number, str) or not 0 < number <= 86400:
        raise InvalidArgument("_timeout must be a number of seconds from above 0 to 86400")
    return float(number)


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
