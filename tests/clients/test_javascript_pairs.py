"""The JavaScript clients, Bj, Cj and our own, call the Python ones, A, Bp and Cp, and are called by them (row 31).

In both directions, inside one workspace and from another one: values, callbacks, errors, the caller's context, and
messages that are too large for one frame. What gets lost on the way between the two languages is lost in the clients,
and asserted as it is.
"""

from __future__ import annotations

from itertools import permutations

import pytest

from tests.clients.conftest import RunClient, RunJavascript, StartClient, StartJavascript
from tests.house.environments import GENERATIONS, MODERN
from tests.house.processes import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("place", ["inside", "outside"]),
]
every_python = pytest.mark.parametrize("generation", [*GENERATIONS, MODERN])
every_javascript = pytest.mark.parametrize("library", ["imjoy-rpc", "hypha-rpc", "hypha"])

PYTHON_PROVIDER = """
    import asyncio, sys
    import numpy as np
    try:
        from imjoy_rpc.hypha import connect_to_server
    except ModuleNotFoundError:
        from hypha_rpc import connect_to_server

    async def each(items, callback):
        return [await callback(item) for item in items]

    async def fails(text):
        raise ValueError(text)

    def fails_at_once(text):
        raise ValueError(text)

    def describe(value):
        shape = list(value.shape) if isinstance(value, np.ndarray) else None
        return [type(value).__name__, shape, len(value)]

    async def main(url, service_id):
        server = await connect_to_server({"server_url": url, "client_id": "python"})
        await server.register_service(
            {
                "id": service_id,
                "config": {"visibility": "public", "require_context": ["who"]},
                "echo": lambda value: value,
                "describe": describe,
                "make": lambda size: (bytes(range(251)) * (size // 251 + 1))[:size],
                "array": lambda: np.arange(6, dtype="float32").reshape(2, 3),
                "each": each,
                "fails": fails,
                "fails_at_once": fails_at_once,
                "options": lambda first, second=2, **more: [first, second, more],
                "who": lambda word, context=None: [word, context],
                "nested": {"deeper": {"add": lambda a, b: a + b}},
            }
        )
        print("ready", server.config.workspace, await server.generate_token(), flush=True)
        await asyncio.Event().wait()

    asyncio.run(main(*sys.argv[1:]))
"""

JAVASCRIPT_CALLER = """
    const [id, place, workspace, token] = args;
    const server = await connect(place === "inside" ? { workspace, token } : {});
    const svc = await server.getService(id);
    const isLegacy = "get_connection_info" in server;
    const user = isLegacy ? (await server.get_connection_info()).user_info : server.config.user;
    const plain = [null, true, 0, -1, 2 ** 53 - 1, 0.5, "Grüße 🧪", [[]], { a: { b: 1 } }, new Uint8Array([0, 255])];
    assert.deepEqual(await svc.echo(plain), plain);
    assert.deepEqual(await svc.echo(new Set([1, "2"])), new Set([1, "2"]));
    assert.deepEqual(await svc.echo(new Uint8Array([1, 2]).buffer), new Uint8Array([1, 2]).buffer);
    // A Map comes back as an object, and arrays as the map that encodes them: no array library is loaded here.
    assert.deepEqual(await svc.echo(new Map([["a", 1]])), { a: 1 });
    assert.deepEqual(await svc.describe(new Map([["a", 1]])), ["OrderedDict", null, 1]);
    assert.deepEqual(await svc.describe(new Float32Array([1, 2, 3])), ["ndarray", [3], 3]);
    const array = await svc.array();
    assert.deepEqual([array._rtype, array._rdtype, array._rshape], ["ndarray", "float32", [2, 3]]);
    assert.deepEqual(new Float32Array(array._rvalue.slice().buffer), new Float32Array([0, 1, 2, 3, 4, 5]));

    assert.equal(await svc.nested.deeper.add(2, 3), 5);
    assert.deepEqual(await svc.options(1, { second: 3, third: 4, _rkwargs: true }), [1, 3, { third: 4 }]);
    assert.deepEqual(await svc.each([1, 2], async (x) => x * 10), [10, 20]);
    await assert.rejects(svc.each([1], async () => { throw new Error("from the callback"); }), /from the callback/);
    await assert.rejects(svc.fails("boom-123"), /RemoteError: [^]*boom-123/);
    await assert.rejects(svc.fails_at_once("boom-456"), /RemoteError: [^]*boom-456/);

    const [word, context] = await svc.who("word");
    assert.equal(word, "word");
    assert.equal(context.from, `${server.config.workspace}/${server.config.client_id}`);
    assert.equal(context.to, `${workspace}/python`);
    assert.equal(context.user.id, user.id);

    for (const size of [900_000, 12_000_000]) {
      const bytes = new Uint8Array(size).map((_, index) => index % 251);
      const same = (array) => assert.ok(Buffer.from(array).equals(Buffer.from(bytes)));
      same(await svc.make(size));
      assert.deepEqual(await svc.describe(bytes), ["bytes", null, size]);
      same((await svc.each([bytes], async (x) => x))[0]);
    }
"""


