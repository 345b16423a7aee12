"""What the guard holds: one connection's faults stay its own, sends end, and a websocket's stream changes hands."""

from __future__ import annotations

import itertools
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hypercorn.config
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair
from wsproto.events import BytesMessage

from hypha.config import Config, Limits
from hypha.errors import ConfigError
from hypha.web import guard
from hypha.web.guard import SEND_SECONDS, GuardedServer, TakeOverFailed
from tests.web.stack import (
    LoopbackStack,
    MemoryStack,
    ServerEnd,
    Stack,
    Steps,
    connection,
    loopback_stack,
    memory_stack,
)
from tests.web.wires import (
    Closed,
    WebSocket,
    decode,
    encode,
    exchange,
    http,
    join,
    read_answer,
    read_to_end,
    request_bytes,
    send_while_open,
    upgrade,
    upgrade_bytes,
)

LIVENESS = request_bytes("/health/liveness")


@asynccontextmanager
async def neighbour(stack: Stack) -> AsyncIterator[None]:
    """A client that is served before and after what happens inside."""
    peer = await join(stack, "neighbour")
    yield
    assert await peer.manager("echo", "still here") == "still here"


def echo_call(data: Any) -> bytes:
    """A call of the manager that needs nothing to be known."""
    peer = WebSocket(memory_stream_pair()[0], {}, b"")
    promise = {"resolve": {"_rmethod": "s.resolve"}, "reject": {"_rmethod": "s.reject"}}
    main = {"type": "method", "to": "workspace-manager", "method": "services.default.echo", "session": "s"}
    return peer.encoded(BytesMessage(encode(main, {"args": [data], "promise": promise})))


# --- F1: what follows an upgrade request in the same segment ---------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 65000])
async def test_frames_glued_to_the_upgrade_are_answered(
    autojump_clock: MockClock, stack: MemoryStack, size: int
) -> None:
    data = b"\x07" * size
    socket = await upgrade(stack.connect(), "/ws?client_id=a", glued=echo_call(data))
    answer = await socket.receive()
    assert isinstance(answer, bytes)
    main, extra = decode(answer)
    assert (main["method"], extra) == ("s.resolve", {"args": [data]})


async def test_frames_glued_to_the_upgrade_are_answered_on_a_socket(loopback: LoopbackStack) -> None:
    async with neighbour(loopback):
        socket = await upgrade(await loopback.open(), "/ws?client_id=a", glued=echo_call("x"))
        answer = await socket.receive()
        assert isinstance(answer, bytes)
        assert decode(answer)[1]["args"] == ["x"]


@pytest.mark.parametrize("glued", [LIVENESS, b"\x00", b"\xff" * 5000, b"\r\n\r\n"], ids=repr)
async def test_what_is_no_websocket_frame_ends_that_connection_alone(
    autojump_clock: MockClock, stack: MemoryStack, glued: bytes
) -> None:
    async with neighbour(stack):
        socket = await upgrade(stack.connect(), "/ws?client_id=a", glued=glued)
        if glued == b"\x00":  # half of a head: nothing is wrong yet
            await socket.stream.send_all(b"\x00")
        assert (await socket.closed()).code == 1002
        await trio.testing.wait_all_tasks_blocked()


async def test_what_is_no_websocket_frame_on_a_socket(loopback: LoopbackStack) -> None:
    async with neighbour(loopback):
        socket = await upgrade(await loopback.open(), "/ws?client_id=a", glued=LIVENESS)
        assert (await socket.closed()).code == 1002


async def test_bytes_behind_a_refused_upgrade_are_not_a_request(autojump_clock: MockClock, stack: MemoryStack) -> None:
    stream = stack.connect()
    await stream.send_all(upgrade_bytes("/ws?client_id=a&token=bad") + LIVENESS)
    answer = await read_to_end(stream)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert answer.count(b"HTTP/1.1") == 1


