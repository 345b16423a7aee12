"""One server from its start to its end: its rooms, its clock, its data directory, and two of them in one process."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.lifespan import Lifespan
from trio.testing import MockClock, wait_all_tasks_blocked

from hypha.accounts.account import mark_of
from hypha.assembly import Assembly, build
from hypha.broker.broker import Broker
from hypha.config import Config, Limits
from hypha.errors import ConfigError
from hypha.store import open_state
from hypha.web import guard
from tests.web.stack import MemoryStack, memory_stack, settings_for
from tests.web.wires import Call, Closed, Rejected, attach, http, join


async def hello(call: Call) -> str:
    return "hello"


async def start(assembly: Assembly, nursery: trio.Nursery) -> Lifespan:
    """Start the lifespan of an assembly as Hypercorn does."""
    assembly.writes_in_thread = False  # for which no mock clock would wait
    app: Any = assembly
    lifespan = Lifespan(ASGIWrapper(app), settings_for(assembly.config), {})
    await nursery.start(lifespan.handle_lifespan)
    await lifespan.wait_for_startup()
    return lifespan


async def test_ready_from_start_to_shutdown(tmp_path: Path, autojump_clock: MockClock) -> None:
    assembly = build(Config(data_dir=tmp_path))
    assert (assembly.is_ready, assembly.services_loaded) == (False, False)
    async with trio.open_nursery() as nursery:
        lifespan = await start(assembly, nursery)
        assert (assembly.is_ready, assembly.services_loaded) == (True, True)
        await lifespan.wait_for_shutdown()
        assert (assembly.is_ready, assembly.services_loaded) == (False, False)
        nursery.cancel_scope.cancel()


async def test_the_end_of_hypercorn_is_heard_at_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    """From the first connection, of whatever kind it was."""
    for kind in ("http", "websocket"):
        async with memory_stack(Config(data_dir=tmp_path)) as stack:
            if kind == "http":
                await http(stack, "/health/liveness")
            else:
                await join(stack, "a")
            assert stack.assembly.is_ready
            await stack.context.terminated.set()
            await wait_all_tasks_blocked()
            assert not stack.assembly.is_ready


async def test_a_server_that_nobody_used_ends_too(tmp_path: Path, autojump_clock: MockClock) -> None:
    began = trio.current_time()
    async with memory_stack(Config(data_dir=tmp_path)):
        pass
    assert trio.current_time() == began


async def test_the_invitation_that_is_printed_is_on_the_disk(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with memory_stack(Config(data_dir=tmp_path)) as stack:
        secret = await stack.assembly.first_invitation()
        assert secret is not None
        with closing(open_state(tmp_path)) as state:
            assert [(kind, name) for kind, name, _ in state.load()] == [("invitation", mark_of(secret))]


@pytest.mark.parametrize("disk", ["full", "hanging"])
async def test_a_disk_that_takes_nothing_keeps_no_owner_out(
    disk: str, tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_stack(Config(data_dir=tmp_path)) as stack:
        rooms = stack.assembly._open_rooms()

        def refuse(*args: object, **kwargs: object) -> None:
            raise OSError("no space left")

        if disk == "full":
            monkeypatch.setattr(rooms.broker.records._store, "write", refuse)
        else:
            monkeypatch.setattr(rooms.broker.records, "kept", trio.sleep_forever)
        began = trio.current_time()
        secret = await stack.assembly.first_invitation()
        assert trio.current_time() - began <= 2
        assert secret is not None
        rooms.people.accounts.invitation(secret)
        monkeypatch.undo()


async def test_one_server_at_a_time_on_a_data_directory(tmp_path: Path, autojump_clock: MockClock) -> None:
    config = Config(data_dir=tmp_path)
    async with memory_stack(config) as stack:
        second: Any = build(config)
        events: list[Any] = []

        async def receive() -> Any:
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            events.append(message)

        with pytest.raises(ConfigError, match=str(tmp_path)):
            await second({"type": "lifespan", "state": {}}, receive, send)
        assert events == []
        assert (await http(stack, "/health/readiness")).status == 200
    async with memory_stack(config) as stack:
        assert (await http(stack, "/health/readiness")).status == 200


async def test_a_data_directory_makes_the_same_server_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Tokens go on, and clients come back as who they were."""
    names = []
    for path in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        async with memory_stack(Config(data_dir=path)) as stack:
            names.append(stack.broker.server.address.client)
            if len(names) == 1:
                peer = await join(stack, "prov")
                resumption = (await peer.manager("get_connection_info"))["reconnection_token"]
                token = await peer.manager("generate_token")
            elif len(names) == 2:
                again = await join(stack, "prov", f"&reconnection_token={resumption}")
                assert again.workspace == peer.workspace
                info = await http(stack, f"/{peer.workspace}/info", headers={"Authorization": token})
                assert info.json()["name"] == peer.workspace
            else:
                answer = await http(stack, f"/{peer.workspace}/info", headers={"Authorization": token})
                assert answer.status == 401
    assert names[0] == names[1] != names[2]
    assert not any(character in names[0] for character in "/:*")


