"""Messages in parts: what a receiver stores, and that a receiver runs only what the router has seen.

The second half plays the router's view against a model of a receiver, because whatever the two see differently is a
way around every check: a receiver refuses parts for reasons of its own, and its store outlives those who filled it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hypha.errors import (
    HyphaError,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    ProtocolViolation,
    TooLarge,
)
from hypha.wire.chunks import (
    CACHE_PREFIX,
    MAX_KEY,
    ChunkPeek,
    ChunkStore,
    overwriting,
    parse_chunk_call,
    slices,
)
from hypha.wire.frame import Frame, FrameReader, HeaderBounds

READER = FrameReader(HeaderBounds())
ROOM = 128  # bytes that a part is charged beside its own


def store(limit: int = 10_000, count: int = 4) -> ChunkStore:
    return ChunkStore(limit, count)


# --- the store of a receiver ----------------------------------------------------------------------------------


def test_parts_are_joined_in_the_order_in_which_they_were_appended() -> None:
    chunks = store()
    chunks.create("k")
    for part in (b"one", b"", b"two"):
        chunks.append("k", part)
    assert chunks.take("k") == b"onetwo"
    assert (chunks.messages, chunks.size) == ({}, 0)


@given(st.permutations(range(6)), st.lists(st.binary(max_size=9), min_size=6, max_size=6))
def test_numbered_parts_come_in_any_order_and_the_last_of_a_number_counts(order: list[int], parts: list[bytes]) -> None:
    chunks = store()
    chunks.create("k")
    for index in order:
        chunks.set("k", index, b"overwritten")
    for index in reversed(order):
        chunks.set("k", index, parts[index])
    assert chunks.size == sum(map(len, parts)) + 6 * ROOM
    assert chunks.take("k") == b"".join(parts)
    assert chunks.size == 0


def test_an_empty_message_and_one_with_a_hole() -> None:
    chunks = store()
    chunks.create("k")
    assert chunks.take("k") == b""
    chunks.create("k")
    chunks.set("k", 1, b"x")
    with pytest.raises(InvalidArgument, match="message 'k' has a missing part"):
        chunks.take("k")
    assert (chunks.messages, chunks.size) == ({}, 0)


def test_a_key_in_use_is_refused_unless_it_is_to_be_overwritten() -> None:
    chunks = store()
    chunks.create("k")
    chunks.append("k", b"old")
    with pytest.raises(InvalidArgument, match=r"Message with the same key \(k\) already exists"):
        chunks.create("k")
    chunks.create("k", overwrite=True)
    assert chunks.size == 0
    chunks.append("k", b"new")
    assert chunks.take("k") == b"new"


def test_an_unknown_key_is_refused_in_the_clients_own_words() -> None:
    chunks = store()
    for use in (lambda: chunks.append("k", b""), lambda: chunks.take("k"), lambda: chunks.remove("k")):
        with pytest.raises(NotFound, match=r"^Message with key k does not exists\.$"):
            use()


def test_the_bytes_of_all_parts_are_bounded_exactly_and_empty_parts_are_not_free() -> None:
    chunks = store(limit=1000 + 4 * ROOM)
    for key in ("a", "b"):
        chunks.create(key)
        chunks.append(key, b"x" * 400)
    chunks.append("a", b"y" * 200)
    chunks.append("a", b"")
    assert chunks.size == chunks.limit
    for data in (b"", b"z"):
        other = store(limit=chunks.limit)
        other.messages, other.size = {key: dict(parts) for key, parts in chunks.messages.items()}, chunks.size
        with pytest.raises(TooLarge, match="chunked_bytes_per_peer = 1512"):
            other.append("a", data)
        assert (list(other.messages), other.size) == (["b"], 400 + ROOM)  # the message is lost, the others are not
    chunks.set("b", 0, b"w" * 400)  # a part that is replaced makes room for itself
    with pytest.raises(TooLarge):
        chunks.set("b", 0, b"w" * 401)


def test_the_number_of_open_messages_is_bounded_exactly_and_overwriting_needs_no_room() -> None:
    chunks = store(count=2)
    chunks.create("a")
    chunks.create("b")
    with pytest.raises(LimitExceeded, match="chunked_messages_per_peer = 2"):
        chunks.create("c")
    chunks.create("b", overwrite=True)
    chunks.remove("a")
    chunks.create("c")


def test_a_key_has_a_longest_size() -> None:
    chunks = store()
    chunks.create("k" * MAX_KEY)
    with pytest.raises(InvalidArgument, match="longer than 1024 characters"):
        chunks.create("k" * (MAX_KEY + 1))


def test_a_message_is_cut_into_parts() -> None:
    rows: list[tuple[int, list[bytes]]] = [(1, [b"a", b"b", b"c"]), (2, [b"ab", b"c"]), (3, [b"abc"]), (9, [b"abc"])]
    for size, parts in rows:
        assert list(slices(b"abc", size)) == parts
        assert list(slices(b"", size)) == []


# --- chunk calls as clients write them ------------------------------------------------------------------------


def reference(name: str) -> dict[str, Any]:
    return {"_rtype": "method", "_rtarget": "a", "_rmethod": f"s1.{name}", "_rpromise": name == "x-reset"}


EXPLICIT = {
    "heartbeat": reference("x-reset"),
    "interval": 5.0,
    "resolve": reference("resolve"),
    "reject": reference("reject"),
}


def chunk_call(operation: str, *args: Any, header: dict[str, Any] | None = None, **extra: Any) -> Frame:
    """A chunk call of imjoy-rpc by position, or with *extra* instead of what it says otherwise."""
    fields = {"type": "method", "to": "b", "method": CACHE_PREFIX + operation, "session": "s1"} | (header or {})
    body = {"args": list(args), "promise": EXPLICIT} | extra
    present = {name: value for name, value in body.items() if value is not ...}
    return READER.read(msgpack.packb(fields) + msgpack.packb(present))


def test_arguments_are_read_by_name_however_they_are_given() -> None:
    rows: list[tuple[Frame, dict[str, Any]]] = [
        (chunk_call("create", "k", {"heartbeat": False}, with_kwargs=True), {"key": "k", "heartbeat": False}),
        (chunk_call("create", "k", False), {"key": "k", "heartbeat": False}),
        (chunk_call("create", "k", True, False), {"key": "k", "heartbeat": True, "overwrite": False}),
        (chunk_call("create", "k"), {"key": "k"}),
        (
            chunk_call("append", "k", b"x", {"heartbeat": True}, with_kwargs=True),
            {"key": "k", "data": b"x", "heartbeat": True},
        ),
        (chunk_call("append", {"data": b"x", "key": "k"}, with_kwargs=True), {"key": "k", "data": b"x"}),
        (chunk_call("set", "k", 7, b"x", True), {"key": "k", "index": 7, "data": b"x", "heartbeat": True}),
        (chunk_call("process", "k", False, with_kwargs=False), {"key": "k", "heartbeat": False}),
        (chunk_call("remove", "k"), {"key": "k"}),
    ]
    for call, expected in rows:
        operation = (call.method or "").removeprefix(CACHE_PREFIX)
        assert parse_chunk_call(operation, call, compact=False) == expected


def test_the_compact_promise_is_for_receivers_that_know_it() -> None:
    call = chunk_call("create", "k", promise="*", t=5.0)
    assert parse_chunk_call("create", call, compact=True) == {"key": "k"}
    with pytest.raises(ProtocolViolation, match="promise"):
        parse_chunk_call("create", call, compact=False)
    without_session = chunk_call("create", "k", promise="*", header={"session": None})
    with pytest.raises(ProtocolViolation, match="promise"):
        parse_chunk_call("create", without_session, compact=True)


def with_promise(**changes: Any) -> dict[str, Any]:
    return {"promise": {key: value for key, value in (EXPLICIT | changes).items() if value is not ...}}


#: What no client sends, and what a receiver would refuse although it looks like a part.
STRANGE: dict[str, Frame] = {
    "an unknown operation": chunk_call("steal", "k"),
    "no key": chunk_call("create"),
    "a key of bytes": chunk_call("create", b"k"),
    "a key that is too long": chunk_call("create", "k" * (MAX_KEY + 1)),
    "no data": chunk_call("append", "k"),
    "data of text": chunk_call("append", "k", "x"),
    "data of text by keyword": chunk_call("append", "k", {"data": "x"}, with_kwargs=True),
    "an index of text": chunk_call("set", "k", "0", b"x"),
    "an index that is a bool": chunk_call("set", "k", False, b"x"),
    "an index that is a float": chunk_call("set", "k", 0.0, b"x"),
    "a negative index": chunk_call("set", "k", -1, b"x"),
    "the key twice": chunk_call("append", "k", b"x", {"key": "other"}, with_kwargs=True),
    "the data twice": chunk_call("append", "k", b"x", {"data": b"y"}, with_kwargs=True),
    "one argument too many": chunk_call("append", "k", b"x", False, 1),
    "an unknown keyword": chunk_call("append", "k", b"x", {"more": 1}, with_kwargs=True),
    "a keyword that others take out": chunk_call("append", "k", b"x", {"_rkwargs": True}, with_kwargs=True),
    "keywords that are no map": chunk_call("append", "k", b"x", False, with_kwargs=True),
    "keywords without arguments": chunk_call("append", with_kwargs=True),
    "a heartbeat that is no bool": chunk_call("append", "k", b"x", 1),
    "a heartbeat that cannot be decoded": chunk_call("append", "k", b"x", {"_rtype": "ndarray"}),
    "an overwrite that is no bool": chunk_call("create", "k", False, "yes"),
    "arguments that are no list": chunk_call("append", args={"key": "k"}),
    "no arguments": chunk_call("append", args=...),
    "a parent": chunk_call("append", "k", b"x", header={"parent": "p1"}),
    "arguments in the header": chunk_call("append", "k", b"x", header={"with_kwargs": True}),
    "a promise in the header": chunk_call("append", "k", b"x", header={"promise": 1}),
    "more in the body": chunk_call("append", "k", b"x", _enc={"v": 2}),
    "no promise": chunk_call("append", "k", b"x", promise=...),
    "a promise of nothing": chunk_call("append", "k", b"x", promise=None),
    "a promise without reject": chunk_call("append", "k", b"x", **with_promise(reject=...)),
    "a promise with more": chunk_call("append", "k", b"x", **with_promise(more={"_rtype": "ndarray"})),
    "a promise of text": chunk_call("append", "k", b"x", **with_promise(resolve="s1.resolve")),
    "a promise of something else": chunk_call(
        "append", "k", b"x", **with_promise(resolve=reference("resolve") | {"_rtype": "x"})
    ),
    "a promise that cannot be decoded": chunk_call(
        "append", "k", b"x", **with_promise(heartbeat=reference("h") | {"_rdoc": {"_rtype": "ndarray"}})
    ),
    "a promise without a target": chunk_call(
        "append", "k", b"x", **with_promise(reject={"_rtype": "method", "_rmethod": "s1.reject"})
    ),
    "an interval of text": chunk_call("append", "k", b"x", **with_promise(interval="5")),
}


def test_what_no_client_sends_is_refused() -> None:
    for name in STRANGE:
        operation = (STRANGE[name].method or "").removeprefix(CACHE_PREFIX)
        with pytest.raises(ProtocolViolation) as caught:
            parse_chunk_call(operation, STRANGE[name], compact=False)
        assert str(caught.value).isprintable()


def test_creating_always_overwrites_at_the_receiver() -> None:
    """What an earlier sender has left there must not become the beginning of this message."""
    for call in (
        chunk_call("create", "k", {"heartbeat": True}, with_kwargs=True),
        chunk_call("create", "k", True),
        chunk_call("create", "k", True, True),
        chunk_call("create", "k", {"heartbeat": True, "overwrite": False}, with_kwargs=True),
    ):
        body = overwriting(call, compact=False)
        assert msgpack.unpackb(body) == {"args": ["k", True, True], "promise": EXPLICIT}
        call.body = body
        assert overwriting(call, compact=False) == body


# --- what passes through --------------------------------------------------------------------------------------


def inner(method: str = "services.svc.f", size: int = 10, **extra: Any) -> bytes:
    """A whole message as it is cut into parts."""
    header = {"type": "method", "to": "b", "method": method, "session": "inner"}
    return bytes(msgpack.packb(header) + msgpack.packb({"args": [b"x" * size]} | extra))


class Sender:
    """One sender's way through a peek, with a policy of its own."""

    def __init__(self, peek: ChunkPeek, allowed: str = "services.") -> None:
        self.peek = peek
        self.allowed = allowed

    def __call__(self, operation: str, *args: Any, **extra: Any) -> Frame | None:
        call = chunk_call(operation, *args, **extra)
        return self.peek.pass_through(self, operation, call, self.permits, READER, compact=False)

    def permits(self, message: Frame) -> bool:
        return (message.method or "").startswith(self.allowed)


