"""A service that is a function of a module: it runs in the server's process, as a client of the server.

Which world it runs in is told by the function and by the variable ``__hypha_backend__`` of its module:

- ``async def``: asyncio, in an event loop and a thread of its own;
- ``async def`` where ``__hypha_backend__ = "trio"``: trio, in the thread of the server;
- ``def``: a thread, where all that waits blocks.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import re
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
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
from hypha.launch.plain import PlainRunner
from hypha.launch.plan import ModuleEntry
from hypha.launch.supervisor import ALIVE_SECONDS, Host, Supervisor

logger = logging.getLogger(__name__)

#: The variable of a module that says for what its async functions are written, and what it may say.
BACKEND = "__hypha_backend__"
BACKENDS = ("asyncio", "trio")

_NUMBERS = count(1)
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")


class Unfit(Exception):
    """The module is not what its entry says, or its connection is over. The text follows the name of the service."""


class Module(Supervisor):
    """One entry ``module``, or one startup function.

    It lives until its connection is over or its function fails; a function that returns has done its part. Its user is
    the same after each new start, so that it can take its client id again at once.
    """

    def __init__(self, entry: ModuleEntry, host: Host) -> None:
        super().__init__(entry.name, entry.workspace, entry.checks, host)
        self._entry = entry
        self._user = new_user_id()
        self._threads = trio.CapacityLimiter(1 << 20)  # one that never comes back keeps nobody waiting
        self._loaded: ModuleType | None = None
        self._stage: str | None = None
        self._new_life()

    def _new_life(self) -> None:
        self._begun, self._returned, self._ended = trio.Event(), trio.Event(), trio.Event()
        self._begun_at = 0.0
        self._stage = f"the import of {self._entry.module}"

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
            with _findable(self._entry.module):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(work)
                    lack = await self.attend(self._ended.wait)
                    nursery.cancel_scope.cancel()
        finally:
            self._ended.set()
            self._host.end(token_id)
            if self._loaded is not None:  # imported anew at the next start
                sys.modules.pop(self._loaded.__name__, None)
        return f"{self.name} {lack or failure}"

    async def _work(self, token: str) -> str:
        """The barrier around the module: whatever it does is its failure, in words that follow its name."""
        try:
            await self._run(token)
        except (Exception, SystemExit, BaseExceptionGroup) as caught:
            error = _without_cancellations(caught)
            if error is None:
                raise
            logger.debug("%s has failed", self.name, exc_info=error)
            return self._reason(error)
        return "has disconnected from the server"

    async def _run(self, token: str) -> None:
        """Load the module, connect it, call its function, and wait until the connection is over."""
        entry = await self._in_thread(self._load)
        self._stage = "its connection to the server"
        async with self._world(entry.kind, token) as (server, call):
            self._begun_at = trio.current_time()
            self._stage = None
            self._begun.set()
            async with trio.open_nursery() as nursery:

                async def begin() -> None:
                    await call(partial(entry.function, **self._entry.kwargs))
                    self._returned.set()

                nursery.start_soon(begin)
                await _until_over(server)
                nursery.cancel_scope.cancel()

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        """Whatever blocks there is left behind when it is not wanted any more."""
        return await trio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=self._threads)

    # --- the module -------------------------------------------------------------------------------------------

    def _load(self) -> _Entrypoint:
        """Import the module and find its function. Blocks. Raises what the module raises."""
        begun = self._begun
        loaded = _import(self._entry.module)
        if begun is self._begun and not self._ended.is_set():
            self._loaded = loaded
        else:  # nobody waits for it any more
            sys.modules.pop(loaded.__name__, None)
        names = vars(loaded)
        function = names.get(self._entry.entrypoint)
        if not callable(function):
            lack = "is no function" if self._entry.entrypoint in names else "is not there"
            raise Unfit(f"cannot start: {self._what} {lack}")
        backend = names.get(BACKEND, "asyncio")
        if backend not in BACKENDS:
            raise Unfit(f"cannot start: {BACKEND} of {self._entry.module} is {backend!r}; write 'asyncio' or 'trio'")
        if _is_coroutine_function(function):
            return _Entrypoint(function, backend)
        if backend == "trio":
            raise Unfit(f"cannot start: {self._what} is no async function, as {BACKEND} = 'trio' wants it to be")
        return _Entrypoint(function, "thread")

    @property
    def _what(self) -> str:
        return f"{self._entry.entrypoint} in {self._entry.module}"

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, Unfit):
            return str(error)
        did = f"called sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"raised {_shown(error)}"
        return f"failed: {self._stage or self._what} {did}{_place(error, self._entry.module, self._loaded)}"

    # --- its worlds -------------------------------------------------------------------------------------------

    def _world(self, kind: str, token: str) -> AbstractAsyncContextManager[tuple[Server, _Call]]:
        return {"asyncio": self._in_asyncio, "trio": self._in_trio, "thread": self._in_plain_thread}[kind](token)

    @asynccontextmanager
    async def _in_trio(self, token: str) -> AsyncIterator[tuple[Server, _Call]]:
        async with self._connected(token, TrioRunner()) as server:

            async def call(function: Callable[..., Any]) -> None:
                await function(server)

            yield server, call

    @asynccontextmanager
    async def _in_asyncio(self, token: str) -> AsyncIterator[tuple[Server, _Call]]:
        async with (
            AioThread(self.name) as thread,
            self._connected(token, AsyncioRunner(thread)) as server,
        ):

            async def call(function: Callable[..., Any]) -> None:
                await thread.run(function, asyncio_face(server, thread))

            yield server, call

    @asynccontextmanager
    async def _in_plain_thread(self, token: str) -> AsyncIterator[tuple[Server, _Call]]:
        async with AioThread(self.name) as thread:
            runner = PlainRunner(thread)
            async with self._connected(token, runner) as server:

                async def call(function: Callable[..., Any]) -> None:
                    result = await self._in_thread(lambda: [function(runner.face(server))])
                    if inspect.isawaitable(result[0]):
                        raise Unfit(f"cannot start: {self._what} returns what must be awaited: write it as async def")

                yield server, call

    @asynccontextmanager
    async def _connected(self, token: str, runner: Runner) -> AsyncIterator[Server]:
        settings = {
            "server_url": self._host.inner_url,
            "workspace": self.workspace,
            "token": token,
            "client_id": client_id(self.name),
        }
        async with connect_to_server(settings, dial=self._dial, runner=runner) as server:
            yield server

    async def _dial(self) -> trio.abc.Stream:
        if self._retired:
            raise ConnectionRefusedError("the server is about to end")
        return await self._host.dial()


_Call = Callable[[Callable[..., Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Entrypoint:
    """A function and where it runs."""

    function: Callable[..., Any]
    kind: str


def client_id(name: str) -> str:
    """The client id of the module *name*: what is told to all who see its services, so no more than its last part."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return _UNFIT.sub("-", last.removesuffix(".py")).strip("-.") or "module"


