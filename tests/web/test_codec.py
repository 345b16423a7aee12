"""Websocket framing: our codec against wsproto as the other side, and every refusal by hand."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from hypha.web.codec import LARGE, Closed, Codec, Incoming, Reply, message_head
from hypha.wire.masking import apply_mask, mask_in_python

MASK = b"\x11\x22\x33\x44"


def frame(opcode: int, payload: bytes = b"", *, final: bool = True, masked: bool = True, bits: int = 0) -> bytes:
    """One client frame, right or wrong."""
    first = (0x80 if final else 0) | bits | opcode
    flag = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        head = bytes((first, flag | size))
    elif size < 65536:
        head = struct.pack(">BBH", first, flag | 126, size)
    else:
        head = struct.pack(">BBQ", first, flag | 127, size)
    return head + (MASK + mask_in_python(payload, MASK) if masked else payload)


def feed(codec: Codec, data: bytes, sizes: Iterable[int] = ()) -> list[Incoming]:
    """Everything that *data* gives but None, fed in pieces of *sizes* and then the rest."""
    found: list[Incoming] = []
    start = 0
    for size in sizes:
        found += codec.feed(data[start : start + size])
        start += size
    found += codec.feed(data[start:])
    return [item for item in found if item is not None]


def closed(found: list[Incoming]) -> Closed:
    """The last item, which must be the end."""
    last = found[-1]
    assert isinstance(last, Closed)
    return last


# --- against wsproto ------------------------------------------------------------------------------------------------

messages = st.one_of(
    st.builds(BytesMessage, data=st.binary(max_size=70_000), message_finished=st.just(True)),
    st.builds(TextMessage, data=st.text(max_size=300), message_finished=st.just(True)),
    st.builds(Ping, payload=st.binary(max_size=125)),
    st.builds(Pong, payload=st.binary(max_size=125)),
)


@settings(deadline=None)
@given(events=st.lists(messages, max_size=6), cuts=st.lists(st.integers(1, 3000), max_size=20))
def test_what_wsproto_sends_is_read_whatever_the_pieces(events: list[Event], cuts: list[int]) -> None:
    client = Connection(ConnectionType.CLIENT)
    data = b"".join(client.send(event) for event in events)
    expected: list[object] = []
    for event in events:
        if isinstance(event, Ping):
            expected.append(b"\x8a" + bytes([len(event.payload)]) + bytes(event.payload))
        elif isinstance(event, BytesMessage | TextMessage):
            expected.append(event.data)
    found = [item.data if isinstance(item, Reply) else item for item in feed(Codec(1 << 20), data, cuts)]
    assert found == expected


@settings(deadline=None)
@given(
    parts=st.lists(st.binary(max_size=500), min_size=1, max_size=5),
    pings=st.lists(st.binary(max_size=125), max_size=5),
    cuts=st.lists(st.integers(1, 200), max_size=20),
)
def test_fragments_are_joined_with_control_frames_between(
    parts: list[bytes], pings: list[bytes], cuts: list[int]
) -> None:
    data, replies = b"", []
    for index, part in enumerate(parts):
        data += frame(2 if index == 0 else 0, part, final=index == len(parts) - 1)
        if index < len(parts) - 1 and index < len(pings):
            data += frame(9, pings[index])
            replies.append(pings[index])
    *answers, message = feed(Codec(1 << 20), data, cuts)
    assert message == b"".join(parts)
    assert [item.data[2:] for item in answers if isinstance(item, Reply)] == replies


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, LARGE + 1, 300_000])
def test_messages_of_every_length_class_arrive_in_both_directions(size: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    payload = payload[:size]
    assert feed(Codec(1 << 20), frame(2, payload)) == [payload]
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(message_head(size) + payload)
    assert b"".join(bytes(event.data) for event in client.events() if isinstance(event, BytesMessage)) == payload


@pytest.mark.parametrize("pieces", [[7001], [1, 2, 3, 40_000], [200_000], [65_536]], ids=str)
def test_a_large_frame_arrives_in_pieces_of_any_size(pieces: list[int]) -> None:
    payload = bytes(range(251)) * 1000
    data = frame(2, payload) + frame(2, b"next")
    codec, found, sizes = Codec(1 << 20), list[Incoming](), itertools.cycle(pieces)
    while data:
        size = next(sizes)
        found += codec.feed(data[:size])
        data = data[size:]
    assert found == [payload, b"next"]


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_announcing_much_and_sending_little_takes_little_memory() -> None:
    head = struct.pack(">BBQ", 0x82, 0xFF, 16 << 20) + MASK
    codecs = [Codec(16 << 20) for _ in range(20)]
    before = resident_bytes()
    for codec in codecs:
        assert list(codec.feed(head + b"x" * 1000)) == []
    assert resident_bytes() - before < 8 << 20


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (frame(2, b"x", masked=False), 1002, "mask"),
        (frame(2, b"x", bits=0x40), 1002, "reserved"),
        (frame(2, b"x", bits=0x10), 1002, "reserved"),
        (frame(3, b"x"), 1002, "opcode"),
        (frame(7, b"x"), 1002, "opcode"),
        (frame(11, b"x"), 1002, "opcode"),
        (frame(15, b"x"), 1002, "opcode"),
        (frame(9, b"x" * 126), 1002, "control"),
        (frame(9, b"x", final=False), 1002, "control"),
        (frame(8, b"x" * 126), 1002, "control"),
        (frame(0, b"x"), 1002, "order"),
        (frame(2, b"x", final=False) + frame(2, b"y"), 1002, "order"),
        (frame(1, b"x", final=False) + frame(1, b"y"), 1002, "order"),
        (frame(1, b"\xff"), 1007, "UTF-8"),
        (frame(1, b"\xce", final=False) + frame(0, b"x"), 1007, "UTF-8"),
        (frame(8, b"x"), 1002, "close code"),
        (frame(8, (1005).to_bytes(2, "big")), 1002, "close code"),
        (frame(8, (999).to_bytes(2, "big")), 1002, "close code"),
        (frame(8, (2999).to_bytes(2, "big")), 1002, "close code"),
        (frame(8, (5000).to_bytes(2, "big")), 1002, "close code"),
        (frame(8, (1000).to_bytes(2, "big") + b"\xff"), 1007, "UTF-8"),
        (struct.pack(">BBQ", 0x82, 0xFF, 1 << 63) + MASK, 1009, "frame_bytes"),
    ],
)
def test_what_breaks_the_protocol_ends_it_with_the_right_code(data: bytes, code: int, words: str) -> None:
    end = closed(feed(Codec(1000), data))
    assert (end.code, end.by_peer) == (code, False)
    assert words in end.reason


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1012, 1014, 3000, 4999])
def test_a_goodbye_is_answered_with_its_code_and_nothing_follows(code: int) -> None:
    codec = Codec(1000)
    found = feed(codec, frame(8, code.to_bytes(2, "big") + b"bye") + frame(2, b"late"))
    assert found == [Closed(code, "bye", True, b"\x88\x02" + code.to_bytes(2, "big"))]
    assert codec.close(1000, "") == b""
    assert codec.ping() == b""


def test_a_goodbye_without_a_code() -> None:
    assert feed(Codec(1000), frame(8)) == [Closed(1005, "", True, b"\x88\x00")]


def test_a_message_of_the_limit_passes_and_one_byte_more_does_not() -> None:
    assert feed(Codec(1000), frame(2, b"x" * 1000)) == [b"x" * 1000]
    assert closed(feed(Codec(1000), frame(2, b"x" * 1001))).code == 1009
    split = frame(2, b"x" * 600, final=False)
    assert feed(Codec(1000), split + frame(0, b"x" * 400)) == [b"x" * 1000]
    assert closed(feed(Codec(1000), split + frame(0, b"x" * 401))).code == 1009


def test_the_limit_is_told_before_the_payload_is_taken() -> None:
    assert closed(list(Codec(1000).feed(struct.pack(">BBH", 0x82, 0xFE, 1001) + MASK))).code == 1009


@given(st.binary(max_size=300))
def test_no_bytes_raise(data: bytes) -> None:
    for item in Codec(1000).feed(data):
        assert isinstance(item, bytes | bytearray | str | Reply | Closed)


# --- frames out -----------------------------------------------------------------------------------------------------


def test_a_client_reads_our_close_frame_and_a_long_reason_is_cut() -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(Codec(1000).close(1012, "ü" * 200))
    events = list(client.events())
    assert [(event.code, event.reason) for event in events if isinstance(event, CloseConnection)] == [(1012, "ü" * 61)]


def test_a_code_that_may_not_be_sent_is_left_out() -> None:
    assert Codec(1000).close(1006, "broken") == b"\x88\x00"


def test_text_and_ping() -> None:
    client, codec = Connection(ConnectionType.CLIENT), Codec(1000)
    client.receive_data(codec.text("hellö") + codec.ping())
    text, ping = client.events()
    assert isinstance(text, TextMessage)
    assert text.data == "hellö"
    assert isinstance(ping, Ping)


@given(st.binary(max_size=1000), st.binary(min_size=4, max_size=4))
def test_masking_in_c_and_in_python_are_one(data: bytes, mask: bytes) -> None:
    assert apply_mask(memoryview(data), memoryview(mask)) == mask_in_python(data, mask)
    assert apply_mask is not mask_in_python  # which is for platforms without a wheel of websockets
