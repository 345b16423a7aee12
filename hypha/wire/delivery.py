"""Messages as their receiver gets them, in a client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

from hypha.errors import ProtocolViolation
from hypha.wire.body import split_long_bytes
from hypha.wire.frame import SMALL, Buffer, Frame, size_of_first

_SHARED = 0x7E  # the extension type that stands for a byte string which is not copied, in here alone
_PEEK = 4096  # bytes; a header is a few hundred


def read_delivered(data: Buffer) -> Frame:
    """Read a message: ``from``, ``user`` and ``ws`` are in its fields (``protocol.md`` 2.3).

    Long byte strings of a long message are not copied: they are memoryviews of *data*. For messages of a server, which
    has looked at them. Raises :class:`ProtocolViolation`.
    """
    try:
        header, extra = _long_values(data) if len(data) > SMALL else _short_values(data)
    except (ValueError, msgpack.OutOfData) as exc:
        raise ProtocolViolation("the message is not msgpack") from exc
    if not isinstance(header, dict) or not isinstance(header.get("type"), str) or not isinstance(extra, dict):
        raise ProtocolViolation("the message does not begin with a map that has a 'type'")
    get = header.get
    for name in ("to", "method", "session", "parent"):
        if not isinstance(get(name, ""), str | None):
            raise ProtocolViolation(f"header field {name!r} must be text")
    return Frame(get("to") or "", header["type"], get("method"), get("session"), get("parent"), header, b"", extra)


def _short_values(data: Buffer) -> tuple[Any, Any]:
    reader = msgpack.Unpacker(strict_map_key=True, max_buffer_size=0)
    reader.feed(data)
    header = reader.unpack()
    return header, reader.unpack() if reader.tell() < len(data) else {}


def _long_values(data: Buffer) -> tuple[Any, Any]:
    whole = memoryview(data)
    try:
        size = size_of_first(whole[:_PEEK])
    except ValueError:
        size = size_of_first(whole)
    header = msgpack.unpackb(whole[:size], strict_map_key=True)
    if size == len(whole):
        return header, {}
    rest, shared = split_long_bytes(whole[size:], _stand_in)
    return header, msgpack.unpackb(rest, strict_map_key=True, ext_hook=_Sharing(shared))


def _stand_in(number: int) -> bytes:
    return bytes(msgpack.packb(msgpack.ExtType(_SHARED, number.to_bytes(4, "big"))))


class _Sharing:
    """Puts the byte strings back in their places."""

    def __init__(self, shared: Sequence[memoryview]) -> None:
        self._shared = shared

    def __call__(self, code: int, data: bytes) -> Any:
        if code != _SHARED:
            return msgpack.ExtType(code, data)
        number = int.from_bytes(data, "big")
        if number >= len(self._shared):
            raise ProtocolViolation("the message holds an extension that nobody knows")
        return self._shared[number]