def peek(limit: int = 3) -> ChunkPeek:
    return ChunkPeek(limit)


def send(sender: Sender, package: bytes, *, key: str = "k", size: int = 100) -> Frame | None:
    sender("create", key, False)
    for part in slices(package, size):
        sender("append", key, part, False)
    return sender("process", key, False)


def test_the_inner_message_is_known_at_process() -> None:
    look = peek()
    for size in (7, 60, 100, 5000):
        message = send(Sender(look), inner(size=3000), size=max(size, 60))
        assert message is not None
        assert (message.method, message.session, message.wants_answer) == ("services.svc.f", "inner", True)
        assert len(message.body) == 0
    assert look.messages == {}


def test_numbered_parts_pass_in_any_order() -> None:
    look = peek()
    sender = Sender(look)
    parts = list(slices(inner(size=1000), 100))
    sender("create", "k")
    for index in reversed(range(len(parts))):
        sender("set", "k", index, parts[index])
    message = sender("process", "k")
    assert message is not None
    assert message.method == "services.svc.f"


def test_a_forbidden_inner_message_is_denied_when_it_is_seen_and_nothing_of_it_passes_later() -> None:
    look = peek()
    sender = Sender(look)
    sender("create", "k", False)
    with pytest.raises(PermissionDenied):
        sender("append", "k", inner("s1.resolve"), False)
    for operation, args in (("append", (b"x",)), ("process", ())):
        with pytest.raises(ProtocolViolation, match="no beginning of message 'k' was seen"):
            sender(operation, "k", *args, False)


