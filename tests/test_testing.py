"""What a test opens with ``hypha.testing``: it is a server, it is the caller's own, and nothing is left of it."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hypha.assembly import Assembly
from hypha.broker.broker import Broker
from hypha.config import Config, Limits, parse_mount
from hypha.errors import ConfigError, Conflict, HyphaError, InvalidArgument
from hypha.testing import LiveServer, open_server
from hypha.web import guard
from tests.house import processes
from tests.house.examples import examples
from tests.house.leaks import Snapshot
from tests.web.stack import LoopbackStack, Steps, memory_stack
from tests.web.wires import Closed, Rejected, attach, exchange, join, request_bytes, upgrade

KINDS = pytest.mark.parametrize("memory", [True, False], ids=["memory", "loopback"])


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary directories are made. None is there after the test."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    yield path
    assert os.listdir(path) == []


async def is_ready(server: LiveServer) -> bool:
    async with await server.open_stream() as stream:
        return (await exchange(stream, f"{server.config.base_path}/health/readiness")).status == 200


# --- what is opened -------------------------------------------------------------------------------------------


async def test_on_a_free_port_of_the_loopback() -> None:
    async with open_server() as server, open_server() as other:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert server.port != other.port
        assert await is_ready(server)
        assert await is_ready(other)


async def test_in_memory_there_is_no_socket(autojump_clock: MockClock) -> None:
    before = Snapshot.take().files
    async with open_server(memory=True) as server:
        assert (server.url, server.port) == ("http://hypha.test", 80)
        assert await is_ready(server)
        assert not [target for _, target in Snapshot.take().files - before if target.startswith("socket:")]


async def test_in_memory_time_is_the_clocks(autojump_clock: MockClock) -> None:
    async with open_server(memory=True, limits=Limits(handshake_seconds=3600.0)) as server:
        async with await server.open_stream() as stream:
            await upgrade(stream, "/ws")
            began = trio.current_time()
            while await stream.receive_some():
                pass
        assert 3600 <= trio.current_time() - began < 3620


@KINDS
async def test_with_any_configuration(memory: bool, tmp_path: Path) -> None:
    (tmp_path / "hello.txt").write_text("hello")
    mount = parse_mount("/files:.", tmp_path)
    async with open_server(memory=memory, base_path="/lab", static_mounts=(mount,)) as server:
        assert server.url.endswith("/lab")
        assert server.config.static_mounts == (mount,)
        async with await server.open_stream() as stream:
            assert (await exchange(stream, "/lab/files/hello.txt")).body == b"hello"


@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]"), ("0.0.0.0", "127.0.0.1"), ("localhost", "127.0.0.1")])
async def test_at_another_address(host: str, shown: str) -> None:
    async with open_server(host=host) as server:
        assert server.url == f"http://{shown}:{server.port}"
        assert await is_ready(server)


async def test_a_field_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="limit_"):
        async with open_server(limit_=1):
            pass


@KINDS
async def test_a_data_directory_of_ones_own_is_kept(memory: bool, tmp_path: Path, temporary: Path) -> None:
    async with open_server(memory=memory, data_dir=tmp_path / "data"):
        assert os.listdir(temporary) == []
    assert (tmp_path / "data" / "signing.key").exists()


async def test_two_servers_know_nothing_of_each_other(autojump_clock: MockClock) -> None:
    async with open_server(memory=True) as first, open_server(memory=True, base_path="/lab") as second:
        token = first.token()
        for server, status in ((first, 200), (second, 401)):
            async with await server.open_stream() as stream:
                path = f"{server.config.base_path}/public/info"
                answer = await exchange(stream, path, headers={"Authorization": f"Bearer {token}"})
                assert answer.status == status
        second.shut_down()
        await wait_all_tasks_blocked()
        assert await is_ready(first)


# --- tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["read", "read_write", "admin"])
async def test_a_token_is_for_the_workspace_and_level(level: str, tmp_path: Path, autojump_clock: MockClock) -> None:
    async with memory_stack(Config(data_dir=tmp_path)) as stack:
        peer = await join(stack, "a", f"&token={stack.server.token('lab', level)}")
        assert peer.workspace == "lab"
        if level == "admin":
            await peer.manager("generate_token", {"permission": "admin"})
        guest = await join(stack, "b", f"&token={stack.server.token('lab')}")
        assert (guest.workspace, guest.name) == ("lab", "lab/b")
        with pytest.raises(Rejected):
            await peer.manager("get_workspace_info", "elsewhere")


async def test_a_token_for_what_cannot_be(autojump_clock: MockClock) -> None:
    async with open_server(memory=True) as server:
        with pytest.raises(InvalidArgument, match="there is no level 'much'; write read, read_write or admin"):
            server.token(level="much")
        with pytest.raises(Conflict, match="reserved"):
            server.token("health")


# --- our client -----------------------------------------------------------------------------------------------


@KINDS
async def test_our_client_is_connected_in_a_line(memory: bool) -> None:
    async with open_server(memory=memory, base_path="/lab") as server:
        worker = server.connect({"client_id": "worker"})
        user = server.connect(client_id="user", token=server.token("mine"))
        async with worker as offering, user as calling:
            hello = {"id": "hello", "config": {"visibility": "public"}, "hello": lambda name: f"Hello {name}"}
            await offering.register_service(hello)
            service = await calling.get_service("hello")
            assert await service.hello("John") == "Hello John"
            assert (calling.config.workspace, calling.config.client_id) == ("mine", "user")


async def test_our_client_sleeps_by_the_clock(autojump_clock: MockClock) -> None:
    async with open_server(memory=True) as server, server.connect() as user:
        await trio.sleep(7200)
        assert await user.echo("still here") == "still here"
        assert 7200 <= trio.current_time() < 7201


@KINDS
async def test_our_client_is_told_of_the_end(memory: bool) -> None:
    async with open_server(memory=memory) as server, server.connect({"reconnect": False}) as user:
        server.shut_down()
        with pytest.raises(HyphaError):
            await user.serve()


# --- the end --------------------------------------------------------------------------------------------------


@KINDS
async def test_clients_are_told_of_the_end(memory: bool) -> None:
    async with open_server(memory=memory) as server, trio.open_nursery() as clients:
        stack = LoopbackStack(server, clients)
        peer = await attach(stack, "a")
        server.shut_down()
        await peer.ended.wait()
        assert peer.closed == Closed(1012, "the server is restarting")
        await trio.aclose_forcefully(stack.streams[0])
    with pytest.raises(OSError):  # noqa: PT011  the text is the system's
        await server.open_stream()


@KINDS
async def test_after_the_end_nobody_comes_in(memory: bool) -> None:
    async with open_server(memory=memory) as server:
        server.shut_down()
        await wait_all_tasks_blocked(0.01)
        with pytest.raises(OSError):  # noqa: PT011  the text is the system's
            await server.open_stream()
        server.shut_down()  # it is ending already


async def test_requests_that_run_have_their_time(autojump_clock: MockClock) -> None:
    async with open_server(memory=True, limits=Limits(drain_seconds=7.0)) as server:
        stream = await server.open_stream()
        await stream.send_all(request_bytes("/health/liveness")[:20])
        await wait_all_tasks_blocked()
        began = trio.current_time()
    assert trio.current_time() - began <= 7
    assert not await stream.receive_some()


# --- errors of the caller's -----------------------------------------------------------------------------------


class Own(Exception):
    """An error of the block."""


ERRORS = [Own("of glass"), KeyError("x"), ExceptionGroup("two", [Own("a"), Own("b")]), SystemExit(3)]


@KINDS
@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_what_the_block_raises_comes_out_as_it_is(memory: bool, error: BaseException) -> None:
    cause, context = ValueError("the cause"), ValueError("what was handled")
    caught: BaseException | None = None
    try:
        async with open_server(memory=memory):
            try:
                raise context
            except ValueError:
                raise error from cause
    except type(error) as found:
        caught = found
    assert caught is error
    assert (error.__cause__, error.__context__) == (cause, context)


async def test_a_test_can_be_skipped_in_the_block(autojump_clock: MockClock) -> None:
    with pytest.raises(pytest.skip.Exception, match="not today"):
        async with open_server(memory=True):
            pytest.skip("not today")


@KINDS
async def test_the_block_may_raise_while_its_clients_are_connected(memory: bool) -> None:
    async def use(server: LiveServer) -> None:
        async with await server.open_stream() as stream:
            await upgrade(stream, "/ws?client_id=a")
            raise Own

    with pytest.raises(Own):
        async with open_server(memory=memory) as server:
            await use(server)


# --- errors of the server's -----------------------------------------------------------------------------------


@KINDS
async def test_why_it_cannot_start(memory: bool, tmp_path: Path) -> None:
    async with open_server(memory=memory, data_dir=tmp_path) as server:
        with pytest.raises(ConfigError, match=str(tmp_path)):
            async with open_server(memory=memory, data_dir=tmp_path):
                raise AssertionError("not opened")
        assert await is_ready(server)


async def test_a_port_that_is_taken() -> None:
    async with open_server() as server:
        with pytest.raises(ConfigError, match=f"port {server.port} is taken"):
            async with open_server(port=server.port):
                raise AssertionError("not opened")


@KINDS
async def test_why_it_cannot_go_on(memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broker, "sweep", broken)  # the sweeper begins after a second
    with pytest.raises(RuntimeError, match="of glass"):
        async with open_server(memory=memory):
            await trio.sleep_forever()


def broken(self: Broker) -> None:
    raise RuntimeError("of glass")


SERVICES = "format_version: 1\nservices:\n  - {name: program, command: %s}\n"


@pytest.mark.parametrize(
    ("memory", "command", "reason"),
    [(False, "'false'", "program"), (True, "sleep 1000", "a TCP address"), (False, "[]", "the command is empty")],
)
async def test_what_starts_with_it_and_cannot(memory: bool, command: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "services.yaml"
    file.write_text(SERVICES % command)
    with pytest.raises(HyphaError, match=reason):
        async with open_server(memory=memory, services_config=file):
            await trio.sleep_forever()


async def test_what_starts_with_it_ends_with_it(tmp_path: Path) -> None:
    file = tmp_path / "services.yaml"
    file.write_text(SERVICES % "sleep 1000")
    before = Snapshot.take().processes
    async with open_server(services_config=file) as server:
        while Snapshot.take().processes == before:
            assert await is_ready(server)
    assert Snapshot.take().processes == before


async def interrupted(scope: trio.CancelScope) -> None:
    """Cancel *scope*, and raise when the cancellation comes."""
    scope.cancel()
    try:
        await trio.sleep_forever()
    finally:
        raise Own


async def test_errors_of_both_come_together(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broker, "sweep", broken)
    with pytest.RaisesGroup(RuntimeError, Own):
        async with open_server(memory=True):
            await interrupted(trio.CancelScope())


# --- cancellation ---------------------------------------------------------------------------------------------


@KINDS
async def test_the_block_may_be_cancelled(memory: bool) -> None:
    with trio.CancelScope() as scope:
        async with open_server(memory=memory):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


@KINDS
async def test_what_the_block_raises_when_it_is_cancelled_comes_out_as_it_is(memory: bool) -> None:
    with pytest.raises(Own), trio.CancelScope() as scope:
        async with open_server(memory=memory):
            await interrupted(scope)


Use = Callable[[LiveServer], Awaitable[object]]


async def call(server: LiveServer) -> None:
    """Connect, and stay connected while the server ends."""
    stream = await server.open_stream()
    await upgrade(stream, "/ws?client_id=a")
    server.shut_down()
    while await stream.receive_some():
        pass
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("use", [is_ready, call], ids=["http", "websocket"])
async def test_it_can_be_cancelled_at_every_step_in_memory(
    use: Use, autojump_clock: MockClock, temporary: Path
) -> None:
    assert await cancelled_at_every_step(use, temporary, memory=True) > 60


@pytest.mark.slow
async def test_it_can_be_cancelled_at_every_step_on_the_loopback(temporary: Path) -> None:
    assert await cancelled_at_every_step(is_ready, temporary, memory=False) > 60


async def cancelled_at_every_step(use: Use, temporary: Path, *, memory: bool) -> int:
    """Open, use and leave a server, cancelled after the n-th step of any task, for every n until it is complete."""
    tasks = count_tasks()
    for count in itertools.count():
        left = False
        with trio.CancelScope() as scope:
            cancelling = Steps(count, scope)
            trio.lowlevel.add_instrument(cancelling)
            async with open_server(memory=memory) as server:
                await use(server)
            left = True
        trio.lowlevel.remove_instrument(cancelling)
        assert os.listdir(temporary) == [], count
        assert count_tasks() == tasks, count
        if not cancelling.done:
            assert left
            return count
    raise AssertionError


def count_tasks() -> int:
    """The tasks of this run."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    tasks = [root]
    for task in tasks:
        tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return len(tasks)


