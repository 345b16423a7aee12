"""What a real server knows again: after SIGKILL of the worker, of all of it, and from a backup; and how it drains."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import signal
import sys
import tarfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import trio

from hypha.client import Server, connect_to_server
from hypha.errors import HyphaError, PeerGone
from hypha.store import open_state
from hypha.wire.calls import encode_value
from tests.house.processes import run, start
from tests.house.steps import ROOT
from tests.process.servers import HYPERCORN, SERVER, SINGLE, Live, all_gone, answers, group, live, refused

pytestmark = pytest.mark.slow

UNITS = ROOT / "docs" / "examples"
_SUPERVISOR = ROOT / "tests" / "soak" / "supervisor.py"


async def is_there(server: Server, name: str) -> bool:
    """Whether a workspace exists: making it a second time is refused."""
    try:
        await server.create_workspace({"name": name})
    except HyphaError as error:
        return "already exists" in str(error)
    return False


@pytest.mark.parametrize("command", [SERVER, SINGLE, HYPERCORN], ids=["parent", "single", "hypercorn"])
async def test_what_was_acknowledged_outlives_sigkill(command: Sequence[str], tmp_path: Path) -> None:
    for number in range(3):
        async with (
            live(command, tmp_path) as server,
            connect_to_server({"server_url": f"http://localhost:{server.port}"}) as peer,
        ):
            for before in range(number):
                assert await is_there(peer, f"shop-{before}")
            await peer.create_workspace({"name": f"shop-{number}"})
            pids = group(server.pid)
            server.kill(signal.SIGKILL)
            await all_gone(pids)


async def test_the_address_of_the_server_on_the_wire_stays(tmp_path: Path) -> None:
    seen = set()
    for _ in range(2):
        async with (
            live(SERVER, tmp_path) as server,
            connect_to_server({"server_url": f"http://localhost:{server.port}"}) as peer,
        ):
            seen.add(peer.config.manager_id)
            pids = group(server.pid)
            server.kill(signal.SIGKILL)
            await all_gone(pids)
    assert len(seen) == 1


async def test_a_broken_state_is_said_and_the_server_starts(tmp_path: Path) -> None:
    (tmp_path / ".hypha").mkdir()
    (tmp_path / ".hypha" / "state.db").write_bytes(b"nonsense" * 1000)
    async with live(SERVER, tmp_path) as server:
        assert await answers(server.port)
        await server.running.wait_for(r"state\.db cannot be read .* kept as state\.db\.corrupt-\d+", "stderr")
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0


async def test_a_backup_of_a_running_server_is_another_server(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second / ".hypha"):
        directory.mkdir(parents=True)
    async with live(SERVER, first) as server, trio.open_nursery() as nursery:
        async with connect_to_server({"server_url": f"http://localhost:{server.port}"}) as peer:
            await peer.create_workspace({"name": "shop"})
            token = await peer.generate_token()
            result = await run(nursery, [*SERVER, "--backup", "copy.tar"], cwd=first, seconds=20)
        assert (result.returncode, result.stdout) == (0, "")
        assert "let nobody else read it" in result.stderr
        server.kill(signal.SIGTERM)
        await server.ended()
    with tarfile.open(first / "copy.tar") as archive:
        archive.extractall(second / ".hypha", filter="data")
    async with live(SERVER, second) as server:
        async with connect_to_server({"server_url": f"http://localhost:{server.port}", "token": token}) as peer:
            assert await is_there(peer, "shop")
        server.kill(signal.SIGTERM)
        await server.ended()


async def test_a_backup_of_nothing(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        result = await run(nursery, [*SERVER, "--backup", "copy.tar"], cwd=tmp_path, seconds=20)
    assert result.returncode == 2
    assert "there is no state of a server in .hypha" in result.stderr


# --- the end of a server, with calls ---------------------------------------------------------------------------


async def ended_during(server: Live, work: Callable[[], Awaitable[str]]) -> str | PeerGone:
    """What comes of a call of *work* when the server is told to end while that runs."""
    url, begun = f"http://localhost:{server.port}", trio.Event()

    async def begin() -> str:
        begun.set()
        return await work()

    async def end() -> None:
        await begun.wait()
        server.kill(signal.SIGTERM)

    async with connect_to_server({"server_url": url}) as provider, connect_to_server({"server_url": url}) as caller:
        info = await provider.register_service({"id": "job", "config": {"visibility": "public"}, "work": begin})
        service = await caller.get_service(info.id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            try:
                outcome: str | PeerGone = await service.work()
            except PeerGone as error:
                outcome = error
    await all_gone(group(server.pid))
    return outcome


@pytest.mark.parametrize("command", [SERVER, SINGLE, HYPERCORN], ids=["parent", "single", "hypercorn"])
async def test_calls_that_run_come_to_their_end_before_the_goodbye(command: Sequence[str], tmp_path: Path) -> None:
    async def work() -> str:
        await trio.sleep(0.5)
        return "done"

    async with live(command, tmp_path) as server:
        assert await ended_during(server, work) == "done"


async def test_calls_that_take_too_long_fail_at_their_callers(tmp_path: Path) -> None:
    async with live([*SERVER, "--limit", "drain_seconds=1.3"], tmp_path) as server:
        assert isinstance(await ended_during(server, trio.sleep_forever), PeerGone)


# --- systemd --------------------------------------------------------------------------------------------------


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.read_string((UNITS / name).read_text())
    return parser


def test_the_units_belong_together() -> None:
    service, sock = unit("hypha.service"), unit("hypha.socket")
    assert service["Unit"]["Requires"] == "hypha.socket"
    assert re.fullmatch(r"127\.0\.0\.1:\d+", sock["Socket"]["ListenStream"])
    data = shlex.split(service["Service"]["ExecStart"])[-1]
    assert data == f"--data-dir=/var/lib/{service['Service']['StateDirectory']}"
    assert service["Service"]["KillMode"] == "mixed"
    assert service["Service"]["Restart"] == "always"


async def test_the_command_of_the_unit_serves_on_the_socket_and_comes_back(tmp_path: Path) -> None:
    """As systemd starts it; where the unit names directories of an installation, those of the test are taken."""
    python, *words = shlex.split(unit("hypha.service")["Service"]["ExecStart"])
    assert python.endswith("/python")
    words[-1] = f"--data-dir={tmp_path / 'data'}"
    command = [sys.executable, str(_SUPERVISOR), sys.executable, *words]
    async with trio.open_nursery() as nursery, start(nursery, command, cwd=tmp_path) as running:
        port = int((await running.wait_for(r"^port (\d+)"))[1])
        for _ in range(2):
            assert await answers(port)
            *_, last = re.findall(r"^server (\d+)$", running.stdout, re.MULTILINE)
            pids = group(running.pid)
            os.kill(int(last), signal.SIGKILL)
            await all_gone([pid for pid in pids if pid != running.pid])
        assert await answers(port)  # it waits for the third
        running.kill_group()
        await refused(port)


# --- the size of it -------------------------------------------------------------------------------------------


async def test_a_hundred_thousand_records_are_read_in_a_moment(tmp_path: Path) -> None:
    """The workspaces are there, and the start takes little longer: the exact time is the machine's affair."""
    (tmp_path / ".hypha").mkdir(mode=0o700)
    settings = encode_value({"owners": ["somebody"], "persistent": True})
    with closing(open_state(tmp_path / ".hypha")) as state:
        state.write({("workspace", f"place-{number}"): settings for number in range(100_000)}, firm=False)
    async with live(SERVER, tmp_path) as server:
        print(server.running.stdout)
        async with connect_to_server({"server_url": f"http://localhost:{server.port}"}) as peer:
            assert await is_there(peer, "place-99999")
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0
