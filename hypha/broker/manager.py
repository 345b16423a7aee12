"""What the server's managers of both client generations have in common (``protocol.md`` 5).

A function declares what it needs in its caller's own workspace, and the endpoint asks :func:`hypha.broker.access.may`
before it runs. What concerns another workspace it asks about itself, with the same function.
"""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hypha.broker.access import Action, Level, Principal, level_in, may
from hypha.broker.endpoint import ServerCall
from hypha.broker.function import Function
from hypha.broker.info import summary
from hypha.broker.issuing import grant
from hypha.broker.registry import Workspace
from hypha.broker.session import PeerSession, Service, Session
from hypha.broker.tokens import is_user_id
from hypha.errors import Conflict, InvalidArgument, LimitExceeded, PermissionDenied, ServiceNotFound
from hypha.wire import values
from hypha.wire.address import ServiceQuery

if TYPE_CHECKING:
    from hypha.broker.broker import Broker

logger = logging.getLogger(__name__)

BUILT_IN = "services.built-in."
DEFAULT = "services.default."

Run = Callable[..., Awaitable[Any]]


class InvalidKey(InvalidArgument):
    """WorkspaceInfo does not have the key that it was given."""

    remote_type = "KeyError"


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

    async def get_summary(self, call: ServerCall) -> dict[str, Any]:
        """What is in the workspace."""
        services = list(call.workspace.services())
        return {
            "name": call.workspace.name,
            "description": call.workspace.description,
            "client_count": len(call.workspace.members),
            "clients": list(call.workspace.members),
            "service_count": len(services),
            "services": [summary(service) for service in self._registry.in_one_list(services)],
        }

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

    # --- tokens and workspaces --------------------------------------------------------------------------------

    def _grants(self, call: ServerCall, config: dict[str, Any]) -> dict[str, Level]:
        scopes = config.get("scopes") or [config.get("workspace") or call.workspace.name]
        if not isinstance(scopes, list) or not all(isinstance(name, str) for name in scopes):
            raise InvalidArgument("Scopes must be empty or contains a list of workspace names.")
        asked = config.get("permission")
        wanted = Level.parse(asked) if isinstance(asked, str) else None
        if asked is not None and wanted is None:
            raise InvalidArgument("permission must be read, read_write or admin")
        return {name: grant(self._broker, call.principal, name, wanted) for name in scopes}

    async def create_workspace(
        self, call: ServerCall, config: dict[str, Any], overwrite: bool = False
    ) -> dict[str, Any]:
        """Create a workspace that the caller owns; a persistent one only for users with an account."""
        if not isinstance(config, dict):
            raise InvalidArgument("create_workspace takes a map with a 'name'")
        name = config.get("name") or config.get("id")
        if config.get("persistent") and call.principal.is_anonymous:
            raise PermissionDenied("Only registered user can create persistent workspace.")
        settings = workspace_settings({key: value for key, value in config.items() if key not in {"name", "id"}})
        existing = self.named(name)
        if existing is None:
            self._require_room(call.principal)
            if isinstance(name, str) and is_user_id(name) and name != call.principal.id:
                raise PermissionDenied("a name of this form is some user's own workspace; choose another")
            existing = self._registry.create_workspace(name, persistent=bool(config.get("persistent")))
            existing.creator = call.principal.email or call.principal.id
            existing.idle_since = self._broker.now()
        elif not overwrite or level_in(call.principal, existing) is not Level.ADMIN:
            raise Conflict(f"Workspace {name} already exists.")
        apply(existing, settings)
        caller = call.principal.email or call.principal.id
        if caller not in existing.owners:
            existing.owners.append(caller)
        self.ledger.workspace(existing)
        return existing.describe()

    def _require_room(self, principal: Principal) -> None:
        limit = self._registry.limits.workspaces_per_principal
        creator = principal.email or principal.id
        created = sum(1 for workspace in self._registry.workspaces.values() if workspace.creator == creator)
        if created >= limit:
            raise LimitExceeded(f"workspaces_per_principal = {limit} workspaces are yours already")

    async def get_workspace_info(self, call: ServerCall, workspace: str | None = None) -> dict[str, Any]:
        """The WorkspaceInfo of the workspace, or of another that the caller may see."""
        return self.visible(call, workspace).describe()

    def visible(self, call: ServerCall, name: object) -> Workspace:
        """The workspace of that name, the caller's own without one; one answer for all that it may not see."""
        if name is None or name == call.workspace.name:
            return call.workspace
        place = self.named(name)
        if place is None or not may(call.principal, Action.READ, place).allowed:
            raise PermissionDenied(f"Permission denied for workspace {str(name)[:200]}.")
        return place

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


_LISTS = ("owners", "allow_list", "deny_list")
_MAX_LIST = 1000
_WORKSPACE_KEYS = frozenset({*_LISTS, "persistent", "visibility", "description"})
#: Keys of WorkspaceInfo that users of the original pass and that mean nothing here.
_IGNORED_KEYS = frozenset(
    {"read_only", "icon", "covers", "docs", "applications", "interfaces", "config", "environments"}
)


def workspace_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Check settings of a workspace. Raises :class:`InvalidKey` or :class:`InvalidArgument`."""
    settings = {key: value for key, value in config.items() if key not in _IGNORED_KEYS and value is not None}
    for key, value in settings.items():
        if key not in _WORKSPACE_KEYS:
            raise InvalidKey(f"Invalid key: {str(key)[:100]}")
        if key in _LISTS:
            _check_list(key, value)
    if settings.get("visibility", "protected") not in ("public", "protected"):
        raise InvalidArgument("visibility of a workspace must be public or protected")
    if not isinstance(settings.get("description", ""), str):
        raise InvalidArgument("description must be text")
    return settings


def _check_list(key: str, value: Any) -> None:
    # Every decision about the workspace looks into its lists.
    if not isinstance(value, list) or not all(isinstance(item, str) and len(item) <= 256 for item in value):
        raise InvalidArgument(f"{key} must be a list of texts")
    if len(value) > _MAX_LIST:
        raise LimitExceeded(f"{key} takes at most {_MAX_LIST} entries")


def apply(workspace: Workspace, settings: dict[str, Any]) -> None:
    """Change a workspace by settings that were checked."""
    for key in _LISTS:
        if key in settings:
            setattr(workspace, key, list(settings[key]))
    workspace.persistent = bool(settings.get("persistent", workspace.persistent))
    workspace.visibility = settings.get("visibility", workspace.visibility)
    workspace.description = settings.get("description", workspace.description)
