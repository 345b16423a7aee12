"""How soon a caller knows that its provider was killed (issue 2, figures)."""

from __future__ import annotations

import re

import pytest

from tests.clients.conftest import ClientPython, RunClient
from tests.clients.scripted import passes
from tests.house.environments import GENERATIONS
from tests.house.processes import Server

#: Milliseconds from the SIGKILL until calls in flight have failed and the service is in no list.
PROMISED = 100.0


@pytest.mark.slow
@pytest.mark.parametrize("provider", GENERATIONS, ids=lambda generation: f"provider-{generation}")
@pytest.mark.parametrize("generation", GENERATIONS)
async def test_a_killed_provider_is_known_within_100_ms(
    generation: str, provider: str, run_client: RunClient, client_python: ClientPython, server: Server
) -> None:
    python = str(client_python(provider))
    result = await passes(run_client, generation, "kill_rounds.py", server.url, python, "7")
    print(result.stdout)
    slowest = {name: float(ms) for name, ms in re.findall(r"^(.+): slowest (\S+)", result.stdout, re.MULTILINE)}
    assert set(slowest) == {"in flight", "listed", "next call", "next look-up"}
    assert max(slowest.values()) < PROMISED, result.stdout
