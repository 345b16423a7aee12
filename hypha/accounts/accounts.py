"""Who has an account, who may make one, and in which browsers they are signed in.

Everything is kept in records of the broker, secrets only as hashes; what was told to a browser is on the disk first.
"""

from __future__ import annotations

import logging
import secrets
from itertools import chain, count
from typing import TYPE_CHECKING, NamedTuple

import trio

from hypha.accounts.account import (
    Account,
    Invitation,
    SignedIn,
    checked_email,
    checked_name,
    form_of,
    mark_of,
    new_secret,
    proposed_name,
)
from hypha.accounts.invitations import Invitations
from hypha.accounts.owned import Owned
from hypha.accounts.passwords import Passwords
from hypha.accounts.tries import Tries
from hypha.broker.access import ADMIN_ROLE, Action, may
from hypha.broker.tokens import new_user_id
from hypha.errors import Conflict, LimitExceeded, NotAuthenticated, NotFound, PermissionDenied
from hypha.wire.address import PUBLIC_WORKSPACE

if TYPE_CHECKING:
    from hypha.broker.broker import Broker
    from hypha.broker.records import Loaded

logger = logging.getLogger(__name__)

ACCOUNT, BROWSER = "account", "browser"

#: Who has invited, when that was who starts the server.
COMMAND_LINE = "command line"


class _Browser(NamedTuple):
    """One in which *account* is signed in, and in which order that is kept. Times in seconds since the epoch."""

    account: str
    since: float
    until: float


