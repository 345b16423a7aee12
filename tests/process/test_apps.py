"""Server apps of real servers: however the server ends, its browser ends with it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from hypha.client import connect_to_server
from hypha.errors import HyphaError
from tests.apps.test_running import WINDOW, browsers
from tests.process.servers import HYPERCORN, SERVER, SINGLE, Live, all_gone, live, until

pytestmark = pytest.mark.slow

WAITS = "console.log('I run'); await new Promise(() => {})"


@asynccontextmanager
async def launching(command: Sequence[str], browser: str, cwd: Path) -> AsyncIterator[tuple[Live, list[int]]]:
    """A server and the processes of its browser, in which an app starts that never becomes ready."""
    # Also for the plain command, which knows no options of ours.
    environ = {**os.environ, "HYPHA_ENABLE_SERVER_APPS": "1", "HYPHA_CHROMIUM_PATH": browser}
    async with live(command, cwd, environ) as server, trio.open_nursery() as nursery:

        async def launch() -> None:
            with suppress(HyphaError, OSError):
                async with connect_to_server({"server_url": f"http://127.0.0.1:{server.port}"}) as user:
                    apps = await user.get_service("server-apps")
                    await apps.launch(WAITS, config=WINDOW)

        nursery.start_soon(launch)
        profiles = cwd / ".hypha" / "browser"
        await until(lambda: len(browsers(profiles)) > 0)
        yield server, browsers(profiles)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("command", [SERVER, SINGLE, HYPERCORN], ids=["parent", "single", "hypercorn"])
async def test_a_server_that_is_told_to_stop_takes_its_browser_with_it(
    command: Sequence[str], browser: str, tmp_path: Path
) -> None:
    async with launching(command, browser, tmp_path) as (server, processes):
        server.kill(signal.SIGTERM)
        await server.ended()
        await all_gone(processes)
        assert os.listdir(tmp_path / ".hypha" / "browser") == []


async def test_a_worker_that_is_killed_takes_its_browser_with_it(browser: str, tmp_path: Path) -> None:
    async with launching(SERVER, browser, tmp_path) as (server, processes):
        os.kill(server.worker(), signal.SIGKILL)
        await all_gone(processes)
        await until(lambda: len(server.workers()) == 1)
        server.kill(signal.SIGTERM)
        await server.ended()


async def test_a_server_that_is_killed_takes_its_browser_with_it(browser: str, tmp_path: Path) -> None:
    async with launching(SERVER, browser, tmp_path) as (server, processes):
        server.kill(signal.SIGKILL)
        await all_gone(processes)
