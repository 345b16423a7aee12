"""Web applications of clients: functions, and ASGI as a conversation."""

from __future__ import annotations

import base64
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
from trio.testing import (
    MockClock,
    lockstep_stream_one_way_pair,
    memory_stream_one_way_pair,
    wait_all_tasks_blocked,
)
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from hypha.broker.access import ROOT
from hypha.client import Server
from hypha.config import Config, Limits
from hypha.web import mount
from tests.web.stack import MemoryStack, ServerEnd, Steps, connection, memory_stack
from tests.web.wires import (
    Call,
    Closed,
    HttpAnswer,
    Refused,
    Rejected,
    WebSocket,
    exchange,
    http,
    join,
    read_answer,
    read_to_end,
    request_bytes,
    upgrade,
    upgrade_bytes,
)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass
class Place:
    """A server, and a program that offers applications."""

    stack: MemoryStack
    server: Server
    prefix: str = ""

    @property
    def workspace(self) -> str:
        return str(self.server.config.workspace)

    def path(self, rest: str = "/", service: str = "app") -> str:
        return f"{self.prefix}/{self.workspace}/apps/{service}{rest}"

    async def get(self, rest: str = "/", method: str = "GET", **options: Any) -> HttpAnswer:
        return await http(self.stack, self.path(rest), method, **options)

    async def offer(self, app: App, visibility: str = "public", kind: str = "asgi") -> None:
        service = {"id": "app", "type": kind, "config": {"visibility": visibility}, "serve": app}
        await self.server.register_service(service, overwrite=True)

    async def offer_functions(self, visibility: str = "public", **functions: Any) -> None:
        service = {"id": "app", "type": "functions", "config": {"visibility": visibility}, **functions}
        await self.server.register_service(service, overwrite=True)


@asynccontextmanager
async def a_place(config: Config) -> AsyncIterator[Place]:
    async with memory_stack(config) as stack, stack.server.connect({"client_id": "prov"}) as server:
        yield Place(stack, server, config.base_path)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with a_place(Config(data_dir=tmp_path)) as found:
        yield found


