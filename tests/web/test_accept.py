"""Connections are accepted while there is room for them, and a lack of descriptors is outlived."""

from __future__ import annotations

import errno
import logging
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from hypha.web.accept import affordable, serve_bounded
from tests.web.stack import per_turn


class Door(trio.abc.Listener[trio.abc.Stream]):
    """A listener over memory: *knock* is a client that connects, an error what the kernel says instead."""

    def __init__(self) -> None:
        self.waiting: list[trio.abc.Stream | OSError] = []
        self.closed = False
        self._knocked = trio.Event()

    def knock(self, error: int | None = None) -> trio.abc.Stream:
        client, server = memory_stream_pair()
        self.waiting.append(server if error is None else OSError(error, "no descriptor left"))
        self._knocked.set()
        return client

    async def accept(self) -> trio.abc.Stream:
        while not self.waiting:
            self._knocked = trio.Event()
            await self._knocked.wait()
        await trio.lowlevel.checkpoint()
        found = self.waiting.pop(0)
        if isinstance(found, OSError):
            raise found
        return found

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


async def greet(stream: trio.abc.Stream) -> None:
    """Say hello and stay until the client leaves."""
    await stream.send_all(b"hello")
    await stream.receive_some(1)


@asynccontextmanager
async def serving(limit: int, *doors: Door) -> AsyncIterator[None]:
    async with trio.open_nursery() as handlers, trio.open_nursery() as nursery:

        async def serve() -> None:
            await serve_bounded(greet, doors, handler_nursery=handlers, limit=limit)

        nursery.start_soon(serve)
        yield
        nursery.cancel_scope.cancel()
        handlers.cancel_scope.cancel()
    assert all(door.closed for door in doors)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


async def test_the_connections_are_bounded_exactly_and_one_more_waits(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door()
    async with serving(2, door):
        clients = [door.knock() for _ in range(3)]
        for client in clients[:2]:
            assert await client.receive_some() == b"hello"
        await wait_all_tasks_blocked()
        assert len(door.waiting) == 1
        assert warnings(caplog) == ["connections = 2 are open, others wait for their end"]
        await clients[0].aclose()
        assert await clients[2].receive_some() == b"hello"


async def test_each_further_listener_may_accept_one_more_and_none_goes_without(autojump_clock: MockClock) -> None:
    doors = [Door(), Door()]
    async with serving(1, *doors):
        first, second, third = doors[0].knock(), doors[1].knock(), doors[0].knock()
        for client in (first, second):
            assert await client.receive_some() == b"hello"
        await wait_all_tasks_blocked()
        assert len(doors[0].waiting) == 1
        for client in (first, second):
            await client.aclose()
        assert await third.receive_some() == b"hello"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_a_lack_of_descriptors_is_told_once_and_outlived(
    number: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door()
    async with serving(2, door):
        for _ in range(100):
            door.knock(number)
        assert await door.knock().receive_some() == b"hello"
        assert trio.current_time() == pytest.approx(10)
        assert warnings(caplog) == [f"connections wait: [Errno {number}] no descriptor left"]
        for _ in range(601):
            door.knock(number)
        assert await door.knock().receive_some() == b"hello"
        assert len(warnings(caplog)) == 2


async def test_of_many_connections_one_is_accepted_in_each_turn() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    accepted = 0

    async def count(stream: trio.abc.Stream) -> None:
        nonlocal accepted
        accepted += 1
        await stream.receive_some(1)

    async with AsyncExitStack() as streams, trio.open_nursery() as nursery:
        for _ in range(50):
            await streams.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
        with per_turn(lambda: accepted) as turns:
            nursery.start_soon(partial(serve_bounded, count, listeners, handler_nursery=nursery, limit=50))
            await wait_all_tasks_blocked()
        assert (accepted, turns.largest) == (50, 1)
        nursery.cancel_scope.cancel()


async def test_other_errors_of_a_listener_end_the_server(autojump_clock: MockClock) -> None:
    door = Door()
    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        async with serving(2, door):
            door.knock(errno.EBADF)
            await trio.sleep_forever()


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "possible", "raised"),
    [
        (1024, 4096, 100, 100, None),
        (1024, 524288, 10_000, 10_000, 20_256),
        (1024, 4096, 10_000, 3840, 4096),
        (1024, 1024, 10_000, 768, 1024),
        (1024, resource.RLIM_INFINITY, 10_000, 10_000, 20_256),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 10_000, 10_000, None),
        (2, 2, 10_000, 2, 2),
    ],
)
def test_there_are_as_many_connections_as_descriptors_allow(
    soft: int,
    hard: int,
    wanted: int,
    possible: int,
    raised: int | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    now: list[Any] = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: now[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: now.append(limits))
    assert affordable(wanted) == possible
    assert now[1:] == ([] if raised is None else [(raised, hard)])
    assert bool(warnings(caplog)) == (possible < wanted)


def test_a_system_that_does_not_allow_more_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert affordable(10_000) == 192
