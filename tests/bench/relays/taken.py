"""The bare relay behind Hypercorn: each connection is taken over at its upgrade, as the server does it.

What a connect costs here is what it costs with this HTTP server in front, when nobody is asked who comes.
"""

from __future__ import annotations

import re
import socket
from functools import partial
from typing import Any, cast

import hypercorn.trio
import trio
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable

from hypha.memory import tune_memory
from hypha.web import guard
from tests.bench.relays.bare import Peer, serve_peer
from tests.bench.relays.program import run


async def relay(peers: dict[str, Peer], scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Websockets are taken over; there is nothing else, and no lifespan."""
    assert scope["type"] == "websocket"
    client = re.search(rb"client_id=(\w+)", scope["query_string"])
    assert client

    async def serve(stream: trio.abc.Stream, early: bytes) -> None:
        assert isinstance(stream, trio.SocketStream)
        await serve_peer(peers, client[1].decode(), stream, early)

    await scope["extensions"]["hypha.guard"].take_over(receive, send, serve)


async def serve_relay(listener: socket.socket) -> None:
    """Serve with Hypercorn until cancelled."""
    settings = Config()
    settings.bind = [f"fd://{listener.detach()}"]
    settings.errorlog = None
    await hypercorn.trio.serve(cast(ASGIFramework, partial(relay, {})), settings, mode="asgi")


if __name__ == "__main__":
    tune_memory()
    guard.install()
    run(serve_relay)
