"""Frames: the header is read and stamped, the body is left alone, and everything else is a protocol violation."""

from __future__ import annotations

import gc
import io
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hypha.errors import ProtocolViolation
from hypha.wire.frame import Buffer, Fields, Frame, FrameReader, HeaderBounds, encode_header, first_value, packer

BOUNDS = HeaderBounds()
CALL = {"type": "method", "to": "ws/b", "method": "services.svc.hello", "session": "s1", "parent": "p1"}


#: One reader for all tests: whatever it has met before, the next message is read as if it were the first.
READER = FrameReader(BOUNDS)
NOTHING = Fields.encode({})


def read(data: Buffer, bounds: HeaderBounds = BOUNDS) -> Frame:
    return (READER if bounds is BOUNDS else FrameReader(bounds)).read(data)


def parse(header: object, body: bytes = b"", bounds: HeaderBounds = BOUNDS) -> Frame:
    return read(msgpack.packb(header) + body, bounds)


def refused(data: bytes, bounds: HeaderBounds = BOUNDS) -> str:
    with pytest.raises(ProtocolViolation) as caught:
        read(data, bounds)
    return str(caught.value)


def two_values(data: bytes) -> tuple[Any, bytes]:
    """What a Python client does with a message: the first value, and the rest."""
    unpacker = msgpack.Unpacker(io.BytesIO(data))
    return unpacker.unpack(), data[unpacker.tell() :]


# --- reading --------------------------------------------------------------------------------------------------


def test_a_call_is_read() -> None:
    frame = parse(CALL | {"from": "a"}, b"\x81\xa4args\x90")
    assert (frame.to, frame.type, frame.method) == ("ws/b", "method", "services.svc.hello")
    assert (frame.session, frame.parent) == ("s1", "p1")
    assert frame.fields == CALL
    assert bytes(frame.body) == b"\x81\xa4args\x90"
    assert frame.wants_answer


def test_nothing_is_kept_of_a_message_that_is_cut_off() -> None:
    """msgpack before 1.2 never frees the lists that were open: a kilobyte of them could be 16 MiB."""
    data = packer.pack(CALL) + b"\x81\xa4args" + b"\x91" * 100
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(100):
        with pytest.raises(ProtocolViolation, match="the body is not one msgpack value"):
            read(data).extra()
        with pytest.raises(ProtocolViolation):
            read(b"\x91" * 100)
    gc.collect()
    assert len(gc.get_objects()) - before < 100


@pytest.mark.parametrize("claim", [b"\xdc\x7f\xff", b"\xdc\x04\x00", b"\xdd\x7f\xff\xff\xff"], ids=bytes.hex)
@pytest.mark.parametrize("length", [0, 100_000], ids=["short", "long"])
def test_no_room_is_made_for_what_is_only_claimed(claim: bytes, length: int) -> None:
    """A decoder makes room for a list before it has seen its items: 500 of them, one in another, are 130 MB."""
    header = packer.pack(CALL)
    body = b"\x81\xa4args\x92" + packer.pack("x" * length) + claim * 500
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolViolation):
            read(header + body).extra()
        with pytest.raises(ProtocolViolation):
            read(header[:-1] + claim * 500)
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()


def test_long_lists_are_read_all_the_same() -> None:
    items = list(range(5000))
    assert read(packer.pack(CALL) + packer.pack({"args": items})).extra() == {"args": items}
    assert read(packer.pack(CALL | {"x": items})).fields["x"] == items


def test_an_error_from_elsewhere_leaves_nothing_for_the_next_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """One reader serves all connections: the rest of one's message must never be read as another's."""

    class Exhausted(msgpack.Unpacker):  # type: ignore[misc]  # msgpack has no types
        def unpack(self) -> Any:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(msgpack, "Unpacker", Exhausted)
        reader = FrameReader(BOUNDS)
    with pytest.raises(MemoryError):
        reader.read(packer.pack(CALL | {"method": "services.svc.other"}))
    assert reader.read(packer.pack(CALL)).method == CALL["method"]


