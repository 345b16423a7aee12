"""``hypha.sync`` against a real server: calls that block, deadlines, Ctrl-C, and nothing left behind."""

from __future__ import annotations

import asyncio
import inspect
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

import hypha.client
from hypha.client import Record
from hypha.errors import CallTimeout, Conflict, HyphaError, InvalidArgument, NotFound, PeerGone, RemoteError
from hypha.sync import BlockingServer, connect_to_server, deadline
from hypha.testing import open_server
from tests.house import processes


class Thread:
    """A server that is open in a thread of its own."""

    def __init__(self, **config: Any) -> None:
        self._urls: queue.Queue[str] = queue.Queue()
        self._config = config
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))
        self._thread.start()
        self.url = self._urls.get(timeout=20)

    async def _serve(self) -> None:
        self._stop, self._token = trio.Event(), trio.lowlevel.current_trio_token()
        async with open_server(**self._config) as server:
            self._urls.put(server.url)
            await self._stop.wait()

    def stop(self) -> None:
        """End it, and wait for that."""
        if self._thread.is_alive():
            self._token.run_sync_soon(self._stop.set)
            self._thread.join()


@contextmanager
def serving(**config: Any) -> Iterator[Thread]:
    thread = Thread(**config)
    try:
        yield thread
    finally:
        thread.stop()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as server:
        yield server.url


@pytest.fixture
def worker(url: str) -> Iterator[BlockingServer]:
    with connect_to_server(server_url=url) as server:
        yield server


@pytest.fixture
def user(url: str, worker: BlockingServer) -> Iterator[BlockingServer]:
    with beside(worker, url) as server:
        yield server


def beside(server: BlockingServer, url: str) -> BlockingServer:
    """Another client in the workspace of *server*."""
    return connect_to_server({"server_url": url}, workspace=server.config.workspace, token=server.generate_token())


def offer(worker: BlockingServer, user: BlockingServer, **functions: Callable[..., Any]) -> Any:
    """The service of *worker* with *functions*, as *user* sees it."""
    worker.register_service({"id": "s", **functions}, overwrite=True)
    return user.get_service("s")


def seconds(function: Callable[[], object]) -> float:
    began = time.monotonic()
    function()
    return time.monotonic() - began


# --- calls ----------------------------------------------------------------------------------------------------


def test_the_page_of_the_module(url: str) -> None:
    with connect_to_server({"server_url": url}) as server:
        server.register_service({"id": "hello-world", "hello": lambda name: "Hello " + name})
        assert server.get_service("hello-world").hello("John") == "Hello John"
        assert server.config.workspace in repr(server)


def test_without_a_block(url: str) -> None:
    server = connect_to_server(server_url=url)
    assert server.echo("x") == "x"
    server.disconnect()
    server.disconnect()
    with pytest.raises(PeerGone, match="this client has disconnected"):
        server.echo("x")


def test_all_that_the_client_has_is_here_and_blocks(worker: BlockingServer) -> None:
    for name, member in inspect.getmembers(hypha.client.Server):
        if not name.startswith("_"):
            assert name in dir(worker)
            assert not inspect.iscoroutinefunction(getattr(worker, name))
            assert getattr(worker, name).__doc__ == member.__doc__ or name in {"disconnect", "peer"}
    with pytest.raises(AttributeError):
        _ = worker._ask


def test_services_come_and_go(worker: BlockingServer, user: BlockingServer) -> None:
    info = worker.register_service({"id": "s", "f": lambda: 1})
    with pytest.raises(Conflict):
        worker.register_service({"id": "s", "f": lambda: 1})
    assert info.id in [item.id for item in user.list_services()]
    worker.unregister_service(info)
    with pytest.raises(NotFound):
        user.get_service("s")


def test_values_of_every_kind(worker: BlockingServer, user: BlockingServer) -> None:
    service = offer(worker, user, same=lambda value: value)
    for value in (None, True, 3, 2.5, "text", b"bytes", [1, {"a": [2]}], {1, 2}):
        assert service.same(value) == value
    array = np.arange(3_000_000).reshape(1000, 3000)
    assert (service.same(array) == array).all()
    assert isinstance(service.same({"a": {}}).a, Record)


