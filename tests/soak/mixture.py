"""Everything at once: clients that come and end in every way, HTTP, large messages, and client processes killed.

What happens is drawn by chance from a seed; in which order it happens the machine says.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.house.processes import start
from tests.house.steps import ROOT
from tests.soak.cycles import EXITS, Cycles
from tests.soak.home import Home
from tests.soak.http_client import http_client, post
from tests.soak.http_load import LEAVES, LEAVING, HttpLoad
from tests.soak.legacy_peer import CallFailed, Disconnected

#: Bytes of the values of large messages: some go out whole, some in up to five parts.
SMALLEST, LARGEST = 50_000, 2_000_000
_LARGE_WORKERS = 2
_ECHO = "services.soak.echo"


class Mixture:
    """The load. *done* counts what was done, by its name."""

    def __init__(self, home: Home, chance: random.Random, directory: Path) -> None:
        self.home = home
        self.chance = chance
        self.cycles = Cycles(home)
        self.http = HttpLoad(home)
        self._directory = directory
        self._others: Counter[str] = Counter()

    @property
    def done(self) -> Counter[str]:
        """So far."""
        return self.cycles.done + self._others + Counter({"http call": len(self.http.seconds)})

    async def warm_up(self) -> None:
        """Do what makes the server keep something for as long as home is there: call all its functions over HTTP."""
        await self.http.run(range(LEAVING * len(LEAVES)))
        await large_call_over_http(self)

    async def run(self, seconds: float) -> None:
        """Go on for *seconds*, and until all that was begun has ended."""
        deadline = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.cycles.run, self._numbers(deadline, len(EXITS) * 8))
            nursery.start_soon(self.http.run, self._numbers(deadline, LEAVING * len(LEAVES)))
            for _ in range(_LARGE_WORKERS):
                nursery.start_soon(self._repeat, deadline, self._large)
            nursery.start_soon(self._repeat, deadline, self._kill)

    def _numbers(self, deadline: float, stop: int) -> Iterator[int]:
        while trio.current_time() < deadline:
            yield self.chance.randrange(stop)

    async def _repeat(self, deadline: float, once: Callable[[], Awaitable[None]]) -> None:
        while trio.current_time() < deadline:
            with trio.fail_after(60):
                await once()

    def value(self) -> bytes:
        """The value of a large message."""
        return self.chance.randbytes(self.chance.randrange(SMALLEST, LARGEST))

    # --- large messages -----------------------------------------------------------------------------------------

    async def _large(self) -> None:
        kind = self.chance.choice(LARGE)
        await kind(self)
        self._others[kind.__name__] += 1

    # --- killed processes ---------------------------------------------------------------------------------------

    async def _kill(self) -> None:
        """Kill a client with a call of its own and one to it in flight, at some moment of its life."""
        peer = self.home.peer
        command = [sys.executable, "-m", "tests.soak.victim", str(self.home.port), peer.address]
        async with (
            trio.open_nursery() as nursery,
            start(
                nursery,
                [*command, str(self.chance.randrange(10**6))],
                cwd=self._directory,
                environ={"PYTHONPATH": str(ROOT)},
            ) as victim,
        ):
            address = (await victim.wait_for("^ready (.+)$"))[1]
            nursery.start_soon(self._hold, address)
            await trio.sleep(self.chance.random())
            assert victim.process.poll() is None, victim.report()
            victim.kill_group()
        self._others["killed process"] += 1

    async def _hold(self, address: str) -> None:
        with pytest.raises(CallFailed, match=f"Target peer {address} is not connected"):
            await self.home.peer.call(address, "services.job.hold")


@contextmanager
def told(address: str) -> Iterator[None]:
    """A call in the block may fail, because *address* is gone."""
    try:
        yield
    except CallFailed as failed:
        if f"Target peer {address} is not connected" not in str(failed):
            raise


async def large_call_home(mixture: Mixture) -> None:
    value, home = mixture.value(), mixture.home.peer
    async with mixture.cycles.guest() as guest:
        assert await guest.peer.call(home.address, _ECHO, value) == value
        await guest.peer.close()


async def large_call_from_home(mixture: Mixture) -> None:
    value = mixture.value()
    async with mixture.cycles.guest() as guest:
        assert await mixture.home.peer.call(guest.peer.address, "services.job.echo", value) == value
        await guest.peer.close()


async def large_call_over_http(mixture: Mixture) -> None:
    value = mixture.value().hex()
    async with http_client(mixture.home.port) as client:
        status, body = await client.ask(post(f"{mixture.home.path}/echo", {"value": value}))
    assert (status, json.loads(body)) == (200, value)


async def large_call_of_a_client_that_is_reset(mixture: Mixture) -> None:
    """At some moment, which may be before the first part or behind the answer."""
    value, home = mixture.value(), mixture.home.peer
    async with mixture.cycles.guest() as guest, trio.open_nursery() as nursery:

        async def call() -> None:
            with suppress(Disconnected):
                assert await guest.peer.call(home.address, _ECHO, value) == value

        nursery.start_soon(call)
        await trio.sleep(mixture.chance.random() / 10)
        guest.peer.reset()


async def large_call_to_a_client_that_is_reset(mixture: Mixture) -> None:
    """Its caller gets the answer, or is told."""
    value, home = mixture.value(), mixture.home.peer
    async with mixture.cycles.guest() as guest, trio.open_nursery() as nursery:

        async def call() -> None:
            with told(guest.peer.address):
                assert await home.call(guest.peer.address, "services.job.echo", value) == value

        nursery.start_soon(call)
        await trio.sleep(mixture.chance.random() / 10)
        guest.peer.reset()


LARGE: tuple[Callable[[Mixture], Awaitable[None]], ...] = (
    large_call_home,
    large_call_from_home,
    large_call_over_http,
    large_call_of_a_client_that_is_reset,
    large_call_to_a_client_that_is_reset,
)
