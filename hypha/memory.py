"""How the process that serves frees memory: kept for the next message while there is work, and given back after it."""

from __future__ import annotations

import ctypes
import gc
import sys
import time

from hypha.config import KIB, MIB

#: mallopt(3): what is freed is kept for the next message up to 12 MiB, instead of being given back page by page, and
#: blocks up to those of a message of 1 MiB come from there. The pages of a large message would otherwise cost as much
#: as its copying. Larger blocks are the kernel's: it moves them without copying when they grow.
_MALLOC_OPTIONS = {-1: 12 * MIB, -2: 1 * MIB, -3: MIB + 128 * KIB}  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD

#: Objects made and not freed before the garbage collector looks at the young, and how often it looks at the older. A
#: small second number keeps its pauses short while thousands of clients come: 30 000 new objects at a time.
_GC_THRESHOLDS = (10_000, 2, 150)

#: Seconds of processor time between two looks, below which there was no work.
_QUIET = 0.02


def _glibc() -> ctypes.CDLL | None:
    """The C library where it is glibc; other allocators are left alone."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def tune_memory() -> None:
    """Set how this process, which serves, frees memory."""
    gc.set_threshold(*_GC_THRESHOLDS)
    libc = _glibc()
    if libc is not None:
        for option, size in _MALLOC_OPTIONS.items():
            libc.mallopt(option, size)


def begin_start() -> None:
    """Look for no garbage until :func:`end_start`: among what is read at the start it would take longer than reading.

    For processes that do nothing but serve; a program around a server decides for itself.
    """
    gc.disable()


def end_start() -> None:
    """What the start has made stays: each look at all of it would be a pause of 30 ms.

    The garbage among it stays, too: it is little, and to find it would be such a pause before anybody is served.
    """
    gc.freeze()
    gc.enable()


class Spare:
    """What was freed and is still held, because something small that lives on lies behind it.

    It is given back in the first quiet moment after some work. That takes a millisecond for each 10 MB, in which
    nobody is served, so it is not done while there is work.
    """

    def __init__(self) -> None:
        self._libc = _glibc()
        self._used = time.thread_time()
        self._has_worked = False

    def sweep(self) -> None:
        """Look once more, about a second after the last time, from the thread that serves."""
        used = time.thread_time()
        quiet, self._used = used - self._used < _QUIET, used
        if quiet and self._has_worked and self._libc is not None:
            self._libc.malloc_trim(0)
        self._has_worked = not quiet
