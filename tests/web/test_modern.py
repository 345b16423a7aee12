"""The text messages of modern clients: the handshake, refusals, and signs of life."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

import hypha
from hypha.config import Config, Limits
from tests.web.stack import LoopbackStack, MemoryStack, Stack, memory_stack
from tests.web.wires import Closed, WebSocket, decode, encode, join, upgrade


async def say(client: WebSocket, **document: Any) -> None:
    await client.send(TextMessage(json.dumps(document)))


async def hear(client: WebSocket) -> dict[str, Any]:
    """The next message, which must be text."""
    message = await client.receive()
    assert isinstance(message, str), message
    document: dict[str, Any] = json.loads(message)
    return document


async def enter(stack: Stack, agent: str = "", **credentials: Any) -> tuple[WebSocket, dict[str, Any]]:
    """Connect as a modern client; the second is the server's first message."""
    client = await upgrade(await stack.open(), "/ws", {"User-Agent": agent} if agent else None)
    await say(client, **credentials)
    return client, await hear(client)


async def refused(stack: Stack, **credentials: Any) -> str:
    """The reason for which a client is not let in: told in a message first, then in the close frame."""
    client, answer = await enter(stack, **credentials)
    assert answer.keys() == {"type", "message", "code"}
    assert answer["type"] == "error"
    end = await client.closed()
    assert answer["message"].endswith(f": {end.reason}") or len(end.reason.encode()) >= 120
    assert end.code in {1002, 1008}
    message: str = answer["message"]
    return message


async def call(client: WebSocket, to: str, method: str, *args: Any, session: str = "s") -> dict[str, Any]:
    """Call with the compact promise and return the answer's two values in one."""
    header = {"type": "method", "to": to, "method": method, "session": session}
    await client.send_bytes(encode(header, {"args": list(args), "promise": "*", "t": 5.0}))
    message = await client.receive()
    assert isinstance(message, bytes), message
    main, extra = decode(message)
    return {**main, **extra}


