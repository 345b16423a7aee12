"""From a frame to its target: who is meant, who may, what is remembered, and what cannot be delivered."""

from __future__ import annotations

import itertools
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypha.broker.access import Level, Principal
from hypha.broker.registration import Registration
from hypha.config import Limits
from hypha.errors import ProtocolViolation
from hypha.wire.dialect import LEGACY_JAVASCRIPT, MODERN
from hypha.wire.frame import encode_header
from tests.broker.memory import SERVER_ID, Peer, Scene, pack_message

CACHE = "services.built-in.message_cache."


@pytest.fixture
async def scene() -> Scene:
    return Scene()


def event(to: str, **fields: Any) -> dict[str, Any]:
    return {"type": "progress", "to": to, **fields}


def gone(address: str) -> str:
    return f"Target peer {address} is not connected"


def nothing_is_kept_about(scene: Scene, *peers: Peer) -> None:
    """No table of a living session, and none of the server's, holds anything about *peers*."""
    dead = {peer.session for peer in peers}
    for session in (*scene.broker.registry.sessions(), scene.broker.server):
        assert dead.isdisjoint(session.outbound.values())
        assert dead.isdisjoint(caller for caller, _ in session.inbound)
        assert dead.isdisjoint(session.correspondents)
        assert dead.isdisjoint(session.chunk_peek.senders)
        assert dead.isdisjoint(session.known_by)
    for peer in peers:
        session = peer.session
        kept = (session.outbound, session.inbound, session.keeps(), session.chunk_peek.messages, session.known_by)
        assert not any(kept), kept


# --- who is meant ---------------------------------------------------------------------------------------------


async def test_a_target_is_found_by_its_relative_and_its_absolute_name(scene: Scene) -> None:
    a, b = scene.join("lab/a"), scene.join("lab/b")
    for to in ("b", "lab/b"):
        assert a.send({"type": "method", "to": to, "method": "m", "custom": [1]}, {"args": [1]}) is None
        (message,) = b.received()
        assert message.pop("user")["id"] == "user-of-a"
        assert message == {
            "type": "method",
            "from": "lab/a",
            "to": "lab/b",
            "ws": "lab",
            "method": "m",
            "custom": [1],
            "args": [1],
        }
    assert a.received() == []


async def test_a_client_may_write_to_itself(scene: Scene) -> None:
    a = scene.join("lab/a")
    a.call("a", "services.svc.f")
    (message,) = a.received()
    assert (message["from"], message["to"]) == ("lab/a", "lab/a")
    a.answer(message, 1)
    assert a.received()[0]["method"] == "s1.resolve"
    assert not a.session.outbound
    assert not a.session.inbound


async def test_a_sender_is_who_it_is_whatever_it_writes(scene: Scene) -> None:
    a, b = scene.join("lab/a"), scene.join("lab/b")
    rows: list[Any] = ["root", {"id": "root"}, None, 5, b"x", ["lab/b"], 2**64 - 1]
    for forged in rows:
        a.send({"type": "method", "to": "b", "method": "m", "from": forged, "user": forged, "ws": forged})
        header = msgpack.unpackb(b.transport.frames()[0])
        assert (header["from"], header["ws"], header["user"]["id"]) == ("lab/a", "lab", "user-of-a")


NOBODY = ["nobody", "lab/nobody", "nowhere/a", "*/nobody", "lab/*", "other/*", f"lab/{SERVER_ID}"]


async def test_a_call_to_nobody_is_rejected_in_nobodys_name(scene: Scene) -> None:
    a = scene.join("lab/a")
    for to in NOBODY:
        a.call(to, "m", session="s.1")
        (message,) = a.received()
        address = to if "/" in to else f"lab/{to}"
        assert (message["from"], message["to"], message["method"]) == (address, "lab/a", "s.1.reject")
        assert message["args"] == [{"_rtype": "error", "_rvalue": gone(address), "_rtrace": "", "_rcode": "peer_gone"}]
        assert message["user"]["id"] == "root"
        assert not a.session.outbound


async def test_a_call_to_what_is_no_address_is_rejected(scene: Scene) -> None:
    a = scene.join("lab/a")
    rows: list[str] = ["/", "a/", "/a", "a/b/c", "//"]
    for to in rows:
        a.call(to, "m")
        assert a.errors() == [f"ValueError: target {to!r} is not of the form client or workspace/client"]


