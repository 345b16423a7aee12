"""A deadline for every test, in real seconds whatever clock the test uses.

Three stages, each a little later than the one before. A test that runs in trio is cancelled, and the error shows
where each of its tasks waited. A test that does not take the cancellation, or does not run in trio, gets
:class:`DeadlineExceeded` raised in it. A test that holds the interpreter is ended with the whole run, after the
stack of each thread was written.

``@pytest.mark.deadline(seconds)`` sets another one than :data:`NORMAL`, or :data:`SLOW` for ``slow`` tests.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, TypeVar

import pytest
import trio

from tests.house.leaks import leaked_system_tasks

T = TypeVar("T")

NORMAL, SLOW, SOAK = 60.0, 300.0, 3600.0
#: Seconds between the stages.
GRACE = 10.0

_stderr = pytest.StashKey[int]()


class DeadlineExceeded(Exception):
    """The test took longer than it may."""


class Watch:
    """One phase (set-up, call or teardown) of one test, from :meth:`start` to :meth:`stop`."""

    def __init__(self, seconds: float, stderr: int) -> None:
        self.seconds = seconds
        self.stderr = stderr
        self.cancel: Callable[[], None] | None = None

    def start(self) -> None:
        signal.signal(signal.SIGALRM, self._expire)
        signal.setitimer(signal.ITIMER_REAL, self.seconds, GRACE)
        faulthandler.dump_traceback_later(self.seconds + 3 * GRACE, exit=True, file=self.stderr)

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _expire(self, number: int, frame: FrameType | None) -> None:
        cancel, self.cancel = self.cancel, None
        if cancel is None:
            raise DeadlineExceeded(f"longer than {self.seconds:g} s")
        cancel()


def seconds_for(item: pytest.Item) -> float:
    """How long *item* may take, by its markers."""
    marker = item.get_closest_marker("deadline")
    if marker is not None:
        return float(marker.args[0])
    if item.get_closest_marker("soak"):
        return SOAK + 60 * float(item.config.getoption("minutes", 0.0))
    return SLOW if item.get_closest_marker("slow") else NORMAL


def run_watched(watch: Watch, async_fn: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
    """``trio.run`` with the cancellation of *watch* around everything in it, fixtures included."""
    return trio.run(partial(_watched, watch, async_fn), *args, **kwargs)


async def _watched(watch: Watch, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
    report: list[str] = []

    def expire() -> None:
        report.extend(describe_tasks())
        scope.cancel()

    with trio.CancelScope() as scope:
        token = trio.lowlevel.current_trio_token()
        watch.cancel = partial(token.run_sync_soon, expire)
        try:
            result = await async_fn(*args)
        except BaseException as error:  # also what a cancelled test makes of its cancellation
            if report:
                raise DeadlineExceeded("\n".join([f"longer than {watch.seconds:g} s, waiting in", *report])) from error
            raise
        finally:
            watch.cancel = None
        leaked = leaked_system_tasks()
        if leaked:
            raise AssertionError(f"the test leaks tasks in trio's own nursery: {', '.join(leaked)}")
        return result
    raise AssertionError("the scope swallows only its own cancellation, which is translated above")


def describe_tasks() -> list[str]:
    """One line for each task of this trio run: its name and where it waits."""
    lines: list[str] = []
    root = trio.lowlevel.current_root_task()
    todo = [root] if root else []
    while todo:
        task = todo.pop()
        todo.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
        if task.parent_nursery is not None and not task.name.startswith("trio."):
            lines.append(f"  {task.name}: {_place(task)}")
    return lines


def _place(task: trio.lowlevel.Task) -> str:
    frames = [frame for frame, _ in task.iter_await_frames() if not frame.f_code.co_filename.endswith("_ki.py")]
    return " <- ".join(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}" for frame in reversed(frames))


@contextmanager
def watching(item: pytest.Item, at_least: float = NORMAL) -> Iterator[Watch]:
    """Hold one phase of *item* to its deadline. Fixtures have :data:`NORMAL` whatever the test itself may take."""
    watch = Watch(max(seconds_for(item), at_least), item.config.stash[_stderr])
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "deadline(seconds): how long the test may take, instead of the default")
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():  # the run's own standard error, not a test's
        config.stash[_stderr] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_stderr])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with watching(item):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with watching(item, at_least=0.0) as watch:
        if item.get_closest_marker("trio") is not None:
            item.add_marker(pytest.mark.trio(run=partial(run_watched, watch)), append=False)
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    with watching(item):
        return (yield)
