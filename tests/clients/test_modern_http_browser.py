"""hypha-rpc over HTTP in a web page, without a token: the browser keeps the cookie, and gives it to nobody else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from tests.clients.conftest import StartServer
from tests.house import chromium, npm, processes

pytestmark = pytest.mark.slow

BUNDLE = "hypha-rpc-websocket.js"

PAGE = f"""
<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8" />
    <title>HTTP</title>
    <link rel="icon" href="data:," />
    <script src="{BUNDLE}"></script>
  </head>
  <body></body>
</html>
"""

#: Two clients in one page, which call each other.
CONVERSATION = """
(async () => {
  const connect = () =>
    hyphaWebsocketClient.connectToServer({ server_url: location.origin, transport: "http", method_timeout: 10 });
  const [one, two] = [await connect(), await connect()];
  const { id } = await one.registerService({
    id: "tools",
    config: { visibility: "public" },
    each: async (items, callback) => await Promise.all(items.map(callback)),
  });
  const tools = await two.getService(id);
  const answers = await tools.each([1, 2], async (x) => x * 10);
  const [workspace, client_id] = id.split(":")[0].split("/");
  const path = `/rpc?${new URLSearchParams({ client_id, workspace })}`;
  return [workspace !== two.config.workspace, answers, document.cookie, path];
})()
"""

#: The status with which a page may post, or why it may not.
POST = """
fetch("URL", {method: "POST", credentials: "include", headers: {"Content-Type": "KIND"}, body: new Uint8Array([0x80])})
  .then((answer) => answer.status, (error) => error.name)
"""


def post(url: str, kind: str) -> str:
    return POST.replace("URL", url).replace("KIND", kind)


async def test_row_29_a_page_needs_no_token_and_no_other_page_speaks_for_it(
    browser: str, start_server: StartServer, tmp_path: Path, nursery: trio.Nursery
) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    site.mkdir()
    elsewhere.mkdir()
    shutil.copy(npm.modules() / "hypha-rpc" / "dist" / BUNDLE, site)
    (site / "index.html").write_text(PAGE)
    with (
        start_server("--static-mounts", f"/page:{site}") as server,
        processes.serving(elsewhere, "--static-mounts", f"/page:{site}") as other,
    ):
        async with chromium.launch(nursery, browser, tmp_path / "profile") as chrome:
            page = await chrome.open(f"{server.url}/page/")
            two_workspaces, answers, readable, path = await page.evaluate(CONVERSATION)
            assert (two_workspaces, answers, readable) == (True, [10, 20], "")
            assert page.problems == []
            # The cookie is this page's: what it posts is refused for its content alone.
            assert await page.evaluate(post(server.url + path, "application/msgpack")) == 400
            # Another port is the same site, for which cookies travel; but it may not ask for this content type.
            stranger = await chrome.open(f"{other.url}/page/")
            assert await stranger.evaluate(post(server.url + path, "application/msgpack")) == "TypeError"
            assert await stranger.evaluate(post(server.url + path, "text/plain")) == "TypeError"
