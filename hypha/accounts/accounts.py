"""Who has an account, who may make one, and in which browsers they are signed in.

Everything is kept in records of the broker, secrets only as hashes; what was told to a browser is on the disk first.
"""

from __future__ import annotations

import logging
import secrets
from itertools import chain, count
from typing import TYPE_CHECKING, NamedTuple

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
from hypha.accounts.owned import Owned
from hypha.accounts.passwords import Passwords
from hypha.broker.access import ADMIN_ROLE, Action, may
from hypha.broker.throttle import Throttle, place
from hypha.broker.tokens import new_user_id
from hypha.errors import Conflict, LimitExceeded, NotAuthenticated, NotFound, PermissionDenied
from hypha.wire.address import PUBLIC_WORKSPACE

if TYPE_CHECKING:
    from hypha.broker.broker import Broker
    from hypha.broker.records import Loaded

logger = logging.getLogger(__name__)

ACCOUNT, INVITATION, BROWSER = "account", "invitation", "browser"


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
        #: By mark, the oldest first.
        self._invitations: dict[str, Invitation] = {}
        self._browsers = Owned[_Browser]()
        self._tries = Throttle("sign_in_tries", self._limits.sign_in_tries)
        self._tries_from = Throttle("sign_in_tries_per_address", self._limits.sign_in_tries_per_address)

    def restore(self, records: Loaded) -> None:
        """Take over what an earlier process has kept."""
        for _, account in records.each(ACCOUNT, Account.from_record):
            self._enter(account)
        invitations = records.each(INVITATION, Invitation.from_record)
        browsers = records.each(BROWSER, lambda value: _Browser(str(value[0]), float(value[1]), float(value[2])))
        self._invitations = dict(sorted(invitations, key=lambda item: item[1].until))
        self._browsers = Owned(sorted(browsers, key=lambda item: item[1].since))

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, account_id: str) -> Account | None:
        """The account of that id."""
        return self._by_id.get(account_id)

    def everybody(self) -> list[Account]:
        """All accounts, by name."""
        return sorted(self._by_id.values(), key=lambda account: account.name.lower())

    def search(self, text: str) -> list[Account]:
        """Those in whose name or e-mail address *text* stands, by name."""
        wanted = text.strip().lower()
        return [one for one in self.everybody() if wanted in one.name.lower() or wanted in (one.email or "")]

    # --- becoming one -----------------------------------------------------------------------------------------

    def first_invitation(self, *, always: bool = False) -> str | None:
        """The secret of a new invitation for an administrator, as long as nobody has an account, or *always*."""
        if self._by_id and not always:
            return None
        self._forget_old()
        by = COMMAND_LINE if self._by_id else None
        return self._invite(Invitation(None, (ADMIN_ROLE,), by, self._end_of_invitation()))

    async def invite(self, by: Account, email: str = "") -> str:
        """The secret of a new invitation, for whoever has it. Whoever accepts it gets *email* as address.

        Raises :class:`PermissionDenied`, :class:`Conflict` and :class:`LimitExceeded`.
        """
        self._require_operator(by)
        address = checked_email(email)
        if address is not None and address in self._by_name:
            raise Conflict("somebody has an account with this address already")
        self._require_room()
        secret = self._invite(Invitation(address, (), by.id, self._end_of_invitation()))
        await self._broker.records.kept()
        return secret

    async def offer_password(self, by: Account, account_id: str) -> str:
        """The secret of a link with which the account of that id gets another password.

        Raises :class:`PermissionDenied`, :class:`NotFound` and :class:`LimitExceeded`.
        """
        self._require_operator(by)
        account = self._existing(account_id)
        self._require_room()
        secret = self._invite(Invitation(None, (), by.id, self._end_of_invitation(), account.id))
        await self._broker.records.kept()
        return secret

    def _require_operator(self, account: Account) -> None:
        public = self._broker.registry.workspaces[PUBLIC_WORKSPACE]
        if not may(account.principal, Action.OPERATE, public).allowed:
            raise PermissionDenied("only who administers the server looks after the accounts of others")

    def _require_room(self) -> None:
        self._forget_old()
        if len(self._invitations) >= self._limits.invitations:
            raise LimitExceeded(f"invitations = {self._limits.invitations} wait to be accepted; let them expire")

    def invitation(self, secret: str) -> Invitation:
        """What *secret* invites to. Raises :class:`NotFound` for what never was, is used up, or is too old."""
        found = self._invitations.get(mark_of(secret))
        if found is None or found.until <= self._broker.clock() or self._is_void(found):
            raise NotFound("this link was used already, or is too old; ask for a new one")
        return found

    async def join(self, secret: str, name: str, password: str, email: str = "") -> Account:
        """Make the account that *secret* invites to. The invitation is used up.

        *email* counts for the first account alone: nobody else chooses an address, for workspaces can be shared by
        address. Raises :class:`NotFound`, :class:`InvalidArgument`, :class:`Conflict` and :class:`LimitExceeded`.
        """
        self._require_new(self.invitation(secret), name, email)
        kept = await self.passwords.hash(password)
        # Somebody may have been faster meanwhile.
        invitation = self.invitation(secret)
        if invitation.account is not None:
            raise NotFound("this link is for somebody who has an account already")
        wanted, address = self._require_new(invitation, name, email)
        self._drop_invitation(mark_of(secret))
        account = Account(new_user_id(), wanted, address, kept, invitation.roles, self._broker.clock())
        return await self._begin(account)

    async def _begin(self, account: Account) -> Account:
        self._enter(account)
        self._broker.records.put(ACCOUNT, account.id, account.to_record(), firm=True)
        self._make_workspace(account)
        await self._broker.records.kept()
        logger.info("%s has an account now, as %s", account.id, "administrator" if account.is_admin else "user")
        return account

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
            self._drop_invitation(mark_of(secret))
        return await self._begin(account)

    def _free_name(self, text: str) -> str:
        name = proposed_name(text)
        numbered = chain([name], (f"{name}-{number}" for number in count(2)))
        return next(item for item in numbered if item.lower() not in self._by_name)

    async def renew(self, secret: str, password: str) -> Account:
        """Give the account of a link another password; it is signed out everywhere, and the link is used up.

        Raises :class:`NotFound` and :class:`InvalidArgument`.
        """
        kept = await self.passwords.hash(password)
        invitation = self.invitation(secret)
        account = self._existing(invitation.account or "")
        self._drop_invitation(mark_of(secret))
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
        place = self._broker.registry.workspaces.get(account.id)
        if place is not None:
            self._broker.delete_workspace(place)
        logger.info("%s has no account any more", account.id)

    def _existing(self, account_id: str) -> Account:
        account = self._by_id.get(account_id)
        if account is None:
            raise NotFound("there is no such account")
        return account

    def _is_void(self, invitation: Invitation) -> bool:
        """Whether something has happened that makes it worth nothing before its time."""
        first_is_there = invitation.by is None and bool(self._by_id)
        return first_is_there or (invitation.account is not None and invitation.account not in self._by_id)

    def _require_new(self, invitation: Invitation, name: str, email: str) -> tuple[str, str | None]:
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

    def _invite(self, invitation: Invitation) -> str:
        secret = new_secret()
        self._invitations[mark_of(secret)] = invitation
        self._broker.records.put(INVITATION, mark_of(secret), invitation.to_record(), firm=True)
        return secret

    def _end_of_invitation(self) -> float:
        return self._broker.clock() + self._limits.invitation_seconds

    def _drop_invitation(self, mark: str) -> None:
        self._invitations.pop(mark, None)
        self._broker.records.remove(INVITATION, mark, firm=True)

    # --- signing in -------------------------------------------------------------------------------------------

    async def sign_in(self, name: str, password: str, address: str | None) -> str:
        """The secret for the cookie of a browser, whose password is right. *address*: from where it asks.

        One answer, after the same time, for a wrong password and for somebody that there is not:
        :class:`NotAuthenticated`. Raises :class:`LimitExceeded` for too many tries, and :class:`PermissionDenied` for
        who is blocked.
        """
        wanted, now = name.strip().lower()[:256], self._broker.now()
        self._tries_from.take(place(address), now)
        self._tries.take(mark_of(wanted), now)
        account = self._by_name.get(wanted)
        if not await self.passwords.match(password, None if account is None else account.password):
            raise NotAuthenticated("this name and this password do not belong together")
        self._tries_from.give_back(place(address))
        self._tries.give_back(mark_of(wanted))
        assert account is not None, "nobody has the hash that stands for nobody"
        return await self.let_in(account)

    async def let_in(self, account: Account) -> str:
        """The secret for the cookie of a browser that has proved to be the account's.

        Raises :class:`PermissionDenied` for who is blocked.
        """
        self._require_unblocked(account)
        return await self.enter_browser(account)

    def _require_unblocked(self, account: Account) -> None:
        if self._broker.tokens.is_revoked(account.principal):
            raise PermissionDenied("this account is blocked; ask who administers the server")

    def identified(self, identity: tuple[str, str]) -> Account | None:
        """The account of who is *identity* at an OpenID Connect provider."""
        return self._by_identity.get(identity)

    async def connect(self, account: Account, identity: tuple[str, str] | None) -> None:
        """Let *account* be who is *identity* from now on, or nobody elsewhere with None.

        Raises :class:`Conflict` for an identity of another account, and for one without which nobody could sign in.
        """
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

    async def enter_browser(self, account: Account) -> str:
        """The secret for the cookie of a browser that has proved to be the account's."""
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
        if self._broker.tokens.is_revoked(account.principal):  # it was blocked meanwhile
            return None
        return SignedIn(mark, account, browser.since, browser.until, form_of(secret))

    async def sign_out(self, browser: SignedIn) -> None:
        """Let the cookie of *browser* be worth nothing."""
        self._drop_browser(browser.mark)
        await self._broker.records.kept()

    async def change_password(self, browser: SignedIn, old: str, new: str, address: str | None) -> None:
        """Another password; all other browsers of the account are signed out. Raises as :meth:`sign_in` does."""
        account, now = browser.account, self._broker.now()
        self._tries_from.take(place(address), now)
        self._tries.take(mark_of(account.name.lower()), now)
        if not await self.passwords.match(old, account.password):
            raise NotAuthenticated("this is not your password")
        self._tries_from.give_back(place(address))
        self._tries.give_back(mark_of(account.name.lower()))
        self._set_password(account, await self.passwords.hash(new), besides=browser.mark)
        await self._broker.records.kept()

    def _set_password(self, account: Account, kept: str, besides: str = "") -> None:
        account.password = kept
        self._broker.records.put(ACCOUNT, account.id, account.to_record(), firm=True)
        self._drop_browsers(account, besides)

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
        self._forget_old()
        for mark in self._browsers.ended(self._broker.clock()):
            self._drop_browser(mark)

    def _forget_old(self) -> None:
        now = self._broker.clock()
        gone = [mark for mark, item in self._invitations.items() if item.until <= now or self._is_void(item)]
        for mark in gone:
            self._drop_invitation(mark)
