"""Accounts: who may make one, who is signed in, and what outlives the server."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import pytest
import trio

from hypha.accounts.passwords import Cost
from hypha.broker.broker import Credentials
from hypha.config import Limits
from hypha.errors import (
    Conflict,
    HyphaError,
    InvalidArgument,
    LimitExceeded,
    NotAuthenticated,
    NotFound,
    PermissionDenied,
)
from hypha.wire.calls import encode_value
from hypha.wire.dialect import MODERN
from tests.accounts.scene import CHEAP, PASSWORD, Town
from tests.broker.memory import MemoryTransport

HERE = "192.0.2.1"


async def refusal(town: Town, name: str, password: str) -> HyphaError:
    with pytest.raises(HyphaError) as caught:
        await town.people.accounts.sign_in(name, password, HERE)
    return caught.value


# --- becoming one -------------------------------------------------------------------------------------------------


async def test_the_first_account_is_made_with_what_the_terminal_shows_and_administers(town: Town) -> None:
    owner = await town.owner()
    assert (owner.name, owner.email, owner.roles) == ("ada", "ada@lab.example", ("admin",))
    assert town.people.accounts.first_invitation() is None
    workspace = town.broker.registry.workspaces[owner.id]
    assert (workspace.owners, workspace.persistent) == ([owner.id], True)


async def test_the_first_invitation_is_good_once(town: Town) -> None:
    first, second = (town.people.accounts.first_invitation() for _ in range(2))  # of two starts
    assert first is not None
    assert second is not None
    await town.people.accounts.join(second, "ada", PASSWORD)
    for used in (first, second, "nonsense", ""):
        with pytest.raises(NotFound, match="used already, or is too old"):
            await town.people.accounts.join(used, "eve", PASSWORD)
    assert len(town.people.accounts) == 1


async def test_of_two_who_come_at_once_one_is_the_owner(town: Town) -> None:
    secret = town.people.accounts.first_invitation()
    assert secret is not None
    outcomes: list[str] = []

    async def come(name: str) -> None:
        try:
            outcomes.append((await town.people.accounts.join(secret, name, PASSWORD)).name)
        except NotFound:
            outcomes.append("late")

    async with trio.open_nursery() as nursery:
        for name in ("ada", "eve"):
            nursery.start_soon(come, name)
    assert sorted(outcomes)[1] == "late"
    assert len(town.people.accounts) == 1


async def test_invitations_are_of_an_administrator_and_expire(town: Town) -> None:
    owner = await town.owner()
    guest = await town.guest(owner)
    assert (guest.roles, guest.email) == ((), None)
    with pytest.raises(PermissionDenied, match="administers the server"):
        await town.people.accounts.invite(guest)
    secret = await town.people.accounts.invite(owner)
    town.later = town.limits.invitation_seconds - 1
    town.people.accounts.invitation(secret)
    town.later += 1
    with pytest.raises(NotFound):
        town.people.accounts.invitation(secret)
    town.people.accounts.sweep()
    assert not any(kind == "invitation" for kind, _ in town.broker.records._known)


async def test_an_address_is_given_by_who_invites_and_by_nobody_else(town: Town) -> None:
    owner = await town.owner()
    secret = await town.people.accounts.invite(owner, " Bob@Lab.example ")
    bob = await town.people.accounts.join(secret, "bob", PASSWORD, "boss@lab.example")
    assert bob.email == "bob@lab.example"
    plain = await town.people.accounts.invite(owner)
    assert (await town.people.accounts.join(plain, "eve", PASSWORD, "boss@lab.example")).email is None
    for taken in ("bob@lab.example", "ADA@lab.example"):
        with pytest.raises(Conflict, match="with this address"):
            await town.people.accounts.invite(owner, taken)


@pytest.mark.parametrize(
    ("name", "password", "error"),
    [
        ("", PASSWORD, InvalidArgument),
        ("a b", PASSWORD, InvalidArgument),
        ("a@b", PASSWORD, InvalidArgument),
        ("<script>", PASSWORD, InvalidArgument),
        ("x" * 65, PASSWORD, InvalidArgument),
        ("ADA", PASSWORD, Conflict),
        ("bob", "short", InvalidArgument),
    ],
)
async def test_what_makes_no_account_uses_no_invitation_up(
    town: Town, name: str, password: str, error: type[Exception]
) -> None:
    owner = await town.owner()
    secret = await town.people.accounts.invite(owner)
    with pytest.raises(error):
        await town.people.accounts.join(secret, name, password)
    assert (await town.people.accounts.join(secret, "bob", PASSWORD)).name == "bob"


@pytest.mark.parametrize("email", ["x", "a@b@c", "a b@c", "<a>@b", "a@", "@b", "a@b\nc"])
async def test_what_is_no_address(town: Town, email: str) -> None:
    owner = await town.owner()
    with pytest.raises(InvalidArgument, match="no e-mail address"):
        await town.people.accounts.invite(owner, email)


async def test_the_accounts_are_bounded_exactly(nursery: trio.Nursery) -> None:
    town = Town(nursery, replace(Limits(), accounts=2))
    owner = await town.owner()
    await town.guest(owner)
    with pytest.raises(LimitExceeded, match="accounts = 2"):
        await town.guest(owner, "eve")


async def test_the_invitations_are_bounded_exactly(nursery: trio.Nursery) -> None:
    town = Town(nursery, replace(Limits(), invitations=1))
    owner = await town.owner()
    await town.people.accounts.invite(owner)
    with pytest.raises(LimitExceeded, match="invitations = 1"):
        await town.people.accounts.invite(owner)
    town.later = town.limits.invitation_seconds
    await town.people.accounts.invite(owner)


# --- signing in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ada", "ADA", " ada ", "ada@lab.example", "Ada@Lab.example"])
async def test_signing_in_by_name_or_address(town: Town, name: str) -> None:
    owner = await town.owner()
    browser = town.people.accounts.signed_in(await town.people.accounts.sign_in(name, PASSWORD, HERE))
    assert browser is not None
    assert browser.account is owner
    assert town.people.accounts.signed_in("nonsense") is None
    assert town.people.accounts.signed_in("") is None
    assert town.people.accounts.signed_in(None) is None


async def test_a_wrong_password_and_an_unknown_name_are_one_answer(town: Town) -> None:
    await town.owner()
    wrong, unknown = await refusal(town, "ada", "wrong horse"), await refusal(town, "eve", PASSWORD)
    assert (type(wrong), str(wrong)) == (type(unknown), str(unknown))
    assert type(wrong) is NotAuthenticated


async def test_both_cost_one_hash_each(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    await town.owner()
    passwords = town.people.accounts.passwords
    costs: list[Cost] = []
    compute = passwords._scrypt

    async def counted(password: str, cost: Cost, salt: bytes) -> bytes:
        costs.append(cost)
        return await compute(password, cost, salt)

    monkeypatch.setattr(passwords, "_scrypt", counted)
    await refusal(town, "ada", "wrong horse")
    await refusal(town, "eve", "wrong horse")
    assert costs == [CHEAP, CHEAP]


async def test_the_tries_for_one_name_are_bounded_exactly(nursery: trio.Nursery) -> None:
    town = Town(nursery, replace(Limits(), sign_in_tries=2))
    await town.owner()
    for name in ("ada", "eve"):  # whether there is such an account or not
        for _ in range(2):
            assert type(await refusal(town, name, "wrong horse")) is NotAuthenticated
        assert "sign_in_tries = 2" in str(await refusal(town, name, PASSWORD))


async def test_the_tries_from_one_address_are_bounded_exactly(nursery: trio.Nursery) -> None:
    town = Town(nursery, replace(Limits(), sign_in_tries_per_address=2))
    await town.owner()
    for name in ("eve", "mallory"):
        await refusal(town, name, "wrong horse")
    assert "sign_in_tries_per_address = 2" in str(await refusal(town, "ada", PASSWORD))
    await town.people.accounts.sign_in("ada", PASSWORD, "192.0.2.2")


async def test_tries_at_once_are_counted_before_they_are_known_to_be_wrong(nursery: trio.Nursery) -> None:
    town = Town(nursery, replace(Limits(), sign_in_tries=3))
    await town.owner()
    kinds: list[type[HyphaError]] = []

    async def guess() -> None:
        kinds.append(type(await refusal(town, "ada", "wrong horse")))

    async with trio.open_nursery() as guesses:
        for _ in range(10):
            guesses.start_soon(guess)
    assert kinds.count(NotAuthenticated) == 3


async def test_signing_in_well_is_never_too_often(nursery: trio.Nursery) -> None:
    town = Town(nursery, replace(Limits(), sign_in_tries=1, sign_in_tries_per_address=1))
    await town.owner()
    for _ in range(5):
        await town.people.accounts.sign_in("ada", PASSWORD, HERE)


async def test_a_browser_is_signed_in_for_so_long(town: Town) -> None:
    await town.owner()
    secret = await town.people.accounts.sign_in("ada", PASSWORD, HERE)
    town.later = town.limits.browser_seconds - 1
    assert town.people.accounts.signed_in(secret) is not None
    town.later += 1
    assert town.people.accounts.signed_in(secret) is None
    town.people.accounts.sweep()
    assert not any(kind == "browser" for kind, _ in town.broker.records._known)


async def test_the_browsers_of_an_account_are_bounded_and_the_oldest_is_signed_out(nursery: trio.Nursery) -> None:
    town = Town(nursery, replace(Limits(), browsers_per_account=2))
    await town.owner()
    first, *others = [await town.people.accounts.sign_in("ada", PASSWORD, HERE) for _ in range(3)]
    assert town.people.accounts.signed_in(first) is None
    assert all(town.people.accounts.signed_in(secret) for secret in others)


async def test_signing_in_again_takes_the_place_of_what_the_browser_had(nursery: trio.Nursery) -> None:
    town = Town(nursery, replace(Limits(), browsers_per_account=2))
    owner = await town.owner()
    await town.guest(owner)
    accounts = town.people.accounts
    phone, laptop = [await accounts.sign_in("ada", PASSWORD, HERE) for _ in range(2)]
    for _ in range(3):
        before, laptop = laptop, await accounts.sign_in("ada", PASSWORD, HERE, laptop)
        assert accounts.signed_in(before) is None
    assert accounts.browsers_of(owner) == 2
    with pytest.raises(NotAuthenticated):
        await accounts.sign_in("bob", "wrong horse", HERE, laptop)
    assert accounts.signed_in(laptop) is not None
    await accounts.sign_in("bob", PASSWORD, HERE, laptop)  # somebody else comes to the same browser
    await accounts.sign_in("bob", PASSWORD, HERE, "nonsense")
    for now in (accounts, town.killed().people.accounts):
        assert [now.signed_in(secret) is None for secret in (phone, laptop)] == [False, True]


async def test_signing_out_ends_one_browser_and_another_password_all_others(town: Town) -> None:
    await town.owner()
    accounts = town.people.accounts
    secrets = [await accounts.sign_in("ada", PASSWORD, HERE) for _ in range(3)]
    first, second, third = (accounts.signed_in(secret) for secret in secrets)
    assert first is not None
    assert second is not None
    assert third is not None
    await accounts.sign_out(first)
    assert [accounts.signed_in(secret) is None for secret in secrets] == [True, False, False]
    with pytest.raises(NotAuthenticated, match="not your password"):
        await accounts.change_password(second, "wrong horse", "another horse", HERE)
    with pytest.raises(InvalidArgument):
        await accounts.change_password(second, PASSWORD, "short", HERE)
    await accounts.change_password(second, PASSWORD, "another horse", HERE)
    assert [accounts.signed_in(secret) is None for secret in secrets] == [True, False, True]
    await refusal(town, "ada", PASSWORD)
    await accounts.sign_in("ada", "another horse", HERE)


async def test_a_form_belongs_to_one_browser(town: Town) -> None:
    await town.owner()
    accounts = town.people.accounts
    first, second = [accounts.signed_in(await accounts.sign_in("ada", PASSWORD, HERE)) for _ in range(2)]
    assert first is not None
    assert second is not None
    accounts.check_form(first, first.form)
    for sent in (second.form, "", "é", first.mark):
        with pytest.raises(PermissionDenied):
            accounts.check_form(first, sent)


async def test_signing_in_brings_back_ones_own_workspace(town: Town) -> None:
    owner = await town.owner()
    workspaces = town.broker.registry.workspaces
    town.broker.delete_workspace(workspaces[owner.id])
    token = await town.people.tokens.issue(owner, "x", 60)
    town.broker.attach(
        town.broker.admit(Credentials("a", token=token)), MODERN, MemoryTransport(), base_url=""
    )  # makes one that is not kept
    assert not workspaces[owner.id].persistent
    await town.people.accounts.sign_in("ada", PASSWORD, HERE)
    assert (workspaces[owner.id].persistent, workspaces[owner.id].owners) == (True, [owner.id])
    assert list(workspaces[owner.id].members) == ["a"]
    assert town.killed().broker.registry.workspaces[owner.id].persistent


# --- for administrators -------------------------------------------------------------------------------------------


async def test_who_forgot_a_password_gets_a_link_for_another_one(town: Town) -> None:
    owner = await town.owner()
    guest = await town.guest(owner)
    accounts = town.people.accounts
    cookie = await accounts.sign_in("bob", PASSWORD, HERE)
    with pytest.raises(PermissionDenied):
        await accounts.offer_password(guest, owner.id)
    with pytest.raises(NotFound, match="no such account"):
        await accounts.offer_password(owner, "nonsense")
    secret = await accounts.offer_password(owner, guest.id)
    with pytest.raises(NotFound):
        await accounts.join(secret, "eve", PASSWORD)  # it makes no account
    with pytest.raises(InvalidArgument):
        await accounts.renew(secret, "short")
    assert await accounts.renew(secret, "another horse") is guest
    assert accounts.signed_in(cookie) is None
    await accounts.sign_in("bob", "another horse", HERE)
    await refusal(town, "bob", PASSWORD)
    for used in (secret, await accounts.invite(owner)):
        with pytest.raises(NotFound):
            await accounts.renew(used, "a third horse")


async def test_who_starts_the_server_can_always_become_an_administrator(town: Town) -> None:
    await town.owner()
    secret = town.people.accounts.first_invitation(always=True)
    assert secret is not None
    again = await town.people.accounts.join(secret, "grace", PASSWORD, "grace@lab.example")
    assert (again.roles, again.email) == (("admin",), "grace@lab.example")
    with pytest.raises(NotFound):
        town.people.accounts.invitation(secret)


async def test_a_removed_account_leaves_nothing_that_works(town: Town) -> None:
    owner = await town.owner()
    guest = await town.guest(owner, email="bob@lab.example")
    cookie = await town.people.accounts.sign_in("bob", PASSWORD, HERE)
    renewal = await town.people.accounts.offer_password(owner, guest.id)
    token = await town.people.tokens.issue(guest, "x", 3600)
    link = await town.people.shares.share(guest, "x", 3600, guest.id, "model")
    for by, account_id in ((guest, owner.id), (owner, owner.id)):
        with pytest.raises(PermissionDenied):
            await town.people.remove(by, account_id)
    await town.people.remove(owner, guest.id)
    for now in (town, town.killed()):
        people, broker = now.people, now.broker
        assert people.accounts.signed_in(cookie) is None
        assert guest.id not in broker.registry.workspaces
        for look in (partial(people.shares.find, link), partial(people.accounts.invitation, renewal)):
            with pytest.raises(NotFound):
                look()
        with pytest.raises(NotAuthenticated):
            broker.authenticate(token)
        assert type(await refusal(now, "bob", PASSWORD)) is NotAuthenticated
    again = await town.guest(owner, email="bob@lab.example")
    assert again.id != guest.id


@pytest.mark.parametrize("case", ["lost", "late", "of a program"])
async def test_a_removed_account_leaves_no_token_that_is_in_no_list(town: Town, case: str) -> None:
    owner = await town.owner()
    account = await town.guest(owner)
    text = await town.people.tokens.issue(account, "x", 3600)
    match case:
        case "lost":
            (key,) = [key for key in town.disk.records if key[0] == "issued"]
            town.disk.records[key] = b"\xc1"
            town = town.killed()
        case "late":
            town.later = 3610.0  # clocks may differ by half a minute
        case _:
            text = town.broker.tokens.issue(town.broker.tokens.verify(text), expires_in=60)
    town.broker.authenticate(text)
    again = town.people.accounts.get(owner.id)
    assert again is not None
    await town.people.remove(again, account.id)
    for now in (town, town.killed()):
        with pytest.raises(NotAuthenticated):
            now.broker.authenticate(text)


# --- what outlives the server -------------------------------------------------------------------------------------


async def test_accounts_invitations_and_browsers_outlive_a_kill(town: Town) -> None:
    owner = await town.owner()
    invitation = await town.people.accounts.invite(owner, "bob@lab.example")
    cookie = await town.people.accounts.sign_in("ada", PASSWORD, HERE)
    out = await town.people.accounts.sign_in("ada", PASSWORD, HERE)
    gone = town.people.accounts.signed_in(out)
    assert gone is not None
    await town.people.accounts.sign_out(gone)
    later = town.killed()
    browser = later.people.accounts.signed_in(cookie)
    assert browser is not None
    assert (browser.account.id, browser.account.name, browser.account.roles) == (owner.id, "ada", ("admin",))
    assert later.people.accounts.signed_in(out) is None
    assert later.people.accounts.first_invitation() is None
    assert later.broker.registry.workspaces[owner.id].owners == [owner.id]
    bob = await later.people.accounts.join(invitation, "bob", PASSWORD)
    assert bob.email == "bob@lab.example"
    assert [person.name for person in later.people.accounts.everybody()] == ["ada", "bob"]


@pytest.mark.parametrize("broken", [b"\xc1", encode_value({"id": "of a later version"})])
async def test_an_account_that_cannot_be_read_makes_nobody_else_the_owner(town: Town, broken: bytes) -> None:
    early = town.people.accounts.first_invitation()
    assert early is not None
    await town.broker.records.kept()
    (key,) = town.disk.records
    invitation = town.disk.records[key]
    await town.owner()
    (account,) = [key for key in town.disk.records if key[0] == "account"]
    town.disk.records |= {account: broken, key: invitation}
    accounts = town.killed().people.accounts
    assert accounts.everybody() == []
    assert accounts.first_invitation() is None
    with pytest.raises(NotFound):
        accounts.invitation(early)
    asked = accounts.first_invitation(always=True)  # who starts the server knows better
    assert asked is not None
    assert (await accounts.join(asked, "grace", PASSWORD)).is_admin


async def test_records_of_another_form_are_left_alone(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    owner = await town.owner()
    await town.people.accounts.sign_in("ada", PASSWORD, None)
    await town.people.shares.share(owner, "x", 60, owner.id, "model")
    others = {"account": {"id": "of a later version"}, "invitation": [], "browser": ["x"], "share": {}}
    before = {(kind, "other"): encode_value(value) for kind, value in others.items()}
    town.disk.records.update(before)
    later = town.killed().people
    assert later.accounts.everybody() == [later.accounts.get(owner.id)]
    assert (later.accounts.browsers_of(owner), len(later.shares.of(owner))) == (1, 1)
    assert caplog.text.count("is of another form and is left alone") == len(others)
    assert before.items() <= town.disk.records.items()


async def test_no_secret_is_kept_or_logged(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        first = town.people.accounts.first_invitation()
        assert first is not None
        owner = await town.people.accounts.join(first, "ada", PASSWORD)
        second = await town.people.accounts.invite(owner)
        cookie = await town.people.accounts.sign_in("ada", PASSWORD, HERE)
        token = await town.people.tokens.issue(owner, "x", 60)
        browser = town.people.accounts.signed_in(cookie)
        assert browser is not None
    kept = b"".join(value for value in town.disk.records.values()) + "".join(caplog.messages).encode()
    kept += b"".join(f"{kind} {name}".encode() for kind, name in town.disk.records)
    for secret in (first, second, cookie, token, PASSWORD, browser.form, token.rpartition(".")[2]):
        assert secret.encode() not in kept
    assert PASSWORD not in repr(owner)
