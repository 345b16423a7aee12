"""A FastAPI application of a published client, below a base path, as a person sees it in a browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trio

from tests.clients.conftest import StartClient, StartServer
from tests.house import chromium
from tests.house.chromium import Browser
from tests.house.environments import MODERN

pytestmark = pytest.mark.slow

PROVIDER = """
    import asyncio, sys
    from typing import Annotated
    from fastapi import Depends, FastAPI, WebSocket
    from fastapi.responses import HTMLResponse
    from fastapi.security import HTTPBasic, HTTPBasicCredentials
    from hypha_rpc import connect_to_server

    PAGE = '''<!doctype html><meta charset="utf-8"><title>Lab</title><link rel="icon" href="data:,">
    <h1>A page of a program</h1><p id="fetched"></p><p id="heard"></p><a id="link" href="hello/link">hello</a>
    <script>
      fetch("hello/page").then((answer) => answer.json()).then(({ text }) => { fetched.textContent = text; });
      const socket = new WebSocket(new URL("echo", location.href).href.replace("http", "ws"));
      socket.onopen = () => socket.send("one");
      socket.onmessage = ({ data }) => { heard.textContent = data; };
    </script>'''

    app = FastAPI()

    @app.get("/", response_class=HTMLResponse)
    async def index():
        return PAGE

    @app.get("/hello/{name}")
    async def hello(name: str):
        return {"text": "hello " + name}

    @app.get("/secret")
    async def secret(who: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]):
        return {"who": who.username}

    @app.websocket("/echo")
    async def echo(websocket: WebSocket):
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text("echo " + text)

    async def serve(args, context=None):
        await app(args["scope"], args["receive"], args["send"])

    async def main():
        server = await connect_to_server({"server_url": sys.argv[1]})
        config = {"visibility": "public"}
        await server.register_service({"id": "app", "type": "asgi", "config": config, "serve": serve})
        print("ready", server.config.workspace, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""

#: What the documentation page does in a browser that reaches its script on the Internet.
READ_DOCUMENTATION = """
fetch("docs").then((answer) => answer.text()).then(async (text) => {
  const url = text.match(/url: ["']([^"']+)["']/)[1];
  const api = await (await fetch(url)).json();
  return (await (await fetch(api.servers[0].url + "/hello/docs")).json()).text;
})
"""


@pytest.fixture
async def chrome(browser: str, tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Browser]:
    async with chromium.launch(nursery, browser, tmp_path / "profile") as running:
        yield running


async def test_a_fastapi_application_in_a_browser(
    chrome: Browser, start_client: StartClient, start_server: StartServer
) -> None:
    with start_server("--base-path", "/lab") as server:
        async with start_client(f"{MODERN}-fastapi", PROVIDER, server.url) as provider:
            workspace = (await provider.wait_for(r"^ready (\S+)$"))[1]
            home = f"{server.url}/{workspace}/apps/app"
            page = await chrome.open(home)
            with trio.fail_after(10):
                while await page.evaluate("fetched.textContent + heard.textContent") != "hello pageecho one":
                    pass
            assert await page.evaluate("link.href") == f"{home}/hello/link"
            assert await page.evaluate(READ_DOCUMENTATION) == "hello docs"
            assert page.problems == []
            async with httpx.AsyncClient() as client:
                refused = await client.get(f"{home}/secret")
                assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Basic")
                assert (await client.get(f"{home}/secret", auth=("ann", "x"))).json() == {"who": "ann"}