def starts(status: int = 200, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """The whole request body, after all of it has come."""
    data, more = b"", True
    while more:
        event = await receive()
        data, more = data + event["body"], event["more_body"]
    await send(starts(headers={"x-method": scope["method"]}))
    await send(body(data))


async def left_over(place: Place) -> bool:
    """Whether anything of a call is left when nothing happens any more."""
    await wait_all_tasks_blocked()
    server = place.stack.broker.server
    sessions = list(place.stack.broker.registry.sessions())
    held = any(session.inbound or session.server_call_bytes for session in sessions)
    return bool(server.outbound or server._callbacks or server._running or held)


# --- where ------------------------------------------------------------------------------------------------------


async def test_an_application_answers(autojump_clock: MockClock, place: Place) -> None:
    for kind in ("asgi", "ASGI"):
        await place.offer(echo, kind=kind)
        answer = await place.get("/x", "POST", body=b"hello")
        assert (answer.status, answer.body, answer.headers["x-method"]) == (200, b"hello", "POST")
    assert not await left_over(place)


async def test_headers_make_no_function_of_what_a_function_is_given(autojump_clock: MockClock, place: Place) -> None:
    async def index(event: dict[str, Any]) -> dict[str, Any]:
        return {"body": ",".join(event["headers"])}

    await place.offer_functions(index=index)
    headers = {"_rtype": "method", "_rtarget": "ws/other", "_rmethod": "services.x.erase", "_rintf": "1", "X-One": "1"}
    assert (await place.get(headers=headers)).body == b"host,_rtarget,_rmethod,x-one"


@pytest.mark.parametrize("base", ["", "/lab", "/a/b"])
async def test_what_an_application_is_told(tmp_path: Path, autojump_clock: MockClock, base: str) -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await send(starts())
        await send(body(b""))

    async with a_place(Config(data_dir=tmp_path, base_path=base)) as place:
        await place.offer(app)
        raw = f"{base}/{place.workspace}/apps/app/a%2Fb%20c//d?x=1&y=%20&x=2"
        headers = {"X-One": "1", "Connection": "keep-alive, X-Hop", "X-Hop": "h", "TE": "trailers"}
        await http(place.stack, raw, headers=headers)
        (scope,) = scopes
        root = f"{base}/{place.workspace}/apps/app"
        assert scope["type"] == "http"
        assert scope["root_path"] == root
        assert scope["path"] == f"{root}/a/b c//d"
        assert scope["raw_path"] == raw.partition("?")[0].encode()
        assert scope["query_string"] == b"x=1&y=%20&x=2"
        assert scope["headers"] == [(b"host", b"lab.example:9527"), (b"x-one", b"1")]
        assert (scope["client"], scope["scheme"], scope["http_version"]) == (("127.0.0.1", 50000), "http", "1.1")


async def test_without_its_slash_a_mount_redirects(autojump_clock: MockClock, place: Place) -> None:
    await place.offer(echo)
    for rest, location in (("", "./app/"), ("?a=%20b", "./app/?a=%20b")):
        answer = await place.get(rest, "POST")
        assert (answer.status, answer.headers["location"]) == (307, location)
    answer = await http(place.stack, place.path("", "prov:app"))
    assert (answer.status, answer.headers["location"]) == (307, "./prov:app/")


async def test_who_may_use_one_is_decided_as_for_functions(autojump_clock: MockClock, place: Place) -> None:
    """The same answers, but for the words that name the function."""
    token = {"Authorization": f"Bearer {await place.server.generate_token()}"}
    stranger = await join(place.stack, "stranger")
    foreign = {"Authorization": f"Bearer {await stranger.manager('generate_token')}"}
    for visibility in ("public", "unlisted", "protected"):
        await place.offer(echo, visibility)
        for headers in (None, token, foreign, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic eDp5"}):
            answer = await place.get(headers=headers)
            called = await http(place.stack, f"/{place.workspace}/services/app/nothing", headers=headers)
            permitted = visibility != "protected" or headers is token
            known = headers in (None, token, foreign)
            assert answer.status == (200 if permitted else 404 if known else 401)
            if answer.status != 200:
                assert (answer.status, answer.detail) == (called.status, called.detail)
    missing = await http(place.stack, place.path(service="other"))
    assert missing.detail.startswith("no service 'other' in workspace")
    assert (await http(place.stack, "/nowhere/apps/app/")).status == 404


async def test_a_token_stays_with_the_server(autojump_clock: MockClock, place: Place) -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(scope["headers"]))
        await send(starts())
        await send(body(b""))

    await place.offer(app, "protected")
    token = await place.server.generate_token()
    await place.get(headers={"Authorization": f"Bearer {token}", "Cookie": "a=b"})
    assert b"authorization" not in seen[0]
    assert seen[0][b"cookie"] == b"a=b"


async def test_what_is_no_token_is_for_the_application(autojump_clock: MockClock, place: Place) -> None:
    """So an application may have passwords and tokens of its own; no token of such a server gets there, good or not."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(scope["headers"]).get(b"authorization"))
        await send(starts(401, {"WWW-Authenticate": 'Basic realm="mine"'}))
        await send(body(b""))

    await place.offer(app)
    token = await place.server.generate_token()
    head, claims, _ = token.split(".")
    others = jwt.encode({"iss": "mine"}, "k" * 32, algorithm="HS256")
    for value in ("Basic eDp5", "Bearer secret", f"Bearer {others}", "secret", "Digest a=b", "Basic ?", "Basic eA=="):
        answer = await place.get(headers={"Authorization": value})
        assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Basic realm="mine"')
        assert seen.pop() == value.encode()
    await place.server.revoke_token(token)
    other = jwt.encode({"iss": "hypha"}, "k" * 32, algorithm="HS256")
    basic = base64.b64encode(f"user:{token}".encode()).decode()
    for value in (f"Bearer {token}", f"x@imjoy@{token}", f"Bearer {other}", f"{head}.{claims}.x", f"Basic {basic}"):
        answer = await place.get(headers={"Authorization": value})
        assert (answer.status, seen) == (401, []), value

    def index(event: dict[str, Any]) -> dict[str, Any]:
        return {"body": event["headers"].get("authorization", "")}

    await place.offer_functions(index=index)
    assert (await place.get(headers={"Authorization": "Basic eDp5"})).body == b"Basic eDp5"


async def test_other_services_are_no_applications(autojump_clock: MockClock, place: Place) -> None:
    await place.server.register_service({"id": "app", "config": {"visibility": "public"}, "f": str})
    answer = await place.get()
    assert answer.status == 404
    assert "is no web application, its type is 'generic'" in answer.detail
    assert (await http(place.stack, "/public/apps/other/")).status == 404


# --- functions --------------------------------------------------------------------------------------------------


async def test_a_function_gets_the_request_as_one_map(autojump_clock: MockClock, place: Place) -> None:
    events: list[Any] = []

    async def take(event: Any) -> Any:
        events.append(event)
        return {"status": 201, "headers": {"X-Own": "1", "Set-Cookie": ["a=1", "b=2"]}, "body": "tâken"}

    functions: dict[str, Any] = {"take-it": take, "index": take}
    await place.offer_functions(**functions)
    headers = {"X-One": "1", "Content-Type": "text/plain"}
    answer = await place.get("/take-it/?a=%C3%A4&b=1", "PUT", headers=headers, body=b"data")
    assert (answer.status, answer.body) == (201, "tâken".encode())
    assert (answer.headers["x-own"], answer.headers["set-cookie"]) == ("1", "a=1, b=2")
    (event,) = events
    assert (event["type"], event["method"], event["body"]) == ("http", "PUT", b"data")
    assert (event["path"], event["root_path"]) == ("/take-it/", f"/{place.workspace}/apps/app")
    assert event["raw_path"] == place.path("/take-it/")
    assert event["query_string"] == "a=%C3%A4&b=1"
    assert event["headers"]["x-one"] == "1"
    assert (event["workspace"], event["service_id"]) == (place.workspace, "app")
    assert event["user"]["is_anonymous"] is True
    answer = await place.get("/")
    assert (answer.status, events[1]["path"], events[1]["body"]) == (201, "/", None)
    assert not await left_over(place)


async def test_which_function_answers(autojump_clock: MockClock, place: Place) -> None:
    def named(name: str) -> Any:
        return lambda event: {"body": f"{name} {event.get('function_path')}"}

    tools = {"index": named("tools.index"), "add": named("tools.add")}
    functions = {"a/b": named("a/b"), "tools": tools, "index": named("index")}
    await place.offer_functions(**functions)
    paths = {"": "index", "a/b": "a/b", "a/b/": "a/b", "tools": "tools.index", "tools/add": "tools.add"}
    for path, name in paths.items():
        for _ in range(2):
            assert (await place.get(f"/{path}")).body.decode() == f"{name} None"
    for path in ("nothing", "tools/nothing", "_hidden", "tools/_x"):
        answer = await place.get(f"/{path}")
        assert answer.status == 404
        assert "has no function" in answer.detail
    await place.offer_functions(default=named("default"))
    for path in ("", "x/y"):
        assert (await place.get(f"/{path}")).body.decode() == f"default /{path}"


@pytest.mark.parametrize(
    "result",
    [
        None,
        "text",
        {"status": "200"},
        {"status": 99},
        {"status": 101},
        {"status": True},
        {"status": 600},
        {"body": 5},
        {"body": {"a": 1}},
        {"headers": "x"},
        {"headers": [["a"]]},
        {"headers": {"a b": "c"}},
        {"headers": {"a": "b\r\nc: d"}},
        {"headers": {"a": None}},
        {"headers": {"a": "\N{SNOWMAN}"}},
        {"headers": {"a": "x" * 70_000}},
        {"headers": {str(number): "x" for number in range(201)}},
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_bad_results_of_functions(autojump_clock: MockClock, place: Place, result: Any) -> None:
    await place.offer_functions(index=lambda event: result)
    answer = await place.get()
    assert answer.status == 502
    assert "answer" in answer.detail or "must return a map" in answer.detail


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({}, b""),
        ({"body": None}, b""),
        ({"body": b"\x00\xff"}, b"\x00\xff"),
        ({"body": memoryview(b"view")}, b"view"),
        ({"body": "x" * 3_000_000}, b"x" * 3_000_000),
        ({"headers": {"Content-Length": "99", "Transfer-Encoding": "chunked", "Connection": "close"}}, b""),
        ({"headers": {"Service-Worker-Allowed": "/", "Set-Cookie": "hypha-rpc-1=x", "Date": "today"}}, b""),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_good_results_of_functions(autojump_clock: MockClock, place: Place, result: Any, text: bytes) -> None:
    await place.offer_functions(index=lambda event: result)
    answer = await place.get()
    assert (answer.status, answer.body) == (200, text)
    assert answer.headers["content-length"] == str(len(text))
    assert not answer.headers.keys() & {"transfer-encoding", "service-worker-allowed", "set-cookie"}
    assert answer.headers["date"] != "today"


@pytest.mark.parametrize(
    ("embedder", "passes"),
    [
        ([], False),
        (["unsafe-none"], False),
        (["require-corp, x"], False),
        (["require-corp", "x"], False),
        (["require-corp"], True),
        (["credentialless"], False),
    ],
    ids=str,
)
async def test_an_application_keeps_no_window_with_the_pages_of_accounts(
    autojump_clock: MockClock, place: Place, embedder: list[str], passes: bool
) -> None:
    told = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": embedder}
    await place.offer_functions(index=lambda event: {"headers": told})
    assert ("cross-origin-opener-policy" in (await place.get()).headers) == passes


async def test_an_opener_policy_does_not_stay_alone(autojump_clock: MockClock, place: Place) -> None:
    told = {
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Embedder-Policy": "require-corp",
        "Connection": "Cross-Origin-Embedder-Policy",
    }
    await place.offer_functions(index=lambda event: {"headers": told})
    assert not {name for name in (await place.get()).headers if name.startswith("cross-origin")}


async def test_an_application_does_not_speak_for_the_whole_origin(autojump_clock: MockClock, place: Place) -> None:
    named = ["NEL", "Report-To", "Accept-CH", "Critical-CH", "Set-Login", "Origin-Agent-Cluster", "Alt-Svc"]
    named += ["Clear-Site-Data", "Strict-Transport-Security", "Use-As-Dictionary", "Secure-Session-Registration"]
    passes = ["Reporting-Endpoints", "Origin-Trial", "Content-Security-Policy"]
    await place.offer_functions(index=lambda event: {"headers": dict.fromkeys([*named, *passes], "x")})
    found = (await place.get()).headers.keys()
    assert not found & {name.lower() for name in named}
    assert found >= {name.lower() for name in passes}


async def test_an_error_of_a_function_has_no_traceback(autojump_clock: MockClock, place: Place) -> None:
    def fail(event: Any) -> Any:
        raise ValueError("not today")

    await place.offer_functions(index=fail)
    answer = await place.get()
    assert (answer.status, answer.detail) == (500, "ValueError: not today")


async def test_programs_for_the_old_server_get_a_second_argument(autojump_clock: MockClock, stack: MemoryStack) -> None:
    provider = await join(stack, "prov")
    seen: list[Any] = []

    async def index(call: Call) -> Any:
        seen.append(call.args[1:])
        return {"body": "hello"}

    rows: list[tuple[Any, list[Any]]] = [(False, [{}]), (True, []), (["index"], []), (["other"], [{}])]
    for asked, second in rows:
        config = {"visibility": "public", "require_context": asked}
        await provider.provide("app", {"index": index}, type="functions", config=config)
        assert (await http(stack, f"/{provider.workspace}/apps/app/")).body == b"hello"
        assert seen.pop() == second


async def test_bodies_of_functions_are_bounded(tmp_path: Path, autojump_clock: MockClock) -> None:
    limits = Limits(http_body_bytes=100_000, http_bodies_bytes=20_000)
    async with a_place(Config(data_dir=tmp_path, limits=limits)) as place:
        await place.offer_functions(index=lambda event: {"body": str(len(event["body"]))})
        for size, status in ((80_000, 200), (100_001, 413), (90_000, 429)):
            answer = await place.get("/", "POST", body=bytes(size))
            assert answer.status == status
        assert "http_bodies_bytes = 20000" in answer.detail


async def test_a_function_is_cancelled_when_its_client_leaves(autojump_clock: MockClock, place: Place) -> None:
    running, ended = trio.Event(), trio.Event()

    async def slow(event: Any) -> None:
        try:
            running.set()
            await trio.sleep_forever()
        finally:
            ended.set()

    await place.offer_functions(index=slow)
    stream = place.stack.connect()
    await stream.send_all(request_bytes(place.path()))
    await running.wait()
    await trio.aclose_forcefully(stream)
    await ended.wait()
    assert not await left_over(place)


# --- applications: the conversation ------------------------------------------------------------------------------


async def test_a_request_is_read_at_the_pace_of_the_application(autojump_clock: MockClock, place: Place) -> None:
    go, taken = trio.Event(), 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal taken
        await go.wait()
        more = True
        while more:
            event = await receive()
            taken, more = taken + len(event["body"]), event["more_body"]
        await send(starts())
        await send(body(str(taken).encode()))

    await place.offer(app)
    stream = place.stack.connect(lockstep=True)
    size = 8 * 2**20
    head = request_bytes(place.path(), "POST", {"Content-Length": str(size)})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, head + bytes(size))
        await wait_all_tasks_blocked()
        assert taken == 0
        go.set()
        answer = await read_answer(stream)
        nursery.cancel_scope.cancel()
    assert answer.body == str(size).encode()
    await trio.aclose_forcefully(stream)


async def test_an_answer_is_made_at_the_pace_of_its_reader(autojump_clock: MockClock, place: Place) -> None:
    made = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal made
        await send(starts())
        for _ in range(100):
            made += 1
            await send(body(bytes(10_000), more=True))
        await send(body(b""))

    await place.offer(app)
    stream = place.stack.connect(lockstep=True)
    await stream.send_all(request_bytes(place.path()))
    await wait_all_tasks_blocked()
    assert made <= 1
    answer = await read_answer(stream)
    assert (len(answer.body), made) == (1_000_000, 100)
    await trio.aclose_forcefully(stream)


async def test_head_and_ranges_are_the_application_s(autojump_clock: MockClock, place: Place) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = dict(scope["headers"]).get(b"range")
        if asked == b"bytes=2-3":
            await send(starts(206, {"content-range": "bytes 2-3/10", "content-length": "2"}))
            await send(body(b"23"))
        else:
            await send(starts(200, {"content-length": "10", "accept-ranges": "bytes"}))
            await send(body(b"" if scope["method"] == "HEAD" else b"0123456789"))

    await place.offer(app)
    answer = await place.get(headers={"Range": "bytes=2-3"})
    assert (answer.status, answer.body, answer.headers["content-range"]) == (206, b"23", "bytes 2-3/10")
    answer = await place.get(method="HEAD")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "10")
    assert (await place.get()).body == b"0123456789"


async def test_several_requests_on_one_connection(autojump_clock: MockClock, place: Place) -> None:
    await place.offer(echo)
    stream = place.stack.connect()
    for text in (b"a", b"", b"ccc"):
        answer = await exchange(stream, place.path(), "POST", body=text)
        assert answer.body == text
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("how", ["raises", "returns", "bad status", "bad header", "bad event"])
async def test_what_goes_wrong_before_the_answer_is_an_error(autojump_clock: MockClock, place: Place, how: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if how == "raises":
            raise ValueError("not today")
        if how == "bad status":
            await send(starts(101))
        elif how == "bad header":
            await send(starts(headers={"a": "b\nc"}))
        elif how == "bad event":
            await send({"type": "http.response.push"})

    await place.offer(app)
    answer = await place.get()
    assert answer.status == (502 if how == "returns" else 500)
    expected = {
        "raises": "ValueError: not today",
        "returns": "ended without an answer",
        "bad status": "a number from 200 to 599",
        "bad header": "the header 'a'",
        "bad event": "http.response.push",
    }
    assert expected[how] in answer.detail


@pytest.mark.parametrize("how", ["raises", "returns", "too long", "too short"])
async def test_what_goes_wrong_later_ends_the_connection(autojump_clock: MockClock, place: Place, how: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(starts(headers={"content-length": "10"} if "too" in how else None))
        await send(body(b"0123", more=True))
        if how == "raises":
            raise ValueError("not today")
        if how == "too long":
            await send(body(b"0123456"))
        elif how == "too short":
            await send(body(b"45"))

    await place.offer(app)
    stream = place.stack.connect()
    await stream.send_all(request_bytes(place.path()))
    whole = await read_to_end(stream)
    assert whole.startswith(b"HTTP/1.1 200")
    assert b"0123" in whole
    assert not whole.endswith(b"0\r\n\r\n")
    assert not await left_over(place)


@pytest.mark.parametrize("started", [False, True])
async def test_a_provider_that_dies(autojump_clock: MockClock, stack: MemoryStack, started: bool) -> None:
    provider = await join(stack, "prov")

    async def serve(call: Call) -> None:
        if started:
            send = call.args[0]["send"]
            for message in (starts(), body(b"some", more=True)):
                message.get("headers", [])[:] = []
                await provider.call(send["_rtarget"], send["_rmethod"], message)
        await trio.aclose_forcefully(provider.socket.stream)
        await trio.sleep_forever()

    await provider.provide("app", {"serve": serve}, type="ASGI")
    stream = stack.connect()
    await stream.send_all(request_bytes(f"/{provider.workspace}/apps/app/"))
    if started:
        whole = await read_to_end(stream)
        assert b"some" in whole
        assert not whole.endswith(b"0\r\n\r\n")
    else:
        assert (await read_answer(stream)).status == 502
    await trio.aclose_forcefully(stream)


async def test_a_client_that_leaves_is_told_and_cancels(autojump_clock: MockClock, place: Place) -> None:
    running, told = trio.Event(), list[str]()
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        running.set()
        try:
            told.append((await receive())["type"])
            await trio.sleep_forever()
        finally:
            ended.set()

    await place.offer(app)
    stream = place.stack.connect()
    await stream.send_all(request_bytes(place.path()))
    await running.wait()
    began = trio.current_time()
    await trio.aclose_forcefully(stream)
    await ended.wait()
    assert trio.current_time() - began < 0.1
    assert told == ["http.disconnect"]
    assert not await left_over(place)


async def test_a_published_client_is_told_and_has_its_time(autojump_clock: MockClock, stack: MemoryStack) -> None:
    provider = await join(stack, "prov")
    events: list[Any] = []
    running, over = trio.Event(), trio.Event()

    async def serve(call: Call) -> None:
        receive, send = call.args[0]["receive"], call.args[0]["send"]
        events.append(await provider.call(receive["_rtarget"], receive["_rmethod"]))
        running.set()
        for _ in range(2):
            events.append(await provider.call(receive["_rtarget"], receive["_rmethod"]))
        try:
            await provider.call(send["_rtarget"], send["_rmethod"], {"type": "http.response.start", "status": 200})
        except Rejected as exc:
            events.append(str(exc))
        await trio.sleep(31)
        try:
            await provider.call(receive["_rtarget"], receive["_rmethod"])
        except Rejected as exc:
            events.append(str(exc))
        over.set()

    await provider.provide("app", {"serve": serve}, type="ASGI")
    stream = stack.connect()
    await stream.send_all(request_bytes(f"/{provider.workspace}/apps/app/"))
    await running.wait()
    await trio.aclose_forcefully(stream)
    await over.wait()
    first, *gone, refused, late = events
    assert first == {"type": "http.request", "body": b"", "more_body": False}
    assert gone == [{"type": "http.disconnect"}] * 2
    assert refused == "ConnectionError: the client has left"
    assert "the call is over" in late


async def test_work_behind_the_answer_goes_on_for_a_while(autojump_clock: MockClock, place: Place) -> None:
    worked = list[float]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(starts())
        await send(body(b"done"))
        began = trio.current_time()
        try:
            await trio.sleep(100)
        finally:
            worked.append(trio.current_time() - began)

    await place.offer(app)
    assert (await place.get()).body == b"done"
    await trio.sleep(195)
    assert worked == [pytest.approx(30, abs=1)]
    assert not await left_over(place)


async def test_very_many_calls_do_not_go_on_behind_their_answers(
    autojump_clock: MockClock, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(starts())
        await send(body(b"done"))
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    monkeypatch.setattr(mount, "MANY_CALLS", 0)
    await place.offer(app)
    began = trio.current_time()
    assert (await place.get()).body == b"done"
    await ended.wait()
    assert trio.current_time() == began
    assert not await left_over(place)


async def test_an_answer_may_take_long(autojump_clock: MockClock, place: Place) -> None:
    """Heartbeats keep the call of the application, and those of its callbacks."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(200)
        await send(starts())
        for _ in range(5):
            await trio.sleep(100)
            await send(body(b"x", more=True))
        await send(body(b"end"))

    await place.offer(app)
    assert (await place.get()).body == b"xxxxxend"


async def test_an_application_may_wait_long_for_its_client(autojump_clock: MockClock, place: Place) -> None:
    events: list[str] = []
    waiting = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(starts())
        waiting.set()
        events.append((await receive())["type"])

    await place.offer(app)
    stream = place.stack.connect()
    await stream.send_all(request_bytes(place.path()))
    await waiting.wait()
    await trio.sleep(500)
    assert events == []
    await trio.aclose_forcefully(stream)
    await trio.sleep(1)
    assert events == ["http.disconnect"]


async def test_a_body_that_stops_coming_is_a_504(autojump_clock: MockClock, place: Place) -> None:
    await place.offer(echo)
    stream = place.stack.connect()
    await stream.send_all(request_bytes(place.path(), "POST", {"Content-Length": "1000"}) + bytes(10))
    answer = await read_answer(stream)
    assert (answer.status, "http_body_seconds = 60" in answer.detail) == (504, True)
    await trio.aclose_forcefully(stream)


# --- whose callbacks they are -------------------------------------------------------------------------------------


async def test_only_who_was_asked_may_answer(autojump_clock: MockClock, stack: MemoryStack) -> None:
    provider = await join(stack, "prov")
    query = f"&workspace={provider.workspace}&token={await provider.manager('generate_token')}"
    other = await join(stack, "other", query)
    asked = list[Any]()

    async def serve(call: Call) -> None:
        send = call.args[0]["send"]
        with pytest.raises(Rejected, match="Method not found"):
            await other.call(send["_rtarget"], send["_rmethod"], starts(201))
        with pytest.raises(Rejected, match="Method not found"):
            await provider.call(f"{provider.workspace}/workspace-manager", send["_rmethod"], starts(202))
        for message in ({**starts(203), "headers": []}, body(b"mine")):
            await provider.call(send["_rtarget"], send["_rmethod"], message)
        asked.append(send)

    await provider.provide("app", {"serve": serve}, type="ASGI")
    answer = await http(stack, f"/{provider.workspace}/apps/app/")
    assert (answer.status, answer.body) == (203, b"mine")
    await wait_all_tasks_blocked()
    with pytest.raises(Rejected, match="the call is over"):
        await provider.call(asked[0]["_rtarget"], asked[0]["_rmethod"], body(b"late"))


async def test_pieces_keep_their_order_without_waiting(autojump_clock: MockClock, stack: MemoryStack) -> None:
    provider = await join(stack, "prov")

    async def serve(call: Call) -> None:
        send = call.args[0]["send"]
        pieces = [{**starts(), "headers": []}, *(body(b"%d" % number, more=True) for number in range(8)), body(b"!")]
        begun = [provider.begin(send["_rtarget"], send["_rmethod"], piece) for piece in pieces]
        for _, message in begun:
            await provider.socket.send_bytes(message)
        for session, _ in begun:
            await provider.outcome(session)

    await provider.provide("app", {"serve": serve}, type="ASGI")
    assert (await http(stack, f"/{provider.workspace}/apps/app/")).body == b"01234567!"


async def test_callbacks_are_bounded(autojump_clock: MockClock, stack: MemoryStack) -> None:
    provider = await join(stack, "prov")
    outcomes = list[str]()

    async def serve(call: Call) -> None:
        receive = call.args[0]["receive"]
        await provider.call(receive["_rtarget"], receive["_rmethod"])
        begun = [provider.begin(receive["_rtarget"], receive["_rmethod"]) for _ in range(17)]
        for _, message in begun:
            await provider.socket.send_bytes(message)
        try:
            await provider.outcome(begun[-1][0])
        except Rejected as exc:
            outcomes.append(str(exc))

    await provider.provide("app", {"serve": serve}, type="ASGI")
    answer = await http(stack, f"/{provider.workspace}/apps/app/")
    assert answer.status == 502
    assert outcomes == ["RuntimeError: 16 callbacks of a call run; wait"]


# --- websockets ---------------------------------------------------------------------------------------------------


async def echo_socket(scope: Scope, receive: Receive, send: Send) -> None:
    """Accepts, and sends back what comes."""
    assert scope["type"] == "websocket"
    assert await receive() == {"type": "websocket.connect"}
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


async def opened(place: Place, rest: str = "/", headers: Mapping[str, str] | None = None, **options: Any) -> WebSocket:
    return await upgrade(place.stack.connect(**options), place.path(rest), headers)


async def test_messages_pass_a_websocket_in_both_directions(autojump_clock: MockClock, place: Place) -> None:
    await place.offer(echo_socket)
    socket = await opened(place)
    for message in ("text", "", "tëxt", b"bytes", b"", b"x" * 70_000, b"y" * 1_000_000):
        await socket.send(TextMessage(message) if isinstance(message, str) else BytesMessage(message))
        assert await socket.receive() == message
    await socket.send(Ping(b"p"))
    pong = await socket.receive()
    assert isinstance(pong, Pong)
    await socket.send(CloseConnection(4001, "enough"))
    assert await socket.closed() == Closed(4001, "")
    await socket.stream.aclose()
    assert not await left_over(place)


async def test_what_an_application_is_told_of_a_websocket(autojump_clock: MockClock, place: Place) -> None:
    scopes: list[Scope] = []
    ends: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await receive()
        headers = [(b"x-own", b"1"), (b"connection", b"close"), (b"sec-websocket-extensions", b"x")]
        await send({"type": "websocket.accept", "subprotocol": "b", "headers": headers})
        ends.append(await receive())
        ends.append(await receive())

    await place.offer(app)
    offered = {"Sec-WebSocket-Protocol": "a, b", "Sec-WebSocket-Extensions": "permessage-deflate"}
    socket = await opened(place, "/chat?x=1", offered)
    assert (socket.headers["sec-websocket-protocol"], socket.headers["x-own"]) == ("b", "1")
    assert "sec-websocket-extensions" not in socket.headers
    await socket.send(CloseConnection(4001, "enough"))
    assert await socket.closed() == Closed(4001, "")
    await wait_all_tasks_blocked()
    (scope,) = scopes
    root = f"/{place.workspace}/apps/app"
    assert (scope["root_path"], scope["path"], scope["query_string"]) == (root, f"{root}/chat", b"x=1")
    assert scope["subprotocols"] == ["a", "b"]
    assert "method" not in scope
    assert ends == [{"type": "websocket.disconnect", "code": 4001, "reason": "enough"}] * 2


@pytest.mark.parametrize("how", ["close", "raises", "returns", "bad subprotocol", "sends first"])
async def test_a_websocket_may_be_refused(autojump_clock: MockClock, place: Place, how: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if how == "close":
            await send({"type": "websocket.close", "code": 1008})
        elif how == "raises":
            raise ValueError("not today")
        elif how == "bad subprotocol":
            await send({"type": "websocket.accept", "subprotocol": "x"})
        elif how == "sends first":
            await send({"type": "websocket.send", "text": "x"})

    await place.offer(app)
    with pytest.raises(Refused) as refused:
        await opened(place)
    assert refused.value.answer.status == {"close": 403, "returns": 502}.get(how, 500)
    assert not await left_over(place)


async def test_who_may_open_a_websocket_is_decided_as_for_functions(autojump_clock: MockClock, place: Place) -> None:
    token = {"Authorization": f"Bearer {await place.server.generate_token()}"}
    for visibility in ("public", "unlisted", "protected"):
        await place.offer(echo_socket, visibility)
        for headers in (None, token):
            if visibility == "protected" and headers is None:
                continue
            socket = await opened(place, headers=headers)
            await trio.aclose_forcefully(socket.stream)
    for refused, status in ((None, 404), ({"Authorization": "Bearer nonsense"}, 401)):
        with pytest.raises(Refused) as refusal:
            await opened(place, headers=refused)
        assert refusal.value.answer.status == status
    await place.offer_functions(index=lambda event: {})
    with pytest.raises(Refused, match="take no websocket"):
        await opened(place)


@pytest.mark.parametrize("how", ["close", "raises", "returns", "dies"])
async def test_the_end_of_an_application_ends_its_websocket(autojump_clock: MockClock, place: Place, how: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        if how == "close":
            await send({"type": "websocket.close", "code": 4002, "reason": "done"})
        elif how == "raises":
            raise ValueError("not today")
        elif how == "dies":
            await place.server.unregister_service("app")
            (session,) = place.stack.broker.registry.sessions()
            place.stack.broker.lose(session, "was killed")

    await place.offer(app)
    socket = await opened(place)
    codes = {"close": (4002, "done"), "raises": (1011, "ValueError: not today"), "returns": (1000, "")}
    closed = await socket.closed()
    assert (closed.code, closed.reason) == codes.get(how, (1001, closed.reason))
    await socket.stream.aclose()


async def test_a_client_that_vanishes_from_a_websocket(autojump_clock: MockClock, place: Place) -> None:
    told = list[Any]()
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            told.append(await receive())
            await trio.sleep_forever()
        finally:
            ended.set()

    await place.offer(app)
    socket = await opened(place)
    began = trio.current_time()
    await trio.aclose_forcefully(socket.stream)
    await ended.wait()
    assert trio.current_time() - began < 0.1
    assert told == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]
    assert not await left_over(place)


async def test_a_client_that_leaves_before_it_is_accepted(autojump_clock: MockClock, place: Place) -> None:
    running, ended = trio.Event(), trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        running.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    await place.offer(app)
    stream = place.stack.connect()
    await stream.send_all(upgrade_bytes(place.path()))
    await running.wait()
    await trio.aclose_forcefully(stream)
    await ended.wait()
    assert not await left_over(place)


async def test_a_silent_websocket_is_pinged_and_ended(autojump_clock: MockClock, place: Place) -> None:
    await place.offer(echo_socket)
    socket = await opened(place)
    began = trio.current_time()
    for _ in range(10):
        assert isinstance(await socket.receive(), Ping)
    assert trio.current_time() - began == pytest.approx(200)
    await wait_all_tasks_blocked()
    assert await left_over(place)
    await trio.sleep(70)  # nobody answers any more
    assert not await left_over(place)
    await trio.aclose_forcefully(socket.stream)


async def test_messages_come_at_the_pace_of_the_application(autojump_clock: MockClock, place: Place) -> None:
    go = trio.Event()
    taken = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal taken
        await receive()
        await send({"type": "websocket.accept"})
        await go.wait()
        while (event := await receive())["type"] == "websocket.receive":
            taken += len(event["bytes"])

    await place.offer(app)
    sends, server_receives = lockstep_stream_one_way_pair()
    server_sends, receives = memory_stream_one_way_pair()
    stream = trio.StapledStream(sends, receives)
    place.stack.servers.start_soon(place.stack.serve, ServerEnd(server_sends, server_receives))
    socket = await upgrade(stream, place.path())
    sent = 0

    async def flood() -> None:
        nonlocal sent
        for _ in range(100):
            await socket.send_bytes(bytes(50_000))
            sent += 50_000

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        await wait_all_tasks_blocked()
        assert sent <= 300_000
        await trio.sleep(120)  # that nobody reads is no silence of the client's
        go.set()
    await wait_all_tasks_blocked()
    assert taken == 5_000_000
    await trio.aclose_forcefully(stream)


async def test_a_message_of_a_websocket_is_bounded(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with a_place(Config(data_dir=tmp_path, limits=Limits(frame_bytes=100_000))) as place:
        await place.offer(echo_socket)
        socket = await opened(place)
        await socket.send_bytes(bytes(100_000))
        assert await socket.receive() == bytes(100_000)
        await socket.send_bytes(bytes(100_001))
        closed = await socket.closed()
        assert (closed.code, "frame_bytes = 100000" in closed.reason) == (1009, True)
        await socket.stream.aclose()


async def test_a_token_that_ends_ends_the_websocket(autojump_clock: MockClock, place: Place) -> None:
    await place.offer(echo_socket, "protected")
    token = await place.server.generate_token()
    socket = await opened(place, headers={"Authorization": f"Bearer {token}"})
    place.stack.broker.tokens.revoke(place.stack.broker.authenticate(token), ROOT)
    assert (await socket.closed()).code == 1008
    await socket.stream.aclose()


async def test_a_token_that_ends_ends_an_answer(autojump_clock: MockClock, place: Place) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(starts())
        await send(body(b"first", more=True))
        place.stack.broker.tokens.revoke(place.stack.broker.authenticate(token), ROOT)
        await send(body(b"second", more=True))

    await place.offer(app, "protected")
    token = await place.server.generate_token()
    stream = place.stack.connect()
    await stream.send_all(request_bytes(place.path(), headers={"Authorization": f"Bearer {token}"}))
    whole = await read_to_end(stream)
    assert b"first" in whole
    assert b"second" not in whole


async def test_a_shutdown_says_goodbye_to_websockets(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with a_place(Config(data_dir=tmp_path)) as place:
        await place.offer(echo_socket)
        socket = await opened(place)
        await place.stack.shut_down()
        assert (await socket.closed()).code == 1012
        await socket.stream.aclose()


async def test_a_published_client_serves_a_websocket(autojump_clock: MockClock, stack: MemoryStack) -> None:
    provider = await join(stack, "prov")

    async def serve(call: Call) -> None:
        async def receive() -> Any:
            function = call.args[0]["receive"]
            return await provider.call(function["_rtarget"], function["_rmethod"])

        async def send(message: Any) -> None:
            function = call.args[0]["send"]
            await provider.call(function["_rtarget"], function["_rmethod"], message)

        await echo_socket(call.args[0]["scope"], receive, send)

    await provider.provide("app", {"serve": serve}, type="ASGI")
    socket = await upgrade(stack.connect(), f"/{provider.workspace}/apps/app/")
    await socket.send(TextMessage("hello"))
    assert await socket.receive() == "hello"
    await socket.send(CloseConnection(1000))
    assert (await socket.closed()).code == 1000
    await socket.stream.aclose()


# --- cancelling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_a_call_can_be_cancelled_at_every_step(autojump_clock: MockClock, stack: MemoryStack, kind: str) -> None:
    """After the n-th step of any task, for every n until the application waits, nothing is left of it."""
    provider = await join(stack, "prov")

    async def serve(call: Call) -> None:
        receive, send = call.args[0]["receive"], call.args[0]["send"]
        await provider.call(receive["_rtarget"], receive["_rmethod"])
        first: dict[str, Any] = {**starts(), "headers": []} if kind == "http" else {"type": "websocket.accept"}
        await provider.call(send["_rtarget"], send["_rmethod"], first)
        await provider.call(receive["_rtarget"], receive["_rmethod"])

    await provider.provide("app", {"serve": serve}, type="ASGI")
    (session,) = stack.broker.registry.sessions()
    server, path = stack.broker.server, f"/{provider.workspace}/apps/app/"
    for count in itertools.count():
        client, end = connection()
        async with trio.open_nursery() as nursery:
            cancelling = Steps(count, nursery.cancel_scope)
            trio.lowlevel.add_instrument(cancelling)
            nursery.start_soon(stack.serve, end)
            await client.send_all(request_bytes(path) if kind == "http" else upgrade_bytes(path))
            await wait_all_tasks_blocked()
            trio.lowlevel.remove_instrument(cancelling)
            nursery.cancel_scope.cancel()
        assert end.closed.is_set(), count
        assert not server.outbound, count
        assert not server._callbacks, count
        assert not session.inbound, count
        await wait_all_tasks_blocked()
        assert not session.server_call_bytes, count
        if not cancelling.done:
            break
    assert count > 40


# --- whatever a provider sends --------------------------------------------------------------------------------------

NONSENSE: tuple[Any, ...] = (
    None,
    5,
    [],
    {},
    {"type": None},
    {"type": ["http.response.start"]},
    {"type": "http.response.start"},
    {"type": "http.response.start", "status": 2**60},
    {"type": "http.response.start", "status": 200, "headers": [[b"content-length", b"1"], [b"content-length", b"2"]]},
    {"type": "http.response.start", "status": 200, "headers": [[b"content-length", b"-1"]]},
    {"type": "http.response.start", "status": 200, "headers": [[None, {}]]},
    {"type": "http.response.body", "body": b"early"},
    {"type": "websocket.accept", "headers": {"a": [[]]}},
    {"type": "websocket.accept", "subprotocol": 5},
    {"type": "websocket.send"},
    {"type": "websocket.send", "text": 5, "bytes": "x"},
    {"type": "websocket.http.response.start"},
)


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_nonsense_is_told_to_who_sends_it(
    autojump_clock: MockClock, stack: MemoryStack, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    provider = await join(stack, "prov")
    told: list[str] = []

    async def serve(call: Call) -> None:
        receive, send = call.args[0]["receive"], call.args[0]["send"]
        for message in NONSENSE:
            with pytest.raises(Rejected) as refused:
                await provider.call(send["_rtarget"], send["_rmethod"], message)
            told.append(str(refused.value))
        for wrong in ((receive, (1, 2)), (send, ()), (send, (1, 2))):
            with pytest.raises(Rejected) as refused:
                await provider.call(wrong[0]["_rtarget"], wrong[0]["_rmethod"], *wrong[1])
            told.append(str(refused.value))

    await provider.provide("app", {"serve": serve}, type="ASGI")
    path = f"/{provider.workspace}/apps/app/"
    if kind == "http":
        answer = await http(stack, path)
    else:
        with pytest.raises(Refused) as refusal:
            await upgrade(stack.connect(), path)
        answer = refusal.value.answer
    assert (answer.status, answer.detail) == (502, "the application has ended without an answer")
    assert len(told) == len(NONSENSE) + 3
    assert all(text.startswith("ValueError: ") for text in told), told
    assert "Traceback" not in caplog.text
