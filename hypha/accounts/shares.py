"""Links with which anybody calls one service, or one function of it, without an account.

A link holds 256 random bits, of which a hash is kept with what the link is for; so it is listed, counted and revoked
like a token of an account, and is worth no more than its account still is.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from hypha.accounts.account import Account, checked_label, mark_of, new_secret
from hypha.accounts.accounts import Accounts
from hypha.accounts.owned import Owned
from hypha.broker.access import Action, Level, Principal, may
from hypha.broker.issuing import granted_by
from hypha.broker.session import PeerSession
from hypha.errors import InvalidArgument, LimitExceeded, NotFound, PermissionDenied
from hypha.wire.address import check_name

if TYPE_CHECKING:
    from hypha.broker.broker import Broker
    from hypha.broker.records import Loaded

SHARE = "share"
_ENDED = "this link has ended, was revoked, or never was; ask who gave it to you"
MAX_CALLS = 10**9


@dataclass(slots=True, eq=False)
class Share:
    """A link of an account to *service* in *workspace*. *mark*: what is kept of its secret; *id*: names it in lists.

    *function*: the only one; None for all. *calls*: how many there may be; None for any number. Times in seconds since
    the epoch. *identity*: what tells the workspace from others of its name.
    """

    mark: str
    id: str
    account: str
    label: str
    workspace: str
    service: str
    function: str | None
    calls: int | None
    since: float
    until: float
    used: int = 0
    last: float | None = None
    identity: str = ""

    @property
    def user(self) -> str:
        """The id of whoever calls with it, by which it can be blocked, too."""
        return f"share-{self.id}"


class Shares:
    """The links of all accounts."""

    def __init__(self, broker: Broker, accounts: Accounts) -> None:
        self._broker = broker
        self._accounts = accounts
        self._shares = Owned[Share]()

    def restore(self, records: Loaded) -> None:
        """Take over what an earlier process has kept."""
        found = records.each(SHARE, lambda value: Share(**value))
        self._shares = Owned(sorted(found, key=lambda item: item[1].since))

    def of(self, account: Account) -> list[Share]:
        """Those of *account* that are good now, the newest first."""
        now = self._broker.clock()
        return [item for _, item in self._shares.of(account.id) if item.until > now][::-1]

    async def share(
        self,
        account: Account,
        label: str,
        seconds: float,
        workspace: str,
        service: str,
        function: str | None = None,
        calls: int | None = None,
    ) -> str:
        """The secret of a new link, which is shown this once.

        Raises :class:`PermissionDenied` for a workspace that *account* may not change and for services of the server's
        own, :class:`InvalidArgument` and :class:`LimitExceeded`.
        """
        said = checked_label(label, "whom the link is for")
        if calls is not None and not 0 < calls <= MAX_CALLS:
            raise InvalidArgument(f"the number of calls is from 1 to {MAX_CALLS}")
        check_name("service", service)
        self._require_of_a_client(workspace, service)
        if len(self.of(account)) >= self._broker.limits.shares_per_account:
            raise LimitExceeded(f"shares_per_account = {self._broker.limits.shares_per_account}; revoke some first")
        self._require_rights(account, workspace)
        secret, now = new_secret(), self._broker.clock()
        item = Share(
            mark_of(secret),
            secrets.token_hex(8),
            account.id,
            said,
            workspace,
            service,
            function or None,
            calls,
            now,
            now + seconds,
            identity=self._broker.registry.workspaces[workspace].identity,
        )
        self._shares.add(item.mark, item)
        self._keep(item, firm=True)
        await self._broker.records.kept()
        return secret

    def find(self, secret: str) -> Share:
        """What the link with *secret* is for.

        One answer, :class:`NotFound`, for what never was, has ended, was revoked, or whose account has lost its rights.
        """
        item = self._shares.get(mark_of(secret))
        if item is None:
            raise NotFound(_ENDED)
        self.require_valid(item)
        return item

    def require_valid(self, item: Share) -> None:
        """Raise :class:`NotFound` as :meth:`find` does when the link has ended meanwhile.

        It is asked for each item of a stream.
        """
        account, place = self._accounts.get(item.account), self._broker.registry.workspaces.get(item.workspace)
        is_there = self._shares.get(item.mark) is item and item.until > self._broker.clock()
        if account is None or place is None or not is_there or place.identity != item.identity:
            raise NotFound(_ENDED)
        holder = Principal(id=item.user, is_anonymous=True, issuers=(account.id,))
        if self._broker.tokens.is_revoked(holder) or not self._has_rights(account, item.workspace):
            raise NotFound(_ENDED)

    def principal(self, item: Share) -> Principal:
        """As whom the holders of the link call: somebody unknown, who comes through its account.

        Raises :class:`NotFound` as :meth:`find` does.
        """
        self.require_valid(item)
        account, grants = self._accounts.get(item.account), {item.workspace: Level.READ}
        assert account is not None, "the link is good"
        return Principal(
            id=item.user,
            is_anonymous=True,
            parent=account.id,
            grants=grants,
            home=item.workspace,
            issuers=(account.id,),
            granted_by=granted_by(self._broker, account.as_member, grants),
        )

    async def spend(self, item: Share) -> None:
        """One call more. It is counted, and that is kept, before it is made.

        Raises :class:`LimitExceeded`, and :class:`NotFound` when the link has ended since it was found.
        """
        # No await between the look and the record: what was removed meanwhile would be kept again.
        self.require_valid(item)
        if item.calls is not None and item.used >= item.calls:
            raise LimitExceeded(f"this link was for {item.calls} calls, which are used up")
        item.used += 1
        item.last = self._broker.clock()
        # A link for one call is for one, also when the machine loses its power.
        self._keep(item, firm=item.calls is not None)
        await self._broker.records.kept()
        self.require_valid(item)

    async def revoke(self, account: Account, share_id: str) -> None:
        """Let a link of *account* be worth nothing from now on. Raises :class:`NotFound`."""
        item = next((item for item in self.of(account) if item.id == share_id), None)
        if item is None:
            raise NotFound("there is no such link")
        self._forget(item.mark)
        await self._broker.records.kept()

    def end_all(self, account: Account) -> None:
        """Do that to all links of *account*; it is kept with what else is changed now."""
        for item in self.of(account):
            self._forget(item.mark)

    def sweep(self) -> None:
        """Forget those that have ended."""
        now = self._broker.clock()
        for mark in self._shares.ended(now):
            self._forget(mark)

    def _require_rights(self, account: Account, workspace: str) -> None:
        if not self._has_rights(account, workspace):
            raise PermissionDenied(f"only who may change the workspace {workspace} shares what is in it")

    def _has_rights(self, account: Account, workspace: str) -> bool:
        place = self._broker.registry.workspaces.get(workspace)
        blocked = self._broker.tokens.is_revoked(account.principal)
        return not blocked and place is not None and may(account.as_member, Action.WRITE, place).allowed

    def _require_of_a_client(self, workspace: str, service: str) -> None:
        named = self._broker.registry.named(service)
        if any(item.workspace == workspace and not isinstance(item.session, PeerSession) for item in named):
            raise PermissionDenied("services of the server's own are not shared")

    def _keep(self, item: Share, *, firm: bool = False) -> None:
        self._broker.records.put(SHARE, item.mark, asdict(item), firm=firm)

    def _forget(self, mark: str) -> None:
        self._shares.discard(mark)
        self._broker.records.remove(SHARE, mark, firm=True)
