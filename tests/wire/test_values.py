"""Values as they travel: targets made absolute, arrays of every kind as JSON, and what hostile ones cost."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha.errors import InvalidArgument, NotAcceptable, RemoteError
from hypha.wire import values
from hypha.wire.values import MAX_DEPTH, absolute_targets, error, error_text, is_method, method, to_json

LIMIT = 1024 * 1024


def deep(levels: int, inner: Any = None) -> Any:
    value = inner
    for _ in range(levels):
        value = [value]
    return value


# --- targets --------------------------------------------------------------------------------------------------


def test_a_method_has_the_fields_that_clients_read() -> None:
    assert method("lab/a", "services.s.f") == {
        "_rtype": "method",
        "_rtarget": "lab/a",
        "_rmethod": "services.s.f",
        "_rpromise": True,
    }
    annotated = method("lab/a", "s.x", promise=False, _rdoc="Says hello")
    assert (annotated["_rpromise"], annotated["_rdoc"], is_method(annotated)) == (False, "Says hello", True)
    assert not any(map(is_method, (None, [], "method", {"_rtype": "ndarray"}, {"_rtype": ["method"]}, {})))


def test_relative_targets_become_absolute_and_nothing_else_changes() -> None:
    rows: list[tuple[Any, Any]] = [
        (method("a", "s.f"), method("lab/a", "s.f")),
        (method("other/a", "s.f"), method("other/a", "s.f")),
        (method("*/m", "s.f"), method("*/m", "s.f")),
        ([{"deep": [method("a", "x"), 1]}], [{"deep": [method("lab/a", "x"), 1]}]),
        ({"_rtype": "iostream", "read": method("a", "x")}, {"_rtype": "iostream", "read": method("lab/a", "x")}),
        ({"_rtarget": "a"}, {"_rtarget": "a"}),  # a user's own map
        ({"_rtype": "method", "_rtarget": 5}, {"_rtype": "method", "_rtarget": 5}),
        ({"_rtype": "method"}, {"_rtype": "method"}),
        ({"_rtype": ["method"], "_rtarget": "a"}, {"_rtype": ["method"], "_rtarget": "a"}),
        (b"\x00", b"\x00"),
        (None, None),
    ]
    for value, expected in rows:
        assert absolute_targets(value, "lab") == expected


def test_the_original_is_left_alone() -> None:
    original = {"f": method("a", "s.f"), "list": [1]}
    copy = absolute_targets(original, "lab")
    assert original["f"] == method("a", "s.f")
    assert copy["list"] is not original["list"]


def test_depth_is_bounded_exactly() -> None:
    assert absolute_targets(deep(MAX_DEPTH), "lab") == deep(MAX_DEPTH)
    assert to_json(deep(MAX_DEPTH - 1), LIMIT) == deep(MAX_DEPTH - 1)
    with pytest.raises(InvalidArgument, match="nested deeper than 200 levels"):
        absolute_targets(deep(MAX_DEPTH + 1), "lab")
    with pytest.raises(NotAcceptable, match="nested deeper than 200 levels"):
        to_json(deep(MAX_DEPTH), LIMIT)


# --- errors ---------------------------------------------------------------------------------------------------


def test_an_error_of_ours_has_no_trace() -> None:
    assert error("ValueError: no") == {"_rtype": "error", "_rvalue": "ValueError: no", "_rtrace": ""}


@pytest.mark.parametrize("value", [deep(900), {"_rvalue": deep(900)}, {"_rvalue": {}}, b"\xff", {"_rtrace": "only"}])
def test_an_error_that_is_no_text_costs_nothing_and_is_told_shortly(value: Any) -> None:
    assert len(error_text(value)) < 1000
    assert error_text(value)


# --- arrays as JSON -------------------------------------------------------------------------------------------

DTYPES: dict[str, tuple[str, list[Any]]] = {
    "bool": ("?", [True, False]),
    "int8": ("b", [-128, 127]),
    "uint8": ("B", [0, 255]),
    "int16": ("h", [-(2**15), 2**15 - 1]),
    "uint16": ("H", [0, 2**16 - 1]),
    "int32": ("i", [-(2**31), 2**31 - 1]),
    "uint32": ("I", [0, 2**32 - 1]),
    "int64": ("q", [-(2**63), 2**63 - 1]),
    "uint64": ("Q", [0, 2**64 - 1]),
    "float16": ("e", [0.5, -2.0]),
    "float32": ("f", [0.5, -(2.0**100)]),
    "float64": ("d", [0.1, -1.7e308]),
}


def array(data: bytes, dtype: Any = "uint8", shape: Any = ..., kind: str = "ndarray") -> dict[str, Any]:
    value = {"_rtype": kind, "_rvalue": data, "_rdtype": dtype}
    return value if shape is ... else value | {"_rshape": shape}


def test_every_dtype_keeps_its_extremes() -> None:
    for dtype in DTYPES:
        code, items = DTYPES[dtype]
        data = struct.pack(f"<2{code}", *items)
        assert set(DTYPES) == set(values._DTYPES)
        assert to_json(array(data, dtype, [2]), LIMIT) == items
        assert to_json(array(data, dtype, [2, 1]), LIMIT) == [[items[0]], [items[1]]]
        assert to_json(array(data, dtype, kind="typedarray"), LIMIT) == items
        scalar = data[: len(data) // 2]
        assert to_json(array(scalar, dtype, []), LIMIT) == items[0]


def test_shapes_become_nested_lists_row_by_row() -> None:
    rows: list[tuple[bytes, Any, Any]] = [
        (b"\x01\x02\x03\x04\x05\x06", [2, 3], [[1, 2, 3], [4, 5, 6]]),
        (b"\x01\x02\x03\x04", (2, 2), [[1, 2], [3, 4]]),
        (b"\x01\x02\x03\x04", [2, 1, 2], [[[1, 2]], [[3, 4]]]),
        (b"\x01", [1, 1, 1], [[[1]]]),
        (b"\x01", [], 1),
        (b"\x01\x02", None, [1, 2]),
        (b"", None, []),
        (b"", [0], []),
        (b"", [3, 0], [[], [], []]),
        (b"", [0, 3], []),
        (b"", [0, 10**9], []),
        (b"", [2, 0, 5], [[], []]),
    ]
    for data, shape, expected in rows:
        assert to_json(array(data, "uint8", shape), LIMIT) == expected


@given(st.lists(st.integers(0, 3), max_size=4))
def test_a_shape_is_the_shape_of_the_lists(shape: list[int]) -> None:
    found = to_json(array(bytes(math.prod(shape)), "uint8", shape), LIMIT)
    for axis, size in enumerate(shape):
        assert len(found) == size
        if not size:
            break
        found = found[0]
        assert isinstance(found, int) == (axis == len(shape) - 1)


HOSTILE = {
    "too few bytes": array(b"\x01", "uint8", [2]),
    "too many bytes": array(b"\x01\x02\x03", "uint8", [2]),
    "half an item": array(b"\x01\x02\x03", "int16"),
    "half an item with a shape": array(b"\x01\x02\x03", "int16", [1]),
    "a negative axis": array(b"", "uint8", [-1]),
    "two negative axes": array(b"\x01", "uint8", [-1, -1]),
    "an axis of text": array(b"\x01", "uint8", ["1"]),
    "an axis that is a bool": array(b"\x01", "uint8", [True]),
    "an axis that is a float": array(b"\x01", "uint8", [1.0]),
    "a shape of text": array(b"\x01", "uint8", "1"),
    "a shape that is a number": array(b"\x01", "uint8", 1),
    "very many empty rows": array(b"", "uint8", [10**9, 0]),
    "many empty rows": array(b"", "uint8", [100_000, 0]),
    "too many axes": array(b"\x01", "uint8", [1] * 33),
    "many lists around each item": array(bytes(10_000), "uint8", [10_000, *[1] * 31]),
    "numbers that overflow": array(b"", "uint8", [2**62, 2**62, 0]),
    "an unknown dtype": array(b"\x01", "complex64"),
    "no dtype": array(b"\x01", None),
    "a dtype that is a list": array(b"\x01", ["uint8"]),
    "a dtype with another byte order": array(b"\x01\x02", ">i2"),
    "bytes over the limit": array(bytes(LIMIT + 1)),
}


def test_a_hostile_array_is_refused_at_once() -> None:
    for name in HOSTILE:
        with pytest.raises(NotAcceptable) as caught:
            to_json(HOSTILE[name], LIMIT)
        assert "ask for application/msgpack" in str(caught.value)
        assert len(str(caught.value)) < 300


def test_the_limit_of_an_array_is_exact() -> None:
    assert len(to_json(array(bytes(1000)), 1000)) == 1000
    with pytest.raises(NotAcceptable, match="an array of 1001 bytes is over json_array_bytes = 1000"):
        to_json(array(bytes(1001)), 1000)


def test_an_image_becomes_json() -> None:
    found = to_json(array(bytes(128 * 128 * 3), "uint8", [128, 128, 3]), LIMIT)
    assert (len(found), len(found[0]), len(found[0][0])) == (128, 128, 3)


# --- everything else as JSON ----------------------------------------------------------------------------------


def test_values_become_json() -> None:
    rows: list[tuple[Any, Any]] = [
        (None, None),
        (True, True),
        (2**64 - 1, 2**64 - 1),
        (1.5, 1.5),
        (float("nan"), None),
        (float("inf"), None),
        ([float("-inf"), 0.0], [None, 0.0]),
        (array(struct.pack("<2f", math.nan, 1.0), "float32"), [None, 1.0]),
        ("text", "text"),
        ((1, 2), [1, 2]),
        ({1: "a", b"k": 2}, {"1": "a", "b'k'": 2}),
        ({"_rtype": "set", "_rvalue": [1, 2]}, [1, 2]),
        ({"f": method("lab/a", "services.s.f")}, {"f": "<function: services.s.f>"}),
        ({"_rtype": "custom", "x": [1]}, {"_rtype": "custom", "x": [1]}),
        ({"_rtype": ["ndarray"], "_rvalue": 1}, {"_rtype": ["ndarray"], "_rvalue": 1}),
        ({"_rtype": {}, "x": 1}, {"_rtype": {}, "x": 1}),
        ({"_rtype": "ndarray", "_rvalue": [1]}, {"_rtype": "ndarray", "_rvalue": [1]}),
    ]
    for value, expected in rows:
        found = to_json(value, LIMIT)
        assert found == expected
        assert json.loads(json.dumps(found, allow_nan=False)) == expected


def test_what_json_cannot_express_is_refused_with_a_way_out() -> None:
    rows: list[Any] = [b"x", [b"x"], {"a": {"b": b""}}, {"_rtype": "memoryview", "_rvalue": b"x"}, object()]
    for value in rows:
        with pytest.raises(NotAcceptable, match="send the request with Content-Type: application/msgpack"):
            to_json(value, LIMIT)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["_rtype", "_rvalue", "_rshape", "_rdtype", "_rmethod", "_rtarget", "x"]), inner
        )
        | st.fixed_dictionaries(
            {"_rtype": st.sampled_from(["ndarray", "typedarray", "set", "method", "orderedmap"]), "_rvalue": inner},
            optional={"_rshape": inner, "_rdtype": st.sampled_from(list(DTYPES)) | inner},
        )
    ),
    max_leaves=12,
)


@given(anything)
def test_any_value_becomes_json_or_is_refused(value: Any) -> None:
    try:
        found = to_json(value, LIMIT)
    except NotAcceptable:
        return
    assert json.dumps(found, allow_nan=False)


@given(anything)
def test_any_value_can_be_an_error_and_have_its_targets_made_absolute(value: Any) -> None:
    assert str(RemoteError(error_text(value)))
    assert absolute_targets(absolute_targets(value, "lab"), "lab") == absolute_targets(value, "lab") or value != value
