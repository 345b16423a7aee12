"""Workspaces, levels, owners, kicks, blocked users and quotas, through the managers of both generations."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from hypha.broker.access import Level, Principal, level_in
from hypha.broker.broker import Credentials
from hypha.broker.issuing import admin_token
from hypha.broker.tokens import Tokens
from hypha.config import Limits
from hypha.errors import InvalidArgument, LimitExceeded, NotAuthenticated, PermissionDenied
from hypha.wire.dialect import LEGACY, MODERN, Dialect
from tests.broker.managing import MANAGER
from tests.broker.memory import KEY, MemoryStore, Peer, Rejected, Scene

pytestmark = pytest.mark.deadline(20)

GENERATIONS = pytest.mark.parametrize("dialect", [LEGACY, MODERN], ids=["legacy", "modern"])
ADMIN = Principal("the-admin", is_anonymous=False, roles=("admin",))

Ask = Callable[..., Awaitable[Any]]


async def ask(peer: Peer, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call the manager of the peer's generation."""
    to = "workspace-manager" if peer.session.dialect.legacy_manager else MANAGER
    return await peer.ask(name, *args, to=to, **kwargs)


async def refused(peer: Peer, name: str, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(Rejected) as caught:
        await ask(peer, name, *args, **kwargs)
    return str(caught.value)


def user(name: str, **grants: Level) -> Principal:
    return Principal(name, is_anonymous=False, grants=grants)


async def owned(live: Scene, dialect: Dialect = MODERN, name: str = "lab") -> Peer:
    """A client in a workspace that its user has created."""
    first = live.join("start/first", principal=user("ada", start=Level.READ), dialect=dialect)
    await ask(first, "create_workspace", {"name": name})
    first.leave()
    return live.join(f"{name}/ada", principal=user("ada"), dialect=dialect)


# --- levels and owners ----------------------------------------------------------------------------------------


@GENERATIONS
async def test_a_level_is_given_changed_and_taken_away(live: Scene, dialect: Dialect) -> None:
    ada = await owned(live, dialect)
    for text, permission in (("r", "read"), ("rw", "read_write"), ("admin", "admin"), ("read", "read")):
        info = await ask(ada, "set_permission", "bob", text)
        assert info["permissions"] == {"bob": permission}
    bob = live.join("lab/bob", principal=user("bob"), dialect=dialect)
    assert "Permission denied for workspace lab" in await refused(bob, "update_workspace", {"description": "D"})
    await ask(ada, "set_permission", "bob", "admin", "lab")
    assert (await ask(bob, "update_workspace", {"description": "D"}))["description"] == "D"
    await ask(ada, "set_permission", "bob", None)
    assert bob.transport.closed == [(1008, "access to the workspace was taken away")]
    with pytest.raises(PermissionDenied):
        live.join("lab/bob", principal=user("bob"))


async def test_a_level_replaces_what_the_allow_list_gives(live: Scene) -> None:
    ada = await owned(live)
    await ask(ada, "update_workspace", {"allow_list": ["bob", "eve"]})
    info = await ask(ada, "set_permission", "bob", "read")
    assert (info["allow_list"], info["permissions"]) == (["eve"], {"bob": "read"})


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"permissions": {"bob": "root"}}, "ValueError: permissions are read, read_write or admin, for each user"),
        ({"permissions": {"bob": None}}, "ValueError: permissions are read, read_write or admin, for each user"),
        ({"permissions": ["bob"]}, "ValueError: permissions must be a list of texts"),
        ({"permissions": {"x" * 300: "read"}}, "ValueError: permissions must be a list of texts"),
        ({"permissions": dict.fromkeys(map(str, range(1001)), "r")}, "RuntimeError: permissions takes at most 1000"),
        ({"owners": []}, "ValueError: a workspace keeps at least one owner who is not denied"),
        ({"deny_list": ["ada"]}, "ValueError: a workspace keeps at least one owner who is not denied"),
        ({"owners": ["bob"], "deny_list": ["bob"]}, "ValueError: a workspace keeps at least one owner"),
        ({"name": "other"}, "PermissionError: Changing workspace name is not allowed."),
        ({"id": "other"}, "PermissionError: Changing workspace name is not allowed."),
        ({"creator": "bob"}, "KeyError: Invalid key: creator"),
        (None, "ValueError: the settings of a workspace are a map"),
    ],
)
async def test_a_wrong_change_is_refused_and_changes_nothing(live: Scene, config: Any, text: str) -> None:
    ada = await owned(live)
    before = live.workspace("lab").describe()
    assert (await refused(ada, "update_workspace", config)).startswith(text)
    assert live.workspace("lab").describe() == before