@pytest.mark.parametrize("to", ["nobody", "other/b", "a/b/c", "*/x"])
@pytest.mark.parametrize("header", [{"method": "s9.resolve", "parent": "s9"}, {"method": "cb.1"}, {"type": "e"}])
async def test_what_waits_for_no_answer_is_dropped_silently(to: str, header: dict[str, Any], scene: Scene) -> None:
    """Two dead peers would otherwise storm each other (``protocol.md`` 2.5)."""
    a, b = scene.join("lab/a"), scene.join("other/b")
    a.send({"type": "method", "to": to, **header})
    assert (a.received(), b.received()) == ([], [])


async def test_the_server_answers_at_its_addresses(scene: Scene) -> None:
    a = scene.join("lab/a")
    rows: list[str] = [
        "workspace-manager",
        "lab/workspace-manager",
        "x/workspace-manager",
        "*/server-id",
        "public/server-id",
        "http",
    ]
    for number, to in enumerate(rows):
        a.call(to, "services.default.echo", 1)
        assert len(a.transport.tasks) == number + 1  # the call runs in the caller's nursery
    assert a.received() == []


async def test_a_session_that_is_over_sends_nothing(scene: Scene) -> None:
    a, b = scene.join("lab/a"), scene.join("lab/b")
    a.leave()
    for to in ("b", "*", "workspace-manager", "nobody"):
        a.call(to, "m")
        a.send(event(to))
    assert b.received() == []
    assert not b.session.inbound
    assert not a.transport.tasks


# --- who may (decisions.md 16) --------------------------------------------------------------------------------

#: What a stranger sends -> what of the target's services opens it: "any" service that the stranger may call, the
#: very service "svc", the "pair" rule, or nothing.
MATRIX: dict[str, frozenset[str]] = {
    "services.svc.f": frozenset({"svc"}),
    "services.svc.deep.er": frozenset({"svc"}),
    "services.svc": frozenset({"svc"}),
    "services.other.f": frozenset(),
    "services.": frozenset(),
    "services..f": frozenset(),
    "services.built-in.get_service": frozenset({"any", "pair"}),
    "services.built-in.ping": frozenset({"any", "pair"}),
    "services.built-in.register_service": frozenset(),
    "services.built-in.message_cache": frozenset(),
    "services.built-in.get_service.x": frozenset(),
    "services.built-in.": frozenset(),
    "services.built-in": frozenset(),
    "services._rintf_x.f": frozenset({"pair"}),
    "s1.resolve": frozenset({"pair"}),
    "s1.reject": frozenset({"pair"}),
    "s1.x-callback": frozenset({"pair"}),
    "ping": frozenset({"pair"}),
    "servicesx.svc.f": frozenset({"pair"}),
}

#: How the target offers "svc" -> what that opens to a stranger in the workspace "elsewhere".
OFFERS: dict[str, tuple[dict[str, Any], frozenset[str]]] = {
    "public": ({"visibility": "public"}, frozenset({"svc", "any"})),
    "unlisted": ({"visibility": "unlisted"}, frozenset({"svc", "any"})),
    "protected": ({"visibility": "protected"}, frozenset()),
    "authorized": ({"authorized_workspaces": ["elsewhere"]}, frozenset({"svc", "any"})),
    "authorized for another": ({"authorized_workspaces": ["x"]}, frozenset()),
}


@pytest.mark.parametrize("wrote_before", [False, True])
@pytest.mark.parametrize("offer", OFFERS)
async def test_between_workspaces_only_what_is_granted_passes(offer: str, wrote_before: bool, scene: Scene) -> None:
    a, b = scene.join("elsewhere/a"), scene.join("lab/b")
    config, opens = OFFERS[offer]
    b.announce("svc", **config)
    if wrote_before:
        a.announce("open", visibility="public")
        b.call("elsewhere/a", "services.open.f")
        assert len(a.received()) == 1
        opens |= {"pair"}
    for method, opened_by in MATRIX.items():
        a.call("lab/b", method)
        passed = bool(opened_by & opens)
        assert len(b.received()) == passed, method
        assert a.errors() == ([] if passed else [gone("lab/b")]), method
        a.send({"type": "method", "to": "lab/b", "method": method})
        assert len(b.received()) == passed, method
        assert a.errors() == []


