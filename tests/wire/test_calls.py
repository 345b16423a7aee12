"""Calls as data: what a body says, what an answer looks like, and which answers settle which calls."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha.errors import InvalidArgument, ProtocolViolation, RemoteError
from hypha.wire import calls
from hypha.wire import frame as frames
from hypha.wire.calls import CallTable, Promise, parse_call
from hypha.wire.frame import Fields, Frame, FrameReader, HeaderBounds, unpack_body


def reference(name: object, promise: bool = False) -> dict[str, Any]:
    return {"_rtype": "method", "_rtarget": "prov", "_rmethod": name, "_rpromise": promise}


def explicit(session: str) -> dict[str, Any]:
    """The promise of imjoy-rpc 0.5 for Python (``protocol.md`` 4.2)."""
    return {
        "heartbeat": reference(f"{session}.x1-reset", promise=True),
        "interval": 5.0,
        "resolve": reference(f"{session}.resolve"),
        "reject": reference(f"{session}.reject"),
    }


# --- bodies ---------------------------------------------------------------------------------------------------


def test_the_explicit_promise_is_read() -> None:
    body = parse_call({"args": [1, "x"], "promise": explicit("s1")}, "s1")
    assert (body.args, body.kwargs) == ([1, "x"], {})
    assert body.promise == Promise("s1.resolve", "s1.reject", "s1.x1-reset", 5.0)


def test_the_compact_promise_is_spelt_out() -> None:
    body = parse_call({"promise": "*", "t": 15}, "a.b")
    assert body.args == []
    assert body.promise == Promise("a.b.resolve", "a.b.reject", "a.b.heartbeat", 15.0)


def test_arguments_are_read() -> None:
    rows: list[tuple[dict[str, Any], list[Any], dict[str, Any]]] = [
        ({}, [], {}),
        ({"args": None}, [], {}),
        ({"args": []}, [], {}),
        ({"args": [], "with_kwargs": True}, [], {}),
        ({"args": [{"a": 1}]}, [{"a": 1}], {}),
        ({"args": [{"a": 1}], "with_kwargs": False}, [{"a": 1}], {}),
        ({"args": [{"a": 1}], "with_kwargs": True}, [], {"a": 1}),
        ({"args": [1, {"a": [2]}], "with_kwargs": True}, [1], {"a": [2]}),
        ({"args": [1, {"_rkwargs": True, "a": 2}], "with_kwargs": True}, [1], {"a": 2}),
        ({"args": [None, None]}, [None, None], {}),
        ({"args": [1], "unknown": {"deep": [1]}}, [1], {}),
    ]
    for extra, args, kwargs in rows:
        body = parse_call(extra, None)
        assert (body.args, body.kwargs) == (args, kwargs)


def test_an_absent_body_has_no_arguments() -> None:
    assert parse_call({}, "s1") == calls.CallBody([], {}, None)


def test_what_is_no_promise_wants_no_answer() -> None:
    rows: list[tuple[object, str | None]] = [
        (None, "s1"),
        ("*", None),
        ("**", "s1"),
        (True, "s1"),
        ([], "s1"),
        ({}, "s1"),
        ({"resolve": reference("s1.resolve")}, "s1"),
        ({"resolve": reference("s1.resolve"), "reject": reference(5)}, "s1"),
        ({"resolve": reference("s1.resolve"), "reject": "s1.reject"}, "s1"),
        ({"resolve": {}, "reject": {}}, "s1"),
    ]
    for promise, session in rows:
        assert parse_call({"promise": promise, "t": 5}, session).promise is None


def test_an_interval_that_makes_no_sense_means_no_heartbeats() -> None:
    rows: list[object] = [None, 0, -1, "5", [], float("nan"), float("inf"), 86400, 2**63]
    for interval in rows:
        for extra in ({"promise": "*", "t": interval}, {"promise": explicit("s") | {"interval": interval}}):
            promise = parse_call(extra, "s").promise
            assert promise is not None
            assert promise.interval is None


def test_a_promise_may_come_without_heartbeat() -> None:
    promise = {"resolve": reference("s.resolve"), "reject": reference("s.reject")}
    assert parse_call({"promise": promise}, "s").promise == Promise("s.resolve", "s.reject", None, None)


UNREADABLE = "the body is not one msgpack value"


def test_a_malformed_body_is_a_protocol_violation() -> None:
    rows: list[tuple[bytes, str]] = [
        (b"\xc1", UNREADABLE),
        (b"\x81", UNREADABLE),
        (b"\x80\x80", UNREADABLE),
        (b"\x81\xa4args", UNREADABLE),
        (b"\x81\xa1a\xa1\xff", UNREADABLE),
        (b"\x81\x01\x02", UNREADABLE),
        (b"\x81\x90\x02", UNREADABLE),
        (b"\x91" * 2000 + b"\xc0", UNREADABLE),
        (b"\xdf\xff\xff\xff\xff", UNREADABLE),
        (b"\xc0", "the body is not a map"),
        (b"\x90", "the body is not a map"),
        (b"\x92\xa4args\x90", "the body is not a map"),
        (msgpack.packb({"args": {"a": 1}}), "'args' must be an array"),
        (msgpack.packb({"args": "text"}), "'args' must be an array"),
        (msgpack.packb({"args": [1], "with_kwargs": True}), "'with_kwargs' needs a map as the last argument"),
        (msgpack.packb({"args": [{b"a": 1}], "with_kwargs": 1}), "'with_kwargs' needs a map as the last argument"),
    ]
    for body, complaint in rows:
        with pytest.raises(ProtocolViolation) as caught:
            parse_call(unpack_body(body), "s1")
        assert str(caught.value) == complaint


@given(st.binary(max_size=120), st.none() | st.just("s1"))
def test_bytes_are_a_body_or_a_protocol_violation(body: bytes, session: str | None) -> None:
    try:
        parse_call(unpack_body(body), session)
    except ProtocolViolation:
        return
    assert isinstance(unpack_body(body), dict)


def array(item: bytes, count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + item * count


def test_a_body_of_tiny_values_is_refused_before_it_fills_the_memory() -> None:
    """16 MiB of empty lists would be a gigabyte of objects, and seconds in which nobody else is served."""
    for item in (b"\x90", b"\x80"):
        with pytest.raises(ProtocolViolation, match="the body holds more than 2000000 values"):
            unpack_body(b"\x81\xa4args" + array(item, 300_000))
    assert len(unpack_body(b"\x81\xa4args\x91" + array(b"\x93\x01\x02\x03", 50_000))["args"][0]) == 50_000
    assert len(unpack_body(b"\x81\xa4args" + array(b"\x01", 1_900_000))["args"]) == 1_900_000


@pytest.mark.parametrize(
    ("value", "cost"), [([], 8), ([1], 9), ([[]], 17), ({}, 8), ({"a": 1}, 9), ([1, {"a": [2, 3]}], 29), ("text", 0)]
)
def test_the_values_of_a_body_are_counted_exactly(value: object, cost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    body = msgpack.packb({"v": value})
    monkeypatch.setattr(frames, "MAX_VALUES", cost + 9)
    assert unpack_body(body) == {"v": value}
    monkeypatch.setattr(frames, "MAX_VALUES", cost + 8)
    with pytest.raises(ProtocolViolation):
        unpack_body(body)


# --- names of methods -----------------------------------------------------------------------------------------


def test_what_clients_declare_has_a_name() -> None:
    rows: list[str] = [
        "services.svc.hello",
        "services.svc.deep.er.3",
        "services.svc.__enter__",
        "services.svc.inner.__exit__",
        "services.svc._dispose",
        "services.svc.timer.start",
        "services._rintf_x1.progress",
        "services.my-svc.add",
        "services.built-in.message_cache.create",
        "s1.resolve",
        "aB3xYz.dE4.reject",
        "aB3.dE4.fG5.5yM-reset",
        "s6.Qdkn-<lambda>",
        "s6.3gn8#<lambda>",
        "s6.x1-__call__",
        "g1.PKY:close",
        "_odd-session.resolve",
        "ping",
        "_x",
        "",
    ]
    for method in rows:
        assert calls.is_declared(method)


def test_a_part_of_what_is_declared_has_none() -> None:
    rows: list[str] = [
        "s1.resolve.__globals__.sys.modules.os.system",
        "s1.__class__",
        "s1._private",
        "s1.a-f.__self__.close",
        "s1.a-f.func",
        "s1.a#f.func",
        "s1.a:close.func",
        "s1.resolve.func",
        "s1.reject.args",
        "s1.timer._task._loop.stop",
        "s1.timer.clear",
        "s1.child.timer.clear",
        "s1.target_id.format",
        "s1.heartbeat.x",
        "services.svc.f.__globals__.x",
        "services.svc.__class__",
        "services.__class__.x",
        "services.svc.__enter__.__self__",
        "services.svc._private",
        "x.__enter__.__globals__",
        "s1..x.y",
    ]
    for method in rows:
        assert not calls.is_declared(method)


# --- messages of our own --------------------------------------------------------------------------------------

READER = FrameReader(HeaderBounds())
STAMP = Fields.encode({"from": "ws/a", "user": {"id": "root"}, "ws": "ws"})


def read(message: calls.Message) -> tuple[dict[str, Any], Any]:
    header, body = message.encode(STAMP)
    frame = READER.read(header + body)
    return {**msgpack.unpackb(header)}, frame.extra()


def test_an_answer_has_exactly_one_argument_also_for_none() -> None:
    for value in (None, 5, [1, 2], {"a": b"x"}):
        header, extra = read(calls.answer("ws/b", "s1.resolve", "s1", value))
        assert extra == {"args": [value]}
        assert header == {
            "type": "method",
            "to": "ws/b",
            "method": "s1.resolve",
            "parent": "s1",
            "from": "ws/a",
            "user": {"id": "root"},
            "ws": "ws",
        }


def test_a_rejection_looks_like_the_targets_own() -> None:
    header, extra = read(calls.rejection("ws/b", "s1", "Target peer ws/a is not connected", "peer_gone"))
    assert (header["method"], header["to"], header["from"]) == ("s1.reject", "ws/b", "ws/a")
    assert "session" not in header
    told = {"_rtype": "error", "_rvalue": "Target peer ws/a is not connected", "_rtrace": "", "_rcode": "peer_gone"}
    assert extra == {"args": [told]}


def test_a_heartbeat_is_a_header_alone() -> None:
    promise = Promise("s1.resolve", "s1.reject", "s1.x1-reset", 5.0)
    header, extra = read(calls.heartbeat("ws/b", promise, "s1"))
    assert (header["method"], header["parent"]) == ("s1.x1-reset", "s1")
    assert extra == {}


def test_a_call_carries_the_promise_that_every_generation_honours() -> None:
    rows: list[tuple[list[Any], dict[str, Any], dict[str, Any]]] = [
        ([], {}, {"args": []}),
        ([1, "x"], {}, {"args": [1, "x"]}),
        ([], {"a": 1}, {"args": [{"a": 1}], "with_kwargs": True}),
        ([1], {"a": 1}, {"args": [1, {"a": 1}], "with_kwargs": True}),
    ]
    for args, kwargs, expected in rows:
        message = calls.call("ws/b", "services.svc.f", "s1", "ws/a", args, kwargs)
        header, extra = read(message)
        assert (header["method"], header["session"], header["to"]) == ("services.svc.f", "s1", "ws/b")
        promise = extra.pop("promise")
        assert extra == expected
        assert {entry["_rtarget"] for entry in promise.values() if isinstance(entry, dict)} == {"ws/a"}
        assert (promise["heartbeat"]["_rpromise"], promise["resolve"]["_rpromise"]) == (True, False)
        body = parse_call(unpack_body(message.body), "s1")
        assert (body.args, body.kwargs) == (args, kwargs)
        assert body.promise == Promise("s1.resolve", "s1.reject", "s1.heartbeat", calls.HEARTBEAT_SECONDS)


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, deep(5000), "\ud800", object(), {1, 2}])
def test_what_msgpack_cannot_say_is_an_invalid_argument(value: object) -> None:
    with pytest.raises(InvalidArgument, match="cannot be sent as msgpack"):
        calls.answer("a", "s.resolve", "s", value)
    with pytest.raises(InvalidArgument, match="cannot be sent as msgpack"):
        calls.call("a", "m", "s", "b", [value], {"k": value})
    assert read(calls.answer("a", "s.resolve", "s", 1))[1] == {"args": [1]}  # nothing of it stays in the packer


# --- pending calls --------------------------------------------------------------------------------------------


class Pending:
    """One open call and what became of it."""

    def __init__(self, table: CallTable) -> None:
        self.outcomes: list[tuple[bool, Any]] = []
        self.beats = 0
        self.entry = table.open("ws/manager", "ws/prov", self._settle, self._alive)

    def _settle(self, succeeded: bool, value: Any) -> None:
        self.outcomes.append((succeeded, value))

    def _alive(self) -> None:
        self.beats += 1


RESULT = msgpack.packb({"args": [7]})


def receive(table: CallTable, sender: str, to: str, method: str, body: bytes) -> bool:
    """Hand the message of *sender* that calls *method* of the server to *table*."""
    return table.receive(sender, to, Frame(to, "method", method, None, None, {}, body))


def test_a_result_settles_its_call_once() -> None:
    table = CallTable()
    one, other = Pending(table), Pending(table)
    method = f"{one.entry.session}.resolve"
    assert receive(table, "ws/prov", "ws/manager", method, RESULT)
    assert not receive(table, "ws/prov", "ws/manager", method, RESULT)
    assert not receive(table, "ws/prov", "ws/manager", f"{one.entry.session}.reject", RESULT)
    assert (one.outcomes, other.outcomes) == ([(True, 7)], [])
    assert list(table.pending.values()) == [other.entry]


def test_an_error_settles_its_call() -> None:
    table = CallTable()
    one = Pending(table)
    error = {"_rtype": "error", "_rvalue": "boom"}
    assert receive(table, "ws/prov", "ws/manager", f"{one.entry.session}.reject", msgpack.packb({"args": [error]}))
    assert one.outcomes == [(False, error)]
    assert not table.pending


def test_a_result_without_arguments_is_none() -> None:
    rows: list[bytes] = [b"", b"\x80", b"\x81\xa4args\x90"]
    for body in rows:
        table = CallTable()
        one = Pending(table)
        assert receive(table, "ws/prov", "ws/manager", f"{one.entry.session}.resolve", body)
        assert one.outcomes == [(True, None)]


@pytest.mark.parametrize("body", [b"\xc1", b"\x90", b"\x81\xa4args\x05", b"\x81"])
@pytest.mark.parametrize("name", ["resolve", "reject"])
def test_an_answer_that_cannot_be_read_fails_its_call_at_once(name: str, body: bytes) -> None:
    table = CallTable()
    one = Pending(table)
    assert receive(table, "ws/prov", "ws/manager", f"{one.entry.session}.{name}", body)
    ((succeeded, error),) = one.outcomes
    assert not succeeded
    assert isinstance(error, RemoteError)
    assert str(error).startswith("ws/prov sent an answer that cannot be read: ")
    assert not table.pending


def test_a_heartbeat_keeps_the_call_alive_and_open() -> None:
    table = CallTable()
    one = Pending(table)
    for body in (b"", b"\xc1"):
        assert receive(table, "ws/prov", "ws/manager", f"{one.entry.session}.heartbeat", body)
    assert (one.beats, one.outcomes) == (2, [])
    assert table.pending


def test_nobody_else_and_nothing_else_settles_a_call() -> None:
    rows: list[tuple[str, str, str]] = [
        ("ws/other", "ws/manager", "{}.resolve"),  # somebody else
        ("other/prov", "ws/manager", "{}.resolve"),
        ("ws/prov", "other/manager", "{}.resolve"),  # at another address of the server
        ("ws/prov", "*/manager", "{}.resolve"),
        ("ws/other", "ws/manager", "{}.heartbeat"),
        ("ws/prov", "ws/manager", "{}"),
        ("ws/prov", "ws/manager", "{}."),
        ("ws/prov", "ws/manager", "{}.settle"),
        ("ws/prov", "ws/manager", "{}.__class__"),
        ("ws/prov", "ws/manager", "{}.resolve.resolve"),
        ("ws/prov", "ws/manager", "x{}.resolve"),
        ("ws/prov", "ws/manager", ".resolve"),
        ("ws/prov", "ws/manager", "resolve"),
        ("ws/prov", "ws/manager", ""),
    ]
    for sender, to, method in rows:
        table = CallTable()
        one = Pending(table)
        assert not receive(table, sender, to, method.format(one.entry.session), RESULT)
        assert (one.outcomes, one.beats) == ([], 0)
        assert table.pending


def test_a_closed_call_is_not_settled_and_closing_twice_is_fine() -> None:
    table = CallTable()
    one = Pending(table)
    table.close(one.entry)
    table.close(one.entry)
    assert not receive(table, "ws/prov", "ws/manager", f"{one.entry.session}.resolve", RESULT)
    assert one.outcomes == []


def test_session_ids_are_not_repeated() -> None:
    table = CallTable()
    assert len({Pending(table).entry.session for _ in range(500)}) == 500


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30), st.binary(max_size=30))
def test_no_text_settles_a_call_by_chance(sender: str, to: str, method: str, body: bytes) -> None:
    table = CallTable()
    one = Pending(table)
    assert not receive(table, sender, to, method, body)
    assert one.outcomes == []
