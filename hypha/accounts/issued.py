"""The tokens that people have made: listed by their ids, never as secrets, revoked one by one, with their last use."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from hypha.accounts.account import Account
from hypha.broker.access import Level, Principal
from hypha.broker.issuing import grant, issue
from hypha.errors import InvalidArgument, LimitExceeded, NotFound, PermissionDenied

if TYPE_CHECKING:
    from hypha.broker.broker import Broker

TOKEN = "token"  # noqa: S105  a kind of records
_MAX_LABEL = 100  # characters


@dataclass(slots=True, eq=False)
class Issued:
    """A token of an account. *workspace*: the only one that it opens; None for all that the account may do.

    *level*: as it was asked for. *admin*: whether it also administers the server. Times in seconds since the epoch.
    """

    id: str
    account: str
    label: str
    workspace: str | None
    level: str
    admin: bool
    since: float
    until: float
    used: float | None = None


class IssuedTokens:
    """The tokens of all accounts."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        #: By id, the oldest first.
        self._tokens: dict[str, Issued] = {}
        #: Those whose use is not written down yet.
        self._used: set[str] = set()
        broker.tokens.on_use = self._on_use

    def restore(self, records: Iterable[tuple[str, str, Any]]) -> None:
        """Take over what an earlier process has kept."""
        found = [Issued(**value) for kind, _, value in records if kind == TOKEN]
        self._tokens = {item.id: item for item in sorted(found, key=lambda item: item.since)}

    def of(self, account: Account) -> list[Issued]:
        """Those of *account* that are good now, the newest first."""
        now = self._broker.clock()
        own = [item for item in self._tokens.values() if item.account == account.id and item.until > now]
        return own[::-1]

    async def issue(
        self,
        account: Account,
        label: str,
        seconds: float,
        workspace: str | None = None,
        level: str = "",
        *,
        admin: bool = False,
    ) -> str:
        """A new token, which is shown this once.

        For *workspace* it is a new user's with that *level* at most, otherwise the account's own; *admin*: with the
        right to administer the server, too. Raises :class:`PermissionDenied`, :class:`InvalidArgument` and
        :class:`LimitExceeded`.
        """
        if not 0 < len(label.strip()) <= _MAX_LABEL:
            raise InvalidArgument(f"say in 1 to {_MAX_LABEL} characters what the token is for")
        if len(self.of(account)) >= self._broker.limits.tokens_per_account:
            raise LimitExceeded(f"tokens_per_account = {self._broker.limits.tokens_per_account}; revoke some first")
        if admin and not account.is_admin:
            raise PermissionDenied("only who administers the server can pass that on")
        user = account.principal if admin else account.as_member
        if workspace is None:
            text = self._broker.tokens.issue(user, expires_in=self._broker.token_life(user, seconds))
        else:
            text = self._for_one(user, workspace, level, seconds)
        holder = self._broker.tokens.verify(text)
        assert holder.expires_at is not None, "every token ends"
        now = self._broker.clock()
        item = Issued(
            holder.tokens[-1], account.id, label.strip(), workspace, level, admin, now, float(holder.expires_at)
        )
        self._tokens[item.id] = item
        self._keep(item)
        await self._broker.records.kept()
        return text

    def _for_one(self, user: Principal, workspace: str, level: str, seconds: float) -> str:
        wanted = Level.parse(level)
        if wanted is None:
            raise InvalidArgument("the permission is read, read_write or admin")
        grants = {workspace: grant(self._broker, user, workspace, wanted)}
        return issue(self._broker, user, {"expires_in": seconds}, grants, workspace)[1]

    async def revoke(self, account: Account, token_id: str) -> None:
        """Let a token of *account* be refused from now on, with all that came from it. Raises :class:`NotFound`."""
        item = self._tokens.get(token_id)
        if item is None or item.account != account.id:
            raise NotFound("there is no such token")
        self._end(account, item)
        await self._broker.records.kept()

    def end_all(self, account: Account) -> None:
        """Do that to all tokens of *account*; it is kept with what else is changed now."""
        for item in self.of(account):
            self._end(account, item)

    def _end(self, account: Account, item: Issued) -> None:
        holder = replace(account.principal, tokens=(item.id,), expires_at=item.until)
        self._broker.tokens.revoke(holder, account.principal)
        self._forget(item)

    def _on_use(self, tokens: Collection[str]) -> None:
        for token_id in tokens:
            item = self._tokens.get(token_id)
            if item is None:
                continue
            first, item.used = item.used is None, self._broker.clock()
            if first:
                self._keep(item, firm=False)
            else:
                self._used.add(token_id)

    def write_down(self) -> None:
        """Keep when tokens were used last. Seldom, for they are used all the time."""
        for token_id in self._used & self._tokens.keys():
            self._keep(self._tokens[token_id], firm=False)
        self._used.clear()

    def sweep(self) -> None:
        """Forget those that have expired."""
        now = self._broker.clock()
        for item in [item for item in self._tokens.values() if item.until <= now]:
            self._forget(item)

    def _keep(self, item: Issued, *, firm: bool = True) -> None:
        self._broker.records.put(TOKEN, item.id, asdict(item), firm=firm)

    def _forget(self, item: Issued) -> None:
        del self._tokens[item.id]
        self._broker.records.remove(TOKEN, item.id, firm=True)
