"""Whatever one connection does, the process lives, its neighbour is served as before, and nothing is left behind.

Each row runs under both commands, where the neighbour is measured, and once more against a server that tells what it
holds: its tasks, and every table and object of its own. ``docs/robustness.md`` has the rows for people.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from functools import partial

import pytest
import trio

from tests.attack.attacks import POLITE, ROWS
from tests.attack.place import ENVIRON, FORGOTTEN, SLICE, NeighbourHurt, Place, judge, surrounded
from tests.house.processes import serving
from tests.house.steps import ROOT
from tests.process.servers import HYPERCORN, SERVER
from tests.soak.watching import WATCHED, Holdings, watch

pytestmark = pytest.mark.slow

COMMANDS = {"hypha.server": SERVER, "hypercorn": HYPERCORN}


def test_the_documentation_names_every_row() -> None:
    page = (ROOT / "docs" / "robustness.md").read_text()
    assert re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE) == list(ROWS)


@pytest.fixture(scope="module", params=COMMANDS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One server for all rows, so that it has had all of them in the end. It must end well, without a traceback."""
    directory = tmp_path_factory.mktemp("server")
    with serving(directory, command=COMMANDS[request.param], environ=ENVIRON) as server, surrounded(server) as place:
        yield place


@pytest.mark.parametrize("row", ROWS)
async def test_a_neighbour_of_an_attack(row: str, place: Place) -> None:
    before = place.holdings()
    print(await place.judge(row, ROWS[row].connections))
    await place.settled(before)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("watched")
    with serving(directory, command=WATCHED, environ=ENVIRON) as server, surrounded(server) as place:
        yield place


@pytest.fixture(scope="module")
def start(watched: Place) -> Holdings:
    """What the watched server holds before all attacks, and after each."""
    time.sleep(FORGOTTEN)  # nothing says from outside that those who have left are forgotten
    return trio.run(_inside, watched)


async def _inside(place: Place) -> Holdings:
    async with watch(place.server) as inside:
        return await inside.holdings()


@pytest.mark.parametrize("row", ROWS)
async def test_nothing_is_left_of_an_attack(row: str, watched: Place, start: Holdings) -> None:
    before = watched.holdings()
    await watched.slice(row, ROWS[row].connections)
    async with watch(watched.server) as inside:
        await inside.settled(start)
    await watched.settled(before)


async def test_a_server_that_stands_still_for_a_moment_is_found_out(watched: Place) -> None:
    """The measure itself: 50 ms in which nobody is served, once in a slice, do not drown among the other echoes."""

    async def stand_still() -> None:
        await trio.sleep(SLICE / 2)
        watched.server.process.send_signal(signal.SIGUSR2)

    async def standing_still() -> float:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stand_still)
            return await watched.slice(POLITE, 2)

    with pytest.raises(NeighbourHurt):
        await judge(partial(watched.slice, POLITE, 2), standing_still)
