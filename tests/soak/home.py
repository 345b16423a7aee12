"""The client that stays: it offers the functions that the load calls, and calls the clients that come and go."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from tests.soak.legacy_peer import LegacyPeer, Map, connect

BIG = "x" * 1_000_000


@dataclass(eq=False)
class HeldCall:
    """One call of a :class:`Held`, made by whoever holds this. *key* is its argument."""

    key: str
    begun: trio.Event = field(default_factory=trio.Event)
    released: trio.Event = field(default_factory=trio.Event)


class Held:
    """A function that returns when its caller's test says so. *running* of its calls have not ended."""

    def __init__(self) -> None:
        self.running = 0
        self._ended = trio.Event()
        self._expected: dict[str, HeldCall] = {}

    def expect(self) -> HeldCall:
        """A call that will come."""
        call = HeldCall(f"k{secrets.token_hex(8)}")  # not to be read as a number
        self._expected[call.key] = call
        return call

    async def run(self, key: str) -> str:
        """The function."""
        call = self._expected.pop(key)
        self.running += 1
        call.begun.set()
        try:
            await call.released.wait()
            return key
        finally:
            self.running -= 1
            self._ended.set()
            self._ended = trio.Event()

    async def idle(self) -> None:
        """Wait until no call runs any more."""
        while self.running:
            await self._ended.wait()


class Home:
    """The peer that stays, and what the load needs to know of it."""

    def __init__(self, port: int, peer: LegacyPeer, hold: Held) -> None:
        self.port = port
        self.peer = peer
        self.hold = hold
        self.path = f"/{peer.workspace}/services/soak"


@asynccontextmanager
async def open_home(port: int) -> AsyncIterator[Home]:
    """A home that is connected and registered."""
    async with connect(port, "home") as peer:
        hold = Held()

        async def visit(address: str) -> str:
            return str(await peer.call(address, "services.job.hello", name="home"))

        service: Map = {
            "id": "soak",
            "config": {"visibility": "public"},
            "hello": hello,
            "big": lambda: BIG,
            "echo": echo,
            "visit": visit,
            "hold": hold.run,
        }
        await peer.register(service)
        yield Home(port, peer, hold)


def hello(name: str) -> str:
    """The function of the getting-started page."""
    return f"Hello {name}"


async def echo(value: Any) -> Any:
    """The function of large messages: a coroutine, so that its result may go out in parts."""
    return value
