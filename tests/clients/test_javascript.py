"""Rows 1 to 16 of ``protocol.md`` section 12 for Bj, the published JavaScript client, in Node.

Row 15 (no text frame) is held by every test that runs a script: ``js/run.js`` fails it. What Bj itself does wrong is
asserted as it is, because users see it: synchronous errors are never rejected (11.10).
"""

from __future__ import annotations

import signal

import pytest
import trio

from tests.clients.conftest import RunJavascript, StartJavascript, StartServer
from tests.house.processes import Server


async def test_row_01_every_form_of_the_address_connects_to_a_workspace_of_its_own(
    run_javascript: RunJavascript, server: Server
) -> None:
    await run_javascript(
        """
        const websocket = url.replace("http", "ws") + "/ws";
        const servers = [await connect(), await connect({ server_url: url + "/" })];
        servers.push(await connect({ server_url: websocket }), await connect({ client_id: "named" }));
        const workspaces = new Set(servers.map((server) => server.config.workspace));
        assert.equal(workspaces.size, 4);
        assert.ok([...workspaces].every((workspace) => typeof workspace === "string" && workspace));
        assert.equal(servers[3].config.client_id, "named");
        assert.deepEqual(await servers[3].list_clients(), ["workspace-manager", "named"]);
        """,
        server.url,
    )


async def test_row_01_a_client_id_of_any_letters(run_javascript: RunJavascript, server: Server) -> None:
    await run_javascript(
        """
        const client_id = "Grüße + 世界";
        const server = await connect({ client_id });
        const info = await server.register_service({ id: "svc", hello: () => "hello" });
        assert.equal(info.id, `${server.config.workspace}/${client_id}:svc`);
        assert.deepEqual(await server.list_clients(), ["workspace-manager", client_id]);
        assert.equal(await (await server.get_service(info.id)).hello(), "hello");
        """,
        server.url,
    )


async def test_row_01_below_a_base_path(run_javascript: RunJavascript, start_server: StartServer) -> None:
    with start_server("--base-path", "/lab") as server:
        assert server.url.endswith("/lab")
        await run_javascript("assert.ok((await connect()).config.workspace);", server.url)


async def test_row_02_echo_and_log(run_javascript: RunJavascript, server: Server) -> None:
    await run_javascript(
        """
        const server = await connect();
        assert.equal(await server.echo("x"), "x");
        for (const level of ["log", "info", "warning", "error", "critical"])
          assert.equal(await server[level]("a word from JavaScript"), null);
        """,
        server.url,
    )
    assert "a word from JavaScript" in server.log.read_text()


async def test_row_03_a_token_lets_a_second_client_into_the_workspace(
    run_javascript: RunJavascript, server: Server
) -> None:
    await run_javascript(
        """
        const owner = await connect({ client_id: "owner" });
        const { workspace } = owner.config;
        await owner.registerService({ id: "svc", hello: () => "hello" });
        const token = await owner.generate_token();
        assert.match(token, /^[^@]+@imjoy@[^@]+$/);

        const guest = await connect({ client_id: "guest", workspace, token });
        assert.equal(guest.config.workspace, workspace);
        assert.deepEqual((await guest.list_services()).map((service) => service.id), [`${workspace}/owner:svc`]);
        assert.deepEqual(await guest.listServices(), await guest.list_services());
        assert.deepEqual(await guest.list_clients(), ["workspace-manager", "owner", "guest"]);
        const svc = await guest.get_service("svc");
        assert.equal(await svc.hello(), "hello");
        """,
        server.url,
    )


