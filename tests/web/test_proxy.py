"""Functions over HTTP: arguments, status codes, values, who calls, and clients that leave."""

from __future__ import annotations

import gzip
import itertools
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgpack
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from hypha.broker.access import Principal
from hypha.config import Config, Limits
from tests.web.stack import MemoryStack, Steps, connection, memory_stack
from tests.web.wires import (
    Call,
    HttpAnswer,
    Peer,
    Rejected,
    http,
    join,
    read_answer,
    request_bytes,
)

JSON = {"Content-Type": "application/json"}
MSGPACK = {"Content-Type": "application/msgpack"}

#: What an asynchronous Python function rejects with (``protocol.md`` 4.3).
TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "/home/someone/site-packages/imjoy_rpc/hypha/rpc.py", line 820, in run_method\n'
    "    result = await method(*args, **kwargs)\n"
    '  File "/home/someone/scripts/worker.py", line 5, in fail\n'
    "    raise {error}\n"
    "{error}\n"
)


async def show(call: Call) -> Any:
    """The arguments as they came."""
    return [call.args, call.kwargs]


async def caller_of(call: Call) -> Any:
    return {name: call.main.get(name) for name in ("from", "user", "ws")}


async def fail(call: Call) -> None:
    raise Rejected(str(call.kwargs.get("text", "without a text")))


async def never(call: Call) -> None:
    await trio.sleep_forever()


@dataclass
class Place:
    """A server, and a provider that offers ``svc`` to everybody."""

    stack: MemoryStack
    provider: Peer

    async def call(self, function: str, query: str = "", **options: Any) -> HttpAnswer:
        return await http(self.stack, f"/{self.provider.workspace}/services/svc/{function}{query}", **options)

    async def offer(self, visibility: str = "public", **functions: Callable[[Call], Any]) -> None:
        await self.provider.provide("svc", functions, visibility)


@pytest.fixture
async def place(stack: MemoryStack) -> Place:
    return await a_place(stack)


async def a_place(stack: MemoryStack) -> Place:
    provider = await join(stack, "prov")
    constants: dict[str, Any] = {"version": "1.2", "numbers": [1, [2, 3]], "deep": {"er": {"x": 1}}, "_secret": 7}
    functions = {
        "show": show,
        "fail": fail,
        "never": never,
        "who": caller_of,
        "group.inner.show": show,
        "_hidden": show,
    }
    await provider.provide("svc", functions, **constants)
    return Place(stack, provider)


