"""What clients leave with the server for others: as bytes, bounded, and in a form that every list can hold."""

from __future__ import annotations

from typing import Any

from hypha.wire.calls import decode_value, encode_value

_LEVELS = 16  # of lists and maps, at most, in which it is sent to others; msgpack writes so many and no more


def pack(value: object) -> bytes:
    """*value* as msgpack. Raises :class:`InvalidArgument` for one that no list could hold."""
    nested = value
    for _ in range(_LEVELS):
        nested = [nested]
    return encode_value(nested)[_LEVELS:]  # a list of one is one byte and what it holds


def unpack(data: bytes) -> Any:
    """The inverse of :func:`pack`."""
    return decode_value(data)