async def test_row_04_refusals_are_told_within_a_second(run_javascript: RunJavascript, server: Server) -> None:
    result = await run_javascript(
        """
        const owner = await connect({ client_id: "owner" });
        const { workspace } = owner.config;
        const token = await owner.generate_token();
        const refusals = {
          "a bad token": { token: "nonsense" },
          "a forged token": { token: token.slice(0, -4) + "AAAA", workspace },
          "an unknown workspace": { workspace: "no-such-workspace" },
          "the workspace test": { workspace: "test" },
          "the workspace public": { workspace: "public" },
          "a workspace of somebody else": { workspace },
          "a client id that is connected": { client_id: "owner", workspace, token },
          "a client id that is no name": { client_id: "a:b" },
        };
        for (const [what, config] of Object.entries(refusals)) {
          const started = performance.now();
          await assert.rejects(connect(config), /^Error: Websocket connection failed\\.$/, what);
          assert.ok(performance.now() - started < 1000, what);
        }
        assert.equal(await owner.echo("the victim of the seventh notices nothing"), await owner.echo(
          "the victim of the seventh notices nothing"));
        """,
        server.url,
    )
    assert result.stdout.count("Unexpected server response: 403") >= 8


async def test_row_05_functions_are_callable_after_registration(run_javascript: RunJavascript, server: Server) -> None:
    await run_javascript(
        """
        const provider = await connect({ client_id: "provider" });
        const { workspace } = provider.config;
        const info = await provider.register_service({
          id: "svc",
          name: "Service",
          type: "demo",
          description: "for a test",
          config: { visibility: "protected", colour: "red" },
          hello: (name) => `Hello ${name}`,
          async slowly(name) { return `Hello ${name}`; },
          nothing: () => undefined,
          nested: { constant: 5, deeper: { add: (a, b) => a + b } },
          options: (first, options) => [first, options],
        });
        assert.deepEqual(info, {
          id: `${workspace}/provider:svc`,
          name: "Service",
          type: "demo",
          description: "for a test",
          config: { visibility: "protected", colour: "red", workspace },
        });

        const caller = await connect({ workspace, token: await provider.generate_token() });
        for (const server of [provider, caller]) {
          const svc = await server.get_service("svc");
          assert.equal(await svc.hello("x"), "Hello x");
          assert.equal(await svc.slowly("x"), "Hello x");
          assert.equal(await svc.nothing(), null);
          assert.equal(svc.nested.constant, 5);
          assert.equal(await svc.nested.deeper.add(2, 3), 5);
          // Keyword arguments stay a map at this client (4.5).
          assert.deepEqual(await svc.options(1, { a: 2, _rkwargs: true }), [1, { a: 2 }]);
          assert.deepEqual(await Promise.all([1, 2, 3].map((n) => svc.hello(n))), ["Hello 1", "Hello 2", "Hello 3"]);
        }
        assert.deepEqual(await caller.list_services({ query: { type: "demo" }, _rkwargs: true }),
          await caller.list_services({ type: "demo" }));
        """,
        server.url,
    )


async def test_row_05_a_service_id_that_nobody_could_use_is_refused(
    run_javascript: RunJavascript, server: Server
) -> None:
    await run_javascript(
        """
        const server = await connect();
        for (const id of ["a.b", "a/b", "a:b", "*"])
          await assert.rejects(server.register_service({ id, f: () => 1 }), /ValueError: .* must not contain/);
        assert.deepEqual(await server.list_services(), []);
        assert.deepEqual(Object.keys(server.rpc.get_all_local_services()), ["built-in"]);
        """,
        server.url,
    )


async def test_row_05_callbacks(run_javascript: RunJavascript, server: Server) -> None:
    await run_javascript(
        """
        const provider = await connect();
        const { workspace } = provider.config;
        await provider.register_service({
          id: "svc",
          async each(items, callback) {
            const answers = [];
            for (const item of items) answers.push(await callback(item));
            return answers;
          },
          async nested({ progress, finish }) {
            await progress(50);
            return await finish(async (x) => x * 2);
          },
          counter: () => { let n = 0; return { next: async () => ++n }; },
        });
        const caller = await connect({ workspace, token: await provider.generate_token() });
        const svc = await caller.get_service("svc");
        assert.deepEqual(await svc.each([1, 2, 3], async (x) => x * 10), [10, 20, 30]);
        await assert.rejects(svc.each([1], async () => { throw new Error("from the callback"); }), /from the callback/);

        const seen = [];
        const answer = await svc.nested({ progress: (n) => seen.push(n), finish: async (f) => 1 + (await f(4)) });
        assert.deepEqual([seen, answer], [[50], 9]);

        const counter = await svc.counter();
        assert.deepEqual([await counter.next(), await counter.next()], [1, 2]);
        """,
        server.url,
    )


