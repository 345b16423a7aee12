"""Running the scripts in ``scripts/`` and reading what they say."""

from __future__ import annotations

from pathlib import Path

from tests.clients.conftest import RunClient
from tests.house.processes import Result, Running, Server

SCRIPTS = Path(__file__).parent / "scripts"


async def passes(run_client: RunClient, generation: str, script: str, *arguments: str, seconds: float = 30.0) -> Result:
    """Run *script* to its end and assert that it came there: every assertion in it held."""
    result = await run_client(generation, SCRIPTS / script, *arguments, seconds=seconds)
    assert result.returncode == 0, f"{script} {arguments}\n{result.stdout}\n{result.stderr}"
    assert result.stdout.endswith("passed\n"), result.stdout
    return result


async def service_of(provider: Running) -> tuple[str, str, str]:
    """What ``provider.py`` says when it is ready: the full id of its service, its workspace, a token for it."""
    ready = await provider.wait_for(r"^ready (\S+) (\S+)$")
    return ready[1], ready[1].partition("/")[0], ready[2]


def worker_of(server: Server) -> int:
    """The process that serves, a child of the one that was started; 0 when there is none at the moment."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    assert len(children) <= 1, children
    return int(children[0]) if children else 0
