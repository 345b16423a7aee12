"""Small pieces of HTTP over ASGI, for the branches that do not go through Quart."""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, HTTPScope, WebsocketScope

from hypha.broker.throttle import parse_address
from hypha.config import KIB, Limits
from hypha.errors import CallTimeout, HyphaError, LimitExceeded, NotAuthenticated, PeerGone, TooLarge

Headers = list[tuple[bytes, bytes]]

_FREE_BODY_BYTES = 64 * KIB

#: What stands in a Host header: a name or an address, and perhaps a port (RFC 9110 section 7.2).
HOST = re.compile(r"([A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?", re.ASCII)

JSON = b"application/json"
MSGPACK = b"application/msgpack"


def header(scope: HTTPScope | WebsocketScope, name: bytes) -> str:
    """The value of a request header, empty when there is none; several are joined as RFC 9110 5.3 says."""
    return ", ".join(value.decode("latin-1") for key, value in scope["headers"] if key == name)


def base_url(scope: HTTPScope | WebsocketScope, base_path: str) -> str:
    """The server's address as this client reached it, for its information."""
    host = header(scope, b"host")
    if not HOST.fullmatch(host):
        name, port = scope["server"] or ("localhost", None)
        host = (f"[{name}]" if ":" in name else name) + (f":{port}" if port else "")
    scheme = "https" if scope["scheme"] in {"https", "wss"} else "http"
    return f"{scheme}://{host}{base_path}"


def client_address(scope: HTTPScope | WebsocketScope, proxies: tuple[str, ...]) -> str | None:
    """From where a request comes, as far as that is known; None for what comes from no network.

    Of a proxy in one of the networks *proxies* it is believed for whom it asks (``X-Forwarded-For``, to the end of
    which each proxy adds who has asked it).
    """
    address = scope["client"][0] if scope["client"] else None
    said = [part.strip() for part in header(scope, b"x-forwarded-for").split(",") if part.strip()] if proxies else []
    while said and is_within(address, proxies):
        address = said.pop()
    return address


@lru_cache(maxsize=1000)
def is_within(address: str | None, networks: tuple[str, ...]) -> bool:
    """Whether *address* is one of *networks*, also as IPv4 in IPv6."""
    number = parse_address(address)
    return number is not None and any(number in ipaddress.ip_network(network) for network in networks)


def credentials(scope: HTTPScope | WebsocketScope) -> tuple[str, str]:
    """The scheme of ``Authorization``, in lower case, and what follows it; a bare token has none."""
    value = header(scope, b"authorization").strip()
    scheme, _, rest = value.partition(" ")
    return (scheme.lower(), rest.strip()) if rest else ("", scheme)


def basic_password(given: str) -> str:
    """The password in what follows ``Basic``, empty when it cannot be read (RFC 7617)."""
    try:
        return base64.b64decode(given).decode("latin-1").partition(":")[2]
    except ValueError:
        return ""


def bearer_token(scope: HTTPScope | WebsocketScope) -> str | None:
    """The token of ``Authorization``: ``Bearer <token>`` or the bare token (``protocol.md`` 7.1)."""
    scheme, token = credentials(scope)
    if scheme not in ("", "bearer"):
        raise NotAuthenticated("write the header as Authorization: Bearer <token>")
    return token or None


