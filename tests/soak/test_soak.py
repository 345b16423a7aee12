"""100 000 HTTP calls, and 10 000 clients that end in every way: afterwards the server holds what it held before.

``promises.md`` C-LEAK-1 to C-LEAK-4, C-HTTP-1 and C-RECON-1. The short versions run with all other tests and assert
the same counts; memory and time are asserted by the long ones alone. ``python3 -m tests soak -s`` shows the figures.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from tests.soak.cycles import EXITS, Cycles
from tests.soak.home import Home, open_home
from tests.soak.http_load import LEAVES, LEAVING, HttpLoad
from tests.soak.watching import Holdings, Watched, ageing, grown, tenths, watched_server

#: What the memory in use after the warm-up, and the time that a new server takes, may become by the load.
MEMORY, TIME = 1.05, 1.10


@pytest.mark.slow
async def test_3_000_http_calls_leave_nothing_behind(tmp_path: Path) -> None:
    async with watched_server(tmp_path) as server, open_home(server.port) as home:
        await http_calls(server, home, 3_000)


@pytest.mark.slow
async def test_300_clients_leave_nothing_behind_whichever_way_they_end(tmp_path: Path) -> None:
    async with watched_server(tmp_path) as server, open_home(server.port) as home:
        await clients(server, home, 8 * len(EXITS), 300)


@pytest.mark.soak
async def test_100_000_http_calls_leave_nothing_behind_and_slow_nothing_down(tmp_path: Path) -> None:
    async with watched_server(tmp_path) as server, open_home(server.port) as home:
        load = await http_calls(server, home, 100_000)
        with trio.fail_after(20):
            await home.hold.idle()  # the providers of abandoned calls learn it from their next heartbeat
        await assert_not_aged(load.pace, tmp_path, lambda new: HttpLoad(new).pace)


@pytest.mark.soak
async def test_10_000_clients_leave_nothing_behind_whichever_way_they_end(tmp_path: Path) -> None:
    async with watched_server(tmp_path) as server, open_home(server.port) as home:
        # The heap grows as large as its worst moments make it: by 1 MB from the 2 000th to the 5 000th client, and by
        # as much again until the 30 000th, where it ends.
        load = await clients(server, home, 5_000, 10_000)
        await assert_not_aged(load.pace, tmp_path, lambda new: Cycles(new).pace)


async def http_calls(server: Watched, home: Home, count: int) -> HttpLoad:
    """Make *count* calls and assert that they leave nothing behind."""
    connected = await server.holdings()
    await HttpLoad(home).run(range(LEAVING * len(LEAVES)))  # what is made once, at the first call, is there now
    start = await server.settled(connected, ("process", "tasks"))
    await HttpLoad(home).run(range(count // 20))
    warm = await server.settled(start)
    load, used = HttpLoad(home), [server.processor()]
    for _ in range(10):
        await load.run(range(count // 10))
        used.append(server.processor())
    end = await server.settled(start)
    # An object for each request of one way of leaving would be count / LEAVING / len(LEAVES) objects.
    assert not grown(warm, end, 0.8 * count / LEAVING / len(LEAVES))
    check_memory(warm, end, count, load.seconds)
    each = [(after - before) / count * 1e7 for before, after in pairwise(used)]
    print("processor for each call of each tenth in us:", *map(round, each))
    return load


async def clients(server: Watched, home: Home, warm_up: int, count: int) -> Cycles:
    """Let *count* clients come and end, and assert that they leave nothing behind."""
    start = await server.holdings()
    await Cycles(home).run(range(warm_up))
    warm = await server.settled(start)
    load = Cycles(home)
    await load.run(range(count))
    end = await server.settled(start)
    assert min(load.done.values()) >= count // len(EXITS)
    assert not grown(warm, end, 0.8 * count / len(EXITS) / 8)  # eight variants of one way of ending
    check_memory(warm, end, count, load.seconds)
    return load


def check_memory(warm: Holdings, end: Holdings, count: int, seconds: Sequence[float]) -> None:
    """Print the figures of a run; its memory is asserted when it was a long one."""
    print(
        f"\n{count}: {warm['used'] / 1e6:.1f} MB in use after the warm-up, {end['used'] / 1e6:.1f} MB at the end; "
        f"median of each tenth in ms: {tenths(seconds)}"
    )
    if count >= 10_000:
        assert end["used"] <= MEMORY * warm["used"]


Pace = Callable[[], Awaitable[float]]


async def assert_not_aged(old: Pace, directory: Path, new_pace: Callable[[Home], Pace]) -> None:
    """Compare the *old* server with one that is started now, in *directory*."""
    fresh = directory / "new"
    fresh.mkdir()
    async with watched_server(fresh) as server, open_home(server.port) as home:
        new = new_pace(home)
        for _ in range(3):
            await new()  # to be warm
        ratio = await ageing(old, new)
    print(f"the server that has worked takes {ratio:.3f} of the time of a new one")
    assert ratio <= TIME