def test_only_a_method_with_a_session_waits_for_an_answer() -> None:
    rows: list[tuple[dict[str, Any], bool]] = [
        ({"to": "b", "type": "method", "method": "s1.resolve"}, False),
        ({"to": "b", "type": "method", "method": "s1.resolve", "session": None}, False),
        ({"to": "b", "type": "progress"}, False),
        ({"to": "b", "type": "progress", "session": "s1"}, False),
        ({"to": "b", "type": "method", "method": "m", "session": ""}, True),
        ({"to": "b", "type": "method", "method": "m", "session": "s1"}, True),
    ]
    for header, wants_answer in rows:
        assert parse(header).wants_answer is wants_answer


def test_what_only_the_server_may_say_is_dropped_whatever_its_type() -> None:
    rows: list[object] = [None, "root", 7, True, b"x", [], {}, {"id": "root", "roles": ["admin"]}, 2**64 - 1]
    for forged in rows:
        frame = parse({**CALL, "from": forged, "user": forged, "ws": forged, "extra": forged})
        assert frame.fields.keys() == CALL.keys() | {"extra"}
        assert frame.fields["extra"] == forged


def test_a_field_that_is_null_counts_as_absent() -> None:
    frame = parse({"to": "b", "type": "event", "method": None, "session": None, "parent": None})
    assert frame.fields == {"to": "b", "type": "event"}


def test_of_a_field_that_is_given_twice_the_last_one_counts_and_only_it_goes_on() -> None:
    data = b"\x85" + b"".join(
        packer.pack(item) for item in ("to", "a", "type", "method", "method", "x.y", "to", "b", "method", "z")
    )
    frame = read(data)
    assert (frame.to, frame.method) == ("b", "z")
    assert encode_header(frame.fields, NOTHING) == msgpack.packb({"to": "b", "type": "method", "method": "z"})


def test_a_wrong_header_is_named() -> None:
    rows: list[tuple[object, str]] = [
        ({"type": "method", "method": "m"}, "the header has no 'to'"),
        ({"to": "", "type": "e"}, "the header has no 'to'"),
        ({"to": None, "type": "e"}, "the header has no 'to'"),
        ({"to": 5, "type": "e"}, "the header has no 'to'"),
        ({"to": b"a", "type": "e"}, "the header has no 'to'"),
        ({"to": ["a"], "type": "e"}, "the header has no 'to'"),
        ({"to": "a"}, "the header has no 'type'"),
        ({"to": "a", "type": None}, "the header has no 'type'"),
        ({"to": "a", "type": 5}, "header field 'type' must be text"),
        ({"to": "a", "type": "method"}, "a call needs a 'method'"),
        ({"to": "a", "type": "method", "method": ""}, "a call needs a 'method'"),
        ({"to": "a", "type": "method", "method": ["m"]}, "header field 'method' must be text"),
        ({"to": "a", "type": "method", "method": "m", "session": 1}, "header field 'session' must be text"),
        ({"to": "a", "type": "method", "method": "m", "session": b"s"}, "header field 'session' must be text"),
        ({"to": "a", "type": "method", "method": "m", "parent": {}}, "header field 'parent' must be text"),
        ({"to": "a", "type": "e", b"from": "root"}, "header fields must have names of text"),
        ([], "the message does not begin with a map"),
        (None, "the message does not begin with a map"),
        (7, "the message does not begin with a map"),
        ("to", "the message does not begin with a map"),
    ]
    for header, complaint in rows:
        assert refused(msgpack.packb(header)) == complaint


NOT_MSGPACK = "the message is not msgpack"
EXTENSION = "the header must not hold extension types"
UNKNOWN = b"\x83\xa2to\xa1a\xa4type\xa1e\xa1x"


