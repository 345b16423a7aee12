"""Links with which somebody makes an account, or gets another password: what waits to be accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hypha.accounts.account import Invitation, mark_of, new_secret
from hypha.errors import LimitExceeded, NotFound

if TYPE_CHECKING:
    from hypha.broker.broker import Broker
    from hypha.broker.records import Loaded

INVITATION = "invitation"


class Invitations:
    """The invitations of one server. *is_void*: whether something makes one worth nothing before its time."""

    def __init__(self, broker: Broker, is_void: Callable[[Invitation], bool]) -> None:
        self._broker = broker
        self._is_void = is_void
        #: By mark, the oldest first.
        self._waiting: dict[str, Invitation] = {}

    def restore(self, records: Loaded) -> None:
        """Take over what an earlier process has kept."""
        self._waiting = dict(sorted(records.each(INVITATION, Invitation.from_record), key=lambda item: item[1].until))

    def find(self, secret: str) -> Invitation:
        """What *secret* invites to. Raises :class:`NotFound` for what never was, is used up, or is too old."""
        found = self._waiting.get(mark_of(secret))
        if found is None or not self._is_good(found):
            raise NotFound("this link was used already, or is too old; ask for a new one")
        return found

    def good(self) -> Iterator[tuple[str, Invitation]]:
        """The marks and invitations that somebody can accept now, the oldest first."""
        return (item for item in self._waiting.items() if self._is_good(item[1]))

    def require_room(self) -> None:
        """Raise :class:`LimitExceeded` unless there may be one more."""
        self.sweep()
        limit = self._broker.limits.invitations
        if len(self._waiting) >= limit:
            raise LimitExceeded(f"invitations = {limit} wait to be accepted; withdraw some, or let them expire")

    def add(self, invitation: Invitation) -> str:
        """The secret of a new one."""
        secret = new_secret()
        self._waiting[mark_of(secret)] = invitation
        self._broker.records.put(INVITATION, mark_of(secret), invitation.to_record(), firm=True)
        return secret

    def drop(self, mark: str) -> None:
        """Let one be worth nothing."""
        self._waiting.pop(mark, None)
        self._broker.records.remove(INVITATION, mark, firm=True)

    def drop_all(self, wanted: Callable[[Invitation], bool]) -> None:
        """Do that to all that are *wanted*."""
        for mark in [mark for mark, item in self._waiting.items() if wanted(item)]:
            self.drop(mark)

    def sweep(self) -> None:
        """Forget what nobody can accept any more. Seldom: it looks at all."""
        self.drop_all(lambda item: not self._is_good(item))

    def _is_good(self, invitation: Invitation) -> bool:
        return invitation.until > self._broker.clock() and not self._is_void(invitation)
