"""The whole server for tests: Hypercorn with our guard around the real assembly.

In memory, where a mock clock may jump: :func:`memory_stack`. On the loopback, with sockets: :func:`loopback_stack`.
Both hand out plain trio streams, so that one client speaks to either (:mod:`tests.web.wires`).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import hypercorn.trio
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as Settings
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from trio.testing import lockstep_stream_one_way_pair, memory_stream_one_way_pair

from hypha.assembly import Assembly, build
from hypha.broker.broker import Broker
from hypha.config import Config
from hypha.web.guard import GuardedServer

#: Real seconds that one test of the stack may take.
DEADLINE = 20.0


class _Socket:
    """What Hypercorn asks of a socket."""

    family = socket.AF_INET

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 50000)

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 9527)


class ServerEnd(trio.abc.HalfCloseableStream):
    """The server's end of a connection in memory. Counts the calls of ``send_all``."""

    def __init__(self, sends: trio.abc.SendStream, receives: trio.abc.ReceiveStream) -> None:
        self.socket = _Socket()
        self.writes = 0
        self.closed = trio.Event()
        self._sends = sends
        self._receives = receives

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.writes += 1
        await self._sends.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._sends.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._sends.aclose()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._receives.receive_some(max_bytes)

    async def aclose(self) -> None:
        self.closed.set()
        try:
            await self._sends.aclose()
        finally:
            await self._receives.aclose()


def connection(*, lockstep: bool = False) -> tuple[trio.StapledStream[Any, Any], ServerEnd]:
    """Both ends of a connection. With *lockstep* the server's writes wait until the client has read them."""
    sends, server_receives = memory_stream_one_way_pair()
    server_sends, receives = lockstep_stream_one_way_pair() if lockstep else memory_stream_one_way_pair()
    return trio.StapledStream(sends, receives), ServerEnd(server_sends, server_receives)


@dataclass
class MemoryStack:
    """A server without sockets. *clients* holds the tasks of clients; they end before the server does."""

    assembly: Assembly
    clients: trio.Nursery
    context: WorkerContext
    settings: Settings
    servers: trio.Nursery
    state: dict[str, Any]
    ends: list[ServerEnd] = field(default_factory=list)
    app: ASGIFramework | None = None

    @property
    def broker(self) -> Broker:
        return the_broker(self.assembly)

    def connect(self, *, lockstep: bool = False) -> trio.StapledStream[Any, Any]:
        """A new connection. With *lockstep* the server's writes wait until the client has read them."""
        client, end = connection(lockstep=lockstep)
        self.ends.append(end)
        self.servers.start_soon(self.serve, end)
        return client

    async def serve(self, end: trio.abc.Stream) -> None:
        """Serve one connection, as ``trio.serve_listeners`` would have Hypercorn do it."""
        app = ASGIWrapper(self.app or cast(ASGIFramework, self.assembly))
        try:
            await GuardedServer(app, self.settings, self.context, ConnectionState(self.state), end).run()
        finally:
            await trio.aclose_forcefully(end)

    async def open(self) -> trio.abc.HalfCloseableStream:
        return self.connect()

    async def shut_down(self) -> None:
        """What Hypercorn does at its end, up to the wait for the connections."""
        await self.context.terminated.set()
        self.servers.cancel_scope.deadline = trio.current_time() + self.settings.graceful_timeout


def the_broker(assembly: Assembly) -> Broker:
    """The broker of a server that has started."""
    return assembly._open_rooms().broker


def settings_for(config: Config) -> Settings:
    """Hypercorn's settings as the worker makes them, as far as they matter in memory."""
    settings = Settings()
    settings.graceful_timeout = config.limits.drain_seconds
    settings.errorlog = logging.getLogger("hypercorn.error")
    settings.include_server_header = False
    settings.h11_max_incomplete_size = 32768
    return settings


@asynccontextmanager
async def memory_stack(config: Config) -> AsyncIterator[MemoryStack]:
    """Serve *config* in memory. Leaving it shuts the server down as Hypercorn does."""
    assembly, settings = build(config), settings_for(config)
    state: dict[str, Any] = {}
    lifespan = Lifespan(ASGIWrapper(cast(ASGIFramework, assembly)), settings, state)
    async with trio.open_nursery() as root:
        await root.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        async with trio.open_nursery() as servers:
            async with trio.open_nursery() as clients:
                stack = MemoryStack(assembly, clients, WorkerContext(None), settings, servers, state)
                yield stack
                clients.cancel_scope.cancel()
            await stack.shut_down()
        await lifespan.wait_for_shutdown()
        root.cancel_scope.cancel()


class Steps(trio.abc.Instrument):
    """Cancels *scope* after *count* steps of tasks."""

    def __init__(self, count: int, scope: trio.CancelScope) -> None:
        self.left = count
        self.done = False
        self._scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left < 0 and not self.done:
            self.done = True
            self._scope.cancel()


class PerTurn(trio.abc.Instrument):
    """The largest change of a number from one turn of the event loop to the next."""

    def __init__(self, number: Callable[[], int]) -> None:
        self.largest = 0
        self._number = number
        self._before = number()

    def before_io_wait(self, timeout: float) -> None:
        now = self._number()
        self.largest = max(self.largest, abs(now - self._before))
        self._before = now


@contextmanager
def per_turn(number: Callable[[], int]) -> Iterator[PerTurn]:
    """Watch a number."""
    watch = PerTurn(number)
    trio.lowlevel.add_instrument(watch)
    try:
        yield watch
    finally:
        trio.lowlevel.remove_instrument(watch)


@dataclass
class LoopbackStack:
    """A server behind a socket. *port* is where it listens."""

    assembly: Assembly
    clients: trio.Nursery
    port: int
    stop: trio.Event
    streams: list[trio.SocketStream] = field(default_factory=list)

    @property
    def broker(self) -> Broker:
        return the_broker(self.assembly)

    async def open(self) -> trio.SocketStream:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self.streams.append(stream)
        return stream

    async def shut_down(self) -> None:
        self.stop.set()


@asynccontextmanager
async def loopback_stack(config: Config) -> AsyncIterator[LoopbackStack]:
    """Serve *config* with ``hypercorn.trio.serve`` on a free port of the loopback."""
    assembly, settings, stop = build(config), settings_for(config), trio.Event()
    settings.bind = ["127.0.0.1:0"]
    settings.loglevel = "warning"
    serve = partial(hypercorn.trio.serve, cast(ASGIFramework, assembly), settings, shutdown_trigger=stop.wait)
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            urls: list[str] = await nursery.start(partial(serve, mode="asgi"))
            async with trio.open_nursery() as clients:
                stack = LoopbackStack(assembly, clients, int(urls[0].rpartition(":")[2]), stop)
                yield stack
                clients.cancel_scope.cancel()
            for stream in stack.streams:
                await trio.aclose_forcefully(stream)
            stop.set()


Stack = MemoryStack | LoopbackStack
