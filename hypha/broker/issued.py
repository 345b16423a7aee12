"""Which tokens were issued, so that people can look at them and end one without having its text.

This is a list and no proof: what is forgotten here to make room is as good as before. Tokens that a person has labelled
are not forgotten; how many there are is for :mod:`hypha.accounts` to bound.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hypha.broker.access import Level, Principal
from hypha.broker.records import Records
from hypha.config import Limits

#: The kind of their records.
ISSUED = "issued"


@dataclass(slots=True)
class IssuedToken:
    """One token. *holder*: the user that it proves. *label*: what it is for, in words of the person who has made it.

    *last_used*: when somebody came in with it, or with one that was issued through it. Times in seconds since the
    epoch.
    """

    id: str
    holder: Principal
    issued_at: float
    expires_at: float
    label: str | None = None
    last_used: float | None = None

    @property
    def chain(self) -> tuple[str, ...]:
        """Its own id and those of the tokens through which it was issued."""
        return (*self.holder.tokens, self.id)

    def describe(self) -> dict[str, Any]:
        """What people are told of it."""
        levels = {name: level.name.lower() for name, level in self.holder.grants.items() if level is not Level.NONE}
        return {
            "id": self.id,
            "user": self.holder.id,
            "issued_by": self.holder.issuers[-1] if self.holder.issuers else self.holder.id,
            "permissions": levels,
            "client_id": self.holder.client,
            "issued_at": self.issued_at,
            "expires_at": self.expires_at,
            "label": self.label,
            "last_used": self.last_used,
        }

    def record(self) -> dict[str, Any]:
        """What is kept of it."""
        return {
            "id": self.id,
            "holder": asdict(self.holder),
            "issued_at": self.issued_at,
            "expires_at": self.expires_at,
            "label": self.label,
            "last_used": self.last_used,
        }


def issued_token(record: Mapping[str, Any]) -> IssuedToken:
    """The inverse of :meth:`IssuedToken.record`."""
    holder = dict(record["holder"])
    for name in ("roles", "tokens", "issuers"):
        holder[name] = tuple(holder[name])
    holder["grants"] = {name: Level(level) for name, level in holder["grants"].items()}
    holder["granted_by"] = {name: tuple(names) for name, names in holder["granted_by"].items()}
    told = (record.get(name) for name in ("label", "last_used"))
    return IssuedToken(record["id"], Principal(**holder), record["issued_at"], record["expires_at"], *told)


class Issued:
    """The newest tokens of each user and of all, and those with labels, until they expire.

    Kept in *records*, as ids and no secrets.
    """

    def __init__(self, limits: Limits, records: Records | None = None) -> None:
        self._limits = limits
        self._records = records or Records()
        self._tokens: dict[str, IssuedToken] = {}
        #: Those without labels, which make room for each other.
        self._by_account: dict[str, dict[str, None]] = {}
        self._without_label = 0
        #: Accounts by how many tokens they have, and how many those have that have the most.
        self._by_count: dict[int, dict[str, None]] = {}
        self._most = 0
        #: Those with labels, by the user whom all that they prove comes from.
        self._by_origin: dict[str, dict[str, None]] = {}
        self._by_workspace: dict[str, dict[str, None]] = {}
        #: Those whose use is not kept yet.
        self._used: set[str] = set()
        self._ends: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def of(self, workspace: str) -> Iterator[IssuedToken]:
        """The tokens that open *workspace*, the oldest first."""
        return (self._tokens[token_id] for token_id in self._by_workspace.get(workspace, ()))

    def labelled(self, user_id: str) -> Iterator[IssuedToken]:
        """The tokens to which the user of that id has given labels, the oldest first."""
        return (self._tokens[token_id] for token_id in self._by_origin.get(user_id, ()))

    def get(self, token_id: str) -> IssuedToken | None:
        """The token of that id."""
        return self._tokens.get(token_id)

    def add(self, token: IssuedToken) -> None:
        """Remember a token; when there is no room, the oldest of its user is forgotten, or of who has the most."""
        if token.label is None:
            self._make_room(token.holder.account)
        self._records.put(ISSUED, token.id, token.record(), firm=token.label is not None)
        self.restore(token)

    def _make_room(self, account: str) -> None:
        own = self._by_account.get(account, {})
        if len(own) >= self._limits.listed_tokens_per_principal:
            self.discard(next(iter(own)))
        elif self._without_label >= self._limits.listed_tokens:
            largest = next(iter(self._by_count[self._most]))
            self.discard(next(iter(self._by_account[largest])))

    def restore(self, token: IssuedToken) -> None:
        """Enter one that an earlier process has kept."""
        self._tokens[token.id] = token
        for index, key in self._places(token):
            index.setdefault(key, {})[token.id] = None
        if token.label is None:
            self._count(token.holder.account, 1)
        heapq.heappush(self._ends, (token.expires_at, token.id))

    def discard(self, token_id: str) -> None:
        """Forget a token, if it is there."""
        token = self._tokens.pop(token_id, None)
        if token is None:
            return
        self._used.discard(token_id)
        self._records.remove(ISSUED, token_id)
        for index, key in self._places(token):
            del index[key][token_id]
            if not index[key]:
                del index[key]
        if token.label is None:
            self._count(token.holder.account, -1)
        # Those that were forgotten before they have expired.
        if len(self._ends) > 2 * len(self._tokens):
            self._ends = [(known.expires_at, known.id) for known in self._tokens.values()]
            heapq.heapify(self._ends)

    def _count(self, account: str, more: int) -> None:
        """*account* has one token *more*, or one less."""
        self._without_label += more
        count = len(self._by_account.get(account, ()))
        same = self._by_count.get(count - more, {})
        same.pop(account, None)
        if not same:
            self._by_count.pop(count - more, None)
        if count:
            self._by_count.setdefault(count, {})[account] = None
        if count > self._most or self._most not in self._by_count:
            self._most = count

    def _places(self, token: IssuedToken) -> Iterator[tuple[dict[str, dict[str, None]], str]]:
        if token.label is None:
            yield self._by_account, token.holder.account
        else:
            yield self._by_origin, token.holder.origin
        for workspace in token.holder.grants:
            yield self._by_workspace, workspace

    def touch(self, ids: Collection[str], now: float) -> None:
        """Somebody came in with a token, *ids* being its own id and those that it was issued through."""
        for token in filter(None, map(self._tokens.get, ids)):
            first, token.last_used = token.last_used is None, now
            if first and token.label is not None:  # that it was never used must not be told to a person by mistake
                self._records.put(ISSUED, token.id, token.record())
            else:
                self._used.add(token.id)

    def write_down(self) -> None:
        """Keep when tokens were used last. Seldom, for they are used all the time."""
        for token_id in self._used:
            self._records.put(ISSUED, token_id, self._tokens[token_id].record())
        self._used.clear()

    def forget(self, now: float) -> None:
        """Forget those that have expired. *now*: seconds since the epoch."""
        while self._ends and self._ends[0][0] < now:
            self.discard(heapq.heappop(self._ends)[1])
