"""Our own client for JavaScript, in Node: what it promises beyond what the published ones do, and what it withstands.

What it has in common with them is in ``test_modern_javascript.py``, ``test_javascript_pairs.py``,
``test_modern_returning.py``, ``test_trio_client.py`` and ``test_login.py``.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest
import trio

from hypha.client import connect_to_server
from tests.clients import raw
from tests.clients.conftest import RunJavascript, StartJavascript
from tests.clients.raw import Refused
from tests.house import npm, processes
from tests.house.examples import examples
from tests.house.processes import Running, Server

Run = Callable[..., Awaitable[None]]

SOURCE = Path(__file__).parents[2] / "hypha" / "web" / "assets" / "hypha-rpc-websocket.js"


@pytest.fixture
def run(run_javascript: RunJavascript) -> Run:
    """``await run(script, url)`` with our client."""

    async def run_it(script: str, url: str, *arguments: str, seconds: float = 30.0) -> None:
        await run_javascript(script, url, *arguments, library="hypha", seconds=seconds)

    return run_it


# --- what programs see ------------------------------------------------------------------------------------------


async def test_both_spellings_and_every_function_of_the_manager(run: Run, server: Server) -> None:
    await run(
        """
        const one = await connectToServer({ serverUrl: url, clientId: "one", methodTimeout: 5 });
        assert.equal(one.config.clientId, "one");
        assert.equal(one.config.client_id, "one");
        assert.equal(one.config.publicBaseUrl, url);
        await one.register_service({ id: "x", f: () => 1 });
        assert.equal((await one.get_service("x")).id, (await one.getService("x")).id);
        assert.equal((await one.list_services({ type: "generic" })).length, 1);
        assert.equal((await one.getWorkspaceInfo()).id, one.config.workspace);
        assert.equal((await one.get_workspace_info({ workspace: one.config.workspace, _rkwargs: true })).id,
          one.config.workspace);
        await assert.rejects(one.nothingLikeThat(), { name: "RemoteError", message: /nothing_like_that/ });
        assert.equal(one.then, undefined);
        assert.equal(one._ask, undefined);
        assert.match(JSON.stringify({ config: one.config }), /one/);
        await one.unregister_service("x");
        await assert.rejects(one.unregisterService("x"), /offers no service/);
        """,
        server.url,
    )


async def test_settings_that_cannot_be_used(run: Run, server: Server) -> None:
    await run(
        """
        for (const [config, text] of [
          [undefined, /server_url/],
          [{}, /needs a server_url/],
          [{ server_url: "localhost:9000" }, /needs a server_url/],
          [{ server_url: url, method_timeout: -1 }, /method_timeout/],
          [{ server_url: url, transport: "http" }, /by websocket/],
          [{ server_url: url, workspace: "elsewhere" }, /ConnectionAbortedError: .*Permission denied/],
          [{ server_url: "http://127.0.0.1:1" }, /ConnectionError: cannot connect/],
        ]) await assert.rejects(connectToServer(config), text);
        const Own = WebSocket;
        delete globalThis.WebSocket;
        await assert.rejects(connect(), /package ws/);
        const server = await connect({ WebSocket: Own });
        assert.equal(await server.echo("x"), "x");
        """,
        server.url,
    )


async def test_services_of_every_form(run: Run, server: Server) -> None:
    await run(
        """
        class Counter {
          #count = 0;
          id = "class";
          step = 2;
          add() { return this.#count += this.step; }
          _hidden() { return 1; }
        }
        const server = await connect();
        await server.registerService(new Counter());
        const counter = await server.getService("class");
        assert.deepEqual([await counter.add(), await counter.add(), counter.step], [2, 4, 2]);
        assert.equal(counter._hidden, undefined);

        const api = { id: "map", name: "me", who() { return this.name; }, list: [(x) => x + 1, { f: () => "deep" }] };
        await server.registerService(api);
        const map = await server.getService("map");
        assert.deepEqual([await map.who(), await map.list[0](1), await map.list[1].f()], ["me", 2, "deep"]);
        await assert.rejects(server.registerService(api), /already exists/);
        await server.registerService({ ...api, who: () => "new" }, { overwrite: true });
        assert.equal(await map.who(), "new");
        await server.registerService({ id: "laid" , f: () => 1 }, { visibility: "public", _rkwargs: true });
        assert.equal((await server.getServiceInfo("laid")).config.visibility, "public");

        for (const [bad, text] of [
          [null, /takes an object/], [{ f: () => 1 }, /the id of a service/], [{ id: "a.b" }, /the id of a service/],
          [{ id: "x", config: { visibility: "secret" } }, /choose public/],
        ]) await assert.rejects(server.registerService(bad), text);
        await assert.rejects(server.getService("x"), /not found/);

        await server.export({ hello: () => "app" });
        assert.equal(await (await server.getApp(server.config.client_id)).hello(), "app");
        assert.equal((await server.listApps()).length, 1);
        const camel = await server.getService("map", { case_conversion: "camel" });
        assert.equal(camel.serviceSchema.who.type, "function");
        assert.equal(await camel.who(), "new");
        """,
        server.url,
    )


async def test_arguments_find_their_places(run: Run, server: Server) -> None:
    """By keyword, and the context, which nobody can forge."""
    await run(
        """
        const server = await connect({ client_id: "me" });
        const from = `${server.config.workspace}/me`;
        await server.registerService({
          id: "places",
          config: { require_context: ["told", "short", "quiet", "late"] },
          named: (a, b = "(,)", { c, d } = {}, /* , e */ ...rest) => [a, b, c ?? null, rest],
          old: function (a, b) { return [a, b]; },
          one: async a => a,
          told: (word, context, more) => [word, context.from, more ?? null],
          short: (ctx) => ctx.from,
          quiet: (word) => word,
          late: (...all) => all.map((item) => item?.from ?? item),
        });
        const s = await server.getService("places");
        const kw = (map) => ({ ...map, _rkwargs: true });
        assert.deepEqual(await s.named(kw({ b: 2, a: 1 })), [1, 2, null, []]);
        assert.deepEqual(await s.named(1, kw({ c: 3 })), [1, { c: 3 }, null, []]);
        assert.deepEqual(await s.named(1, kw({ b: 2, c: 3 })), [1, 2, 3, []]);
        assert.deepEqual(await s.named(1, 2, {}, 4, kw({ x: 5 })), [1, 2, null, [4, { x: 5 }]]);
        assert.deepEqual(await s.old(kw({ b: 2 })), [null, 2]);
        assert.equal(await s.one(kw({ a: 1 })), 1);
        const forged = { from: "ws/forged" };
        assert.deepEqual(await s.told("x"), ["x", from, null]);
        assert.deepEqual(await s.told("x", forged, 1), ["x", from, 1]);
        assert.deepEqual(await s.told(kw({ word: "x", context: forged })), ["x", from, null]);
        assert.equal(await s.short(forged), from);
        assert.equal(await s.quiet("x"), "x");
        assert.deepEqual(await s.late(1), [1, from]);
        const { service_schema: schema } = await server.getServiceInfo("places");
        const parameters = ({ function: { parameters } }) => [Object.keys(parameters.properties), parameters.required];
        assert.deepEqual(parameters(schema.named), [["a", "b"], ["a"]]);
        assert.deepEqual(parameters(schema.told), [["word", "more"], ["word", "more"]]);
        const parameters_of_add = { type: "object", properties: { a: { type: "number" } } };
        const described = { description: "adds", parameters: parameters_of_add };
        await server.registerService({ id: "said", add: client.schemaFunction((a) => a + 1, described) });
        const said = await server.getService("said");
        assert.equal(said.add.__schema__.description, "adds");
        assert.equal(await said.add(kw({ a: 1 })), 2);
        """,
        server.url,
    )


async def test_values(run: Run, server: Server) -> None:
    await run(
        """
        const server = await connect();
        class Point { constructor(x) { this.x = x; } }
        const passOn = (value) => value;
        const file = () => new Blob(["0123456789"], { type: "text/plain" });
        await server.registerService({ id: "v", echo: passOn, call: (f, x) => f(x), file, back: () => ({ passOn }) });
        const { echo, call, file: open, back } = await server.getService("v");
        for (const value of [
          null, 2n ** 63n, -(2n ** 63n), 2 ** 53, -0, NaN, Infinity, "\\ufeff 🧪", new Date(-1), new Date(1e13 + 7),
          new Map([["a", new Set([1])], ["b", null]]), new Float64Array([0.5]), new BigInt64Array([-1n]),
          new Uint8Array(0), { "": 1, deep: [[{}]] }, JSON.parse('{"__proto__": {"a": 1}}'),
        ]) assert.deepStrictEqual(await echo(value), value);
        assert.equal(await echo(undefined), null);
        assert.deepEqual(await echo([undefined, , 1]), [null, null, 1]);
        assert.equal(await echo(5n), 5);
        const view = new Uint8Array([9, 1, 2, 3, 9]).subarray(1, 4);
        assert.deepEqual(await echo(view), new Uint8Array([1, 2, 3]));
        assert.deepEqual(await echo(new Uint8Array([1, 2, 3, 4]).buffer), new Uint8Array([1, 2, 3, 4]).buffer);
        assert.deepEqual(await echo(new DataView(view.buffer, 1, 2)), new Uint8Array([1, 2]).buffer);
        assert.deepEqual(await echo(new Uint8ClampedArray([1, 2])), new Uint8Array([1, 2]));
        const array = { _rtype: "ndarray", _rvalue: new Uint8Array(4), _rshape: [2, 2], _rdtype: "uint8" };
        assert.deepEqual(await echo(array), array);
        assert.equal((await echo(new RangeError("as a value"))).message, "RangeError: as a value");
        assert.deepEqual(await echo(new Point(1)), { x: 1 });
        assert.equal(await call(passOn, 5), 5);
        const { passOn: lasting } = await back();
        assert.equal(await lasting(6), 6);
        assert.equal(await call(lasting, 7), 7);  // as it came: it is called where it is
        assert.equal(typeof await echo({ then: 1 }), "object");
        assert.equal((await echo({ then: passOn })).then._rtype, "method");
        const blob = await open();
        assert.deepEqual([blob.size, blob.type], [10, "text/plain"]);
        assert.equal(Buffer.from(await blob.read(4)).toString(), "0123");
        assert.equal(await blob.seek(-2, 2), 8);
        assert.equal(Buffer.from(await blob.read()).toString(), "89");

        const [encoder, decoder] = [({ x }) => ({ x }), ({ x }) => new Point(x)];
        server.registerCodec({ name: "point", type: Point, encoder, decoder });
        assert.deepStrictEqual(await echo([new Point(3)]), [new Point(3)]);
        assert.throws(() => server.registerCodec({ name: "x" }), /codec needs/);

        const circle = {};
        circle.circle = circle;
        for (const [bad, text] of [
          [circle, /nested deeper/], [Promise.resolve(1), /await it/], [Symbol("x"), /symbol/], [2n ** 64n, /64 bits/],
          [new Date(NaN), /invalid Date/],
        ]) await assert.rejects(echo(bad), text);
        assert.equal(await echo("still"), "still");
        """,
        server.url,
    )


async def test_errors_callbacks_and_generators(run: Run, server: Server) -> None:
    await run(
        """
        const server = await connect({ method_timeout: 1 });
        const token = await server.generateToken();
        let closed = 0;
        const kept = [];
        await server.registerService({
          id: "calls",
          fails() { throw new RangeError("at once"); },
          async throwsText() { throw "only a text"; },
          unsendable: () => Symbol("x"),
          slow: () => new Promise((resolve) => setTimeout(resolve, 2500, "late")),
          keep: (callback) => { kept.push(callback); return callback(1); },
          async *fails_later() { yield 1; throw new Error("after one"); },
          *numbers() { try { for (let i = 0; ; i++) yield i; } finally { closed++; } },
          sum: async (items) => { let sum = 0; for await (const item of items) sum += item; return sum; },
          first: async (items) => { for await (const item of items) return item; },
          never: () => new Promise(() => {}),
        });
        const other = await connect({ method_timeout: 1, token });
        const s = await other.getService("calls");
        await assert.rejects(s.fails(), (error) => {
          assert.ok(error instanceof client.HyphaError && error instanceof Error);
          assert.deepEqual([error.name, error.message], ["RemoteError", "RangeError: at once"]);
          assert.match(error.trace, /fails/);
          return true;
        });
        await assert.rejects(s.throwsText(), /only a text/);
        await assert.rejects(s.unsendable(), /symbol/);
        assert.equal(await s.slow(), "late");  // heartbeats keep it alive
        assert.equal(await s.keep((x) => x + 1), 2);
        await assert.rejects(kept[0](1), /expired or not found/);

        const heard = [];
        await assert.rejects(async () => { for await (const x of await s.fails_later()) heard.push(x); }, /after one/);
        assert.deepEqual(heard, [1]);
        for await (const number of await s.numbers()) if (number === 3) break;
        await until(() => closed === 1);
        const numbers = await s.numbers();
        assert.deepEqual(await numbers.next(), { done: false, value: 0 });
        assert.deepEqual(await numbers.return(7), { done: true, value: 7 });
        assert.deepEqual(await numbers.next(), { done: true, value: undefined });
        await until(() => closed === 2);
        assert.equal(await s.sum((function* () { yield* [1, 2, 3]; })()), 6);
        let left = false;
        const given = async function* () { try { yield 1; yield 2; } finally { left = true; } };
        assert.equal(await s.first(given()), 1);
        await until(() => left);

        await (await s.numbers()).next();  // whoever had it goes, and it is closed
        await other.disconnect();
        await until(() => closed === 3);
        await assert.rejects(other.echo(1), /has disconnected/);
        await assert.rejects(s.fails(), /has disconnected/);
        """,
        server.url,
    )


async def test_a_peer_that_never_answers(run: Run, server: Server) -> None:
    async with raw.connected(server.url) as peer:
        peer.silent = True
        token = await peer.call(raw.MANAGER, "services.default.generate_token")
        await run(
            """
            const [workspace, token, name] = args;
            const server = await connect({ workspace, token, method_timeout: 0.5 });
            await assert.rejects(server.getService(`${name}:x`), /TimeoutError|not found|timed out|not connected/);
            assert.equal(await server.echo(1), 1);
            """,
            server.url,
            peer.workspace,
            token,
            peer.name,
        )


async def test_calls_wait_while_the_connection_is_lost(run: Run, server: Server) -> None:
    await run(
        """
        const server = await connect({ client_id: "comes-back", method_timeout: 10 }), said = [];
        server.on("disconnected", (event) => said.push(event));
        server.on("connected", () => said.push("connected"));
        await server.subscribe("news");
        await server.registerService({ id: "there", never: () => new Promise(() => {}), hello: () => "hello" });
        const svc = await server.getService("there");
        const lost = assert.rejects(svc.never(), { code: "peer_gone" });
        await svc.hello();
        const news = new Promise((resolve) => server.once("news", resolve));
        socketOf(server).terminate();
        await lost;
        assert.equal(await svc.hello(), "hello");
        await server.emit({ type: "news", to: "*", data: new Map([[1, 2]]) });
        assert.deepEqual((await news).data, new Map([[1, 2]]));
        await until(() => said.includes("connected"));
        assert.equal(said[0].reconnecting, true);
        const quiet = await connect({ reconnect: false });
        const gone = ended(quiet);
        socketOf(quiet).terminate();
        await gone;
        await assert.rejects(quiet.echo(1), { code: "peer_gone" });
        """,
        server.url,
    )


async def test_a_server_that_does_not_answer_any_more_is_given_up(run: Run, server: Server) -> None:
    """The clock goes on by itself here: nobody waits for twenty seconds."""
    await run(
        """
        const server = await connect({ ping_interval: 0.2 });
        const first = socketOf(server);
        first._receiver.removeAllListeners("message");  // what comes is not heard
        const now = Date.now;
        Date.now = () => now() + 30_000;
        await until(() => socketOf(server) !== first);
        Date.now = now;
        assert.equal(await server.echo("back"), "back");
        """,
        server.url,
    )


async def test_events_are_for_their_handlers(run: Run, server: Server) -> None:
    await run(
        """
        const server = await connect(), heard = [];
        const handler = (event) => heard.push(event.n);
        server.on("x", handler);
        server.once("x", (event) => heard.push(`once ${event.n}`));
        server.on("x", () => { throw new Error("the program's own"); });
        console.error = () => {};
        await server.emit({ type: "x", n: 1 });
        await server.emit({ type: "x", n: 2 });
        server.off("x", handler);
        await server.emit({ type: "x", n: 3 });
        server.off("x");
        await server.emit({ type: "x", n: 4 });
        assert.deepEqual(heard, [1, "once 1", 2]);
        await assert.rejects(server.emit("x"), /object with a 'type'/);
        assert.throws(() => server.on("x", 1), /must be a function/);
        """,
        server.url,
    )


# --- what it withstands -----------------------------------------------------------------------------------------

TARGET = """
    const server = await connect({ client_id: "target" });
    const heard = [];
    console.warn = () => {};
    server.on("force-exit", (event) => heard.push(event));
    const [never, unsendable] = [() => new Promise(() => {}), { at: Symbol("x") }];
    const odd = () => { throw Object.create(null); };
    const count = () => heard.length;
    await server.registerService({ id: "svc", echo: (x) => x, call: (f) => f(1), heard: count, never, odd });
    await server.registerService({ id: "unsendable", value: unsendable });
    console.log("ready", server.config.workspace, await server.generateToken());
    await new Promise(() => {});
"""

BAD_VALUES: list[Any] = [
    {"_rtype": "method"},
    {"_rtype": "method", "_rtarget": 1, "_rmethod": {}},
    {"_rtype": "generator", "_rtarget": "x"},
    {"_rtype": "set"},
    {"_rtype": "set", "_rvalue": 3},
    {"_rtype": "orderedmap", "_rvalue": [1]},
    {"_rtype": "memoryview"},
    {"_rtype": "memoryview", "_rvalue": ["x"]},
    {"_rtype": "typedarray", "_rvalue": b"abc", "_rdtype": "int32"},
    {"_rtype": "typedarray", "_rvalue": None, "_rdtype": "int8"},
]

WORDS = [
    "method",
    "services.svc.echo",
    "services.built-in.ping",
    "x.resolve",
    "*",
    "services.svc.__proto__",
    b"",
    "a.b",
]
KEYS = ["type", "method", "session", "parent", "args", "with_kwargs", "promise", "t", "resolve", "_rtype", "_rvalue"]


def scrambled(luck: random.Random, depth: int = 4) -> Any:
    """A value of those that mean something."""
    kind = luck.randrange(8 if depth else 5)
    if kind < 3:
        return luck.choice(WORDS)
    if kind < 5:
        return luck.choice([None, True, -1, 2**63, 0.5, "set", "ndarray", "error", "orderedmap", "generator"])
    if kind < 6:
        return [scrambled(luck, depth - 1) for _ in range(luck.randrange(4))]
    return {luck.choice(KEYS): scrambled(luck, depth - 1) for _ in range(luck.randrange(6))}


async def test_nothing_that_another_client_sends_ends_it(start_javascript: StartJavascript, server: Server) -> None:
    async with start_javascript(TARGET, server.url, library="hypha") as running:
        workspace, token = (await running.wait_for(r"^ready (\S+) (\S+)$")).groups()
        target = f"{workspace}/target"
        async with raw.connected(server.url, workspace=workspace, token=token) as peer:
            assert await peer.call(target, "services.svc.echo", [1, "x"]) == [1, "x"]
            for value in BAD_VALUES:
                with raw.refused(""):
                    await peer.call(target, "services.svc.echo", value)
            for path in ("__proto__.echo", "svc.constructor", "svc.echo.call", "svc.", "", "svc.__proto__.x"):
                with raw.refused(""):  # by the server, or here
                    await peer.call(target, f"services.{path}")
            for name in ("toString", "message_cache.constructor", "message_cache.", "cancel"):
                with raw.refused(""):  # the server knows some of them
                    await peer.call(target, f"services.built-in.{name}", "key", False)
            luck = random.Random(7)
            for _ in range(500):
                main = {"type": luck.choice(["method", "news", "force-exit"]), "to": target}
                main |= {luck.choice(KEYS[1:]): scrambled(luck) for _ in range(3)}
                await peer.send(main, *[scrambled(luck) for _ in range(luck.randrange(3))])
            main = msgpack.packb({"type": "method", "to": target, "method": "services.svc.echo", "session": "s"})
            for tail in (
                b"\xc1",
                b"\xdd\xff\xff\xff\xff",
                b"\x91" * 100_000,
                b"\x81\xa4args\x91" * 30_000,
                os.urandom(500),
            ):
                await peer.websocket.send_message(main + tail)
            for interval, beat in ((1e-9, "s.heartbeat"), (1.0, 5), ("x", None)):
                body = peer.body("beats")
                body["promise"] |= {"heartbeat": {"_rtype": "method", "_rmethod": beat}, "interval": interval}
                await peer.send(raw.header(target, "services.svc.never", "beats"), body)
            for _ in range(50):
                await peer.call(target, "services.svc.echo", 1)
            assert len([message for message in peer.received if message.get("method") == "s.heartbeat"]) < 20
            with raw.refused("Object"):
                await peer.call(target, "services.svc.odd")
            with raw.refused("symbol"):
                await peer.call(target, "services.built-in.get_service", "unsendable")
            # What it says of who sends an event, and to whom, is the server's word.
            await peer.send({"type": "force-exit", "to": target}, {"from": "*/manager", "reason": "a lie"})
            with trio.fail_after(raw.PATIENCE):
                assert await peer.call(target, "services.svc.heard") >= 1
            with pytest.raises(Refused):
                await peer.call(target, "services.svc.call", "not a function")
            assert await peer.call(target, "services.svc.echo", "still") == "still"


@pytest.mark.parametrize("error", [None, 3, "text", {}, {"_rvalue": {"toString": 1}, "_rtrace": {"toString": 1}}, []])
async def test_every_kind_of_error_ends_the_call(run: Run, server: Server, error: Any) -> None:
    async with raw.connected(server.url) as peer, trio.open_nursery() as nursery:
        peer.silent = True

        async def refuse() -> None:
            asked = await peer.message(lambda message: message.get("method") == "cb.f")
            await peer.send(raw.header(asked["from"], f"{asked['session']}.reject"), {"args": [error]})

        nursery.start_soon(refuse)
        token = await peer.call(raw.MANAGER, "services.default.generate_token")
        script = """
            const [workspace, token, name] = args;
            const server = await connect({ workspace, token });
            await server.registerService({ id: "svc", hear: (callback) => assert.rejects(callback(), /RemoteError/) });
            const map = { _rtype: "method", _rtarget: name, _rmethod: "cb.f", _rpromise: true };
            const { hear } = await server.getService("svc");
            await hear(map);
        """
        await run(script, server.url, peer.workspace, token, peer.name)


async def test_answers_are_taken_only_from_whom_was_asked(start_javascript: StartJavascript, server: Server) -> None:
    script = """
        const server = await connect({ client_id: "target" });
        await server.registerService({ id: "ask", ask: (callback) => callback("secret") });
        console.log("ready", server.config.workspace, await server.generateToken());
        await new Promise(() => {});
    """
    async with start_javascript(script, server.url, library="hypha") as running:
        workspace, token = (await running.wait_for(r"^ready (\S+) (\S+)$")).groups()
        target = f"{workspace}/target"
        async with (
            raw.connected(server.url, workspace=workspace, token=token) as honest,
            raw.connected(server.url, workspace=workspace, token=token) as rogue,
        ):
            honest.silent = True
            callback = {"_rtype": "method", "_rtarget": honest.client, "_rmethod": "cb.f", "_rpromise": True}
            await honest.send(raw.header(target, "services.ask.ask", "s1"), honest.body("s1", [callback]))
            asked = await honest.message(lambda message: message.get("method") == "cb.f")
            answer = {"args": ["forged"]}
            await rogue.send(raw.header(target, f"{asked['session']}.resolve"), answer)
            assert await rogue.call(target, "services.built-in.ping", "ping") == "pong"
            await honest.send(raw.header(target, f"{asked['session']}.resolve"), {"args": ["true"]})
            assert await honest.answer("s1") == "true"


async def test_messages_in_parts_from_who_does_not_keep_the_rules(
    start_javascript: StartJavascript, server: Server
) -> None:
    async with start_javascript(TARGET, server.url, library="hypha") as running:
        workspace, token = (await running.wait_for(r"^ready (\S+) (\S+)$")).groups()
        target = f"{workspace}/target"
        async with raw.connected(server.url, workspace=workspace, token=token) as peer:
            package = msgpack.packb(raw.header(target, "services.svc.echo", "big"))
            await peer.send_in_parts(target, package + msgpack.packb(peer.body("big", ["x" * 2000])))
            assert await peer.answer("big") == "x" * 2000
            with raw.refused("session does not exist anymore"):
                await peer.call(target, "services.built-in.message_cache.create", "key", True)
            for number in range(64):
                await peer.cache(target, "create", f"open{number}")
            with raw.refused("64 messages"):
                await peer.cache(target, "create", "one too many")
            for number in range(1, 64):  # of the first one the server knows nothing any more
                await peer.cache(target, "remove", f"open{number}")
            assert await peer.call(target, "services.svc.echo", 1) == 1


# --- beside our client for trio ---------------------------------------------------------------------------------


@pytest.mark.slow
async def test_trio_and_javascript_send_large_parts_to_each_other(
    start_javascript: StartJavascript, server: Server
) -> None:
    async with start_javascript(TARGET, server.url, library="hypha") as running:
        workspace, token = (await running.wait_for(r"^ready (\S+) (\S+)$")).groups()
        async with connect_to_server({"server_url": server.url, "workspace": workspace, "token": token}) as user:
            service = await user.get_service("svc")
            data = bytes(range(250)) * 50_000
            began = trio.current_time()
            assert await service.echo(data) == data
            print(f"12.5 MB there and back in {trio.current_time() - began:.2f} s")

            async def echo(number: int) -> bytes:
                await trio.lowlevel.checkpoint()
                return data

            assert await service.call(echo) == data


# --- coming back ------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_the_whole_server_is_killed_and_comes_back(
    start_javascript: StartJavascript, nursery: trio.Nursery, tmp_path: Path
) -> None:
    script = """
        const server = await connect({ client_id: "survivor" });
        await server.registerService({ id: "svc", config: { visibility: "public" }, hello: () => "hello" });
        server.on("disconnected", () => console.log("lost"));
        server.on("connected", () => console.log("again"));
        console.log("ready");
        await new Promise(() => {});
    """
    async with (
        serving(nursery, tmp_path, "0") as (first, url),
        start_javascript(script, url, library="hypha") as running,
    ):
        await running.wait_for(r"^ready$")
        first.kill_group()
        await running.wait_for("^lost$")
        async with serving(nursery, tmp_path, url.rpartition(":")[2]):
            await running.wait_for("^again$")
            async with connect_to_server({"server_url": url}) as user:
                assert await (await user.get_service("svc")).hello() == "hello"


@asynccontextmanager
async def serving(nursery: trio.Nursery, directory: Path, port: str) -> AsyncIterator[tuple[Running, str]]:
    """A server that may be killed, and its address."""
    command = [sys.executable, "-m", "hypha.server", "--port", port]
    async with processes.start(nursery, command, cwd=directory) as running:
        yield running, (await running.wait_for(r"^ +open +(http://\S+)"))[1]


# --- the documentation ------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_the_example_for_node_runs_and_ends_by_itself(
    node: str, nursery: trio.Nursery, server: Server, tmp_path: Path
) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{server.url}/assets/hypha-rpc-websocket.js")
    (tmp_path / "hypha-rpc-websocket.js").write_bytes(answer.content)
    (tmp_path / "hello.js").write_text(
        examples("docs/javascript.md")["node"].replace("http://localhost:9000", server.url)
    )
    modules = {"NODE_PATH": str(npm.modules())}
    result = await processes.run(nursery, [node, "hello.js"], cwd=tmp_path, environ=modules, seconds=20)
    assert result.stdout.splitlines() == ["sum 42", "step 0", "step 1", "step 2"], result.stderr
    assert result.returncode == 0


WITHOUT_WS = """
    const { connectToServer } = require(process.argv[2]);
    connectToServer({ server_url: process.argv[3] }).then(
      async (server) => {
        console.log(await server.echo("it is Node's own"));
        await server.disconnect();
      },
      (error) => console.log(error.message),
    );
"""


@pytest.mark.slow
async def test_the_websocket_of_node_itself_will_do(
    node: str, nursery: trio.Nursery, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "script.js").write_text(WITHOUT_WS)
    flag = "--experimental-websocket"  # of no effect since version 22, which has one without it
    probe = [node, "-p", f"process.allowedNodeEnvironmentFlags.has('{flag}')"]
    with_it = (await processes.run(nursery, probe, cwd=tmp_path, seconds=20)).stdout == "true\n"
    command = [node, *([flag] if with_it else []), "script.js", str(SOURCE), server.url]
    result = await processes.run(nursery, command, cwd=tmp_path, seconds=20)
    without = "there is no WebSocket here: in Node before 22 give that of the package ws"
    assert result.stdout.splitlines() == ["it is Node's own" if with_it else without], result.stderr


def test_no_client_has_a_line_that_nobody_can_read() -> None:
    assert [line for line in SOURCE.read_text().splitlines() if len(line) > 120] == []
