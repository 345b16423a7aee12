"""Workspaces, clients, tokens and users over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from hypha.broker.access import Level, Principal
from hypha.store import State
from tests.web.stack import MemoryStack
from tests.web.wires import Closed, HttpAnswer, http, join

ADA = Principal("ada", is_anonymous=False)
ADMIN = Principal("root-of-all", is_anonymous=False, roles=("admin",))


async def ask(
    stack: MemoryStack, method: str, path: str, body: Any = None, *, principal: Principal | None = ADA
) -> HttpAnswer:
    """One request with a fresh token of *principal*, with a body in JSON if there is one."""
    headers = {}
    if principal is not None:
        headers["Authorization"] = f"Bearer {stack.broker.tokens.issue(principal, expires_in=1000)}"
    if body is not None:
        headers["Content-Type"] = "application/json"
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await http(stack, path, method, headers, b"" if body is None else data)


async def test_a_workspace_from_its_beginning_to_its_end(
    stack: MemoryStack, autojump_clock: trio.testing.MockClock
) -> None:
    made = await ask(stack, "POST", "/workspaces", {"name": "lab", "description": "D", "persistent": True})
    assert made.status == 201
    info = made.json()
    assert (info["owners"], info["persistent"], info["description"]) == (["ada"], True, "D")
    assert (await ask(stack, "GET", "/workspaces/lab")).json() == (await ask(stack, "GET", "/lab/info")).json() == info
    assert "lab" in (await ask(stack, "GET", "/workspaces")).json()
    assert (await ask(stack, "POST", "/workspaces", {"name": "lab"})).status == 409
    changed = await ask(stack, "PATCH", "/workspaces/lab", {"description": "E", "allow_list": ["bob"]})
    assert (changed.status, changed.json()["allow_list"]) == (200, ["bob"])
    given = await ask(stack, "PUT", "/workspaces/lab/permissions/bob@lab.org", {"permission": "rw"})
    assert given.json()["permissions"] == {"bob@lab.org": "read_write"}
    assert (await ask(stack, "DELETE", "/workspaces/lab/permissions/bob@lab.org")).status == 204
    assert (await ask(stack, "GET", "/workspaces/lab")).json()["permissions"] == {}
    ended = await ask(stack, "DELETE", "/workspaces/lab")
    assert (ended.status, ended.body) == (204, b"")
    assert (await ask(stack, "GET", "/workspaces/lab")).status == 404


async def test_a_change_that_the_disk_does_not_take_is_said(
    stack: MemoryStack, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_state: State, _changes: Any, *, firm: bool) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(State, "write", full)
        made = await ask(stack, "POST", "/workspaces", {"name": "lab"})
        assert (made.status, made.json()["success"]) == (507, False)
        assert "no space left" in made.json()["detail"]
        assert (await ask(stack, "GET", "/workspaces/lab")).status == 200
    await trio.sleep(2)
    assert (await ask(stack, "PATCH", "/workspaces/lab", {"description": "E"})).status == 200


async def test_a_workspace_is_made_by_who_can_come_back(
    stack: MemoryStack, autojump_clock: trio.testing.MockClock
) -> None:
    refused = await ask(stack, "POST", "/workspaces", {"name": "lab"}, principal=None)
    assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert "lab" not in stack.broker.registry.workspaces
    nobody = Principal("nobody", is_anonymous=True)
    assert (await ask(stack, "POST", "/workspaces", {"name": "lab"}, principal=nobody)).status == 201
    kept = await ask(stack, "POST", "/workspaces", {"name": "kept", "persistent": True}, principal=nobody)
    assert (kept.status, "registered user" in kept.detail) == (403, True)


async def test_a_token_that_is_made_lets_in_what_it_says(
    stack: MemoryStack, autojump_clock: trio.testing.MockClock
) -> None:
    await ask(stack, "POST", "/workspaces", {"name": "lab"})
    made = await ask(stack, "POST", "/workspaces/lab/tokens", {"permission": "rw", "client_id": "worker"})
    assert made.status == 201
    token = made.json()["token"]
    peer = await join(stack, "worker", f"&token={token}")
    assert (peer.workspace, stack.broker.tokens.verify(token).grants) == ("lab", {"lab": Level.READ_WRITE})
    (client,) = (await ask(stack, "GET", "/workspaces/lab/clients")).json()
    assert (client["id"], client["user"]["id"]) == ("lab/worker", made.json()["user"])
    await peer.provide("svc", {}, "protected", picture=b"no JSON")
    summary = (await ask(stack, "GET", "/workspaces/lab/summary")).json()
    assert (summary["client_count"], summary["service_count"], summary["clients"]) == (1, 1, ["worker"])
    assert summary["services"][0]["config"]["visibility"] == "protected"
    for wrong in ({"scopes": ["other"]}, {"workspace": "other"}, {"permission": "all"}, {"expires_in": -1}):
        assert (await ask(stack, "POST", "/workspaces/lab/tokens", wrong)).status == 400
    assert (await ask(stack, "POST", "/api/tokens/revoke", {"token": token})).status == 204
    assert (await ask(stack, "POST", "/api/tokens/revoke", {"token": token})).status == 400
    with trio.fail_after(5):
        await peer.ended.wait()
    assert peer.closed == Closed(1008, "the token was revoked")


async def test_a_kicked_client_is_told_and_gone(stack: MemoryStack, autojump_clock: trio.testing.MockClock) -> None:
    await ask(stack, "POST", "/workspaces", {"name": "lab"})
    token = (await ask(stack, "POST", "/workspaces/lab/tokens")).json()["token"]
    peer = await join(stack, "worker", f"&token={token}")
    assert (await ask(stack, "DELETE", "/workspaces/lab/clients/worker")).status == 204
    await peer.ended.wait()
    assert peer.closed == Closed(1008, "disconnected by an administrator")
    gone = await ask(stack, "DELETE", "/workspaces/lab/clients/worker")
    assert (gone.status, gone.detail) == (404, "Client not found: worker")


async def test_an_administrator_blocks_and_bounds_users(
    stack: MemoryStack, autojump_clock: trio.testing.MockClock
) -> None:
    await ask(stack, "POST", "/workspaces", {"name": "lab"})
    token = (await ask(stack, "POST", "/workspaces/lab/tokens")).json()["token"]
    peer = await join(stack, "worker", f"&token={token}")
    quota = await ask(stack, "PUT", "/api/users/ada/quota", {"clients": 1, "workspaces": 1}, principal=ADMIN)
    assert quota.json() == {"clients": 1, "workspaces": 1}
    more = await ask(stack, "POST", "/workspaces", {"name": "more"})
    assert (more.status, more.detail) == (429, "the quota of workspaces = 1 workspaces are yours already")
    assert (await ask(stack, "PUT", "/workspaces/lab/quota", {"services": 0}, principal=ADMIN)).json() == {
        "services": 0
    }
    assert (await ask(stack, "PUT", "/api/users/ada/block", {"reason": "loud"}, principal=ADMIN)).status == 204
    await peer.ended.wait()
    refused = await ask(stack, "GET", "/workspaces")
    assert (refused.status, refused.detail) == (401, "this user is blocked; ask whoever runs the server")
    (blocked,) = (await ask(stack, "GET", "/api/blocked", principal=ADMIN)).json()
    assert (blocked["user"], blocked["reason"]) == ("ada", "loud")
    users = {entry["user"]: entry for entry in (await ask(stack, "GET", "/api/users", principal=ADMIN)).json()}
    assert users["ada"] == {
        "user": "ada",
        "clients": [],
        "workspaces": ["lab"],
        "quota": {"clients": 1, "workspaces": 1},
        "blocked": True,
    }
    assert (await ask(stack, "DELETE", "/api/users/ada/block", principal=ADMIN)).status == 204
    assert (await ask(stack, "GET", "/workspaces")).status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'"x"', 400),
        (b"\xff\xfe\x00", 400),
        (b"[" * 50_000, 400),
        (b'{"name": "lab", "description": "\\ud800"}', 400),
        (b'{"name": "lab", "description": "\xed\xa0\x80"}', 400),
    ],
)
async def test_a_body_that_is_no_map_is_refused(
    stack: MemoryStack, body: bytes, status: int, autojump_clock: trio.testing.MockClock
) -> None:
    answer = await ask(stack, "POST", "/workspaces", body)
    assert (answer.status, answer.json()["success"]) == (status, False)
    assert set(stack.broker.registry.workspaces) == {"public"}


async def test_a_body_is_json_and_of_64_kib_at_most(stack: MemoryStack, autojump_clock: trio.testing.MockClock) -> None:
    exact = b'{"name": "lab"}'.ljust(64 * 1024)
    assert (await ask(stack, "POST", "/workspaces", exact)).status == 201
    assert (await ask(stack, "POST", "/workspaces", exact + b" ")).status == 413
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert (await http(stack, "/workspaces", "POST", form, b"name=lab")).status == 415


async def test_a_bad_token_in_the_body_says_nothing_of_the_askers(
    stack: MemoryStack, autojump_clock: trio.testing.MockClock
) -> None:
    await ask(stack, "POST", "/workspaces", {"name": "lab"})
    await ask(stack, "POST", "/workspaces/lab/tokens", {})
    (known,) = (await ask(stack, "GET", "/workspaces/lab/tokens")).json()
    stranger = Principal("stranger", is_anonymous=False)
    unknown, foreign = [
        await ask(stack, "POST", "/api/tokens/revoke", {"token": text}, principal=stranger)
        for text in ("unknown", known["id"])
    ]
    assert (unknown.status, unknown.detail) == (foreign.status, foreign.detail)
    assert (unknown.status, "the token in the body" in unknown.detail) == (400, True)
    nobody = await http(stack, "/api/tokens/revoke", "POST", {"Authorization": "Bearer x", "Content-Length": "0"})
    assert nobody.status == 401