def test_what_may_no_longer_pass_at_its_end_is_denied_there() -> None:
    sender = Sender(peek())
    sender("create", "k", False)
    sender("append", "k", inner(), False)
    sender.allowed = "nothing"
    with pytest.raises(PermissionDenied):
        sender("process", "k", False)


def created(sender: Sender) -> None:
    sender("create", "k", False)


def headed(sender: Sender) -> None:
    created(sender)
    sender("append", "k", inner(size=1000)[:200], False)


ATTACKS: dict[str, list[Any]] = {
    "append without create": [("append", "k", b"x", False)],
    "set without create": [("set", "k", 0, inner(), False)],
    "process without create": [("process", "k", False)],
    "process without a part": [created, ("process", "k", False)],
    "process before the end": [headed, ("process", "k", False)],
    "an empty first part": [created, ("append", "k", b"", False)],
    "a header in two parts": [created, ("append", "k", inner()[:10], False)],
    "a second first part": [headed, ("set", "k", 0, inner(), False)],
    "the first part twice": [
        created,
        ("set", "k", 0, inner(), False),
        ("set", "k", 0, inner(), False),
    ],
    "set after append": [headed, ("set", "k", 1, b"x", False)],
    "append after set": [
        created,
        ("set", "k", 1, b"x", False),
        ("append", "k", inner(), False),
    ],
    "another heartbeat": [headed, ("append", "k", b"x", True)],
    "another heartbeat at the end": [
        created,
        ("append", "k", inner(), False),
        ("process", "k", True),
    ],
    "parts inside parts": [created, ("append", "k", inner(CACHE_PREFIX + "process"), False)],
    "more behind the message": [created, ("append", "k", inner() + b"\x80", False)],
    "a body that overrides its header": [
        created,
        ("append", "k", inner(method2=1).replace(b"\xa7method2", b"\xa6method\xc0"), False),
    ],
}


