"""Providers that register and answer what no client would: their callers are told, everybody else notices nothing."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgpack
import pytest
import trio

from tests.clients import raw
from tests.clients.conftest import RunClient
from tests.clients.raw import MANAGER, RawPeer, Refused, header
from tests.clients.scripted import passes
from tests.house.environments import GENERATIONS
from tests.house.processes import Server


def tower(depth: int) -> dict[str, Any]:
    """Maps, one in another."""
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


async def get(url: str) -> tuple[int, Any]:
    """Status and answer of a GET request; the answer is JSON, as strict readers know it."""
    return await trio.to_thread.run_sync(_get, url)


def _get(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, json.loads(answer.read(), parse_constant=pytest.fail)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@pytest.fixture
async def provider(server: Server) -> AsyncIterator[RawPeer]:
    async with raw.connected(server.url) as peer:
        yield peer


async def register(peer: RawPeer, **config: Any) -> None:
    service = {"id": f"{peer.client}:strange", "type": "x", "name": "x", "config": {"visibility": "public", **config}}
    info = {"id": peer.client, "services": [service]}
    await peer.call(MANAGER, "services.default.update_client_info", info)


@pytest.mark.parametrize(
    "extra",
    [b"\xff", float("nan"), msgpack.Timestamp(1), msgpack.ExtType(5, b"1"), tower(150), tower(300), 2**64 - 1, ["x"]],
    ids=["bytes", "nan", "date", "extension", "deep", "deeper", "large", "list"],
)
async def test_a_description_that_json_cannot_express_is_listed(
    extra: Any, provider: RawPeer, server: Server, run_client: RunClient
) -> None:
    await register(provider, extra=extra)
    status, listed = await get(f"{server.url}/{provider.workspace}/services")
    assert status == 200
    assert [entry["id"] for entry in listed] == [f"{provider.name}:strange"]
    assert listed[0]["config"]["visibility"] == "public"
    async with raw.connected(server.url) as stranger:
        (entry,) = await stranger.call(MANAGER, "services.default.list_services", provider.workspace)
        assert "extra" in entry["config"]


ANSWERS: dict[str, Any] = {
    "nothing": [],
    "nil": [None],
    "text": ["text"],
    "number": [5],
    "list": [[1, 2]],
    "empty map": [{}],
    "two": [{}, {}],
    "config that is no map": [{"id": 5, "config": []}],
    "target that is no text": [{"f": {"_rtype": "method", "_rtarget": 5, "_rmethod": []}}],
    "type that is no text": [{"f": {"_rtype": ["method"]}, "_rtype": {}}],
    "deep": [tower(150)],
    "deeper": [tower(400)],
    "bytes": [{"f": b"\xff", "g": msgpack.ExtType(5, b"1")}],
    "large": [{"f": "x" * 900_000}],
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_provider_that_answers_nonsense(answer: str, provider: RawPeer, server: Server) -> None:
    """To the server, which asks for its service: in the name of a client, and of two HTTP requests."""
    await register(provider)
    provider.answers = ANSWERS[answer]
    service_id = f"{provider.name}:strange"
    async with raw.connected(server.url) as caller:
        with suppress(Refused):
            assert isinstance(await caller.call(MANAGER, "services.default.get_service", service_id), dict)
        for path in ("strange", "strange/f", "strange/a.a.a", f"{provider.client}:strange/g"):
            status, told = await get(f"{server.url}/{provider.workspace}/services/{path}?_timeout=5")
            assert status in {200, 404, 406, 500, 502}, told
            assert "internal error" not in json.dumps(told)
        assert await caller.call(MANAGER, "services.default.echo", "x") == "x"


async def test_answers_that_nobody_asked_for(provider: RawPeer, server: Server, run_client: RunClient) -> None:
    for method in ("x.resolve", "x.reject", "x.heartbeat", "x", ".", "x.y.z.resolve", "services.resolve"):
        bodies: list[dict[str, Any]] = [{"args": [1]}, {}, {"args": []}, {"args": [1, 2], "with_kwargs": True}]
        for extra in bodies:
            await provider.send(header(MANAGER, method), extra)
            await provider.send(header(f"{provider.workspace}/http", method), extra)
            await provider.send(header(MANAGER, method, "s"), provider.body("s"))
    for generation in GENERATIONS:
        await passes(run_client, generation, "connect.py", server.url, "2")
    assert await provider.call(MANAGER, "services.default.echo", "x") == "x"
