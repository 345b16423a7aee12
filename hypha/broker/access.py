"""Who may do what. One pure policy function, :func:`may`; what it does not know it denies."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, NamedTuple, Protocol


class Level(IntEnum):
    """What a principal is in a workspace."""

    NONE = 0
    READ = 1
    READ_WRITE = 2
    ADMIN = 3

    @property
    def letter(self) -> str:
        """The level as tokens and modern clients write it (``protocol.md`` 7.2)."""
        return ("", "r", "rw", "a")[self]

    @classmethod
    def parse(cls, text: str) -> Level | None:
        """Read ``r``/``read``, ``rw``/``read_write`` or ``a``/``admin``; None for anything else."""
        return _LEVELS.get(text)


_LEVELS = {
    "r": Level.READ,
    "read": Level.READ,
    "rw": Level.READ_WRITE,
    "read_write": Level.READ_WRITE,
    "a": Level.ADMIN,
    "admin": Level.ADMIN,
}


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated user as policy sees it.

    *grants*: workspace name -> level, what the token gives. *granted_by*: under which names its issuer had that from
    the lists of the workspace, and it is worth no more than these names still are; :func:`itself` for one who needs no
    list. *home*: the workspace that a token names as its own. *client*: the one client id that it may connect as, None
    for any. *expires_at*: seconds since the epoch, None for what lives as long as its connection. *tokens*: the ids of
    the token that proved it, which is the last, and of those through which that was issued; none for who came without.
    It says how somebody came in, not who it is. *issuers*: the users through whom it was issued, the first one first;
    none for who is nobody's child.
    """

    id: str
    is_anonymous: bool
    email: str | None = None
    roles: tuple[str, ...] = ()
    parent: str | None = None
    grants: Mapping[str, Level] = field(default_factory=dict)
    home: str | None = None
    expires_at: float | None = None
    is_root: bool = False
    client: str | None = None
    tokens: tuple[str, ...] = field(default=(), compare=False)
    issuers: tuple[str, ...] = ()
    granted_by: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def is_admin(self) -> bool:
        """Whether it may do everything on this server. The role is given by whoever holds the data directory."""
        return self.is_root or ADMIN_ROLE in self.roles

    @property
    def names(self) -> tuple[str, ...]:
        """What lists of those who may do something know it by.

        The address is the person's, and a token that was issued to somebody else is worth what it says, not that.
        """
        return (self.id,) if self.email is None or self.issuers else (self.id, self.email)

    @property
    def known_as(self) -> frozenset[str]:
        """What lists of those who may not do something know it by: whom it comes from, too."""
        return frozenset({self.id, *self.issuers} if self.email is None else {self.id, self.email, *self.issuers})

    @property
    def listed_as(self) -> str:
        """The one of its names that is written into a list."""
        return self.names[-1]

    @property
    def origin(self) -> str:
        """The id of the user through whom it was issued, however indirectly; its own if through nobody."""
        return self.issuers[0] if self.issuers else self.id

    @property
    def account(self) -> str:
        """To whom it is counted, with all others that were issued through the same user."""
        return self.email or self.origin

    def holds_or_issued(self, other: Principal) -> bool:
        """Whether the token of *other* is this principal's own, or was issued by it or through its token."""
        same = self.id in {other.id, other.parent, *other.issuers}
        return same or not set(self.tokens[-1:]).isdisjoint(other.tokens)

    def to_wire(self, workspace: str | None) -> dict[str, Any]:
        """The ``user`` map of frames, for both generations (``protocol.md`` 7.3). Kept small: it is in every frame."""
        return {
            "id": self.id,
            "roles": list(self.roles),
            "is_anonymous": self.is_anonymous,
            "email": self.email,
            "parent": self.parent,
            "scopes": list(self.grants),
            "scope": {
                "current_workspace": workspace,
                "workspaces": {name: level.letter for name, level in self.grants.items()},
            },
            "expires_at": self.expires_at,
            "current_workspace": workspace,
        }


#: The role of those who may do everything on this server.
ADMIN_ROLE = "admin"

#: The server itself.
ROOT = Principal(id="root", is_anonymous=False, roles=(ADMIN_ROLE,), is_root=True)


