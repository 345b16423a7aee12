"""Workspaces, sessions and services by name: who is found, in which order, and what there is room for."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from hypha.broker.access import Level, Principal
from hypha.broker.broker import Credentials
from hypha.broker.registration import Registration, parse_registration, registrations
from hypha.broker.registry import Registry, Workspace, not_found_hint
from hypha.config import Limits
from hypha.errors import Conflict, InvalidArgument, LimitExceeded, PeerGone
from hypha.wire.address import Address
from tests.broker.memory import Peer, Scene

STRANGER = Principal("stranger", is_anonymous=True)


@pytest.fixture
async def scene() -> Scene:
    return Scene()


def resolve(scene: Scene, name: str, workspace: str = "asker", principal: Principal = STRANGER) -> str | None:
    found = scene.broker.registry.providers(name, principal, workspace)
    assert len({service.workspace for service in found}) <= 1
    return found[0].full_id if found else None


# --- workspaces -----------------------------------------------------------------------------------------------


def test_a_new_registry_has_the_public_workspace_and_keeps_it() -> None:
    registry = Registry(Limits())
    public = registry.workspaces["public"]
    registry.drop_if_unused(public)
    assert list(registry.workspaces) == ["public"]
    assert (public.visibility, public.persistent, public.owners) == ("public", True, [])


def test_a_workspace_is_made_under_a_name_that_urls_can_hold() -> None:
    rows: list[str] = ["lab", "a", "Lab-1", "a.b_c~d|e", "0", "x" * 256]
    for name in rows:
        registry = Registry(Limits())
        assert registry.create_workspace(name, owners=["me"]).owners == ["me"]
        with pytest.raises(Conflict, match=r"already exists\."):
            registry.create_workspace(name)


def test_other_names_are_refused() -> None:
    rows: list[tuple[object, type[Exception]]] = [
        (None, InvalidArgument),
        (5, InvalidArgument),
        ([], InvalidArgument),
        ("", InvalidArgument),
        ("..", InvalidArgument),
        ("a b", InvalidArgument),
        ("-a", InvalidArgument),
        ("ä", InvalidArgument),
        ("a/b", InvalidArgument),
        ("a:b", InvalidArgument),
        ("*", InvalidArgument),
        ("x" * 257, InvalidArgument),
        ("ws", Conflict),
        ("health", Conflict),
        ("tools", Conflict),
        ("public", Conflict),
    ]
    for name, error in rows:
        registry = Registry(Limits(), {"tools"})
        with pytest.raises(error):
            registry.create_workspace(name)
        assert list(registry.workspaces) == ["public"]


def test_only_a_workspace_that_nobody_uses_and_nobody_keeps_is_dropped() -> None:
    registry = Registry(Limits())
    kept = registry.create_workspace("kept", persistent=True)
    idle = registry.create_workspace("idle")
    for workspace in (kept, idle, idle, Workspace("never-entered")):
        registry.drop_if_unused(workspace)
    assert list(registry.workspaces) == ["public", "kept"]


# --- sessions -------------------------------------------------------------------------------------------------


async def test_a_session_is_found_where_it_is_and_only_while_it_is(scene: Scene) -> None:
    registry = scene.broker.registry
    peer = scene.join("lab/a")
    assert registry.find(Address("lab", "a")) is peer.session
    assert registry.find(Address("lab", "b")) is None
    assert registry.find(Address("nowhere", "a")) is None
    assert list(registry.sessions()) == [peer.session]
    assert list(registry.sessions_of("user-of-a")) == [peer.session]
    peer.leave()
    assert registry.find(Address("lab", "a")) is None
    assert (list(registry.sessions()), list(registry.sessions_of("user-of-a"))) == ([], [])
    assert registry._by_principal == {}


async def test_the_sessions_of_a_workspace_are_bounded_exactly() -> None:
    scene = Scene(Limits(sessions_per_workspace=2))
    scene.join("lab/a")
    scene.join("lab/b")
    with pytest.raises(LimitExceeded, match="sessions_per_workspace = 2"):
        scene.join("lab/c")
    scene.join("other/c")
    assert list(scene.workspace("lab").members) == ["a", "b"]


async def test_removing_an_old_generation_does_not_touch_the_new_one(scene: Scene) -> None:
    old = scene.join("lab/a")
    old.leave()
    new = scene.join("lab/a")
    new.announce("svc")
    scene.broker.registry.remove(old.session)
    assert scene.broker.registry.find(Address("lab", "a")) is new.session
    assert [service.id for service in scene.workspace("lab").services()] == ["svc"]


# --- announcing -----------------------------------------------------------------------------------------------


async def test_services_are_replaced_in_one_step(scene: Scene) -> None:
    peer = scene.join("lab/a")
    peer.announce("one", "two")
    assert sorted(peer.session.services) == ["one", "two"]
    peer.announce("two", "three")
    assert [service.full_id for service in scene.workspace("lab").services()] == ["lab/a:two", "lab/a:three"]
    registry = scene.broker.registry
    assert [len(list(registry.named(name))) for name in ("one", "two", "three")] == [0, 1, 1]
    peer.announce()
    assert registry._by_service_id.keys() == {"hypha-login"}


async def test_the_services_of_a_session_are_bounded_exactly_and_too_many_change_nothing() -> None:
    scene = Scene(Limits(services_per_session=3))
    peer = scene.join("lab/a")
    peer.announce("one", "two", "three")
    with pytest.raises(LimitExceeded, match="services_per_session = 3"):
        peer.announce("a", "b", "c", "d")
    assert sorted(peer.session.services) == ["one", "three", "two"]


async def test_of_two_descriptions_of_one_service_the_last_counts(scene: Scene) -> None:
    peer = scene.join("lab/a")
    entries = [Registration("svc", name, "t", {}, None) for name in ("first", "second")]
    scene.broker.registry.announce(peer.session, entries)
    assert peer.session.services["svc"].name == "second"
    assert len(list(scene.broker.registry.named("svc"))) == 1


async def test_built_in_and_hidden_services_are_not_registered(scene: Scene) -> None:
    peer = scene.join("lab/a")
    peer.announce("built-in", "_rintf_x", "svc", visibility="public")
    assert list(peer.session.services) == ["svc"]


async def test_a_session_that_is_over_announces_nothing(scene: Scene) -> None:
    peer = scene.join("lab/a")
    peer.leave()
    with pytest.raises(PeerGone):
        peer.announce("svc")
    assert not list(scene.broker.registry.named("svc"))


@pytest.mark.parametrize(
    ("given", "visibility"),
    [
        ("public", "public"),
        ("unlisted", "unlisted"),
        ("protected", "protected"),
        ("private", "protected"),
        ("PUBLIC", "protected"),
        (None, "protected"),
        (True, "protected"),
        (["public"], "protected"),
        ({"public": 1}, "protected"),
    ],
)
async def test_what_is_not_known_as_open_is_protected(given: Any, visibility: str, scene: Scene) -> None:
    peer = scene.join("lab/a")
    peer.announce("svc", visibility=given)
    assert peer.session.services["svc"].visibility == visibility
    found = resolve(scene, "svc")
    assert (found is not None) == (visibility == "public")
    public = [service.id for service in scene.broker.registry.public_services()]
    assert public == ["hypha-login"] + ["svc"] * (visibility == "public")


@pytest.mark.parametrize(
    ("given", "authorized"),
    [(["x", "y"], {"x", "y"}), (["x", 1, None, []], {"x"}), ("xy", set()), (None, set()), ({"x": 1}, set())],
)
async def test_authorized_workspaces_are_a_list_of_names(given: Any, authorized: set[str], scene: Scene) -> None:
    peer = scene.join("lab/a")
    peer.announce("svc", authorized_workspaces=given)
    assert peer.session.services["svc"].authorized_workspaces == authorized


async def test_the_workspace_in_the_config_is_the_real_one(scene: Scene) -> None:
    peer = scene.join("lab/a")
    peer.announce("svc", workspace="public", extra=1)
    assert peer.session.services["svc"].config == {"visibility": "protected", "workspace": "lab", "extra": 1}


# --- the order of resolution (A28) ----------------------------------------------------------------------------


async def test_a_name_means_the_own_workspace_then_public_then_the_oldest_public_service(scene: Scene) -> None:
    peers = [scene.join(address) for address in ("zoo/a", "other/a", "public/a", "asker/a")]
    for peer in peers[:2]:
        peer.announce("svc", visibility="public")
    assert resolve(scene, "svc") == "zoo/a:svc"
    peers[2].announce("svc", visibility="public")
    assert resolve(scene, "svc") == "public/a:svc"
    member = scene.principal("member", "asker", Level.READ)
    peers[3].announce("svc")
    assert resolve(scene, "svc", principal=member) == "asker/a:svc"
    assert resolve(scene, "svc") == "public/a:svc"  # a stranger in that workspace may not call its protected one
    for peer, expected in zip(reversed(peers), ("public/a:svc", "zoo/a:svc", "zoo/a:svc", None), strict=True):
        if peer is peers[1]:
            continue
        peer.leave()
        if peer is peers[0]:
            expected = "other/a:svc"
        assert resolve(scene, "svc", principal=member) == expected
    peers[1].leave()
    assert resolve(scene, "svc", principal=member) is None


async def test_protected_and_unlisted_services_of_others_are_not_found_by_name(scene: Scene) -> None:
    scene.join("lab/a").announce("svc")
    scene.join("lab/b").announce("svc", visibility="unlisted")
    assert resolve(scene, "svc") is None
    assert resolve(scene, "svc", principal=scene.principal("u", "lab"), workspace="asker") is None
    assert resolve(scene, "svc", workspace="lab", principal=scene.principal("u", "lab")) == "lab/a:svc"
    scene.join("lab/c").announce("svc", authorized_workspaces=["friends"])
    assert resolve(scene, "svc", workspace="friends") is None  # authorized, but one has to know where it is


async def test_an_unlisted_service_is_found_by_name_in_its_own_workspace_and_in_public(scene: Scene) -> None:
    scene.join("lab/a").announce("svc", visibility="unlisted")
    assert resolve(scene, "svc", workspace="lab") == "lab/a:svc"
    scene.join("public/b").announce("svc", visibility="unlisted")
    assert resolve(scene, "svc") == "public/b:svc"


def announce_again(owner: Peer) -> None:
    owner.announce("svc", "more", visibility="public")
    owner.announce("svc", visibility="public")


async def test_a_stranger_with_the_same_name_never_shadows_the_owner(scene: Scene) -> None:
    owner = scene.join("owner/a")
    owner.announce("svc", visibility="public")
    squatters = [scene.join(f"squat{number}/a") for number in range(3)]
    for squatter in squatters:
        squatter.announce("svc", visibility="public")
    announce_again(owner)
    assert resolve(scene, "svc") == "owner/a:svc"
    for squatter in squatters:
        announce_again(squatter)
    assert resolve(scene, "svc") == "owner/a:svc"


async def test_who_drops_a_name_and_takes_it_again_has_lost_its_age(scene: Scene) -> None:
    first, second = scene.join("one/a"), scene.join("two/a")
    for peer in (first, second):
        peer.announce("svc", visibility="public")
    first.announce()
    first.announce("svc", visibility="public")
    assert resolve(scene, "svc") == "two/a:svc"


async def test_who_comes_back_as_the_same_client_keeps_the_age_of_its_names(scene: Scene) -> None:
    """A lost connection must not hand the name to whoever waits for that."""
    owner, squatter = scene.join("owner/a"), scene.join("squat/a")
    for peer in (owner, squatter):
        peer.announce("svc", visibility="public")
    data = registrations(owner.session)
    owner.leave()
    assert resolve(scene, "svc") == "squat/a:svc"
    back = scene.join("owner/a")
    scene.broker.registry.announce(back.session, data)
    assert resolve(scene, "svc") == "owner/a:svc"


# --- near names -----------------------------------------------------------------------------------------------


async def test_near_names_come_from_what_the_asker_may_list(scene: Scene) -> None:
    near = scene.broker.registry.near_names
    scene.join("lab/a").announce("hello-world", visibility="public")
    scene.join("lab/b").announce("hello-word")
    scene.join("lab/c").announce("hello-worlds", visibility="unlisted")
    assert near("hello-wrld", STRANGER, "asker") == ["hello-world"]
    member = scene.principal("u", "lab", Level.READ)
    assert sorted(near("hello-wrld", member, "lab")) == ["hello-word", "hello-world", "hello-worlds"]
    assert near("nothing-like-it", member, "lab") == []
    assert near("", STRANGER, "nowhere") == []


def test_the_hint_reads_well() -> None:
    assert not_found_hint([]) == ""
    assert not_found_hint(["a"]) == "; did you mean a?"
    assert not_found_hint(["a", "b"]) == "; did you mean a or b?"


async def test_looking_for_near_names_is_bounded(scene: Scene) -> None:
    """Anybody may ask for names that are not there, while a client registers as many as it can."""
    crowd = Scene(Limits(services_per_session=20_000))
    crowd.join("crowd/a").announce(*(f"service-{number:05}" for number in range(20_000)), visibility="public")
    started = trio.current_time()
    crowd.broker.registry.near_names("servise-00100", STRANGER, "asker")
    assert trio.current_time() - started < 0.2


# --- lists ----------------------------------------------------------------------------------------------------


async def test_a_list_is_bounded_exactly() -> None:
    """It ends with the oldest services that fit: whoever floods it does not push others out."""
    scene = Scene(Limits(list_bytes=3 * 300))
    registry = scene.broker.registry
    for name, size in (("a", 100), ("b", 100), ("c", 100), ("d", 1)):
        entry = Registration(name, name, "t", {"visibility": "public"}, None, size=size)
        registry.announce(scene.join(f"lab/{name}").session, [entry])
    found = await registry.listable_by(STRANGER, "asker", registry.workspaces["lab"].services())
    assert [service.id for service in found] == ["a", "b", "c", "d"]
    assert [service.id for service in registry.in_one_list(found)] == ["a", "b", "c"]
    found[2].size += 1
    assert [service.id for service in registry.in_one_list(found)] == ["a", "b"]


async def test_others_have_their_turn_while_very_many_services_are_listed() -> None:
    crowd = Scene(Limits(services_per_session=20_000))
    registry, flood = crowd.broker.registry, crowd.join("crowd/a")
    flood.announce(*(f"service-{number:05}" for number in range(20_000)), visibility="public")
    found: list[int] = []

    async def list_all() -> None:
        found.append(len(await registry.listable_by(STRANGER, "asker", registry.public_services())))

    turns = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(list_all)
        while not found:
            await trio.lowlevel.checkpoint()
            turns += 1
            if turns == 100:
                flood.leave()
    assert turns >= 200
    assert 0 < found[0] < 20_000


# --- descriptions ---------------------------------------------------------------------------------------------


def test_a_description_is_read() -> None:
    entry = {"id": "a:svc", "name": "N", "type": "t", "config": {"x": [1]}, "description": "D", "more": 1}
    assert parse_registration(entry, "a") == Registration("svc", "N", "t", {"x": [1]}, "D", size=12)
    assert parse_registration({"id": "svc"}, "a") == Registration("svc", "svc", "generic", {}, None, size=15)
    assert parse_registration({"id": "lab/a:svc", "name": "", "config": None}, "a").name == "svc"


def test_a_wrong_description_is_refused_in_one_short_line() -> None:
    rows: list[tuple[object, str]] = [
        (None, "must be a map"),
        ([], "must be a map"),
        ({}, "needs an 'id'"),
        ({"id": 5}, "needs an 'id'"),
        ({"id": ""}, "service id must be a non-empty string"),
        ({"id": "a:"}, "service id must be a non-empty string"),
        ({"id": "b:svc"}, "does not belong to client 'a'"),
        ({"id": "lab/b:svc"}, "does not belong to client 'a'"),
        ({"id": "a:b:svc"}, "does not belong to client 'a'"),
        ({"id": "a:s@v"}, "must not contain"),
        ({"id": "a:s\nv"}, "must not contain"),
        ({"id": "svc", "config": []}, "must be a map"),
        ({"id": "svc", "config": {b"a": 1}}, "must be a map"),
        ({"id": "svc", "name": 5}, "'name' of a service must be text"),
        ({"id": "svc", "type": []}, "'type' of a service must be text"),
        ({"id": "svc", "description": {}}, "'description' of a service must be text"),
        ({"id": "svc", "config": {"x": 2**70}}, "cannot be sent as msgpack"),
        ({"id": "\n" * 250}, "must not contain"),
        ({"id": "x" * 70_000}, "is longer than 256 characters"),
    ]
    for entry, complaint in rows:
        with pytest.raises(InvalidArgument) as caught:
            parse_registration(entry, "a")
        assert complaint in str(caught.value)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 2000


async def test_the_size_of_a_description_is_bounded_exactly(scene: Scene) -> None:
    def described(size: int) -> Registration:
        overhead = 1 + 4 + 8 + 1 + 3 + 1 + 2  # list, "svc", "generic", map, head of the text, None, "x"
        return parse_registration({"id": "svc", "config": {"x": "y" * (size - overhead)}}, "a")

    session = scene.join("lab/a").session
    scene.broker.registry.announce(session, [described(64 * 1024)])
    with pytest.raises(LimitExceeded, match="service 'svc' is larger than description_bytes = 65536"):
        scene.broker.registry.announce(session, [described(64 * 1024 + 1)])
    assert [service.size for service in session.services.values()] == [64 * 1024]


async def test_the_descriptions_of_a_session_are_bounded_exactly_together_and_too_many_change_nothing() -> None:
    def described(*sizes: int) -> list[Registration]:
        return [Registration(f"s{number}", "", "", {}, None, size=size) for number, size in enumerate(sizes)]

    scene = Scene(Limits(descriptions_bytes_per_session=1000))
    a = scene.join("lab/a")
    registry, session = scene.broker.registry, a.session
    registry.announce(session, described(500, 499, 1))
    for entries in (described(500, 499, 2), [*registrations(session), Registration("x", "", "", {}, None, size=1)]):
        with pytest.raises(LimitExceeded, match="descriptions_bytes_per_session = 1000"):
            registry.announce(session, entries)
    assert list(session.services) == ["s0", "s1", "s2"]
    token = scene.broker.resumption_token(session)
    a.leave(clean=False)
    back = scene.attach(scene.broker.admit(Credentials("a", reconnection_token=token)))
    assert [service.size for service in back.session.services.values()] == [500, 499, 1]


async def test_the_subscriptions_of_a_session_are_bounded_exactly() -> None:
    session = Scene(Limits(subscriptions_per_session=2)).join("lab/a").session
    for name in ("one", "two", "one"):
        session.subscribe(name)
    with pytest.raises(LimitExceeded, match="subscriptions_per_session = 2"):
        session.subscribe("three")
    assert session.subscriptions == {"one", "two"}
