"""The worker process: serves on the sockets of its parent, and obeys it alone.

``python -m hypha.worker`` is started by :mod:`hypha.parent`, which describes their conversation.
``--single-process`` runs the same :class:`Server` in the process of the command.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import cast

import hypercorn.config
import hypercorn.trio
import trio
from hypercorn.typing import ASGIFramework

from hypha.assembly import Assembly, build
from hypha.banner import say
from hypha.config import KIB, Config
from hypha.lazy import Failure, LazyApp, explain
from hypha.listen import BACKLOG
from hypha.memory import begin_start, end_start, tune_memory
from hypha.parent import FAILED, MISUSED, ORDERING_SIGNALS, READY, SHUTDOWN_SECONDS, STOP_SECONDS, STOPPED

_PR_SET_PDEATHSIG = 1  # prctl(2)


class Server:
    """Serves one application until it is told to end. Used once, by :meth:`run`."""

    def __init__(self, config: Config, fds: Sequence[int], on_ready: Callable[[str | None], None]) -> None:
        """*fds* are listening sockets. *on_ready* is called once, when connections are being accepted.

        It gets what makes the first account, as long as there is none.
        """
        self.config = config
        self._fds = fds
        self._on_ready = on_ready
        self._assembly: Assembly | None = None
        self._app = LazyApp(self._build, self._on_failure)
        #: Why it ended, when that was not what it was told to do.
        self.failure: Failure | None = None
        self._up = trio.Event()
        self._draining = trio.Event()
        self._scope = trio.CancelScope()
        self._ready = False

    def run(self, obey: Callable[[Server], Awaitable[None]]) -> int:
        """Serve while *obey* waits for orders, which it gives by :meth:`drain` and :meth:`stop`; the exit code."""
        tune_memory()
        begin_start()
        try:
            trio.run(self._main, obey)
        except Exception as error:  # noqa: BLE001  the edge of the process: everything is told here, in one line
            # A start that was given up has failed, as far as Quart and Hypercorn know.
            given_up = self._draining.is_set() and not self._ready
            if not given_up and self.failure is None:
                self.failure = explain(error)
        if self.failure is None:
            return STOPPED
        say(self.failure.text)
        return self.failure.code

    def _build(self) -> Assembly:
        self._assembly = build(self.config)
        return self._assembly

    def drain(self) -> None:
        """Stop accepting, say goodbye, let requests finish for ``limits.drain_seconds``, shut down, end."""
        self._draining.set()
        if not self._ready:
            self._scope.cancel()

    def stop(self) -> None:
        """End now: everything is cancelled."""
        self._draining.set()
        self._scope.cancel()

    async def _main(self, obey: Callable[[Server], Awaitable[None]]) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(obey, self)
                nursery.start_soon(self._announce)
                await hypercorn.trio.serve(
                    cast(ASGIFramework, self._app),  # its own types leave out what extensions put into a scope
                    settings_for(self.config, self._fds),
                    shutdown_trigger=self._draining.wait,
                    task_status=_Started(self._started),
                )
                nursery.cancel_scope.cancel()

    def _started(self) -> None:
        end_start()
        self._ready = True
        self._up.set()

    async def _announce(self) -> None:
        await self._up.wait()
        assert self._assembly is not None, "its lifespan has begun"
        self._on_ready(await self._assembly.first_invitation())

    def _on_failure(self, failure: Failure) -> None:
        if not self._draining.is_set():
            self.failure = failure
            self.drain()


@dataclass(frozen=True, slots=True)
class _Started:
    """What ``nursery.start`` would pass; we call ``serve`` in the task that waits for its end."""

    then: Callable[[], None]

    def started(self, value: object = None) -> None:
        self.then()


def settings_for(config: Config, fds: Sequence[int]) -> hypercorn.config.Config:
    """Hypercorn's settings for a server that listens on *fds*."""
    settings = hypercorn.config.Config()
    settings.bind = [f"fd://{fd}" for fd in fds]
    settings.backlog = BACKLOG
    settings.graceful_timeout = config.limits.drain_seconds
    settings.shutdown_timeout = SHUTDOWN_SECONDS - 1  # so that this error comes before our end by force
    settings.errorlog = logging.getLogger("hypercorn.error")
    settings.include_server_header = False
    settings.h11_max_incomplete_size = 32 * KIB  # old clients send their token in the query
    return settings


