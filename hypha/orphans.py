"""What is left of a worker's programs when the worker was killed: the processes that they have started themselves.

The kernel kills the programs with the worker, but not what those have started. On Linux these become children of this
process, which ends them. Standard library only, because the parent process imports it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)

#: Every program that starts with the server has this variable, and passes it on. Others are none of our business: the
#: first process of a container becomes the parent of all that is left alone there.
_MARK = b"HYPHA_TOKEN="

#: Seconds after which what does not end is left alone, and between two looks.
_SECONDS, _LOOK_SECONDS = 1.0, 0.02


class Orphans:
    """The processes that this one inherits from now on. Does nothing where the system is not Linux."""

    def __init__(self) -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def reap(self, worker: int | None) -> None:
        """Let go of those that have ended. The process *worker* is somebody else's to wait for."""
        for pid in _children():
            if pid != worker:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def end(self) -> None:
        """Kill those that belong to programs, and what they leave behind in turn. Call it when there is no worker.

        Takes two looks when there is none, and never more than a second.
        """
        until = time.monotonic() + _SECONDS
        quiet = 0  # one that is just ending has lost its mark and still has its children
        while quiet < 2 and time.monotonic() < until:
            marked = [pid for pid in _children() if _is_marked(pid)]
            quiet = 0 if marked else quiet + 1
            for pid in marked:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self.reap(None)
            time.sleep(_LOOK_SECONDS)  # the parent has no event loop, and no worker that would wait


def _children() -> list[int]:
    """The children of this process, zombies included. Empty where the kernel does not tell."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


def _is_marked(pid: int) -> bool:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False  # ended meanwhile, or of another user
    return any(variable.startswith(_MARK) for variable in variables)
