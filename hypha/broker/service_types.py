"""Types of services: what a workspace has agreed that a service of some type holds (``protocol.md`` 5.3).

A client asks for the type when its user says ``check_type``, compares its service itself, and takes the descriptions of
the functions over. The server keeps the definitions and does not read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import TYPE_CHECKING, Any

import trio

from hypha.broker.access import Action
from hypha.broker.kept import pack, unpack
from hypha.errors import Conflict, InvalidArgument, LimitExceeded, NotFound, PermissionDenied
from hypha.wire.address import check_name

if TYPE_CHECKING:
    from hypha.broker.endpoint import ServerCall
    from hypha.broker.manager import Run
    from hypha.broker.modern import ModernManager
    from hypha.broker.registry import Workspace

#: What a type holds beside its id, and of which kind that is.
_KEYS: dict[str, type | UnionType] = {
    "name": str,
    "definition": dict,
    "description": str | None,
    "config": dict,
    "docs": str | None,
}


class TypeExists(Conflict):
    """The workspace has another service type of that id."""

    remote_type = "KeyError"


class ServiceTypes:
    """The service types of one workspace, by id, as msgpack."""

    __slots__ = ("_packed",)

    def __init__(self) -> None:
        self._packed: dict[str, bytes] = {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(unpack, self._packed.values())

    def add(self, info: dict[str, Any], room: int) -> None:
        """Enter one; the same once more changes nothing. *room*: bytes of all together.

        Raises :class:`TypeExists`, :class:`LimitExceeded`, and :class:`InvalidArgument` for what cannot be sent.
        """
        packed, known = pack(info), self._packed.get(info["id"])
        if known is not None and known != packed:
            raise TypeExists(f"'Service type already exists: {info['id']}'")
        if known is None and len(packed) + sum(map(len, self._packed.values())) > room:
            raise LimitExceeded(f"service_types_bytes_per_workspace = {room} bytes of service types are kept, no more")
        self._packed[info["id"]] = packed

    def restore(self, info: dict[str, Any]) -> None:
        """Enter one that was kept, whatever the limits are now."""
        self._packed[info["id"]] = pack(info)

    def get(self, name: str) -> dict[str, Any] | None:
        """The type of that id."""
        packed = self._packed.get(name)
        return None if packed is None else unpack(packed)


class ServiceTypeFunctions:
    """What the manager of modern clients offers. *manager* knows what somebody may see."""

    def __init__(self, manager: ModernManager) -> None:
        self._manager = manager
        # All types of a workspace may take 20 ms to write out. Others have their turn between one list and the next.
        self._listing = trio.Lock()

    def exported(self) -> Iterator[tuple[Run, Action]]:
        """Each function with what its caller must be allowed to do."""
        yield self.register_service_type, Action.WRITE
        yield self.get_service_type, Action.READ
        yield self.list_service_types, Action.READ

    async def register_service_type(self, call: ServerCall, type_info: dict[str, Any]) -> dict[str, Any]:
        """Enter a type: a map with an ``id`` and a ``definition``, which holds what such a service holds."""
        info = _checked(type_info, call.workspace.name)
        call.workspace.service_types.add(info, call.sender.limits.service_types_bytes_per_workspace)
        self._manager.ledger.service_type(call.workspace, info)
        return info

    async def get_service_type(self, call: ServerCall, type_id: str) -> dict[str, Any]:
        """A type of the workspace, or with ``workspace/id`` of another: one that one may see, or a public type."""
        if not isinstance(type_id, str):
            raise InvalidArgument("the id of a service type is text")
        place, slash, name = type_id.rpartition("/")
        workspace = self._place(call, place, name) if slash else call.workspace
        found = workspace.service_types.get(name)
        if found is None:
            raise NotFound(f"'Service type not found: {type_id[:200]}'")
        return {**found, "id": f"{workspace.name}/{name}"}

    async def list_service_types(self, call: ServerCall, workspace: str | None = None) -> list[dict[str, Any]]:
        """The types of the workspace, or of another that the caller may see."""
        place = self._manager.visible(call, workspace)
        async with self._listing:
            return list(place.service_types)

    def _place(self, call: ServerCall, place: str, name: str) -> Workspace:
        """Where a type is kept: a workspace that the caller may see, or one whose type of that name is public."""
        found = self._manager.named(place)
        info = found.service_types.get(name) if found is not None else None
        is_public = info is not None and info["config"].get("visibility") == "public"
        return found if found is not None and is_public else self._manager.visible(call, place)


def _checked(info: object, workspace: str) -> dict[str, Any]:
    """A type as it is kept. Raises :class:`InvalidArgument`, and :class:`PermissionDenied` for another workspace's."""
    if not isinstance(info, dict) or not isinstance(info.get("id"), str):
        raise InvalidArgument("a service type is a map with an 'id' and a 'definition'")
    place, slash, name = info["id"].rpartition("/")
    if slash and place != workspace:
        raise PermissionDenied("a service type is registered in the workspace that the client is connected to")
    checked = {"id": check_name("service type", name), "name": name, "config": {}}
    checked |= {key: info[key] for key in _KEYS if info.get(key) is not None}
    for key, kind in _KEYS.items():
        if not isinstance(checked.setdefault(key, None), kind):
            raise InvalidArgument(f"the {key} of service type {name!r} is missing, or of the wrong kind")
    return checked
