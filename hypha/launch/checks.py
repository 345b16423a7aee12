"""Whether somebody answers at an address. No more of HTTP than that."""

from __future__ import annotations

import ssl
from urllib.parse import SplitResult, urlsplit

import trio

#: Seconds for one attempt, from the look-up of the name to the first bytes of the answer.
ATTEMPT_SECONDS = 2.0

_PORTS = {"http": 80, "https": 443}


async def is_answered(url: str) -> bool:
    """Whether *url* is answered with HTTP, be it with an error, within :data:`ATTEMPT_SECONDS`. Safe to cancel."""
    with trio.move_on_after(ATTEMPT_SECONDS):
        try:
            return (await _first_bytes(urlsplit(url))) == b"HTTP/"
        except (OSError, UnicodeError, trio.BrokenResourceError):
            return False  # no such name, nobody there, or no TLS
    return False


async def _first_bytes(url: SplitResult) -> bytes:
    assert url.hostname is not None, "the plan holds no other addresses"
    stream: trio.abc.Stream = await trio.open_tcp_stream(url.hostname, url.port or _PORTS[url.scheme])
    if url.scheme == "https":
        stream = trio.SSLStream(stream, _any_certificate(), server_hostname=url.hostname, https_compatible=True)
    try:
        target = f"{url.path or '/'}{f'?{url.query}' if url.query else ''}"
        host = url.netloc.rpartition("@")[2]
        await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        found = b""
        while len(found) < 5 and (data := await stream.receive_some(5)):
            found += data
        return found[:5]
    finally:
        await trio.aclose_forcefully(stream)


def _any_certificate() -> ssl.SSLContext:
    """Nothing secret is sent, and a service that starts here may well have signed its certificate itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