async def test_text_that_cannot_be_kept_is_refused_and_changes_nothing(live: Scene) -> None:
    half = "\ud800"
    ada, lab, administration = await owned(live), live.workspace("lab"), live.broker.administration
    principal, before = ada.session.principal, lab.describe()
    for config in ({"description": half, "deny_list": ["bob"]}, {"allow_list": [half]}, {"permissions": {half: "r"}}):
        with pytest.raises(InvalidArgument, match="surrogates not allowed"):
            administration.update(principal, lab, config)
        with pytest.raises(InvalidArgument, match="surrogates not allowed"):
            administration.create(principal, {"name": "new", **config})
    for change in (
        partial(administration.set_permission, principal, lab, half, "read"),
        partial(administration.block, ADMIN, half),
        partial(administration.block, ADMIN, "bob", half),
        partial(administration.set_user_quota, half, {"clients": 1}),
    ):
        with pytest.raises(InvalidArgument, match="surrogates not allowed"):
            change()
    assert lab.describe() == before
    assert set(live.broker.registry.workspaces) == {"lab", "public"}
    assert (administration.blocked(), live.broker.quotas) == ([], {})


async def test_a_workspace_is_given_away_and_never_left_to_nobody(live: Scene) -> None:
    ada = await owned(live)
    await ask(ada, "update_workspace", {"owners": ["ada", "bob"]})
    assert (await ask(ada, "update_workspace", {"owners": ["bob"]}))["owners"] == ["bob"]  # is answered first
    live.broker.sweep()
    assert ada.transport.closed == [(1008, "access to the workspace was taken away")]
    bob = live.join("lab/bob", principal=user("bob"), dialect=MODERN)
    assert "at least one owner" in await refused(bob, "update_workspace", {"owners": []})
    assert "at least one owner" in await refused(
        bob, "create_workspace", {"name": "new", "owners": [], "deny_list": ["bob"]}
    )
    assert "new" not in live.broker.registry.workspaces


async def test_only_the_quota_is_no_setting(live: Scene) -> None:
    ada = await owned(live)
    info = await ask(ada, "update_workspace", {"quota": {"clients": 10**6}})
    assert info["quota"] == {}


async def test_those_who_listen_hear_of_a_change(live: Scene) -> None:
    ada = await owned(live)
    await ask(ada, "subscribe", "workspace_changed")
    await ask(ada, "update_workspace", {"description": "D"})
    message = await ada.next_message(lambda message: message["type"] == "workspace_changed")
    assert message["data"] == {"id": "lab", "workspace": "lab"}


# --- tokens are worth what is left of their issuer's rights ------------------------------------------------------


@GENERATIONS
async def test_a_token_loses_what_its_issuer_loses(live: Scene, dialect: Dialect) -> None:
    ada = await owned(live, dialect)
    await ask(ada, "set_permission", "bob", "admin")
    bob = live.join("lab/bob", principal=user("bob"), dialect=dialect)
    token = await ask(bob, "generate_token", {"permission": "admin"})
    guest = live.attach(live.broker.admit(Credentials("guest", "lab", token)), dialect=dialect)
    through = await ask(guest, "generate_token", {"permission": "admin"})
    await ask(guest, "update_workspace", {"description": "as bob may"})
    await ask(ada, "set_permission", "bob", "read")
    assert "Permission denied for workspace lab" in await refused(guest, "update_workspace", {"description": "E"})
    assert "no permission to workspace" in await refused(guest, "generate_token", {"permission": "read_write"})
    late = live.attach(live.broker.admit(Credentials("late", "lab", through)), dialect=dialect)
    assert "Permission denied for workspace lab" in await refused(late, "update_workspace", {"description": "E"})
    await ask(ada, "set_permission", "bob", None)
    for peer in (bob, guest, late):
        assert not peer.session.open
    with pytest.raises(PermissionDenied):
        live.broker.admit(Credentials("later", "lab", through))


