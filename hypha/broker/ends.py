"""Sessions that are over for good, so that their reconnection tokens are refused until they expire by themselves."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from hypha.broker.ledger import Ledger

_REMEMBERED = 10_000  # of each of the two kinds; of more, the oldest of its kind is forgotten
#: In front of the identity of who was expelled; no identity holds a colon.
_EXPELLED = "expelled:"


class Ends:
    """The identities of sessions that have ended, by themselves or not, each until *seconds* after that.

    Who says goodbye again and again does not push out those who were expelled: these are another table. *now* is trio
    time.
    """

    def __init__(self, ledger: Ledger, now: Callable[[], float], seconds: float) -> None:
        self._ledger = ledger
        self._now = now
        self._seconds = seconds
        self._left: OrderedDict[str, float] = OrderedDict()
        self._expelled: OrderedDict[str, float] = OrderedDict()

    def __contains__(self, identity: str) -> bool:
        return identity in self._left or _EXPELLED + identity in self._expelled

    def __len__(self) -> int:
        return len(self._left) + len(self._expelled)

    def add(self, identity: str, *, expelled: bool) -> None:
        """Remember an end. *expelled*: the client did not want it."""
        name = _EXPELLED + identity if expelled else identity
        table = self._table(name)
        table[name] = self._now() + self._seconds
        self._ledger.ended(name, self._seconds)
        while len(table) > _REMEMBERED:
            self._forget_oldest(table)

    def restore(self, kept: Mapping[str, float]) -> None:
        """Enter what an earlier process has kept, with its end in trio time, the first to expire first."""
        for name, until in kept.items():
            self._table(name)[name] = until

    def sweep(self) -> None:
        """Forget those whose tokens have expired."""
        now = self._now()
        for table in (self._left, self._expelled):
            while table and next(iter(table.values())) <= now:
                self._forget_oldest(table)

    def _table(self, name: str) -> OrderedDict[str, float]:
        return self._expelled if name.startswith(_EXPELLED) else self._left

    def _forget_oldest(self, table: OrderedDict[str, float]) -> None:
        name, _ = table.popitem(last=False)
        self._ledger.forget_end(name)
