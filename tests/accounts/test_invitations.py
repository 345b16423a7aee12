"""Links that wait to be accepted: who sees and withdraws them, and what makes one worth nothing before its time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from hypha.accounts.account import mark_of
from hypha.accounts.accounts import COMMAND_LINE
from hypha.config import Limits
from hypha.errors import LimitExceeded, NotFound, PermissionDenied
from tests.accounts.scene import PASSWORD, Town

HERE = "192.0.2.1"


def is_good(town: Town, secret: str) -> bool:
    try:
        town.people.accounts.invitation(secret)
    except NotFound:
        return False
    return True


@pytest.mark.parametrize("end", ["removed", "blocked", "no administrator"])
async def test_links_are_worth_nothing_when_who_has_made_them_may_make_none(town: Town, end: str) -> None:
    owner, eve = await town.owner(), await town.administrator("eve")
    accounts = town.people.accounts
    links = [await accounts.offer_password(eve, owner.id), await accounts.invite(eve, "x@lab.example")]
    own = await accounts.invite(owner)
    match end:
        case "removed":
            await town.people.remove(owner, eve.id)
        case "blocked":
            town.broker.tokens.block(eve.id, "")
        case _:
            eve.roles = ()
    assert [is_good(town, secret) for secret in (*links, own)] == [False, False, True]
    with pytest.raises(NotFound):
        await accounts.renew(links[0], "eve's password")
    assert [mark for mark, _ in accounts.invitations(owner)] == [mark_of(own)]
    accounts.sweep()
    await town.broker.records.kept()
    assert [name for kind, name in town.disk.records if kind == "invitation"] == [mark_of(own)]


async def test_another_password_uses_all_links_for_one_up(town: Town) -> None:
    owner = await town.owner()
    guest = await town.guest(owner)
    accounts = town.people.accounts
    first, second = [await accounts.offer_password(owner, guest.id) for _ in range(2)]
    others = await accounts.offer_password(owner, owner.id)
    await accounts.renew(second, "another horse")
    assert [is_good(town, secret) for secret in (first, second, others)] == [False, False, True]
    browser = accounts.signed_in(await accounts.sign_in("ada", PASSWORD, HERE))
    assert browser is not None
    await accounts.change_password(browser, PASSWORD, "another horse", HERE)
    assert not is_good(town.killed(), others)


async def test_of_two_invitations_to_one_address_the_newer_one_counts(nursery: trio.Nursery) -> None:
    town = Town(nursery, replace(Limits(), invitations=2))
    owner = await town.owner()
    invite = town.people.accounts.invite
    first, other = await invite(owner, "bob@lab.example"), await invite(owner, "eve@lab.example")
    second = await invite(owner, "BOB@lab.example")  # for which there is room
    assert [is_good(town, secret) for secret in (first, other, second)] == [False, True, True]
    with pytest.raises(LimitExceeded, match="invitations = 2"):
        await invite(owner)


async def test_an_administrator_sees_what_waits_and_withdraws_it(town: Town) -> None:
    owner = await town.owner()
    guest = await town.guest(owner)
    accounts = town.people.accounts
    old = await accounts.invite(owner, "x@lab.example")
    town.later = town.limits.invitation_seconds
    secrets = [await accounts.invite(owner, "y@lab.example"), await accounts.offer_password(owner, guest.id)]
    printed = accounts.first_invitation(always=True)
    assert printed is not None
    waiting = accounts.invitations(owner)
    assert [mark for mark, _ in waiting] == [mark_of(secret) for secret in (printed, *reversed(secrets))]
    assert [(item.by, item.email, item.account, item.roles) for _, item in waiting] == [
        (COMMAND_LINE, None, None, ("admin",)),
        (owner.id, None, guest.id, ()),
        (owner.id, "y@lab.example", None, ()),
    ]
    for mark in (mark_of(old), "nonsense"):
        with pytest.raises(NotFound, match="no such link"):
            await accounts.withdraw(owner, mark)
    await accounts.withdraw(owner, mark_of(secrets[0]))
    for now in (town, town.killed()):
        assert [is_good(now, secret) for secret in (printed, *secrets)] == [True, False, True]


async def test_others_neither_see_nor_withdraw_what_waits(town: Town) -> None:
    owner = await town.owner()
    guest = await town.guest(owner)
    link = await town.people.accounts.invite(owner)
    with pytest.raises(PermissionDenied, match="administers the server"):
        town.people.accounts.invitations(guest)
    with pytest.raises(PermissionDenied, match="administers the server"):
        await town.people.accounts.withdraw(guest, mark_of(link))
    assert is_good(town, link)
