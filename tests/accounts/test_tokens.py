"""Tokens that people have made: what they open, how they are listed, and how they end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from hypha.broker.access import Level, level_in
from hypha.broker.broker import Credentials
from hypha.broker.issuing import issue
from hypha.config import Limits
from hypha.errors import HyphaError, InvalidArgument, LimitExceeded, NotAuthenticated, NotFound, PermissionDenied
from hypha.wire.dialect import MODERN
from tests.accounts.scene import Town
from tests.broker.memory import EPOCH, MemoryTransport


async def test_a_token_is_its_account_and_leads_to_its_workspace(town: Town) -> None:
    owner = await town.owner()
    text = await town.people.tokens.issue(owner, "microscope", 3600)
    admission = town.broker.admit(Credentials("a", token=text))
    assert admission.address.workspace == owner.id
    user = admission.principal.to_wire(owner.id)
    assert (user["id"], user["email"], user["is_anonymous"]) == (owner.id, "ada@lab.example", False)
    assert (user["roles"], user["scopes"], user["parent"]) == ([], [owner.id], None)
    assert user["expires_at"] == EPOCH + 3600


async def test_only_an_administrator_passes_the_server_on_and_only_when_asked_to(town: Town) -> None:
    owner = await town.owner()
    guest = await town.guest(owner)
    text = await town.people.tokens.issue(owner, "admin", 60, admin=True)
    assert town.broker.tokens.verify(text).roles == ("admin",)
    with pytest.raises(PermissionDenied, match="administers the server"):
        await town.people.tokens.issue(guest, "admin", 60, admin=True)


async def test_a_token_for_one_workspace_is_a_new_users_with_that_level(town: Town) -> None:
    owner = await town.owner()
    lab = town.broker.registry.create_workspace("lab", owners=[owner.id])
    for level, expected in (("read", Level.READ), ("read_write", Level.READ_WRITE), ("admin", Level.ADMIN)):
        holder = town.broker.tokens.verify(await town.people.tokens.issue(owner, "x", 60, "lab", level))
        assert (holder.id != owner.id, holder.parent, holder.home) == (True, owner.id, "lab")
        assert level_in(holder, lab) is expected
        assert level_in(holder, town.broker.registry.workspaces[owner.id]) is Level.NONE


@pytest.mark.parametrize("workspace", ["nowhere", "others"])
async def test_nobody_passes_on_what_they_do_not_have(town: Town, workspace: str) -> None:
    guest = await town.guest(await town.owner())
    town.broker.registry.create_workspace("others", owners=["somebody"])
    with pytest.raises(PermissionDenied, match="no permission to workspace"):
        await town.people.tokens.issue(guest, "x", 60, workspace, "read")
    assert town.people.tokens.of(guest) == []


@pytest.mark.parametrize(
    ("label", "seconds", "workspace", "level"),
    [("", 60, None, ""), (" ", 60, None, ""), ("x" * 101, 60, None, ""), ("x", 0, None, ""), ("x", 60, "own", "root")],
)
async def test_what_makes_no_token(town: Town, label: str, seconds: float, workspace: str | None, level: str) -> None:
    owner = await town.owner()
    with pytest.raises(InvalidArgument):
        await town.people.tokens.issue(owner, label, seconds, workspace and owner.id, level)
    assert town.people.tokens.of(owner) == []


async def test_tokens_are_listed_by_their_ids_with_their_last_use(town: Town) -> None:
    owner = await town.owner()
    text = await town.people.tokens.issue(owner, " microscope ", 3600)
    (item,) = town.people.tokens.of(owner)
    assert (item.label, item.issued_at, item.expires_at, item.last_used) == ("microscope", EPOCH, EPOCH + 3600, None)
    assert item.id in town.broker.tokens.verify(text).tokens
    town.later = 100
    child = town.broker.tokens.issue(town.broker.tokens.verify(text), expires_in=600)
    town.later = 200
    town.broker.authenticate(child)  # used through another one that came from it
    assert item.last_used == EPOCH + 200
    await town.people.tokens.issue(owner, "second", 3600)
    assert [item.label for item in town.people.tokens.of(owner)] == ["second", "microscope"]
    assert town.people.tokens.of(await town.guest(owner)) == []


async def test_a_revoked_token_is_refused_at_once_and_its_clients_go(town: Town) -> None:
    owner = await town.owner()
    text, other = [await town.people.tokens.issue(owner, label, 3600) for label in "ab"]
    admission = town.broker.admit(Credentials("client", token=text))
    transport = MemoryTransport()
    town.broker.attach(admission, MODERN, transport, base_url="")
    returning = town.broker.tokens
    (second, first) = town.people.tokens.of(owner)
    await town.people.tokens.revoke(owner, first.id)
    for check in (town.broker.authenticate, returning.verify):
        with pytest.raises(NotAuthenticated, match="was revoked"):
            check(text)
    town.broker.sweep()
    assert transport.closed == [(1008, "the token was revoked")]
    assert town.people.tokens.of(owner) == [second]
    town.broker.authenticate(other)


@pytest.mark.parametrize("way", ["the page", "an administrator", "a program"])
async def test_who_has_stolen_a_token_cannot_make_it_stay_good(nursery: trio.Nursery, way: str) -> None:
    town = Town(nursery, replace(Limits(), revoked_tokens_per_principal=2, revoked_tokens=2))
    owner = await town.owner()
    account, tokens = await town.guest(owner, email="bob@lab.example"), town.people.tokens
    text = await tokens.issue(account, "laptop", 3600)
    (item,) = tokens.of(account)
    thief = town.broker.tokens.verify(text)
    for _ in range(2):
        child = issue(town.broker, thief, {}, {account.id: Level.READ}, None)[1]
        town.broker.administration.revoke(thief, child)
    with pytest.raises(LimitExceeded):
        town.broker.administration.revoke(thief, issue(town.broker, thief, {}, {account.id: Level.READ}, None)[1])
    match way:
        case "the page":
            await tokens.revoke(account, item.id)
        case "an administrator":
            await town.people.remove(owner, account.id)
        case _:
            town.broker.administration.revoke(account.as_member, text)
            await town.broker.records.kept()
    for now in (town, town.killed()):
        with pytest.raises(NotAuthenticated):
            now.broker.authenticate(text)


async def test_who_makes_and_revokes_tokens_all_the_time_is_bounded_exactly(nursery: trio.Nursery) -> None:
    town = Town(nursery, replace(Limits(), revoked_tokens_per_principal=2))
    owner = await town.owner()
    tokens = town.people.tokens
    for _ in range(2):
        await tokens.issue(owner, "x", 3600)
        await tokens.revoke(owner, tokens.of(owner)[0].id)
    town = town.killed()
    with pytest.raises(LimitExceeded, match="revoked_tokens_per_principal = 2"):
        await town.people.tokens.issue(owner, "x", 3600)


async def test_a_token_is_revoked_by_its_own_account(town: Town) -> None:
    owner = await town.owner()
    guest = await town.guest(owner)
    text = await town.people.tokens.issue(owner, "x", 60)
    (item,) = town.people.tokens.of(owner)
    for who, token_id in ((guest, item.id), (owner, "nonsense")):
        with pytest.raises(NotFound, match="no such token"):
            await town.people.tokens.revoke(who, token_id)
    town.broker.authenticate(text)


async def test_tokens_their_uses_and_their_ends_outlive_a_kill(town: Town) -> None:
    owner = await town.owner()
    text, other = [await town.people.tokens.issue(owner, label, 3600) for label in "ab"]
    town.later = 50
    town.broker.authenticate(text)
    await town.people.tokens.revoke(owner, town.people.tokens.of(owner)[0].id)
    later = town.killed()
    account = later.people.accounts.get(owner.id)
    assert account is not None
    (item,) = later.people.tokens.of(account)
    assert (item.label, item.last_used) == ("a", EPOCH + 50)
    assert later.broker.authenticate(text).id == owner.id
    with pytest.raises(HyphaError, match="revoked"):
        later.broker.authenticate(other)


@pytest.mark.parametrize(("swept", "kept"), [(False, 50), (True, 60)])
async def test_the_first_use_is_kept_at_once_and_later_ones_now_and_then(town: Town, swept: bool, kept: int) -> None:
    owner = await town.owner()
    text = await town.people.tokens.issue(owner, "x", 3600)
    for town.later in (50, 60):
        town.broker.authenticate(text)
    if swept:
        town.broker.sweep()
    await town.broker.records.kept()
    later = town.killed()
    (item,) = later.people.tokens.of(owner)
    assert item.last_used == EPOCH + kept


async def test_the_tokens_of_an_account_are_bounded_exactly_and_expired_ones_are_forgotten(
    nursery: trio.Nursery,
) -> None:
    town = Town(nursery, replace(Limits(), tokens_per_account=1))
    owner = await town.owner()
    await town.people.tokens.issue(owner, "a", 60)
    with pytest.raises(LimitExceeded, match="tokens_per_account = 1"):
        await town.people.tokens.issue(owner, "b", 60)
    town.later = 60
    await town.people.tokens.issue(owner, "b", 60)
    town.later = 61
    town.broker.sweep()
    assert [item.label for item in town.broker.tokens.issued.labelled(owner.id)] == ["b"]
