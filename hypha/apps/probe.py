"""Probes: a function of an app says whether it is ready, and whether it still works (``protocol.md`` 10.1)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import trio

from hypha.errors import HyphaError, InvalidArgument

_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$.]{0,99}", re.ASCII)
_MOST_SECONDS, _MOST_TIMES = 3600.0, 1000
_ERROR_LENGTH = 500


class ProbeFailed(HyphaError):
    """An app has not answered its probe as it should, as often as its config allows."""


@dataclass(frozen=True, slots=True)
class Probe:
    """*function*: of the service ``default``, called without arguments; what it returns is true when all is well.

    *delay*, *period*, *timeout*: seconds before the first call, between two of them, and for each. *successes* and
    *failures*: how many in a row decide.
    """

    kind: str
    function: str
    delay: float
    period: float
    timeout: float
    successes: int
    failures: int

    async def until_ready(self, ask: Callable[[], Awaitable[object]]) -> None:
        """Until the function has said often enough that it is. An answer that is not true means to wait.

        Raises :class:`ProbeFailed` when it has failed too often.
        """
        good = bad = 0
        await trio.sleep(self.delay)
        while True:
            is_well, trouble = await self._ask(ask)
            good, bad = good + 1 if is_well else 0, bad + 1 if trouble else 0
            self._judge(bad, trouble)
            if good >= self.successes:
                return
            await trio.sleep(self.period)

    async def until_dead(self, ask: Callable[[], Awaitable[object]]) -> None:
        """For ever. Raises :class:`ProbeFailed` when the function has failed too often, or not said true."""
        bad = 0
        await trio.sleep(self.delay)
        while True:
            is_well, trouble = await self._ask(ask)
            bad = 0 if is_well else bad + 1
            self._judge(bad, trouble or "what it returned is not true")
            await trio.sleep(self.period)

    async def _ask(self, ask: Callable[[], Awaitable[object]]) -> tuple[bool, str]:
        """Whether all is well, and what went wrong with asking."""
        try:
            with trio.move_on_after(self.timeout):
                return bool(await ask()), ""
        except HyphaError as error:
            return False, str(error)
        return False, f"it gave no answer for {self.timeout:g} s"

    def _judge(self, bad: int, text: str) -> None:
        if bad >= self.failures:
            raise ProbeFailed(f"its {self.kind} {self.function!r} has failed {bad} times: {text[:_ERROR_LENGTH]}")


def parse_probe(config: Mapping[str, object], kind: str) -> Probe | None:
    """The probe that *config* has under the name *kind*. Raises :class:`InvalidArgument`."""
    told = config.get(kind)
    if told is None:
        return None
    if not isinstance(told, dict):
        raise InvalidArgument(f"the {kind} of an app is a map, with the name of a function in exec")
    function = told.get("exec")
    if function is None:
        return None
    if not isinstance(function, str) or not _NAME.fullmatch(function):
        raise InvalidArgument(f"exec of the {kind} is the name of a function of the service default")

    def number(name: str, default: float, least: float, most: float) -> float:
        value = told.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise InvalidArgument(f"{name} of the {kind} is a number from {least:g} to {most:g}")
        return value

    return Probe(
        kind,
        function,
        delay=number("initial_delay_seconds", 0, 0, _MOST_SECONDS),
        period=number("period_seconds", 10, 0.1, _MOST_SECONDS),
        timeout=number("timeout", 5, 0.1, _MOST_SECONDS),
        successes=int(number("success_threshold", 1, 1, _MOST_TIMES)),
        failures=int(number("failure_threshold", 3, 1, _MOST_TIMES)),
    )
