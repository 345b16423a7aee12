"""Cross-origin requests: which web pages may read our answers (the Fetch standard's CORS protocol).

An allowed ``Origin`` is echoed in ``Access-Control-Allow-Origin``, and a preflight is answered here with 200
(``protocol.md`` section 8). The middleware is the outermost one, so that answers of every branch carry the headers,
errors included: without them a page sees "network error" in the place of our message. It changes the start of an
answer and passes bodies through as they come.

``Access-Control-Allow-Credentials`` is sent to origins that the operator has named, and never because of ``*``. Both
old servers send it to everybody, as ``protocol.md`` observes. ``reliability.md`` promise 16 says "without credentials
by default" and goes first, since that line is no ``[rule]``. The reason: credentials are what a browser adds by
itself, cookies and HTTP authentication. Our cookies (:mod:`hypha.web.rpc`, :mod:`hypha.web.forms`) are for no other
site, and a page that sends a token in ``Authorization`` needs no permission for credentials. What a browser would add
comes from a proxy with a login in front of us; echoing every origin *and* allowing credentials would let any page on
the Internet act as the person who is logged in there. An operator whose own pages need that names them in
``--allow-origins``.

What a service behind us says about origins is replaced, since two values are none to a browser, and since all
services share one origin: the operator's list is the last word.
"""

from __future__ import annotations

import json
import re

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope, Scope

from hypha.web.http import Headers

METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
MAX_AGE_SECONDS = 600

#: Answered when a preflight names no headers. Otherwise the asked ones are allowed: a service may read any header.
DEFAULT_HEADERS = b"Authorization, Content-Type, Range"

#: Headers that a page may read besides those that it always may.
EXPOSED_HEADERS = b"Accept-Ranges, Content-Disposition, Content-Range, ETag, Location, Retry-After"


#: What browsers send: ``null``, or scheme, host and perhaps a port. Nothing else is echoed.
_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[^\s/?#@\"'<>\\,]+")
_FIELD_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(\s*,\s*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
_REPLACED = frozenset({b"access-control-allow-origin", b"access-control-allow-credentials"})


class Cors:
    """Wraps an ASGI application. *allow_origins* holds origins as browsers write them, or ``*``.

    Websocket and lifespan scopes pass untouched. What the application raises passes too: an answer that the server
    makes of an exception has no CORS headers, so the application should make its own.
    """

    def __init__(self, app: ASGIFramework, allow_origins: tuple[str, ...]) -> None:
        self._app = app
        self._named = frozenset(allow_origins) - {"*"}
        self._anybody = "*" in allow_origins

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer a preflight, or let the application answer and add the headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = _header(scope, b"origin")
        if scope["method"] == "OPTIONS" and origin and _header(scope, b"access-control-request-method"):
            await self._preflight(origin, _header(scope, b"access-control-request-headers"), send)
            return
        permission = self._permission(origin)

        async def send_with_permission(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _merged(list(message["headers"]), permission)}
            await send(message)

        await self._app(scope, receive, send_with_permission)

    def _permission(self, origin: bytes) -> Headers:
        """The headers that let *origin* read an answer: none if it may not."""
        text = origin.decode("latin-1")
        if text in self._named:
            return [(b"access-control-allow-origin", origin), (b"access-control-allow-credentials", b"true")]
        if self._anybody and _ORIGIN.fullmatch(text):
            return [(b"access-control-allow-origin", origin)]
        return []

    async def _preflight(self, origin: bytes, asked: bytes, send: ASGISendCallable) -> None:
        permission = self._permission(origin)
        if not permission:
            await _refuse(origin, send)
            return
        headers = [
            *permission,
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", asked if _FIELD_NAMES.fullmatch(asked) else DEFAULT_HEADERS),
            (b"access-control-max-age", str(MAX_AGE_SECONDS).encode()),
            (b"vary", b"Origin, Access-Control-Request-Headers"),
            (b"content-length", b"0"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _refuse(origin: bytes, send: ASGISendCallable) -> None:
    detail = f"pages from {origin.decode('latin-1')!r} may not use this server; its operator can add --allow-origins"
    body = json.dumps({"success": False, "detail": detail}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"vary", b"Origin"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _header(scope: HTTPScope, name: bytes) -> bytes:
    """The value of a header. Several are joined, which makes of two origins one that is not allowed."""
    return b", ".join(value for key, value in scope["headers"] if key == name)


def _merged(headers: Headers, permission: Headers) -> Headers:
    """*headers* of an answer with *permission* in the place of what they say about origins.

    ``Vary: Origin`` is added to every answer, also to one for a request without an origin: a cache would otherwise
    hand that one, which lacks the permission, to a page.
    """
    kept = [(name, value) for name, value in headers if name.lower() not in _REPLACED]
    varies = b",".join(value.lower() for name, value in kept if name.lower() == b"vary")
    if not {b"*", b"origin"} & {item.strip() for item in varies.split(b",")}:
        kept.append((b"vary", b"Origin"))
    if permission and not any(name.lower() == b"access-control-expose-headers" for name, _ in kept):
        kept.append((b"access-control-expose-headers", EXPOSED_HEADERS))
    return kept + permission