async def test_two_servers_in_one_process_know_nothing_of_each_other(tmp_path: Path, autojump_clock: MockClock) -> None:
    first_config = Config(data_dir=tmp_path / "a")
    second_config = Config(data_dir=tmp_path / "b", base_path="/lab", limits=Limits(frame_bytes=1000))
    async with memory_stack(first_config) as first, memory_stack(second_config) as second:
        provider = await join(first, "prov")
        await provider.provide("demo", {"hello": hello})
        target = f"/{provider.workspace}/services/demo/hello"
        assert (await http(first, target)).json() == "hello"
        assert (await http(second, f"/lab{target}")).status == 404
        assert (await http(second, target)).status == 404
        other = await join(second, "prov", prefix="/lab")
        token = await provider.manager("generate_token")
        assert (await http(second, "/lab/workspaces", headers={"Authorization": token})).status == 401
        with pytest.raises(Rejected, match="not connected"):
            await other.call(provider.name, "services.demo.hello")
        await second.shut_down()
        await other.ended.wait()
        assert other.closed == Closed(1012, "the server is restarting")
        assert (await http(first, target)).json() == "hello"


async def test_a_session_does_not_outlive_its_token(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The sweeper looks once a second; tokens go by the clock on the wall, which does not jump."""
    async with memory_stack(Config(data_dir=tmp_path)) as stack:
        owner = await join(stack, "owner")
        token = await owner.manager("generate_token")
        guest = await join(stack, "guest", f"&workspace={owner.workspace}&token={token}")
        wall = Wall(stack.broker)
        wall.advance(3 * 3600 - 60)
        await trio.sleep(2)
        assert await guest.manager("echo", 1) == 1
        wall.advance(120)
        await guest.ended.wait()
        assert guest.closed == Closed(1008, "the token has expired")
        assert await owner.manager("echo", 1) == 1


class Wall:
    """The clock on the wall of a broker, to be advanced."""

    def __init__(self, broker: Broker) -> None:
        self._clock = broker.clock
        self._ahead = 0.0
        broker.clock = self.time

    def time(self) -> float:
        return self._clock() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


async def test_one_clock_for_all_deadlines(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Calls of the server's own functions are kept alive, lost clients forgotten, idle workspaces dropped."""
    async with memory_stack(Config(data_dir=tmp_path, limits=Limits(session_grace=100.0))) as stack:
        lost = await join(stack, "lost")
        await lost.provide("demo", {"hello": hello})
        await trio.aclose_forcefully(lost.socket.stream)
        await wait_all_tasks_blocked()
        registry = stack.broker.registry
        assert "lost" in registry.workspaces[lost.workspace].parked
        await trio.sleep(99)
        assert "lost" in registry.workspaces[lost.workspace].parked
        await trio.sleep(3)
        assert lost.workspace not in registry.workspaces


async def test_a_fault_of_the_sweeper_ends_the_server(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It must not serve on without its clock: the worker then starts a new one."""
    assembly = build(Config(data_dir=tmp_path))
    async with trio.open_nursery() as nursery:
        lifespan = await start(assembly, nursery)
        monkeypatch.setattr(Broker, "sweep", broken)
        await lifespan.shutdown.wait()
        assert not assembly.is_ready
        assert "of glass" in caplog.text
    async with memory_stack(Config(data_dir=tmp_path)) as stack:  # the data directory is free again
        assert stack.assembly.is_ready


def broken(self: Broker) -> None:
    raise RuntimeError("of glass")


async def test_nothing_is_left_of_the_clients(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with memory_stack(Config(data_dir=tmp_path)) as stack:
        for number in range(20):
            peer = await join(stack, f"c{number}")
            await peer.provide("demo", {"hello": hello})
            assert (await http(stack, f"/{peer.workspace}/services/demo/hello")).status == 200
            await peer.leave()
        await wait_all_tasks_blocked()
        assert not stack.servers.child_tasks
        assert_empty(stack)


def assert_empty(stack: MemoryStack) -> None:
    broker = stack.broker
    assert not list(broker.registry.sessions())
    assert not broker.server.inbound
    assert not broker.server.outbound
    assert set(broker.registry.workspaces) == {"public"}


def test_an_untested_hypercorn_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "version", lambda name: "0.19.0")
    with pytest.raises(ConfigError, match=r"hypercorn 0\.19\.0 is installed"):
        build(Config(data_dir=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


async def test_who_comes_before_the_manager_was_asked(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A client that only connects is known and told of the end, too."""
    async with memory_stack(Config(data_dir=tmp_path)) as stack:
        quiet = await attach(stack, "quiet")
        await wait_all_tasks_blocked()
        await stack.shut_down()
        await quiet.ended.wait()
        assert quiet.closed == Closed(1012, "the server is restarting")
