"""Rows 1, 2, 3, 4 and 16 of the checklist: getting in, talking to the server, tokens, refusals, workspaces."""

from __future__ import annotations

from typing import Any

from peer import client_id, connected, joined, refused, run, service_ids


async def main(url: str, row: str) -> None:
    await {"1": row_1, "2": row_2, "3": row_3, "4": row_4, "16": row_16}[row](url)


async def row_1(url: str) -> None:
    websocket_url = url.replace("http://", "ws://") + "/ws"
    async with connected(url) as one, connected(f"{url}/") as two, connected(websocket_url) as three:
        workspaces = {server.config.workspace for server in (one, two, three)}
        assert len(workspaces) == 3
        assert all(workspace.isalnum() for workspace in workspaces)
        for server in (one, two, three):
            assert server.config.public_base_url == server.config.local_base_url == url
            assert await service_ids(server) == []
            assert await server.list_clients() == ["workspace-manager", client_id(server)]


async def row_2(url: str) -> None:
    async with connected(url, client_id="row-2", name="Row Two") as server:
        assert client_id(server) == "row-2"
        assert await server.echo("x") == "x"
        assert await server.echo(data={"a": [1, None]}) == {"a": [1, None]}
        for log in (server.log, server.info, server.warning, server.error, server.critical):
            assert await log("x") is None
        await refused(server.echo(), "echo", "missing a required argument")
        assert await server.echo("still here") == "still here"


async def row_3(url: str) -> None:
    async with connected(url, client_id="first") as first:
        workspace, token = first.config.workspace, await first.generate_token()
        assert "@imjoy@" in token
        await first.register_service({"id": "row-3", "answer": lambda: 42})
        async with connected(url, client_id="second", workspace=workspace, token=token) as second:
            assert second.config.workspace == workspace
            assert await service_ids(second) == [f"{workspace}/first:row-3"]
            for server in (first, second):
                assert set(await server.list_clients()) == {"workspace-manager", "first", "second"}
            assert await first.list_user_clients() == [f"{workspace}/first"]
            assert await (await second.get_service("row-3")).answer() == 42
            await _see_the_summary(second, workspace)


async def _see_the_summary(server: Any, workspace: str) -> None:
    summary = await server.get_summary()
    assert summary["name"] == workspace
    assert (summary["client_count"], summary["service_count"]) == (2, 1)
    assert set(summary["clients"]) == {"first", "second"}
    assert [entry["id"] for entry in summary["services"]] == [f"{workspace}/first:row-3"]


async def row_4(url: str) -> None:
    async with connected(url, client_id="taken") as server:
        workspace, token = server.config.workspace, await server.generate_token()
        short = await server.generate_token({"expires_in": 1})
        assert short != token
        settings: list[dict[str, Any]] = [
            {"token": "no-token"},
            {"token": f"{token}x"},
            {"token": f"{token.partition('@')[0]}@imjoy@not-a-token"},
            {"workspace": "test"},
            {"workspace": "no-such-workspace", "token": token},
            {"workspace": workspace},
            {"workspace": "public", "token": token},
            {"workspace": workspace, "token": token, "client_id": "taken"},
            {"client_id": "a/b"},
            {"client_id": "workspace-manager"},
        ]
        for chosen in settings:
            await denied(url, **chosen)
        async with connected(url, workspace=workspace, token=token, client_id="free") as other:
            assert await other.echo("in") == "in"


async def denied(url: str, **settings: Any) -> None:
    """The words and the type by which users know a refusal."""

    async def try_to_connect() -> None:
        async with connected(url, **settings):
            pass

    await refused(try_to_connect(), "Permission denied for ws://", "HTTP 403", kind=PermissionError)


async def row_16(url: str) -> None:
    async with connected(url) as owner:
        name = f"lab-{owner.config.workspace}"
        created = await owner.create_workspace({"name": name, "visibility": "protected", "description": "a lab"})
        assert created["name"] == name
        assert created["owners"] == [owner.config.workspace]  # an anonymous user's workspace has the user's name
        await refused(owner.create_workspace({"name": name}), f"Workspace {name} already exists.")
        await refused(owner.create_workspace({"name": "a/b"}), "a/b")
        await refused(owner.create_workspace({"name": f"p{name}", "persistent": True}), "Only registered user")
        token = await owner.generate_token({"scopes": [name]})
        await refused(owner.generate_token({"scopes": ["public"]}), "User has no permission to workspace: public")
        await refused(owner.generate_token({"scopes": name}), "Scopes must be empty or contains a list")
        async with connected(url, workspace=name, token=token) as member:
            assert member.config.workspace == name
            info = await member.get_workspace_info()
            assert (info["name"], info["description"]) == (name, "a lab")
            assert (await owner.get_workspace_info(name))["description"] == "a lab"
            await refused(member.get_workspace_info(owner.config.workspace), "Permission denied for workspace")
            await refused(member.set({"description": "mine"}), "Permission denied for workspace")
        async with connected(url, token=token) as elsewhere:
            # A token names no workspace of its own: without one, its user gets a fresh one (``protocol.md`` 7.1).
            assert elsewhere.config.workspace not in {name, owner.config.workspace}
        await denied(url, workspace=owner.config.workspace, token=token)
        async with connected(url, **await joined(owner, url)) as colleague:
            assert colleague.config.workspace == owner.config.workspace


run(main)
