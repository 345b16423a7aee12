"""What the person at the terminal is told: one screen when the server is ready, one line for each later event.

Standard library only, because the parent process imports it.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from hypha import __version__
from hypha.config import Config
from hypha.listen import urls


def announce(config: Config, sockets: Sequence[socket.socket], seconds: float, invitation: str | None = None) -> None:
    """Print the screen of a server that is ready, *seconds* after its start, to standard output."""
    with _reader_may_leave(sys.stdout):
        print(banner(config, sockets, seconds, invitation), flush=True)  # noqa: T201  what the person at the terminal reads


def say(text: str) -> None:
    """Print each line of *text* to standard error, marked as ours."""
    # In one piece, also where Python does not buffer: programs write to the same terminal.
    lines = "".join(f"hypha: {line}\n" for line in text.splitlines())
    with _reader_may_leave(sys.stderr):
        print(lines, end="", file=sys.stderr, flush=True)  # noqa: T201  what the person at the terminal reads


def show(text: str) -> None:
    """Print *text*, which was asked for, to standard output."""
    with _reader_may_leave(sys.stdout):
        print(text, flush=True)  # noqa: T201  what the person at the terminal reads


@contextmanager
def _reader_may_leave(stream: TextIO | None) -> Iterator[None]:
    """A reader that went away is no reason to end: the server is needed all the same. None: closed at the start."""
    try:
        yield
    except OSError:
        if stream is not None:
            # What is still in the buffer would fail again at the exit, and change the exit code.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def banner(config: Config, sockets: Sequence[socket.socket], seconds: float, invitation: str | None = None) -> str:
    """The screen: version, data directory, addresses, mounts. Without colours, for it also lands in log files.

    *invitation* makes an administrator's account, once, and soon: it is the one secret that is printed.
    """
    addresses = urls(sockets, config.base_path)
    if config.public_base_url:
        addresses.append((config.public_base_url, "as clients are told"))
    width = max(len(url) for url, _ in addresses)
    lines = [f"  ready in {seconds:.1f} s   version {__version__}   data {config.data_dir} (survives restarts)", ""]
    lines += _block("open", [f"{url:<{width}}   {whom}" for url, whom in addresses])
    lines += _block("mounts", [f"{mount.path} -> {_short(mount.directory)}" for mount in config.static_mounts])
    if invitation is not None:
        until = f"makes an administrator's account, once, for {config.limits.invitation_seconds / 3600:.3g} h"
        base = config.public_base_url or addresses[0][0]
        lines += _block("owner", [f"{base}/account/join?link={invitation}", until])
    return "\n".join([*lines, ""])


def _block(label: str, rows: list[str]) -> list[str]:
    return [f"  {label if n == 0 else '':<9} {row}" for n, row in enumerate(rows)]


def _short(path: Path) -> str:
    """*path* as a person would type it here."""
    here = Path.cwd()
    return os.path.join(".", path.relative_to(here)) if path.is_relative_to(here) else str(path)
