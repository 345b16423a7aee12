"""One message: a header, decoded, and a body, never decoded by the router (``protocol.md`` 2.1 to 2.3)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from hypha.errors import ProtocolViolation

Buffer = bytes | bytearray | memoryview

_PEEK = 4096  # bytes; headers are a few hundred, so a large body is not touched to find its beginning
_NAMED_FIELDS = ("type", "method", "session", "parent")
_STAMPED_FIELDS = ("from", "user", "ws")

packer = msgpack.Packer(autoreset=True)


@dataclass(frozen=True, slots=True)
class HeaderBounds:
    """How large a header may be: encoded bytes, number of fields, nesting of the fields we do not know."""

    size: int = 64 * 1024
    fields: int = 64
    depth: int = 32


@dataclass(slots=True)
class Frame:
    """A parsed message.

    *fields* is the header without ``to`` and without what only the server may say (``from``, ``user``, ``ws``);
    unknown fields are kept. *body* is the rest of the message, as it came.
    """

    to: str
    type: str
    method: str | None
    session: str | None
    parent: str | None
    fields: dict[str, Any]
    body: Buffer

    @property
    def wants_answer(self) -> bool:
        """True for a primary call, false for results, heartbeats and events (``protocol.md`` 2.5)."""
        return self.session is not None and self.type == "method"


def parse_frame(data: Buffer, bounds: HeaderBounds) -> Frame:
    """Parse one binary message without copying its body. Raises :class:`ProtocolViolation`."""
    header, size = _first_value(data, bounds.size)
    if type(header) is not dict:
        raise ProtocolViolation("the message does not begin with a map")
    if len(header) > bounds.fields:
        raise ProtocolViolation(f"the header has more than header_keys = {bounds.fields} fields")
    to = header.pop("to", None)
    if type(to) is not str or not to:
        raise ProtocolViolation("the header has no 'to'")
    for name in _STAMPED_FIELDS:
        header.pop(name, None)
    named = [_text_field(header, name) for name in _NAMED_FIELDS]
    kind, method, session, parent = named
    if kind is None:
        raise ProtocolViolation("the header has no 'type'")
    if kind == "method" and not method:
        raise ProtocolViolation("a call needs a 'method'")
    if len(header) > len(named) - named.count(None):
        _check_unknown(header, bounds.depth)
    return Frame(to, kind, method, session, parent, header, memoryview(data)[size:])


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
        raise ProtocolViolation("the message is not msgpack") from exc


def first_value(data: Buffer) -> tuple[Any, int]:
    """Decode the first msgpack value of *data*; return it and its size in bytes.

    Extension types are refused. Raises ValueError when the value is incomplete or malformed.
    """
    try:
        return msgpack.unpackb(data, strict_map_key=True, max_ext_len=0, ext_hook=_no_extension), len(data)
    except msgpack.ExtraData as exc:
        return exc.unpacked, len(data) - len(exc.extra)


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")  # reached by one without data, which max_ext_len lets pass


def _text_field(header: dict[str, Any], name: str) -> str | None:
    value = header.get(name)
    if value is None:
        header.pop(name, None)
        return None
    if type(value) is not str:
        raise ProtocolViolation(f"header field {name!r} must be text")
    return value


def _check_unknown(header: dict[Any, Any], depth: int) -> None:
    """Fields that we do not know go on to the receiver, which must be able to read them."""
    if not all(type(name) is str for name in header):
        raise ProtocolViolation("header fields must have names of text")
    if _is_deeper(header, depth):
        raise ProtocolViolation(f"the header is nested deeper than header_depth = {depth}")


def _is_deeper(value: Any, allowed: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return allowed == 0 or any(_is_deeper(item, allowed - 1) for item in items)


@dataclass(frozen=True, slots=True)
class Fields:
    """Encoded header fields, ready to be joined to a header: made once per session, used in every frame."""

    count: int
    data: bytes

    @classmethod
    def encode(cls, fields: Mapping[str, Any]) -> Fields:
        """Encode *fields* in their order."""
        return cls(len(fields), b"".join(packer.pack(name) + packer.pack(value) for name, value in fields.items()))


def encode_header(fields: Mapping[str, Any], *more: Fields) -> bytes:
    """One msgpack map of *fields* and the encoded *more*."""
    packed, count = packer.pack(fields), len(fields)
    parts = [b"", packed[1 if count < 16 else 3 :]]  # without its own head, for which there is one for all below
    for part in more:
        count += part.count
        parts.append(part.data)
    parts[0] = bytes((0x80 | count,)) if count < 16 else struct.pack(">BH", 0xDE, count)
    return b"".join(parts)
