"""Which tokens were issued, so that people can look at them and end one without having its text.

This is a list and no proof: what is forgotten here to make room is as good as before.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hypha.broker.access import Level, Principal
from hypha.broker.records import Records
from hypha.config import Limits

#: The kind of their records.
ISSUED = "issued"


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """One token. *holder*: the user that it proves. Times in seconds since the epoch."""

    id: str
    holder: Principal
    issued_at: float
    expires_at: float

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
        }

    def record(self) -> dict[str, Any]:
        """What is kept of it."""
        return {
            "id": self.id,
            "holder": asdict(self.holder),
            "issued_at": self.issued_at,
            "expires_at": self.expires_at,
        }


def issued_token(record: Mapping[str, Any]) -> IssuedToken:
    """The inverse of :meth:`IssuedToken.record`."""
    holder = dict(record["holder"])
    for name in ("roles", "tokens", "issuers"):
        holder[name] = tuple(holder[name])
    holder["grants"] = {name: Level(level) for name, level in holder["grants"].items()}
    holder["granted_by"] = {name: tuple(names) for name, names in holder["granted_by"].items()}
    return IssuedToken(record["id"], Principal(**holder), record["issued_at"], record["expires_at"])


class Issued:
    """The newest tokens of each user and of all, until they expire. Kept in *records*, as ids and no secrets."""

    def __init__(self, limits: Limits, records: Records | None = None) -> None:
        self._limits = limits
        self._records = records or Records()
        self._tokens: dict[str, IssuedToken] = {}
        self._by_account: dict[str, dict[str, None]] = {}
        #: Accounts by how many tokens they have, and how many those have that have the most.
        self._by_count: dict[int, dict[str, None]] = {}
        self._most = 0
        self._by_workspace: dict[str, dict[str, None]] = {}
        self._ends: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def of(self, workspace: str) -> Iterator[IssuedToken]:
        """The tokens that open *workspace*, the oldest first."""
        return (self._tokens[token_id] for token_id in self._by_workspace.get(workspace, ()))

    def get(self, token_id: str) -> IssuedToken | None:
        """The token of that id."""
        return self._tokens.get(token_id)

    def add(self, token: IssuedToken) -> None:
        """Remember a token; when there is no room, the oldest of its user is forgotten, or of who has the most."""
        own = self._by_account.get(token.holder.account, {})
        if len(own) >= self._limits.listed_tokens_per_principal:
            self.discard(next(iter(own)))
        elif len(self._tokens) >= self._limits.listed_tokens:
            largest = next(iter(self._by_count[self._most]))
            self.discard(next(iter(self._by_account[largest])))
        self._records.put(ISSUED, token.id, token.record())
        self.restore(token)

    def restore(self, token: IssuedToken) -> None:
        """Enter one that an earlier process has kept."""
        self._tokens[token.id] = token
        for index, key in self._places(token):
            index.setdefault(key, {})[token.id] = None
        self._count(token.holder.account, 1)
        heapq.heappush(self._ends, (token.expires_at, token.id))

    def discard(self, token_id: str) -> None:
        """Forget a token, if it is there."""
        token = self._tokens.pop(token_id, None)
        if token is None:
            return
        self._records.remove(ISSUED, token_id)
        for index, key in self._places(token):
            del index[key][token_id]
            if not index[key]:
                del index[key]
        self._count(token.holder.account, -1)
        # Those that were forgotten before they have expired.
        if len(self._ends) > 2 * len(self._tokens):
            self._ends = [(known.expires_at, known.id) for known in self._tokens.values()]
            heapq.heapify(self._ends)

    def _count(self, account: str, more: int) -> None:
        """*account* has one token *more*, or one less."""
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
        yield self._by_account, token.holder.account
        for workspace in token.holder.grants:
            yield self._by_workspace, workspace

    def forget(self, now: float) -> None:
        """Forget those that have expired. *now*: seconds since the epoch."""
        while self._ends and self._ends[0][0] < now:
            self.discard(heapq.heappop(self._ends)[1])
