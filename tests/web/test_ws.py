"""Websockets, whole conversations: through Hypercorn and the take-over to the router and back."""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from hypha.broker.broker import Broker, Credentials
from hypha.config import Config, Limits
from hypha.web.codec import Codec
from hypha.web.ws import Connections
from hypha.wire.dialect import LEGACY
from tests.web.stack import LoopbackStack, MemoryStack, Stack, Steps, connection, loopback_stack, memory_stack
from tests.web.wires import (
    Call,
    Closed,
    Peer,
    Refused,
    Rejected,
    WebSocket,
    attach,
    decode,
    encode,
    join,
    read_to_end,
    send_while_open,
    upgrade,
    upgrade_bytes,
)

MASK = b"\x01\x02\x03\x04"


def frame(first: int, payload: bytes = b"") -> bytes:
    """One client frame with any first byte."""
    size = len(payload)
    head = struct.pack(">BB", first, 0x80 | size) if size < 126 else struct.pack(">BBQ", first, 0xFF, size)
    long_mask = MASK * (size // 4 + 1)
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(long_mask[:size], "big")
    return head + MASK + masked.to_bytes(size, "big")


async def echo(call: Call) -> Any:
    return call.args[0]


async def never(call: Call) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def limited(path: Path, **limits: Any) -> AsyncIterator[MemoryStack]:
    async with memory_stack(Config(data_dir=path, limits=Limits(**limits))) as stack:
        yield stack


# --- conversations ----------------------------------------------------------------------------------------------


async def converse(stack: Stack) -> None:
    """What a legacy client does: connect, fetch the manager, call, offer, be called, leave."""
    provider = await attach(stack, "prov")
    manager = await provider.call("workspace-manager", "services.built-in.get_service", "default")
    assert manager["id"] == "default"
    target = manager["echo"]
    assert await provider.call(target["_rtarget"], target["_rmethod"], {"a": [1, b"2", None]}) == {"a": [1, b"2", None]}
    info = await provider.manager("getConnectionInfo")
    provider.workspace = info["workspace"]
    await provider.provide("demo", {"echo": echo})
    caller = await join(stack, "caller")
    service = await caller.manager("get_service", f"{provider.name}:demo")
    assert service["echo"]["_rtarget"] == provider.name
    assert await caller.call(provider.name, "services.demo.echo", "x" * 100_000) == "x" * 100_000
    with pytest.raises(Rejected, match="not connected"):
        await caller.call("nobody", "services.demo.echo", 1)
    await provider.leave()
    assert provider.closed == Closed(1000)
    with pytest.raises(Rejected, match="not connected"):
        await caller.call(provider.name, "services.demo.echo", 1)
    await caller.leave(1001)
    assert caller.closed == Closed(1001)


async def test_a_conversation(autojump_clock: MockClock, stack: MemoryStack) -> None:
    began = trio.current_time()
    await converse(stack)
    await wait_all_tasks_blocked()
    assert not stack.servers.child_tasks
    assert not list(stack.broker.registry.sessions())
    assert trio.current_time() == began


async def test_a_conversation_on_a_socket(loopback: LoopbackStack) -> None:
    await converse(loopback)


async def test_a_conversation_on_a_unix_socket(autojump_clock: MockClock, stack: MemoryStack) -> None:
    ends = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    async with direct(Connections(stack.broker), stack.broker, *ends) as peer:
        assert await peer.manager("echo", 1) == 1
        await peer.leave()


# --- messages and frames ------------------------------------------------------------------------------------------


def echo_frame(data: Any = "x") -> bytes:
    """An RPC message whose answer is known: a call of ``echo``."""
    promise = {"resolve": {"_rmethod": "s.resolve"}, "reject": {"_rmethod": "s.reject"}}
    main = {"type": "method", "to": "workspace-manager", "method": "services.default.echo", "session": "s"}
    return encode(main, {"args": [data], "promise": promise})


def to_self(client_id: str) -> bytes:
    """A message that comes back to the client that sends it."""
    return encode({"type": "method", "to": client_id, "method": "x"})


async def answer(client: WebSocket) -> Any:
    """The answer of an :func:`echo_frame`; pongs are skipped."""
    while not isinstance(item := await client.receive(), bytes):
        assert isinstance(item, Pong)
    return decode(item)[1]["args"][0]


@pytest.fixture
async def client(stack: MemoryStack) -> WebSocket:
    return await upgrade(stack.connect(), "/ws?client_id=a")


async def test_a_message_may_come_in_fragments_with_others_between(
    autojump_clock: MockClock, client: WebSocket
) -> None:
    message = echo_frame("whole")
    parts = [frame(0x02, message[:10]), frame(0x89, b"now"), frame(0x00), frame(0x8A), frame(0x80, message[10:])]
    for part in parts:
        for index in range(len(part)):  # a byte in each segment
            await client.stream.send_all(part[index : index + 1])
    assert await client.receive() == Pong(b"now")
    assert await answer(client) == "whole"


async def test_every_ping_is_answered_to_who_reads(autojump_clock: MockClock, client: WebSocket) -> None:
    """In its place: before the messages that follow it. A goodbye in the same segment takes none away."""
    pings = [Ping(b"%d" % number) for number in range(50)]
    await client.stream.send_all(
        client.encoded(*pings, BytesMessage(to_self("a")), Ping(b"last"), CloseConnection(1000))
    )
    found = [await client.receive() for _ in range(53)]
    assert found[:50] == [Pong(b"%d" % number) for number in range(50)]
    assert isinstance(found[50], bytes)
    assert found[51:] == [Pong(b"last"), Closed(1000)]


async def test_pings_fill_no_queue(autojump_clock: MockClock, stack: MemoryStack) -> None:
    """While a client does not read, one pong is enough for all pings of a turn (RFC 6455 section 5.5.3)."""
    client = await upgrade(stack.connect(lockstep=True), "/ws?client_id=a")
    await client.stream.send_all(client.encoded(*(Ping(b"%0125d" % number) for number in range(6400))))
    await wait_all_tasks_blocked()
    (session,) = stack.broker.registry.sessions()
    assert session.outbox.pending < 32 * 1024
    while await client.receive() != Pong(b"%0125d" % 6399):
        pass


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(0x81, b"hello"), 1003),  # text
        (frame(0x81, "\N{SNOWMAN}".encode()[:2]), 1007),
        (frame(0x81, b"\xed\xa0\x80"), 1007),  # a surrogate
        (frame(0x82)[:1] + b"\x00", 1002),  # not masked
        (frame(0xC2, b"x"), 1002),  # a reserved bit
        (frame(0xA2, b"x"), 1002),
        (frame(0x92, b"x"), 1002),
        (frame(0x83), 1002),  # opcodes that nobody knows
        (frame(0x8F), 1002),
        (frame(0x80), 1002),  # continues nothing
        (frame(0x02) + frame(0x82), 1002),  # begins within a message
        (frame(0x09), 1002),  # a ping in fragments
        (b"\x89\xfe\x00\x7e", 1002),  # a ping of 126 bytes
        (b"\x82\xff\x00\x00\x00\x00\x01\x00\x00\x01" + MASK, 1009),  # one byte too many
        (b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff" + MASK, 1009),
        (frame(0x88, b"\x03"), 1002),  # half a close code
        *[(frame(0x88, struct.pack(">H", code)), 1002) for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000)],
        (frame(0x88, b"\x03\xe8\xff"), 1007),  # a reason that is not text
    ],
    ids=lambda value: value.hex() if isinstance(value, bytes) else str(value),
)
async def test_violations_are_answered_with_their_code(
    autojump_clock: MockClock, stack: MemoryStack, data: bytes, code: int
) -> None:
    neighbour = await join(stack, "neighbour")
    client = await upgrade(stack.connect(), "/ws?client_id=a")
    await client.stream.send_all(data)
    assert (await client.closed()).code == code
    assert await neighbour.manager("echo", 1) == 1


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1012, 3000, 4999, None])
async def test_a_goodbye_is_answered_with_its_code(
    autojump_clock: MockClock, client: WebSocket, stack: MemoryStack, code: int | None
) -> None:
    await client.stream.send_all(frame(0x88, b"" if code is None else struct.pack(">H", code) + b"bye"))
    assert (await client.closed()).code == (code or 1005)
    await wait_all_tasks_blocked()
    assert not stack.servers.child_tasks