@pytest.mark.parametrize("workspace", ["lab", "elsewhere"])
async def test_nobody_reaches_into_what_is_declared(workspace: str, scene: Scene) -> None:
    """The callee of a call would otherwise run any function of any module of its Python caller."""
    a, b = scene.join(f"{workspace}/a"), scene.join("lab/b")
    a.announce("svc", visibility="public")
    b.announce("svc", visibility="public")
    b.call(a.name, "services.svc.f")
    a.received()
    for method in ("s1.resolve.__globals__.sys.modules.os.system", "s1.timer.clear", "services.svc.f.__globals__.x"):
        a.call("lab/b", method)
        in_parts(a, "lab/b", inner(method))
        assert [message["method"] for message in b.received()] == [CACHE + "create"], method
        assert gone("lab/b") in a.errors(), method
    assert b.session.outbound


@pytest.mark.parametrize("offer", OFFERS)
async def test_inside_a_workspace_everything_passes(offer: str, scene: Scene) -> None:
    reader = Principal("reader", is_anonymous=True, grants={"lab": Level.READ})
    a, b = scene.join("lab/a", principal=reader), scene.join("lab/b")
    b.announce("svc", **OFFERS[offer][0])
    for method in MATRIX:
        a.call("b", method)
        assert len(b.received()) == 1, method
    a.send(event("b"))
    assert len(b.received()) == 1


async def test_one_open_service_among_many_opens_the_built_in(scene: Scene) -> None:
    a, b = scene.join("elsewhere/a"), scene.join("lab/b")
    cases: list[tuple[dict[str, Any], bool]] = [
        ({}, False),
        ({"visibility": "unlisted"}, True),
        ({"authorized_workspaces": ["x", "elsewhere"]}, True),
        ({"authorized_workspaces": ["x"]}, False),
        ({"visibility": "public"}, True),
    ]
    for config, opens in cases:
        services = {f"svc{number}": config if number == 13 else {} for number in range(20)}
        entries = [Registration(name, name, "t", config, None) for name, config in services.items()]
        scene.broker.registry.announce(b.session, entries)
        a.send({"type": "method", "to": "lab/b", "method": "services.built-in.ping"})
        assert len(b.received()) == opens, config
    b.announce()
    a.send({"type": "method", "to": "lab/b", "method": "services.built-in.ping"})
    assert b.received() == []


async def test_events_do_not_cross_workspaces_not_even_between_partners(scene: Scene) -> None:
    a, b = scene.join("elsewhere/a"), scene.join("lab/b")
    for peer in (a, b):
        peer.announce("svc", visibility="public")
    a.call("lab/b", "services.svc.f")
    b.answer(b.received()[0])
    for kind in ("progress", "force-exit", "methods", ""):
        a.send({"type": kind, "to": "lab/b", "method": "services.svc.f", "session": "s"})
        b.send({"type": kind, "to": "elsewhere/a", "method": "services.svc.f"})
    assert b.received() == []
    assert [message["method"] for message in a.received()] == ["s1.resolve"]


async def test_the_pair_rule_needs_a_frame_that_was_permitted_and_delivered(scene: Scene) -> None:
    a, b = scene.join("elsewhere/a"), scene.join("lab/b")
    b.call("elsewhere/a", "services.secret.f")  # refused: opens nothing
    assert b.errors() == [gone("elsewhere/a")]
    a.call("lab/b", "s1.callback")
    assert b.received() == []
    a.announce("svc", visibility="public")
    a.fill(scene.limits.outbox_bytes)
    assert b.call("elsewhere/a", "services.svc.f") is a.session  # no room: nothing has changed
    a.call("lab/b", "s1.callback")
    assert b.received() == []
    a.drain()
    assert b.call("elsewhere/a", "services.svc.f") is None
    a.call("lab/b", "s1.callback")
    assert len(b.received()) == 1


async def test_the_pair_rule_is_of_this_very_session_and_ends_with_it(scene: Scene) -> None:
    a, b = scene.join("elsewhere/a"), scene.join("lab/b")
    a.announce("svc", visibility="public")
    b.call("elsewhere/a", "services.svc.f")
    a.send({"type": "method", "to": "lab/b", "method": "s1.resolve"})
    assert len(b.received()) == 1
    b.leave()
    again = scene.join("lab/b")
    a.send({"type": "method", "to": "lab/b", "method": "s1.resolve"})
    assert again.received() == []
    nothing_is_kept_about(scene, b)