def test_an_attack_is_refused_and_the_message_forgotten() -> None:
    for name in ATTACKS:
        look = peek()
        sender = Sender(look)
        *steps, last = ATTACKS[name]
        for step in steps:
            if callable(step):
                step(sender)
            else:
                sender(*step)
        with pytest.raises(ProtocolViolation):
            sender(*last)
        assert "k" not in look.messages
        assert send(sender, inner()) is not None


def test_creating_again_begins_again() -> None:
    sender = Sender(peek())
    headed(sender)
    assert send(sender, inner("services.other.f")) is not None


def test_removing_forgets() -> None:
    look = peek()
    sender = Sender(look)
    headed(sender)
    sender("remove", "k")
    assert look.messages == {}
    with pytest.raises(ProtocolViolation):
        sender("process", "k", False)


def test_a_key_belongs_to_who_created_it_until_it_is_done() -> None:
    look = peek()
    owner, other = Sender(look), Sender(look)
    headed(owner)
    for operation, args in (("create", ()), ("append", (b"x",)), ("set", (0, inner())), ("process", ())):
        with pytest.raises(InvalidArgument, match=r"Message with the same key \(k\) already exists"):
            other(operation, "k", *args, False)
    with pytest.raises(InvalidArgument):
        other("remove", "k")
    owner("append", "k", inner(size=1000)[200:], False)
    assert owner("process", "k", False) is not None
    assert send(other, inner()) is not None


