"""Rows 5, 6 and 7 of the checklist: what is registered can be called, replaced, exported and taken back."""

from __future__ import annotations

from typing import Any

from peer import client_id, connected, joined, refused, run, service_ids
from tools import tools, use_functions


async def main(url: str, row: str) -> None:
    async with connected(url) as provider, connected(url, **await joined(provider, url)) as colleague:
        await {"5": row_5, "6": row_6, "7": row_7, "setup": setup}[row](url, provider, colleague)


async def row_5(url: str, provider: Any, colleague: Any) -> None:
    workspace, client = provider.config.workspace, client_id(provider)
    registered = await provider.register_service(tools("row-5"))
    assert registered["id"] == f"{workspace}/{client}:row-5"
    assert (registered["name"], registered["type"]) == ("Tools", "demo")
    assert registered["config"]["visibility"] == "public"
    assert registered["config"]["workspace"] == workspace
    async with connected(url) as stranger:
        assert stranger.config.workspace != workspace
        for caller in (provider, colleague, stranger):
            await use_functions(await caller.get_service(registered["id"]))


async def row_6(url: str, provider: Any, colleague: Any) -> None:
    await provider.register_service({"id": "row-6", "answer": lambda: "first"})
    await refused(
        provider.register_service({"id": "row-6", "answer": lambda: "second"}), "Service already exists: row-6"
    )
    assert await (await colleague.get_service("row-6")).answer() == "first"
    again = {"id": "row-6", "type": "new", "config": {"visibility": "public"}, "answer": lambda: "second"}
    await provider.register_service(again, overwrite=True)
    assert await (await colleague.get_service("row-6")).answer() == "second"
    (entry,) = await colleague.list_services()
    assert (entry["type"], entry["config"]["visibility"]) == ("new", "public")


class Microscope:
    """Registered as an object: its public attributes are the service."""

    name = "Microscope"

    def snap(self) -> str:
        return "an image"


async def row_7(url: str, provider: Any, colleague: Any) -> None:
    workspace, client = provider.config.workspace, client_id(provider)
    mine = f"{workspace}/{client}"
    await provider.rpc.register_service({"id": "row-7", "answer": lambda: 42, "config": {"visibility": "public"}})
    assert await service_ids(colleague) == [f"{mine}:row-7"]
    service = await colleague.get_service("row-7")
    assert await service.answer() == 42
    await provider.export({"snap": lambda: "exported"})
    assert await service_ids(colleague) == [f"{mine}:row-7", f"{mine}:default"]
    assert await (await colleague.get_plugin(client)).snap() == "exported"
    await provider.rpc.unregister_service("row-7")
    assert await service_ids(colleague) == [f"{mine}:default"]
    await refused(colleague.get_service("row-7"), "Service not found")
    await refused(service.answer(), "Method not found")
    await provider.export(Microscope())
    plugin = await colleague.get_plugin(client)
    assert await plugin.snap() == "an image"
    await provider.rpc.unregister_service("default")
    assert await service_ids(colleague) == []
    await refused(colleague.get_plugin(client), "Service not found")


async def setup(url: str, provider: Any, colleague: Any) -> None:
    """What is exported is set up by the server, before ``export`` is done, once (``protocol.md`` 5.4)."""
    heard: list[str] = []

    async def later() -> None:
        heard.append(await provider.echo("set up"))

    await provider.export({"setup": later, "answer": lambda: 42})
    assert heard == ["set up"]
    assert await (await colleague.get_plugin(client_id(provider))).answer() == 42
    await provider.rpc.register_service({"id": "other", "setup": lambda: heard.append("not this one")})
    await provider.rpc.unregister_service("default")
    await provider.export({"setup": lambda: 1 / 0, "answer": lambda: 43})
    assert heard == ["set up"]
    assert await (await colleague.get_plugin(client_id(provider))).answer() == 43


run(main)