async def read_body(
    scope: HTTPScope, receive: ASGIReceiveCallable, limits: Limits, *, message: bool = False
) -> bytearray:
    """The whole request body.

    It has ``http_body_seconds``, and the same again each time that it has brought ``http_body_bytes_per_second`` for
    so long: a large upload over a slow line goes on, one that only drips ends. Raises :class:`CallTimeout` then,
    :class:`TooLarge` over ``http_body_bytes``, or ``frame_bytes`` for a body that is one *message* between clients,
    :class:`PeerGone` when the client leaves before.
    """
    name, most = ("frame_bytes", limits.frame_bytes) if message else ("http_body_bytes", limits.http_body_bytes)
    too_large = TooLarge(f"the request body is larger than {name} = {most}")
    announced = header(scope, b"content-length")
    if announced.isdigit() and int(announced) > most:
        raise too_large
    body = bytearray()  # joined at the end, megabytes of new memory would be touched in one step
    due = stretch = limits.http_body_seconds * limits.http_body_bytes_per_second
    with trio.move_on_after(limits.http_body_seconds) as patience:
        while True:
            event = await receive()
            if event["type"] != "http.request":
                raise PeerGone("the client left before it had sent its request")
            body += event["body"]
            if len(body) > most:
                raise too_large
            if not event["more_body"]:
                return body
            if len(body) >= due:
                due = len(body) + stretch
                patience.deadline = trio.current_time() + limits.http_body_seconds
    raise CallTimeout(
        f"the request body was not complete after http_body_seconds = {limits.http_body_seconds:g}, "
        f"and came more slowly than http_body_bytes_per_second = {limits.http_body_bytes_per_second}"
    )


async def cancel_when_gone(receive: ASGIReceiveCallable, scope: trio.CancelScope) -> None:
    """Cancel *scope* when the client leaves. For a task beside the one that answers, after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


class BodyRoom:
    """The memory for the bodies of all requests that are handled now.

    The first 64 KiB of each are free: however many large ones there are, small ones are served.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    @contextmanager
    def request(self, receive: ASGIReceiveCallable) -> Iterator[RoomForOne]:
        """The part of one request, which its end gives back."""
        part = RoomForOne(self, receive)
        try:
            yield part
        finally:
            self.held -= part.held

    def take(self, size: int) -> None:
        """Raises :class:`LimitExceeded` when there are not so many bytes left."""
        if self.held + size > self._limit:
            raise LimitExceeded(f"http_bodies_bytes = {self._limit} are taken by other requests; try later")
        self.held += size


class RoomForOne:
    """What one request has of a :class:`BodyRoom`."""

    def __init__(self, room: BodyRoom, receive: ASGIReceiveCallable) -> None:
        self._room, self._receive = room, receive
        self._free, self.held = _FREE_BODY_BYTES, 0

    def take(self, size: int) -> None:
        """Take so many bytes more. Raises :class:`LimitExceeded` when there are none."""
        size, self._free = max(0, size - self._free), max(0, self._free - size)
        self._room.take(size)
        self.held += size

    async def receive(self) -> ASGIReceiveEvent:
        """The next event of the request, with room for what it brings. Raises :class:`LimitExceeded`."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.take(len(message["body"]))
        return message


async def send_response(
    send: ASGISendCallable, status: int, content_type: bytes, body: bytes, headers: Headers | None = None
) -> None:
    """Send a whole response."""
    head = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        *(headers or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_json(send: ASGISendCallable, status: int, value: Any, headers: Headers | None = None) -> None:
    """Send *value* as JSON."""
    await send_response(send, status, JSON, json.dumps(value, allow_nan=False).encode(), headers)


async def send_error(send: ASGISendCallable, error: HyphaError, headers: Headers | None = None) -> None:
    """Send an error with its status; the body is what both old servers sent (``protocol.md`` 8.2)."""
    await trio.lowlevel.checkpoint()  # to find out what is wrong can have taken as long as the answer will
    extra = list(headers or [])
    if error.status == 401:
        extra.append((b"www-authenticate", b"Bearer"))
    await send_json(send, error.status, {"success": False, "detail": str(error)}, extra)


async def wrong_method(scope: HTTPScope, send: ASGISendCallable, detail: str) -> None:
    """Answer what is neither GET nor POST where both are: 204 for OPTIONS, otherwise 405 with *detail*."""
    allow = [(b"allow", b"GET, POST, OPTIONS")]
    if scope["method"] == "OPTIONS":
        await send({"type": "http.response.start", "status": 204, "headers": allow})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    else:
        await send_json(send, 405, {"success": False, "detail": detail}, allow)


def media_type(scope: HTTPScope) -> str:
    """The type of the body, without its parameters, in lower case."""
    return header(scope, b"content-type").partition(";")[0].strip().lower()