@pytest.mark.parametrize("query", ["", "?", "?unknown=1"])
async def test_a_client_is_told_where_it_is(autojump_clock: MockClock, stack: MemoryStack, query: str) -> None:
    client = await upgrade(stack.connect(), f"/ws{query}")
    began = trio.current_time()
    await client.send(Ping(b"first"))
    await say(client, client_id="prov", workspace=None, token=None, reconnection_token=None)
    assert await client.receive() == Pong(b"first")
    info = await hear(client)
    user, token = info.pop("user"), info.pop("reconnection_token")
    assert info == {
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
    assert (user["is_anonymous"], user["current_workspace"]) == (True, user["id"])
    assert token.count(".") == 2
    assert trio.current_time() == began


async def test_it_may_speak_before_it_is_answered(autojump_clock: MockClock, stack: MemoryStack) -> None:
    """Nothing of what came with the credentials is lost, in whatever pieces it comes."""
    for cut in (0, 1, 30, 60, 90):
        client = await upgrade(stack.connect(), "/ws")
        manager = f"*/{stack.broker.server.address.client}"
        header = {"type": "method", "to": manager, "method": "services.default.echo", "session": "s"}
        data = client.encoded(TextMessage(json.dumps({"client_id": "a"})))
        data += client.encoded(BytesMessage(encode(header, {"args": [bytes(100_000)], "promise": "*", "t": 5.0})))
        for part in (data[: len(data) - 100_000 - cut], data[len(data) - 100_000 - cut :]):
            await client.stream.send_all(part)
            await wait_all_tasks_blocked()
        assert (await hear(client))["type"] == "connection_info"
        message = await client.receive()
        assert isinstance(message, bytes)
        assert decode(message)[1]["args"] == [bytes(100_000)]
        await client.send(CloseConnection(1000))
        await client.closed()


async def test_a_client_without_an_id_is_given_one(autojump_clock: MockClock, stack: MemoryStack) -> None:
    _, first = await enter(stack)
    _, second = await enter(stack, client_id=None)
    assert len({first["client_id"], second["client_id"]} - {"", None}) == 2


async def test_a_public_address_is_told_as_such(tmp_path: Path, autojump_clock: MockClock) -> None:
    config = Config(data_dir=tmp_path, public_base_url="https://lab.example/hypha")
    async with memory_stack(config) as stack:
        _, info = await enter(stack, client_id="a")
        assert info["public_base_url"] == "https://lab.example/hypha"
        assert info["local_base_url"] == "http://lab.example:9527"


async def test_a_dead_client_makes_room_for_one_of_the_same_user(autojump_clock: MockClock, stack: MemoryStack) -> None:
    first, info = await enter(stack, client_id="owner")
    manager = f"*/{info['manager_id']}"
    token, other = [(await call(first, manager, "services.default.generate_token"))["args"][0] for _ in range(2)]
    old, _ = await enter(stack, client_id="prog", token=token)
    await call(old, manager, "services.default.echo")
    began = trio.current_time()
    assert "Client already exists and is active" in await refused(stack, client_id="prog", token=other)
    assert trio.current_time() == began  # somebody else's is not asked
    new, seen = await enter(stack, client_id="prog", token=token)
    assert (seen["type"], seen["client_id"]) == ("connection_info", "prog")
    assert trio.current_time() - began == 2
    ping = await old.receive()
    assert isinstance(ping, bytes)
    assert decode(ping)[0]["method"] == "services.built-in.ping"
    assert (await old.closed()).code == 1012
    assert (await call(new, manager, "services.default.echo", 5))["args"] == [5]


async def test_a_client_that_lives_makes_no_room(autojump_clock: MockClock, stack: MemoryStack) -> None:
    first, info = await enter(stack, client_id="owner")
    manager = f"*/{info['manager_id']}"
    token = (await call(first, manager, "services.default.generate_token"))["args"][0]
    old, _ = await enter(stack, client_id="prog", token=token)
    await call(old, manager, "services.default.echo")

    async def answer_the_ping() -> None:
        message = await old.receive()
        assert isinstance(message, bytes)
        main, _ = decode(message)
        header = {"type": "method", "to": main["from"], "method": f"{main['session']}.resolve"}
        await old.send_bytes(encode(header, {"args": ["pong"]}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_the_ping)
        text = await refused(stack, client_id="prog", token=token)
    assert f"Client already exists and is active: {info['workspace']}/prog" in text
    # A call to it may keep it busy, so that it could not answer.
    await first.send_bytes(encode({"type": "method", "to": "prog", "method": "services.x.y", "session": "busy"}, {}))
    await old.receive()
    began = trio.current_time()
    assert "is active" in await refused(stack, client_id="prog", token=token)
    assert trio.current_time() == began


async def test_a_token_names_the_workspace(autojump_clock: MockClock, stack: MemoryStack) -> None:
    owner, info = await enter(stack, client_id="owner")
    manager = f"*/{info['manager_id']}"
    token = (await call(owner, manager, "services.default.generate_token"))["args"][0]
    for workspace in (None, info["workspace"]):
        guest, seen = await enter(stack, client_id="guest", token=token, workspace=workspace)
        assert seen["workspace"] == info["workspace"]
        assert seen["user"]["scope"]["workspaces"] == {info["workspace"]: "rw"}
        await guest.send(CloseConnection(1000))
        await guest.closed()
    legacy = await join(stack, "legacy", f"&token={token}&workspace={info['workspace']}")
    assert legacy.workspace == info["workspace"]


async def test_refusals_say_why(autojump_clock: MockClock, stack: MemoryStack) -> None:
    owner, info = await enter(stack, client_id="owner")
    manager = f"*/{info['manager_id']}"
    token = (await call(owner, manager, "services.default.generate_token"))["args"][0]
    bound = (await call(owner, manager, "services.default.generate_token", {"client_id": "only me"}))["args"][0]
    home = info["workspace"]
    failed, unknown = "Failed to establish connection: ", "Authentication error: "
    rows: list[tuple[dict[str, Any], str]] = [
        ({"client_id": "b", "token": "nonsense"}, f"{unknown}the token is not one of this server"),
        ({"client_id": "b", "token": f"{token}x"}, f"{unknown}the token is not one of this server"),
        ({"client_id": "b", "workspace": home}, f"{failed}Permission denied for workspace {home}"),
        ({"client_id": "b", "workspace": "nowhere"}, f"{failed}Permission denied for workspace nowhere"),
        ({"client_id": "b", "workspace": "public", "token": token}, f"{failed}Permission denied for workspace public"),
        ({"client_id": "owner", "token": token}, f"{failed}Client already exists and is active: {home}/owner"),
        ({"client_id": "a/b"}, f"{failed}client id 'a/b' must not contain"),
        ({"client_id": "~"}, f"{failed}client id '~' is reserved"),
        ({"client_id": 5}, f"{failed}client_id must be text"),
        ({"client_id": "b", "token": bound}, f"{failed}the token belongs to another client id"),
        ({"client_id": "b", "reconnection_token": "x"}, f"{unknown}the token is not one of this server"),
        (
            {"client_id": "b", "reconnection_token": info["reconnection_token"]},
            f"{failed}the reconnection token belongs to another client id",
        ),
    ]
    for credentials, reason in rows:
        assert (await refused(stack, **credentials)).startswith(reason), credentials
    assert (await enter(stack, client_id="only me", token=bound))[1]["workspace"] == home


@pytest.mark.parametrize("first", [b"\x80", "", "nonsense", "[]", "[" * 5000, '"text"'], ids=repr)
async def test_what_is_no_beginning_is_refused(
    autojump_clock: MockClock, stack: MemoryStack, first: str | bytes
) -> None:
    client = await upgrade(stack.connect(), "/ws")
    await client.send(TextMessage(first) if isinstance(first, str) else BytesMessage(first))
    assert "the first message must be a JSON map" in (await hear(client))["message"]
    assert (await client.closed()).code == 1002


async def test_who_finds_no_room_may_try_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    """An error message would be final: a client that was here before would never come back (``protocol.md`` 1.6)."""
    async with memory_stack(Config(data_dir=tmp_path, limits=Limits(sessions_per_principal=1))) as stack:
        client, info = await enter(stack, client_id="a")
        manager = f"*/{info['manager_id']}"
        token = (await call(client, manager, "services.default.generate_token"))["args"][0]
        await enter(stack, client_id="b", token=token)
        late = await upgrade(stack.connect(), "/ws")
        await say(late, client_id="c", token=token)
        end = await late.receive()
        assert isinstance(end, Closed)
        assert end.code == 1013
        assert "sessions_per_principal = 1" in end.reason


async def test_a_lost_client_comes_back_as_the_same(autojump_clock: MockClock, stack: MemoryStack) -> None:
    """With nothing but its id and the token, before and after the server has noticed that it was lost."""
    client, info = await enter(stack, client_id="a")
    for noticed in (True, False):
        if noticed:
            await trio.aclose_forcefully(client.stream)
            await wait_all_tasks_blocked()
        before = client
        client, again = await enter(stack, client_id="a", reconnection_token=info["reconnection_token"])
        assert (again["workspace"], again["user"]) == (info["workspace"], info["user"])
        if not noticed:
            assert await before.closed() == Closed(1012, "superseded by a newer connection")
        info = again
    await client.send(CloseConnection(1000))
    await client.closed()
    ended = await refused(stack, client_id="a", reconnection_token=info["reconnection_token"])
    assert ended == "Authentication error: the session has ended; connect without the reconnection token"


async def test_signs_of_life_are_answered_and_other_text_is_ignored(
    autojump_clock: MockClock, stack: MemoryStack
) -> None:
    client, info = await enter(stack, client_id="a")
    await say(client, type="ping")
    assert await hear(client) == {"type": "pong"}
    ignored = ["", "nonsense", "[]", "{}", '{"type": "other"}', '{"type": ["ping"]}', "[" * 900]
    for text in (*ignored, json.dumps({"type": "ping", "more": "x" * 1000})):
        await client.send(TextMessage(text))
    await say(client, type="refresh_token")
    fresh = await hear(client)
    assert fresh.keys() == {"type", "reconnection_token"}
    assert fresh["type"] == "reconnection_token"
    await trio.aclose_forcefully(client.stream)
    await wait_all_tasks_blocked()
    assert (await enter(stack, client_id="a", **fresh))[1]["workspace"] == info["workspace"]


async def test_texts_of_a_client_that_does_not_read_do_not_pile_up(loopback: LoopbackStack) -> None:
    client, info = await enter(loopback, client_id="a")
    text = client.encoded(TextMessage('{"type": "refresh_token"}'))
    session = loopback.broker.registry.workspaces[info["workspace"]].members["a"]
    for _ in range(100):
        with trio.move_on_after(1) as scope:
            await client.stream.send_all(text * 1000)
        if scope.cancelled_caught or session.outbox.pending > 1 << 20:
            break
    limits = loopback.broker.limits
    assert session.outbox.pending <= limits.outbox_bytes + limits.outbox_reserve_bytes


async def test_of_two_that_come_back_at_once_the_second_stays(autojump_clock: MockClock, stack: MemoryStack) -> None:
    _, info = await enter(stack, client_id="owner")
    broker = stack.broker
    token = broker.resumption_token(broker.registry.workspaces[info["workspace"]].members["owner"])
    clients = [await upgrade(stack.connect(), "/ws") for _ in range(2)]
    for client in clients:
        await say(client, client_id="owner", reconnection_token=token)
    answers = [await hear(client) for client in clients]
    assert [answer["type"] for answer in answers] == ["connection_info", "connection_info"]
    assert await clients[0].closed() == Closed(1012, "superseded by a newer connection")


@pytest.mark.parametrize("how", ["it speaks", "time passes"])
async def test_what_others_send_waits_until_a_client_listens(
    autojump_clock: MockClock, stack: MemoryStack, how: str
) -> None:
    """A client that has just read where it is drops what comes together with that (``protocol.md`` 1.2)."""
    _, info = await enter(stack, client_id="owner")
    home = info["workspace"]
    owner = stack.broker.registry.workspaces[home].members["owner"]
    token = stack.broker.tokens.issue(owner.principal, expires_in=60)
    legacy = await join(stack, "legacy", f"&token={token}&workspace={home}")
    client = await upgrade(stack.connect(), "/ws")
    await say(client, client_id="new", token=token)
    while "new" not in stack.broker.registry.workspaces[home].members:
        await trio.lowlevel.checkpoint()
    await legacy.socket.send_bytes(encode({"type": "news", "to": "new", "text": "early"}))
    assert (await hear(client))["type"] == "connection_info"
    with trio.move_on_after(0.5) as scope:
        await client.receive()
    assert scope.cancelled_caught
    if how == "it speaks":
        await client.send_bytes(encode({"type": "news", "to": "legacy"}))
    began = trio.current_time()
    message = await client.receive()
    assert isinstance(message, bytes)
    assert decode(message)[0]["text"] == "early"
    assert trio.current_time() - began == pytest.approx(0 if how == "it speaks" else 1, abs=0.6)


async def test_what_a_python_client_cannot_take_fails_at_its_sender(
    autojump_clock: MockClock, stack: MemoryStack
) -> None:
    """Its decoder takes 512 KiB, and nobody would answer a call that it drops (``protocol.md`` 2.6)."""
    sender, info = await enter(stack, client_id="a")
    token = (await call(sender, f"*/{info['manager_id']}", "services.default.generate_token"))["args"][0]
    receiver, _ = await enter(stack, "Python/3.11 websockets/17.4", client_id="b", token=token)
    await receiver.send_bytes(encode({"type": "listens", "to": "nobody"}))
    answer = await call(sender, "b", "services.x.y", bytes(Limits().modern_python_frame_bytes))
    assert "larger than modern_python_frame_bytes = 524288," in answer["args"][0]["_rvalue"]
    header = {"type": "method", "to": "b", "method": "services.x.y", "session": "s2"}
    await sender.send_bytes(encode(header, {"args": [bytes(520_000)]}))
    message = await receiver.receive()
    assert isinstance(message, bytes)
    assert decode(message)[1]["args"] == [bytes(520_000)]


async def test_an_idle_client_stays(autojump_clock: MockClock, stack: MemoryStack) -> None:
    """It answers the server's pings, as websocket libraries do by themselves, and says nothing for eleven minutes."""
    client, _ = await enter(stack, client_id="a")
    while trio.current_time() < 660:
        assert isinstance(await client.receive(), Ping)
    await say(client, type="ping")
    assert await hear(client) == {"type": "pong"}


async def test_a_server_that_stops_asks_to_come_back(autojump_clock: MockClock, stack: MemoryStack) -> None:
    """With a close code: an error message would be final (``protocol.md`` 1.6)."""
    client, _ = await enter(stack, client_id="a")
    await stack.shut_down()
    assert await client.receive() == Closed(1012, "the server is restarting")
