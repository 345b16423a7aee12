"""Modules that start with the server, with real servers: what they offer, what they cannot do, and that they end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from hypha.errors import ConfigError
from hypha.launch.plan import read_plan
from tests.house.examples import blocks
from tests.house.processes import run
from tests.house.steps import ROOT
from tests.launch.programs import gone, is_alive
from tests.process.servers import HYPERCORN, SERVER, SINGLE, all_gone, group, live, refused
from tests.process.test_launch import failed, get, loaded, pid_of, services, started, until_loaded

pytestmark = pytest.mark.slow

ALL = pytest.mark.parametrize("command", [SERVER, SINGLE, HYPERCORN], ids=["parent", "single", "hypercorn"])

GREETER = """
import asyncio

async def start(server, word="Hello"):
    async def hello(name):
        await asyncio.sleep(0.001)
        return f"{word} {name}"
    await server.register_service({"id": "hi", "config": {"visibility": "public"}, "hello": hello})
"""
#: Holds its event loop up for longer than any test waits, and takes no cancellation.
BLOCKING = """
import time

async def start(server):
    await server.register_service({"id": "stuck", "config": {"visibility": "public"}, "hello": lambda: "hi"})
    time.sleep(1000)
"""
PLAIN = """
import time

def start(server):
    server.register_service({"id": "plain", "config": {"visibility": "public"}, "hello": lambda: "hi"})
    while True:
        time.sleep(1000)
"""
TRIO = """
import trio

__hypha_backend__ = "trio"

async def start(server):
    await server.register_service({"id": "trio", "config": {"visibility": "public"}, "hello": lambda: "hi"})
    await trio.sleep_forever()
"""


def module(directory: Path, name: str, code: str, **more: object) -> dict[str, object]:
    """The entry of a module with this code."""
    (directory / f"{name}.py").write_text(code)
    return {"name": name, "module": f"{name}.py", "entrypoint": "start", **more}


def test_the_recipe_is_the_example() -> None:
    (shown,) = [
        block.code
        for block in blocks((ROOT / "docs/how-to.md").read_text())
        if "register_services" in block.code and block.language == "python"
    ]
    assert shown in (ROOT / "docs/examples/hello_service.py").read_text()


def test_every_key_of_a_module_is_documented(tmp_path: Path) -> None:
    chapter = (ROOT / "docs/reference.md").read_text().partition("\n## Modules that start with the server\n")[2]
    documented = set(re.findall(r"`(\w+)`", chapter.partition("|\n\n")[0].replace("function(", "")))
    path = services(tmp_path, {"module": "x.py", "aaaaa": 1})
    with pytest.raises(ConfigError) as caught:
        read_plan(path)
    known = str(caught.value).partition("module are ")[2].split(", ")
    assert set(known) <= documented


async def test_the_file_at_the_top_works_as_it_stands(tmp_path: Path) -> None:
    shutil.copy(ROOT / "services_config.yaml", tmp_path)
    shutil.copytree(ROOT / "docs" / "examples", tmp_path / "docs" / "examples")
    async with live([*SERVER, "--services-config=./services_config.yaml"], tmp_path) as server:
        await until_loaded(server.port)
        assert await get(server.port, "/public/services/hello-service/hello?name=John") == (200, '"Hello John"')
        assert await get(server.port, "/public/services/word-counter/count_words?text=a+b+c") == (200, "3")
        server.kill(signal.SIGTERM)
        result = await server.ended()
    assert result.returncode == 0
    said = [line for line in result.stderr.splitlines() if line.startswith("hypha: ")]
    assert [line.split(" after")[0] for line in said[:2]] == ["hypha: hello is ready", "hypha: word-counter is ready"]


@ALL
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
async def test_every_kind_of_module_ends_with_the_server(
    command: Sequence[str], end: signal.Signals, tmp_path: Path
) -> None:
    codes = {"hi": GREETER, "stuck": BLOCKING, "plain": PLAIN, "trio": TRIO}
    entries = [module(tmp_path, f"m_{name}", code, check_services=[name]) for name, code in codes.items()]
    full, environ = started(command, services(tmp_path, *entries))
    async with live(full, tmp_path, environ) as server:
        await until_loaded(server.port)
        for name in codes:
            path = f"/public/services/{name}/hello{'?name=x' if name == 'hi' else ''}"
            assert (await get(server.port, path))[0] == 200
        members = group(server.pid)
        began = time.monotonic()
        server.kill(end)
        if end is signal.SIGTERM:
            result = await server.ended()
            assert result.returncode == 0
            assert time.monotonic() - began < 5
        else:
            await server.running.wait()
            await all_gone(members)
            await refused(server.port)


async def test_a_module_with_a_client_of_its_own(tmp_path: Path) -> None:
    """The published client in the thread of the module, unchanged."""
    code = """
import logging

from imjoy_rpc.hypha import connect_to_server

logging.getLogger("websocket-client").disabled = True  # it logs a traceback when the server has ended

async def start(server):
    token = await server.generate_token()
    url = server.config.public_base_url
    mine = await connect_to_server({"server_url": url, "token": token, "workspace": "public", "client_id": "old"})
    await mine.register_service(
        {"id": "hi", "name": "hi", "config": {"visibility": "public"}, "hello": lambda name: "Hello " + name}
    )
