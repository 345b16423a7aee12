"""``/rpc``: streams of messages and the requests that post them, through Hypercorn, on memory streams and sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import h11
import msgpack
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import hypha
from hypha.broker.access import Level
from hypha.broker.session import PeerSession
from hypha.config import Config, Limits
from hypha.web.rpc import Rpc
from tests.web.stack import LoopbackStack, MemoryStack, Stack, Steps, connection, memory_stack
from tests.web.wires import HttpAnswer, Peer, Rejected, decode, encode, http, join, read_to_end, request_bytes

MSGPACK = {"Content-Type": "application/msgpack"}
PYTHON = {"User-Agent": "python-httpx/0.28.1"}


def target(path: str = "/rpc", /, **query: str | None) -> str:
    return f"{path}?{urlencode({name: value for name, value in query.items() if value is not None})}"


@dataclass
class Client:
    """A client of hypha-rpc over HTTP, as far as the server can tell."""

    stack: Stack
    client_id: str
    stream: trio.abc.Stream
    token: str | None = None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    #: Whether the server has ended the response, None as long as it goes on.
    ended_well: bool | None = None
    _connection: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT))
    _buffer: bytes = b""

    @property
    def workspace(self) -> str:
        return str(self.info["workspace"])

    @property
    def name(self) -> str:
        return f"{self.workspace}/{self.client_id}"

    @property
    def manager(self) -> str:
        return f"*/{self.info['manager_id']}"

    @property
    def cookie(self) -> str:
        return self.headers["set-cookie"].partition(";")[0]

    @property
    def session(self) -> PeerSession:
        return self.stack.broker.registry.workspaces[self.workspace].members[self.client_id]

    async def begin(self, where: str, headers: Mapping[str, str]) -> None:
        """Ask for the stream, and read the head of the response."""
        self._connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
        self._connection.send(h11.EndOfMessage())
        await self.stream.send_all(request_bytes(where, headers=headers))
        response = await self._event()
        assert isinstance(response, h11.Response)
        self.status = response.status_code
        self.headers = {name.decode(): value.decode() for name, value in response.headers}

    async def _event(self) -> Any:
        while (event := self._connection.next_event()) is h11.NEED_DATA:
            self._connection.receive_data(bytes(await self.stream.receive_some()))
        return event

    async def receive(self) -> bytes | None:
        """The next frame, None at the end."""
        while (frame := self._frame()) is None:
            try:
                event = await self._event()
            except (h11.RemoteProtocolError, trio.BrokenResourceError):
                self.ended_well = False
                return None
            if isinstance(event, h11.EndOfMessage):
                self.ended_well = True
                assert not self._buffer
                return None
            self._buffer += bytes(event.data)
        return frame

    def _frame(self) -> bytes | None:
        size = int.from_bytes(self._buffer[:4], "big")
        if len(self._buffer) < 4 or len(self._buffer) < 4 + size:
            return None
        frame, self._buffer = self._buffer[4 : 4 + size], self._buffer[4 + size :]
        return frame

    async def hear(self) -> dict[str, Any]:
        """The next message, its two values in one."""
        frame = await self.receive()
        assert frame is not None
        main, extra = decode(frame)
        return {**main, **extra}

    async def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> HttpAnswer:
        """Post *body* as this client does, or with other *headers*."""
        own = {"Authorization": f"Bearer {self.token}"} if self.token else {"Cookie": self.cookie}
        where = target(client_id=self.client_id, workspace=self.workspace)
        return await http(self.stack, where, "POST", {**MSGPACK, **own} if headers is None else headers, body)

    async def send(self, main: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> None:
        answer = await self.post(encode(main, extra))
        assert (answer.status, answer.body) == (200, b"")

    async def call(self, to: str, method: str, *args: Any) -> Any:
        """Call with the compact promise. Raises :class:`Rejected`."""
        header = {"type": "method", "to": to, "method": method, "session": "s"}
        await self.send(header, {"args": list(args), "promise": "*", "t": 5.0})
        while (answer := await self.hear()) == {"type": "ping"}:
            pass
        if answer["method"] == "s.reject":
            raise Rejected(answer["args"][0]["_rvalue"])
        assert answer["method"] == "s.resolve"
        return answer["args"][0]

    async def manage(self, function: str, *args: Any) -> Any:
        return await self.call(self.manager, f"services.default.{function}", *args)

    async def leave(self) -> None:
        await trio.aclose_forcefully(self.stream)
        await wait_all_tasks_blocked()


async def enter(
    stack: Stack,
    client_id: str = "a",
    *,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    stream: trio.abc.Stream | None = None,
    path: str = "/rpc",
    **query: str | None,
) -> Client:
    """Open a client's stream."""
    client = Client(stack, client_id, stream or await stack.open(), token)
    proof = {"Authorization": f"Bearer {token}"} if token else {}
    await client.begin(target(path, **{"client_id": client_id, **query}), {**proof, **(headers or {})})
    assert client.status == 200
    client.info = await client.hear()
    return client


