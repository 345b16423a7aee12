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
    the epoch.
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

        Raises :class:`PermissionDenied` for a workspace that *account* may not change, :class:`InvalidArgument` and
        :class:`LimitExceeded`.
        """
        said = checked_label(label, "whom the link is for")
        if calls is not None and not 0 < calls <= MAX_CALLS:
            raise InvalidArgument(f"the number of calls is from 1 to {MAX_CALLS}")
        check_name("service", service)
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
        account = None if item is None else self._accounts.get(item.account)
        if item is not None and account is not None and item.until > self._broker.clock():
            try:
                self._require_rights(account, item.workspace)
            except PermissionDenied:
                pass  # as if the link were not there
            else:
                return item
        raise NotFound(_ENDED)

    def principal(self, item: Share) -> Principal:
        """As whom the holders of the link call: somebody unknown, who comes through its account.

        Raises :class:`NotFound` as :meth:`find` does.
        """
        account, grants = self._accounts.get(item.account), {item.workspace: Level.READ}
        if account is None or item.workspace not in self._broker.registry.workspaces:
            raise NotFound(_ENDED)
        return Principal(
            id=f"share-{item.id}",
            is_anonymous=True,
            parent=account.id,
            grants=grants,
            home=item.workspace,
            issuers=(account.id,),
            granted_by=granted_by(self._broker, account.as_member, grants),
        )

    async def spend(self, item: Share) -> None:
        """One call more. It is counted, and that is kept, before it is made. Raises :class:`LimitExceeded`."""
        if item.calls is not None and item.used >= item.calls:
            raise LimitExceeded(f"this link was for {item.calls} calls, which are used up")
        item.used += 1
        item.last = self._broker.clock()
        self._keep(item)
        await self._broker.records.kept()

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
        place = self._broker.registry.workspaces.get(workspace)
        blocked = self._broker.tokens.is_revoked(account.principal)
        if blocked or place is None or not may(account.as_member, Action.WRITE, place).allowed:
            raise PermissionDenied(f"only who may change the workspace {workspace} shares what is in it")

    def _keep(self, item: Share, *, firm: bool = False) -> None:
        self._broker.records.put(SHARE, item.mark, asdict(item), firm=firm)

    def _forget(self, mark: str) -> None:
        self._shares.discard(mark)
        self._broker.records.remove(SHARE, mark, firm=True)