def test_what_is_no_message_is_refused() -> None:
    rows: list[tuple[bytes, str]] = [
        (b"", NOT_MSGPACK),
        (b"\xc1", NOT_MSGPACK),
        (b"\x81", NOT_MSGPACK),
        (b"{}", "the message does not begin with a map"),
        (msgpack.packb(CALL)[:-1], NOT_MSGPACK),
        (b"\x82\xa2to\xa1\xff\xa4type\xa1e", NOT_MSGPACK),  # invalid UTF-8 in a value
        (b"\x82\xa2t\xff\xa1a\xa4type\xa1e", NOT_MSGPACK),  # and in a key
        (b"\x82\xa2to\xa3\xed\xa0\x80\xa4type\xa1e", NOT_MSGPACK),  # a surrogate
        (UNKNOWN + b"\xd4\x01\x00", EXTENSION),
        (UNKNOWN + b"\xc7\x00\x01", EXTENSION),  # one without data
        (UNKNOWN + b"\xd6\xff\x00\x00\x00\x00", EXTENSION),  # a timestamp
        (UNKNOWN + b"\xc7\x00\xff", NOT_MSGPACK),
        (b"\x81\x01\x02", NOT_MSGPACK),  # keys that are no text
        (b"\x81\xc0\x02", NOT_MSGPACK),
        (b"\x81\x90\x02", NOT_MSGPACK),
        (b"\xdf\xff\xff\xff\xff", "the header has more than header_keys = 64 fields"),
        (b"\xdd\xff\xff\xff\xff", NOT_MSGPACK),
        (UNKNOWN + b"\xc6\xff\xff\xff\xff", NOT_MSGPACK),
        (b"\x91" * 100_000, "no header within header_bytes = 65536 bytes"),
        (b"\x81\xa1a" * 10_000, NOT_MSGPACK),
    ]
    for data, complaint in rows:
        assert refused(data) == complaint


@given(st.binary(max_size=200))
@example(b"\x91" * 1100 + b"\xc0")
@example(UNKNOWN + b"\x91" * 1000 + b"\xc0")
def test_bytes_are_a_frame_or_a_protocol_violation(data: bytes) -> None:
    try:
        frame = read(data)
    except ProtocolViolation:
        return
    assert encode_header(frame.fields, NOTHING)


texts = st.text(max_size=20)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
scalars: st.SearchStrategy[Any] = st.one_of(st.none(), st.booleans(), numbers, texts, st.binary(max_size=20))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=10
)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(texts, values, max_size=10),
    st.fixed_dictionaries(
        {"to": texts.filter(bool), "type": texts},
        optional={"session": texts, "parent": texts, "from": values, "user": values, "ws": values},
    ),
    st.binary(max_size=50),
)
def test_what_is_read_is_what_was_sent_without_the_forgeries(
    unknown: dict[str, Any], known: dict[str, Any], body: bytes
) -> None:
    sent = {**unknown, "method": "m", **known}
    for name in {"session", "parent"} - known.keys():
        sent.pop(name, None)  # an unknown field of that name would have to be text
    frame = parse(sent, body)
    assert frame.to == known["to"]
    assert frame.fields == {key: value for key, value in sent.items() if key not in {"from", "user", "ws"}}
    assert bytes(frame.body) == body


# --- bounds ---------------------------------------------------------------------------------------------------


def padded(size: int) -> bytes:
    """A header of exactly *size* encoded bytes."""
    header = msgpack.packb({"to": "a", "type": "e", "x": ""})
    pad = size - len(header)
    for _ in range(2):  # the length of the text is a few bytes long itself
        header = msgpack.packb({"to": "a", "type": "e", "x": "y" * pad})
        pad -= len(header) - size
    assert len(header) == size
    return bytes(header)


@pytest.mark.parametrize("limit", [40, 1000, 4095, 4096, 4097, 65536])
@pytest.mark.parametrize("rest", [0, 1, 100_000])
def test_the_size_of_the_header_is_bounded_exactly(limit: int, rest: int) -> None:
    bounds = HeaderBounds(size=limit)
    frame = read(padded(limit) + b"z" * rest, bounds)
    assert bytes(frame.body) == b"z" * rest
    assert refused(padded(limit + 1) + b"z" * rest, bounds) == f"no header within header_bytes = {limit} bytes"


