"""Uses the service of ``tools.py`` that another process offers: ``caller.py URL ID PART [setting=...]``."""

from __future__ import annotations

from peer import connected, run
from tools import use_functions, use_large_values, use_values

PARTS = {"functions": use_functions, "values": use_values, "large": use_large_values}


async def main(url: str, service_id: str, part: str, *arguments: str) -> None:
    settings = dict(argument.split("=", 1) for argument in arguments)
    async with connected(url, **settings) as server:
        await PARTS[part](await server.get_service(service_id))


run(main)
