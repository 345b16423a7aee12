"""Websocket framing (RFC 6455), the server's side of one connection: bytes in, messages out. No I/O.

Of our own because every message of every client passes here twice: a library that makes an event of each frame costs
twenty times as much (``docs/design.md``, *From a frame to its target*). Its conformance is tested against wsproto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from hypha.wire.masking import apply_mask

_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10
_FINAL = 0x80
_WHOLE_MESSAGE = _FINAL | _BINARY
_MASKED = 0x80
_MAX_CONTROL = 125  # bytes of a control frame (RFC 6455 section 5.5)
_MAX_REASON = 123  # bytes of a close reason: the code takes two
_PART = 32768  # bytes; smaller pieces of a large frame are put together
_JOINED = 1024 * 1024  # bytes of a payload that is joined at its end; a larger one grows, or the end would be a pause
#: Frames of more bytes are gathered in a buffer of their own instead of being joined chunk by chunk.
LARGE = 65536


@dataclass(frozen=True, slots=True)
class Closed:
    """The conversation is over.

    *by_peer*: the peer said goodbye with *code*, and *reply* is what it is owed. Otherwise it broke the websocket
    protocol, and *code* and *reason* are for :meth:`Codec.close`.
    """

    code: int
    reason: str
    by_peer: bool
    reply: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """Bytes that the peer is owed at once: a pong."""

    data: bytes


Message = bytes | bytearray
Incoming = Message | str | Reply | Closed | None


_HEAD_OF_TWO = struct.Struct(">BBH").pack


class _Violation(Exception):
    """The peer broke the protocol: close with *code*."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.closed = Closed(code, reason, by_peer=False)


def frame_head(opcode: int, size: int) -> bytes:
    """The head of an unfragmented, unmasked frame."""
    if size < 126:
        return bytes((_FINAL | opcode, size))
    if size < 65536:
        return struct.pack(">BBH", _FINAL | opcode, 126, size)
    return struct.pack(">BBQ", _FINAL | opcode, 127, size)


def message_head(size: int) -> bytes:
    """The head of a binary message of *size* bytes: :func:`frame_head`, which most of them can do without."""
    if 126 <= size < 65536:
        return _HEAD_OF_TWO(_WHOLE_MESSAGE, 126, size)
    return frame_head(_BINARY, size)


