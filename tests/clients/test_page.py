"""The page that this server implements, followed by somebody with a published client (``promises.md`` A14 to A37).

The programs have the form of the page's own, down to ``loop.run_forever()``; only the address is filled in.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio

from tests.clients.conftest import RunClient, StartClient
from tests.house.environments import GENERATIONS
from tests.house.examples import examples
from tests.house.processes import Server
from tests.process.servers import HYPERCORN, SERVER, live

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("generation", GENERATIONS)]

ADDRESS = "http://localhost:9000"

WORKER = """
    import asyncio
    from imjoy_rpc.hypha import connect_to_server

    async def start_server(server_url):
        server = await connect_to_server({"server_url": server_url})

        def hello(name):
            print("greeting " + name)
            return "Hello " + name

        await server.register_service({
            "name": "Hello World",
            "id": "hello-world",
            "config": {
                "visibility": "public"
            },
            "hello": hello
        })

        print(f"workspace: {server.config.workspace}")
        print(f"try it: {server_url}/{server.config.workspace}/services/hello-world/hello?name=John")

    if __name__ == "__main__":
        server_url = "http://localhost:9000"
        loop = asyncio.get_event_loop()
        loop.create_task(start_server(server_url))
        loop.run_forever()
"""

CLIENT = """
    import asyncio
    from imjoy_rpc.hypha import connect_to_server

    async def main():
        server = await connect_to_server({"server_url":  "http://localhost:9000"})
        svc = await server.get_service("hello-world")
        ret = await svc.hello("John")
        print(ret)

    asyncio.run(main())
"""

PRIVATE_WORKER = """
    import asyncio
    from imjoy_rpc.hypha import connect_to_server

    async def start_server(server_url):
        server = await connect_to_server({"server_url": server_url})
        await server.register_service({
            "name": "Ours",
            "id": "ours",
            "config": {
                "visibility": "private"
            },
            "hello": lambda name: "Hello " + name
        })
        token = await server.generate_token()
        print(f"workspace: {server.config.workspace} token: {token}")

    loop = asyncio.get_event_loop()
    loop.create_task(start_server("http://localhost:9000"))
    loop.run_forever()
"""

PRIVATE_CLIENT = """
    import asyncio, sys
    from imjoy_rpc.hypha import connect_to_server

    async def main(workspace, token):
        server = await connect_to_server({
            "workspace": workspace, "token": token, "server_url": "http://localhost:9000"
        })
        svc = await server.get_service("ours")
        print(await svc.hello("friend"))
        await server.disconnect()

    asyncio.run(main(*sys.argv[1:]))
"""

STRANGER = """
    import asyncio, sys
    from imjoy_rpc.hypha import connect_to_server

    async def main(workspace):
        server = await connect_to_server({"server_url": "http://localhost:9000"})
        for query in ("ours", f"{workspace}/*:ours", {"workspace": workspace, "id": "ours"}):
            try:
                await server.get_service(query)
            except Exception as error:
                print("refused:", error)
        print([service["id"] for service in await server.list_services("public")])
        await server.disconnect()

    asyncio.run(main(*sys.argv[1:]))
"""

CONTEXT_WORKER = """
    import asyncio
    from imjoy_rpc.hypha import connect_to_server

    async def start_server(server_url):
        friend = await connect_to_server({"server_url": server_url})
        token = await friend.generate_token()
        allowed = token.split("@")[0]
        server = await connect_to_server({"server_url": server_url})

        def greet(name, context=None):
            user = context["user"]
            if user["id"] != allowed:
                raise PermissionError(f"{user['id']} may not use this")
            return f"Hello {name}, you are {user['id']}"

        await server.register_service({
            "name": "For friends",
            "id": "for-friends",
            "config": {
                "visibility": "public",
                "require_context": True
            },
            "greet": greet
        })
        print(f"workspace: {friend.config.workspace} token: {token}")

    loop = asyncio.get_event_loop()
    loop.create_task(start_server("http://localhost:9000"))
    loop.run_forever()
"""

CONTEXT_CLIENT = """
    import asyncio, sys
    from imjoy_rpc.hypha import connect_to_server

    async def main(*credentials):
        names = ("workspace", "token")
        server = await connect_to_server({"server_url": "http://localhost:9000", **dict(zip(names, credentials))})
        svc = await server.get_service("for-friends")
        try:
            print(await svc.greet("you"))
        except Exception as error:
            print("refused:", error)
        await server.disconnect()

    asyncio.run(main(*sys.argv[1:]))
"""


def filled(program: str, url: str) -> str:
    """The program as somebody saves it who runs the server at *url*."""
    assert ADDRESS in program
    return program.replace(ADDRESS, url)


@pytest.fixture(params=[SERVER, HYPERCORN], ids=["python -m hypha.server", "hypercorn"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The address of a server, started by each of the two commands."""
    directory = tmp_path / "server"
    directory.mkdir()
    async with live(request.param, directory) as server:
        yield f"http://localhost:{server.port}"
        assert "Traceback" not in server.running.report()