def test_a_header_longer_than_the_first_look_is_read() -> None:
    rows: list[int] = [4095, 4096, 4097, 5000, 60_000]
    for size in rows:
        assert len(read(padded(size) + b"z" * 5000).body) == 5000


def test_the_number_of_fields_is_bounded_exactly() -> None:
    fields = {"to": "a", "type": "e", "from": "forged"} | {f"x{n}": n for n in range(61)}
    assert len(parse(fields).fields) == 63
    complaint = "the header has more than header_keys = 64 fields"
    assert refused(msgpack.packb(fields | {"user": 1})) == complaint


@pytest.mark.parametrize(("opening", "name"), [(b"\x91", "lists"), (b"\x81\xa1k", "maps")])
@pytest.mark.parametrize("header", [{"to": "a", "type": "e"}, CALL], ids=["short", "long"])
def test_the_nesting_of_unknown_fields_is_bounded_exactly(header: dict[str, str], opening: bytes, name: str) -> None:
    packed = msgpack.packb(header)
    start = bytes((packed[0] + 1,)) + packed[1:] + b"\xa1x"
    assert read(start + opening * 31 + b"\x01").fields["x"]
    for levels in (32, 33, 500, 1000):
        assert refused(start + opening * levels + b"\x01") == "the header is nested deeper than header_depth = 32"


# --- the body -------------------------------------------------------------------------------------------------


def test_the_body_goes_on_as_it_came() -> None:
    rows: list[bytes] = [
        b"",
        b"\x80",
        msgpack.packb({"args": [msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 2)]}),
        msgpack.packb({"args": [2**64 - 1, -(2**63), 1.5, float("nan")]}),
        b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x01",  # a NaN with a payload
        b"\xca\x3f\xc0\x00\x00",  # a float of 32 bits
        b"\xd3\x00\x00\x00\x00\x00\x00\x00\x01",  # an integer longer than it needs to be
        b"\xc1\xff not msgpack at all",
        b"\x91" * 5000,
    ]
    for body in rows:
        data = msgpack.packb(CALL) + body
        for kind in (bytes, bytearray, memoryview):
            assert bytes(read(kind(data)).body) == body


def test_the_body_is_not_copied() -> None:
    data = msgpack.packb(CALL) + b"z" * 100_000
    body = read(data).body
    assert isinstance(body, memoryview)
    assert body.obj is data


# --- writing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [0, 1, 11, 12, 13, 14, 15, 16, 17, 64])
@pytest.mark.parametrize("added", [0, 1, 4])
def test_a_header_of_any_size_is_joined_to_the_stamp(own: int, added: int) -> None:
    fields = {f"x{n}": n for n in range(own)}
    stamp = {f"s{n}": {"id": "u", "n": [n]} for n in range(added)}
    encoded = encode_header(fields, Fields.encode(stamp))
    assert msgpack.unpackb(encoded) == fields | stamp
    assert encoded[0] == (0x80 | own + added if own + added < 16 else 0xDE)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(texts, values, max_size=18), st.dictionaries(texts, values, max_size=4), st.binary(max_size=20))
def test_a_stamped_message_reads_as_header_and_body(fields: dict[str, Any], stamp: dict[str, Any], body: bytes) -> None:
    header = encode_header(fields, Fields.encode(stamp))
    assert two_values(header + body) == (fields | stamp, body)


def test_the_stamp_wins_over_a_field_that_came_under_another_spelling_of_the_name() -> None:
    frame = parse({**CALL, "FROM": "x", "from ": "y"})
    stamped = encode_header(frame.fields, Fields.encode({"from": "ws/a", "ws": "ws"}))
    assert msgpack.unpackb(stamped)["from"] == "ws/a"


# --- the first value ------------------------------------------------------------------------------------------


def test_the_first_value_is_found_in_a_part() -> None:
    assert first_value(b"\x81\xa1a\x01rest") == ({"a": 1}, 4)
    assert first_value(memoryview(b"\x81\xa1a\x01")) == ({"a": 1}, 4)
    with pytest.raises(ValueError, match="incomplete"):
        first_value(b"\x81\xa1a")
