"""Who may do what. One pure policy function, :func:`may`; what it does not know it denies."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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

    *grants*: workspace name -> level. *home*: the workspace that a token names as its own. *client*: the one client
    id that it may connect as, None for any. *expires_at*: seconds since the epoch, None for what lives as long as its
    connection. *tokens*: the ids of the token that proved it, which is the last, and of those through which that was
    issued; none for who came without. It says how somebody came in, not who it is.
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

    def holds_or_issued(self, other: Principal) -> bool:
        """Whether the token of *other* is this principal's own, or was issued by it or through its token."""
        return self.id in {other.id, other.parent} or not set(self.tokens[-1:]).isdisjoint(other.tokens)

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


#: The server itself.
ROOT = Principal(id="root", is_anonymous=False, roles=("admin",), is_root=True)


class WorkspacePolicy(Protocol):
    """What policy needs to know of a workspace."""

    @property
    def name(self) -> str: ...
    @property
    def owners(self) -> Collection[str]: ...
    @property
    def allow_list(self) -> Collection[str]: ...
    @property
    def deny_list(self) -> Collection[str]: ...


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
    LIST_SERVICE = "list the service"
    CALL_SERVICE = "call the service"


class Decision(NamedTuple):
    """Allowed or denied, and why, in words for the log."""

    allowed: bool
    reason: str


def level_in(principal: Principal, workspace: WorkspacePolicy) -> Level:
    """The level of *principal* in *workspace*."""
    if principal.is_root:
        return Level.ADMIN
    names = {principal.id} if principal.email is None else {principal.id, principal.email}
    if not names.isdisjoint(workspace.deny_list):
        return Level.NONE
    if principal.id == workspace.name or not names.isdisjoint(workspace.owners):
        return Level.ADMIN
    granted = principal.grants.get(workspace.name, Level.NONE)
    if not names.isdisjoint(workspace.allow_list):
        return max(granted, Level.READ_WRITE)
    return granted


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
