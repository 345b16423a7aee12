"""Every function of both managers x every role x own, foreign and missing workspace (C-AUTH-1).

The functions are those that are in the tables of the server: one without a row here fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import trio

from hypha.broker.access import Level, Principal
from hypha.broker.builtin import camel
from hypha.errors import PermissionDenied
from hypha.wire.dialect import LEGACY, MODERN
from tests.broker.managing import MANAGER
from tests.broker.memory import Peer, Rejected, Scene
from tests.broker.roles import OPERATOR, ROLES, make_lab

pytestmark = pytest.mark.deadline(60)

READ, WRITE, ADMIN = Level.READ, Level.READ_WRITE, Level.ADMIN
#: Nobody, from outside of the workspace: what is protected is for those who are in it.
NOBODY = 5
ANYBODY = Level.NONE


@dataclass(frozen=True)
class Row:
    """What a function takes. *needs*: the level that its caller must have in the workspace that it is connected to.

    *foreign*: the same in another workspace, which *named* names, where that is possible: ``{}`` in it is the name.
    """

    needs: int
    args: tuple[Any, ...] = ()
    foreign: int | None = None
    named: tuple[Any, ...] = ()


def entry(client: str) -> dict[str, Any]:
    return {"id": f"lab/{client}:mine", "name": "mine", "type": "generic", "config": {}}


BOTH = {
    "echo": Row(READ, ("x",)),
    "create_workspace": Row(READ, ({"name": "new"},), ANYBODY, ({"name": "new-{}"},)),
    "delete_workspace": Row(ADMIN, ("lab",), ADMIN, ("{}",)),
    "update_workspace": Row(ADMIN, ({},), ADMIN, ({"description": "D"}, "{}")),
    "get_workspace_info": Row(READ, (), READ, ("{}",)),
    "list_workspaces": Row(READ),
    "set_permission": Row(ADMIN, ("somebody", "read"), ADMIN, ("somebody", "read", "{}")),
    "kick_client": Row(ADMIN, ("victim",), ADMIN, ("victim", "bye", "{}")),
    "list_tokens": Row(READ, (), READ, ("{}",)),
    "revoke_token": Row(ADMIN, ("TOKEN",), ADMIN, ("TOKEN",)),
    "list_users": Row(OPERATOR, (), OPERATOR, ()),
    "block_user": Row(OPERATOR, ("somebody",), OPERATOR, ("somebody",)),
    "unblock_user": Row(OPERATOR, ("somebody",), OPERATOR, ("somebody",)),
    "list_blocked": Row(OPERATOR, (), OPERATOR, ()),
    "set_quota": Row(OPERATOR, ({"clients": 5},), OPERATOR, ({"clients": 5}, "{}")),
    "get_summary": Row(READ, (), READ, ("{}",)),
    "list_clients": Row(READ, (), READ, ("{}",)),
    "list_services": Row(READ, (), ANYBODY, ({"workspace": "{}"},)),  # of which it is sent what it may see
    "get_service": Row(READ, ("victim:svc",), NOBODY, ("{}/victim:svc",)),
    "generate_token": Row(READ, ({"permission": "read"},), READ, ({"scopes": ["{}"], "permission": "read"},)),
}
ONLY_LEGACY = {
    "update_client_info": Row(WRITE, ({"id": "asker"},)),
    "get_connection_info": Row(READ),
    "list_user_clients": Row(READ),
    "register_service": Row(WRITE, ({"id": "mine"},)),
    "set": Row(ADMIN, ({"description": "D"},)),
} | {level: Row(READ, ("x",)) for level in ("log", "info", "warning", "error", "critical")}
ONLY_MODERN = {
    "register_service": Row(WRITE, (entry("asker"),)),
    "unregister_service": Row(WRITE, ("mine",)),
    "get_service_info": Row(READ, ("victim:svc",), NOBODY, ("{}/victim:svc",)),
    "search_services": Row(READ, ("x",)),
    "ping": Row(READ, ("victim",), READ, ("{}/victim",)),
    "parse_token": Row(READ, ("TOKEN",)),
    "check_status": Row(READ),
    "cleanup": Row(ADMIN, (), ADMIN, ("{}",)),
    "subscribe": Row(READ, ("news",)),
    "unsubscribe": Row(READ, ("news",)),
    "log": Row(WRITE, ("x",)),
    "log_event": Row(WRITE, ("x",)),
    "get_events": Row(READ),
    "get_event_stats": Row(READ),
    "register_service_type": Row(WRITE, ({"id": "t", "definition": {}},)),
    "get_service_type": Row(READ, ("lab/none",), READ, ("{}/none",)),
    "list_service_types": Row(READ, (), READ, ("{}",)),
    "bookmark": Row(WRITE, ({"bookmark_type": "workspace", "id": "lab"},)),
    "unbookmark": Row(WRITE, ({"bookmark_type": "workspace", "id": "lab"},)),
    "set_env": Row(WRITE, ("KEY", "value")),
    "get_env": Row(WRITE),
}
LEGACY_ROWS, MODERN_ROWS = BOTH | ONLY_LEGACY, BOTH | ONLY_MODERN


def test_every_function_has_a_row() -> None:
    server = Scene().broker.server
    for table, rows in ((server.functions, LEGACY_ROWS), (server.modern_functions, MODERN_ROWS)):
        prefix = "services.default."
        offered = {path.removeprefix(prefix) for path in table if path.startswith(prefix)}
        assert offered - {camel(name) for name in rows} - set(rows) == set()
        assert set(rows) <= offered


class Place:
    """A lab with a client that offers a service, and another client that asks."""

    def __init__(self, nursery: trio.Nursery, *, modern: bool) -> None:
        self.scene = Scene(nursery=nursery)
        self.nursery = nursery
        self.dialect = MODERN if modern else LEGACY
        self.lab = make_lab(self.scene.broker.registry)
        self.victim = self.join("lab/victim", ROLES["owner"][0])
        self.victim.announce("svc")
        #: Of nobody who asks, for the workspace alone.
        self.token = self.scene.broker.tokens.issue(Principal("other", False, grants={"lab": READ}), expires_in=60)

    def join(self, address: str, principal: Principal) -> Peer:
        peer = self.scene.join(address, principal=principal, dialect=self.dialect)
        self.nursery.start_soon(peer.serve, _answer)
        return peer

    async def refusal(self, peer: Peer, name: str, args: tuple[Any, ...], workspace: str = "lab") -> str | None:
        """The words with which a call is not permitted; None when it is, whatever else is wrong with it."""
        to = MANAGER if self.dialect is MODERN else "workspace-manager"
        try:
            await peer.ask(name, *(self._filled(item, workspace) for item in args), to=to)
        except Rejected as exc:
            return str(exc) if str(exc).startswith("PermissionError: ") else None
        return None

    def _filled(self, item: Any, workspace: str) -> Any:
        if isinstance(item, dict):
            return {key: self._filled(value, workspace) for key, value in item.items()}
        if isinstance(item, list):
            return [self._filled(value, workspace) for value in item]
        if item == "TOKEN":
            return self.token
        return item.replace("{}", workspace) if isinstance(item, str) else item


def _answer(message: dict[str, Any]) -> Any:
    """What a client answers to the server."""
    name = message["method"].removeprefix("services.built-in.")
    if name == "ping":
        return "pong"
    client = message["to"].rpartition("/")[2]
    return {"id": f"{client}:mine" if name == "register_service" else "svc", "name": "mine", "config": {}}


CASES = [(name, False) for name in LEGACY_ROWS] + [(name, True) for name in MODERN_ROWS]
EVERY_FUNCTION = pytest.mark.parametrize(
    ("name", "modern"), CASES, ids=[f"{name}-{'modern' if modern else 'legacy'}" for name, modern in CASES]
)


@EVERY_FUNCTION
async def test_in_the_workspace_that_one_is_connected_to(name: str, modern: bool, nursery: trio.Nursery) -> None:
    row = (MODERN_ROWS if modern else LEGACY_ROWS)[name]
    for role, (principal, level) in ROLES.items():
        place = Place(nursery, modern=modern)
        if not level:
            with pytest.raises(PermissionDenied):
                place.join("lab/asker", principal)
            continue
        asker = place.join("lab/asker", principal)
        refusal = await place.refusal(asker, name, row.args)
        assert (refusal is None) == (level >= row.needs), (role, refusal)
        if refusal is not None and name != "revoke_token":
            assert refusal == "PermissionError: Permission denied for workspace lab."


@EVERY_FUNCTION
async def test_from_elsewhere_a_missing_workspace_looks_like_one_that_is_hidden(
    name: str, modern: bool, nursery: trio.Nursery
) -> None:
    row = (MODERN_ROWS if modern else LEGACY_ROWS)[name]
    if row.foreign is None:
        return
    for role, (principal, level) in ROLES.items():
        place = Place(nursery, modern=modern)
        asker = place.join(f"{principal.id}/asker", principal)
        hidden = await place.refusal(asker, name, row.named)
        assert (hidden is None) == (level >= row.foreign), (role, hidden)
        missing = await place.refusal(asker, name, row.named, "missing")
        if hidden is not None and not level:
            assert missing == hidden.replace("lab", "missing"), role


async def test_what_is_listed_from_outside_is_what_may_be_seen(nursery: trio.Nursery) -> None:
    for modern in (False, True):
        for principal, _ in ROLES.values():
            place = Place(nursery, modern=modern)
            place.victim.announce("svc", "hidden")
            place.victim.announce("open", visibility="public")
            asker = place.join(f"{principal.id}/asker", principal)
            listed = await asker.ask(
                "list_services", {"workspace": "lab"}, to=MANAGER if modern else "workspace-manager"
            )
            assert [item["id"] for item in listed] == ["lab/victim:open"]
