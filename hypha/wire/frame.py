"""One message: a header, decoded, and a body, which goes on as it came (``protocol.md`` 2.1 to 2.3)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from hypha.errors import ProtocolViolation

Buffer = bytes | bytearray | memoryview

#: Bytes of a message up to which it is decoded whole, in one go and once. Of a longer one the body is decoded when
#: somebody needs it: to most of them it is a few fields around an array.
SMALL = 32 * 1024
_LONG_LIST = 1024  # items
_PEEK = 4096  # bytes; headers are a few hundred, so a large body is not touched to find its beginning

#: The fields of a header that only the server may write.
STAMPED = ("from", "user", "ws")
#: What a body must not hold: the fields that the server stamps or decides by, and the name under which receivers keep
#: them for functions. Receivers merge the body over the header, and it wins (``protocol.md`` 2.1).
RESERVED = frozenset({*STAMPED, "type", "to", "method", "session", "parent", "ctx"})

# 16 MiB of empty lists would be a GiB of objects and take seconds, so each array and map of a body counts extra.
MAX_VALUES = 2_000_000
_CONTAINER_COST = 8

_NOT_MSGPACK = "the message is not msgpack"
_NOT_ONE_VALUE = "the body is not one msgpack value"
_NOT_A_MAP = "the body is not a map"

packer = msgpack.Packer(autoreset=True)
_COUNTED_MAPS = (0xDE, 0xDF)  # map 16 and map 32
_MAP_HEADS = [bytes((0x80 | count,)) for count in range(16)]


@dataclass(frozen=True, slots=True)
class HeaderBounds:
    """How large a header may be: encoded bytes, number of fields, nesting of the fields we do not know."""

    size: int = 64 * 1024
    fields: int = 64
    depth: int = 32


class Frame:
    """A parsed message.

    *fields* is the header without what only the server may say (``from``, ``user``, ``ws``); unknown fields are kept.
    *body* is the rest of the message, as it came. *is_clean* says that it was decoded and may pass; otherwise nobody
    has looked yet.
    """

    __slots__ = ("_extra", "body", "fields", "is_clean", "method", "parent", "session", "to", "type")

    def __init__(
        self,
        to: str,
        kind: str,
        method: str | None,
        session: str | None,
        parent: str | None,
        fields: dict[str, Any],
        body: Buffer,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """*extra* is the decoded body, without anything that it must not hold (:data:`RESERVED`)."""
        self.to = to
        self.type = kind
        self.method = method
        self.session = session
        self.parent = parent
        self.fields = fields
        self.body = body
        self._extra = extra
        self.is_clean = extra is not None

    @property
    def wants_answer(self) -> bool:
        """True for a primary call, false for results, heartbeats and events (``protocol.md`` 2.5)."""
        return self.session is not None and self.type == "method"

    def extra(self) -> dict[str, Any]:
        """The decoded body, an empty map when there is none. Raises :class:`ProtocolViolation`."""
        if self._extra is None:
            self._extra = without_reserved(unpack_body(self.body))
        return self._extra

    def set_body(self, body: Buffer) -> None:
        """Put another *body* in the place of the one that came."""
        self.body, self._extra, self.is_clean = body, None, False


class FrameReader:
    """Reads messages whose headers are within *bounds*.

    It keeps nothing from one message to the next, so that one reader serves all connections of a thread.
    """

    def __init__(self, bounds: HeaderBounds) -> None:
        self._bounds = bounds
        self._most_fields = bounds.fields
        self._small = min(SMALL, bounds.size)
        self._begin()

    def _begin(self) -> None:
        # A fresh one for each message would cost more than the decoding of most of them. It makes room for the items
        # of a list before it has seen them, so that the long ones are left to those who look first.
        self._unpacker = msgpack.Unpacker(
            strict_map_key=True, max_buffer_size=max(self._small, 1), max_array_len=_LONG_LIST
        )
        self._passed = 0  # bytes that the unpacker has read, negative when nobody knows

    def read(self, data: Buffer) -> Frame:
        """Read one binary message. A long body is not copied. Raises :class:`ProtocolViolation`."""
        if len(data) <= self._small:
            frame = self._read_whole(data)
            if frame is not None:
                return frame
            self._begin()
        self._check_count(data)
        header, size = _first_value(data, self._bounds.size)
        return self._frame(header, memoryview(data)[size:], None)

    def _check_count(self, data: Buffer) -> None:
        """Refuse a header of very many fields before they are decoded: it is a map with a count in front."""
        if len(data) > 4 and data[0] in _COUNTED_MAPS:
            width = 2 if data[0] == _COUNTED_MAPS[0] else 4
            self._check_fields(int.from_bytes(data[1 : 1 + width], "big"))

    def _check_fields(self, count: int) -> None:
        if count > self._most_fields:
            raise ProtocolViolation(f"the header has more than header_keys = {self._most_fields} fields")

    def _read_whole(self, data: Buffer) -> Frame | None:
        """A short message with its body; None when something is unusual, which may be an error."""
        if self._passed < 0:
            self._begin()  # an error from elsewhere, such as a lack of memory, has left another's message in it
        unpacker, start, end = self._unpacker, self._passed, self._passed + len(data)
        self._passed = -1
        try:
            unpacker.feed(data)
            header = unpacker.unpack()
            size = unpacker.tell() - start
            extra = unpacker.unpack() if size < len(data) else {}
        except (ValueError, msgpack.OutOfData):
            return None
        if unpacker.tell() != end or type(extra) is not dict or not RESERVED.isdisjoint(extra):
            return None
        self._passed = end
        return self._frame(header, data[size:], extra)

    def _frame(self, header: Any, body: Buffer, extra: dict[str, Any] | None) -> Frame:
        if type(header) is not dict:
            raise ProtocolViolation("the message does not begin with a map")
        if len(header) > self._most_fields:
            self._check_fields(len(header))
        get = header.get
        to, kind, method, session, parent = get("to"), get("type"), get("method"), get("session"), get("parent")
        if type(to) is not str or not to:
            raise ProtocolViolation("the header has no 'to'")
        if kind is None:
            raise ProtocolViolation("the header has no 'type'")
        if (
            type(kind) is not str
            or (method is not None and type(method) is not str)
            or (session is not None and type(session) is not str)
            or (parent is not None and type(parent) is not str)
        ):
            raise _no_text(header)
        if not method and kind == "method":
            raise ProtocolViolation("a call needs a 'method'")
        header.pop("from", None)
        if len(header) > 5 - (method, session, parent).count(None):
            _drop_and_check_others(header, self._bounds.depth)
        return Frame(to, kind, method, session, parent, header, body, extra)


def _first_value(data: Buffer, limit: int) -> tuple[Any, int]:
    """The first msgpack value of *data* and its size in bytes."""
    if len(data) > _PEEK:
        try:
            return first_value(memoryview(data)[: min(_PEEK, limit)])
        except ValueError:
            pass  # the header is longer than the peek, or broken: the second look tells
    head = memoryview(data)[:limit]
    try:
        return first_value(head)
    except ValueError as exc:
        if len(data) > limit:
            raise ProtocolViolation(f"no header within header_bytes = {limit} bytes") from exc
        raise ProtocolViolation(_NOT_MSGPACK) from exc


def first_value(data: Buffer) -> tuple[Any, int]:
    """Decode the first msgpack value of *data*; return it and its size in bytes.

    Raises ValueError when the value is incomplete or malformed.
    """
    size = size_of_first(data)
    return msgpack.unpackb(memoryview(data)[:size], strict_map_key=True), size


def size_of_first(data: Buffer) -> int:
    """The size in bytes of the first value of *data*. Raises ValueError when it is incomplete or malformed.

    This looks without making anything: a few bytes can claim to be lists of thousands, one in another, for which a
    decoder makes room before it finds out.
    """
    reader = msgpack.Unpacker(max_buffer_size=0)
    reader.feed(data)
    try:
        reader.skip()
    except msgpack.OutOfData:
        raise ValueError("the value is incomplete") from None
    size: int = reader.tell()
    return size


def _no_text(header: Mapping[str, Any]) -> ProtocolViolation:
    names = ("type", "method", "session", "parent")
    wrong = next(name for name in names if header.get(name) is not None and type(header[name]) is not str)
    return ProtocolViolation(f"header field {wrong!r} must be text")


def _drop_and_check_others(header: dict[Any, Any], depth: int) -> None:
    """Drop what only the server may say and what is null; what we do not know must be readable for the receiver."""
    for name in STAMPED:
        header.pop(name, None)
    for name in ("method", "session", "parent"):
        if name in header and header[name] is None:
            del header[name]
    if not all(type(name) is str for name in header):
        raise ProtocolViolation("header fields must have names of text")
    for value in header.values():
        _check_plain(value, depth, depth)


def _check_plain(value: Any, allowed: int, depth: int) -> None:
    """Raise :class:`ProtocolViolation` for extension types, and for lists and maps deeper than *allowed* more."""
    if isinstance(value, msgpack.ExtType | msgpack.Timestamp):
        raise ProtocolViolation("the header must not hold extension types")
    if not isinstance(value, dict | list):
        return
    if allowed == 1:
        raise ProtocolViolation(f"the header is nested deeper than header_depth = {depth}")
    for item in value.values() if isinstance(value, dict) else value:
        _check_plain(item, allowed - 1, depth)


def without_reserved(extra: dict[str, Any]) -> dict[str, Any]:
    """*extra*, a decoded body. Raises :class:`ProtocolViolation` when it holds one of :data:`RESERVED`."""
    if not RESERVED.isdisjoint(extra):
        raise reserved(next(key for key in extra if key in RESERVED))
    return extra


def reserved(key: str) -> ProtocolViolation:
    """What is wrong with a body that holds *key*."""
    return ProtocolViolation(f"the body must not hold {key!r}, which belongs into the header")


def unpack_body(body: Buffer, map_hook: Callable[[dict[Any, Any]], dict[Any, Any]] | None = None) -> dict[str, Any]:
    """Decode a whole body; an absent one is an empty map. Raises :class:`ProtocolViolation`.

    *map_hook* gets each map, the inner ones first, and gives what is to stand in its place.
    """
    if not len(body):
        return {}
    limits: dict[str, Any] = {"max_array_len": MAX_VALUES, "max_map_len": MAX_VALUES, "object_hook": map_hook}
    if len(body) * (1 + _CONTAINER_COST) > MAX_VALUES:  # a short one cannot hold too many
        count = limits["list_hook"] = _counter()
        limits["object_hook"] = count if map_hook is None else lambda items: map_hook(count(items))
    try:
        if size_of_first(body) != len(body):
            raise ProtocolViolation(_NOT_ONE_VALUE)
        extra = msgpack.unpackb(body, strict_map_key=True, **limits)
    except ValueError as exc:  # msgpack's own exceptions and UnicodeDecodeError are ValueErrors
        raise ProtocolViolation(_NOT_ONE_VALUE) from exc
    if not isinstance(extra, dict):
        raise ProtocolViolation(_NOT_A_MAP)
    return extra


def _counter() -> Callable[[Any], Any]:
    """A hook for lists and maps that raises :class:`ProtocolViolation` when all of them hold too many values."""
    room = MAX_VALUES

    def count(items: Any) -> Any:
        nonlocal room
        room -= len(items) + _CONTAINER_COST
        if room < 0:
            raise ProtocolViolation(f"the body holds more than {MAX_VALUES} values")
        return items

    return count


@dataclass(frozen=True, slots=True)
class Fields:
    """Encoded header fields, ready to be joined to a header: made once per session, used in every frame."""

    count: int
    data: bytes

    @classmethod
    def encode(cls, fields: Mapping[str, Any]) -> Fields:
        """Encode *fields* in their order."""
        return cls(len(fields), b"".join(packer.pack(name) + packer.pack(value) for name, value in fields.items()))


def encode_header(fields: Mapping[str, Any], stamp: Fields) -> bytes:
    """One msgpack map of *fields* and the encoded *stamp*."""
    packed, count = packer.pack(fields), len(fields) + stamp.count
    # Without the head of the fields alone: there is one for both.
    if count < 16:
        return b"".join((_MAP_HEADS[count], packed[1:], stamp.data))
    return b"".join((struct.pack(">BH", 0xDE, count), packed[1 if len(fields) < 16 else 3 :], stamp.data))
