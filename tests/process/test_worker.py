"""The worker may crash, be killed or be replaced: the parent keeps the socket and one worker behind it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import trio

from hypha.parent import BACK_OFF
from tests.process.servers import (
    SERVER,
    Live,
    all_gone,
    answers,
    big_mount,
    close_code,
    command_line,
    listens,
    live,
    stalled_reader,
    until,
    websocket_peer,
)

pytestmark = pytest.mark.slow


async def other_worker(server: Live, than: int) -> int:
    """The next worker, as soon as its process is there."""
    await until(lambda: bool(set(server.workers()) - {than}))
    return server.worker()


async def test_a_killed_worker_is_replaced_and_connects_wait_for_the_new_one(tmp_path: Path) -> None:
    async with live(SERVER, tmp_path) as server:
        killed = server.worker()
        os.kill(killed, signal.SIGKILL)
        await all_gone([killed])
        # Nobody accepts now, for a worker needs some tenths of a second to start.
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(expect_answer, server.port)
        assert server.worker() != killed
        await server.running.wait_for(rf"process {killed}\) was killed by SIGKILL; another one starts now", "stderr")
        await server.running.wait_for(r"back after [\d.]+ s", "stderr")
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0


async def expect_answer(port: int) -> None:
    assert await answers(port)


async def test_a_crash_loop_ends_the_server(tmp_path: Path) -> None:
    async with live(SERVER, tmp_path) as server:
        worker = server.worker()
        for _ in BACK_OFF:
            os.kill(worker, signal.SIGKILL)
            worker = await other_worker(server, worker)
        os.kill(worker, signal.SIGKILL)
        result = await server.ended()
    assert result.returncode == 1
    assert result.stderr.count("was killed by SIGKILL") == len(BACK_OFF) + 1
    assert "giving up" in result.stderr


def own_interpreter(directory: Path) -> Path:
    """Another way to this environment, which can be taken away."""
    (directory / "bin").mkdir()
    (directory / "lib").symlink_to(Path(sys.prefix, "lib"))
    shutil.copy(Path(sys.prefix, "pyvenv.cfg"), directory)
    python = directory / "bin" / "python"
    python.symlink_to(Path(sys.executable).resolve())
    return python


async def test_a_worker_that_cannot_be_started_is_tried_again_and_then_given_up(tmp_path: Path) -> None:
    python = own_interpreter(tmp_path)
    async with live([str(python), "-m", "hypha.server"], tmp_path) as server:
        python.unlink()
        os.kill(server.worker(), signal.SIGKILL)
        result = await server.ended()
    assert result.returncode == 1
    assert result.stderr.count("a worker could not be started (No such file or directory)") == len(BACK_OFF)


async def test_a_signal_between_two_workers_stops_the_server(tmp_path: Path) -> None:
    async with live(SERVER, tmp_path) as server:
        worker = server.worker()
        for _ in range(3):
            os.kill(worker, signal.SIGKILL)
            worker = await other_worker(server, worker)
        os.kill(worker, signal.SIGKILL)
        await server.running.wait_for("another one starts in 1.0 s", "stderr")
        assert server.workers() == []
        started = time.monotonic()
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0
        assert time.monotonic() - started < 0.5


async def test_sighup_replaces_the_worker_and_connects_wait_meanwhile(tmp_path: Path) -> None:
    flags = [*big_mount(tmp_path), "--limit", "drain_seconds=1"]
    async with live([*SERVER, *flags], tmp_path) as server, stalled_reader(server.port, "/files/big"):
        old = server.worker()
        server.kill(signal.SIGHUP)
        await until(lambda: not listens(old, server.port))
        # The stalled reader holds the old worker for a second, in which nobody accepts.
        assert server.workers() == [old]
        assert await answers(server.port)
        new = server.worker()
        assert new != old
        await server.running.wait_for(r"back after [\d.]+ s", "stderr")
        server.kill(signal.SIGTERM)
        result = await server.ended()
    assert result.returncode == 0
    assert "killed" not in result.stderr


async def test_sighup_tells_websocket_peers_to_come_back(tmp_path: Path) -> None:
    async with live(SERVER, tmp_path) as server:
        async with websocket_peer(server.port) as stream:
            server.kill(signal.SIGHUP)
            assert await close_code(stream) == 1012
        async with websocket_peer(server.port):  # waits for the new worker
            server.kill(signal.SIGTERM)
            assert (await server.ended()).returncode == 0


async def test_sighup_to_the_group_is_one_replacement(tmp_path: Path) -> None:
    async with live(SERVER, tmp_path) as server:
        old = server.worker()
        server.kill(signal.SIGHUP, whole_group=True)
        await server.running.wait_for(r"back after [\d.]+ s", "stderr")
        assert server.worker() != old
        server.kill(signal.SIGTERM)
        result = await server.ended()
    assert result.stderr.count("replacing the worker") == 1


async def test_a_signal_during_a_replacement_stops_the_server(tmp_path: Path) -> None:
    flags = [*big_mount(tmp_path), "--limit", "drain_seconds=1"]
    async with live([*SERVER, *flags], tmp_path) as server, stalled_reader(server.port, "/files/big"):
        old = server.worker()
        server.kill(signal.SIGHUP)
        await until(lambda: not listens(old, server.port))
        server.kill(signal.SIGTERM)
        result = await server.ended()
    assert result.returncode == 0
    assert "back after" not in result.stderr


async def test_what_the_worker_is_told_is_on_no_command_line(tmp_path: Path) -> None:
    (tmp_path / "canary").mkdir()
    async with live([*SERVER, "--data-dir", "canary"], tmp_path) as server:
        assert "canary" not in command_line(server.worker())
        server.kill(signal.SIGTERM)
        await server.ended()