async def test_correspondents_are_bounded_and_the_oldest_is_forgotten_on_both_sides() -> None:
    scene = Scene(Limits(correspondents_per_peer=3))
    star = scene.join("lab/star")
    star.announce("svc", visibility="public")
    fans = [scene.join(f"fan{number}/a") for number in range(5)]
    for fan in fans:
        fan.call("lab/star", "services.svc.f")
    assert list(star.session.correspondents) == [fan.session for fan in fans[2:]]
    assert [star.session in fan.session.known_by for fan in fans] == [False, False, True, True, True]
    star.received()
    for fan in fans:
        star.send({"type": "method", "to": fan.name, "method": "s1.resolve"})
    assert [len(fan.received()) for fan in fans] == [0, 0, 1, 1, 1]
    star.leave()
    nothing_is_kept_about(scene, star)


async def test_a_stranger_learns_the_same_of_what_is_hidden_and_what_is_not_there(scene: Scene) -> None:
    a, b = scene.join("elsewhere/a"), scene.join("lab/b")
    b.announce("svc")
    told = []
    for to in ("lab/b", "lab/c", "nowhere/b"):
        a.call(to, "services.svc.f")
        told.append([error.replace(to, "X") for error in a.errors()])
    assert told[0] == told[1] == told[2]


# --- calls in flight (decisions.md 15) ------------------------------------------------------------------------


async def test_a_call_is_in_flight_until_it_is_answered(scene: Scene) -> None:
    a, b = scene.join("lab/a"), scene.join("lab/b")
    for name in ("resolve", "reject"):
        a.call("b", "services.svc.f", session="s.1")
        assert a.session.outbound == {"s.1": b.session}
        assert list(b.session.inbound) == [(a.session, "s.1")]
        for other in ("heartbeat", "x-reset", "resolves"):
            b.send({"type": "method", "to": "a", "method": f"s.1.{other}"})
        assert a.session.outbound
        b.answer({"from": "lab/a", "session": "s.1"}, name=name)
        assert not a.session.outbound
        assert not b.session.inbound


async def test_only_the_one_who_was_asked_strikes_out_a_call(scene: Scene) -> None:
    a, b, c = (scene.join(f"lab/{name}") for name in "abc")
    a.call("b", "services.svc.f")
    for method in ("s1.resolve", "s1.reject"):
        c.send({"type": "method", "to": "a", "method": method})
    assert a.session.outbound == {"s1": b.session}
    b.send({"type": "method", "to": "c", "method": "s1.resolve"})
    assert a.session.outbound == {"s1": b.session}


async def test_who_waits_for_a_peer_that_goes_is_told_once_in_its_name(scene: Scene) -> None:
    a, b, c = (scene.join(f"lab/{name}") for name in "abc")
    for session in ("s1", "s2"):
        a.call("lab/b", "services.svc.f", session=session)
    c.call("b", "services.svc.f", session="s1")
    a.call("c", "services.svc.f", session="s3")
    b.answer({"from": "lab/a", "session": "s2"})
    for peer in (a, c):
        peer.received()
    b.leave(clean=False)
    (message,) = a.received()
    assert (message["from"], message["method"], message["args"][0]["_rvalue"]) == ("lab/b", "s1.reject", gone("lab/b"))
    assert c.errors() == [gone("lab/b")]
    nothing_is_kept_about(scene, b)
    assert a.session.outbound == {"s3": c.session}


async def test_a_caller_that_goes_leaves_nothing_at_those_it_asked(scene: Scene) -> None:
    a, b = scene.join("lab/a"), scene.join("lab/b")
    a.call("b", "services.svc.f")
    a.call("a", "services.svc.f", session="to-itself")
    b.received()
    a.leave()
    assert b.received() == []
    nothing_is_kept_about(scene, a)


async def test_a_session_id_that_is_used_again_means_the_new_call(scene: Scene) -> None:
    a, b, c = (scene.join(f"lab/{name}") for name in "abc")
    a.call("b", "services.svc.f")
    a.call("c", "services.svc.f")
    assert a.session.outbound == {"s1": c.session}
    assert not b.session.inbound
    b.leave()
    assert a.received() == []


async def test_the_newest_calls_are_remembered_and_none_is_refused() -> None:
    scene = Scene(Limits(inflight_per_peer=4))
    a, b = scene.join("lab/a"), scene.join("lab/b")
    for number in range(7):
        a.call("b", "services.svc.f", session=f"s{number}")
    assert len(b.received()) == 7
    assert list(a.session.outbound) == ["s3", "s4", "s5", "s6"]
    assert [session for _, session in b.session.inbound] == ["s3", "s4", "s5", "s6"]
    b.leave()
    assert [message["method"] for message in a.received()] == [f"s{number}.reject" for number in range(3, 7)]


