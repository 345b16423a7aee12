"""A server under attack: what its processes hold, seen from outside, and how its neighbour fares."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from tests.attack.attacks import POLITE
from tests.attack.helper import Helper, helper
from tests.house.processes import Server
from tests.process.servers import group
from tests.soak.watching import SETTLED, Holdings, differences

#: Seconds of one slice, at least: each ends when all that was begun in it has ended, and holds whole attacks only.
SLICE = 0.25
#: Slices beside well-behaved connections and beside attackers take turns, at least and at most so many.
TURNS, MOST_TURNS = 2, 8
#: What the neighbour's 99th percentile may be: so many times the one beside well-behaved connections, or so many ms
#: more.
TIMES, MILLISECONDS = 3.0, 5.0
#: Milliseconds that no echo takes, whatever happens.
SLOWEST = 1000.0
#: Bytes that resident memory may grow by.
MEMORY = 20_000_000

#: What a server under attack has of its own: what is kept for a while is gone within seconds.
LIMITS = {
    "session_grace": 0.5,
    "reconnection_token_seconds": 0.5,
    "ping_seconds": 1,
    "drain_seconds": 1,
}
#: Seconds after which the server has forgotten whoever has left.
FORGOTTEN = 3.0
ENVIRON = {f"HYPHA_LIMIT_{name.upper()}": str(value) for name, value in LIMITS.items()} | {"HYPHA_LOG_LEVEL": "error"}


class NeighbourHurt(AssertionError):
    """The neighbour waited for longer than it may."""


@dataclass
class Judgement:
    """The neighbour's 99th percentiles in ms, a slice each: beside well-behaved connections, and beside attackers."""

    calm: list[float] = field(default_factory=list)
    attacked: list[float] = field(default_factory=list)

    def passes(self) -> bool:
        """The best slices count. What this machine does besides spoils one slice and not another; what the attack
        does to the server is in all of them, because each holds the whole attack."""
        calm = min(self.calm)
        return min(self.attacked) <= max(TIMES * calm, calm + MILLISECONDS)

    def __str__(self) -> str:
        calm, attacked = ([f"{value:.1f}" for value in sorted(values)] for values in (self.calm, self.attacked))
        return f"p99 in ms beside well-behaved connections: {' '.join(calm)}; under attack: {' '.join(attacked)}"


Slice = Callable[[], Awaitable[float]]


async def judge(calm: Slice, attacked: Slice) -> Judgement:
    """Compare the two in turns, so that what else this machine does meets both. Raises :class:`NeighbourHurt`."""
    judgement = Judgement()
    for turn in range(1, MOST_TURNS + 1):
        judgement.calm.append(await calm())
        judgement.attacked.append(await attacked())
        if turn >= TURNS and judgement.passes():
            return judgement
    raise NeighbourHurt(str(judgement))


@dataclass(frozen=True)
class Place:
    """A server, its neighbour, and the crowd that behaves or attacks."""

    server: Server
    neighbour: Helper
    crowd: Helper

    async def judge(self, row: str, connections: int) -> Judgement:
        """Measure the neighbour beside the attack *row*, and beside as many well-behaved *connections*.

        Raises :class:`NeighbourHurt`.
        """
        calm = partial(self.slice, POLITE, connections)
        return await judge(calm, partial(self.slice, row, connections))

    async def slice(self, row: str, connections: int) -> float:
        """The neighbour's 99th percentile in ms while so many *connections* do what *row* says.

        Raises :class:`NeighbourHurt` for an echo that took longer than anything may.
        """
        await self.neighbour.ask("begin")
        try:
            await self.crowd.ask("begin", row, str(connections))
            await trio.sleep(SLICE)
            ended = await self.crowd.ask("end")
        finally:
            measured = await self.neighbour.ask("end")
        assert ended["rounds"] >= connections
        if measured["slowest"] > SLOWEST:
            raise NeighbourHurt(f"an echo took {measured['slowest']:.0f} ms")
        return float(measured["p99"])

    def holdings(self) -> Holdings:
        """What the processes of the server hold now, from ``/proc``: by process, descriptors and threads."""
        return {"processes": dict(_held(group(self.server.pid))), "rss": resident(group(self.server.pid))}

    async def settled(self, before: Holdings) -> Holdings:
        """Wait until the server holds what it held *before*; return all that it holds."""
        found = self.holdings()
        with trio.move_on_after(SETTLED):
            while _grown(before, found):
                await trio.sleep(0.1)
                found = self.holdings()
        assert not _grown(before, found), "\n  ".join(["the server still holds", *_grown(before, found)])
        return found


def _grown(before: Holdings, after: Holdings) -> list[str]:
    memory = after["rss"] - before["rss"]
    more = [f"{memory / 1e6:.1f} MB more"] if memory > MEMORY else []
    return differences(before, after, ("processes",)) + more


def _held(pids: list[int]) -> Counter[str]:
    """Of each process itself, its threads, and its open files by kind."""
    found: Counter[str] = Counter()
    for pid in pids:
        found[f"{pid} process"] = 1
        found[f"{pid} threads"] = len(os.listdir(f"/proc/{pid}/task"))
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found[f"{pid} {os.readlink(link).partition('[')[0]}"] += 1
    return found


def resident(pids: list[int]) -> int:
    """Bytes of memory that the processes hold together."""
    pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def surrounded(server: Server) -> Iterator[Place]:
    """A *server* with a neighbour and a crowd, which leave at the end of the block."""
    # Of the processes of a server the one that serves is the largest.
    worker = max(group(server.pid), key=lambda pid: resident([pid]))
    with helper("neighbour", server.port, worker) as neighbour, helper("crowd", server.port) as crowd:
        place = Place(server, neighbour, crowd)
        trio.run(place.slice, POLITE, 1)  # what is made once, for the first of all, is there now
        yield place