# --- arguments (A20) --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "kwargs"),
    [
        ("", {}),
        ("?", {}),
        ("?name=John", {"name": "John"}),
        ("?name=John+Doe&x=a%2Bb", {"name": "John Doe", "x": "a+b"}),
        ("?name=007", {"name": "007"}),
        ("?n=0&m=-0&k=-5", {"n": 0, "m": 0, "k": -5}),
        ("?n=1e3", {"n": 1000.0}),
        ("?n=1.50&m=-2.5e-1", {"n": 1.5, "m": -0.25}),
        ("?n=1.&m=.5&k=%2B5&l=1_000&o=0x10", {"n": "1.", "m": ".5", "k": "+5", "l": "1_000", "o": "0x10"}),
        (
            "?a=true&b=null&c=nan&d=inf&e=-Infinity",
            {"a": "true", "b": "null", "c": "nan", "d": "inf", "e": "-Infinity"},
        ),
        ("?n=9223372036854775807", {"n": 2**63 - 1}),
        ("?n=9223372036854775808", {"n": "9223372036854775808"}),
        ("?n=" + "9" * 5000, {"n": "9" * 5000}),
        ("?n=1e999", {"n": "1e999"}),
        ("?n=%D9%A3", {"n": "\N{ARABIC-INDIC DIGIT THREE}"}),
        ("?name=", {"name": ""}),
        ("?name", {"name": ""}),
        ("?a=1&a=x&a=2", {"a": [1, "x", 2]}),
        ("?name=%C3%A4%F0%9F%A7%AC", {"name": "ä🧬"}),
        ("?%C3%A4=1", {"ä": 1}),
        ("?a=b=c&d=%26", {"a": "b=c", "d": "&"}),
        ('?a="quoted"', {"a": '"quoted"'}),
        ("?a={%22b%22:1}", {"a": '{"b":1}'}),
        ("?_timeout=5&a=1", {"a": 1}),
        ("?_mode=first&a=1", {"a": 1}),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
async def test_query_parameters(autojump_clock: MockClock, place: Place, query: str, kwargs: dict[str, Any]) -> None:
    answer = await place.call("show", query)
    assert (answer.status, answer.json()) == (200, [[], kwargs])
    assert repr(answer.json()[1]) == repr(kwargs)  # 1 is not 1.0


DECLARED: dict[str, Any] = {
    "text": {"type": "string", "title": "Text"},
    "word": {"type": "str"},
    "number": {"type": "integer"},
    "flag": {"type": "boolean"},
    "list": {"type": "array", "description": ""},
    "unknown": {"type": "string", "description": ""},
    "broken": 5,
    "odd": {"type": ["string", "null"]},
}


@pytest.mark.parametrize(
    ("query", "kwargs"),
    [
        ("text=007&word=1e3", {"text": "007", "word": "1e3"}),
        ("text=12&text=13", {"text": ["12", "13"]}),
        ("number=12", {"number": 12}),
        ("flag=true", {"flag": True}),
        ("flag=false", {"flag": False}),
        ("flag=1", {"flag": 1}),
        ("list=1", {"list": [1]}),
        ("list=1&list=x", {"list": [1, "x"]}),
        ("unknown=12&broken=12&odd=12&other=12", {"unknown": 12, "broken": 12, "odd": 12, "other": 12}),
    ],
)
@pytest.mark.parametrize("function", ["show", "group.inner.show"])
async def test_a_schema_says_of_which_type_a_parameter_is(
    autojump_clock: MockClock, place: Place, query: str, kwargs: dict[str, Any], function: str
) -> None:
    schema: dict[str, Any] = {"type": "function", "function": {"parameters": {"properties": DECLARED}}}
    entry = {"id": "svc", "config": {"visibility": "public"}}
    entry["service_schema"] = {"show": schema, "group": {"inner": {"show": schema}}}
    await place.provider.manager("update_client_info", {"id": "prov", "services": [entry]})
    form = {"content-type": "application/x-www-form-urlencoded"}
    for answer in (
        await place.call(function, f"?{query}"),
        await place.call(function, method="POST", headers=form, body=query.encode()),
    ):
        assert repr(answer.json()) == repr([[], kwargs])


async def test_of_several_providers_the_mode_says_which(autojump_clock: MockClock, place: Place) -> None:
    token = await place.provider.manager("generate_token")
    second = await join(place.stack, "second", f"&workspace={place.provider.workspace}&token={token}")
    for peer in (place.provider, second):
        await peer.provide("svc", {"name": partial(name_of, peer.client_id)})

    async def asked(query: str) -> Any:
        return (await place.call("name", query)).json()

    assert [await asked("") for _ in range(3)] == ["prov"] * 3
    assert (await asked("?_mode=first"), await asked("?_mode=last")) == ("prov", "second")
    assert sorted([await asked("?_mode=round_robin") for _ in range(4)]) == ["prov", "prov", "second", "second"]
    for mode, status in (("exact", 409), ("nonsense", 400)):
        assert (await place.call("name", f"?_mode={mode}")).status == status


async def name_of(name: str, call: Call) -> str:
    return name


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], [[], {"b": 2}]),
        ([1, "007", None, True, {"x": [1.0]}], [[1, "007", None, True, {"x": [1.0]}], {"b": 2}]),
        ({"a": "007", "b": 3}, [[], {"b": 3, "a": "007"}]),
    ],
)
async def test_args_are_json(autojump_clock: MockClock, place: Place, args: Any, expected: Any) -> None:
    answer = await place.call("show", f"?b=2&_args={quote(json.dumps(args))}")
    assert answer.json() == expected


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?_args=", "_args is not valid JSON"),
        ("?_args=[1", "_args is not valid JSON"),
        ("?_args=5", "_args must be a JSON list"),
        ("?_args=%22x%22", "_args must be a JSON list"),
        ("?_args=[1e400,99999999999999999999999]", "cannot be sent"),
        ("?_args=" + "[" * 3000, "_args is not valid JSON"),
        ("?_args=[%22%5Cud800%22]", "cannot be sent"),
        ("?a=%FF", "the query cannot be read"),
        ("?a=%ED%A0%80", "the query cannot be read"),
        ("?_timeout=0", "_timeout must be"),
        ("?_timeout=-1", "_timeout must be"),
        ("?_timeout=", "_timeout must be"),
        ("?_timeout=soon", "_timeout must be"),
        ("?_timeout=inf", "_timeout must be"),
        ("?_timeout=nan", "_timeout must be"),
        ("?_timeout=86401", "_timeout must be"),
        ("?_timeout=007", "_timeout must be"),
    ],
    ids=lambda value: value[:30],
)
async def test_arguments_that_cannot_be_used(autojump_clock: MockClock, place: Place, query: str, words: str) -> None:
    answer = await place.call("show", query)
    assert answer.status == 400
    assert words in answer.detail


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        (JSON, b'{"a": "007", "b": [1, null]}', {"a": "007", "b": [1, None]}),
        ({"Content-Type": "Application/JSON ; charset=utf-8"}, '{"ä": "ü"}'.encode(), {"ä": "ü"}),
        ({}, b'{"a": 1}', {"a": 1}),
        (JSON, b"", {}),
        (JSON, b"{}", {}),
        (JSON | {"Content-Encoding": "gzip"}, gzip.compress(b'{"a": 1}'), {"a": 1}),
        (MSGPACK, msgpack.packb({"a": [1, {"b": None}]}), {"a": [1, {"b": None}]}),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"a=1&b=x+y", {"a": 1, "b": "x y"}),
    ],
    ids=str,
)
async def test_posted_arguments(
    autojump_clock: MockClock, place: Place, headers: dict[str, str], body: bytes, expected: Any
) -> None:
    answer = await place.call("show", "?q=1", method="POST", headers=headers, body=body)
    decoded = msgpack.unpackb(answer.body) if headers == MSGPACK else answer.json()
    assert decoded == [[], {"q": 1, **expected}]


