"""Clients that live through the death of the worker: each call ends, none is done twice, and everybody comes back."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import trio

from tests.process.servers import Live, all_gone, until
from tests.soak.http_client import get, http_client
from tests.soak.legacy_peer import CallFailed, Disconnected, LegacyPeer, connect

_CALLERS = 4
#: So many calls of each caller must succeed before the next kill.
_CALM = 25


def holdings(pid: int) -> dict[str, int]:
    """The descriptors and threads of a process, and its resident memory in pages."""
    counts = {name: len(os.listdir(f"/proc/{pid}/{name}")) for name in ("fd", "task")}
    return {**counts, "rss": int(Path(f"/proc/{pid}/statm").read_text().split()[1])}


class Story:
    """A provider, its callers and an HTTP client, while workers are killed."""

    def __init__(self, server: Live) -> None:
        self.server = server
        self.lost = 0
        #: How often each call was done, and how many calls of each caller were answered.
        self.done: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self._provider = ""

    async def run(self, kills: int) -> None:
        """Kill the worker *kills* times with everything going on, and end when all are back after the last one."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._provide)
            for number in range(_CALLERS):
                nursery.start_soon(self._call, f"caller-{number}")
            nursery.start_soon(self._ask)
            for _ in range(kills):
                await self._calm()
                killed = self.server.worker()
                os.kill(killed, signal.SIGKILL)
                await all_gone([killed])
            await self._calm()
            nursery.cancel_scope.cancel()
        assert max(self.done.values()) == 1

    async def _calm(self) -> None:
        """Wait until everybody has worked for a while."""
        wanted = {name: count + _CALM for name, count in self.answered.items()}
        await until(
            lambda: (
                len(self.answered) == _CALLERS + 1
                and all(count >= wanted.get(name, _CALM) for name, count in self.answered.items())
            ),
            60,
        )

    def _do(self, key: str) -> str:
        self.done[key] += 1
        return key

    async def _provide(self, task_status: trio.TaskStatus[None]) -> None:
        """Registered once: a new worker knows the services of the old one."""
        credentials: Any = {}
        services: Any = {}
        while True:
            async with connect(self.server.port, "provider", services=services, **credentials) as peer:
                if not self._provider:
                    credentials = {"reconnection_token": peer.reconnection_token}
                    await peer.register({"id": "job", "config": {"visibility": "public"}, "do": self._do})
                    self._provider = peer.address
                    task_status.started()
                assert peer.address == self._provider
                await peer.ended.wait()

    async def _call(self, name: str) -> None:
        credentials: Any = {}
        while True:
            async with connect(self.server.port, name, **credentials) as peer:
                credentials = {"reconnection_token": peer.reconnection_token}
                await self._calls(name, peer)

    async def _calls(self, name: str, peer: LegacyPeer) -> None:
        """Call until the connection ends."""
        number = 0
        while not peer.ended.is_set():
            number += 1
            key = f"{name} {peer.reconnection_token[-8:]} {number}"
            try:
                with trio.fail_after(10):
                    assert await peer.call(self._provider, "services.job.do", key) == key
                self.answered[name] += 1
            except Disconnected:
                self.lost += 1
            except CallFailed as failed:
                if "is not connected" not in str(failed):
                    raise
                await trio.sleep(0.05)  # the provider has not come back yet

    async def _ask(self) -> None:
        """The same over HTTP."""
        workspace, _, _ = self._provider.partition("/")
        number = 0
        while True:
            try:
                async with http_client(self.server.port) as client:
                    while True:
                        number += 1
                        path = f"/{workspace}/services/job/do?key=http{number}x"
                        with trio.fail_after(10):
                            status, body = await client.ask(get(path))
                        if status == 200:
                            self.answered["http"] += 1
                        else:
                            assert status == 502, body
                            await trio.sleep(0.05)  # the provider has not come back yet
            except (Disconnected, trio.BrokenResourceError):
                self.lost += 1
