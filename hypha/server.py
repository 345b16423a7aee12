"""The two doors: ``python -m hypha.server`` calls :func:`main`, ``hypercorn hypha.server:app`` serves :data:`app`.

Standard library only until one of them is used, because the first is a parent process that never imports the
application (``decisions.md`` 1). This is the only place that hands on the environment of the process.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hypha.banner import announce, say, show
from hypha.command import parse
from hypha.config import Config
from hypha.errors import ConfigError
from hypha.lazy import Application, Failure, LazyApp
from hypha.listen import open_sockets
from hypha.parent import MISUSED, ORDERING_SIGNALS, STOPPED, Parent


def _make() -> Application:
    from hypha import hypercorn_command

    return hypercorn_command.make(os.environ)


def _on_failure(failure: Failure) -> None:
    from hypha import hypercorn_command

    hypercorn_command.on_failure(failure)


#: The ASGI application, configured by the environment (:meth:`hypha.config.Config.from_environment`).
app = LazyApp(_make, _on_failure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server of the command line until it is stopped, or do what is asked for in its place; the exit code.

    0: stopped. 1: something that must be there is not. 2: the command line or the configuration cannot be used.
    """
    # Not yet a server: Ctrl-C during a slow look-up of the host's name needs no traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What came before this line was start-up, too, and nearly all of it computing.
    started_at = time.monotonic() - time.process_time()
    try:
        command = parse(sys.argv[1:] if argv is None else argv, os.environ)
        if command.backup is not None:
            return _back_up(command.config, command.backup)
        if command.issue_admin_token:
            show(_admin_token(command.config))
            return STOPPED
        sockets = open_sockets(command.config, command.fds)
    except ConfigError as error:
        say(str(error))
        return MISUSED
    for notice in command.notices:
        say(notice)
    config = _with_address(command.config, sockets)
    if command.single_process:
        return _serve_here(config, sockets, started_at)
    return Parent(config, sockets, started_at).run()


def _back_up(config: Config, target: Path) -> int:
    """Raises :class:`ConfigError` when it cannot be done."""
    from hypha.store import back_up  # no server needs it

    back_up(config.data_dir, target)
    say(f"{config.data_dir} is kept in {target}, with the key that signs tokens: let nobody else read it")
    return 0


def _admin_token(config: Config) -> str:
    """A token of an administrator. Raises :class:`hypha.errors.ConfigError` where no server has ever been."""
    from hypha.broker.issuing import admin_token
    from hypha.store import signing_key_of

    return admin_token(signing_key_of(config.data_dir), config.limits)


def _with_address(config: Config, sockets: Sequence[socket.socket]) -> Config:
    """*config* with the address that was really opened: port 0 and inherited sockets are known only now."""
    if sockets[0].family not in {socket.AF_INET, socket.AF_INET6}:
        return config
    host, port = sockets[0].getsockname()[:2]
    return replace(config, host=host, port=port)


def _serve_here(config: Config, sockets: Sequence[socket.socket], started_at: float) -> int:
    # Held back until the server listens to them, and again at its end: not undone, the process ends then.
    signal.pthread_sigmask(signal.SIG_BLOCK, ORDERING_SIGNALS)
    from hypha.worker import run_single  # brings in trio and the application

    def on_ready(invitation: str | None) -> None:
        announce(config, sockets, time.monotonic() - started_at, invitation)

    return run_single(config, [sock.fileno() for sock in sockets], on_ready)


if __name__ == "__main__":
    sys.exit(main())