@pytest.mark.parametrize(
    ("headers", "body", "status", "words"),
    [
        (JSON, b"[1]", 400, "a map"),
        (JSON, b"null", 400, "a map"),
        (JSON, b"{", 400, "not valid JSON"),
        (JSON, b'{"a": "\xff"}', 400, "not valid JSON"),
        (JSON, b"[" * 100_000, 400, "not valid JSON"),
        (JSON, b'{"a": 99999999999999999999}', 400, "cannot be sent"),
        (JSON, b'{"a": "\\ud800"}', 400, "cannot be sent"),
        (JSON, b'{"\\ud800": 1}', 400, "cannot be sent"),
        (MSGPACK, b"\x81", 400, "msgpack"),
        (MSGPACK, msgpack.packb({1: 2}), 400, "msgpack"),
        (MSGPACK, msgpack.packb([1]), 400, "a map"),
        ({"Content-Type": "text/plain"}, b"x", 415, "application/json"),
        ({"Content-Type": "application/xml"}, b"x", 415, "application/json"),
        (JSON | {"Content-Encoding": "br"}, b"x", 415, "gzip"),
        (JSON | {"Content-Encoding": "gzip"}, b"x", 400, "gzip"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_bodies_that_cannot_be_used(
    autojump_clock: MockClock, place: Place, headers: dict[str, str], body: bytes, status: int, words: str
) -> None:
    answer = await place.call("show", method="POST", headers=headers, body=body)
    assert answer.status == status
    assert words in answer.detail


FORGED = {"_rtype": "method", "_rtarget": "ws/other", "_rmethod": "services.secret.erase", "_rpromise": True}
FUNCTIONS_OF_OTHERS = [
    {"a": FORGED},
    {"a": [[{"b": [1, FORGED]}]]},
    {"a": {"_rtype": "set", "_rvalue": [FORGED]}},
    {"a": {"_rtype": "iostream", "read": FORGED}},
    {"a": {"_rtype": "some-codec", "_rvalue": {"b": FORGED}}},
    {"a": {**FORGED, "_rtype": "generator", "_rclose_method": "services.secret.erase"}},
    {"a": {**FORGED, "_rtype": "interface"}},
    {"a": {"_rintf": True, "b": 1}},
    {"a": {"_rtype": "orderedmap", "_rvalue": [list(item) for item in FORGED.items()]}},
    {"a": {"_rtype": "orderedmap", "_rvalue": [{"_rtype": 1, "method": 2}]}},
    {"a": {"_rtype": "orderedmap", "_rvalue": {"_rtype": "set", "_rvalue": []}}},
    FORGED,
    {"_rintf": True},
]


@pytest.mark.parametrize("arguments", FUNCTIONS_OF_OTHERS, ids=repr)
async def test_arguments_hold_no_functions_of_others(
    autojump_clock: MockClock, place: Place, arguments: dict[str, Any]
) -> None:
    as_json = json.dumps(arguments).encode()
    spelled = as_json.replace(b"_r", b"\\u005fr").replace(b"method", b"m\\u0065thod")
    ways = [(JSON, as_json), (JSON, spelled), (MSGPACK, msgpack.packb(arguments))]
    answers = [await place.call("show", method="POST", headers=headers, body=body) for headers, body in ways]
    for args in (arguments, [arguments]):
        answers.append(await place.call("show", f"?_args={quote(json.dumps(args))}"))
    assert [answer.status for answer in answers] == [400] * 5
    assert all("_rtype" in answer.detail for answer in answers)


async def test_names_of_arguments_make_no_function(autojump_clock: MockClock, place: Place) -> None:
    query = "_rtype=method&_rtarget=ws/other&_rmethod=services.secret.erase"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for answer in (
        await place.call("show", f"?{query}"),
        await place.call("show", method="POST", headers=form, body=query.encode()),
    ):
        assert (answer.status, answer.detail) == (400, "no argument is named _rtype or _rintf")


@pytest.mark.parametrize(
    "value",
    [
        {"_rtype": "ndarray", "_rvalue": b"_rtype method", "_rshape": [13], "_rdtype": "uint8"},
        {"_rtype": "orderedmap", "_rvalue": [["a", {"_rtype": "set", "_rvalue": [1]}], [[1], 2]]},
        {"_rtype": "some-codec", "text": "_rintf"},
        {"_rtype": ["method"]},
    ],
    ids=repr,
)
async def test_other_marked_values_pass(autojump_clock: MockClock, place: Place, value: dict[str, Any]) -> None:
    body = msgpack.packb({"a": value})
    answer = await place.call("show", method="POST", headers=MSGPACK, body=body)
    assert msgpack.unpackb(answer.body) == [[], {"a": value}]


async def test_a_body_may_be_so_large(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with memory_stack(Config(data_dir=tmp_path, limits=Limits(http_body_bytes=1000))) as stack:
        place = await a_place(stack)
        body = b'{"a": "' + b"x" * 991 + b'"}'
        chunked = {"Transfer-Encoding": "chunked"}
        for extra, status in ((b"", 200), (b" ", 413)):
            whole = body + extra
            pieces = b"%x\r\n%b\r\n0\r\n\r\n" % (len(whole), whole)
            assert (await place.call("show", method="POST", body=whole)).status == status
            answer = await place.call("show", method="POST", headers=chunked, body=pieces)
            assert answer.status == status
        assert answer.detail == "the request body is larger than http_body_bytes = 1000"


async def test_the_bodies_of_all_calls_are_bounded_together(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A call that runs holds its body's room; its end gives it back, and small bodies need none."""
    free, limits = 64 * 1024, Limits(http_bodies_bytes=100_000)
    async with memory_stack(Config(data_dir=tmp_path, limits=limits)) as stack:
        place = await a_place(stack)

        def body(size: int) -> bytes:
            return b'{"a": "' + b"x" * (size - 9) + b'"}'

        running = stack.connect()
        path = f"/{place.provider.workspace}/services/svc/never"
        await running.send_all(request_bytes(path, "POST", JSON, body(free + 60_000)))
        await trio.testing.wait_all_tasks_blocked()
        for size, status in ((free + 40_000, 200), (free + 40_001, 429), (free, 200)):
            answer = await place.call("show", method="POST", headers=JSON, body=body(size))
            assert answer.status == status
            if status == 429:
                assert "http_bodies_bytes = 100000 are taken by other requests" in answer.detail
        await trio.aclose_forcefully(running)
        await trio.testing.wait_all_tasks_blocked()
        assert (await place.call("show", method="POST", headers=JSON, body=body(free + 100_000))).status == 200
        assert (await place.call("show", method="POST", headers=JSON, body=body(free + 100_001))).status == 429


async def test_what_a_body_inflates_to_takes_room_too(tmp_path: Path, autojump_clock: MockClock) -> None:
    free, limits = 64 * 1024, Limits(http_bodies_bytes=100_000)
    async with memory_stack(Config(data_dir=tmp_path, limits=limits)) as stack:
        place = await a_place(stack)
        packed = JSON | {"Content-Encoding": "gzip"}

        def body(size: int) -> tuple[bytes, int]:
            small = gzip.compress(b'{"a": "' + b"x" * (size - 9) + b'"}')
            return small, len(small)

        running = stack.connect()
        path = f"/{place.provider.workspace}/services/svc/never"
        first, size = body(free + 60_000)
        await running.send_all(request_bytes(path, "POST", packed, first))
        await trio.testing.wait_all_tasks_blocked()
        left = 100_000 - (60_000 + size)
        fitting = body(free + left)[1]
        for count, status in ((free + left - fitting, 200), (free + left + 1, 429)):
            answer = await place.call("show", method="POST", headers=packed, body=body(count)[0])
            assert answer.status == status
        assert "http_bodies_bytes = 100000 are taken by other requests" in answer.detail
        await trio.aclose_forcefully(running)
        await trio.testing.wait_all_tasks_blocked()
        large = body(free + 99_000)[0]
        assert (await place.call("show", method="POST", headers=packed, body=large)).status == 200


async def test_a_body_that_is_not_read_takes_no_room(tmp_path: Path, autojump_clock: MockClock) -> None:
    """GET has no use for one: it is dropped as it comes, and neither fails the call nor those of others."""
    async with memory_stack(Config(data_dir=tmp_path, limits=Limits(http_bodies_bytes=1000))) as stack:
        place = await a_place(stack)
        running = stack.connect()
        path = f"/{place.provider.workspace}/services/svc/never"
        await running.send_all(request_bytes(path, "GET", {}, bytes(200_000)))
        await trio.testing.wait_all_tasks_blocked()
        body = b'{"a": "' + b"x" * 66_000 + b'"}'
        assert (await place.call("show", method="POST", headers=JSON, body=body)).status == 200
        assert (await place.call("show", body=bytes(200_000))).status == 200
        await trio.aclose_forcefully(running)


async def test_a_body_must_come_in_time(autojump_clock: MockClock, place: Place) -> None:
    stream = place.stack.connect()
    head = request_bytes(f"/{place.provider.workspace}/services/svc/show", "POST", {"Content-Length": "1000"})
    await stream.send_all(head)

    async def drip() -> None:
        for _ in range(1000):
            await stream.send_all(b" ")
            await trio.sleep(1)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        answer = await read_answer(stream)
        nursery.cancel_scope.cancel()
    assert answer.status == 504
    assert "not complete after http_body_seconds = 60, and came more slowly than http_body_bytes_per_second = 1000" in (
        answer.detail
    )
    assert trio.current_time() - began == pytest.approx(60, abs=1)


@pytest.mark.parametrize(("enough", "status", "seconds"), [(True, 200, 109), (False, 504, 60)])
async def test_a_large_body_may_take_long_if_it_comes_fast_enough(
    tmp_path: Path, autojump_clock: MockClock, enough: bool, status: int, seconds: float
) -> None:
    """In the first minute 6000 bytes, or one less."""
    async with memory_stack(Config(data_dir=tmp_path, limits=Limits(http_body_bytes_per_second=100))) as stack:
        place = await a_place(stack)
        body = b'{"a": "%b"}' % (b"x" * 20_000)
        stream = stack.connect()
        path, size = f"/{place.provider.workspace}/services/svc/show", {"Content-Length": str(len(body))}
        await stream.send_all(request_bytes(path, "POST", size))

        async def upload() -> None:
            await stream.send_all(body[:5999])
            await trio.sleep(59)
            last = 6000 if enough else 5999
            await stream.send_all(body[5999:last])
            await trio.sleep(50)
            await stream.send_all(body[last:])

        began = trio.current_time()
        stack.clients.start_soon(upload)
        assert (await read_answer(stream)).status == status
        assert trio.current_time() - began == pytest.approx(seconds, abs=0.01)


# --- which function -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("group/inner/show", [[], {"a": 1}]),
        ("group.inner.show", [[], {"a": 1}]),
        ("group.inner/show", [[], {"a": 1}]),
        ("sho%77", [[], {"a": 1}]),
        ("version", "1.2"),
        ("numbers", [1, [2, 3]]),
        ("numbers/1/0", 2),
        ("numbers.1.1", 3),
        ("deep/er", {"x": 1}),
        ("deep/er/x", 1),
        ("name", "svc"),
    ],
)
async def test_paths_lead_to_functions_and_values(
    autojump_clock: MockClock, place: Place, path: str, expected: Any
) -> None:
    answer = await place.call(path, "?a=1")
    assert (answer.status, answer.json()) == (200, expected)


NOT_THERE = [
    "nothing",
    "show/more",
    "show.more",
    "_secret",
    "_hidden",
    "__class__",
    "group/__dict__",
    "deep/er/x/y",
    "numbers/9",
    "numbers/-1",
    "numbers/x",
    "numbers/%C2%B2",
    "numbers/%D9%A1",
    "numbers/" + "1" * 5000,
    "group..show",
    ".show",
    "show.",
    "show%00",
    "..%2F..%2Fetc%2Fpasswd",
    "show%2Fmore",
    "%FF",
    "services.built-in.get_service",
    "x" * 10_000,
]


async def test_what_a_service_does_not_have_is_not_found(autojump_clock: MockClock, place: Place) -> None:
    for path in NOT_THERE:
        answer = await place.call(path)
        assert answer.status == 404, path
        assert answer.detail.endswith("; it has fail, never, show, who")


async def test_a_provider_may_say_anything_of_itself(autojump_clock: MockClock, place: Place) -> None:
    function = {"_rtype": "method", "_rtarget": "prov", "_rmethod": "services.svc.f", "_rpromise": True}
    for said, status in (
        ({b"bytes": function, "_hidden": function}, 404),
        ({f"f{number}": function for number in range(1000)}, 404),
        ({"f": {"_rtype": "method"}}, 504),
        ({"f": {"_rtype": "method", "_rtarget": 5, "_rmethod": None}}, 504),
        ({"f": None}, 200),
        ([function], 404),
        (None, 404),
        ("f", 404),
    ):

        async def get_service(call: Call, said: Any = said) -> Any:
            return said

        await place.offer(f=never)
        place.provider.functions["services.built-in.get_service"] = get_service
        answer = await place.call("f", "?_timeout=1")
        assert answer.status == status, said
        assert len(answer.body) < 500


async def test_empty_names_name_no_function(autojump_clock: MockClock, place: Place) -> None:
    for path in ("/", "show/", "/show", "show//", "//show"):
        assert (await http(place.stack, f"/{place.provider.workspace}/services/svc/{path}")).status == 404, path


async def test_a_service_may_be_named_with_its_client(autojump_clock: MockClock, place: Place) -> None:
    base = f"/{place.provider.workspace}/services"
    assert (await http(place.stack, f"{base}/prov:svc/version")).json() == "1.2"
    assert (await http(place.stack, f"{base}/prov%3Asvc/version")).json() == "1.2"
    assert (await http(place.stack, f"{base}/*:svc/version")).json() == "1.2"
    assert (await http(place.stack, f"{base}/other:svc/version")).status == 404
    for odd in ("a:b:c", "a%2Fb%2Fc", ":svc", "prov:", "%2Fsvc"):
        assert (await http(place.stack, f"{base}/{odd}/version")).status == 400


async def test_the_oldest_of_equal_services_answers(autojump_clock: MockClock, place: Place) -> None:
    token = await place.provider.manager("generate_token")
    second = await join(place.stack, "second", f"&workspace={place.provider.workspace}&token={token}")
    await second.provide("svc", {}, version="2.0")
    assert (await place.call("version")).json() == "1.2"
    await place.provider.leave()
    assert (await place.call("version")).json() == "2.0"


async def test_near_names_are_public_ones(autojump_clock: MockClock, place: Place) -> None:
    hidden = await join(place.stack, "hidden")
    await hidden.provide("svcs", {}, visibility="protected")
    answer = await http(place.stack, f"/{place.provider.workspace}/services/svcx/show")
    assert answer.status == 404
    assert answer.detail.endswith("; did you mean svc?")


# --- who may ------------------------------------------------------------------------------------------------------


async def test_a_protected_service_is_like_one_that_is_not_there(autojump_clock: MockClock, place: Place) -> None:
    await place.offer("protected", show=show)
    stranger = await join(place.stack, "stranger")
    foreign = {"Authorization": f"Bearer {await stranger.manager('generate_token')}"}
    for headers in ({}, foreign):
        there = await place.call("show", headers=headers)
        absent = await http(place.stack, f"/{place.provider.workspace}/services/no/show", headers=headers)
        nowhere = await http(place.stack, "/nowhere/services/svc/show", headers=headers)
        assert there.status == absent.status == nowhere.status == 404
        assert there.detail.replace("svc", "no") == absent.detail
        assert there.detail.replace(place.provider.workspace, "nowhere") == nowhere.detail


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "{}", "Bearer  {}"])
async def test_a_token_opens_a_protected_service(autojump_clock: MockClock, place: Place, form: str) -> None:
    await place.offer("protected", show=show, who=caller_of)
    token = await place.provider.manager("generate_token")
    answer = await place.call("show", "?a=1", headers={"Authorization": form.format(token)})
    assert answer.json() == [[], {"a": 1}]


async def test_tokens_that_prove_nothing(autojump_clock: MockClock, place: Place) -> None:
    token = await place.provider.manager("generate_token")
    past = Principal("someone", is_anonymous=False, grants={})
    expired = place.stack.broker.tokens.issue(past, expires_in=-100)
    info = await place.provider.manager("get_connection_info")
    for text, words in (
        ("Bearer nonsense", "not one of this server"),
        (f"Bearer {token[:-4]}AAAA", "not one of this server"),
        (f"Bearer {expired}", "expired"),
        (f"Bearer {info['reconnection_token']}", "not meant for this use"),
        (f"Basic {token}", "Authorization: Bearer <token>"),
        ("Bearer ä", "not one of this server"),
        ("Bearer", "not one of this server"),
    ):
        answer = await place.call("show", headers={"Authorization": text})
        assert answer.status == 401, text
        assert answer.headers["www-authenticate"] == "Bearer"
        assert words in answer.detail
        assert token not in answer.detail


async def test_the_function_sees_who_calls(autojump_clock: MockClock, place: Place) -> None:
    """``decisions.md`` 22."""
    workspace = place.provider.workspace
    stranger = (await place.call("who")).json()
    assert stranger["from"] == f"{stranger['user']['id']}/http"
    assert stranger["ws"] == stranger["user"]["id"] != workspace
    assert stranger["user"]["is_anonymous"] is True
    token = await place.provider.manager("generate_token")
    member = (await place.call("who", headers={"Authorization": token})).json()
    assert (member["from"], member["ws"]) == (f"{workspace}/http", workspace)
    assert member["user"]["parent"] == workspace  # of an anonymous user, whose workspace has its id


# --- what a function makes of it (protocol.md 8.2) ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("TypeError: hello() got an unexpected keyword argument 'x'", 400),
        ("ValueError: too small", 400),
        ("AssertionError: no", 400),
        ("PermissionError: not you", 403),
        ("KeyError: 'nope'", 404),
        ("TimeoutError: too slow", 504),
        ("ZeroDivisionError: division by zero", 500),
        ("Exception: Permission denied for x", 500),
        ("Permission denied for x", 403),
        ("hello() missing 1 required positional argument: 'name'", 400),
        ("Svc.hello() takes 1 positional argument but 2 were given", 400),
        ("<lambda>() got multiple values for argument 'name'", 400),
        ("division by zero", 500),
        ("'nope'", 500),
    ],
)
async def test_errors_of_functions(autojump_clock: MockClock, place: Place, error: str, status: int) -> None:
    for form in ("{error}", TRACEBACK):
        answer = await place.call("fail", f"?text={quote(form.format(error=error))}")
        assert (answer.status, answer.detail) == (status, error)


