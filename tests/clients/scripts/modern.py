"""Rows 18 to 28 of the checklist, for hypha-rpc: ``modern.py URL ROW [TRANSPORT...]``.

The clients of a row take the transports in turn; without any they connect by websocket.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import peer
from peer import client_id, connected, joined, refused, run, service_ids, until
from tools import tools, use_functions, use_large_values, use_values


async def main(url: str, row: str, *transports: str) -> None:
    if transports:
        peer.transports = itertools.cycle(transports)
    await ROWS[row](url)


async def row_18(url: str) -> None:
    async with connected(url) as one, connected(f"{url}/", client_id="named") as two:
        assert one.config.workspace != two.config.workspace
        assert two.config.client_id == client_id(two) == "named"
        assert one.config.manager_id == two.config.manager_id == one.config.server_id
        assert one.config.user["is_anonymous"] is True
        assert one.config.public_base_url == one.config.local_base_url == url
        assert await service_ids(one) == [f"{one.config.workspace}/{client_id(one)}:built-in"]
        assert [client["id"] for client in await two.list_clients()] == [f"{two.config.workspace}/named"]
        assert await one.echo("x") == "x"
        assert await one.log("x") is None
        assert (await one.check_status())["status"] == "ready"
        assert one.get_service.__schema__["parameters"]["required"] == ["service_id"]


async def row_19(url: str) -> None:
    async with connected(url, client_id="owner") as owner:
        home = owner.config.workspace
        token = await owner.generate_token({"expires_in": 600})
        async with connected(url, token=token) as guest, connected(url, token=token, workspace=home) as other:
            assert guest.config.workspace == other.config.workspace == home
            assert (await guest.parse_token(token))["scope"]["workspaces"] == {home: "rw"}
            assert await owner.ping(client_id(guest)) == "pong"
            assert "not found" in await owner.ping("nobody")
        created = await owner.create_workspace({"id": "row-19", "description": "of row 19"})
        assert (created["id"], created["owners"]) == ("row-19", [home])
        token = await owner.generate_token({"workspace": "row-19", "permission": "read"})
        async with connected(url, token=token) as reader:
            assert reader.config.workspace == "row-19"
            assert (await reader.get_workspace_info())["description"] == "of row 19"
            await refused(reader.register_service({"id": "x", "f": lambda: 1}), "Permission denied")
        assert {item["id"] for item in await owner.list_workspaces()} == {home, "row-19"}
        await owner.delete_workspace("row-19")
        assert [item["id"] for item in await owner.list_workspaces()] == [home]


async def row_20(url: str) -> None:
    async with connected(url, client_id="taken") as owner:
        home, token = owner.config.workspace, await owner.generate_token()
        rows: list[tuple[dict[str, Any], str]] = [
            ({"token": "nonsense"}, "Authentication error"),
            ({"token": f"{token}x"}, "Authentication error"),
            ({"workspace": home}, f"Permission denied for workspace {home}"),
            ({"workspace": "nowhere", "token": token}, "Permission denied for workspace nowhere"),
            ({"workspace": "public", "token": token}, "Permission denied for workspace public"),
            ({"client_id": "taken", "token": token}, f"Client already exists and is active: {home}/taken"),
            ({"client_id": "a/b"}, "client id"),
        ]
        for settings, reason in rows:
            await refused(_connect(url, **settings), reason, kind=ConnectionAbortedError)
        assert await owner.echo("x") == "x"


async def _connect(url: str, **settings: Any) -> None:
    async with connected(url, **settings):
        pass


async def row_21(url: str) -> None:
    async with connected(url, client_id="provider") as provider, connected(url, **await joined(provider, url)) as guest:
        home = provider.config.workspace
        config = {"visibility": "public", "colour": "red"}
        info = await provider.register_service(
            {"id": "row-21", "name": "Row", "type": "demo", "description": "a row", "config": config, "hello": hello}
        )
        full = f"{home}/provider:row-21"
        assert info["id"] == full
        async with connected(url) as stranger:
            for caller, ids in (
                (guest, ("row-21", "provider:row-21", f"{home}/row-21", full, "row-21@*", f"{home}/*:row-21")),
                (stranger, ("row-21", f"{home}/row-21", full)),
            ):
                for asked in ids:
                    service = await caller.get_service(asked)
                    assert service.id == full
                    assert service.config["url"] == f"{url}/{home}/services/provider:row-21"
                    assert (service.config["workspace"], service.config["colour"]) == (home, "red")
                    assert await service.hello("x") == "hello x"
            await refused(stranger.get_service(f"{home}/other"), "PermissionError", "non-public service in workspace")
            assert await service_ids(stranger, home) == [full]
        await refused(guest.get_service("other"), f"KeyError: 'Service not found: {home}/*:other@*'")
        await refused(guest.get_service({"id": "row-21"}), "Service ID must be a string.")
        await refused(guest.get_service("*"), "names no service")
        assert (await guest.get_service("~")).id == f"*/{guest.config.manager_id}:default"
        await _see_the_lists(provider, guest, full)


async def _see_the_lists(provider: Any, guest: Any, full: str) -> None:
    home = provider.config.workspace
    (entry,) = await guest.list_services({"type": "demo"})
    assert entry == await guest.get_service_info("row-21")
    assert (entry["id"], entry["name"], entry["description"], entry["app_id"]) == (full, "Row", "a row", "*")
    assert entry["config"]["colour"] == "red"
    assert entry["config"]["singleton"] is False
    schema = entry["service_schema"]["hello"]["function"]
    assert schema["parameters"]["properties"]["name"]["type"] == "string"
    for query in (home, "*", {"workspace": home}, {"client_id": "provider"}):
        assert full in await service_ids(guest, query)
    for query in ("provider:row-21", f"{home}/row-21", "*/row-21", {"id": "row-21"}, {"visibility": "public"}):
        assert full in await service_ids(guest, query), query
    await refused(guest.list_services({"colour": "red"}), "ValueError", "Invalid query keys: colour")
    await provider.unregister_service("row-21")
    assert full not in await service_ids(guest)
    await refused(guest.get_service("row-21"), "Service not found")


async def row_21_export(url: str) -> None:
    """What a client over HTTP lacks."""
    async with connected(url, client_id="provider") as provider, connected(url, **await joined(provider, url)) as guest:
        await provider.export({"hello": hello})
        assert await (await guest.get_app("provider")).hello("x") == "hello x"
        assert [app["id"] for app in await guest.list_apps()] == [f"{provider.config.workspace}/provider:default"]


def hello(name: str) -> str:
    """Say hello."""
    return f"hello {name}"


async def row_22(url: str) -> None:
    closed = asyncio.Event()

    async def later(upto: int) -> AsyncIterator[int]:
        try:
            for number in range(upto):
                yield number
        finally:
            closed.set()

    def at_once(upto: int) -> Iterator[int]:
        yield from range(upto)

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("broken in the middle")

    generators = {"later": later, "at_once": at_once, "broken": broken}
    async with connected(url) as provider, connected(url, **await joined(provider, url)) as caller:
        await provider.register_service({**tools("row-22"), **generators})
        service = await caller.get_service("row-22")
        await use_functions(service)
        await use_values(service)
        await refused(service.fail("boom"), "RemoteError", "ValueError: boom")
        assert [number async for number in await service.later(5)] == [0, 1, 2, 3, 4]
        assert [number async for number in await service.at_once(5)] == [0, 1, 2, 3, 4]
        closed.clear()
        stream = await service.later(10**9)
        async for number in stream:
            if number == 2:
                break
        await stream.aclose()
        await asyncio.wait_for(closed.wait(), 5)
        heard: list[Any] = []
        await refused(_collect(await service.broken(), heard), "broken in the middle")
        assert heard == [1]


async def _collect(stream: AsyncIterator[Any], heard: list[Any]) -> None:
    async for item in stream:
        heard.append(item)


async def row_23(url: str) -> None:
    async with connected(url, ping_interval=0.5) as server:
        connection = server.rpc._connection
        first, line = connection._reconnection_token, _line_of(server)

        async def refreshed() -> bool:
            return bool(connection._reconnection_token != first)

        await until(refreshed, 10)
        assert _line_of(server) is line
        assert await server.echo("x") == "x"


def _events(server: Any) -> Any:
    """What has ``on`` and ``emit``: the connection, as people write it, which over HTTP lacks both."""
    return server if hasattr(server, "on") else server.rpc


def _line_of(server: Any) -> Any:
    """What a client reads from."""
    connection = server.rpc._connection
    return connection._websocket if hasattr(connection, "_websocket") else connection._stream_task


def _vanish(server: Any) -> None:
    """Be lost, and do not come back."""
    server.rpc._connection._closed = True
    line = _line_of(server)
    if isinstance(line, asyncio.Task):
        line.cancel()
    else:
        line.transport.abort()


async def row_26(url: str) -> None:
    heard: list[Any] = []
    async with (
        connected(url, client_id="left") as caller,
        connected(url, **await joined(caller, url, client_id="goes")) as provider,
    ):
        await provider.register_service({"id": "row-26", "wait": asyncio.sleep, "leave": lambda: None})
        service = await caller.get_service("row-26")
        _events(caller).on("client_disconnected", heard.append)
        waiting = asyncio.ensure_future(service.wait(60))
        await service.leave()
        started = time.perf_counter()
        _vanish(provider)
        await refused(waiting, "goes")
        assert time.perf_counter() - started < 1
        await refused(service.leave(), "is not connected")
        assert time.perf_counter() - started < 2

        async def told() -> bool:
            return bool(heard)

        await until(told)
        assert heard[0]["data"] == {"id": "goes", "workspace": caller.config.workspace}


async def row_27(url: str) -> None:
    async with connected(url, client_id="speaker") as speaker, connected(url, **await joined(speaker, url)) as hearer:
        home = speaker.config.workspace
        heard: dict[str, list[Any]] = {"hearer": [], "speaker": [], "stranger": [], "added": []}
        async with connected(url) as stranger:
            for name, client in (("hearer", hearer), ("speaker", speaker), ("stranger", stranger)):
                _events(client).on("news", heard[name].append)
            assert await hearer.subscribe("news") is True
            assert await stranger.subscribe(["news"]) is True
            await _events(speaker).emit({"type": "news", "to": "*", "data": 1})
            await _events(speaker).emit({"type": "news", "to": client_id(hearer), "data": 2})
            await _events(stranger).emit({"type": "news", "to": f"{home}/{client_id(hearer)}", "data": 3})
            await _events(speaker).emit({"type": "other", "to": "*", "data": 4})
            await _told(heard["hearer"], 2)
            assert await hearer.unsubscribe("news") is True
            await _events(speaker).emit({"type": "news", "to": "*", "data": 5})
            assert await speaker.echo("sent") == await hearer.echo("sent") == await stranger.echo("sent") == "sent"
            assert [event["data"] for event in heard["hearer"]] == [1, 2]
            assert {event["from"] for event in heard["hearer"]} == {f"{home}/speaker"}
            assert heard["speaker"] == heard["stranger"] == []
            await refused(hearer.subscribe("other/news"), "PermissionError")
        _events(hearer).on("service_added", heard["added"].append)
        await hearer.subscribe(["service_added"])
        info = await speaker.register_service({"id": "row-27", "f": hello})
        await _told(heard["added"], 1)
        assert heard["added"][0]["data"]["id"] == info["id"]
        assert "from" not in heard["added"][0]["data"]


async def _told(events: list[Any], count: int) -> None:
    async def enough() -> bool:
        return len(events) >= count

    await until(enough)


async def row_28(url: str) -> None:
    async with connected(url) as provider, connected(url, **await joined(provider, url)) as caller:
        await provider.register_service(tools("row-28"))
        await use_large_values(await caller.get_service("row-28"))
        array = np.arange(12_000_000, dtype=np.uint32).astype(np.uint8)
        assert np.array_equal(await caller.echo(array), array)
        for number in range(50):
            await provider.register_service({"id": f"large-{number}", "description": "x" * 60_000, "f": hello})
        assert sum(len(entry["description"] or "") for entry in await caller.list_services()) == 3_000_000


ROWS: dict[str, Callable[[str], Awaitable[None]]] = {
    "18": row_18,
    "19": row_19,
    "20": row_20,
    "21": row_21,
    "21-export": row_21_export,
    "22": row_22,
    "23": row_23,
    "26": row_26,
    "27": row_27,
    "28": row_28,
}

run(main)
