"""Chunk calls whose receiver takes arguments by position only."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from hypha.errors import ProtocolViolation
from hypha.wire.chunks import CACHE_PREFIX, by_position
from hypha.wire.frame import Frame, FrameReader, HeaderBounds


def frame(operation: str, **extra: Any) -> Frame:
    header = {"type": "method", "to": "w/js", "method": CACHE_PREFIX + operation, "session": "s"}
    return FrameReader(HeaderBounds()).read(msgpack.packb(header) + msgpack.packb(extra))


@pytest.mark.parametrize(
    ("operation", "args", "expected"),
    [
        ("create", ["k", {"heartbeat": False}], ["k", False]),
        ("create", ["k", {"overwrite": True}], ["k", False, True]),
        ("append", ["k", b"\x00\xff", {"heartbeat": True}], ["k", b"\x00\xff", True]),
        ("append", ["k", {"heartbeat": False, "data": b""}], ["k", b"", False]),
        ("process", ["k", {"heartbeat": True}], ["k", True]),
    ],
)
def test_keyword_arguments_take_their_places(operation: str, args: list[Any], expected: list[Any]) -> None:
    promise = {"resolve": {"_rtype": "method", "_rmethod": "s.resolve"}}
    body = by_position(operation, frame(operation, args=args, with_kwargs=True, promise=promise))
    assert msgpack.unpackb(body) == {"args": expected, "promise": promise}


def test_what_is_in_its_place_already_is_not_touched() -> None:
    given = frame("append", args=["k", b"data", False], promise={})
    assert by_position("append", given) is given.body


@pytest.mark.parametrize(
    ("operation", "args"),
    [
        ("create", [{"heartbeat": True}]),
        ("append", ["k", {"heartbeat": True}]),
        ("append", ["k", b"", {"data": b""}]),
        ("steal", ["k", {"heartbeat": True}]),
    ],
)
def test_what_no_client_sends_is_refused(operation: str, args: list[Any]) -> None:
    with pytest.raises(ProtocolViolation):
        by_position(operation, frame(operation, args=args, with_kwargs=True))
