"""Which tokens and which users were revoked. What they have issued, however indirectly, is revoked with them."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection
from typing import Any

from hypha.broker.access import Principal
from hypha.broker.records import Records
from hypha.config import Limits
from hypha.errors import LimitExceeded

#: The kinds of their records.
REVOKED, BLOCKED = "revoked", "blocked"


class Revocations:
    """The ids of revoked tokens, each until its token would have expired by itself, and blocked users.

    One is never forgotten earlier to make room: when there is none, revoking fails and says so, but for administrators
    of the server, and for tokens that a person has labelled, so that nobody who has got hold of one can make it stay
    good. A user, by id or e-mail address, is blocked until that is taken back: *blocked* tells when that was,
    in seconds since the epoch, and why. Both are kept in *records*, ids and no secrets.
    """

    def __init__(self, limits: Limits, records: Records | None = None) -> None:
        self._limits = limits
        self._records = records or Records()
        self._owners: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._ends: list[tuple[float, str]] = []
        self.blocked: dict[str, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, token: str, principal: Principal, until: float, person: str | None = None) -> None:
        """Revoke the token of that id until *until*, in seconds since the epoch. It counts against *principal*.

        *person*: the id of the user who has labelled it, against whom it counts then, and which never fails: they are
        bounded where they are made (:meth:`require_room_for`). Raises :class:`LimitExceeded`.
        """
        if token in self._owners:
            return
        if person is None and not principal.is_admin:
            self._require_room(principal)
        owner = principal.account if person is None else _labelled_by(person)
        self._records.put(REVOKED, token, [owner, until], firm=True)
        self._enter(token, owner, until)

    def require_room_for(self, person: str) -> None:
        """Raise :class:`LimitExceeded` when so many labelled tokens of a user are revoked that it makes no more."""
        limit = self._limits.revoked_tokens_per_principal
        if self._counts[_labelled_by(person)] >= limit:
            raise LimitExceeded(f"revoked_tokens_per_principal = {limit} tokens are revoked already; let them expire")

    def _require_room(self, principal: Principal) -> None:
        limit = self._limits.revoked_tokens_per_principal
        if self._counts[principal.account] >= limit:
            raise LimitExceeded(f"revoked_tokens_per_principal = {limit} tokens are revoked already; let them expire")
        # Whoever comes is somebody new without an account: together these leave room for others.
        limit, share = self._limits.revoked_tokens, 2 if principal.is_anonymous else 1
        if len(self._owners) * share >= limit:
            part = " / 2" if principal.is_anonymous else ""
            raise LimitExceeded(f"revoked_tokens{part} = {limit // share} tokens are revoked already")

    def restore(self, token: str, owner: str, until: float) -> None:
        """Enter one that an earlier process has kept, whatever the limits are now."""
        self._enter(token, owner, until)

    def _enter(self, token: str, owner: str, until: float) -> None:
        self._owners[token] = owner
        self._counts[owner] += 1
        heapq.heappush(self._ends, (until, token))

    def touch(self, tokens: Collection[str]) -> bool:
        """Whether one of *tokens* was revoked."""
        return not self._owners.keys().isdisjoint(tokens)

    def block(self, user: str, since: float, reason: str) -> None:
        """Block a user from now on. *since*: seconds since the epoch."""
        self.blocked[user] = {"since": since, "reason": reason}
        self._records.put(BLOCKED, user, self.blocked[user], firm=True)

    def unblock(self, user: str) -> bool:
        """Take that back. False when it was not blocked."""
        self._records.remove(BLOCKED, user, firm=True)
        return self.blocked.pop(user, None) is not None

    def is_blocked(self, names: Collection[str | None]) -> bool:
        """Whether a user that is known by one of *names* is blocked."""
        return not self.blocked.keys().isdisjoint(names)

    def forget(self, now: float) -> None:
        """Forget those whose time is over. *now*: seconds since the epoch."""
        while self._ends and self._ends[0][0] < now:
            token = heapq.heappop(self._ends)[1]
            self._records.remove(REVOKED, token)
            owner = self._owners.pop(token)
            self._counts[owner] -= 1
            if not self._counts[owner]:
                del self._counts[owner]


class Passed:
    """Until when time has passed for certain: the clock on the wall, as far as it runs no faster than time does.

    When that jumps ahead and back, a token that was revoked and looked expired meanwhile would be good again. What was
    missed, by a jump that was right or while the machine slept, is made up for by the next start.
    """

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def until(self, wall: float, now: float) -> float:
        """In seconds since the epoch. *wall*: what the clock says, in the same; *now*: trio time."""
        if self._last is not None:
            passed, then = self._last
            wall = min(wall, passed + now - then)
        self._last = wall, now
        return wall


def _labelled_by(person: str) -> str:
    """Against whom labelled tokens of a user count: apart from all others, and no user has such a name."""
    return f"*{person}"
