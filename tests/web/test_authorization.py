"""Every route x every role x a workspace and one that is not there (C-AUTH-1, ``decisions.md`` 17).

The routes are those that the application has: one without a row here fails.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from hypha.broker.access import Level, Principal
from tests.broker.roles import OPERATOR, ROLES, make_lab
from tests.web.stack import MemoryStack
from tests.web.wires import HttpAnswer, Peer, http, join

READ, WRITE, ADMIN, ANYBODY = Level.READ, Level.READ_WRITE, Level.ADMIN, Level.NONE


@dataclass(frozen=True)
class Row:
    """A request. *needs*: the level that it takes; *status*: the answer then. ``{}`` in *path* is the workspace."""

    path: str
    needs: int
    status: int = 200
    body: Any = None


ROWS = {
    "GET /workspaces": Row("/workspaces", ANYBODY),
    "GET /api/stats": Row("/api/stats", ANYBODY),
    "GET /<workspace>/info": Row("/{}/info", READ),
    "GET /<workspace>/services": Row("/{}/services", READ),
    "GET /<workspace>/services/<service_id>": Row("/{}/services/svc", READ, 200),
    "GET /<workspace>/apps": Row("/{}/apps", READ, 404),  # where there are none
    "GET /workspaces/<workspace>": Row("/workspaces/{}", READ),
    "PATCH /workspaces/<workspace>": Row("/workspaces/{}", ADMIN, 200, {"description": "D"}),
    "DELETE /workspaces/<workspace>": Row("/workspaces/{}", ADMIN, 204),
    "GET /workspaces/<workspace>/summary": Row("/workspaces/{}/summary", READ),
    "GET /workspaces/<workspace>/clients": Row("/workspaces/{}/clients", READ),
    "DELETE /workspaces/<workspace>/clients/<client_id>": Row("/workspaces/{}/clients/victim", ADMIN, 204),
    "PUT /workspaces/<workspace>/permissions/<user>": Row(
        "/workspaces/{}/permissions/somebody", ADMIN, 200, {"permission": "read"}
    ),
    "DELETE /workspaces/<workspace>/permissions/<user>": Row("/workspaces/{}/permissions/somebody", ADMIN, 204),
    "POST /workspaces/<workspace>/tokens": Row("/workspaces/{}/tokens", READ, 201, {"permission": "read"}),
    "GET /workspaces/<workspace>/tokens": Row("/workspaces/{}/tokens", READ),
    "PUT /workspaces/<workspace>/quota": Row("/workspaces/{}/quota", OPERATOR, 200, {"clients": 5}),
    "POST /api/tokens/revoke": Row("/api/tokens/revoke", ADMIN, 204, {"token": "TOKEN"}),
    "GET /api/users": Row("/api/users", OPERATOR),
    "GET /api/blocked": Row("/api/blocked", OPERATOR),
    "PUT /api/users/<user>/block": Row("/api/users/somebody/block", OPERATOR, 204),
    "DELETE /api/users/<user>/block": Row("/api/users/somebody/block", OPERATOR, 404),  # who is not blocked
    "PUT /api/users/<user>/quota": Row("/api/users/somebody/quota", OPERATOR, 200, {"clients": 5}),
}
#: Routes that say the same to everybody.
OPEN = {
    "GET /",
    "GET /health/liveness",
    "GET /health/readiness",
    "GET /health/services_loaded",
    "GET /health/server_apps",
    "GET /login",
    "GET /apps/built-in/account-manager.html",
    "GET /public/apps/hypha-login/",
    "GET /assets/hypha-rpc-websocket.js",
    "GET /assets/hypha-rpc-websocket.mjs",
}
#: Tried where they are tested: who makes one must have a token, and the address of an app is a secret.
ELSEWHERE = {"POST /workspaces", "GET /apps/<page>"}
#: For these no token counts, but the cookie of a browser and a link: see test_accounts.py and test_shares.py.
WITHOUT_TOKENS = ("/account", "/share/")


async def test_every_route_has_a_row(stack: MemoryStack, autojump_clock: trio.testing.MockClock) -> None:
    rules = stack.assembly._app.url_map.iter_rules()
    offered = {f"{method} {rule.rule}" for rule in rules for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}}
    asked = {route for route in offered if not route.partition(" ")[2].startswith(WITHOUT_TOKENS)}
    assert asked == set(ROWS) | OPEN | ELSEWHERE


async def place(stack: MemoryStack) -> Peer:
    """The workspace with a client in it that offers a service; the client's token."""
    make_lab(stack.broker.registry)
    victim = await join(stack, "victim", f"&workspace=lab&token={token_of(stack, ROLES['owner'][0])}")
    await victim.provide("svc", {}, "protected")
    return victim


def token_of(stack: MemoryStack, principal: Principal) -> str:
    return stack.broker.tokens.issue(principal, expires_in=1000)


async def request(stack: MemoryStack, method: str, row: Row, role: str, workspace: str) -> HttpAnswer:
    principal = ROLES[role][0]
    headers = {} if role == "anonymous" else {"Authorization": f"Bearer {token_of(stack, principal)}"}
    body = b""
    if row.body is not None:
        other = token_of(stack, Principal("other", False, grants={"lab": READ}))
        headers["Content-Type"] = "application/json"
        body = json.dumps(row.body).replace("TOKEN", other).encode()
    return await http(stack, row.path.replace("{}", workspace), method, headers, body)


@pytest.mark.parametrize("route", ROWS)
async def test_who_is_answered_what(stack: MemoryStack, route: str, autojump_clock: trio.testing.MockClock) -> None:
    row, (method, _, _) = ROWS[route], route.partition(" ")
    for role, (_, level) in ROLES.items():
        victim = await place(stack)
        answer = await request(stack, method, row, role, "lab")
        refused = 404 if "{}" in row.path and level < READ else 403
        assert answer.status == (row.status if level >= row.needs else refused), (role, answer.body)
        if "{}" in row.path and level < READ:
            missing = await request(stack, method, row, role, "missing")
            assert (missing.status, missing.body) == (404, answer.body.replace(b"lab", b"missing")), role
        stack.broker.delete_workspace(stack.broker.registry.workspaces.get("lab") or make_lab(stack.broker.registry))
        await victim.ended.wait()


@pytest.mark.parametrize("route", ROWS)
async def test_a_token_that_is_none_is_401(
    stack: MemoryStack, route: str, autojump_clock: trio.testing.MockClock
) -> None:
    row, (method, _, _) = ROWS[route], route.partition(" ")
    headers = {"Authorization": "Bearer x.y.z", "Content-Type": "application/json"}
    answer = await http(stack, row.path.replace("{}", "lab"), method, headers, b"{}" if row.body else b"")
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