@pytest.mark.parametrize("text", ["", "\n", " \r\n "])
async def test_an_error_without_words(autojump_clock: MockClock, place: Place, text: str) -> None:
    answer = await place.call("fail", f"?text={quote(text)}")
    assert (answer.status, answer.detail) == (500, "the function failed without a message")


async def test_a_provider_that_is_gone_before_is_not_found(autojump_clock: MockClock, place: Place) -> None:
    await place.call("version")
    await place.provider.leave()
    assert (await place.call("show")).status == 404


@pytest.mark.parametrize("target", ["never", "svc-not-seen-yet"])
async def test_a_provider_that_goes_during_the_call_is_a_502(
    autojump_clock: MockClock, place: Place, target: str
) -> None:
    if target != "never":
        place.provider.functions["services.built-in.get_service"] = never
    async with trio.open_nursery() as nursery:
        answers: list[HttpAnswer] = []

        async def ask() -> None:
            answers.append(await place.call("never"))

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        await trio.aclose_forcefully(place.provider.socket.stream)
    assert answers[0].status == 502
    assert answers[0].detail == f"Target peer {place.provider.name} is not connected"


async def test_silence_is_a_504(autojump_clock: MockClock, place: Place) -> None:
    rows = (("", 60, "call_seconds = 60"), ("?_timeout=5", 5, "5 s"), ("?_timeout=0.5", 0.5, "0.5 s"))
    for query, seconds, words in (*rows, ("?_timeout=300", 300, "300 s")):
        began = trio.current_time()
        answer = await place.call("never", query)
        assert answer.status == 504
        assert answer.detail.endswith(f"gave neither a result nor a heartbeat for {words}")
        assert trio.current_time() - began == pytest.approx(seconds)


