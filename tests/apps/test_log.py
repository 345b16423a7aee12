"""The console of an app: bounded, and shown in parts."""

from __future__ import annotations

from typing import Any

import pytest

from hypha.apps.log import LINE_LENGTH, TYPES, Log
from hypha.errors import InvalidArgument


def test_the_newest_lines_of_each_type_are_kept() -> None:
    log = Log(2)
    for number in range(3):
        log.add("log", str(number))
    log.add("warning", "w")
    assert log.show(None, 0, None) == {"error": [], "log": ["1", "2"], "warning": ["w"]}
    assert log.last_error() is None
    log.add("error", "e")
    assert log.last_error() == "e"


def test_a_part_is_shown() -> None:
    log = Log(10)
    for number in range(5):
        log.add("log", str(number))
    assert log.show("log", 1, 2) == ["1", "2"]
    assert log.show("log", 4, None) == ["4"]
    assert log.show("log", 0, 0) == log.show("nothing", 0, None) == []
    assert log.show(None, 3, 1) == {"error": [], "log": ["3"]}


@pytest.mark.parametrize(
    "arguments", [("log", -1, None), ("log", 0, -1), ("log", True, None), ("log", "0", 1), (1, 0, 1)]
)
def test_what_is_no_part_is_refused(arguments: tuple[Any, Any, Any]) -> None:
    with pytest.raises(InvalidArgument):
        Log(10).show(*arguments)


def test_lines_and_types_are_bounded() -> None:
    log = Log(1)
    log.add("log", "x" * (LINE_LENGTH + 1))
    assert log.show("log", 0, None) == ["x" * LINE_LENGTH]
    for number in range(TYPES + 5):
        log.add(f"t{number}", "x")
    shown = log.show(None, 0, None)
    assert len(shown) == TYPES