async def test_a_token_for_a_workspace_is_nothing_in_the_next_one_of_that_name(live: Scene) -> None:
    ada = await owned(live)
    token = await ask(ada, "generate_token", {"permission": "admin"})
    away = live.join("away/ada", principal=user("ada", away=Level.READ), dialect=MODERN)
    await ask(away, "delete_workspace", "lab")
    bob = live.join("away/bob", principal=user("bob", away=Level.READ), dialect=MODERN)
    await ask(bob, "create_workspace", {"name": "lab"})
    with pytest.raises(PermissionDenied):
        live.broker.admit(Credentials("guest", "lab", token))


async def test_a_token_of_an_administrator_of_the_server_is_nothing_in_the_next_one_of_that_name(live: Scene) -> None:
    ada = await owned(live)
    admin = live.join("start/admin", principal=ADMIN, dialect=MODERN)
    token = await ask(admin, "generate_token", {"workspace": "lab", "permission": "admin"})
    guest = live.attach(live.broker.admit(Credentials("guest", "lab", token)), dialect=MODERN)
    through = await ask(guest, "generate_token")
    live.broker.admit(Credentials("child", "lab", through))
    ada.leave()
    await ask(admin, "delete_workspace", "lab")
    bob = live.join("start/bob", principal=user("bob", start=Level.READ), dialect=MODERN)
    await ask(bob, "create_workspace", {"name": "lab"})
    for text in (token, through):
        with pytest.raises(PermissionDenied):
            live.broker.admit(Credentials("guest", "lab", text))
    assert await ask(bob, "list_tokens", "lab") == []


async def test_a_token_for_somebodys_own_workspace_loses_what_its_issuer_loses(live: Scene) -> None:
    ada = live.attach(live.broker.admit(Credentials("ada")), dialect=MODERN)
    home = ada.session.address.workspace
    bob = live.attach(live.broker.admit(Credentials("bob")), dialect=MODERN)
    await ask(ada, "set_permission", bob.session.principal.id, "read")
    token = await ask(bob, "generate_token", {"workspace": home, "permission": "read"})
    guest = live.attach(live.broker.admit(Credentials("guest", home, token)))
    await ask(ada, "set_permission", bob.session.principal.id, None)
    assert not guest.session.open
    with pytest.raises(PermissionDenied):
        live.broker.admit(Credentials("guest", home, token))


async def test_a_workspace_that_is_gone_is_not_made_again_by_who_was_in_it(live: Scene) -> None:
    ada = await owned(live)
    await ask(ada, "set_permission", "bob", "read")
    bob = live.join("lab/bob", principal=user("bob"), dialect=MODERN)
    guest = live.attach(live.broker.admit(Credentials("guest", "lab", await ask(bob, "generate_token"))))
    returning = live.broker.resumption_token(guest.session)
    after = Scene(nursery=live.nursery)
    with pytest.raises(PermissionDenied, match="Permission denied for workspace lab"):
        after.broker.admit(Credentials("guest", reconnection_token=returning))
    assert set(after.broker.registry.workspaces) == {"public"}


async def test_who_loses_its_level_while_its_connection_is_lost_does_not_come_back(live: Scene) -> None:
    ada = await owned(live)
    await ask(ada, "set_permission", "bob", "read_write")
    bob = live.join("lab/bob", principal=user("bob"), dialect=MODERN)
    token = await ask(bob, "generate_token")
    guest = live.attach(live.broker.admit(Credentials("guest", "lab", token)))
    mine = live.attach(live.broker.admit(Credentials("mine", "lab", await ask(ada, "generate_token"))))
    returning = live.broker.resumption_token(guest.session)
    for peer in (guest, mine):
        peer.leave(clean=False)
    await ask(ada, "set_permission", "bob", None)
    lab = live.broker.registry.workspaces["lab"]
    assert list(lab.parked) == ["mine"]
    await ask(ada, "set_permission", "bob", "read_write")
    with pytest.raises(NotAuthenticated, match="the session has ended"):
        live.broker.admit(Credentials("guest", reconnection_token=returning))
    live.broker.admit(Credentials("guest", "lab", token))


async def test_who_is_denied_takes_all_that_came_from_it_along(live: Scene) -> None:
    ada = await owned(live)
    await ask(ada, "set_permission", "bob", "read_write")
    bob = live.join("lab/bob", principal=user("bob"), dialect=MODERN)
    guest = live.attach(live.broker.admit(Credentials("guest", "lab", await ask(bob, "generate_token"))))
    await ask(ada, "update_workspace", {"deny_list": ["bob"]})
    assert not bob.session.open
    assert not guest.session.open


# --- kicks ----------------------------------------------------------------------------------------------------