async def test_row_05_an_interface_stays_callable_after_the_call(run_javascript: RunJavascript, server: Server) -> None:
    """What is marked ``_rintf`` outlives the call (3.3), also between workspaces."""
    await run_javascript(
        """
        const provider = await connect();
        const listeners = [];
        await provider.register_service({
          id: "svc-5",
          config: { visibility: "public" },
          subscribe: (listener) => void listeners.push(listener),
        });
        const caller = await connect();
        const heard = [];
        const svc = await caller.get_service("svc-5");
        await svc.subscribe({ _rintf: true, hear: (word) => { heard.push(word); return heard.length; } });
        assert.deepEqual([await listeners[0].hear("a"), await listeners[0].hear("b")], [1, 2]);
        assert.deepEqual(heard, ["a", "b"]);
        """,
        server.url,
    )


@pytest.mark.slow
async def test_row_05_exceptions(run_javascript: RunJavascript, server: Server) -> None:
    await run_javascript(
        """
        const provider = await connect();
        const { workspace } = provider.config;
        await provider.register_service({
          id: "svc",
          async fails(text) { throw new TypeError(text); },
          failsAtOnce() { throw new Error("at once"); },
        });
        const caller = await connect({ workspace, token: await provider.generate_token(), method_timeout: 1 });
        const svc = await caller.get_service("svc");
        await assert.rejects(svc.fails("boom-123"), /^Error: RemoteError: TypeError: boom-123/);
        await assert.rejects(caller.get_service("nope"), /^Error: RemoteError: IndexError: Service not found: nope/);
        // The client's own defect: only the caller's time limit ends it.
        await assert.rejects(svc.failsAtOnce(), /^Method call time out: .*services\\.svc\\.failsAtOnce$/);
        """,
        server.url,
    )


async def test_row_06_overwrite(run_javascript: RunJavascript, server: Server) -> None:
    await run_javascript(
        """
        const server = await connect();
        const service = (version) => ({ id: "svc", version: () => version });
        await server.register_service(service(1));
        await assert.rejects(server.register_service(service(2)), /Service already exists: svc/);
        assert.equal(await (await server.get_service("svc")).version(), 1);
        await server.register_service(service(3), true);
        assert.equal(await (await server.get_service("svc")).version(), 3);
        await server.registerService(service(4), { overwrite: true, _rkwargs: true });
        assert.equal(await (await server.get_service("svc")).version(), 4);
        assert.equal((await server.list_services()).length, 1);
        """,
        server.url,
    )


async def test_row_07_lists_follow_what_the_client_does_by_itself(
    run_javascript: RunJavascript, server: Server
) -> None:
    await run_javascript(
        """
        const provider = await connect({ client_id: "provider", name: "The plugin" });
        const { workspace } = provider.config;
        const other = await connect({ workspace, token: await provider.generate_token() });
        const listed = async () => (await other.list_services()).map((service) => service.id.split(":")[1]);

        await provider.rpc.register_service({ id: "local", list: [() => 1] });
        assert.deepEqual(await listed(), ["local"]);
        assert.equal(await (await other.get_service("local")).list[0](), 1);
        await provider.export({ two: () => 2, setup: async () => {} });
        assert.deepEqual(await listed(), ["local", "default"]);
        assert.equal((await other.list_services({ id: `${workspace}/provider:default` }))[0].name, "The plugin");

        const plugin = await other.getPlugin("provider");
        assert.equal(await plugin.two(), 2);
        await provider.export({ two: () => 22 });
        assert.equal(await (await other.getPlugin("provider")).two(), 22);
        assert.deepEqual((await other.listPlugins()).length, 2);

        await provider.rpc.unregister_service("local");
        assert.deepEqual(await listed(), ["default"]);
        await assert.rejects(other.get_service("local"), /Service not found: local/);
        """,
        server.url,
    )