def test_what_a_sender_has_open_is_bounded_and_does_not_push_out_others() -> None:
    look = peek(limit=2)
    one, two = Sender(look), Sender(look)
    one("create", "one")
    for key in ("a", "b", "c"):
        two("create", key)
    assert list(look.messages) == ["one", "b", "c"]
    two("append", "b", inner(size=1000)[:200])
    two("create", "d")
    assert list(look.messages) == ["one", "b", "d"]  # the one that moved last stays


def test_a_sender_that_ends_leaves_nothing() -> None:
    look = peek()
    one, two = Sender(look), Sender(look)
    for sender, keys in ((one, ("a", "b")), (two, ("c",))):
        for key in keys:
            sender("create", key)
    look.forget(one)
    look.forget(one)
    assert (list(look.messages), list(look.senders)) == (["c"], [two])


# --- a receiver runs only what the router has seen ------------------------------------------------------------


@dataclass
class Receiver:
    """A Python client's message cache as ``protocol.md`` 2.7 describes it. One store for all senders."""

    sessions: set[str]
    cache: dict[str, bytes] = field(default_factory=dict)
    ran: list[dict[str, Any]] = field(default_factory=list)

    def take(self, frame: Frame) -> None:
        """Run one chunk call that came through; a refusal of its own changes nothing."""
        operation = (frame.method or "").removeprefix(CACHE_PREFIX)
        extra = msgpack.unpackb(frame.body)
        names = {"create": ("key", "heartbeat", "overwrite"), "append": ("key", "data", "heartbeat")}
        args = list(extra["args"])
        given = args.pop() if extra.get("with_kwargs") else {}
        given |= dict(zip(names.get(operation, ("key", "heartbeat")), args, strict=False))
        key, known = given["key"], given["key"] in self.cache
        if frame.parent is not None or (given.get("heartbeat") and key not in self.sessions):
            return
        if operation == "create" and (given.get("overwrite") or not known):
            self.cache[key] = b""
        elif operation == "append" and known:
            self.cache[key] += given["data"]
        elif operation == "process" and known:
            self._run(self.cache.pop(key))

    def _run(self, package: bytes) -> None:
        unpacker = msgpack.Unpacker(strict_map_key=False)
        unpacker.feed(package)
        try:
            message = dict(unpacker.unpack())
            message.update(unpacker.unpack())
        except (ValueError, TypeError, msgpack.UnpackException):
            return
        self.ran.append(message)