async def test_the_pages_worker_client_and_address(generation: str, url: str, start_client: StartClient) -> None:
    async with start_client(generation, filled(WORKER, url)) as worker:
        address = (await worker.wait_for("^try it: (.*)$"))[1]
        assert re.fullmatch(rf"{url}/\w+/services/hello-world/hello\?name=John", address)
        async with start_client(generation, filled(CLIENT, url)) as client:
            await client.wait_for("^Hello John$")
        assert await fetch(address) == (200, "Hello John")
        assert await fetch(address.partition("?")[0], {"name": "JSON"}) == (200, "Hello JSON")
        assert await fetch(address.partition("?")[0], {"name": "msgpack"}, packed=True) == (200, "Hello msgpack")
        for name in ("John", "JSON", "msgpack"):
            await worker.wait_for(f"^greeting {name}$")


async def test_what_somebody_types_into_the_address(generation: str, server: Server, start_client: StartClient) -> None:
    """A20: what is no number stays text; and each mistake has its status and a line that says what to do."""
    async with start_client(generation, filled(WORKER, server.url)) as worker:
        workspace = (await worker.wait_for("^workspace: (.*)$"))[1]
        service = f"{server.url}/{workspace}/services/hello-world"
        for typed, seen in {"007": "007", "true": "true", "": "", "nan": "nan", "J%C3%B6hn%20+": "Jöhn  "}.items():
            assert await fetch(f"{service}/hello?name={typed}") == (200, f"Hello {seen}")
        mistakes = {
            f"{service}/hello": (400, "missing 1 required positional argument: 'name'"),
            f"{service}/hello?name=a&b=c": (400, "unexpected keyword argument 'b'"),
            f"{service}/hello?name=12": (500, "str"),  # what the function itself says of a number
            f"{service}/hallo?name=a": (404, "hello"),
            f"{server.url}/{workspace}/services/hello-wrld/hello": (404, "hello-world"),
            f"{server.url}/nowhere/services/hello-world/hello": (404, "hello-world"),
        }
        for address, (status, words) in mistakes.items():
            answered, answer = await fetch(address)
            assert (answered, answer["success"]) == (status, False), (address, answer)
            assert words in answer["detail"], (address, answer)
            assert "Traceback" not in answer["detail"]


async def test_a_private_service_takes_a_token(
    generation: str, server: Server, start_client: StartClient, run_client: RunClient
) -> None:
    """The first way of the chapter on authorization."""
    async with start_client(generation, filled(PRIVATE_WORKER, server.url)) as worker:
        told = await worker.wait_for(r"^workspace: (\S+) token: (\S+)$")
        workspace, token = told[1], told[2]
        inside = await run_client(generation, filled(PRIVATE_CLIENT, server.url), workspace, token)
        assert inside.stdout == "Hello friend\n", inside
        outside = await run_client(generation, filled(STRANGER, server.url), workspace)
        assert outside.stdout.count("refused:") == 3, outside
        assert f"{workspace}/" not in outside.stdout
        wrong = await run_client(generation, filled(PRIVATE_CLIENT, server.url), workspace, f"{token}x")
        assert "Permission denied for" in wrong.stderr
        address = f"{server.url}/{workspace}/services/ours/hello?name=you"
        assert (await fetch(address))[0] == 404
        assert (await fetch(address, token=f"{token}x"))[0] == 401
        assert await fetch(address, token=token) == (200, "Hello you")


async def test_a_function_decides_by_the_user_in_its_context(
    generation: str, server: Server, start_client: StartClient, run_client: RunClient
) -> None:
    """The second way of the chapter on authorization."""
    async with start_client(generation, filled(CONTEXT_WORKER, server.url)) as worker:
        told = await worker.wait_for(r"^workspace: (\S+) token: (\S+)$")
        workspace, token = told[1], told[2]
        friend = await run_client(generation, filled(CONTEXT_CLIENT, server.url), workspace, token)
        assert friend.stdout == f"Hello you, you are {token.partition('@')[0]}\n", friend
        stranger = await run_client(generation, filled(CONTEXT_CLIENT, server.url))
        assert re.match(r"refused: .*may not use this", stranger.stdout), stranger


async def test_the_readmes_worker_client_and_address(
    generation: str, server: Server, start_client: StartClient
) -> None:
    programs = examples("README.md")
    async with start_client(generation, filled(programs["worker"], server.url)) as worker:
        address = (await worker.wait_for("^(http://.*)$"))[1]
        async with start_client(generation, filled(programs["client"], server.url)) as client:
            await client.wait_for("^Hello John$")
        assert await fetch(address) == (200, "Hello John")


async def fetch(
    address: str, arguments: dict[str, Any] | None = None, *, packed: bool = False, token: str | None = None
) -> tuple[int, Any]:
    """GET without *arguments*, POST with them; the status, and the answer decoded."""
    return await trio.to_thread.run_sync(_fetch, address, arguments, packed, token)


def _fetch(address: str, arguments: dict[str, Any] | None, packed: bool, token: str | None) -> tuple[int, Any]:
    dumps, loads = (
        (msgpack.packb, msgpack.unpackb) if packed else (lambda value: json.dumps(value).encode(), json.loads)
    )
    headers = {"Content-Type": "application/msgpack" if packed else "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None if arguments is None else dumps(arguments)
    request = urllib.request.Request(address, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, loads(error.read())