class WorkspacePolicy(Protocol):
    """What policy needs to know of a workspace."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def owners(self) -> Collection[str]: ...
    @property
    def allow_list(self) -> Collection[str]: ...
    @property
    def deny_list(self) -> Collection[str]: ...
    @property
    def permissions(self) -> Mapping[str, str]: ...


class ServicePolicy(Protocol):
    """What policy needs to know of a service."""

    @property
    def workspace(self) -> str: ...
    @property
    def visibility(self) -> str: ...
    @property
    def authorized_workspaces(self) -> Collection[str]: ...


class Action(Enum):
    """What can be asked for."""

    JOIN = "connect to the workspace"
    READ = "see the workspace"
    WRITE = "change the workspace"
    ADMINISTER = "administer the workspace"
    OPERATE = "administer the server"
    LIST_SERVICE = "list the service"
    CALL_SERVICE = "call the service"


class Decision(NamedTuple):
    """Allowed or denied, and why, in words for the log."""

    allowed: bool
    reason: str


def level_in(principal: Principal, workspace: WorkspacePolicy) -> Level:
    """The level of *principal* in *workspace*: what its lists say, or what the token gives if that is more."""
    if principal.is_admin:
        return Level.ADMIN
    if workspace.deny_list and not principal.known_as.isdisjoint(workspace.deny_list):
        return Level.NONE
    listed, granted = level_of(principal.names, workspace), granted_level(principal, workspace)
    return listed if listed >= granted else granted


def level_of(names: Iterable[str], workspace: WorkspacePolicy) -> Level:
    """The level that the lists of *workspace* give to who has these *names*."""
    found = [Level.NONE]
    for name in names:
        if name == workspace.name or name in workspace.owners:
            return Level.ADMIN
        if name in workspace.allow_list:
            found.append(Level.READ_WRITE)
        if name in workspace.permissions:
            found.append(Level.parse(workspace.permissions[name]) or Level.NONE)
    return max(found) if len(found) > 1 else Level.NONE


def granted_level(principal: Principal, workspace: WorkspacePolicy) -> Level:
    """The level that the token of *principal* gives, which is at most what is left of its issuer's."""
    granted = principal.grants.get(workspace.name, Level.NONE)
    issuer = principal.granted_by.get(workspace.name)
    if issuer is None:
        # Nothing says that it was not made for a workspace that had the name before.
        return Level.NONE if workspace.identity else granted
    return granted if itself(workspace) in issuer else min(granted, level_of(issuer, workspace))


def itself(workspace: WorkspacePolicy) -> str:
    """What tells *workspace* from others of its name, in the place of the names of an issuer who needs no list.

    No user has such a name.
    """
    return f"*{workspace.name}/{workspace.identity}"


_NEEDED = {
    Action.JOIN: Level.READ,
    Action.READ: Level.READ,
    Action.WRITE: Level.READ_WRITE,
    Action.ADMINISTER: Level.ADMIN,
}
_ON_SERVICES = (Action.LIST_SERVICE, Action.CALL_SERVICE)


def may(
    principal: Principal,
    action: Action,
    workspace: WorkspacePolicy,
    service: ServicePolicy | None = None,
    *,
    caller_workspace: str | None = None,
) -> Decision:
    """Whether *principal* may do *action* in *workspace*, or with *service* of that workspace.

    *caller_workspace* is where the caller is connected. Membership opens a protected service only from inside its
    workspace: that is what a provider's own check compares (``protocol.md`` 4.4).
    """
    needed = _NEEDED.get(action)
    if needed is not None:
        level = level_in(principal, workspace)
        return Decision(level >= needed, f"level {level.name} in {workspace.name!r}, {needed.name} is needed")
    if action is Action.OPERATE:
        return Decision(principal.is_admin, f"the roles are {', '.join(principal.roles)}")
    if action not in _ON_SERVICES:
        return Decision(False, f"there is no action {action!r}")
    if service is None:
        return Decision(False, "no service was named")
    if service.visibility == "public" or (service.visibility == "unlisted" and action is Action.CALL_SERVICE):
        return Decision(True, f"the service is {service.visibility}")
    if caller_workspace is not None and caller_workspace in service.authorized_workspaces:
        return Decision(True, f"workspace {caller_workspace!r} is authorized")
    if caller_workspace != workspace.name:
        return Decision(False, "the service is protected and the caller is in another workspace")
    level = level_in(principal, workspace)
    return Decision(level >= Level.READ, f"level {level.name} in {workspace.name!r}")