async def test_the_timeout_holds_for_the_first_question_too(autojump_clock: MockClock, place: Place) -> None:
    """A provider that does not even say what functions it has."""
    place.provider.functions["services.built-in.get_service"] = never
    began = trio.current_time()
    assert (await place.call("show", "?_timeout=2")).status == 504
    assert trio.current_time() - began == pytest.approx(2)


async def test_a_provider_that_stops_reading_is_a_502(autojump_clock: MockClock, stack: MemoryStack) -> None:
    provider = await join(stack, "prov", stream=stack.connect(lockstep=True))
    await provider.provide("svc", {"show": show})
    await provider.stop_reading()
    began = trio.current_time()
    answer = await http(stack, f"/{provider.workspace}/services/svc/show")
    assert answer.status == 502
    assert 10 <= trio.current_time() - began <= 12


async def test_a_call_can_be_cancelled_at_every_step(autojump_clock: MockClock, place: Place) -> None:
    """After the n-th step of any task, for every n until the call runs, nothing is left of it."""
    (session,) = place.stack.broker.registry.sessions()
    for count in itertools.count():
        client, end = connection()
        async with trio.open_nursery() as nursery:
            cancelling = Steps(count, nursery.cancel_scope)
            trio.lowlevel.add_instrument(cancelling)
            nursery.start_soon(place.stack.serve, end)
            await client.send_all(request_bytes(f"/{place.provider.workspace}/services/svc/never"))
            await wait_all_tasks_blocked()
            trio.lowlevel.remove_instrument(cancelling)
            assert cancelling.done or session.inbound
            nursery.cancel_scope.cancel()
        assert end.closed.is_set(), count
        assert not place.stack.broker.server.outbound, count
        assert not session.inbound, count
        if not cancelling.done:
            break
    assert count > 20