async def test_row_08_every_form_of_a_query(run_javascript: RunJavascript, server: Server) -> None:
    await run_javascript(
        """
        const provider = await connect({ client_id: "provider" });
        const { workspace } = provider.config;
        const info = await provider.register_service({ id: "svc", type: "demo", which: () => "svc" });
        await provider.register_service({ id: "open-8", config: { visibility: "public" }, which: () => "open-8" });
        await provider.export({ which: () => "default" });
        const member = await connect({ workspace, token: await provider.generate_token() });
        const stranger = await connect();

        const full = `${workspace}/provider`;
        const forms = [
          [member, "svc", ["svc", "provider:svc", `${full}:svc`, info, { id: "svc" }, { service_id: "svc" }]],
          [member, "svc", [{ workspace, id: "svc" }, { client_id: "provider", id: "svc" }, { id: "provider:svc" }]],
          [member, "svc", [{ id: "svc", workspace, client_id: "provider", name: "ignored", config: {}, flags: [] }]],
          [member, "default", [full, "provider:default", { client_id: "provider" }]],
          [stranger, "open-8", ["open-8", `${full}:open-8`, { id: "open-8" }, { workspace, id: "open-8" }]],
          [stranger, "open-8", [{ workspace, client_id: "provider", service_id: "open-8" }]],
        ];
        for (const [server, expected, queries] of forms)
          for (const query of queries)
            assert.equal(await (await server.get_service(query)).which(), expected, JSON.stringify(query));

        const refused = [
          [member, "nope", /IndexError: Service not found: nope/],
          [member, { id: "nope", type: "demo" }, /IndexError: Service not found: nope/],
          [member, "nobody:svc", /Client not found: nobody/],
          [member, { client_id: "nobody", id: "svc" }, /Client not found: nobody/],
          [stranger, "svc", /Service not found: svc/],
          [stranger, `${full}:svc`, /Permission denied for service: svc/],
          [stranger, `${full}:nope`, /Permission denied for service: nope/],
          [stranger, { workspace, id: "svc" }, /Permission denied for service: svc/],
        ];
        for (const [server, query, text] of refused)
          await assert.rejects(server.getService(query), text, JSON.stringify(query));
        """,
        server.url,
    )


async def test_row_09_a_protected_service_is_closed_to_other_workspaces(
    run_javascript: RunJavascript, server: Server
) -> None:
    await run_javascript(
        """
        let calls = 0;
        const provider = await connect({ client_id: "provider" });
        const { workspace } = provider.config;
        const secret = () => ++calls;
        await provider.register_service({ id: "secret", config: { visibility: "protected" }, secret });
        await provider.register_service({ id: "unsaid", secret });
        await provider.register_service({ id: "open-9", config: { visibility: "public" }, hello: () => "hello" });

        const stranger = await connect({ method_timeout: 20 });
        assert.equal(await (await stranger.get_service("open-9")).hello(), "hello");
        for (const id of ["secret", "unsaid"]) {
          await assert.rejects(stranger.get_service(`${workspace}/provider:${id}`), /Permission denied for service/);
          await assert.rejects(stranger.get_service(id), /Service not found/);
          const forged = stranger.rpc._generate_remote_method({
            _rtype: "method",
            _rtarget: `${workspace}/provider`,
            _rmethod: `services.${id}.secret`,
            _rpromise: true,
          });
          const started = performance.now();
          await assert.rejects(forged(), /Target peer .*provider is not connected/);
          assert.ok(performance.now() - started < 1000);
          // In parts: this client only logs that the last step was refused, and forgets the call.
          forged(new Uint8Array(600_000));
          await until(() => faults.length);
          assert.match(faults.pop(), /unhandled: .*Target peer .*provider is not connected/);
        }
        const listed = (await stranger.list_services("public")).map((service) => service.id);
        assert.deepEqual(listed.filter((id) => id.startsWith(workspace)), [`${workspace}/provider:open-9`]);
        assert.deepEqual(await stranger.list_services(workspace), await stranger.list_services({ workspace }));
        assert.equal(calls, 0);
        """,
        server.url,
    )


