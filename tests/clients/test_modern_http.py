"""Row 29 of ``protocol.md`` section 12: hypha-rpc over HTTP, where no websocket passes.

What a websocket's client does is done again by ``scripts/modern.py``, over HTTP alone and between both transports.
"""

from __future__ import annotations

import os
import signal

import pytest
import trio

from tests.clients import raw
from tests.clients.conftest import RunClient, RunJavascript, StartClient, StartJavascript, StartServer
from tests.clients.returning import at_work, listed, member, serves_anew, until
from tests.clients.scripted import SCRIPTS, passes, service_of, worker_of
from tests.clients.wire import between
from tests.house.environments import MODERN
from tests.house.processes import Server

#: Seconds after which a client over HTTP is back: it waits two before it tries.
BACK = 8.0

TRANSPORTS = pytest.mark.parametrize(
    "transports",
    [
        pytest.param(("http",), id="http"),
        pytest.param(("http", "websocket"), id="http-and-websocket"),
        pytest.param(("websocket", "http"), id="websocket-and-http"),
    ],
)


@TRANSPORTS
@pytest.mark.parametrize("row", ["18", "19", "21", "22", "26", "27"])
@pytest.mark.parametrize("generation", [MODERN])
async def test_row_29_does_what_a_websocket_does(
    generation: str, row: str, transports: tuple[str, ...], run_client: RunClient, server: Server
) -> None:
    await passes(run_client, generation, "modern.py", server.url, row, *transports)


@pytest.mark.slow
@pytest.mark.parametrize("generation", [MODERN])
async def test_row_29_tokens_are_refreshed(generation: str, run_client: RunClient, server: Server) -> None:
    """Two seconds after the client has connected."""
    await passes(run_client, generation, "modern.py", server.url, "23", "http")


@pytest.mark.slow
@TRANSPORTS
@pytest.mark.parametrize("generation", [MODERN])
async def test_row_29_what_is_large_comes_in_parts(
    generation: str, transports: tuple[str, ...], run_client: RunClient, server: Server
) -> None:
    await passes(run_client, generation, "modern.py", server.url, "28", *transports, seconds=90)


@pytest.mark.slow
@pytest.mark.parametrize("generation", [MODERN])
async def test_row_29_a_cut_stream_comes_back_with_its_services(
    generation: str, start_client: StartClient, server: Server
) -> None:
    async with (
        between(server.url) as wire,
        raw.connected(server.url) as other,
        start_client(generation, SCRIPTS / "provider.py", wire.url, "transport=http") as provider,
    ):
        service_id, workspace, _ = await service_of(provider)
        client = service_id.partition(":")[0]
        for _ in range(2):
            assert await at_work(other, client)
            wire.cut()
            await until(not_at_work, other, client)
            assert await listed(other, workspace) == []
            with trio.fail_after(BACK):
                await until(at_work, other, client, seconds=BACK)
            assert await listed(other, workspace) == [service_id]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["replaced", "killed"])
@pytest.mark.parametrize("generation", [MODERN])
async def test_row_29_clients_return_with_their_services_to_another_worker(
    how: str, generation: str, start_client: StartClient, start_server: StartServer
) -> None:
    with start_server() as server:
        async with start_client(generation, SCRIPTS / "provider.py", server.url, "transport=http") as provider:
            service_id, workspace, token = await service_of(provider)
            client, before = service_id.partition(":")[0], worker_of(server)
            os.kill(*((server.pid, signal.SIGHUP) if how == "replaced" else (before, signal.SIGKILL)))
            await until(serves_anew, server, before)
            async with member(server, workspace, token) as peer:
                await until(at_work, peer, client, seconds=BACK)
                await until(offered, peer, workspace, service_id)


async def not_at_work(peer: raw.RawPeer, client: str) -> bool:
    return not await at_work(peer, client)


async def offered(peer: raw.RawPeer, workspace: str, service_id: str) -> bool:
    """Whether a service is the only one of its workspace."""
    return await listed(peer, workspace) == [service_id]


# --- JavaScript, with a token: in Node it keeps no cookies, and so without one it proves nothing ---------------------


@pytest.mark.parametrize("library", ["hypha-rpc-js"])
async def test_row_29_javascript(library: str, run_javascript: RunJavascript, server: Server) -> None:
    await run_javascript(
        """
        const owner = await connect(), token = await owner.generateToken();
        const other = await connect({ transport: "http", token });
        assert.equal(other.config.workspace, owner.config.workspace);
        let closed = false, count = 0;
        const service = {
          config: { visibility: "public" },
          echo: (value) => value,
          fails() { throw new TypeError("boom"); },
          each: async (items, callback) => await Promise.all(items.map(callback)),
          async *later(upto) { try { for (let i = 0; i < upto; i++) yield i; } finally { closed = true; } },
        };
        const large = new Uint8Array(3_000_000).map((_, index) => index % 251);
        for (const [provider, caller] of [[owner, other], [other, owner], [other, other]]) {
          const { id } = await provider.registerService({ id: `row-29-${count++}`, ...service });
          const found = await caller.getService(id);
          assert.equal(await found.echo("x"), "x");
          assert.deepEqual(await found.each([1, 2], async (x) => x * 10), [10, 20]);
          await assert.rejects(found.fails(), /TypeError: boom/);
          assert.ok(Buffer.from(await found.echo(large)).equals(Buffer.from(large)));
          closed = false;
          for await (const item of await found.later(1e9)) if (item === 2) break;
          await until(() => closed);
        }
        """,
        server.url,
        library="hypha-rpc",
        seconds=60,
    )


@pytest.mark.slow
@pytest.mark.parametrize("library", ["hypha-rpc-js"])
async def test_row_29_javascript_comes_back(library: str, start_javascript: StartJavascript, server: Server) -> None:
    script = """
        const owner = await connect(), token = await owner.generateToken();
        const server = await connect({ transport: "http", token, server_url: args[0] });
        const info = await server.registerService({
          id: "tools", config: { visibility: "public" }, ask_server: async (words) => await server.echo(words),
        });
        console.log("ready", info.id, token);
        await new Promise(() => {});
    """
    async with (
        between(server.url) as wire,
        raw.connected(server.url) as other,
        start_javascript(script, server.url, wire.url, library="hypha-rpc") as provider,
    ):
        service_id, workspace, _ = await service_of(provider)
        client = service_id.partition(":")[0]
        assert await at_work(other, client)
        wire.cut()
        await until(not_at_work, other, client)
        await until(at_work, other, client, seconds=BACK)
        assert await listed(other, workspace) == [service_id]


@pytest.mark.parametrize("library", ["hypha-rpc-js"])
async def test_javascript_without_a_cookie_is_told_to_bring_a_token(
    library: str, start_javascript: StartJavascript, server: Server
) -> None:
    async with start_javascript('await connect({ transport: "http" })', server.url, library="hypha-rpc") as client:
        await client.wait_for("send the token with which it is connected", stream="stderr")
