"""Rows 18 to 28 of ``protocol.md`` section 12 for Cp, hypha-rpc for Python.

What a row says is asserted by ``scripts/modern.py``, which runs with the client's own interpreter.
"""

from __future__ import annotations

import pytest

from tests.clients.conftest import RunClient
from tests.clients.scripted import passes
from tests.clients.wire import between
from tests.house.environments import MODERN
from tests.house.processes import Server

pytestmark = pytest.mark.parametrize("generation", [MODERN])


@pytest.mark.parametrize(
    "row",
    [
        pytest.param("18", id="row-18-connect"),
        pytest.param("19", id="row-19-token"),
        pytest.param("20", id="row-20-refusals"),
        pytest.param("21", id="row-21-services"),
        pytest.param("21-export", id="row-21-export"),
        pytest.param("22", id="row-22-functions-and-generators"),
        pytest.param("23", id="row-23-signs-of-life"),
        pytest.param("26", id="row-26-a-dead-peer"),
        pytest.param("27", id="row-27-events"),
    ],
)
async def test_row(generation: str, row: str, run_client: RunClient, server: Server) -> None:
    await passes(run_client, generation, "modern.py", server.url, row)


@pytest.mark.slow
async def test_row_28_what_is_large_comes_in_parts(generation: str, run_client: RunClient, server: Server) -> None:
    """A frame over 1 MiB would make the client's library close, and the client connect again."""
    async with between(server.url) as wire:
        await passes(run_client, generation, "modern.py", wire.url, "28", seconds=60)
        assert wire.connects == 2
        assert set(wire.closes) == {1000}
