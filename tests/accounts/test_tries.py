"""How often somebody may try to sign in, and whom that keeps out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from hypha.accounts.tries import Tries
from hypha.config import Limits
from hypha.errors import Conflict, InvalidArgument, LimitExceeded, NotAuthenticated
from tests.accounts.scene import PASSWORD, Town

HERE, THERE = "192.0.2.1", "192.0.2.2"


def fail(tries: Tries, address: str | None, who: str | None = None) -> None:
    with pytest.raises(NotAuthenticated), tries.one(address, who):
        raise NotAuthenticated("wrong")


def test_who_guesses_from_one_address_keeps_nobody_out_elsewhere() -> None:
    tries = Tries(replace(Limits(), sign_in_tries=2), lambda: 0.0)
    for _ in range(2):
        fail(tries, HERE, "ada")
    with pytest.raises(LimitExceeded, match="sign_in_tries = 2"):
        fail(tries, HERE, "ada")
    fail(tries, HERE, "bob")
    for _ in range(2):
        fail(tries, THERE, "ada")


def test_the_tries_for_one_account_from_everywhere_are_bounded_exactly() -> None:
    tries = Tries(replace(Limits(), sign_in_tries_per_account=3), lambda: 0.0)
    for number in range(3):
        fail(tries, f"192.0.2.{number}", "ada")
    with pytest.raises(LimitExceeded, match="sign_in_tries_per_account = 3"):
        fail(tries, "192.0.2.9", "ada")
    fail(tries, "192.0.2.9", "bob")


def test_a_good_try_costs_nothing() -> None:
    tries = Tries(replace(Limits(), sign_in_tries=1, sign_in_tries_per_account=1, sign_in_tries_per_address=1), float)
    for who in ("ada", None) * 5:
        with tries.one(HERE, who):
            pass
    fail(tries, HERE)
    with pytest.raises(LimitExceeded, match="sign_in_tries_per_address = 1"), tries.one(HERE):
        pass


async def test_the_name_and_the_address_of_an_account_have_their_tries_together(nursery: trio.Nursery) -> None:
    town = Town(nursery, replace(Limits(), sign_in_tries=3))
    await town.owner()
    for name in ("ada", "ada@lab.example", "ADA"):
        with pytest.raises(NotAuthenticated):
            await town.people.accounts.sign_in(name, "wrong horse", HERE)
    for name in ("ada", "ada@lab.example"):
        with pytest.raises(LimitExceeded, match="sign_in_tries = 3"):
            await town.people.accounts.sign_in(name, PASSWORD, HERE)
    await town.people.accounts.sign_in("ada", PASSWORD, THERE)


async def test_what_comes_of_links_is_counted_and_costs_nothing_when_it_was_done(nursery: trio.Nursery) -> None:
    town = Town(nursery, replace(Limits(), sign_in_tries_per_address=2))
    owner = await town.owner()
    accounts = town.people.accounts
    for number in range(3):
        await accounts.join(await accounts.invite(owner), f"user-{number}", PASSWORD, address=HERE)
        await accounts.renew(await accounts.offer_password(owner, owner.id), PASSWORD, HERE)
    link, renewal = await accounts.invite(owner), await accounts.offer_password(owner, owner.id)
    with pytest.raises(Conflict):  # which tells that there is somebody of this name
        await accounts.join(link, "ada", PASSWORD, address=HERE)
    with pytest.raises(InvalidArgument):
        await accounts.renew(renewal, "short", HERE)
    for again in (accounts.join(link, "bob", PASSWORD, address=HERE), accounts.renew(renewal, PASSWORD, HERE)):
        with pytest.raises(LimitExceeded, match="sign_in_tries_per_address = 2"):
            await again
    await accounts.join(link, "bob", PASSWORD, address=THERE)
