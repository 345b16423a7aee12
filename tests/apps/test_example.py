"""The example of the documentation with the clients of each generation, and what only the older ones ask for."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import trio

from tests.apps.conftest import OpenServer
from tests.house import environments, processes
from tests.house.environments import Environment
from tests.house.examples import examples

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("client", environments.CLIENTS, ids=lambda client: client.name)
async def test_a_client_of_each_generation(
    client: Environment, open_apps: OpenServer, nursery: trio.Nursery, tmp_path: Path
) -> None:
    code = examples("docs/how-to.md")["app"]
    if client.name.startswith("hypha-rpc"):
        code = code.replace("imjoy_rpc.hypha", "hypha_rpc")
    async with open_apps() as server:
        script = tmp_path / "script.py"
        await trio.Path(script).write_text(code.replace("http://localhost:9000", server.url))
        done = await processes.run(nursery, [str(client.python), str(script)], cwd=tmp_path, seconds=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("3\n['the app starts']\n")  # hypha-rpc adds what it logs
        assert (await trio.Path(tmp_path / "calculator.png").read_bytes()).startswith(b"\x89PNG")


LAZY = """
    import asyncio, sys
    from imjoy_rpc.hypha import connect_to_server

    APP = "await api.registerService({id: 'calculator', add: (a, b) => a + b})"

    async def main(url):
        server = await connect_to_server({"server_url": url})
        apps = await server.get_service("server-apps")
        config = {"type": "web-worker", "name": "Calculator", "services": [{"id": "calculator"}]}
        await apps.install(source=APP, config=config)
        for name in (None, "Calculator"):
            query = {"id": "calculator", "launch": True}
            calculator = await server.get_service({**query, "client_name": name} if name else query)
            assert await calculator.add(1, 2) == 3
            again = await server.get_service(query)
            assert await again.add(2, 3) == 5
            (app,) = await apps.list_running()
            await apps.stop(app["id"])
        try:
            await server.get_service({"id": "other", "launch": True})
        except Exception as error:
            assert "Service id other not found" in str(error), error
        else:
            raise AssertionError("nothing offers it")
        await server.disconnect()

    asyncio.run(main(sys.argv[1]))
"""


async def test_a_service_that_is_asked_for_starts_the_app_that_offers_it(
    open_apps: OpenServer, nursery: trio.Nursery, tmp_path: Path
) -> None:
    async with open_apps() as server:
        script = tmp_path / "script.py"
        await trio.Path(script).write_text(textwrap.dedent(LAZY))
        command = [str(environments.CLIENTS[0].python), str(script), server.url]
        done = await processes.run(nursery, command, cwd=tmp_path, seconds=60)
        assert done.returncode == 0, done.stderr
