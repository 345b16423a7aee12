"""What other languages send: errors of Python and JavaScript providers as text, JavaScript's values as JSON."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest

from hypha.errors import NotAcceptable
from hypha.wire.values import error, error_text, to_json


def _multi_line() -> None:
    raise ValueError("first line\n  second line")


def _chained() -> None:
    try:
        _multi_line()
    except ValueError as exc:
        raise KeyError("outer") from exc


def _without_a_message() -> None:
    raise RuntimeError


def _group() -> None:
    raise ExceptionGroup("several", [ValueError("one"), OSError("other")])


def _syntax() -> None:
    compile("a b", "file.py", "exec")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (_multi_line, "ValueError: first line\n  second line"),
        (_chained, "KeyError: 'outer'"),
        (_without_a_message, "RuntimeError"),
        (_group, "OSError: other"),
        (_syntax, "SyntaxError: invalid syntax"),
    ],
)
def test_a_formatted_traceback_is_left_out(function: Callable[[], None], expected: str) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011  each row raises another type
        function()
    assert error_text(error("".join(traceback.format_exception(raised.value)))) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (error("TypeError: wrong\n  in two lines"), "TypeError: wrong\n  in two lines"),
        (error("just a message"), "just a message"),
        ("text in the place of an error", "text in the place of an error"),
        (error("  "), "the function failed without a message"),
        (error("Traceback (most recent call last):"), "the function failed without a message"),
    ],
)
def test_any_other_error_is_told_as_it_is(value: object, expected: str) -> None:
    assert error_text(value) == expected


def _map(*pairs: Any) -> dict[str, Any]:
    return {"_rtype": "orderedmap", "_rvalue": [list(pair) for pair in pairs]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (_map(), {}),
        (_map(("b", 1), ("a", _map(("c", {"_rtype": "set", "_rvalue": [2]})))), {"b": 1, "a": {"c": [2]}}),
        (_map((1, "one"), ("two", 2)), [[1, "one"], ["two", 2]]),
        ({"_rtype": "orderedmap", "_rvalue": [["only a key"]]}, [["only a key"]]),
        (msgpack.Timestamp.from_datetime(datetime(2024, 2, 29, 12, 34, 56, 789000, UTC)), "2024-02-29T12:34:56.789Z"),
        (msgpack.Timestamp(0), "1970-01-01T00:00:00.000Z"),
    ],
)
def test_values_of_javascript_become_json(value: object, expected: object) -> None:
    assert to_json(value, 1000) == expected


def test_a_date_beyond_the_calendar_is_refused() -> None:
    with pytest.raises(NotAcceptable, match="1 to 9999"):
        to_json([msgpack.Timestamp(10**12)], 1000)
