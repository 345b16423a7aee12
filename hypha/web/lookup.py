"""Which service and which function a path means, and as whom a request calls."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from hypha.broker.access import Level, Principal, level_in
from hypha.broker.broker import Broker
from hypha.broker.registry import Workspace, not_found_hint
from hypha.broker.selection import choose
from hypha.broker.session import Service
from hypha.errors import NotFound
from hypha.wire import values
from hypha.wire.address import HTTP_CLIENT, Address, ServiceQuery, parse_service_id
from hypha.wire.frame import Fields


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names."""

    workspace: str
    service: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Caller:
    """As whom an HTTP request calls. *source*: the address that the function sees as ``from``."""

    principal: Principal
    source: Address

    def stamp(self) -> Fields:
        """What the called function sees of the caller."""
        home = self.source.workspace
        return Fields.encode({"from": str(self.source), "user": self.principal.to_wire(home), "ws": home})


def parse_path(path: str) -> Target | None:
    """The target of an undecoded *path*, or None when it is not the path of a function."""
    segments = [unquote(segment) for segment in path.split("/")]
    if len(segments) < 5 or segments[0] or segments[2] != "services" or not all(segments[1:]):
        return None
    keys = tuple(key for segment in segments[4:] for key in segment.split("."))
    return Target(segments[1], segments[3], keys)


async def find(broker: Broker, target: Target, principal: Principal, mode: str | None = None) -> tuple[Service, Caller]:
    """As :func:`resolve`, but a client that is about to come back is waited for (``decisions.md`` 12)."""
    workspace = broker.registry.workspaces.get(target.workspace)
    wanted = parse_service_id(target.service)
    if workspace is None or wanted.workspace is not None:
        return resolve(broker, target, principal, mode)
    caller = caller_in(principal, workspace)
    query = ServiceQuery(workspace.name, wanted.client, wanted.service)

    def look() -> Service:
        permitted = _permitted(broker, target.workspace, wanted, principal, caller)
        if not permitted:
            raise _not_found(target)
        return choose(permitted, mode)

    try:
        home = caller.source.workspace
        return await broker.returning.find(look, [query], principal, home, is_request=True), caller
    except NotFound:
        # What it may have meant takes a while to find out, and is asked for only when nobody is waited for any more.
        raise _not_found(target, _hint(broker, workspace, wanted, principal)) from None


def resolve(broker: Broker, target: Target, principal: Principal, mode: str | None = None) -> tuple[Service, Caller]:
    """A service of that name that the principal may call, by default the oldest. One answer for all others: 404."""
    wanted = parse_service_id(target.service)
    workspace = broker.registry.workspaces.get(target.workspace)
    if workspace is None or wanted.workspace is not None:
        raise _not_found(target)
    caller = caller_in(principal, workspace)
    permitted = _permitted(broker, workspace.name, wanted, principal, caller)
    if not permitted:
        raise _not_found(target, _hint(broker, workspace, wanted, principal))
    return choose(permitted, mode), caller


def _permitted(
    broker: Broker, workspace: str, wanted: ServiceQuery, principal: Principal, caller: Caller
) -> list[Service]:
    registry = broker.registry
    same = [
        service
        for service in registry.named(wanted.service)
        if service.workspace == workspace and wanted.client in {None, service.client}
    ]
    return registry.callable_by(principal, caller.source.workspace, same)


def _hint(broker: Broker, workspace: Workspace, wanted: ServiceQuery, principal: Principal) -> str:
    return not_found_hint(broker.registry.near_names(wanted.service, principal, workspace.name))


def _not_found(target: Target, hint: str = "") -> NotFound:
    asked = f"no service {target.service!r} in workspace {target.workspace!r}"
    return NotFound(f"{asked}, or it is not visible without a token{hint}")


def caller_in(principal: Principal, workspace: Workspace) -> Caller:
    """Members call from inside the workspace, everybody else from their own (``decisions.md`` 22)."""
    inside = level_in(principal, workspace) >= Level.READ
    home = workspace.name if inside else principal.home or principal.id
    return Caller(principal, Address(home, HTTP_CLIENT))


async def fetch(broker: Broker, service: Service, patience: float | None = None) -> dict[str, Any]:
    """The service object as its provider describes it now. Raises what :meth:`ServerSession.call` raises."""
    value = await broker.server.get_service(service.session, service.id, patience)
    if not isinstance(value, dict):
        raise NotFound(f"service {service.id!r} is not offered by its client any more")
    return value


async def plain_value(
    broker: Broker, service: Service, keys: tuple[str, ...], patience: float | None
) -> tuple[Any] | None:
    """None when *keys* name a function of the service; otherwise the value that they name, in a tuple.

    A function is asked for once and remembered with the registration. A name that is not there is told at once, also
    for providers that never answer to one (``protocol.md`` 11.10). Raises :class:`NotFound`.
    """
    if keys in service.functions:
        return None
    interface = await fetch(broker, service, patience)
    found = _lookup(interface, keys)
    if found is _MISSING:
        raise NotFound(f"service {service.id!r} has no function {'.'.join(keys)!r}{_known(interface)}")
    if not values.is_method(found):
        return (found,)
    if len(service.functions) < _REMEMBERED:
        service.functions.add(keys)
    return None


async def find_function(broker: Broker, service: Service, names: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The first of *names*, paths of keys, that is a function of the service; remembered as above.

    Raises :class:`NotFound` when none is, and what :func:`fetch` raises.
    """
    if names[0] in service.functions:
        return names[0]
    interface = await fetch(broker, service)
    for keys in names:
        if values.is_method(_lookup(interface, keys)):
            if len(service.functions) < _REMEMBERED:
                service.functions.add(keys)
            return keys
    raise NotFound(f"service {service.id!r} has no function {'.'.join(names[0])[:200]!r}{_known(interface)}")


def parameters(service: Service, keys: tuple[str, ...]) -> dict[str, Any]:
    """The parameters of a function as JSON schema, by name, as far as its client has said."""
    found = _lookup(service.schema, (*keys, "function", "parameters", "properties"))
    if not isinstance(found, dict):
        return {}
    # Clients say of themselves what they like; what has no name is no parameter.
    return {name: schema for name, schema in found.items() if isinstance(name, str)}


def required(service: Service, keys: tuple[str, ...]) -> frozenset[str]:
    """The names of those parameters of a function that have no default, as far as its client has said."""
    found = _lookup(service.schema, (*keys, "function", "parameters", "required"))
    return frozenset(name for name in found if isinstance(name, str)) if isinstance(found, list) else frozenset()


def _known(interface: dict[Any, Any]) -> str:
    """The end of a "not found" text: some functions that there are."""
    names = [name for name in interface if isinstance(name, str) and values.is_method(_lookup(interface, (name,)))]
    return f"; it has {', '.join(sorted(names)[:_SHOWN])}" if names else ""


_REMEMBERED = 1000  # functions of one service
_SHOWN = 20  # names in an error
_MISSING = object()
_INDEX = re.compile(r"[0-9]{1,9}")


def _lookup(value: Any, keys: tuple[str, ...]) -> Any:
    """Walk maps and lists by *keys*; private names are nobody's business."""
    for key in keys:
        if isinstance(value, dict) and key in value and not key.startswith("_"):
            value = value[key]
        elif isinstance(value, list) and _INDEX.fullmatch(key) and int(key) < len(value):
            value = value[int(key)]
        else:
            return _MISSING
    return value
