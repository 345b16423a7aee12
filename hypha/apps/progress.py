"""How far a launch has come, as its caller and the terminal are told."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from hypha.broker.own import CallBack
from hypha.errors import HyphaError

logger = logging.getLogger(__name__)

#: Takes ``info``, ``success`` or ``error``, and what has begun, or how it has ended.
Tell = Callable[[str, str], None]

_NAME_LENGTH, _LINE_LENGTH = 60, 200
#: So much may wait to be told, and the end of a launch waits so many seconds for a caller to take it.
_WAITING, _LAST_SECONDS = 32, 2.0

T = TypeVar("T")


def tell_nobody(kind: str, text: str) -> None:
    """For a caller who does not ask."""


async def telling(call_back: CallBack | None, run: Callable[[Tell], Awaitable[T]]) -> T:
    """What *run* returns or raises, after *call_back* was called with all that it has told, one after the other.

    A caller who takes nothing misses what it cannot be told, and delays nothing but the end, a little. Nobody hears
    what is told later.
    """
    if call_back is None:
        return await run(tell_nobody)
    send, receive = trio.open_memory_channel[dict[str, str]](_WAITING)
    outcome: T | HyphaError

    def tell(kind: str, text: str) -> None:
        try:
            send.send_nowait({"type": kind, "message": text})
        except trio.WouldBlock:
            logger.info("a caller does not take the progress of its launch")
        except trio.ClosedResourceError:  # the launch has failed, and the app takes its time to end
            pass

    async with trio.open_nursery() as nursery:
        told = trio.Event()
        nursery.start_soon(_pass_on, receive, call_back, told)
        try:
            outcome = await run(tell)
        except HyphaError as error:  # raised behind the block, which would put it into a group
            outcome = error
        send.close()
        with trio.move_on_after(_LAST_SECONDS):
            await told.wait()
        nursery.cancel_scope.cancel()
    if isinstance(outcome, HyphaError):
        raise outcome
    return outcome


async def _pass_on(receive: trio.MemoryReceiveChannel[Any], call_back: CallBack, told: trio.Event) -> None:
    async for message in receive:
        try:
            await call_back([message])
        except HyphaError as error:
            logger.info("a caller cannot be told of the progress of its launch: %s", error)
    told.set()


class Progress:
    """The launch of one app, called *name*, in *workspace*. *stage*: the newest that was told, for who lists it."""

    def __init__(self, name: str, workspace: str, tell: Tell, say: Callable[[str], None]) -> None:
        self._name = f"{name[:_NAME_LENGTH]!r} of {workspace}"
        self._tell = tell
        self._say = say
        self.stage = ""

    def info(self, text: str) -> None:
        """Something has begun."""
        self._note("info", text)

    def success(self, text: str) -> None:
        """The app is ready."""
        self._note("success", text)

    def error(self, text: str) -> None:
        """The app is not going to be ready."""
        self._note("error", text)

    def over(self, reason: str) -> None:
        """An app that was ready has ended, which its caller does not wait for."""
        self._to_terminal(f"has ended: {reason}")

    def _note(self, kind: str, text: str) -> None:
        self.stage = text
        self._tell(kind, text)
        self._to_terminal(text)

    def _to_terminal(self, text: str) -> None:
        first = next(iter(text.splitlines()), "")[:_LINE_LENGTH]
        # Words of an app are no orders to the terminal.
        line = "".join(letter if letter.isprintable() else "?" for letter in first)
        self._say(f"server app {self._name}: {line}")
