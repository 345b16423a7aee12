"""One broker: everything between the sockets and the store. Admits, attaches and lets go of sessions."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial

import trio

from hypha.broker import builtin, modern
from hypha.broker.access import Action, Principal, may
from hypha.broker.administration import Administration
from hypha.broker.endpoint import ServerSession
from hypha.broker.ends import Ends
from hypha.broker.events import publish
from hypha.broker.inflight import end_session, fail_calls, forget_silent
from hypha.broker.info import service_info
from hypha.broker.ledger import Ledger
from hypha.broker.login import DESCRIPTION, Login
from hypha.broker.manager import BUILT_IN
from hypha.broker.outbox import DirtyOutboxes, Transport, flush_dirty
from hypha.broker.own import Visit
from hypha.broker.quotas import ceiling
from hypha.broker.records import Loaded, Records, Store
from hypha.broker.registration import Registration, parse_registration, registrations, require_within
from hypha.broker.registry import Registry, Workspace
from hypha.broker.restoring import read
from hypha.broker.returning import Returning
from hypha.broker.router import Router
from hypha.broker.session import PeerSession
from hypha.broker.suspended import Parked, Suspended
from hypha.broker.throttle import Throttle
from hypha.broker.tokens import Resumption, Tokens, new_user_id
from hypha.config import Config, Limits
from hypha.errors import (
    CallTimeout,
    Conflict,
    InvalidArgument,
    LimitExceeded,
    NotAuthenticated,
    PeerGone,
    PermissionDenied,
    RemoteError,
)
from hypha.wire.address import Address, check_client_id, check_name
from hypha.wire.calls import Message
from hypha.wire.dialect import Dialect
from hypha.wire.frame import FrameReader, HeaderBounds

logger = logging.getLogger(__name__)

_PING_SECONDS = 2.0


#: Who asks, the service that is wanted, and perhaps the name of the app that offers it.
Launch = Callable[[Visit, str, str | None], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client sends to get in, whatever its generation (``protocol.md`` 1.2)."""

    client_id: str | None
    workspace: str | None = None
    token: str | None = None
    reconnection_token: str | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """Permission to attach, given before the websocket is accepted."""

    address: Address
    principal: Principal
    identity: str
    resumed: bool


class OwnClientExists(Conflict):
    """The same user is connected under the client id already, as *client*."""

    def __init__(self, text: str, client: PeerSession) -> None:
        super().__init__(text)
        self.client = client


