"""What of workspaces and sessions outlives the process: told here wherever it changes, read again at the next start.

Times are kept in seconds since the epoch, because trio's clock begins anew with each process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hypha.broker.access import Principal
from hypha.broker.journal import Event
from hypha.broker.records import Records
from hypha.broker.registration import Registration, registration_of
from hypha.broker.session import PeerSession, Service
from hypha.broker.suspended import Parked
from hypha.broker.tokens import lives_with_a_program
from hypha.wire.address import Address

if TYPE_CHECKING:
    from hypha.broker.registry import Workspace

WORKSPACE, BOOKMARKS, ENVIRONMENT, TYPE, EVENT = "workspace", "bookmarks", "environment", "service type", "event"
SESSION, SERVICE, ENDED, QUOTA = "session", "service", "ended", "quota"

#: Fields of a workspace that are no settings: its name, who is there now, and what has records of its own.
_NO_SETTINGS = frozenset(
    {"name", "own_services", "members", "parked", "service_types", "journal", "environment", "bookmarks", "idle_since"}
)

_EVENT_DIGITS = 12  # so that the names of events are in their order


class Ledger:
    """Writes down what has changed. Nothing here waits.

    *now* is trio time, *clock* seconds since the epoch.
    """

    def __init__(self, records: Records, now: Callable[[], float], clock: Callable[[], float]) -> None:
        self.records = records
        self._now = now
        self._clock = clock

    # --- workspaces -------------------------------------------------------------------------------------------

    def workspace(self, workspace: Workspace) -> None:
        """*workspace* is new, or its settings may have changed.

        One that nobody has set anything of is the own one of a user who came without an account, and lives as long as
        that: it is kept, but nobody waits for the disk.
        """
        settings = settings_of(workspace)
        is_plain = settings == settings_of(type(workspace)(workspace.name))
        self.records.put(WORKSPACE, workspace.name, settings, firm=not is_plain)

    def bookmarks(self, workspace: Workspace) -> None:
        """The bookmarks have changed."""
        self.records.put(BOOKMARKS, workspace.name, workspace.bookmarks, firm=True)

    def environment(self, workspace: Workspace) -> None:
        """The variables have changed."""
        self.records.put(ENVIRONMENT, workspace.name, workspace.environment, firm=True)

    def service_type(self, workspace: Workspace, info: dict[str, Any]) -> None:
        """A service type was entered."""
        self.records.put(TYPE, f"{workspace.name}/{info['id']}", info, firm=True)

    def event(self, workspace: Workspace, event: Event, forgotten: Iterable[Event]) -> None:
        """An event was logged, and older ones were *forgotten* for it."""
        self.records.put(EVENT, _event_name(workspace, event), asdict(event))
        for old in forgotten:
            self.records.remove(EVENT, _event_name(workspace, old))

    def forget_workspace(self, workspace: Workspace) -> None:
        """*workspace* is there no more."""
        for kind in (WORKSPACE, BOOKMARKS, ENVIRONMENT):
            self.records.remove(kind, workspace.name, firm=workspace.creator is not None)
        for info in workspace.service_types:
            self.records.remove(TYPE, f"{workspace.name}/{info['id']}")
        for event in workspace.journal:
            self.records.remove(EVENT, _event_name(workspace, event))

    def quota(self, account: str, quota: dict[str, int]) -> None:
        """The quota of a user has changed."""
        if quota:
            self.records.put(QUOTA, account, quota, firm=True)
        else:
            self.records.remove(QUOTA, account, firm=True)

    # --- sessions ---------------------------------------------------------------------------------------------

    def session(self, session: PeerSession) -> None:
        """*session* is connected, and its services or subscriptions may have changed.

        Who has neither needs no record, and a program of this server's own is not waited for: its token ends with it.
        """
        if lives_with_a_program(session.principal):
            return
        if session.services or session.subscriptions:
            self._put_session(session.address, session.identity, session.principal, session.subscriptions)
        else:
            self.records.remove(SESSION, session.name)

    def service(self, session: PeerSession, service: Service) -> None:
        """*session* offers *service*, anew or in another form."""
        if not lives_with_a_program(session.principal):
            self.records.put(SERVICE, f"{session.name}:{service.id}", [session.name, _entry(registration_of(service))])

    def forget_service(self, session: PeerSession, service_id: str) -> None:
        """*session* does not offer a service any more."""
        self.records.remove(SERVICE, f"{session.name}:{service_id}")

    def parked(self, parked: Parked) -> None:
        """The connection of a session was lost; its services are kept as they are."""
        name = str(parked.address)
        if (SESSION, name) in self.records:
            ahead = self._clock() - self._now()
            self._put_session(
                parked.address,
                parked.identity,
                parked.principal_id,
                parked.subscriptions,
                since=parked.since + ahead,
                until=parked.until + ahead,
            )

    def forget_session(self, address: Address, services: Iterable[str]) -> None:
        """A session with the *services* of those ids is over for good."""
        self.records.remove(SESSION, str(address))
        for service_id in services:
            self.records.remove(SERVICE, f"{address}:{service_id}")

    def ended(self, identity: str, seconds: float) -> None:
        """Nobody may come back as the session *identity*, which would be possible for *seconds*."""
        self.records.put(ENDED, identity, self._clock() + seconds)

    def forget_end(self, identity: str) -> None:
        """The tokens of that session have expired by themselves."""
        self.records.remove(ENDED, identity)

    def _put_session(
        self,
        address: Address,
        identity: str,
        principal: Principal | str,
        subscriptions: Iterable[str],
        since: float | None = None,
        until: float | None = None,
    ) -> None:
        entry = {
            "workspace": address.workspace,
            "client": address.client,
            "identity": identity,
            "principal": principal if isinstance(principal, str) else principal.id,
            "subscriptions": sorted(subscriptions),
            "since": since,
            "until": until,
        }
        self.records.put(SESSION, str(address), entry)


def settings_of(workspace: Workspace) -> dict[str, Any]:
    """What somebody has set, by name: every field that is none of those in ``_NO_SETTINGS``."""
    names = (name for name in workspace.__dataclass_fields__ if name not in _NO_SETTINGS)
    return {name: getattr(workspace, name) for name in names}


def apply_settings(workspace: Workspace, settings: dict[str, Any]) -> None:
    """The inverse of :func:`settings_of`. What this version does not know is passed over."""
    for name, value in settings.items():
        if name in workspace.__dataclass_fields__ and name not in _NO_SETTINGS:
            setattr(workspace, name, value)


def _entry(registration: Registration) -> dict[str, Any]:
    return {
        "id": registration.id,
        "name": registration.name,
        "type": registration.type,
        "config": registration.config,
        "description": registration.description,
        "since": registration.since,
        "size": registration.size,
        "docs": registration.docs,
        "app_id": registration.app_id,
        "schema": registration.schema,
    }


def _event_name(workspace: Workspace, event: Event) -> str:
    return f"{workspace.name}/{event.number:0{_EVENT_DIGITS}}"
