"""All that the server knows of people, in one hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypha.accounts.account import Account
from hypha.accounts.accounts import Accounts
from hypha.accounts.passwords import Passwords
from hypha.accounts.shares import Shares
from hypha.accounts.tokens import PersonalTokens

if TYPE_CHECKING:
    from hypha.broker.broker import Broker
    from hypha.broker.records import Loaded

_SWEEP_SECONDS = 30.0


class People:
    """The accounts of one server, and what they have given out."""

    def __init__(self, broker: Broker, passwords: Passwords | None = None) -> None:
        self._broker = broker
        self.accounts = Accounts(broker, passwords)
        self.tokens = PersonalTokens(broker)
        self.shares = Shares(broker, self.accounts)
        self._next_sweep = 0.0  # trio time

    def restore(self, records: Loaded) -> None:
        """Take over what an earlier process has kept."""
        self.accounts.restore(records)
        self.shares.restore(records)

    async def remove(self, by: Account, account_id: str) -> Account:
        """Forget an account with all that it has given out, in one step, which is kept as a whole or not at all.

        Raises what :meth:`Accounts.removable` raises.
        """
        account = self.accounts.removable(by, account_id)
        self.tokens.end_all(account, by)
        self.shares.end_all(account)
        self.accounts.remove(account)
        # What the lists do not know is ended, too: a token whose record was lost, or that others made with one of the
        # account's. It is for ever, since tokens that a program asks for live as long as that asks; the id comes never
        # again, and there is one entry for each account that an administrator has removed by hand.
        self._broker.tokens.block(account.id, "removed")
        await self._broker.records.kept()
        return account

    def sweep(self, now: float) -> None:
        """Forget what is too old; seldom, however often it is called.

        *now*: trio time.
        """
        if now < self._next_sweep:
            return
        self._next_sweep = now + _SWEEP_SECONDS
        self.accounts.sweep()
        self.shares.sweep()
