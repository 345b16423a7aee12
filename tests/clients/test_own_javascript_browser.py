"""Our own client for JavaScript in a headless Chromium, loaded from the server itself: in pages and in workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from hypha.client import Server, connect_to_server
from tests.clients.conftest import StartServer
from tests.clients.wire import between
from tests.house import chromium
from tests.house.chromium import Browser, Page
from tests.house.examples import examples

pytestmark = pytest.mark.slow

ADDRESS = "http://localhost:9000"

#: Two clients, which call each other with everything that there is. It runs in pages and in workers.
CONVERSATION = """
async function conversation(client, server_url) {
  const one = await client.connectToServer({ server_url, client_id: "one" });
  await one.registerService({
    id: "tools",
    each: async (items, callback) => Promise.all(items.map(callback)),
    size: (bytes) => bytes.length,
    who: (context) => context.from,
    async *count(upto) { for (let i = 0; i < upto; i++) yield i; },
    config: { require_context: ["who"] },
  });
  const two = await client.connectToServer({ server_url, token: await one.generateToken() });
  const tools = await two.getService("tools");
  const heard = [];
  for await (const number of await tools.count(3)) heard.push(number);
  const said = [
    await tools.each([1, 2], async (x) => x * 10),
    await tools.size(new Uint8Array(12_000_000)),
    await two.echo(new Date(0)).then((date) => date.toISOString()),
    (await tools.who()).endsWith(two.config.clientId),
    heard,
  ];
  await two.disconnect();
  await one.disconnect();
  return said;
}
"""
SAID = [[10, 20], 12_000_000, "1970-01-01T00:00:00.000Z", True, [0, 1, 2]]

PAGE = f"""<!doctype html>
<meta charset="utf-8">
<title>Own</title>
<link rel="icon" href="data:,">
<script src="SERVER/assets/hypha-rpc-websocket.js"></script>
<script>{CONVERSATION}</script>
"""

CLASSIC_WORKER = f"""
importScripts("SERVER/assets/hypha-rpc-websocket.js");
{CONVERSATION}
conversation(hyphaWebsocketClient, "SERVER").then(postMessage, (error) => postMessage(String(error)));
"""

MODULE_WORKER = f"""
import client, {{ connectToServer }} from "SERVER/assets/hypha-rpc-websocket.mjs";
{CONVERSATION}
if (client.connectToServer !== connectToServer) throw new Error("two clients");
if (globalThis.hyphaWebsocketClient !== client) throw new Error("no global");
conversation(client, "SERVER").then(postMessage, (error) => postMessage(String(error)));
"""

IN_WORKER = """
new Promise((resolve, reject) => {
  const worker = new Worker("NAME", { type: "TYPE" });
  worker.onmessage = ({ data }) => resolve(data);
  worker.onerror = ({ message }) => reject(new Error(message));
})
"""


@pytest.fixture
async def chrome(browser: str, tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Browser]:
    async with chromium.launch(nursery, browser, tmp_path / "profile") as running:
        yield running


def fill(site: Path, url: str, **files: str) -> None:
    """Write the *files* of a site whose pages load the client from *url*."""
    for name, text in files.items():
        (site / name.replace("_", ".")).write_text(text.replace("SERVER", url).replace(ADDRESS, url))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    directory = tmp_path / "site"
    directory.mkdir()
    return directory


@pytest.mark.parametrize("base", ["/", "/lab"])
async def test_windows_and_workers(base: str, chrome: Browser, site: Path, start_server: StartServer) -> None:
    with start_server("--base-path", base, "--static-mounts", f"/tools:{site}") as server:
        fill(site, server.url, index_html=PAGE, classic_js=CLASSIC_WORKER, module_js=MODULE_WORKER)
        page = await chrome.open(f"{server.url}/tools/")
        assert await page.evaluate(f"conversation(hyphaWebsocketClient, '{server.url}')") == SAID
        for name in ("classic", "module"):
            script = IN_WORKER.replace("NAME", f"{name}.js").replace("TYPE", name)
            assert await page.evaluate(script) == SAID
        assert page.problems == []


@pytest.mark.parametrize("origin", ["server", "file"])
async def test_the_example_of_the_documentation(
    origin: str, chrome: Browser, site: Path, start_server: StartServer
) -> None:
    """From the server itself, and as a file that somebody opens: offered and called by our client for trio."""
    code = examples("docs/javascript.md")
    with start_server("--static-mounts", f"/tools:{site}") as server:
        fill(site, server.url, index_html=code["page"], module_html="<!doctype html>" + code["module"])
        home = f"{server.url}/tools/" if origin == "server" else f"{site.as_uri()}/"
        async with connect_to_server({"server_url": server.url}) as worker:
            await offer_hello(worker)
            page = await chrome.open(f"{home}index.html")
            await shows(page, "document.getElementById('answer').textContent", "Hello John")
            shown = await worker.get_service("page")
            await shown.show("a word from Python")
            await shows(page, "document.getElementById('answer').textContent", "a word from Python")
            await page.go(f"{home}module.html")
            await shows(page, "document.title", "connected")
            assert [problem for problem in page.problems if "favicon" not in problem] == []


async def offer_hello(worker: Server) -> None:
    await worker.register_service(
        {"id": "hello-world", "config": {"visibility": "public"}, "hello": lambda name: f"Hello {name}"}
    )


async def shows(page: Page, expression: str, value: Any) -> None:
    """Wait until *expression* is *value*."""
    with trio.fail_after(10):
        while await page.evaluate(expression) != value:
            pass


async def test_a_page_comes_back(chrome: Browser, site: Path, start_server: StartServer) -> None:
    with start_server("--static-mounts", f"/tools:{site}") as server:
        fill(site, server.url, index_html=PAGE)
        async with between(server.url) as wire, connect_to_server({"server_url": server.url}) as user:
            page = await chrome.open(f"{server.url}/tools/")
            service_id = await page.evaluate(f"""(async () => {{
                window.server = await hyphaWebsocketClient.connectToServer({{ server_url: "{wire.url}" }});
                window.back = new Promise((resolve) => server.on("connected", resolve));
                const info = {{ id: "page", config: {{ visibility: "public" }}, title: () => document.title }};
                return (await server.registerService(info)).id;
            }})()""")
            assert await (await user.get_service(service_id)).title() == "Own"
            wire.cut()
            await page.evaluate("back.then(() => true)")
            assert await (await user.get_service(service_id)).title() == "Own"
            assert wire.connects == 2
            assert page.problems == []


async def test_requirements_are_loaded_once_and_in_order(
    chrome: Browser, site: Path, start_server: StartServer
) -> None:
    with start_server("--static-mounts", f"/tools:{site}") as server:
        scripts = {"a_js": "window.order = (window.order || '') + 'a';", "b_js": "window.order += 'b';"}
        fill(site, server.url, index_html=PAGE, s_css="h1 { color: red }", **scripts)
        page = await chrome.open(f"{server.url}/tools/")
        load = 'hyphaWebsocketClient.loadRequirements(["a.js", "b.js", "s.css", "a.js"]).then(() => order)'
        assert await page.evaluate(load) == "ab"
        assert page.problems == []
        failed = await page.evaluate('hyphaWebsocketClient.loadRequirements("no.js").catch((error) => error.message)')
        assert failed == "cannot load no.js"
