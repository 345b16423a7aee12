"""The test's side of :mod:`tests.soak.watched`: the server under test, what it holds, and what to make of it."""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from tests.house.processes import Server, serving

#: Small enough that everything the server keeps for a while is gone within seconds.
LIMITS = {
    "session_grace": 2,
    "reconnection_token_seconds": 2,
    "listed_tokens": 1,
    "silence_seconds": 3,
    "busy_silence_seconds": 3,
    "ping_seconds": 1,
    "drain_seconds": 1,
}
#: Seconds after which nothing that was kept for a while may be left.
SETTLED = 20.0
#: What must return to its start: threads and descriptors, trio's tasks, and what our own objects keep.
KINDS = ("process", "tasks", "tables")

#: trio forgets deadlines that were not reached only when there are more than so many of them, and sqlite3 the cursors
#: that are gone once it has made two hundred more.
LAZY = {"trio.CancelScope": 1000, "builtins.tuple": 1000, "weakref.ReferenceType": 200}

_TURNS = 40
#: The command of a server that can be asked what it holds.
WATCHED = (sys.executable, str(Path(__file__).with_name("watched.py")))

Holdings = dict[str, Any]


@dataclass(frozen=True)
class Watched:
    """The server under test."""

    server: Server
    port: int
    _output: trio.lowlevel.FdStream

    def processor(self) -> float:
        """Seconds of the processor that the server has used."""
        return int(Path(f"/proc/{self.server.pid}/schedstat").read_text().split()[0]) / 1e9

    async def holdings(self) -> Holdings:
        """What the server holds now (:func:`tests.soak.watched.holdings`)."""
        self.server.process.send_signal(signal.SIGUSR1)
        line = b""
        while not line.endswith(b"\n"):
            received = await self._output.receive_some(1_000_000)
            assert received, f"the server has ended\n{self.server.log.read_text()[-5000:]}"
            line = (line + received).lstrip()  # of the rest of the banner
        found: Holdings = json.loads(line)
        return found

    async def settled(self, before: Holdings, kinds: Sequence[str] = KINDS) -> Holdings:
        """Wait until the server holds of *kinds* what it held *before*, and return all that it holds."""
        found: Holdings = {}
        with trio.move_on_after(SETTLED):
            while True:
                found = await self.holdings()
                if not differences(before, found, kinds):
                    return found
                await trio.sleep(0.25)
        raise AssertionError("\n  ".join(["after the load the server still holds", *differences(before, found, kinds)]))


@asynccontextmanager
async def watched_server(directory: Path, **others: float) -> AsyncIterator[Watched]:
    """A server that can be asked what it holds. It must end well and may not write a traceback.

    *others*: limits beside :data:`LIMITS`, or in their place.
    """
    limits = [f"--limit={name}={value}" for name, value in {**LIMITS, **others}.items()]
    with serving(directory, *limits, "--log-level", "warning", command=WATCHED) as server:
        async with watch(server) as watched:
            yield watched


@asynccontextmanager
async def watch(server: Server) -> AsyncIterator[Watched]:
    """Ask *server*, whose command is :data:`WATCHED`."""
    assert server.process.stdout is not None
    async with trio.lowlevel.FdStream(os.dup(server.process.stdout.fileno())) as output:
        yield Watched(server, server.port, output)


def differences(before: Holdings, after: Holdings, kinds: Sequence[str] = KINDS) -> list[str]:
    """Where *kinds* are not what they were, explained."""
    return [
        f"{kind}: {name} {after[kind].get(name, 0)} instead of {before[kind].get(name, 0)}"
        for kind in kinds
        for name in sorted({*before[kind], *after[kind]})
        if after[kind].get(name, 0) != before[kind].get(name, 0)
    ]


def grown(before: Holdings, after: Holdings, limit: float) -> list[str]:
    """The types of which there are more than *limit* objects more, of all that the garbage collector knows."""
    more = {name: count - before["objects"].get(name, 0) for name, count in after["objects"].items()}
    return [f"{name}: {count} more" for name, count in more.items() if count > limit + LAZY.get(name, 0)]


def tenths(seconds: Sequence[float]) -> str:
    """The median of each tenth of *seconds*, for people."""
    size = len(seconds) // 10
    medians = (statistics.median(seconds[start : start + size]) for start in range(0, 10 * size, size))
    return " ".join(f"{median * 1e3:.2f}" for median in medians)


async def ageing(old: Callable[[], Awaitable[float]], new: Callable[[], Awaitable[float]]) -> float:
    """How many times slower a server that has worked is than one that has just started.

    *old* and *new* measure a moment each and are asked in turns, so that what else this machine does meets both of
    them: the first and the last tenth of a long run would compare the machine of now with that of minutes ago.
    """
    ratios = []
    for number in range(_TURNS):
        first, second = (old, new) if number % 2 else (new, old)
        times = {first: await first(), second: await second()}
        ratios.append(times[old] / times[new])
    return statistics.median(ratios)
