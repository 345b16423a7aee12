"""Sessions that were lost and may come back."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypha.broker.access import Principal
from hypha.broker.registration import Registration
from hypha.config import Limits
from hypha.wire.address import Address


@dataclass(frozen=True, slots=True, eq=False)
class Parked:
    """A suspended session: registrations as data, for as long as it may come back (``decisions.md`` 12).

    *principal*: None when it was lost by an earlier process, which keeps no more than the id.
    """

    address: Address
    identity: str
    principal_id: str
    registrations: tuple[Registration, ...]
    since: float
    until: float
    subscriptions: frozenset[str] = frozenset()
    principal: Principal | None = None


class Suspended:
    """All parked sessions, the oldest first, so that none of the work grows with their number."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._all: dict[Parked, None] = {}
        self._by_principal: dict[str, dict[Parked, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, parked: Parked) -> list[Parked]:
        """Enter *parked*. Returns those that there is no room for any more."""
        own = self._by_principal.setdefault(parked.principal_id, {})
        self._all[parked] = own[parked] = None
        if len(own) > self._limits.suspended_per_principal:
            return [next(iter(own))]
        if len(self._all) > self._limits.suspended_sessions:
            return [next(iter(self._all))]
        return []

    def discard(self, parked: Parked) -> None:
        """Take *parked* out, if it is in."""
        if parked in self._all:
            del self._all[parked]
            own = self._by_principal[parked.principal_id]
            del own[parked]
            if not own:
                del self._by_principal[parked.principal_id]

    def expired(self, now: float) -> list[Parked]:
        """Those whose time is over: all wait equally long, so they are the first ones."""
        return list(itertools.takewhile(lambda parked: parked.until <= now, self._all))
