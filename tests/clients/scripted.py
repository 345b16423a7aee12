"""Running the scripts in ``scripts/`` and reading what they say."""

from __future__ import annotations

from pathlib import Path

from tests.clients.conftest import RunClient
from tests.house.processes import Result, Running

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
