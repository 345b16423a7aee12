"""Links to services: what they are for, how their uses are counted, and how they end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from hypha.accounts.account import Account
from hypha.accounts.shares import MAX_CALLS
from hypha.broker.access import ROOT, Level, level_in
from hypha.config import Limits
from hypha.errors import InvalidArgument, LimitExceeded, NotFound, PermissionDenied
from tests.accounts.scene import Town
from tests.broker.memory import EPOCH

GONE = "this link has ended, was revoked, or never was"


async def share(town: Town, owner: Account, label: str = "reviewers", calls: int | None = None) -> str:
    return await town.people.shares.share(owner, label, 3600, owner.id, "model", calls=calls)


async def test_a_link_is_for_one_service_and_its_holder_is_nobody(town: Town) -> None:
    owner = await town.owner()
    found = town.people.shares.find(await share(town, owner))
    assert (found.workspace, found.service, found.function, found.calls) == (owner.id, "model", None, None)
    user = town.people.shares.principal(found)
    assert (user.is_anonymous, user.email, user.roles, user.parent) == (True, None, (), owner.id)
    assert level_in(user, town.broker.registry.workspaces[owner.id]) is Level.READ
    assert owner.id not in repr(user.id)


async def test_each_use_is_counted_up_to_the_number_and_outlives_a_kill(town: Town) -> None:
    owner = await town.owner()
    secret = await share(town, owner, calls=3)
    found = town.people.shares.find(secret)
    town.later = 10
    await town.people.shares.spend(found)
    await town.people.shares.spend(found)
    later = town.killed()
    kept = later.people.shares.find(secret)
    assert (kept.used, kept.last, kept.label) == (2, EPOCH + 10, "reviewers")
    await later.people.shares.spend(kept)
    with pytest.raises(LimitExceeded, match="was for 3 calls, which are used up"):
        await later.people.shares.spend(kept)
    assert kept.used == 3


async def test_calls_at_once_are_no_more_than_there_may_be(town: Town) -> None:
    owner = await town.owner()
    found = town.people.shares.find(await share(town, owner, calls=2))
    refused = 0

    async def call() -> None:
        nonlocal refused
        try:
            await town.people.shares.spend(found)
        except LimitExceeded:
            refused += 1

    async with trio.open_nursery() as callers:
        for _ in range(5):
            callers.start_soon(call)
    assert (found.used, refused) == (2, 3)


async def test_a_link_ends_by_itself_and_by_revoking(town: Town) -> None:
    owner = await town.owner()
    guest = await town.guest(owner)
    first, second = await share(town, owner, "a"), await share(town, owner, "b")
    newest, oldest = town.people.shares.of(owner)
    assert (newest.label, oldest.label) == ("b", "a")
    for who, share_id in ((guest, newest.id), (owner, "nonsense"), (owner, newest.mark)):
        with pytest.raises(NotFound, match="no such link"):
            await town.people.shares.revoke(who, share_id)
    await town.people.shares.revoke(owner, newest.id)
    with pytest.raises(NotFound, match=GONE):
        town.people.shares.find(second)
    with pytest.raises(NotFound, match=GONE):
        town.killed().people.shares.find(second)
    town.later = 3599
    town.people.shares.find(first)
    town.later = 3600
    with pytest.raises(NotFound, match=GONE):
        town.people.shares.find(first)
    town.people.shares.sweep()
    assert not any(kind == "share" for kind, _ in town.broker.records._known)


async def test_a_link_is_worth_no_more_than_its_account(town: Town) -> None:
    guest = await town.guest(await town.owner())
    lab = town.broker.registry.create_workspace("lab", owners=[guest.id])
    secret = await town.people.shares.share(guest, "x", 60, "lab", "model")
    town.people.shares.find(secret)
    lab.owners = ["somebody"]
    with pytest.raises(NotFound, match=GONE):
        town.people.shares.find(secret)
    for workspace in ("lab", "nowhere", "public"):
        with pytest.raises(PermissionDenied, match="only who may change the workspace"):
            await town.people.shares.share(guest, "x", 60, workspace, "model")


@pytest.mark.parametrize(
    ("label", "service", "calls"),
    [("", "model", None), ("x" * 101, "model", None), ("x", "", None), ("x", "a/b", None)]
    + [("x", "model", number) for number in (0, -1, MAX_CALLS + 1)],
)
async def test_what_makes_no_link(town: Town, label: str, service: str, calls: int | None) -> None:
    owner = await town.owner()
    with pytest.raises(InvalidArgument):
        await town.people.shares.share(owner, label, 60, owner.id, service, calls=calls)
    assert town.people.shares.of(owner) == []


async def test_the_links_of_an_account_are_bounded_exactly(nursery: trio.Nursery) -> None:
    town = Town(nursery, replace(Limits(), shares_per_account=1))
    owner = await town.owner()
    await share(town, owner)
    with pytest.raises(LimitExceeded, match="shares_per_account = 1"):
        await share(town, owner)
    town.later = 3600
    await share(town, owner)


async def test_no_secret_is_kept(town: Town) -> None:
    secret = await share(town, await town.owner())
    assert not any(secret.encode() in value for value in town.disk.records.values())
    assert not any(secret in name for _, name in town.disk.records)


async def test_a_link_that_was_revoked_under_way_is_neither_used_nor_kept_again(town: Town) -> None:
    owner = await town.owner()
    secret = await share(town, owner)
    found = town.people.shares.find(secret)
    await town.people.shares.revoke(owner, found.id)
    with pytest.raises(NotFound, match=GONE):
        await town.people.shares.spend(found)
    assert found.used == 0
    with pytest.raises(NotFound, match=GONE):
        town.killed().people.shares.find(secret)


async def test_a_link_that_is_revoked_while_its_use_is_written_makes_no_call(town: Town) -> None:
    owner = await town.owner()
    secret = await share(town, owner)
    found = town.people.shares.find(secret)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(town.people.shares.revoke, owner, found.id)
        with pytest.raises(NotFound, match=GONE):
            await town.people.shares.spend(found)
    with pytest.raises(NotFound, match=GONE):
        town.killed().people.shares.find(secret)


async def test_a_link_that_has_ended_or_lost_its_rights_under_way_is_not_used(town: Town) -> None:
    guest = await town.guest(await town.owner())
    lab = town.broker.registry.create_workspace("lab", owners=[guest.id])
    found = town.people.shares.find(await town.people.shares.share(guest, "x", 60, "lab", "model"))
    lab.owners = ["somebody"]
    with pytest.raises(NotFound, match=GONE):
        await town.people.shares.spend(found)
    lab.owners = [guest.id]
    await town.people.shares.spend(found)
    town.later = 60
    with pytest.raises(NotFound, match=GONE):
        await town.people.shares.spend(found)
    assert found.used == 1


@pytest.mark.parametrize(("calls", "firm"), [(1, True), (None, False)])
async def test_the_use_of_a_link_for_so_many_calls_outlives_the_machine(
    town: Town, monkeypatch: pytest.MonkeyPatch, calls: int | None, firm: bool
) -> None:
    owner = await town.owner()
    found = town.people.shares.find(await share(town, owner, calls=calls))
    await town.broker.records.kept()
    written: list[bool] = []
    monkeypatch.setattr(town.disk, "write", lambda changes, *, firm: written.append(firm))
    await town.people.shares.spend(found)
    assert written == [firm]


async def test_who_calls_with_a_link_can_be_blocked(town: Town) -> None:
    owner = await town.owner()
    secret = await share(town, owner)
    user = town.people.shares.principal(town.people.shares.find(secret)).id
    town.broker.administration.block(ROOT, user)
    with pytest.raises(NotFound, match=GONE):
        town.people.shares.find(secret)
    town.broker.administration.unblock(user)
    town.people.shares.find(secret)


async def test_a_link_does_not_lead_into_the_next_workspace_of_the_name(town: Town) -> None:
    owner = await town.owner()
    guest = await town.guest(owner)
    administration = town.broker.administration
    team = administration.create(guest.as_member, {"name": "team"})
    secret = await town.people.shares.share(guest, "x", 3600, "team", "model")
    town.people.shares.find(secret)
    administration.delete(team)
    again = administration.create(owner.as_member, {"name": "team"})
    administration.set_permission(owner.as_member, again, guest.id, "read_write")
    with pytest.raises(NotFound, match=GONE):
        town.people.shares.find(secret)


async def test_nobody_shares_what_the_server_offers_itself(town: Town) -> None:
    owner = await town.owner()
    town.broker.registry.workspaces["public"].permissions = {owner.id: "read_write"}
    with pytest.raises(PermissionDenied, match="server's own"):
        await town.people.shares.share(owner, "x", 60, "public", "hypha-login")
    await town.people.shares.share(owner, "x", 60, "public", "model")
