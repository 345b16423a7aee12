"""Everybody is lost at once and comes back at once, while others go on calling (C-RECON-1 to C-RECON-6)."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.house.processes import Running, start
from tests.house.steps import ROOT
from tests.process.servers import SERVER, live, until
from tests.soak.legacy_peer import LegacyPeer, connect
from tests.soak.watching import watched_server
from tests.soak.workers import holdings

MANY, SOME = 2000, 200
WORKSPACES = 20
#: Seconds in which all are back and answer, and that a call of the others takes, but for one in a hundred.
RETURN, CALL = 10.0, 0.1
#: So many clients stay, and each begins a call so often (seconds).
STAYERS, INTERVAL = 10, 0.025


class Stayers:
    """Clients of one workspace that call each other, each the next one."""

    def __init__(self, port: int) -> None:
        self.arrivals = 0
        self._port = port
        self._peers: dict[int, LegacyPeer] = {}
        self._seconds: list[float] = []
        self._calling = trio.CancelScope()

    async def come(self, nursery: trio.Nursery) -> None:
        """Connect; the clients live in *nursery*, and come back as often as they are lost."""
        await nursery.start(self._live, 0, {})
        first = self._peers[0]
        token = await first.invoke(first.manager["generateToken"])
        for number in range(1, STAYERS):
            await nursery.start(self._live, number, {"workspace": first.workspace, "token": token})

    async def _live(self, number: int, credentials: dict[str, str], task_status: trio.TaskStatus[None]) -> None:
        services = {"work": {"echo": lambda value: value}}
        while True:
            async with connect(self._port, f"stayer{number}", services=services, **credentials) as peer:
                credentials = {"reconnection_token": peer.reconnection_token}
                self.arrivals += 1
                if number not in self._peers:
                    task_status.started()
                self._peers[number] = peer
                await peer.ended.wait()

    async def call(self) -> None:
        """Call until :meth:`stop`. A call begins when it is due, whether or not those before have ended."""
        self._seconds.clear()
        due, number = trio.current_time(), 0
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as self._calling:
                while True:
                    nursery.start_soon(self._call, number, due)
                    due, number = due + INTERVAL / STAYERS, (number + 1) % STAYERS
                    await trio.sleep_until(due)

    async def _call(self, number: int, due: float) -> None:
        callee = self._peers[(number + 1) % STAYERS].address
        assert await self._peers[number].call(callee, "services.work.echo", due) == due
        self._seconds.append(trio.current_time() - due)

    def stop(self) -> None:
        """No more calls; those that run are waited for."""
        self._calling.cancel()

    def slowest(self) -> float:
        """Seconds that one call in a hundred took, or longer."""
        return sorted(self._seconds)[len(self._seconds) * 99 // 100]


class Storm:
    """A crowd that is here, and those that stay."""

    def __init__(self, crowd: Running, stayers: Stayers) -> None:
        self.stayers = stayers
        self._crowd = crowd
        self._visits = 0

    async def arrive(self) -> None:
        """Wait until the whole crowd is here, and say how long it took."""
        self._visits += 1
        line = await self._crowd.wait_for(rf'^{{"visit": {self._visits},.*')
        self.facts: dict[str, Any] = json.loads(line[0])

    async def drop(self) -> None:
        """Reset all at once: they are back in time with their services, and those that stay have hardly noticed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.stayers.call)
            self._crowd.send_signal(signal.SIGUSR1)
            await self.arrive()
            self.stayers.stop()
        seconds, slowest = self.facts["seconds"], self.stayers.slowest()
        print(f"all back and answering after {seconds:.1f} s, p99 of the calls meanwhile {slowest * 1e3:.0f} ms")
        assert seconds < RETURN
        assert slowest < CALL
        assert self.stayers.arrivals == STAYERS

    async def leave(self) -> None:
        """The crowd ends cleanly."""
        self._crowd.send_signal(signal.SIGTERM)
        assert (await self._crowd.wait()).returncode == 0, self._crowd.report()


@asynccontextmanager
async def storm(port: int, count: int, stayers: Stayers) -> AsyncIterator[Storm]:
    """A crowd of *count* clients has come."""
    command = [sys.executable, "-m", "tests.soak.crowd", *map(str, (port, count, WORKSPACES))]
    async with trio.open_nursery() as nursery, start(nursery, command, cwd=ROOT) as crowd:
        found = Storm(crowd, stayers)
        await found.arrive()
        yield found


@asynccontextmanager
async def staying(port: int) -> AsyncIterator[Stayers]:
    """Those that stay have come."""
    async with trio.open_nursery() as nursery:
        stayers = Stayers(port)
        await stayers.come(nursery)
        yield stayers
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_crowd_that_is_lost_and_returns_leaves_nothing_behind(tmp_path: Path) -> None:
    async with watched_server(tmp_path, session_grace=60) as server, staying(server.port) as stayers:
        before = await server.holdings()
        async with storm(server.port, SOME, stayers) as crowd:
            for _ in range(3):
                await crowd.drop()
            await crowd.leave()
        await server.settled(before)


@pytest.mark.slow
async def test_a_crowd_returns_from_a_reset_and_to_a_new_worker(tmp_path: Path) -> None:
    await dropped_and_killed(tmp_path, SOME)


@pytest.mark.soak
async def test_two_thousand_return_from_a_reset_and_to_a_new_worker(tmp_path: Path) -> None:
    await dropped_and_killed(tmp_path, MANY)


async def dropped_and_killed(directory: Path, count: int) -> None:
    """Reset a crowd, then kill the worker: all of them are back both times, and none was refused."""
    async with live((*SERVER, "--log-level", "warning"), directory) as server:
        async with staying(server.port) as stayers:
            worker = server.worker()
            before = holdings(worker)
            async with storm(server.port, count, stayers) as crowd:
                await crowd.drop()
                assert server.worker() == worker
                os.kill(worker, signal.SIGKILL)
                await crowd.arrive()
                await until(lambda: stayers.arrivals == 2 * STAYERS)
                print(f"all back at a new worker after {crowd.facts['seconds']:.1f} s")
                await crowd.leave()
            await until(lambda: holdings(server.worker())["fd"] <= before["fd"])
            assert server.worker() != worker
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0