async def test_the_default_number_of_calls_in_flight(scene: Scene) -> None:
    a, b = scene.join("lab/a"), scene.join("lab/b")
    frame = scene.broker.reader.read(pack_message({"type": "method", "to": "b", "method": "m"}))
    for number in range(4097):
        frame.session = str(number)
        assert scene.broker.router.route(a.session, frame) is None
    assert len(a.session.outbound) == len(b.session.inbound) == 4096
    assert "0" not in a.session.outbound


async def test_a_very_long_session_id_is_delivered_but_not_remembered(scene: Scene) -> None:
    a, b = scene.join("lab/a"), scene.join("lab/b")
    for length, remembered in ((1024, True), (1025, False)):
        a.call("b", "services.svc.f", session="x" * length)
        assert len(b.received()) == 1
        assert bool(b.session.inbound) is remembered
        b.answer({"from": "lab/a", "session": "x" * length})
        assert not b.session.inbound


# --- room -----------------------------------------------------------------------------------------------------


async def test_a_full_target_is_named_and_nothing_has_changed() -> None:
    scene = Scene(Limits(outbox_bytes=2000))
    a, b = scene.join("lab/a"), scene.join("lab/b")
    b.fill(1900)
    waiting = b.session.outbox.pending
    for _ in range(2):
        assert a.call("b", "services.svc.f", "y" * 500) is b.session
    for operation, args in (("create", ["k"]), ("append", ["k", b"z" * 300]), ("process", ["k"])):
        assert a.cache("b", operation, *args) is b.session
    assert (a.received(), b.session.outbox.pending) == ([], waiting)
    assert not any((a.session.outbound, b.session.inbound, b.session.chunk_peek.messages))
    b.drain()
    assert a.call("b", "services.svc.f", "y" * 500) is None
    assert b.received()[-1]["args"] == ["y" * 500]


async def test_a_stranger_without_a_grant_does_not_wait_for_room() -> None:
    """Whoever waits too long has the target cut: that must not be everybody's right."""
    scene = Scene(Limits(outbox_bytes=2000))
    a, b, friend = scene.join("elsewhere/a"), scene.join("lab/b"), scene.join("lab/friend")
    b.fill(1990)
    assert a.call("lab/b", "services.svc.f", "y" * 500) is None
    assert a.errors() == [gone("lab/b")]
    assert a.cache("lab/b", "create", "k") is None
    assert a.errors() == [gone("lab/b")]
    assert friend.call("b", "services.svc.f", "y" * 500) is b.session


@pytest.mark.parametrize("padding", [0, 20_000])
async def test_a_message_with_a_long_header_needs_room_for_all_of_it(padding: int) -> None:
    """What does not fit is not lost: it waits."""
    scene = Scene(Limits(outbox_bytes=30_000))
    a, b = scene.join("lab/a"), scene.join("lab/b")
    b.fill(12_000)
    blocked = a.send({"type": "method", "to": "b", "method": "m", "session": "s", "pad": "p" * padding}, {"args": []})
    assert blocked is (b.session if padding else None)
    assert bool(a.session.outbound) is (blocked is None)


# --- frames that a receiver cannot take (decisions.md 11) -----------------------------------------------------


def delivered_size(a: Peer, b: Peer, header: dict[str, Any], body: bytes) -> int:
    frame = a.broker.reader.read(pack_message(header, body))
    return len(encode_header(frame.fields | {"to": b.name}, a.session.stamp)) + len(frame.body)


@pytest.mark.parametrize("pad", ["", "p" * 300, "p" * 50_000], ids=len)
async def test_a_call_of_the_exact_limit_passes_and_one_byte_more_fails_at_its_sender(pad: str, scene: Scene) -> None:
    limit = 300_000
    a, b = scene.join("lab/a"), scene.join("lab/b", frame_limit=limit)
    header = {"type": "method", "to": "b", "method": "services.svc.f", "session": "s1", "pad": pad}
    room = limit - delivered_size(a, b, header, b"")

    def body(size: int) -> bytes:
        return bytes(msgpack.packb({"pad": b"x" * 70_000, "args": [b"x" * (size - 70_021)]}))

    assert len(body(room)) == room
    a.send(header, body(room))
    (data,) = b.transport.frames()
    assert len(data) == limit
    assert len(b.received()) == 1
    a.send(header | {"session": "s2"}, body(room + 1))
    assert b.received() == []
    assert a.errors() == [
        f"RuntimeError: a message of {limit + 1} bytes is larger than python_frame_bytes = {limit}, "
        "which is all that lab/b can take; send it in parts"
    ]
    assert list(a.session.outbound) == ["s1"]


