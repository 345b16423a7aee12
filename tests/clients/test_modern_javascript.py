"""Rows 18 to 28 of ``protocol.md`` section 12 for Cj, hypha-rpc for JavaScript, and for our own client, in Node.

What Cj itself does wrong is asserted as it is, because users see it: positional arguments beside keyword ones get lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.clients.conftest import RunJavascript
from tests.clients.wire import between
from tests.house.processes import Server

Run = Callable[..., Awaitable[None]]


@pytest.fixture(params=["hypha-rpc", "hypha"], ids=["hypha-rpc-js", "hypha-js"])
def run(run_javascript: RunJavascript, request: pytest.FixtureRequest) -> Run:
    """``await run(script, url)`` with each of the two."""

    async def run_it(script: str, url: str, *arguments: str, seconds: float = 30.0) -> None:
        await run_javascript(script, url, *arguments, library=request.param, seconds=seconds)

    return run_it


async def test_row_18_connect(run: Run, server: Server) -> None:
    await run(
        """
        const one = await connect(), two = await connect({ client_id: "named", server_url: url + "/" });
        assert.notEqual(one.config.workspace, two.config.workspace);
        assert.equal(two.config.client_id, "named");
        assert.ok(one.config.manager_id);
        assert.equal(one.config.manager_id, two.config.serverId);
        assert.equal(one.config.user.is_anonymous, true);
        assert.equal(one.config.public_base_url, url);
        const ids = (await one.listServices()).map((service) => service.id);
        assert.deepEqual(ids, [`${one.config.workspace}/${one.config.client_id}:built-in`]);
        assert.deepEqual((await two.listClients()).map((client) => client.id), [`${two.config.workspace}/named`]);
        assert.equal(await one.echo("x"), "x");
        assert.equal(await one.log("x"), null);
        assert.equal((await one.checkStatus()).status, "ready");
        """,
        server.url,
    )


async def test_row_19_a_token_names_the_workspace(run: Run, server: Server) -> None:
    await run(
        """
        const owner = await connect({ client_id: "owner" });
        const { workspace } = owner.config;
        const token = await owner.generateToken({ expires_in: 600 });
        assert.match(token, /^[^.@]+\\.[^.]+\\.[^.]+$/);
        for (const config of [{ token }, { token, workspace }])
          assert.equal((await connect(config)).config.workspace, workspace);
        assert.equal((await owner.listClients()).length, 3);
        await owner.createWorkspace({ id: "row-19-js" });
        const member = await connect({ token: await owner.generateToken({ workspace: "row-19-js" }) });
        assert.equal(member.config.workspace, "row-19-js");
        const over = ended(member);
        await owner.deleteWorkspace("row-19-js");
        await over;  // it was told not to come back
        await owner.disconnect();
        """,
        server.url,
    )


async def test_row_20_refusals_say_why(run: Run, server: Server) -> None:
    await run(
        """
        const owner = await connect({ client_id: "taken" });
        const { workspace } = owner.config;
        const token = await owner.generateToken();
        const rows = [
          [{ token: "nonsense" }, /ConnectionAbortedError: Authentication error/],
          [{ workspace }, /ConnectionAbortedError: .*Permission denied for workspace/],
          [{ workspace: "nowhere", token }, /ConnectionAbortedError: .*Permission denied for workspace nowhere/],
          [{ client_id: "taken", token }, /ConnectionAbortedError: .*Client already exists and is active/],
          [{ client_id: "a:b" }, /ConnectionAbortedError: .*client id/],
        ];
        for (const [config, text] of rows) await assert.rejects(connect(config), text);
        assert.equal(await owner.echo("x"), "x");
        """,
        server.url,
    )


async def test_row_21_services(run: Run, server: Server) -> None:
    await run(
        """
        const provider = await connect({ client_id: "provider" });
        const { workspace } = provider.config;
        const guest = await connect({ token: await provider.generateToken() });
        const info = await provider.registerService({
          id: "row-21", name: "Row", type: "demo", description: "a row",
          config: { visibility: "public", colour: "red" }, hello: (name) => `hello ${name}`,
        });
        const full = `${workspace}/provider:row-21`;
        assert.equal(info.id, full);
        const stranger = await connect();
        for (const server of [guest, stranger])
          for (const id of ["row-21", `${workspace}/row-21`, full]) {
            const svc = await server.getService(id);
            assert.equal(svc.id, full);
            assert.equal(svc.config.url, `${url}/${workspace}/services/provider:row-21`);
            assert.equal(await svc.hello("x"), "hello x");
          }
        await assert.rejects(stranger.getService(`${workspace}/x`), /PermissionError: .*non-public service in/);
        await assert.rejects(guest.getService("x"), /KeyError: 'Service not found: .*:x@\\*'/);
        const [entry] = await guest.listServices({ type: "demo" });
        assert.deepEqual(entry, await guest.getServiceInfo("row-21"));
        assert.deepEqual([entry.id, entry.config.colour], [full, "red"]);
        assert.equal(entry.service_schema.hello.type, "function");
        await provider.unregisterService("row-21");
        await assert.rejects(guest.getService("row-21"), /Service not found/);
        """,
        server.url,
    )


async def test_row_22_functions_and_generators(run: Run, server: Server) -> None:
    await run(
        """
        const provider = await connect();
        let closed = false;
        await provider.registerService({
          id: "row-22",
          async each(items, callback) {
            const answers = [];
            for (const item of items) answers.push(await callback(item));
            return answers;
          },
          options: (first, second) => [first, second],
          fails() { throw new TypeError("boom"); },
          async *later(upto) { try { for (let i = 0; i < upto; i++) yield i; } finally { closed = true; } },
          *atOnce(upto) { for (let i = 0; i < upto; i++) yield i; },
          counter: () => { let n = 0; return { next: async () => ++n }; },
        });
        const caller = await connect({ token: await provider.generateToken() });
        const svc = await caller.getService("row-22");
        assert.deepEqual(await svc.each([1, 2], async (x) => x * 10), [10, 20]);
        await assert.rejects(svc.each([1], () => { throw new Error("from the callback"); }), /from the callback/);
        assert.deepEqual(await svc.options({ first: 1, second: 2, _rkwargs: true }), [1, 2]);
        const first = library === "hypha-rpc" ? null : 1;
        assert.deepEqual(await svc.options(1, { second: 2, _rkwargs: true }), [first, 2]);
        await assert.rejects(svc.fails(), /RemoteError: [^]*TypeError: boom/);
        const counter = await svc.counter();
        assert.deepEqual([await counter.next(), await counter.next()], [1, 2]);
        for (const name of ["later", "atOnce"]) {
          const heard = [];
          for await (const item of await svc[name](4)) heard.push(item);
          assert.deepEqual(heard, [0, 1, 2, 3]);
        }
        closed = false;
        for await (const item of await svc.later(1e9)) if (item === 2) break;
        await until(() => closed);
        """,
        server.url,
    )


async def test_row_23_signs_of_life(run: Run, server: Server) -> None:
    await run(
        """
        const server = await connect({ ping_interval: 0.5 });
        const socket = socketOf(server), texts = [];
        socket.on("message", (data, isBinary) => isBinary || texts.push(JSON.parse(data).type));
        await until(() => texts.includes("reconnection_token") && texts.includes("pong"));
        assert.equal(socketOf(server), socket);
        assert.equal(await server.echo("x"), "x");
        """,
        server.url,
        seconds=60,
    )


async def test_row_26_a_dead_peer(run: Run, server: Server) -> None:
    await run(
        """
        const caller = await connect({ client_id: "left" });
        const { workspace } = caller.config;
        const token = await caller.generateToken();
        const provider = await connect({ client_id: "goes", token, reconnect: false });
        await provider.registerService({ id: "row-26", wait: () => new Promise(() => {}), hello: () => "hello" });
        const svc = await caller.getService("row-26"), heard = [];
        caller.on("client_disconnected", (event) => heard.push(event.data));
        const waiting = assert.rejects(svc.wait(), /goes/);
        await svc.hello();
        const started = performance.now();
        kill(provider);
        await waiting;
        await assert.rejects(svc.hello(), /is not connected/);
        assert.ok(performance.now() - started < 2000);
        await until(() => heard.length);
        assert.deepEqual(heard, [{ id: "goes", workspace }]);
        """,
        server.url,
    )


async def test_row_27_events(run: Run, server: Server) -> None:
    await run(
        """
        const speaker = await connect({ client_id: "speaker" });
        const { workspace } = speaker.config;
        const hearer = await connect({ client_id: "hearer", token: await speaker.generateToken() });
        const heard = [], deaf = [], added = [];
        hearer.on("news", (event) => heard.push(event));
        speaker.on("news", (event) => deaf.push(event));
        assert.equal(await hearer.subscribe("news"), true);
        await speaker.emit({ type: "news", to: "*", data: 1 });
        await speaker.emit({ type: "news", to: `${workspace}/hearer`, data: 2 });
        await until(() => heard.length === 2);
        assert.deepEqual(heard.map(({ data, from }) => [data, from]),
          [[1, `${workspace}/speaker`], [2, `${workspace}/speaker`]]);
        assert.equal(await hearer.unsubscribe("news"), true);
        await speaker.emit({ type: "news", to: "*", data: 3 });
        hearer.on("service_added", (event) => added.push(event));
        await hearer.subscribe(["service_added"]);
        const info = await speaker.registerService({ id: "row-27", f: () => 1 });
        await until(() => added.length);
        assert.equal(added[0].data.id, info.id);
        assert.deepEqual([heard.length, deaf], [2, []]);
        """,
        server.url,
    )


@pytest.mark.slow
async def test_row_28_what_is_large_comes_in_parts(run: Run, server: Server) -> None:
    async with between(server.url) as wire:
        await run(
            """
            const provider = await connect();
            await provider.registerService({
              id: "row-28",
              echo: (x) => x,
              size: (x) => x.length,
              make: (size) => new Uint8Array(size).map((_, index) => index % 251),
            });
            const caller = await connect({ token: await provider.generateToken() });
            const svc = await caller.getService("row-28");
            const bytes = new Uint8Array(12_000_000).map((_, index) => index % 251);
            assert.equal(await svc.size(bytes), bytes.length);
            assert.ok(Buffer.from(await svc.make(bytes.length)).equals(Buffer.from(bytes)));
            assert.ok(Buffer.from(await svc.echo(bytes)).equals(Buffer.from(bytes)));
            assert.ok(Buffer.from(await caller.echo(bytes)).equals(Buffer.from(bytes)));
            """,
            wire.url,
            seconds=60,
        )
        assert wire.connects == 2
