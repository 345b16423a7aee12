"""Progress: to a caller in order, whatever he does with it, and to the terminal."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from hypha.apps.progress import Progress, Tell, tell_nobody, telling
from hypha.errors import Conflict, HyphaError, RemoteError


async def test_a_caller_is_told_everything_in_order_before_the_end(autojump_clock: MockClock) -> None:
    told: list[str] = []
    tells: list[Tell] = []

    async def call_back(args: list[Any]) -> None:
        await trio.sleep(0.5)
        told.append(args[0]["message"])
        raise RemoteError("on purpose")

    async def run(tell: Tell) -> int:
        for number in range(3):
            tell("info", str(number))
        tells.append(tell)
        return 7

    assert await telling(call_back, run) == 7
    assert told == ["0", "1", "2"]
    tells[0]("info", "too late")
    assert told == ["0", "1", "2"]


async def test_a_caller_who_takes_nothing_waits_a_little_and_nobody_else_does(autojump_clock: MockClock) -> None:
    async def call_back(args: list[Any]) -> None:
        await trio.sleep_forever()

    async def run(tell: Tell) -> None:
        for _ in range(1000):
            tell("info", "x")
        raise Conflict("on purpose")

    with pytest.raises(HyphaError, match="on purpose"):
        await telling(call_back, run)
    assert trio.current_time() == 2


async def test_who_does_not_ask_is_told_nothing() -> None:
    async def run(tell: Tell) -> Tell:
        return tell

    assert await telling(None, run) is tell_nobody


def test_what_an_app_says_is_one_line_at_the_terminal_and_no_order_to_it() -> None:
    told: list[tuple[str, str]] = []
    said: list[str] = []
    progress = Progress("A\n\x1b[31m" + "x" * 100, "lab", lambda *args: told.append(args), said.append)
    progress.error("\x1b[2Jfailed\nhypha: a line of its own")
    assert progress.stage == told[0][1] == "\x1b[2Jfailed\nhypha: a line of its own"
    assert said == ["server app 'A\\n\\x1b[31m" + "x" * 53 + "' of lab: ?[2Jfailed"]
    progress.over("")
    assert said[1].endswith("of lab: has ended: ")
