"""Workspaces, the sessions in them and their services, by name. Typed memory, one source of truth."""

from __future__ import annotations

import difflib
import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from hypha.broker.access import Action, Principal, may
from hypha.broker.events import publish
from hypha.broker.info import service_info
from hypha.broker.journal import Journal
from hypha.broker.ledger import Ledger
from hypha.broker.quotas import ceiling
from hypha.broker.records import Records
from hypha.broker.registration import (
    Registration,
    authorized_workspaces,
    registrations,
    require_within,
    visibility,
)
from hypha.broker.service_types import ServiceTypes
from hypha.broker.session import Offer, PeerSession, Service, Session, gone_text
from hypha.broker.suspended import Parked
from hypha.config import RESERVED_NAMES, Limits
from hypha.errors import Conflict, InvalidArgument, LimitExceeded, PeerGone
from hypha.wire.address import PUBLIC_WORKSPACE, Address, check_name

_WORKSPACE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~|-]*")
_LOOKED_AT_ONCE = 100  # services: a fraction of a millisecond
_LISTED_BYTES = 200  # of a list, for each service beside its description: ids and names of fields
_NEAR_NAMES = 100
_NEAR_LENGTH = 40  # characters; comparing takes the product of both lengths, and nobody mistypes longer names


@dataclass(slots=True, eq=False)
class Workspace:
    """A realm: its members' clients call each other freely, everybody else needs a grant. Data, not a task.

    *members*: the clients connected now, by client id. *parked*: those that were lost and may come back.
    *own_services*: what the server itself offers here, by service id.
    """

    name: str
    #: Tells it from others that had its name before; empty for those that nobody else can have made.
    identity: str = ""
    owners: list[str] = field(default_factory=list)
    allow_list: list[str] = field(default_factory=list)
    deny_list: list[str] = field(default_factory=list)
    #: The level of others, by user id or e-mail address: ``read``, ``read_write`` or ``admin``.
    permissions: dict[str, str] = field(default_factory=dict)
    #: What an administrator of the server has set in the place of limits (:mod:`hypha.broker.quotas`).
    quota: dict[str, int] = field(default_factory=dict)
    visibility: str = "protected"
    description: str | None = None
    persistent: bool = False
    #: Whose quota it counts against, whoever owns it later; None for a user's own workspace.
    creator: str | None = None
    #: Whether somebody without an account has made it, or has given it owners, so that it stays when that one leaves.
    of_stranger: bool = False
    own_services: dict[str, Service] = field(default_factory=dict)
    members: dict[str, PeerSession] = field(default_factory=dict)
    parked: dict[str, Parked] = field(default_factory=dict)
    #: What its members have left with it. Secrets among the variables: they are not shown.
    service_types: ServiceTypes = field(default_factory=ServiceTypes, repr=False)
    journal: Journal = field(default_factory=Journal, repr=False)
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    bookmarks: list[dict[str, Any]] = field(default_factory=list, repr=False)
    #: trio time since which nobody is connected and nobody may come back; None while somebody is.
    idle_since: float | None = None

    def describe(self) -> dict[str, Any]:
        """The WorkspaceInfo map (``protocol.md`` 5.2)."""
        return {
            "name": self.name,
            "id": self.name,
            "description": self.description,
            "persistent": self.persistent,
            "owners": list(self.owners),
            "allow_list": list(self.allow_list),
            "deny_list": list(self.deny_list),
            "permissions": dict(self.permissions),
            "quota": dict(self.quota),
            "visibility": self.visibility,
            "read_only": False,
            "config": {"bookmarks": self.bookmarks},
        }

    def services(self) -> Iterator[Service]:
        """Every service that is offered here now."""
        offered = (member.services.values() for member in self.members.values())
        return itertools.chain(self.own_services.values(), *offered)


