"""What the server offers on the wire: its built-in service and the workspace service of legacy clients.

``protocol.md`` 5.2 to 5.6.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from hypha.broker.access import Action, Level, level_in
from hypha.broker.administering import AdministrationFunctions
from hypha.broker.endpoint import ServerCall, chunk_functions
from hypha.broker.function import Function
from hypha.broker.info import summary
from hypha.broker.issuing import issue, scopes
from hypha.broker.manager import (
    BUILT_IN,
    DEFAULT,
    Manager,
    Run,
    as_map,
    own_workspace,
)
from hypha.broker.own import Visit
from hypha.broker.registration import parse_registration, registrations
from hypha.broker.registry import not_found_hint
from hypha.broker.session import PeerSession, Service
from hypha.broker.tokens import legacy_form
from hypha.errors import InvalidArgument, NotFound, PermissionDenied, ServiceNotFound
from hypha.wire import values
from hypha.wire.address import PUBLIC_WORKSPACE, Address, ServiceQuery, check_name, parse_service_id

if TYPE_CHECKING:
    from hypha.broker.broker import Broker


#: What clients read of a built-in service: whether they may send parts in any order (``protocol.md`` 2.7).
BUILT_IN_CONFIG = {"visibility": "public", "api_version": 3}


class ClientNotFound(NotFound):
    """No such client in the own workspace; legacy users match on ``Client not found: x`` (``protocol.md`` 5.5)."""

    remote_type = "Exception"


def functions(broker: Broker) -> dict[str, Function]:
    """Every function of ``<workspace>/workspace-manager`` by its full path."""
    service = LegacyManager(broker)
    table = built_in_functions(broker)
    table[BUILT_IN + "get_service"] = Function.of(service.get_built_in_service)
    table["built_in_with_api_version"] = Function.of(service.built_in_with_api_version)
    for names, run, needs in service.exported():
        for name in names:
            table[DEFAULT + name] = Function.of(run, needs)
    return table


def built_in_functions(broker: Broker) -> dict[str, Function]:
    """The functions of the built-in service that are the same at every address of the server."""
    table = chunk_functions(broker.server)
    table[BUILT_IN + "ping"] = Function.of(_ping)
    return table


async def _ping(call: ServerCall, message: str) -> str:
    if message != "ping":
        raise InvalidArgument("ping takes the text 'ping'")
    return "pong"


def camel(name: str) -> str:
    """``get_service`` -> ``getService``."""
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


class LegacyManager(Manager):
    """The service ``default`` of ``<workspace>/workspace-manager`` (``protocol.md`` 5.2)."""

    def exported(self) -> Iterable[tuple[tuple[str, ...], Run, Action]]:
        """Each function with its names, snake_case first, and what its caller must be allowed to do."""
        reading: tuple[Run, ...] = (
            self.echo,
            self.get_connection_info,
            self.list_services,
            self.list_clients,
            self.list_user_clients,
            self.get_service,
            self.generate_token,
            self.get_summary,
        )
        writing: tuple[Run, ...] = (self.update_client_info, self.register_service)
        for run in reading:
            yield _names(run), run, Action.READ
        for run in writing:
            yield _names(run), run, Action.WRITE
        yield ("set",), self.set_workspace_info, Action.ADMINISTER
        for level in ("log", "info", "warning", "error", "critical"):
            yield (level,), self.log, Action.READ
        for run, needs in AdministrationFunctions(self._broker).exported():
            yield _names(run), run, needs

    # --- the service as an object -----------------------------------------------------------------------------

    async def get_built_in_service(self, call: ServerCall, service_id: str) -> dict[str, Any]:
        """The service object, as a client asks for it right after it connected."""
        if service_id == "built-in":
            table = self._broker.server.functions
            return self._object(call, "built-in", BUILT_IN, BUILT_IN_CONFIG, table)
        if service_id != "default":
            raise ServiceNotFound(f"Service not found: {str(service_id)[:200]}")
        if level_in(call.principal, call.workspace) is Level.NONE and call.workspace.name != PUBLIC_WORKSPACE:
            raise PermissionDenied(f"Permission denied for service: {service_id}")
        visibility = "public" if call.workspace.name == PUBLIC_WORKSPACE else "protected"
        config = {
            "visibility": visibility,
            "workspace": call.workspace.name,
            "public_base_url": self._broker.public_base_url(call.sender),
            "local_base_url": call.sender.base_url,
        }
        return self._object(call, "default", DEFAULT, config, self._broker.server.functions)

    async def built_in_with_api_version(self, call: ServerCall, service_id: str) -> dict[str, Any]:
        """A legacy client's built-in service with the key that modern clients read (``protocol.md`` 2.7)."""
        provider = self._registry.find(call.to)
        if provider is None:
            raise ClientNotFound(f"Client not found: {call.to.client}")
        if service_id != "built-in":
            self._require_callable(call, provider, service_id)
        service = await self._fetch(provider, service_id)
        if service_id == "built-in":
            service["config"]["api_version"] = 1
        return service

    def _require_callable(self, call: ServerCall, provider: PeerSession, service_id: object) -> None:
        """A provider trusts the server, which therefore looks itself who wants a service of another workspace."""
        home = call.sender.address.workspace
        found = [service for service in provider.services.values() if service.id == service_id]
        if provider.address.workspace != home and not self._registry.callable_by(call.principal, home, found):
            raise PermissionDenied(f"Permission denied for service: {service_id}")

    # --- small ones -------------------------------------------------------------------------------------------

    async def get_connection_info(self, call: ServerCall) -> dict[str, Any]:
        """Who and where the caller is, with the token to come back as the same client (``protocol.md`` 1.6)."""
        life = self._broker.config.limits.reconnection_token_seconds
        return {
            "workspace": call.sender.address.workspace,
            "client_id": call.sender.address.client,
            "user_info": call.principal.to_wire(call.sender.address.workspace),
            "reconnection_token": self._broker.resumption_token(call.sender),
            "reconnection_expires_in": life,
            "public_base_url": self._broker.public_base_url(call.sender),
            "local_base_url": call.sender.base_url,
        }

    async def list_clients(self, call: ServerCall, workspace: str | None = None) -> list[str]:
        """The plain ids of the clients of the workspace, or of another that the caller may see; the server's, too."""
        return ["workspace-manager", *self.visible(call, workspace).members]

    async def list_user_clients(self, call: ServerCall) -> list[str]:
        """The absolute ids of the caller's clients in all workspaces."""
        return [member.name for member in self._registry.sessions_of(call.principal.id)]

    # --- registration (protocol.md 5.4) -----------------------------------------------------------------------

    async def update_client_info(self, call: ServerCall, info: dict[str, Any]) -> None:
        """Replace the caller's services by those in ``info["services"]``.

        A new one called ``default`` is what ``export`` makes; its function ``setup`` is called (``protocol.md`` 5.4).
        """
        session = own_workspace(call)
        if not isinstance(info, dict) or info.get("id") != session.address.client:
            raise InvalidArgument("update_client_info takes a map whose 'id' is the client's own")
        entries = info.get("services") or []
        if not isinstance(entries, list):
            raise InvalidArgument("'services' must be a list")
        parsed = [parse_registration(entry, session.address.client) for entry in entries]
        exported = any(entry.id == "default" for entry in parsed) and "default" not in session.services
        self._registry.require_room(session, [entry.id for entry in parsed if not entry.is_hidden])
        self._registry.announce(session, parsed)
        if exported:
            await self._set_up(session)

    async def register_service(
        self, call: ServerCall, service: dict[str, Any], overwrite: bool = False, notify: bool = True
    ) -> dict[str, Any]:
        """Register a service of the caller.

        The functions in *service* live in the session of this very call, so the client must take them over before
        it is answered (``protocol.md`` 5.4, trap 2). Its own answer names the registration.
        """
        session = own_workspace(call)
        if not isinstance(service, dict):
            raise InvalidArgument("register_service takes a map with an 'id' and functions")
        prepared = _prepare(service, call.workspace.name)
        answer = await self._broker.server.call(
            session, BUILT_IN + "register_service", [prepared, bool(overwrite), bool(notify)]
        )
        registration = parse_registration(answer, session.address.client)
        if registration.id not in session.services:  # the client was told not to notify
            self._registry.require_room(session, [*session.services, registration.id])
            self._registry.announce(session, [*registrations(session), registration])
        return {**answer, "id": f"{session.name}:{registration.id}"}

    # --- looking up (protocol.md 5.5) -------------------------------------------------------------------------

    async def get_service(self, call: ServerCall, query: Any) -> dict[str, Any]:
        """The service that *query* names, with absolute function targets."""
        wanted, text = _parse_query(query)
        home = call.workspace.name
        if isinstance(query, dict) and query.get("launch") is True and not any(self._matching(home, wanted)):
            wanted, text = await self._launched(call, query, wanted)
        if wanted.service == "built-in" and wanted.client is not None and wanted.workspace in {None, home}:
            await self._broker.returning.client(Address(home, wanted.client))
            member = call.workspace.members.get(wanted.client)
            if member is None:
                raise ClientNotFound(f"Client not found: {wanted.client}")
            return await self._fetch(member, "built-in")
        look = partial(self._resolve, call, wanted, text)
        service = await self._broker.returning.find(look, _readings(wanted, text), call.principal, home)
        found = await self._fetch(service.session, service.id)
        found["config"]["workspace"] = service.workspace
        return found

    async def _launched(
        self, call: ServerCall, query: dict[str, Any], wanted: ServiceQuery
    ) -> tuple[ServiceQuery, str]:
        """The service of an installed app, which is started for it (``protocol.md`` 5.8)."""
        if self._broker.launch is None:
            raise ServiceNotFound(f"Service id {wanted.service[:200]} not found: this server runs no apps")
        visit = Visit(call.principal, call.workspace.name, call.sender.base_url, call.sender.dialect.language)
        name = query.get("client_name")
        client = await self._broker.launch(visit, wanted.service, name if isinstance(name, str) else None)
        found = ServiceQuery(call.workspace.name, client, wanted.service)
        return found, f"{call.workspace.name}/{client}:{wanted.service}"

    def _resolve(self, call: ServerCall, wanted: ServiceQuery, text: str) -> Service:
        registry, home = self._registry, call.workspace.name
        if wanted.workspace is None and wanted.client is None:
            providers = registry.providers(wanted.service, call.principal, home)
            if providers:
                return providers[0]
            hint = not_found_hint(registry.near_names(wanted.service, call.principal, home))
            raise ServiceNotFound(f"Service not found: {wanted.service} in workspace *{hint}")
        place = wanted.workspace or home
        for reading in _readings(wanted, text):
            permitted = registry.callable_by(call.principal, home, self._matching(place, reading))
            if permitted:
                return permitted[0]
        if place != home:
            # One answer for what is there and for what is not (decisions.md 17).
            raise PermissionDenied(f"Permission denied for service: {wanted.service}")
        if wanted.client is not None and wanted.client not in call.workspace.members:
            raise ClientNotFound(f"Client not found: {wanted.client}")
        raise ServiceNotFound(f"Service not found: {wanted.service} in workspace {place}")

    async def list_services(self, call: ServerCall, query: Any = None) -> list[dict[str, Any]]:
        """Services as ``protocol.md`` 5.6 says: of the workspace, of all for ``"public"``, or those that match."""
        if isinstance(query, str):
            services = (
                self._registry.public_services()
                if query == "public"
                else self._services_in(call, query or call.workspace.name)
            )
            return [summary(service) for service in await self._listed(call, services)]
        if query is not None and not isinstance(query, dict):
            raise InvalidArgument("list_services takes a workspace name, 'public' or a map of what to match")
        filters = dict(query or {})
        services = self._services_in(call, filters.pop("workspace", None) or call.workspace.name)

        def matches(service: Service) -> bool:
            entry = summary(service)
            return all(entry.get(key) == value for key, value in filters.items())

        return [summary(service) for service in await self._listed(call, services, matches)]

    # --- workspaces and tokens --------------------------------------------------------------------------------

    async def generate_token(self, call: ServerCall, config: dict[str, Any] | None = None) -> str:
        """A token for the workspaces in ``config["scopes"]``, never wider or longer than the caller's own rights."""
        config = as_map(config, "generate_token takes a map")
        grants = scopes(self._broker, call.principal, config, call.workspace.name)
        home = next((name for name in grants if name == config.get("workspace")), None)
        return legacy_form(*issue(self._broker, call.principal, config, grants, home))

    async def set_workspace_info(self, call: ServerCall, config: dict[str, Any]) -> None:
        """Change the WorkspaceInfo of the workspace."""
        self._broker.administration.update(call.principal, call.workspace, config)


