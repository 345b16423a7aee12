"""A program that offers a service which tells its callers who they are: ``who.py URL TOKEN [serve]``.

It says where it is and whom its own service sees, as JSON; with ``serve`` it stays. Another service is public and
decides by itself who is let in.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from peer import connected, run


def who(context: Any = None) -> dict[str, Any]:
    """The caller as the server tells it."""
    return dict(context["user"])


async def main(url: str, token: str, *rest: str) -> None:
    async with connected(url, token=token) as server:
        config = {"visibility": "protected", "require_context": True}
        await server.register_service({"id": "who", "name": "Who", "config": config, "who": who})

        def open_door(context: Any = None) -> str:
            """Let in whose workspace this is."""
            if context["user"]["id"] != server.config.workspace:
                raise PermissionError("this door opens for friends")
            return "open"

        config = {"visibility": "public", "require_context": True}
        await server.register_service({"id": "door", "name": "Door", "config": config, "open_door": open_door})
        service = await server.get_service("who")
        print("who", json.dumps([server.config.workspace, dict(await service.who())]), flush=True)
        if rest:
            await asyncio.Event().wait()


run(main)