@pytest.mark.parametrize("name", ["resolve", "reject"])
async def test_an_answer_that_is_too_large_becomes_an_error_for_who_waits(name: str, scene: Scene) -> None:
    a, b = scene.join("lab/a", frame_limit=5000), scene.join("lab/b")
    a.call("b", "services.svc.f", session="p.1")
    b.answer(b.received()[0], "x" * 5000, name=name)
    (message,) = a.received()
    assert (message["from"], message["method"]) == ("lab/b", "p.1.reject")
    assert "all that lab/a can take; send it in parts" in message["args"][0]["_rvalue"]
    assert b.received() == []
    assert not a.session.outbound


async def test_other_frames_that_are_too_large_are_dropped(scene: Scene) -> None:
    a, b = scene.join("lab/a"), scene.join("lab/b", frame_limit=5000)
    for header in (event("b"), {"type": "method", "to": "b", "method": "s1.progress"}):
        a.send(header, {"args": ["x" * 5000]})
    assert (a.received(), b.received()) == ([], [])


# --- messages in parts (decisions.md 14) ----------------------------------------------------------------------


def in_parts(a: Peer, to: str, header: dict[str, Any], size: int = 300) -> None:
    """Send a message in parts; the receiver's answers are not waited for."""
    package = pack_message(header, {"args": [b"x" * 1000]})
    a.cache(to, "create", "k", False)
    for start in range(0, len(package), size):
        a.cache(to, "append", "k", package[start : start + size], False)
    a.cache(to, "process", "k", False)


def inner(method: str, session: str | None = "inner") -> dict[str, Any]:
    return {"type": "method", "to": "ignored", "from": "forged", "method": method, "session": session}


@pytest.mark.parametrize("workspace", ["lab", "elsewhere"])
async def test_a_call_in_parts_is_in_flight_from_its_end_on(workspace: str, scene: Scene) -> None:
    a, b = scene.join(f"{workspace}/a"), scene.join("lab/b")
    b.announce("svc", visibility="public")
    a.cache("lab/b", "create", "k", False)
    a.cache("lab/b", "append", "k", pack_message(inner("services.svc.f"), {}), False)
    assert set(a.session.outbound) == {"c1"}
    a.cache("lab/b", "process", "k", False, session="c2")
    assert set(a.session.outbound) == {"c1", "c2", "inner"}
    (created, appended, processed) = b.received()
    assert created["args"] == ["k", False, True]
    assert (appended["from"], processed["from"]) == (f"{workspace}/a", f"{workspace}/a")
    b.leave(clean=False)
    assert sorted(message["method"] for message in a.received()) == ["c1.reject", "c2.reject", "inner.reject"]
    nothing_is_kept_about(scene, b)


async def test_an_answer_in_parts_strikes_out_its_call(scene: Scene) -> None:
    a, b = scene.join("elsewhere/a"), scene.join("lab/b")
    b.announce("svc", visibility="public")
    a.call("lab/b", "services.svc.f", session="s1")
    in_parts(b, "elsewhere/a", inner("s1.resolve", None))
    assert len(a.received()) > 3
    assert "s1" not in a.session.outbound


async def test_what_may_not_pass_does_not_pass_in_parts_either(scene: Scene) -> None:
    a, b = scene.join("elsewhere/a"), scene.join("lab/b")
    b.announce("svc", visibility="public")
    rows: list[str] = [name for name, opened_by in MATRIX.items() if "svc" not in opened_by]
    for method in rows:
        in_parts(a, "lab/b", inner(method))
        messages = b.received()
        if "any" in MATRIX[method]:
            assert messages[-1]["method"] == CACHE + "process"
        else:
            assert [message["method"] for message in messages] == [CACHE + "create"]
            assert gone("lab/b") in a.errors()
        assert not b.session.chunk_peek.messages


async def test_a_stranger_without_a_grant_sends_no_parts(scene: Scene) -> None:
    a, b = scene.join("elsewhere/a"), scene.join("lab/b")
    b.announce("svc")
    in_parts(a, "lab/b", inner("services.svc.f"))
    assert b.received() == []
    assert set(a.errors()) == {gone("lab/b")}


