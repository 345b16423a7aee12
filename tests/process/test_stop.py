"""Every way to end a server: the signals, to the process and to its group, with peers that do not cooperate."""

from __future__ import annotations

import io
import os
import signal
import time
from pathlib import Path

import msgpack
import pytest
import trio

from tests.clients.raw import header, masked
from tests.house.processes import start
from tests.process.servers import (
    HYPERCORN,
    SERVER,
    SINGLE,
    all_gone,
    answers,
    big_mount,
    close_code,
    group,
    listens,
    live,
    refused,
    stalled_reader,
    until,
    websocket_peer,
)

pytestmark = pytest.mark.slow


def to_itself(client: str, size: int) -> bytes:
    """A message of *client* to itself."""
    return b"".join(map(msgpack.packb, (header(client, "services.x.y"), {"args": [bytes(size)]})))


COMMANDS = {"parent": SERVER, "single": SINGLE, "hypercorn": HYPERCORN, "hypercorn -w 0": (*HYPERCORN, "-w", "0")}


@pytest.mark.parametrize("whole_group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
async def test_a_signal_stops_the_server(
    command: tuple[str, ...], number: signal.Signals, whole_group: bool, tmp_path: Path
) -> None:
    async with live(command, tmp_path) as server:
        assert await answers(server.port)
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as idle:
            started = time.monotonic()
            server.kill(number, whole_group=whole_group)
            result = await server.ended()
            assert await idle.receive_some() == b""
    assert result.returncode == 0
    assert time.monotonic() - started < 2
    if "hypercorn" not in command:
        assert result.stderr == ""


@pytest.mark.parametrize("command", [SERVER, SINGLE], ids=["parent", "single"])
async def test_the_second_signal_ends_what_the_first_waits_for(command: tuple[str, ...], tmp_path: Path) -> None:
    flags = [*big_mount(tmp_path), "--limit", "drain_seconds=60"]
    async with live([*command, *flags], tmp_path) as server, stalled_reader(server.port, "/files/big"):
        server.kill(signal.SIGTERM)
        await refused(server.port)
        assert server.pid in group(server.pid)
        started = time.monotonic()
        server.kill(signal.SIGTERM)
        result = await server.ended()
    assert result.returncode == 0
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("command", [SERVER, SINGLE, HYPERCORN], ids=["parent", "single", "hypercorn"])
async def test_a_stalled_reader_holds_the_end_up_for_the_drain_time_only(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    flags = big_mount(tmp_path)
    environ = {}
    if command is HYPERCORN:
        environ["HYPHA_STATIC_MOUNTS"] = flags.pop()
        flags = ["--graceful-timeout", "1"]
    else:
        flags += ["--limit", "drain_seconds=1"]
    async with live([*command, *flags], tmp_path, environ) as server, stalled_reader(server.port, "/files/big"):
        started = time.monotonic()
        server.kill(signal.SIGTERM)
        result = await server.ended()
    assert result.returncode == 0
    assert 1 <= time.monotonic() - started < 4


@pytest.mark.parametrize("command", [SERVER, SINGLE, HYPERCORN], ids=["parent", "single", "hypercorn"])
async def test_a_websocket_peer_that_does_not_read_holds_the_end_up_for_seconds_only(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    """Its outbox is full: the goodbye waits behind what it does not take, and is given up."""
    flags = ["--graceful-timeout", "1"] if command is HYPERCORN else ["--limit", "drain_seconds=1"]
    async with live([*command, *flags], tmp_path) as server, websocket_peer(server.port) as stream:
        with trio.move_on_after(2) as waiting:
            while True:  # until the server takes no more, because it has no room for what comes back
                await stream.send_all(masked(2, to_itself("process-test", 500_000)))
        assert waiting.cancelled_caught
        started = time.monotonic()
        server.kill(signal.SIGTERM)
        result = await server.ended()
    assert result.returncode == 0
    assert time.monotonic() - started < 1 + 5


@pytest.mark.parametrize("command", [SERVER, HYPERCORN], ids=["parent", "hypercorn"])
async def test_a_killed_parent_leaves_no_orphan(command: tuple[str, ...], tmp_path: Path) -> None:
    async with live(command, tmp_path) as server:
        assert server.workers()
        server.kill(signal.SIGKILL)
        result = await server.ended()
    assert result.returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("whole_group", [False, True], ids=["process", "group"])
async def test_a_signal_to_a_server_that_is_still_starting(
    number: signal.Signals, whole_group: bool, tmp_path: Path
) -> None:
    async with trio.open_nursery() as nursery, start(nursery, [*SERVER, "--port", "0"], cwd=tmp_path) as running:
        await until(lambda: len(group(running.pid)) == 2)
        (os.killpg if whole_group else os.kill)(running.pid, number)
        result = await running.wait()
        await all_gone(group(running.pid))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


async def test_a_worker_that_hangs_is_killed_after_the_second_signal(tmp_path: Path) -> None:
    async with live(SERVER, tmp_path) as server:
        os.kill(server.worker(), signal.SIGSTOP)
        server.kill(signal.SIGTERM)
        await until(lambda: not listens(server.pid, server.port))
        server.kill(signal.SIGTERM)
        result = await server.ended()
    assert result.returncode == 0
    assert "did not end in time and is killed" in result.stderr


async def test_a_worker_that_hangs_is_killed_after_the_drain_time(tmp_path: Path) -> None:
    async with live([*SERVER, "--limit", "drain_seconds=0.1"], tmp_path) as server:
        os.kill(server.worker(), signal.SIGSTOP)
        started = time.monotonic()
        server.kill(signal.SIGTERM)
        result = await server.ended()
    assert result.returncode == 0
    assert 5 < time.monotonic() - started < 7


async def test_a_second_sigterm_ends_hypercorn_without_workers_at_once(tmp_path: Path) -> None:
    big_mount(tmp_path)
    command = [*HYPERCORN, "-w", "0", "--graceful-timeout", "60"]
    async with (
        live(command, tmp_path, {"HYPHA_STATIC_MOUNTS": "/files:files"}) as server,
        stalled_reader(server.port, "/files/big"),
    ):
        server.kill(signal.SIGTERM)
        await refused(server.port)
        server.kill(signal.SIGTERM)
        result = await server.ended()
    assert result.returncode == 0


async def test_a_closed_terminal_ends_the_server(tmp_path: Path) -> None:
    ours, theirs = map(io.FileIO, os.openpty())
    with ours, theirs:
        # The leader of a session gets the first terminal that it opens as its own, and SIGHUP when that is closed.
        command = ["sh", "-c", 'exec "$@" <"$0"', os.ttyname(theirs.fileno()), *SERVER]
        async with live(command, tmp_path) as server:
            ours.close()
            result = await server.ended()
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
async def test_websocket_peers_are_told_to_come_back(command: tuple[str, ...], tmp_path: Path) -> None:
    async with live(command, tmp_path) as server, websocket_peer(server.port) as stream:
        started = time.monotonic()
        server.kill(signal.SIGTERM)
        assert await close_code(stream) == 1012
        assert (await server.ended()).returncode == 0
    # This peer does not answer the closing frame, and is waited for a second.
    assert time.monotonic() - started < 2
