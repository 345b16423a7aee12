"""The leak check that closes each test: no process, no open file or socket, no thread and no system task stays.

What fixtures of a wider scope hold is there before the test starts and is not counted; it is checked once more
when the session ends. This process adopts orphaned grandchildren (``PR_SET_CHILD_SUBREAPER``), so that a
process whose parent was killed is found too. What has leaked is named, and processes are killed, so that the
next test starts clean.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

PR_SET_CHILD_SUBREAPER = 36
#: Seconds that what is just ending may still take: a killed process, a joined thread.
GRACE = 2.0

_baseline = pytest.StashKey["Snapshot"]()


@dataclass(frozen=True)
class Snapshot:
    """What this process holds: descendants as (pid, start time), descriptors as (number, target), threads."""

    processes: frozenset[tuple[int, int]]
    files: frozenset[tuple[int, str]]
    threads: frozenset[threading.Thread]

    @classmethod
    def take(cls) -> Snapshot:
        return cls(frozenset(_descendants()), frozenset(_open_files()), frozenset(_threads()))

    def leaks(self) -> list[str]:
        """What is there now and is not in this snapshot, described one by one."""
        now = Snapshot.take()
        return [
            *(f"process {pid}: {_command(pid)}" for pid, _ in sorted(now.processes - self.processes)),
            *(f"descriptor {number}: {_describe(number, target)}" for number, target in sorted(now.files - self.files)),
            *(f"thread {thread.name!r}" for thread in now.threads - self.threads),
        ]


def _processes() -> Iterator[tuple[int, int, str, int]]:
    """(pid, parent, state, start time) of every process of the machine, from ``/proc/PID/stat``."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            state, parent, *rest = Path("/proc", entry, "stat").read_text("latin-1").rpartition(")")[2].split()
            yield int(entry), int(parent), state, int(rest[17])


def _descendants() -> Iterator[tuple[int, int]]:
    """(pid, start time) of every living process below this one."""
    below: dict[int, list[tuple[int, int]]] = {}
    for pid, parent, state, started in _processes():
        if state not in "ZX":
            below.setdefault(parent, []).append((pid, started))
    todo = [os.getpid()]
    while todo:
        found = below.get(todo.pop(), [])
        todo.extend(pid for pid, _ in found)
        yield from found


def _open_files() -> Iterator[tuple[int, str]]:
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            yield int(entry), os.readlink(f"/proc/self/fd/{entry}")


def _threads() -> Iterator[threading.Thread]:
    """Every thread but those that trio keeps for its next ``to_thread`` call."""
    return (thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread "))


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "(has just ended)"


def _describe(number: int, target: str) -> str:
    if not target.startswith("socket:"):
        return target
    try:
        with socket.socket(fileno=os.dup(number)) as sock:
            return f"{target} {sock.family.name} {sock.getsockname()}"
    except OSError:
        return target


def remaining(before: Snapshot) -> list[str]:
    """What has leaked since *before* and is still there after :data:`GRACE`."""
    leaks = before.leaks()
    deadline = time.monotonic() + GRACE
    while leaks and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
        leaks = before.leaks()
    return leaks


def kill_leaked(before: Snapshot) -> None:
    """Kill the processes that have leaked since *before*."""
    for pid, _ in Snapshot.take().processes - before.processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def reap_orphans(before: Snapshot) -> None:
    """Collect the ended processes that nobody waits for: this process has adopted them."""
    ours = {pid for pid, _ in before.processes}
    for pid, parent, state, _ in _processes():
        if parent == os.getpid() and state == "Z" and pid not in ours:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def leaked_system_tasks() -> list[str]:
    """The names of the tasks that run in trio's own nursery. To be called by the main task at a run's end."""
    root = trio.lowlevel.current_root_task()
    main = trio.lowlevel.current_task().parent_nursery
    nurseries = [nursery for nursery in root.child_nurseries if nursery is not main] if root else []
    tasks = [task for nursery in nurseries for task in nursery.child_tasks]
    return [task.name for task in tasks if task.name != "<TrioToken.run_sync_soon task>"]


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves something behind."""
    before = Snapshot.take()
    yield
    leaks = remaining(before)
    reap_orphans(before)
    if leaks:
        kill_leaked(before)
        pytest.fail("the test leaks\n  " + "\n  ".join(leaks), pytrace=False)


def pytest_sessionstart(session: pytest.Session) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this kernel does not let a process adopt orphans")
    session.config.stash[_baseline] = Snapshot.take()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    before = session.config.stash.get(_baseline, None)
    leaks = remaining(before) if before else []
    if before and leaks:
        kill_leaked(before)
        print("\nfixtures leak\n  " + "\n  ".join(leaks))
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
