"""How many connections are open at once. Those beyond wait in the kernel's queue, and nobody is refused.

A refusal at the door would keep a legacy client away for ever (``decisions.md`` 10); one that waits gets in as soon as
another connection ends.
"""

from __future__ import annotations

import errno
import logging
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NoReturn

import trio

if sys.platform != "win32":
    import resource

logger = logging.getLogger(__name__)

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_RETRY_SECONDS = 0.1
_SILENT_SECONDS = 60.0
_OTHER_DESCRIPTORS = 256  # files that are sent, the data directory, pipes


class Places:
    """The room for connections that all listeners of one server share."""

    def __init__(self, limit: int, listeners: int) -> None:
        self._limit = limit
        # Each listener holds one place while it waits for a connection, so that none can take the last from another.
        self._free = trio.Semaphore(limit + listeners - 1)
        self._silent_until = -math.inf

    async def take(self) -> None:
        """Wait until one more connection may be open. Cancel it freely."""
        if not self._free.value and self.may_warn():
            logger.warning("connections = %d are open, others wait for their end", self._limit)
        await self._free.acquire()

    def give(self) -> None:
        """One connection less."""
        self._free.release()

    def may_warn(self) -> bool:
        """Whether the last warning is long ago: an attack must not fill the log."""
        now = trio.current_time()
        if now < self._silent_until:
            return False
        self._silent_until = now + _SILENT_SECONDS
        return True


class BoundedListener(trio.abc.Listener[trio.abc.Stream]):
    """A listener that takes a place for each connection before it accepts it, and outlives a lack of descriptors.

    ``trio.serve_listeners`` would outlive it, too, with a traceback in the log ten times a second.
    """

    def __init__(self, listener: trio.abc.Listener[trio.abc.Stream], places: Places) -> None:
        self._listener = listener
        self._places = places

    async def accept(self) -> trio.abc.Stream:
        await self._places.take()
        try:
            return await self._accept()
        except BaseException:  # cancelled, above all
            self._places.give()
            raise

    async def _accept(self) -> trio.abc.Stream:
        while True:
            try:
                return await self._listener.accept()
            except OSError as exc:
                if exc.errno not in _EXHAUSTED:
                    raise
                if self._places.may_warn():
                    logger.warning("connections wait: %s", exc)
            await trio.sleep(_RETRY_SECONDS)

    async def aclose(self) -> None:
        await self._listener.aclose()


async def serve_bounded(
    handler: Callable[[trio.abc.Stream], Awaitable[object]],
    listeners: Sequence[trio.abc.Listener[trio.abc.Stream]],
    *,
    handler_nursery: trio.Nursery,
    limit: int,
) -> NoReturn:
    """``trio.serve_listeners`` with at most *limit* connections at once, and one more for each further listener."""
    places = Places(affordable(limit), len(listeners))

    async def handle(stream: trio.abc.Stream) -> None:
        try:
            await handler(stream)
        finally:
            places.give()

    bounded = [BoundedListener(listener, places) for listener in listeners]
    await trio.serve_listeners(handle, bounded, handler_nursery=handler_nursery)


def descriptors(connections: int) -> int:
    """How many descriptors so many connections may take: each may ask for a file."""
    return 2 * connections + _OTHER_DESCRIPTORS


def affordable(wanted: int) -> int:
    """How many connections, up to *wanted*, this process has descriptors for; it is allowed more where that is free."""
    if sys.platform == "win32":
        return wanted
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = descriptors(wanted)
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        allowed = needed if most == resource.RLIM_INFINITY else min(needed, most)
        with suppress(OSError, ValueError):  # macOS: nothing is the limit, and too much is refused all the same
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        possible = max(1, allowed - min(_OTHER_DESCRIPTORS, allowed // 4))
        if possible < wanted:
            logger.warning("the limit of open files is %d: %d connections at once, not %d", allowed, possible, wanted)
            return possible
    return wanted
