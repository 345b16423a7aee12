"""A server for trio-based tests: open, in the caller's own task tree, for as long as an ``async with`` block.

::

    from hypha.testing import open_server


    async def test_hello():
        async with open_server() as server:
            async with server.connect({"client_id": "worker"}) as worker, server.connect() as user:
                ...

With pytest-trio there is also the fixture ``hypha_server`` of :mod:`hypha.pytest_plugin`. It is asked for by name,
``pytest_plugins = ["hypha.pytest_plugin"]``, so that this module needs no pytest, and a pytest no hypha.
``docs/testing.md`` has both as recipes.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as Settings
from hypercorn.config import Sockets
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.run import worker_serve
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from hypercorn.utils import LifespanFailureError
from trio.testing import memory_stream_pair

from hypha.assembly import build
from hypha.broker.access import Level, Principal
from hypha.broker.tokens import new_user_id
from hypha.client import Server, connect_to_server
from hypha.config import Config
from hypha.errors import InvalidArgument
from hypha.listen import open_sockets
from hypha.web import guard
from hypha.web.accept import descriptors
from hypha.worker import settings_for

_MEMORY_HOST, _MEMORY_PORT = "hypha.test", 80
#: Addresses at which a server listens and nobody can be reached, and where it is reached instead.
_NEAREST = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  compared with, not bound
_TOKEN_SECONDS = 3600.0


@asynccontextmanager
async def open_server(
    *, memory: bool = False, data_dir: str | Path | None = None, **config: Any
) -> AsyncIterator[LiveServer]:
    """A server that is open inside the block, on a free port of the loopback.

    *config* are fields of :class:`hypha.config.Config`, for example ``limits=Limits(call_seconds=1)``. Without
    *data_dir* there is a new one, which is removed afterwards.

    With *memory* no socket is opened, and the connections are streams of ``trio.testing``. Then the server works with
    ``MockClock`` and ``autojump_clock``; with sockets the clock would jump while the kernel still holds data.

    The tasks of the server live in a nursery of this block. Leaving it shuts the server down as a signal would: clients
    are told, and requests that run have ``limits.drain_seconds`` to end. When the block raises or is cancelled, the
    server is cancelled. In any case nothing of it is left: no task, socket or file. What the block raises comes out as
    it is, and in a group only together with an error of the server. A server that cannot start or go on raises the
    reason, and cancels the block.

    Nothing of the process is touched (signals, logging, limits, the allocator) but the classes of Hypercorn's that
    :func:`hypha.web.guard.install` replaces. So ``limits.connections`` does not hold when it is for more connections
    than the process may have descriptors for.
    """
    raised: BaseException | None = None
    alone: BaseException | None = None
    with tempfile.TemporaryDirectory(prefix="hypha-") if data_dir is None else nullcontext(data_dir) as directory:
        server = LiveServer(Config(data_dir=Path(directory), **{"port": 0, **config}))
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(server._serve, memory)
                try:
                    yield server
                except BaseException as error:  # cancelled, too: told apart from what the server raises
                    raised = error
                    raise
                server.shut_down()
        except BaseExceptionGroup as group:
            _, errors = group.split(trio.Cancelled)
            if errors is None or len(errors.exceptions) > 1:
                raise
            # Of a group that the block raised, trio makes another one.
            alone = raised if isinstance(raised, Exception) else errors.exceptions[0]
    if alone is not None:
        raise alone


def _has_descriptors_for(connections: int) -> bool:
    """Whether this process may open as many connections without being allowed more (:mod:`hypha.web.accept`)."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return allowed == resource.RLIM_INFINITY or allowed >= descriptors(connections)


