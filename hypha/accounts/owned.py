"""Things that accounts have and that end by themselves: found by their account, and forgotten without a look at all."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar


class Thing(Protocol):
    """*account*: the id of whose it is. *until*: when it ends, in seconds since the epoch."""

    @property
    def account(self) -> str: ...
    @property
    def until(self) -> float: ...


T = TypeVar("T", bound=Thing)


class Owned(Generic[T]):
    """Things by what is kept of their secrets. What an account has is in the order in which it was added."""

    def __init__(self, things: Iterable[tuple[str, T]] = ()) -> None:
        self._things: dict[str, T] = {}
        self._by_account: dict[str, dict[str, None]] = {}
        self._ends: list[tuple[float, str]] = []
        for mark, thing in things:
            self.add(mark, thing)

    def get(self, mark: str) -> T | None:
        """The thing of that mark, also one that has ended and was not forgotten yet."""
        return self._things.get(mark)

    def of(self, account_id: str) -> Iterator[tuple[str, T]]:
        """The marks and things of an account."""
        return ((mark, self._things[mark]) for mark in self._by_account.get(account_id, ()))

    def count(self, account_id: str) -> int:
        """How many things an account has."""
        return len(self._by_account.get(account_id, ()))

    def add(self, mark: str, thing: T) -> None:
        """Enter a thing that is not there."""
        self._things[mark] = thing
        self._by_account.setdefault(thing.account, {})[mark] = None
        heapq.heappush(self._ends, (thing.until, mark))

    def discard(self, mark: str) -> None:
        """Forget a thing, if it is there."""
        thing = self._things.pop(mark, None)
        if thing is None:
            return
        own = self._by_account[thing.account]
        del own[mark]
        if not own:
            del self._by_account[thing.account]
        # Those that were forgotten before they have ended.
        if len(self._ends) > 2 * len(self._things):
            self._ends = [(item.until, mark) for mark, item in self._things.items()]
            heapq.heapify(self._ends)

    def ended(self, now: float) -> Iterator[str]:
        """The marks of those that have ended, each once, to be discarded. *now*: seconds since the epoch."""
        while self._ends and self._ends[0][0] <= now:
            mark = heapq.heappop(self._ends)[1]
            if mark in self._things:
                yield mark
