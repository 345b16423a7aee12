"""The manager of ``protocol.md`` 5.3 beside what the checklist names, for both clients of hypha-rpc."""

from __future__ import annotations

import pytest

from tests.clients.conftest import RunClient, RunJavascript
from tests.clients.scripted import passes
from tests.house.environments import MODERN
from tests.house.processes import Server


@pytest.mark.parametrize("transport", ["websocket", "http"])
@pytest.mark.parametrize("topic", ["service_types", "kept", "revoked"])
async def test_python(topic: str, transport: str, run_client: RunClient, server: Server) -> None:
    await passes(run_client, MODERN, "manager.py", server.url, topic, transport)


async def test_javascript(run_javascript: RunJavascript, server: Server) -> None:
    await run_javascript(
        """
        const one = await connect({ client_id: "one" });
        const { workspace } = one.config;
        const token = await one.generateToken();
        const two = await connect({ client_id: "two", token });

        const definition = { id: {}, add: { type: "function", function: { name: "add", parameters: {} } } };
        await one.registerServiceType({ id: "adder", definition });
        assert.equal((await two.getServiceType("adder")).id, `${workspace}/adder`);
        assert.deepEqual((await two.listServiceTypes())[0].definition, definition);
        await assert.rejects(two.getServiceType("none"), /KeyError: 'Service type not found: none'/);

        await two.logEvent("run.started", { seed: 7 });
        await two.log("a line");
        const events = await one.getEvents();
        assert.deepEqual(events.map((event) => [event.event_type, event.data]),
          [["run.started", { seed: 7 }], ["log", "a line"]]);
        assert.deepEqual(await two.getEventStats("log"), [{ event_type: "log", count: 1 }]);
        assert.equal((await one.getEvents(null, new Date(Date.now() - 60000).toISOString())).length, 2);

        await one.setEnv("KEY", "a secret");
        assert.equal(await two.getEnv("KEY"), "a secret");
        assert.deepEqual(await two.getEnv(), { KEY: "a secret" });
        await one.bookmark({ bookmark_type: "workspace", id: workspace });
        assert.equal((await two.getWorkspaceInfo()).config.bookmarks[0].id, workspace);
        await assert.rejects(one.searchServices("adding"), /RuntimeError: Service search is not enabled/);
        assert.deepEqual(await one.cleanup(), {});

        await one.revokeToken(token);
        await assert.rejects(connect({ token }), /ConnectionAbortedError: .*the token was revoked/);
        await until(async () => (await one.listClients()).length === 1);
        await until(() => two.rpc._connection._closed);  // its return was refused, for good
        """,
        server.url,
        library="hypha-rpc",
    )
