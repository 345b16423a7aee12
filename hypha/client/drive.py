"""A generator that another peer iterates: one task does all of its steps, so that it may hold scopes and nurseries."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio

from hypha.client.run import END, RAISED, Runner, own_error
from hypha.errors import PeerGone

logger = logging.getLogger(__name__)

_CLOSING_SECONDS = 1.0

#: What a generator answers with when it has nothing more (``protocol.md`` 3.1).
STOP = {"_rtype": "stop_iteration"}

_Reply = trio.MemorySendChannel[tuple[bool, Any]]


class Drive:
    """Takes the steps of *generator* when it is asked to. *on_end* is called when there are no more."""

    def __init__(self, generator: Any, runner: Runner, on_end: Callable[[], None]) -> None:
        self._generator = generator
        self._runner = runner
        self._on_end = on_end
        self._requests: tuple[trio.MemorySendChannel[_Reply], trio.MemoryReceiveChannel[_Reply]]
        self._requests = trio.open_memory_channel(0)

    async def run(self) -> None:
        """The task: until the end of the generator, or :meth:`close`. Closes the generator, also when cancelled."""
        try:
            async with self._requests[1] as requests:
                async for reply in requests:
                    succeeded, value = await self._step()
                    reply.send_nowait((succeeded, value))
                    if not succeeded or value is STOP:
                        break
        finally:
            self._on_end()
            with trio.move_on_after(_CLOSING_SECONDS, shield=True):
                await self._close()

    async def _step(self) -> tuple[bool, Any]:
        try:
            value = await self._runner.next(self._generator)
        except RAISED as exc:  # the program's own, which its caller gets
            error = own_error(exc)
            if error is None:
                raise
            return False, error
        return True, STOP if value is END else value

    async def _close(self) -> None:
        try:
            await self._runner.close(self._generator)
        except RAISED as exc:  # the program's own: nobody waits for it any more
            if own_error(exc) is None:
                raise
            logger.info("a generator failed when it was closed: %r", exc)

    async def next(self) -> Any:
        """The next value, :data:`STOP` at the end. Raises what the generator raises."""
        reply, answer = trio.open_memory_channel[tuple[bool, Any]](1)
        try:
            with reply:
                await self._requests[0].send(reply.clone())
            succeeded, value = await answer.receive()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return STOP
        except trio.EndOfChannel:
            raise PeerGone("the generator was ended") from None
        if not succeeded:
            raise value
        return value

    def end(self) -> None:
        """No more values are wanted."""
        self._requests[0].close()

    async def close(self) -> None:
        """As :meth:`end`, for others to call."""
        self.end()
