"""The second value of a message, as far as it concerns those between sender and receiver.

Receivers merge it over the header, and it wins (``protocol.md`` 2.1): a body with a ``method`` of its own would walk
around every check of the router, and one with a ``ctx`` would forge what a function learns of its caller. And a body
that a Python client cannot decode ends that client's listening for good. So a body passes only if every receiver can
read it and it says nothing that the header says. It is forwarded as it came.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgpack

from hypha.errors import ProtocolViolation
from hypha.wire.frame import RESERVED, Buffer, Frame, reserved, unpack_body, without_reserved

_ENCODED = frozenset(key.encode() for key in RESERVED)

_MAX_KEY = 64  # bytes of a key that the end of a part has cut; no client writes longer ones
_MAX_ENTRIES = 64  # of the outermost map; clients write four, and each is looked at by itself
_MAX_OPEN = 32  # lists and maps that reach from one part into the next, one in another
_MAX_HEAD = 5  # bytes in front of what a text, list or map holds

#: The first byte of a value -> form of the number that follows, and what it counts: times so many, and more.
_SIZED = (
    dict.fromkeys((0xC4, 0xD9), (">B", 1, 0))
    | dict.fromkeys((0xC5, 0xDA, 0xDC), (">H", 1, 0))
    | dict.fromkeys((0xC6, 0xDB, 0xDD), (">I", 1, 0))
    | {0xC7: (">B", 1, 1), 0xC8: (">H", 1, 1), 0xC9: (">I", 1, 1)}  # an extension has a byte for its type
    | {0xDE: (">H", 2, 0), 0xDF: (">I", 2, 0)}  # an entry of a map is two values
)
_MAPS = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})
_CONTAINERS = _MAPS | {*range(0x90, 0xA0), 0xDC, 0xDD}
#: The first byte of a number, or of an extension of a fixed size -> its size in bytes.
_SHORT = dict(zip(range(0xCA, 0xD9), (5, 9, 2, 3, 5, 9, 2, 3, 5, 9, 3, 4, 6, 10, 18), strict=True))
#: The same for all values of a fixed size.
_FIXED = _SHORT | dict.fromkeys((*range(0x80), *range(0xC0, 0xC4), *range(0xE0, 0x100)), 1)
#: The first byte of a text, or of bytes, which are a key, too.
_TEXTS = frozenset({*range(0xA0, 0xC0), 0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB})
_LONG_BYTES = frozenset({0xC5, 0xC6})
_NO_BYTES = b"\xc4\x00"
_LONG = 4096  # bytes; shorter ones are copied sooner than passed over
_MAX_LOOKED_AT = 256  # values that are looked at one by one
_LIST = struct.Struct(">BI")


def check_body(frame: Frame) -> None:
    """Raise :class:`ProtocolViolation` unless the body of *frame* is absent or may pass."""
    if not frame.is_clean:
        without_reserved(unpack_body(_without_long_bytes(frame.body)))
        frame.is_clean = True  # it may be routed again, when there was no room


def _without_long_bytes(body: Buffer) -> Buffer:
    """*body* with nothing in the place of long byte strings, which may hold anything.

    Most large messages are a few small values around an array; so they are checked without being copied. Where there
    are many values the rest is left as it is.
    """
    rest, _ = split_long_bytes(body, lambda number: _NO_BYTES)
    return rest


def split_long_bytes(body: Buffer, stand_in: Callable[[int], bytes]) -> tuple[Buffer, list[memoryview]]:
    """*body* with *stand_in* of 0, 1, ... in the places of its first long byte strings, and these, not copied."""
    data = memoryview(body)
    kept: list[Buffer] = []
    cut: list[memoryview] = []
    position = begin = looked_at = 0
    missing = 1
    while missing and position < len(data) and looked_at < _MAX_LOOKED_AT:
        first = data[position]
        missing -= 1
        looked_at += 1
        if first in _FIXED:
            position += _FIXED[first]
            continue
        head, number = _read_head(data[position : position + _MAX_HEAD])
        if first in _CONTAINERS:
            missing += number
            position += head
        elif first in _LONG_BYTES and number >= _LONG and position + head + number <= len(data):
            kept += [data[begin:position], stand_in(len(cut))]
            position = begin = position + head + number
            cut.append(data[position - number : position])
        else:
            position += head + number
    return (b"".join((*kept, data[begin:])) if kept else body), cut


class BodyScan:
    """Follows a body that comes in parts: the keys of its outermost map, and where it ends.

    Keeps nothing of it. What is whole in a part is passed over by msgpack in C; only lists, maps and texts that the
    end of a part cuts are entered here.
    """

    __slots__ = ("_begun", "_cut", "_gap", "_open")

    def __init__(self) -> None:
        self._begun = False
        #: Values that are still to come in each list and map that is open, the outermost first.
        self._open: list[int] = []
        #: Bytes that are still to come of a text.
        self._gap = 0
        #: The beginning of a head that was cut.
        self._cut = b""

    @property
    def complete(self) -> bool:
        """Whether the body has ended, or there is none."""
        return not (self._open or self._gap or self._cut)

    def feed(self, part: Buffer) -> None:
        """Take the next part. Raises :class:`ProtocolViolation` for what may not pass."""
        data = memoryview(self._cut + part if self._cut else part)
        self._cut = b""
        position = min(self._gap, len(data))
        self._gap -= position
        while position < len(data):
            if self._begun and not self._open:
                raise ProtocolViolation("a message is two values, and nothing follows them")
            position = self._pass_over(data, position)
            if position < len(data) and (self._open or not self._begun):
                position = self._enter(data, position)

    def _pass_over(self, data: memoryview, position: int) -> int:
        """Pass over the values that are whole; return where the first one begins that is not."""
        batch = 1
        while self._open and position < len(data):
            batch = 1 if len(self._open) == 1 else min(batch, self._open[-1])
            size = _size_of_key(data[position:]) if self._at_key else _size_of(data[position:], batch)
            if size:
                position += size
                self._took(batch)
                batch *= 2
            elif batch > 1:
                batch = max(1, batch // 4)
            else:
                break
        return position

    @property
    def _at_key(self) -> bool:
        return len(self._open) == 1 and self._open[0] % 2 == 0

    def _took(self, count: int) -> None:
        if self._open:
            self._open[-1] -= count
        while self._open and not self._open[-1]:
            self._open.pop()

    def _enter(self, data: memoryview, position: int) -> int:
        """Go into the value at *position*, which the end of *data* cuts; return where to go on."""
        first, left = data[position], len(data) - position
        head, number = _read_head(data[position : position + _MAX_HEAD])
        if left < head or self._at_key or first in _SHORT:
            return self._keep(data, position)
        if first in _CONTAINERS:
            self._open_one(number, is_map=first in _MAPS)
            return position + head
        if not self._begun:
            raise ProtocolViolation("the body is not a map")
        self._gap = head + number - left
        self._took(1)
        return len(data)

    def _keep(self, data: memoryview, position: int) -> int:
        self._cut = bytes(data[position:])
        if len(self._cut) > _MAX_KEY:
            raise ProtocolViolation("a key of the body is too long")
        return len(data)

    def _open_one(self, values: int, *, is_map: bool) -> None:
        if not self._begun and not is_map:
            raise ProtocolViolation("the body is not a map")
        if not self._begun and values > 2 * _MAX_ENTRIES:
            raise ProtocolViolation(f"the body has more than {_MAX_ENTRIES} entries")
        if len(self._open) >= _MAX_OPEN:
            raise ProtocolViolation(f"more than {_MAX_OPEN} lists and maps of the body are open where a part ends")
        self._begun = True
        if self._open:
            self._open[-1] -= 1
        self._open.append(values)
        if not values:  # the outermost: any other empty one is whole
            self._open.pop()


def _size_of(data: memoryview, count: int) -> int:
    """The size in bytes of the first *count* values of *data*; 0 when they are not all there."""
    reader = msgpack.Unpacker(max_buffer_size=0)
    # As one list they are passed over in C, however many they are.
    reader.feed(_LIST.pack(0xDD, count))
    reader.feed(data)
    try:
        reader.skip()
    except msgpack.OutOfData:
        return 0
    except (ValueError, msgpack.UnpackException) as exc:
        raise ProtocolViolation("the body is not msgpack") from exc
    size: int = reader.tell()
    return size - _LIST.size


def _size_of_key(data: memoryview) -> int:
    """The size in bytes of the key that *data* begins with; 0 when it is not all there, or too long."""
    if data[0] not in _TEXTS:
        raise ProtocolViolation("a key of the body is not text")
    reader = msgpack.Unpacker(raw=True, max_buffer_size=0)
    reader.feed(data[:_MAX_KEY])
    try:
        key = reader.unpack()
    except msgpack.OutOfData:
        return 0
    except (ValueError, msgpack.UnpackException) as exc:
        raise ProtocolViolation("the body is not msgpack") from exc
    if not isinstance(key, bytes):
        raise ProtocolViolation("a key of the body is not text")
    if key in _ENCODED:
        raise reserved(key.decode())
    size: int = reader.tell()
    return size


def _read_head(start: memoryview) -> tuple[int, int]:
    """The size of a value's head, and the bytes or values that follow it; 0 where *start* does not reach so far."""
    first = start[0]
    if first in _SIZED:
        form, times, more = _SIZED[first]
        head = 1 + struct.calcsize(form)
        return head, struct.unpack_from(form, start, 1)[0] * times + more if len(start) >= head else 0
    if 0x80 <= first <= 0x8F:
        return 1, (first & 0x0F) * 2
    return 1, first & (0x0F if 0x90 <= first <= 0x9F else 0x1F)