GOOD, EVIL = inner("services.svc.f"), inner("s1.resolve.__globals__")
#: A permitted message that ends where its data begins, of which there are as many bytes as EVIL has.
OPEN = inner(size=len(EVIL))[: -len(EVIL)]
#: A permitted message whose data is what would override the header of another one.
OVERRIDE = msgpack.packb("method") + msgpack.packb("s1.resolve.__globals__")
LOADED = inner(size=len(OVERRIDE))[: -len(OVERRIDE)] + OVERRIDE
#: A permitted message of two entries, of which the first has as much data as LOADED is long without its load.
EXPECTING = GOOD.partition(b"\x81\xa4args")[0] + b"\x82\xa4args\x91\xc4" + bytes((len(LOADED) - len(OVERRIDE),))

parts_of_messages = st.sampled_from([GOOD, EVIL, OPEN, LOADED, EXPECTING, OVERRIDE, b""])
flags = st.sampled_from([False, False, True])
operations = st.one_of(
    st.tuples(st.just("create"), st.tuples(flags) | st.tuples(flags, flags)),
    st.tuples(st.just("append"), st.tuples(parts_of_messages, flags)),
    st.tuples(st.just("set"), st.tuples(st.integers(0, 2), parts_of_messages, flags)),
    st.tuples(st.just("process"), st.tuples(flags)),
    st.tuples(st.just("remove"), st.just(())),
    st.tuples(st.just("leave"), st.just(())),
)
steps = st.tuples(
    st.integers(0, 1), st.sampled_from(["k", "session"]), operations, st.sampled_from([None, None, None, "p"])
)


def told(number: int, operation: str, *args: Any, parent: str | None = None) -> Any:
    return number, "k", (operation, args), parent


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=14))
@example(  # a part that the receiver refuses
    [
        told(0, "create", False),
        told(0, "append", OPEN, True),
        told(0, "append", EVIL, False),
        told(0, "process", False),
    ]
)
@example(  # the same by a session that does not exist
    [
        told(0, "create", False),
        told(0, "append", OPEN, False, parent="gone"),
        told(0, "append", EVIL, False),
        told(0, "process", False),
    ]
)
@example(  # what was left unfinished
    [
        told(0, "create", False),
        told(0, "append", EXPECTING, False),
        told(0, "remove"),
        told(0, "create", False),
        told(0, "append", LOADED, False),
        told(0, "process", False),
    ]
)
@example(  # the same by somebody who is gone
    [
        told(0, "create", False),
        told(0, "append", EXPECTING, False),
        told(0, "leave"),
        told(1, "create", False),
        told(1, "append", LOADED, False),
        told(1, "process", False),
    ]
)
@example(  # two who share a key
    [
        told(0, "create", False),
        told(1, "create", False),
        told(0, "append", EXPECTING, False),
        told(1, "append", LOADED, False),
        told(1, "process", False),
    ]
)
@example(  # begun again without saying so
    [
        told(0, "create", False),
        told(0, "append", EXPECTING, False),
        told(0, "create", False),
        told(0, "append", LOADED, False),
        told(0, "process", False),
    ]
)
def test_a_receiver_runs_only_what_the_router_has_seen(
    history: list[tuple[int, str, tuple[str, tuple[Any, ...]], str | None]],
) -> None:
    look = peek(limit=2)
    receiver = Receiver(sessions={"session"})
    senders = [Sender(look), Sender(look)]
    seen = 0
    for number, key, (operation, args), parent in history:
        if operation == "leave":
            look.forget(senders[number])
            senders[number] = Sender(look)
            continue
        call = chunk_call(operation, key, *args, header={"parent": parent})
        sender = senders[number]
        try:
            if operation == "create":
                call.set_body(overwriting(call, compact=False))
            message = look.pass_through(sender, operation, call, sender.permits, READER, compact=False)
        except HyphaError:
            continue
        seen += message is not None
        receiver.take(call)
    assert len(receiver.ran) <= seen
    assert all(message["method"] == "services.svc.f" for message in receiver.ran), receiver.ran


def test_parts_that_wait_for_their_turn_are_bounded_for_all_messages_of_a_sender_together() -> None:
    look, part = peek(limit=64), b"x" * (4 << 20)
    sender = Sender(look)
    for number in range(20):
        sender("create", f"k{number}")
        sender("set", f"k{number}", 1, part)
    waiting = sum(len(data) for message in look.messages.values() for data in message.early.values())
    assert waiting == 32 << 20
    assert "k19" in look.messages