@every_javascript
@every_python
async def test_row_31_javascript_calls_python(
    start_client: StartClient, run_javascript: RunJavascript, server: Server, generation: str, library: str, place: str
) -> None:
    service_id = f"python-{generation}-{library}-{place}".replace(".", "-")
    async with start_client(generation, PYTHON_PROVIDER, server.url, service_id) as worker:
        workspace, token = (await worker.wait_for(r"^ready (\S+) (\S+)$")).groups()
        arguments = (service_id, place, workspace, token)
        await run_javascript(JAVASCRIPT_CALLER, server.url, *arguments, library=library, seconds=60)


JAVASCRIPT_PROVIDER = """
    const server = await connect({ client_id: "javascript" });
    await server.registerService({
      id: args[0],
      config: { visibility: "public", require_context: ["who"] },
      echo: (value) => value,
      describe: (value) => [value.constructor.name, value.length],
      make: (size) => new Uint8Array(size).map((_, index) => index % 251),
      array: () => new Float32Array([0, 1, 2]),
      map: () => new Map([["a", 1], ["b", 2]]),
      date: () => new Date(0),
      async each(items, callback) {
        const answers = [];
        for (const item of items) answers.push(await callback(item));
        return answers;
      },
      async fails(text) { throw new TypeError(text); },
      failsAtOnce() { throw new TypeError("at once"); },
      arguments: (...given) => given,
      who: (word, context) => [word, context],
      nested: { deeper: { add: (a, b) => a + b } },
    });
    console.log("ready", server.config.workspace, await server.generateToken());
    await new Promise(() => {});
"""

