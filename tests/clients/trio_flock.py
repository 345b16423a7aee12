"""The script ``flock.py`` for our own client: ``trio_flock.py URL COUNT``."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack

import trio

from hypha.client import connect_to_server


async def main(url: str, count: str) -> None:
    done: set[str] = set()

    async def do(key: str) -> str:
        if key in done:
            print("twice", key, flush=True)
        done.add(key)
        return key

    async with AsyncExitStack() as stack:
        for _ in range(int(count)):
            server = await stack.enter_async_context(connect_to_server({"server_url": url}))
            info = await server.register_service({"id": "work", "config": {"visibility": "public"}, "do": do})
            print("member", info.id, flush=True)
        print("ready", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