async def test_only_so_much_is_held_before_the_upgrade_is_answered(
    autojump_clock: MockClock, stack: MemoryStack
) -> None:
    async def undecided(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(100)

    async with neighbour(stack):
        stack.app = undecided
        streams = [stack.connect(), stack.connect()]
        for stream, size in zip(streams, [65536, 65537], strict=True):
            await stream.send_all(upgrade_bytes("/ws"))
            await stream.send_all(b"\0" * size)
        await trio.sleep(1)
        assert [end.closed.is_set() for end in stack.ends[-2:]] == [False, True]


# --- the barrier ----------------------------------------------------------------------------------------------


class Faulty(ServerEnd):
    """A connection that errs in a way that nobody thought of."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep(1)
        raise RuntimeError("of glass")


async def test_an_error_of_one_connection_is_logged_and_stays_there(
    autojump_clock: MockClock, stack: MemoryStack, caplog: pytest.LogCaptureFixture
) -> None:
    async with neighbour(stack):
        end = Faulty(*memory_stream_pair())
        stack.servers.start_soon(stack.serve, end)
        await end.closed.wait()
    assert "connection ended by an error: RuntimeError('of glass')" in caplog.text


async def test_an_application_that_raises_is_a_500_and_stays_there(
    autojump_clock: MockClock, stack: MemoryStack, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("of glass")

    async with neighbour(stack):
        served, stack.app = stack.app, broken
        answer = await http(stack, "/")
        stack.app = served
    assert (answer.status, answer.body) == (500, b"")


pieces = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            LIVENESS,
            upgrade_bytes("/ws?client_id=x"),
            upgrade_bytes("/ws"),
            upgrade_bytes("/nothing"),
            request_bytes("/public/services/x/y", "POST", body=b"{}"),
            request_bytes("/", "POST", {"Transfer-Encoding": "chunked"}, b"3\r\nabc\r\n0\r\n\r\n"),
            b"GET / HTTP/1.1\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
            b"Expect: 100-continue\r\n",
            b"Connection: close\r\n",
            b"\r\n",
            b"\x82\x81\0\0\0\0x",
            b"\x88\x80\0\0\0\0",
            b"\x89\x80\0\0\0\0",
            b"\x81\x82\0\0\0\0{}",
            b"\x82\xff\0\0\0\0\0\1\0\0\0\0\0\0",
            echo_call("x"),
        ]
    ),
)


@pytest.mark.parametrize("examples", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_whatever_a_connection_sends(tmp_path: Path, caplog: pytest.LogCaptureFixture, examples: int) -> None:
    """It ends, nothing is left of it, nothing is logged as an error, and the neighbour notices nothing."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.lists(pieces, max_size=6), min_size=10, max_size=20), st.booleans())
    def check(connections: list[list[bytes]], at_once: bool) -> None:
        trio.run(send_all_of, tmp_path, connections, at_once, clock=MockClock(autojump_threshold=0))

    check()
    assert not [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}]
    assert "ended by an error" not in caplog.text


async def send_all_of(path: Path, connections: list[list[bytes]], at_once: bool) -> None:
    async with memory_stack(Config(data_dir=path)) as stack, neighbour(stack):
        for parts in connections:
            stream = stack.connect()
            for part in [b"".join(parts)] if at_once else parts:
                if part and await send_while_open(stream, part):
                    await trio.testing.wait_all_tasks_blocked()
            await stream.send_stream.aclose()
            await read_to_end(stream)
            await trio.testing.wait_all_tasks_blocked()
            assert len(stack.servers.child_tasks) == 1


# --- F2: peers that stop reading -------------------------------------------------------------------------------


