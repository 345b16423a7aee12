"""``python3 -m tests [soak] [pytest arguments]``: everything that has to pass, with one command.

``python3 -m tests bench [arguments]`` builds the server's environment and runs the benchmark in it, nothing else. The
benchmark itself builds that of the published server, when it is asked to measure it.

Makes sure that the machine has what is needed, builds the environments of the tests, and runs the linter, the
formatter's check, the type checker and pytest. The exit code is 0 when all of them passed, pytest's own when it
failed, 1 when only a check failed, 2 when the run could not start, 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

if not __package__:  # started as `python3 path/to/tests`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tests.house import environments, machine, npm, pyodide
from tests.house.steps import Stop, spawn, timed


def checks() -> dict[str, list[str]]:
    """The commands that run before pytest, by name."""
    python = str(environments.MAIN.python)
    return {
        "ruff check": [python, "-m", "ruff", "check", "."],
        "ruff format": [python, "-m", "ruff", "format", "--check", "."],
        "mypy": [python, "-m", "mypy"],
    }


def pytest_command(arguments: list[str]) -> list[str]:
    """pytest with *arguments*; a leading ``soak`` chooses the tests that are left out otherwise.

    With ``--minutes N`` it is the mixed load alone, for so long, and its figures are shown.
    """
    if arguments[:1] == ["soak"]:
        timed = any(word.startswith("--minutes") for word in arguments)
        arguments = ["--soak", *(["-s"] if timed else []), *arguments[1:]]
    return [str(environments.MAIN.python), "-m", "pytest", *arguments]


def prepare(durations: dict[str, float]) -> None:
    """Bring the machine and the environments into shape. Raises :class:`Stop`."""
    with timed("machine", durations):
        machine.prepare()
    for environment in (environments.MAIN, *environments.CLIENTS, *environments.APPLICATIONS):
        build(environment, durations)
    say("packages of npm")
    with timed("packages of npm", durations):
        npm.ensure()
    say("Python for browsers")
    with timed("Python for browsers", durations):
        pyodide.ensure()


def build(environment: environments.Environment, durations: dict[str, float]) -> None:
    """Build *environment* unless it stands. Raises :class:`Stop`."""
    say(f"environment {environment.name}")
    with timed(f"environment {environment.name}", durations):
        environments.ensure(environment)


def benchmark(arguments: list[str], durations: dict[str, float]) -> int:
    """Run the benchmark with its *arguments* and return its exit code. Raises :class:`Stop`."""
    build(environments.MAIN, durations)
    command = [str(environments.MAIN.python), "-m", "tests.bench", *arguments]
    with timed("bench", durations):
        return spawn(command, environ=environments.clean_environ())[0]


def execute(arguments: list[str], durations: dict[str, float]) -> int:
    """Run every check and pytest, whatever fails, and return the exit code of the run."""
    failed = []
    commands = {**checks(), "pytest": pytest_command(arguments)}
    for name, command in commands.items():
        say(name)
        with timed(name, durations):
            code, _ = spawn(command, environ=environments.clean_environ())
        if code:
            failed.append(name)
    if failed:
        say(f"failed: {', '.join(failed)}")
    return code or (1 if failed else 0)


def say(text: str) -> None:
    """One line of progress."""
    print(f"tests: {text}", flush=True)


def main(arguments: list[str]) -> int:
    """Run all and return the exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    durations: dict[str, float] = {}
    try:
        if arguments[:1] == ["bench"]:
            return benchmark(arguments[1:], durations)
        prepare(durations)
        return execute(arguments, durations)
    except Stop as reason:
        say(str(reason))
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        for name, seconds in durations.items():
            say(f"{seconds:8.1f} s  {name}")


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
