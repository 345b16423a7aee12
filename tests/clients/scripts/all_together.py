"""One of several clients in one workspace: ``all_together.py URL OWN_NAME ALL_NAMES [setting=...]``.

Offers a service, waits until all the others are there, and calls each of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from peer import connected, run, service_ids, until


async def main(url: str, own: str, names: str, *arguments: str) -> None:
    settings = dict(argument.split("=", 1) for argument in arguments)
    async with connected(url, client_id=own, **settings) as server:

        async def ask(question: Callable[[str], Any]) -> Any:
            return await question(own)

        service = {"id": f"of-{own}", "greet": lambda who: f"{own} greets {who}", "ask": ask}
        await server.register_service(service)
        print("ready", server.config.workspace, await server.generate_token(), flush=True)

        async def all_are_there() -> bool:
            ids = await service_ids(server)
            return all(any(item.endswith(f":of-{name}") for item in ids) for name in names.split(","))

        await until(all_are_there, 30)
        for name in names.split(","):
            other = await server.get_service(f"of-{name}")
            assert await other.greet(own) == f"{name} greets {own}"
            assert await other.ask(lambda who: f"{who} asks {own}") == f"{name} asks {own}"
            print(f"called {name}", flush=True)
        print("done", flush=True)
        await asyncio.Event().wait()


run(main)