@GENERATIONS
async def test_a_kicked_client_is_gone_and_its_old_session_with_it(live: Scene, dialect: Dialect) -> None:
    ada = await owned(live, dialect)
    for number, name in enumerate(("bob", "lab/bob")):
        bob = live.join("lab/bob", principal=user("bob", lab=Level.READ_WRITE), dialect=dialect)
        returning = live.broker.resumption_token(bob.session)
        await ask(ada, "kick_client", name, *(["too loud"] if number else []))
        reason = "too loud" if number else "disconnected by an administrator"
        assert bob.transport.closed == [(1008, reason)]
        assert not bob.session.open
        with pytest.raises(NotAuthenticated, match="the session has ended"):
            live.broker.admit(Credentials("bob", reconnection_token=returning))
    assert await refused(ada, "kick_client", "bob") == "Exception: Client not found: bob"
    assert "disconnects itself" in await refused(ada, "kick_client", "ada")
    for wrong in (None, "", 5, "x" * 1000):
        assert "the client is named by its id" in await refused(ada, "kick_client", wrong)
    live.join("lab/bob")
    assert "the reason is text" in await refused(ada, "kick_client", "bob", 5)


async def test_a_long_reason_is_cut_between_characters(live: Scene) -> None:
    ada = await owned(live)
    bob = live.join("lab/bob", principal=user("bob", lab=Level.READ))
    await ask(ada, "kick_client", "bob", "ä" * 80)
    assert bob.transport.closed == [(1008, "ä" * 50)]


# --- administrators of the server -------------------------------------------------------------------------------


@GENERATIONS
async def test_an_administrator_sees_and_ends_clients_of_every_workspace(live: Scene, dialect: Dialect) -> None:
    ada = await owned(live, dialect)
    admin = live.join("office/admin", principal=ADMIN, dialect=dialect)
    listed = await ask(admin, "list_clients", "lab")
    assert listed in (["workspace-manager", "ada"], [{"id": "lab/ada", "user": ada.session.principal.to_wire("lab")}])
    assert {entry["id"] for entry in await ask(admin, "list_workspaces")} >= {"lab", "office", "public"}
    await ask(admin, "kick_client", "lab/ada")
    assert not ada.session.open
    await ask(admin, "delete_workspace", "lab")
    assert "lab" not in live.broker.registry.workspaces


@GENERATIONS
async def test_a_blocked_user_is_out_with_all_that_it_has_issued(live: Scene, dialect: Dialect) -> None:
    ada = await owned(live, dialect)
    other = live.join("other/x", dialect=dialect)
    admin = live.join("office/admin", principal=ADMIN, dialect=dialect)
    token = await ask(ada, "generate_token")
    guest = live.attach(live.broker.admit(Credentials("guest", "lab", token)), dialect=dialect)
    through = await ask(guest, "generate_token")
    returning = live.broker.resumption_token(guest.session)
    await ask(admin, "block_user", "ada", "mines coins")
    for peer in (ada, guest):
        assert peer.transport.closed == [(1008, "the token was revoked")]
    assert other.session.open
    for credentials in (
        Credentials("c", "lab", token),
        Credentials("c", "lab", through),
        Credentials("guest", reconnection_token=returning),
    ):
        with pytest.raises(NotAuthenticated, match="this user is blocked"):
            live.broker.admit(credentials)
    (blocked,) = await ask(admin, "list_blocked")
    assert (blocked["user"], blocked["reason"]) == ("ada", "mines coins")
    assert [entry["user"] for entry in await ask(admin, "list_users") if entry["blocked"]] == ["ada"]
    await ask(admin, "unblock_user", "ada")
    assert live.broker.authenticate(through).account == "ada"
    assert await refused(admin, "unblock_user", "ada") == "KeyError: 'ada' is not blocked"


async def test_a_user_in_the_middle_is_blocked_with_what_comes_from_it_and_no_more(live: Scene) -> None:
    ada = await owned(live)
    admin = live.join("office/admin", principal=ADMIN, dialect=MODERN)
    guest = live.attach(live.broker.admit(Credentials("g", "lab", await ask(ada, "generate_token"))), dialect=MODERN)
    last = live.attach(live.broker.admit(Credentials("l", "lab", await ask(guest, "generate_token"))), dialect=MODERN)
    await ask(admin, "block_user", guest.session.principal.id)
    assert (ada.session.open, guest.session.open, last.session.open) == (True, False, False)


