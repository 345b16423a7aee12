"""A client that echoes, until it is killed."""

from __future__ import annotations

import asyncio

from peer import connected, run
from tools import echo


async def main(url: str) -> None:
    async with connected(url) as server:
        info = await server.register_service({"id": "echo", "config": {"visibility": "public"}, "echo": echo})
        print("ready", info["id"], flush=True)
        await asyncio.Event().wait()


run(main)