class Codec:
    """The server's side of one websocket. *limit*: the largest message in bytes that is taken.

    Holds at most one message of that size, and takes no more than was announced.
    """

    def __init__(self, limit: int, limit_name: str = "frame_bytes") -> None:
        self._limit, self._limit_name = limit, limit_name
        self._held = b""  # the beginning of a frame
        self._large: _LargeFrame | None = None
        self._opcode = 0  # of the message whose fragments are being gathered, 0 when there is none
        self._fragments = bytearray()  # one buffer: a list of a million small ones takes fifty times their bytes
        self._over = False  # a close frame has come, or what cannot be read
        self._closing = False  # a close frame was sent

    def feed(self, data: bytes) -> Iterator[Incoming]:
        """The messages that *data* completes, in order. After :class:`Closed` nothing more comes.

        None stands for a frame that is none and completes none: it has taken its time all the same.
        """
        if self._over:
            return
        try:
            large = self._large
            if large is None:
                data = self._held + data if self._held else data
            else:
                data = large.add(data)
                if large.missing:
                    return
                self._large = None
                yield from self._handed_out(large.first, large.payload())
            yield from self._frames(data)
        except _Violation as violation:
            self._over = True
            yield violation.closed

    def raise_limit(self, limit: int) -> None:
        """Take messages of up to *limit* bytes from now on."""
        self._limit, self._limit_name = limit, "frame_bytes"

    # --- frames in ----------------------------------------------------------------------------------------------

    def _frames(self, data: bytes) -> Iterator[Incoming]:
        position, end = 0, len(data)
        while end - position >= 2:
            first, second = data[position], data[position + 1]
            size, start = second & 0x7F, position + 6
            if size == 126:
                if end - position < 4:
                    break
                size = data[position + 2] << 8 | data[position + 3]
                start += 2
            elif size == 127:
                if end - position < 10:
                    break
                size = int.from_bytes(data[position + 2 : position + 10], "big")
                start += 8
            if first != _WHOLE_MESSAGE or second < _MASKED or size > self._limit or self._opcode:
                self._check(first, second, size)
            stop = start + size
            if stop > end:
                if size > LARGE and start <= end:
                    self._large = _LargeFrame(first, size, data[start - 4 : start])
                    self._large.add(memoryview(data)[start:])
                    position = end
                break
            payload = apply_mask(
                data[start:stop] if size < _PART else memoryview(data)[start:stop], data[start - 4 : start]
            )
            position = stop
            if first == _WHOLE_MESSAGE and not self._opcode:
                yield payload
            else:
                yield from self._handed_out(first, payload)
                if self._over:
                    return
        self._held = data[position:]

    def _check(self, first: int, second: int, size: int) -> None:
        """Refuse a frame by its head, before its payload is taken."""
        opcode = first & 0x0F
        if first & 0x70:
            raise _Violation(1002, "reserved bits are set, and no extension was negotiated")
        if second < _MASKED:
            raise _Violation(1002, "a client must mask its frames")
        if opcode >= _CLOSE:
            if opcode > _PONG:
                raise _Violation(1002, f"unknown opcode {opcode}")
            if not first & _FINAL or size > _MAX_CONTROL:
                raise _Violation(1002, "a control frame must be whole and short")
            return
        if opcode > _BINARY:
            raise _Violation(1002, f"unknown opcode {opcode}")
        if bool(opcode) == bool(self._opcode):
            raise _Violation(1002, "a fragment is out of order")
        if len(self._fragments) + size > self._limit:
            raise _Violation(1009, f"a message is larger than {self._limit_name} = {self._limit}")

    def _handed_out(self, first: int, payload: Message) -> Iterator[Incoming]:
        """What a checked frame means: a message when it is the last one of it, an answer, the end, or None."""
        opcode = first & 0x0F
        if opcode == _PING:
            yield Reply(frame_head(_PONG, len(payload)) + payload)
        elif opcode == _CLOSE:
            self._over = True
            yield self._closed(bytes(payload))
        elif opcode == _PONG:
            yield None
        elif opcode and first & _FINAL:
            yield payload if opcode == _BINARY else _text(payload)
        else:
            self._opcode = self._opcode or opcode
            self._fragments += payload
            yield self._joined() if first & _FINAL else None

    def _joined(self) -> Message | str:
        opcode, whole = self._opcode, self._fragments
        self._opcode, self._fragments = 0, bytearray()
        return whole if opcode == _BINARY else _text(whole)

    def _closed(self, payload: bytes) -> Closed:
        if not payload:
            return Closed(1005, "", True, self._close_frame(b""))
        code = int.from_bytes(payload[:2], "big")
        if len(payload) == 1 or not _may_be_sent(code):
            raise _Violation(1002, f"close code {code} may not be sent")
        return Closed(code, _text(payload[2:]), True, self._close_frame(payload[:2]))

    # --- frames out ---------------------------------------------------------------------------------------------

    def ping(self) -> bytes:
        """A ping frame; empty once a close frame was sent."""
        return b"" if self._closing else frame_head(_PING, 0)

    def text(self, message: str) -> bytes:
        """A text message, for modern clients only: the legacy ones break on text (``protocol.md`` 1.2)."""
        payload = message.encode()
        return frame_head(_TEXT, len(payload)) + payload

    def close(self, code: int, reason: str) -> bytes:
        """A close frame; empty when one was sent already. A long *reason* is cut, 1006 is sent without a code."""
        if not _may_be_sent(code):
            return self._close_frame(b"")
        text = reason.encode()[:_MAX_REASON].decode(errors="ignore")
        return self._close_frame(code.to_bytes(2, "big") + text.encode())

    def _close_frame(self, payload: bytes) -> bytes:
        if self._closing:
            return b""
        self._closing = True
        return frame_head(_CLOSE, len(payload)) + payload


class _LargeFrame:
    """A frame of more than :data:`LARGE` bytes: its payload is unmasked as it comes, and joined once.

    It takes the memory of what has come, not of what was announced, however small the pieces.
    """

    __slots__ = ("_grows", "_mask", "_parts", "first", "missing")

    def __init__(self, first: int, size: int, mask: bytes) -> None:
        self.first = first
        self.missing = size
        self._grows = size > _JOINED
        self._mask = mask
        self._parts: list[bytes | bytearray] = []

    def add(self, data: bytes | memoryview) -> bytes:
        """Take what belongs to the frame; return the rest."""
        own, rest = memoryview(data)[: self.missing], memoryview(data)[self.missing :]
        payload = apply_mask(own, self._mask)
        self.missing -= len(own)
        turn = len(own) % 4
        self._mask = self._mask[turn:] + self._mask[:turn]
        if len(payload) >= _PART and not self._grows:
            self._parts.append(payload)
        elif self._parts and (self._grows or len(self._parts[-1]) < _PART):
            self._parts[-1] += payload
        else:
            self._parts.append(bytearray(payload))
        return bytes(rest)

    def payload(self) -> Message:
        """The whole payload. Ask once, when nothing is missing."""
        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        return whole


def _may_be_sent(code: int) -> bool:
    """Whether a close frame may hold *code* (RFC 6455 section 7.4 and the IANA registry)."""
    return (1000 <= code <= 1014 and code not in {1004, 1005, 1006}) or 3000 <= code <= 4999


def _text(payload: Message) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as exc:
        raise _Violation(1007, "text that is not UTF-8") from exc
