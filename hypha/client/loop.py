"""Programs that are written for asyncio: their functions run in an event loop, and those of others are awaited there.

::

    async with AioThread("a module") as thread:
        async with connect_to_server(settings, runner=AsyncioRunner(thread)) as server:
            await thread.run(entrypoint, asyncio_face(server, thread))
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from hypha.aio import AioThread
from hypha.client.face import Face, FunctionFace, GeneratorFace
from hypha.client.remote import RemoteFunction, RemoteGenerator
from hypha.client.run import END, TrioRunner, is_async
from hypha.client.server import Server
from hypha.client.values import Received


def asyncio_face(server: Server, thread: AioThread) -> Face:
    """*server* for what runs in *thread*: ``await server.get_service(...)``, ``server.config.workspace``."""
    return Face(server, thread.awaitable, thread.immediate)


class AsyncioRunner(TrioRunner):
    """Async functions of the program run in the loop of *thread*; plain ones in worker threads, and may block there.

    What a plain function returns and can be awaited is awaited in the loop.
    """

    def __init__(self, thread: AioThread) -> None:
        super().__init__()
        self._thread = thread

    async def call(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if is_async(function):
            return await self._thread.run(function, *args, **kwargs)
        result = await self._in_thread(function, *args, **kwargs)
        return await self._thread.run(_await, result) if inspect.isawaitable(result) else result

    async def next(self, generator: Any) -> Any:
        if isinstance(generator, AsyncIterator):
            return await self._thread.run(anext, generator, END)
        return await super().next(generator)

    async def close(self, generator: Any) -> None:
        if hasattr(generator, "aclose"):
            await self._thread.run(generator.aclose)
        else:
            await super().close(generator)

    def present(self, remote: RemoteFunction | RemoteGenerator) -> Received:
        if isinstance(remote, RemoteFunction):
            return AsyncioFunction(remote, self._thread)
        return AsyncioGenerator(remote, self._thread)


def _await(value: Any) -> Any:
    return value  # which AioThread.run awaits


class AsyncioFunction(FunctionFace):
    """A function of another peer: ``await function(...)`` in asyncio.

    Cancelling the call, also by ``asyncio.timeout``, cancels the function at a provider that uses our client.
    """

    __slots__ = ("_thread",)

    def __init__(self, remote: RemoteFunction, thread: AioThread) -> None:
        super().__init__(remote)
        self._thread = thread

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await self._thread.awaitable(self._remote)(*args, **kwargs)


class AsyncioGenerator(GeneratorFace):
    """A generator of another peer, for ``async for`` in asyncio. Leaving the loop early closes it at its provider."""

    __slots__ = ("_thread",)

    def __init__(self, remote: RemoteGenerator, thread: AioThread) -> None:
        super().__init__(remote)
        self._thread = thread

    def __aiter__(self) -> AsyncioGenerator:
        return self

    async def __anext__(self) -> Any:
        return await self._thread.awaitable(self._remote.__anext__)()

    async def aclose(self) -> None:
        """End it at its provider."""
        await self._thread.awaitable(self._remote.aclose)()