# --- helpers --------------------------------------------------------------------------------------------------


def _names(run: Run) -> tuple[str, ...]:
    name = run.__name__
    return (name,) if camel(name) == name else (name, camel(name))


def _prepare(service: dict[str, Any], workspace: str) -> dict[str, Any]:
    """The service as it goes back to its client: absolute targets, and ``private`` as the word that clients accept."""
    if service.get("id") is not None:  # without one the client chooses
        _check_service_id(service["id"])
    prepared: dict[str, Any] = values.absolute_targets(service, workspace)
    config = prepared.get("config")
    if config is None:
        config = prepared["config"] = {}
    if not isinstance(config, dict):
        raise InvalidArgument("the service's config must be a map")
    config["workspace"] = workspace
    if config.get("visibility") == "private":
        config["visibility"] = "protected"
    return prepared


def _check_service_id(name: object) -> None:
    # Clients find functions by dotted paths (protocol.md 2.2), so that no call would reach a service with a dot.
    if "." in check_name("service id", name):
        raise InvalidArgument(f"service id {name!r} must not contain '.'")


def _parse_query(query: Any) -> tuple[ServiceQuery, str]:
    """Read a legacy query: text, or a map in which unknown keys are ignored (``protocol.md`` 5.5)."""
    if isinstance(query, str):
        return _parse_text(query), query
    if not isinstance(query, dict):
        raise InvalidArgument("get_service takes a service id or a map with 'id'")
    text = query.get("service_id") or query.get("id") or "default"
    if not isinstance(text, str):
        raise InvalidArgument("the service id must be text")
    wanted = _parse_text(text)
    for key, present in (("workspace", wanted.workspace), ("client_id", wanted.client)):
        value = query.get(key)
        if isinstance(value, str) and value != "*" and present is None:
            wanted = wanted._replace(**{"workspace" if key == "workspace" else "client": value})
    return wanted, text


def _parse_text(text: str) -> ServiceQuery:
    wanted = parse_service_id(text)
    if "/" in text and ":" not in text:  # legacy: ws/client means its default service
        return ServiceQuery(wanted.workspace, wanted.service, "default")
    return wanted


def _readings(wanted: ServiceQuery, text: str) -> tuple[ServiceQuery, ...]:
    """``ws/x``: x is a client to legacy callers; where there is none, x is read as a service, as modern ones do."""
    if "/" in text and ":" not in text and wanted.client is not None:
        return wanted, ServiceQuery(wanted.workspace, None, wanted.client)
    return (wanted,)
