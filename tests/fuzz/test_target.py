"""The target of the fuzzer, with what hypothesis makes of frames and messages."""

from __future__ import annotations

import struct

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypha.errors import ProtocolViolation
from hypha.wire.frame import SMALL, FrameReader, HeaderBounds
from tests.fuzz.target import one_input, read_message, read_stream

HEADER = {"to": "b", "type": "method", "method": "services.svc.f", "session": "s"}
texts = st.text(max_size=8)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
values = st.recursive(
    scalars | texts | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.integers(0, 3), inner, max_size=4),
    max_leaves=12,
)
headers = st.fixed_dictionaries(
    {"to": texts, "type": st.sampled_from(["method", "event"])},
    optional={"method": texts, "session": texts | st.none(), "from": values, "user": values, "x": values},
)
bodies = st.dictionaries(st.sampled_from(["args", "promise", "with_kwargs", "t", "method"]), values, max_size=4)
whole = st.builds(lambda header, body: msgpack.packb(header) + msgpack.packb(body), headers, bodies)
cut = st.builds(lambda message, size: message[:-size], whole, st.integers(1, 20))
long = st.integers(SMALL, SMALL + 9).map(lambda size: msgpack.packb(HEADER) + msgpack.packb({"args": [bytes(size)]}))
messages = st.binary(max_size=60) | whole | cut | long


def frame(first: int, payload: bytes) -> bytes:
    """A masked frame whose mask changes nothing."""
    size = len(payload)
    head = struct.pack(">BB", first, 0x80 | size) if size < 126 else struct.pack(">BBQ", first, 0xFF, size)
    return head + bytes(4) + payload


frames = st.builds(frame, st.sampled_from([0x82, 0x02, 0x00, 0x80, 0x81, 0x88, 0x89, 0x8A, 0xC2, 0x83]), messages)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    assert one_input(data) >= 0


@settings(max_examples=200, deadline=None)
@given(st.lists(frames, max_size=6), st.integers(0, 255))
def test_frames_of_all_kinds(parts: list[bytes], cut: int) -> None:
    assert read_stream(bytes((cut,)) + b"".join(parts)) <= len(parts)


@settings(max_examples=200, deadline=None)
@given(st.lists(messages, min_size=1, max_size=8))
def test_a_reader_keeps_nothing_of_the_messages_before(history: list[bytes]) -> None:
    """One reader serves all connections: what one of them sends must not change how another's message is read."""
    reader = FrameReader(HeaderBounds())
    for data in history:
        assert outcome(reader, data) == outcome(FrameReader(HeaderBounds()), data)


def outcome(reader: FrameReader, data: bytes) -> object:
    """All that is known of a message after it was read."""
    try:
        found = reader.read(data)
    except ProtocolViolation as violation:
        return str(violation)
    known = (found.to, found.type, found.method, found.session, found.parent, repr(found.fields), bytes(found.body))
    try:
        return *known, repr(found.extra())
    except ProtocolViolation as violation:
        return *known, str(violation)


@pytest.mark.parametrize("size", [0, 10, SMALL, 2 * SMALL])
def test_a_good_message_is_read(size: int) -> None:
    data = msgpack.packb(HEADER) + msgpack.packb({"args": [bytes(size)]})
    assert read_message(data) is not None
    assert read_stream(b"\x05" + frame(0x82, data)) == 1
