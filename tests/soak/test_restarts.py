"""The server is killed again and again under clients of every generation: nothing acknowledged is lost (D-1).

``python3 -m tests soak --minutes 60 -s tests/soak/test_restarts.py``. The short version runs with all other tests.
"""

from __future__ import annotations

import random
import time
from itertools import chain, repeat
from pathlib import Path

import pytest

from tests.soak.restarts import DELAYS, WAYS, Load, flocks, kill_worker, report, restarts, supervised

#: Workspaces are made all the time, by one user.
UNBOUNDED = (
    "anonymous_workspaces",
    "anonymous_workspaces_per_principal",
    "revoked_tokens",
    "revoked_tokens_per_principal",
    "bad_tokens_per_address",
)
FLAGS = tuple(f"--limit={name}=100000000" for name in UNBOUNDED)


@pytest.mark.slow
async def test_clients_of_all_generations_survive_each_way_to_end_a_server(tmp_path: Path) -> None:
    sizes = dict.fromkeys(DELAYS, 1)
    async with supervised(tmp_path, *FLAGS) as server, flocks(server, sizes, tmp_path) as together:
        load = Load(server, together)
        await restarts(server, load, WAYS)
        report(load)


@pytest.mark.soak
async def test_a_hundred_clients_are_back_in_seconds_when_the_worker_is_killed(tmp_path: Path) -> None:
    sizes = dict(zip(DELAYS, (16, 16, 16, 17, 17, 18), strict=True))
    async with supervised(tmp_path, *FLAGS) as server, flocks(server, sizes, tmp_path) as together:
        load = Load(server, together)
        await restarts(server, load, [kill_worker] * 3)
        report(load)


@pytest.mark.soak
async def test_restarts_for_as_long_as_one_likes(tmp_path: Path, minutes: float, seed: int) -> None:
    chance, ends = random.Random(seed), time.monotonic() + 60 * minutes
    sizes = dict.fromkeys(DELAYS, 3)
    async with supervised(tmp_path, *FLAGS) as server, flocks(server, sizes, tmp_path) as together:
        load = Load(server, together)
        for ways in chain([list(WAYS)], (chance.choices(WAYS, k=4) for _ in repeat(None))):
            await restarts(server, load, ways)
            report(load)
            if time.monotonic() > ends:
                break