async def test_row_10_functions_see_who_calls(run_javascript: RunJavascript, server: Server) -> None:
    await run_javascript(
        """
        const provider = await connect({ client_id: "provider" });
        const { workspace } = provider.config;
        const visibility = "public";
        const whole = (...words) => words;
        await provider.register_service({ id: "all-10", config: { visibility, require_context: true }, whole });
        await provider.register_service({
          id: "some-10",
          config: { visibility, require_context: ["whole"] },
          whole,
          without: (...words) => words,
        });
        const member = await connect({ client_id: "m", workspace, token: await provider.generate_token() });
        const stranger = await connect({ client_id: "s" });
        for (const server of [member, stranger]) {
          const own = server.config.workspace;
          const info = await server.get_connection_info();
          for (const id of ["all-10", "some-10"]) {
            const svc = await server.get_service(id);
            const [word, context, ...more] = await svc.whole("word");
            assert.deepEqual([word, more], ["word", []]);
            assert.equal(context.from, `${own}/${server.config.client_id}`);
            assert.equal(context.to, `${workspace}/provider`);
            assert.equal(context.ws, own);
            assert.deepEqual(context.user, info.user_info);
            assert.equal(context.connection_type, "websocket");
          }
          const some = await server.get_service("some-10");
          assert.deepEqual(await some.without("word"), ["word"]);
        }
        """,
        server.url,
    )


async def test_row_11_values_come_back_as_they_were(run_javascript: RunJavascript, server: Server) -> None:
    await run_javascript(
        """
        const provider = await connect();
        await provider.register_service({
          id: "echo-11",
          config: { visibility: "public" },
          echo: (x) => x,
          read: async (blob) => [blob.type, await blob.text()],
          blob: () => new Blob(["from the provider"]),
        });
        const caller = await connect();
        const peer = await caller.get_service("echo-11");
        const values = {
          bytes: new Uint8Array([0, 1, 255]),
          none: new Uint8Array(0),
          floats: new Float32Array([1.5, -2, NaN]),
          doubles: new Float64Array([Math.PI]),
          shorts: new Int16Array([-32768, 32767]),
          buffer: new Uint8Array([1, 2]).buffer,
          map: new Map([["a", 1], ["b", [new Map([[2, "two"]])]]]),
          set: new Set([1, "2", null]),
          date: new Date("2024-02-29T12:34:56.789Z"),
          numbers: [0, -1, 2 ** 31, 2 ** 53 - 1, -(2 ** 53) + 1, 0.1, Infinity, NaN],
          words: ["", "Grüße, 世界 🧪", "\\u0000"],
          rest: [null, true, false, { deeper: { still: [[]] } }],
        };
        class Cat { constructor(name) { this.name = name; } }
        for (const client of [provider, caller])
          client.registerCodec({
            name: "cat",
            type: Cat,
            encoder: (cat) => ({ name: cat.name }),
            decoder: (encoded) => new Cat(encoded.name),
          });
        values.cats = [new Cat("Mia")];
        for (const echo of [caller.echo, peer.echo]) {
          assert.deepEqual(await echo(values), values);
          for (const value of Object.values(values)) assert.deepEqual(await echo(value), value);
        }
        assert.deepEqual(await peer.read(new Blob(["hello"], { type: "text/plain" })), ["text/plain", "hello"]);
        assert.equal(await (await peer.blob()).text(), "from the provider");
        """,
        server.url,
    )


@pytest.mark.slow
async def test_row_11_three_megabytes_both_ways(run_javascript: RunJavascript, server: Server) -> None:
    await run_javascript(
        """
        const bytes = new Uint8Array(3_000_000).map((_, index) => index % 251);
        const floats = new Float32Array(750_000).map((_, index) => index / 3);
        const provider = await connect();
        const { workspace } = provider.config;
        await provider.register_service({
          id: "big-11",
          config: { visibility: "public" },
          echo: (x) => x,
          size: (x) => x.length,
          make: () => floats,
          through: async (x, callback) => await callback(x),
        });
        const member = await connect({ workspace, token: await provider.generate_token() });
        const stranger = await connect();
        for (const server of [member, stranger]) {
          const svc = await server.get_service("big-11");
          assert.equal(await svc.size(bytes), bytes.length);
          assert.deepEqual(await svc.make(), floats);
          assert.deepEqual(await svc.echo({ bytes, floats }), { bytes, floats });
          assert.deepEqual(await svc.through(bytes, async (x) => x), bytes);
          assert.deepEqual(await server.echo([bytes]), [bytes]);
        }
        """,
        server.url,
    )


