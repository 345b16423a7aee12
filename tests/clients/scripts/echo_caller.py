"""How many calls a second two clients make, 64 at once, and how long 20 MiB take there and back."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
from peer import connected, run

AT_ONCE, EACH = 64, 25
ARRAY_BYTES, ARRAYS = 20 * 1024 * 1024, 3


async def main(url: str, service_id: str) -> None:
    async with connected(url) as server:
        service = await server.get_service(service_id)
        await _calls(service, 5)
        seconds = await _calls(service, EACH)
        print(f"calls {AT_ONCE * EACH / seconds:.1f}")
        array = np.arange(ARRAY_BYTES, dtype=np.uint8)
        times = []
        for _ in range(ARRAYS):
            began = time.perf_counter()
            back = await service.echo(array)
            times.append(time.perf_counter() - began)
            assert np.array_equal(back, array)
        print(f"array {min(times):.4f}")


async def _calls(service: Any, count: int) -> float:
    async def some() -> None:
        for _ in range(count):
            await service.echo("x" * 100)

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return time.perf_counter() - began


run(main)
