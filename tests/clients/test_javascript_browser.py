"""Bj in a web page: the published bundle in a headless Chromium (``promises.md`` A29 and A30).

The page offers functions and calls those of a Python worker. It comes from a static mount of the server, from another
origin, and from a file.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import trio

from tests.clients.conftest import RunClient, StartClient, StartServer
from tests.house import chromium, npm, processes
from tests.house.chromium import Browser
from tests.house.environments import GENERATIONS

pytestmark = pytest.mark.slow

BUNDLE = "hypha-rpc-websocket.js"

PAGE = """
<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8" />
    <title>Tools</title>
    <link rel="icon" href="data:," />
    <script src="BUNDLE"></script>
  </head>
  <body>
    <h1>Tools</h1>
    <ol id="log"></ol>
    <script>
      const settings = Object.fromEntries(new URLSearchParams(location.search));
      const server_url = settings.server || location.origin;
      const method_timeout = Number(settings.method_timeout || 30);

      function show(text) {
        const line = document.createElement("li");
        line.textContent = text;
        document.getElementById("log").append(line);
      }

      async function main() {
        window.server = await hyphaWebsocketClient.connectToServer({ server_url, method_timeout, client_id: "page" });
        await server.registerService({
          name: "The page",
          id: "page-tools",
          config: { visibility: "public" },
          show,
          hello: (name) => `Hello ${name}, says the page`,
          each: async (items, callback) => {
            const answers = [];
            for (const item of items) answers.push(await callback(item));
            return answers;
          },
          describe: (value) => [value.constructor.name, value.length],
          floats: () => new Float32Array([0, 0.5, 1]),
          title: () => document.title,
        });
        const worker = await server.getService("hello-world");
        show(await worker.hello("John"));
        return server.config.workspace;
      }

      const ready = main();
    </script>
  </body>
</html>
"""

WORKER = """
    import asyncio, sys
    from imjoy_rpc.hypha import connect_to_server

    async def main(url):
        server = await connect_to_server({"server_url": url})
        await server.register_service(
            {
                "name": "Hello World",
                "id": "hello-world",
                "config": {"visibility": "public"},
                "hello": lambda name: "Hello " + name,
                "echo": lambda value: value,
                "size": len,
            }
        )
        print("ready", server.config.workspace, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main(sys.argv[1]))
"""

CALLER = """
    import asyncio, sys
    from imjoy_rpc.hypha import connect_to_server

    async def main(url):
        server = await connect_to_server({"server_url": url})
        page = await server.get_service("page-tools")
        assert await page.hello("Python") == "Hello Python, says the page"
        assert await page.title() == "Tools"

        async def times_ten(x):
            return x * 10

        assert await page.each([1, 2], times_ten) == [10, 20]
        assert (await page.floats()).tolist() == [0, 0.5, 1]
        assert await page.describe(bytes(3_000_000)) == ["Uint8Array", 3_000_000]
        await page.show("a word from Python")
        await server.disconnect()

    asyncio.run(main(sys.argv[1]))
"""


#: The client fetches in the background what it comes back with.
TOKEN_IS_THERE = """
    (async () => {
      while (!server.rpc._connection._reconnection_token) await new Promise((resolve) => setTimeout(resolve, 10));
    })()
"""


@pytest.fixture
async def chrome(browser: str, tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Browser]:
    async with chromium.launch(nursery, browser, tmp_path / "profile") as running:
        yield running


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory with the page and the bundle, as it is published."""
    directory = tmp_path / "site"
    directory.mkdir()
    shutil.copy(npm.modules() / "imjoy-rpc" / "dist" / BUNDLE, directory)
    (directory / "index.html").write_text(PAGE.replace("BUNDLE", BUNDLE))
    return directory


@pytest.mark.parametrize("generation", GENERATIONS)
async def test_a_page_of_the_server_and_python_call_each_other(
    generation: str,
    chrome: Browser,
    site: Path,
    start_server: StartServer,
    start_client: StartClient,
    run_client: RunClient,
) -> None:
    with start_server("--static-mounts", f"/tools:{site}") as server:
        async with start_client(generation, WORKER, server.url) as worker:
            await worker.wait_for("^ready")
            page = await chrome.open(f"{server.url}/tools/")
            assert await page.evaluate("ready")
            result = await run_client(generation, CALLER, server.url)
            assert result.returncode == 0, result.stdout + result.stderr
            assert await page.evaluate("[...document.querySelectorAll('li')].map((line) => line.textContent)") == [
                "Hello John",
                "a word from Python",
            ]
            assert page.problems == []