@pytest.mark.slow
async def test_row_12_a_call_of_25_seconds_outlives_a_limit_of_10(
    run_javascript: RunJavascript, server: Server
) -> None:
    await run_javascript(
        """
        const provider = await connect();
        await provider.register_service({
          id: "slow-12",
          config: { visibility: "public" },
          work: (seconds) => new Promise((resolve) => setTimeout(() => resolve("done"), seconds * 1000)),
        });
        const caller = await connect({ method_timeout: 10 });
        assert.equal(await (await caller.get_service("slow-12")).work(25), "done");
        """,
        server.url,
        seconds=60,
    )


@pytest.mark.slow
async def test_row_12_a_slow_answer_of_the_server_itself_outlives_the_limit(
    start_javascript: StartJavascript, server: Server
) -> None:
    """The server asks a provider that does not run for five seconds; the caller's limit is two."""
    provider = """
        const server = await connect();
        await server.register_service({ id: "frozen-12", config: { visibility: "public" }, hello: () => "hello" });
        console.log("ready");
        await new Promise(() => {});
    """
    caller = """
        const server = await connect({ method_timeout: 2 });
        const started = performance.now();
        console.log("asking");
        const svc = await server.get_service("frozen-12");
        assert.ok(performance.now() - started > 3000);
        assert.equal(await svc.hello(), "hello");
    """
    async with start_javascript(provider, server.url) as worker:
        await worker.wait_for("^ready$")
        worker.send_signal(signal.SIGSTOP)
        async with start_javascript(caller, server.url) as asker:
            await asker.wait_for("^asking$")
            await trio.sleep(5)  # the length of the call, which is what the test is about
            worker.send_signal(signal.SIGCONT)
            result = await asker.wait()
    assert result.returncode == 0, asker.report()


@pytest.mark.slow
async def test_row_13_a_cut_client_comes_back_with_its_services(run_javascript: RunJavascript, server: Server) -> None:
    """Its delay before it reconnects by itself is its ``method_timeout`` (1.6)."""
    await run_javascript(
        """
        const provider = await connect({ client_id: "provider", method_timeout: 1 });
        const { workspace } = provider.config;
        let count = 0;
        await provider.register_service({ id: "svc-13", config: { visibility: "public" }, next: () => ++count });
        const member = await connect({ workspace, token: await provider.generate_token() });
        const stranger = await connect();
        const proxies = [await member.get_service("svc-13"), await stranger.get_service("svc-13")];

        for (const wait of ["idle", "calling"]) {
          await cut(provider);
          const started = performance.now();
          // While it is away calls fail at once, and nobody finds it.
          await until(async () => (await member.list_services()).length === 0);
          await assert.rejects(proxies[0].next(), /Target peer .*provider is not connected/);
          await assert.rejects(member.get_service("svc-13"), /Service not found/);
          if (wait === "calling") assert.equal(await provider.echo("its own call brings it back"),
            "its own call brings it back");
          await until(async () => (await member.list_services()).length === 1);
          for (const svc of [...proxies, await stranger.get_service("svc-13")]) assert.ok((await svc.next()) > 0);
          assert.equal(await provider.echo("x"), "x");
          assert.ok(performance.now() - started < 5000);
        }
        assert.equal(count, 6);
        """,
        server.url,
    )


@pytest.mark.slow
async def test_row_13_a_cut_caller_goes_on_with_its_proxies(run_javascript: RunJavascript, server: Server) -> None:
    await run_javascript(
        """
        const provider = await connect();
        await provider.register_service({ id: "svc-13b", config: { visibility: "public" }, hello: () => "hello" });
        const caller = await connect({ method_timeout: 1 });
        const svc = await caller.get_service("svc-13b");
        const { workspace } = caller.config;
        await cut(caller);
        assert.equal(await svc.hello(), "hello");
        assert.equal((await caller.get_connection_info()).workspace, workspace);
        """,
        server.url,
    )


