"""Workspaces for several people, and who keeps a server: ``administration.py URL TOPIC [ADMIN_TOKEN]``.

The same for both generations: their managers have the same functions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from peer import client_id, connect_to_server, connected, refused, run, until


async def main(url: str, topic: str, *more: str) -> None:
    await TOPICS[topic](url, *more)


def named(server: Any) -> str:
    """A name of a workspace that no other test has."""
    return f"lab-{server.config.workspace}".lower()


async def members(server: Any, workspace: str) -> set[str]:
    """The plain ids of the clients of a workspace; the server's own is not counted."""
    listed = await server.list_clients(workspace)
    plain = {item if isinstance(item, str) else item["id"].rpartition("/")[2] for item in listed}
    return plain - {"workspace-manager"}


async def enter(server: Any, url: str, workspace: str, client: str, permission: str) -> Any:
    """One more client of *server*'s user, in a workspace that this may be in. It is left to its end."""
    token = await server.generate_token({"scopes": [workspace], "permission": permission})
    return await connect_to_server({"server_url": url, "workspace": workspace, "token": token, "client_id": client})


async def share(url: str) -> None:
    async with connected(url) as ada, connected(url) as bob:
        lab = named(ada)
        info = await ada.create_workspace({"name": lab, "description": "Ours"})
        ada_id, bob_id = ada.config.workspace, bob.config.workspace  # of who has no account, both are one name
        assert list(info["owners"]) == [ada_id]
        assert lab in [item["id"] for item in await ada.list_workspaces()]
        await refused(ada.create_workspace({"name": lab}), "already exists")
        await refused(bob.get_workspace_info(lab), f"Permission denied for workspace {lab}.")
        await refused(bob.generate_token({"scopes": [lab]}), "no permission to workspace")

        info = await ada.set_permission(bob_id, "read", lab)
        assert dict(info["permissions"]) == {bob_id: "read"}
        guest = await enter(bob, url, lab, "guest", "read")
        await refused(guest.update_workspace({"description": "Mine"}), f"Permission denied for workspace {lab}.")
        await refused(bob.generate_token({"scopes": [lab], "permission": "admin"}), "no permission to workspace")
        await refused(bob.kick_client("guest", None, lab), f"Permission denied for workspace {lab}.")
        assert (await guest.get_summary())["client_count"] == 1

        await ada.set_permission(bob_id, "admin", lab)
        assert (await bob.update_workspace({"description": "Both"}, lab))["description"] == "Both"
        assert list((await ada.update_workspace({"owners": [ada_id, bob_id]}, lab))["owners"]) == [ada_id, bob_id]
        await refused(ada.update_workspace({"owners": []}, lab), "at least one owner")
        await bob.update_workspace({"owners": [bob_id]}, lab)
        await refused(ada.get_workspace_info(lab), f"Permission denied for workspace {lab}.")
        assert await members(bob, lab) == {"guest"}
        await bob.delete_workspace(lab)
        await refused(bob.get_workspace_info(lab), f"Permission denied for workspace {lab}.")
        await _is_ended(guest)
        await _leave(guest)


async def revoked(url: str) -> None:
    """Prints the seconds from the revocation to the end of the session."""
    async with connected(url, client_id="owner") as owner:
        home = owner.config.workspace
        token = await owner.generate_token()
        guest = await connect_to_server({"server_url": url, "workspace": home, "token": token, "client_id": "guest"})
        child = {"server_url": url, "workspace": home, "token": await guest.generate_token(), "client_id": "child"}
        last = await connect_to_server(child)
        assert await members(owner, home) == {"owner", "guest", "child"}
        started = time.perf_counter()
        await owner.revoke_token(token)
        for server in (guest, last):
            await _is_ended(server)
        print("revoked", round(time.perf_counter() - started, 3))
        assert await members(owner, home) == {"owner"}
        await refused(connect_to_server(child), kind=Exception)
        await asyncio.sleep(1)  # who would come back would have come by now
        assert await members(owner, home) == {"owner"}
        for server in (guest, last):
            await _leave(server)


async def operate(url: str, admin_token: str) -> None:
    """Prints the seconds from the block, and from the kick, to the end of the session."""
    async with connected(url, token=admin_token) as admin, connected(url, client_id="owner") as owner:
        home = owner.config.workspace
        guest = await enter(owner, url, home, "guest", "read_write")
        assert await members(admin, home) == {"owner", "guest"}
        for call in (owner.list_users(), owner.block_user("x"), owner.set_quota({}), owner.list_blocked()):
            await refused(call, f"Permission denied for workspace {home}.")

        started = time.perf_counter()
        await admin.kick_client(f"{home}/guest", "too loud")
        await _is_ended(guest)
        print("kicked", round(time.perf_counter() - started, 3))
        await asyncio.sleep(1)  # who would come back would have come by now
        assert await members(admin, home) == {"owner"}
        await _leave(guest)
        guest = await enter(owner, url, home, "guest", "read_write")  # with a token: a kick is no block

        lab = named(owner)
        await owner.create_workspace({"name": lab})
        assert dict(await admin.set_quota({"services": 1}, home)) == {"services": 1}
        await owner.register_service({"id": "one", "hello": lambda: "hello"})
        await refused(owner.register_service({"id": "two", "hello": lambda: "hello"}), "the quota of services = 1")
        assert dict(await admin.set_quota({"workspaces": 0}, None, home)) == {"workspaces": 0}
        await refused(owner.create_workspace({"name": f"{lab}-2"}), "the quota of workspaces = 0")

        child = await owner.generate_token({"scopes": [lab], "permission": "read"})
        started = time.perf_counter()
        await admin.block_user(home, "mines coins")
        for server in (owner, guest):
            await _is_ended(server)
        print("blocked", round(time.perf_counter() - started, 3))
        assert [entry["user"] for entry in await admin.list_blocked()] == [home]
        again = {"server_url": url, "workspace": lab, "token": child}
        await refused(connect_to_server(again))
        (entry,) = [item for item in await admin.list_users() if item["user"] == home]
        assert (entry["blocked"], list(entry["clients"])) == (True, [])
        await admin.unblock_user(home)
        async with connected(url, workspace=lab, token=child) as back:
            assert await members(admin, lab) == {client_id(back)}
        await _leave(guest)


async def _is_ended(server: Any) -> None:
    """Wait until a client has no connection any more."""

    async def ended() -> bool:
        socket = getattr(server.rpc._connection, "_websocket", None)
        return socket is None or bool(getattr(socket, "closed", None) or getattr(socket, "close_code", None))

    await until(ended)


async def _leave(server: Any) -> None:
    """Say goodbye for a client that was sent away, once it has tried to return and was refused.

    imjoy-rpc 0.5.59 hangs when it is told to leave while it tries (``docs/clients.md``).
    """
    listening = server.rpc._connection._listen_task

    async def has_given_up() -> bool:
        return listening is None or listening.done()

    await until(has_given_up)
    await server.disconnect()


TOPICS: dict[str, Callable[..., Awaitable[None]]] = {"share": share, "revoked": revoked, "operate": operate}

run(main)
