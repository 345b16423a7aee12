"""The whole server for tests of its inside: what :func:`hypha.testing.open_server` opens, with a view into it.

In memory, where a mock clock may jump: :func:`memory_stack`. On the loopback, with sockets: :func:`loopback_stack`.
Both hand out plain trio streams, so that one client speaks to either (:mod:`tests.web.wires`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as Settings
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework
from trio.testing import lockstep_stream_one_way_pair, memory_stream_one_way_pair

from hypha import worker
from hypha.assembly import Assembly
from hypha.broker.broker import Broker
from hypha.config import Config
from hypha.testing import LiveServer, MemoryDoor, MemoryEnd, open_server
from hypha.web.guard import GuardedServer

#: Real seconds that one test of the stack may take.
DEADLINE = 20.0


class ServerEnd(MemoryEnd):
    """The server's end of a connection in memory. Counts the calls of ``send_all``."""

    def __init__(self, sends: trio.abc.SendStream, receives: trio.abc.ReceiveStream) -> None:
        super().__init__(sends, receives)
        self.writes = 0
        self.closed = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.writes += 1
        await super().send_all(data)

    async def aclose(self) -> None:
        self.closed.set()
        await super().aclose()


def connection(*, lockstep: bool = False) -> tuple[trio.StapledStream[Any, Any], ServerEnd]:
    """Both ends of a connection. With *lockstep* the server's writes wait until the client has read them."""
    sends, server_receives = memory_stream_one_way_pair()
    server_sends, receives = lockstep_stream_one_way_pair() if lockstep else memory_stream_one_way_pair()
    return trio.StapledStream(sends, receives), ServerEnd(server_sends, server_receives)


@dataclass
class MemoryStack:
    """A server without sockets. *clients* holds the tasks of clients; they end before the server does.

    *app* serves the connections to come in the place of the server's own application.
    """

    server: LiveServer
    clients: trio.Nursery
    ends: list[ServerEnd] = field(default_factory=list)
    app: ASGIFramework | None = None

    @property
    def assembly(self) -> Assembly:
        return self.server._assembly

    @property
    def broker(self) -> Broker:
        return the_broker(self.assembly)

    @property
    def door(self) -> MemoryDoor:
        assert isinstance(self.server._door, MemoryDoor)
        return self.server._door

    @property
    def servers(self) -> trio.Nursery:
        """Where the connections are served."""
        return self.door._nursery

    @property
    def settings(self) -> Settings:
        return cast(Settings, self._prepared[1])

    @property
    def context(self) -> WorkerContext:
        return cast(WorkerContext, self._prepared[2])

    @property
    def state(self) -> dict[str, Any]:
        """What the connections to come are told of the lifespan."""
        return cast(dict[str, Any], self._prepared[3])

    @property
    def _prepared(self) -> tuple[Any, ...]:
        """All but the last argument of the server of one connection: application, settings, context, state."""
        return cast("partial[Any]", self.door._handler).args

    def connect(self, *, lockstep: bool = False) -> trio.StapledStream[Any, Any]:
        """A new connection. With *lockstep* the server's writes wait until the client has read them."""
        client, end = connection(lockstep=lockstep)
        self.ends.append(end)
        self.servers.start_soon(self.serve, end)
        return client

    async def serve(self, end: trio.abc.Stream) -> None:
        """Serve one connection."""
        if self.app is None:
            await self.door.serve(end)
            return
        try:
            await GuardedServer(ASGIWrapper(self.app), self.settings, self.context, self.state, end).run()
        finally:
            await trio.aclose_forcefully(end)

    async def open(self) -> trio.abc.HalfCloseableStream:
        return self.connect()

    async def shut_down(self) -> None:
        """What Hypercorn does at its end, up to the wait for the connections."""
        self.server.shut_down()
        await self.context.terminated.wait()


def the_broker(assembly: Assembly) -> Broker:
    """The broker of a server that has started."""
    return assembly._open_rooms().broker


def settings_for(config: Config) -> Settings:
    """Hypercorn's settings as the worker makes them, without sockets."""
    return worker.settings_for(config, [])


@asynccontextmanager
async def memory_stack(config: Config) -> AsyncIterator[MemoryStack]:
    """Serve *config* in memory. Leaving it shuts the server down as Hypercorn does."""
    async with open_server(memory=True, **_arguments(config)) as server, trio.open_nursery() as clients:
        yield MemoryStack(server, clients)
        clients.cancel_scope.cancel()


@dataclass
class LoopbackStack:
    """A server behind a socket. *port* is where it listens."""

    server: LiveServer
    clients: trio.Nursery
    streams: list[trio.abc.HalfCloseableStream] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def broker(self) -> Broker:
        return the_broker(self.server._assembly)

    async def open(self) -> trio.abc.HalfCloseableStream:
        stream = await self.server.open_stream()
        self.streams.append(stream)
        return stream

    async def shut_down(self) -> None:
        self.server.shut_down()


@asynccontextmanager
async def loopback_stack(config: Config) -> AsyncIterator[LoopbackStack]:
    """Serve *config* on a free port of the loopback."""
    with trio.fail_after(DEADLINE):
        async with open_server(**_arguments(config)) as server:
            async with trio.open_nursery() as clients:
                stack = LoopbackStack(server, clients)
                yield stack
                clients.cancel_scope.cancel()
            for stream in stack.streams:
                await trio.aclose_forcefully(stream)


def _arguments(config: Config) -> dict[str, Any]:
    """*config* as :func:`open_server` takes it; it chooses a port itself."""
    return {item.name: getattr(config, item.name) for item in fields(config) if item.name != "port"}


Stack = MemoryStack | LoopbackStack


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
