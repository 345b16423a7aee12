"""Which tokens were revoked. What a revoked token has issued, however indirectly, is revoked with it."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection

from hypha.broker.records import Records
from hypha.config import Limits
from hypha.errors import LimitExceeded

#: The kind of their records.
REVOKED = "revoked"


class Revocations:
    """The ids of revoked tokens, each until its token would have expired by itself.

    One is never forgotten earlier to make room: when there is none, revoking fails and says so. They are kept in
    *records*, ids and no secrets.
    """

    def __init__(self, limits: Limits, records: Records | None = None) -> None:
        self._limits = limits
        self._records = records or Records()
        self._owners: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._ends: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, token: str, owner: str, until: float) -> None:
        """Revoke the token of that id until *until*, in seconds since the epoch. It counts against *owner*.

        Raises :class:`LimitExceeded`.
        """
        if token in self._owners:
            return
        if self._counts[owner] >= self._limits.revoked_tokens_per_principal:
            limit = self._limits.revoked_tokens_per_principal
            raise LimitExceeded(f"revoked_tokens_per_principal = {limit} tokens are revoked already; let them expire")
        if len(self._owners) >= self._limits.revoked_tokens:
            raise LimitExceeded(f"revoked_tokens = {self._limits.revoked_tokens} tokens are revoked already")
        self._records.put(REVOKED, token, [owner, until], firm=True)
        self._enter(token, owner, until)

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

    def forget(self, now: float) -> None:
        """Forget those whose time is over. *now*: seconds since the epoch."""
        while self._ends and self._ends[0][0] < now:
            token = heapq.heappop(self._ends)[1]
            self._records.remove(REVOKED, token)
            owner = self._owners.pop(token)
            self._counts[owner] -= 1
            if not self._counts[owner]:
                del self._counts[owner]