async def refused(stack: Stack, status: int, headers: Mapping[str, str] | None = None, **query: str | None) -> str:
    """The reason for which no stream is opened."""
    answer = await http(stack, target(**query), headers=headers)
    assert answer.status == status, answer
    return answer.detail


async def friends(stack: Stack, *, lockstep: bool = False) -> tuple[Client, Peer]:
    """A client over HTTP, and an old one by websocket in the same workspace."""
    client = await enter(stack)
    token = await client.manage("generate_token")
    stream = stack.connect(lockstep=True) if lockstep and isinstance(stack, MemoryStack) else None
    return client, await join(stack, "b", f"&token={token}&workspace={client.workspace}", stream)


# --- the stream -----------------------------------------------------------------------------------------------------


async def test_a_client_is_told_where_it_is(autojump_clock: MockClock, stack: MemoryStack) -> None:
    client = await enter(stack, "prov")
    assert client.headers["content-type"] == "application/x-msgpack-stream"
    assert client.headers["cache-control"] == "no-store"
    user, token = client.info.pop("user"), client.info.pop("reconnection_token")
    assert client.info == {
        "type": "connection_info",
        "hypha_version": hypha.__version__,
        "public_base_url": "http://lab.example:9527",
        "local_base_url": "http://lab.example:9527",
        "manager_id": stack.broker.server.address.client,
        "workspace": user["id"],
        "client_id": "prov",
        "reconnection_token_life_time": 172800.0,
        "frame_bytes": 16 * 1024 * 1024,
    }
    assert user["is_anonymous"] is True
    assert token.count(".") == 2
    await client.leave()


async def test_messages_pass_between_http_and_websocket(autojump_clock: MockClock, stack: MemoryStack) -> None:
    client, peer = await friends(stack)
    for size in (0, 10, 70_000, 1_000_000):
        await client.send({"type": "news", "to": "b"}, {"data": bytes(size)})
        await peer.received(1)
        main, extra = peer.others.pop()
        assert (main["from"], main["ws"], extra["data"]) == (client.name, client.workspace, bytes(size))
        await peer.send({"type": "news", "to": "a"}, {"data": bytes(size)})
        message = await client.hear()
        assert (message["from"], message["data"]) == (peer.name, bytes(size))
    assert await client.manage("echo", "x") == "x"


async def test_signs_of_life_are_answered(autojump_clock: MockClock, stack: MemoryStack) -> None:
    client, _ = await friends(stack)
    for kind in ("ping", "refresh_token"):
        answer = await client.post(msgpack.packb({"type": kind}))
        assert (answer.status, answer.body) == (200, b"")
    assert await client.hear() == {"type": "pong"}
    fresh = await client.hear()
    assert fresh.keys() == {"type", "reconnection_token"}
    await client.leave()
    again = await enter(stack, **fresh)
    assert again.workspace == client.workspace


async def test_a_quiet_stream_is_kept_alive(autojump_clock: MockClock, stack: MemoryStack) -> None:
    """The published client takes a stream for dead from which nothing came for its ``method_timeout``, 30 seconds."""
    client = await enter(stack)
    began = trio.current_time()
    for number in range(1, 40):
        assert await client.hear() == {"type": "ping"}
        assert trio.current_time() - began <= number * 22
    assert await client.manage("echo", 1) == 1


