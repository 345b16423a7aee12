"""Services of type ``functions``: a request becomes one call with a map, whose result is the answer."""

from __future__ import annotations

from typing import Any

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope

from hypha.errors import HyphaError
from hypha.web.app_headers import BadAnswer, body_bytes, checked_status, response_headers, without
from hypha.web.http import BodyRoom, RoomForOne, cancel_when_gone, read_body, send_error
from hypha.web.lookup import find_function
from hypha.web.mount import Mount
from hypha.wire.values import FUNCTION_MARKS

_INDEX, _DEFAULT = "index", "default"


async def call_function(
    mount: Mount, bodies: BodyRoom, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> None:
    """Answer one request. When the client leaves, the call is forgotten (``decisions.md`` 21)."""
    with bodies.request(receive) as room:
        async with trio.open_nursery() as nursery:
            try:
                result = await _result(mount, scope, room, receive, nursery)
                await _send_result(result, send)
            except HyphaError as exc:
                await send_error(send, exc)
            nursery.cancel_scope.cancel()


async def _result(
    mount: Mount, scope: HTTPScope, room: RoomForOne, receive: ASGIReceiveCallable, nursery: trio.Nursery
) -> Any:
    body = await read_body(scope, room.receive, mount.broker.limits)
    nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
    keys = await find_function(mount.broker, mount.service, _names(mount.rest))
    event = _event(mount, scope, body)
    if keys == (_DEFAULT,):
        event["function_path"] = mount.rest
    return await mount.call(".".join(keys), [event, *_context(mount, keys)])


def _event(mount: Mount, scope: HTTPScope, body: bytearray) -> dict[str, Any]:
    """The argument (``protocol.md`` 8.5). Headers that came several times are joined, cookies as RFC 6265 has them."""
    told = mount.scope(scope)
    headers: dict[str, str] = {}
    for raw_name, raw_value in told["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name in FUNCTION_MARKS:
            continue  # the provider would read a map with it as a function of whomever the other headers name
        joint = "; " if name == "cookie" else ", "
        headers[name] = headers[name] + joint + value if name in headers else value
    return told | {
        "path": mount.rest,
        "raw_path": told["raw_path"].decode("latin-1"),
        "query_string": told["query_string"].decode("latin-1"),
        "headers": headers,
        "body": body or None,
        "workspace": mount.service.workspace,
        "service_id": mount.service.id,
        "user": mount.caller.principal.to_wire(mount.caller.source.workspace),
    }


def _context(mount: Mount, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The second argument that programs for the old server expect, unless their client adds the real context."""
    asked = mount.service.config.get("require_context")
    injected = asked is True or (isinstance(asked, list) and ".".join(keys) in asked)
    return [{}] if mount.provider.dialect.legacy_manager and not injected else []


def _names(path: str) -> list[tuple[str, ...]]:
    """What may answer at *path*: the function of that name, one in maps, the index of such a map, the default."""
    name = path.strip("/")
    if not name:
        return [(_INDEX,), (_DEFAULT,)]
    parts = tuple(name.split("/"))
    return [(name,), *([parts] if len(parts) > 1 else []), (*parts, _INDEX), (_DEFAULT,)]


async def _send_result(result: Any, send: ASGISendCallable) -> None:
    if not isinstance(result, dict):
        raise BadAnswer(f"the function must return a map of status, headers and body, not {type(result).__name__}")
    status = checked_status(result.get("status", 200))
    headers = without(response_headers(result.get("headers")), b"content-length")
    body = body_bytes(result.get("body"))
    if status not in {204, 304}:
        headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