class Registry:
    """All workspaces of one server. *reserved* are further names that no workspace may take (static mounts)."""

    def __init__(self, limits: Limits, reserved: Iterable[str] = (), ledger: Ledger | None = None) -> None:
        self.limits = limits
        #: Is told what must outlive the process.
        self.ledger = ledger or Ledger(Records(), trio.current_time, time.time)
        self.workspaces: dict[str, Workspace] = {}
        #: The clients connected now, of all workspaces, by ``workspace/client``.
        self.peers: dict[str, PeerSession] = {}
        self._reserved = RESERVED_NAMES | frozenset(reserved)
        self._by_service_id: dict[str, dict[Service, None]] = {}
        self._by_principal: dict[str, dict[PeerSession, None]] = {}
        self._by_account: Counter[str] = Counter()
        self._by_creator: dict[str, set[Workspace]] = {}
        self._of_strangers: set[Workspace] = set()
        self._order = itertools.count()
        self.workspaces[PUBLIC_WORKSPACE] = Workspace(PUBLIC_WORKSPACE, visibility="public", persistent=True)

    # --- workspaces -------------------------------------------------------------------------------------------

    def create_workspace(self, name: object, *, owners: Iterable[str] = (), persistent: bool = False) -> Workspace:
        """Add a workspace. Raises :class:`Conflict` when it exists, :class:`InvalidArgument` for a bad name."""
        checked = check_name("workspace name", name)
        if not _WORKSPACE_NAME.fullmatch(checked):
            raise InvalidArgument(f"workspace name {checked!r} may hold only letters, digits and . _ ~ | -")
        if checked in self._reserved:
            raise Conflict(f"workspace name {checked!r} is reserved; choose another")
        if checked in self.workspaces:
            raise Conflict(f"Workspace {checked} already exists.")
        workspace = self.workspaces[checked] = Workspace(checked, owners=list(owners), persistent=persistent)
        return workspace

    def restore_workspace(self, name: str) -> Workspace:
        """The workspace of that name, which there was before a restart, made again if need be.

        It may have a name that is reserved by now: a mount that was added hides it, and takes nothing away.
        """
        workspace = self.workspaces.get(name)
        if workspace is None:
            workspace = self.workspaces[name] = Workspace(name)
        return workspace

    def drop_if_unused(self, workspace: Workspace) -> None:
        """Remove a workspace that nobody is in, nobody may return to and nobody asked to keep.

        ``public`` stays, whatever was set: the server itself offers services there.
        """
        unused = not (workspace.members or workspace.parked or workspace.persistent)
        if workspace.name == PUBLIC_WORKSPACE:
            return
        if unused and self.workspaces.pop(workspace.name, None) is not None:
            self.ledger.forget_workspace(workspace)
            self._of_strangers.discard(workspace)
            created = self._by_creator.get(workspace.creator or "", set())
            created.discard(workspace)
            if not created:
                self._by_creator.pop(workspace.creator or "", None)

    def count(self, workspace: Workspace) -> None:
        """Count *workspace*, of which it is known now who has made it. Does nothing when it is counted already."""
        if workspace.creator is not None:
            self._by_creator.setdefault(workspace.creator, set()).add(workspace)
        if workspace.of_stranger:
            self._of_strangers.add(workspace)

    def created_by(self, account: str) -> Collection[Workspace]:
        """The workspaces that count against *account*."""
        return self._by_creator.get(account, set())

    def make_room_for_stranger(self) -> None:
        """Forget the workspace that nobody has used for longest, when strangers have too many.

        Raises :class:`LimitExceeded` when all are used.
        """
        limit = self.limits.anonymous_workspaces
        if len(self._of_strangers) < limit:
            return
        of_strangers = [place for place in self._of_strangers if not place.persistent]
        if len(of_strangers) < limit:
            return
        idle = [(place.idle_since, place.name) for place in of_strangers if place.idle_since is not None]
        if not idle:
            raise LimitExceeded(f"anonymous_workspaces = {limit} workspaces of users without an account are used now")
        self.drop_if_unused(self.workspaces[min(idle)[1]])

    # --- sessions ---------------------------------------------------------------------------------------------

    def find(self, address: Address) -> PeerSession | None:
        """The client connected at *address* now."""
        return self.peers.get(str(address))

    def add(self, session: PeerSession) -> None:
        """Enter a session into its workspace, which must exist and have no other under its id."""
        workspace = self.workspaces[session.address.workspace]
        if session.address.client in workspace.members:
            raise Conflict(f"client id {session.address.client!r} is connected already")
        limits = self.limits
        most, name = ceiling(workspace.quota, "clients", limits.sessions_per_workspace, "sessions_per_workspace")
        if len(workspace.members) >= most:
            raise LimitExceeded(f"{name} = {most} are connected already")
        workspace.members[session.address.client] = self.peers[session.name] = session
        workspace.idle_since = None
        self._by_principal.setdefault(session.principal.id, {})[session] = None
        self._by_account[session.principal.account] += 1

    def remove(self, session: PeerSession) -> None:
        """Take a session and its services out. Does nothing when another generation has its place."""
        for service in session.services.values():
            self._unlist(service)
        session.services.clear()
        workspace = self.workspaces.get(session.address.workspace)
        if workspace is not None and workspace.members.get(session.address.client) is session:
            del workspace.members[session.address.client], self.peers[session.name]
            same_principal = self._by_principal[session.principal.id]
            del same_principal[session]
            if not same_principal:
                del self._by_principal[session.principal.id]
            self._by_account[session.principal.account] -= 1
            if not self._by_account[session.principal.account]:
                del self._by_account[session.principal.account]

    def sessions(self) -> Iterator[PeerSession]:
        """Every client connected now."""
        return itertools.chain.from_iterable(workspace.members.values() for workspace in self.workspaces.values())

    def sessions_of(self, principal_id: str) -> Collection[PeerSession]:
        """The clients of one principal that are connected now."""
        return self._by_principal.get(principal_id, {}).keys()

    def connected(self, account: str) -> int:
        """How many clients are connected now that count against *account*."""
        return self._by_account[account]

    # --- services ---------------------------------------------------------------------------------------------

    def offer(self, server: Session, workspace: Workspace, entry: Registration) -> Service:
        """Enter a service of the server's own. Nobody else can offer one of its id in that workspace."""
        service = self._service(server, workspace.name, entry, None)
        workspace.own_services[service.id] = service
        self._by_service_id.setdefault(service.id, {})[service] = None
        return service

    def announce(self, session: PeerSession, registrations: Iterable[Registration], *, quietly: bool = False) -> None:
        """Replace the services of *session* by *registrations* in one step; kept ones keep their age.

        Hidden ones are left out. Those who subscribed to it hear of what has changed, unless *quietly*. Raises
        :class:`PeerGone` for a session that is over: nobody would take its services out again,
        :class:`LimitExceeded` for more than is kept for it and sent in lists, and :class:`Conflict` for an id of the
        server's own.
        """
        if not session.open:
            raise PeerGone(gone_text(session.address))
        entries = {entry.id: entry for entry in registrations if not entry.is_hidden}
        self._require_free(session, entries)
        require_within(self.limits, entries.values())
        before = session.services
        home = session.address.workspace
        for service in before.values():
            self._unlist(service)
        session.services = {
            name: self._service(session, home, entry, before.get(name)) for name, entry in entries.items()
        }
        session.offer = _most_open(home, session.services.values())
        for service in session.services.values():
            self._by_service_id.setdefault(service.id, {})[service] = None
        self._keep(session, before)
        if not quietly:
            self._tell_changes(session, before)

    def _keep(self, session: PeerSession, before: Iterable[str] = ()) -> None:
        for service in session.services.values():
            self.ledger.service(session, service)
        for service_id in before:
            if service_id not in session.services:
                self.ledger.forget_service(session, service_id)
        self.ledger.session(session)

    def register(self, session: PeerSession, entry: Registration) -> Service:
        """Add one service, or replace the one of its id, which passes its age on. Raises as :meth:`announce` does.

        Raises :class:`Conflict` for a singleton that another client offers.
        """
        if not session.open:
            raise PeerGone(gone_text(session.address))
        self._require_free(session, [entry.id])
        before = session.services.get(entry.id)
        others = [other for other in registrations(session) if other.id != entry.id]
        require_within(self.limits, [*others, entry])
        if before is None:
            self.require_room(session, [*session.services, entry.id])
            self._require_singleton(session, entry)
        else:
            self._unlist(before)
        service = session.services[entry.id] = self._service(session, session.address.workspace, entry, before)
        session.offer = _most_open(session.address.workspace, session.services.values())
        self._by_service_id.setdefault(service.id, {})[service] = None
        self.ledger.service(session, service)
        self.ledger.session(session)
        kind = "service_added" if before is None else "service_updated"
        publish(self.workspaces[service.workspace], kind, partial(service_info, service))
        return service

    def unregister(self, session: PeerSession, service_id: str) -> bool:
        """Take one service out. False when there is none of that id."""
        service = session.services.pop(service_id, None)
        if service is None:
            return False
        self._unlist(service)
        self.ledger.forget_service(session, service_id)
        self.ledger.session(session)
        session.offer = _most_open(session.address.workspace, session.services.values())
        publish(self.workspaces[service.workspace], "service_removed", partial(service_info, service))
        return True

    def _require_free(self, session: PeerSession, ids: Iterable[str]) -> None:
        home = self.workspaces[session.address.workspace]
        for service_id in ids:
            if service_id in home.own_services:
                raise Conflict(f"service id {service_id!r} in workspace {home.name!r} is the server's own")

    def require_room(self, session: PeerSession, ids: Iterable[str]) -> None:
        """Raise :class:`LimitExceeded` when the workspace has no room for *session* to offer just *ids*.

        What comes back after a lost connection is not asked: it was there before.
        """
        home, limits = self.workspaces[session.address.workspace], self.limits
        most, name = ceiling(home.quota, "services", limits.services_per_workspace, "services_per_workspace")
        wanted = set(ids)
        others = sum(len(member.services) for member in home.members.values() if member is not session)
        if len(wanted) > len(session.services) and others + len(wanted) > most:
            raise LimitExceeded(f"{name} = {most} services are offered in the workspace already")

    def _require_singleton(self, session: PeerSession, entry: Registration) -> None:
        for other in self.named(entry.id):
            same_place = other.workspace == session.address.workspace and other.session is not session
            if same_place and (entry.config.get("singleton") is True or other.config.get("singleton") is True):
                raise Conflict(f"A singleton service with the same name ({entry.id}) is offered by {other.client}")

    def _tell_changes(self, session: PeerSession, before: dict[str, Service]) -> None:
        workspace = self.workspaces[session.address.workspace]
        for name, service in before.items():
            if name not in session.services:
                publish(workspace, "service_removed", partial(service_info, service))
        for name, service in session.services.items():
            old = before.get(name)
            if old is None:
                publish(workspace, "service_added", partial(service_info, service))
            elif service_info(old) != service_info(service):
                publish(workspace, "service_updated", partial(service_info, service))

    def _service(self, session: Session, workspace: str, entry: Registration, before: Service | None) -> Service:
        since = entry.since if before is None else before.since
        return Service(
            workspace=workspace,
            client=session.address.client,
            id=entry.id,
            name=entry.name,
            type=entry.type,
            config={**entry.config, "workspace": workspace},
            description=entry.description,
            visibility=visibility(entry.config),
            authorized_workspaces=authorized_workspaces(entry.config),
            since=next(self._order) if since is None else since,
            size=entry.size,
            session=session,
            docs=entry.docs,
            app_id=entry.app_id,
            schema=entry.schema,
        )

    def _unlist(self, service: Service) -> None:
        same_id = self._by_service_id.get(service.id)
        if same_id is not None:
            same_id.pop(service, None)
            if not same_id:
                del self._by_service_id[service.id]

    def continue_from(self, since: int) -> None:
        """Services that come from now on are younger than *since*."""
        self._order = itertools.count(max(since + 1, next(self._order)))

    def named(self, service_id: str) -> Iterable[Service]:
        """Every service with that id, whoever offers it."""
        return self._by_service_id.get(service_id, {})

    def callable_by(self, principal: Principal, caller_workspace: str, services: Iterable[Service]) -> list[Service]:
        """Those of *services* that *principal*, connected in *caller_workspace*, may call; the oldest first."""
        return self._permitted(principal, Action.CALL_SERVICE, caller_workspace, services)

    async def listable_by(
        self,
        principal: Principal,
        caller_workspace: str,
        services: Iterable[Service],
        matches: Callable[[Service], bool] = lambda service: True,
    ) -> list[Service]:
        """Those of *services* that match and may be listed; the oldest first.

        Others have their turn in between, however many there are. Those that end meanwhile may be among them.
        """
        waiting, found = iter(list(services)), list[Service]()
        while batch := list(itertools.islice(waiting, _LOOKED_AT_ONCE)):
            there = (service for service in batch if service.session.open and matches(service))
            found += self._permitted(principal, Action.LIST_SERVICE, caller_workspace, there)
            await trio.lowlevel.checkpoint()
        return sorted(found, key=lambda service: service.since)

    def in_one_list(self, services: list[Service]) -> list[Service]:
        """The first of *services*, as many as are sent in one list: ``list_bytes`` of descriptions."""
        sizes = itertools.accumulate(_LISTED_BYTES + service.size for service in services)
        return [service for service, size in zip(services, sizes, strict=True) if size <= self.limits.list_bytes]

    def _permitted(
        self, principal: Principal, action: Action, caller_workspace: str, services: Iterable[Service]
    ) -> list[Service]:
        found = [
            service
            for service in services
            if may(
                principal,
                action,
                self.workspaces[service.workspace],
                service,
                caller_workspace=caller_workspace,
            ).allowed
        ]
        return sorted(found, key=lambda service: service.since)

    def providers(self, service_id: str, principal: Principal, workspace: str) -> list[Service]:
        """Whom a bare name means, the oldest first (A28): own workspace, then ``public``, then everybody's.

        All are of one workspace. The oldest continuous owner of a name keeps it: a later stranger with the same id
        never shadows it, not even for a caller that lets one of several be chosen.
        """
        found = self.callable_by(principal, workspace, self.named(service_id))
        for home in (workspace, PUBLIC_WORKSPACE):
            same_place = [service for service in found if service.workspace == home]
            if same_place:
                return same_place
        # Unlisted services are for those who know where they are.
        public = [service for service in found if service.visibility == "public"]
        return [service for service in public if service.workspace == public[0].workspace]

    def public_services(self) -> Iterator[Service]:
        """Every public service of every workspace."""
        for same_id in self._by_service_id.values():
            for service in same_id:
                if service.visibility == "public":
                    yield service

    def near_names(self, service_id: str, principal: Principal, workspace: str) -> list[str]:
        """Up to three names like *service_id* among those that the asker may list.

        Only so many are looked at as can be compared in passing.
        """
        if len(service_id) > _NEAR_LENGTH:
            return []
        own = self.workspaces.get(workspace)
        services = itertools.chain(own.services() if own is not None else (), self.public_services())
        some = itertools.islice(services, _NEAR_NAMES)
        known = self._permitted(principal, Action.LIST_SERVICE, workspace, some)
        names = sorted({service.id for service in known if len(service.id) <= _NEAR_LENGTH})
        return difflib.get_close_matches(service_id, names, n=3)


def not_found_hint(names: list[str]) -> str:
    """The end of a "not found" text."""
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _most_open(workspace: str, services: Collection[Service]) -> Offer:
    visibility = "unlisted" if any(service.visibility != "protected" for service in services) else "protected"
    return Offer(workspace, visibility, frozenset().union(*(service.authorized_workspaces for service in services)))
