"""An echo server of our own parts: the guard's take-over, the transport and its codec, the goodbye of ``/ws``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState

from hypha.config import Config, Limits
from hypha.web import guard
from hypha.web.codec import Closed, Codec, Reply, message_head
from hypha.web.ws import GOODBYE_SECONDS, WebsocketTransport, say_goodbye
from tests.web.stack import settings_for


async def serve(stream: trio.abc.Stream) -> None:
    """Serve one connection with Hypercorn and the guard, and close it."""
    guard.install()
    settings = settings_for(Config(data_dir=Path("unused")))
    app = ASGIWrapper(cast(ASGIFramework, _echo))
    try:
        await guard.GuardedServer(app, settings, WorkerContext(None), ConnectionState({}), stream).run()
    finally:
        await trio.aclose_forcefully(stream)


async def _echo(scope: Any, receive: guard.Receive, send: guard.Send) -> None:
    server: guard.GuardedServer = scope["extensions"]["hypha.guard"]
    await server.take_over(receive, send, _serve_echo)


async def _serve_echo(stream: trio.abc.Stream, early: bytes) -> None:
    limits = Limits()
    async with trio.open_nursery() as nursery:
        transport = WebsocketTransport(stream, Codec(limits.frame_bytes), nursery, limits)
        ending = await _converse(transport, early)
        if ending is not None and not ending.by_peer:
            with trio.move_on_after(GOODBYE_SECONDS):
                await say_goodbye(stream, transport.codec, ending.code, ending.reason)
        await trio.aclose_forcefully(stream)


async def _converse(transport: WebsocketTransport, early: bytes) -> Closed | None:
    """Send back what comes, up to the end; None when the client has left without one."""
    data: bytes | None = early
    while data is not None:
        for item in transport.codec.feed(data):
            if isinstance(item, Closed):
                await transport.send_all(item.reply)
                return item
            if isinstance(item, Reply):
                await transport.send_all(item.data)
            elif isinstance(item, str):
                await transport.send_all(transport.codec.text(item))
            elif item is not None:
                await transport.send_all(message_head(len(item)))
                await transport.send_all(item)
        data = await transport.receive()
    return None
