"""The queue of bytes towards one peer, and the socket that it is written to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import trio

from hypha.wire.frame import Buffer

#: Bytes up to which what waits is joined before it is written.
_JOINED = 65536


class Transport(Protocol):
    """The socket that serves a session now (``decisions.md`` 5)."""

    def frame(self, size: int) -> bytes:
        """What goes in front of a binary message of *size* bytes."""

    def write_now(self, buffers: Sequence[Buffer]) -> int:
        """Write without waiting; return how many bytes were taken (0 where that is impossible)."""

    async def send_all(self, data: Buffer) -> None:
        """Write all of *data*. Raises trio.BrokenResourceError or trio.ClosedResourceError."""

    def start_soon(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run *task* in the connection's nursery: the writer of a full socket, a call of the server's services."""

    def close(self, code: int, reason: str) -> None:
        """Begin to end the connection with a websocket close *code*; return at once."""


class Outbox:
    """The queue of bytes towards one peer, bounded; one writer at a time drains it.

    A frame enters when it fits into *limit* or when the queue is empty, and when nobody has waited longer for room:
    small frames would get ahead of a large one for ever. The server's own control frames may use *reserve* bytes more
    and never wait. :meth:`flush` writes what the socket takes at once; only when it is full does a writer task in the
    peer's connection nursery take over.
    """

    __slots__ = (
        "_admitted",
        "_closed",
        "_dirty",
        "_frame",
        "_limit",
        "_line",
        "_parts",
        "_reserve",
        "_room",
        "_transport",
        "_writing",
        "delivered",
        "missed",
        "pending",
        "stalled_since",
        "torn",
    )

    def __init__(self, transport: Transport, limit: int, reserve: int, dirty: DirtyOutboxes) -> None:
        self._transport = transport
        self._frame = transport.frame
        self._dirty = dirty
        #: Negative when nothing is taken any more.
        self._limit = limit
        self._reserve = reserve
        self._closed = False
        self._parts: list[Buffer] = []
        self._room = trio.lowlevel.ParkingLot()
        #: Who waits for room, the one whose turn it is first.
        self._line: list[object] = []
        #: Whether somebody's turn has come who has not put yet.
        self._admitted = False
        self._writing = False
        self.pending = 0
        self.missed = 0
        #: Messages of other peers that were taken so far.
        self.delivered = 0
        #: trio time since which data waits without the peer taking a byte, None when nothing waits.
        self.stalled_since: float | None = None
        #: True when it was closed before all was written: perhaps within a frame, so that nothing may follow it.
        self.torn = False

    def fits(self, size: int) -> bool:
        """Whether a message of *size* bytes may enter now."""
        return self._has_room(size) and (not self._line or self._admitted)

    def _has_room(self, size: int) -> bool:
        # One message always enters an empty queue.
        return self.pending + size <= self._limit or (not self.pending and self._limit >= 0)

    def put(self, header: Buffer, body: Buffer = b"") -> bool:
        """Queue one message. False when there is no room."""
        size = len(header) + len(body)
        pending = self.pending  # as fits() says; this is done for every message
        if pending + size > self._limit and (pending or self._limit < 0):
            return False
        if self._line and not self._admitted:
            return False
        self._admitted = False
        self.delivered += 1
        self._enter(size, header, body)
        return True

    def put_control(self, header: Buffer, body: Buffer = b"") -> bool:
        """Queue a message of the server's own. False, and counted as missed, when even the reserve is full."""
        size = len(header) + len(body)
        if not self._has_room(size - self._reserve):
            self.missed += 1
            return False
        self._enter(size, header, body)
        return True

    def put_raw(self, data: bytes) -> None:
        """Queue bytes that are framed already: pongs and pings, which are short and bounded by their senders."""
        if data and self.pending + len(data) <= self._limit + self._reserve:
            self._parts.append(data)
            self.pending += len(data)
            self._dirty[self] = None

    def _enter(self, size: int, header: Buffer, body: Buffer) -> None:
        head = self._frame(size)
        self._parts += (head, header, body)
        self.pending += len(head) + size
        self._dirty[self] = None

    def end_with(self, data: bytes) -> None:
        """Queue the last bytes, framed already, behind what waits: nothing is taken after them."""
        self.put_raw(data)
        self._limit = self._reserve = -1

    def flush(self) -> None:
        """Write what the socket takes now; hand the rest to the writer task."""
        if self._writing or not self._parts:
            return
        self._took(self._transport.write_now(self._gathered()))
        if self._parts:
            self._writing = True
            self.stalled_since = trio.current_time()
            self._transport.start_soon(self._drain)

    def _gathered(self) -> list[Buffer]:
        """The parts, as one where copying them costs less than handing each to the kernel."""
        if self.pending <= _JOINED and len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        return self._parts

    def _took(self, count: int) -> None:
        if not count or self._closed:
            return
        self.pending -= count
        if not self.pending:
            self._parts.clear()
        else:
            whole = 0
            for part in self._parts:
                if count < len(part):
                    break
                count -= len(part)
                whole += 1
            del self._parts[:whole]
            if count:
                self._parts[0] = memoryview(self._parts[0])[count:]
        if self._room:
            self._room.unpark_all()

    async def _drain(self) -> None:
        """The writer: sends until the queue is empty. A broken socket ends it; the reader finds the same.

        Wherever it is stopped, what is left is dropped: how much of a frame is out is not known then, and the peer
        would read anything that follows as the frame's rest.
        """
        try:
            while self._parts:
                part = memoryview(self._parts[0])[:65536]  # one stall clock for each 64 KiB
                await self._transport.send_all(part)
                self._took(len(part))
                if self._parts:
                    self._took(self._transport.write_now(self._gathered()))
                self.stalled_since = trio.current_time()
            self.stalled_since = None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._transport.close(1006, "the socket broke while writing")
        finally:
            self._writing = False
            if self._parts:
                self.close()
            self._room.unpark_all()

    async def wait_room(self, size: int) -> None:
        """Wait until a message of *size* bytes may enter, or the peer is gone. Who waits first is first.

        Put it before the next checkpoint. Cancel it freely.
        """
        place = object()
        self._line.append(place)
        try:
            await self._wait(lambda: self._line[0] is place and self._has_room(size))
            self._admitted = True
        finally:
            self._line.remove(place)
            self._room.unpark_all()  # the next one may have room, too

    async def wait_empty(self) -> None:
        """Wait until all is written, or the peer is gone. Cancel it freely."""
        await self._wait(lambda: not self.pending)

    async def _wait(self, condition: Callable[[], bool]) -> None:
        self.flush()
        await trio.lowlevel.checkpoint()
        while not self._closed and not condition():
            await self._room.park()

    def close(self) -> None:
        """Drop what waits and wake who waits for room; nothing is taken any more."""
        self.torn = self.torn or bool(self._parts)
        self._parts.clear()
        self.pending = 0
        self._limit = self._reserve = -1
        self._closed = True
        self._room.unpark_all()


#: The outboxes that were put into since the last flush, in order. One per broker: whoever puts without flushing
#: calls :func:`flush_dirty` before it waits for anything.
DirtyOutboxes = dict[Outbox, None]


def flush_dirty(dirty: DirtyOutboxes) -> None:
    """Flush each touched outbox once: one gathering write per target, whatever the number of frames."""
    while dirty:
        dirty.popitem()[0].flush()
