"""Clients that are cut off, that leave, and that outlive the server: rows 13, 14 and 15, and restarts."""

from __future__ import annotations

import os
import signal
import urllib.error
import urllib.request
from contextlib import AsyncExitStack

import pytest
import trio

from tests.clients import raw
from tests.clients.conftest import RunClient, StartClient, StartServer
from tests.clients.raw import MANAGER, RawPeer, refused
from tests.clients.returning import BACK, at_work, listed, member, serves_anew, until
from tests.clients.scripted import SCRIPTS, passes, service_of, worker_of
from tests.clients.wire import Wire, between
from tests.house.environments import GENERATIONS
from tests.house.processes import Server

pytestmark = pytest.mark.parametrize("generation", GENERATIONS)


async def test_row_13_a_cut_client_comes_back_with_its_services(
    generation: str, start_client: StartClient, run_client: RunClient, server: Server
) -> None:
    async with (
        between(server.url) as wire,
        raw.connected(server.url) as other,
        start_client(generation, SCRIPTS / "provider.py", wire.url) as provider,
    ):
        service_id, workspace, token = await service_of(provider)
        client = service_id.partition(":")[0]
        for times in (1, 2):
            assert await at_work(other, client)
            wire.cut()
            await until(at_work, other, client)
            assert wire.connects == 1 + times
            assert await listed(other, workspace) == [service_id]
        await passes(run_client, generation, "caller.py", server.url, service_id, "functions")
        colleague = (f"workspace={workspace}", f"token={token}")
        await passes(run_client, generation, "caller.py", server.url, "tools", "functions", *colleague)


async def test_row_13_nothing_of_a_lost_client_is_offered(
    generation: str, start_client: StartClient, server: Server
) -> None:
    async with raw.connected(server.url) as other:
        async with start_client(generation, SCRIPTS / "provider.py", server.url) as provider:
            service_id, workspace, _ = await service_of(provider)
            client = service_id.partition(":")[0]
            assert await listed(other, workspace) == [service_id]
        await gone(other, service_id, server)
        with refused(f"Target peer {client} is not connected"):
            await other.call(client, "services.tools.add", 1)


async def gone(other: RawPeer, service_id: str, server: Server) -> None:
    """Nothing of a service is left in lists, in look-ups and over HTTP."""
    workspace, _, rest = service_id.partition("/")
    assert await listed(other, workspace) == []
    assert service_id not in await listed(other, "public")
    with refused("Permission denied for service: tools"):
        await other.call(MANAGER, "services.default.get_service", service_id)
    for name in ("tools", rest):
        request = f"{server.url}/{workspace}/services/{name}/add?a=1"
        with pytest.raises(urllib.error.HTTPError) as caught:
            await trio.to_thread.run_sync(urllib.request.urlopen, request)
        with caught.value as answer:
            assert answer.code == 404


async def test_row_14_a_client_that_says_goodbye_is_gone_at_once(
    generation: str, start_client: StartClient, server: Server
) -> None:
    async with (
        between(server.url) as wire,
        raw.connected(server.url) as other,
        start_client(generation, SCRIPTS / "provider.py", wire.url) as provider,
    ):
        service_id, _, _ = await service_of(provider)
        client = service_id.partition(":")[0]
        await other.send(raw.header(client, "services.tools.wait", "w"), other.body("w", [60]))
        await other.send(raw.header(client, "services.tools.leave"), {"args": []})
        with refused(f"Target peer {client} is not connected"):
            await other.answer("w")
        await gone(other, service_id, server)
        assert (await provider.wait()).returncode == 0
        assert wire.connects == 1


@pytest.mark.slow
async def test_row_15_no_text_is_ever_sent(
    generation: str, run_client: RunClient, start_client: StartClient, start_server: StartServer
) -> None:
    """All frames of a busy life, of silence, and of the server's own goodbye."""
    scripts = ["connect.py 3", "connect.py 16", "services.py 5", "services.py 7", "look_up.py 8", "context.py"]
    with start_server("--limit", "ping_seconds=0.2") as server:
        async with between(server.url) as wire:
            for line in (*scripts, "values.py"):
                script, *row = line.split()
                await passes(run_client, generation, script, wire.url, *row)
            async with start_client(generation, SCRIPTS / "provider.py", wire.url) as provider:
                await service_of(provider)
                with trio.fail_after(BACK):
                    await wire.heard(0x9)
                os.kill(server.pid, signal.SIGHUP)
                await until(goodbyes, wire)
            assert wire.opcodes - {0xA} == {0x2, 0x8, 0x9}
            assert set(wire.closes) == {1000, 1012}


async def goodbyes(wire: Wire) -> bool:
    """Whether the server has asked a client to come back."""
    await trio.lowlevel.checkpoint()
    return 1012 in wire.closes


# --- the server is replaced, or its worker dies -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["replaced", "killed"])
async def test_clients_return_when_the_worker_is_replaced_or_killed(
    how: str, generation: str, start_client: StartClient, start_server: StartServer
) -> None:
    """The parent keeps the socket, so no connect is refused. These clients do not announce their services again by
    themselves (``protocol.md`` 1.6): the new worker knows them, and who calls meanwhile waits (C-RECON-4)."""
    with start_server() as server:
        async with (
            between(server.url) as wire,
            start_client(generation, SCRIPTS / "provider.py", wire.url) as provider,
        ):
            service_id, workspace, token = await service_of(provider)
            client, before = service_id.partition(":")[0], worker_of(server)
            os.kill(*((server.pid, signal.SIGHUP) if how == "replaced" else (before, signal.SIGKILL)))
            await until(serves_anew, server, before)
            async with raw.connected(server.url) as stranger:
                assert await stranger.call(client, "services.tools.add", 40) == 41
            async with member(server, workspace, token) as peer:
                assert await at_work(peer, client)
                assert wire.closes == ([1012] if how == "replaced" else [])
                assert await listed(peer, workspace) == [service_id]
                await peer.call(client, "services.tools.offer", "another")
                assert set(await listed(peer, workspace)) == {service_id, f"{client}:another"}


@pytest.mark.slow
async def test_a_guest_returns_before_the_owner_of_the_workspace(
    generation: str, start_client: StartClient, start_server: StartServer
) -> None:
    """The server knows nothing of the workspace any more, but what it has signed itself."""
    with start_server() as server:
        async with AsyncExitStack() as stack:
            async with raw.connected(server.url) as owner:
                token = await owner.call(MANAGER, "services.default.generate_token")
                settings = (f"workspace={owner.workspace}", f"token={token}")
                starting = start_client(generation, SCRIPTS / "provider.py", server.url, *settings)
                provider = await stack.enter_async_context(starting)
                service_id, workspace, _ = await service_of(provider)
                assert workspace == owner.workspace
            before = worker_of(server)
            os.kill(server.pid, signal.SIGHUP)
            await until(serves_anew, server, before)
            async with member(server, workspace, token) as peer:
                await until(at_work, peer, service_id.partition(":")[0])


@pytest.mark.slow
async def test_a_server_that_stops_asks_to_come_back(
    generation: str, start_client: StartClient, start_server: StartServer
) -> None:
    async with AsyncExitStack() as stack:
        with start_server() as server:
            wire = await stack.enter_async_context(between(server.url))
            provider = await stack.enter_async_context(start_client(generation, SCRIPTS / "provider.py", wire.url))
            await service_of(provider)
            os.kill(server.pid, signal.SIGTERM)
            with trio.fail_after(BACK):
                await wire.heard(0x8)
            assert wire.closes == [1012]
