"""Reading again what an earlier process has kept with :mod:`hypha.broker.ledger`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hypha.broker import ledger
from hypha.broker.issued import ISSUED, IssuedToken, issued_token
from hypha.broker.journal import Event
from hypha.broker.registration import Registration
from hypha.broker.registry import Registry
from hypha.broker.revocations import BLOCKED, REVOKED
from hypha.broker.suspended import Parked
from hypha.config import Limits
from hypha.wire.address import Address

_Left = list[tuple[str, Any]]


@dataclass(slots=True)
class Kept:
    """What was kept, with times in those of this process.

    *parked*: sessions of which each was connected when the server ended, or lost before; the first to expire first.
    *revoked*: token id -> owner and end in seconds since the epoch. *ended*: session identity -> end in trio time, the
    first to expire first. *blocked*: user -> since when and why. *quotas*: account -> quota. *issued*: the oldest
    first. *left*: of each kind what members have left with their workspaces, by name.
    """

    settings: _Left
    left: dict[str, _Left]
    parked: list[Parked]
    revoked: dict[str, tuple[str, float]]
    ended: dict[str, float]
    blocked: dict[str, dict[str, Any]]
    quotas: dict[str, dict[str, int]]
    issued: list[IssuedToken]
    youngest: int = -1

    def enter_workspaces(self, registry: Registry) -> None:
        """Make the workspaces, with their settings and what was left with them."""
        for name, settings in self.settings:
            ledger.apply_settings(registry.restore_workspace(name), settings)
        for name, bookmarks in self.left[ledger.BOOKMARKS]:
            registry.restore_workspace(name).bookmarks = bookmarks
        for name, variables in self.left[ledger.ENVIRONMENT]:
            registry.restore_workspace(name).environment = variables
        for name, info in self.left[ledger.TYPE]:
            room = registry.limits.service_types_bytes_per_workspace
            registry.restore_workspace(name.rpartition("/")[0]).service_types.add(info, room)
        for name, event in self.left[ledger.EVENT]:
            registry.restore_workspace(name.rpartition("/")[0]).journal.restore(Event(**event))


@dataclass(slots=True)
class _Session:
    entry: dict[str, Any]
    registrations: list[Registration] = field(default_factory=list)


def read(records: Iterable[tuple[str, str, Any]], wall: float, now: float, limits: Limits) -> Kept:
    """What *records* say. *wall*: seconds since the epoch now; *now*: trio time.

    Who was connected has the whole time to come back, from now on. What has expired meanwhile is for the sweeper.
    """
    by_kind: dict[str, _Left] = {}
    for kind, name, value in records:
        by_kind.setdefault(kind, []).append((name, value))
    sessions = {name: _Session(entry) for name, entry in by_kind.get(ledger.SESSION, ())}
    youngest = -1
    for _, (of, entry) in by_kind.get(ledger.SERVICE, ()):
        if of in sessions:
            sessions[of].registrations.append(Registration(**entry))
            youngest = max(youngest, entry["since"])
    parked = [_parked(session, now, now - wall, limits.session_grace) for session in sessions.values()]
    ended = {identity: until + now - wall for identity, until in by_kind.get(ledger.ENDED, ())}
    return Kept(
        by_kind.get(ledger.WORKSPACE, []),
        {kind: by_kind.get(kind, []) for kind in (ledger.BOOKMARKS, ledger.ENVIRONMENT, ledger.TYPE, ledger.EVENT)},
        sorted(parked, key=lambda item: item.until),
        {token: (owner, until) for token, (owner, until) in by_kind.get(REVOKED, ())},
        dict(sorted(ended.items(), key=lambda item: item[1])),
        dict(by_kind.get(BLOCKED, ())),
        dict(by_kind.get(ledger.QUOTA, ())),
        sorted(_issued(by_kind.get(ISSUED, ())), key=lambda token: token.issued_at),
        youngest,
    )


def _issued(kept: Iterable[tuple[str, Any]]) -> Iterable[IssuedToken]:
    return (issued_token(token_id, record) for token_id, record in kept)


def _parked(session: _Session, now: float, ahead: float, grace: float) -> Parked:
    """*ahead*: what is added to seconds since the epoch to have trio time."""
    entry = session.entry
    since = now if entry["since"] is None else min(now, entry["since"] + ahead)
    until = now + grace if entry["until"] is None else min(now + grace, entry["until"] + ahead)
    return Parked(
        Address(entry["workspace"], entry["client"]),
        entry["identity"],
        entry["principal"],
        tuple(session.registrations),
        since=since,
        until=until,
        subscriptions=frozenset(entry["subscriptions"]),
    )
