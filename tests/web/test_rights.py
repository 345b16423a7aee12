"""Principal x action x visibility, over the websocket and over HTTP (``reliability.md`` promise 12).

The table is the policy in the words of its users; whatever it does not list is denied.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from tests.web.stack import MemoryStack
from tests.web.wires import Call, Peer, Refused, Rejected, http, join

PRINCIPALS = ("stranger", "neighbour", "reader", "writer", "owner")
VISIBILITIES = ("public", "unlisted", "protected", "private", "secret-ish")

MEMBERS = {"reader", "writer", "owner"}
EVERYBODY = set(PRINCIPALS)


async def answer(call: Call) -> Any:
    return "answered"


class Scene:
    """A workspace with one service, and tokens of everybody for it."""

    def __init__(self, stack: MemoryStack, owner: Peer, elsewhere: Peer, tokens: dict[str, str | None]) -> None:
        self.stack = stack
        self.owner = owner
        self.elsewhere = elsewhere
        self.tokens = tokens
        self._visitors = 0

    async def visitor(self, principal: str) -> Peer:
        """A client of *principal*: inside the workspace where its token lets it in, else where it belongs."""
        self._visitors += 1
        name = f"visitor{self._visitors}"
        token = self.tokens[principal]
        if principal in MEMBERS:
            return await join(self.stack, name, f"&workspace={self.owner.workspace}&token={token}")
        if principal == "neighbour":
            return await join(self.stack, name, f"&workspace={self.elsewhere.workspace}&token={token}")
        return await join(self.stack, name)

    async def http_status(self, principal: str, path: str) -> int:
        token = self.tokens[principal]
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return (await http(self.stack, f"/{self.owner.workspace}{path}", headers=headers)).status


async def scene(stack: MemoryStack, visibility: str) -> Scene:
    owner = await join(stack, "owner")
    await owner.provide("svc", {"f": answer}, visibility)
    elsewhere = await join(stack, "elsewhere")
    scopes = [owner.workspace]
    tokens = {
        "stranger": None,
        "neighbour": await elsewhere.manager("generate_token"),
        "reader": await owner.manager("generate_token", {"scopes": scopes, "permission": "read"}),
        "writer": await owner.manager("generate_token", {"scopes": scopes, "permission": "read_write"}),
        "owner": await owner.manager("generate_token", {"scopes": scopes, "permission": "admin"}),
    }
    return Scene(stack, owner, elsewhere, tokens)


def no(exc: Exception, words: str) -> bool:
    """The refusal *exc*, which must begin with *words*."""
    assert str(exc).startswith(words)
    return False


Action = Callable[[Scene, str], Awaitable[bool]]


async def get_service(place: Scene, principal: str) -> bool:
    visitor = await place.visitor(principal)
    try:
        found = await visitor.manager("get_service", f"{place.owner.workspace}/owner:svc")
    except Rejected as exc:
        return no(exc, "PermissionError: Permission denied for service: svc")
    assert found["f"]["_rtarget"] == place.owner.name
    return True


async def call_by_frame(place: Scene, principal: str) -> bool:
    """The wire by hand, without asking the manager first."""
    visitor = await place.visitor(principal)
    try:
        return bool(await visitor.call(place.owner.name, "services.svc.f") == "answered")
    except Rejected as exc:
        return no(exc, f"Target peer {place.owner.name} is not connected")


async def list_services(place: Scene, principal: str) -> bool:
    visitor = await place.visitor(principal)
    return bool(await visitor.manager("list_services", {"workspace": place.owner.workspace}))


async def call_over_http(place: Scene, principal: str) -> bool:
    statuses = {await place.http_status(principal, f"/services/{name}/f") for name in ("svc", "owner:svc")}
    assert statuses in ({200}, {404})
    return statuses == {200}


async def list_over_http(place: Scene, principal: str) -> bool:
    status = await place.http_status(principal, "/services")
    assert status in {200, 404}
    return status == 200


async def describe_over_http(place: Scene, principal: str) -> bool:
    status = await place.http_status(principal, "/services/svc")
    assert status in {200, 404}
    return status == 200


SERVICE_RIGHTS: dict[Action, dict[str, set[str]]] = {
    get_service: {"public": EVERYBODY, "unlisted": EVERYBODY},
    call_by_frame: {"public": EVERYBODY, "unlisted": EVERYBODY},
    list_services: {"public": EVERYBODY},
    call_over_http: {"public": EVERYBODY, "unlisted": EVERYBODY},
    list_over_http: {"public": EVERYBODY},
    describe_over_http: {"public": EVERYBODY, "unlisted": EVERYBODY},
}


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("action", SERVICE_RIGHTS, ids=lambda action: action.__name__)
async def test_who_may_reach_a_service(
    stack: MemoryStack, action: Action, visibility: str, autojump_clock: trio.testing.MockClock
) -> None:
    place = await scene(stack, visibility)
    allowed = SERVICE_RIGHTS[action].get(visibility, MEMBERS)
    assert {principal for principal in PRINCIPALS if await action(place, principal)} == allowed


# --- the workspace ----------------------------------------------------------------------------------------------


async def connect(place: Scene, principal: str) -> bool:
    token = place.tokens[principal]
    query = f"&workspace={place.owner.workspace}" + (f"&token={token}" if token else "")
    try:
        await join(place.stack, f"as-{principal}", query)
    except Refused as exc:
        return no(exc, "403 ")
    return True


async def manage(place: Scene, principal: str, name: str, *args: Any) -> bool:
    visitor = await place.visitor(principal)
    manager = f"{place.owner.workspace}/workspace-manager"
    try:
        await visitor.call(manager, f"services.default.{name}", *args)
    except Rejected as exc:
        return no(exc, "PermissionError: ")
    return True


async def see_clients(place: Scene, principal: str) -> bool:
    return await manage(place, principal, "list_clients")


async def see_info(place: Scene, principal: str) -> bool:
    return await manage(place, principal, "get_workspace_info")


async def see_info_over_http(place: Scene, principal: str) -> bool:
    return await place.http_status(principal, "/info") == 200


async def change_info(place: Scene, principal: str) -> bool:
    return await manage(place, principal, "set", {"description": principal})


async def register(place: Scene, principal: str) -> bool:
    visitor = await place.visitor(principal)
    manager = f"{place.owner.workspace}/workspace-manager"
    entry = {"id": f"{visitor.client_id}:mine", "name": "mine", "type": "generic", "config": {}}
    info = {"id": visitor.client_id, "services": [entry]}
    try:
        await visitor.call(manager, "services.default.update_client_info", info)
    except Rejected as exc:
        return no(exc, "PermissionError: ")
    return True


def mint(permission: str) -> Action:
    async def mint_token(place: Scene, principal: str) -> bool:
        config = {"scopes": [place.owner.workspace], "permission": permission}
        return await manage(place, principal, "generate_token", config)

    mint_token.__name__ = f"mint_{permission}_token"
    return mint_token


WORKSPACE_RIGHTS: dict[Action, set[str]] = {
    connect: MEMBERS,
    see_clients: MEMBERS,
    see_info: MEMBERS,
    see_info_over_http: MEMBERS,
    change_info: {"owner"},
    register: {"writer", "owner"},
    mint("read"): MEMBERS,
    mint("read_write"): {"writer", "owner"},
    mint("admin"): {"owner"},
}


@pytest.mark.parametrize("action", WORKSPACE_RIGHTS, ids=lambda action: action.__name__)
async def test_who_may_do_what_in_a_workspace(
    stack: MemoryStack, action: Action, autojump_clock: trio.testing.MockClock
) -> None:
    place = await scene(stack, "protected")
    allowed = {principal for principal in PRINCIPALS if await action(place, principal)}
    assert allowed == WORKSPACE_RIGHTS[action]


async def test_a_reader_may_not_broadcast(stack: MemoryStack, autojump_clock: trio.testing.MockClock) -> None:
    place = await scene(stack, "protected")
    session = stack.broker.registry.workspaces[place.owner.workspace].members["owner"]
    session.subscriptions.add("news")
    for principal in ("reader", "writer"):
        visitor = await place.visitor(principal)
        await visitor.send({"type": "news", "to": "*", "by": principal})
        await visitor.manager("echo", "the frame before this one was routed")
    assert [main["by"] for main, _ in place.owner.others] == ["writer"]