def big_answer(size: int) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """An application that sends *size* bytes and does not listen."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * size, "more_body": False})

    return app


async def test_a_peer_that_takes_nothing_is_cut(autojump_clock: MockClock, stack: MemoryStack) -> None:
    stack.app = big_answer(10)
    stream = stack.connect(lockstep=True)
    await stream.send_all(request_bytes("/"))
    before = trio.current_time()
    await stack.ends[0].closed.wait()
    assert trio.current_time() - before == pytest.approx(SEND_SECONDS)


async def test_a_peer_that_reads_slowly_is_served(autojump_clock: MockClock, stack: MemoryStack) -> None:
    """Each 64 KiB have their own deadline."""
    stack.app = big_answer(400_000)
    stream = stack.connect(lockstep=True)
    await stream.send_all(request_bytes("/", headers={"Connection": "close"}))
    received = b""
    while part := await stream.receive_some(65536):
        received += part
        await trio.sleep(SEND_SECONDS - 1)
    assert received.count(b"x") == 400_000


async def test_a_peer_that_takes_nothing_does_not_delay_the_end(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with memory_stack(Config(data_dir=tmp_path)) as stack:
        stack.app = big_answer(10)
        await stack.connect(lockstep=True).send_all(request_bytes("/"))
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
    assert trio.current_time() - before <= stack.settings.graceful_timeout


async def test_a_peer_that_takes_nothing_on_a_socket(
    tmp_path: Path, loopback: LoopbackStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "SEND_SECONDS", 0.1)
    peer = await join(loopback, "a")

    async def big(call: Any) -> str:
        return "x" * 200_000

    await peer.provide("big", {"get": big})
    request = request_bytes(f"/{peer.workspace}/services/big/get")
    async with neighbour(loopback):
        stalled = await loopback.open()
        # Answers to requests that were sent ahead, until all buffers on the way are full.
        with trio.move_on_after(2) as waiting:
            while await send_while_open(stalled, request):
                pass
        assert not waiting.cancelled_caught


# --- HTTP connections end -------------------------------------------------------------------------------------


async def test_an_idle_connection_is_closed_after_a_while(autojump_clock: MockClock, stack: MemoryStack) -> None:
    """Also after an answer: the end of a request, which the application learns, must not stop the clock."""
    before = trio.current_time()
    streams = [stack.connect() for _ in range(4)]
    await streams[1].send_all(b"GET / HTTP/1.1\r\n")
    assert (await exchange(streams[2], "/health/liveness")).status == 200
    assert (await exchange(streams[3], "/public/services/x/y")).status == 404
    for stream in streams:
        assert await read_to_end(stream) == b""
    assert trio.current_time() - before == pytest.approx(stack.settings.keep_alive_timeout)
    await trio.testing.wait_all_tasks_blocked()
    assert not stack.servers.child_tasks


@pytest.mark.parametrize("target", ["/health/liveness", "/public/services/x/y", "/nothing"])
async def test_a_connection_that_is_to_be_closed_is_closed(
    autojump_clock: MockClock, stack: MemoryStack, target: str
) -> None:
    stream = stack.connect()
    await stream.send_all(request_bytes(target, headers={"Connection": "close"}))
    await read_to_end(stream)
    await trio.testing.wait_all_tasks_blocked()
    assert stack.ends[0].closed.is_set()
    assert not stack.servers.child_tasks


@pytest.mark.parametrize("behind", [b"\r\n", b"x", LIVENESS], ids=repr)
@pytest.mark.parametrize("glued", [True, False])
async def test_bytes_behind_the_last_request_do_not_exist(
    autojump_clock: MockClock, stack: MemoryStack, behind: bytes, glued: bool
) -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(1)
        await big_answer(10)(scope, receive, send)

    stack.app = slow
    stream = stack.connect()
    last = request_bytes("/", "POST", {"Connection": "close"}, b"body")
    await stream.send_all(last + behind if glued else last)
    if not glued:
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(behind)
    answer = await read_to_end(stream)
    assert answer.count(b"HTTP/1.1 200 ") == answer.count(b"x" * 10) == 1


@pytest.mark.parametrize("end", ["\r\n", "\n"], ids=repr)
async def test_a_head_has_at_most_so_many_lines(autojump_clock: MockClock, stack: MemoryStack, end: str) -> None:
    """Lines of a body are none of them, and those of the next request are counted anew."""

    def head(lines: int) -> bytes:
        length = ["GET /health/liveness HTTP/1.1", "Host: x", "Content-Length: 500", *["X: y"] * (lines - 3)]
        return end.join([*length, "", ""]).encode()

    stream = stack.connect()
    await stream.send_all((head(200) + b"\n" * 500) * 3 + head(201) + b"\n" * 500)
    answer = await read_to_end(stream)
    assert re.findall(rb"HTTP/1.1 ([0-9]{3})", answer) == [b"200", b"200", b"200", b"431"]
    await trio.testing.wait_all_tasks_blocked()
    assert stack.ends[0].closed.is_set()


async def test_a_head_that_never_ends_is_refused_when_it_has_so_many_lines(
    autojump_clock: MockClock, stack: MemoryStack
) -> None:
    stream = stack.connect()
    await stream.send_all(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 198)
    await trio.testing.wait_all_tasks_blocked()
    await stream.send_all(b"X: y\r\n")
    assert (await read_to_end(stream)).startswith(b"HTTP/1.1 431 ")


async def test_idle_connections_do_not_delay_the_end(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with memory_stack(Config(data_dir=tmp_path)) as stack:
        await exchange(stack.connect(), "/health/liveness")
        stack.connect()
        before = trio.current_time()
    assert trio.current_time() == before


async def test_a_body_that_nobody_reads_holds_nothing(autojump_clock: MockClock, stack: MemoryStack) -> None:
    stream = stack.connect(lockstep=True)
    too_large = {"Content-Length": str(2**40)}
    await stream.send_all(request_bytes("/public/services/x/y", "POST", too_large))
    for _ in range(40):
        await stream.send_all(bytes(65536))
        await trio.testing.wait_all_tasks_blocked()
    assert (await read_answer(stream)).status == 413
    await trio.aclose_forcefully(stream)
    await trio.testing.wait_all_tasks_blocked()
    assert stack.ends[0].closed.is_set()
    assert not stack.servers.child_tasks


def refused_upload(size: int) -> bytes:
    """The head of a request that is refused for its size."""
    return request_bytes("/public/services/x/y", "POST", {"Content-Length": str(size)})


async def drip(stream: trio.abc.SendStream) -> None:
    """A byte each second."""
    for _ in range(100):
        await stream.send_all(b"x")
        await trio.sleep(1)


async def test_who_uploads_too_much_can_read_why(tmp_path: Path) -> None:
    """Programs send all of a body before they read: what is left unread would make them find a reset connection."""
    async with loopback_stack(Config(data_dir=tmp_path, limits=Limits(http_body_bytes=1000))) as stack:
        stream, body = await stack.open(), bytes(32 * 1024 * 1024)
        await stream.send_all(refused_upload(len(body)) + body)
        answer = await read_answer(stream)
        assert answer.status == 413
        assert b"http_body_bytes = 1000" in answer.body
        await stream.send_eof()
        assert await read_to_end(stream) == b""


async def test_a_refused_upload_is_dropped_for_so_long(autojump_clock: MockClock, stack: MemoryStack) -> None:
    stream = stack.connect()
    await stream.send_all(refused_upload(2**40))
    began = trio.current_time()
    answer = await read_to_end(stream)
    assert answer.startswith(b"HTTP/1.1 413 ")
    with pytest.raises(trio.BrokenResourceError):
        await drip(stream)
    assert trio.current_time() - began == pytest.approx(10, abs=1)
    assert not stack.servers.child_tasks


@pytest.mark.parametrize(("size", "is_open"), [(9999, True), (10_000, False)])
async def test_so_much_of_a_refused_upload_is_dropped(
    size: int, is_open: bool, autojump_clock: MockClock, stack: MemoryStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_LINGER_BYTES", 10_000)
    stream = stack.connect()
    await stream.send_all(refused_upload(2**40))
    await trio.testing.wait_all_tasks_blocked()
    await stream.send_all(bytes(size))
    await trio.testing.wait_all_tasks_blocked()
    assert stack.ends[0].closed.is_set() is not is_open


@pytest.mark.parametrize(
    "headers", [{"Sec-WebSocket-Version": "12"}, {"Sec-WebSocket-Version": "x"}, {"Sec-WebSocket-Version": ""}], ids=str
)
async def test_an_invalid_upgrade_is_refused_and_closed(
    autojump_clock: MockClock, stack: MemoryStack, headers: dict[str, str]
) -> None:
    stream = stack.connect()
    await stream.send_all(upgrade_bytes("/ws?client_id=a", headers))
    assert (await read_to_end(stream)).startswith(b"HTTP/1.1 400 ")
    await trio.testing.wait_all_tasks_blocked()
    assert stack.ends[0].closed.is_set()


@asynccontextmanager
async def tls(stack: MemoryStack) -> AsyncIterator[trio.SSLStream[Any]]:
    """A connection over TLS whose server's writes wait until the client has read them."""
    client, end = connection(lockstep=True)
    secure = trio.SSLStream(end, anonymous(ssl.PROTOCOL_TLS_SERVER), server_side=True, https_compatible=True)
    stack.servers.start_soon(stack.serve, secure)
    stream = trio.SSLStream(client, anonymous(ssl.PROTOCOL_TLS_CLIENT), https_compatible=True)
    await stream.do_handshake()
    yield stream
    await trio.aclose_forcefully(stream)


