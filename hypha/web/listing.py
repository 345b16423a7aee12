"""What there is: workspaces and services over HTTP (``protocol.md`` 8.1). Everybody sees only what they may."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import trio
from hypercorn.typing import HTTPScope
from quart import Response, jsonify, request
from quart_trio import QuartTrio

from hypha.broker.access import Action, Level, Principal, level_in, may
from hypha.broker.broker import Broker
from hypha.broker.info import summary
from hypha.broker.own import Visit
from hypha.broker.registry import Workspace
from hypha.broker.session import Service
from hypha.errors import NotAcceptable, NotFound
from hypha.web.bearer import principal_of
from hypha.web.http import base_url
from hypha.web.lookup import Target, fetch, find, resolve
from hypha.wire import values
from hypha.wire.address import PUBLIC_WORKSPACE

_ENTRIES_AT_ONCE = 50  # then others have their turn
_LISTING = re.compile(r"/[^/]+/(info|services/?|services/[^/]+/?|apps/?)")
_SERVER_APPS = "server-apps"


def is_listing(path: str) -> bool:
    """Whether *path* is one of a workspace's lists, which a mount on ``/`` does not hide (A11)."""
    return _LISTING.fullmatch(path) is not None


def add_routes(app: QuartTrio, broker_of: Callable[[], Broker]) -> None:
    """Add the routes to *app*. *broker_of* gives the broker once the server has started."""

    def asker() -> tuple[Broker, Principal]:
        broker = broker_of()
        return broker, principal_of(broker, cast(HTTPScope, request.scope))

    @app.get("/workspaces")
    async def workspaces() -> Response:
        return jsonify(sorted([name for name, _ in await _visible(*asker())]))

    @app.get("/api/stats")
    async def stats() -> Response:
        seen = await _visible(*asker())
        return jsonify(
            {
                "workspace_count": len(seen),
                "service_count": sum(services for _, services in seen),
                "workspaces": sorted(name for name, _ in seen),
            }
        )

    @app.get("/<workspace>/info")
    async def info(workspace: str) -> Response:
        broker, principal = asker()
        place = broker.registry.workspaces.get(workspace)
        if place is None or not may(principal, Action.READ, place).allowed:
            raise hidden(workspace)
        return jsonify(place.describe())

    @app.get("/<workspace>/services", strict_slashes=False)
    async def services(workspace: str) -> Response:
        broker, principal = asker()
        place = broker.registry.workspaces.get(workspace)
        listed = await _listed(broker, principal, place) if place is not None else []
        if not listed and (place is None or level_in(principal, place) is Level.NONE):
            raise hidden(workspace)
        return jsonify(await entries(broker, listed))

    @app.get("/<workspace>/apps", strict_slashes=False)
    async def apps(workspace: str) -> Response:
        broker, principal = asker()
        place = broker.registry.workspaces.get(workspace)
        if place is None or not may(principal, Action.READ, place).allowed:
            raise hidden(workspace)
        scope = cast(HTTPScope, request.scope)
        visit = Visit(principal, place.name, base_url(scope, scope["root_path"]), "HTTP")
        found, _ = resolve(broker, Target(PUBLIC_WORKSPACE, _SERVER_APPS, ()), principal)
        listed = await broker.server.own.call(found, f"services.{_SERVER_APPS}.list_apps", visit, [place.name], {})
        return jsonify(listed)

    @app.get("/<workspace>/services/<service_id>", strict_slashes=False)
    async def service(workspace: str, service_id: str) -> Response:
        broker, principal = asker()
        found, _ = await find(broker, Target(workspace, service_id, ()), principal)
        return jsonify(await _described(broker, found))


def hidden(workspace: str) -> NotFound:
    """One answer for a workspace that is not there and for one that may not be seen (``decisions.md`` 17)."""
    return NotFound(f"no workspace {workspace!r}, or it is not visible without a token")


async def _visible(broker: Broker, principal: Principal) -> list[tuple[str, int]]:
    """Workspaces that the asker belongs to, and those with something public in them; with their listed services."""
    seen = []
    for place in list(broker.registry.workspaces.values()):
        services = len(await _listed(broker, principal, place))
        if services or level_in(principal, place) is not Level.NONE:
            seen.append((place.name, services))
    return seen


async def _listed(broker: Broker, principal: Principal, place: Workspace) -> list[Service]:
    home = place.name if level_in(principal, place) is not Level.NONE else principal.id
    return await broker.registry.listable_by(principal, home, place.services())


async def entries(broker: Broker, listed: list[Service]) -> list[dict[str, Any]]:
    """Services as they are listed: as many as one list holds, and others have their turn in between."""
    found = []
    for service in broker.registry.in_one_list(listed):
        found.append(_entry(service, broker.limits.json_array_bytes))
        if len(found) % _ENTRIES_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
    return found


def _entry(service: Service, array_limit: int) -> dict[str, Any]:
    """A service in a list. A config that JSON cannot express is left out, and hides no other service."""
    entry = summary(service)
    try:
        plain: dict[str, Any] = values.to_json(entry, array_limit)
    except NotAcceptable:
        own = {key: entry["config"][key] for key in ("visibility", "workspace")}
        return {**entry, "config": own}
    return plain


async def _described(broker: Broker, service: Service) -> dict[str, Any]:
    """The service object with its functions as text, under the address at which it was found."""
    plain = values.to_json(await fetch(broker, service), broker.limits.json_array_bytes)
    return {**plain, "id": service.full_id}
