"""Coming, going, and coming back."""

from __future__ import annotations

import errno
import json
import logging
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, serve_websocket
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Request, TextMessage

from hypha.client import Server, connect_to_server
from hypha.config import Limits
from hypha.errors import Conflict, InvalidArgument, NotAuthenticated, PeerGone, PermissionDenied
from hypha.testing import LiveServer, open_server
from tests.client.conftest import pair
from tests.web.stack import Steps


class Network:
    """Opens the connections of a client to *live*, and breaks them."""

    def __init__(self, live: LiveServer) -> None:
        self.live = live
        self.streams: list[Any] = []
        self.times: list[float] = []
        self.refuses = False

    async def dial(self) -> trio.abc.Stream:
        self.times.append(trio.current_time())
        if self.refuses:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens")
        stream = await self.live.open_stream()
        self.streams.append(stream)
        return stream

    async def cut(self) -> None:
        """Break the newest connection, as a network does."""
        await trio.aclose_forcefully(self.streams[-1])


def told(server: Server) -> list[str]:
    """What the program hears of its connection from now on."""
    events: list[str] = []

    async def hear(event: Any) -> None:
        events.append("up" if event.get("type") is None and "reason" not in event else event.get("reason", "?"))

    server.on("connected", hear)
    server.on("disconnected", hear)
    return events


async def echo(value: Any) -> Any:
    return value


async def test_what_the_server_says_is_the_config(live: LiveServer) -> None:
    async with live.connect({"client_id": "a"}) as server:
        assert server.config.client_id == "a"
        assert server.config.workspace == server.peer.workspace
        assert server.config.id == f"{server.config.workspace}/a"
        assert server.config.public_base_url == live.url
        assert "a" in repr(server)


