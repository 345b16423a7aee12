"""Sources that are fetched: from a server of this test, in the place of the public Internet."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from hypha.apps import fetch as fetching
from hypha.apps.fetch import FETCH_SECONDS, fetch
from hypha.errors import InvalidArgument, PermissionDenied, TooLarge


class Site:
    """Answers requests by their path; *asked* are the hosts."""

    def __init__(self, nursery: trio.Nursery, pages: dict[str, bytes]) -> None:
        self._nursery = nursery
        self._pages = pages
        self.asked: list[tuple[str, int]] = []

    async def reach(self, host: str, port: int) -> trio.abc.Stream:
        if host == "private.example":
            raise PermissionDenied("private.example is 10.0.0.1")
        self.asked.append((host, port))
        ours, theirs = memory_stream_pair()
        self._nursery.start_soon(self._answer, theirs)
        return ours

    async def _answer(self, stream: trio.abc.Stream) -> None:
        async with stream:
            request = bytes(await stream.receive_some())
            page = self._pages[request.split()[1].decode()]
            if page == b"silence":
                await trio.sleep_forever()
            await stream.send_all(page)


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def to(url: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n".encode()


PAGES = {
    "/app.js": ok("api.export({}) // é".encode()),
    "/there?x=1": to("/app.js"),
    "/loop": to("/loop"),
    "/inside": to("http://private.example/"),
    "/file": to("file:///etc/passwd"),
    "/large": ok(b"x" * 101),
    "/fits": ok(b"x" * 100),
    "/missing": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "/broken": b"nonsense\r\n\r\n",
    "/short": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx",
    "/bytes": ok(b"\xff"),
    "/silence": b"silence",
    "/endless": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 101,
}


async def test_a_text_is_fetched_also_behind_a_redirection(nursery: trio.Nursery) -> None:
    site = Site(nursery, PAGES)
    assert await fetch("http://a.example:8080/there?x=1", 100, site.reach) == "api.export({}) // é"
    assert site.asked == [("a.example", 8080)] * 2
    assert await fetch("http://a.example/fits", 100, site.reach) == "x" * 100


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://a.example/loop", "more than 5 redirections"),
        ("http://a.example/file", "is no address of a source"),
        ("http://a.example/missing", "answers with 404"),
        ("http://a.example/broken", "does not answer"),
        ("http://a.example/short", "does not answer"),
        ("http://a.example/bytes", "is not text in UTF-8"),
        ("ftp://a.example/", "is no address of a source"),
        ("http:///x", "is no address of a source"),
        ("http://a.example:x/", "is no address of a source"),
        ("http://a.example/a b", "is no address of a source"),
    ],
)
async def test_what_cannot_be_fetched_says_why(url: str, reason: str, nursery: trio.Nursery) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        await fetch(url, 100, Site(nursery, PAGES).reach)


async def test_private_addresses_are_refused_also_behind_a_redirection(nursery: trio.Nursery) -> None:
    with pytest.raises(PermissionDenied):
        await fetch("http://a.example/inside", 100, Site(nursery, PAGES).reach)
    with pytest.raises(PermissionDenied):
        await fetch("http://127.0.0.1/", 100)


@pytest.mark.parametrize("path", ["large", "endless"])
async def test_the_size_is_bounded(path: str, nursery: trio.Nursery) -> None:
    with pytest.raises(TooLarge, match="app_source_bytes = 100"):
        await fetch(f"http://a.example/{path}", 100, Site(nursery, PAGES).reach)


async def test_the_time_is_bounded(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    with pytest.raises(InvalidArgument, match=f"not there after {FETCH_SECONDS:g} s"):
        await fetch("http://a.example/silence", 100, Site(nursery, PAGES).reach)
    nursery.cancel_scope.cancel()


def test_redirections_are_counted() -> None:
    assert fetching.REDIRECTIONS == 5