def configure_logging(level: str, name: str = "") -> None:
    """Send what the logger *name* and those below it say to standard error."""
    if not name:
        # What no line of ours shows need not be found out for each of them. Those of the hypercorn command show it.
        logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    target = logging.getLogger(name)
    target.addHandler(handler)
    target.setLevel(level.upper())
    # Its lines about addresses would contradict the banner: it knows the sockets only.
    logging.getLogger("hypercorn.error").setLevel(logging.WARNING)


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the process *parent* ends, however that ends. Linux only.

    Elsewhere nothing happens here, and the closed socket pair is what tells the worker.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(FAILED)  # it ended before the kernel was asked


async def _obey_parent(control: socket.socket, server: Server) -> None:
    """Do what the lines on *control* say. Its end means that the parent is gone: nobody else can stop us then."""
    orders = {b"drain": server.drain, b"stop": server.stop}
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(control))
    buffer = b""
    try:
        while received := await stream.receive_some(4096):
            *lines, buffer = (buffer + received).split(b"\n")
            for line in lines:
                orders[line]()
    except trio.BrokenResourceError:
        pass  # an end as good as any other
    server.stop()


async def _obey_signals(server: Server) -> None:
    """The first SIGTERM, SIGINT or SIGHUP drains, the next one stops; both have an end by force."""
    with trio.open_signal_receiver(*ORDERING_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ORDERING_SIGNALS)
        try:
            await anext(signals)
            _end_by_force(server.config.limits.drain_seconds + SHUTDOWN_SECONDS)
            server.drain()
            await anext(signals)
            _end_by_force(STOP_SECONDS)
            server.stop()
        finally:
            # From here on only the end of the process follows; a late signal must not change its exit code.
            signal.pthread_sigmask(signal.SIG_BLOCK, ORDERING_SIGNALS)


def _end_by_force(seconds: float) -> None:
    """End this process after *seconds* whatever its tasks do: a send to a stalled peer cannot be cancelled."""

    def end() -> None:
        say("the server did not end in time and is ended by force")
        os._exit(STOPPED)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def run_single(config: Config, fds: Sequence[int], on_ready: Callable[[str | None], None]) -> int:
    """Serve in this process until a signal ends it; the exit code. Call it with ``signals_blocked``."""
    configure_logging(config.log_level)
    return Server(config, fds, on_ready).run(_obey_signals)


def main(argv: Sequence[str]) -> int:
    """``python -m hypha.worker CONTROL PARENT``: the number of our end of the socket pair, the parent's pid."""
    control, parent = socket.socket(fileno=int(argv[0])), int(argv[1])
    # A handler that does nothing, and not SIG_IGN: processes that we start would inherit that.
    for number in ORDERING_SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ORDERING_SIGNALS)
    die_with_parent(parent)
    control.set_inheritable(False)
    # Unbuffered: the orders behind this line belong to _obey_parent.
    with control.makefile("rb", buffering=0) as lines:
        first = lines.readline()
    if not first.endswith(b"\n"):
        return FAILED  # the parent is gone
    document = json.loads(first)
    config = Config.from_json(document["config"])
    configure_logging(config.log_level)

    def on_ready(invitation: str | None) -> None:
        control.sendall(f"{READY} {invitation or ''}\n".encode())

    server = Server(config, document["fds"], on_ready)
    code = server.run(partial(_obey_parent, control))
    if server.failure is not None and (server.failure.final or code == MISUSED):
        with suppress(OSError):  # the parent is gone
            control.sendall(b"failed\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