async def test_who_leaves_is_gone_at_once(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        await worker.register_service({"id": "svc", "echo": echo})
        assert [entry.id for entry in await user.list_services()].count(f"{worker.peer.name}:svc") == 1
        await worker.disconnect()
        await wait_all_tasks_blocked()
        assert [entry.id for entry in await user.list_clients()] == [user.peer.name]
        with pytest.raises(PeerGone, match="disconnected"):
            await worker.echo(1)
        await worker.serve()


async def test_a_client_comes_back_as_the_same_with_its_services(live: LiveServer, autojump_clock: MockClock) -> None:
    async with live.connect({"client_id": "user"}) as user:
        network = Network(live)
        config = {"workspace": user.config.workspace, "token": await user.generate_token(), "client_id": "worker"}
        async with connect_to_server({"server_url": live.url, **config}, dial=network.dial) as worker:
            events = told(worker)
            await worker.register_service({"id": "svc", "echo": echo})
            service = await user.get_service("svc")
            for _ in range(3):
                await network.cut()
                await trio.sleep(20)
                assert await service.echo("again") == "again"
            assert events.count("up") == 3
            assert len(events) == 6
            assert [entry.id for entry in await user.list_services()].count(f"{worker.peer.name}:svc") == 1


async def test_events_are_heard_after_the_return(live: LiveServer, autojump_clock: MockClock) -> None:
    heard: list[Any] = []
    async with live.connect({"client_id": "user"}) as user:
        network = Network(live)
        config = {"workspace": user.config.workspace, "token": await user.generate_token()}
        async with connect_to_server({"server_url": live.url, **config}, dial=network.dial) as other:

            async def hear(event: Any) -> None:  # no thread: the clock would not wait for it
                heard.append(event.data)

            other.on("news", hear)
            await other.subscribe("news")
            await network.cut()
            await trio.sleep(5)
            await user.emit("news", {"n": 1})
            await trio.sleep(1)
            assert heard == [{"n": 1}]
            await other.unsubscribe("news")
            other.off("news")
            await user.emit("news", {"n": 2})
            await trio.sleep(1)
            assert heard == [{"n": 1}]


async def test_calls_in_flight_fail_and_later_ones_wait(live: LiveServer, autojump_clock: MockClock) -> None:
    async with pair(live) as (worker, _):
        begun = trio.Event()

        async def hang() -> None:
            begun.set()
            await trio.sleep_forever()

        await worker.register_service({"id": "svc", "hang": hang})
        network = Network(live)
        config = {"workspace": worker.config.workspace, "token": await worker.generate_token()}
        async with connect_to_server({"server_url": live.url, **config}, dial=network.dial) as user:
            service = await user.get_service("svc")

            async def ask() -> None:
                with pytest.raises(PeerGone, match="lost"):
                    await service.hang()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await begun.wait()
                network.refuses = True
                await network.cut()
            with trio.move_on_after(30) as scope:
                await user.echo(1)
            assert scope.cancelled_caught
            network.refuses = False
            with trio.fail_after(120):
                assert await user.echo(2) == 2


async def test_the_attempts_come_at_growing_intervals(live: LiveServer, autojump_clock: MockClock) -> None:
    network = Network(live)
    async with connect_to_server({"server_url": live.url}, dial=network.dial):
        network.refuses = True
        await network.cut()
        await trio.sleep(600)
    waits = [later - sooner for sooner, later in zip(network.times[1:], network.times[2:], strict=False)]
    assert 10 <= len(waits) <= 25
    assert waits[0] <= 4
    assert max(waits) <= 60
    assert min(waits[-5:]) >= 25


async def test_a_silent_server_is_given_up(live: LiveServer, autojump_clock: MockClock) -> None:
    network = Network(live)
    async with connect_to_server({"server_url": live.url}, dial=network.dial) as server:
        events = told(server)
        stream = network.streams[-1]
        stream.send_stream.send_all = _swallow  # what we say does not arrive, so that nothing is answered
        await trio.sleep(100)
        assert events[-1] == "up"
        assert len(network.times) >= 2
        assert await server.echo(1) == 1


async def _swallow(data: Any) -> None:
    await trio.lowlevel.checkpoint()


async def test_without_reconnect_the_end_is_the_end(live: LiveServer) -> None:
    network = Network(live)
    async with connect_to_server({"server_url": live.url, "reconnect": False}, dial=network.dial) as server:
        await network.cut()
        with pytest.raises(PeerGone, match="lost"):
            await server.serve()
        with pytest.raises(PeerGone, match="lost"):
            await server.echo(1)
    assert len(network.times) == 1


async def test_a_restart_of_the_server(tmp_path: Any, autojump_clock: MockClock) -> None:
    """The same data directory, another server: the client is known, and its services are there again."""
    async with open_server(memory=True, data_dir=tmp_path) as first:
        network = Network(first)
        async with connect_to_server({"server_url": first.url, "client_id": "worker"}, dial=network.dial) as worker:
            await worker.register_service({"id": "svc", "config": {"visibility": "public"}, "echo": echo})
            network.refuses = True
            first.shut_down()
            await trio.sleep(10)
    async with open_server(memory=True, data_dir=tmp_path) as second:
        network = Network(second)
        async with connect_to_server({"server_url": second.url, "client_id": "worker"}, dial=network.dial) as worker:
            await network.cut()
            await trio.sleep(10)
            assert await worker.echo(1) == 1


async def test_a_refusal_says_why_and_is_final(live: LiveServer) -> None:
    with pytest.raises(NotAuthenticated, match="the token"):
        async with live.connect({"token": "no token"}):
            pass
    async with live.connect({"client_id": "a"}) as server:
        for config, error in (
            ({"workspace": server.config.workspace}, PermissionDenied),
            (
                {"workspace": server.config.workspace, "token": await server.generate_token(), "client_id": "a"},
                Conflict,
            ),
        ):
            with pytest.raises(error):
                async with live.connect(config):
                    pass


async def test_who_is_refused_while_coming_back_learns_it(live: LiveServer, autojump_clock: MockClock) -> None:
    async with live.connect() as owner:
        token = await owner.generate_token()
        network = Network(live)
        config = {"workspace": owner.config.workspace, "token": token}
        async with connect_to_server({"server_url": live.url, **config}, dial=network.dial) as guest:
            await owner.revoke_token(token)
            with suppress(PeerGone):
                await network.cut()
            with pytest.raises(NotAuthenticated, match="revoked"):
                await guest.serve()


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError(errno.ECONNREFUSED, "refused"), OSError("no route"), trio.BrokenResourceError()]
)
async def test_a_server_that_cannot_be_reached(live: LiveServer, error: Exception) -> None:
    async def dial() -> trio.abc.Stream:
        raise error

    with pytest.raises(PeerGone, match=f"cannot connect to {live.url}"):
        async with connect_to_server({"server_url": live.url}, dial=dial):
            pass


