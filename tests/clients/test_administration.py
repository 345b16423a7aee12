"""Workspaces for several people, and the functions of whoever keeps a server, for every published client."""

from __future__ import annotations

import re
import sys

import pytest
import trio

from tests.clients.conftest import RunClient, RunJavascript
from tests.clients.scripted import passes
from tests.house.environments import MODERN
from tests.house.processes import Server, run

PYTHON = pytest.mark.parametrize("generation", ["0.5.6", "0.5.59", MODERN])
CLOSED_SECONDS = 5.0


async def admin_token(server: Server, nursery: trio.Nursery) -> str:
    """What the person at the machine of the server gets, while that runs."""
    command = [sys.executable, "-m", "hypha.server", "--issue-admin-token"]
    result = await run(nursery, command, cwd=server.log.parent, seconds=20)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.strip()


def seconds(text: str, what: str) -> float:
    found = re.search(rf"^{what} ([0-9.]+)$", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


@PYTHON
async def test_a_workspace_is_shared_given_away_and_ended(
    generation: str, run_client: RunClient, server: Server
) -> None:
    await passes(run_client, generation, "administration.py", server.url, "share")


@PYTHON
async def test_a_revoked_token_ends_the_sessions_that_came_with_it(
    generation: str, run_client: RunClient, server: Server
) -> None:
    result = await passes(run_client, generation, "administration.py", server.url, "revoked")
    assert seconds(result.stdout, "revoked") < CLOSED_SECONDS


@PYTHON
async def test_an_administrator_kicks_bounds_and_blocks(
    generation: str, run_client: RunClient, server: Server, nursery: trio.Nursery
) -> None:
    token = await admin_token(server, nursery)
    result = await passes(run_client, generation, "administration.py", server.url, "operate", token)
    assert max(seconds(result.stdout, what) for what in ("kicked", "blocked")) < CLOSED_SECONDS


@pytest.mark.parametrize("library", ["imjoy-rpc", "hypha-rpc"])
async def test_the_same_in_javascript(
    library: str, run_javascript: RunJavascript, server: Server, nursery: trio.Nursery
) -> None:
    result = await run_javascript(
        """
        const admin = await connect({ token: process.argv.at(-1) });
        const owner = await connect({ client_id: "owner" });
        const [home, other] = [owner.config.workspace, await connect({ client_id: "other" })];
        const lab = `lab-${home}`.toLowerCase();
        const call = (server, name, ...args) => {
          const camel = name.replace(/_(\\w)/g, (_, letter) => letter.toUpperCase());
          return (server[camel] || server[name])(...args);
        };
        const ids = async (workspace) => (await call(admin, "list_clients", workspace))
          .map((item) => (item.id || item).split("/").at(-1)).filter((id) => id !== "workspace-manager");
        const closed = (server) => {
          const socket = server.rpc._connection?._websocket;
          return !socket || socket.readyState > 1;
        };

        assert.deepEqual((await call(owner, "create_workspace", { name: lab })).owners, [home]);
        const info = await call(owner, "set_permission", other.config.workspace, "read", lab);
        assert.deepEqual(info.permissions, { [other.config.workspace]: "read" });
        await assert.rejects(call(other, "update_workspace", { description: "D" }, lab), /Permission denied/);
        await assert.rejects(call(owner, "update_workspace", { owners: [] }, lab), /at least one owner/);
        assert.ok((await call(owner, "list_workspaces")).some((item) => item.id === lab));

        const token = await call(owner, "generate_token");
        const guest = await connect({ workspace: home, token, client_id: "guest" });
        let started = performance.now();
        await call(owner, "revoke_token", token);
        await until(() => closed(guest));
        console.log("revoked", (performance.now() - started) / 1000);

        const again = await connect({
          workspace: home, token: await call(owner, "generate_token"), client_id: "again" });
        started = performance.now();
        await call(admin, "kick_client", `${home}/again`, "too loud");
        await until(() => closed(again));
        console.log("kicked", (performance.now() - started) / 1000);
        await until(async () => (await ids(home)).join() === "owner");

        started = performance.now();
        await call(admin, "block_user", home);
        await until(() => closed(owner));
        console.log("blocked", (performance.now() - started) / 1000);
        assert.equal((await call(admin, "list_blocked")).filter((item) => item.user === home).length, 1);
        await call(admin, "unblock_user", home);
        await call(admin, "delete_workspace", lab);
        """,
        server.url,
        await admin_token(server, nursery),
        library=library,
    )
    assert max(seconds(result.stdout, what) for what in ("revoked", "kicked", "blocked")) < CLOSED_SECONDS