@pytest.mark.parametrize("who", ["sender", "target"])
async def test_parts_that_are_not_finished_are_forgotten_with_either_end(who: str, scene: Scene) -> None:
    a, b, c = scene.join("lab/a"), scene.join("lab/b"), scene.join("lab/c")
    for sender, key in ((a, "one"), (a, "two"), (c, "three")):
        sender.cache("lab/b", "create", key, False)
    assert list(b.session.chunk_peek.messages) == ["one", "two", "three"]
    (a if who == "sender" else b).leave()
    nothing_is_kept_about(scene, a if who == "sender" else b)
    assert list(b.session.chunk_peek.messages) == (["three"] if who == "sender" else [])


async def test_parts_of_a_sender_that_is_forgotten_as_a_correspondent_stay_known() -> None:
    scene = Scene(Limits(correspondents_per_peer=1))
    star, fans = scene.join("lab/star"), [scene.join(f"fan{number}/a") for number in range(2)]
    star.announce("svc", visibility="public")
    for fan in fans:
        fan.cache("lab/star", "create", fan.name, False)
    assert list(star.session.correspondents) == [fans[1].session]
    star.leave()
    nothing_is_kept_about(scene, star)


async def test_keywords_take_their_places_for_a_receiver_that_counts(scene: Scene) -> None:
    a, b = scene.join("lab/a"), scene.join("lab/b", dialect=LEGACY_JAVASCRIPT)
    package = pack_message(inner("services.svc.f"), {})
    for operation, args in (("create", ["k"]), ("append", ["k", package]), ("process", ["k"])):
        promise = {
            name: {"_rtype": "method", "_rtarget": "a", "_rmethod": f"c.{name}"} for name in ("resolve", "reject")
        }
        header = {"type": "method", "to": "b", "method": CACHE + operation, "session": "c"}
        a.send(header, {"args": [*args, {"heartbeat": False}], "with_kwargs": True, "promise": promise})
    assert [message["args"] for message in b.received()] == [["k", False, True], ["k", package, False], ["k", False]]
    assert "inner" in a.session.outbound


async def test_parts_that_wait_for_their_turn_are_bounded_for_all_targets_of_a_sender_together(scene: Scene) -> None:
    """32 MiB, whoever they are for: each target would hold as much, and there may be a thousand."""
    a, b = scene.join("lab/a"), scene.join("lab/b")
    early = bytes(8_000_000)
    targets = [scene.join(f"lab/t{number}") for number in range(5)]
    for number, target in enumerate(targets):
        a.cache(target.name, "create", "k", False)
        a.cache(target.name, "set", "k", 1, early, False, session=f"early{number}")
    assert a.errors() == ["RuntimeError: too many parts of messages came before their turn"]
    assert [target.session.chunk_peek.early_bytes(a.session) for target in targets] == [8_000_000] * 4 + [0]
    stranger = scene.join("lab/stranger")
    a.cache(stranger.name, "set", "k", 1, early, False, session="unknown")
    assert len(a.errors()) == 1
    assert stranger.session not in a.session.known_by  # nothing is kept of the one about the other
    b.cache(targets[0].name, "create", "other", False)
    b.cache(targets[0].name, "set", "other", 1, early, False)  # another's parts are counted apart
    assert b.received() == []


# --- broadcasts (protocol.md 5.9) -----------------------------------------------------------------------------


async def test_an_event_for_all_reaches_those_who_asked_for_its_type(scene: Scene) -> None:
    a, b, c = (scene.join(f"lab/{name}") for name in "abc")
    stranger = scene.join("other/a")
    for peer in (a, b, stranger):
        peer.session.subscriptions.add("progress")
    c.session.subscriptions.add("other")
    a.send({"type": "progress", "to": "*", "data": 1, "from": "x"}, {"more": 2})
    for peer in (a, b):
        (message,) = peer.received()
        assert (message["from"], message["to"], message["ws"]) == ("lab/a", "lab/*", "lab")
        assert (message["data"], message["more"]) == (1, 2)
    assert (c.received(), stranger.received()) == ([], [])


async def test_a_call_for_all_is_refused(scene: Scene) -> None:
    a, b = scene.join("lab/a"), scene.join("lab/b")
    b.session.subscriptions.add("method")
    a.call("*", "services.svc.f")
    assert a.errors() == ["ValueError: a call cannot be broadcast; name one target"]
    assert b.received() == []


