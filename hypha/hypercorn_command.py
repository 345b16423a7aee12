"""What ``hypercorn hypha.server:app --worker-class trio`` needs so that nothing outlives it (``decisions.md`` 2).

Hypercorn's command serves in a child process that handles no SIGTERM and survives its parent; with ``-w 0`` it
serves in the process of the command, where SIGTERM kills (``stack.md``, point 3 and section 2). What is done about
it here happens only under that command, never where an application or a test embeds ``hypha.server:app``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping
from functools import partial

import trio

from hypha.assembly import Assembly, build
from hypha.banner import say
from hypha.config import Config
from hypha.lazy import Application, Failure, Message, Receive, Send
from hypha.memory import begin_start, end_start, tune_memory
from hypha.parent import STOPPED
from hypha.worker import configure_logging, die_with_parent


def make(environ: Mapping[str, str]) -> Application:
    """The application of this environment, with the manners of the command where the command runs it.

    Must be called in a trio task. Raises :class:`hypha.errors.ConfigError`.
    """
    config = Config.from_environment(environ)
    if not is_running():
        return build(config)
    configure_logging(config.log_level, "hypha")
    tune_memory()
    begin_start()
    return _CommandApp(build(config))


def is_running() -> bool:
    """Whether the main task of this event loop is the one that Hypercorn's command runs."""
    return _main_task() is not None


def _main_task() -> trio.lowlevel.Task | None:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    tasks = (task for nursery in root.child_nurseries for task in nursery.child_tasks)
    return next((task for task in tasks if task.name == "hypercorn.trio.run.worker_serve"), None)


def on_failure(failure: Failure) -> None:
    """Say why and end the process at once: Hypercorn would print a traceback, or serve on without our rooms.

    Hypercorn's own exit code may still be 0 (``stack.md``, point 11).
    """
    if is_running():
        say(failure.text)
        os._exit(failure.code)


class _CommandApp:
    def __init__(self, app: Assembly) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _lifespan(self, scope: Message, receive: Receive, send: Send) -> None:
        command = multiprocessing.parent_process()
        if command is not None and command.pid is not None:
            die_with_parent(command.pid)
        async with trio.open_nursery() as nursery:
            await nursery.start(_swallow_sigterm if command else _terminate_on_signal)
            await self._app(scope, receive, partial(self._tell, send))
            nursery.cancel_scope.cancel()

    async def _tell(self, send: Send, message: Message) -> None:
        """What the application says of its start and its end, to Hypercorn."""
        is_up = message["type"] == "lifespan.startup.complete"
        if is_up:
            end_start()
        await send(message)
        if is_up:
            await self._invite()

    async def _invite(self) -> None:
        invitation = await self._app.first_invitation()
        if invitation is not None:
            say(f"make an administrator's account of this server, once, at /account/join?link={invitation}")


async def _swallow_sigterm(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """In the child: SIGTERM to the whole group reaches the command too, which tells us to finish in its own way."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            pass


async def _terminate_on_signal(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """With ``-w 0``: the first SIGTERM or SIGINT lets Hypercorn finish, the second ends the process.

    Left alone, SIGTERM kills, and SIGINT becomes a KeyboardInterrupt in whatever task is running, which may be one
    of ours. Hypercorn has an event for the purpose (a worker that has served ``max_requests`` sets it) and keeps it
    in a local variable of its main task.
    """
    main = _main_task()
    assert main is not None
    assert main.coro.cr_frame is not None
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        await anext(signals)
        await main.coro.cr_frame.f_locals["context"].terminate.set()
        await anext(signals)
        os._exit(STOPPED)
