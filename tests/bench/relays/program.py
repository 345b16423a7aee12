"""The frame of a yardstick: a socket on a free port, the line that names it, SIGTERM as its end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Awaitable, Callable
from functools import partial

import trio


def run(serve: Callable[[socket.socket], Awaitable[None]]) -> None:
    """Serve until SIGTERM comes."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        trio.run(partial(_run, serve, listener))


async def _run(serve: Callable[[socket.socket], Awaitable[None]], listener: socket.socket) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener)
            print(f"  open  http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


async def serve_streams(handler: Callable[[trio.SocketStream], Awaitable[None]], listener: socket.socket) -> None:
    """One task of *handler* for each connection."""
    listener.setblocking(False)
    await trio.serve_listeners(handler, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])
