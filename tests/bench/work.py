"""What is measured: each work of the table, how one round of it is done, and what the rounds amount to."""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tests.bench import http
from tests.bench.load import EchoLoad
from tests.bench.servers import BARE, HYPHA, PUBLISHED, STACK, TAKEN, TCP, Live, Server
from tests.bench.visits import VisitLoad
from tests.bench.wire import WebsocketWire

KIB, MIB = 2**10, 2**20
STACK_ROUTE = "/hello"

#: What is measured of calls, and of connections that do nothing.
CALLS, LATENCY_50, LATENCY_99, PROCESSOR = "calls/s", "p50 ms", "p99 ms", "CPU us/call"
MEMORY = "KiB/connection"

#: So many calls are measured at least, but no longer than so many seconds.
_FEWEST, _LONGEST = 10, 5.0

#: What one round has found, by the names above.
Found = Mapping[str, float]


class _Load(Protocol):
    def run(self, seconds: float) -> array[float]: ...

    def close(self) -> None: ...


def measured(load: _Load, live: Live, seconds: float) -> Found:
    """Run *load* for *seconds*, after a tenth of that to be warm; longer when hardly a call has ended by then."""
    load.run(seconds / 10)
    before, began = live.processor(), time.perf_counter()
    times = load.run(seconds)
    while len(times) < _FEWEST and time.perf_counter() - began < _LONGEST:
        times += load.run(seconds)
    used, elapsed = live.processor() - before, time.perf_counter() - began
    load.close()
    if not times:
        raise AssertionError(f"no call ended within {elapsed:.1f} s")
    ordered = sorted(times)
    return {
        CALLS: len(times) / elapsed,
        LATENCY_50: ordered[len(times) // 2] * 1e3,
        LATENCY_99: ordered[len(times) * 99 // 100] * 1e3,
        PROCESSOR: used / len(times) * 1e6,
    }


@dataclass(frozen=True, eq=False)
class Work:
    """One row group of the table. *against*: its yardsticks, which are measured when they are asked for.

    *once*: measured in the first round alone, of servers that have just been started.
    """

    name: str
    title: str
    against: Sequence[Server]
    measure: Callable[[Server, Live, float], Found]
    once: bool = False

    @property
    def servers(self) -> tuple[Server, ...]:
        """The server under test, and its yardsticks."""
        return (HYPHA, *self.against)


def echo(payload: int, callers: int, depth: int) -> Callable[[Server, Live, float], Found]:
    """Calls between clients, whose *payload* of bytes comes back."""

    def measure(server: Server, live: Live, seconds: float) -> Found:
        return measured(EchoLoad(lambda names: server.dial(live, names), payload, callers, depth), live, seconds)

    return measure


def ask(connections: int) -> Callable[[Server, Live, float], Found]:
    """HTTP requests: of a function that a client offers, or of the route of the stack."""

    def measure(server: Server, live: Live, seconds: float) -> Found:
        provider, path = None, STACK_ROUTE
        if server is HYPHA:
            (wire,) = server.dial(live, ["provider"])
            provider = http.Provider(wire)
            path = provider.path
        return measured(http.HttpLoad(live.port, path, connections, provider), live, seconds)

    return measure


def visit(count: int, *, register: bool) -> Callable[[Server, Live, float], Found]:
    """Clients that connect, maybe register a service, and leave, *count* of them at a time: each is one call."""

    def measure(server: Server, live: Live, seconds: float) -> Found:
        (host,) = server.dial(live, ["host"])
        credentials = server.credentials(host)
        assert isinstance(host, WebsocketWire), "clients come and go by websocket only"
        load = VisitLoad(lambda name: host.visit(name, register, **credentials), count, host)
        return measured(load, live, seconds)

    return measure


def idle(count: int) -> Callable[[Server, Live, float], Found]:
    """Connections that have said one thing and then nothing: the memory of each, a tenth of them being there before."""

    def measure(server: Server, live: Live, seconds: float) -> Found:
        first = server.dial(live, [f"first{number:03}" for number in range(count // 10)])
        before = live.resident()
        wires = server.dial(live, [f"idle{number:04}" for number in range(count)])
        used = live.resident() - before
        for wire in (*first, *wires):
            wire.socket.close()
        return {MEMORY: used / count / KIB}

    return measure


_ALL = (BARE, STACK, TCP, PUBLISHED)

WORKS = (
    Work("one", "1 KiB, 1 caller, 1 call in flight", _ALL, echo(KIB, 1, 1)),
    Work("small", "1 KiB, 1 caller, 64 in flight", _ALL, echo(KIB, 1, 64)),
    Work("small-16", "1 KiB, 16 callers, 4 in flight each", _ALL, echo(KIB, 16, 4)),
    Work("quarter", "256 KiB, 1 caller, 4 in flight", _ALL, echo(256 * KIB, 1, 4)),
    Work("large", "1 MiB, 1 caller, 2 in flight", _ALL, echo(MIB, 1, 2)),
    Work("large-16", "1 MiB, 16 callers, 2 in flight each", (BARE, STACK, TCP), echo(MIB, 16, 2)),
    Work("http", "HTTP, 32 connections, 1 request in flight each", (STACK,), ask(32)),
    Work("connect", "connect and leave, 8 at a time", (BARE, TAKEN, STACK, PUBLISHED), visit(8, register=False)),
    Work("register", "connect, register a service and leave, 8 at a time", (PUBLISHED,), visit(8, register=True)),
    Work("idle", "500 idle connections", (BARE, STACK), idle(500), once=True),
)


@dataclass(frozen=True)
class Row:
    """One row of the table: the medians of the rounds, and what they are beside the server under test.

    *ratios*: the calls per second and the processor time, or the memory, of the server under test in units of this
    row's. Medians of the ratios of each round, whose two measurements saw the same moments of the machine.
    """

    work: Work
    server: Server
    medians: Found
    ratios: Found


def rows(work: Work, rounds: Mapping[Server, Sequence[Found]]) -> list[Row]:
    """The rows of *work* from all that was found."""
    found = []
    for server, own in rounds.items():
        medians = {name: statistics.median(one[name] for one in own) for name in own[0]}
        ratios = {}
        if HYPHA in rounds and server is not HYPHA:
            pairs = list(zip(rounds[HYPHA], own, strict=True))
            ratios = {name: statistics.median(ours[name] / theirs[name] for ours, theirs in pairs) for name in medians}
        found.append(Row(work, server, medians, ratios))
    return found


def compared(servers: Sequence[Server]) -> list[Work]:
    """The works that *servers* can be compared in."""
    return [work for work in WORKS if len(servers) == 1 or len(set(work.servers) & set(servers)) > 1]
