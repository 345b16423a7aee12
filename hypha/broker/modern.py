"""The manager of modern clients: the service ``default`` of ``*/<server id>`` (``protocol.md`` 5.3 to 5.6)."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

import hypha
from hypha.broker import events
from hypha.broker.access import Action, level_in, may
from hypha.broker.administering import AdministrationFunctions
from hypha.broker.bookmarks import BookmarkFunctions
from hypha.broker.builtin import BUILT_IN_CONFIG, built_in_functions
from hypha.broker.endpoint import ServerCall
from hypha.broker.environment import EnvironmentFunctions
from hypha.broker.function import Function
from hypha.broker.info import built_in_info, service_info
from hypha.broker.issuing import issue, scopes
from hypha.broker.journal import JournalFunctions
from hypha.broker.manager import BUILT_IN, DEFAULT, Manager, Run, as_map
from hypha.broker.registration import parse_registration
from hypha.broker.registry import not_found_hint
from hypha.broker.selection import choose
from hypha.broker.service_types import ServiceTypeFunctions
from hypha.broker.session import PeerSession, Service
from hypha.errors import HyphaError, InvalidArgument, NotFound, PermissionDenied, ServiceNotFound
from hypha.wire.address import PUBLIC_WORKSPACE, Address, ServiceQuery, check_name, parse_service_id, parse_target

if TYPE_CHECKING:
    from hypha.broker.broker import Broker

logger = logging.getLogger(__name__)

_BUILT_IN_NAME = "built-in"
_MANAGER_NAME = "~"
_LIST_KEYS = frozenset({"visibility", "workspace", "client_id", "service_id", "id", "type", "app_id"})
_PING_SECONDS = 5.0
_MAX_PING_SECONDS = 60.0


class NoSuchService(ServiceNotFound):
    """No service answers to the query; clients of the second generation know it as a KeyError."""

    remote_type = NotFound.remote_type


class SearchDisabled(NotFound):
    """There is no search; users of the original know these words."""

    remote_type = "RuntimeError"


def functions(broker: Broker) -> dict[str, Function]:
    """Every function of ``*/<server id>`` by its full path."""
    manager = ModernManager(broker)
    table = built_in_functions(broker)
    table[BUILT_IN + "get_service"] = Function.of(manager.get_built_in_service)
    offered = (
        manager.exported(),
        JournalFunctions(broker).exported(),
        ServiceTypeFunctions(manager).exported(),
        BookmarkFunctions(manager).exported(),
        EnvironmentFunctions(manager).exported(),
        AdministrationFunctions(broker).exported(),
    )
    for run, needs in itertools.chain.from_iterable(offered):
        table[DEFAULT + run.__name__] = Function.of(run, needs, described=True)
    return table


class ModernManager(Manager):
    """One for all workspaces: each call is about the one that its caller is connected to, unless it names another."""

    def exported(self) -> Iterator[tuple[Run, Action]]:
        """Each function with what its caller must be allowed to do in the workspace that it is connected to."""
        reading: tuple[Run, ...] = (
            self.echo,
            self.register_service,
            self.get_service,
            self.get_service_info,
            self.list_services,
            self.search_services,
            self.list_clients,
            self.ping,
            self.generate_token,
            self.parse_token,
            self.get_summary,
            self.check_status,
            self.subscribe,
            self.unsubscribe,
        )
        for run in reading:
            yield run, Action.READ
        yield self.unregister_service, Action.WRITE
        yield self.cleanup, Action.READ

    async def get_built_in_service(self, call: ServerCall, service_id: str) -> dict[str, Any]:
        """The server's own services as objects."""
        if service_id == _BUILT_IN_NAME:
            return self._object(call, _BUILT_IN_NAME, BUILT_IN, BUILT_IN_CONFIG, self._broker.server.modern_functions)
        if service_id == "default":
            return self._own_object(call)
        own = [service for service in self._registry.named(str(service_id)) if service.session is self._broker.server]
        if not self._registry.callable_by(call.principal, call.workspace.name, own):
            raise NotFound(f"'Service not found: {str(service_id)[:200]}'")
        return self._broker.server.own.interface(service_id)

    def _own_object(self, call: ServerCall) -> dict[str, Any]:
        config = {
            "visibility": "public",
            "workspace": call.workspace.name,
            "server_id": self._broker.server.address.client,
            "hypha_version": hypha.__version__,
            "public_base_url": self._broker.public_base_url(call.sender),
            "local_base_url": call.sender.base_url,
        }
        return self._object(call, "default", DEFAULT, config, self._broker.server.modern_functions)

    # --- registration by description --------------------------------------------------------------------------

    async def register_service(
        self, call: ServerCall, service: dict[str, Any], config: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Enter a service, or replace it; its functions stay with the client.

        Each client registers its built-in service when it has connected, also one that may only read.
        """
        session = call.sender
        entry = parse_registration(service, session.address.client)
        if entry.is_hidden:
            if entry.id == _BUILT_IN_NAME:
                data = {"id": session.name, "workspace": call.workspace.name}
                events.publish(call.workspace, "client_updated", lambda: data)
            return
        if not may(call.principal, Action.WRITE, call.workspace).allowed:
            raise PermissionDenied(f"Permission denied for workspace {call.workspace.name}.")
        exported = entry.id == "default" and "default" not in session.services
        self._registry.register(session, entry)
        if exported:
            await self._set_up_quietly(session)

    async def _set_up_quietly(self, session: PeerSession) -> None:
        try:
            await self._set_up(session)
        except HyphaError as exc:
            logger.info("the setup of %s:default failed: %s", session.name, exc)

    async def unregister_service(self, call: ServerCall, service_id: str) -> None:
        """Take a service of the caller out."""
        session = call.sender
        wanted, _ = self._parse(call, service_id)
        if wanted.client not in {None, session.address.client} or wanted.workspace not in {None, call.workspace.name}:
            raise PermissionDenied("a service is unregistered by the client that offers it")
        if not self._registry.unregister(session, wanted.service):
            raise NotFound(f"'Service not found: {session.name}:{wanted.service}'")

    # --- looking up -------------------------------------------------------------------------------------------

    async def get_service(
        self, call: ServerCall, service_id: str, config: dict[str, Any] | None = None, **options: Any
    ) -> dict[str, Any]:
        """The service of that id, to be called. Of several, the option ``mode`` says which."""
        options = {**as_map(config, "the config of get_service must be a map"), **options}
        wanted, app = self._parse(call, service_id)
        if wanted.service == _MANAGER_NAME:
            return {**self._own_object(call), "id": f"{self._broker.server.name}:default"}
        patience = _seconds(options.get("timeout"))
        if wanted.service == _BUILT_IN_NAME:
            member = await self._member(call, wanted)
            found, full_id = await self._fetch(member, _BUILT_IN_NAME, patience), f"{member.name}:{_BUILT_IN_NAME}"
        else:
            service = await self._find(call, wanted, app, options.get("mode"))
            found, full_id = await self._fetch(service.session, service.id, patience), service.full_id
        workspace, _, rest = full_id.partition("/")
        url = f"{self._broker.public_base_url(call.sender)}/{workspace}/services/{rest}"
        found["config"] |= {"workspace": workspace, "url": url}
        return {**found, "id": full_id}

    async def get_service_info(
        self, call: ServerCall, service_id: str, config: dict[str, Any] | None = None, **options: Any
    ) -> dict[str, Any]:
        """What is known of a service, without asking its client."""
        options = {**as_map(config, "the config of get_service_info must be a map"), **options}
        wanted, app = self._parse(call, service_id)
        if wanted.service == _BUILT_IN_NAME:
            return built_in_info(await self._member(call, wanted))
        return service_info(await self._find(call, wanted, app, options.get("mode")))

    def _parse(self, call: ServerCall, service_id: object) -> tuple[ServiceQuery, str | None]:
        """Read ``[workspace/][client:]service[@app]``, where ``~`` is the manager. Raises InvalidArgument."""
        if not isinstance(service_id, str):
            raise InvalidArgument("Service ID must be a string.")
        text, at, app = service_id.partition("@")
        if text in {_MANAGER_NAME, f"{call.workspace.name}/{_MANAGER_NAME}"}:
            return ServiceQuery(None, None, _MANAGER_NAME), None
        if at and (not app or "@" in app):
            raise InvalidArgument(f"service id {service_id[:200]!r} is not of the form [workspace/][client:]id[@app]")
        if text.startswith("*/"):
            raise InvalidArgument("the workspace of a service cannot be '*'; leave it out, or name one")
        wanted = parse_service_id(text)
        if wanted.service == "*":
            raise InvalidArgument("'*' names no service")
        return wanted, None if app in {"", "*"} else app

    async def _member(self, call: ServerCall, wanted: ServiceQuery) -> PeerSession:
        """Whose built-in service is meant: a client of the own workspace's."""
        place = wanted.workspace or call.workspace.name
        if place != call.workspace.name:
            raise PermissionDenied(f"Permission denied for non-public service in workspace {place}")
        name = wanted.client or call.sender.address.client
        await self._broker.returning.client(Address(place, name))
        member = call.workspace.members.get(name)
        if member is None:
            raise _not_found(place, wanted, None)
        return member

    async def _find(self, call: ServerCall, wanted: ServiceQuery, app: str | None, mode: object) -> Service:
        look, home = partial(self._resolve, call, wanted, app, mode), call.workspace.name
        try:
            return await self._broker.returning.find(look, [wanted], call.principal, home, app)
        except NoSuchService:
            # Takes a while to find out, and is asked for only when nobody is waited for any more.
            hint = not_found_hint(self._registry.near_names(wanted.service, call.principal, home))
            raise _not_found(wanted.workspace or home, wanted, app, hint) from None

    def _resolve(self, call: ServerCall, wanted: ServiceQuery, app: str | None, mode: object) -> Service:
        registry, home = self._registry, call.workspace.name
        place = wanted.workspace or home
        if wanted.workspace is None and wanted.client is None:
            found = registry.providers(wanted.service, call.principal, home)
        else:
            found = registry.callable_by(call.principal, home, self._matching(place, wanted))
        found = [service for service in found if app in {None, service.app_id}]
        if found:
            return choose(found, mode)
        if place not in {home, PUBLIC_WORKSPACE}:
            # One answer for what is there and for what is not (decisions.md 17).
            raise PermissionDenied(f"Permission denied for non-public service in workspace {place}")
        raise _not_found(place, wanted, app)

    async def list_services(
        self,
        call: ServerCall,
        query: str | dict[str, Any] | None = None,
        include_unlisted: bool = False,
        include_app_services: bool = False,
        prioritize_running_services: bool = False,
    ) -> list[dict[str, Any]]:
        """Services of the workspace, of another, of all that are public (``"*"``), or those that match a map."""
        filters = self._filters(call, query)
        place = filters.pop("workspace", call.workspace.name)
        own_one = [call.workspace] if place in {"*", call.workspace.name} else []
        built_ins = [built_in_info(member) for workspace in own_one for member in workspace.members.values()]

        def matches(service: Service) -> bool:
            hidden = service.visibility == "unlisted" and not (include_unlisted and own_one)
            return not hidden and _matches(service_info(service), filters)

        listed = await self._listed(call, self._services_in(call, place), matches)
        return [entry for entry in built_ins if _matches(entry, filters)] + [service_info(item) for item in listed]

    async def search_services(self, call: ServerCall, query: Any = None, **options: Any) -> None:
        """Not possible: this server finds services by name, type and place, as ``list_services`` does."""
        raise SearchDisabled("Service search is not enabled.")

    def _filters(self, call: ServerCall, query: object) -> dict[str, Any]:
        """A query as what to match. Raises :class:`InvalidArgument`, for unknown keys too."""
        if isinstance(query, str):
            if not {"/", ":"} & set(query):
                return {"workspace": query}
            wanted = parse_service_id(query.removesuffix("@*"))
            parts = {"client_id": wanted.client, "service_id": _named(wanted.service)}
            place = "*" if query.startswith("*/") else wanted.workspace or call.workspace.name
            return {"workspace": place} | {key: part for key, part in parts.items() if part is not None}
        filters = dict(as_map(query, "list_services takes text or a map of what to match"))
        unknown = sorted(str(key) for key in filters if key not in _LIST_KEYS)
        if unknown:
            raise InvalidArgument(f"Invalid query keys: {', '.join(unknown)[:200]}")
        filters["service_id"] = filters.pop("id", None) or filters.get("service_id")
        return {key: value for key, value in filters.items() if value is not None}

    # --- clients ----------------------------------------------------------------------------------------------

    async def list_clients(self, call: ServerCall, workspace: str | None = None) -> list[dict[str, Any]]:
        """The clients of the workspace, or of another that the caller may see, each with its user."""
        return self._broker.administration.clients(self.visible(call, workspace))

    async def ping(self, call: ServerCall, client_id: str, timeout: float = 5) -> str:  # noqa: ASYNC109  a wire name
        """``"pong"`` when the client answers, otherwise what is wrong with it."""
        address = _address(client_id, call.workspace.name)
        place = self.visible(call, address.workspace)
        member = place.members.get(address.client)
        if member is None:
            return f"Client not found: {address}"
        try:
            answer = await self._broker.server.call(member, BUILT_IN + "ping", ["ping"], patience=_seconds(timeout))
        except HyphaError as exc:
            return f"Failed to ping client {address}: {exc}"
        return str(answer)

    async def cleanup(
        self,
        call: ServerCall,
        workspace: str | None = None,
        timeout: float = 5,  # noqa: ASYNC109  a wire name
    ) -> dict[str, Any]:
        """Disconnect the clients of a workspace that do not answer a ping; those that live return by themselves."""
        place = self.visible(call, workspace)
        if not may(call.principal, Action.ADMINISTER, place).allowed:
            raise PermissionDenied(f"Permission denied for workspace {place.name}.")
        silent: list[PeerSession] = []
        patience = min(_seconds(timeout) or _PING_SECONDS, _MAX_PING_SECONDS)
        async with trio.open_nursery() as nursery:
            for member in place.members.values():
                nursery.start_soon(self._note_silence, member, patience, silent)
        for member in silent:
            self._broker.lose(member, "did not answer a ping")
        return {"removed_clients": [member.name for member in silent]} if silent else {}

    async def _note_silence(self, member: PeerSession, patience: float, silent: list[PeerSession]) -> None:
        if not await self._broker.is_alive(member, patience) and member.open:
            silent.append(member)

    # --- tokens -----------------------------------------------------------------------------------------------

    async def generate_token(self, call: ServerCall, config: dict[str, Any] | None = None, **options: Any) -> str:
        """A token for the workspace, or the one in ``config["workspace"]``, never more than the caller's own rights."""
        settings = {**as_map(config, "generate_token takes a map"), **options}
        if settings.get("extra_scopes"):
            raise InvalidArgument("extra_scopes are not known to this server")
        grants = scopes(self._broker, call.principal, settings, call.workspace.name)
        home = settings.get("workspace") or next(iter(grants))
        return issue(self._broker, call.principal, settings, grants, home if home in grants else None)[1]

    async def parse_token(self, call: ServerCall, token: str) -> dict[str, Any]:
        """The user that a token proves."""
        return self._broker.tokens.verify(_token(token)).to_wire(call.workspace.name)

    # --- workspaces -------------------------------------------------------------------------------------------

    async def check_status(self, call: ServerCall) -> dict[str, Any]:
        """Whether the workspace can be used, and what the caller may do in it."""
        return {
            "status": "ready",
            "errors": None,
            "user_permission": level_in(call.principal, call.workspace).letter,
        }

    # --- events -----------------------------------------------------------------------------------------------

    async def subscribe(self, call: ServerCall, event_type: str | list[str]) -> bool:
        """Let the caller hear of events that are broadcast in its workspace."""
        events.subscribe(call.sender, event_type)
        self.ledger.session(call.sender)
        return True

    async def unsubscribe(self, call: ServerCall, event_type: str | list[str]) -> bool:
        """The opposite of ``subscribe``."""
        events.unsubscribe(call.sender, event_type)
        self.ledger.session(call.sender)
        return True


# --- helpers --------------------------------------------------------------------------------------------------


def _not_found(place: str, wanted: ServiceQuery, app: str | None, hint: str = "") -> NoSuchService:
    asked = f"{place}/{wanted.client or '*'}:{wanted.service}@{app or '*'}"
    return NoSuchService(f"'Service not found: {asked}'{hint}")


def _matches(entry: dict[str, Any], filters: dict[str, Any]) -> bool:
    """Whether a ServiceInfo is what was asked for; ``*`` stands for anything."""
    client, _, service = entry["id"].partition("/")[2].partition(":")
    told = {**entry, "visibility": entry["config"]["visibility"], "client_id": client, "service_id": service}
    return all(value == "*" or told[key] == value for key, value in filters.items())


def _token(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidArgument("a token is text")
    return value


def _seconds(value: object) -> float | None:
    """A time to wait; None, which stands for the server's own, for what is none."""
    return float(value) if isinstance(value, int | float) and 0 < value <= 86400 else None


def _named(part: str) -> str | None:
    return None if part == "*" else part


def _address(client_id: object, workspace: str) -> Address:
    text = check_name("client id", client_id) if "/" not in str(client_id) else str(client_id)
    return parse_target(text, workspace)