async def test_a_server_that_says_nothing(autojump_clock: MockClock) -> None:
    async with open_server(memory=True, limits=Limits(handshake_seconds=1000.0)) as live:

        async def dial() -> trio.abc.Stream:
            stream: Any = await live.open_stream()
            stream.send_stream.send_all = _swallow
            return stream  # type: ignore[no-any-return]  # patched above

        began = trio.current_time()
        with pytest.raises(PeerGone, match="no answer within 30 s"):
            async with connect_to_server({"server_url": live.url}, dial=dial):
                pass
        assert trio.current_time() - began == pytest.approx(30, abs=1)


async def test_what_is_no_hypha_server(live: LiveServer) -> None:
    with pytest.raises(PeerGone, match="cannot connect"):
        async with connect_to_server({"server_url": f"{live.url}/nothing/here"}, dial=live.open_stream):
            pass


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "needs a 'server_url'"),
        ({"server_url": "127.0.0.1:9527"}, "write it as http"),
        ({"server_url": "ftp://a"}, "write it as http"),
        ({"server_url": 3}, "write it as http"),
        ({"server_url": "http://a:x"}, "write it as http"),
        ({"server_url": "http://a", "serverurl": 1}, "does not know 'serverurl'"),
        ({"server_url": "http://a", "token": 1}, "token must be text"),
        ({"server_url": "http://a", "method_timeout": 0}, "method_timeout"),
        ({"server_url": "http://a", "client_id": "a/b"}, "client id"),
    ],
)
async def test_settings_are_checked_before_anything_is_opened(config: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        async with connect_to_server(config):
            pass


# --- the block ------------------------------------------------------------------------------------------------


async def test_what_the_block_raises_comes_out_as_it_is(live: LiveServer) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with live.connect():
            raise KeyError("mine")


async def test_cancelling_the_block_says_goodbye(live: LiveServer) -> None:
    async with live.connect({"client_id": "watcher"}) as watcher:
        config = {"workspace": watcher.config.workspace, "token": await watcher.generate_token()}
        with trio.CancelScope() as scope:
            async with live.connect(config):
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert [entry.id for entry in await watcher.list_clients()] == [watcher.peer.name]


async def test_it_may_be_cancelled_at_every_step(caplog: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    caplog.set_level(logging.ERROR)
    count = 0
    async with open_server(memory=True) as live:
        done = False
        async with live.connect():
            pass  # what the server starts with its first connection is there now
        await wait_all_tasks_blocked()
        while not done:
            tasks = trio.lowlevel.current_statistics().tasks_living
            with trio.CancelScope() as scope:
                steps = Steps(count, scope)
                trio.lowlevel.add_instrument(steps)
                try:
                    async with live.connect({"client_id": "worker"}) as worker:
                        await worker.register_service({"id": "svc", "echo": echo})
                        service = await worker.get_service("svc")
                        assert await service.echo(1) == 1
                finally:
                    trio.lowlevel.remove_instrument(steps)
            done, count = not steps.done, count + 1
            await trio.sleep(10)  # of the clock that jumps: what has a deadline has ended
            assert trio.lowlevel.current_statistics().tasks_living == tasks, count
        assert count > 50
        assert not caplog.records


# --- what went wrong once -------------------------------------------------------------------------------------


async def test_who_waits_for_room_learns_that_the_connection_is_lost(
    live: LiveServer, autojump_clock: MockClock
) -> None:
    async with live.connect({"client_id": "user"}) as user:
        network = Network(live)
        config = {"workspace": user.config.workspace, "token": await user.generate_token()}
        async with connect_to_server({"server_url": live.url, **config}, dial=network.dial) as other:
            network.streams[-1].send_stream.send_all = _stall
            ended: list[str] = []
            all_ended = trio.Event()

            async def ask() -> None:
                try:
                    ended.append(str(await other.echo("x" * 1_000_000))[:1])
                except PeerGone:
                    ended.append("gone")
                if len(ended) == 20:
                    all_ended.set()

            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(ask)
                await wait_all_tasks_blocked()
                assert not ended
                await network.cut()
                with trio.fail_after(60):
                    await all_ended.wait()
            assert set(ended) <= {"gone", "x"}


async def _stall(data: Any) -> None:
    await trio.sleep_forever()


async def test_what_changed_while_it_was_away_is_what_the_server_has(
    live: LiveServer, autojump_clock: MockClock
) -> None:
    async with live.connect({"client_id": "user"}) as user:
        network = Network(live)
        config = {"workspace": user.config.workspace, "token": await user.generate_token(), "client_id": "worker"}
        async with connect_to_server({"server_url": live.url, **config}, dial=network.dial) as worker:

            async def offered() -> dict[str, str]:
                entries = await user.list_services()
                mine = [entry for entry in entries if entry.id.startswith(f"{worker.peer.name}:s")]
                return {entry.id.rpartition(":")[2]: entry.description for entry in mine}

            for number in range(4):
                await worker.register_service({"id": f"s{number}", "description": "old", "echo": echo})
            network.refuses = True
            await network.cut()
            await wait_all_tasks_blocked()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_unregister, worker, "s1")
                with trio.move_on_after(1):
                    await worker.unregister_service("s2")
                nursery.start_soon(_register, worker, {"id": "s0", "description": "new", "echo": echo})
                nursery.start_soon(_register, worker, {"id": "s9", "description": "new", "echo": echo})
                await wait_all_tasks_blocked()
                network.refuses = False
            await trio.sleep(60)
            assert await offered() == {"s0": "new", "s3": "old", "s9": "new"}


async def _register(worker: Server, service: dict[str, Any]) -> None:
    await worker.register_service(service, overwrite=True)


async def _unregister(worker: Server, name: str) -> None:
    await worker.unregister_service(name)


async def test_a_registration_that_is_cancelled_leaves_no_ghost(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        for count in range(12):
            with trio.CancelScope() as scope:
                steps = Steps(count, scope)
                trio.lowlevel.add_instrument(steps)
                try:
                    await worker.register_service({"id": f"ghost-{count}", "echo": echo})
                finally:
                    trio.lowlevel.remove_instrument(steps)
            await wait_all_tasks_blocked()
            entries = [entry.id.rpartition(":")[2] for entry in await user.list_services()]
            wanted = set(worker.peer.store.services)
            assert {name for name in entries if name.startswith("ghost")} == wanted, count


GREETINGS = ["hello", "[1]", '{"type": "connection_info"}', '{"type": "connection_info", "workspace": 3}']


@pytest.mark.parametrize("greeting", GREETINGS)
async def test_another_websocket_server_is_no_hypha_server(greeting: str) -> None:
    async def serve(request: Any) -> None:
        websocket = await request.accept()
        with suppress(ConnectionClosed):
            await websocket.get_message()
            await websocket.send_message(greeting)
            await websocket.get_message()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, serve, "127.0.0.1", 0, None)
        with trio.fail_after(10), pytest.raises(PeerGone, match="cannot connect"):
            async with connect_to_server({"server_url": f"http://127.0.0.1:{server.port}"}):
                pass
        nursery.cancel_scope.cancel()


async def test_a_server_with_another_key_is_joined_anew(tmp_path: Any, autojump_clock: MockClock) -> None:
    """The token of the session is worth nothing there, but the program has none of its own to be refused for."""
    async with open_server(memory=True) as first:
        network = Network(first)
        async with connect_to_server({"server_url": first.url, "client_id": "worker"}, dial=network.dial) as worker:
            before = worker.config.workspace
            async with open_server(memory=True) as second:
                network.live = second
                await network.cut()
                await trio.sleep(20)
                assert await worker.echo(1) == 1
                assert worker.config.workspace != before


async def test_a_ping_that_crosses_the_goodbye_does_no_harm() -> None:
    client, server = memory_stream_pair()
    info = {"type": "connection_info", "workspace": "ws", "client_id": "a", "manager_id": "m"}

    async def dial() -> Any:
        return client

    async def serve() -> None:
        codec = WSConnection(ConnectionType.SERVER)
        while data := bytes(await server.receive_some()):
            codec.receive_data(data)
            for event in codec.events():
                if isinstance(event, Request):
                    await server.send_all(codec.send(AcceptConnection()))
                elif isinstance(event, TextMessage):
                    await server.send_all(codec.send(TextMessage(json.dumps(info))))
                elif isinstance(event, CloseConnection):
                    await server.send_all(b"\x89\x00" + codec.send(event.response()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with trio.fail_after(10):
            async with connect_to_server({"server_url": "http://hypha.test"}, dial=dial) as worker:
                assert worker.config.workspace == "ws"
