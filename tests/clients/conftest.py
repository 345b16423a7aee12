"""Fixtures for tests with the published clients: their environments, their processes, and a server for them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest
import trio

from tests.house import environments, npm, processes
from tests.house.processes import Result, Running, Server

ClientPython = Callable[[str], Path]
StartServer = Callable[..., AbstractContextManager[Server]]


class RunClient(Protocol):
    """Runs a script with a client generation's interpreter, to its end."""

    async def __call__(self, generation: str, script: str | Path, *arguments: str, seconds: float = 30.0) -> Result: ...


class StartClient(Protocol):
    """Starts a script with a client generation's interpreter; it is killed at the end of the block."""

    def __call__(
        self, generation: str, script: str | Path, *arguments: str
    ) -> AbstractAsyncContextManager[Running]: ...


@pytest.fixture(scope="session")
def client_python() -> ClientPython:
    """The interpreter of a published client's environment, by version: those of :mod:`tests.house.environments`."""

    def find(generation: str) -> Path:
        known = (*environments.CLIENTS, *environments.APPLICATIONS)
        environment = next(item for item in known if item.name.endswith(f"-rpc-{generation}"))
        if not (environment.directory / "complete").is_file():
            pytest.fail(f"{environment.directory} is missing; run 'python3 -m tests' once, which builds it")
        return environment.python

    return find


@pytest.fixture
def client_command(client_python: ClientPython, tmp_path: Path) -> Callable[..., list[str | Path]]:
    """The command that runs a script, given as a path or as its text, which is saved as people save it."""
    numbers = count(1)

    def command(generation: str, script: str | Path, *arguments: str) -> list[str | Path]:
        if isinstance(script, str):
            path = tmp_path / f"script-{next(numbers)}.py"
            path.write_text(textwrap.dedent(script))
            script = path
        return [client_python(generation), script, *arguments]

    return command


@pytest.fixture
def run_client(client_command: Callable[..., list[str | Path]], tmp_path: Path, nursery: trio.Nursery) -> RunClient:
    """``await run_client("0.5.59", script, url)`` gives the :class:`Result`; too long fails with the output."""

    async def run(generation: str, script: str | Path, *arguments: str, seconds: float = 30.0) -> Result:
        command = client_command(generation, script, *arguments)
        return await processes.run(nursery, command, cwd=tmp_path, seconds=seconds)

    return run


@pytest.fixture
def start_client(client_command: Callable[..., list[str | Path]], tmp_path: Path, nursery: trio.Nursery) -> StartClient:
    """``async with start_client("0.5.6", script, url) as worker: await worker.wait_for("ready")``."""

    def start(generation: str, script: str | Path, *arguments: str) -> AbstractAsyncContextManager[Running]:
        return processes.start(nursery, client_command(generation, script, *arguments), cwd=tmp_path)

    return start


class RunJavascript(Protocol):
    """Runs a script in Node, to its end, by default with Bj; see ``js/run.js`` for what it finds there."""

    async def __call__(
        self, script: str, url: str, *arguments: str, library: str = "imjoy-rpc", seconds: float = 30.0
    ) -> Result: ...


class StartJavascript(Protocol):
    """Starts a script in Node, by default with Bj; it is killed at the end of the block."""

    def __call__(
        self, script: str, url: str, *arguments: str, library: str = "imjoy-rpc"
    ) -> AbstractAsyncContextManager[Running]: ...


@pytest.fixture
def javascript_command(node: str, tmp_path: Path) -> Callable[..., list[str | Path]]:
    """The command that runs a script, given as its text."""
    if not (npm.directory() / "complete").is_file():
        pytest.fail(f"{npm.directory()} is missing; run 'python3 -m tests' once, which installs it")
    numbers = count(1)

    def command(library: str, script: str, url: str, *arguments: str) -> list[str | Path]:
        path = tmp_path / f"script-{next(numbers)}.js"
        path.write_text(textwrap.dedent(script))
        return [node, npm.SOURCE / "run.js", library, path, url, *arguments]

    return command


@pytest.fixture
def run_javascript(
    javascript_command: Callable[..., list[str | Path]], tmp_path: Path, nursery: trio.Nursery
) -> RunJavascript:
    """``await run_javascript(script, url)``; fails with the output when the script does."""

    async def run(script: str, url: str, *arguments: str, library: str = "imjoy-rpc", seconds: float = 30.0) -> Result:
        command = javascript_command(library, script, url, *arguments)
        environ = {"NODE_PATH": str(npm.modules())}
        result = await processes.run(nursery, command, cwd=tmp_path, environ=environ, seconds=seconds)
        assert result.returncode == 0, f"{result.stdout}{result.stderr}"
        return result

    return run


@pytest.fixture
def start_javascript(
    javascript_command: Callable[..., list[str | Path]], tmp_path: Path, nursery: trio.Nursery
) -> StartJavascript:
    """``async with start_javascript(script, url) as worker: await worker.wait_for("ready")``."""

    def start(
        script: str, url: str, *arguments: str, library: str = "imjoy-rpc"
    ) -> AbstractAsyncContextManager[Running]:
        environ = {"NODE_PATH": str(npm.modules())}
        command = javascript_command(library, script, url, *arguments)
        return processes.start(nursery, command, cwd=tmp_path, environ=environ)

    return start


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as it is; ask for :func:`server`, which checks its log."""
    with processes.serving(tmp_path_factory.mktemp("shared-server"), "--log-level", "debug") as running:
        yield running


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """The shared server, for a test that must not make it write a traceback."""
    before = shared_server.log.stat().st_size
    yield shared_server
    written = shared_server.log.read_bytes()[before:].decode(errors="replace")
    assert "Traceback" not in written, written
    assert shared_server.process.poll() is None, f"the server has ended\n{written}"


@pytest.fixture
def start_server(tmp_path: Path) -> StartServer:
    """``with start_server("--base-path", "/lab") as server:`` starts one that the test may kill or restart."""

    def start(*flags: str, command: list[str | Path] | None = None) -> AbstractContextManager[Server]:
        directory = tmp_path / "server"
        directory.mkdir(exist_ok=True)
        return processes.serving(directory, *flags, command=command or ())

    return start