# --- the process ----------------------------------------------------------------------------------------------


@KINDS
async def test_nothing_of_the_process_is_changed(memory: bool) -> None:
    before = process_state()
    async with open_server(memory=memory) as server:
        assert process_state() == before
        assert await is_ready(server)
    assert process_state() == before


def process_state() -> list[Any]:
    loggers = [logging.getLogger(name) for name in ("", "hypha", "hypercorn", "hypercorn.error", "hypercorn.access")]
    return [
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        [(item.level, list(item.handlers), item.propagate, item.disabled) for item in loggers],
        resource.getrlimit(resource.RLIMIT_NOFILE),
        gc.get_threshold(),
        gc.get_freeze_count(),
        gc.isenabled(),
        os.getcwd(),
        dict(os.environ),
    ]


async def test_its_limit_of_open_files_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of the command line raises it, for ten thousand connections."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, most))
    try:
        async with open_server() as server:
            assert await is_ready(server)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (500, most)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))


async def test_a_limit_of_connections_holds() -> None:
    async with open_server(limits=Limits(connections=1)) as server:
        first = await server.open_stream()
        await exchange(first, "/health/liveness")
        async with await server.open_stream() as second:
            await second.send_all(request_bytes("/health/liveness"))
            with trio.move_on_after(0.05):
                raise AssertionError(await second.receive_some())
            await first.aclose()
            assert await second.receive_some()


