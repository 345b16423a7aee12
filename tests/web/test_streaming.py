"""Generators over HTTP: one item after the other at the pace of the reader, closed whichever way the stream ends."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgpack
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hypha.broker.access import ROOT
from hypha.wire import values
from tests.web.stack import MemoryStack, Steps, connection
from tests.web.wires import Call, HttpAnswer, Peer, Rejected, http, join, request_bytes

MSGPACK = {"Accept": "application/msgpack"}


class Counter:
    """A generator of a modern client: *limit* numbers, then its end or *error*. *made* and *closed* are counted."""

    def __init__(self, peer: Peer, limit: float = 3, error: str = "") -> None:
        self.peer, self.limit, self.error = peer, limit, error
        self.made = self.closed = 0
        peer.functions["gen.next"] = self.next
        self.value = {
            "_rtype": "generator",
            "_rtarget": peer.name,
            "_rmethod": "gen.next",
            "_rclose_method": "gen.next:close",
            "_rpromise": "*",
        }

    async def start(self, call: Call) -> Any:
        return self.value

    async def next(self, call: Call) -> Any:
        if self.made < self.limit:
            self.made += 1
            return {"n": self.made}
        if self.error:
            raise Rejected(self.error)
        return {"_rtype": "stop_iteration"}

    def count_closes(self) -> int:
        """How often it was told to close, by messages that want no answer."""
        closes = [
            main for main, extra in self.peer.others if main["method"] == "gen.next:close" and extra == {"args": []}
        ]
        assert all("session" not in main for main in closes)
        return len(closes)


@pytest.fixture
async def provider(stack: MemoryStack) -> Peer:
    return await join(stack, "prov")


async def offer(counter: Counter) -> str:
    """Offer a function that returns *counter*; its path."""
    await counter.peer.provide("svc", {"count": counter.start})
    return f"/{counter.peer.workspace}/services/svc/count"


def events(answer: HttpAnswer) -> list[Any]:
    """What the events of *answer* say."""
    assert answer.headers["content-type"] == "text/event-stream"
    *parts, last = answer.body.decode().split("\n\n")
    assert last == ""
    texts = [part.removeprefix("data: ") for part in parts]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


@pytest.mark.parametrize("limit", [0, 1, 50])
async def test_items_are_events(autojump_clock: MockClock, stack: MemoryStack, provider: Peer, limit: int) -> None:
    counter = Counter(provider, limit)
    answer = await http(stack, await offer(counter))
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    assert events(answer) == [*({"n": number + 1} for number in range(limit)), "[DONE]"]
    await wait_all_tasks_blocked()
    assert counter.count_closes() == 1


async def test_items_are_values_one_behind_the_other(
    autojump_clock: MockClock, stack: MemoryStack, provider: Peer
) -> None:
    answer = await http(stack, await offer(Counter(provider)), headers=MSGPACK)
    assert answer.headers["content-type"] == "application/msgpack"
    reader = msgpack.Unpacker()
    reader.feed(answer.body)
    assert list(reader) == [{"n": 1}, {"n": 2}, {"n": 3}]


async def test_an_error_before_the_first_item_has_its_status(
    autojump_clock: MockClock, stack: MemoryStack, provider: Peer
) -> None:
    counter = Counter(provider, 0, "ValueError: not today")
    answer = await http(stack, await offer(counter))
    assert (answer.status, answer.detail) == (400, "ValueError: not today")
    await wait_all_tasks_blocked()
    assert counter.count_closes() == 1


@pytest.mark.parametrize("headers", [None, MSGPACK], ids=["json", "msgpack"])
async def test_a_later_error_is_told_in_the_stream(
    autojump_clock: MockClock, stack: MemoryStack, provider: Peer, headers: dict[str, str] | None
) -> None:
    answer = await http(stack, await offer(Counter(provider, 2, "ValueError: no more")), headers=headers)
    assert answer.status == 200
    text = "RemoteError: ValueError: no more"
    if headers is None:
        assert events(answer) == [{"n": 1}, {"n": 2}, {"error": text}, "[DONE]"]
    else:
        reader = msgpack.Unpacker()
        reader.feed(answer.body)
        assert list(reader) == [{"n": 1}, {"n": 2}, values.error(text)]


async def test_an_item_that_json_cannot_say_is_an_error(
    autojump_clock: MockClock, stack: MemoryStack, provider: Peer
) -> None:
    counter = Counter(provider)
    provider.functions["gen.next"] = counter_of_bytes
    answer = await http(stack, await offer(counter))
    assert answer.status == 406
    assert "msgpack" in answer.detail


async def counter_of_bytes(call: Call) -> bytes:
    return b"\x00"


async def test_a_generator_of_somebody_else_is_not_read(
    autojump_clock: MockClock, stack: MemoryStack, provider: Peer
) -> None:
    counter = Counter(provider)
    counter.value["_rtarget"] = "elsewhere/victim"
    answer = await http(stack, await offer(counter))
    assert answer.status == 406
    assert counter.made == 0


async def test_a_slow_reader_slows_the_generator(autojump_clock: MockClock, stack: MemoryStack, provider: Peer) -> None:
    counter = Counter(provider, float("inf"))
    path = await offer(counter)
    await http(stack, f"/{provider.workspace}/services/svc")  # what is asked once is known now
    stream = stack.connect(lockstep=True)
    stack.clients.start_soon(stream.send_all, request_bytes(path))
    for _ in range(20):
        await stream.receive_some()
    await wait_all_tasks_blocked()
    made = counter.made
    assert 0 < made < 25
    await trio.sleep(5)
    assert counter.made == made
    await stream.aclose()


async def test_a_client_that_leaves_closes_the_generator(
    autojump_clock: MockClock, stack: MemoryStack, provider: Peer
) -> None:
    counter = Counter(provider, 1)
    waiting = trio.Event()

    async def then_wait(call: Call) -> Any:
        if counter.made:
            waiting.set()
            await trio.sleep_forever()
        return await counter.next(call)

    path = await offer(counter)
    provider.functions["gen.next"] = then_wait
    tasks = len(stack.servers.child_tasks)
    stream = stack.connect()
    await stream.send_all(request_bytes(path))
    await waiting.wait()
    began = trio.current_time()
    await stream.aclose()
    await wait_all_tasks_blocked()
    assert counter.count_closes() == 1
    assert trio.current_time() == began
    assert not stack.broker.server.outbound
    assert len(stack.servers.child_tasks) == tasks


async def test_a_provider_that_vanishes_ends_the_stream_with_an_error(
    autojump_clock: MockClock, stack: MemoryStack, provider: Peer
) -> None:
    counter = Counter(provider, 2)
    path = await offer(counter)

    async def then_vanish(call: Call) -> Any:
        if counter.made == 2:
            await trio.aclose_forcefully(provider.socket.stream)
            await trio.sleep_forever()
        return await counter.next(call)

    provider.functions["gen.next"] = then_vanish
    *first, error, last = events(await http(stack, path))
    assert (first, last) == ([{"n": 1}, {"n": 2}], "[DONE]")
    assert "is not connected" in error["error"]


@pytest.mark.parametrize("end", ["revoked", "expired"])
async def test_a_token_that_ends_ends_the_stream(
    autojump_clock: MockClock, stack: MemoryStack, provider: Peer, end: str
) -> None:
    broker, counter = stack.broker, Counter(provider, float("inf"))
    path, token = await offer(counter), await provider.manager("generate_token", {"expires_in": 60})
    wall = broker.clock

    async def then_end(call: Call) -> Any:
        if counter.made == 2 and end == "revoked":
            broker.tokens.revoke(broker.authenticate(token), ROOT)
        elif counter.made == 2:
            broker.clock = lambda: wall() + 61
        return await counter.next(call)

    provider.functions["gen.next"] = then_end
    bearer = {"Authorization": f"Bearer {token}"}
    told = events(await http(stack, path, headers=bearer))
    words = f"the token {'was revoked' if end == 'revoked' else 'has expired'}; generate a new one"
    assert told == [{"n": 1}, {"n": 2}, {"n": 3}, {"error": f"PermissionError: {words}"}, "[DONE]"]
    await wait_all_tasks_blocked()
    assert counter.count_closes() == 1
    if end == "revoked":
        answer = await http(stack, path, headers=bearer)
        assert (answer.status, answer.detail) == (401, words)


async def test_a_stream_can_be_cancelled_at_every_step(
    autojump_clock: MockClock, stack: MemoryStack, provider: Peer
) -> None:
    """After the n-th step of any task; whenever the generator had begun, it is closed once."""
    counter = Counter(provider, 3)
    path = await offer(counter)
    (session,) = stack.broker.registry.sessions()
    for count in itertools.count():
        counter.made = 0
        provider.others.clear()
        client, end = connection()
        async with trio.open_nursery() as nursery:
            cancelling = Steps(count, nursery.cancel_scope)
            trio.lowlevel.add_instrument(cancelling)
            nursery.start_soon(stack.serve, end)
            await client.send_all(request_bytes(path))
            await wait_all_tasks_blocked()
            trio.lowlevel.remove_instrument(cancelling)
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert counter.count_closes() <= 1, count
        assert counter.count_closes() == 1 or not counter.made, count
        assert not stack.broker.server.outbound, count
        assert not session.inbound, count
        if not cancelling.done:
            break
    assert count > 40