class Accounts:
    """The accounts of one server."""

    def __init__(self, broker: Broker, passwords: Passwords | None = None) -> None:
        self._broker = broker
        self._limits = broker.limits
        self.passwords = passwords or Passwords()
        self._by_id: dict[str, Account] = {}
        #: By name and by e-mail address, both in lower case.
        self._by_name: dict[str, Account] = {}
        self._by_identity: dict[tuple[str, str], Account] = {}
        self._has_records = False
        self._invitations = Invitations(broker, self._is_void)
        self._browsers = Owned[_Browser]()
        self._tries = Tries(self._limits, broker.now)
        self._by_link = trio.Lock()

    def restore(self, records: Loaded) -> None:
        """Take over what an earlier process has kept."""
        for _, account in records.each(ACCOUNT, Account.from_record):
            self._enter(account)
        self._has_records = records.has(ACCOUNT)
        self._invitations.restore(records)
        browsers = records.each(BROWSER, lambda value: _Browser(str(value[0]), float(value[1]), float(value[2])))
        self._browsers = Owned(sorted(browsers, key=lambda item: item[1].since))

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, account_id: str) -> Account | None:
        """The account of that id."""
        return self._by_id.get(account_id)

    @property
    def is_founded(self) -> bool:
        """Whether somebody administers the server, also when the account cannot be read."""
        return self._has_records or bool(self._by_id)

    def everybody(self) -> list[Account]:
        """All accounts, by name."""
        return sorted(self._by_id.values(), key=lambda account: account.name.lower())

    def search(self, text: str) -> list[Account]:
        """Those in whose name or e-mail address *text* stands, by name."""
        wanted = text.strip().lower()
        return [one for one in self.everybody() if wanted in one.name.lower() or wanted in (one.email or "")]

    # --- becoming one -----------------------------------------------------------------------------------------

    def first_invitation(self, *, always: bool = False) -> str | None:
        """The secret of a new invitation for an administrator, as long as nobody has an account, or *always*.

        It is not kept yet.
        """
        if self.is_founded and not always:
            return None
        self._invitations.sweep()
        by = COMMAND_LINE if self.is_founded else None
        return self._invitations.add(Invitation(None, (ADMIN_ROLE,), by, self._end_of_invitation()))

    async def invite(self, by: Account, email: str = "") -> str:
        """The secret of a new invitation, for whoever has it. Whoever accepts it gets *email* as address.

        An older one to that address is worth nothing then. Raises :class:`PermissionDenied`, :class:`Conflict` and
        :class:`LimitExceeded`.
        """
        self._require_operator(by)
        address = checked_email(email)
        if address is not None and address in self._by_name:
            raise Conflict("somebody has an account with this address already")
        if address is not None:
            self._invitations.drop_all(lambda item: item.email == address)
        self._invitations.require_room()
        secret = self._invitations.add(Invitation(address, (), by.id, self._end_of_invitation()))
        await self._broker.records.kept()
        return secret

    async def offer_password(self, by: Account, account_id: str) -> str:
        """The secret of a link with which the account of that id gets another password.

        Raises :class:`PermissionDenied`, :class:`NotFound` and :class:`LimitExceeded`.
        """
        self._require_operator(by)
        account = self._existing(account_id)
        self._invitations.require_room()
        secret = self._invitations.add(Invitation(None, (), by.id, self._end_of_invitation(), account.id))
        await self._broker.records.kept()
        return secret

    def invitations(self, by: Account) -> list[tuple[str, Invitation]]:
        """What waits to be accepted, for an administrator: the mark of each, and the invitation; the newest first.

        Raises :class:`PermissionDenied`.
        """
        self._require_operator(by)
        return list(self._invitations.good())[::-1]

    async def withdraw(self, by: Account, mark: str) -> None:
        """Let the invitation of that mark be worth nothing. Raises :class:`PermissionDenied` and :class:`NotFound`."""
        self._require_operator(by)
        if mark not in dict(self._invitations.good()):
            raise NotFound("there is no such link; it was used already, or is too old")
        self._invitations.drop(mark)
        await self._broker.records.kept()

    def _require_operator(self, account: Account) -> None:
        if not self._operates(account):
            raise PermissionDenied("only who administers the server looks after the accounts of others")

    def _operates(self, account: Account | None) -> bool:
        if account is None or not self._is_there(account) or self._is_blocked(account):
            return False
        public = self._broker.registry.workspaces[PUBLIC_WORKSPACE]
        return may(account.principal, Action.OPERATE, public).allowed

    def _is_there(self, account: Account) -> bool:
        """Whether nobody has removed *account* since it was looked up."""
        return self._by_id.get(account.id) is account

    def _is_blocked(self, account: Account) -> bool:
        return self._broker.tokens.is_revoked(account.principal)

    def invitation(self, secret: str) -> Invitation:
        """What *secret* invites to. Raises :class:`NotFound` for what never was, is used up, or is too old."""
        return self._invitations.find(secret)

    async def join(self, secret: str, name: str, password: str, email: str = "", address: str | None = None) -> Account:
        """Make the account that *secret* invites to. The invitation is used up.

        *email* counts for the first account alone: nobody else chooses an address, for workspaces can be shared by
        address. *address*: from where it asks. Raises :class:`NotFound`, :class:`InvalidArgument`, :class:`Conflict`
        and :class:`LimitExceeded`, also for too many tries: each tells whether somebody has the name.
        """
        # One at a time: who has a link, and asks again and again, leaves a thread to those who sign in.
        with self._tries.one(address):
            async with self._by_link:
                self._require_new(self.invitation(secret), name, email)
                kept = await self.passwords.hash(password)
                # Somebody may have been faster meanwhile, elsewhere.
                invitation = self.invitation(secret)
                wanted, own = self._require_new(invitation, name, email)
                self._invitations.drop(mark_of(secret))
                account = Account(new_user_id(), wanted, own, kept, invitation.roles, self._broker.clock())
                self._begin(account)
        await self._broker.records.kept()
        return account

    def _begin(self, account: Account) -> None:
        self._enter(account)
        self._broker.records.put(ACCOUNT, account.id, account.to_record(), firm=True)
        self._make_workspace(account)
        logger.info("%s has an account now, as %s", account.id, "administrator" if account.is_admin else "user")

    async def join_as(
        self, identity: tuple[str, str], name: str, email: str | None, secret: str | None = None
    ) -> Account:
        """Make the account of who has proved to be *identity*, with the invitation of *secret* or without one.

        *name* is a proposal, and *email* an address that is known to be theirs. Raises :class:`NotFound`,
        :class:`Conflict`, :class:`LimitExceeded`, and :class:`PermissionDenied` for an address that is blocked.
        """
        invitation = None if secret is None else self.invitation(secret)
        if invitation is not None and invitation.account is not None:
            raise NotFound("this link is for somebody who has an account already")
        own = None if email is None or email in self._by_name else email
        if invitation is not None and invitation.email is not None:
            own = invitation.email
        self._require_free(own)
        roles = () if invitation is None else invitation.roles
        account = Account(new_user_id(), self._free_name(name), own, None, roles, self._broker.clock(), identity)
        self._require_unblocked(account)
        if secret is not None:
            self._invitations.drop(mark_of(secret))
        self._begin(account)
        await self._broker.records.kept()
        return account

    def _free_name(self, text: str) -> str:
        name = proposed_name(text)
        numbered = chain([name], (f"{name}-{number}" for number in count(2)))
        return next(item for item in numbered if item.lower() not in self._by_name)

    async def renew(self, secret: str, password: str, address: str | None = None) -> Account:
        """Give the account of a link another password; it is signed out everywhere, and its links are used up.

        *address*: from where it asks. Raises :class:`NotFound`, :class:`InvalidArgument` and :class:`LimitExceeded`.
        """
        with self._tries.one(address):
            async with self._by_link:
                self._existing(self.invitation(secret).account or "")
                kept = await self.passwords.hash(password)
                account = self._existing(self.invitation(secret).account or "")
                self._set_password(account, kept)
        await self._broker.records.kept()
        logger.info("%s has another password", account.id)
        return account

    def removable(self, by: Account, account_id: str) -> Account:
        """The account of that id, if *by* may remove it. Raises :class:`PermissionDenied` and :class:`NotFound`."""
        self._require_operator(by)
        account = self._existing(account_id)
        if account is by:
            raise PermissionDenied("an administrator does not remove itself; another one does")
        return account

    def remove(self, account: Account) -> None:
        """Forget *account*: it is signed out, and its workspace ends.

        What it has given out is ended by who keeps that. It is kept with what else is changed now.
        """
        self._drop_browsers(account)
        del self._by_id[account.id], self._by_name[account.name.lower()]
        if account.email is not None:
            del self._by_name[account.email]
        if account.identity is not None:
            del self._by_identity[account.identity]
        self._broker.records.remove(ACCOUNT, account.id, firm=True)
        self._drop_password_links(account)
        workspace = self._broker.registry.workspaces.get(account.id)
        if workspace is not None:
            self._broker.delete_workspace(workspace)
        logger.info("%s has no account any more", account.id)

    def _existing(self, account_id: str) -> Account:
        account = self._by_id.get(account_id)
        if account is None:
            raise NotFound("there is no such account")
        return account

    def _is_void(self, invitation: Invitation) -> bool:
        """Whether something has happened that makes it worth nothing before its time."""
        if invitation.by is None:
            return self.is_founded
        # The links of an administrator are worth no more than who has made them is now.
        by_nobody = invitation.by != COMMAND_LINE and not self._operates(self._by_id.get(invitation.by))
        return by_nobody or (invitation.account is not None and invitation.account not in self._by_id)

    def _drop_password_links(self, account: Account) -> None:
        self._invitations.drop_all(lambda item: item.account == account.id)

    def _require_new(self, invitation: Invitation, name: str, email: str) -> tuple[str, str | None]:
        if invitation.account is not None:
            raise NotFound("this link is for somebody who has an account already")
        wanted = checked_name(name)
        address = checked_email(email) if invitation.by in {None, COMMAND_LINE} else invitation.email
        if wanted.lower() in self._by_name:
            raise Conflict("this name is taken; choose another")
        self._require_free(address)
        return wanted, address

    def _require_free(self, address: str | None) -> None:
        if address is not None and address in self._by_name:
            raise Conflict("somebody has an account with this address already")
        if len(self._by_id) >= self._limits.accounts:
            raise LimitExceeded(f"accounts = {self._limits.accounts} people have an account already")

    def _make_workspace(self, account: Account) -> None:
        """Its own, which is kept; nothing happens when it has one. Who is there already stays."""
        registry = self._broker.registry
        workspace = registry.workspaces.get(account.id)
        if workspace is not None and workspace.persistent:
            return
        if workspace is None:
            workspace = registry.create_workspace(account.id)
            workspace.idle_since = self._broker.now()
        workspace.owners, workspace.persistent = workspace.owners or [account.id], True
        workspace.description = f"The workspace of {account.name}"
        registry.ledger.workspace(workspace)

    def _enter(self, account: Account) -> None:
        self._by_id[account.id] = self._by_name[account.name.lower()] = account
        if account.email is not None:
            self._by_name[account.email] = account
        if account.identity is not None:
            self._by_identity[account.identity] = account

    def _end_of_invitation(self) -> float:
        return self._broker.clock() + self._limits.invitation_seconds

    # --- signing in -------------------------------------------------------------------------------------------

    async def sign_in(self, name: str, password: str, address: str | None, instead_of: str | None = None) -> str:
        """The secret for the cookie of a browser, whose password is right. *address*: from where it asks.

        *instead_of*: as in :meth:`enter_browser`. One answer, after the same time, for a wrong password and for
        somebody that there is not: :class:`NotAuthenticated`. Raises :class:`LimitExceeded` for too many tries, and
        :class:`PermissionDenied` for who is blocked.
        """
        wanted = name.strip().lower()[:256]
        account = self._by_name.get(wanted)
        # A name and an e-mail address that lead to one account have its tries together.
        who = mark_of(wanted) if account is None else account.id
        wrong = "this name and this password do not belong together"
        return await self.let_in(await self._prove(account, who, password, address, wrong), instead_of)

    async def _prove(
        self, account: Account | None, who: str, password: str, address: str | None, wrong: str
    ) -> Account:
        """*account*, whose password it is, also when it has been compared. *who*: for whom the try counts.

        Raises :class:`NotAuthenticated`, which says *wrong*, and :class:`LimitExceeded`.
        """
        kept = None if account is None else account.password
        with self._tries.one(address, who):
            is_right = await self.passwords.match(password, kept)
            # Comparing takes time, in which somebody may have taken the account, or this password, away.
            if not is_right or account is None or not self._is_there(account) or account.password != kept:
                raise NotAuthenticated(wrong)
        return account

    async def let_in(self, account: Account, instead_of: str | None = None) -> str:
        """The secret for the cookie of a browser that has proved to be the account's.

        *instead_of*: as in :meth:`enter_browser`. Raises :class:`NotAuthenticated` for an account that was removed
        meanwhile, and :class:`PermissionDenied` for who is blocked.
        """
        self._require_unblocked(account)
        return await self.enter_browser(account, instead_of)

    def _require_unblocked(self, account: Account) -> None:
        if self._is_blocked(account):
            raise PermissionDenied("this account is blocked; ask who administers the server")

    def _require_there(self, account: Account) -> None:
        if not self._is_there(account):
            raise NotAuthenticated("this account is not there any more")

    def identified(self, identity: tuple[str, str]) -> Account | None:
        """The account of who is *identity* at an OpenID Connect provider."""
        return self._by_identity.get(identity)

    async def connect(self, account: Account, identity: tuple[str, str] | None) -> None:
        """Let *account* be who is *identity* from now on, or nobody elsewhere with None.

        Raises :class:`Conflict` for an identity of another account, and for one without which nobody could sign in;
        :class:`NotAuthenticated` for an account that was removed meanwhile.
        """
        self._require_there(account)
        if identity is not None and self._by_identity.get(identity, account) is not account:
            raise Conflict("somebody else has an account here with this identity")
        if identity is None and account.password is None:
            raise Conflict("without a password, nobody could sign in to this account any more")
        if account.identity is not None:
            del self._by_identity[account.identity]
        account.identity = identity
        if identity is not None:
            self._by_identity[identity] = account
        self._broker.records.put(ACCOUNT, account.id, account.to_record(), firm=True)
        await self._broker.records.kept()
        logger.info("%s is %s", account.id, "known elsewhere now" if identity else "not known elsewhere any more")

    async def enter_browser(self, account: Account, instead_of: str | None = None) -> str:
        """The secret for the cookie of a browser that has proved to be the account's.

        *instead_of*: that of the cookie which it had, and which is worth nothing then, whosever it was. Raises
        :class:`NotAuthenticated` for an account that was removed meanwhile.
        """
        self._require_there(account)
        if instead_of is not None:
            self._drop_browser(mark_of(instead_of))
        self._make_workspace(account)  # it may have been deleted
        secret, now = new_secret(), self._broker.clock()
        own = [mark for mark, _ in self._browsers.of(account.id)]
        for mark in own[: max(0, len(own) + 1 - self._limits.browsers_per_account)]:
            self._drop_browser(mark)
        entry = _Browser(account.id, now, now + self._limits.browser_seconds)
        self._browsers.add(mark_of(secret), entry)
        self._broker.records.put(BROWSER, mark_of(secret), list(entry), firm=True)
        await self._broker.records.kept()
        return secret

    def signed_in(self, secret: str | None) -> SignedIn | None:
        """Who is signed in in the browser whose cookie holds *secret*."""
        mark = mark_of(secret or "")
        browser = self._browsers.get(mark)
        if secret is None or browser is None or browser.until <= self._broker.clock():
            return None
        account = self._by_id.get(browser.account)
        if account is None:  # its record is of another version
            return None
        if self._is_blocked(account):  # meanwhile
            return None
        return SignedIn(mark, account, browser.since, browser.until, form_of(secret))

    async def sign_out(self, browser: SignedIn) -> None:
        """Let the cookie of *browser* be worth nothing."""
        self._drop_browser(browser.mark)
        await self._broker.records.kept()

    async def change_password(self, browser: SignedIn, old: str, new: str, address: str | None) -> None:
        """Another password; all other browsers of the account are signed out. Raises as :meth:`sign_in` does."""
        account = browser.account
        kept = account.password
        await self._prove(account, account.id, old, address, "this is not your password")
        hashed = await self.passwords.hash(new)
        # Who has lost the browser, or the password, while that was hashed has no say any more.
        if self._browsers.get(browser.mark) is None or account.password != kept:
            raise NotAuthenticated("you are not signed in any more; open your account again")
        self._set_password(account, hashed, besides=browser.mark)
        await self._broker.records.kept()

    def _set_password(self, account: Account, kept: str, besides: str = "") -> None:
        account.password = kept
        self._broker.records.put(ACCOUNT, account.id, account.to_record(), firm=True)
        self._drop_browsers(account, besides)
        self._drop_password_links(account)

    def _drop_browsers(self, account: Account, besides: str = "") -> None:
        """Sign *account* out everywhere, but for one browser."""
        for mark in [mark for mark, _ in self._browsers.of(account.id) if mark != besides]:
            self._drop_browser(mark)

    def browsers_of(self, account: Account) -> int:
        """In how many browsers the account is signed in."""
        return self._browsers.count(account.id)

    def _drop_browser(self, mark: str) -> None:
        self._browsers.discard(mark)
        self._broker.records.remove(BROWSER, mark, firm=True)

    # ----------------------------------------------------------------------------------------------------------

    def check_form(self, browser: SignedIn, sent: str) -> None:
        """Raise :class:`PermissionDenied` for a form that does not come from a page of this browser."""
        if not secrets.compare_digest(browser.form.encode(), sent.encode("utf-8", "replace")):
            raise PermissionDenied("this form is not of a page of yours; open your account again")

    def sweep(self) -> None:
        """Forget what is too old. Seldom: it looks at all invitations."""
        self._invitations.sweep()
        for mark in self._browsers.ended(self._broker.clock()):
            self._drop_browser(mark)
