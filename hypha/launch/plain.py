"""What a module is given whose entrypoint is a plain function: all that waits, blocks there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import trio

from hypha.aio import AioThread
from hypha.client.face import BlockingFunction, BlockingGenerator, Face
from hypha.client.loop import AsyncioRunner
from hypha.client.remote import RemoteFunction, RemoteGenerator
from hypha.client.server import Server
from hypha.client.values import Received
from hypha.errors import PeerGone

_Wait = Callable[..., Any]


class PlainRunner(AsyncioRunner):
    """Plain functions of the module run in threads, async ones in the loop of *thread*; what they are given blocks."""

    def __init__(self, thread: AioThread) -> None:
        super().__init__(thread)
        self._token = trio.lowlevel.current_trio_token()

    def face(self, server: Server) -> Face:
        """*server* for threads: ``server.get_service("x").function(1)``."""
        return Face(server, self._blocking, self._blocking)

    def present(self, remote: RemoteFunction | RemoteGenerator) -> Received:
        if isinstance(remote, RemoteFunction):
            return BlockingFunction(remote, self._wait)
        return BlockingGenerator(remote, self._wait)

    def _blocking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return wraps(function)(partial(self._wait, function))

    def _wait(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run *function* in trio, and block until its result is there. Raises what it raises."""

        async def run() -> Any:
            value = function(*args, **kwargs)
            return await value if inspect.isawaitable(value) else value

        try:
            return trio.from_thread.run(run, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise PeerGone("the server has ended") from None