async def test_a_wrong_block_is_refused(live: Scene) -> None:
    admin = live.join("office/admin", principal=ADMIN, dialect=MODERN)
    assert "that is yourself" in await refused(admin, "block_user", "the-admin")
    for wrong in (None, "", 5, "x" * 300):
        assert "an id or an e-mail address" in await refused(admin, "block_user", wrong)
    assert "the reason is a text" in await refused(admin, "block_user", "ada", "x" * 300)
    assert await ask(admin, "list_blocked") == []


def test_the_token_of_an_administrator_is_good_for_so_long() -> None:
    admin = Tokens(KEY).verify(admin_token(KEY, Limits(token_seconds=10**9)))
    assert (admin.is_admin, admin.is_anonymous, admin.grants) == (True, False, {})
    assert admin.expires_at == pytest.approx(time.time() + 10**9, abs=60)


async def test_the_role_is_not_passed_on_with_a_token(live: Scene) -> None:
    admin = live.join("office/admin", principal=ADMIN, dialect=MODERN)
    await owned(live)
    token = await ask(admin, "generate_token", {"workspace": "lab", "permission": "admin"})
    helper = live.attach(live.broker.admit(Credentials("helper", "lab", token)), dialect=MODERN)
    assert (await ask(helper, "update_workspace", {"description": "D"}))["description"] == "D"
    assert "Permission denied" in await refused(helper, "list_users")
    assert "Permission denied" in await refused(helper, "list_clients", "office")


async def test_an_administrator_makes_a_workspace_for_somebody_else(live: Scene) -> None:
    admin = live.join("office/admin", principal=ADMIN, dialect=MODERN)
    assert (await ask(admin, "create_workspace", {"name": "lab", "owners": ["ada"]}))["owners"] == ["ada"]
    assert (await ask(admin, "create_workspace", {"name": "own"}))["owners"] == ["the-admin"]


# --- quotas ---------------------------------------------------------------------------------------------------


async def test_the_workspaces_of_a_user_are_counted_with_those_of_its_tokens(live: Scene) -> None:
    ada = await owned(live)
    admin = live.join("office/admin", principal=ADMIN, dialect=MODERN)
    assert await ask(admin, "set_quota", {"workspaces": 2}, user="ada") == {"workspaces": 2}
    guest = live.attach(live.broker.admit(Credentials("g", "lab", await ask(ada, "generate_token"))), dialect=MODERN)
    await ask(guest, "create_workspace", {"name": "two"})
    for peer in (ada, guest):
        text = await refused(peer, "create_workspace", {"name": "three"})
        assert text == "RuntimeError: the quota of workspaces = 2 workspaces are yours already"
    assert await ask(admin, "set_quota", {"workspaces": None}, user="ada") == {}
    await ask(guest, "create_workspace", {"name": "three"})
    assert live.broker.quotas == {}


async def test_the_clients_of_a_user_are_bounded_by_its_quota_and_those_that_return_are_not(live: Scene) -> None:
    ada = await owned(live)
    admin = live.join("office/admin", principal=ADMIN, dialect=MODERN)
    token = await ask(ada, "generate_token")
    await ask(admin, "set_quota", {"clients": 2}, user="ada")
    guest = live.attach(live.broker.admit(Credentials("g", "lab", token)), dialect=MODERN)
    with pytest.raises(LimitExceeded, match="the quota of clients = 2 clients of this user are connected already"):
        live.attach(live.broker.admit(Credentials("h", "lab", token)))
    returning = live.broker.resumption_token(guest.session)
    guest.leave(clean=False)
    await ask(admin, "set_quota", {"clients": 0}, user="ada")
    live.attach(live.broker.admit(Credentials("g", reconnection_token=returning)), dialect=MODERN)


@GENERATIONS
async def test_the_clients_and_services_of_a_workspace_are_bounded_by_its_quota(live: Scene, dialect: Dialect) -> None:
    ada = await owned(live, dialect)
    admin = live.join("office/admin", principal=ADMIN, dialect=dialect)
    assert await ask(admin, "set_quota", {"clients": 1, "services": 1}, "lab") == {"clients": 1, "services": 1}
    assert (await ask(ada, "get_workspace_info"))["quota"] == {"clients": 1, "services": 1}
    with pytest.raises(LimitExceeded, match="the quota of clients = 1 are connected already"):
        live.join("lab/more")
    await offer(ada, "one")
    await offer(ada, "one")  # again: it takes the place of itself
    with pytest.raises(Rejected, match="the quota of services = 1 services are offered in the workspace already"):
        await offer(ada, "one", "two")


