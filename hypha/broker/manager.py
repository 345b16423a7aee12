"""What the server's managers of both client generations have in common (``protocol.md`` 5).

A function declares what it needs in its caller's own workspace, and the endpoint asks :func:`hypha.broker.access.may`
before it runs. What concerns another workspace it asks about itself, with the same function.
"""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hypha.broker.endpoint import ServerCall
from hypha.broker.function import Function
from hypha.broker.registry import Workspace
from hypha.broker.session import PeerSession, Service, Session
from hypha.errors import InvalidArgument, PermissionDenied, ServiceNotFound
from hypha.wire import values
from hypha.wire.address import ServiceQuery

if TYPE_CHECKING:
    from hypha.broker.broker import Broker

logger = logging.getLogger(__name__)

BUILT_IN = "services.built-in."
DEFAULT = "services.default."

Run = Callable[..., Awaitable[Any]]


def as_map(argument: object, text: str) -> dict[str, Any]:
    """An argument that must be a map; a missing one is empty. Raises :class:`InvalidArgument` with *text*."""
    if argument is None:
        return {}
    if not isinstance(argument, dict):
        raise InvalidArgument(text)
    return argument


class Manager:
    """The functions that are the same for everybody, and what the others are made of."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._registry = broker.registry
        self.ledger = broker.registry.ledger

    # --- small ones -------------------------------------------------------------------------------------------

    async def echo(self, call: ServerCall, data: Any) -> Any:
        """Give *data* back."""
        return data

    async def log(self, call: ServerCall, message: Any) -> None:
        """A line for the server's log."""
        text = message[:1000] if isinstance(message, str) else reprlib.repr(message)
        logger.info("%s says %r", call.sender.name, text)

    async def get_summary(self, call: ServerCall, workspace: str | None = None) -> dict[str, Any]:
        """What is in the workspace, or in another that the caller may see."""
        return self._broker.administration.summary(self.visible(call, workspace))

    # --- services ---------------------------------------------------------------------------------------------

    def _object(
        self, call: ServerCall, name: str, prefix: str, config: dict[str, Any], table: Mapping[str, Function]
    ) -> dict[str, Any]:
        """The functions of *table* below *prefix* as a service object."""
        service: dict[str, Any] = {
            "id": name,
            "name": "Default workspace management service" if name == "default" else name,
            "type": "generic" if name == "default" else name,
            "config": {"require_context": True, **config},
        }
        for path, function in table.items():
            if path.startswith(prefix):
                *groups, last = path[len(prefix) :].split(".")
                place = service
                for group in groups:
                    place = place.setdefault(group, {})
                place[last] = values.method(str(call.to), path, **function.annotations(last))
        return service

    async def _fetch(self, provider: Session, service_id: str, patience: float | None = None) -> dict[str, Any]:
        value = await self._broker.server.get_service(provider, service_id, patience)
        if not isinstance(value, dict):
            raise ServiceNotFound(f"Service not found: {service_id}, {provider.name} answered without one")
        service: dict[str, Any] = values.absolute_targets(value, provider.address.workspace)
        if not isinstance(service.get("config"), dict):
            service["config"] = {}
        return service

    async def _set_up(self, session: PeerSession) -> None:
        """Call the function ``setup`` of a service that was exported just now, if it has one (``protocol.md`` 5.4)."""
        if values.is_method((await self._fetch(session, "default")).get("setup")):
            await self._broker.server.call(session, DEFAULT + "setup", [])

    def _matching(self, workspace: str, wanted: ServiceQuery) -> list[Service]:
        return [
            service
            for service in self._registry.named(wanted.service)
            if service.workspace == workspace and wanted.client in {None, service.client}
        ]

    def named(self, name: object) -> Workspace | None:
        """The workspace of that name; None, too, for what is no name."""
        return self._registry.workspaces.get(name) if isinstance(name, str) else None

    async def _listed(
        self, call: ServerCall, services: Iterable[Service], matches: Callable[[Service], bool] = lambda service: True
    ) -> list[Service]:
        found = await self._registry.listable_by(call.principal, call.workspace.name, services, matches)
        return self._registry.in_one_list(found)

    # --- workspaces -------------------------------------------------------------------------------------------

    def visible(self, call: ServerCall, name: object) -> Workspace:
        """The workspace of that name, the caller's own without one; one answer for all that it may not see."""
        return call.workspace if name is None else self._broker.administration.visible(call.principal, name)

    def _services_in(self, call: ServerCall, place: object) -> Iterable[Service]:
        if place == "*":
            own = list(call.workspace.services())
            return own + [item for item in self._registry.public_services() if item.workspace != call.workspace.name]
        workspace = self.named(place)
        return workspace.services() if workspace is not None else ()


# --- helpers --------------------------------------------------------------------------------------------------


def own_workspace(call: ServerCall) -> PeerSession:
    """The caller, when it is connected to the workspace that it speaks of. Raises :class:`PermissionDenied`."""
    if call.workspace.name != call.sender.address.workspace:
        raise PermissionDenied("services are registered in the workspace that the client is connected to")
    return call.sender