PYTHON_CALLER = """
    import asyncio, sys, time
    import numpy as np
    try:
        from imjoy_rpc.hypha import connect_to_server
    except ModuleNotFoundError:
        from hypha_rpc import connect_to_server

    async def raises(call, *texts):
        try:
            value = await call
        except Exception as error:
            assert all(text in str(error) for text in texts), error
        else:
            raise AssertionError(f"no error but {value!r}")

    async def values(svc):
        plain = [None, True, 0, -1, 2**53 - 1, 0.5, "Grüße 🧪", [[]], {"a": {"b": 1}}, b"\\0\\xff"]
        assert await svc.echo(plain) == plain
        assert await svc.echo((1, 2)) == [1, 2]
        assert await svc.echo({1, "2"}) == {1, "2"}
        assert await svc.echo(memoryview(b"ab")) == b"ab"
        array = np.arange(6, dtype="int16").reshape(2, 3)
        back = await svc.echo(array)
        assert (back == array).all() and back.dtype == array.dtype
        assert await svc.describe(b"abc") == ["Uint8Array", 3]
        floats = await svc.array()
        assert floats.dtype == "float32" and floats.tolist() == [0, 1, 2]
        assert list((await svc.map()).items()) == [("a", 1), ("b", 2)]
        assert (await svc.date()).to_unix() == 0

    async def functions(svc, library):
        assert await svc.nested.deeper.add(2, 3) == 5
        if library == "imjoy-rpc":  # keyword arguments arrive as one map at the end (4.5)
            assert await svc.arguments(1, second=2) == [1, {"second": 2}]
        else:  # by the names of the parameters
            assert await svc.nested.deeper.add(a=2, b=3) == 5

        async def times_ten(x):
            return x * 10

        assert await svc.each([1, 2], times_ten) == [10, 20]
        assert await svc.each([1, 2], lambda x: x + 1) == [2, 3]

        async def failing(x):
            raise ValueError("from the callback")

        await raises(svc.each([1], failing), "from the callback")
        await raises(svc.fails("boom-123"), "TypeError: boom-123")

    async def context(server, svc, workspace):
        word, context = await svc.who("word")
        assert word == "word"
        assert context["from"] == f"{server.config.workspace}/{server.rpc._client_id}"
        assert context["to"] == f"{workspace}/javascript"
        user = server.config.get("user") or (await server.get_connection_info())["user_info"]
        assert context["user"]["id"] == user["id"]

    async def large(svc):
        for size in (900_000, 12_000_000):
            data = (bytes(range(251)) * (size // 251 + 1))[:size]
            assert await svc.make(size) == data
            assert await svc.each([1], lambda x: data) == [data]
            assert await svc.describe(data) == ["Uint8Array", size]
            assert (await svc.echo(np.frombuffer(data, "uint8"))).tobytes() == data

    async def main(url, library, service_id, place, workspace, token):
        login = {"workspace": workspace, "token": token} if place == "inside" else {}
        server = await connect_to_server({"server_url": url, **login})
        svc = await server.get_service(service_id)
        await values(svc)
        await functions(svc, library)
        await context(server, svc, workspace)
        await large(svc)
        await server.disconnect()
        hasty = await connect_to_server({"server_url": url, "method_timeout": 1})
        svc = await hasty.get_service(service_id)
        # Bj never answers then (11.10).
        await raises(svc.failsAtOnce(), "Method call time" if library == "imjoy-rpc" else "TypeError: at once")
        await hasty.disconnect()

    asyncio.run(main(*sys.argv[1:]))
"""


@every_javascript
@every_python
async def test_row_31_python_calls_javascript(
    start_javascript: StartJavascript, run_client: RunClient, server: Server, generation: str, library: str, place: str
) -> None:
    service_id = f"javascript-{generation}-{library}-{place}".replace(".", "-")
    async with start_javascript(JAVASCRIPT_PROVIDER, server.url, service_id, library=library) as worker:
        workspace, token = (await worker.wait_for(r"^ready (\S+) (\S+)$")).groups()
        arguments = (library, service_id, place, workspace, token)
        result = await run_client(generation, PYTHON_CALLER, server.url, *arguments, seconds=60)
    assert result.returncode == 0, f"{result.stdout}{result.stderr}{worker.report()}"


JAVASCRIPT_NEIGHBOUR = """
    const [id, place, workspace, token] = args;
    const server = await connect(place === "inside" ? { workspace, token } : {});
    const svc = await server.getService(id);
    const values = [null, true, 0, -1, 2 ** 53 - 1, 0.5, "Grüße 🧪", [[]], { a: { b: 1 } }, new Uint8Array([0, 255]),
      new Set([1, "2"]), new Map([["a", 1]]), new Float32Array([1, 2, 3]), new Date(0)];
    assert.deepEqual(await svc.echo(values), values);  // in a list: Bj never gets an answer to a call that ends in null
    assert.equal(await svc.nested.deeper.add(2, 3), 5);
    assert.deepEqual(await svc.each([1, 2], async (x) => x * 10), [10, 20]);
    await assert.rejects(svc.each([1], async () => { throw new Error("from the callback"); }), /from the callback/);
    await assert.rejects(svc.fails("boom-123"), /RemoteError: [^]*TypeError: boom-123/);
    const [word, context] = await svc.who("word");
    assert.equal(word, "word");
    assert.equal(context.from, `${server.config.workspace}/${server.config.client_id}`);
    assert.equal(context.to, `${workspace}/javascript`);
    const bytes = new Uint8Array(12_000_000).map((_, index) => index % 251);
    const same = (array) => assert.ok(Buffer.from(array).equals(Buffer.from(bytes)));
    same(await svc.make(bytes.length));
    assert.deepEqual(await svc.describe(bytes), ["Uint8Array", bytes.length]);
    same((await svc.each([bytes], async (x) => x))[0]);
"""