@pytest.mark.parametrize("how", ["it speaks", "time passes"])
async def test_what_others_send_waits_until_a_client_listens(
    how: str, autojump_clock: MockClock, stack: MemoryStack
) -> None:
    """A client that has just read where it is drops what comes together with that."""
    owner, peer = await friends(stack)
    client = await enter(stack, "new", token=await owner.manage("generate_token"))
    await peer.send({"type": "news", "to": "new", "text": "early"})
    with trio.move_on_after(0.5) as scope:
        await client.receive()
    assert scope.cancelled_caught
    began = trio.current_time()
    if how == "it speaks":
        await client.send({"type": "news", "to": "b"})
    assert (await client.hear())["text"] == "early"
    assert trio.current_time() - began == pytest.approx(0 if how == "it speaks" else 1, abs=0.6)


async def test_what_a_python_client_cannot_take_fails_at_its_sender(
    autojump_clock: MockClock, stack: MemoryStack
) -> None:
    sender = await enter(stack)
    receiver = await enter(stack, "b", token=await sender.manage("generate_token"), headers=PYTHON)
    await receiver.send({"type": "listens", "to": "nobody"})
    with pytest.raises(Rejected, match="larger than modern_python_frame_bytes = 524288,"):
        await sender.call("b", "services.x.y", bytes(Limits().modern_python_frame_bytes))
    await sender.send({"type": "news", "to": "b"}, {"data": bytes(520_000)})
    assert (await receiver.hear())["data"] == bytes(520_000)


@pytest.mark.parametrize("path", ["/lab/rpc", "/rpc"])
async def test_it_is_served_below_the_base_path(path: str, tmp_path: Path, autojump_clock: MockClock) -> None:
    """And without it, behind a proxy that takes the base path away, as the websocket is."""
    async with memory_stack(Config(data_dir=tmp_path, base_path="/lab")) as stack:
        client = await enter(stack, path=path)
        assert client.info["local_base_url"] == "http://lab.example:9527/lab"
        assert client.headers["set-cookie"].endswith("; Path=/lab/rpc; HttpOnly; SameSite=Strict")
        assert (await http(stack, "/lab/rpcs?client_id=b")).status == 404


async def test_other_methods_are_refused(autojump_clock: MockClock, stack: MemoryStack) -> None:
    answer = await http(stack, target(client_id="a"), "DELETE")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, POST, OPTIONS")
    answer = await http(stack, target(client_id="a"), "OPTIONS")
    assert (answer.status, answer.headers["allow"]) == (204, "GET, POST, OPTIONS")


# --- who may come in, and who may post ------------------------------------------------------------------------------


async def test_a_stream_is_refused_with_a_reason(autojump_clock: MockClock, stack: MemoryStack) -> None:
    owner = await enter(stack, "owner")
    home, resumption = owner.workspace, owner.info["reconnection_token"]
    token = await owner.manage("generate_token")
    proof = {"Authorization": f"Bearer {token}"}
    rows: list[tuple[int, Mapping[str, str], dict[str, str], str]] = [
        (400, {}, {}, "client id must be a non-empty string"),
        (400, {}, {"client_id": "a/b"}, "must not contain"),
        (401, {"Authorization": "Bearer nonsense"}, {"client_id": "b"}, "not one of this server"),
        (401, {"Authorization": f"Bearer {resumption}"}, {"client_id": "b"}, "not meant for this use"),
        (401, {}, {"client_id": "b", "reconnection_token": "nonsense"}, "not one of this server"),
        (401, proof, {"client_id": "b", "reconnection_token": token}, "not meant for this use"),
        (403, {}, {"client_id": "b", "workspace": home}, f"Permission denied for workspace {home}"),
        (403, proof, {"client_id": "b", "workspace": "nowhere"}, "Permission denied for workspace nowhere"),
        (403, {}, {"client_id": "b", "reconnection_token": resumption}, "belongs to another client id"),
        (409, proof, {"client_id": "owner", "workspace": home}, "already exists and is active"),
    ]
    for status, headers, query, reason in rows:
        assert reason in await refused(stack, status, headers, **query), query
    assert await owner.manage("echo", 1) == 1


