"""Fetching the source of an app from the public Internet, within limits."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from urllib.parse import urljoin, urlsplit

import h11
import trio

from hypha.apps.public import connect
from hypha.errors import InvalidArgument, PeerGone, TooLarge

#: Seconds in which a source must be there, with all redirections, of which there may be so many.
FETCH_SECONDS, REDIRECTIONS = 30.0, 5

_CHUNK_BYTES = 65536
_BROKEN = (OSError, ssl.SSLError, trio.BrokenResourceError, h11.RemoteProtocolError)
Reach = Callable[[str, int], Awaitable[trio.abc.Stream]]


async def fetch(url: str, most: int, reach: Reach = connect) -> str:
    """The text at *url*, of at most *most* bytes in UTF-8. *reach* opens connections, also after a redirection.

    Raises :class:`InvalidArgument`, :class:`TooLarge`, and :class:`hypha.errors.PermissionDenied` for an address that
    is not public.
    """
    with trio.move_on_after(FETCH_SECONDS):
        for _ in range(REDIRECTIONS + 1):
            try:
                status, location, body = await _get(url, most, reach)
            except PeerGone as error:
                raise InvalidArgument(f"the source cannot be fetched: {error}") from None
            except _BROKEN:
                raise InvalidArgument(f"the source cannot be fetched: {_short(url)} does not answer") from None
            if status in {301, 302, 303, 307, 308} and location:
                url = urljoin(url, location)
            elif status == 200:
                return _text(url, body)
            else:
                raise InvalidArgument(f"the source cannot be fetched: {_short(url)} answers with {status}")
        raise InvalidArgument(f"the source cannot be fetched: more than {REDIRECTIONS} redirections")
    raise InvalidArgument(f"the source cannot be fetched: it was not there after {FETCH_SECONDS:g} s")


def _text(url: str, body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"the source at {_short(url)} is not text in UTF-8") from None


def _short(url: str) -> str:
    return url[:200]


async def _get(url: str, most: int, reach: Reach) -> tuple[int, str | None, bytes]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        request = h11.Request(
            method="GET",
            target=path.encode("ascii"),
            headers=[
                ("Host", parts.netloc.rpartition("@")[2]),
                ("Accept-Encoding", "identity"),
                ("User-Agent", "hypha"),
            ],
        )
    except (KeyError, ValueError, h11.LocalProtocolError):
        host = None
    if host is None:
        raise InvalidArgument(f"{_short(url)!r} is no address of a source: write http:// or https://")
    stream = await reach(host, port)
    if parts.scheme == "https":
        stream = trio.SSLStream(stream, ssl.create_default_context(), server_hostname=host, https_compatible=True)
    try:
        return await _exchange(stream, request, most)
    finally:
        await trio.aclose_forcefully(stream)


async def _exchange(stream: trio.abc.Stream, request: h11.Request, most: int) -> tuple[int, str | None, bytes]:
    connection = h11.Connection(h11.CLIENT)
    await stream.send_all((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    status, location, body = 0, None, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_CHUNK_BYTES)))
        elif isinstance(event, h11.Response):
            status = event.status_code
            location = next((value.decode("latin-1") for name, value in event.headers if name == b"location"), None)
            if status != 200:
                return status, location, b""
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > most:
                raise TooLarge(f"the source of an app is larger than app_source_bytes = {most}")
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return status, location, bytes(body)
