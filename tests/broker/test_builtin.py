"""The workspace service of legacy clients: every function under both of its names, on the wire."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from hypha.broker.access import Action, Level, Principal
from hypha.broker.broker import Credentials
from hypha.broker.builtin import camel
from hypha.broker.tokens import new_user_id
from hypha.config import Limits
from hypha.errors import NotAuthenticated, PermissionDenied
from hypha.wire.dialect import MODERN
from tests.broker.memory import EPOCH, LOGIN, Peer, Rejected, Scene

pytestmark = pytest.mark.deadline(20)


def method(target: str, path: str) -> dict[str, Any]:
    return {"_rtype": "method", "_rtarget": target, "_rmethod": path, "_rpromise": True}


class Provider:
    """A legacy client's own built-in service, as far as the server calls it (``protocol.md`` 6)."""

    def __init__(self, peer: Peer, *, relative: bool = False) -> None:
        self.peer = peer
        self.target = peer.session.address.client if relative else peer.name
        self.services: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, list[Any]]] = []
        assert peer.transport.nursery is not None
        peer.transport.nursery.start_soon(peer.serve, self)

    def offer(self, name: str, visibility: str = "protected", **config: Any) -> None:
        self.services[name] = {
            "id": name,
            "name": name,
            "type": "test",
            "config": {"visibility": visibility, **config},
            "hello": method(self.target, f"services.{name}.hello"),
            "deep": [{"er": method(self.target, f"services.{name}.deep.0.er")}],
        }
        self.peer.announce(*self.services, visibility=visibility, **config)

    def __call__(self, message: dict[str, Any]) -> Any:
        assert "with_kwargs" not in message  # a JavaScript client would take it for one more position
        name, args = message["method"].removeprefix("services.built-in."), message["args"]
        self.asked.append((message["from"], [name, *args]))
        if name == "get_service":
            (wanted,) = args
            if wanted not in self.services:
                raise RuntimeError(f"Service not found: {wanted}")
            return self.services[wanted]
        assert name == "register_service"
        service, overwrite, _ = args
        if service["id"] in self.services and not overwrite:
            raise RuntimeError(f"Service already exists: {service['id']}, please specify a different id")
        if service["config"].get("visibility", "protected") not in {"protected", "public"}:
            raise AssertionError
        self.services[service["id"]] = service
        described = {key: service[key] for key in ("name", "type", "config", "description") if key in service}
        return {"id": f"{self.peer.session.address.client}:{service['id']}", **described}


