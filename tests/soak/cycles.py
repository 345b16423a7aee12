"""Clients that come, register, call, are called, and end in every way there is."""

from __future__ import annotations

import secrets
import statistics
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import msgpack
import pytest
import trio

from tests.soak.home import Held, Home, echo, hello
from tests.soak.http_client import get, http_client
from tests.soak.legacy_peer import (
    CACHE,
    MANAGER,
    CallFailed,
    Disconnected,
    LegacyPeer,
    Refused,
    connect,
    dial,
    handshake,
    reset,
)

_WORKERS = 12
_PACE = 25
_CREATE, _APPEND = CACHE + "create", CACHE + "append"

Exit = Callable[["Cycles", int], Awaitable[None]]


@dataclass(frozen=True)
class Guest:
    """A client that has registered its service. *held*: the function of it that does not return."""

    peer: LegacyPeer
    held: Held


class Cycles:
    """The load.

    *done* counts the cycles by their way of ending. *seconds* is what coming, registering and calling took, in order.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.port = home.port
        self.done: Counter[str] = Counter()
        self.seconds = array("d")
        self.nursery: trio.Nursery

    async def run(self, numbers: Iterable[int]) -> None:
        """Make a cycle for each number, which says how it ends: those of a range are each way of ending in its turn."""
        numbers = iter(numbers)
        async with trio.open_nursery() as self.nursery, trio.open_nursery() as workers:
            for _ in range(_WORKERS):
                workers.start_soon(self._work, numbers)

    async def pace(self) -> float:
        """Let some clients come and say goodbye, one after the other; the median of their seconds."""
        before = len(self.seconds)
        for _ in range(_PACE):
            await goodbye(self, 0)
        return statistics.median(self.seconds[before:])

    async def _work(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            variant, kind = divmod(number, len(EXITS))
            with trio.fail_after(30):
                await EXITS[kind](self, variant)
            self.done[EXITS[kind].__name__] += 1

    @asynccontextmanager
    async def guest(self) -> AsyncIterator[Guest]:
        """A client that has come, registered, called and was called."""
        held, began = Held(), time.perf_counter()
        service = {"id": "job", "config": {"visibility": "public"}, "hello": hello, "hold": held.run, "echo": echo}
        async with connect(self.port, f"guest-{secrets.token_hex(4)}") as peer:
            await peer.register(service)
            await self.visit(peer)
            self.seconds.append(time.perf_counter() - began)
            yield Guest(peer, held)

    async def visit(self, peer: LegacyPeer) -> None:
        """A call from *peer* to home, during which home calls *peer*."""
        assert await peer.call(self.home.peer.address, "services.soak.visit", peer.address) == "Hello home"

    async def call_that_fails(self, guest: Guest, task_status: trio.TaskStatus[None]) -> None:
        """Let home call a function of *guest* that does not return; home must learn it when *guest* is gone."""
        call = guest.held.expect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_report, call.begun, task_status)
            with pytest.raises(CallFailed, match=f"Target peer {guest.peer.address} is not connected"):
                await self.home.peer.call(guest.peer.address, "services.job.hold", call.key)

    async def request_that_fails(self, guest: Guest, task_status: trio.TaskStatus[None]) -> None:
        """The same over HTTP."""
        call = guest.held.expect()
        path = f"/{guest.peer.workspace}/services/job/hold?key={call.key}"
        async with trio.open_nursery() as nursery, http_client(self.port) as client:
            nursery.start_soon(_report, call.begun, task_status)
            status, body = await client.ask(get(path))
            assert status == 502, body

    async def freeze(self, variant: int, task_status: trio.TaskStatus[None]) -> None:
        """A half-open connection, with and without a call in flight: the server ends it."""
        async with self.guest() as guest, trio.open_nursery() as nursery:
            if variant % 2:
                await nursery.start(self.call_that_fails, guest)
            guest.peer.freeze()
            task_status.started()
            with trio.fail_after(30):
                await guest.peer.ended.wait()


async def _report(event: trio.Event, task_status: trio.TaskStatus[None]) -> None:
    await event.wait()
    task_status.started()


async def _call_home(cycles: Cycles, peer: LegacyPeer, task_status: trio.TaskStatus[None]) -> None:
    """A call of *peer* that is in flight when it ends."""
    call = cycles.home.hold.expect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_report, call.begun, task_status)
        with pytest.raises(Disconnected):
            await peer.call(cycles.home.peer.address, "services.soak.hold", call.key, interval=0.5)


# --- the ways of ending ---------------------------------------------------------------------------------------


async def goodbye(cycles: Cycles, variant: int) -> None:
    async with cycles.guest() as guest:
        await guest.peer.close()
        assert guest.peer.close_code == 1000


async def end_of_stream(cycles: Cycles, variant: int) -> None:
    async with cycles.guest() as guest:
        guest.peer.vanish()


async def reset_by_peer(cycles: Cycles, variant: int) -> None:
    async with cycles.guest() as guest:
        guest.peer.reset()


async def half_open(cycles: Cycles, variant: int) -> None:
    await cycles.nursery.start(cycles.freeze, variant)


async def during_the_handshake(cycles: Cycles, variant: int) -> None:
    """Eight moments; in the last but one the client is of the modern generation and never says who it is."""
    request = handshake("soak", {"client_id": "nobody"})
    moment = variant % 8
    if moment == 0:
        with pytest.raises(Refused, match="403"):
            async with connect(cycles.port, "nobody", token="not-a-token"):
                pass
        return
    async with await dial(cycles.port) as stream:
        if moment == 1:
            return
        if moment == 2:
            await stream.send_all(request[:100])
        elif moment == 3:
            await stream.send_all(request)
        elif moment == 4:
            await stream.send_all(request)
            reset(stream)
        elif moment == 5:
            await stream.send_all(request + b"\x82\x80early")
            reset(stream)
        elif moment == 6:
            await stream.send_all(handshake("soak", {}))
            await stream.receive_some(10)
        else:
            await stream.send_all(request)
            await stream.receive_some(10)
            reset(stream)


async def during_its_own_call(cycles: Cycles, variant: int) -> None:
    async with cycles.guest() as guest, trio.open_nursery() as nursery:
        await nursery.start(_call_home, cycles, guest.peer)
        if variant % 3 == 0:
            guest.peer.reset()
        elif variant % 3 == 1:
            guest.peer.vanish()
        else:
            await guest.peer.close()


async def during_a_call_to_it(cycles: Cycles, variant: int) -> None:
    """Both callers, a client and an HTTP request, learn it at once."""
    async with cycles.guest() as guest, trio.open_nursery() as nursery:
        await nursery.start(cycles.call_that_fails, guest)
        await nursery.start(cycles.request_that_fails, guest)
        with trio.fail_after(5):
            if variant % 2:
                guest.peer.reset()
            else:
                await guest.peer.close()


async def within_a_message_in_parts(cycles: Cycles, variant: int) -> None:
    """To another client, whose messages the router looks into, and to the server, which keeps the parts."""
    async with cycles.guest() as guest:
        target, key = (cycles.home.peer.address, MANAGER)[variant % 2], secrets.token_hex(8)
        await guest.peer.call(target, _CREATE, key, heartbeat=False)
        if variant % 4 < 2:
            message = {"type": "method", "to": target, "method": "services.soak.hello"}
            part = msgpack.packb(message) + msgpack.packb({"args": [bytes(10_000)]})[:5000]
            await guest.peer.call(target, _APPEND, key, part, heartbeat=False)
        guest.peer.reset()


async def superseded(cycles: Cycles, variant: int) -> None:
    """The newest holder of the token has the place and the services, without registering again."""
    async with cycles.guest() as old, trio.open_nursery() as nursery:
        await nursery.start(cycles.call_that_fails, old)
        if variant % 2:
            old.peer.freeze()
        async with _returned(cycles, old.peer) as new:
            await cycles.visit(new)
            await old.peer.ended.wait()
            assert old.peer.close_code == (None if variant % 2 else 1012)
            await cycles.visit(new)
            await new.close()


async def suspended(cycles: Cycles, variant: int) -> None:
    """Lost for a moment, and back with all its services."""
    async with cycles.guest() as old:
        async with trio.open_nursery() as nursery:
            await nursery.start(cycles.call_that_fails, old)
            old.peer.vanish()
        async with _returned(cycles, old.peer) as new:
            await cycles.visit(new)
            if variant % 2:
                new.reset()
            else:
                await new.close()


def _returned(cycles: Cycles, peer: LegacyPeer) -> AbstractAsyncContextManager[LegacyPeer]:
    token = peer.reconnection_token
    return connect(cycles.port, peer.client_id, services=peer.services, reconnection_token=token)


async def with_a_malformed_frame(cycles: Cycles, variant: int) -> None:
    async with cycles.guest() as guest:
        kind = variant % 4
        if kind == 0:  # a message that is not msgpack: dropped
            await guest.peer.send_raw(b"\x82\x84\0\0\0\0\xc1\xc1\xc1\xc1")
            guest.peer.vanish()
        elif kind == 1:  # half a frame
            await guest.peer.send_raw(b"\x82\xff\0\0\0\0\0\x10\0\0\0\0\0\0" + bytes(1000))
            guest.peer.reset()
        else:
            await guest.peer.send_raw(guest.peer.text_frame() if kind == 2 else b"\xf2\x80\0\0\0\0")
            await guest.peer.ended.wait()
            assert guest.peer.close_code == (1003 if kind == 2 else 1002)


EXITS: tuple[Exit, ...] = (
    goodbye,
    end_of_stream,
    reset_by_peer,
    half_open,
    during_the_handshake,
    during_its_own_call,
    during_a_call_to_it,
    within_a_message_in_parts,
    superseded,
    suspended,
    with_a_malformed_frame,
)