# --- the door -------------------------------------------------------------------------------------------------


@KINDS
async def test_the_application_is_told_of_the_door(memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through it the server's own programs come in, wherever it is."""
    doors: list[guard.Door] = []
    live = Assembly._live

    async def telling(self: Assembly, scope: Any, receive: Any, send: Any) -> None:
        scope["state"][guard.OPENED] = doors.append
        await live(self, scope, receive, send)

    monkeypatch.setattr(Assembly, "_live", telling)
    async with open_server(memory=memory) as server:
        (door,) = doors
        assert [sock.getsockname()[1] for sock in door.sockets] == ([] if memory else [server.port])
        async with await door.connect() as stream:
            assert (await exchange(stream, "/health/readiness")).status == 200


# --- with pytest ----------------------------------------------------------------------------------------------


PLUGIN = 'pytest_plugins = ["hypha.pytest_plugin"]\n'
USER_TEST = """
import pytest

@pytest.mark.trio
async def test_it(hypha_server):
    assert hypha_server.port

@pytest.mark.trio
async def test_it_fails(hypha_server):
    assert hypha_server.url == ""
"""


@pytest.mark.slow
async def test_the_fixture_without_options(nursery: trio.Nursery, tmp_path: Path) -> None:
    """And without pytest-trio's own mode."""
    (tmp_path / "conftest.py").write_text(PLUGIN)
    (tmp_path / "test_it.py").write_text(USER_TEST)
    result = await pytest_in(nursery, tmp_path)
    assert "1 failed, 1 passed" in result.stdout, result
    assert "AssertionError: assert 'http://127.0.0.1:" in result.stdout


@pytest.mark.slow
async def test_the_page_as_it_stands(nursery: trio.Nursery, tmp_path: Path) -> None:
    """``docs/testing.md``: the configuration of pytest, every test, and the fixture."""
    page = examples("docs/testing.md")
    (tmp_path / "pytest.ini").write_text(page["ini"])
    (tmp_path / "conftest.py").write_text(page["conftest"])
    for name in ("hello", "memory", "fixture"):
        (tmp_path / f"test_{name}.py").write_text(page[name])
    result = await pytest_in(nursery, tmp_path)
    assert "3 passed" in result.stdout, result


def test_the_page_begins_with_ten_lines() -> None:
    assert len([line for line in examples("docs/testing.md")["hello"].splitlines() if line]) <= 10


async def pytest_in(nursery: trio.Nursery, path: Path) -> processes.Result:
    """Run the tests in *path*, in which a warning is an error."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    return await processes.run(nursery, command, cwd=path, seconds=60)
