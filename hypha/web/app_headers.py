"""What passes between a client and a web application behind the server: the heads of requests and of answers.

Hop-by-hop headers belong to one connection (RFC 9110 section 7.6.1) and pass in neither direction. Neither does what
speaks for the whole origin, which all services share with the server: a service worker above its own path, the order to
forget the data of all, a policy for the host, reports on all requests, of which some hold secrets in their addresses, a
say in what the browser tells or keeps apart, a cookie by which :mod:`hypha.web.rpc` knows a client or
:mod:`hypha.web.accounts` a person, an opener policy by which a window with such a person's pages could be kept. What
speaks for one page alone passes, such as ``Reporting-Endpoints`` and ``Origin-Trial``. A token of ours is worth all of
its user's workspaces, so that no application gets to see it. What else stands in ``Authorization`` is for the
application.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from hypercorn.typing import HTTPScope, WebsocketScope

from hypha.config import KIB
from hypha.errors import InvalidArgument
from hypha.web.http import Headers
from hypha.web.rpc import COOKIE_PREFIX

_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
    | {b"proxy-authenticate", b"proxy-authorization"}
)
#: What an answer says of the connection, which is ours, or of the whole origin.
_RESERVED = frozenset(
    {b"date", b"alt-svc", b"clear-site-data", b"service-worker-allowed", b"strict-transport-security"}
    | {b"nel", b"report-to", b"accept-ch", b"critical-ch", b"set-login", b"origin-agent-cluster", b"use-as-dictionary"}
    | {b"secure-session-registration", b"sec-session-registration"}
)
#: With this an opener policy differs from that of our own pages, so that their windows stay apart. Each browser has
#: learnt both in the same version (Chrome 83, Firefox 79, Safari 15.2). ``credentialless`` came later, and not to all:
#: where it is not known such a page has the same policy as ours.
_ISOLATING = b"require-corp"
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
_MAX_HEADERS, _MAX_BYTES = 200, 64 * KIB  # of one answer


class BadAnswer(InvalidArgument):
    """An application has answered with what is no answer."""

    status = 502


def request_headers(scope: HTTPScope | WebsocketScope, *, authorization: bool) -> Headers:
    """The headers of a request that its application gets, with or without *authorization*."""
    named = {
        option.strip().lower()
        for name, value in scope["headers"]
        if name == b"connection"
        for option in value.split(b",")
    }
    left_out = _HOP_BY_HOP | named | {b"expect"} | (set() if authorization else {b"authorization"})
    return [(bytes(name), bytes(value)) for name, value in scope["headers"] if name not in left_out]


def response_headers(told: object) -> Headers:
    """The headers of an answer that its client gets. *told*: pairs, or a map, of text or bytes.

    A value of a map may be a list, which is several headers. Raises :class:`BadAnswer`.
    """
    pairs = list(_pairs(told))
    size = sum(len(name) + len(value) for name, value in pairs)
    if len(pairs) > _MAX_HEADERS or size > _MAX_BYTES:
        raise BadAnswer(f"the answer has more than {_MAX_HEADERS} headers, or more than {_MAX_BYTES} bytes of them")
    named = {option.strip().lower() for name, value in pairs if name == b"connection" for option in value.split(b",")}
    left_out = _HOP_BY_HOP | _RESERVED | (named - {b"content-length"})
    embedder = [value for name, value in pairs if name == b"cross-origin-embedder-policy" and name not in left_out]
    if embedder != [_ISOLATING]:
        left_out |= {b"cross-origin-opener-policy"}
    return [
        (name, value)
        for name, value in pairs
        if name not in left_out and not (name == b"set-cookie" and COOKIE_PREFIX in value)
    ]


def _pairs(told: object) -> Iterable[tuple[bytes, bytes]]:
    if told is None:
        return
    if isinstance(told, dict):
        items: list[Any] = [
            (name, item) for name, value in told.items() for item in (value if isinstance(value, list) else [value])
        ]
    elif isinstance(told, list):
        items = told
    else:
        raise BadAnswer("the headers of an answer must be a map, or a list of pairs")
    for item in items:
        if not isinstance(item, list | tuple) or len(item) != 2:
            raise BadAnswer("a header of an answer must be a pair of a name and a value")
        name, value = _bytes("name", item[0]).lower(), _bytes("value", item[1]).strip(b" \t")
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise BadAnswer(f"the header {name[:100].decode('latin-1')!r} of the answer cannot be sent")
        yield name, value


def _bytes(what: str, part: object) -> bytes:
    if isinstance(part, bytes):
        return part
    try:
        return str(part).encode("latin-1") if isinstance(part, str | int) else b"\0"
    except UnicodeEncodeError:
        raise BadAnswer(f"the {what} of a header of the answer is not latin-1: {part!r:.100}") from None


def checked_status(told: object) -> int:
    """The status of an answer. Raises :class:`BadAnswer` for what is none, and for 1xx, which are the server's."""
    if type(told) is not int or not 200 <= told <= 599:
        raise BadAnswer(f"the status of an answer must be a number from 200 to 599, not {told!r:.100}")
    return told


def content_length(headers: Headers) -> int | None:
    """How long the body of an answer is to be, None when that is not said. Raises :class:`BadAnswer`."""
    told = {value for name, value in headers if name == b"content-length"}
    if not told:
        return None
    (value, *others) = told
    if others or not re.fullmatch(rb"[0-9]{1,15}", value):
        raise BadAnswer("the Content-Length of the answer is not one number")
    return int(value)


def without(headers: Headers, *names: bytes) -> Headers:
    """*headers* without those of *names*."""
    return [(name, value) for name, value in headers if name not in names]


def body_bytes(told: object) -> bytes:
    """A body as providers send it: bytes, text, None, or what their clients make of buffers (``protocol.md`` 3.1).

    Raises :class:`BadAnswer`.
    """
    if isinstance(told, dict) and told.get("_rtype") in ("memoryview", "typedarray"):
        told = told.get("_rvalue")
    if told is None:
        return b""
    if isinstance(told, str):
        return told.encode()
    if not isinstance(told, bytes):
        raise BadAnswer(f"the body of an answer must be bytes or text, not {type(told).__name__}")
    return told
