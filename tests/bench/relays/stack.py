"""The stack of the server as it comes: Hypercorn's trio worker, a Quart-trio route, and a relay as a bare ASGI app."""

from __future__ import annotations

import re
import socket
from typing import Any, cast

import quart_trio
from hypercorn.config import Config
from hypercorn.trio import serve
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable
from quart import request

from tests.bench.relays.program import run
from tests.bench.relays.routing import route

app = quart_trio.QuartTrio(__name__)


@app.get("/hello")
async def hello() -> Any:
    """A trivial JSON route."""
    return f'"Hello {request.args["name"]}"', 200, {"Content-Type": "application/json"}


class Peer:
    """A client."""

    def __init__(self, name: str, send: ASGISendCallable) -> None:
        self.name = name
        self.send = send


PEERS: dict[str, Peer] = {}


async def stack(scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Websockets are relayed, the rest is Quart's."""
    if scope["type"] != "websocket":
        await app(scope, receive, send)
        return
    client = re.search(rb"client_id=(\w+)", scope["query_string"])
    assert client
    peer = PEERS[client[1].decode()] = Peer(client[1].decode(), send)
    await receive()
    await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
    try:
        while (event := await receive())["type"] == "websocket.receive":
            target, header, body = route(PEERS, peer, event["bytes"] or b"")
            await target.send({"type": "websocket.send", "bytes": b"".join((header, body)), "text": None})
    finally:
        del PEERS[peer.name]


async def serve_stack(listener: socket.socket) -> None:
    """Serve with Hypercorn until cancelled."""
    settings = Config()
    settings.bind = [f"fd://{listener.detach()}"]
    settings.errorlog = None
    await serve(cast(ASGIFramework, stack), settings, mode="asgi")


if __name__ == "__main__":
    run(serve_stack)