"""
    path = services(tmp_path, module(tmp_path, "mine", code, check_services=["hi"], timeout=20))
    async with live([*SERVER, "--services-config", str(path)], tmp_path) as server:
        await until_loaded(server.port)
        assert await get(server.port, "/public/services/hi/hello?name=x") == (200, '"Hello x"')
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0


async def test_a_server_that_came_back_has_its_modules_again(tmp_path: Path) -> None:
    path = services(tmp_path, module(tmp_path, "mine", GREETER, check_services=["hi"]))
    async with live([*SERVER, "--services-config", str(path)], tmp_path) as server:
        await until_loaded(server.port)
        os.kill(server.worker(), signal.SIGKILL)
        await server.running.wait_for("back after", "stderr")
        await until_loaded(server.port)
        assert await get(server.port, "/public/services/hi/hello?name=x") == (200, '"Hello x"')
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0


@ALL
async def test_a_module_that_fails_ends_the_server(command: Sequence[str], tmp_path: Path) -> None:
    broken = module(tmp_path, "broken", "async def start(server):\n    raise ValueError('of glass')\n")
    path = services(tmp_path, module(tmp_path, "mine", GREETER, check_services=["hi"]), broken)
    result = await failed(command, path)
    (said,) = [line for line in result.stderr.splitlines() if "of glass" in line]
    assert said == f"hypha: broken failed: start in {tmp_path}/broken.py raised ValueError: of glass (line 2)"
    if "hypercorn" not in command:
        assert result.returncode == 1
    assert "another one starts" not in result.stderr


async def test_a_missing_function_ends_the_server(tmp_path: Path) -> None:
    result = await failed(SERVER, services(tmp_path, module(tmp_path, "mine", "")))
    assert result.returncode == 1
    assert f"hypha: mine cannot start: start in {tmp_path}/mine.py is not there" in result.stderr


async def test_with_restart_a_module_starts_again_as_it_is_then(tmp_path: Path) -> None:
    exits = "import sys\nasync def start(server):\n    sys.exit(7)\n"
    path = services(tmp_path, module(tmp_path, "mine", exits, check_services=["hi"], on_failure="restart"))
    async with live([*SERVER, "--services-config", str(path)], tmp_path) as server:
        await server.running.wait_for(r"mine failed: start in \S+ called sys.exit\(7\)", "stderr")
        assert not await loaded(server.port)
        (tmp_path / "mine.py").write_text(GREETER)
        await server.running.wait_for("mine is ready after", "stderr")
        assert await loaded(server.port)
        assert await get(server.port, "/public/services/hi/hello?name=x") == (200, '"Hello x"')
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0


async def test_modules_are_there_when_programs_start(tmp_path: Path) -> None:
    ask = (
        "import os, urllib.request as u; print('pid', os.getpid(), u.urlopen(os.environ['HYPHA_SERVER_URL'] + "
        "'/public/services/hi/hello?name=x').read().decode(), flush=True); import time; time.sleep(99)"
    )
    command = {"name": "asker", "command": ["python", "-c", ask]}
    slow = "import time; time.sleep(0.5)\n" + GREETER
    path = services(tmp_path, command, module(tmp_path, "mine", slow, check_services=["hi"], kwargs={"word": "Hey"}))
    async with live([*SERVER, "--services-config", str(path)], tmp_path) as server:
        pid = await pid_of(server, "asker", '"Hey x"')
        assert is_alive(pid)
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0
    await gone(pid)


# --- startup functions ------------------------------------------------------------------------------------------


@ALL
async def test_startup_functions(command: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text(GREETER)
    (tmp_path / "pack").mkdir()
    second = (
        "async def main(server):\n    hi = await server.get_service('hi')\n    print('told', await hi.hello('x'))\n"
    )
    (tmp_path / "pack" / "second.py").write_text(second)
    functions = ["first.py:start", "pack/second.py:main"]
    full, environ = list(command), {}
    if "hypercorn" in command:
        environ["HYPHA_STARTUP_FUNCTIONS"] = " ".join(functions)
    else:
        full += ["--startup-functions", *functions]
    async with live(full, tmp_path, environ) as server:
        await server.running.wait_for("^told Hello x$")
        await until_loaded(server.port)
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0


@pytest.mark.parametrize("level", ["info", "debug"])
async def test_a_startup_function_that_fails_ends_the_start(level: str, tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text("async def start(server):\n    raise ValueError('of glass')\n")
    flags = ["--startup-functions", "first.py:start", "--port", "0", "--log-level", level]
    async with trio.open_nursery() as nursery:
        result = await run(nursery, [*SERVER, *flags], cwd=tmp_path, seconds=30)
    assert result.returncode == 1
    said = [line for line in result.stderr.splitlines() if line.startswith("hypha: ")]
    assert said == [f"hypha: first.py failed: start in {tmp_path}/first.py raised ValueError: of glass (line 2)"]
    assert len(re.findall("^Traceback", result.stderr, re.MULTILINE)) == (1 if level == "debug" else 0)
