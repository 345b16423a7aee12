"""What a broker knows again when another process begins where it has ended: in memory, whatever the store."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from hypha.broker.access import ROOT, Level, Principal
from hypha.broker.broker import Credentials
from hypha.broker.kept import pack
from hypha.broker.registration import registrations
from hypha.config import Limits
from hypha.errors import Conflict, NotAuthenticated
from hypha.wire.dialect import MODERN
from tests.broker.memory import EPOCH, MemoryStore, Peer, Rejected, Scene

OWNER = Principal("owner", is_anonymous=False, email="owner@lab.example", grants={"lab": Level.ADMIN})


@pytest.fixture
async def kept(nursery: trio.Nursery) -> Scene:
    """A scene whose broker keeps what it is told, and answers when that is kept."""
    return running(Scene(nursery=nursery, store=MemoryStore(), wall=wall))


def wall() -> float:
    return EPOCH + trio.current_time()


def running(scene: Scene) -> Scene:
    assert scene.nursery is not None
    scene.nursery.start_soon(write, scene)
    return scene


async def write(scene: Scene) -> None:
    await scene.broker.records.run(in_thread=False)


def restarted(scene: Scene, limits: Limits | None = None) -> Scene:
    return running(scene.restarted(limits))


def services(scene: Scene) -> list[str]:
    found = scene.broker.registry.workspaces.values()
    return sorted(
        service.full_id for place in found for member in place.members.values() for service in member.services.values()
    )


def come_back(scene: Scene, token: str, client: str = "a") -> Peer:
    return scene.attach(scene.broker.admit(Credentials(client, reconnection_token=token)))


# --- workspaces and what is left with them --------------------------------------------------------------------


async def test_a_workspace_is_there_again_as_it_was_set(kept: Scene, autojump_clock: MockClock) -> None:
    owner = kept.join("lab/a", principal=OWNER, dialect=MODERN)
    settings = {"persistent": True, "description": "ours", "visibility": "public", "deny_list": ["bad"]}
    made = await owner.ask("create_workspace", {"name": "shop", **settings}, to="*/server-id")
    again = restarted(kept)
    place = again.broker.registry.workspaces["shop"]
    assert place.describe() == made
    assert place.creator == "owner@lab.example"


async def test_a_workspace_is_kept_before_its_maker_is_answered(kept: Scene, autojump_clock: MockClock) -> None:
    assert kept.store is not None
    owner = kept.join("lab/a", principal=OWNER)
    kept.store.full = "no space left"
    with pytest.raises(Rejected, match="cannot write to its data directory"):
        await owner.ask("create_workspace", {"name": "shop"})
    assert await owner.ask("echo", 1) == 1  # nothing of it needs to be kept
    await owner.ask("log_event", "e", 1, to="*/server-id")  # nobody has decided anything with it
    kept.store.full = None
    await trio.sleep(2)
    assert ("workspace", "shop") in kept.store.records
    assert kept.store.firm


async def test_the_own_workspace_of_a_user_is_there_for_others_with_its_token(
    kept: Scene, autojump_clock: MockClock
) -> None:
    assert kept.store is not None
    user = kept.attach(kept.broker.admit(Credentials("a")))
    token = await user.ask("generate_token")
    again = restarted(kept)
    guest = again.attach(again.broker.admit(Credentials("b", user.session.workspace, token)))
    assert guest.session.workspace == user.session.workspace
    guest.leave()
    await trio.sleep(3601)
    again.broker.sweep()
    await trio.sleep(1)
    assert kept.store.kinds() == ["ended", "issued"]


async def test_a_deleted_workspace_leaves_nothing(kept: Scene, autojump_clock: MockClock) -> None:
    assert kept.store is not None
    owner = kept.join("lab/a", principal=OWNER, dialect=MODERN)
    await owner.ask("create_workspace", {"name": "shop", "persistent": True}, to="*/server-id")
    guest = kept.join("shop/g", principal=OWNER, dialect=MODERN)
    await leave_everything(guest)
    guest.announce("svc")
    await owner.ask("delete_workspace", "shop", to="*/server-id")
    assert kept.store.kinds() == ["ended", "issued", "issued"]
    assert "shop" not in restarted(kept).broker.registry.workspaces


async def leave_everything(peer: Peer) -> None:
    await peer.ask("set_env", "KEY", "value", to="*/server-id")
    await peer.ask("bookmark", {"bookmark_type": "workspace", "id": peer.session.workspace}, to="*/server-id")
    await peer.ask("register_service_type", {"id": "kind", "definition": {"f": 1}}, to="*/server-id")
    await peer.ask("log_event", "seen", [1], to="*/server-id")
    await peer.ask("log_event", "seen", [2], to="*/server-id")


async def test_what_members_have_left_is_there_again(kept: Scene, autojump_clock: MockClock) -> None:
    peer = kept.join("lab/a", principal=OWNER, dialect=MODERN)
    await leave_everything(peer)
    again = restarted(kept).join("lab/b", principal=OWNER, dialect=MODERN)
    assert await again.ask("get_env", to="*/server-id") == {"KEY": "value"}
    info = await again.ask("get_workspace_info", to="*/server-id")
    assert [item["id"] for item in info["config"]["bookmarks"]] == ["lab"]
    assert (await again.ask("get_service_type", "kind", to="*/server-id"))["definition"] == {"f": 1}
    events = await again.ask("get_events", to="*/server-id")
    assert [event["data"] for event in events] == [[1], [2]]
    await again.ask("log_event", "seen", [3], to="*/server-id")
    assert [event["id"] for event in await again.ask("get_events", to="*/server-id")] == [1, 2, 3]


async def test_events_that_made_room_are_forgotten(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    store = MemoryStore()
    limits = Limits(events_bytes_per_workspace=500)
    scene = running(Scene(limits, nursery, wall, store))
    peer = scene.join("lab/a", principal=OWNER, dialect=MODERN)
    for number in range(5):
        await peer.ask("log_event", "seen", number, to="*/server-id")
    assert store.kinds().count("event") == 2


# --- sessions -------------------------------------------------------------------------------------------------


async def test_a_client_has_its_services_back(kept: Scene, autojump_clock: MockClock) -> None:
    """imjoy-rpc does not register them again; they keep their age, their settings, and what was subscribed to."""
    a = kept.join("lab/a")
    a.announce("one", "two", visibility="public", docs={"x": [1]})
    await a.ask("services.default.subscribe", "news", to="*/server-id")
    before = registrations(a.session)
    token = kept.broker.resumption_token(a.session)
    again = restarted(kept)
    assert services(again) == []
    b = come_back(again, token)
    assert services(again) == ["lab/a:one", "lab/a:two"]
    assert registrations(b.session) == before
    assert b.session.subscriptions == {"news"}


async def test_who_was_lost_before_has_the_rest_of_its_time(kept: Scene, autojump_clock: MockClock) -> None:
    a = kept.join("lab/a")
    a.announce("svc")
    a.leave(clean=False)
    await trio.sleep(3000)
    again = restarted(kept)
    assert time_left(again) == pytest.approx(600)
    await trio.sleep(601)
    again.broker.sweep()
    await trio.sleep(1)
    assert set(again.broker.registry.workspaces) == {"public"}
    assert kept.store is not None
    assert kept.store.kinds() == []


def time_left(scene: Scene) -> float:
    """The seconds in which the one lost client of the workspace may come back."""
    (parked,) = scene.broker.registry.workspaces["lab"].parked.values()
    return parked.until - trio.current_time()


async def test_who_was_connected_has_all_of_it(kept: Scene, autojump_clock: MockClock) -> None:
    kept.join("lab/a").announce("svc")
    await trio.sleep(10_000)
    assert time_left(restarted(kept)) == pytest.approx(3600)


async def test_who_has_said_goodbye_does_not_come_back(kept: Scene, autojump_clock: MockClock) -> None:
    assert kept.store is not None
    a = kept.join("lab/a")
    a.announce("svc")
    token = kept.broker.resumption_token(a.session)
    a.leave()
    again = restarted(kept)
    assert kept.store.kinds() == ["ended", "issued"]
    with pytest.raises(NotAuthenticated, match="the session has ended"):
        come_back(again, token)


async def test_the_end_is_remembered_as_long_as_tokens_live(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    store = MemoryStore()
    scene = running(Scene(Limits(reconnection_token_seconds=100.0), nursery, wall, store))
    scene.join("lab/a").leave()
    again = restarted(scene)
    await trio.sleep(101)
    again.broker.sweep()
    await trio.sleep(1)
    assert store.kinds() == ["issued"]


async def test_a_service_that_was_taken_out_stays_out(kept: Scene, autojump_clock: MockClock) -> None:
    assert kept.store is not None
    a = kept.join("lab/a", dialect=MODERN)
    a.announce("one", "two")
    await a.ask("unregister_service", "one", to="*/server-id")
    token = kept.broker.resumption_token(a.session)
    again = restarted(kept)
    come_back(again, token)
    assert services(again) == ["lab/a:two"]
    assert kept.store.kinds().count("service") == 1


async def test_another_session_of_the_id_inherits_nothing(kept: Scene, autojump_clock: MockClock) -> None:
    assert kept.store is not None
    user = kept.principal("user", "lab")
    kept.join("lab/a", principal=user).announce("old")
    again = restarted(kept)
    again.join("lab/a", principal=user).announce("new")
    assert services(again) == ["lab/a:new"]
    third = restarted(again)
    (parked,) = third.broker.registry.workspaces["lab"].parked.values()
    assert [item.id for item in parked.registrations] == ["new"]


async def test_the_id_of_a_client_that_is_away_is_its_own(kept: Scene, autojump_clock: MockClock) -> None:
    kept.join("lab/a").announce("svc")
    again = restarted(kept)
    with pytest.raises(Conflict, match="may come back"):
        again.join("lab/a", principal=again.principal("stranger", "lab"))


async def test_who_is_older_stays_older(kept: Scene, autojump_clock: MockClock) -> None:
    first, second = kept.join("one/a"), kept.join("two/b")
    first.announce("svc", visibility="public")
    second.announce("svc", visibility="public")
    tokens = [kept.broker.resumption_token(peer.session) for peer in (second, first)]
    again = restarted(kept)
    again.join("three/c").announce("svc", visibility="public")
    come_back(again, tokens[0], "b")
    come_back(again, tokens[1], "a")
    asker = again.join("home/d").session.principal
    providers = again.broker.registry.providers("svc", asker, "home")
    assert [service.full_id for service in providers] == ["one/a:svc"]


async def test_programs_of_the_server_itself_are_not_waited_for(kept: Scene, autojump_clock: MockClock) -> None:
    """Their tokens end with the process, and new ones come with new tokens."""
    assert kept.store is not None
    token, _ = kept.broker.tokens.issue_living(kept.principal("program", "lab"))
    kept.workspace("lab")
    program = kept.attach(kept.broker.admit(Credentials("a", "lab", token)))
    program.announce("svc")
    program.leave(clean=False)
    again = restarted(kept)
    assert kept.store.kinds() == []
    again.join("lab/a")


async def test_services_for_which_there_is_no_room_any_more_are_forgotten(
    kept: Scene, autojump_clock: MockClock
) -> None:
    kept.join("lab/a").announce("one", "two")
    kept.join("lab/b").announce("one")
    again = restarted(kept, Limits(services_per_session=1))
    assert list(again.broker.registry.workspaces["lab"].parked) == ["b"]


async def test_a_workspace_whose_name_was_taken_for_a_mount_is_kept(kept: Scene, autojump_clock: MockClock) -> None:
    owner = kept.join("lab/a", principal=OWNER)
    await owner.ask("create_workspace", {"name": "shop", "description": "ours"})
    kept.broker.records.close()
    again = Scene(store=kept.store, wall=wall)
    again.broker.registry._reserved |= {"shop"}
    again.broker.restore()
    assert again.broker.registry.workspaces["shop"].description == "ours"


async def test_a_record_of_another_form_stops_nothing(
    kept: Scene, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    assert kept.store is not None
    kept.join("lab/a").announce("svc")
    kept.broker.records.close()
    for kind in ("workspace", "service", "session", "event", "revoked", "ended"):
        kept.store.records[kind, "odd/name"] = b"\x01"
    kept.store.records["service", "odd/other"] = pack(["lab/a", 1])
    again = restarted(kept)
    assert list(again.broker.registry.workspaces["lab"].parked) == ["a"]
    assert caplog.text.count("is of another form") == 6  # what is to be a number is one
    assert ("service", "odd/name") in kept.store.records


# --- tokens ---------------------------------------------------------------------------------------------------


async def test_a_revoked_token_stays_revoked_and_is_forgotten_in_time(kept: Scene, autojump_clock: MockClock) -> None:
    assert kept.store is not None
    token = kept.broker.tokens.issue(OWNER, expires_in=1000)
    holder = kept.join("lab/a", principal=OWNER, dialect=MODERN)
    await holder.ask("revoke_token", token, to="*/server-id")
    assert kept.store.firm
    assert token not in repr(kept.store.records)
    again = restarted(kept)
    with pytest.raises(NotAuthenticated, match="revoked"):
        again.broker.tokens.verify(token)
    await trio.sleep(1100)
    again.broker.sweep()
    await trio.sleep(1)
    assert "revoked" not in kept.store.kinds()


async def test_nothing_changes_by_a_restart_alone(kept: Scene, autojump_clock: MockClock) -> None:
    assert kept.store is not None
    kept.join("lab/a", principal=OWNER).announce("svc")
    once = restarted(kept)
    once.broker.records.close()
    before = dict(kept.store.records)
    await trio.sleep(20)
    restarted(once).broker.records.close()
    assert kept.store.records == before


async def test_what_administrators_have_set_is_kept(kept: Scene, autojump_clock: MockClock) -> None:
    kept.join("lab/a", principal=OWNER)
    before = kept.broker
    before.administration.block(ROOT, "mallory", "spam")
    before.administration.block(ROOT, "trudy", "a mistake")
    before.administration.unblock("trudy")
    before.administration.set_user_quota("eve", {"clients": 1})
    before.administration.set_workspace_quota(before.registry.workspaces["lab"], {"services": 2})
    await before.registry.ledger.records.kept()
    after = restarted(kept).broker
    assert [entry["user"] for entry in after.administration.blocked()] == ["mallory"]
    assert after.administration.blocked() == before.administration.blocked()
    assert after.quotas == {"eve": {"clients": 1}}
    assert after.registry.workspaces["lab"].quota == {"services": 2}


async def test_tokens_that_were_issued_are_listed_after_a_restart(kept: Scene, autojump_clock: MockClock) -> None:
    owner = kept.join("lab/a", principal=OWNER)
    await owner.ask("generate_token", {"scopes": ["lab"], "expires_in": 1000})
    before = kept.broker
    before.tokens.issued.write_down()
    listed = before.tokens.listed("lab")
    assert listed
    after = restarted(kept).broker
    assert after.tokens.listed("lab") == listed
    after.administration.revoke(OWNER, listed[-1].id)
    assert after.tokens.listed("lab") == listed[:-1]
    await after.registry.ledger.records.kept()
    assert restarted(kept).broker.tokens.listed("lab") == listed[:-1]