@pytest.mark.parametrize(("library", "other"), list(permutations(["imjoy-rpc", "hypha-rpc", "hypha"], 2)))
async def test_row_31_javascript_calls_javascript(
    start_javascript: StartJavascript,
    run_javascript: RunJavascript,
    server: Server,
    library: str,
    other: str,
    place: str,
) -> None:
    service_id = f"neighbour-{other}-{place}"
    async with start_javascript(JAVASCRIPT_PROVIDER, server.url, service_id, library=other) as worker:
        workspace, token = (await worker.wait_for(r"^ready (\S+) (\S+)$")).groups()
        arguments = (service_id, place, workspace, token)
        await run_javascript(JAVASCRIPT_NEIGHBOUR, server.url, *arguments, library=library, seconds=60)


STREAMING_PYTHON = """
    import asyncio, sys
    from hypha_rpc import connect_to_server

    async def main(url, role, service_id, workspace="", token=""):
        settings = {"workspace": workspace, "token": token} if token else {}
        server = await connect_to_server({"server_url": url, **settings})
        if role == "caller":
            service = await server.get_service(service_id)
            for function in (service.later, service.at_once):
                assert [number async for number in await function(4)] == [0, 1, 2, 3]
            async for number in await service.later(10**9):
                if number == 2:
                    break
            while not await service.is_closed():
                pass
            await server.disconnect()
            return
        closed = asyncio.Event()

        async def later(upto):
            try:
                for number in range(upto):
                    yield number
            finally:
                closed.set()

        def at_once(upto):
            yield from range(upto)

        def is_closed():
            return closed.is_set()

        functions = {"later": later, "at_once": at_once, "is_closed": is_closed}
        await server.register_service({"id": service_id, "config": {"visibility": "public"}, **functions})
        print("ready", server.config.workspace, await server.generate_token(), flush=True)
        await asyncio.Event().wait()

    asyncio.run(main(*sys.argv[1:]))
"""

STREAMING_JAVASCRIPT = """
    const [role, id, workspace, token] = args;
    const server = await connect(token ? { workspace, token } : {});
    if (role === "caller") {
      const svc = await server.getService(id);
      for (const name of ["later", "at_once"]) {
        const heard = [];
        for await (const item of await svc[name](4)) heard.push(item);
        assert.deepEqual(heard, [0, 1, 2, 3]);
      }
      for await (const item of await svc.later(1e9)) if (item === 2) break;
      await until(() => svc.is_closed());
      return;
    }
    let closed = false;
    await server.registerService({
      id,
      config: { visibility: "public" },
      async *later(upto) { try { for (let i = 0; i < upto; i++) yield i; } finally { closed = true; } },
      *at_once(upto) { for (let i = 0; i < upto; i++) yield i; },
      is_closed: () => closed,
    });
    console.log("ready", server.config.workspace, await server.generateToken());
    await new Promise(() => {});
"""


@pytest.mark.parametrize("library", ["hypha-rpc", "hypha"])
@pytest.mark.parametrize("caller", ["python", "javascript"])
async def test_row_31_generators_pass_between_the_modern_clients(
    caller: str,
    library: str,
    place: str,
    start_client: StartClient,
    run_client: RunClient,
    start_javascript: StartJavascript,
    run_javascript: RunJavascript,
    server: Server,
) -> None:
    """Items, the end, and leaving one early, which closes it at its provider."""
    service_id = f"stream-{caller}-{library}-{place}"
    if caller == "javascript":
        provider = start_client(MODERN, STREAMING_PYTHON, server.url, "provider", service_id)
    else:
        provider = start_javascript(STREAMING_JAVASCRIPT, server.url, "provider", service_id, library=library)
    async with provider as worker:
        login = (await worker.wait_for(r"^ready (\S+) (\S+)$")).groups() if place == "inside" else ()
        if place == "outside":
            await worker.wait_for("^ready")
        arguments = ("caller", service_id, *login)
        if caller == "javascript":
            await run_javascript(STREAMING_JAVASCRIPT, server.url, *arguments, library=library)
        else:
            result = await run_client(MODERN, STREAMING_PYTHON, server.url, *arguments)
            assert result.returncode == 0, f"{result.stdout}{result.stderr}{worker.report()}"
