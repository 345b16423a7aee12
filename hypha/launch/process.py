"""One program that the server has started, from its start to the end of everything that it has started itself.

It leads a process group of its own and dies with the server, however that ends. It is waited for by its pidfd, on the
trio thread that started it: the parent-death signal follows the thread that forked, and trio's own threads retire.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from hypha.config import KIB

#: Bytes of the longest line of output that is shown as one.
LINE_BYTES = 64 * KIB
#: How many lines, and how many characters of each, are remembered of the end of the output.
TAIL_LINES, TAIL_LINE_LENGTH = 20, 500

#: Seconds from SIGTERM until SIGKILL, and from there until the program is given up.
TERM_SECONDS, KILL_SECONDS = 2.0, 1.0
#: Seconds for which the output is still read when the program has ended: what it has started may hold the pipe.
READ_SECONDS = 1.0

_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1  # prctl(2)


class Child:
    """A program that runs, or has ended. Made by :func:`running` alone."""

    def __init__(self, process: subprocess.Popen[bytes], output: int, name: str, show: Callable[[str], object]) -> None:
        """*output* is the descriptor from which its output is read, ours from now on."""
        self._process = process
        self._output = output
        self._prefix = f"{name} | "
        self._show = show
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._ended = trio.Event()
        # Both go on when everything is cancelled, until the end is over.
        self._watching, self._reading = trio.CancelScope(shield=True), trio.CancelScope(shield=True)
        self._read = trio.Event()
        # Its own: threads that wait for a stopped terminal take nobody else's.
        self._limiter = trio.CapacityLimiter(1)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def tail(self) -> list[str]:
        """The last lines that it has printed, each cut to :data:`TAIL_LINE_LENGTH` characters."""
        return list(self._tail)

    @property
    def ending(self) -> str:
        """How it ended, in words, after the block of :func:`running`."""
        code = self._process.returncode
        if code is None:
            return "did not end"
        return f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"

    async def wait(self) -> None:
        """Wait until the program has ended. What it has started may still run. Safe to cancel."""
        await self._ended.wait()

    # --- the tasks of running() -------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Notice the end, and leave the process a zombie: as long as it is one, its number is nobody else's."""
        with self._watching:
            await _wait_for_end(self._process)
            self._ended.set()

    async def _pump(self) -> None:
        """Show the output, line by line. Others run meanwhile: a terminal that is stopped holds up the program only."""
        with self._reading:
            async with trio.lowlevel.FdStream(self._output) as stream:
                lines = _Lines()
                while data := await stream.receive_some(LINE_BYTES):
                    await self._print(lines.feed(bytes(data)))
                await self._print(lines.rest())
        self._read.set()

    async def _print(self, lines: Sequence[str]) -> None:
        if lines:
            self._tail.extend(line[:TAIL_LINE_LENGTH] for line in lines)
            text = "".join(f"{self._prefix}{line}\n" for line in lines)
            await trio.to_thread.run_sync(self._show, text, abandon_on_cancel=True, limiter=self._limiter)

    async def _end(self) -> None:
        """Ask the group to end, wait, kill what is left. Takes :data:`TERM_SECONDS` and a little at most."""
        with trio.CancelScope(shield=True):
            if not self._ended.is_set():
                self._signal(signal.SIGTERM)
                with trio.move_on_after(TERM_SECONDS):
                    await self._ended.wait()
            self._signal(signal.SIGKILL)
            with trio.move_on_after(KILL_SECONDS):
                await self._ended.wait()
                with trio.move_on_after(READ_SECONDS):
                    await self._read.wait()
            self._process.poll()  # no zombie stays; the number may be another's from here on
            self._watching.cancel()
            self._reading.cancel()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # nobody is left; macOS says it for a zombie in this way
            os.killpg(self._process.pid, number)


@asynccontextmanager
async def running(
    arguments: Sequence[str],
    *,
    name: str,
    environ: Mapping[str, str],
    cwd: Path | None,
    show: Callable[[str], object],
) -> AsyncIterator[Child]:
    """Run a program as long as the block lasts; nothing of its group is left behind it, also when it is cancelled.

    The end of the block takes up to :data:`TERM_SECONDS` and a little. *show* is called, in threads, with whole lines
    of output, each with *name* in front. Raises OSError when the program cannot be started.
    """
    process, output = _spawn(arguments, environ, cwd)
    child = Child(process, output, name, show)
    # No checkpoint before this line: from here on the program ends with the block.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child._watch)
        nursery.start_soon(child._pump)
        try:
            yield child
        finally:
            await child._end()


def _spawn(
    arguments: Sequence[str], environ: Mapping[str, str], cwd: Path | None
) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and the end of the pipe to which it writes. Blocks for some milliseconds. Raises OSError."""
    output, theirs = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: S603  the person who starts the server says what runs
            list(arguments),
            env=dict(environ),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_preparation(os.getpid()),
        )
    except BaseException:  # nobody else knows of this descriptor yet
        os.close(output)
        raise
    finally:
        os.close(theirs)
    return process, output


def _preparation(server: int) -> Callable[[], None]:
    """What the child does between fork and exec. All that it needs is there before: it must not import or log."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def prepare() -> None:
        # Hypercorn's command ignores SIGINT in its child, and signals that are ignored or held back stay so.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != server:
                os._exit(1)  # the server ended before the kernel was asked

    return prepare


async def _wait_for_end(process: subprocess.Popen[bytes]) -> None:
    """Wait without reaping where the system lets us. Safe to cancel."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        await _poll_for_end(process)  # not Linux, or too old a kernel
        return
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


async def _poll_for_end(process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:  # noqa: ASYNC110  nothing tells it where there is no pidfd
        await trio.sleep(_POLL_SECONDS)


class _Lines:
    """Cuts bytes into lines of text, none longer than :data:`LINE_BYTES`."""

    def __init__(self) -> None:
        self._open = bytearray()

    def feed(self, data: bytes) -> list[str]:
        """The lines that *data* completes."""
        self._open += data
        *whole, last = bytes(self._open).split(b"\n")
        found = [piece for line in whole for piece in _pieces(line)]
        while len(last) >= LINE_BYTES:
            found.append(_text(last[:LINE_BYTES]))
            last = last[LINE_BYTES:]
        self._open = bytearray(last)
        return found

    def rest(self) -> list[str]:
        """The last line, if it has no end."""
        return [_text(bytes(self._open))] if self._open else []


def _pieces(line: bytes) -> list[str]:
    return [_text(line[start : start + LINE_BYTES]) for start in range(0, len(line) or 1, LINE_BYTES)]


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # one of the real-time signals
