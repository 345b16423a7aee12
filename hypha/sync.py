"""The client for notebooks and scripts: what ``hypha.client`` has, as functions that block.

::

    from hypha.sync import connect_to_server

    with connect_to_server({"server_url": "http://127.0.0.1:9527"}) as server:
        server.register_service({"id": "hello-world", "hello": lambda name: "Hello " + name})
        print(server.get_service("hello-world").hello("John"))

Each connection has a daemon thread of its own, in which trio runs. Its functions may be called from every thread but
that one. The program's own functions run in threads; those that are ``async def`` run in trio, and may not block.
``docs/client.md`` has the rest.
"""

from __future__ import annotations

import atexit
import inspect
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial, wraps
from types import TracebackType
from typing import Any

import trio

from hypha.client.channel import Dial
from hypha.client.face import BlockingFunction, BlockingGenerator, Face
from hypha.client.remote import RemoteFunction, RemoteGenerator
from hypha.client.run import TrioRunner
from hypha.client.server import Server
from hypha.client.settings import Settings, parse_settings
from hypha.client.values import Received
from hypha.errors import CallTimeout, PeerGone

__all__ = ["BlockingServer", "connect_to_server", "deadline"]

#: Seconds in which a connection ends that is told to; the server has one of them for its goodbye.
_ENDING_SECONDS = 5.0
#: The same when the interpreter exits.
_EXIT_SECONDS = 1.0

