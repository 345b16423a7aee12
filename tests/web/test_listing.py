"""Listings over HTTP: what there is, and only what the asker may see (C-AUTH-3, ``decisions.md`` 17)."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.web.stack import MemoryStack
from tests.web.wires import Call, HttpAnswer, Peer, http, join


async def double(call: Call) -> Any:
    return 2 * call.kwargs["number"]


async def offer(stack: MemoryStack, visibility: str) -> Peer:
    """A client with one service."""
    peer = await join(stack, "worker")
    await peer.provide("maths", {"double": double, "more.double": double}, visibility, version=3)
    return peer


async def ask(stack: MemoryStack, path: str, token: str | None = None, accept: str = "*/*") -> HttpAnswer:
    headers = {"Accept": accept} | ({"Authorization": f"Bearer {token}"} if token else {})
    return await http(stack, path, headers=headers)


@pytest.mark.parametrize("path", ["/workspaces", "/api/stats"])
async def test_a_stranger_learns_only_of_what_is_public(
    stack: MemoryStack, path: str, autojump_clock: trio.testing.MockClock
) -> None:
    hidden = await offer(stack, "protected")
    shown = await join(stack, "other")
    await shown.provide("open", {"double": double}, "public")
    text = (await ask(stack, path)).body.decode()
    assert shown.workspace in text
    assert hidden.workspace not in text
    assert hidden.workspace in (await ask(stack, path, await hidden.manager("generate_token"))).body.decode()


async def test_stats_count_what_the_asker_may_see(stack: MemoryStack, autojump_clock: trio.testing.MockClock) -> None:
    peer = await offer(stack, "protected")
    others = (await ask(stack, "/api/stats")).json()
    assert others == {"workspace_count": 1, "service_count": 1, "workspaces": ["public"]}
    mine = (await ask(stack, "/api/stats", await peer.manager("generate_token"))).json()
    assert mine == {"workspace_count": 2, "service_count": 2, "workspaces": sorted([peer.workspace, "public"])}


async def test_info_is_for_members(stack: MemoryStack, autojump_clock: trio.testing.MockClock) -> None:
    peer = await offer(stack, "public")
    answer = await ask(stack, f"/{peer.workspace}/info", await peer.manager("generate_token"))
    assert answer.status == 200
    assert answer.json()["name"] == peer.workspace
    stranger = await ask(stack, f"/{peer.workspace}/info")
    missing = await ask(stack, "/nobody/info")
    assert (stranger.status, missing.status) == (404, 404)
    assert stranger.detail.replace(peer.workspace, "nobody") == missing.detail


async def test_services_of_a_workspace(stack: MemoryStack, autojump_clock: trio.testing.MockClock) -> None:
    peer = await offer(stack, "public")
    for path in (f"/{peer.workspace}/services", f"/{peer.workspace}/services/"):
        (entry,) = (await ask(stack, path)).json()
        assert entry["id"] == f"{peer.workspace}/worker:maths"
        assert entry["config"]["visibility"] == "public"


async def test_services_that_a_stranger_may_not_see_are_no_services(
    stack: MemoryStack, autojump_clock: trio.testing.MockClock
) -> None:
    peer = await offer(stack, "protected")
    hidden, missing = await ask(stack, f"/{peer.workspace}/services"), await ask(stack, "/nobody/services")
    assert (hidden.status, missing.status) == (404, 404)
    assert hidden.detail.replace(peer.workspace, "nobody") == missing.detail
    token = await peer.manager("generate_token")
    assert len((await ask(stack, f"/{peer.workspace}/services", token)).json()) == 1


async def test_a_member_of_an_empty_workspace_gets_an_empty_list(
    stack: MemoryStack, autojump_clock: trio.testing.MockClock
) -> None:
    peer = await join(stack)
    answer = await ask(stack, f"/{peer.workspace}/services", await peer.manager("generate_token"))
    assert (answer.status, answer.json()) == (200, [])


@pytest.mark.parametrize("service", ["maths", "worker:maths"])
async def test_one_service_with_its_functions_as_text(
    stack: MemoryStack, service: str, autojump_clock: trio.testing.MockClock
) -> None:
    peer = await offer(stack, "public")
    found = (await ask(stack, f"/{peer.workspace}/services/{service}")).json()
    assert found["id"] == f"{peer.workspace}/worker:maths"
    assert found["version"] == 3
    assert found["double"] == "<function: services.maths.double>"
    assert found["more"] == {"double": "<function: services.maths.more.double>"}


async def test_a_service_that_is_not_there_names_those_that_are_near(
    stack: MemoryStack, autojump_clock: trio.testing.MockClock
) -> None:
    peer = await offer(stack, "public")
    answer = await ask(stack, f"/{peer.workspace}/services/math")
    assert answer.status == 404
    assert "did you mean maths?" in answer.detail


async def test_a_service_whose_provider_leaves_meanwhile(
    stack: MemoryStack, autojump_clock: trio.testing.MockClock
) -> None:
    peer = await offer(stack, "public")

    async def leave(call: Call) -> None:
        await peer.leave()
        await trio.sleep_forever()

    peer.functions["services.built-in.get_service"] = leave
    answer = await ask(stack, f"/{peer.workspace}/services/maths")
    assert answer.status == 502
    assert "is not connected" in answer.detail


@pytest.mark.parametrize("path", ["/workspaces", "/api/stats", "/w/info", "/w/services", "/w/services/s"])
async def test_a_bad_token_is_401_everywhere(
    stack: MemoryStack, path: str, autojump_clock: trio.testing.MockClock
) -> None:
    answer = await ask(stack, path, "x@imjoy@y.z.w")
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "generate a new one" in answer.detail


@pytest.mark.parametrize("path", ["/workspaces", "/api/stats", "/w/info", "/w/services", "/w/services/s"])
async def test_other_methods(stack: MemoryStack, path: str, autojump_clock: trio.testing.MockClock) -> None:
    refused = await http(stack, path, "PUT")
    assert (refused.status, "GET" in refused.headers["allow"]) == (405, True)
    assert refused.detail
    options = await http(stack, path, "OPTIONS")
    assert (options.status, "GET" in options.headers["allow"]) == (200, True)
