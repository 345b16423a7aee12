"""Web applications that JavaScript programs serve, and JavaScript and Python programs that launch server apps."""

from __future__ import annotations

import hashlib
import json

import httpx
import pytest
import trio
from wsproto.events import BytesMessage, CloseConnection, TextMessage

from tests.clients.conftest import RunClient, RunJavascript, StartJavascript, StartServer
from tests.house.environments import GENERATIONS, MODERN
from tests.house.processes import Server
from tests.web import wires

pytestmark = [pytest.mark.slow, pytest.mark.deadline(60)]

LIBRARIES = ("imjoy-rpc", "hypha-rpc", "hypha")
MIB = 2**20

PROVIDER = """
    const server = await connect();
    const config = { visibility: "public" };
    const bytes = (text) => new TextEncoder().encode(text);
    const text = (part) => new TextDecoder().decode(part);

    async function answer({ scope, receive, send }) {
      const parts = [];
      for (let more = true; more; ) {
        const event = await receive();
        if (event.type === "http.disconnect") return;
        parts.push(...new Uint8Array(event.body));
        more = event.more_body;
      }
      const whole = await crypto.subtle.digest("SHA-256", Uint8Array.from(parts));
      const digest = [...new Uint8Array(whole)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
      const headers = Object.fromEntries(scope.headers.map(([name, value]) => [text(name), text(value)]));
      const told = { path: scope.path, root: scope.root_path, method: scope.method, own: headers["x-own"] };
      await send({ type: "http.response.start", status: 201, headers: [[bytes("content-type"), bytes("text/plain")]] });
      for (const part of [JSON.stringify(told), "\\n", digest])
        await send({ type: "http.response.body", body: bytes(part), more_body: true });
      await send({ type: "http.response.body", body: bytes(""), more_body: false });
    }

    async function talk({ receive, send }) {
      assert.equal((await receive()).type, "websocket.connect");
      await send({ type: "websocket.accept" });
      for (;;) {
        const event = await receive();
        if (event.type === "websocket.disconnect") break;
        const answer = event.text ? { text: `echo ${event.text}` } : { bytes: new Uint8Array(event.bytes) };
        await send({ type: "websocket.send", ...answer });
      }
      console.log("left");
    }

    await server.registerService({
      id: "app",
      type: library === "imjoy-rpc" ? "ASGI" : "asgi",
      config,
      serve: (request) => (request.scope.type === "http" ? answer(request) : talk(request)),
    });
    await server.registerService({
      id: "functions",
      type: "functions",
      config,
      index: async ({ method, query_string, body }) => ({
        status: 201,
        headers: { "x-own": ["1", "2"] },
        body: `${method} ${query_string} ${body ? text(body) : "-"}`,
      }),
      raw: () => ({ body: new Uint8Array([0, 1, 255]) }),
    });
    console.log("ready", server.config.workspace);
    await new Promise(() => {});
"""


