"""Real processes under test: published clients, and servers started as people start them.

Every process leads a group of its own, which is killed as a whole when the test is done with it.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.house.environments import clean_environ

#: Seconds in which a server must be ready, and in which it must have ended.
START_SECONDS, STOP_SECONDS = 20.0, 15.0

_URL = re.compile(rb"^ +open +(http://\S+)", re.MULTILINE)
_HYPERCORNS_URL = re.compile(rb"Running on (http://\S+)")


def environ_for(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a process under test sees: nothing of this repository, no settings of a server, unbuffered output."""
    kept = {name: text for name, text in clean_environ().items() if not name.startswith(("HYPHA_", "LISTEN_"))}
    return {**kept, "PYTHONUNBUFFERED": "1", **(extra or {})}


class Ended(AssertionError):
    """A process ended, or took too long, before it did what the test waits for. The text holds its output."""


@dataclass(frozen=True)
class Result:
    """How a process ended. A negative *returncode* is the signal that ended it."""

    returncode: int
    stdout: str
    stderr: str


class Running:
    """A process whose output is read all the time, by two tasks in the nursery given to :func:`start`."""

    def __init__(self, process: trio.Process, command: str) -> None:
        self.process = process
        self.command = command
        self._output = {"stdout": "", "stderr": ""}
        self._closed = {"stdout": trio.Event(), "stderr": trio.Event()}
        self._news = trio.Event()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        """What has come so far."""
        return self._output["stdout"]

    @property
    def stderr(self) -> str:
        """What has come so far."""
        return self._output["stderr"]

    async def wait_for(self, pattern: str, stream: str = "stdout") -> re.Match[str]:
        """Wait until a whole line of *stream* matches *pattern* somewhere, and return the match.

        Raises :class:`Ended` when the output ends first. Safe to cancel.
        """
        while True:
            news, closed = self._news, self._closed[stream].is_set()
            for line in self._output[stream].splitlines(keepends=True):
                match = re.search(pattern, line)
                if match and line.endswith("\n"):
                    return match
            if closed:
                raise Ended(f"the process ended without a line that matches {pattern!r}\n{self.report()}")
            await news.wait()

    async def wait(self) -> Result:
        """Wait until the process has ended and its output was read. Safe to cancel."""
        returncode = await self.process.wait()
        for closed in self._closed.values():
            await closed.wait()
        return Result(returncode, self.stdout, self.stderr)

    def send_signal(self, number: signal.Signals) -> None:
        """Send *number* to the process, not to its group."""
        self.process.send_signal(number)

    def kill_group(self) -> None:
        """SIGKILL to the process and to what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def report(self) -> str:
        """The command and all its output, for the message of a failing test."""
        return f"$ {self.command}\n--- standard output\n{self.stdout}--- standard error\n{self.stderr}"

    async def pump(self, name: str, stream: trio.abc.ReceiveStream) -> None:
        """Read *stream*, one of the process's two, to its end."""
        try:
            async with stream:
                async for chunk in stream:
                    self._output[name] += chunk.decode(errors="replace")
                    self._tell()
        finally:
            self._closed[name].set()
            self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()


@asynccontextmanager
async def start(
    nursery: trio.Nursery, command: Sequence[str | Path], *, cwd: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Running]:
    """Start *command* and kill its whole group at the end of the block, if it has not ended by itself."""
    process = await trio.lowlevel.open_process(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=environ_for(environ),
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    running = Running(process, shlex.join(map(str, command)))
    nursery.start_soon(running.pump, "stdout", process.stdout)
    nursery.start_soon(running.pump, "stderr", process.stderr)
    try:
        yield running
    finally:
        running.kill_group()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_SECONDS):
            await running.wait()


async def run(
    nursery: trio.Nursery,
    command: Sequence[str | Path],
    *,
    cwd: Path,
    environ: Mapping[str, str] | None = None,
    seconds: float,
) -> Result:
    """Run *command* to its end. Raises :class:`Ended` with its output when that takes more than *seconds*."""
    async with start(nursery, command, cwd=cwd, environ=environ) as running:
        with trio.move_on_after(seconds):
            return await running.wait()
        raise Ended(f"still running after {seconds:g} s\n{running.report()}")


@dataclass(frozen=True)
class Server:
    """A server process that is ready at *url*, as its own banner says. *log* holds its standard error."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        return int(self.url.rstrip("/").rpartition(":")[2])


@contextmanager
def serving(
    directory: Path, *flags: str, command: Sequence[str | Path] = (), environ: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A server on a free port, in and for *directory*, stopped with SIGTERM at the end of the block.

    Asserts that it then ends with exit code 0 and has written no traceback. Blocks the thread for as long as the
    server takes to start and to stop, so that it can serve fixtures of every scope. *command* may be Hypercorn's.
    """
    port = () if "hypercorn" in command else ("--port", "0")
    full = [*(command or (sys.executable, "-m", "hypha.server")), *port, *flags]
    log = directory / "server.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            list(map(str, full)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=directory,
            env=environ_for(environ),
            start_new_session=True,
        )
    with process:
        try:
            yield Server(_find_url(process, log) if "hypercorn" in command else _read_url(process, log), process, log)
            _stop(process, log)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _read_url(process: subprocess.Popen[bytes], log: Path) -> str:
    """The first address of the banner, which the server prints when it is ready."""
    assert process.stdout is not None
    output, deadline = b"", time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if select.select([process.stdout], [], [], deadline - time.monotonic())[0]:
            chunk = os.read(process.stdout.fileno(), 65536)
            output += chunk
            found = _URL.search(output)
            if found and output.endswith(b"\n"):
                return found[1].decode()
            if not chunk:
                break
    raise Ended(f"the server did not become ready\n{output.decode()}{log.read_text()}")


def _find_url(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address in Hypercorn's log, which it writes when it is about to accept."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = _HYPERCORNS_URL.search(log.read_bytes())
        if found:
            return found[1].decode()
        time.sleep(0.01)
    raise Ended(f"the server did not become ready\n{log.read_text()}")


def _stop(process: subprocess.Popen[bytes], log: Path) -> None:
    process.terminate()
    try:
        code = process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise Ended(f"the server did not end within {STOP_SECONDS:g} s of SIGTERM\n{log.read_text()}") from None
    assert code == 0, f"exit code {code} after SIGTERM\n{log.read_text()}"
    assert "Traceback" not in log.read_text(), log.read_text()
