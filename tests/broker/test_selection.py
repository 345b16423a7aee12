"""Which of several providers of one service is called, and that strangers are never among them."""

from __future__ import annotations

from collections import Counter

import pytest

from hypha.broker.access import Principal
from hypha.broker.selection import choose
from hypha.broker.session import Service
from hypha.errors import Conflict, InvalidArgument
from tests.broker.memory import Peer, Scene


@pytest.fixture
async def providers() -> list[Peer]:
    scene = Scene()
    peers = [scene.join(f"lab/{name}") for name in "abc"]
    for peer in peers:
        peer.announce("svc")
    return peers


def offered(providers: list[Peer]) -> list[Service]:
    return [peer.session.services["svc"] for peer in providers]


def picks(providers: list[Peer], mode: str | None, count: int) -> list[str]:
    return [choose(offered(providers), mode).client for _ in range(count)]


async def test_the_oldest_is_chosen_when_nothing_is_said(providers: list[Peer]) -> None:
    assert picks(providers, None, 3) == picks(providers, "first", 3) == ["a", "a", "a"]
    assert picks(providers, "last", 3) == ["c", "c", "c"]


async def test_exact_needs_one(providers: list[Peer]) -> None:
    assert choose(offered(providers)[:1], "exact").client == "a"
    with pytest.raises(Conflict, match="Multiple services found for svc: lab/a:svc, lab/b:svc, lab/c:svc"):
        choose(offered(providers), "exact")


@pytest.mark.parametrize("mode", ["random", "native:random"])
async def test_random_chooses_each(providers: list[Peer], mode: str) -> None:
    assert set(picks(providers, mode, 200)) == {"a", "b", "c"}


async def test_round_robin_gives_each_its_turn_and_a_new_one_no_more_than_that(providers: list[Peer]) -> None:
    assert picks(providers[:2], "round_robin", 4) == ["a", "b", "a", "b"]
    assert Counter(picks(providers, "round_robin", 6)) == {"a": 2, "b": 2, "c": 2}


@pytest.mark.parametrize("mode", ["min_load", "least_in_flight"])
async def test_the_least_busy_is_chosen(providers: list[Peer], mode: str) -> None:
    a, b, c = providers
    assert picks(providers, mode, 3) == ["a", "b", "c"]
    for number, target in enumerate((a, a, c)):
        assert b.call(target.name, "services.svc.f", session=f"s{number}") is None
    assert picks(providers, mode, 2) == ["b", "b"]
    (question,) = c.received()
    c.answer(question)
    assert set(picks(providers, mode, 2)) == {"b", "c"}


@pytest.mark.parametrize("mode", ["", "nonsense", 5, ["random"], "select:criteria:function"])
async def test_an_unknown_mode_is_refused_with_those_there_are(providers: list[Peer], mode: object) -> None:
    with pytest.raises(InvalidArgument, match=r"is none of random, first, last, exact, min_load"):
        choose(offered(providers), mode)


async def test_a_name_means_the_providers_of_one_workspace_however_many_take_it(providers: list[Peer]) -> None:
    """A stranger who squats a name is never chosen, neither before one's own nor before the oldest owner."""
    registry = providers[0].broker.registry
    scene = Scene()
    scene.broker = providers[0].broker
    squatter = scene.join("squat/x")
    squatter.announce("svc", visibility="public")
    member, stranger = Principal("m", True, grants={"lab": providers[0].session.principal.grants["lab"]}), "elsewhere"
    assert [service.client for service in registry.providers("svc", member, "lab")] == ["a", "b", "c"]
    for peer in providers[:2]:
        peer.announce("svc", visibility="public")
    for _ in range(20):
        found = registry.providers("svc", Principal("s", True), stranger)
        assert choose(found, "random").workspace == "lab"
    assert [service.client for service in found] == ["a", "b"]