async def rejected(peer: Peer, name: str, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(Rejected) as caught:
        await peer.ask(name, *args, **kwargs)
    return str(caught.value)


# --- names ----------------------------------------------------------------------------------------------------

SAFE_TO_CALL: dict[str, Callable[[Peer], tuple[Any, ...]]] = {
    "echo": lambda peer: ("x",),
    "get_connection_info": lambda peer: (),
    "list_services": lambda peer: (),
    "list_clients": lambda peer: (),
    "list_user_clients": lambda peer: (),
    "generate_token": lambda peer: (),
    "get_workspace_info": lambda peer: (),
    "get_summary": lambda peer: (),
    "update_client_info": lambda peer: ({"id": peer.session.address.client},),
    "log": lambda peer: ("x",),
    "info": lambda peer: ("x",),
    "warning": lambda peer: ("x",),
    "error": lambda peer: ("x",),
    "critical": lambda peer: ("x",),
    "create_workspace": lambda peer: ({"name": f"made-by-{peer.session.address.client}"},),
    "set": lambda peer: ({},),
    "update_workspace": lambda peer: ({},),
    "list_workspaces": lambda peer: (),
    "list_tokens": lambda peer: (),
    "set_permission": lambda peer: ("somebody", "read"),
    "set_quota": lambda peer: ({},),
    "list_users": lambda peer: (),
    "list_blocked": lambda peer: (),
    "block_user": lambda peer: ("somebody",),
    "unblock_user": lambda peer: ("somebody",),
}
#: These ask a provider in turn, or end something, and have tests of their own.
ASKING = {"get_service", "register_service", "delete_workspace", "kick_client", "revoke_token"}
ADMIN = Principal("admin", is_anonymous=False, roles=("admin",))


async def test_every_function_answers_under_both_of_its_names(live: Scene) -> None:
    spellings: tuple[Callable[[str], str], ...] = (str, camel)
    for number, spell in enumerate(spellings):
        a = live.join(f"lab/a{number}", principal=ADMIN)
        for name, args in SAFE_TO_CALL.items():
            await a.ask(spell(name), *args(a))
    offered = {path.removeprefix("services.default.") for path in live.broker.server.functions if ".default." in path}
    assert offered == {spell(name) for name in {*SAFE_TO_CALL, *ASKING} for spell in spellings}


WRITING, ADMINISTERING = {"update_client_info", "register_service"}, {"set"}
OPERATING = {"list_users", "block_user", "unblock_user", "list_blocked", "set_quota"}


async def test_every_function_says_what_its_caller_must_be_allowed_to_do(live: Scene) -> None:
    for path, function in live.broker.server.functions.items():
        prefix, _, name = path.rpartition(".")
        expected: Action | None = Action.READ
        if prefix != "services.default":
            expected = None  # the built-in service, whose functions look themselves who is asking
        elif name in {spell for known in WRITING for spell in (known, camel(known))}:
            expected = Action.WRITE
        elif name in ADMINISTERING:
            expected = Action.ADMINISTER
        elif name in {spell for known in OPERATING for spell in (known, camel(known))}:
            expected = Action.OPERATE
        assert function.needs is expected, path


async def test_who_may_only_read_changes_nothing(live: Scene) -> None:
    a = live.join("lab/a", principal=live.principal("reader", "lab", Level.READ))
    for name in sorted(WRITING | ADMINISTERING):
        text = await rejected(a, name, {"id": "a"})
        assert text == "PermissionError: Permission denied for workspace lab.", name
    assert a.session.services == {}


@pytest.mark.parametrize(
    ("snake", "name"), [("echo", "echo"), ("get_service", "getService"), ("list_user_clients", "listUserClients")]
)
def test_camel_case(snake: str, name: str) -> None:
    assert camel(snake) == name


async def test_the_service_is_an_object_with_all_of_them(live: Scene) -> None:
    a = live.join("lab/a")
    service = await a.ask("services.built-in.get_service", "default")
    assert service["id"] == "default"
    assert service["config"] == {
        "require_context": True,
        "visibility": "protected",
        "workspace": "lab",
        "public_base_url": "http://localhost:9527",
        "local_base_url": "http://localhost:9527",
    }
    assert service["getService"] == method("lab/workspace-manager", "services.default.getService")
    assert {"get_service", "echo", "set", "log"} <= service.keys()
    assert not {"launch", "install_application"} & service.keys()
    cache = await a.ask("services.built-in.get_service", "built-in")
    assert set(cache["message_cache"]) == {"create", "append", "set", "process", "remove"}
    assert cache["config"] == {"require_context": True, "visibility": "public", "api_version": 3}
    assert await rejected(a, "services.built-in.get_service", "other") == "IndexError: Service not found: other"
    assert await a.ask("services.built-in.ping", "ping") == "pong"
    assert await rejected(a, "services.built-in.ping", "x") == "ValueError: ping takes the text 'ping'"


# --- the small ones -------------------------------------------------------------------------------------------


async def test_echo(live: Scene) -> None:
    a = live.join("lab/a")
    rows: list[Any] = [None, 1, 2**63, "x", b"\x00", [1, {"a": None}], {"_rtype": "unknown", "x": 1}]
    for value in rows:
        assert await a.ask("echo", value) == value


async def test_what_clients_log_cannot_forge_a_line(live: Scene, caplog: pytest.LogCaptureFixture) -> None:
    a = live.join("lab/a")
    caplog.set_level(logging.INFO)
    for text in ("hello", "two\nlines\x1b[31m", "x" * 5000, {"deep": [[[[[[[[1]]]]]]]]}, ["y" * 100_000] * 100):
        assert await a.ask("log", text) is None
    said = [record.getMessage() for record in caplog.records if " says " in record.getMessage()]
    assert said[:2] == ["lab/a says 'hello'", r"lab/a says 'two\nlines\x1b[31m'"]
    assert len(said) == 5
    assert all(line.isprintable() and len(line) < 1100 for line in said)


async def test_connection_info_has_what_a_client_needs_to_come_back(live: Scene) -> None:
    a = live.join("lab/a")
    info = await a.ask("get_connection_info")
    token = info.pop("reconnection_token")
    assert info == {
        "workspace": "lab",
        "client_id": "a",
        "user_info": a.session.principal.to_wire("lab"),
        "reconnection_expires_in": 172800.0,
        "public_base_url": "http://localhost:9527",
        "local_base_url": "http://localhost:9527",
    }
    assert live.broker.tokens.verify_resumption(token).identity == a.session.identity


async def test_clients_are_listed(live: Scene) -> None:
    owner = live.principal("owner", "lab")
    a = live.join("lab/a", principal=owner)
    live.join("lab/b")
    live.join("other/c", principal=Principal("owner", False, grants={"other": Level.READ}))
    assert await a.ask("list_clients") == ["workspace-manager", "a", "b"]
    assert sorted(await a.ask("list_user_clients")) == ["lab/a", "other/c"]


async def test_a_summary(live: Scene) -> None:
    a = live.join("lab/a")
    a.announce("svc", visibility="public")
    summary = await a.ask("get_summary")
    (service,) = summary.pop("services")
    assert summary == {"name": "lab", "description": None, "client_count": 1, "clients": ["a"], "service_count": 1}
    assert service == {
        "id": "lab/a:svc",
        "name": "svc",
        "type": "test",
        "config": {"require_context": False, "flags": [], "visibility": "public", "workspace": "lab"},
    }


# --- registration (protocol.md 5.4) ---------------------------------------------------------------------------


async def test_a_client_reports_its_services(live: Scene) -> None:
    a = live.join("lab/a")
    services = [{"id": "a:built-in", "type": "built-in"}, {"id": "a:svc", "type": "t", "name": "S", "config": {"x": 1}}]
    assert await a.ask("update_client_info", {"id": "a", "services": services}) is None
    assert [service.full_id for service in live.workspace("lab").services()] == ["lab/a:svc"]
    await a.ask("update_client_info", {"id": "a"})
    assert list(live.workspace("lab").services()) == []


async def test_a_wrong_report_changes_nothing(live: Scene) -> None:
    a = live.join("lab/a")
    a.announce("svc")
    rows: list[tuple[Any, str]] = [
        (None, "takes a map"),
        ([], "takes a map"),
        ({}, "takes a map"),
        ({"id": "b"}, "takes a map"),
        ({"id": "a", "services": {"a": 1}}, "'services' must be a list"),
        ({"id": "a", "services": [1]}, "must be a map"),
        ({"id": "a", "services": [{"id": "b:svc"}]}, "does not belong to client 'a'"),
        ({"id": "a", "services": [{"id": "a:svc", "config": {"x": "y" * 70_000}}]}, "description_bytes = 65536"),
    ]
    for info, complaint in rows:
        assert complaint in await rejected(a, "update_client_info", info)
        assert list(a.session.services) == ["svc"]


async def test_a_service_goes_through_its_client_before_it_is_answered(live: Scene) -> None:
    a = live.join("lab/a")
    provider = Provider(a)
    service = {"id": "svc", "name": "S", "type": "t", "config": {"visibility": "public"}, "f": method("a", "s1.x-f")}
    answer = await a.ask("register_service", service)
    ((source, asked),) = provider.asked
    assert source == "lab/workspace-manager"
    assert asked == [
        "register_service",
        service | {"config": {"visibility": "public", "workspace": "lab"}, "f": method("lab/a", "s1.x-f")},
        False,
        True,
    ]
    assert answer["id"] == "lab/a:svc"
    assert (answer["name"], answer["type"], answer["config"]["visibility"]) == ("S", "t", "public")
    assert list(a.session.services) == ["svc"]


async def test_private_is_written_as_the_word_that_clients_accept(live: Scene) -> None:
    a = live.join("lab/a")
    provider = Provider(a)
    await a.ask("registerService", {"id": "svc", "config": {"visibility": "private"}})
    assert provider.services["svc"]["config"]["visibility"] == "protected"


async def test_registering_twice_is_the_clients_own_decision(live: Scene) -> None:
    a = live.join("lab/a")
    Provider(a)
    await a.ask("register_service", {"id": "svc"})
    assert "Service already exists: svc" in await rejected(a, "register_service", {"id": "svc"})
    assert (await a.ask("register_service", {"id": "svc", "name": "new"}, overwrite=True))["name"] == "new"


async def test_the_client_may_report_before_it_answers(live: Scene) -> None:
    """The manager must go on serving the client that it has asked (``protocol.md`` 4.8)."""
    a = live.join("lab/a")
    a.call("workspace-manager", "services.default.register_service", {"id": "svc"}, session="r")
    asked = await a.next_message(lambda message: message.get("method") == "services.built-in.register_service")
    await a.ask("update_client_info", {"id": "a", "services": [{"id": "a:svc", "name": "reported"}]})
    a.answer(asked, {"id": "a:svc", "name": "answered"})
    assert (await a.message_for("r"))["args"][0]["id"] == "lab/a:svc"
    assert a.session.services["svc"].name == "reported"


@pytest.mark.parametrize("answer", [None, 5, [], {}, {"id": "b:svc"}, {"id": "a:svc", "config": 5}])
async def test_a_client_that_answers_nonsense_registers_nothing(answer: Any, live: Scene) -> None:
    a = live.join("lab/a")
    a.call("workspace-manager", "services.default.register_service", {"id": "svc"}, session="r")
    asked = await a.next_message(lambda message: message.get("method") == "services.built-in.register_service")
    a.answer(asked, answer)
    assert (await a.message_for("r"))["method"] == "r.reject"
    assert a.session.services == {}


@pytest.mark.parametrize("service", [None, [], "svc", {"id": "svc", "config": []}])
async def test_what_is_no_service_is_refused(service: Any, live: Scene) -> None:
    assert (await rejected(live.join("lab/a"), "register_service", service)).startswith("ValueError: ")


async def test_services_are_registered_only_where_the_client_is(live: Scene) -> None:
    live.workspace("other")
    a = live.join("lab/a", principal=Principal("u", False, grants={"lab": Level.ADMIN, "other": Level.ADMIN}))
    for name, argument in (("register_service", {"id": "svc"}), ("update_client_info", {"id": "a"})):
        text = await rejected(a, name, argument, to="other/workspace-manager")
        assert text == "PermissionError: services are registered in the workspace that the client is connected to"


async def test_a_session_that_ends_while_its_client_is_asked_registers_nothing(live: Scene) -> None:
    a = live.join("lab/a")
    a.call("workspace-manager", "services.default.register_service", {"id": "svc"})
    asked = await a.next_message()
    a.answer(asked, {"id": "a:svc"})
    a.leave()  # the answer is there, and the task that waits for it has not run yet
    await wait_all_tasks_blocked()
    assert not list(live.broker.registry.named("svc"))


# --- looking up (protocol.md 5.5) -----------------------------------------------------------------------------


async def test_a_service_is_found_by_every_form_of_its_name(live: Scene) -> None:
    a, b = live.join("lab/a"), live.join("lab/b")
    provider = Provider(b)
    provider.offer("svc")
    provider.offer("default")
    for query in (
        "svc",
        "b:svc",
        "*:svc",
        "lab/b:svc",
        "lab/*:svc",
        "lab/svc",
        {"id": "svc"},
        {"service_id": "svc"},
        {"id": "svc", "workspace": "lab"},
        {"id": "svc", "workspace": "*", "client_id": "*"},
        {"id": "svc", "client_id": "b", "name": "ignored", "type": "ignored", "config": {}},
        {"id": "lab/b:svc", "workspace": "elsewhere"},
    ):
        found = await a.ask("get_service", query)
        assert (found["id"], found["config"]["workspace"]) == ("svc", "lab"), query
        assert found["hello"]["_rtarget"] == "lab/b"
    for query in ("lab/b", {"client_id": "b"}, "default"):
        assert (await a.ask("getService", query))["id"] == "default", query
    provider.services["built-in"] = {"id": "built-in", "config": {}}
    assert (await a.ask("get_service", "b:built-in"))["id"] == "built-in"


async def test_relative_targets_are_made_absolute_with_the_providers_workspace(live: Scene) -> None:
    a, b = live.join("elsewhere/a"), live.join("lab/b")
    Provider(b, relative=True).offer("svc", "public")
    found = await a.ask("get_service", "svc")
    assert found["hello"]["_rtarget"] == "lab/b"
    assert found["deep"][0]["er"]["_rtarget"] == "lab/b"


async def test_what_is_not_found_or_not_permitted_is_told_in_known_words(live: Scene) -> None:
    a, b, c = live.join("lab/a"), live.join("lab/b"), live.join("other/c")
    Provider(b).offer("svc")
    Provider(c).offer("svc")
    rows: list[tuple[Any, str]] = [
        ("nope", "IndexError: Service not found: nope in workspace *"),
        ("lab/*:nope", "IndexError: Service not found: nope in workspace lab"),
        ("b:nope", "IndexError: Service not found: nope in workspace lab"),
        ("nobody:svc", "Exception: Client not found: nobody"),
        ("lab/nobody:svc", "Exception: Client not found: nobody"),
        ("lab/nobody", "Exception: Client not found: nobody"),
        ({"client_id": "nobody", "id": "svc"}, "Exception: Client not found: nobody"),
        ("nobody:built-in", "Exception: Client not found: nobody"),
        ("other/c:svc", "PermissionError: Permission denied for service: svc"),
        ("other/c:nope", "PermissionError: Permission denied for service: nope"),
        ("other/nobody:svc", "PermissionError: Permission denied for service: svc"),
        ("nowhere/c:svc", "PermissionError: Permission denied for service: svc"),
        ("other/c:built-in", "PermissionError: Permission denied for service: built-in"),
        ({"workspace": "other", "id": "svc"}, "PermissionError: Permission denied for service: svc"),
    ]
    for query, text in rows:
        assert await rejected(a, "get_service", query) == text


async def test_a_wrong_query_is_refused(live: Scene) -> None:
    a = live.join("lab/a")
    rows: list[Any] = [None, 5, [], {"id": 5}, {"id": ["svc"]}, "", "a/b/c", "a:b:c", ":x", {"id": "/"}]
    for query in rows:
        assert (await rejected(a, "get_service", query)).startswith("ValueError: "), query


async def test_a_service_of_the_public_workspace_is_found_by_its_place(live: Scene) -> None:
    """``public/x``: x is a client to legacy callers, and a service where there is no such client."""
    a, b = live.join("lab/a"), live.join("public/b")
    Provider(b).offer("login", "public")
    for query in ("login", "public/login", "public/*:login", "public/b:login", {"workspace": "public", "id": "login"}):
        assert (await a.ask("get_service", query))["id"] == "login", query


async def test_near_names_are_told_and_only_those_that_one_may_see(live: Scene) -> None:
    a, b = live.join("lab/a"), live.join("other/b")
    provider = Provider(b)
    provider.offer("hello-world", "public")
    text = await rejected(a, "get_service", "hello-wrld")
    assert text == "IndexError: Service not found: hello-wrld in workspace *; did you mean hello-world?"
    b.announce("hello-world")
    assert await rejected(a, "get_service", "hello-wrld") == "IndexError: Service not found: hello-wrld in workspace *"


async def test_a_protected_service_of_others_is_not_even_asked_for(live: Scene) -> None:
    a, b = live.join("elsewhere/a"), live.join("lab/b")
    provider = Provider(b)
    provider.offer("svc")
    await rejected(a, "get_service", "lab/b:svc")
    assert provider.asked == []


async def test_an_authorized_workspace_finds_a_protected_service(live: Scene) -> None:
    a, b = live.join("friends/a"), live.join("lab/b")
    Provider(b).offer("svc", authorized_workspaces=["friends"])
    assert (await a.ask("get_service", "lab/b:svc"))["id"] == "svc"
    assert "not found" in await rejected(a, "get_service", "svc")


@pytest.mark.parametrize("value", [None, 5, [], "text"])
async def test_a_provider_that_answers_nonsense_has_no_such_service(value: Any, live: Scene) -> None:
    a, b = live.join("lab/a"), live.join("lab/b")
    b.announce("svc")
    a.call("workspace-manager", "services.default.get_service", "svc", session="g")
    b.answer(await b.next_message(), value)
    (error,) = (await a.message_for("g"))["args"]
    assert error["_rvalue"] == "IndexError: Service not found: svc, lab/b answered without one"


async def test_a_service_without_a_config_gets_one(live: Scene) -> None:
    a, b = live.join("lab/a"), live.join("lab/b")
    b.announce("svc")
    a.call("workspace-manager", "services.default.get_service", "svc", session="g")
    b.answer(await b.next_message(), {"id": "svc", "config": None})
    assert (await a.message_for("g"))["args"] == [{"id": "svc", "config": {"workspace": "lab"}}]


async def test_a_provider_that_goes_while_it_is_asked_fails_the_look_up(live: Scene) -> None:
    a, b = live.join("lab/a"), live.join("lab/b")
    b.announce("svc")
    a.call("workspace-manager", "services.default.get_service", "svc", session="g")
    await b.next_message()
    b.leave(clean=False)
    (error,) = (await a.message_for("g"))["args"]
    assert error["_rvalue"] == "ConnectionError: Target peer lab/b is not connected"


# --- a legacy client's built-in service for modern ones (decisions.md 18) -------------------------------------


async def test_a_modern_client_is_told_the_version_of_a_legacy_built_in(live: Scene) -> None:
    a, b = live.join("lab/a", dialect=MODERN), live.join("lab/b")
    Provider(b, relative=True).services["built-in"] = {"id": "built-in", "ping": method("b", "services.built-in.ping")}
    a.call("lab/b", "services.built-in.get_service", "built-in", session="g")
    message = await a.message_for("g")
    assert (message["from"], message["method"]) == ("lab/b", "g.resolve")
    assert message["args"] == [
        {"id": "built-in", "ping": method("lab/b", "services.built-in.ping"), "config": {"api_version": 1}}
    ]


async def test_that_does_not_open_what_is_protected(live: Scene) -> None:
    """The server asks as one whom the provider trusts, so it has to look itself who is asking."""
    a, b = live.join("elsewhere/a", dialect=MODERN), live.join("lab/b")
    provider = Provider(b)
    provider.offer("open", "public")
    provider.services["secret"] = {"id": "secret", "config": {}, "value": "secret"}
    b.announce("open", visibility="public")
    a.call("lab/b", "services.built-in.get_service", "open", session="g1")
    assert (await a.message_for("g1"))["args"][0]["id"] == "open"
    for number, name in enumerate(("secret", "nope", 5, ["secret"])):
        a.call("lab/b", "services.built-in.get_service", name, session=f"r{number}")
        message = await a.message_for(f"r{number}")
        assert message["method"] == f"r{number}.reject"
        assert message["args"][0]["_rvalue"].startswith("PermissionError: Permission denied for service: ")
    assert [asked[1] for _, asked in provider.asked] == ["open"]
    member = live.join("lab/m", dialect=MODERN)
    member.call("lab/b", "services.built-in.get_service", "secret", session="g2")
    assert (await member.message_for("g2"))["args"][0]["value"] == "secret"


# --- lists (protocol.md 5.6) ----------------------------------------------------------------------------------


async def test_services_are_listed_by_place_and_by_what_they_are(live: Scene) -> None:
    a, b, c = live.join("lab/a"), live.join("other/b"), live.join("public/c")
    a.announce("mine", "both", visibility="protected")
    b.announce("open", visibility="public")
    b.session.services["open"].type = "special"
    c.announce("shared", visibility="public")
    mine, opened, shared = ["lab/a:mine", "lab/a:both"], ["other/b:open"], ["public/c:shared"]
    for query, expected in (
        (None, mine),
        ({}, mine),
        ("lab", mine),
        ("public", [*opened, *shared, LOGIN]),
        ("other", opened),
        ("*", [*mine, *opened, *shared, LOGIN]),
        ("nowhere", []),
        ("", mine),
        ({"workspace": "public"}, [*shared, LOGIN]),
        ({"workspace": "*"}, [*mine, *opened, *shared, LOGIN]),
        ({"workspace": "*", "type": "special"}, opened),
        ({"type": "test"}, mine),
        ({"id": "lab/a:both"}, ["lab/a:both"]),
        ({"name": "mine", "type": "test"}, ["lab/a:mine"]),
        ({"unknown": 1}, []),
        ({"workspace": 5}, []),
        ({"workspace": ["lab"]}, []),
    ):
        found = await a.ask("list_services", query)
        assert sorted(entry["id"] for entry in found) == sorted(expected), query
    assert sorted(entry["id"] for entry in await a.ask("listServices")) == sorted(mine)


async def test_unlisted_services_are_listed_only_at_home(live: Scene) -> None:
    a, b = live.join("lab/a"), live.join("other/b")
    for peer in (a, b):
        peer.announce("svc", visibility="unlisted")
    assert [entry["id"] for entry in await a.ask("list_services", "*")] == [LOGIN, "lab/a:svc"]


async def test_a_wrong_list_query_is_refused(live: Scene) -> None:
    a = live.join("lab/a")
    rows: list[Any] = [5, [], b"lab", True]
    for query in rows:
        assert (await rejected(a, "list_services", query)).startswith("ValueError: list_services takes"), query


# --- tokens ---------------------------------------------------------------------------------------------------


def proven(live: Scene, text: str) -> Principal:
    return live.broker.tokens.verify(text)


async def test_a_token_lets_others_into_the_workspace(live: Scene) -> None:
    a = live.join("lab/a", principal=live.principal("owner", "lab", Level.ADMIN))
    token = await a.ask("generateToken")
    principal = proven(live, token)
    assert token.startswith(f"{principal.id}@imjoy@")
    assert principal.id != "owner"
    assert (principal.parent, principal.grants, principal.home) == ("owner", {"lab": Level.READ_WRITE}, None)
    # Not longer than the issuer's own token, which lives an hour.
    assert principal.expires_at == EPOCH + 3600
    admission = live.broker.admit(Credentials("b", "lab", token))
    live.attach(admission)
    assert await a.ask("list_clients") == ["workspace-manager", "a", "b"]


async def test_a_token_is_as_asked_but_never_more_than_its_issuer(live: Scene) -> None:
    live.workspace("second").owners.append("owner")
    a = live.join("lab/a", principal=live.principal("owner", "lab", Level.ADMIN))
    rows: list[tuple[dict[str, Any], dict[str, Level] | None, str | None, float]] = [
        ({"scopes": ["lab"]}, {"lab": Level.READ_WRITE}, None, 3600),
        ({"scopes": []}, {"lab": Level.READ_WRITE}, None, 3600),
        ({"workspace": "lab"}, {"lab": Level.READ_WRITE}, "lab", 3600),
        ({"workspace": "lab", "permission": "read"}, {"lab": Level.READ}, "lab", 3600),
        ({"permission": "admin"}, {"lab": Level.ADMIN}, None, 3600),
        ({"expires_in": 60}, {"lab": Level.READ_WRITE}, None, 60),
        ({"expires_in": 0.5}, {"lab": Level.READ_WRITE}, None, 0),
        ({"expires_in": 10**9}, {"lab": Level.READ_WRITE}, None, 3600),
        ({"scopes": ["lab", "second"], "workspace": "second"}, None, "second", 3600),
    ]
    for config, grants, home, life in rows:
        principal = proven(live, await a.ask("generate_token", config))
        assert principal.grants == (grants or {"lab": Level.READ_WRITE, "second": Level.READ_WRITE})
        assert (principal.home, principal.expires_at) == (home, EPOCH + life)


async def test_a_wider_token_is_refused(live: Scene) -> None:
    live.workspace("other")
    a = live.join("lab/a")
    rows: list[tuple[Any, str]] = [
        (5, "ValueError: generate_token takes a map"),
        ({"scopes": "lab"}, "ValueError: Scopes must be empty or contains a list of workspace names."),
        ({"scopes": [1]}, "ValueError: Scopes must be empty or contains a list of workspace names."),
        ({"workspace": ["lab"]}, "ValueError: Scopes must be empty or contains a list of workspace names."),
        ({"scopes": ["other"]}, "PermissionError: User has no permission to workspace: other"),
        ({"scopes": ["nowhere"]}, "PermissionError: User has no permission to workspace: nowhere"),
        ({"scopes": ["public"]}, "PermissionError: User has no permission to workspace: public"),
        ({"permission": "admin"}, "PermissionError: User has no permission to workspace: lab"),
        ({"permission": "everything"}, "ValueError: permission must be read, read_write or admin"),
        ({"permission": ["admin"]}, "ValueError: permission must be read, read_write or admin"),
        ({"expires_in": 0}, "ValueError: expires_in must be a number of seconds above 0"),
        ({"expires_in": -1}, "ValueError: expires_in must be a number of seconds above 0"),
        ({"expires_in": "60"}, "ValueError: expires_in must be a number of seconds above 0"),
        ({"expires_in": True}, "ValueError: expires_in must be a number of seconds above 0"),
        ({"expires_in": float("nan")}, "ValueError: expires_in must be a number of seconds above 0"),
        ({"email": "boss@lab.org"}, "PermissionError: a token cannot carry another e-mail address than its issuer's"),
    ]
    for config, text in rows:
        assert await rejected(a, "generate_token", config) == text


async def test_a_token_for_very_many_workspaces_would_make_every_message_long(live: Scene) -> None:
    a = live.join("lab/a", principal=live.principal("owner", "lab", Level.ADMIN))
    names = [f"workspace-number-{number}" for number in range(100)]
    for name in names:
        live.workspace(name).owners.append("owner")
    few = proven(live, await a.ask("generate_token", {"scopes": names[:50]}))
    assert set(few.grants) == set(names[:50])
    text = await rejected(a, "generate_token", {"scopes": names})
    assert text == "RuntimeError: a token for so many workspaces would make every message too long; ask for fewer"


async def test_a_reader_issues_tokens_to_read(live: Scene) -> None:
    a = live.join("lab/a", principal=live.principal("reader", "lab", Level.READ))
    assert proven(live, await a.ask("generate_token")).grants == {"lab": Level.READ}
    assert "no permission" in await rejected(a, "generate_token", {"permission": "read_write"})


async def test_a_chain_of_tokens_ends_when_the_first_one_does(nursery: trio.Nursery) -> None:
    """A session is closed within a second of its token's end, and must not use that second to live on."""
    now = EPOCH
    scene = Scene(nursery=nursery, wall=lambda: now)
    a = scene.join("lab/a")  # its token lives an hour
    for number in range(3):
        now = EPOCH + 3599.5 + number / 4
        try:
            token = await a.ask("generate_token")
            a = scene.attach(scene.broker.admit(Credentials(f"next{number}", "lab", token)))
        except (Rejected, NotAuthenticated, PermissionDenied):
            break
        assert (a.session.principal.expires_at or 0) <= EPOCH + 3600
    now = EPOCH + 3600
    with pytest.raises(Rejected, match="PermissionError: your own token has expired"):
        await a.ask("generate_token", {"expires_in": 100})


# --- workspaces -----------------------------------------------------------------------------------------------


async def test_a_workspace_is_created_and_described(live: Scene) -> None:
    a = live.join("lab/a", principal=Principal("u", True, grants={"lab": Level.READ}))
    config = {"name": "new-one", "description": "D", "allow_list": ["x"], "visibility": "public", "icon": "ignored"}
    info = await a.ask("createWorkspace", config)
    assert info == {
        "name": "new-one",
        "id": "new-one",
        "description": "D",
        "persistent": False,
        "owners": ["u"],
        "allow_list": ["x"],
        "deny_list": [],
        "visibility": "public",
        "read_only": False,
        "config": {"bookmarks": []},
        "permissions": {},
        "quota": {},
    }
    assert await a.ask("get_workspace_info", "new-one") == info
    assert await rejected(a, "create_workspace", config) == "Exception: Workspace new-one already exists."
    changed = await a.ask("create_workspace", {"id": "new-one", "description": "E"}, overwrite=True)
    assert (changed["description"], changed["owners"]) == ("E", ["u"])


async def test_an_owner_is_named_by_the_address_where_there_is_one(live: Scene) -> None:
    a = live.join("lab/a", principal=Principal("u", False, "u@lab.org", grants={"lab": Level.READ}))
    info = await a.ask("create_workspace", {"name": "new", "owners": ["other"], "persistent": True})
    assert (info["owners"], info["persistent"]) == (["other", "u@lab.org"], True)


LONG = [f"user{number}" for number in range(1001)]


async def test_a_wrong_workspace_is_refused_and_not_made(live: Scene) -> None:
    live.workspace("taken")
    a = live.join("lab/a", principal=Principal("u", True, grants={"lab": Level.READ}))
    rows: list[tuple[Any, str]] = [
        (5, "ValueError: create_workspace takes a map with a 'name'"),
        ({}, "ValueError: workspace name must be a non-empty string"),
        ({"name": 5}, "ValueError: workspace name must be a non-empty string"),
        ({"name": ["x"]}, "ValueError: workspace name must be a non-empty string"),
        ({"name": "ws"}, "Exception: workspace name 'ws' is reserved; choose another"),
        ({"name": "public"}, "Exception: Workspace public already exists."),
        ({"name": "taken", "overwrite": True}, "KeyError: Invalid key: overwrite"),
        ({"name": "taken"}, "Exception: Workspace taken already exists."),
        ({"name": "x", "persistent": True}, "PermissionError: Only registered user can create persistent workspace."),
        ({"name": "x", "owners": "me"}, "ValueError: owners must be a list of texts"),
        ({"name": "x", "deny_list": [1]}, "ValueError: deny_list must be a list of texts"),
        ({"name": "x", "visibility": ["public"]}, "ValueError: visibility of a workspace must be public or protected"),
        ({"name": "x", "description": 5}, "ValueError: description must be text"),
        ({"name": "x", "members": {}}, "KeyError: Invalid key: members"),
        ({"name": "x", "__class__": 1}, "KeyError: Invalid key: __class__"),
        ({"name": "x", "allow_list": LONG}, "RuntimeError: allow_list takes at most 1000 entries"),
        ({"name": "x", "owners": ["o" * 300]}, "ValueError: owners must be a list of texts"),
    ]
    for config, text in rows:
        before = set(live.broker.registry.workspaces)
        assert await rejected(a, "create_workspace", config) == text
        assert set(live.broker.registry.workspaces) == before


async def test_somebody_elses_workspace_is_not_overwritten(live: Scene) -> None:
    a, b = live.join("lab/a"), live.join("lab/b")
    await a.ask("create_workspace", {"name": "mine"})
    assert "already exists" in await rejected(b, "create_workspace", {"name": "mine", "owners": ["me"]}, overwrite=True)
    assert live.workspace("mine").owners == ["user-of-a"]


async def test_the_workspaces_of_one_user_are_bounded_exactly(nursery: trio.Nursery) -> None:
    scene = Scene(Limits(workspaces_per_principal=2), nursery=nursery)
    a, b = scene.join("lab/a"), scene.join("lab/b")
    for name in ("one", "two"):
        await a.ask("create_workspace", {"name": name})
    assert "workspaces_per_principal = 2" in await rejected(a, "create_workspace", {"name": "three"})
    await b.ask("create_workspace", {"name": "three"})


async def test_the_information_of_other_workspaces_is_for_those_who_may_see_them(live: Scene) -> None:
    live.workspace("other")
    a = live.join("lab/a")
    assert (await a.ask("getWorkspaceInfo"))["name"] == "lab"
    assert (await a.ask("get_workspace_info", "lab"))["name"] == "lab"
    for name in ("other", "nowhere", "public", 5, ["other"]):
        text = await rejected(a, "get_workspace_info", name)
        assert text == f"PermissionError: Permission denied for workspace {name}."


async def test_settings_are_changed_by_those_who_administer(live: Scene) -> None:
    a = live.join("lab/a", principal=live.principal("owner", "lab", Level.ADMIN))
    await a.ask("set", {"description": "D", "deny_list": ["x"], "name": "lab", "visibility": None})
    assert (live.workspace("lab").description, live.workspace("lab").deny_list) == ("D", ["x"])
    for config, text in (
        (5, "ValueError: the settings of a workspace are a map"),
        ({"name": "other"}, "PermissionError: Changing workspace name is not allowed."),
        ({"nope": 1}, "KeyError: Invalid key: nope"),
        ({"members": {}}, "KeyError: Invalid key: members"),
    ):
        assert await rejected(a, "set", config) == text
    writer = live.join("lab/b")
    assert (
        await rejected(writer, "set", {"description": "E"}) == "PermissionError: Permission denied for workspace lab."
    )


async def test_who_is_denied_is_out_at_once(live: Scene) -> None:
    a = live.join("lab/a", principal=live.principal("owner", "lab", Level.ADMIN))
    b = live.join("lab/b", principal=live.principal("guest", "lab"))
    await a.ask("set", {"deny_list": ["guest"]})
    assert b.transport.closed == [(1008, "access to the workspace was taken away")]
    assert not b.session.open
    assert list(live.workspace("lab").members) == ["a"]
    with pytest.raises(PermissionDenied):
        live.join("lab/c", principal=live.principal("guest", "lab"))


async def test_a_name_of_the_form_of_a_user_id_is_nobody_elses_workspace(live: Scene) -> None:
    a = live.join("lab/a", principal=live.principal("owner", "lab", Level.ADMIN))
    assert "some user's own workspace" in await rejected(a, "create_workspace", {"name": new_user_id()})


async def test_the_quota_of_workspaces_counts_what_was_created_whoever_owns_it(live: Scene) -> None:
    a = live.join("lab/a", principal=live.principal("owner", "lab", Level.ADMIN))
    for number in range(a.session.limits.workspaces_per_principal):
        await a.ask("create_workspace", {"name": f"w{number}"})
        live.workspace(f"w{number}").owners.clear()
    assert "workspaces_per_principal" in await rejected(a, "create_workspace", {"name": "more"})