async def test_nothing_is_read_behind_a_goodbye(autojump_clock: MockClock, client: WebSocket) -> None:
    await client.stream.send_all(frame(0x88, b"\x03\xe8") + frame(0x82, echo_frame()) + b"\xff\xff")
    assert await client.receive() == Closed(1000)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\x01",
        encode({}),
        encode({"to": "a"}),
        encode({"type": "method", "to": "a"}),
        encode({"type": "method", "to": 5, "method": "x"}),
        encode({"type": "method", "to": "a", "method": ["x"]}),
        encode({"type": "method", "to": "a", "method": "x", **{f"k{n}": n for n in range(100)}}),
        b"\x91" * 1000,
        b"\xdf\xff\xff\xff\xff",
        os.urandom(1000),
    ],
    ids=lambda message: message[:20].hex(),
)
async def test_messages_that_cannot_be_read_are_dropped_and_counted(
    autojump_clock: MockClock, stack: MemoryStack, client: WebSocket, message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "hypha")
    for _ in range(3):
        await client.send_bytes(message)
    await client.send_bytes(echo_frame("after"))
    assert await answer(client) == "after"
    (session,) = stack.broker.registry.sessions()
    assert session.malformed == 3
    assert caplog.text.count("dropped a message") == 1  # a line each would fill the disk
    await client.send(CloseConnection(1000))
    await client.closed()
    await wait_all_tasks_blocked()
    assert "3 malformed" in caplog.text


