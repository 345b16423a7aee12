"""HTTP calls, GET and POST, with clients that leave at each phase of a request among them."""

from __future__ import annotations

import json
import statistics
import time
from array import array
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import islice

import trio

from tests.soak.home import BIG, Home
from tests.soak.http_client import HttpClient, get, http_client, post
from tests.soak.legacy_peer import dial, reset

#: One in so many requests is left by its client.
LEAVING = 10
_PER_CONNECTION = 100
_WORKERS = 4

Leave = Callable[[Home, trio.SocketStream], Awaitable[None]]


class HttpLoad:
    """The load, and the *seconds* that each answered call took, in their order."""

    def __init__(self, home: Home) -> None:
        self.seconds = array("d")
        self._home = home
        self._requests = (get(f"{home.path}/hello?name=John"), post(f"{home.path}/hello", {"name": "John"}))

    async def run(self, numbers: Iterable[int]) -> None:
        """Make a request for each number; every :data:`LEAVING`-th is left, each way in its turn."""
        numbers = iter(numbers)
        async with trio.open_nursery() as nursery:
            for _ in range(_WORKERS):
                nursery.start_soon(self._work, numbers)

    async def pace(self) -> float:
        """Make some calls one after the other, by a client that does not leave; the median of their seconds."""
        before = len(self.seconds)
        async with http_client(self._home.port) as client:
            for number in range(1, 1 + _PER_CONNECTION):
                await self._call(client, number)
        return statistics.median(self.seconds[before:])

    async def _work(self, numbers: Iterator[int]) -> None:
        while batch := list(islice(numbers, _PER_CONNECTION)):
            async with http_client(self._home.port) as client:
                for number in batch:
                    with trio.fail_after(20):
                        await self._request(client, number)

    async def _request(self, client: HttpClient, number: int) -> None:
        leaving, rest = divmod(number, LEAVING)
        if rest == 0:
            async with await dial(self._home.port) as stream:
                await LEAVES[leaving % len(LEAVES)](self._home, stream)
        else:
            await self._call(client, number)

    async def _call(self, client: HttpClient, number: int) -> None:
        began = time.perf_counter()
        status, body = await client.ask(self._requests[number % 2])
        self.seconds.append(time.perf_counter() - began)
        assert (status, json.loads(body)) == (200, "Hello John"), (status, body)


# --- leaving: the stream is closed when one of these returns --------------------------------------------------


async def _before_anything(home: Home, stream: trio.SocketStream) -> None:
    pass


async def _within_the_head(home: Home, stream: trio.SocketStream) -> None:
    await stream.send_all(get(f"{home.path}/hello?name=John")[:40])


async def _within_the_body(home: Home, stream: trio.SocketStream) -> None:
    await stream.send_all(post(f"{home.path}/hello", {"name": "John" * 1000})[:500])
    reset(stream)


async def _during_the_call(home: Home, stream: trio.SocketStream) -> None:
    """The provider is told by its next heartbeat that nobody waits any more."""
    call = home.hold.expect()
    await stream.send_all(get(f"{home.path}/hold?key={call.key}"))
    await call.begun.wait()
    reset(stream)


async def _before_the_answer(home: Home, stream: trio.SocketStream) -> None:
    """The provider answers, and finds or does not find that the client has left."""
    call = home.hold.expect()
    await stream.send_all(get(f"{home.path}/hold?key={call.key}"))
    await call.begun.wait()
    stream.socket.close()
    call.released.set()


async def _within_the_answer(home: Home, stream: trio.SocketStream) -> None:
    await stream.send_all(get(f"{home.path}/big"))
    assert len(await stream.receive_some(1000)) < len(BIG)
    reset(stream)


async def _with_half_a_connection(home: Home, stream: trio.SocketStream) -> None:
    """The client ends its side at once; whether it is answered is the server's choice, that it ends is not."""
    await stream.send_all(get(f"{home.path}/hello?name=John"))
    await stream.send_eof()
    while await stream.receive_some(65536):
        pass


async def _with_another_request_behind(home: Home, stream: trio.SocketStream) -> None:
    await stream.send_all(get(f"{home.path}/hello?name=John") + get(f"{home.path}/big"))
    await stream.receive_some(10)


LEAVES: tuple[Leave, ...] = (
    _before_anything,
    _within_the_head,
    _within_the_body,
    _during_the_call,
    _before_the_answer,
    _within_the_answer,
    _with_half_a_connection,
    _with_another_request_behind,
)
