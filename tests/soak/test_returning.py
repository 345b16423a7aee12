"""A client that comes back 200 times, with its predecessors in every state: each service once (C-RECON-1)."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.soak.home import Home, hello, open_home
from tests.soak.legacy_peer import Disconnected, LegacyPeer, Map, Refused, connect
from tests.soak.watching import watched_server

SEED, RETURNS = 1, 200
#: The client's services: all of them are there, or none.
NAMES = ["play", "rest", "work"]

Return = Callable[["Story"], Awaitable[None]]


class Story:
    """The life of one client id. *peer* holds it now. *looks*: how many lists were seen meanwhile."""

    def __init__(self, home: Home, nursery: trio.Nursery) -> None:
        self.home = home
        self.peer: LegacyPeer
        self.looks = 0
        self._nursery = nursery
        self._services: Map = {}
        self._cuts = 0
        self._absent = False

    async def begin(self) -> None:
        """Connect and register, once and for all."""
        self.peer = await self._nursery.start(self._live, {})
        for name in NAMES:
            await self.peer.register({"id": name, "config": {"visibility": "public"}, "hello": hello})

    async def come_back(self) -> LegacyPeer:
        """A new connection with the token of the present one."""
        token = {"reconnection_token": self.peer.reconnection_token}
        peer: LegacyPeer = await self._nursery.start(self._live, token)
        return peer

    async def _live(self, credentials: dict[str, str], task_status: trio.TaskStatus[LegacyPeer]) -> None:
        async with connect(self.home.port, "phoenix", services=self._services, **credentials) as peer:
            task_status.started(peer)
            await peer.ended.wait()

    @contextmanager
    def absence(self) -> Iterator[None]:
        """The time in which the services may be missing."""
        self._cuts, self._absent = self._cuts + 1, True
        yield
        self._absent = False

    async def answers(self) -> None:
        """Home calls each service."""
        for name in NAMES:
            assert await self.home.peer.call(self.peer.address, f"services.{name}.hello", name="home") == "Hello home"

    async def watch(self) -> None:
        """Look at the public list all the time."""
        peer = self.home.peer
        while True:
            before = (self._cuts, self._absent)
            entries = await peer.invoke(peer.manager["listServices"], "public")
            ids = [entry["id"] for entry in entries if entry["id"].startswith(f"{self.peer.address}:")]
            found = sorted(text.rpartition(":")[2] for text in ids)
            assert found == NAMES or (not found and (self._absent or (self._cuts, self._absent) != before)), found
            self.looks += 1
            await trio.sleep(0.002)


# --- ways to come back ----------------------------------------------------------------------------------------


async def beside_the_old_one(story: Story) -> None:
    story.peer = await story.come_back()


async def beside_a_frozen_one(story: Story) -> None:
    story.peer.freeze()
    story.peer = await story.come_back()


async def after_the_end_of_the_stream(story: Story) -> None:
    with story.absence():
        story.peer.vanish()
        story.peer = await story.come_back()


async def after_a_reset(story: Story) -> None:
    with story.absence():
        story.peer.reset()
        story.peer = await story.come_back()


async def twice_at_once(story: Story) -> None:
    """Two holders of the token race; one has the place in the end, and the other was told."""
    came: list[LegacyPeer] = []

    async def come() -> None:
        try:
            came.append(await story.come_back())
        except* (Disconnected, Refused):
            pass  # the other was faster

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        nursery.start_soon(come)
    if len(came) == 2:
        async with trio.open_nursery() as nursery:
            for peer in came:
                nursery.start_soon(_cancel_after, peer.dismissed, nursery.cancel_scope)
    (story.peer,) = [peer for peer in came if not peer.dismissed.is_set()]


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


RETURNS_BY: tuple[Return, ...] = (
    beside_the_old_one,
    beside_a_frozen_one,
    after_the_end_of_the_stream,
    after_a_reset,
    twice_at_once,
)


@pytest.mark.slow
async def test_a_client_that_returns_has_each_of_its_services_once(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    async with watched_server(tmp_path) as server, open_home(server.port) as home, trio.open_nursery() as nursery:
        start = await server.holdings()
        story = Story(home, nursery)
        await story.begin()
        async with trio.open_nursery() as watching:
            watching.start_soon(story.watch)
            for _ in range(RETURNS):
                with trio.fail_after(10):
                    await chance.choice(RETURNS_BY)(story)
                    await story.answers()
            watching.cancel_scope.cancel()
        await story.peer.close()
        await server.settled(start)
    assert story.looks >= RETURNS // 4  # it was watched; how often, is the machine's affair
