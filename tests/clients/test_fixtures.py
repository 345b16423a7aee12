"""The fixtures of this directory: both generations run outside this process, and servers are started and stopped."""

from __future__ import annotations

import os
import signal
import urllib.request
from pathlib import Path

import pytest

from tests.clients.conftest import ClientPython, RunClient, StartClient, StartServer
from tests.house.environments import GENERATIONS
from tests.house.processes import Ended, Server

pytestmark = pytest.mark.slow

VERSIONS = """
    import importlib.metadata, sys
    print(*map(importlib.metadata.version, ["imjoy-rpc", "websockets"]), *sys.argv[1:])
    try:
        import hypha
    except ImportError:
        print("alone")
"""


@pytest.mark.parametrize("generation", GENERATIONS)
async def test_a_generation_runs_in_its_own_environment(generation: str, run_client: RunClient) -> None:
    result = await run_client(generation, VERSIONS, "an argument")
    version, websockets, *rest = result.stdout.split()
    assert (version, rest) == (generation, ["an", "argument", "alone"])
    assert int(websockets.partition(".")[0]) < 14
    assert result.returncode == 0


@pytest.mark.parametrize("generation", GENERATIONS)
async def test_a_worker_is_awaited_and_killed(
    generation: str, start_client: StartClient, server: Server, tmp_path: Path
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import asyncio, sys\n"
        "from imjoy_rpc.hypha import connect_to_server\n"
        "async def main():\n"
        "    server = await connect_to_server({'server_url': sys.argv[1]})\n"
        "    print('workspace', server.config.workspace)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    async with start_client(generation, script, server.url) as worker:
        assert (await worker.wait_for(r"^workspace (\S+)$"))[1]
    assert worker.process.returncode == -signal.SIGKILL


async def test_a_script_that_takes_too_long_is_reported(run_client: RunClient) -> None:
    with pytest.raises(Ended, match=r"(?s)still running after 1 s.*nearly"):
        await run_client(GENERATIONS[0], "import signal\nprint('nearly')\nsignal.pause()\n", seconds=1)


def test_the_servers_are_two_and_answer(server: Server, start_server: StartServer) -> None:
    with start_server("--base-path", "/lab") as other:
        assert other.url.endswith("/lab")
        assert other.pid != server.pid
        for url in (f"{other.url}/health/liveness", f"{server.url}/health/liveness"):
            with urllib.request.urlopen(url, timeout=10) as answer:
                assert answer.status == 200


def test_a_server_that_does_not_end_well_fails_its_test(start_server: StartServer) -> None:
    with pytest.raises(AssertionError, match="exit code -9"), start_server() as server:
        os.kill(server.pid, signal.SIGKILL)


def test_a_server_that_does_not_start_is_reported_with_its_words(start_server: StartServer) -> None:
    with pytest.raises(Ended, match="unknown option --no-such-flag"), start_server("--no-such-flag"):
        pytest.fail("it has started")


def test_an_environment_that_is_missing_is_not_skipped(
    client_python: ClientPython, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tests.house.environments.HOME", tmp_path)
    with pytest.raises(pytest.fail.Exception, match="run 'python3 -m tests' once"):
        client_python(GENERATIONS[0])
