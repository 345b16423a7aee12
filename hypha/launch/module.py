"""A service that is a function of a module: it runs in the server's process, as a client of the server.

Which world it runs in is told by the function and by the variable ``__hypha_backend__`` of its module:

- ``async def``: asyncio, in an event loop and a thread of its own;
- ``async def`` where ``__hypha_backend__ = "trio"``: trio, in the thread of the server;
- ``def``: a thread, where all that waits blocks.
"""

from __future__ import annotations

import inspect
import logging
import re
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import trio

from hypha.aio import AioThread
from hypha.broker.access import Level
from hypha.broker.tokens import new_user_id
from hypha.client.loop import AsyncioRunner, asyncio_face
from hypha.client.run import Runner, TrioRunner
from hypha.client.server import Server, connect_to_server
from hypha.errors import HyphaError
from hypha.launch.entrypoint import Entrypoint, Unfit, find_entrypoint, findable, load, unload
from hypha.launch.plain import PlainRunner
from hypha.launch.plan import ModuleEntry
from hypha.launch.supervisor import ALIVE_SECONDS, Host, Supervisor

logger = logging.getLogger(__name__)

_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")


class Module(Supervisor):
    """One entry ``module``, or one startup function.

    It lives until its connection is over or its function fails; a function that returns has done its part. Its user is
    the same after each new start, so that it can take its client id again at once.
    """

    def __init__(self, entry: ModuleEntry, host: Host, client_id: str) -> None:
        super().__init__(entry.name, entry.workspace, entry.checks, host)
        self._client_id = client_id
        self._entry = entry
        self._user = new_user_id()
        self._threads = trio.CapacityLimiter(1 << 20)  # one that never comes back keeps nobody waiting
        self._new_life()

    def _new_life(self) -> None:
        self._begun, self._returned, self._ended = trio.Event(), trio.Event(), trio.Event()
        self._begun_at = 0.0
        self._loaded: ModuleType | None = None
        self._stage: str | None = f"the import of {self._entry.module}"

    @property
    def beginning(self) -> str | None:
        return self._stage

    async def begin(self) -> None:
        await self._begun.wait()
        if not self._has_checks:
            with trio.move_on_at(self._begun_at + ALIVE_SECONDS):
                await self._returned.wait()

    async def live(self) -> str:
        self._new_life()
        failure = ""

        async def work() -> None:
            nonlocal failure
            failure = await self._work(token)
            self._ended.set()

        token, token_id = self._host.issue(self.workspace, self._user, Level.ADMIN)
        try:
            with findable(self._entry.module):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(work)
                    lack = await self.attend(self._ended.wait)
                    nursery.cancel_scope.cancel()
        finally:
            self._ended.set()
            self._host.end(token_id)
            if self._loaded is not None:
                unload(self._loaded)
        return f"{self.name} {lack or failure}"

    async def _work(self, token: str) -> str:
        """The barrier around the module: whatever it does is its failure, in words that follow its name."""
        try:
            await self._run(token)
        except GeneratorExit:
            raise
        except BaseException as caught:  # sys.exit, and some of what asyncio raises, is no Exception
            error = _without_cancellations(caught)
            if error is None:
                raise
            logger.debug("%s has failed", self.name, exc_info=error)
            return self._reason(error)
        return "has disconnected from the server"

    async def _run(self, token: str) -> None:
        """Load the module, connect it, call its function, and wait until the connection is over."""
        async with AioThread(self.name) as thread:
            # In the thread in which its async functions will run: some of what it makes belongs to its thread.
            entrypoint = await thread.run(self._load)
            function = partial(entrypoint.function, **self._entry.kwargs)
            if entrypoint.world == "asyncio":
                async with self._connected(token, AsyncioRunner(thread)) as server:
                    await self._use(server, partial(thread.run, function, asyncio_face(server, thread)))
                return
            if entrypoint.world == "thread":
                runner = PlainRunner(thread)
                async with self._connected(token, runner) as server:
                    await self._use(server, partial(self._in_thread, function, runner.face(server)))
                return
        async with self._connected(token, TrioRunner()) as server:
            await self._use(server, partial(function, server))

    def _load(self) -> Entrypoint:
        """Import the module and find its function. Blocks. Raises what the module raises."""
        life = self._begun
        module = load(self._entry.module)
        if life is self._begun and not self._ended.is_set():
            self._loaded = module
        else:  # nobody waits for it any more
            unload(module)
        return find_entrypoint(self._entry, module)

    @asynccontextmanager
    async def _connected(self, token: str, runner: Runner) -> AsyncIterator[Server]:
        self._stage = "its connection to the server"
        settings = {
            "server_url": self._host.inner_url,
            "workspace": self.workspace,
            "token": token,
            "client_id": self._client_id,
        }
        async with connect_to_server(settings, dial=self._dial, runner=runner) as server:
            yield server

    async def _dial(self) -> trio.abc.Stream:
        if self._retired:
            raise ConnectionRefusedError("the server is about to end")
        return await self._host.dial()

    async def _use(self, server: Server, call: Callable[[], Awaitable[object]]) -> None:
        """Call the function, and wait until the connection is over for good."""
        self._begun_at = trio.current_time()
        self._stage = None
        self._begun.set()
        async with trio.open_nursery() as nursery:

            async def begin() -> None:
                await call()
                self._returned.set()

            nursery.start_soon(begin)
            try:
                await server.serve()
            except HyphaError as error:
                raise Unfit(f"has lost its connection to the server: {error}") from error
            nursery.cancel_scope.cancel()

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> None:
        """Call it in a thread, which is left behind when it blocks and is not wanted any more."""

        def call() -> list[Any]:
            return [function(*args)]  # trio refuses what can be awaited

        (result,) = await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._threads)
        if inspect.isawaitable(result):
            raise Unfit(f"cannot start: {self._what} returns what must be awaited: write it as async def")

    # --- what went wrong --------------------------------------------------------------------------------------

    @property
    def _what(self) -> str:
        return f"{self._entry.entrypoint} in {self._entry.module}"

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, Unfit):
            return str(error)
        did = f"called sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"raised {_shown(error)}"
        return f"failed: {self._stage or self._what} {did}{_place(error, self._entry.module, self._loaded)}"


def client_ids(names: Iterable[str]) -> list[str]:
    """The client ids of modules: from their *names*, without what nobody need know who sees their services."""
    found: list[str] = []
    for name in map(_client_id, names):
        numbered = (f"{name}-{number}" if number > 1 else name for number in count(1))
        found.append(next(candidate for candidate in numbered if candidate not in found))
    return found


def _client_id(name: str) -> str:
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return _UNFIT.sub("-", last.removesuffix(".py")).strip("-.") or "module"


def _without_cancellations(error: BaseException) -> BaseException | None:
    """The one error that *error* is about; None when it is nothing but cancellations."""
    if isinstance(error, trio.Cancelled):
        return None
    if isinstance(error, BaseExceptionGroup):
        _, rest = error.split(trio.Cancelled)
        return None if rest is None else _leaf(rest)
    return error


def _leaf(error: BaseException) -> BaseException:
    """What is in a group of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _shown(error: BaseException) -> str:
    """The end of its traceback."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error}"  # with its place, in one line
    return "".join(traceback.format_exception_only(error)).strip()


def _place(error: BaseException, module: Path | str, loaded: ModuleType | None) -> str:
    """Where in the module it came from: the innermost line of it."""
    file = str(module) if isinstance(module, Path) else getattr(loaded, "__file__", None)
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    return f" (line {lines[-1]})" if lines else ""
