"""What the manager of ``protocol.md`` 5.3 keeps, for hypha-rpc: ``manager.py URL TOPIC [TRANSPORT...]``."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import peer
from peer import client_id, connected, joined, refused, run, service_ids, until

ADD = {
    "name": "add",
    "description": "Add two numbers, as agreed.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
        "required": ["a", "b"],
    },
}
DEFINITION = {
    "id": {"type": "string"},
    "name": {"type": "string"},
    "config": {"visibility": {"type": "string"}},
    "add": {"type": "function", "function": ADD},
}


async def main(url: str, topic: str, *transports: str) -> None:
    if transports:
        peer.transports = itertools.cycle(transports)
    await TOPICS[topic](url)


def add(a: Any, b: Any) -> Any:
    return a + b


async def service_types(url: str) -> None:
    async with connected(url) as one, connected(url, **await joined(one, url)) as two:
        home = one.config.workspace
        info = await one.register_service_type({"id": "adder", "name": "Adder", "definition": DEFINITION})
        assert (info["id"], info["definition"]) == ("adder", DEFINITION)
        assert (await two.get_service_type("adder"))["id"] == f"{home}/adder"
        assert [item["id"] for item in await two.list_service_types()] == ["adder"]
        service = {"id": "svc", "name": "svc", "type": "adder", "config": {"visibility": "public"}, "add": add}
        await two.register_service(service, check_type=True)
        found = await one.get_service("svc")
        assert await found.add(1, 2) == 3
        schema = (await one.get_service_info("svc"))["service_schema"]["add"]["function"]
        assert (schema["description"], schema["parameters"]["required"]) == (ADD["description"], ["a", "b"])
        await refused(
            two.register_service({**service, "id": "x", "more": add}, check_type=True), "Unexpected key 'more'"
        )
        less = {key: value for key, value in service.items() if key != "add"}
        await refused(two.register_service({**less, "id": "y"}, check_type=True), "Missing key 'add'")
        unknown = {"id": "z", "type": "unknown", "add": add}
        await refused(two.register_service(unknown, check_type=True), "Service type not found: unknown")
        assert not {f"{home}/{client_id(two)}:{name}" for name in "xyz"} & set(await service_ids(one))
        await refused(one.register_service_type({"id": "adder", "definition": {}}), "KeyError", "already exists: adder")
        await refused(one.search_services("adding"), "RuntimeError", "Service search is not enabled.")


async def kept(url: str) -> None:
    async with connected(url) as one, connected(url, **await joined(one, url)) as two:
        await two.log_event("run.started", {"seed": 7})
        await two.log("a line")
        events = await one.get_events()
        assert [(event["event_type"], event["data"]) for event in events] == [
            ("run.started", {"seed": 7}),
            ("log", "a line"),
        ]
        assert events[0].keys() == {"id", "event_type", "workspace", "user_id", "timestamp", "data"}
        assert await one.get_events(event_type="log") == await two.get_events("log") == events[1:]
        assert await one.get_events(start_time=time.time() + 60) == []
        assert await two.get_event_stats() == [
            {"event_type": "run.started", "count": 1},
            {"event_type": "log", "count": 1},
        ]
        await one.set_env("KEY", "a secret")
        assert await two.get_env("KEY") == "a secret"
        assert await two.get_env() == {"KEY": "a secret"}
        await refused(two.get_env("OTHER"), "KeyError", "Environment variable 'OTHER' not found")
        await two.register_service({"id": "svc", "add": add})
        item = {"bookmark_type": "service", "id": "svc"}
        await one.bookmark(item)
        (mark,) = (await two.get_workspace_info())["config"]["bookmarks"]
        assert mark["id"] == f"{one.config.workspace}/{client_id(two)}:svc"
        await two.unbookmark(mark)
        assert (await two.get_workspace_info())["config"]["bookmarks"] == []
        async with connected(url, token=await one.generate_token({"permission": "read"})) as reader:
            for call in (
                reader.get_env("KEY"),
                reader.set_env("KEY", "x"),
                reader.log_event("x"),
                reader.bookmark(item),
            ):
                await refused(call, "PermissionError")
            assert await reader.get_events() == []
        assert await one.cleanup() == {}
        await refused(two.cleanup(), "PermissionError")


async def revoked(url: str) -> None:
    async with connected(url, client_id="owner") as owner:
        token = await owner.generate_token()
        guest, child = await _guests(url, token)
        await refused(guest.revoke_token(await owner.generate_token()), "PermissionError")
        gone: list[Any] = []
        guest.rpc.on("disconnected", gone.append)
        started = time.perf_counter()
        await owner.revoke_token(token)
        await refused(owner.parse_token(token), "the token was revoked")
        await refused(_connect(url, token), "the token was revoked", kind=ConnectionAbortedError)

        async def left() -> bool:
            return [client["id"] for client in await owner.list_clients()] == [f"{owner.config.workspace}/owner"]

        await until(left)
        assert time.perf_counter() - started < 5
        await asyncio.sleep(1)  # both would have come back by now
        assert await left()
        for server in (guest, child):
            await server.disconnect()


async def _guests(url: str, token: str) -> tuple[Any, Any]:
    """A client with that token, and one with a token that the first has issued."""
    from hypha_rpc import connect_to_server

    way = next(peer.transports)
    guest = await connect_to_server({"server_url": url, "token": token, "transport": way})
    child = {"server_url": url, "token": await guest.generate_token(), "transport": way}
    return guest, await connect_to_server(child)


async def _connect(url: str, token: str) -> None:
    async with connected(url, token=token, transport="websocket"):  # over HTTP it would try again and again
        pass


TOPICS: dict[str, Callable[[str], Awaitable[None]]] = {
    "service_types": service_types,
    "kept": kept,
    "revoked": revoked,
}

run(main)
