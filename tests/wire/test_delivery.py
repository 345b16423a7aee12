"""Messages as a client reads and writes them."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from hypha.errors import InvalidArgument, ProtocolViolation
from hypha.wire.calls import MessagePacker
from hypha.wire.chunks import arguments, part_call
from hypha.wire.delivery import read_delivered

MAIN = {"type": "method", "from": "ws/a", "to": "ws/b", "method": "services.s.f", "session": "s1", "user": {"id": "u"}}


def packed(main: Any, *extra: Any) -> bytes:
    return b"".join(map(msgpack.packb, (main, *extra)))


def plain(value: Any) -> Any:
    """*value* with bytes in the places of memoryviews."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return bytes(value) if isinstance(value, memoryview) else value


@pytest.mark.parametrize("size", [0, 100, 5000, 40_000, 3_000_000])
def test_a_message_is_read_whole_however_long(size: int) -> None:
    extra = {"args": [b"x" * size, {"_rvalue": b"y" * size, "n": 1}, "z" * size], "promise": "*"}
    frame = read_delivered(packed(MAIN, extra))
    assert (frame.type, frame.method, frame.session, frame.to) == ("method", "services.s.f", "s1", "ws/b")
    assert frame.fields["from"] == "ws/a"
    assert plain(frame.extra()) == extra


def test_long_byte_strings_are_not_copied() -> None:
    message = packed(MAIN, {"args": [b"x" * 100_000]})
    (value,) = read_delivered(message).extra()["args"]
    assert isinstance(value, memoryview)
    assert value.obj is message


def test_a_header_may_be_long_or_alone() -> None:
    main = {**MAIN, "user": {"id": "u" * 50_000}}
    assert read_delivered(packed(main)).fields["user"] == main["user"]
    assert read_delivered(packed(main, {"a": 1})).extra() == {"a": 1}
    assert read_delivered(packed(MAIN)).extra() == {}


@pytest.mark.parametrize("size", [0, 100_000])
def test_what_is_no_message(size: int) -> None:
    more = b"x" * size
    for data in (b"", b"\xc1", packed([]), packed({"to": "a"}), packed(MAIN, [more]), packed(MAIN, {"a": more})[:-1]):
        with pytest.raises(ProtocolViolation):
            read_delivered(data)


def test_extensions_stay_what_they_are() -> None:
    other = msgpack.ExtType(5, b"abc")
    assert read_delivered(packed(MAIN, {"a": [other, b"x" * 50_000]})).extra()["a"][0] == other
    for forged in (msgpack.ExtType(0x7E, b"\0\0\0\x07"), msgpack.ExtType(0x7E, b"\xff" * 20)):
        with pytest.raises(ProtocolViolation):
            read_delivered(packed(MAIN, {"a": [forged, b"x" * 50_000]}))


def test_messages_are_packed_as_two_values() -> None:
    packer = MessagePacker()
    for size in (0, 1000, 300_000, 10, 3_000_000, 5):
        extra = {"args": [b"x" * size]}
        assert bytes(packer.pack(MAIN, extra)) == packed(MAIN, extra)


@pytest.mark.parametrize("bad", [object(), 2**64, {1j: 2}])
def test_what_cannot_be_packed_leaves_nothing_behind(bad: Any) -> None:
    packer = MessagePacker()
    with pytest.raises(InvalidArgument, match="cannot be sent as msgpack"):
        packer.pack(MAIN, {"args": [bad]})
    assert packer.pack(MAIN, {}) == packed(MAIN, {})


def test_a_part_call_is_what_packing_it_would_give() -> None:
    promise = {"promise": "*", "t": 15.0}
    for index, args in ((None, ["key", b"part", True]), (3, ["key", 3, b"part", True])):
        message = b"".join(
            map(bytes, part_call(MAIN, "key", index, memoryview(b"part"), heartbeat=True, promise=promise))
        )
        frame = read_delivered(message)
        assert frame.fields == MAIN
        assert frame.extra() == {"args": args, **promise}
        operation = "append" if index is None else "set"
        given = arguments(operation, frame.extra())
        assert given["data"] == b"part"