async def test_who_may_only_read_does_not_broadcast(scene: Scene) -> None:
    reader = Principal("reader", is_anonymous=False, grants={"lab": Level.READ})
    a, b = scene.join("lab/a", principal=reader), scene.join("lab/b")
    b.session.subscriptions.add("progress")
    a.send(event("*"))
    assert (a.received(), b.received()) == ([], [])


async def test_a_subscriber_without_room_or_with_a_small_limit_misses_the_event_and_it_is_counted() -> None:
    scene = Scene(Limits(outbox_bytes=2000))
    a, b, slow, small = (
        scene.join("lab/a"),
        scene.join("lab/b"),
        scene.join("lab/slow"),
        scene.join("lab/small", frame_limit=500),
    )
    for peer in (b, slow, small):
        peer.session.subscriptions.add("progress")
    slow.fill(1900)
    a.send(event("*"), {"data": "y" * 600})
    assert len(b.received()) == 1
    assert [peer.session.outbox.missed for peer in (b, slow, small)] == [0, 1, 1]
    assert small.received() == []


# --- redirections (decisions.md 18) ---------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", [LEGACY_JAVASCRIPT, MODERN])
async def test_one_call_from_modern_to_legacy_clients_goes_to_the_server_instead(dialect: Any, scene: Scene) -> None:
    a, b = scene.join("lab/a", dialect=MODERN), scene.join("lab/b", dialect=dialect)
    a.call("b", "services.built-in.get_service", "built-in")
    redirected = dialect is not MODERN
    assert len(b.received()) == (not redirected)
    assert len(a.transport.tasks) == redirected
    a.call("b", "services.built-in.ping", "ping")
    assert len(b.received()) == 1


# --- whatever comes -------------------------------------------------------------------------------------------

words = st.sampled_from(
    ["a", "b", "c", "lab/b", "other/c", "*", "workspace-manager", "*/server-id", "", "/", "x", "é", "method", "s1"]
)
methods = st.lists(
    st.sampled_from(
        [
            *("services", "built-in", "message_cache", "create", "append", "set", "process", "remove", "get_service"),
            *("svc", "f", "s1", "resolve", "reject", "heartbeat", "", "__class__", "_rintf_x", "default", "echo", "*"),
        ]
    ),
    max_size=5,
).map(".".join)
plain = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | st.binary(max_size=30)
anything = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)
bodies = st.one_of(
    st.none(),
    st.binary(max_size=60),
    anything,
    st.fixed_dictionaries(
        {"args": st.lists(st.one_of(st.just("k"), st.integers(0, 2), st.binary(max_size=40), anything), max_size=4)},
        optional={"with_kwargs": anything, "promise": st.one_of(st.just("*"), anything), "t": anything},
    ),
)
headers = st.fixed_dictionaries(
    {"to": words | st.text(max_size=8), "type": st.sampled_from(["method", "method", "method", "progress", ""])},
    optional={
        "method": methods | st.text(max_size=8),
        "session": words | st.none(),
        "parent": words,
        "from": anything,
        "data": anything,
    },
)


histories = st.lists(st.tuples(st.integers(0, 3), headers, bodies), max_size=8)


@settings(max_examples=50, deadline=None)
@given(histories)
async def test_no_frame_makes_the_router_raise(frames: list[tuple[int, dict[str, Any], object]]) -> None:
    play(frames)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(histories)
async def test_no_frame_of_very_many_makes_the_router_raise(frames: list[tuple[int, dict[str, Any], object]]) -> None:
    play(frames)


def play(frames: list[tuple[int, dict[str, Any], object]]) -> None:
    scene = Scene(Limits(outbox_bytes=3000, inflight_per_peer=3, correspondents_per_peer=2, server_calls_per_peer=3))
    peers = [
        scene.join("lab/a"),
        scene.join("lab/b", takes=50),
        scene.join("other/c", dialect=MODERN, frame_limit=600),
        scene.join("lab/x", dialect=LEGACY_JAVASCRIPT),
    ]
    for peer, visibility in zip(peers, itertools.cycle(("public", "protected")), strict=False):
        peer.announce("svc", visibility=visibility)
        peer.session.subscriptions.add("progress")
    for number, header, body in frames:
        try:
            blocked = peers[number].send(header, body)
        except ProtocolViolation:
            continue
        assert blocked is None or blocked.outbox.pending
    for peer in peers:
        peer.leave()
        nothing_is_kept_about(scene, peer)