async def test_heartbeats_keep_a_call(autojump_clock: MockClock, place: Place) -> None:
    async def slow(call: Call) -> str:
        for _ in range(30):
            await trio.sleep(15)
            assert await call.heartbeat() is None
        return "done"

    await place.offer(slow=slow)
    began = trio.current_time()
    assert (await place.call("slow")).json() == "done"
    assert trio.current_time() - began == pytest.approx(450)


async def test_a_client_that_leaves_is_forgotten(autojump_clock: MockClock, place: Place) -> None:
    """And the provider hears so at its next heartbeat (``decisions.md`` 21)."""
    ended: list[str] = []
    running = trio.Event()

    async def slow(call: Call) -> None:
        running.set()
        try:
            while True:
                await trio.sleep(5)
                await call.heartbeat()
        except Rejected as exc:
            ended.append(str(exc))

    await place.offer(slow=slow)
    tasks = len(place.stack.servers.child_tasks)
    stream = place.stack.connect()
    await stream.send_all(request_bytes(f"/{place.provider.workspace}/services/svc/slow"))
    await running.wait()
    await trio.sleep(12)
    assert ended == []
    await stream.aclose()
    await wait_all_tasks_blocked()
    assert len(place.stack.servers.child_tasks) == tasks
    server = place.stack.broker.server
    assert not server.outbound
    (session,) = place.stack.broker.registry.sessions()
    assert not session.inbound
    await trio.sleep(5)
    assert len(ended) == 1
    assert "the call is over" in ended[0]


