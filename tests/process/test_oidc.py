"""The settings of OpenID Connect as they travel: where the secret goes, and a start that cannot be."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio

from tests.house.processes import Result, run
from tests.process.servers import HYPERCORN, SERVER, SINGLE, command_line, group, live

pytestmark = pytest.mark.slow

SECRET = "canary-secret"
FLAGS = ("--oidc-issuer", "http://127.0.0.1:1", "--oidc-client-id", "hypha")
ENVIRON = {"HYPHA_OIDC_ISSUER": FLAGS[1], "HYPHA_OIDC_CLIENT_ID": FLAGS[3], "HYPHA_OIDC_CLIENT_SECRET": SECRET}


@pytest.mark.parametrize("command", [SERVER, SINGLE, HYPERCORN], ids=["parent", "single", "hypercorn"])
async def test_the_secret_is_on_no_command_line_and_no_program_sees_it(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text("format_version: 1\nservices:\n- {command: env, on_failure: warn}\n")
    environ = {**ENVIRON, "HYPHA_SERVICES_CONFIG": "s.yaml", "HYPHA_LOG_LEVEL": "debug"}
    async with live(command, tmp_path, environ) as server:
        await server.running.wait_for("PYTHONUNBUFFERED=1", "stderr")
        lines = [command_line(pid) for pid in group(server.pid)]
        server.kill(signal.SIGTERM)
        result = await server.ended()
    assert "HYPHA_TOKEN=" in result.stderr
    for text in (*lines, result.stdout, result.stderr):
        assert SECRET not in text
        assert "HYPHA_OIDC" not in text


async def start(nursery: trio.Nursery, cwd: Path, command: tuple[str, ...], environ: dict[str, str]) -> Result:
    return await run(nursery, command, cwd=cwd, environ=environ, seconds=20)


@pytest.mark.parametrize("command", [SERVER, SINGLE, HYPERCORN], ids=["parent", "single", "hypercorn"])
async def test_without_the_extra_the_server_ends_at_once_and_says_what_to_install(
    command: tuple[str, ...], tmp_path: Path, nursery: trio.Nursery
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['httpx'] = None\n")
    environ = {**ENVIRON, "PYTHONPATH": str(tmp_path), "HYPHA_PORT": "0"}
    result = await start(nursery, tmp_path, command, environ)
    assert "hypha: --oidc-issuer needs the extra hypha[oidc]; install what it holds: " in result.stderr
    assert ("Traceback" in result.stderr, SECRET in result.stderr) == (False, False)
    if command != HYPERCORN:
        assert result.returncode == 2


@pytest.mark.parametrize("command", [SERVER, SINGLE, HYPERCORN], ids=["parent", "single", "hypercorn"])
async def test_a_secret_alone_ends_the_start(command: tuple[str, ...], tmp_path: Path, nursery: trio.Nursery) -> None:
    environ = {"HYPHA_OIDC_CLIENT_SECRET": SECRET, "HYPHA_PORT": "0"}
    result = await start(nursery, tmp_path, command, environ)
    assert "hypha: HYPHA_OIDC_CLIENT_SECRET needs --oidc-issuer" in result.stderr
    assert ("Traceback" in result.stderr, SECRET in result.stderr) == (False, False)
    if command != HYPERCORN:
        assert result.returncode == 2
