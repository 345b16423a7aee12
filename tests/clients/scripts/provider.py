"""A client that offers the service of ``tools.py`` until it is killed, or asked to leave.

The arguments behind the address are settings of the connection (``workspace=...``), or of the service (``id=...``).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from peer import connected, run
from tools import tools


def compute(seconds: float) -> str:
    """As numerical code does: the event loop of this process stands still meanwhile."""
    print("computing", flush=True)
    time.sleep(seconds)
    return "computed"


async def main(url: str, *arguments: str) -> None:
    settings = dict(argument.split("=", 1) for argument in arguments)
    config = {"visibility": settings.pop("visibility", "public")}
    service_id = settings.pop("id", "tools")
    leave = asyncio.Event()
    async with connected(url, **settings) as server:

        async def ask_server(words: Any) -> Any:
            """What the server answers on this client's own connection."""
            return await server.echo(words)

        async def offer(name: str) -> None:
            """Register one more service."""
            await server.rpc.register_service({"id": name, "type": "more"})

        own = {"offer": offer, "compute": compute, "wait": asyncio.sleep, "ask_server": ask_server, "leave": leave.set}
        registered = await server.register_service({**tools(service_id, **config), **own})
        print("ready", registered["id"], await server.generate_token(), flush=True)
        await leave.wait()


run(main)
