"""Rows 24 and 25 of ``protocol.md`` section 12: hypha-rpc, and our own client for JavaScript, come back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio

from tests.clients import raw
from tests.clients.conftest import StartClient, StartJavascript, StartServer
from tests.clients.returning import at_work, listed, member, serves_anew, until
from tests.clients.scripted import SCRIPTS, service_of, worker_of
from tests.clients.wire import between
from tests.house.environments import MODERN
from tests.house.processes import Running, Server

pytestmark = pytest.mark.parametrize("generation", [MODERN, "hypha-rpc-js", "hypha-js"])

PROVIDER = """
    const server = await connect();
    const info = await server.registerService({
      id: "tools",
      config: { visibility: "public" },
      add: (a) => a + 1,
      ask_server: async (words) => await server.echo(words),
    });
    console.log("ready", info.id, await server.generateToken());
    await new Promise(() => {});
"""

Provide = Callable[[str, str], AbstractAsyncContextManager[Running]]


@pytest.fixture
def provide(start_client: StartClient, start_javascript: StartJavascript) -> Provide:
    """``async with provide(generation, url) as provider``: a client that offers the service ``tools``."""

    def start(generation: str, url: str) -> AbstractAsyncContextManager[Running]:
        if generation == MODERN:
            return start_client(generation, SCRIPTS / "provider.py", url)
        return start_javascript(PROVIDER, url, library=generation.removesuffix("-js"))

    return start


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1008])
async def test_row_24_a_client_is_back_at_once_with_its_services(
    code: int, generation: str, provide: Provide, server: Server
) -> None:
    async with (
        between(server.url) as wire,
        raw.connected(server.url) as other,
        provide(generation, wire.url) as provider,
    ):
        service_id, workspace, _ = await service_of(provider)
        client = service_id.partition(":")[0]
        assert await at_work(other, client)
        if code == 1006:
            wire.cut()
        else:
            wire.close(code)
        with trio.fail_after(3):
            await until(at_work, other, client)
        assert wire.connects == 2
        assert await listed(other, workspace) == [service_id]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["replaced", "killed"])
async def test_row_25_clients_return_with_their_services_to_another_worker(
    how: str, generation: str, provide: Provide, start_server: StartServer
) -> None:
    with start_server() as server:
        async with between(server.url) as wire, provide(generation, wire.url) as provider:
            service_id, workspace, token = await service_of(provider)
            client, before = service_id.partition(":")[0], worker_of(server)
            os.kill(*((server.pid, signal.SIGHUP) if how == "replaced" else (before, signal.SIGKILL)))
            await until(serves_anew, server, before)
            async with member(server, workspace, token) as peer:
                await until(at_work, peer, client)
                await until(offered, peer, workspace, service_id)
                assert wire.closes == ([1012] if how == "replaced" else [])


async def offered(peer: raw.RawPeer, workspace: str, service_id: str) -> bool:
    """Whether a service is the only one of its workspace."""
    return await listed(peer, workspace) == [service_id]