async def _until_over(server: Server) -> None:
    """Wait until the connection is over for good. Raises :class:`Unfit` when the server has ended it."""
    try:
        await server.serve()
    except HyphaError as error:
        raise Unfit(f"has lost its connection to the server: {error}") from error


@contextmanager
def _findable(module: Path | str) -> Iterator[None]:
    """As long as the block lasts, what stands beside the file *module* can be imported, by its functions, too.

    It comes last on the path, so that it does not hide what the server itself imports.
    """
    if isinstance(module, str):
        yield
        return
    directory = str(module.parent)
    sys.path.append(directory)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):  # the module has changed the path, too
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(directory)]


def _import(module: Path | str) -> ModuleType:
    """Run the code of *module*."""
    if isinstance(module, str):
        return importlib.import_module(module)
    name = f"hypha_module_{next(_NUMBERS)}_{re.sub(r'[^A-Za-z0-9_]', '_', module.stem)}"
    spec = importlib.util.spec_from_file_location(name, module)
    assert spec is not None, "the plan takes files that end in .py"
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # dataclasses and type hints look their module up
    try:
        spec.loader.exec_module(made)
    except BaseException:
        with suppress(KeyError):
            del sys.modules[name]
        raise
    return made


def _is_coroutine_function(function: Callable[..., Any]) -> bool:
    inner = inspect.unwrap(function)
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)


def _without_cancellations(error: BaseException) -> BaseException | None:
    """The one error that *error* is about; None when it is nothing but cancellations."""
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
