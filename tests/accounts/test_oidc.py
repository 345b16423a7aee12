"""Attempts to sign in at a provider: whose they are, how many there may be, and whose account each leads to."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

import pytest
import trio

from hypha.accounts.account import Account, mark_of
from hypha.accounts.oidc import Beginning, Outcome, Purpose, SignInElsewhere, require_oidc
from hypha.accounts.provider import Provider
from hypha.config import Limits
from hypha.errors import (
    ConfigError,
    Conflict,
    HyphaError,
    InvalidArgument,
    LimitExceeded,
    NotAuthenticated,
    NotFound,
    PeerGone,
    PermissionDenied,
)
from tests.accounts import provider as scene
from tests.accounts.provider import CLIENT_ID
from tests.accounts.scene import PASSWORD, Town
from tests.broker.memory import EPOCH

HERE = "192.0.2.1"
CALLBACK = "http://lab.example/account/oidc/callback"
PROFILE = {"email": "ada@lab.example", "email_verified": True, "preferred_username": "ada"}


@dataclass(eq=False)
class Lab:
    """A server whose people can sign in at *there*."""

    town: Town
    there: scene.Provider

    def __post_init__(self) -> None:
        self.open()

    def open(self, *domains: str) -> None:
        """Let e-mail addresses of *domains* in without an invitation. It begins anew."""
        broker = self.town.broker
        broker.config = replace(
            broker.config, oidc_issuer=self.there.issuer, oidc_client_id=CLIENT_ID, oidc_domains=domains
        )
        self.elsewhere = SignInElsewhere(broker, self.town.people.accounts, Provider(broker.config))

    async def begin(self, link: str = "", connects: str = "") -> Beginning:
        return await self.elsewhere.begin(Purpose("", link, connects), CALLBACK, HERE)

    async def come(
        self, begun: Beginning | None = None, browser: str | None = None, link: str = "", connects: str = ""
    ) -> Outcome:
        """Somebody signs in there, and comes back with the same browser, in which *browser* is signed in here."""
        begun = begun or await self.begin(link, connects)
        query = dict(parse_qsl(self.there.visited(begun.address)))
        return await self.elsewhere.finish(query, begun.cookie, browser)

    def who(self, name: str) -> Account:
        return next(account for account in self.town.people.accounts.everybody() if account.name == name)


@pytest.fixture
async def lab(town: Town) -> AsyncIterator[Lab]:
    """Time is real here, where the provider is asked."""
    with trio.fail_after(20):
        async with scene.provider(lambda: EPOCH + town.later) as there:
            there.says.update(PROFILE)
            yield Lab(town, there)


async def refusal(lab: Lab, link: str = "") -> HyphaError:
    with pytest.raises(HyphaError) as caught:
        await lab.come(link=link)
    return caught.value


# --- whose account it is ------------------------------------------------------------------------------------------


async def test_who_is_not_known_and_not_invited_has_no_account(lab: Lab) -> None:
    await lab.town.owner(email="")
    error = await refusal(lab)
    assert isinstance(error, PermissionDenied)
    assert "ask whoever runs this server for an invitation" in str(error)
    assert len(lab.town.people.accounts) == 1


async def test_an_invitation_makes_an_account_without_a_password_and_is_used_up(lab: Lab) -> None:
    owner = await lab.town.owner(email="")
    link = await lab.town.people.accounts.invite(owner)
    outcome = await lab.come(link=link)
    account = outcome.account
    assert (account.name, account.email, account.roles) == ("ada-2", "ada@lab.example", ())
    assert (account.password, account.identity) == (None, (lab.there.issuer, "ada-1"))
    signed_in = lab.town.people.accounts.signed_in(outcome.cookie)
    assert signed_in is not None
    assert signed_in.account is account
    assert lab.town.broker.registry.workspaces[account.id].owners == [account.id]
    lab.there.says["sub"] = "ada-2"
    assert isinstance(await refusal(lab, link=link), NotFound)


async def test_the_first_account_can_be_made_so_and_administers(lab: Lab) -> None:
    link = lab.town.people.accounts.first_invitation()
    assert link is not None
    account = (await lab.come(link=link)).account
    assert (account.name, account.is_admin, account.email) == ("ada", True, "ada@lab.example")


async def test_nobody_gets_in_the_way_of_who_makes_the_first_account(lab: Lab) -> None:
    lab.open("*")
    link = lab.town.people.accounts.first_invitation()
    assert isinstance(await refusal(lab), PermissionDenied)
    assert link is not None
    assert (await lab.come(link=link)).account.is_admin


async def test_who_comes_back_is_the_same_whatever_else_has_changed_and_after_a_restart(lab: Lab) -> None:
    owner = await lab.town.owner(email="")
    account = (await lab.come(link=await lab.town.people.accounts.invite(owner))).account
    for _ in range(2):
        lab.there.says.update(email="other@elsewhere.example", preferred_username="eve")
        again = (await lab.come()).account
        assert (again.id, again.name, again.email) == (account.id, "ada-2", "ada@lab.example")
        lab.town = lab.town.killed()
        lab.open()
    link = await lab.town.people.accounts.invite(lab.who("ada"))
    assert (await lab.come(link=link)).account.id == account.id  # who needs no invitation uses none up
    lab.town.people.accounts.invitation(link)


async def test_an_identity_is_of_its_issuer(lab: Lab) -> None:
    owner = await lab.town.owner(email="")
    account = (await lab.come(link=await lab.town.people.accounts.invite(owner))).account
    await lab.town.people.accounts.connect(account, ("https://other.example", "ada-1"))
    assert isinstance(await refusal(lab), PermissionDenied)


async def test_an_address_alone_is_nobody(lab: Lab) -> None:
    lab.open("lab.example")
    owner = await lab.town.owner(email="ada@lab.example")
    account = (await lab.come()).account
    assert account is not owner
    assert (account.name, account.email, account.is_admin) == ("ada-2", None, False)
    assert owner.identity is None


async def test_an_invitation_with_an_address_gives_that_one(lab: Lab) -> None:
    owner = await lab.town.owner(email="")
    link = await lab.town.people.accounts.invite(owner, "invited@lab.example")
    assert (await lab.come(link=link)).account.email == "invited@lab.example"


async def test_an_address_that_somebody_else_has_got_meanwhile_uses_no_invitation_up(lab: Lab) -> None:
    owner = await lab.town.owner(email="")
    link = await lab.town.people.accounts.invite(owner, "bob@lab.example")
    another = lab.town.people.accounts.first_invitation(always=True)
    assert another is not None
    await lab.town.people.accounts.join(another, "bob", PASSWORD, "bob@lab.example")
    assert isinstance(await refusal(lab, link=link), Conflict)
    lab.town.people.accounts.invitation(link)


@pytest.mark.parametrize(
    ("domains", "says", "welcome"),
    [
        (("lab.example",), {}, True),
        (("other.example", "lab.example"), {"email": "ADA@Lab.Example"}, True),
        (("*",), {}, True),
        (("*",), {"email": None, "email_verified": None}, True),
        (("lab.example",), {"email_verified": False}, False),
        (("lab.example",), {"email_verified": None}, False),
        (("lab.example",), {"email_verified": "true"}, False),
        (("lab.example",), {"email": "ada@evil.lab.example"}, False),
        (("lab.example",), {"email": "ada@lab.example.evil.example"}, False),
        (("lab.example",), {"email": "ada@evil.example@lab.example"}, False),
        (("lab.example",), {"email": "lab.example"}, False),
        (("lab.example",), {"email": ["ada@lab.example"]}, False),
        (("lab.example",), {"email": None}, False),
        ((), {}, False),
    ],
)
async def test_whose_address_needs_no_invitation(
    lab: Lab, domains: tuple[str, ...], says: dict[str, Any], welcome: bool
) -> None:
    lab.open(*domains)
    await lab.town.owner("grace", "")
    lab.there.says.update(says)
    if not welcome:
        assert isinstance(await refusal(lab), PermissionDenied)
        return
    account = (await lab.come()).account
    assert (account.is_admin, account.email) == (False, "ada@lab.example" if says.get("email", "a") else None)


@pytest.mark.parametrize(
    ("says", "name"),
    [
        ({"preferred_username": "Ada Lovelace"}, "Ada-Lovelace"),
        ({"preferred_username": "ada@lab.example"}, "ada"),
        ({"preferred_username": None}, "ada"),
        ({"preferred_username": 7, "email": None}, "user"),
        ({"preferred_username": "<script>"}, "script"),
        ({"preferred_username": "..ünïcode.."}, "n-code"),
        ({"preferred_username": "日本"}, "user"),
        ({"preferred_username": "x" * 1000}, "x" * 56),
        ({"preferred_username": "GRACE"}, "GRACE-2"),
    ],
)
async def test_a_name_is_proposed_and_made_one(lab: Lab, says: dict[str, Any], name: str) -> None:
    lab.open("*")
    await lab.town.owner("grace", "")
    lab.there.says.update(says)
    assert (await lab.come()).account.name == name


async def test_two_browsers_at_once_make_one_account(lab: Lab) -> None:
    lab.open("*")
    await lab.town.owner("grace", "")
    ids = set()

    async def come() -> None:
        ids.add((await lab.come()).account.id)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(come)
    assert (len(ids), len(lab.town.people.accounts)) == (1, 2)


async def test_the_accounts_are_counted(lab: Lab) -> None:
    lab.town = Town(lab.town.nursery, Limits(accounts=1))
    await lab.town.owner("grace", "")
    lab.open("*")
    with pytest.raises(LimitExceeded, match="accounts = 1 "):
        await lab.come()


async def test_who_is_blocked_is_refused(lab: Lab) -> None:
    owner = await lab.town.owner("grace", "")
    account = (await lab.come(link=await lab.town.people.accounts.invite(owner))).account
    lab.town.broker.administration.block(owner.principal, account.id, "loud")
    error = await refusal(lab)
    assert (type(error), "blocked" in str(error)) == (PermissionDenied, True)


async def test_with_an_address_that_is_blocked_nobody_makes_an_account(lab: Lab) -> None:
    lab.open("*")
    owner = await lab.town.owner("grace", "")
    lab.town.broker.administration.block(owner.principal, "ada@lab.example", "loud")
    link = await lab.town.people.accounts.invite(owner)
    for error in (await refusal(lab), await refusal(lab, link=link)):
        assert (type(error), "blocked" in str(error)) == (PermissionDenied, True)
    assert len(lab.town.people.accounts) == 1
    lab.town.people.accounts.invitation(link)


async def test_a_removed_account_is_gone_with_its_identity(lab: Lab) -> None:
    owner = await lab.town.owner("grace", "")
    account = (await lab.come(link=await lab.town.people.accounts.invite(owner))).account
    await lab.town.people.remove(owner, account.id)
    assert isinstance(await refusal(lab), PermissionDenied)
    assert (await lab.come(link=await lab.town.people.accounts.invite(owner))).account.id != account.id


async def test_without_a_password_none_is_right(lab: Lab) -> None:
    owner = await lab.town.owner("grace", "")
    account = (await lab.come(link=await lab.town.people.accounts.invite(owner))).account
    accounts = lab.town.people.accounts
    for password in ("", "None", PASSWORD):
        with pytest.raises(NotAuthenticated, match="do not belong together"):
            await accounts.sign_in("ada", password, HERE)
    link = await accounts.offer_password(owner, account.id)
    assert isinstance(await refusal(lab, link=link), NotFound)  # which makes no account
    with pytest.raises(NotFound, match="has an account already"):
        await accounts.join_as((lab.there.issuer, "bob-1"), "bob", None, link)
    await accounts.renew(link, PASSWORD)
    await accounts.sign_in("ada", PASSWORD, HERE)
    assert (await lab.come()).account is account


async def test_accounts_of_before_have_no_identity(lab: Lab) -> None:
    owner = await lab.town.owner()
    record = owner.to_record()
    del record["identity"]
    assert Account.from_record(record).to_record() == owner.to_record()


# --- connecting ---------------------------------------------------------------------------------------------------


async def signed_in(lab: Lab, name: str = "grace") -> tuple[str, str]:
    """The cookie of a browser of *name*, and its mark."""
    cookie = await lab.town.people.accounts.sign_in(name, PASSWORD, HERE)
    return cookie, mark_of(cookie)


async def test_who_is_signed_in_connects_the_account_and_disconnects_it(lab: Lab) -> None:
    owner = await lab.town.owner("grace", "")
    cookie, mark = await signed_in(lab)
    outcome = await lab.come(browser=cookie, connects=mark)
    assert (outcome.account, outcome.cookie) == (owner, None)
    lab.town = lab.town.killed()
    lab.open()
    assert (await lab.come()).account.id == owner.id
    again = lab.who("grace")
    await lab.town.people.accounts.connect(again, None)
    assert isinstance(await refusal(lab), PermissionDenied)
    lab.town = lab.town.killed()
    assert lab.who("grace").identity is None


@pytest.mark.parametrize("browser", ["nobody", "another", "signed out"])
async def test_only_the_browser_that_began_connects_its_account(lab: Lab, browser: str) -> None:
    owner = await lab.town.owner("grace", "")
    await lab.town.guest(owner)
    cookie, mark = await signed_in(lab)
    begun = await lab.begin(connects=mark)
    if browser == "signed out":
        there = lab.town.people.accounts.signed_in(cookie)
        assert there is not None
        await lab.town.people.accounts.sign_out(there)
    brings = {"nobody": None, "another": (await signed_in(lab, "bob"))[0], "signed out": cookie}[browser]
    with pytest.raises(PermissionDenied, match="not signed in any more"):
        await lab.come(begun, brings)
    assert [account.identity for account in lab.town.people.accounts.everybody()] == [None, None]


async def test_who_signs_out_while_the_provider_is_asked_connects_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = await lab.town.owner("grace", "")
    cookie, mark = await signed_in(lab)
    accounts, redeem = lab.town.people.accounts, lab.elsewhere.provider.redeem

    async def slow(*args: Any) -> Any:
        browser = accounts.signed_in(cookie)
        assert browser is not None
        await accounts.sign_out(browser)
        return await redeem(*args)

    monkeypatch.setattr(lab.elsewhere.provider, "redeem", slow)
    with pytest.raises(PermissionDenied, match="not signed in any more"):
        await lab.come(browser=cookie, connects=mark)
    assert owner.identity is None


async def test_signing_in_again_takes_the_place_of_what_the_browser_had(lab: Lab) -> None:
    owner = await lab.town.owner("grace", "")
    account = (await lab.come(link=await lab.town.people.accounts.invite(owner))).account
    cookie, _ = await signed_in(lab)
    await lab.come(browser=cookie)
    accounts = lab.town.people.accounts
    assert (accounts.signed_in(cookie), accounts.browsers_of(owner), accounts.browsers_of(account)) == (None, 0, 2)


async def test_an_identity_is_of_one_account(lab: Lab) -> None:
    owner = await lab.town.owner("grace", "")
    await lab.come(link=await lab.town.people.accounts.invite(owner))
    cookie, mark = await signed_in(lab)
    with pytest.raises(Conflict, match="somebody else"):
        await lab.come(browser=cookie, connects=mark)
    assert owner.identity is None


async def test_who_has_no_password_stays_connected(lab: Lab) -> None:
    owner = await lab.town.owner("grace", "")
    account = (await lab.come(link=await lab.town.people.accounts.invite(owner))).account
    with pytest.raises(Conflict, match="nobody could sign in"):
        await lab.town.people.accounts.connect(account, None)
    assert (await lab.come()).account is account


# --- attempts -----------------------------------------------------------------------------------------------------


async def answer(lab: Lab, begun: Beginning, cookie: str | None = None, **changes: str | None) -> Outcome:
    query = {**dict(parse_qsl(lab.there.visited(begun.address))), **changes}
    sent = {name: value for name, value in query.items() if value is not None}
    return await lab.elsewhere.finish(sent, begun.cookie if cookie is None else cookie, None)


@pytest.mark.parametrize("changes", [{"state": None}, {"state": ""}, {"state": "x"}, {"cookie": ""}, {"cookie": "x"}])
async def test_an_answer_is_for_the_browser_that_has_begun(lab: Lab, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="not begun in this browser"):
        await answer(lab, await lab.begin(), **changes)
    assert lab.there.count("/token") == 0


async def test_an_answer_is_taken_once_whatever_came_of_it(lab: Lab) -> None:
    owner = await lab.town.owner("grace", "")
    begun = await lab.begin(link=await lab.town.people.accounts.invite(owner))
    await answer(lab, begun)
    refused = await lab.begin()
    for changes in ({"error": "access_denied"}, {}):
        for beginning in (begun, refused):
            with pytest.raises(HyphaError):
                await answer(lab, beginning, **changes)
    assert (lab.there.count("/token"), len(lab.elsewhere._begun)) == (1, 0)


async def test_an_attempt_has_so_long(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.town.owner("grace", "")
    lab.open("*")
    times = [100.0]
    monkeypatch.setattr(lab.town.broker, "now", lambda: times[0])
    begun = [await lab.begin() for _ in range(3)]
    times[0] += lab.town.limits.oidc_attempt_seconds - 1
    await answer(lab, begun[0])
    times[0] += 1
    with pytest.raises(InvalidArgument, match="took too long"):
        await answer(lab, begun[1])
    await lab.begin()
    assert len(lab.elsewhere._begun) == 1


async def test_the_attempts_are_bounded_exactly_and_the_oldest_is_forgotten(lab: Lab) -> None:
    lab.town = Town(lab.town.nursery, Limits(oidc_attempts=3))
    await lab.town.owner("grace", "")
    lab.open("*")
    begun = [await lab.begin() for _ in range(4)]
    assert len(lab.elsewhere._begun) == 3
    with pytest.raises(InvalidArgument):
        await answer(lab, begun[0])
    for beginning in begun[1:]:
        await answer(lab, beginning)


async def test_the_attempts_from_one_address_are_bounded_and_good_ones_do_not_count(lab: Lab) -> None:
    lab.town = Town(lab.town.nursery, Limits(sign_in_tries_per_address=3))
    await lab.town.owner("grace", "")
    lab.open("*")
    for _ in range(5):
        await lab.come()
    for _ in range(3):
        await lab.begin()
    with pytest.raises(LimitExceeded, match="sign_in_tries_per_address = 3 "):
        await lab.begin()
    await lab.elsewhere.begin(Purpose(), CALLBACK, "192.0.2.2")


@pytest.mark.parametrize(
    ("error", "description", "kind", "said"),
    [
        ("access_denied", "not today", PermissionDenied, "says 'access_denied not today'"),
        ("server_error", "", PeerGone, "says 'server_error'"),
        ("temporarily_unavailable", "", PeerGone, "try later"),
        ("login_required", "", InvalidArgument, "says 'login_required'"),
        ("<b>\n" * 1000, "", InvalidArgument, "did not sign you in"),
    ],
)
async def test_the_provider_says_why_not(
    lab: Lab, error: str, description: str, kind: type[HyphaError], said: str
) -> None:
    with pytest.raises(kind) as caught:
        await answer(lab, await lab.begin(), code=None, error=error, error_description=description)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


async def test_an_answer_without_a_code(lab: Lab) -> None:
    with pytest.raises(InvalidArgument, match="says nothing"):
        await answer(lab, await lab.begin(), code=None)


async def test_an_answer_of_another_provider_is_not_redeemed(lab: Lab) -> None:
    with pytest.raises(InvalidArgument, match="does not come from the provider"):
        await answer(lab, await lab.begin(), iss="https://evil.example")
    assert lab.there.count("/token") == 0


async def test_secrets_are_kept_as_hashes_and_shown_nowhere(lab: Lab) -> None:
    begun = await lab.begin(link=await lab.town.people.accounts.invite(await lab.town.owner()))
    query = dict(parse_qsl(begun.address.partition("?")[2]))
    table = repr(lab.elsewhere._begun)
    for secret in (begun.cookie, query["state"], query["nonce"]):
        assert secret not in table
    assert begun.cookie not in repr(begun)
    (kept,) = lab.elsewhere._begun.values()
    assert re.fullmatch(r"[\w-]{43}", kept.attempt.verifier)
    assert kept.attempt.verifier not in table + begun.address


# --- the extra ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["httpx", "cryptography"])
def test_without_the_extra_it_is_said_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require_oidc()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    command = re.escape(f"{sys.executable} -m pip install 'httpx>=0.27' 'pyjwt[crypto]>=2.10'")
    with pytest.raises(ConfigError, match=rf"--oidc-issuer needs the extra hypha\[oidc\].*{command}"):
        require_oidc()
