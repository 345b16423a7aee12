"""Running commands in the foreground, truthfully and interruptibly. Standard library only."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Seconds that an interrupted child has to end by itself.
PATIENCE = 30.0


class Stop(Exception):
    """The run cannot go on. The text says why and what to do next."""


def run(command: Sequence[str], *, environ: Mapping[str, str] | None = None, quiet: bool = False) -> None:
    """Run *command* in the root of the repository. Raises :class:`Stop` with its output when it fails."""
    code, output = spawn(command, environ=environ, capture=quiet)
    if code:
        raise Stop(f"{output}\nthis command failed with exit code {code}:\n  {shlex.join(command)}".strip())


def spawn(
    command: Sequence[str], *, environ: Mapping[str, str] | None = None, capture: bool = False
) -> tuple[int, str]:
    """Run *command* in the root of the repository to its end and return its exit code and captured output.

    A child that a signal ended has the shell's code for it, 128 and the signal's number. When this process is
    interrupted the child is given :data:`PATIENCE` seconds, and the interruption goes on.
    """
    sink = subprocess.PIPE if capture else None
    errors = subprocess.STDOUT if capture else None
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=sink, stderr=errors, text=True) as child:
        try:
            output, _ = child.communicate()
        except KeyboardInterrupt:
            _end(child)  # the terminal has sent Ctrl-C to the child as well
            raise
        except BaseException:  # nothing may end us before the child has ended
            child.send_signal(signal.SIGINT)
            _end(child)
            raise
    return (child.returncode if child.returncode >= 0 else 128 - child.returncode), output or ""


def _end(child: subprocess.Popen[str]) -> None:
    try:
        child.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()


@contextmanager
def timed(name: str, durations: dict[str, float]) -> Iterator[None]:
    """Note in *durations* how many seconds the block took, whether or not it fails."""
    started = time.monotonic()
    try:
        yield
    finally:
        durations[name] = time.monotonic() - started