class LiveServer:
    """A server that is open. Made by :func:`open_server`.

    *config* is what it was opened with, *url* where its clients find it, without a slash at the end, and *port* the
    port in that. In memory *url* is ``http://hypha.test``, which is only a name.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.url = self._host = ""
        self.port = 0
        self._assembly = build(config)
        self._door: guard.Door | None = None
        self._ending = trio.Event()
        self._failure: Exception | None = None

    def connect(
        self, config: Mapping[str, Any] | None = None, /, **options: Any
    ) -> AbstractAsyncContextManager[Server]:
        """Our own client, connected to this server: what :func:`hypha.client.connect_to_server` takes and gives."""
        return connect_to_server({"server_url": self.url, **(config or {})}, dial=self.open_stream, **options)

    async def open_stream(self) -> trio.abc.HalfCloseableStream:
        """A connection on which nothing has been said yet. Whoever asks closes it. Raises OSError when none is taken.

        In memory what is sent waits for no reader, and takes no time.
        """
        if isinstance(self._door, MemoryDoor):
            return cast(trio.abc.HalfCloseableStream, await self._door.connect())
        return await trio.open_tcp_stream(self._host, self.port)

    def token(self, workspace: str = "public", level: str = "admin", *, expires_in: float = _TOKEN_SECONDS) -> str:
        """A token of a new user, who has *level* (``read``, ``read_write`` or ``admin``) in *workspace*.

        The workspace is made when there is none, and stays as long as the server. Who connects with nothing but the
        token is there. It ends after *expires_in* seconds by the clock on the wall, which no mock clock moves. Raises
        :class:`hypha.errors.InvalidArgument` for a bad name or level.
        """
        granted = Level.parse(level)
        if granted is None:
            raise InvalidArgument(f"there is no level {level!r}; write read, read_write or admin")
        broker = self._assembly._open_rooms().broker
        if workspace not in broker.registry.workspaces:
            broker.registry.create_workspace(workspace, persistent=True)
        user = Principal(new_user_id(), is_anonymous=False, grants={workspace: granted}, home=workspace)
        return broker.tokens.issue(user, expires_in=expires_in)

    def shut_down(self) -> None:
        """Begin to end, as a server does when it is told to: who is connected is told to come back later.

        Returns at once. Leaving the block of :func:`open_server` waits for the end.
        """
        self._ending.set()

    # --- inside -----------------------------------------------------------------------------------------------

    async def _serve_on_loopback(self, task_status: trio.TaskStatus[None]) -> None:
        with ExitStack() as opened:  # a listener that was not begun when we are cancelled is closed by nobody else
            sockets = [opened.enter_context(sock) for sock in open_sockets(self.config, [])]
            host, self.port, *_ = sockets[0].getsockname()
            self._host = _NEAREST.get(host, host)
            shown = f"[{self._host}]" if ":" in self._host else self._host
            self.url = f"http://{shown}:{self.port}{self.config.base_path}"
            await worker_serve(
                ASGIWrapper(self._app(task_status.started)),
                settings_for(self.config, []),
                sockets=Sockets([], sockets, []),
                shutdown_trigger=self._ending.wait,
            )

    async def _serve_in_memory(self, task_status: trio.TaskStatus[None]) -> None:
        """What ``hypercorn.trio.run.worker_serve`` does, without a listener."""
        self._host, self.port = _MEMORY_HOST, _MEMORY_PORT
        self._assembly.writes_in_thread = False
        self.url = f"http://{self._host}{self.config.base_path}"
        app, settings = ASGIWrapper(self._app(task_status.started)), settings_for(self.config, [])
        state: dict[str, Any] = {}
        lifespan, context = Lifespan(app, settings, state), WorkerContext(None)
        async with trio.open_nursery() as root:
            await root.start(lifespan.handle_lifespan)
            await lifespan.wait_for_startup()
            async with trio.open_nursery() as connections:
                door = MemoryDoor(app, settings, context, state, connections)
                try:
                    if self._failure is None:  # otherwise we are about to be cancelled
                        state[guard.OPENED](door)
                    await self._ending.wait()
                finally:
                    door.closed = True
                    await context.terminated.set()
                    connections.cancel_scope.deadline = trio.current_time() + settings.graceful_timeout
            await lifespan.wait_for_shutdown()
            root.cancel_scope.cancel()

    async def _serve(self, memory: bool, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve to the end. Raises why the server cannot start or go on."""
        try:
            await (self._serve_in_memory if memory else self._serve_on_loopback)(task_status)
        except BaseExceptionGroup:  # what Hypercorn makes of a failure that is known already
            if self._failure is None:
                raise
        if self._failure is not None:
            raise self._failure

    def _app(self, on_open: Callable[[], None]) -> ASGIFramework:
        """The application, from which we learn why it fails, when it is open, and through which door."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await self._live(scope, receive, send, on_open)
            else:
                await self._assembly(scope, receive, send)

        return cast(ASGIFramework, app)

    async def _live(self, scope: Any, receive: Any, send: Any, on_open: Callable[[], None]) -> None:
        state = scope["state"]

        async def watched(message: Any) -> None:
            if message["type"] == "lifespan.startup.complete":
                if not _has_descriptors_for(state[guard.CONNECTIONS]):
                    del state[guard.CONNECTIONS]
                state[guard.OPENED] = partial(self._open, state.get(guard.OPENED), on_open)
            await send(message)

        try:
            await self._assembly(scope, receive, watched)
        except Exception as error:  # whatever it is: Hypercorn would only log it, and go on without the application
            reason = _reason(error)
            if not isinstance(reason, Exception):
                raise reason from None  # a cancellation
            self._failure = reason
            raise LifespanFailureError("lifespan", str(reason)) from error

    def _open(self, told: Callable[[guard.Door], None] | None, on_open: Callable[[], None], door: guard.Door) -> None:
        self._door = door
        if told is not None:
            told(door)
        on_open()


class MemoryDoor(guard.Door):
    """The door of a server in memory. Its connections live in the nursery of the server's."""

    def __init__(
        self, app: ASGIWrapper, settings: Settings, context: WorkerContext, state: dict[str, Any], nursery: trio.Nursery
    ) -> None:
        super().__init__(partial(guard.GuardedServer, app, settings, context, ConnectionState(state)), (), nursery)
        self.closed = False

    async def connect(self) -> Any:  # no socket's stream, but used as one
        """The client's end of a new connection. Raises ConnectionRefusedError when the server is closed."""
        await trio.lowlevel.checkpoint()
        if self.closed:
            raise ConnectionRefusedError("the server is closed")
        ours, theirs = memory_stream_pair()
        self._nursery.start_soon(self.serve, MemoryEnd(theirs, theirs))
        return ours

    async def serve(self, end: trio.abc.Stream) -> None:
        """Serve one connection to its end."""
        try:
            await self._handler(end)
        finally:
            await trio.aclose_forcefully(end)


class MemorySocket:
    """What Hypercorn asks of a socket."""

    family = trio.socket.AF_INET

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 50000)

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 9527)


class MemoryEnd(trio.abc.HalfCloseableStream):
    """The server's end of a connection in memory."""

    def __init__(self, sends: trio.abc.SendStream, receives: trio.abc.ReceiveStream) -> None:
        self.socket = MemorySocket()
        self._sends = sends
        self._receives = receives

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._sends.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._sends.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._sends.aclose()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._receives.receive_some(max_bytes)

    async def aclose(self) -> None:
        try:
            await self._sends.aclose()
        finally:
            await self._receives.aclose()


def _reason(error: BaseException) -> BaseException:
    """The one error that *error* is about: what is in a group of one, and what Quart had when it told of a failure.

    Quart tells of a cancellation as it does of errors.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, LifespanFailureError) and error.__context__ is not None:
        return _reason(error.__context__)
    return error
