"""After a restart those who were connected are waited for: calls and look-ups get their answer, late but right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hypha.broker.access import Principal
from hypha.broker.broker import Credentials
from hypha.broker.session import Service
from hypha.config import Limits
from hypha.errors import LimitExceeded, NotFound
from hypha.wire.address import ServiceQuery
from hypha.wire.dialect import LEGACY, MODERN, Dialect
from tests.broker.memory import MemoryStore, Peer, Rejected, Scene

GONE = "Target peer lab/a is not connected"


class Restart:
    """A server that has ended while clients were connected, and the one that follows."""

    def __init__(self, nursery: trio.Nursery, limits: Limits | None = None) -> None:
        self._nursery = nursery
        self._tokens: dict[str, str] = {}
        self._before = Scene(limits or Limits(), nursery, store=MemoryStore())
        self.scene: Scene

    def was_there(self, address: str, *services: str, **config: Any) -> None:
        peer = self._before.join(address)
        peer.announce(*services, **config)
        self._tokens[address] = self._before.broker.resumption_token(peer.session)

    def happens(self) -> Scene:
        self.scene = self._before.restarted()
        return self.scene

    def comes_back(self, address: str, dialect: Dialect = LEGACY) -> Peer:
        """The client that was at *address* is connected again, and answers."""
        token = self._tokens[address]
        client = address.partition("/")[2]
        admission = self.scene.broker.admit(Credentials(client, reconnection_token=token))
        peer = self.scene.attach(admission, dialect=dialect)
        self._nursery.start_soon(peer.serve, described)
        return peer

    async def sweep(self, seconds: float) -> None:
        """The sweeper for so many seconds."""
        for _ in range(round(seconds)):
            await trio.sleep(1)
            self.scene.broker.sweep()


def described(message: dict[str, Any]) -> Any:
    if message["method"] == "services.built-in.get_service":
        return {"id": message["args"][0], "name": "", "type": "", "config": {}}
    return [message["method"], *message["args"]]


@pytest.fixture
def restart(nursery: trio.Nursery) -> Restart:
    return Restart(nursery)


# --- calls ----------------------------------------------------------------------------------------------------


async def test_calls_wait_for_their_provider_and_keep_their_order(restart: Restart, autojump_clock: MockClock) -> None:
    restart.was_there("lab/a", "svc")
    caller = restart.happens().join("lab/b")
    for number in range(3):
        caller.call("lab/a", "services.svc.f", number, session=f"s{number}")
    await restart.sweep(5)
    assert caller.received() == []
    provider = restart.comes_back("lab/a")
    sent = [message["args"] for message in provider.transport.messages()]
    assert sent == [[0], [1], [2]]
    for number in range(3):
        assert (await caller.message_for(f"s{number}"))["args"] == [["services.svc.f", number]]
    assert (caller.session.server_calls, caller.session.server_call_bytes) == (0, 0)


async def test_who_does_not_come_in_time_is_gone(restart: Restart, autojump_clock: MockClock) -> None:
    restart.was_there("lab/a", "svc")
    caller = restart.happens().join("lab/b")
    caller.call("lab/a", "services.svc.f", session="waits")
    await restart.sweep(9)
    assert caller.received() == []
    await restart.sweep(2)
    (text,) = caller.errors()
    assert text == f"{GONE}; it has not come back since the server was started again"
    caller.call("lab/a", "services.svc.f", session="later")
    assert caller.errors() == [GONE]
    restart.comes_back("lab/a")
    assert await caller.ask("services.svc.f", to="lab/a") == ["services.svc.f"]


async def test_only_who_was_there_is_waited_for(restart: Restart) -> None:
    restart.was_there("lab/a", "svc")
    caller = restart.happens().join("lab/b")
    caller.call("lab/c", "services.svc.f")
    assert caller.errors() == ["Target peer lab/c is not connected"]


async def test_who_was_lost_long_before_is_not_waited_for(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    scene = Scene(nursery=nursery, store=MemoryStore(), wall=lambda: 1e9 + trio.current_time())
    lost = scene.join("lab/a")
    lost.announce("svc")
    lost.leave(clean=False)
    await trio.sleep(61)
    caller = scene.restarted().join("lab/b")
    caller.call("lab/a", "services.svc.f")
    assert caller.errors() == [GONE]


async def test_what_waits_is_bounded_as_calls_of_the_server_are(nursery: trio.Nursery) -> None:
    restart = Restart(nursery, Limits(server_calls_per_peer=2))
    restart.was_there("lab/a", "svc")
    caller = restart.happens().join("lab/b")
    for number in range(3):
        caller.call("lab/a", "services.svc.f", session=f"s{number}")
    (text,) = caller.errors()
    assert "server_calls_per_peer = 2" in text


async def test_a_caller_that_leaves_meanwhile_asks_for_nothing(restart: Restart) -> None:
    restart.was_there("lab/a", "svc")
    caller = restart.happens().join("lab/b")
    caller.call("lab/a", "services.svc.f")
    caller.leave()
    assert restart.comes_back("lab/a").transport.messages() == []


async def test_what_has_no_room_when_its_receiver_is_back_is_refused(nursery: trio.Nursery) -> None:
    restart = Restart(nursery, Limits(outbox_bytes=1000))
    restart.was_there("lab/a", "svc")
    caller = restart.happens().join("lab/b")
    for number in range(2):
        caller.call("lab/a", "services.svc.f", "x" * 600, session=f"s{number}")
    token = restart._tokens["lab/a"]
    restart.scene.attach(restart.scene.broker.admit(Credentials("a", reconnection_token=token)), takes=0)
    (text,) = caller.errors()
    assert "outbox_bytes" in text


async def test_strangers_learn_nothing_by_waiting(restart: Restart, autojump_clock: MockClock) -> None:
    """What a stranger may not call is refused at once, as if nobody had been there."""
    restart.was_there("lab/a", "secret", "open", visibility="protected")
    restart.was_there("lab/b", "open", visibility="public")
    stranger = restart.happens().join("else/c")
    stranger.call("lab/a", "services.secret.f", session="one")
    stranger.call("lab/a", "services.built-in.get_service", "secret", session="two")
    stranger.call("lab/b", "f.callback", session="three")
    assert stranger.errors() == [GONE, GONE, "Target peer lab/b is not connected"]
    stranger.call("lab/b", "services.open.f", session="four")
    restart.comes_back("lab/b")
    assert (await stranger.message_for("four"))["args"] == [["services.open.f"]]


# --- looking up -----------------------------------------------------------------------------------------------

Look = Callable[[Peer, str], Any]


async def legacy(peer: Peer, name: str) -> str:
    return str((await peer.ask("get_service", name))["id"])


async def modern(peer: Peer, name: str) -> str:
    return str((await peer.ask("get_service", name, to="*/server-id"))["id"])


async def informed(peer: Peer, name: str) -> str:
    return str((await peer.ask("get_service_info", name, to="*/server-id"))["id"])


@pytest.mark.parametrize("look", [legacy, modern, informed])
@pytest.mark.parametrize("name", ["svc", "lab/a:svc", "a:svc"])
async def test_look_ups_wait(restart: Restart, autojump_clock: MockClock, look: Look, name: str) -> None:
    restart.was_there("lab/a", "svc")
    peer = restart.happens().join("lab/b", dialect=LEGACY if look is legacy else MODERN)
    found: list[str] = []

    async def ask() -> None:
        found.append(await look(peer, name))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await restart.sweep(3)
        assert found == []
        restart.comes_back("lab/a")
    assert found[0].endswith("svc")


@pytest.mark.parametrize(("look", "name"), [(legacy, "a:built-in"), (modern, "a:built-in"), (informed, "a:built-in")])
async def test_a_client_is_waited_for(restart: Restart, autojump_clock: MockClock, look: Look, name: str) -> None:
    restart.was_there("lab/a", "svc")
    peer = restart.happens().join("lab/b", dialect=LEGACY if look is legacy else MODERN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look, peer, name)
        await restart.sweep(3)
        restart.comes_back("lab/a")


@pytest.mark.parametrize("look", [legacy, modern, informed])
async def test_look_ups_end(restart: Restart, autojump_clock: MockClock, look: Look) -> None:
    restart.was_there("lab/a", "svc")
    peer = restart.happens().join("lab/b", dialect=LEGACY if look is legacy else MODERN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(restart.sweep, 12)
        with pytest.raises(Rejected, match="it has not come back since the server was started again"):
            await look(peer, "svc")
        with pytest.raises(Rejected, match="not found"):
            await look(peer, "svc")


async def test_the_older_owner_of_a_name_is_waited_for(restart: Restart, autojump_clock: MockClock) -> None:
    """A stranger who is back first does not get the calls of who has the name."""
    restart.was_there("one/a", "svc", visibility="public")
    restart.was_there("two/b", "svc", visibility="public")
    peer = restart.happens().join("home/c", dialect=MODERN)
    restart.comes_back("two/b")
    found: list[str] = []

    async def ask() -> None:
        found.append(await modern(peer, "svc"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await restart.sweep(3)
        assert found == []
        restart.comes_back("one/a")
    assert found == ["one/a:svc"]


async def test_a_colleague_will_do(restart: Restart) -> None:
    """Inside one workspace whoever is there is taken."""
    restart.was_there("lab/a", "svc")
    restart.was_there("lab/b", "svc")
    peer = restart.happens().join("lab/c", dialect=MODERN)
    restart.comes_back("lab/b")
    assert await modern(peer, "svc") == "lab/b:svc"


async def test_an_older_owner_that_does_not_come_is_not_waited_for_longer(
    restart: Restart, autojump_clock: MockClock
) -> None:
    restart.was_there("one/a", "svc", visibility="public")
    restart.was_there("two/b", "svc", visibility="public")
    peer = restart.happens().join("home/c", dialect=MODERN)
    restart.comes_back("two/b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(restart.sweep, 12)
        assert await modern(peer, "svc") == "two/b:svc"


async def test_a_client_that_returns_wakes_only_who_waits_for_it(restart: Restart, autojump_clock: MockClock) -> None:
    """Hundreds come back in the same second, and as many wait: each of these looks twice, whatever the others do."""
    numbers = range(20)
    for number in numbers:
        restart.was_there(f"w{number}/a", "svc", visibility="public")
    broker = restart.happens().broker
    looks: Counter[str] = Counter()

    def look(place: str, query: ServiceQuery) -> Service:
        looks[place] += 1
        named = (item for item in broker.registry.named("svc") if query.workspace in {None, item.workspace})
        service = min(named, key=lambda item: item.since, default=None)
        if service is None:
            raise NotFound("not there")
        return service

    async def wait(place: str, query: ServiceQuery) -> None:
        await broker.returning.find(partial(look, place, query), [query], Principal("x", is_anonymous=True), "home")

    async with trio.open_nursery() as nursery:
        for number in numbers:
            nursery.start_soon(wait, f"w{number}", ServiceQuery(f"w{number}", None, "svc"))
            nursery.start_soon(wait, f"w{number}/a", ServiceQuery(f"w{number}", "a", "svc"))
            nursery.start_soon(wait, f"bare {number}", ServiceQuery(None, None, "svc"))
        await wait_all_tasks_blocked()
        for number in reversed(numbers):
            restart.comes_back(f"w{number}/a")
            await wait_all_tasks_blocked()
    assert len(looks) == 60
    assert set(looks.values()) == {2}


async def test_requests_that_wait_are_bounded(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    restart = Restart(nursery, Limits(returning_requests=2))
    restart.was_there("lab/a", "svc", visibility="public")
    restart.was_there("lab/b", "other", visibility="public")
    broker = restart.happens().broker
    restart.comes_back("lab/b")
    anybody = Principal("x", is_anonymous=True)

    def look(service_id: str) -> Service:
        for service in broker.registry.named(service_id):
            return service
        raise NotFound("not there")

    async def request(service: str) -> Service:
        query = ServiceQuery("lab", None, service)
        return await broker.returning.find(partial(look, service), [query], anybody, "home", is_request=True)

    async with trio.open_nursery() as requests:
        for _ in range(2):
            requests.start_soon(request, "svc")
        await wait_all_tasks_blocked()
        with pytest.raises(LimitExceeded, match="returning_requests = 2"):
            await request("svc")
        assert (await request("other")).id == "other"
        restart.comes_back("lab/a")
    assert (await request("svc")).id == "svc"


async def test_nothing_is_left_of_the_waiting(restart: Restart, autojump_clock: MockClock) -> None:
    restart.was_there("lab/a", "svc", "other")
    restart.was_there("lab/b", "svc")
    returning = restart.happens().broker.returning
    restart.comes_back("lab/a")
    await restart.sweep(11)
    await wait_all_tasks_blocked()
    left = returning._expected, returning._missed, returning._public, returning._news, returning._requests
    assert left == ({}, {}, {}, {}, 0)
