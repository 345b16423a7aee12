"""The stream below a websocket of trio-websocket, which takes the short way with what there is most of.

trio-websocket does what a connection needs once or seldom: the handshake, pings, fragments, text, the end. Whole binary
messages, which are all calls and answers, pass it by: of each it would make several objects and two task switches,
which together take longer than everything else that this client does for a call (``docs/design.md``, *The client*).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Awaitable, Callable, Iterable

import trio

from hypha.wire.frame import Buffer
from hypha.wire.masking import apply_mask

_WHOLE_MESSAGE = 0x82  # final, binary
_MASKED = 0x80
_READ_BYTES, _LARGE_READ = 64 * 1024, 1024 * 1024
_SHORT = 32 * 1024  # bytes of what is joined to others
_HEAD_END = b"\r\n\r\n"
_UPGRADED = b"HTTP/1.1 101"

Take = Callable[[bytes], None]
#: A message that is sent: its bytes, one after the other.
Pieces = tuple[Buffer, ...]


def masked_message(pieces: Pieces) -> list[bytes]:
    """A whole binary message as clients send it: its head and its masked *pieces* (RFC 6455 section 5.3)."""
    size, mask = sum(map(len, pieces)), os.urandom(4)
    if size < 126:
        head = struct.pack(">BB", _WHOLE_MESSAGE, _MASKED | size)
    elif size < 65536:
        head = struct.pack(">BBH", _WHOLE_MESSAGE, _MASKED | 126, size)
    else:
        head = struct.pack(">BBQ", _WHOLE_MESSAGE, _MASKED | 127, size)
    masked = [head + mask]
    for piece in pieces:
        masked.append(apply_mask(piece, mask))
        turn = len(piece) % 4
        mask = mask[turn:] + mask[:turn]
    return masked


class MessageStream(trio.abc.Stream):
    """Sits between a connection and its websocket.

    *take* gets each whole binary message that comes, in order, and must not raise; set it before the first one. What
    else comes is for the websocket, which reads by :meth:`receive_some`. *wait_room* is awaited before anything is
    read: what comes may be answered.
    """

    def __init__(self, stream: trio.abc.Stream, wait_room: Callable[[], Awaitable[None]]) -> None:
        self.take: Take = lambda message: None
        self._stream = stream
        self._wait_room = wait_room
        self._sending = trio.Lock()
        self._sort: Callable[[bytes], bytes] = self._head
        self._held = b""
        self._passing = 0  # bytes of a frame that are still to come, and are the websocket's
        self._missing = 0  # the same of a message of ours
        self._parts: list[bytes] = []

    # --- out --------------------------------------------------------------------------------------------------

    async def send_messages(self, messages: Iterable[Pieces]) -> None:
        """Send binary messages, what is short of them together.

        Raises trio.BrokenResourceError. Cancelled, it leaves a stream of no further use.
        """
        short: list[bytes] = []
        async with self._sending:
            for message in messages:
                for piece in masked_message(message):
                    if len(piece) > _SHORT:
                        await self._stream.send_all(b"".join(short))
                        await self._stream.send_all(piece)
                        short = []
                    else:
                        short.append(piece)
            if short:
                await self._stream.send_all(b"".join(short))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """What the websocket itself has to say, between two messages."""
        async with self._sending:
            await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    # --- in ---------------------------------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What is for the websocket, of the next bytes that hold something for it."""
        while True:
            await self._wait_room()
            data = bytes(await self._stream.receive_some(_LARGE_READ if self._missing else _READ_BYTES))
            if not data:
                held, self._held = self._held, b""
                return held
            rest = self._sort(data)
            if rest:
                return rest

    def _head(self, data: bytes) -> bytes:
        """The answer to the upgrade, up to its end; frames follow when there was one."""
        seen = self._held + data
        end = seen.find(_HEAD_END)
        if end < 0:
            self._held = seen
            return b""
        self._held = b""
        if not seen.startswith(_UPGRADED):
            self._sort = _untouched
            return seen
        self._sort = self._frames
        end += len(_HEAD_END)
        return seen[:end] + self._frames(seen[end:])

    def _frames(self, data: bytes) -> bytes:
        if self._missing:
            data = self._gather(data)
        elif self._held:
            data, self._held = self._held + data, b""
        rest: list[bytes] = []
        position, end = 0, len(data)
        while position < end:
            if self._passing:
                stop = min(position + self._passing, end)
                rest.append(data[position:stop])
                self._passing -= stop - position
                position = stop
                continue
            head = _head_size(data, position)
            if head > end - position:
                self._held = data[position:]
                break
            size = _payload_size(data, position)
            if data[position] != _WHOLE_MESSAGE:
                self._passing = head + size
                continue
            start, position = position + head, position + head + size
            if position > end:
                self._parts, self._missing = [data[start:]], position - end
                break
            self.take(data[start:position])
        return b"".join(rest)

    def _gather(self, data: bytes) -> bytes:
        """Take what belongs to a message that came in part; return what follows it."""
        own, rest = data[: self._missing], data[self._missing :]
        self._parts.append(own)
        self._missing -= len(own)
        if not self._missing:
            whole = b"".join(self._parts)
            self._parts = []
            self.take(whole)
        return rest

    async def aclose(self) -> None:
        await self._stream.aclose()


def _untouched(data: bytes) -> bytes:
    """A connection that is no websocket."""
    return data


def _head_size(data: bytes, position: int) -> int:
    """Bytes of the head of the frame at *position*; more than there are when that is not known yet."""
    if len(data) - position < 2:
        return 2
    second = data[position + 1]
    return (2, 4, 10)[max(0, (second & 0x7F) - 125)] + (4 if second & _MASKED else 0)


def _payload_size(data: bytes, position: int) -> int:
    size = data[position + 1] & 0x7F
    if size < 126:
        return size
    return int.from_bytes(data[position + 2 : position + (4 if size == 126 else 10)], "big")
