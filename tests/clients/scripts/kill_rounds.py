"""Figures: how long after a provider's SIGKILL its caller knows, measured inside the caller's process.

``kill_rounds.py URL PROVIDER_PYTHON ROUNDS`` prints, in milliseconds, the slowest and the median of all rounds for: the
call in flight failed; the service left the list; the next call and the next look-up failed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from peer import connected, joined, refused, run, service_ids, until
from tools import make_array

PROVIDER = Path(__file__).with_name("provider.py")
LARGE = 60_000_000  # bytes, which take well over half a second


async def main(url: str, python: str, rounds: str) -> None:
    async with connected(url) as caller:
        arguments = [f"{name}={value}" for name, value in (await joined(caller, url)).items()]
        seconds: dict[str, list[float]] = {}
        for kind in [at_work] * int(rounds) + [sending, receiving]:
            for name, value in (await kind(caller, await provider(python, url, *arguments))).items():
                seconds.setdefault(name, []).append(value)
    for name, values in seconds.items():
        milliseconds = [1000 * value for value in values]
        print(f"{name}: slowest {max(milliseconds):.1f} median {statistics.median(milliseconds):.1f} ms", flush=True)


class Victim:
    """A provider in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, service_id: str) -> None:
        self.process = process
        self.service_id = service_id
        self.client = service_id.partition(":")[0]
        self.killed = 0.0

    async def kill(self) -> None:
        self.killed = time.perf_counter()
        os.kill(self.process.pid, signal.SIGKILL)

    async def refuses(self, call: Awaitable[Any], since: float) -> float:
        """Assert that *call* fails because the provider is gone; the seconds *since*."""
        await refused(call, f"{self.client} is not connected")
        return time.perf_counter() - since


async def provider(python: str, url: str, *arguments: str) -> Victim:
    process = await asyncio.create_subprocess_exec(
        python, str(PROVIDER), url, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    return Victim(process, (await process.stdout.readline()).split()[1].decode())


async def at_work(caller: Any, victim: Victim) -> dict[str, float]:
    """Kill a provider that works on calls; the seconds until each thing was known."""
    service = await caller.get_service(victim.service_id)
    in_flight = [asyncio.ensure_future(service.wait(600)) for _ in range(3)]
    assert await service.add(1) == 2  # and so the ones before it have arrived
    await victim.kill()
    listed = asyncio.ensure_future(until(lambda: _is_gone(caller, victim.service_id)))
    failed = [await victim.refuses(call, victim.killed) for call in in_flight]
    gone = await listed
    call = await victim.refuses(service.add(1), time.perf_counter())
    started = time.perf_counter()
    await refused(caller.get_service(victim.service_id), f"Client not found: {victim.client.partition('/')[2]}")
    look_up = time.perf_counter() - started
    await victim.process.wait()
    return {"in flight": max(failed), "listed": gone, "next call": call, "next look-up": look_up}


async def sending(caller: Any, victim: Victim) -> dict[str, float]:
    """Kill a provider that is receiving a large argument."""
    service = await caller.get_service(victim.service_id)
    return {"in flight": await _kill_during(service.checksum(make_array(LARGE)), victim)}


async def receiving(caller: Any, victim: Victim) -> dict[str, float]:
    """Kill a provider that is sending a large result."""
    service = await caller.get_service(victim.service_id)
    return {"in flight": await _kill_during(service.make_array(LARGE), victim)}


async def _kill_during(call: Awaitable[Any], victim: Victim) -> float:
    in_flight = asyncio.ensure_future(call)
    await asyncio.sleep(0.2)
    await victim.kill()
    seconds = await victim.refuses(in_flight, victim.killed)
    await victim.process.wait()
    return seconds


async def _is_gone(caller: Any, service_id: str) -> bool:
    return service_id not in await service_ids(caller)


run(main)