async def offer(peer: Peer, *names: str) -> None:
    """Register services as the peer's generation does."""
    client = peer.session.address.client
    if peer.session.dialect.legacy_manager:
        entries = [{"id": f"{client}:{name}", "name": name, "type": "generic", "config": {}} for name in names]
        await ask(peer, "update_client_info", {"id": client, "services": entries})
        return
    for name in names:
        await ask(peer, "register_service", {"id": f"{peer.name}:{name}", "name": name, "config": {}})


async def test_the_services_of_a_workspace_are_bounded_exactly_and_those_that_return_are_not(
    nursery: trio.Nursery,
) -> None:
    scene = Scene(Limits(services_per_workspace=3), nursery)
    a, b = (scene.join(f"lab/{name}", dialect=MODERN) for name in "ab")
    await offer(a, "one", "two")
    await offer(b, "three")
    with pytest.raises(Rejected, match="services_per_workspace = 3"):
        await offer(b, "four")
    returning = scene.broker.resumption_token(a.session)
    a.leave(clean=False)
    await offer(b, "four", "five")
    back = scene.attach(scene.broker.admit(Credentials("a", reconnection_token=returning)), dialect=MODERN)
    assert set(back.session.services) == {"one", "two"}


@pytest.mark.parametrize(
    "quota", [None, [], {"services": 1}, {"clients": -1}, {"clients": 1.5}, {"clients": True}, {"clients": 2**31}]
)
async def test_a_wrong_quota_is_refused_and_changes_nothing(live: Scene, quota: Any) -> None:
    admin = live.join("office/admin", principal=ADMIN, dialect=MODERN)
    await ask(admin, "set_quota", {"clients": 5}, user="ada")
    assert "quota" in await refused(admin, "set_quota", quota, user="ada")
    assert live.broker.quotas == {"ada": {"clients": 5}}


async def test_the_workspace_of_the_server_stays(live: Scene) -> None:
    admin = live.join("office/admin", principal=ADMIN, dialect=MODERN)
    assert "the workspace public stays" in await refused(admin, "update_workspace", {"persistent": False}, "public")
    public = live.workspace("public")
    assert public.persistent
    await ask(admin, "update_workspace", {"persistent": True, "description": "ours"}, "public")
    public.persistent = False  # as an earlier version let it be
    live.broker.registry.drop_if_unused(public)
    assert live.workspace("public") is public


async def test_who_comes_back_to_nothing_is_counted_as_new(nursery: trio.Nursery) -> None:
    scene = Scene(Limits(sessions_per_principal=2, suspended_per_principal=2), nursery)
    ada = user("ada", lab=Level.READ_WRITE)
    returning = {}
    for name in ("a", "b", "c", "d"):
        peer = scene.join(f"lab/{name}", principal=ada)
        returning[name] = scene.broker.resumption_token(peer.session)
        peer.leave(clean=False)
    back = [
        scene.attach(scene.broker.admit(Credentials(name, reconnection_token=returning[name]))) for name in ("c", "d")
    ]
    again = scene.broker.resumption_token(back[0].session)
    scene.attach(scene.broker.admit(Credentials("c", reconnection_token=again)))  # in the place of itself
    with pytest.raises(LimitExceeded, match="sessions_per_principal = 2"):
        scene.attach(scene.broker.admit(Credentials("a", reconnection_token=returning["a"])))
    assert len(scene.broker.registry.sessions_of("ada")) == 2


def stranger(scene: Scene, client: str) -> Peer:
    return scene.attach(scene.broker.admit(Credentials(client)), dialect=MODERN)


async def test_the_workspaces_of_one_user_without_an_account_are_bounded_exactly(nursery: trio.Nursery) -> None:
    scene = Scene(Limits(anonymous_workspaces_per_principal=2), nursery)
    one = stranger(scene, "one")
    through = scene.attach(
        scene.broker.admit(Credentials("two", token=await ask(one, "generate_token"))), dialect=MODERN
    )
    for peer, name in ((one, "first"), (through, "second")):
        await ask(peer, "create_workspace", {"name": name})
    for peer in (one, through):
        assert "anonymous_workspaces_per_principal = 2" in await refused(peer, "create_workspace", {"name": "third"})
    await ask(one, "delete_workspace", "first")
    await ask(one, "create_workspace", {"name": "third"})
    ada = await owned(scene)
    for name in ("x", "y", "z"):
        await ask(ada, "create_workspace", {"name": name})