# --- values -------------------------------------------------------------------------------------------------------


def array(dtype: str, shape: list[int], *items: float) -> dict[str, Any]:
    data = struct.pack(f"<{len(items)}{'f' if dtype == 'float32' else 'q'}", *items)
    return {"_rtype": "ndarray", "_rvalue": data, "_rshape": shape, "_rdtype": dtype}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ('ä\n"<>', 'ä\n"<>'),
        ({"a": {"b": [1, 2.5, None, True]}}, {"a": {"b": [1, 2.5, None, True]}}),
        (array("float32", [2, 3], 1, 2, 3, 4, 5, 6), [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        ({"deep": [array("int64", [], 7)]}, {"deep": [7]}),
        (float("nan"), None),
        (2**64 - 1, 2**64 - 1),
        (
            {"f": {"_rtype": "method", "_rtarget": "x", "_rmethod": "services.svc.f"}},
            {"f": "<function: services.svc.f>"},
        ),
        ({"_rtype": "set", "_rvalue": [1, 2]}, [1, 2]),
    ],
    ids=str,
)
async def test_values_as_json(autojump_clock: MockClock, place: Place, value: Any, expected: Any) -> None:
    async def give(call: Call) -> Any:
        return value

    await place.offer(give=give)
    answer = await place.call("give")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == expected


@pytest.mark.parametrize(
    "value",
    [
        b"bytes",
        {"a": [b"x"]},
        msgpack.ExtType(5, b"x"),
        array("int64", [3], 1, 2),
        {**array("int64", [2], 1, 2), "_rdtype": "complex128"},
    ],
    ids=str,
)
async def test_values_that_json_cannot_express(autojump_clock: MockClock, place: Place, value: Any) -> None:
    async def give(call: Call) -> Any:
        return value

    await place.offer(give=give)
    answer = await place.call("give")
    assert answer.status == 406
    assert "application/msgpack" in answer.detail
    for headers in (MSGPACK, {"Accept": "application/msgpack"}):
        answer = await place.call("give", headers=headers)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/msgpack")
        assert msgpack.unpackb(answer.body) == value