def anonymous(protocol: int) -> ssl.SSLContext:
    """TLS without certificates, for the form of its streams alone."""
    context = ssl.SSLContext(protocol)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("aNULL:@SECLEVEL=0")
    return context


async def test_http_over_tls(autojump_clock: MockClock, stack: MemoryStack) -> None:
    async with tls(stack) as stream:
        assert (await exchange(stream, "/health/liveness")).status == 200
        assert (await exchange(stream, "/nothing")).status == 404


async def test_websockets_over_tls(autojump_clock: MockClock, stack: MemoryStack) -> None:
    async with tls(stack) as stream:
        peer = await join(stack, "a", stream=stream)
        assert await peer.manager("echo", "x" * 200_000) == "x" * 200_000
        info = await peer.manager("get_connection_info")
        assert info["local_base_url"] == "https://lab.example:9527"
        await peer.leave()
        assert peer.closed == Closed(1000)


# --- what is not spoken ----------------------------------------------------------------------------------------


async def test_compression_is_never_negotiated(autojump_clock: MockClock, stack: MemoryStack) -> None:
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    socket = await upgrade(stack.connect(), "/ws?client_id=a", offer)
    assert "sec-websocket-extensions" not in socket.headers
    await socket.stream.send_all(b"\xc2\x80\0\0\0\0")  # RSV1: a compressed message
    assert (await socket.closed()).code == 1002


