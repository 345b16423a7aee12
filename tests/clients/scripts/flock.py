"""Several clients in one process, each with the service ``work``: ``flock.py URL COUNT``.

Says the id of each, and when a call is done a second time.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from peer import connected, run


async def main(url: str, count: str) -> None:
    done: set[str] = set()

    def do(key: str) -> str:
        if key in done:
            print("twice", key, flush=True)
        done.add(key)
        return key

    async with AsyncExitStack() as stack:
        for _ in range(int(count)):
            server = await stack.enter_async_context(connected(url))
            service = {"id": "work", "config": {"visibility": "public"}, "do": do}
            print("member", (await server.register_service(service))["id"], flush=True)
        print("ready", flush=True)
        await asyncio.Event().wait()


run(main)
