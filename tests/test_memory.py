"""What a process has freed, and holds because of what lies behind it, goes back to the system after the work."""

from __future__ import annotations

import sys

import trio

from tests.house.processes import environ_for

_PROGRAM = """
import time
from pathlib import Path
from hypha.memory import Spare, tune_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def work():
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        pass

tune_memory()
spare = Spare()
before = resident()
blocks = [b"x" * 500_000 for _ in range(100)]
behind = b"x" * 500_000
del blocks
work()
spare.sweep()
held = resident() - before
spare.sweep()
print(held, resident() - before)
"""


async def test_memory_is_given_back_in_the_first_quiet_moment_after_work() -> None:
    command = [sys.executable, "-c", _PROGRAM]
    result = await trio.run_process(command, capture_stdout=True, env=environ_for())
    held, kept = map(int, result.stdout.split())
    assert held > 40_000_000, "the work is not over, or nothing was held"
    assert kept < 5_000_000


_START = """
import gc
from hypha.memory import begin_start, end_start

begin_start()
print(gc.isenabled(), gc.get_freeze_count())
end_start()
print(gc.isenabled(), gc.get_freeze_count() > 0)
"""


async def test_a_process_that_serves_looks_for_garbage_when_it_has_started() -> None:
    result = await trio.run_process([sys.executable, "-c", _START], capture_stdout=True, env=environ_for())
    assert result.stdout.decode().split() == ["False", "0", "True", "True"]