async def test_http2_is_not_spoken(autojump_clock: MockClock, stack: MemoryStack) -> None:
    async with neighbour(stack):
        offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
        assert (await http(stack, "/health/liveness", headers=offer)).status == 200
        stream = stack.connect()
        await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        answer = await read_to_end(stream)
        assert answer.startswith(b"HTTP/1.1 4")
    assert hypercorn.config.Config().alpn_protocols == ["http/1.1"]


@pytest.mark.parametrize("found", ["0.17.3", "0.19.0", "0.19.0rc1", "1.0", "0.180"])
def test_another_hypercorn_is_refused_by_name(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "version", lambda name: found)
    with pytest.raises(ConfigError, match=rf"hypercorn {re.escape(found)} is installed.*pip install"):
        guard.install()


@pytest.mark.parametrize("found", ["0.18", "0.18.0", "0.18.7", "0.18rc1"])
def test_the_tested_hypercorn_is_taken(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "version", lambda name: found)
    guard.install()


# --- the door -------------------------------------------------------------------------------------------------


def door_of(stack: Stack) -> guard.Door:
    """Through which the programs of the server's own process come in."""
    assert stack.server._door is not None
    return stack.server._door


async def test_requests_come_in_by_the_door(loopback: LoopbackStack) -> None:
    async with await door_of(loopback).connect() as stream:
        for _ in range(2):
            assert (await exchange(stream, "/health/liveness")).status == 200


async def test_websockets_come_in_by_the_door(loopback: LoopbackStack) -> None:
    async with neighbour(loopback), await door_of(loopback).connect() as stream:
        socket = await upgrade(stream, "/ws?client_id=a", glued=echo_call("x" * 60_000))
        answer = await socket.receive()
        assert isinstance(answer, bytes)
        assert decode(answer)[1]["args"] == ["x" * 60_000]


async def test_who_came_by_the_door_is_told_of_the_end(loopback: LoopbackStack) -> None:
    async with await door_of(loopback).connect() as stream:
        socket = await upgrade(stream, "/ws?client_id=a", glued=echo_call("x"))
        await socket.receive()
        await loopback.shut_down()
        assert await socket.closed() == Closed(1012, "the server is restarting")


async def test_who_leaves_by_the_door_is_gone(loopback: LoopbackStack) -> None:
    door = door_of(loopback)
    before = len(door._nursery.child_tasks)
    for count in range(3):
        async with await door.connect() as stream:
            await stream.send_all(LIVENESS[: 10 * count])
            await stream.send_eof()
            await read_to_end(stream)
    await trio.testing.wait_all_tasks_blocked()
    assert len(door._nursery.child_tasks) == before
    assert (await http(loopback, "/health/liveness")).status == 200


async def test_errors_at_the_door_stay_there(loopback: LoopbackStack) -> None:
    async with neighbour(loopback), await door_of(loopback).connect() as stream:
        await stream.send_all(b"\0 of glass\r\n\r\n")
        assert (await read_to_end(stream)).startswith(b"HTTP/1.1 400 ")


