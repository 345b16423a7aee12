"""The parent process: owns the listening sockets and all signals, and keeps one worker serving.

Standard library only; it never imports the application, so nothing that a peer sends can hurt it. The worker is
told what to do through a socket pair: first the configuration, one line of JSON; then ``drain`` or ``stop``.
It answers ``ready``, with what makes the first account while there is none, and before it ends ``failed`` when another
worker would fail in the same way. When one end of the pair closes, the process that held it has ended.

Signals: the first SIGTERM or SIGINT lets the worker finish, the second ends it at once. SIGHUP replaces the worker:
the old one stops accepting (connects wait in the backlog of the sockets, which stay open here), finishes and ends;
then the new one starts, for there are never two workers on one data directory.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from hypha.banner import announce, say
from hypha.config import Config
from hypha.orphans import Orphans

#: Exit codes. 2 is also what a port or data directory in use gives: the cure is another command line.
STOPPED, FAILED, MISUSED = 0, 1, 2

#: The word of a worker that serves.
READY = "ready"

#: Seconds that the worker has beyond ``limits.drain_seconds`` to shut its rooms down (``reliability.md`` promise 5).
SHUTDOWN_SECONDS = 5.0
#: Seconds from "stop now" until the worker is killed.
STOP_SECONDS = 1.0
#: Seconds before the 1st, 2nd, ... new worker in a row; a crash after the last one ends the server.
BACK_OFF = (0.0, 0.25, 0.5, 1.0, 2.0)
#: A worker that has served for so many seconds starts the row anew.
CALM_SECONDS = 60.0

#: What ends or replaces a server. The worker leaves these to its parent.
ORDERING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Worker:
    """One worker process, and our end of the socket pair to it."""

    def __init__(self, config: Config, sockets: Sequence[socket.socket]) -> None:
        """Start the process. Raises OSError when the system has no room for one."""
        fds = [sock.fileno() for sock in sockets]
        self.ready_at: float | None = None
        self.failed = False
        self.control, theirs = socket.socketpair()
        with theirs, signals_blocked():
            # The child inherits the mask: no signal to the whole group reaches it before it is prepared.
            # Its parent-death signal follows the thread that starts it, which must therefore be the main thread.
            self.process = subprocess.Popen(  # noqa: S603  our own module
                [*_interpreter(), "-m", "hypha.worker", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *fds],
            )
        self.tell(json.dumps({"config": config.to_json(), "fds": fds}))
        self.control.setblocking(False)

    def tell(self, line: str) -> None:
        """Send an order. A worker that cannot take it has ended, or is killed when its time is up."""
        with suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            self.control.sendall(line.encode() + b"\n")

    def hear(self) -> list[str] | None:
        """What the worker has said since the last time; None when it has closed its end."""
        try:
            said = self.control.recv(256)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            return None
        return said.decode().splitlines() if said else None

    def ending(self) -> str:
        """How the process ended, in words."""
        code = self.process.returncode
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class Parent:
    """The life of one server. Call :meth:`run` once, from the main thread."""

    def __init__(self, config: Config, sockets: Sequence[socket.socket], started_at: float) -> None:
        """*sockets* are closed when the server stops. *started_at*, on the monotonic clock, is when it was started."""
        self._config = config
        self._sockets = sockets
        self._selector = selectors.DefaultSelector()
        self._terminal = _has_terminal()
        self._worker: Worker | None = None
        self._start_at: float | None = started_at
        self._kill_at: float | None = None
        self._away_since = started_at
        self._announced = False
        self._replacing = False
        self._stops = 0
        self._crashes = 0
        self._code: int | None = None
        self._orphans: Orphans | None = None

    def run(self) -> int:
        """Serve until a signal or a failure ends it; the exit code. Leaves no process behind."""
        if self._config.services_config is not None or self._config.enable_server_apps:
            self._orphans = Orphans()
        with self._selector, _SignalPipe(self._on_signal) as signals:
            self._selector.register(signals, selectors.EVENT_READ, signals.read)
            try:
                while self._code is None:
                    self._on_time()
                    for key, _ in self._selector.select(self._time_left()):
                        key.data()
                    self._reap()
            finally:
                if self._worker is not None:
                    self._worker.process.kill()
                    self._worker.process.wait()
                if self._orphans is not None:
                    self._orphans.end()
        return self._code

    def _time_left(self) -> float | None:
        if self._code is not None:
            return 0
        times = [moment for moment in (self._start_at, self._kill_at) if moment is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _on_time(self) -> None:
        now = time.monotonic()
        if self._start_at is not None and now >= self._start_at:
            self._start_at = None
            self._start()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            if self._worker is not None:
                say(f"the worker (process {self._worker.process.pid}) did not end in time and is killed")
                self._worker.process.kill()

    def _start(self) -> None:
        try:
            self._worker = worker = Worker(self._config, self._sockets)
        except OSError as error:
            self._crashed(f"a worker could not be started ({error.strerror})")
        else:
            self._selector.register(worker.control, selectors.EVENT_READ, lambda: self._on_message(worker))

    def _on_message(self, worker: Worker) -> None:
        messages = worker.hear()
        if messages is None:
            self._selector.unregister(worker.control)
            return
        for message in messages:
            word, _, rest = message.partition(" ")
            if word == "failed":
                worker.failed = True
            elif word == READY:
                self._on_ready(worker, rest or None)

    def _on_ready(self, worker: Worker, invitation: str | None) -> None:
        worker.ready_at = time.monotonic()
        if self._announced:
            say(f"back after {worker.ready_at - self._away_since:.1f} s")
        else:
            self._announced = True
            announce(self._config, self._sockets, worker.ready_at - self._away_since, invitation)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP and (not self._terminal or _has_terminal()):
            self._replace()
        elif number in ORDERING_SIGNALS:
            self._stop()

    def _stop(self) -> None:
        self._stops += 1
        self._start_at = None
        for sock in self._sockets:
            sock.close()  # nobody will accept what would wait here; a supervisor that passed the socket keeps its own
        if self._worker is None:
            self._code = STOPPED
        elif self._stops == 1:
            self._drain(self._worker)
        else:
            self._worker.tell("stop")
            self._kill_at = time.monotonic() + STOP_SECONDS

    def _drain(self, worker: Worker) -> None:
        worker.tell("drain")
        self._kill_at = time.monotonic() + self._config.limits.drain_seconds + SHUTDOWN_SECONDS

    def _replace(self) -> None:
        if self._stops or self._replacing:
            return
        self._crashes = 0
        if self._worker is None:
            self._start_at = time.monotonic()
            return
        say("replacing the worker")
        self._replacing = True
        self._away_since = time.monotonic()
        self._drain(self._worker)

    def _reap(self) -> None:
        worker = self._worker
        if self._orphans is not None:
            self._orphans.reap(None if worker is None else worker.process.pid)
        if worker is None or worker.process.poll() is None:
            return
        self._worker = self._kill_at = None
        with suppress(KeyError):  # its end of the pair was seen closed already
            self._on_message(worker)  # its last words
            self._selector.unregister(worker.control)
        worker.control.close()
        self._on_exit(worker)

    def _on_exit(self, worker: Worker) -> None:
        code = worker.process.returncode
        if self._orphans is not None:
            self._orphans.end()
        if (worker.ready_at is None or worker.failed) and code in {FAILED, MISUSED}:
            self._code = code  # the worker has said why
        elif self._stops:
            self._code = STOPPED
        elif self._replacing:
            self._replacing = False
            self._start_at = time.monotonic()
        else:
            self._away_since = time.monotonic()
            if worker.ready_at is not None and self._away_since - worker.ready_at >= CALM_SECONDS:
                self._crashes = 0
            self._crashed(f"the worker (process {worker.process.pid}) {worker.ending()}")

    def _crashed(self, what: str) -> None:
        if self._crashes == len(BACK_OFF):
            say(f"{what}, the {self._crashes + 1}th time in a row; giving up")
            self._code = FAILED
            return
        wait = BACK_OFF[self._crashes]
        self._crashes += 1
        say(f"{what}; another one starts {f'in {wait} s' if wait else 'now'}")
        self._start_at = time.monotonic() + wait


class _SignalPipe:
    """Hands signals to *on_signal* in the selector loop: nothing runs inside a signal handler, and none is missed."""

    def __init__(self, on_signal: Callable[[int], None]) -> None:
        self._on_signal = on_signal
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    def read(self) -> None:
        for number in self._reader.recv(4096):
            self._on_signal(number)

    def __enter__(self) -> Self:
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (*ORDERING_SIGNALS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """The handlers stay: only the end of the process follows, and a late signal must not change its exit code."""
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Hold back the signals that end a server while the context lasts, in this thread and in what it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ORDERING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _interpreter() -> list[str]:
    """This interpreter, told to find modules where this process finds them."""
    if sys.flags.isolated:
        return [sys.executable, "-I"]
    # "-m" puts the current directory first, which is right only when this process was started in that way too.
    return [sys.executable] if sys.path[0] in {"", os.getcwd()} else [sys.executable, "-P"]


def _has_terminal() -> bool:
    """Whether a terminal listens to us. When it has been closed, SIGHUP says that nobody is there any more."""
    return any(os.isatty(descriptor) for descriptor in (0, 1, 2))