@pytest.mark.parametrize(
    ("depth", "as_json", "as_msgpack"), [(150, 200, 200), (450, 406, 200), (5000, 500, 500)], ids=str
)
async def test_deep_values_do_not_break_the_server(
    autojump_clock: MockClock, place: Place, depth: int, as_json: int, as_msgpack: int
) -> None:
    """A provider may send what neither we nor Python's JSON can follow."""
    await place.offer(give=resolve_with(b"\x91" * depth + b"\xc0"))
    for headers, status in ((JSON, as_json), (MSGPACK, as_msgpack)):
        answer = await place.call("give", headers=headers)
        assert answer.status == status
        assert status == 200 or "nested" in answer.detail or "sent an answer that cannot be read" in answer.detail


async def test_deep_arguments_pass_or_are_refused(autojump_clock: MockClock, place: Place) -> None:
    for depth in (100, 300, 510, 600, 900, 1100, 100_000):
        for headers, body in (
            (JSON, b'{"a": ' + b"[" * depth + b"]" * depth + b"}"),
            (MSGPACK, b"\x81\xa1a" + b"\x91" * depth + b"\xc0"),
        ):
            answer = await place.call("show", method="POST", headers=headers, body=body)
            assert answer.status in {200, 400, 406}, (depth, headers, answer)


def resolve_with(raw: bytes) -> Callable[[Call], Any]:
    """A function that resolves with a value that is encoded already."""

    async def give(call: Call) -> Any:
        header = {
            "type": "method",
            "from": "prov",
            "to": call.main["from"],
            "method": call.extra["promise"]["resolve"]["_rmethod"],
            "parent": call.main["session"],
        }
        body = b"\x81\xa4args\x91" + raw
        await call.peer.socket.send_bytes(bytes(msgpack.packb(header)) + body)
        await trio.sleep_forever()

    return give


async def test_large_arguments_and_results_pass(autojump_clock: MockClock, place: Place) -> None:
    text = "x" * 3_000_000

    async def repeat(call: Call) -> Any:
        return len(call.kwargs["text"])

    await place.offer(repeat=repeat)
    place.provider.accept_parts()
    answer = await place.call("repeat", method="POST", headers=JSON, body=json.dumps({"text": text}).encode())
    assert answer.json() == len(text)


# --- methods -------------------------------------------------------------------------------------------------------


async def test_other_methods(autojump_clock: MockClock, place: Place) -> None:
    for method in ("PUT", "DELETE", "PATCH", "HEAD", "TRACE", "FOO"):
        answer = await place.call("show", method=method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, POST, OPTIONS")
        assert method == "HEAD" or "GET and query parameters" in answer.detail
    answer = await place.call("show", method="OPTIONS")
    assert (answer.status, answer.headers["allow"], answer.body) == (204, "GET, POST, OPTIONS", b"")
    assert "content-length" not in answer.headers  # RFC 9110 section 8.6


# --- anything at all -----------------------------------------------------------------------------------------------

segments = st.one_of(
    st.sampled_from(
        ["services", "svc", "show", "fail", "ws", "health", "api", "public", "info", "..", ".", "", "*", "_"]
    ),
    st.text(max_size=8).map(lambda text: quote(text, safe="")),
    st.binary(max_size=6).map(lambda data: quote(data, safe="")),
)
queries = st.one_of(
    st.just(""),
    st.text(max_size=30).map(lambda text: "?" + quote(text, safe="=&%+")),
    st.binary(max_size=20).map(lambda data: "?_args=" + quote(data)),
    st.sampled_from(["?_args=[1,2]", "?_timeout=1", "?a=1&a=2", "?&&==", "?%", "?%zz=%"]),
)
headers = st.dictionaries(
    st.sampled_from(["Accept", "Authorization", "Content-Type", "Content-Encoding", "Origin", "Range", "X-Odd"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20),
    max_size=3,
)
bodies = st.one_of(st.binary(max_size=50), st.sampled_from([b"{}", b'{"a": 1}', b"\x81\xa1a\x01", b"a=1"]))
methods = st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"])


requests = st.tuples(st.lists(segments, max_size=6), queries, methods, headers, bodies, st.booleans())


@pytest.mark.parametrize("examples", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_nothing_that_is_asked_breaks_the_server(tmp_path: Path, examples: int) -> None:
    """No answer of 5xx, but for a function that raises, and no traceback anywhere."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(requests, min_size=10, max_size=20))
    def check(asked: list[Any]) -> None:
        trio.run(ask_all, tmp_path, asked, clock=MockClock(autojump_threshold=0))

    check()


async def ask_all(path: Path, asked: list[Any]) -> None:
    async with memory_stack(Config(data_dir=path)) as stack:
        place = await a_place(stack)
        for names, query, method, fields, body, below in asked:
            base = f"/{place.provider.workspace}/services/svc/" if below else "/"
            target = base + "/".join(names) + query
            answer = await http(stack, target, method, fields, body if method == "POST" else b"")
            assert answer.status < 500 or "/fail" in target, answer
            assert b"Traceback" not in answer.body
            assert b'File "' not in answer.body


async def test_two_clients_do_not_wait_for_each_other(autojump_clock: MockClock, place: Place) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.call, "never")
        await wait_all_tasks_blocked()
        assert (await place.call("show", "?a=1")).json() == [[], {"a": 1}]
        nursery.cancel_scope.cancel()
