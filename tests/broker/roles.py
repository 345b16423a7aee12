"""Everybody who can ask for something in the workspace ``lab``, for the tables of who may do what (C-AUTH-1)."""

from __future__ import annotations

from hypha.broker.access import Level, Principal
from hypha.broker.registry import Registry, Workspace

#: What stands for the level of administrators of the server.
OPERATOR = 4


def person(name: str, **grants: Level) -> Principal:
    return Principal(name, is_anonymous=False, grants=grants)


#: Role -> who it is, and its level in the workspace.
ROLES: dict[str, tuple[Principal, int]] = {
    "anonymous": (Principal("nobody", is_anonymous=True), Level.NONE),
    "stranger": (person("stranger", elsewhere=Level.ADMIN), Level.NONE),
    "denied": (person("denied", lab=Level.ADMIN), Level.NONE),
    "former": (
        Principal("child", False, grants={"lab": Level.ADMIN}, issuers=("former",), granted_by={"lab": ("former",)}),
        Level.NONE,
    ),
    "reader": (person("reader", lab=Level.READ), Level.READ),
    "viewer": (person("viewer"), Level.READ),
    "writer": (person("writer", lab=Level.READ_WRITE), Level.READ_WRITE),
    "allowed": (person("allowed"), Level.READ_WRITE),
    "administrator": (person("administrator", lab=Level.ADMIN), Level.ADMIN),
    "deputy": (person("deputy"), Level.ADMIN),
    "owner": (person("owner"), Level.ADMIN),
    "operator": (Principal("operator", is_anonymous=False, roles=("admin",)), OPERATOR),
}


def make_lab(registry: Registry) -> Workspace:
    """The workspace."""
    lab = registry.create_workspace("lab", owners=["owner", "second-owner"], persistent=True)
    lab.allow_list, lab.deny_list = ["allowed"], ["denied"]
    lab.permissions = {"viewer": "read", "deputy": "admin"}
    return lab
