"""Probes, on a clock that jumps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from hypha.apps.probe import Probe, ProbeFailed, parse_probe
from hypha.errors import HyphaError, InvalidArgument, RemoteError

CONFIG = {"exec": "check", "initial_delay_seconds": 2, "period_seconds": 1, "failure_threshold": 2}


def a_probe(**changes: object) -> Probe:
    probe = parse_probe({"readiness_probe": {**CONFIG, **changes}}, "readiness_probe")
    assert probe is not None
    return probe


def answering(*answers: object) -> Callable[[], Awaitable[object]]:
    """Gives *answers* one after the other; raises those that are errors, and never gives None."""
    left = list(answers)

    async def ask() -> object:
        answer = left.pop(0)
        if answer is None:
            await trio.sleep_forever()
        if isinstance(answer, HyphaError):
            raise answer
        return answer

    return ask


BAD = RemoteError("on purpose")


@pytest.mark.parametrize(
    ("changes", "answers", "seconds"),
    [
        ({}, [True], 2),
        ({"initial_delay_seconds": 0}, [1], 0),
        ({}, [False, False, False, "yes"], 5),
        ({}, [BAD, False, BAD, True], 5),
        ({"success_threshold": 2}, [True, False, True, True], 5),
        ({"timeout": 3}, [None, True], 6),
    ],
)
async def test_an_app_becomes_ready(
    autojump_clock: MockClock, changes: dict[str, object], answers: list[object], seconds: float
) -> None:
    await a_probe(**changes).until_ready(answering(*answers))
    assert trio.current_time() == seconds


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([BAD, BAD], "its readiness_probe 'check' has failed 2 times: on purpose"),
        ([False, BAD, None], "'check' has failed 2 times: it gave no answer for 5 s"),
    ],
)
async def test_an_app_that_fails_does_not_become_ready(
    autojump_clock: MockClock, answers: list[object], reason: str
) -> None:
    with pytest.raises(ProbeFailed, match=reason):
        await a_probe().until_ready(answering(*answers))


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([True, False, True, BAD, False], "has failed 2 times: what it returned is not true"),
        ([True, None, BAD], "has failed 2 times: on purpose"),
    ],
)
async def test_an_app_is_found_dead(autojump_clock: MockClock, answers: list[object], reason: str) -> None:
    with pytest.raises(ProbeFailed, match=reason):
        await a_probe().until_dead(answering(*answers))


def test_what_a_probe_is_when_little_is_said() -> None:
    assert parse_probe({"liveness_probe": {"exec": "a.b"}}, "liveness_probe") == Probe(
        "liveness_probe", "a.b", delay=0, period=10, timeout=5, successes=1, failures=3
    )
    nothing: list[dict[str, Any]] = [{}, {"liveness_probe": None}, {"liveness_probe": {}}]
    assert [parse_probe(config, "liveness_probe") for config in nothing] == [None] * 3


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("check", "the liveness_probe of an app is a map"),
        ({"exec": 1}, "exec of the liveness_probe is the name of a function"),
        ({"exec": "a b"}, "exec of the liveness_probe is the name of a function"),
        ({"exec": "a", "period_seconds": 0}, r"period_seconds of the liveness_probe is a number from 0\.1 to 3600"),
        ({"exec": "a", "timeout": True}, "timeout of the liveness_probe"),
        ({"exec": "a", "success_threshold": float("nan")}, "success_threshold of the liveness_probe"),
        (
            {"exec": "a", "failure_threshold": 1001},
            "failure_threshold of the liveness_probe is a number from 1 to 1000",
        ),
        ({"exec": "a", "initial_delay_seconds": -1}, "initial_delay_seconds of the liveness_probe is a number from 0"),
    ],
)
def test_what_is_no_probe_says_why(told: object, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        parse_probe({"liveness_probe": told}, "liveness_probe")
