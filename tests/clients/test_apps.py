"""Web applications that published clients serve: a FastAPI application as it is, and functions."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
import trio
from wsproto.events import CloseConnection, TextMessage

from tests.clients.conftest import StartClient
from tests.house.environments import GENERATIONS, MODERN
from tests.house.processes import Running, Server
from tests.web import wires

FASTAPI = """
    import asyncio, hashlib, sys
    from pathlib import Path
    from fastapi import FastAPI, Request, WebSocket
    from fastapi.responses import StreamingResponse
    from fastapi.staticfiles import StaticFiles
    {imports}

    app = FastAPI()
    Path("files").mkdir()
    Path("files/digits.txt").write_text("0123456789")
    app.mount("/files", StaticFiles(directory="files"))

    @app.get("/hello/{{name}}")
    async def hello(name: str, times: int = 1):
        return {{"text": "hello " + name, "times": times}}

    @app.get("/where/")
    async def where(request: Request):
        return {{"url": str(request.url), "to": str(request.url_for("hello", name="x"))}}

    @app.post("/digest")
    async def digest(request: Request):
        found = hashlib.sha256()
        async for piece in request.stream():
            found.update(piece)
        return found.hexdigest()

    @app.get("/count")
    async def count():
        async def pieces():
            try:
                number = 0
                while True:
                    yield "%d " % number
                    number += 1
                    await asyncio.sleep(0.05)
            finally:
                print("closed", flush=True)
        return StreamingResponse(pieces())

    @app.get("/fails")
    async def fails():
        raise RuntimeError("a secret of the application")

    @app.websocket("/echo")
    async def echo(websocket: WebSocket):
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text("echo " + text)
        print("left", flush=True)

    async def serve(args, context=None):
        await app(args["scope"], args["receive"], args["send"])

    def index(event, context=None):
        return {{"status": 201, "headers": {{"X-Own": "1"}}, "body": event["method"] + " " + event["query_string"]}}

    async def main():
        server = await connect_to_server({{"server_url": sys.argv[1]}})
        config = {{"visibility": "public"}}
        await server.register_service({{"id": "app", "type": "{kind}", "config": config, "serve": serve}})
        functions = {{"id": "functions", "type": "functions", "config": config, "index": index}}
        await server.register_service(functions)
        print("ready", server.config.workspace, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""

KINDS = {
    f"{GENERATIONS[-1]}-fastapi": ("from imjoy_rpc.hypha import connect_to_server", "ASGI"),
    f"{MODERN}-fastapi": ("from hypha_rpc import connect_to_server", "asgi"),
}
MIB = 2**20


@dataclass(frozen=True)
class Provider:
    """A program that serves an application, and a client that asks below its workspace's ``apps``."""

    process: Running
    client: httpx.AsyncClient
    path: str
    port: int


@pytest.fixture(params=KINDS)
async def provider(
    request: pytest.FixtureRequest, start_client: StartClient, server: Server
) -> AsyncIterator[Provider]:
    imports, kind = KINDS[request.param]
    async with start_client(request.param, FASTAPI.format(imports=imports, kind=kind), server.url) as process:
        workspace = (await process.wait_for(r"^ready (\S+)$"))[1]
        async with httpx.AsyncClient(base_url=f"{server.url}/{workspace}/apps/", timeout=60) as client:
            yield Provider(process, client, f"/{workspace}/apps", server.port)


@pytest.mark.slow
async def test_a_fastapi_application_is_served_as_it_is(provider: Provider) -> None:
    client, base = provider.client, str(provider.client.base_url)
    assert (await client.get("app/hello/you?times=3")).json() == {"text": "hello you", "times": 3}
    assert (await client.get("app/hello/you?times=x")).status_code == 422
    assert (await client.get("app/nothing")).json() == {"detail": "Not Found"}
    assert f'"{provider.path}/app/openapi.json"' in (await client.get("app/docs")).text.replace("'", '"')
    assert "/hello/{name}" in (await client.get("app/openapi.json")).json()["paths"]
    where = {"url": f"{base}app/where/", "to": f"{base}app/hello/x"}
    assert (await client.get("app/where", follow_redirects=True)).json() == where
    assert (await client.get("app", follow_redirects=True)).status_code == 404
    failed = await client.get("app/fails")
    assert (failed.status_code, failed.text) == (500, "Internal Server Error")
    part = await client.get("app/files/digits.txt", headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.text, part.headers["content-range"]) == (206, "234", "bytes 2-4/10")
    head = await client.head("app/files/digits.txt")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "10")


@pytest.mark.slow
async def test_uploads_and_endless_answers_stream(provider: Provider) -> None:
    data = bytes(range(256)) * (5 * MIB // 256)
    answer = await provider.client.post("app/digest", content=data)
    assert answer.json() == hashlib.sha256(data).hexdigest()
    async with await trio.open_tcp_stream("127.0.0.1", provider.port) as stream:
        await stream.send_all(wires.request_bytes(f"{provider.path}/app/count"))
        seen = b""
        while b"\r\n5 \r\n" not in seen:
            seen += await stream.receive_some()
    await provider.process.wait_for("^closed$")


@pytest.mark.slow
async def test_a_websocket_endpoint(provider: Provider) -> None:
    socket = await wires.upgrade(await trio.open_tcp_stream("127.0.0.1", provider.port), f"{provider.path}/app/echo")
    for text in ("a", "b" * 100_000):
        await socket.send(TextMessage(text))
        assert await socket.receive() == f"echo {text}"
    await socket.send(CloseConnection(1000))
    assert (await socket.closed()).code == 1000
    await provider.process.wait_for("^left$")
    await trio.aclose_forcefully(socket.stream)


@pytest.mark.slow
async def test_functions_of_published_clients(provider: Provider) -> None:
    answer = await provider.client.put("functions/?a=%20b", content=b"x")
    assert (answer.status_code, answer.headers["x-own"], answer.text) == (201, "1", "PUT a=%20b")