async def test_row_14_a_clean_goodbye_removes_everything_at_once(run_javascript: RunJavascript, server: Server) -> None:
    await run_javascript(
        """
        const provider = await connect({ client_id: "provider" });
        const { workspace } = provider.config;
        const token = await provider.generate_token();
        await provider.register_service({ id: "svc", hello: () => "hello", endless: () => new Promise(() => {}) });
        const member = await connect({ client_id: "member", workspace, token });
        const svc = await member.get_service("svc");
        const endless = assert.rejects(svc.endless(), /Target peer .*provider is not connected/);
        await svc.hello();

        const started = performance.now();
        await provider.disconnect();
        await endless;
        assert.deepEqual(await member.list_services(), []);
        assert.deepEqual(await member.list_clients(), ["workspace-manager", "member"]);
        await assert.rejects(svc.hello(), /Target peer .*provider is not connected/);
        await assert.rejects(member.get_service("svc"), /Service not found/);
        assert.ok(performance.now() - started < 1000);

        const again = await connect({ client_id: "provider", workspace, token });
        assert.deepEqual(await again.list_services(), []);
        """,
        server.url,
    )


@pytest.mark.slow
async def test_row_15_silence_is_met_with_pings_and_never_with_text(
    run_javascript: RunJavascript, start_server: StartServer
) -> None:
    with start_server("--limit", "ping_seconds=1", "--limit", "silence_seconds=3") as server:
        await run_javascript(
            """
            const server = await connect();
            const socket = server.rpc._connection._websocket;
            let pings = 0;
            socket.on("ping", () => ++pings);
            await until(() => pings >= 5);
            assert.equal(server.rpc._connection._websocket, socket);
            assert.equal(await server.echo("x"), "x");
            """,
            server.url,
        )


async def test_row_16_a_workspace_and_a_token_for_it(run_javascript: RunJavascript, server: Server) -> None:
    await run_javascript(
        """
        const owner = await connect();
        const name = "row-16";
        const info = await owner.create_workspace({ name, description: "of row 16", visibility: "protected" });
        assert.equal(info.name, name);
        await assert.rejects(owner.create_workspace({ name }), /Workspace row-16 already exists/);
        const token = await owner.generate_token({ scopes: [name], expires_in: 600 });

        const member = await connect({ workspace: name, token });
        assert.equal(member.config.workspace, name);
        const seen = await member.get_workspace_info();
        assert.deepEqual([seen.name, seen.description], [name, "of row 16"]);
        assert.deepEqual(await owner.getWorkspaceInfo(name), seen);
        await assert.rejects(connect({ workspace: owner.config.workspace, token }), /connection failed/);
        await assert.rejects(member.generate_token({ scopes: [owner.config.workspace] }), /no permission to workspace/);
        """,
        server.url,
    )


async def test_events_reach_one_client_of_the_own_workspace(run_javascript: RunJavascript, server: Server) -> None:
    """``protocol.md`` 5.9. The client's own ``server.emit`` is broken (11.39); what it calls is not."""
    await run_javascript(
        """
        const hearer = await connect({ client_id: "hearer" });
        const { workspace } = hearer.config;
        const member = await connect({ client_id: "member", workspace, token: await hearer.generate_token() });
        const stranger = await connect();
        const heard = [];
        hearer.on("news", (event) => heard.push(event));
        const to = `${workspace}/hearer`;

        await assert.rejects(member.emit({ type: "news", to }), /type is not defined/);
        await stranger.rpc.emit({ type: "news", to, text: "from a stranger" });
        assert.equal(await stranger.echo("has arrived"), "has arrived");
        await member.rpc.emit({ type: "news", to, text: "from a member", from: "somebody/else" });
        await until(() => heard.length);
        assert.deepEqual(heard.map(({ type, text, from, ws }) => ({ type, text, from, ws })), [
          { type: "news", text: "from a member", from: `${workspace}/member`, ws: workspace },
        ]);
        """,
        server.url,
    )