def test_functions_of_others_say_what_they_are(worker: BlockingServer, user: BlockingServer) -> None:
    def hello(name: str) -> str:
        """Greet."""
        return name

    found = offer(worker, user, hello=hello).hello
    assert (found.__name__, found.documentation) == ("hello", "Greet.")
    assert found.__schema__["parameters"]["properties"]["name"]["type"] == "string"
    assert "services.s.hello" in repr(found)


def test_callbacks_and_calls_back(worker: BlockingServer, user: BlockingServer) -> None:
    """A function of the program blocks in its own thread, as often and as deep as it likes."""
    service = offer(worker, user, twice=lambda f, x: f(f(x)))
    assert service.twice(lambda x: x + 1, 1) == 3
    assert service.twice(lambda x: service.twice(lambda y: y * 2, x), 1) == 16


def test_a_function_that_was_received_is_sent_on(worker: BlockingServer, user: BlockingServer) -> None:
    service = offer(worker, user, call=lambda f, *args: f(*args), hello=lambda name: "Hello " + name, keep=lambda f: f)
    assert service.call(service.hello, "John") == "Hello John"
    assert service.keep(service.hello)("Jane") == "Hello Jane"
    user.register_service({"id": "again", "hello": service.hello})
    assert worker.get_service("again").hello("John") == "Hello John"


def test_async_functions_of_the_program_run_in_trio(worker: BlockingServer, user: BlockingServer) -> None:
    async def pause() -> str:
        await trio.lowlevel.checkpoint()
        return threading.current_thread().name

    service = offer(worker, user, pause=pause)
    assert service.pause() == "hypha.sync"


def test_the_context(worker: BlockingServer, user: BlockingServer) -> None:
    config = {"require_context": True}
    worker.register_service({"id": "s", "config": config, "who": lambda context: context["from"]})
    assert user.get_service("s").who() == user.config.id


def test_several_threads_at_once(worker: BlockingServer, user: BlockingServer) -> None:
    barrier = threading.Barrier(8)
    service = offer(worker, user, meet=lambda: barrier.wait(20))
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(service.meet) for _ in range(8)]
        assert sorted(item.result() for item in found) == list(range(8))


def test_events(worker: BlockingServer, user: BlockingServer) -> None:
    heard: queue.Queue[Any] = queue.Queue()
    worker.on("news", heard.put)
    worker.subscribe("news")
    user.emit("news", {"a": 1})
    assert heard.get(timeout=20).data.a == 1
    worker.off("news")
    worker.unsubscribe("news")


def test_in_a_notebook(url: str) -> None:
    """There an event loop runs in the main thread."""

    async def cell() -> str:
        with connect_to_server(server_url=url) as server:
            return str(server.echo("x"))

    assert asyncio.run(cell()) == "x"


# --- generators -----------------------------------------------------------------------------------------------


def test_generators_both_ways(worker: BlockingServer, user: BlockingServer) -> None:
    def count(n: int) -> Iterator[int]:
        yield from range(n)

    service = offer(worker, user, count=count, total=sum)
    assert list(service.count(3)) == [0, 1, 2]
    assert service.total(count(4)) == 6


@pytest.mark.parametrize("how", ["close", "close at once", "break", "forget"])
def test_a_generator_that_is_left_is_closed_at_its_provider(
    how: str, worker: BlockingServer, user: BlockingServer
) -> None:
    closed = threading.Event()

    class Count:
        """Not a function, in whose generator nothing is to be closed before its first value."""

        def __init__(self) -> None:
            self._numbers = iter(range(1000))

        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            return next(self._numbers)

        def close(self) -> None:
            closed.set()

    def count() -> Count:
        return Count()

    service = offer(worker, user, count=count)
    if how == "close":
        with closing(service.count()) as numbers:
            assert next(numbers) == 0
    elif how == "close at once":
        service.count().close()
    elif how == "break":
        for number in service.count():
            assert number == 0
            break
    else:
        service.count()
    assert closed.wait(20)


def test_an_error_of_a_generator(worker: BlockingServer, user: BlockingServer) -> None:
    def count() -> Iterator[int]:
        yield 1
        raise ValueError("of glass")

    numbers = offer(worker, user, count=count).count()
    assert next(numbers) == 1
    with pytest.raises(RemoteError, match="ValueError: of glass"):
        next(numbers)
    assert list(numbers) == []


# --- errors ---------------------------------------------------------------------------------------------------


def test_what_a_function_raises(worker: BlockingServer, user: BlockingServer) -> None:
    def broken() -> None:
        raise KeyError("of glass")

    with pytest.raises(RemoteError, match="of glass") as caught:
        offer(worker, user, broken=broken).broken()
    assert "in broken" in caught.value.traceback


