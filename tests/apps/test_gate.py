"""The gate between the browser and the world, in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import memory_stream_pair

from hypha.apps.gate import Gate
from hypha.apps.public import connect
from hypha.errors import PermissionDenied

OWN = ("127.0.0.1", 9527)
Stream = trio.abc.Stream


class Place:
    """What the gate connects to: the other ends of its connections, and for whom they are."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int] | None] = []
        self.ends: list[Stream] = []

    async def dial(self) -> Stream:
        return self._connect(None)

    async def reach(self, host: str, port: int) -> Stream:
        if host == "private.example":
            raise PermissionDenied("private.example is 10.0.0.1")
        return self._connect((host, port))

    def _connect(self, place: tuple[str, int] | None) -> Stream:
        ours, theirs = memory_stream_pair()
        self.asked.append(place)
        self.ends.append(theirs)
        return ours


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Stream]:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Gate(OWN, place.dial, place.reach).serve, theirs)
        async with ours:
            yield ours
        nursery.cancel_scope.deadline = trio.current_time() + 5


async def test_a_request_to_the_server_itself_goes_on_without_what_is_for_the_gate() -> None:
    place = Place()
    async with opened(place) as browser:
        head = (
            "GET http://127.0.0.1:9527/apps/x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:9527\r\nProxy-Connection: keep-alive\r\n"
        )
        await browser.send_all(f"{head}Accept: */*\r\n\r\nbody".encode())
        await trio.testing.wait_all_tasks_blocked()
        got = bytes(await place.ends[0].receive_some())
        assert got == (
            b"GET /apps/x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:9527\r\nAccept: */*\r\nConnection: close\r\n\r\nbody"
        )
        await place.ends[0].send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        assert await browser.receive_some() == b"HTTP/1.1 200 OK\r\n\r\n"
        await place.ends[0].aclose()
        assert await browser.receive_some() == b""
    assert place.asked == [None]


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("CONNECT 127.0.0.1:9527", None),
        ("CONNECT A.example:443", ("a.example", 443)),
        ("CONNECT [::1]:80", ("::1", 80)),
    ],
)
async def test_a_tunnel(line: str, asked: tuple[str, int] | None) -> None:
    place = Place()
    async with opened(place) as browser:
        await browser.send_all(f"{line} HTTP/1.1\r\n\r\n".encode())
        assert (await browser.receive_some()).startswith(b"HTTP/1.1 200 ")
        await browser.send_all(b"there")
        assert await place.ends[0].receive_some() == b"there"
        await place.ends[0].send_all(b"back")
        assert await browser.receive_some() == b"back"
    assert place.asked == [asked]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("CONNECT private.example:80", 403),
        ("GET http://private.example/", 403),
        ("GET file:///etc/passwd", 403),
        ("GET /", 403),
        ("CONNECT nowhere", 400),
        ("CONNECT a:99999", 400),
        ("GET http:///x", 400),
    ],
)
async def test_what_is_refused(line: str, status: int) -> None:
    place = Place()
    async with opened(place) as browser:
        await browser.send_all(f"{line} HTTP/1.1\r\n\r\n".encode())
        assert (await browser.receive_some()).startswith(f"HTTP/1.1 {status} ".encode())
    assert place.asked == []


@pytest.mark.parametrize("sent", [b"GET http://a.exa", b"x" * 70_000, b"\xff\r\n\r\n", b"\r\n\r\n"])
async def test_what_is_no_request_is_let_go(sent: bytes) -> None:
    place = Place()
    async with opened(place) as browser:
        await browser.send_all(sent)
    assert place.asked == []


async def test_places_that_do_not_answer_take_no_more_than_their_part(nursery: trio.Nursery) -> None:
    waiting, place = [], Place()

    async def reach(host: str, port: int) -> Stream:
        waiting.append(host)
        await trio.sleep_forever()
        raise AssertionError

    gate = Gate(OWN, place.dial, reach)
    for number in range(20):
        ours, theirs = memory_stream_pair()
        nursery.start_soon(gate.serve, theirs)
        await ours.send_all(f"CONNECT h{number}.example:80 HTTP/1.1\r\n\r\n".encode())
    await trio.testing.wait_all_tasks_blocked()
    assert len(waiting) == 16
    ours, theirs = memory_stream_pair()
    nursery.start_soon(gate.serve, theirs)
    await ours.send_all(b"CONNECT 127.0.0.1:9527 HTTP/1.1\r\n\r\n")
    assert (await ours.receive_some()).startswith(b"HTTP/1.1 200 ")
    nursery.cancel_scope.cancel()


async def test_other_ports_of_this_machine_are_refused(nursery: trio.Nursery) -> None:
    place = Place()
    port = await nursery.start(Gate(OWN, place.dial, connect).run)
    async with await trio.open_tcp_stream("127.0.0.1", port) as browser:
        await browser.send_all(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
        assert (await browser.receive_some()).startswith(b"HTTP/1.1 403 ")
    nursery.cancel_scope.cancel()