# --- the size of a message ----------------------------------------------------------------------------------------


async def test_a_message_of_the_limit_is_taken_and_one_more_byte_is_not(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with limited(tmp_path, frame_bytes=50_000) as stack:
        padding = 50_000 - len(echo_frame(b"x" * 40_000)) + 40_000
        client = await upgrade(stack.connect(), "/ws?client_id=a")
        for fragments in (1, 7):
            await client.stream.send_all(fragmented(echo_frame(b"x" * padding), fragments))
            assert await answer(client) == b"x" * padding
        for fragments in (1, 7):
            client = await upgrade(stack.connect(), f"/ws?client_id=b{fragments}")
            await client.stream.send_all(fragmented(echo_frame(b"x" * (padding + 1)), fragments))
            end = await client.closed()
            assert end == Closed(1009, "a message is larger than frame_bytes = 50000")


def fragmented(message: bytes, count: int) -> bytes:
    """*message* in *count* frames."""
    size = len(message) // count + 1
    parts = [message[start : start + size] for start in range(0, len(message), size)]
    firsts = [0x02, *[0x00] * (len(parts) - 1)]
    firsts[-1] |= 0x80
    return b"".join(frame(first, part) for first, part in zip(firsts, parts, strict=True))


async def test_the_largest_message_takes_the_room_of_one(loopback: LoopbackStack) -> None:
    size = Limits().frame_bytes
    head = b"\x82\xff" + struct.pack(">Q", size) + bytes(4)  # a mask that changes nothing
    client = await upgrade(await loopback.open(), "/ws?client_id=a")
    await client.send_bytes(echo_frame("before"))
    assert await answer(client) == "before"
    (session,) = loopback.broker.registry.sessions()
    before, largest, block = resident_bytes(), 0, bytes(1 << 20)
    for _ in range(2):
        await client.stream.send_all(head)
        for _ in range(size // len(block)):
            await client.stream.send_all(block)
            largest = max(largest, resident_bytes())
    await client.send_bytes(echo_frame("after"))
    assert await answer(client) == "after"
    assert session.malformed == 2  # sixteen million zeroes mean nothing
    assert largest - before < 3 * size


async def test_a_client_that_sends_too_much_can_read_why(loopback: LoopbackStack) -> None:
    """It is not reset while it still writes."""
    client = await upgrade(await loopback.open(), "/ws?client_id=a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.stream.send_all, b"\x82\xff" + struct.pack(">Q", 40 << 20) + MASK + bytes(40 << 20))
        assert (await client.closed()).code == 1009


async def test_small_fragments_take_no_more_memory_than_their_bytes(
    autojump_clock: MockClock, client: WebSocket
) -> None:
    before = resident_bytes()
    await client.stream.send_all(frame(0x02))
    for _ in range(30):
        await client.stream.send_all(frame(0x00) * 10_000 + frame(0x00, b"x") * 10_000)
        await wait_all_tasks_blocked()
    assert resident_bytes() - before < 8 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- turns and writes -----------------------------------------------------------------------------------------------


async def test_a_chunk_of_messages_is_one_write_to_each_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with loopback_stack(Config(data_dir=tmp_path, limits=Limits(turn_seconds=1000.0))) as stack:
        sender = await join(stack, "a")
        token = await sender.manager("generate_token")
        friends = [await join(stack, f"f{n}", f"&workspace={sender.workspace}&token={token}") for n in range(2)]
        await send_and_count(sender, friends, monkeypatch)


async def send_and_count(sender: Peer, friends: list[Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    real_write = os.write

    def counted(descriptor: int, data: Any) -> int:
        writes.append(descriptor)
        return real_write(descriptor, data)

    monkeypatch.setattr(os, "write", counted)
    events = [
        BytesMessage(encode({"type": "method", "to": friend.name, "method": "x.y"}, {"args": [number]}))
        for number in range(20)
        for friend in friends
    ]
    await sender.socket.stream.send_all(sender.socket.encoded(*events))
    for friend in friends:
        await friend.received(20)
        assert [extra["args"] for _, extra in friend.others] == [[number] for number in range(20)]
    assert len(writes) == len(set(writes)) == 2


async def test_a_client_gives_way_after_so_many_frames(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with limited(tmp_path, turn_frames=64, turn_seconds=1000.0) as stack:
        client = await upgrade(stack.connect(), "/ws?client_id=a")
        await wait_all_tasks_blocked()
        turns = 0
        flush = stack.broker.flush

        def counted() -> None:
            nonlocal turns
            turns += 1
            flush()

        monkeypatch.setattr(stack.broker, "flush", counted)
        for data in (client.encoded(*[BytesMessage(b"")] * 200), frame(0x8A) * 200, frame(0x89) * 200):
            turns = 0
            await client.stream.send_all(data)
            await wait_all_tasks_blocked()
            assert turns == 4


@pytest.mark.parametrize(("seconds", "turns_expected"), [(1e-9, 201), (1000.0, 1)])
async def test_a_client_gives_way_after_so_long(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, seconds: float, turns_expected: int
) -> None:
    async with limited(tmp_path, turn_frames=1000, turn_seconds=seconds) as stack:
        client = await upgrade(stack.connect(), "/ws?client_id=a")
        await wait_all_tasks_blocked()
        turns: list[None] = []
        monkeypatch.setattr(stack.broker, "flush", lambda: turns.append(None))
        await client.stream.send_all(client.encoded(*[BytesMessage(b"")] * 200))
        await wait_all_tasks_blocked()
        assert len(turns) == turns_expected


# --- clients that do not read ---------------------------------------------------------------------------------------


async def test_a_client_that_stops_reading_is_cut_and_its_callers_are_told(
    autojump_clock: MockClock, stack: MemoryStack
) -> None:
    stalled = await join(stack, "b", stream=stack.connect(lockstep=True))
    token = await stalled.manager("generate_token")
    caller = await join(stack, "a", f"&workspace={stalled.workspace}&token={token}")
    await stalled.stop_reading()
    began = trio.current_time()
    with pytest.raises(Rejected, match=f"Target peer {stalled.name} is not connected"):
        await caller.call("b", "services.x.y", b"data")
    assert 10 <= trio.current_time() - began <= 12
    await stack.ends[0].closed.wait()
    assert await caller.manager("echo", 1) == 1


async def read_slowly(peer: Peer) -> None:
    """Take a little each second, and show a sign of life."""
    while await send_while_open(peer.socket.stream, frame(0x8A)):
        await peer.socket.stream.receive_some(1000)
        await trio.sleep(1)


async def test_a_sender_waits_for_room_at_most_so_long(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A target that takes a little now and then is not silent, but it holds others up."""
    async with limited(tmp_path, outbox_bytes=200_000) as stack:
        slow = await join(stack, "b", stream=stack.connect(lockstep=True))
        token = await slow.manager("generate_token")
        sender = await join(stack, "a", f"&workspace={slow.workspace}&token={token}")
        await slow.stop_reading()

        stack.clients.start_soon(read_slowly, slow)
        for _ in range(3):
            await sender.send({"type": "method", "to": "b", "method": "x.y"}, {"args": [bytes(90_000)]})
        began = trio.current_time()
        assert await sender.manager("echo", 1) == 1
        assert trio.current_time() - began == pytest.approx(10)
        with pytest.raises(Rejected, match="not connected"):
            await sender.call("b", "x.y")


async def test_a_large_header_waits_like_a_large_body(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Time goes on only when no task can run: who tries again at once would stop it."""
    async with limited(tmp_path, outbox_bytes=100_000) as stack:
        slow = await join(stack, "b", stream=stack.connect(lockstep=True))
        token = await slow.manager("generate_token")
        sender = await join(stack, "a", f"&workspace={slow.workspace}&token={token}")
        await slow.stop_reading()

        for _ in range(2):
            await sender.send({"type": "method", "to": "b", "method": "x.y", "more": "m" * 60_000})
        began = trio.current_time()
        assert await sender.manager("echo", 1) == 1
        assert trio.current_time() - began == pytest.approx(10)


async def test_who_waits_for_others_is_not_silent(tmp_path: Path, autojump_clock: MockClock) -> None:
    """While it waited for room at slow targets nobody listened to it."""
    async with limited(tmp_path, outbox_bytes=100_000, silence_seconds=15.0) as stack:
        first = await join(stack, "t0", stream=stack.connect(lockstep=True))
        token = await first.manager("generate_token")
        place = f"&workspace={first.workspace}&token={token}"
        targets = [first] + [await join(stack, f"t{n}", place, stack.connect(lockstep=True)) for n in (1, 2)]
        sender = await join(stack, "a", place)

        for target in targets:
            await target.stop_reading()
            stack.clients.start_soon(read_slowly, target)
        events = [
            BytesMessage(encode({"type": "method", "to": target.name, "method": "x.y"}, {"args": [bytes(80_000)]}))
            for target in targets
            for _ in range(2)
        ]
        began = trio.current_time()
        await sender.socket.stream.send_all(sender.socket.encoded(*events))
        assert await sender.manager("echo", 1) == 1
        assert trio.current_time() - began == pytest.approx(20)


async def test_nothing_follows_the_answer_to_a_goodbye(autojump_clock: MockClock, stack: MemoryStack) -> None:
    """Also when it has to wait behind a message, and others write meanwhile."""
    leaver = await join(stack, "b", stream=stack.connect(lockstep=True))
    token = await leaver.manager("generate_token")
    sender = await join(stack, "a", f"&workspace={leaver.workspace}&token={token}")
    await leaver.stop_reading()
    for _ in range(2):
        await sender.send({"type": "method", "to": "b", "method": "x.y"}, {"args": [bytes(1000)]})
        await wait_all_tasks_blocked()
        await send_while_open(leaver.socket.stream, frame(0x88, b"\x03\xe8"))
        await wait_all_tasks_blocked()
    rest = await read_to_end(leaver.socket.stream)
    assert rest.count(bytes(1000)) == 1
    assert rest.endswith(b"\x88\x02\x03\xe8")


async def test_nothing_follows_half_a_frame(stack: MemoryStack) -> None:
    """A close frame there would be read as the rest of the message."""
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    async with direct(Connections(stack.broker), stack.broker, ours, theirs) as peer:
        await peer.manager("echo", 1)
        await peer.stop_reading()
        (session,) = stack.broker.registry.sessions()
        session.outbox.put(b"x" * 5_000_000)
        stack.broker.flush()
        stack.broker.lose(session, "is an example")
        received = await read_to_end(ours)
    assert 0 < received.count(b"x") < 5_000_000
    assert received.rstrip(b"x") == b"\x82\x7f" + struct.pack(">Q", 5_000_000)


# --- silence --------------------------------------------------------------------------------------------------------


async def test_a_silent_client_is_let_go(autojump_clock: MockClock, stack: MemoryStack) -> None:
    peer = await join(stack, "a")
    await peer.stop_reading()  # nor does it answer pings
    began = trio.current_time()
    await stack.ends[0].closed.wait()
    assert 45 <= trio.current_time() - began <= 48
    pings = [item async for item in items(peer.socket) if isinstance(item, Ping)]
    assert len(pings) == 2


async def items(client: WebSocket) -> AsyncIterator[Any]:
    """What waits to be read, up to the end."""
    while not isinstance(item := await client.receive(), Closed):
        yield item


async def test_a_client_that_works_may_be_silent_for_longer(autojump_clock: MockClock, stack: MemoryStack) -> None:
    busy = await join(stack, "b")
    token = await busy.manager("generate_token")
    caller = await join(stack, "a", f"&workspace={busy.workspace}&token={token}")
    session, message = caller.begin("b", "services.x.y")
    await caller.socket.send_bytes(message)
    await wait_all_tasks_blocked()
    await busy.stop_reading()
    began = trio.current_time()
    with pytest.raises(Rejected, match="not connected"):
        await caller.outcome(session)
    assert 600 <= trio.current_time() - began <= 603


async def test_a_client_that_answers_pings_stays(autojump_clock: MockClock, stack: MemoryStack) -> None:
    peer = await join(stack, "a")
    await trio.sleep(7200)
    assert peer.pings == pytest.approx(360, abs=20)
    assert await peer.manager("echo", 1) == 1


# --- ends -----------------------------------------------------------------------------------------------------------


async def test_the_newest_holder_of_a_token_supersedes(autojump_clock: MockClock, stack: MemoryStack) -> None:
    first = await join(stack, "a")
    await first.provide("demo", {"echo": echo})
    info = await first.manager("get_connection_info")
    second = await attach(stack, "a", f"&reconnection_token={info['reconnection_token']}")
    second.workspace, second.functions = first.workspace, first.functions
    await first.ended.wait()
    assert first.closed == Closed(1012, "superseded by a newer connection")
    await wait_all_tasks_blocked()
    (session,) = stack.broker.registry.sessions()
    assert [service.id for service in session.services.values()] == ["demo"]
    stranger = await join(stack, "b")
    assert await stranger.call(first.name, "services.demo.echo", 5) == 5


async def test_shutdown_tells_everybody_to_come_back(autojump_clock: MockClock, stack: MemoryStack) -> None:
    peers = [await join(stack, f"c{number}") for number in range(3)]
    began = trio.current_time()
    await stack.shut_down()
    for peer in peers:
        await peer.ended.wait()
        assert peer.closed == Closed(1012, "the server is restarting")
    await wait_all_tasks_blocked()
    assert not stack.servers.child_tasks
    assert trio.current_time() == began  # nobody had to be waited for


async def test_who_arrives_during_shutdown_is_told_too(autojump_clock: MockClock, stack: MemoryStack) -> None:
    connections = Connections(stack.broker)
    connections.say_goodbye("closing time")
    async with direct(connections, stack.broker, *memory_stream_pair()) as peer:
        await peer.ended.wait()
        assert peer.closed == Closed(1012, "closing time")
    assert not len(connections)


@asynccontextmanager
async def direct(
    connections: Connections, broker: Broker, ours: trio.abc.Stream, theirs: trio.abc.Stream
) -> AsyncIterator[Peer]:
    """A peer without Hypercorn and without a handshake."""
    serve = partial(connections.serve, base_url="http://x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, theirs, Codec(1 << 20), (), broker.admit(Credentials("a")), LEGACY)
        peer = Peer(WebSocket(ours, {}, b""), "a", nursery)
        nursery.start_soon(peer.pump)
        yield peer
        await trio.aclose_forcefully(ours)


async def test_shutdown_waits_for_what_is_on_its_way(autojump_clock: MockClock, stack: MemoryStack) -> None:
    await join(stack, "a")  # the assembly must have seen a connection
    client = await upgrade(stack.connect(lockstep=True), "/ws?client_id=slow")
    await client.send_bytes(echo_frame(bytes(100_000)))
    await wait_all_tasks_blocked()
    await stack.shut_down()
    await trio.sleep(0.5)
    assert await answer(client) == bytes(100_000)
    assert await client.closed() == Closed(1012, "the server is restarting")


async def test_shutdown_does_not_wait_for_who_does_not_read(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with memory_stack(Config(data_dir=tmp_path)) as stack:
        client = await upgrade(stack.connect(lockstep=True), "/ws?client_id=a")
        await client.send_bytes(echo_frame(bytes(100_000)))
        await upgrade(stack.connect(lockstep=True), "/ws?client_id=b")
        await wait_all_tasks_blocked()
        began = trio.current_time()
    assert trio.current_time() - began <= 2.5


async def test_shutdown_on_sockets(loopback: LoopbackStack) -> None:
    peers = [await join(loopback, f"c{number}") for number in range(3)]
    began = trio.current_time()
    await loopback.shut_down()
    for peer in peers:
        await peer.ended.wait()
        assert peer.closed == Closed(1012, "the server is restarting")
    assert trio.current_time() - began < 0.5


async def test_calls_that_run_fail_at_their_callers_before_the_goodbye(
    autojump_clock: MockClock, stack: MemoryStack
) -> None:
    """A modern client comes back at once and would wait for an answer that nobody can give any more."""
    provider = await join(stack, "prov")
    await provider.provide("demo", {"never": never})
    caller = await join(stack, "caller")
    session, message = caller.begin(provider.name, "services.demo.never")
    await caller.socket.send_bytes(message)
    assert await caller.manager("echo", 1) == 1
    stack.clients.start_soon(stack.shut_down)
    with pytest.raises(Rejected, match="is not connected"):
        await caller.outcome(session)
    await caller.ended.wait()
    assert caller.closed == Closed(1012, "the server is restarting")


def cuts() -> Iterator[int]:
    """Where to cut a conversation: everywhere near its joints, and here and there."""
    message = frame(0x82, echo_frame())
    total = len(upgrade_bytes("/ws?client_id=a")) + len(message)
    yield from range(1, total + 1, 5)
    yield from range(total - len(message) - 2, total - len(message) + 16)


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_may_vanish_at_any_byte(autojump_clock: MockClock, stack: MemoryStack, reset: bool) -> None:
    neighbour = await join(stack, "neighbour")
    data = upgrade_bytes("/ws?client_id=a") + frame(0x82, echo_frame())
    for position in cuts():
        stream = stack.connect()
        await stream.send_all(data[:position])
        if not reset:
            await wait_all_tasks_blocked()
        await trio.aclose_forcefully(stream)
        await wait_all_tasks_blocked()
        assert len(stack.servers.child_tasks) == 1, position
    assert await neighbour.manager("echo", 1) == 1
    assert [session.address.client for session in stack.broker.registry.sessions()] == ["neighbour"]


async def test_a_connection_can_be_cancelled_at_every_step(autojump_clock: MockClock, stack: MemoryStack) -> None:
    """After the n-th step of any task, for every n until a call is answered, nothing is left."""
    for count in itertools.count():
        client, end = connection()
        async with trio.open_nursery() as nursery:
            cancelling = Steps(count, nursery.cancel_scope)
            trio.lowlevel.add_instrument(cancelling)
            nursery.start_soon(stack.serve, end)
            nursery.start_soon(call_and_wait, client)
            await wait_all_tasks_blocked()
            trio.lowlevel.remove_instrument(cancelling)
            nursery.cancel_scope.cancel()
        assert end.closed.is_set(), count
        assert not list(stack.broker.registry.sessions()), count
        if not cancelling.done:
            break
    assert count > 30


async def call_and_wait(stream: trio.abc.Stream) -> None:
    client = await upgrade(stream, "/ws?client_id=a")
    await client.send_bytes(echo_frame())
    assert await answer(client) == "x"
    await trio.sleep_forever()


@pytest.mark.parametrize("victim", ["sender", "target"])
async def test_waiting_writing_and_closing_can_be_cancelled_at_every_step(
    tmp_path: Path, autojump_clock: MockClock, victim: str
) -> None:
    """A sender waits for room, its target's writer writes, both say goodbye: one of them is cancelled on the way."""
    async with limited(tmp_path, outbox_bytes=100_000) as stack:
        broker = stack.broker
        for count in itertools.count():
            scope = trio.CancelScope()
            sender, target = await two_friends(stack, scope, victim, count)
            cancelling = Steps(count, scope)
            trio.lowlevel.add_instrument(cancelling)
            stack.clients.start_soon(send_much_and_leave, sender, target.name)
            await sender.ended.wait()
            await wait_all_tasks_blocked()
            trio.lowlevel.remove_instrument(cancelling)
            if not target.ended.is_set():
                assert await target.manager("echo", count) == count
                await target.socket.send(CloseConnection(1000))
            await target.ended.wait()
            await wait_all_tasks_blocked()
            assert not list(broker.registry.sessions()), count
            assert not broker.dirty, count
            assert not stack.servers.child_tasks, count
            if not cancelling.done:
                break
        assert count > 30
        assert len(target.others) == 5


async def two_friends(stack: MemoryStack, scope: trio.CancelScope, victim: str, count: int) -> tuple[Peer, Peer]:
    """A sender, and a target that reads all that comes. The connection of *victim* is served in *scope*."""

    async def serve(name: str, end: trio.abc.Stream) -> None:
        with scope if name == victim else trio.CancelScope():
            await stack.serve(end)

    ends = {"sender": connection(), "target": connection(lockstep=True)}
    for name, (_, end) in ends.items():
        stack.servers.start_soon(serve, name, end)
    target = await join(stack, f"target{count}", stream=ends["target"][0])
    token = await target.manager("generate_token")
    place = f"&workspace={target.workspace}&token={token}"
    return await join(stack, f"sender{count}", place, ends["sender"][0]), target


async def send_much_and_leave(sender: Peer, to: str) -> None:
    """Five messages of which one finds room at a time, and a goodbye."""
    event = BytesMessage(encode({"type": "method", "to": to, "method": "x.y"}, {"args": [bytes(90_000)]}))
    data = sender.socket.encoded(*[event] * 5, CloseConnection(1000))
    await send_while_open(sender.socket.stream, data)


async def test_a_client_that_vanishes_fails_its_calls_at_once(loopback: LoopbackStack) -> None:
    provider = await join(loopback, "prov")
    await provider.provide("demo", {"never": never})
    caller = await join(loopback, "caller")
    session, message = caller.begin(provider.name, "services.demo.never")
    await caller.socket.send_bytes(message)
    await caller.manager("echo", 1)
    await provider.stop_reading()
    reset_on_close(provider.socket)
    await trio.aclose_forcefully(provider.socket.stream)
    with trio.fail_after(0.5), pytest.raises(Rejected, match="not connected"):
        await caller.outcome(session)


def reset_on_close(client: WebSocket) -> None:
    assert isinstance(client.stream, trio.SocketStream)
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# --- the handshake --------------------------------------------------------------------------------------------------


async def refusal(stack: Stack, query: str) -> str:
    with pytest.raises(Refused) as refused:
        await upgrade(await stack.open(), f"/ws?{query}")
    assert refused.value.answer.status == 403
    return refused.value.answer.detail


async def test_refusals_are_403_with_a_reason(autojump_clock: MockClock, stack: MemoryStack) -> None:
    peer = await join(stack, "a")
    token = await peer.manager("generate_token", {"expires_in": 5})
    place = f"workspace={peer.workspace}&token={token}"
    assert "client id must be a non-empty string" in await refusal(stack, "token=x")
    assert "client id must be a non-empty string" in await refusal(stack, "client_id=&token=x")
    for name in ("workspace-manager", "http", "~"):
        assert "reserved" in await refusal(stack, f"client_id={name}")
    for name in ("a/b", "a:b", "*", "a%2Fb", "..", "a%00"):
        assert "client id" in await refusal(stack, f"client_id={name}")
    assert "already exists and is active" in await refusal(stack, f"client_id=a&{place}")
    assert "token is not one of this server" in await refusal(stack, "client_id=b&token=nonsense")
    assert "token is not one of this server" in await refusal(stack, f"client_id=b&token={token}x")
    assert "Permission denied for workspace" in await refusal(stack, f"client_id=b&workspace={peer.workspace}")
    assert "Permission denied for workspace" in await refusal(stack, "client_id=b&workspace=nowhere")
    assert "Permission denied for workspace" in await refusal(stack, f"client_id=b&workspace=public&token={token}")
    assert "token" in await refusal(stack, "client_id=a&reconnection_token=nonsense")
    info = await peer.manager("get_connection_info")
    assert "another client id" in await refusal(stack, f"client_id=b&reconnection_token={info['reconnection_token']}")
    assert await peer.manager("echo", 1) == 1


async def test_values_need_not_be_escaped(autojump_clock: MockClock, stack: MemoryStack) -> None:
    peer = await join(stack, "a+b=c(d)")
    info = await peer.manager("get_connection_info")
    assert info["client_id"] == "a+b=c(d)"
    token = await peer.manager("generate_token")
    assert "@imjoy@" in token
    escaped = await join(stack, "x%20%C3%A4%26", f"&token={token.replace('@', '%40')}&workspace={peer.workspace}")
    assert (await escaped.manager("get_connection_info"))["client_id"] == "x ä&"


async def test_a_modern_client_that_says_nothing_is_let_go(autojump_clock: MockClock, stack: MemoryStack) -> None:
    client = await upgrade(stack.connect(), "/ws")
    began = trio.current_time()
    assert await client.closed() == Closed(1008, "no authentication came within handshake_seconds = 10")
    assert trio.current_time() - began == pytest.approx(10)


async def test_a_modern_client_that_does_not_read_is_let_go(autojump_clock: MockClock, stack: MemoryStack) -> None:
    client = await upgrade(stack.connect(lockstep=True), "/ws")
    await client.send(TextMessage("[]"))
    began = trio.current_time()
    await stack.ends[0].closed.wait()
    assert trio.current_time() - began <= 11


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(0x88, b"\x03\xe8"), 1000),
        (frame(0x83), 1002),
        (frame(0x82, bytes(70_000)), 1009),
        (frame(0x81, b"x" * 70_000), 1009),
    ],
    ids=["close", "violation", "binary", "text"],
)
async def test_other_beginnings_of_modern_clients(
    autojump_clock: MockClock, stack: MemoryStack, data: bytes, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    client = await upgrade(stack.connect(), "/ws")
    await client.stream.send_all(data)
    assert (await client.closed()).code == code
    assert "Error" not in caplog.text


@pytest.mark.parametrize("reset", [False, True])
async def test_a_modern_client_that_vanishes_is_no_error(
    loopback: LoopbackStack, reset: bool, caplog: pytest.LogCaptureFixture
) -> None:
    client = await upgrade(await loopback.open(), "/ws")
    if reset:
        reset_on_close(client)
    await trio.aclose_forcefully(client.stream)
    assert await (await join(loopback, "a")).manager("echo", 1) == 1
    assert "Error" not in caplog.text


def test_limits_of_these_tests_are_the_real_ones() -> None:
    assert replace(Limits(), stall_seconds=10.0, silence_seconds=45.0, busy_silence_seconds=600.0) == Limits()