class Broker:
    """The sessions of one server and all that they share. *key* signs tokens; *server_id* names the server."""

    def __init__(
        self,
        config: Config,
        key: bytes,
        server_id: str,
        clock: Callable[[], float] = time.time,
        store: Store | None = None,
    ) -> None:
        """*store* keeps what is to outlive the process; :meth:`restore` takes over what is in it."""
        self.config = config
        self.limits = config.limits
        self.records = Records(store)
        self.tokens = Tokens(key, clock, config.limits, self.records)
        #: By network address.
        self.bad_tokens = Throttle("bad_tokens_per_address", config.limits.bad_tokens_per_address)
        self.dirty: DirtyOutboxes = {}
        #: What an administrator has set for users, by account (:mod:`hypha.broker.quotas`).
        self.quotas: dict[str, dict[str, int]] = {}
        mounted = {mount.path.split("/")[1] for mount in config.static_mounts} - {""}
        self.registry = Registry(config.limits, mounted, Ledger(self.records, self.now, clock))
        self.reader = FrameReader(header_bounds(config.limits))
        self.administration = Administration(self)
        self.server = ServerSession(server_id, self.registry, config.limits, self.dirty, self.reader)
        self.server.functions.update(builtin.functions(self))
        self.server.modern_functions.update(modern.functions(self))
        self.login = Login(self)
        self.server.own.add(parse_registration(DESCRIPTION, server_id), self.login.functions())
        #: Starts an app that offers a service, and returns the id of its client; None where there are no apps.
        self.launch: Launch | None = None
        #: Clients that were connected when the server ended.
        self.returning = Returning(self.registry, config.limits)
        self.router = Router(self.registry, self.server, self.reader, self.returning)
        #: Seconds since the epoch.
        self.clock = clock
        self._generation = 0
        self._next_look = 0.0  # trio time
        self._ended = Ends(self.registry.ledger, self.now, config.limits.reconnection_token_seconds)
        self._suspended = Suspended(config.limits)
        #: Workspaces with a member that has taken its own access away.
        self._left: set[str] = set()

    def now(self) -> float:
        """trio time in seconds."""
        return trio.current_time()

    def flush(self) -> None:
        """Write what was put into outboxes since the last flush."""
        flush_dirty(self.dirty)

    def public_base_url(self, caller: PeerSession | Visit) -> str:
        """The address to tell a client as the public one."""
        return self.config.public_base_url or caller.base_url

    def restore(self) -> Loaded:
        """Take over what an earlier process has kept, before anybody connects, and expect who was connected to it.

        Gives all records, for others who have some among them.
        """
        records = self.records.load()
        kept = read(records, self.clock(), self.now(), self.limits)
        kept.enter_workspaces(self.registry)
        for workspace in self.registry.workspaces.values():
            self.registry.count(workspace)
        for token, (owner, until) in kept.revoked.items():
            self.tokens.revocations.restore(token, owner, until)
        self.tokens.revocations.blocked.update(kept.blocked)
        for issued in kept.issued:
            self.tokens.issued.restore(issued)
        self.quotas.update(kept.quotas)
        self._ended.restore(kept.ended)
        for parked in kept.parked:
            workspace = self.registry.restore_workspace(parked.address.workspace)
            if self._fits(workspace, parked):
                self._park(workspace, parked)
            else:
                self._forget(parked)
        self.registry.continue_from(kept.youngest)
        self.returning.until = self.now() + self.limits.return_seconds
        for workspace in self.registry.workspaces.values():
            workspace.idle_since = None if workspace.parked else self.now()
        all_parked = (parked for workspace in self.registry.workspaces.values() for parked in workspace.parked.values())
        # Who was lost long before the server ended need not be waited for.
        recent = self.now() - self.limits.reclaim_seconds
        self.returning.expect(parked for parked in all_parked if parked.since > recent)
        return records

    def _fits(self, workspace: Workspace, parked: Parked) -> bool:
        """Whether what an earlier process has let in may be there still: limits and services of our own may differ."""
        try:
            require_within(self.limits, parked.registrations)
        except LimitExceeded as exc:
            logger.warning("the services of %s are forgotten: %s", parked.address, exc)
            return False
        return workspace.own_services.keys().isdisjoint(item.id for item in parked.registrations)

    # --- principals -------------------------------------------------------------------------------------------

    def authenticate(self, token: str | None) -> Principal:
        """The principal that *token* proves, a new anonymous one without. Raises :class:`NotAuthenticated`."""
        if token:
            return self.tokens.verify(token)
        return Principal(id=new_user_id(), is_anonymous=True)

    def require_valid(self, principal: Principal) -> None:
        """Raise :class:`NotAuthenticated` when the token of *principal* has expired or was revoked meanwhile."""
        if principal.expires_at is not None and principal.expires_at < self.clock():
            raise NotAuthenticated("the token has expired; generate a new one")
        if self.tokens.is_revoked(principal):
            raise NotAuthenticated("the token was revoked; generate a new one")

    def token_life(self, issuer: Principal, asked: object) -> float:
        """Seconds that a new token may live: as asked, but not longer than its issuer's own.

        One of somebody without an account lives for ``token_seconds`` at most: what must be remembered of it ends soon.
        Raises :class:`NotAuthenticated` when that has expired: a session outlives its token by up to a second.
        """
        if asked is None:
            life = self.limits.token_seconds
        elif isinstance(asked, int | float) and not isinstance(asked, bool) and 0 < asked < 2**40:
            life = float(asked)
        else:
            raise InvalidArgument("expires_in must be a number of seconds above 0")
        if issuer.is_anonymous:
            life = min(life, self.limits.token_seconds)
        remaining = self.remaining(issuer)
        if remaining is None:
            return life
        if remaining <= 0:
            raise NotAuthenticated("your own token has expired; connect with a new one")
        return min(life, remaining)

    def remaining(self, principal: Principal) -> float | None:
        """Seconds until the token of *principal* expires; None for who has none."""
        return None if principal.expires_at is None else principal.expires_at - self.clock()

    def resumption_token(self, session: PeerSession) -> str:
        """The token with which *session*'s client comes back as the same client."""
        resumption = Resumption(session.address, session.principal, session.identity)
        return self.tokens.issue_resumption(resumption, expires_in=self.limits.reconnection_token_seconds)

    # --- coming -----------------------------------------------------------------------------------------------

    def admit(self, credentials: Credentials) -> Admission:
        """Decide whether a client gets in, and where. Changes nothing: the client may leave before it is accepted.

        Raises a :class:`HyphaError` that says why not.
        """
        client_id = check_client_id(credentials.client_id)
        if client_id == self.server.address.client:
            raise InvalidArgument(f"client id {client_id!r} is the server's own; choose another")
        if credentials.reconnection_token:
            return self._readmit(client_id, self.tokens.verify_resumption(credentials.reconnection_token))
        principal = self.authenticate(credentials.token)
        if principal.client not in {None, client_id}:
            raise PermissionDenied("the token belongs to another client id")
        name = self._workspace_name(principal, credentials.workspace)
        self._require_free(name, client_id, principal)
        return Admission(Address(name, client_id), principal, secrets.token_urlsafe(12), resumed=False)

    async def admit_or_replace(self, credentials: Credentials) -> Admission:
        """As :meth:`admit`, but a client that the same user has left behind dead makes room for the new one.

        It is dead when it has no call to answer and does not answer a ping in two seconds (``protocol.md`` 1.4).
        """
        try:
            return self.admit(credentials)
        except OwnClientExists as exc:
            before = exc.client
            if before.inbound or await self.is_alive(before, _PING_SECONDS):
                raise
        if before.open:
            self.lose(before, "did not answer a ping, and its user has come again")
        return self.admit(credentials)

    async def is_alive(self, session: PeerSession, patience: float) -> bool:
        """Whether a client answers a ping within *patience* seconds, be it with an error."""
        try:
            await self.server.call(session, BUILT_IN + "ping", ["ping"], patience=patience)
        except (CallTimeout, PeerGone):
            return False
        except RemoteError as exc:
            logger.info("%s answers a ping with: %s", session.name, exc)
        return True

    def _readmit(self, client_id: str, resumption: Resumption) -> Admission:
        address, principal = resumption.address, resumption.principal
        if client_id != address.client:
            raise PermissionDenied("the reconnection token belongs to another client id")
        if resumption.identity in self._ended:
            raise NotAuthenticated("the session has ended; connect without the reconnection token")
        if principal.expires_at is not None and principal.expires_at < self.clock():
            raise NotAuthenticated("the token of the session has expired; connect with a new one")
        workspace = self.registry.workspaces.get(self._workspace_name(principal, address.workspace))
        current: PeerSession | Parked | None = None
        if workspace is not None:
            current = workspace.members.get(client_id) or workspace.parked.get(client_id)
        if current is not None and current.identity != resumption.identity:
            raise Conflict(f"client id {client_id!r} is used by another session now")
        return Admission(address, principal, resumption.identity, resumed=True)

    def recognize(self, credentials: Credentials, identity: str | None) -> PeerSession:
        """The session of a client that speaks in requests of their own, each of which must prove whose it is.

        The proof is the token with which the session was begun, and without a token the *identity* of the session,
        which its client alone was told: the names of a client are known to everybody that it has ever called. Raises
        :class:`NotAuthenticated` for a bad token, :class:`InvalidArgument` when the client is not connected now,
        :class:`PermissionDenied` when that is not the asker's business.
        """
        client_id, name = check_client_id(credentials.client_id), check_name("workspace", credentials.workspace)
        principal = self.tokens.verify(credentials.token) if credentials.token else None
        if principal is not None:
            self._workspace_name(principal, name)  # who has no access learns nothing of who is there
        workspace = self.registry.workspaces.get(name)
        member = workspace.members.get(client_id) if workspace is not None else None
        parked = workspace.parked.get(client_id) if workspace is not None else None
        if member is not None and _proves(principal, identity, member.principal, member.identity):
            return member
        may_know = principal is not None or (parked is not None and _matches(identity, parked.identity))
        if member is None and may_know:
            raise InvalidArgument(f"the client {name}/{client_id} is not connected now")
        raise PermissionDenied(
            "the request does not prove that it is this client's own: send the token with which it is connected, "
            "or the cookie that its stream came with"
        )

    def _workspace_name(self, principal: Principal, name: str | None) -> str:
        """The workspace asked for, the principal's own when none was (``protocol.md`` 1.4).

        Only the principal's own is made again when it is not there: of another one nobody can tell any more who may be
        in it.
        """
        if name:
            check_name("workspace", name)
        wanted = name or principal.home or principal.id
        workspace = self.registry.workspaces.get(wanted)
        if workspace is None and wanted == principal.id:
            return wanted
        if workspace is None or not may(principal, Action.JOIN, workspace).allowed:
            raise PermissionDenied(f"Permission denied for workspace {wanted}; it takes a token with access to it")
        return wanted

    def _require_free(self, workspace_name: str, client_id: str, principal: Principal) -> None:
        workspace = self.registry.workspaces.get(workspace_name)
        if workspace is None:
            return
        current = workspace.members.get(client_id)
        if current is not None:
            text = f"Client already exists and is active: {current.name}; choose another id"
            raise OwnClientExists(text, current) if current.principal.id == principal.id else Conflict(text)
        parked = workspace.parked.get(client_id)
        if parked is None or parked.principal_id == principal.id:
            return
        waited = self.now() - parked.since
        if waited < self.limits.reclaim_seconds or not may(principal, Action.WRITE, workspace).allowed:
            raise Conflict(f"client id {client_id!r} belongs to a client that may come back; choose another")

    def attach(self, admission: Admission, dialect: Dialect, transport: Transport, *, base_url: str) -> PeerSession:
        """Make the session: from here it is found and listed.

        A resumed one supersedes its predecessor, even when the server has not noticed that one's death, and gets
        its services back in the same step (``decisions.md`` 12 and 13). Raises :class:`Conflict` or
        :class:`LimitExceeded` when somebody was faster.
        """
        address, principal = admission.address, admission.principal
        name = self._workspace_name(principal, address.workspace)
        workspace = self.registry.workspaces.get(name)
        if workspace is None or not _has_place(workspace, admission):
            self._require_quota(principal)
        if workspace is None:
            workspace = self.registry.create_workspace(name)
            self.registry.ledger.workspace(workspace)
        before = workspace.members.get(address.client)
        restored: tuple[Registration, ...] = ()
        subscriptions: Collection[str] = ()
        superseding = False
        if before is not None and admission.resumed and before.identity == admission.identity:
            restored, subscriptions, superseding = registrations(before), before.subscriptions, True
            self._detach(before)
            before.transport.close(1012, "superseded by a newer connection")
        self._generation += 1
        session = PeerSession(
            address,
            principal,
            dialect,
            self._generation,
            self.limits,
            transport=transport,
            base_url=base_url,
            identity=admission.identity,
            dirty=self.dirty,
        )
        self.registry.add(session)
        parked = workspace.parked.pop(address.client, None)
        if parked is not None:
            self._suspended.discard(parked)
            if parked.identity == admission.identity:
                restored, subscriptions = parked.registrations, parked.subscriptions
            else:
                self._forget(parked)
        session.subscriptions.update(subscriptions)
        kind = "client_updated" if superseding else "client_connected"
        publish(workspace, kind, lambda: {"id": session.name, "workspace": workspace.name})
        # Who was superseded has never been gone for those who listen.
        self.registry.announce(session, restored, quietly=superseding)
        self._arrived(address)
        self.flush()
        return session

    def _arrived(self, address: Address) -> None:
        """Whoever waited for the client at *address* goes on."""
        expected = self.returning.over(address)
        if expected is not None:
            self.router.release(expected)

    def _require_quota(self, principal: Principal) -> None:
        quota = self.quotas.get(principal.account, {})
        limit, name = ceiling(quota, "clients", self.limits.sessions_per_principal, "sessions_per_principal")
        # A quota is the person's; the limit is for each user that tokens were issued to, so that many can share one.
        if "clients" in quota:
            connected = self.registry.connected(principal.account)
        else:
            connected = len(self.registry.sessions_of(principal.id))
        if connected >= limit:
            raise LimitExceeded(f"{name} = {limit} clients of this user are connected already")

    # --- going ------------------------------------------------------------------------------------------------

    def leave(self, session: PeerSession, *, clean: bool, expelled: bool = False) -> None:
        """The end of a connection. *clean*: the client said goodbye itself, or was *expelled*; nothing is kept for it.

        Fails the calls that it worked on at once. Does nothing for a session that was superseded.
        """
        if not session.open:
            return
        workspace = self.registry.workspaces[session.address.workspace]
        parked = None if clean else self._parked(session)
        services = list(session.services.values())
        self._detach(session)
        for service in services:
            publish(workspace, "service_removed", partial(service_info, service))
        # The bare id: modern clients put the workspace in front of it (protocol.md 5.9).
        gone = {"id": session.address.client, "workspace": workspace.name}
        publish(workspace, "client_disconnected", lambda: gone)
        if parked is not None:
            self._park(workspace, parked)
        else:
            self.registry.ledger.forget_session(session.address, [service.id for service in services])
            self._ended.add(session.identity, expelled=expelled)
        if not workspace.members and not workspace.parked:
            workspace.idle_since = self.now()
            if not workspace.owners:
                self.registry.drop_if_unused(workspace)
        self.flush()

    def expel_denied(self, workspace: Workspace, asker: Principal | None = None) -> None:
        """End the sessions of those who may not be in *workspace* any more; *asker*'s own a moment later.

        Who takes its own access away is answered first.
        """
        for member in list(workspace.members.values()):
            if may(member.principal, Action.JOIN, workspace).allowed:
                continue
            if asker is not None and member.principal.id == asker.id:
                self._left.add(workspace.name)
            else:
                self.expel(member, "access to the workspace was taken away")
        for parked in list(workspace.parked.values()):
            # What its token says of one that a restart has brought is not known here. It is asked when it comes back.
            if parked.principal is not None and not may(parked.principal, Action.JOIN, workspace).allowed:
                self._end(parked)

    def delete_workspace(self, workspace: Workspace) -> None:
        """End *workspace* with everything in it."""
        publish(workspace, "workspace_deleted", lambda: {"id": workspace.name, "workspace": workspace.name})
        workspace.persistent = False
        for member in list(workspace.members.values()):
            self.expel(member, "the workspace was deleted")
        for parked in list(workspace.parked.values()):
            self._end(parked)
        self.registry.drop_if_unused(workspace)

    def expel(self, session: PeerSession, reason: str) -> None:
        """End a session for good. A modern client is told not to come back; the others are refused when they try.

        So is hypha-rpc for Python: that word makes it wait for itself, and its program never ends.
        """
        if not session.dialect.legacy_manager and session.dialect.language != "Python":
            farewell = Message({"type": "force-exit", "to": session.name, "reason": reason}, b"")
            session.tell(farewell, self.server.address)
        session.outbox.flush()
        session.transport.close(1008, reason)
        self.leave(session, clean=True, expelled=True)

    def is_busy(self) -> bool:
        """Whether a call runs: between clients, from HTTP to a client, or of the server's own functions."""
        return any(session.inbound or session.server_calls for session in self.registry.sessions())

    def end_revoked(self) -> None:
        """End the sessions of those whose token was revoked, or who are blocked."""
        for session in list(self.registry.sessions()):
            if self.tokens.is_revoked(session.principal):
                # Who returns is refused, which ends every client. The word with which others are expelled would leave
                # hypha-rpc for Python waiting for itself.
                session.transport.close(1008, "the token was revoked")
                self.leave(session, clean=True)

    def give_up_calls(self) -> None:
        """Fail all calls that run, while their callers can still be told: the server is about to end."""
        for session in self.registry.sessions():
            fail_calls(session)
        self.flush()

    def lose(self, session: PeerSession, reason: str) -> None:
        """End the session of a client that seems to be gone; its callers know at once, and it may come back."""
        logger.warning("%s %s: disconnected", session.name, reason)
        session.transport.close(1012, f"the client {reason}")
        self.leave(session, clean=False)

    def _detach(self, session: PeerSession) -> None:
        self.registry.remove(session)
        end_session(session)
        session.outbox.close()

    def _parked(self, session: PeerSession) -> Parked:
        now = self.now()
        return Parked(
            session.address,
            session.identity,
            session.principal.id,
            registrations(session),
            since=now,
            until=now + self.limits.session_grace,
            subscriptions=frozenset(session.subscriptions),
            principal=session.principal,
        )

    def _park(self, workspace: Workspace, parked: Parked) -> None:
        workspace.parked[parked.address.client] = parked
        self.registry.ledger.parked(parked)
        for old in self._suspended.add(parked):
            self._unpark(old)

    def _forget(self, parked: Parked) -> None:
        ids = [registration.id for registration in parked.registrations]
        self.registry.ledger.forget_session(parked.address, ids)

    def _unpark(self, parked: Parked) -> None:
        self._suspended.discard(parked)
        self._forget(parked)
        self._arrived(parked.address)
        workspace = self.registry.workspaces[parked.address.workspace]
        del workspace.parked[parked.address.client]
        if not workspace.members and not workspace.parked and workspace.idle_since is None:
            workspace.idle_since = self.now()
        if not workspace.owners:
            self.registry.drop_if_unused(workspace)

    def _end(self, parked: Parked) -> None:
        """Let nobody come back as *parked*."""
        self._ended.add(parked.identity, expelled=True)
        self._unpark(parked)

    # --- time -------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Once a second: heartbeats and ends of calls, ends of grace periods, ended tokens, idle workspaces."""
        now, wall = self.now(), self.clock()
        self.server.sweep(now)
        self.login.sweep(now)
        if now >= self._next_look:
            # Not before a provider would be cut that is silent itself: its callers must still be told.
            self._next_look = now + 2 * self.limits.busy_silence_seconds
            for session in self.registry.sessions():
                forget_silent(session)
                session.chunks.drop_idle()
        for session in list(self.registry.sessions()):
            expires = session.principal.expires_at
            if expires is not None and expires < wall:
                session.transport.close(1008, "the token has expired")
        self.end_revoked()
        while self._left:
            workspace = self.registry.workspaces.get(self._left.pop())
            if workspace is not None:
                self.expel_denied(workspace)
        self.tokens.sweep(now)
        for parked in self._suspended.expired(now):
            self._unpark(parked)
        for workspace in list(self.registry.workspaces.values()):
            idle = workspace.idle_since
            if idle is not None and now - idle > self.limits.session_grace:
                self.registry.drop_if_unused(workspace)
        self._ended.sweep()
        for expected in self.returning.late(now):
            self.router.give_up(expected)
        self.flush()


def _has_place(workspace: Workspace, admission: Admission) -> bool:
    """Whether the client comes back to what was kept for it, or to where it is connected: it was counted already."""
    client = admission.address.client
    before = workspace.members.get(client) or workspace.parked.get(client)
    return admission.resumed and before is not None and before.identity == admission.identity


def _proves(principal: Principal | None, identity: str | None, owner: Principal, expected: str) -> bool:
    # All of the principal: another token of the same user may be for less.
    return _matches(identity, expected) if principal is None else principal == owner


def _matches(identity: str | None, expected: str) -> bool:
    return identity is not None and secrets.compare_digest(identity.encode(), expected.encode())


def header_bounds(limits: Limits) -> HeaderBounds:
    """How large the header of a message may be."""
    return HeaderBounds(limits.header_bytes, limits.header_keys, limits.header_depth)