#: By ``time.monotonic``: when what blocks in this thread gives up. Functions of ours have that of their caller.
_deadline: ContextVar[float] = ContextVar("hypha deadline", default=math.inf)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Give what blocks in this block so many seconds together; then it raises :class:`CallTimeout`.

    It travels with the calls. Of several the earliest holds. Each thread has its own.
    """
    token = _deadline.set(min(_deadline.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _deadline.reset(token)


class _Job:
    """One call that a thread waits for, and the task that does it."""

    def __init__(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._call = partial(function, *args, **kwargs)
        self._deadline = _deadline.get()
        self._scope = trio.CancelScope()
        # No threading.Event: to release a lock never blocks, whatever Ctrl-C interrupts in the thread that waits.
        self._unsettled = threading.Lock()
        self._unsettled.acquire()
        self._value: Any = None
        self._error: BaseException | None = None

    async def run(self) -> None:
        """The task. Raises nothing but its cancellation from outside."""
        left = self._deadline - time.monotonic()
        self._scope.deadline = trio.current_time() + left
        try:
            with self._scope:
                value = self._call()
                self._value = await value if inspect.isawaitable(value) else value
            if self._scope.cancelled_caught:
                self._error = CallTimeout("there was no result before the deadline")
        except trio.Cancelled:
            self._error = _over()
            raise
        except BaseException as exc:  # noqa: BLE001  raised in the thread that waits
            self._error = exc
        finally:
            self._unsettled.release()

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._scope.cancel()

    def fail(self, error: BaseException) -> None:
        """It cannot be done: called instead of :meth:`run`."""
        self._error = error
        self._unsettled.release()

    def wait(self) -> None:
        """Block until it is done. Ctrl-C comes through."""
        self._unsettled.acquire()

    def result(self) -> Any:
        """What came of it; raises what the function raised."""
        if self._error is None:
            return self._value
        try:
            raise self._error
        finally:
            self._error = None  # its traceback leads back to here


def _over() -> PeerGone:
    return PeerGone("this client has disconnected")


class _Line:
    """The thread in which the connection lives, and calls into it."""

    def __init__(self, settings: Settings, dial: Dial | None) -> None:
        self.server = Server(settings, dial, BlockingRunner(self))
        self._thread = threading.Thread(target=self._run, name="hypha.sync", daemon=True)
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._ending = trio.Event()
        self._token: trio.lowlevel.TrioToken
        self._links: trio.Nursery
        self._jobs: trio.Nursery | None = None

    def start(self) -> None:
        """Connect. Raises what :meth:`hypha.client.Server.start` raises, CallTimeout, and KeyboardInterrupt."""
        self._thread.start()
        try:
            self._ready.wait()
            if self._failure is not None:
                raise self._failure
            self.call(self._connect)
        except BaseException:  # Ctrl-C, too: nobody else could end the thread
            self.end()
            raise
        atexit.register(self.end, _EXIT_SECONDS)

    def _run(self) -> None:
        try:
            trio.run(self._live)
        except OSError as exc:  # no descriptors are left for a loop
            self._failure = exc
        finally:
            self._ready.set()

    async def _connect(self) -> None:
        await self.server.start(self._links)

    async def _live(self) -> None:
        """The main task: until :meth:`end`. Calls end first, so that nothing of them is left at other peers."""
        async with trio.open_nursery() as self._links:
            try:
                async with trio.open_nursery() as self._jobs:
                    self._token = trio.lowlevel.current_trio_token()
                    self._ready.set()
                    await self._ending.wait()
                    self._jobs.cancel_scope.cancel()
            finally:
                self._jobs = None
            await self.server.disconnect()
            self._links.cancel_scope.cancel()

    def end(self, patience: float = _ENDING_SECONDS) -> None:
        """Say goodbye, and wait for so many seconds until the thread has ended."""
        self._refuse_own_thread("disconnect")
        atexit.unregister(self.end)
        self._ready.wait()
        with suppress(trio.RunFinishedError, AttributeError):  # the second: the loop has never run
            self._token.run_sync_soon(self._ending.set)
        self._thread.join(patience)

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run *function* in trio, and wait for what it returns or raises.

        What interrupts the wait, such as Ctrl-C, cancels it.
        """
        self._refuse_own_thread(getattr(function, "__name__", "this function"))
        job = _Job(function, args, kwargs)
        try:
            self._post(job)
            job.wait()
        except BaseException:  # Ctrl-C, above all: nobody waits for the call any more
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(job.cancel)
            raise
        return job.result()

    def blocking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """*function* of trio as one that blocks."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return self.call(function, *args, **kwargs)

        return call

    def _post(self, job: _Job) -> None:
        try:
            self._token.run_sync_soon(self._begin, job)
        except trio.RunFinishedError:
            job.fail(_over())

    def _begin(self, job: _Job) -> None:
        if self._jobs is None:
            job.fail(_over())
        else:
            self._jobs.start_soon(job.run)

    def _refuse_own_thread(self, name: str) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                f"{name} blocks, and this is the thread of the connection, which would wait for itself: "
                "write the function that calls it as a plain one (def), or the program with hypha.client"
            )


class BlockingRunner(TrioRunner):
    """Plain functions of the program run in threads, with the deadline of their caller; what they see blocks."""

    def __init__(self, line: _Line) -> None:
        super().__init__()
        self._line = line

    async def call(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        with deadline(trio.current_effective_deadline() - trio.current_time()):
            return await super().call(function, args, kwargs)

    def present(self, remote: RemoteFunction | RemoteGenerator) -> Received:
        if isinstance(remote, RemoteFunction):
            return BlockingFunction(remote, self._line.call)
        return BlockingGenerator(remote, self._line.call)


class BlockingServer(Face):
    """A connection to a server: all that :class:`hypha.client.Server` has, as functions that block.

    As a context manager it disconnects at the end of the block.
    """

    def __init__(self, line: _Line) -> None:
        super().__init__(line.server, line.blocking, line.blocking)
        self._line = line

    def disconnect(self) -> None:
        """Say goodbye: nothing of this program is left at the server. What still waits raises :class:`PeerGone`."""
        self._line.end()

    def __enter__(self) -> BlockingServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()


def connect_to_server(
    config: Mapping[str, Any] | None = None, /, *, dial: Dial | None = None, **options: Any
) -> BlockingServer:
    """Connect to the server at ``server_url``, until :meth:`BlockingServer.disconnect` or the end of a ``with`` block.

    It takes and raises what :func:`hypha.client.connect_to_server` does. The server is told when the interpreter exits.
    """
    line = _Line(parse_settings({**(config or {}), **options}), dial)
    line.start()
    return BlockingServer(line)
