"""What happens while a password is hashed or compared, which takes a tenth of a second, and what that changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from hypha.accounts.account import Account, SignedIn
from hypha.accounts.passwords import Passwords
from hypha.config import Limits
from hypha.errors import HyphaError, NotAuthenticated, NotFound
from tests.accounts.scene import PASSWORD, Town

HERE = "192.0.2.1"
OTHER = "another horse"


class Errors(list[type[HyphaError]]):
    """How what was waited for has ended; nothing for what was done."""


@asynccontextmanager
async def during(passwords: Passwords, step: str, work: Callable[[], Awaitable[Any]]) -> AsyncIterator[Errors]:
    """In the block *work* has come to the end of its *step*, ``hash`` or ``match``; behind it *work* has ended."""
    compute, errors = getattr(passwords, step), Errors()
    begun, go = trio.Event(), trio.Event()

    async def held(*args: Any) -> Any:
        found = await compute(*args)
        begun.set()
        await go.wait()
        return found

    async def run() -> None:
        try:
            await work()
        except HyphaError as error:
            errors.append(type(error))

    async with trio.open_nursery() as nursery:
        setattr(passwords, step, held)
        nursery.start_soon(run)
        await begun.wait()
        setattr(passwords, step, compute)
        yield errors
        go.set()


async def browser_of(town: Town, account: Account) -> SignedIn:
    found = town.people.accounts.signed_in(await town.people.accounts.enter_browser(account))
    assert found is not None
    return found


@pytest.mark.parametrize("step", ["match", "hash"])
async def test_who_is_removed_while_changing_the_password_stays_removed(town: Town, step: str) -> None:
    owner, eve = await town.owner(), await town.administrator("eve")
    accounts, browser = town.people.accounts, await browser_of(town, eve)
    async with during(
        accounts.passwords, step, lambda: accounts.change_password(browser, PASSWORD, OTHER, HERE)
    ) as errors:
        await town.people.remove(owner, eve.id)
    assert errors == [NotAuthenticated]
    assert town.killed().people.accounts.get(eve.id) is None


async def test_who_is_removed_while_signing_in_leaves_nothing(town: Town) -> None:
    owner = await town.owner()
    guest = await town.guest(owner)
    accounts = town.people.accounts
    async with during(accounts.passwords, "match", lambda: accounts.sign_in("bob", PASSWORD, HERE)) as errors:
        await town.people.remove(owner, guest.id)
    assert errors == [NotAuthenticated]
    assert guest.id not in town.broker.registry.workspaces
    assert not [name for kind, name in town.disk.records if kind == "browser"]


async def test_who_is_removed_while_choosing_another_password_stays_removed(town: Town) -> None:
    owner, eve = await town.owner(), await town.administrator("eve")
    accounts = town.people.accounts
    link = await accounts.offer_password(owner, eve.id)
    async with during(accounts.passwords, "hash", lambda: accounts.renew(link, OTHER)) as errors:
        await town.people.remove(owner, eve.id)
    assert errors == [NotFound]
    assert town.killed().people.accounts.get(eve.id) is None


async def test_who_is_removed_between_two_steps_comes_to_nothing(town: Town) -> None:
    owner = await town.owner()
    guest = await town.guest(owner)
    accounts = town.people.accounts
    await town.people.remove(owner, guest.id)
    for step in (
        lambda: accounts.enter_browser(guest),
        lambda: accounts.let_in(guest),
        lambda: accounts.connect(guest, ("https://id.example", "bob")),
    ):
        with pytest.raises(HyphaError):
            await step()
    assert accounts.identified(("https://id.example", "bob")) is None
    assert guest.id not in town.broker.registry.workspaces
    assert town.killed().people.accounts.get(guest.id) is None


async def test_a_password_of_before_signs_nobody_in(town: Town) -> None:
    owner = await town.owner()
    guest = await town.guest(owner)
    accounts = town.people.accounts
    link = await accounts.offer_password(owner, guest.id)
    async with during(accounts.passwords, "match", lambda: accounts.sign_in("bob", PASSWORD, HERE)) as errors:
        await accounts.renew(link, PASSWORD)  # the same one, even: all browsers are signed out
    assert errors == [NotAuthenticated]
    assert accounts.browsers_of(guest) == 0


@pytest.mark.parametrize("step", ["match", "hash"])
async def test_a_password_that_was_changed_meanwhile_is_not_changed_again(town: Town, step: str) -> None:
    owner = await town.owner()
    guest = await town.guest(owner)
    accounts, stolen = town.people.accounts, await browser_of(town, guest)
    link = await accounts.offer_password(owner, guest.id)
    async with during(
        accounts.passwords, step, lambda: accounts.change_password(stolen, PASSWORD, "the thief's", HERE)
    ) as errors:
        await accounts.renew(link, OTHER)
    assert errors == [NotAuthenticated]
    await accounts.sign_in("bob", OTHER, HERE)


async def test_a_browser_that_was_signed_out_meanwhile_changes_nothing(town: Town) -> None:
    owner = await town.owner()
    accounts, browser = town.people.accounts, await browser_of(town, owner)
    async with during(
        accounts.passwords, "hash", lambda: accounts.change_password(browser, PASSWORD, OTHER, HERE)
    ) as errors:
        await accounts.sign_out(browser)
    assert errors == [NotAuthenticated]
    await accounts.sign_in("ada", PASSWORD, HERE)


async def test_of_all_who_come_with_links_one_at_a_time_has_a_thread(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    town = Town(nursery, replace(Limits(), sign_in_tries_per_address=100))
    owner = await town.owner()
    accounts = town.people.accounts
    link, renewal = await accounts.invite(owner), await accounts.offer_password(owner, owner.id)
    at_once, most, hashed = 0, 0, 0
    compute = accounts.passwords.hash

    async def counted(password: str) -> str:
        nonlocal at_once, most, hashed
        at_once, hashed = at_once + 1, hashed + 1
        most = max(most, at_once)
        await wait_all_tasks_blocked()
        at_once -= 1
        return await compute(password)

    monkeypatch.setattr(accounts.passwords, "hash", counted)

    async def come(work: Callable[[], Awaitable[Any]]) -> None:
        with suppress(NotFound):
            await work()

    async with trio.open_nursery() as people:
        for number in range(5):
            people.start_soon(come, lambda number=number: accounts.join(link, f"bob-{number}", PASSWORD))
            people.start_soon(come, lambda: accounts.renew(renewal, OTHER))
    assert (most, hashed) == (1, 2)  # what is used up is not hashed for
