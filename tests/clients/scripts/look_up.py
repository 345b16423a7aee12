"""Rows 8 and 9 of the checklist: every form of a query, what it finds, and what it must not find."""

from __future__ import annotations

from typing import Any

from peer import client_id, connected, joined, refused, run, service_ids


def named(service_id: str, answer: str, visibility: str = "protected") -> dict[str, Any]:
    return {"id": service_id, "type": "demo", "config": {"visibility": visibility}, "answer": lambda: answer}


async def main(url: str, row: str) -> None:
    async with connected(url) as provider, connected(url, **await joined(provider, url)) as colleague:
        await {"8": row_8, "9": row_9, "lists": lists}[row](url, provider, colleague)


async def row_8(url: str, provider: Any, colleague: Any) -> None:
    workspace, client = provider.config.workspace, client_id(provider)
    await provider.export({"answer": lambda: "default"})
    registered = await provider.register_service(named("row-8", "found"))
    forms: list[Any] = [
        "row-8",
        f"{client}:row-8",
        f"{workspace}/{client}:row-8",
        f"{workspace}/*:row-8",
        f"{workspace}/row-8",  # no client has that name, so it is read as modern clients read it
        registered,
        {"id": "row-8"},
        {"service_id": "row-8"},
        {"id": registered["id"]},
        {"id": "row-8", "workspace": workspace},
        {"id": "row-8", "client_id": client},
        {"id": f"{client}:row-8", "workspace": workspace},
        {"id": "row-8", "workspace": workspace, "client_id": client, "name": "other", "type": "x", "config": {"a": 1}},
    ]
    for form in forms:
        service = await colleague.get_service(form)
        assert await service.answer() == "found", form
        assert service.id == "row-8", form
        assert service.config.workspace == workspace, form
    for form in (f"{client}:default", f"{workspace}/{client}", {"client_id": client}):
        assert await (await colleague.get_service(form)).answer() == "default", form
    assert await (await colleague.getService("row-8")).answer() == "found"
    await _not_found(colleague, workspace, client)


async def _not_found(colleague: Any, workspace: str, client: str) -> None:
    missing = {
        "nothing": "Service not found: nothing in workspace *",
        f"{client}:nothing": "Service not found: nothing",
        f"{workspace}/{client}:nothing": "Service not found: nothing",
        f"{workspace}/*:nothing": f"Service not found: nothing in workspace {workspace}",
        "nobody:row-8": "Client not found: nobody",
        f"{workspace}/nobody:row-8": "Client not found: nobody",
        f"{workspace}/nobody": "Client not found: nobody",
        "elsewhere/nobody:row-8": "Permission denied for service: row-8",
        "a/b/c": "a/b/c",
        "": "service id",
    }
    for form, words in missing.items():
        await refused(colleague.get_service(form), words)
    await refused(colleague.get_service({"id": "row-8", "client_id": "nobody"}), "Client not found: nobody")
    await refused(colleague.get_service({"id": "nothing", "workspace": workspace}), "Service not found: nothing")
    await refused(colleague.get_service({"id": 5}), "service id")
    await refused(colleague.get_service(None), "get_service takes a service id or a map with 'id'")
    await refused(colleague.get_service("row_8"), "Service not found", "did you mean row-8")


async def row_9(url: str, provider: Any, colleague: Any) -> None:
    """The part that a client can do with its own functions; the forged messages are in ``test_hostile.py``."""
    workspace, client = provider.config.workspace, client_id(provider)
    kept = await provider.register_service(named("row-9-kept", "secret"))
    shown = await provider.register_service(named(f"row-9-shown-{client}", "open", "public"))
    assert await (await colleague.get_service("row-9-kept")).answer() == "secret"
    async with connected(url) as stranger:
        for form in (kept["id"], kept, {"id": "row-9-kept", "workspace": workspace}):
            await refused(stranger.get_service(form), "Permission denied for service: row-9-kept")
        await refused(stranger.get_service("row-9-kept"), "Service not found: row-9-kept")
        await refused(stranger.get_service(f"{workspace}/{client}"), "Permission denied for service: default")
        bare = f"row-9-shown-{client}"
        for form in (bare, shown["id"], shown, {"id": bare, "workspace": workspace}):
            service = await stranger.get_service(form)
            assert await service.answer() == "open"
            assert service.config.workspace == workspace
        assert kept["id"] not in await service_ids(stranger, "public")
        assert await service_ids(stranger, workspace) == [shown["id"]]
        await refused(stranger.get_workspace_info(workspace), "Permission denied for workspace")
        await provider.register_service(named(bare, "closed now"), overwrite=True)
        await refused(service.answer(), "is not connected")
        await refused(stranger.get_service(shown["id"]), f"Permission denied for service: {bare}")
        assert await (await colleague.get_service(bare)).answer() == "closed now"


async def lists(url: str, provider: Any, colleague: Any) -> None:
    """``list_services`` in all its forms (``protocol.md`` 5.6)."""
    workspace, client = provider.config.workspace, client_id(provider)
    await provider.register_service({**named("kept", ""), "name": "Kept", "description": "not for all"})
    await provider.register_service({**named("shown", "", "public"), "name": "Shown", "type": "viewer"})
    kept, shown = f"{workspace}/{client}:kept", f"{workspace}/{client}:shown"
    async with connected(url) as stranger:
        for query in (None, workspace, {}, {"workspace": workspace}):
            assert await service_ids(colleague, query) == [kept, shown]
        assert await service_ids(colleague, {"type": "viewer"}) == [shown]
        assert await service_ids(colleague, {"name": "Kept"}) == [kept]
        assert await service_ids(colleague, {"id": shown, "type": "viewer"}) == [shown]
        assert await service_ids(colleague, {"type": "viewer", "name": "Kept"}) == []
        assert await service_ids(stranger) == []
        assert await service_ids(stranger, "no-such-workspace") == []
        assert await service_ids(stranger, {"workspace": workspace}) == [shown]
        for server in (colleague, stranger):
            everywhere = await service_ids(server, "public")
            assert shown in everywhere
            assert kept not in everywhere
        assert {kept, shown} <= set(await service_ids(colleague, {"workspace": "*"}))
        assert await colleague.list_plugins() == await colleague.listServices()
        await refused(colleague.list_services(5), "list_services takes")
    (entry,) = await colleague.list_services({"name": "Kept"})
    assert entry["config"] == {"visibility": "protected", "require_context": False, "workspace": workspace, "flags": []}
    assert (entry["type"], entry.get("description", "not for all")) == ("demo", "not for all")


run(main)
