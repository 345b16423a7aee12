"""The example of the documentation, as it stands and with the present client of the original."""

from __future__ import annotations

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
