"""Workspaces, their clients and tokens, and users over HTTP, for programs without a connection of their own.

Every answer is decided by :class:`hypha.broker.administration.Administration`, as it is for the managers. Only the
``Authorization`` header says who asks: there is nothing that a browser would add by itself to a request of some page.
Who that is, and what it may do, is asked when the body has come, which can take a minute.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from hypercorn.typing import HTTPScope
from quart import Response, jsonify, request
from quart_trio import QuartTrio

from hypha.broker.access import Action, Principal, may
from hypha.broker.administration import Administration, Hidden
from hypha.broker.broker import Broker
from hypha.broker.issuing import issue, scopes
from hypha.broker.registry import Workspace
from hypha.config import KIB
from hypha.errors import InvalidArgument, NotAuthenticated, PermissionDenied, UnsupportedContent
from hypha.web.bearer import principal_of
from hypha.web.bodies import parse_json
from hypha.web.http import JSON, bearer_token
from hypha.web.listing import entries, hidden
from hypha.wire.address import PUBLIC_WORKSPACE

_BODY_BYTES = 64 * KIB  # of each request, so many are free everywhere (:class:`hypha.web.http.BodyRoom`)
_TOKEN_KEYS = frozenset({"permission", "expires_in", "client_id"})

P = ParamSpec("P")
T = TypeVar("T")


def add_routes(app: QuartTrio, broker_of: Callable[[], Broker]) -> None:
    """Add the routes to *app*. *broker_of* gives the broker once the server has started."""
    app.config["MAX_CONTENT_LENGTH"] = _BODY_BYTES

    @app.errorhandler(Hidden)
    async def hidden_workspace(error: Hidden) -> tuple[Response, int]:
        workspace = (request.view_args or {}).get("workspace", "")
        return jsonify({"success": False, "detail": str(hidden(workspace))}), 404

    def kept(view: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """Around what changes something: what is answered is not lost when the server ends now.

        Raises :class:`hypha.errors.NotStored`.
        """

        @wraps(view)
        async def view_and_wait(*args: P.args, **kwargs: P.kwargs) -> T:
            records = broker_of().records
            records.begin()
            answer = await view(*args, **kwargs)
            await records.kept()
            return answer

        return view_and_wait

    for add in (_add_workspaces, _add_members, _add_tokens, _add_users):
        add(app, lambda: _Asker(broker_of()), kept)


class _Asker:
    """Who sends the request that is handled now. Raises :class:`NotAuthenticated` for a bad token."""

    def __init__(self, broker: Broker) -> None:
        scope = cast(HTTPScope, request.scope)
        self.broker = broker
        self.principal: Principal = principal_of(broker, scope)
        self.has_token = bearer_token(scope) is not None
        self.administration: Administration = broker.administration

    def sees(self, workspace: str) -> Workspace:
        return self.administration.visible(self.principal, workspace)

    def administers(self, workspace: str) -> Workspace:
        return self.administration.administered(self.principal, workspace)

    def operates(self) -> None:
        """Raises :class:`PermissionDenied` for everybody but administrators of the server."""
        anywhere = self.broker.registry.workspaces[PUBLIC_WORKSPACE]
        if not may(self.principal, Action.OPERATE, anywhere).allowed:
            raise PermissionDenied("this takes a token of an administrator of the server")


_AskerOf = Callable[[], _Asker]


class _Kept(Protocol):
    def __call__(self, view: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]: ...


def _add_workspaces(app: QuartTrio, asker: _AskerOf, kept: _Kept) -> None:
    @app.post("/workspaces")
    @kept
    async def create_workspace() -> tuple[Response, int]:
        config, who = await _body(), asker()
        if not who.has_token:
            raise NotAuthenticated("a workspace is made by somebody who can come back: send a token")
        return jsonify(who.administration.create(who.principal, config).describe()), 201

    @app.get("/workspaces/<workspace>")
    async def show_workspace(workspace: str) -> Response:
        return jsonify(asker().sees(workspace).describe())

    @app.patch("/workspaces/<workspace>")
    @kept
    async def change_workspace(workspace: str) -> Response:
        config, who = await _body(), asker()
        return jsonify(who.administration.update(who.principal, who.administers(workspace), config).describe())

    @app.delete("/workspaces/<workspace>")
    @kept
    async def delete_workspace(workspace: str) -> tuple[str, int]:
        who = asker()
        who.administration.delete(who.administers(workspace))
        return "", 204

    @app.get("/workspaces/<workspace>/summary")
    async def show_summary(workspace: str) -> Response:
        who = asker()
        place = who.sees(workspace)
        services = await entries(who.broker, list(place.services()))
        return jsonify({**who.administration.summary(place), "services": services})

    @app.put("/workspaces/<workspace>/quota")
    @kept
    async def set_workspace_quota(workspace: str) -> Response:
        quota, who = await _body(), asker()
        place = who.sees(workspace)
        who.operates()
        return jsonify(who.administration.set_workspace_quota(place, quota))


def _add_members(app: QuartTrio, asker: _AskerOf, kept: _Kept) -> None:
    @app.get("/workspaces/<workspace>/clients")
    async def list_clients(workspace: str) -> Response:
        who = asker()
        return jsonify(who.administration.clients(who.sees(workspace)))

    @app.delete("/workspaces/<workspace>/clients/<client_id>")
    @kept
    async def kick_client(workspace: str, client_id: str) -> tuple[str, int]:
        who = asker()
        who.administration.kick(who.administration.client(who.principal, client_id, workspace))
        return "", 204

    @app.put("/workspaces/<workspace>/permissions/<user>")
    @kept
    async def set_permission(workspace: str, user: str) -> Response:
        level, who = (await _body()).get("permission"), asker()
        place = who.administers(workspace)
        return jsonify(who.administration.set_permission(who.principal, place, user, level).describe())

    @app.delete("/workspaces/<workspace>/permissions/<user>")
    @kept
    async def take_permission(workspace: str, user: str) -> tuple[str, int]:
        who = asker()
        who.administration.set_permission(who.principal, who.administers(workspace), user, None)
        return "", 204


def _add_tokens(app: QuartTrio, asker: _AskerOf, kept: _Kept) -> None:
    @app.post("/workspaces/<workspace>/tokens")
    @kept
    async def generate_token(workspace: str) -> tuple[Response, int]:
        config, who = await _body(), asker()
        place = who.sees(workspace)
        if not config.keys() <= _TOKEN_KEYS:
            raise InvalidArgument(f"a token takes {', '.join(sorted(_TOKEN_KEYS))}")
        grants = scopes(who.broker, who.principal, config, place.name)
        user, token = issue(who.broker, who.principal, config, grants, place.name)
        return jsonify({"user": user, "token": token}), 201

    @app.get("/workspaces/<workspace>/tokens")
    async def list_tokens(workspace: str) -> Response:
        who = asker()
        return jsonify(who.administration.tokens(who.principal, who.sees(workspace)))

    @app.post("/api/tokens/revoke")
    @kept
    async def revoke_token() -> tuple[str, int]:
        token, who = (await _body()).get("token"), asker()
        try:
            who.administration.revoke(who.principal, token)
        except NotAuthenticated as error:
            raise InvalidArgument(f"the token in the body: {error}") from error  # the asker's own is good
        return "", 204


def _add_users(app: QuartTrio, asker: _AskerOf, kept: _Kept) -> None:
    @app.get("/api/users")
    async def list_users() -> Response:
        who = asker()
        who.operates()
        return jsonify(who.administration.users())

    @app.get("/api/blocked")
    async def list_blocked() -> Response:
        who = asker()
        who.operates()
        return jsonify(who.administration.blocked())

    @app.put("/api/users/<user>/block")
    @kept
    async def block_user(user: str) -> tuple[str, int]:
        reason, who = (await _body()).get("reason"), asker()
        who.operates()
        who.administration.block(who.principal, user, reason)
        return "", 204

    @app.delete("/api/users/<user>/block")
    @kept
    async def unblock_user(user: str) -> tuple[str, int]:
        who = asker()
        who.operates()
        who.administration.unblock(user)
        return "", 204

    @app.put("/api/users/<user>/quota")
    @kept
    async def set_user_quota(user: str) -> Response:
        quota, who = await _body(), asker()
        who.operates()
        return jsonify(who.administration.set_user_quota(user, quota))


async def _body() -> dict[str, Any]:
    """The body, a map in JSON; nothing at all is an empty one. Raises :class:`InvalidArgument`."""
    data = cast(bytes, await request.get_data())
    if not data:
        return {}
    if request.mimetype != JSON.decode():
        raise UnsupportedContent("send a map as application/json")
    value = parse_json(data, "the body")
    if not isinstance(value, dict):
        raise InvalidArgument("the body must be a map")
    return value