@pytest.mark.parametrize("library", LIBRARIES)
async def test_javascript_serves_web_applications(
    library: str, start_javascript: StartJavascript, server: Server
) -> None:
    async with start_javascript(PROVIDER, server.url, library=library) as provider:
        workspace = (await provider.wait_for(r"^ready (\S+)$"))[1]
        base = f"/{workspace}/apps"
        async with httpx.AsyncClient(base_url=f"{server.url}{base}/", timeout=30) as client:
            data = bytes(range(256)) * (3 * MIB // 256)
            answer = await client.post("app/a/b", content=data, headers={"X-Own": "yes"})
            told, digest = answer.text.split("\n")
            assert (answer.status_code, answer.headers["content-type"]) == (201, "text/plain")
            assert digest == hashlib.sha256(data).hexdigest()
            assert json.loads(told) == {
                "path": f"{base}/app/a/b",
                "root": f"{base}/app",
                "method": "POST",
                "own": "yes",
            }
            answer = await client.put("functions/?a=%20b", content=b"x")
            assert (answer.status_code, answer.headers["x-own"], answer.text) == (201, "1, 2", "PUT a=%20b x")
            assert (await client.get("functions/raw")).content == b"\x00\x01\xff"
        socket = await wires.upgrade(await trio.open_tcp_stream("127.0.0.1", server.port), f"{base}/app/echo")
        for text in ("a", "b" * 100_000):
            await socket.send(TextMessage(text))
            assert await socket.receive() == f"echo {text}"
        await socket.send(BytesMessage(b"\x00\xff"))
        assert await socket.receive() == b"\x00\xff"
        await socket.send(CloseConnection(1000))
        assert (await socket.closed()).code == 1000
        await provider.wait_for("^left$")
        await trio.aclose_forcefully(socket.stream)


APP = "console.log('it runs'); await api.export({ add: (a, b) => a + b })"
STAGES = ["installing it", "starting the browser", "running its script"]

CALLER = """
    const server = await connect();
    const apps = await server.getService(library === "imjoy-rpc" ? "server-apps" : "public/server-apps");
    const [source, ...stages] = args;
    const told = [];
    const config = { type: "window", name: "Adder" };
    const app = await apps.launch({
      source, config, progress_callback: (each) => { told.push(each); }, _rkwargs: true,
    });
    assert.deepEqual(told.map(({ message }) => message).slice(0, -1), stages);
    assert.deepEqual(told.map(({ type }) => type), ["info", "info", "info", "success"]);
    const adder = await server.getService(`${app.id}:default`);
    assert.equal(await adder.add(1, 2), 3);
    assert.deepEqual(await apps.get_log(app.id, "log"), ["it runs"]);
    const picture = new Uint8Array(await apps.screenshot(app.id));
    assert.deepEqual([...picture.slice(1, 4)], [..."PNG"].map((letter) => letter.charCodeAt(0)));
    assert.equal((await apps.list_running()).length, 1);
    await apps.stop(app.id);
    assert.deepEqual(await apps.list_running(), []);
"""


@pytest.mark.parametrize("library", LIBRARIES)
async def test_javascript_launches_server_apps(
    library: str, run_javascript: RunJavascript, browser: str, start_server: StartServer
) -> None:
    with start_server("--enable-server-apps", "--chromium-path", browser) as server:
        await run_javascript(CALLER, server.url, APP, *STAGES, library=library)


PYTHON_CALLER = """
    import asyncio, sys

    async def main(url, source, *stages):
        server = await connect_to_server({{"server_url": url}})
        apps = await server.get_service("{service}")
        told = []
        app = await apps.launch(
            source=source, config={{"type": "window"}}, progress_callback=lambda each: told.append(each["message"])
        )
        assert told[:-1] == list(stages), told
        assert told[-1].startswith("ready after"), told
        adder = await server.get_service(app["id"] + ":default")
        assert await adder.add(1, 2) == 3
        await apps.stop(app["id"])
        await server.disconnect()

    asyncio.run(main(*sys.argv[1:]))
"""
PYTHON_CLIENTS = {
    GENERATIONS[0]: ("from imjoy_rpc.hypha import connect_to_server", "server-apps"),
    GENERATIONS[-1]: ("from imjoy_rpc.hypha import connect_to_server", "server-apps"),
    MODERN: ("from hypha_rpc import connect_to_server", "public/server-apps"),
}


@pytest.mark.parametrize("generation", PYTHON_CLIENTS)
async def test_python_sees_how_far_a_launch_is(
    generation: str, run_client: RunClient, browser: str, start_server: StartServer
) -> None:
    imports, service = PYTHON_CLIENTS[generation]
    script = f"    {imports}\n{PYTHON_CALLER.format(service=service)}"
    with start_server("--enable-server-apps", "--chromium-path", browser) as server:
        result = await run_client(generation, script, server.url, APP, *STAGES)
        assert result.returncode == 0, f"{result.stdout}{result.stderr}"
