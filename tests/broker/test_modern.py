"""The manager of modern clients at ``*/<server id>``: what it offers, to whom, and in which words it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hypha.broker.access import Action, Level
from hypha.broker.broker import Credentials
from hypha.broker.registration import Registration
from hypha.wire.dialect import MODERN
from tests.broker.managing import MANAGER, ask, is_written, refused
from tests.broker.memory import LOGIN, SERVER_ID, Peer, Rejected, Scene


@pytest.fixture
async def live(nursery: trio.Nursery) -> Scene:
    return Scene(nursery=nursery)


def entry(peer: Peer, name: str, **more: Any) -> dict[str, Any]:
    """A description as clients send it (``protocol.md`` 5.3)."""
    config = {"visibility": "protected", "require_context": False, "workspace": peer.session.address.workspace}
    described = {"name": name, "description": None, "type": "generic", "docs": None, "app_id": "*", "config": config}
    return {"id": f"{peer.name}:{name}", **described, "service_schema": {}, **more}


class Provider:
    """A modern client's built-in service."""

    def __init__(self, peer: Peer, *names: str) -> None:
        self.peer, self.names, self.asked = peer, names, list[Any]()
        assert peer.transport.nursery is not None
        peer.transport.nursery.start_soon(peer.serve, self)

    def __call__(self, message: dict[str, Any]) -> Any:
        self.asked.append((message["method"], message["from"], message["ws"], message["args"]))
        if message["method"] == "services.built-in.ping":
            return "pong"
        if message["method"] == "services.default.setup":
            raise RuntimeError("the setup fails")
        (name,) = message["args"]
        if name not in self.names:
            raise RuntimeError(f"KeyError: {name}")
        function = {"_rtype": "method", "_rtarget": self.peer.session.address.client, "_rpromise": "*"}
        found: dict[str, Any] = {"id": name, "name": name, "type": "generic", "config": {"visibility": "public"}}
        found["hello"] = {**function, "_rmethod": f"services.{name}.hello"}
        if name == "default":
            found["setup"] = {**function, "_rmethod": "services.default.setup"}
        return found


# --- the object -----------------------------------------------------------------------------------------------


async def test_the_manager_is_an_object_whose_functions_say_what_they_take(live: Scene) -> None:
    a = live.join("lab/a", dialect=MODERN)
    manager = await ask(a, "services.built-in.get_service", "default")
    assert manager["config"]["server_id"] == SERVER_ID
    assert manager["config"]["visibility"] == "public"
    functions = {name: value for name, value in manager.items() if isinstance(value, dict) and name != "config"}
    offered = {path for path in live.broker.server.modern_functions if ".default." in path}
    assert {f"services.default.{name}" for name in functions} == offered
    for name, function in functions.items():
        assert function["_rtarget"] == MANAGER
        assert function["_rschema"].keys() == {"name", "description", "parameters"}, name
        assert function["_rschema"]["description"].endswith((".", ":", ",")), name
    assert functions["get_service"]["_rschema"]["parameters"] == {
        "type": "object",
        "properties": {"service_id": {"type": "string"}, "config": {"type": "object", "default": None}},
        "required": ["service_id"],
    }
    built_in = await ask(a, "services.built-in.get_service", "built-in")
    assert built_in["config"]["api_version"] == 3
    assert set(built_in["message_cache"]) == {"create", "append", "set", "process", "remove"}
    assert await refused(a, "services.built-in.get_service", "other") == "KeyError: 'Service not found: other'"


async def test_each_manager_answers_at_its_own_address(live: Scene) -> None:
    a = live.join("lab/a", dialect=MODERN)
    assert isinstance((await ask(a, "list_clients"))[0], dict)
    assert (await a.ask("list_clients"))[0] == "workspace-manager"
    assert "Method not found" in await refused(a, "update_client_info", {})
    with pytest.raises(Rejected, match="Method not found"):
        await a.ask("check_status")