async def test_a_user_has_so_many_clients(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with memory_stack(Config(data_dir=tmp_path, limits=Limits(sessions_per_principal=1))) as stack:
        owner = await enter(stack)
        token = await owner.manage("generate_token")
        await enter(stack, "b", token=token)
        proof = {"Authorization": f"Bearer {token}"}
        assert "sessions_per_principal = 1" in await refused(stack, 429, proof, client_id="c")


async def test_only_the_client_itself_can_post(autojump_clock: MockClock, stack: MemoryStack) -> None:
    """Its names are known to everybody that it has ever called."""
    owner, victim = await enter(stack, "owner"), await enter(stack, "victim")
    stranger = await enter(stack, "stranger")
    token, other = [await owner.manage("generate_token") for _ in range(2)]
    member = await enter(stack, "member", token=token)
    less = replace(member.session.principal, grants={owner.workspace: Level.READ})
    reading = stack.broker.tokens.issue(less, expires_in=60)
    body = encode({"type": "news", "to": "stranger"})
    cookie_of_name = victim.cookie.partition("=")[0]
    for client, headers, status in (
        (victim, {}, 403),
        (victim, MSGPACK, 403),
        (victim, {**MSGPACK, "Cookie": stranger.cookie}, 403),
        (victim, {**MSGPACK, "Cookie": f"{cookie_of_name}={stranger.cookie.partition('=')[2]}"}, 403),
        (victim, {**MSGPACK, "Cookie": f"{cookie_of_name}="}, 403),
        (victim, {**MSGPACK, "Cookie": f"{cookie_of_name}=\xe4"}, 403),
        (victim, {**MSGPACK, "Authorization": f"Bearer {token}"}, 403),
        (victim, {**MSGPACK, "Authorization": f"Bearer {victim.info['reconnection_token']}"}, 401),
        (victim, {**MSGPACK, "Authorization": "Bearer nonsense", "Cookie": victim.cookie}, 401),
        (victim, {"Content-Type": "text/plain", "Cookie": victim.cookie}, 415),
        (victim, {**MSGPACK, "Cookie": f"a=b; {victim.cookie}; c=d"}, 200),
        (member, MSGPACK, 403),
        (member, {**MSGPACK, "Authorization": f"Bearer {other}"}, 403),
        (member, {**MSGPACK, "Authorization": f"Bearer {reading}"}, 403),
        (member, {"Authorization": f"Bearer {token}"}, 200),
        (member, {**MSGPACK, "Cookie": member.cookie}, 200),
    ):
        answer = await client.post(body, headers)
        assert answer.status == status, headers


async def test_who_has_no_access_learns_nothing(autojump_clock: MockClock, stack: MemoryStack) -> None:
    """Whether a client is connected is told to members of its workspace, and to itself."""
    owner, client = await enter(stack, "owner"), await enter(stack)
    body = encode({"type": "news", "to": "b"})
    foreign = {"Authorization": f"Bearer {await owner.manage('generate_token')}"}
    own = {"Authorization": f"Bearer {await client.manage('generate_token')}"}
    there = target(client_id="a", workspace=client.workspace)
    not_there = target(client_id="b", workspace=client.workspace)
    for headers in ({}, foreign):
        answers = [await http(stack, where, "POST", headers, body) for where in (there, not_there)]
        assert [answer.status for answer in answers] == [403, 403]
        assert answers[0].body == answers[1].body
    assert (await http(stack, not_there, "POST", own, body)).status == 400
    await client.leave()
    for where in (there, not_there):
        assert (await http(stack, where, "POST", MSGPACK, body)).status == 403
    lost = await client.post(body)
    assert (lost.status, "is not connected now" in lost.detail) == (400, True)


async def test_a_websocket_takes_no_posts(autojump_clock: MockClock, stack: MemoryStack) -> None:
    client = await enter(stack)
    token = await client.manage("generate_token")
    await join(stack, "b", f"&token={token}&workspace={client.workspace}")
    where = target(client_id="b", workspace=client.workspace)
    answer = await http(stack, where, "POST", {"Authorization": f"Bearer {token}"}, encode({"type": "x", "to": "a"}))
    assert (answer.status, answer.detail) == (400, "the client is connected by a websocket")


async def test_what_is_no_message_is_refused(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with memory_stack(Config(data_dir=tmp_path, limits=Limits(frame_bytes=100_000))) as stack:
        client = await enter(stack)
        own = {**MSGPACK, "Cookie": client.cookie}
        for query in ({"workspace": client.workspace}, {"client_id": "a"}):
            assert (await http(stack, target(**query), "POST", own, b"\x80")).status == 400
        for body in (b"", b"\xc1", b"nonsense", msgpack.packb([1]), msgpack.packb({"type": "pings"})):
            assert (await client.post(body)).status == 400, body
        assert client.session.malformed == 4
        answer = await client.post(encode({"type": "news", "to": "b"}, {"data": bytes(100_000)}))
        assert (answer.status, answer.detail) == (413, "the request body is larger than frame_bytes = 100000")
        assert await client.manage("echo", 1) == 1


async def test_all_bodies_together_take_so_much_memory(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with memory_stack(Config(data_dir=tmp_path, limits=Limits(http_bodies_bytes=100_000))) as stack:
        client = await enter(stack)
        body = encode({"type": "news", "to": "b"}, {"data": bytes(140_000)})
        where = target(client_id="a", workspace=client.workspace)
        first = stack.connect()
        await first.send_all(request_bytes(where, "POST", {**MSGPACK, "Cookie": client.cookie}, body)[:-1])
        await wait_all_tasks_blocked()
        answer = await client.post(body)
        assert (answer.status, "http_bodies_bytes = 100000" in answer.detail) == (429, True)
        await trio.aclose_forcefully(first)
        await wait_all_tasks_blocked()
        assert (await client.post(body)).status == 200


# --- clients that do not read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [4, 10])
async def test_a_client_that_stops_reading_is_cut_and_its_callers_are_told(
    seconds: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with memory_stack(Config(data_dir=tmp_path, limits=Limits(stall_seconds=seconds))) as stack:
        caller = await enter(stack)
        token = await caller.manage("generate_token")
        stalled = await enter(stack, "b", token=token, stream=stack.connect(lockstep=True))
        await stalled.send({"type": "listens", "to": "nobody"})
        began = trio.current_time()
        with pytest.raises(Rejected, match=f"Target peer {stalled.name} is not connected"):
            await caller.call("b", "services.x.y", b"data")
        assert seconds <= trio.current_time() - began <= seconds + 2
        assert await caller.manage("echo", 1) == 1
        await read_to_end(stalled.stream)


@pytest.mark.parametrize("sender_kind", ["http", "websocket"])
async def test_a_slow_client_holds_a_bounded_number_of_bytes(
    sender_kind: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A sender waits for room, and the slow one is cut when it has none for too long."""
    async with memory_stack(Config(data_dir=tmp_path, limits=Limits(outbox_bytes=200_000))) as stack:
        caller, peer = await friends(stack)
        token = await caller.manage("generate_token")
        slow = await enter(stack, "slow", token=token, stream=stack.connect(lockstep=True))
        await slow.send({"type": "listens", "to": "nobody"})
        session = slow.session
        stack.clients.start_soon(read_slowly, slow.stream)
        began = trio.current_time()
        sender = caller if sender_kind == "http" else peer
        for _ in range(4):
            await sender.send({"type": "news", "to": "slow"}, {"data": bytes(90_000)})
            assert session.outbox.pending <= 200_000
        if sender_kind == "websocket":
            await peer.manager("echo", 1)
        assert trio.current_time() - began == pytest.approx(10, abs=1)
        assert not session.open


async def read_slowly(stream: trio.abc.Stream) -> None:
    """Take a little each second."""
    data = b"begin"
    with suppress(trio.BrokenResourceError):
        while data:
            await trio.sleep(1)
            data = bytes(await stream.receive_some(1000))


async def test_a_real_socket_that_is_not_read_is_cut(loopback: LoopbackStack) -> None:
    """In bounded time and memory, whatever the kernel takes."""
    caller = await enter(loopback)
    token = await caller.manage("generate_token")
    stalled = await enter(loopback, "b", token=token)
    await stalled.send({"type": "listens", "to": "nobody"})
    session = stalled.session
    for _ in range(20):
        await caller.send({"type": "news", "to": "b"}, {"data": bytes(500_000)})
    await wait_all_tasks_blocked()
    assert 0 < session.outbox.pending < 20 * 500_000
    loopback.broker.lose(session, "is an example")
    while await stalled.receive() is not None:
        pass
    assert stalled.ended_well is False  # nothing follows half a frame


async def test_messages_of_one_client_keep_their_order(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Those that wait for room, too, whatever their size."""
    async with memory_stack(Config(data_dir=tmp_path, limits=Limits(outbox_bytes=100_000))) as stack:
        client, peer = await friends(stack, lockstep=True)
        await peer.stop_reading()
        sizes = [90_000, 90_000, 10, 90_000, 10, 10]
        async with trio.open_nursery() as nursery:
            for number, size in enumerate(sizes):
                nursery.start_soon(client.send, {"type": "news", "to": "b", "n": number}, {"data": bytes(size)})
                await wait_all_tasks_blocked()
            received = [await peer.socket.receive() for _ in sizes]
        numbers = [decode(message)[0]["n"] for message in received if isinstance(message, bytes)]
        assert numbers == list(range(len(sizes)))


# --- the end --------------------------------------------------------------------------------------------------------


async def test_the_end_of_the_stream_suspends_the_session(autojump_clock: MockClock, stack: MemoryStack) -> None:
    client, peer = await friends(stack)
    session, message = peer.begin("a", "services.x.y")
    await peer.socket.send_bytes(message)
    await client.hear()
    identity = client.session.identity
    await client.leave()
    with pytest.raises(Rejected, match="not connected"):
        await peer.outcome(session)
    workspace = stack.broker.registry.workspaces[client.workspace]
    assert workspace.members.keys() == {"b"}
    assert workspace.parked["a"].identity == identity


async def test_who_comes_back_supersedes_its_old_stream(autojump_clock: MockClock, stack: MemoryStack) -> None:
    """And posts with the cookie that it has, whichever stream it came with."""
    first, peer = await friends(stack)
    second = await enter(stack, reconnection_token=first.info["reconnection_token"])
    assert second.workspace == first.workspace
    assert second.cookie == first.cookie
    assert await first.receive() is None
    assert first.ended_well is True
    await first.send({"type": "news", "to": "b"})
    await peer.received(1)
    assert await second.manage("echo", 1) == 1


async def test_a_message_that_comes_while_its_stream_is_replaced(autojump_clock: MockClock, stack: MemoryStack) -> None:
    first, peer = await friends(stack)
    stream = stack.connect()
    where = target(client_id="a", workspace=first.workspace)
    request = request_bytes(where, "POST", {**MSGPACK, "Cookie": first.cookie}, encode({"type": "news", "to": "b"}))
    await stream.send_all(request[:-5])
    await wait_all_tasks_blocked()
    await enter(stack, reconnection_token=first.info["reconnection_token"])
    await stream.send_all(request[-5:])
    assert b" 200 " in (await stream.receive_some())[:20]
    await peer.received(1)


async def test_a_server_that_stops_ends_the_streams_well(autojump_clock: MockClock, stack: MemoryStack) -> None:
    """With what waits for a client, also for one that has not said anything yet."""
    owner, peer = await friends(stack)
    token = await owner.manage("generate_token")
    client = await enter(stack, "new", token=token, stream=stack.connect(lockstep=True))
    for _ in range(3):
        await peer.send({"type": "news", "to": "new"}, {"data": bytes(100_000)})
    await peer.manager("echo", 1)
    await stack.shut_down()
    for _ in range(3):
        assert (await client.hear())["data"] == bytes(100_000)
    for each in (client, owner):
        assert await each.receive() is None
        assert each.ended_well is True


async def test_a_client_that_is_expelled_is_told_not_to_come_back(
    autojump_clock: MockClock, stack: MemoryStack
) -> None:
    owner = await enter(stack)
    await owner.manage("create_workspace", {"id": "for-a-while"})
    token = await owner.manage("generate_token", {"workspace": "for-a-while"})
    guest = await enter(stack, "guest", token=token)
    await guest.send({"type": "listens", "to": "nobody"})
    await owner.manage("delete_workspace", "for-a-while")
    assert (await guest.hear())["type"] == "force-exit"
    assert await guest.receive() is None
    assert guest.ended_well is True
    assert "the session has ended" in await refused(
        stack, 401, client_id="guest", reconnection_token=guest.info["reconnection_token"]
    )


@asynccontextmanager
async def waiting_post(stack: MemoryStack) -> AsyncIterator[tuple[Client, Peer, trio.abc.Stream]]:
    """A client one of whose messages waits for room at a peer; the connection that brought it."""
    client, peer = await friends(stack, lockstep=True)
    await peer.stop_reading()
    await client.send({"type": "news", "to": "b"}, {"data": bytes(90_000)})
    stream = stack.connect()
    where = target(client_id=client.client_id, workspace=client.workspace)
    body = encode({"type": "late", "to": "b"}, {"data": bytes(90_000)})
    await stream.send_all(request_bytes(where, "POST", {**MSGPACK, "Cookie": client.cookie}, body))
    await wait_all_tasks_blocked()
    yield client, peer, stream


@pytest.mark.parametrize("who", ["stream", "request"])
async def test_a_message_that_waits_for_room_ends_with_its_client(
    who: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with (
        memory_stack(Config(data_dir=tmp_path, limits=Limits(outbox_bytes=100_000))) as stack,
        waiting_post(stack) as (client, peer, stream),
    ):
        began = trio.current_time()
        if who == "stream":
            await client.leave()
            assert b"400" in (await stream.receive_some())[:20]
        else:
            await trio.aclose_forcefully(stream)
            await wait_all_tasks_blocked()
        assert trio.current_time() == began
        assert peer.closed is None
        message = await peer.socket.receive()
        assert isinstance(message, bytes)
        assert decode(message)[0]["type"] == "news"
        with trio.move_on_after(5) as scope:
            await peer.socket.receive()
        assert scope.cancelled_caught


@pytest.mark.parametrize("victim", ["stream", "post"])
async def test_it_can_be_cancelled_at_every_step(victim: str, tmp_path: Path, autojump_clock: MockClock) -> None:
    """Whatever task step the connection is cancelled at: the session is gone or whole, and nothing is left of it."""
    async with memory_stack(Config(data_dir=tmp_path, limits=Limits(outbox_bytes=100_000))) as stack:
        owner = await enter(stack, "owner")
        token = await owner.manage("generate_token")
        place = f"&token={token}&workspace={owner.workspace}"
        bodies = rpc_of(stack)._bodies
        for steps in count():
            client_id = f"c{steps}"
            peer = await join(stack, f"p{steps}", place)
            scopes = {"stream": trio.CancelScope(), "post": trio.CancelScope()}
            ends = {name: connection() for name in scopes}
            for name, (_, end) in ends.items():
                stack.servers.start_soon(serve_in, stack, end, scopes[name])
            cancelling = Steps(steps, scopes[victim])
            if victim == "stream":
                trio.lowlevel.add_instrument(cancelling)
            with suppress(h11.RemoteProtocolError, trio.BrokenResourceError, AssertionError):
                client = await enter(stack, client_id, token=token, stream=ends["stream"][0])
                if victim == "post":
                    trio.lowlevel.add_instrument(cancelling)
                await post_on(ends["post"][0], client, peer.client_id)
                await client.receive()
            with suppress(KeyError):
                trio.lowlevel.remove_instrument(cancelling)
            for ours, _ in ends.values():
                await trio.aclose_forcefully(ours)
            await wait_all_tasks_blocked()
            assert client_id not in stack.broker.registry.workspaces[owner.workspace].members
            assert bodies.held == 0
            assert not stack.broker.dirty
            assert len(stack.assembly._open_rooms().connections) == 2
            await peer.leave()
            if not cancelling.done:
                break
        assert steps > 15
        assert await owner.manage("echo", 1) == 1


def rpc_of(stack: MemoryStack) -> Rpc:
    return stack.assembly._open_rooms().front._rpc


async def serve_in(stack: MemoryStack, end: trio.abc.Stream, scope: trio.CancelScope) -> None:
    with scope:
        await stack.serve(end)


async def post_on(stream: trio.abc.Stream, client: Client, to: str) -> None:
    """Post a call, to which nobody answers, and a message for oneself."""
    where = target(client_id=client.client_id, workspace=client.workspace)
    proof = {"Authorization": f"Bearer {client.token}"}
    for main in ({"to": to, "session": "s", "method": "x.y"}, {"to": client.client_id, "method": "x.z"}):
        await stream.send_all(request_bytes(where, "POST", proof, encode({"type": "method", **main}, {"args": []})))
        await stream.receive_some()
