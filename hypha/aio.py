"""An asyncio event loop in a thread of its own, for programs that are written for asyncio.

Nothing that happens in the loop holds up trio or ends it: errors in its callbacks are logged, a function that blocks
stalls its own loop, and one that never comes back is left behind.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial, wraps
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

import trio

from hypha.errors import PeerGone

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds that a cancelled function has to end.
CANCEL_SECONDS = 2.0
#: Seconds that the loop has to end, of which its tasks have the first part.
ENDING_SECONDS, TASKS_SECONDS = 2.0, 1.0
#: The same for a loop that did not move any more before.
_STUCK_SECONDS = 0.05
_THREADS = 32  # of a loop, for what blocks


class AioThread:
    """An asyncio event loop in a thread of its own, open inside an ``async with`` block of trio.

    At the end of the block its tasks are cancelled, and its async generators and its executor shut down. When that
    takes more than :data:`ENDING_SECONDS`, the thread is left behind, with a line in the log. What the block raises
    comes out as it is.
    """

    def __init__(self, name: str) -> None:
        """*name* is that of the thread, and stands in the log."""
        self.name = name
        self._calls: set[_Call] = set()
        self._ended = trio.Event()
        #: Whether no call is begun any more.
        self.is_ending = False
        self._is_over = False  # nor an errand
        self._is_stuck = False
        self._is_stopped = False
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._token: trio.lowlevel.TrioToken
        self._block: AbstractAsyncContextManager[trio.Nursery]
        self._nursery: trio.Nursery

    # --- its life, in trio ------------------------------------------------------------------------------------

    async def __aenter__(self) -> AioThread:
        self._token = trio.lowlevel.current_trio_token()
        self._block = trio.open_nursery()
        self._nursery = await self._block.__aenter__()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name=self.name, daemon=True)
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        scope = self._nursery.cancel_scope
        scope.shield = True
        await self._end()
        self._is_over = True
        scope.cancel()
        for call in list(self._calls):
            call.settle(self.over())
        await self._block.__aexit__(None, None, None)

    async def _end(self) -> None:
        self.is_ending = True
        self._post(self._stop)
        with trio.move_on_after(_STUCK_SECONDS if self._is_stuck else ENDING_SECONDS):
            await self._ended.wait()
            self._thread.join()  # it has nothing to do any more
            return
        logger.warning("%s: the event loop does not end; its thread is left behind", self.name)

    def over(self) -> PeerGone:
        """What is raised by whom the end of the loop prevents from going on."""
        return PeerGone(f"the event loop of {self.name} has ended")

    # --- from trio --------------------------------------------------------------------------------------------

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call *function* in the loop and return its result; one that can be awaited is.

        Raises what the function raises, SystemExit too, and :class:`PeerGone` when the loop ends. Cancelling it
        cancels the function, which then has :data:`CANCEL_SECONDS` to end; after that nobody waits for it any more.
        """
        if self.is_ending:
            raise self.over()
        call = _Call(self, partial(function, *args, **kwargs))
        self._calls.add(call)
        try:
            self._post(call.start)
            await call.settled.wait()
        except trio.Cancelled:
            await self._cancel(call)
            raise
        finally:
            self._calls.discard(call)
        return call.result()

    async def _cancel(self, call: _Call) -> None:
        self._post(call.cancel)
        with trio.move_on_after(CANCEL_SECONDS, shield=True):
            await call.settled.wait()
        if not call.settled.is_set():
            logger.warning("%s: a cancelled function does not end; nobody waits for it any more", self.name)
            self._is_stuck = True
            self._post(self._move)

    def _move(self) -> None:
        self._is_stuck = False

    def _post(self, function: Callable[[], object]) -> None:
        """Call *function* in the loop, if there is one."""
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(function)

    # --- from asyncio -----------------------------------------------------------------------------------------

    def awaitable(self, function: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        """*function* of trio as a coroutine function of asyncio.

        Cancelling that cancels the function. It raises what the function raises, and :class:`PeerGone` when the block
        of this thread has ended.
        """

        @wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            errand: _Errand[T] = _Errand(partial(function, *args, **kwargs))
            self.to_trio(self._begin, errand)
            try:
                return await errand.future
            except asyncio.CancelledError:
                with suppress(PeerGone):
                    self.to_trio(errand.scope.cancel)
                raise

        return call

    def immediate(self, function: Callable[P, T]) -> Callable[P, T]:
        """*function* of trio that does not wait, to be called in another thread, which it holds up for a moment."""

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return trio.from_thread.run_sync(partial(function, *args, **kwargs), trio_token=self._token)
            except trio.RunFinishedError:
                raise self.over() from None

        return call

    def to_trio(self, function: Callable[..., object], *args: Any) -> None:
        """Call *function* in trio soon. Raises :class:`PeerGone` when that has ended."""
        try:
            self._token.run_sync_soon(function, *args)
        except trio.RunFinishedError:
            raise self.over() from None

    def _begin(self, errand: _Errand[Any]) -> None:
        if self._is_over:
            errand.settle(self.over())
        else:
            self._nursery.start_soon(errand.run, self.over())

    # --- the thread -------------------------------------------------------------------------------------------

    def _main(self) -> None:
        self._loop.set_exception_handler(self._report)
        executor = _Executor(self.name)
        self._loop.set_default_executor(executor)
        try:
            self._run_until_stopped()
            self._is_stopped = True
            self._loop.run_until_complete(self._clean_up())
        finally:
            executor.shutdown(cancel_futures=True)
            self._loop.close()
            with suppress(PeerGone):
                self.to_trio(self._ended.set)

    def _run_until_stopped(self) -> None:
        while not self.is_ending:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as exc:  # of a task, which has it, too
                logger.error("%s: %r in the event loop, which goes on", self.name, exc)

    def _stop(self) -> None:
        if not self._is_stopped:
            self._loop.stop()

    async def _clean_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=TASKS_SECONDS)
            for task in left:
                logger.warning("%s: the task %r does not take its cancellation", self.name, task.get_name())
        await self._loop.shutdown_asyncgens()

    def _report(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        logger.error("%s: %s", self.name, context.get("message"), exc_info=context.get("exception"))


class _Executor(ThreadPoolExecutor):
    """Threads of a loop for what blocks there, which the end of the process does not wait for.

    Python joins those of its own executor: one that sleeps for an hour would keep a server that has ended for an hour.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        self._jobs.put((future, partial(function, *args, **kwargs)))
        if not self._idle.acquire(blocking=False) and self._started < _THREADS:
            self._started += 1
            threading.Thread(target=self._work, name=f"{self._name}_{self._started}", daemon=True).start()
        return future

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, call = job
            settle: Callable[[], object] = future.cancelled
            if future.set_running_or_notify_cancel():
                try:
                    settle = partial(future.set_result, call())
                except BaseException as exc:  # noqa: BLE001  the program's own, which it gets
                    settle = partial(future.set_exception, exc)
            self._idle.release()  # before anybody can know: the next job is for this thread
            settle()
            del job, future, call, settle

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads that have nothing to do. Does not wait, whatever *wait* says."""
        with suppress(queue.Empty):
            while cancel_futures:
                job = self._jobs.get_nowait()
                if job is not None:
                    job[0].cancel()
        for _ in range(self._started):
            self._jobs.put(None)


class _Call:
    """A function that runs in the loop of *thread* for a task of trio."""

    def __init__(self, thread: AioThread, call: Callable[[], Any]) -> None:
        self.settled = trio.Event()
        self._thread = thread
        self._call = call
        self._task: asyncio.Task[Any] | None = None
        self._error: BaseException | None = None
        self._value: Any = None

    # In the loop.

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._done)

    async def _run(self) -> Any:
        value = self._call()
        return await value if inspect.isawaitable(value) else value

    def cancel(self) -> None:
        """Its caller does not want it any more."""
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        error: BaseException | None
        if task.cancelled():
            error = (
                self._thread.over() if self._thread.is_ending else RuntimeError("it was cancelled in its event loop")
            )
        else:
            error = task.exception()
        with suppress(PeerGone):
            self._thread.to_trio(self.settle, error, None if error else task.result())

    # In trio.

    def settle(self, error: BaseException | None, value: Any = None) -> None:
        """It has ended, in one way or the other."""
        self._error, self._value = error, value
        self.settled.set()

    def result(self) -> Any:
        """What came of it; raises what the function raised."""
        if self._error is None:
            return self._value
        try:
            raise self._error
        finally:
            self._error = None  # its traceback leads back to here


class _Errand(Generic[T]):
    """A function that runs in trio for a task of the event loop in which this is made."""

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self._loop.create_future()
        self.scope = trio.CancelScope()
        self._call = call

    async def run(self, error: BaseException | None) -> None:
        """The task in trio. *error*: what a cancellation means to who waits."""
        value: Any = None
        try:
            with self.scope:
                value, error = await self._call(), None
        except Exception as exc:  # noqa: BLE001  raised in the event loop, by whom waits
            error = exc
        finally:
            self.settle(error, value)

    def settle(self, error: BaseException | None, value: Any = None) -> None:
        """It has ended, in one way or the other."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._tell, error, value)

    def _tell(self, error: BaseException | None, value: Any) -> None:
        if self.future.done():  # cancelled
            return
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)