async def test_only_a_writer_changes_what_there_is(live: Scene) -> None:
    needs = {path: function.needs for path, function in live.broker.server.modern_functions.items()}
    writing = {path for path, action in needs.items() if action is Action.WRITE}
    names = ("unregister_service", "log", "log_event", "set_env", "get_env", "bookmark", "unbookmark")
    assert writing == {f"services.default.{name}" for name in (*names, "register_service_type")}
    operating = {path for path, action in needs.items() if action is Action.OPERATE}
    functions = ("list_users", "block_user", "unblock_user", "list_blocked", "set_quota")
    assert operating == {f"services.default.{name}" for name in functions}
    others = {path for path in needs if ".default." in path} - writing - operating
    assert all(needs[path] is Action.READ for path in others)
    reader = live.join("lab/r", principal=live.principal("r", "lab", Level.READ), dialect=MODERN)
    assert await ask(reader, "register_service", entry(reader, "built-in")) is None
    assert "Permission denied for workspace lab" in await refused(reader, "register_service", entry(reader, "x"))
    assert "Permission denied for workspace lab" in await refused(reader, "unregister_service", "x")
    assert reader.session.services == {}
    for name in ("log", "get_env"):
        assert "Permission denied for workspace lab" in await refused(reader, name, "x")


# --- registration ---------------------------------------------------------------------------------------------


async def test_a_service_is_registered_by_its_description(live: Scene) -> None:
    a, b = live.join("lab/a", dialect=MODERN), live.join("lab/b", dialect=MODERN)
    schema = {"hello": {"type": "function", "function": {"name": "hello"}}}
    config = {"visibility": "public", "colour": "red", "workspace": "elsewhere"}
    described = entry(a, "svc", config=config, service_schema=schema, docs="see there", description="d", app_id="app")
    assert await ask(a, "register_service", described) is None
    info = await ask(b, "get_service_info", "svc")
    assert (info["id"], info["docs"], info["app_id"], info["description"]) == ("lab/a:svc", "see there", "app", "d")
    assert info["service_schema"] == schema
    assert (info["config"]["colour"], info["config"]["workspace"]) == ("red", "lab")
    (listed,) = await a.ask("list_services")
    assert listed["service_schema"] == schema
    for hidden in (entry(a, "_rintf_1"), entry(a, "local", config={"_local_only": True}), entry(a, "built-in")):
        await ask(a, "register_service", hidden)
    assert list(a.session.services) == ["svc"]
    assert "belong to client" in await refused(b, "register_service", described)
    assert "by the client that offers it" in await refused(b, "unregister_service", "a:svc")
    assert "Service not found: lab/b:svc" in await refused(b, "unregister_service", "svc")
    await ask(a, "unregister_service", "lab/a:svc@app")
    assert list(live.broker.registry.named("svc")) == []


async def test_what_is_registered_again_keeps_its_age_and_a_lost_client_its_schema(live: Scene) -> None:
    a, b = live.join("lab/a", dialect=MODERN), live.join("lab/b", dialect=MODERN)
    for peer in (a, b, a):
        await ask(peer, "register_service", entry(peer, "svc", service_schema={"f": {}}, docs={"x": 1}))
    assert (await ask(b, "get_service_info", "svc"))["id"] == "lab/a:svc"
    token = live.broker.resumption_token(a.session)
    a.leave(clean=False)
    assert (await ask(b, "get_service_info", "svc"))["id"] == "lab/b:svc"
    live.attach(live.broker.admit(Credentials("a", reconnection_token=token)), dialect=MODERN)
    info = await ask(b, "get_service_info", "svc")
    assert (info["id"], info["service_schema"], info["docs"]) == ("lab/a:svc", {"f": {}}, {"x": 1})


async def test_a_singleton_is_offered_once(live: Scene) -> None:
    a, b = live.join("lab/a", dialect=MODERN), live.join("lab/b", dialect=MODERN)
    only = {"singleton": True}
    await ask(a, "register_service", entry(a, "svc", config=only))
    await ask(a, "register_service", entry(a, "svc", config=only))
    assert "A singleton service with the same name (svc)" in await refused(b, "register_service", entry(b, "svc"))
    c = live.join("other/c", dialect=MODERN)
    await ask(c, "register_service", entry(c, "svc", config=only))