def test_what_cannot_be_sent(worker: BlockingServer, user: BlockingServer) -> None:
    service = offer(worker, user, same=lambda value: value)
    with pytest.raises(InvalidArgument, match="cannot be sent"):
        service.same(object())


def test_a_server_that_is_not_there(url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(PeerGone, match="cannot connect"):
            connect_to_server(server_url=f"http://127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(HyphaError):
        connect_to_server(server_url=url, token="nonsense")
    with pytest.raises(InvalidArgument, match="server_url"):
        connect_to_server()


def test_a_blocking_call_in_the_connections_own_thread(worker: BlockingServer, user: BlockingServer) -> None:
    async def wrong(function: Any) -> None:
        function()

    async def worse() -> None:
        worker.disconnect()

    service = offer(worker, user, wrong=wrong, worse=worse)
    with pytest.raises(RemoteError, match=r"RuntimeError: .* write the function that calls it as a plain one"):
        service.wrong(lambda: None)
    with pytest.raises(RemoteError, match="RuntimeError: disconnect blocks"):
        service.worse()


def test_what_waits_when_the_client_disconnects(worker: BlockingServer, user: BlockingServer) -> None:
    started = threading.Event()

    async def hang() -> None:
        started.set()
        await trio.sleep_forever()

    service = offer(worker, user, hang=hang)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(service.hang)
        assert started.wait(20)
        user.disconnect()
        with pytest.raises(PeerGone, match="this client has disconnected"):
            waiting.result()


# --- deadlines ------------------------------------------------------------------------------------------------


def test_a_deadline_ends_the_call_here_and_there(worker: BlockingServer, user: BlockingServer) -> None:
    ended = threading.Event()

    async def hang() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    service = offer(worker, user, hang=hang, hello=lambda: "hello")

    def wait() -> None:
        with pytest.raises(CallTimeout), deadline(0.1):
            service.hang()

    assert 0.1 <= seconds(wait) < 1
    assert ended.wait(20)
    assert service.hello() == "hello"


def test_the_earliest_deadline_holds(worker: BlockingServer, user: BlockingServer) -> None:
    service = offer(worker, user, hang=trio.sleep_forever)

    def wait() -> None:
        with pytest.raises(CallTimeout), deadline(0.1), deadline(50):
            service.hang()

    assert seconds(wait) < 5


def test_a_deadline_goes_on_to_what_the_function_calls(worker: BlockingServer, user: BlockingServer) -> None:
    outcome: queue.Queue[Any] = queue.Queue()

    def nested(function: Any) -> None:
        try:
            function()
        except HyphaError as error:
            outcome.put(error)

    service = offer(worker, user, nested=nested, hang=trio.sleep_forever)
    with pytest.raises(CallTimeout), deadline(0.2):
        service.nested(service.hang)
    assert isinstance(outcome.get(timeout=20), CallTimeout)


def test_a_deadline_holds_when_nobody_answers() -> None:
    def wait() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(CallTimeout), deadline(0.1):
            connect_to_server(server_url=f"http://127.0.0.1:{silent.getsockname()[1]}")

    assert seconds(wait) < 2


def test_a_deadline_holds_when_the_server_is_killed(tmp_path: Path) -> None:
    """And the client tries to come back all the time."""
    with pytest.raises(AssertionError, match="exit code -9"):
        lose_the_server(tmp_path)


def lose_the_server(directory: Path) -> None:
    with processes.serving(directory, *ALONE) as server:
        client = connect_to_server(server_url=server.url)
        server.process.kill()
        server.process.wait()
        for _ in range(2):
            assert seconds(lambda: time_out(client)) < 2
        assert seconds(client.disconnect) < 2


def test_a_deadline_holds_when_the_server_is_silent(tmp_path: Path) -> None:
    with processes.serving(tmp_path, *ALONE) as server:
        client = connect_to_server(server_url=server.url)
        with frozen(server):
            assert seconds(lambda: time_out(client)) < 2
            assert seconds(client.disconnect) < 2


def test_a_client_comes_back_with_its_services(tmp_path: Path) -> None:
    with serving(data_dir=tmp_path) as first:
        client = connect_to_server(server_url=first.url)
        came: queue.Queue[Any] = queue.Queue()
        client.on("connected", came.put)
        client.register_service({"id": "s", "hello": lambda: "hello"})
        first.stop()
        with serving(data_dir=tmp_path, port=int(first.url.rpartition(":")[2])):
            assert came.get(timeout=30).workspace == client.config.workspace
            with deadline(20):
                assert client.get_service("s").hello() == "hello"
            client.disconnect()


ALONE = ("--single-process",)


@contextmanager
def frozen(server: processes.Server) -> Iterator[None]:
    """Meanwhile *server* does nothing."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def time_out(server: BlockingServer) -> None:
    with pytest.raises((CallTimeout, PeerGone)), deadline(0.2):
        server.echo("x")


# --- processes ------------------------------------------------------------------------------------------------

CALLER = """
import sys
from hypha.sync import connect_to_server

url, workspace, token = sys.argv[1:]
server = connect_to_server(server_url=url, workspace=workspace, token=token)
service = server.get_service("s")
try:
    service.hang()
except KeyboardInterrupt:
    print(service.hello())
"""
PROVIDER = """
import sys
from hypha.sync import connect_to_server

url, workspace, token = sys.argv[1:]
with connect_to_server(server_url=url, workspace=workspace, token=token) as server:
    server.register_service({"id": "p", "hello": lambda: "hello"})
    print("ready", flush=True)
    try:
        server.serve()
    except KeyboardInterrupt:
        print("interrupted")
"""
FORGETFUL = """
import sys
from hypha.sync import connect_to_server

url, workspace, token = sys.argv[1:]
server = connect_to_server(server_url=url, workspace=workspace, token=token)
server.register_service({"id": "p", "hello": lambda: "hello"})
print("ready", flush=True)
"""
ABANDONED = """
import os
import signal
import sys
from hypha.sync import connect_to_server

server = connect_to_server(server_url=sys.argv[1])
os.kill(int(sys.argv[2]), signal.SIGSTOP)
print("ready", flush=True)
"""


@pytest.mark.slow
async def test_control_c_cancels_the_call_and_nothing_else(nursery: trio.Nursery, tmp_path: Path) -> None:
    begun, ended = trio.Event(), trio.Event()

    async def hang() -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async def hello() -> str:
        return "hello again"

    async with open_server() as server, server.connect(token=server.token("lab")) as worker:
        await worker.register_service({"id": "s", "hang": hang, "hello": hello})
        async with processes.start(nursery, command(CALLER, server), cwd=tmp_path) as caller:
            await begun.wait()
            caller.send_signal(signal.SIGINT)
            with trio.fail_after(0.1):
                await ended.wait()
            result = await caller.wait()
            assert (result.returncode, result.stdout, result.stderr) == (0, "hello again\n", "")


@pytest.mark.slow
async def test_control_c_ends_serving(nursery: trio.Nursery, tmp_path: Path) -> None:
    async with (
        open_server() as server,
        processes.start(nursery, command(PROVIDER, server), cwd=tmp_path) as provider,
    ):
        await provider.wait_for("ready")
        provider.send_signal(signal.SIGINT)
        with trio.fail_after(2):
            result = await provider.wait()
        assert (result.returncode, result.stdout, result.stderr) == (0, "ready\ninterrupted\n", "")


@pytest.mark.slow
async def test_the_interpreter_exits_and_the_server_is_told(nursery: trio.Nursery, tmp_path: Path) -> None:
    async with open_server() as server, server.connect(token=server.token("lab")) as other:
        async with processes.start(nursery, command(FORGETFUL, server), cwd=tmp_path) as program:
            await program.wait_for("ready")
            with trio.fail_after(2):
                result = await program.wait()
        assert (result.returncode, result.stderr) == (0, "")
        assert [item.id for item in await other.list_services() if item.id.endswith(":p")] == []


@pytest.mark.slow
async def test_the_interpreter_exits_when_the_server_is_silent(nursery: trio.Nursery, tmp_path: Path) -> None:
    with processes.serving(tmp_path, *ALONE) as server:
        script = [sys.executable, "-c", ABANDONED, server.url, str(server.pid)]
        try:
            async with processes.start(nursery, script, cwd=tmp_path) as program:
                await program.wait_for("ready")
                with trio.fail_after(2):
                    result = await program.wait()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert (result.returncode, result.stderr) == (0, "")


def command(code: str, server: Any) -> list[str]:
    return [sys.executable, "-c", code, server.url, "lab", server.token("lab")]