async def test_the_workspaces_of_users_without_an_account_are_bounded_exactly(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    scene = Scene(Limits(anonymous_workspaces=3, workspaces_per_principal=9), nursery, store=MemoryStore())
    nursery.start_soon(partial(scene.broker.records.run, in_thread=False))
    admin = scene.join("office/admin", principal=ADMIN, dialect=MODERN)
    ada = await owned(scene)
    await ask(ada, "create_workspace", {"name": "adas"})
    one, two = stranger(scene, "one"), stranger(scene, "two")
    for peer, name in ((one, "first"), (two, "second"), (one, "third")):
        mock_clock.jump(1)
        await ask(peer, "create_workspace", {"name": name})
    scene.attach(scene.broker.admit(Credentials("in", "first", await in_workspace(one, "first"))))
    home = two.session.address.workspace
    await ask(two, "update_workspace", {"owners": [home]}, home)
    there = set(scene.broker.registry.workspaces)
    assert {"first", "third", "adas", "lab", home} < there
    assert "second" not in there
    await ask(admin, "update_workspace", {"persistent": True}, "third")
    await ask(two, "create_workspace", {"name": "fourth"})
    scene.attach(scene.broker.admit(Credentials("in", "fourth", await in_workspace(two, "fourth"))))
    assert "anonymous_workspaces = 3" in await refused(one, "create_workspace", {"name": "fifth"})
    scene = scene.restarted()
    assert len(scene.broker.registry._of_strangers) == 4
    assert len(scene.broker.registry.created_by(ada.session.principal.account)) == 2


async def in_workspace(peer: Peer, name: str) -> Any:
    return await ask(peer, "generate_token", {"workspace": name})


async def test_workspaces_are_listed_while_others_have_their_turn(live: Scene) -> None:
    for number in range(1200):
        live.workspace(f"w{number}").description = str(number % 2)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    page_of = live.broker.administration.page_of
    async with trio.open_nursery() as others:
        others.start_soon(count)
        assert len(await page_of(ADMIN, {}, 0, 5000)) == 1000
        assert turns > 5
        others.cancel_scope.cancel()
    page = await page_of(ADMIN, {"description": "1"}, 2, 3)
    assert [entry["name"] for entry in page] == ["w5", "w7", "w9"]
    assert await page_of(user("nobody"), {}, 0, 10) == []
    assert await page_of(ADMIN, {}, 0, 0) == []


async def test_addresses_are_the_same_however_they_are_written(live: Scene) -> None:
    ada = await owned(live)
    bob = replace(user("bob-id"), email="bob@lab.example")
    written, known = "Bob@Lab.example", "bob@lab.example"
    lists = {"owners": ["ada", written], "allow_list": [written], "deny_list": ["Eve@lab.example"]}
    info = await ask(ada, "update_workspace", {**lists, "permissions": {written: "read"}})
    assert (info["owners"], info["allow_list"], info["permissions"]) == (["ada", known], [known], {known: "read"})
    assert live.workspace("lab").deny_list == ["eve@lab.example"]
    assert level_in(bob, live.workspace("lab")) is Level.ADMIN
    await ask(ada, "update_workspace", {"owners": ["ada"]})
    info = await ask(ada, "set_permission", "BOB@lab.example", "read")
    assert (info["allow_list"], info["permissions"]) == ([], {known: "read"})
    assert (await ask(ada, "set_permission", "BOB@lab.example", None))["permissions"] == {}
    admin, tokens = live.broker.administration, live.broker.tokens
    assert admin.set_user_quota(written, {"clients": 3}) == live.broker.quotas[known] == {"clients": 3}
    admin.block(ADMIN, written)
    assert tokens.is_revoked(bob)
    admin.unblock("BOB@LAB.example")
    assert not tokens.is_revoked(bob)
    admin.block(ADMIN, "Bob")
    assert [entry["user"] for entry in tokens.blocked()] == ["Bob"]


async def test_nobody_blocks_the_own_address_however_it_is_written(live: Scene) -> None:
    with pytest.raises(InvalidArgument, match="that is yourself"):
        live.broker.administration.block(replace(ADMIN, email="ada@lab.example"), "Ada@Lab.example")