async def test_what_is_exported_is_set_up_once_and_its_failure_is_logged(
    live: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    a = live.join("lab/a", dialect=MODERN)
    provider = Provider(a, "default")
    for _ in range(2):
        a.call(MANAGER, "services.default.register_service", entry(a, "default"), session="reg")
        await wait_all_tasks_blocked()
    assert [method for method, *_ in provider.asked].count("services.default.setup") == 1
    assert "the setup of lab/a:default failed: the setup fails" in caplog.text


@pytest.mark.parametrize(
    "service",
    [None, "x", {}, {"id": "other:x"}, {"id": "x", "service_schema": []}, {"id": "x", "config": 1}, {"id": "a*"}],
)
async def test_what_is_no_description_is_refused(live: Scene, service: Any) -> None:
    a = live.join("lab/a", dialect=MODERN)
    assert (await refused(a, "register_service", service)).startswith("ValueError: ")


async def test_a_schema_counts_for_the_size_of_a_description(live: Scene) -> None:
    a = live.join("lab/a", dialect=MODERN)
    large = entry(a, "x", service_schema={"f": "x" * live.limits.description_bytes})
    assert "description_bytes" in await refused(a, "register_service", large)


# --- looking up -----------------------------------------------------------------------------------------------


async def test_a_service_is_found_under_every_form_of_its_id(live: Scene) -> None:
    a, b = live.join("lab/a", dialect=MODERN), live.join("lab/b", dialect=MODERN)
    provider = Provider(a, "svc", "built-in")
    registration = Registration("svc", "svc", "t", {"visibility": "public"}, None, app_id="app")
    live.broker.registry.register(a.session, registration)
    for asked in ("svc", "a:svc", "lab/svc", "lab/a:svc", "*:svc", "lab/*:svc", "svc@app", "lab/a:svc@*"):
        found = await ask(b, "get_service", asked, {"mode": "first"}, timeout=5)
        assert found["id"] == "lab/a:svc"
        assert found["config"]["url"] == "http://localhost:9527/lab/services/a:svc"
        assert found["config"]["workspace"] == "lab"
        assert found["hello"]["_rtarget"] == "lab/a"
    assert {(source, place) for _, source, place, _ in provider.asked} == {(MANAGER, "lab")}
    assert (await ask(b, "get_service", "a:built-in"))["id"] == "lab/a:built-in"
    for asked in ("~", "lab/~"):
        assert (await ask(b, "get_service", asked))["id"] == f"{MANAGER}:default"
    stranger = live.join("far/c", dialect=MODERN)
    for asked in ("svc", "lab/svc", "lab/a:svc"):
        assert (await ask(stranger, "get_service", asked))["id"] == "lab/a:svc"


async def test_what_is_not_found_is_told_in_known_words(live: Scene) -> None:
    a, b = live.join("lab/a", dialect=MODERN), live.join("far/b", dialect=MODERN)
    a.announce("secret")
    denied = "PermissionError: Permission denied for non-public service in workspace lab"
    rows: list[tuple[Peer, Any, str]] = [
        (a, "x", "KeyError: 'Service not found: lab/*:x@*'"),
        (a, "b:x@app", "KeyError: 'Service not found: lab/b:x@app'"),
        (a, "secret@other", "KeyError: 'Service not found: lab/*:secret@other'"),
        (a, "b:built-in", "KeyError: 'Service not found: lab/b:built-in@*'"),
        (a, "public/x", "KeyError: 'Service not found: public/*:x@*'"),
        (b, "lab/secret", denied),
        (b, "lab/a:secret", denied),
        (b, "lab/nothing", denied),
        (b, "lab/a:built-in", denied),
        (b, "nowhere/x", "PermissionError: Permission denied for non-public service in workspace nowhere"),
        (a, {"id": "x"}, "ValueError: Service ID must be a string."),
        (a, "*", "ValueError: '*' names no service"),
        (a, "*/x", "ValueError: the workspace of a service cannot be '*'"),
        (a, "a/b/c", "ValueError: service id 'a/b/c'"),
        (a, "x@a@b", "ValueError: service id 'x@a@b'"),
    ]
    for peer, asked, words in rows:
        assert (await refused(peer, "get_service", asked)).startswith(words), asked
        assert (await refused(peer, "get_service_info", asked)).startswith(words), asked
    assert "is none of" in await refused(a, "get_service", "secret", mode="nonsense")


async def test_lists_by_place_and_by_what_is_in_them(live: Scene) -> None:
    a, far = live.join("lab/a", dialect=MODERN), live.join("far/b", dialect=MODERN)
    for visibility in ("public", "protected", "unlisted"):
        for peer in (a, far):
            config = {"visibility": visibility}
            await ask(peer, "register_service", entry(peer, visibility[:4], config=config, type=visibility))
    home, built_in = {"lab/a:publ", "lab/a:prot"}, "lab/a:built-in"
    rows: list[tuple[Any, set[str]]] = [
        (None, {built_in, *home}),
        ("lab", {built_in, *home}),
        ({}, {built_in, *home}),
        ("*", {built_in, *home, "far/b:publ", LOGIN}),
        ("far", {"far/b:publ"}),
        ("public", {LOGIN}),
        ("nowhere", set()),
        ("lab/prot", {"lab/a:prot"}),
        ("a:prot", {"lab/a:prot"}),
        ("lab/a:*", {built_in, *home}),
        ("*/publ", {"lab/a:publ", "far/b:publ"}),
        ({"type": "public"}, {"lab/a:publ"}),
        ({"workspace": "*", "visibility": "public", "service_id": "publ"}, {"lab/a:publ", "far/b:publ"}),
        ({"client_id": "a", "id": "prot", "app_id": "*"}, {"lab/a:prot"}),
        ({"client_id": "x"}, set()),
    ]
    for query, expected in rows:
        assert {item["id"] for item in await ask(a, "list_services", query)} == expected, query
    unlisted = await ask(a, "list_services", "*", include_unlisted=True)
    assert {item["id"] for item in unlisted} == {built_in, *home, "far/b:publ", LOGIN, "lab/a:unli"}
    assert await refused(a, "list_services", {"colour": 1}) == "ValueError: Invalid query keys: colour"
    assert "takes text or a map" in await refused(a, "list_services", 5)


# --- clients, tokens, workspaces ------------------------------------------------------------------------------


async def test_clients_are_listed_and_pinged(live: Scene) -> None:
    a, b, far = live.join("lab/a", dialect=MODERN), live.join("lab/b"), live.join("far/c", dialect=MODERN)
    Provider(b)
    clients = await ask(a, "list_clients")
    assert [client["id"] for client in clients] == ["lab/a", "lab/b"]
    assert clients[1]["user"]["id"] == "user-of-b"
    assert await ask(a, "ping", "b") == await ask(a, "ping", "lab/b", 5) == "pong"
    assert await ask(a, "ping", "x") == "Client not found: lab/x"
    for name, *args in (("ping", "lab/b"), ("list_clients", "lab")):
        assert "Permission denied for workspace lab" in await refused(far, name, *args)
    assert "gave neither a result" in await ask(far, "ping", "far/c", 0.01)


async def test_who_does_not_answer_a_ping_is_cleaned_up(live: Scene, autojump_clock: MockClock) -> None:
    a = live.join("lab/a", principal=live.principal("owner", "lab", Level.ADMIN), dialect=MODERN)
    lives, other, silent = live.join("lab/lives"), live.join("lab/other", dialect=MODERN), live.join("lab/silent")
    for peer in (a, lives, other):
        Provider(peer)
    silent.announce("x")
    began = trio.current_time()
    assert await ask(a, "cleanup", timeout=3) == {"removed_clients": ["lab/silent"]}
    assert trio.current_time() - began == 3
    assert silent.transport.closed == [(1012, "the client did not answer a ping")]
    assert await ask(a, "list_services", "lab/x") == []
    assert await ask(a, "cleanup", "lab") == {}
    assert "Permission denied for workspace lab" in await refused(other, "cleanup")
    far = live.join("far/c", dialect=MODERN)
    assert "Permission denied for workspace lab" in await refused(far, "cleanup", "lab")
    assert "Permission denied for workspace nowhere" in await refused(far, "cleanup", "nowhere")


async def test_a_client_that_answers_a_ping_with_an_error_lives(live: Scene) -> None:
    a = live.join("lab/a", principal=live.principal("owner", "lab", Level.ADMIN), dialect=MODERN)
    assert a.transport.nursery is not None
    a.transport.nursery.start_soon(a.serve, lambda message: int("no ping here"))
    assert await ask(a, "cleanup") == {}


async def test_there_is_no_search(live: Scene) -> None:
    a = live.join("lab/a", dialect=MODERN)
    for args, kwargs in (((), {}), (("text", {"type": "x"}), {"limit": 5})):
        text = await refused(a, "search_services", *args[:1], **kwargs)
        assert text == "RuntimeError: Service search is not enabled."


async def test_a_token_names_its_workspace_and_perhaps_its_client(live: Scene) -> None:
    a = live.join("lab/a", principal=live.principal("owner", "lab", Level.ADMIN), dialect=MODERN)
    plain = await ask(a, "generate_token", {"expires_in": 60, "permission": "admin"})
    principal = live.broker.tokens.verify(plain)
    assert (principal.home, dict(principal.grants), principal.parent) == ("lab", {"lab": Level.ADMIN}, "owner")
    assert (await ask(a, "parse_token", plain))["id"] == principal.id
    bound = live.broker.tokens.verify(await ask(a, "generate_token", client_id="a b"))
    assert bound.client == "a b"
    child = live.join("lab/b", principal=live.broker.tokens.verify(plain), dialect=MODERN)
    assert live.broker.tokens.verify(await ask(child, "generate_token")).client is None
    for wrong in ({"workspace": "far"}, {"permission": "all"}, {"extra_scopes": ["x"]}, {"client_id": "a/b"}, 5):
        assert await refused(a, "generate_token", wrong)
    assert "PermissionError" in await refused(a, "parse_token", "nonsense")


async def test_a_token_for_one_client_makes_no_token_for_others(live: Scene) -> None:
    a = live.join("lab/a", dialect=MODERN)
    token = await ask(a, "generate_token", {"client_id": "only"})
    only = live.attach(live.broker.admit(Credentials("only", token=token)), dialect=MODERN)
    assert live.broker.tokens.verify(await ask(only, "generate_token")).client == "only"
    assert "another client id" in await refused(only, "generate_token", {"client_id": "b"})


async def test_workspaces_are_listed_and_deleted_by_those_who_may(live: Scene) -> None:
    a, far = live.join("lab/a", dialect=MODERN), live.join("far/b", dialect=MODERN)
    created = await ask(a, "create_workspace", {"id": "mine", "description": "d"})
    assert created["id"] == created["name"] == "mine"
    listed = await ask(a, "list_workspaces")
    assert [item["id"] for item in listed] == ["lab", "mine"]
    assert listed[1].keys() == {"id", "name", "description", "read_only", "persistent", "owners"}
    assert [item["id"] for item in await ask(a, "list_workspaces", {"description": "d"})] == ["mine"]
    assert [item["id"] for item in await ask(a, "list_workspaces", offset=1, limit=1)] == ["mine"]
    assert "whole numbers" in await refused(a, "list_workspaces", None, -1)
    for peer, name in ((far, "mine"), (a, "far"), (a, "public"), (a, "nowhere"), (a, "lab")):
        text = await refused(peer, "delete_workspace", name)
        assert text.startswith(("PermissionError: Permission denied for workspace ", "ValueError")), (name, text)
    guest = live.join("mine/g", principal=live.principal("g", "mine"), dialect=MODERN)
    await ask(a, "delete_workspace", "mine")
    assert [item["id"] for item in await ask(a, "list_workspaces")] == ["lab"]
    assert guest.transport.closed == [(1008, "the workspace was deleted")]


async def test_the_status_says_what_one_may_do(live: Scene) -> None:
    for level, letter in ((Level.READ, "r"), (Level.READ_WRITE, "rw"), (Level.ADMIN, "a")):
        peer = live.join(f"lab/{letter}", principal=live.principal(letter, "lab", level), dialect=MODERN)
        assert await ask(peer, "check_status") == {"status": "ready", "errors": None, "user_permission": letter}


async def test_events_reach_those_who_subscribed_and_no_others(live: Scene) -> None:
    a, b, c = (live.join(f"lab/{name}", dialect=MODERN) for name in "abc")
    assert await ask(a, "subscribe", ["news", "more"]) is True
    assert await ask(a, "unsubscribe", "more") is True
    for kind in ("news", "more"):
        b.send({"type": kind, "to": "*", "data": 1})
    (event,) = a.received()
    assert (event["type"], event["from"], event["to"], event["data"]) == ("news", "lab/b", "lab/*", 1)
    assert b.received() == c.received() == []
    assert "PermissionError" in await refused(a, "subscribe", "far/news")


async def test_however_deep_a_description_is_it_hides_no_other(live: Scene) -> None:
    """What is taken must fit into every message in which others get it, and msgpack writes only so many levels."""
    a, b = live.join("lab/a", dialect=MODERN), live.join("lab/b", dialect=MODERN)
    await ask(b, "subscribe", ["service_added", "service_updated"])
    deepest = next(depth for depth in itertools.count(400) if not is_written(nested(depth + 1)))
    taken = []
    for depth in range(deepest - 22, deepest - 5):
        more = {"config": nested(depth)}
        a.call(MANAGER, "services.default.register_service", entry(a, "x", **more), session="s")
        if (await a.message_for("s"))["method"] == "s.resolve":
            taken.append(depth)
            await b.next_message(lambda message: message["type"].startswith("service_"))
        assert {item["id"] for item in await ask(b, "list_services")} >= {"lab/a:built-in", "lab/b:built-in"}
        assert [item["id"] for item in await b.ask("list_services")] == ["lab/a:x"] * bool(taken)
    assert deepest - 22 in taken
    assert deepest - 6 not in taken


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"x": value}
    return value
