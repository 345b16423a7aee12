"""Reading again what an earlier process has kept with :mod:`hypha.broker.ledger`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from hypha.broker import ledger
from hypha.broker.issued import ISSUED, IssuedToken, issued_token
from hypha.broker.journal import Event
from hypha.broker.records import Loaded
from hypha.broker.registration import Registration
from hypha.broker.registry import Registry
from hypha.broker.revocations import BLOCKED, REVOKED
from hypha.broker.suspended import Parked
from hypha.config import Limits
from hypha.wire.address import Address

_REGISTRATION = Registration.__dataclass_fields__.keys()


@dataclass(slots=True)
class Kept:
    """What was kept, with times in those of this process.

    *parked*: sessions of which each was connected when the server ended, or lost before; the first to expire first.
    *revoked*: token id -> owner and end in seconds since the epoch. *ended*: session identity -> end in trio time, the
    first to expire first. *issued*: the oldest first. The others, by workspace or by the name of their record: what
    was set, and what was left.
    """

    settings: list[tuple[str, dict[str, Any]]]
    bookmarks: list[tuple[str, list[dict[str, Any]]]]
    environments: list[tuple[str, dict[str, str]]]
    types: list[tuple[str, dict[str, Any]]]
    events: list[tuple[str, Event]]
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
        for name, bookmarks in self.bookmarks:
            registry.restore_workspace(name).bookmarks = bookmarks
        for name, variables in self.environments:
            registry.restore_workspace(name).environment = variables
        for name, info in self.types:
            registry.restore_workspace(name.rpartition("/")[0]).service_types.restore(info)
        for name, event in self.events:
            registry.restore_workspace(name.rpartition("/")[0]).journal.restore(event)


def read(records: Loaded, wall: float, now: float, limits: Limits) -> Kept:
    """What *records* say. *wall*: seconds since the epoch now; *now*: trio time.

    Who was connected has the whole time to come back, from now on. What has expired meanwhile is for the sweeper.
    """
    each = records.each
    services: dict[str, list[Registration]] = {}
    for _, (owner, registration) in each(ledger.SERVICE, _service):
        services.setdefault(owner, []).append(registration)
    parked = each(ledger.SESSION, partial(_parked, services=services, now=now, ahead=now - wall, limits=limits))
    ended = [(identity, until + now - wall) for identity, until in each(ledger.ENDED, float)]
    return Kept(
        settings=each(ledger.WORKSPACE, dict),
        bookmarks=each(ledger.BOOKMARKS, list),
        environments=each(ledger.ENVIRONMENT, dict),
        types=each(ledger.TYPE, dict),
        events=each(ledger.EVENT, lambda value: Event(**value)),
        parked=sorted((item for _, item in parked), key=lambda item: item.until),
        revoked=dict(each(REVOKED, lambda value: (str(value[0]), float(value[1])))),
        ended=dict(sorted(ended, key=lambda item: item[1])),
        blocked=dict(each(BLOCKED, dict)),
        quotas=dict(each(ledger.QUOTA, dict)),
        issued=sorted((token for _, token in each(ISSUED, issued_token)), key=lambda token: token.issued_at),
        youngest=max((item.since or 0 for own in services.values() for item in own), default=-1),
    )


def _service(value: Any) -> tuple[str, Registration]:
    owner, entry = value
    if not entry.keys() <= _REGISTRATION:
        entry = {key: item for key, item in entry.items() if key in _REGISTRATION}
    return owner, Registration(**entry)


def _parked(
    entry: dict[str, Any], *, services: dict[str, list[Registration]], now: float, ahead: float, limits: Limits
) -> Parked:
    """*ahead*: what is added to seconds since the epoch to have trio time."""
    since = now if entry["since"] is None else min(now, entry["since"] + ahead)
    latest = now + limits.session_grace
    until = latest if entry["until"] is None else min(latest, entry["until"] + ahead)
    address = Address(entry["workspace"], entry["client"])
    return Parked(
        address,
        entry["identity"],
        entry["principal"],
        tuple(services.get(str(address), ())),
        since=since,
        until=until,
        subscriptions=frozenset(entry["subscriptions"]),
    )
