"""HTTP calls of functions in Python clients whose one end is lost while they run."""

from __future__ import annotations

import signal
import time
from contextlib import AsyncExitStack

import pytest
import trio

from tests.clients.conftest import StartClient
from tests.clients.scripted import SCRIPTS, service_of
from tests.house.environments import GENERATIONS
from tests.house.processes import Server

PATIENT = """
    import asyncio, sys
    from imjoy_rpc.hypha import connect_to_server

    async def slow():
        try:
            print("begun", flush=True)
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            print("cancelled", flush=True)
            raise

    async def main():
        server = await connect_to_server({"server_url": sys.argv[1]})
        await server.register_service({"id": "slow", "config": {"visibility": "public"}, "slow": slow})
        print("ready", server.config.workspace, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


async def asked(server: Server, path: str) -> trio.SocketStream:
    """A connection on which a GET request for *path* has been sent."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    return stream


@pytest.mark.parametrize("generation", GENERATIONS)
async def test_a_call_whose_provider_is_killed_fails_at_once(
    generation: str, start_client: StartClient, server: Server
) -> None:
    async with start_client(generation, SCRIPTS / "provider.py", server.url) as provider:
        service_id, workspace, _ = await service_of(provider)
        async with await asked(server, f"/{workspace}/services/tools/compute?seconds=600") as stream:
            await provider.wait_for("^computing$")
            provider.send_signal(signal.SIGKILL)
            killed = time.perf_counter()
            answer = b"".join([part async for part in stream])
            assert time.perf_counter() - killed < 1.0
        assert answer.startswith(b"HTTP/1.1 502 "), answer
        assert f"{service_id.partition(':')[0]} is not connected".encode() in answer


@pytest.mark.slow
async def test_a_function_whose_http_client_left_is_cancelled(start_client: StartClient, server: Server) -> None:
    """At its next heartbeat, which is refused then (``decisions.md`` 21). Both generations at once: it takes 15 s."""
    async with AsyncExitStack() as stack:
        providers = [await stack.enter_async_context(start_client(name, PATIENT, server.url)) for name in GENERATIONS]
        for provider in providers:
            workspace = (await provider.wait_for(r"^ready (\S+)$"))[1]
            async with await asked(server, f"/{workspace}/services/slow/slow"):
                await provider.wait_for("^begun$")
        for provider in providers:
            await provider.wait_for("^cancelled$")
