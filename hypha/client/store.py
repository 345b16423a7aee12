"""What others may call at this client: its services, and the functions that went out in messages.

A function in the arguments of a call may be called by the callee until that call is over. One in a result, and each
generator, lives until its receiver is gone, or until there are very many (``protocol.md`` 3.2 and 4.7).
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypha.client.service import LocalService, Offered
from hypha.errors import Conflict, NotFound, PermissionDenied
from hypha.wire.values import method

_MAX_KEPT, _MAX_KEPT_OF_ONE = 4096, 1024  # groups of functions that were sent in results, to all and to one peer

Function = Callable[..., Any]


@dataclass(slots=True, eq=False)
class Group:
    """The functions that went to *target* in one message. Each is called at ``<id>.<name>``."""

    id: str
    target: str
    functions: dict[str, Offered] = field(default_factory=dict)
    #: Called when nobody can call the functions any more.
    on_end: Callable[[], None] = lambda: None

    def add(self, function: Function, *, native: bool = False) -> str:
        """Enter one (:class:`Offered`); returns the path at which it is called."""
        key = f"f{len(self.functions)}"
        self.functions[key] = Offered(function, native=native)
        return f"{self.id}.{key}"

    def offer(self, function: Function, address: str) -> dict[str, Any]:
        """Enter one; returns the map under which it travels."""
        return method(address, self.add(function), promise="*", _rname=getattr(function, "__name__", ""), _rcancel=True)


class Store:
    """The services of one client and the groups of functions that are alive."""

    def __init__(self) -> None:
        self.services: dict[str, LocalService] = {}
        self._groups: dict[str, Group] = {}
        self._kept: OrderedDict[str, Group] = OrderedDict()
        self._of_target: dict[str, dict[str, Group]] = {}

    def register(self, service: LocalService, *, overwrite: bool) -> None:
        """Offer a service. Raises :class:`Conflict` for an id that is taken, unless *overwrite*."""
        if service.id in self.services and not overwrite:
            raise Conflict(f"Service already exists: {service.id}; choose another id, or overwrite=True")
        self.services[service.id] = service

    def replace(self, service_id: str, service: LocalService | None) -> None:
        """Offer *service*, or nothing, in the place of what is offered under that id."""
        if service is None:
            self.services.pop(service_id, None)
        else:
            self.services[service_id] = service

    def find(self, path: str, sender: str, home: str) -> Offered:
        """The function at *path*, when *sender* may call it. *home*: the workspace of this client.

        Raises :class:`NotFound` and :class:`PermissionDenied`.
        """
        head, _, rest = path.partition(".")
        if head != "services":
            return self._find_callback(head, rest, sender)
        service_id, _, function = rest.partition(".")
        service = self.services.get(service_id)
        offered = service.functions.get(function) if service is not None else None
        if service is None or offered is None:
            raise NotFound(f"Method not found: {path[:200]}")
        if not service.is_open_to(sender.partition("/")[0], home):
            raise PermissionDenied(f"Permission denied for invoking protected method {path[:200]} from {sender}")
        return offered

    def _find_callback(self, group_id: str, name: str, sender: str) -> Offered:
        group = self._groups.get(group_id) or self._kept.get(group_id)
        offered = group.functions.get(name) if group is not None else None
        if group is None or offered is None:
            raise NotFound(f"Method expired or not found: {group_id[:100]}.{name[:100]}")
        if group.target != sender:
            raise PermissionDenied(f"Access denied for method call ({group_id[:100]}.{name[:100]}) from {sender}")
        return offered

    def open(self, group_id: str, target: str) -> Group:
        """A group that lives until :meth:`close`: as long as one call."""
        group = self._groups[group_id] = Group(group_id, target)
        return group

    def close(self, group_id: str) -> None:
        """End a group of :meth:`open`."""
        self._groups.pop(group_id, None)

    def keep(self, target: str) -> Group:
        """A group that lives until its *target* is gone; the oldest of very many goes."""
        group = Group(secrets.token_hex(8), target)
        self._kept[group.id] = group
        own = self._of_target.setdefault(target, {})
        own[group.id] = group
        if len(own) > _MAX_KEPT_OF_ONE:
            self.forget(next(iter(own.values())))
        if len(self._kept) > _MAX_KEPT:
            self.forget(next(iter(self._kept.values())))
        return group

    def forget(self, group: Group) -> None:
        """End a group of :meth:`keep`."""
        if self._kept.pop(group.id, None) is not None:
            own = self._of_target[group.target]
            del own[group.id]
            if not own:
                del self._of_target[group.target]
            group.on_end()

    def forget_peer(self, target: str) -> None:
        """Nothing that went to *target* will be called again."""
        for group in list(self._of_target.get(target, {}).values()):
            self.forget(group)

    def clear(self) -> None:
        """The connection is over, and with it everything but the services."""
        self._groups.clear()
        for group in list(self._kept.values()):
            self.forget(group)
