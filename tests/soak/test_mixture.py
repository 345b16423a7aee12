"""Everything at once for as long as one likes, and the death of workers: flat memory, tasks and descriptors.

``python3 -m tests soak --minutes 30``. The short versions run with all other tests and assert the same counts.
"""

from __future__ import annotations

import random
from pathlib import Path
from statistics import median_low

import pytest
import trio

from tests.process.servers import SERVER, live, until
from tests.soak.cycles import EXITS
from tests.soak.home import open_home
from tests.soak.mixture import LARGE, Mixture
from tests.soak.watching import Holdings, grown, watched_server
from tests.soak.workers import Story, holdings

#: A run is cut into so many rounds; after each the server must hold what it held before, and its memory is noted.
ROUNDS = 8
#: What the memory in use in the second half of the rounds may be of that in the first half. The lower median of each
#: half is taken: a few large messages that came together leave holes, which the next ones fill.
MEMORY = 1.05
#: So many objects of a type more are no leak, however short the run: caches fill.
SLACK = 100
#: A parent gives up when its workers crash again and again; these are fewer times.
KILLS = 4


@pytest.mark.soak
async def test_everything_at_once_for_as_long_as_one_likes(tmp_path: Path, minutes: float, seed: int) -> None:
    memory = await mixed(tmp_path, 60 * minutes / ROUNDS, ROUNDS, seed)
    first, second = median_low(memory[: ROUNDS // 2]), median_low(memory[ROUNDS // 2 :])
    print(f"memory of the second half: {second / first:.3f} of that of the first")
    assert second <= MEMORY * first


@pytest.mark.slow
async def test_everything_at_once_for_a_moment(tmp_path: Path, seed: int) -> None:
    await mixed(tmp_path, 3, 2, seed)


async def mixed(directory: Path, seconds: float, rounds: int, seed: int) -> list[int]:
    """Run the mixture in *rounds* of *seconds* and assert that they leave nothing; the bytes of memory after each."""
    async with watched_server(directory) as server, open_home(server.port) as home:
        connected = await server.holdings()
        mixture = Mixture(home, random.Random(seed), directory)
        await mixture.warm_up()
        start = await server.settled(connected, ("process", "tasks"))
        states: list[Holdings] = []
        for number in range(rounds):
            await mixture.run(seconds)
            with trio.fail_after(20):
                await home.hold.idle()  # the providers of abandoned calls learn it from their next heartbeat
            states.append(await server.settled(start))
            done = mixture.done.total()
            used, resident = (f"{states[-1][name] / 1e6:.1f} MB" for name in ("used", "rss"))
            print(f"round {number + 1} of {rounds}: {done} done, {used} in use, {resident} resident")
            if number + 1 == rounds // 2:
                half = done
    print(", ".join(f"{count} x {name}" for name, count in sorted(mixture.done.items())))
    assert min(mixture.done[kind.__name__] for kind in LARGE) > 0 or seconds < 10
    each = (mixture.done.total() - half) / (len(EXITS) + len(LARGE)) / 8
    assert not grown(states[rounds // 2 - 1], states[-1], max(SLACK, 0.1 * each))
    return [state["used"] for state in states]


@pytest.mark.soak
async def test_killed_workers_beside_the_mixture(tmp_path: Path, minutes: float) -> None:
    await killed_workers(tmp_path, KILLS)


@pytest.mark.slow
async def test_killed_workers_leave_nothing_behind(tmp_path: Path) -> None:
    await killed_workers(tmp_path, 2)


async def killed_workers(directory: Path, kills: int) -> None:
    """Kill the worker *kills* times under load; the parent and the last worker hold what the first ones held."""
    async with live((*SERVER, "--limit", "session_grace=1"), directory) as server:
        parent, worker = holdings(server.pid), holdings(server.worker())
        story = Story(server)
        await story.run(kills)
        await until(lambda: holdings(server.worker())["fd"] <= worker["fd"], 20)
        after, last = holdings(server.pid), holdings(server.worker())
    print(
        f"{story.answered.total()} calls answered, {story.lost} lost by {kills} kills; the parent: {parent} -> {after}"
    )
    print(f"the first worker before the load: {worker}, the last one after it: {last}")
    assert (after["fd"], after["task"]) == (parent["fd"], parent["task"])
    assert after["rss"] <= 1.1 * parent["rss"]
    assert last["task"] <= worker["task"]
