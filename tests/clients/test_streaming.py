"""Generators of functions in hypha-rpc clients over HTTP (``protocol.md`` 8.4): read, left early, and read slowly."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import msgpack
import pytest
import trio

from tests.clients.conftest import StartClient, StartJavascript
from tests.house.environments import MODERN
from tests.house.processes import Running, Server

PYTHON = """
    import asyncio, sys, time
    from hypha_rpc import connect_to_server

    made = 0

    def at_once(upto):
        try:
            for number in range(int(upto)):
                yield {"n": number}
        finally:
            print("closed at_once", flush=True)

    async def later(upto):
        try:
            for number in range(int(upto)):
                yield {"n": number}
        finally:
            print("closed later", flush=True)

    async def paced(upto):
        try:
            for number in range(int(upto)):
                yield {"n": number}
                await asyncio.sleep(0.2)
        finally:
            print("closed paced", flush=True)

    def broken():
        yield 1
        raise ValueError("broken in the middle")

    async def broken_later():
        yield 1
        raise ValueError("broken in the middle")

    async def waits():
        try:
            yield 1
            print("waits", flush=True)
            await asyncio.sleep(600)
        finally:
            print("closed waits", flush=True)

    async def large(size):
        global made
        while True:
            made += 1
            yield bytes(int(size))

    async def main():
        server = await connect_to_server({"server_url": sys.argv[1]})
        functions = [at_once, later, paced, broken, broken_later, waits, large]
        service = {function.__name__: function for function in functions}
        service["made"] = lambda: made
        await server.register_service({"id": "streams", "config": {"visibility": "public"}, **service})
        print("ready", server.config.workspace, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""

JAVASCRIPT = """
    const server = await connect();
    let made = 0;
    await server.registerService({
      id: "streams",
      config: { visibility: "public" },
      *at_once(upto) {
        try { for (let n = 0; n < upto; n++) yield { n }; } finally { console.log("closed at_once"); }
      },
      async *later(upto) {
        try { for (let n = 0; n < upto; n++) yield { n }; } finally { console.log("closed later"); }
      },
      async *paced(upto) {
        try {
          for (let n = 0; n < upto; n++) { yield { n }; await new Promise((resolve) => setTimeout(resolve, 200)); }
        } finally { console.log("closed paced"); }
      },
      *broken() { yield 1; throw new Error("broken in the middle"); },
      async *broken_later() { yield 1; throw new Error("broken in the middle"); },
      async *large(size) { for (;;) { made++; yield new Uint8Array(size); } },
      made: () => made,
    });
    console.log("ready", server.config.workspace);
    await new Promise(() => {});
"""

PACKED = {"accept": "application/msgpack"}
MIB = 2**20
SOON = 1.0  # seconds in which a generator is closed when its reader has left


@dataclass(frozen=True)
class Provider:
    """A provider, and a client that asks below its service."""

    process: Running
    client: httpx.AsyncClient

    async def reading(self, path: str, accept: str = "*/*") -> trio.SocketStream:
        """A connection on which *path* has been asked for, whose answer has not been read."""
        url = self.client.base_url.join(path)
        stream = await trio.open_tcp_stream(url.host, url.port or 80)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # and the kernel does not make it larger
        head = f"GET {url.raw_path.decode()} HTTP/1.1\r\nHost: {url.host}\r\nAccept: {accept}\r\n\r\n"
        await stream.send_all(head.encode())
        return stream

    async def events(self, path: str) -> list[Any]:
        response = await self.client.get(path)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "text/event-stream"
        *parts, last = response.text.split("\n\n")
        assert last == ""
        assert parts[-1] == "data: [DONE]"
        return [json.loads(part.removeprefix("data: ")) for part in parts[:-1]]

    async def values(self, path: str) -> list[Any]:
        response = await self.client.get(path, headers=PACKED)
        assert response.headers["content-type"] == "application/msgpack"
        reader = msgpack.Unpacker()
        reader.feed(response.content)
        return list(reader)


@pytest.fixture(params=["python", "javascript"])
async def provider(
    request: pytest.FixtureRequest, start_client: StartClient, start_javascript: StartJavascript, server: Server
) -> AsyncIterator[Provider]:
    async with AsyncExitStack() as stack:
        if request.param == "python":
            process = await stack.enter_async_context(start_client(MODERN, PYTHON, server.url))
        else:
            started = start_javascript(JAVASCRIPT, server.url, library="hypha-rpc")
            process = await stack.enter_async_context(started)
        workspace = (await process.wait_for(r"^ready (\S+)$"))[1]
        base = f"{server.url}/{workspace}/services/streams/"
        yield Provider(process, await stack.enter_async_context(httpx.AsyncClient(base_url=base)))


@pytest.mark.parametrize("kind", ["at_once", "later"])
async def test_items_come_in_both_forms(kind: str, provider: Provider) -> None:
    for upto in (0, 1, 100):
        expected = [{"n": number} for number in range(upto)]
        assert await provider.events(f"{kind}?_args=[{upto}]") == expected
        assert await provider.values(f"{kind}?_args=[{upto}]") == expected


@pytest.mark.parametrize("kind", ["broken", "broken_later"])
async def test_an_error_in_the_middle_is_the_last_item(kind: str, provider: Provider) -> None:
    first, error = await provider.events(kind)
    assert first == 1
    assert error.keys() == {"error"}
    assert "broken in the middle" in error["error"]
    assert "Traceback" not in error["error"]
    first, error = await provider.values(kind)
    assert (first, error["_rtype"]) == (1, "error")
    assert "broken in the middle" in error["_rvalue"]


@pytest.mark.parametrize("kind", ["at_once", "later", "paced"])
@pytest.mark.parametrize("accept", ["application/json", "application/msgpack"])
async def test_who_leaves_closes_the_generator(kind: str, accept: str, provider: Provider) -> None:
    async with await provider.reading(f"{kind}?_args=[1000000000]", accept) as stream:
        while b"n" not in await stream.receive_some():
            pass
        left = time.perf_counter()
    await provider.process.wait_for(f"^closed {kind}$")
    assert time.perf_counter() - left < SOON


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["python"], indirect=True)
async def test_a_generator_that_makes_an_item_ends_with_its_next_heartbeat(provider: Provider) -> None:
    """Python does not let a generator that runs be closed; the client cancels it when a heartbeat is refused."""
    async with await provider.reading("waits"):
        await provider.process.wait_for("^waits$")
    await provider.process.wait_for("^closed waits$")


async def test_a_slow_reader_slows_the_generator(provider: Provider) -> None:
    size = 65536
    async with await provider.reading(f"large?_args=[{size}]", "application/msgpack") as stream:
        made = await until_it_rests(provider)
        assert 0 < made * size < 16 * MIB  # what the sockets hold
        read = 0
        while read < 32 * MIB:
            read += len(await stream.receive_some())
        more = (await until_it_rests(provider) - made) * size
        assert read - 8 * MIB < more < read + 8 * MIB  # as much as was read is made again


async def until_it_rests(provider: Provider) -> int:
    """How many items were made, when it has been the same for 20 questions."""
    last, same = -1, 0
    while same < 20:
        made = int((await provider.client.get("made")).text)
        last, same = made, same + 1 if made == last else 0
    return last
