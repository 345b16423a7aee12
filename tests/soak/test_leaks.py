"""The leaks that the soak tests have found, each by itself."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from socket import AF_INET
from typing import Any, cast

import hypercorn.config
import pytest
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from hypha.broker.broker import Broker
from hypha.config import Config, Limits
from hypha.web import guard
from hypha.web.upgrade import Upgrade
from hypha.web.ws import Connections
from tests.broker.memory import Scene
from tests.soak.http_client import get
from tests.soak.legacy_peer import handshake

App = Callable[[Any, Any, Any], Awaitable[None]]


class _Socket:
    """What Hypercorn asks of a socket."""

    family = AF_INET

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 50000)

    getsockname = getpeername


# --- HTTP connections -----------------------------------------------------------------------------------------


@asynccontextmanager
async def http_connection(app: App) -> AsyncIterator[trio.abc.HalfCloseableStream]:
    """The client's end of a connection that is served by *app*. Fails when serving does not end with the block."""
    guard.install()
    ours, theirs = memory_stream_pair()
    cast(Any, theirs).socket = _Socket()
    settings = hypercorn.config.Config()
    settings.errorlog = logging.getLogger("hypercorn.error")
    wrapper = ASGIWrapper(cast(ASGIFramework, app))
    server = guard.GuardedServer(wrapper, settings, WorkerContext(None), ConnectionState({}), theirs)
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            yield ours


async def hang(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """A call that only its client's departure ends."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def test_an_idle_connection_ends_with_its_client(autojump_clock: MockClock) -> None:
    async with http_connection(hang) as client:
        await wait_all_tasks_blocked()
        await client.aclose()


async def test_a_client_that_leaves_while_its_next_request_waits_is_noticed(autojump_clock: MockClock) -> None:
    async with http_connection(hang) as client:
        await client.send_all(get("/first") + get("/second"))
        await wait_all_tasks_blocked()
        await client.aclose()


async def test_a_client_that_leaves_after_a_refused_upgrade_is_noticed(autojump_clock: MockClock) -> None:
    async with http_connection(hang) as client:
        await client.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        await wait_all_tasks_blocked()
        await client.aclose()


async def test_an_answer_that_cannot_be_sent_ends_the_connection_whose_next_request_waits(
    autojump_clock: MockClock,
) -> None:
    left = trio.Event()

    async def answer_too_late(scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        await left.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await hang(scope, receive, send)

    async with http_connection(answer_too_late) as client:
        await client.send_all(get("/first") + get("/second") * 10_000)
        await wait_all_tasks_blocked()
        await client.aclose()
        left.set()


async def test_requests_that_were_sent_together_are_answered_in_their_order(autojump_clock: MockClock) -> None:
    async def answer(scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        body = scope["path"].encode()
        await trio.sleep(0.001)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    async with http_connection(answer) as client:
        requests = b"".join(get(f"/{number:04}") for number in range(200))
        await client.send_all(requests[:3000])
        await wait_all_tasks_blocked()
        await client.send_all(requests[3000:])
        received = b""
        while not received.endswith(b"/0199"):
            received += await client.receive_some()
        await client.aclose()
    assert re.findall(rb"\r\n\r\n/([0-9]{4})", received) == [b"%04d" % number for number in range(200)]


async def test_a_client_that_leaves_before_it_has_said_who_it_is_is_no_error(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Broker(Config(), b"k" * 32, "server")
    upgrade = Upgrade(broker, Connections(broker))
    async with http_connection(upgrade.serve) as client:
        await client.send_all(handshake("soak", {}))
        assert (await client.receive_some()).startswith(b"HTTP/1.1 101")
        await client.send_all(b"\x81\x82\0\0\0\0{}")
        await client.aclose()
    assert "Error" not in caplog.text


# --- calls in flight ------------------------------------------------------------------------------------------


async def test_a_call_that_both_sides_have_given_up_is_not_in_flight_for_ever(mock_clock: MockClock) -> None:
    """A caller that ran out of patience says nothing, and the function that it thereby stops never answers."""
    scene = Scene(Limits(busy_silence_seconds=100))
    caller, provider = scene.join("lab/caller"), scene.join("lab/provider")
    caller.call(provider.name, "services.work.given_up", session="s1")
    caller.call(provider.name, "services.work.long", session="s2")
    scene.broker.sweep()
    mock_clock.jump(150)
    provider.send({"type": "method", "to": caller.name, "method": "s2.hb-reset", "session": "h1"})
    caller.send({"type": "method", "to": provider.name, "method": "h1.resolve", "parent": "h1"})
    mock_clock.jump(51)
    scene.broker.sweep()
    assert list(caller.session.outbound) == ["s2"]
    assert list(provider.session.inbound) == [(caller.session, "s2")]
    mock_clock.jump(201)
    scene.broker.sweep()
    assert not any((caller.session.outbound, provider.session.inbound, provider.session.unheard))


async def test_a_call_of_the_server_is_in_flight_for_as_long_as_the_server_waits(mock_clock: MockClock) -> None:
    scene = Scene(Limits(busy_silence_seconds=100))
    provider = scene.join("lab/provider")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(scene.broker.server.call, provider.session, "services.work.long", [], patience=1000))
        await wait_all_tasks_blocked()
        for _ in range(3):
            mock_clock.jump(201)
            scene.broker.sweep()
        assert len(provider.session.inbound) == 1
        nursery.cancel_scope.cancel()
    assert not provider.session.inbound


# --- messages in parts ----------------------------------------------------------------------------------------


async def test_a_message_in_parts_that_its_sender_has_given_up_is_dropped(mock_clock: MockClock) -> None:
    """Clients of imjoy-rpc never say that they give up, and their connection may live for months (2.7)."""
    scene = Scene(Limits(busy_silence_seconds=100))
    parts = scene.join("lab/sender").session.chunks
    scene.broker.sweep()
    parts.create("given-up")
    parts.append("given-up", b"x" * 1000)
    parts.create("slow")
    mock_clock.jump(201)
    scene.broker.sweep()
    parts.append("slow", b"x" * 100)
    mock_clock.jump(201)
    scene.broker.sweep()
    assert list(parts.messages) == ["slow"]
    mock_clock.jump(201)
    scene.broker.sweep()
    assert (parts.messages, parts.size) == ({}, 0)
