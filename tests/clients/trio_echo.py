"""The two scripts ``echo_provider.py`` and ``echo_caller.py`` for our own client: ``trio_echo.py ROLE URL [ID]``."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import trio

from hypha.client import connect_to_server

AT_ONCE, EACH = 64, 25
ARRAY_BYTES, ARRAYS = 20 * 1024 * 1024, 3


async def echo(value: Any) -> Any:
    return value


async def provide(url: str) -> None:
    async with connect_to_server({"server_url": url}) as server:
        info = await server.register_service({"id": "echo", "config": {"visibility": "public"}, "echo": echo})
        print("ready", info.id, flush=True)
        await server.serve()


async def call(url: str, service_id: str) -> None:
    async with connect_to_server({"server_url": url}) as server:
        service = await server.get_service(service_id)
        await _calls(service, 5)
        print(f"calls {AT_ONCE * EACH / await _calls(service, EACH):.1f}")
        array = np.arange(ARRAY_BYTES, dtype=np.uint8)
        times = []
        for _ in range(ARRAYS):
            began = time.perf_counter()
            back = await service.echo(array)
            times.append(time.perf_counter() - began)
            assert np.array_equal(back, array)
        print(f"array {min(times):.4f}")
    print("passed")


async def _calls(service: Any, count: int) -> float:
    async def some() -> None:
        for _ in range(count):
            await service.echo("x" * 100)

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(some)
    return time.perf_counter() - began


if __name__ == "__main__":
    role, url, *rest = sys.argv[1:]
    if role == "provider":
        trio.run(provide, url)
    else:
        trio.run(call, url, rest[0])