@pytest.mark.parametrize("origin", ["another server", "a file"])
async def test_a_page_of_another_origin_works_and_may_fetch(
    origin: str,
    chrome: Browser,
    site: Path,
    start_server: StartServer,
    start_client: StartClient,
    run_client: RunClient,
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(start_server())
        home = site.as_uri() + "/index.html"
        if origin == "another server":
            directory = tmp_path / "other"
            directory.mkdir()
            other = stack.enter_context(processes.serving(directory, "--static-mounts", f"/:{site}"))
            home = other.url + "/"
        async with start_client(GENERATIONS[-1], WORKER, server.url) as worker:
            workspace = (await worker.wait_for(r"^ready (\S+)$"))[1]
            page = await chrome.open(f"{home}?server={server.url}")
            assert await page.evaluate("ready")
            result = await run_client(GENERATIONS[-1], CALLER, server.url)
            assert result.returncode == 0, result.stdout + result.stderr
            function = f"{server.url}/{workspace}/services/hello-world/hello"
            assert await page.evaluate(f"fetch('{function}?name=Ada').then((answer) => answer.json())") == "Hello Ada"
            asked = "{method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{\"name\": \"Bob\"}'}"
            assert await page.evaluate(f"fetch('{function}', {asked}).then((answer) => answer.json())") == "Hello Bob"
            assert page.problems == []


async def test_a_page_that_is_left_takes_its_service_with_it(
    chrome: Browser, site: Path, start_server: StartServer, start_client: StartClient
) -> None:
    with start_server("--static-mounts", f"/tools:{site}") as server:
        async with start_client(GENERATIONS[-1], WORKER, server.url) as worker:
            await worker.wait_for("^ready")
            page = await chrome.open(f"{server.url}/tools/")
            workspaces = []
            for _ in range(2):
                workspaces.append(await page.evaluate("ready"))
                url = f"{server.url}/{workspaces[-1]}/services/page-tools/title"
                await answers(url, 200)
                await page.go(f"{server.url}/tools/")  # the same page again, and a new client
                await answers(url, 404)
            assert len(set(workspaces)) == 2
            assert page.problems == []


async def test_row_13_a_page_comes_back_after_its_connection_was_cut(
    chrome: Browser, site: Path, start_server: StartServer, start_client: StartClient, nursery: trio.Nursery
) -> None:
    """It waits its ``method_timeout``, and then its services are there again without its doing anything."""
    with start_server("--static-mounts", f"/tools:{site}") as server:
        async with start_client(GENERATIONS[-1], WORKER, server.url) as worker:
            await worker.wait_for("^ready")
            wire = Wire(server.url)
            await nursery.start(wire.serve)
            page = await chrome.open(f"{wire.url}/tools/?method_timeout=1")
            service = f"{server.url}/{await page.evaluate('ready')}/services/page-tools/title"
            await answers(service, 200)
            await page.evaluate(TOKEN_IS_THERE)
            wire.cut()
            await answers(service, 404)
            await answers(service, 200)
            assert await page.evaluate("server.echo('still here')") == "still here"
            assert page.problems == []
            wire.stop()


async def answers(url: str, status: int) -> None:
    """Ask until the answer has *status*, for five seconds."""
    async with httpx.AsyncClient() as client:
        for _ in range(250):
            answer = await client.get(url)
            if answer.status_code == status:
                return
            await trio.sleep(0.02)
    pytest.fail(f"{url} still answers {answer.status_code} {answer.text}")


class Wire:
    """The network between a browser and the server at *url*, which can be cut."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._connections: set[trio.CancelScope] = set()
        self._serving = trio.CancelScope()
        self.url = ""

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        """Carry connections until :meth:`stop`."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        with self._serving:
            async with trio.open_nursery() as nursery:
                await nursery.start(trio.serve_listeners, self._carry, listeners)
                task_status.started()

    def cut(self) -> None:
        """End every connection without a goodbye."""
        for connection in self._connections:
            connection.cancel()

    def stop(self) -> None:
        """Carry nothing any more."""
        self._serving.cancel()

    async def _carry(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", self._port)
        async with near, far, trio.open_nursery() as nursery:
            self._connections.add(nursery.cancel_scope)
            nursery.start_soon(_pump, near, far, nursery.cancel_scope)
            await _pump(far, near, nursery.cancel_scope)


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
    except trio.BrokenResourceError:
        pass  # the other side has gone, which ends the connection as well
    both.cancel()
