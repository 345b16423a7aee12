"""Somebody who minds their own business: calls one service again and again until SIGTERM, and tells how it went."""

from __future__ import annotations

import asyncio
import signal
import time

from peer import connected, joined, run


async def main(url: str) -> None:
    enough = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, enough.set)
    async with connected(url) as provider, connected(url, **await joined(provider, url)) as caller:
        await provider.register_service({"id": "echo", "echo": lambda value: value})
        service = await caller.get_service("echo")
        print("ready", flush=True)
        count, slowest = 0, 0.0
        while not enough.is_set():
            started = time.perf_counter()
            assert await service.echo(count) == count
            slowest = max(slowest, time.perf_counter() - started)
            count += 1
            await asyncio.sleep(0.002)
    print(f"echoed {count} slowest {slowest * 1000:.0f} ms", flush=True)


run(main)
