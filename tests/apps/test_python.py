"""Apps in Python: where their Python comes from, and one that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypha.apps.python import PUBLIC, Pyodide, find_pyodide
from hypha.config import Mount, parse_mount
from hypha.errors import HyphaError
from hypha.testing import open_server
from tests.house import pyodide

APP = """
import sys
from hypha_rpc import api

class App:
    def setup(self):
        print("hello from Python")

    def add(self, a, b):
        return a + b

    async def version(self):
        return [sys.platform, sys.version.split()[0]]

    async def count(self, upto):
        for number in range(upto):
            yield number

    def fail(self):
        raise ValueError("on purpose")

app = App()
app.setup()
api.export(app)
"""
PLUGIN = """
<config lang="json">{"name": "Adder", "type": "web-python", "version": "1.0"}</config>
<script lang="python">
from imjoy import api

async def main():
    await api.register_service({"id": "adder", "add": lambda a, b: a + b})

await main()
</script>
"""


async def test_it_comes_from_a_mount_that_holds_it(tmp_path: Path) -> None:
    mount = Mount("/pyodide", tmp_path)
    assert await find_pyodide([]) == await find_pyodide([mount]) == Pyodide(PUBLIC, [])
    for name in ("pyodide.mjs", "b.whl", "a.whl", "a.txt"):
        (tmp_path / name).touch()
    assert await find_pyodide([Mount("/tools", tmp_path)]) == Pyodide(PUBLIC, [])
    assert await find_pyodide([Mount("/", tmp_path), mount]) == Pyodide("../pyodide/", ["a.whl", "b.whl"])


@pytest.mark.slow
@pytest.mark.deadline(120)
async def test_an_app_in_python_runs_without_the_internet(browser: str, tmp_path: Path) -> None:
    if not (pyodide.directory() / "complete").is_file():
        pytest.fail(f"{pyodide.directory()} is missing; run 'python3 -m tests' once, which makes it")
    mounts = (parse_mount(f"/pyodide:{pyodide.directory()}", tmp_path),)
    open_apps = open_server(enable_server_apps=True, chromium_path=browser, static_mounts=mounts, base_path="/base")
    async with open_apps as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        app = await apps.launch(APP, config={"type": "web-python", "name": "Python"})
        service = await user.get_service(f"{app['id']}:default")
        assert await service.add(1, 2) == 3
        assert (await service.version())[0] == "emscripten"
        assert [number async for number in await service.count(3)] == [0, 1, 2]
        with pytest.raises(HyphaError, match="on purpose"):
            await service.fail()
        assert "hello from Python" in await apps.get_log(app["id"], "log")
        await apps.stop(app["id"])
        app = await apps.launch(PLUGIN)
        assert await (await user.get_service(f"{app['id']}:adder")).add(1, 2) == 3
        await apps.stop(app["id"])
        with pytest.raises(
            HyphaError, match=r"Failed to start app: .*NameError: name 'nothing' is not defined"
        ) as failed:
            await apps.launch("nothing()", config={"type": "web-python"})
        assert "data:" not in str(failed.value)
