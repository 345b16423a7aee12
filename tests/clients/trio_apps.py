"""What the figures of web applications are measured with: ``trio_apps.py URL`` offers three services."""

from __future__ import annotations

import sys
from typing import Any

import trio

from hypha.client import connect_to_server


async def hello(event: Any = None) -> Any:
    return {"body": "Hello"}


async def called() -> str:
    return "You"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Counts what is uploaded."""
    count, more = 0, True
    while more:
        event = await receive()
        count, more = count + len(event["body"]), event["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(count).encode()})


async def main(url: str) -> None:
    async with connect_to_server({"server_url": url}) as server:
        public = {"visibility": "public"}
        await server.register_service({"id": "called", "config": public, "hello": called})
        await server.register_service({"id": "functions", "type": "functions", "config": public, "hello": hello})
        await server.register_service({"id": "app", "type": "asgi", "config": public, "serve": app})
        print("ready", server.config.workspace, flush=True)
        await server.serve()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
