"""The Python generations call each other, inside one workspace and between two (row 31 of the checklist)."""

from __future__ import annotations

from itertools import permutations

import pytest

from tests.clients.conftest import RunClient, StartClient
from tests.clients.scripted import SCRIPTS, passes, service_of
from tests.house.environments import GENERATIONS, MODERN
from tests.house.processes import Server

PAIRS = list(permutations((*GENERATIONS, MODERN), 2))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["inside", "between"])
@pytest.mark.parametrize(("caller", "provider"), PAIRS, ids=lambda generation: generation)
async def test_row_31_one_generation_calls_the_other(
    caller: str, provider: str, where: str, start_client: StartClient, run_client: RunClient, server: Server
) -> None:
    """Values, keyword arguments, nested functions, callbacks, errors, and arrays of 12 MB both ways."""
    visibility = "protected" if where == "inside" else "public"
    async with start_client(
        provider, SCRIPTS / "provider.py", server.url, f"visibility={visibility}", "id=pair"
    ) as running:
        service_id, workspace, token = await service_of(running)
        settings = (f"workspace={workspace}", f"token={token}") if where == "inside" else ()
        for part in ("functions", "values", "large"):
            await passes(run_client, caller, "caller.py", server.url, service_id, part, *settings)
