"""Bodies on their way: what may pass whole and in parts, and that the two ways agree."""

from __future__ import annotations

import os
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypha.errors import ProtocolViolation
from hypha.wire.body import BodyScan, check_body
from hypha.wire.frame import RESERVED, Frame, FrameReader, HeaderBounds

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.binary(max_size=300)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=40)),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=10), inner, max_size=20),
    max_leaves=60,
)
#: The bodies are large.
FEW = settings(max_examples=40, deadline=None)
BODIES = st.dictionaries(st.sampled_from(["args", "promise", "with_kwargs", "t", "x" * 40]), VALUES)


READER = FrameReader(HeaderBounds())
HEADER = msgpack.packb({"to": "b", "type": "method", "method": "m"})


def verdict(frame: Frame) -> ProtocolViolation | None:
    """What is wrong with the body of *frame*."""
    try:
        check_body(frame)
    except ProtocolViolation as violation:
        return violation
    return None


def check(body: bytes) -> None:
    """Raise what is wrong with *body*; whether it was decoded with its header or is looked at by itself is the same."""
    first = verdict(READER.read(HEADER + body))
    second = verdict(Frame("b", "method", "m", None, None, {}, memoryview(body)))
    assert str(first) == str(second)
    if first is not None:
        raise first


def scan(data: bytes, *sizes: int) -> BodyScan:
    """Feed *data* in parts of *sizes* bytes, the last one again and again."""
    found, start, remaining = BodyScan(), 0, list(sizes)
    while start < len(data):
        size = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        found.feed(data[start : start + size])
        start += size
    return found


def passes(data: bytes, size: int) -> bool:
    """Whether a scan finds nothing wrong with *data*, and its end."""
    try:
        return scan(data, size).complete
    except ProtocolViolation:
        return False


@FEW
@given(body=BODIES, sizes=st.lists(st.integers(1, 400), min_size=1, max_size=10))
def test_what_clients_send_passes_in_any_parts(body: dict[str, Any], sizes: list[int]) -> None:
    data = msgpack.packb(body)
    check(data)
    assert scan(data, *sizes).complete
    assert scan(data, len(data)).complete


@FEW
@given(body=BODIES, cut=st.floats(0, 1, exclude_max=True), size=st.integers(1, 50))
def test_a_body_is_complete_only_at_its_end(body: dict[str, Any], cut: float, size: int) -> None:
    data = msgpack.packb(body)
    beginning = data[: int(len(data) * cut)]
    assert scan(beginning, size).complete == (beginning == b"")
    with pytest.raises(ProtocolViolation, match="two values"):
        scan(data + b"\xc0", size)


@FEW
@given(body=BODIES, name=st.sampled_from(sorted(RESERVED)), value=VALUES, last=st.booleans(), size=st.integers(1, 100))
def test_a_field_of_the_header_does_not_pass(
    body: dict[str, Any], name: str, value: Any, last: bool, size: int
) -> None:
    data = msgpack.packb({**body, name: value} if last else {name: value, **body})
    with pytest.raises(ProtocolViolation, match=name):
        check(data)
    with pytest.raises(ProtocolViolation, match=name):
        scan(data, size)


@FEW
@given(st.sampled_from(sorted(RESERVED)), VALUES)
def test_the_same_name_further_inside_is_a_users(name: str, value: Any) -> None:
    data = msgpack.packb({"args": [{name: value}], "promise": {name: [name]}})
    check(data)
    assert scan(data, 7).complete


@pytest.mark.parametrize(
    "data",
    [
        msgpack.packb([["method", "x"]]),
        msgpack.packb("text"),
        msgpack.packb(5),
        msgpack.packb({"args": []}) * 2,
        b"\xc1",
        b"\x81\xa4args\xc1",
        msgpack.packb({5: 5}),
        msgpack.packb({b"x" * 80: 5})[:-3],
        b"\x81" + b"\x91" * 10,
    ],
    ids=["list", "text", "number", "two", "nothing", "nothing inside", "number as key", "long key", "list as key"],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_what_no_client_sends_is_refused(data: bytes, size: int) -> None:
    with pytest.raises(ProtocolViolation):
        check(data)
    assert not passes(data, size)


@pytest.mark.parametrize("value", [{1: 2}, "A" * 10, [[]]], ids=["number as key", "not UTF-8", "nested too deeply"])
def test_what_a_python_client_cannot_decode_is_refused(value: Any) -> None:
    data = msgpack.packb({"args": [value]})
    broken = data.replace(b"A" * 10, b"\xff" * 10).replace(b"\x91\x90", b"\x91" * 2000 + b"\x90")
    with pytest.raises(ProtocolViolation):
        check(broken)


def test_there_need_not_be_a_body() -> None:
    check(b"")
    assert BodyScan().complete
    assert scan(msgpack.packb({}), 1).complete


def test_nesting_across_parts_is_bounded() -> None:
    depth = 30
    inner = b"\x91" * depth + b"\xc4\x02ab"
    assert scan(b"\x81\xa4args" + inner, 5).complete
    with pytest.raises(ProtocolViolation, match="open where a part ends"):
        scan(b"\x81\xa4args" + b"\x91" * 10 + inner, 5)
    scan(b"\x81\xa4args" + b"\x91" * 10 + inner, 500)


def test_a_large_body_is_passed_over_without_being_kept() -> None:
    array = {"_rtype": "ndarray", "_rvalue": os.urandom(3_000_000), "_rshape": [3_000_000], "_rdtype": "uint8"}
    found = BodyScan()
    data = msgpack.packb({"args": [array, [1] * 300_000], "promise": {"a": "b"}})
    for start in range(0, len(data), 512_000):
        assert not found.complete or start == 0
        found.feed(memoryview(data)[start : start + 512_000])
        assert len(found._cut) < 20
    assert found.complete


def test_an_outermost_map_of_many_entries_is_refused_before_they_are_looked_at() -> None:
    scan = BodyScan()
    with pytest.raises(ProtocolViolation, match="more than 64 entries"):
        scan.feed(b"\xdf" + (5_000_000).to_bytes(4, "big") + b"\xa1a\x00" * 100)
