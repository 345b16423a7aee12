"""How functions of the program are run, and how it sees those of others: the one place where its world differs."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import CodeType
from typing import TYPE_CHECKING, Any, Protocol

import trio

from hypha.client.values import Received

if TYPE_CHECKING:
    from hypha.client.remote import RemoteFunction, RemoteGenerator

_MAX_THREADS = 40
_DEFERRED = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_GENERATOR

#: What :meth:`Runner.next` gives when a generator has ended.
END = object()


#: What functions of a program may raise. What is in it for trio stays out by :func:`own_error`.
RAISED = (Exception, SystemExit, BaseExceptionGroup)


def own_error(error: BaseException) -> BaseException | None:
    """What a function of the program has raised, without cancellations and Ctrl-C; None when it is nothing but these.

    Then it must be raised on.
    """
    if not isinstance(error, BaseExceptionGroup):
        return error
    _, rest = error.split((trio.Cancelled, KeyboardInterrupt))
    return rest


class Runner(Protocol):
    """The world of a program: trio, threads, or another event loop. Its methods are called in trio."""

    async def call(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of the function; raises what it raises."""

    async def next(self, generator: Any) -> Any:
        """The next value of a generator or iterator, :data:`END` when there is none."""

    async def close(self, generator: Any) -> None:
        """End a generator early."""

    def present(self, remote: RemoteFunction | RemoteGenerator) -> Received:
        """What stands for a function or generator of another peer in this program."""


class TrioRunner:
    """Async functions run in trio; plain ones in worker threads, where they may block as long as they like.

    A cancelled call of a plain function is forgotten: a thread cannot be stopped.
    """

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(_MAX_THREADS)

    async def call(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if is_async(function):
            result = function(*args, **kwargs)
        else:
            result = await self._in_thread(function, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    async def next(self, generator: Any) -> Any:
        if isinstance(generator, AsyncIterator):
            return await anext(generator, END)
        assert isinstance(generator, Iterator)
        return await self._in_thread(next, generator, END)

    async def close(self, generator: Any) -> None:
        if hasattr(generator, "aclose"):
            await generator.aclose()
        elif hasattr(generator, "close"):
            await self._in_thread(generator.close)

    def present(self, remote: RemoteFunction | RemoteGenerator) -> Received:
        return remote

    async def _in_thread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def call() -> list[Any]:
            return [function(*args, **kwargs)]  # trio refuses a function whose result can be awaited

        (result,) = await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._threads)
        return result


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling *function* returns at once, and its work is done elsewhere."""
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):  # of a function or method: asked for every call, so the short way
        return bool(code.co_flags & _DEFERRED)
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    called = getattr(function, "__call__", function)  # noqa: B004  not whether, but what is called
    return any(kind(function) or kind(called) for kind in kinds)
