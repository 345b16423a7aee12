"""The tokens that people make: each has a label, and is listed and revoked by its id, never by its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypha.accounts.account import Account, checked_label
from hypha.broker.access import Level, Principal, level_in
from hypha.broker.issued import IssuedToken
from hypha.broker.issuing import grant, issue
from hypha.errors import InvalidArgument, LimitExceeded, NotFound, PermissionDenied

if TYPE_CHECKING:
    from hypha.broker.broker import Broker


class PersonalTokens:
    """The tokens of all accounts."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def of(self, account: Account) -> list[IssuedToken]:
        """Those of *account* that are good now, the newest first."""
        now = self._broker.clock()
        return [token for token in self._broker.tokens.issued.labelled(account.id) if token.expires_at > now][::-1]

    def level_in(self, account: Account, workspace: str) -> Level:
        """What *account* may do in a workspace and pass on. Raises :class:`PermissionDenied` where it has no part."""
        place = self._broker.registry.workspaces.get(workspace)
        level = Level.NONE if place is None else level_in(account.as_member, place)
        if level is Level.NONE:
            raise PermissionDenied(f"you have no part in the workspace {workspace}")
        return level

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
        said = checked_label(label, "what the token is for")
        if len(self.of(account)) >= self._broker.limits.tokens_per_account:
            raise LimitExceeded(f"tokens_per_account = {self._broker.limits.tokens_per_account}; revoke some first")
        self._broker.tokens.revocations.require_room_for(account.id)
        if admin and not account.is_admin:
            raise PermissionDenied("only who administers the server can pass that on")
        user = account.principal if admin else account.as_member
        if workspace is None:
            life = self._broker.token_life(user, seconds)
            text = self._broker.tokens.issue(user, expires_in=life, label=said)
        else:
            text = self._for_one(user, workspace, level, seconds, said)
        await self._broker.records.kept()
        return text

    def _for_one(self, user: Principal, workspace: str, level: str, seconds: float, label: str) -> str:
        wanted = Level.parse(level)
        if wanted is None:
            raise InvalidArgument("the permission is read, read_write or admin")
        grants = {workspace: grant(self._broker, user, workspace, wanted)}
        return issue(self._broker, user, {"expires_in": seconds}, grants, workspace, label)[1]

    async def revoke(self, account: Account, token_id: str) -> None:
        """Let a token of *account* be refused from now on, with all that came from it.

        Raises :class:`NotFound`.
        """
        token = self._broker.tokens.issued.get(token_id)
        if token is None or token.label is None or token.holder.origin != account.id:
            raise NotFound("there is no such token")
        self._end(token, account)
        await self._broker.records.kept()

    def end_all(self, account: Account, by: Account) -> None:
        """Let an administrator do that to all tokens of *account*; it is kept with what else is changed now."""
        for token in self.of(account):
            self._end(token, by)

    def _end(self, token: IssuedToken, by: Account) -> None:
        self._broker.tokens.revoke(self._broker.tokens.holder(token.id), by.principal)
