"""The rows of ``protocol.md`` section 12 for legacy clients, each with both generations of the published client.

What a row says is asserted by the scripts in ``scripts/``, which run with the client's own interpreter.
"""

from __future__ import annotations

import pytest

from tests.clients.conftest import RunClient, StartClient
from tests.clients.scripted import SCRIPTS, passes, service_of
from tests.house.environments import GENERATIONS
from tests.house.processes import Server

pytestmark = pytest.mark.parametrize("generation", GENERATIONS)


@pytest.mark.parametrize(
    ("script", "row"),
    [
        pytest.param("connect.py", "1", id="row-1-connect"),
        pytest.param("connect.py", "2", id="row-2-echo-and-log"),
        pytest.param("connect.py", "3", id="row-3-token"),
        pytest.param("connect.py", "4", id="row-4-refusals"),
        pytest.param("services.py", "5", id="row-5-functions"),
        pytest.param("services.py", "6", id="row-6-overwrite"),
        pytest.param("services.py", "7", id="row-7-export-and-unregister"),
        pytest.param("services.py", "setup", id="row-7-setup"),
        pytest.param("look_up.py", "8", id="row-8-queries"),
        pytest.param("look_up.py", "9", id="row-9-protected-and-public"),
        pytest.param("look_up.py", "lists", id="lists"),
        pytest.param("context.py", None, id="row-10-context"),
        pytest.param("values.py", None, id="row-11-values"),
        pytest.param("connect.py", "16", id="row-16-workspaces"),
    ],
)
async def test_row(generation: str, script: str, row: str | None, run_client: RunClient, server: Server) -> None:
    arguments = [server.url, row] if row else [server.url]
    await passes(run_client, generation, script, *arguments)


@pytest.mark.slow
async def test_row_12_a_call_of_25_seconds_outlives_a_limit_of_10(
    generation: str, run_client: RunClient, server: Server
) -> None:
    await passes(run_client, generation, "long_calls.py", server.url, seconds=60)


@pytest.mark.slow
async def test_row_12_a_slow_answer_of_the_server_itself_outlives_the_limit(
    generation: str, start_client: StartClient, run_client: RunClient, server: Server
) -> None:
    async with start_client(generation, SCRIPTS / "provider.py", server.url) as provider:
        await passes(run_client, generation, "slow_look_up.py", server.url, *await service_of(provider))