async def test_the_door_tells_where_the_server_listens(loopback: LoopbackStack) -> None:
    (sock,) = door_of(loopback).sockets
    assert sock.getsockname() == ("127.0.0.1", loopback.port)


async def test_a_door_that_nobody_asked_for(autojump_clock: MockClock, stack: MemoryStack) -> None:
    """In memory there is one, too, through which come the streams of tests."""
    async with await door_of(stack).connect() as stream:
        assert (await exchange(stream, "/health/liveness")).status == 200


# --- the take-over --------------------------------------------------------------------------------------------


class Taker:
    """An ASGI application that takes a websocket over when it is told to."""

    def __init__(self) -> None:
        self.go = trio.Event()
        self.begun = trio.Event()
        self.taken: list[bytes] = []
        self.failed = 0
        self.hold = trio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        taking: GuardedServer = scope["extensions"]["hypha.guard"]
        self.begun.set()
        await self.go.wait()
        try:
            await taking.take_over(receive, send, self.serve)
        except TakeOverFailed:
            self.failed += 1

    async def serve(self, stream: trio.abc.Stream, early: bytes) -> None:
        self.taken.append(early)
        await stream.send_all(b"ours")
        await self.hold.wait()


@pytest.fixture
def taker(stack: MemoryStack) -> Taker:
    stack.app = taker = Taker()
    return taker


async def test_the_stream_belongs_to_the_taker(autojump_clock: MockClock, stack: MemoryStack, taker: Taker) -> None:
    stream = stack.connect()
    await stream.send_all(upgrade_bytes("/ws") + b"one")
    await trio.testing.wait_all_tasks_blocked()
    await stream.send_all(b"two")
    await trio.testing.wait_all_tasks_blocked()
    taker.go.set()
    await trio.testing.wait_all_tasks_blocked()
    assert taker.taken == [b"onetwo"]
    taker.hold.set()
    answer = await read_to_end(stream)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.endswith(b"\r\n\r\nours")
    await trio.testing.wait_all_tasks_blocked()
    assert stack.ends[0].closed.is_set()
    assert not stack.servers.child_tasks


async def test_a_client_that_left_before_is_not_taken(
    autojump_clock: MockClock, stack: MemoryStack, taker: Taker
) -> None:
    stream = stack.connect()
    await stream.send_all(upgrade_bytes("/ws"))
    await taker.begun.wait()
    await stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    taker.go.set()
    await trio.testing.wait_all_tasks_blocked()
    assert (taker.taken, taker.failed) == ([], 1)
    assert not stack.servers.child_tasks


async def test_a_client_that_leaves_with_its_request_ends_the_take_over(
    autojump_clock: MockClock, stack: MemoryStack, taker: Taker
) -> None:
    taker.go.set()
    stream = stack.connect()
    await stream.send_all(upgrade_bytes("/ws"))
    await stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    taker.hold.set()
    await trio.testing.wait_all_tasks_blocked()
    assert len(taker.taken) + taker.failed <= 1
    assert not stack.servers.child_tasks


async def test_what_is_no_websocket_cannot_be_taken_over(
    autojump_clock: MockClock, stack: MemoryStack, taker: Taker
) -> None:
    taker.go.set()
    stream = stack.connect()
    await stream.send_all(request_bytes("/"))
    assert (await read_answer(stream)).status == 500
    assert taker.failed == 1


async def test_a_take_over_can_be_cancelled_at_every_step(
    autojump_clock: MockClock, stack: MemoryStack, taker: Taker
) -> None:
    """After the n-th step of any task, for every n until the take-over is complete."""
    taker.go.set()
    for count in itertools.count():
        client, end = connection()
        async with trio.open_nursery() as nursery:
            cancelling = Steps(count, nursery.cancel_scope)
            trio.lowlevel.add_instrument(cancelling)
            nursery.start_soon(stack.serve, end)
            nursery.start_soon(upgrade_and_read, client)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.remove_instrument(cancelling)
            nursery.cancel_scope.cancel()
        assert end.closed.is_set(), count
        if not cancelling.done:
            break
    assert count > 20
    assert taker.taken[-1] == b"early"


async def upgrade_and_read(stream: trio.abc.Stream) -> None:
    await stream.send_all(upgrade_bytes("/ws") + b"early")
    while await stream.receive_some():
        pass
