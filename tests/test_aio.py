"""Programs that are written for asyncio: their thread, and the client in it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
import trio

from hypha.aio import AioThread
from hypha.client import Server
from hypha.client.face import Face
from hypha.client.loop import AsyncioRunner, asyncio_face
from hypha.errors import NotFound, PeerGone, RemoteError
from hypha.testing import open_server


class Own(Exception):
    """An error of the program."""


async def hang() -> None:
    await asyncio.sleep(1000)


class Gate:
    """Before it a function stops, and what it stops with it, until it is opened."""

    def __init__(self) -> None:
        self._opened, self._reached = threading.Event(), threading.Event()

    def stop(self) -> bool:
        self._reached.set()
        return self._opened.wait(20)

    async def hold_up(self) -> None:
        """Hold the event loop up, and take no cancellation."""
        self.stop()

    def open(self) -> None:
        self._opened.set()

    async def reached(self) -> None:
        """Wait, in trio, until something stops here."""
        await trio.to_thread.run_sync(self._reached.wait, abandon_on_cancel=True)


@pytest.fixture
def gate() -> Iterator[Gate]:
    found = Gate()
    yield found
    found.open()


# --- from trio ------------------------------------------------------------------------------------------------


async def test_a_function_runs_in_the_thread() -> None:
    async def where(*args: int, **kwargs: int) -> tuple[Any, ...]:
        await asyncio.sleep(0)
        return threading.current_thread().name, args, kwargs

    async with AioThread("module x") as thread:
        assert await thread.run(where, 1, a=2) == ("module x", (1,), {"a": 2})
        assert await thread.run(where, 3) == ("module x", (3,), {})


async def test_a_plain_function_runs_in_the_loop() -> None:
    """It may start tasks there; what it returns is awaited."""
    async with AioThread("module") as thread:
        assert await thread.run(lambda: asyncio.create_task(asyncio.sleep(0, "done"))) == "done"
        assert await thread.run(lambda: threading.current_thread().name) == "module"


async def test_the_world_of_asyncio() -> None:
    async def use() -> str:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            in_thread = group.create_task(asyncio.to_thread(lambda: "thread"))
            process = await asyncio.create_subprocess_exec("echo", "process", stdout=asyncio.subprocess.PIPE)
            output, _ = await process.communicate()
        return f"{await in_thread} {output.decode().strip()}"

    async with AioThread("module") as thread:
        assert await thread.run(use) == "thread process"


async def test_many_at_once() -> None:
    async def double(n: int) -> int:
        await asyncio.sleep(0.001 * (n % 7))
        return 2 * n

    found: dict[int, int] = {}

    async def ask(thread: AioThread, n: int) -> None:
        found[n] = await thread.run(double, n)

    async with AioThread("module") as thread, trio.open_nursery() as nursery:
        for n in range(100):
            nursery.start_soon(ask, thread, n)
    assert found == {n: 2 * n for n in range(100)}


@pytest.mark.parametrize("error", [Own("of glass"), KeyError(1), SystemExit(3), KeyboardInterrupt()], ids=repr)
async def test_what_a_function_raises(error: BaseException) -> None:
    async def broken() -> None:
        raise error

    async with AioThread("module") as thread:
        for function in (broken, lambda: [][0]):
            with pytest.raises((type(error), IndexError)) as caught:
                await thread.run(function)
        assert isinstance(caught.value, IndexError)
        assert await thread.run(asyncio.sleep, 0, "still here") == "still here"


async def test_a_function_that_is_cancelled_by_its_own_program() -> None:
    async def give_up() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    async with AioThread("module") as thread:
        with pytest.raises(RuntimeError, match="cancelled in its event loop"):
            await thread.run(give_up)


async def test_a_cancellation_goes_through_and_waits_for_the_end() -> None:
    steps: list[str] = []

    async def tidy() -> None:
        try:
            await hang()
        finally:
            await asyncio.sleep(0.05)
            steps.append("tidied")

    async with AioThread("module") as thread:
        with trio.move_on_after(0.05) as scope:
            await thread.run(tidy)
        assert scope.cancelled_caught
        assert steps == ["tidied"]


async def test_a_cancellation_before_the_begin() -> None:
    async with AioThread("module") as thread:
        with trio.CancelScope() as scope:
            scope.cancel()
            await thread.run(hang)
        assert scope.cancelled_caught
        assert await thread.run(asyncio.sleep, 0, 1) == 1


@pytest.mark.slow
async def test_a_function_that_takes_no_cancellation(caplog: pytest.LogCaptureFixture) -> None:
    async def stubborn(until: asyncio.Event) -> None:
        while not until.is_set():
            try:
                await until.wait()
            except asyncio.CancelledError:
                continue

    async with AioThread("module x") as thread:
        until = await thread.run(asyncio.Event)
        began = trio.current_time()
        with trio.move_on_after(0.05):
            await thread.run(stubborn, until)
        assert 2 <= trio.current_time() - began < 3
        assert await thread.run(asyncio.sleep, 0, "still here") == "still here"
        await thread.run(until.set)
    assert "module x: a cancelled function does not end; nobody waits for it any more" in caplog.text


async def test_a_loop_that_is_held_up_holds_up_nobody_else(gate: Gate) -> None:
    pause = 0.0

    async def tick() -> None:
        nonlocal pause
        while True:
            before = trio.current_time()
            await trio.sleep(0.005)
            pause = max(pause, trio.current_time() - before)

    async with AioThread("module") as thread, AioThread("other") as other, trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        nursery.start_soon(thread.run, gate.hold_up)
        await gate.reached()
        for _ in range(20):
            assert await other.run(asyncio.sleep, 0.01, 1) == 1
        gate.open()
        assert await thread.run(asyncio.sleep, 0, 2) == 2
        nursery.cancel_scope.cancel()
    assert pause < 0.5


# --- the end --------------------------------------------------------------------------------------------------


async def test_what_is_left_in_the_loop_ends(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[str] = []

    async def background() -> None:
        try:
            await hang()
        finally:
            ended.append("task")

    async def values() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            ended.append("generator")

    async def set_out() -> Any:
        task = asyncio.create_task(background())
        generator = values()
        await anext(generator)
        await asyncio.to_thread(len, "")
        return task, generator

    async with AioThread("module") as thread:
        kept = await thread.run(set_out)
    assert ended == ["task", "generator"]
    assert kept[0].cancelled()
    assert caplog.records == []


@pytest.mark.slow
@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_thread_that_never_ends_is_left_behind(
    cancelled: bool, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    began = trio.current_time()
    with trio.move_on_after(0.1 if cancelled else 1000):
        async with AioThread("module x") as thread:
            await thread.run(begin, gate.hold_up)
            await gate.reached()
            if cancelled:
                await thread.run(hang)
    assert 1.9 < trio.current_time() - began < 3
    assert "module x: the event loop does not end; its thread is left behind" in caplog.text
    gate.open()
    await trio.to_thread.run_sync(thread._thread.join)


def begin(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Start a task of *function* in the loop, and return before it begins."""
    loop = asyncio.get_running_loop()
    loop.call_later(0.01, lambda: loop.create_task(function()))


@pytest.mark.slow
async def test_a_worker_thread_that_never_ends_is_left_behind(gate: Gate) -> None:
    began = trio.current_time()
    async with AioThread("module") as thread:
        await thread.run(lambda: asyncio.get_running_loop().run_in_executor(None, gate.stop) and None)
        await gate.reached()
    assert trio.current_time() - began < 1
    gate.open()


@pytest.mark.slow
async def test_calls_end_with_the_loop(gate: Gate) -> None:
    async def expect() -> None:
        with pytest.raises(PeerGone, match="the event loop of module has ended"):
            await thread.run(hang)

    async with trio.open_nursery() as nursery:
        async with AioThread("module") as thread:
            nursery.start_soon(expect)
            await trio.testing.wait_all_tasks_blocked(0.05)
        await expect()
    async with trio.open_nursery() as nursery, AioThread("module") as thread:
        await thread.run(begin, gate.hold_up)
        await gate.reached()
        nursery.start_soon(expect)  # it waits for a loop that does not move
        await trio.testing.wait_all_tasks_blocked()
    gate.open()
    await trio.to_thread.run_sync(thread._thread.join)


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    error = Own()

    async def fail() -> None:
        async with AioThread("module") as thread:
            await thread.run(begin, hang)
            raise error

    with pytest.raises(Own) as caught:
        await fail()
    assert caught.value is error
    with trio.CancelScope() as scope:
        async with AioThread("module") as thread:
            scope.cancel()
            await thread.run(hang)
    assert scope.cancelled_caught


async def test_errors_in_callbacks_are_logged_and_end_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(error: BaseException) -> None:
        raise error

    async def schedule() -> None:
        loop = asyncio.get_running_loop()
        for error in (Own("of glass"), SystemExit(3), KeyboardInterrupt()):
            loop.call_soon(broken, error)
        loop.call_soon(loop.stop)

    async with AioThread("module x") as thread:
        await thread.run(schedule)
        assert await thread.run(asyncio.sleep, 0.01, 1) == 1
    assert all(record.levelno == logging.ERROR for record in caplog.records)
    assert "module x: Exception in callback" in caplog.text
    assert "Own: of glass" in caplog.text
    assert "module x: SystemExit(3) in the event loop, which goes on" in caplog.text


# --- from asyncio ---------------------------------------------------------------------------------------------


async def test_a_function_of_trio_is_awaited_in_asyncio() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")

    async def add(a: int, *, b: int) -> int:
        """Add."""
        await trio.sleep(0.001)
        return a + b + variable.get(0)

    async with AioThread("module") as thread:
        there = thread.awaitable(add)
        assert (there.__name__, there.__doc__) == ("add", "Add.")
        assert await thread.run(there, 1, b=2) == 3


@pytest.mark.parametrize("error", [Own("of glass"), StopAsyncIteration(), ExceptionGroup("two", [Own()])], ids=repr)
async def test_what_a_function_of_trio_raises(error: Exception) -> None:
    async def broken() -> None:
        raise error

    async with AioThread("module") as thread:
        with pytest.raises(type(error)) as caught:
            await thread.run(thread.awaitable(broken))
    assert caught.value is error


async def test_cancelling_in_asyncio_cancels_in_trio() -> None:
    begun, ended = trio.Event(), trio.Event()

    async def wait() -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async def give_up(function: Callable[[], Awaitable[None]]) -> str:
        try:
            async with asyncio.timeout(0.05):
                await function()
        except TimeoutError:
            return "in time"
        raise AssertionError

    async with AioThread("module") as thread:
        assert await thread.run(give_up, thread.awaitable(wait)) == "in time"
        await ended.wait()
        assert begun.is_set()


async def test_functions_of_trio_end_with_the_block() -> None:
    ended: list[str] = []

    async def wait() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("trio")

    async def late(function: Callable[[], Awaitable[None]]) -> None:
        try:
            await hang()
        finally:
            try:
                async with asyncio.timeout(0.05):
                    await function()
            except TimeoutError:
                ended.append("asyncio")

    async with AioThread("module") as thread:
        await thread.run(begin, thread.awaitable(wait))
        await thread.run(begin, partial(late, thread.awaitable(wait)))
        await thread.run(asyncio.sleep, 0.05)
    assert sorted(ended) == ["asyncio", "trio", "trio"]


async def test_a_function_of_trio_that_does_not_wait() -> None:
    def where(a: int) -> tuple[int, bool]:
        return a, trio.lowlevel.in_trio_task() or trio.lowlevel.in_trio_run()

    async with AioThread("module") as thread:
        assert await thread.run(thread.immediate(where), 3) == (3, True)
        with pytest.raises(TypeError):
            await thread.run(thread.immediate(int), [])


# --- the client -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def program(entrypoint: Callable[[Face], Awaitable[None]]) -> AsyncIterator[tuple[Server, str]]:
    """A client in trio, in the workspace of a program for asyncio that *entrypoint* sets up; and the server's url."""
    async with open_server() as live, AioThread("module") as thread:
        token = live.token("lab")
        async with live.connect(token=token, runner=AsyncioRunner(thread)) as server, live.connect(token=token) as user:
            await thread.run(entrypoint, asyncio_face(server, thread))
            yield user, live.url


async def test_a_program_offers_and_calls() -> None:
    async def hello(name: str) -> str:
        await asyncio.sleep(0)
        return f"Hello {name} from {threading.current_thread().name}"

    async def setup(server: Face) -> None:
        info = await server.register_service({"id": "s", "hello": hello, "plain": lambda: threading.get_ident()})
        assert info.id == f"{server.config.id}:s"
        assert server.config.workspace == "lab"
        service = await server.get_service("s")
        assert await service.hello("me") == "Hello me from module"
        assert [item.id for item in await server.list_services() if item.id.endswith(":s")] == [info.id]
        with pytest.raises(NotFound):
            await server.get_service("missing")

    async with program(setup) as (user, _):
        service = await user.get_service("s")
        assert await service.hello("John") == "Hello John from module"
        assert await service.plain() != threading.get_ident()


async def test_callbacks_and_functions_that_are_sent_on() -> None:
    async def setup(server: Face) -> None:
        async def twice(function: Any, x: int) -> int:
            return int(await function(await function(x)))

        async def keep(function: Any) -> Any:
            return function

        await server.register_service({"id": "s", "twice": twice, "once": lambda f, x: f(x), "keep": keep})

    async def double(x: int) -> int:
        await trio.lowlevel.checkpoint()
        return 2 * x

    async with program(setup) as (user, _):
        service = await user.get_service("s")
        assert await service.twice(double, 3) == 12
        assert await service.once(double, 3) == 6
        assert await (await service.keep(service.keep))(1) == 1


async def test_generators_both_ways() -> None:
    closed = trio.Event()

    async def count(n: int) -> AsyncIterator[int]:
        try:
            for i in range(n):
                yield i
        finally:
            closed.set()

    async def setup(server: Face) -> None:
        async def numbers(n: int) -> AsyncIterator[int]:
            for i in range(n):
                await asyncio.sleep(0)
                yield i

        async def total(values: Any) -> int:
            return sum([value async for value in values])

        async def first(values: Any) -> Any:
            async for value in values:
                return value
            raise AssertionError

        def plain(n: int) -> Iterator[int]:
            yield from range(n)

        functions = {"numbers": numbers, "total": total, "first": first, "plain": plain}
        await server.register_service({"id": "s", **functions})

    async with program(setup) as (user, _):
        service = await user.get_service("s")
        assert [n async for n in await service.numbers(3)] == [0, 1, 2]
        assert [n async for n in await service.plain(3)] == [0, 1, 2]
        assert await service.total(count(4)) == 6
        closed = trio.Event()
        assert await service.first(count(1000)) == 0
        await closed.wait()


async def test_cancelling_a_call_of_the_program_and_by_it() -> None:
    steps: list[str] = []

    async def setup(server: Face) -> None:
        async def wait() -> None:
            try:
                await hang()
            except asyncio.CancelledError:
                steps.append("asyncio")
                raise

        async def call(function: Any) -> str:
            try:
                async with asyncio.timeout(0.05):
                    await function()
            except TimeoutError:
                return "in time"
            raise AssertionError

        await server.register_service({"id": "s", "wait": wait, "call": call})

    ended = trio.Event()

    async def wait() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with program(setup) as (user, _):
        service = await user.get_service("s")
        assert await service.call(wait) == "in time"
        await ended.wait()
        with trio.move_on_after(0.05):
            await service.wait()
        assert await service.call(wait) == "in time"
        assert steps == ["asyncio"]


async def test_errors_and_the_other_libraries_of_asyncio() -> None:
    async def setup(server: Face) -> None:
        async def fetch(url: str) -> int:
            async with httpx.AsyncClient() as client:
                return (await client.get(url)).status_code

        async def broken() -> None:
            raise ValueError("of glass")

        async def leave() -> None:
            raise SystemExit(3)

        heard: list[Any] = []
        server.on("news", heard.append)
        await server.subscribe("news")
        functions = {"fetch": fetch, "broken": broken, "leave": leave, "heard": lambda: heard}
        await server.register_service({"id": "s", **functions})

    async with program(setup) as (user, url):
        service = await user.get_service("s")
        assert await service.fetch(f"{url}/health/liveness") == 200
        with pytest.raises(RemoteError, match="ValueError: of glass") as caught:
            await service.broken()
        assert "in broken" in caught.value.traceback
        with pytest.raises(RemoteError, match="SystemExit: 3"):
            await service.leave()
        await user.emit("news", 1)
        while not (heard := await service.heard()):
            pass
        assert heard[0].data == 1


async def test_a_plain_function_may_block(gate: Gate) -> None:
    async def setup(server: Face) -> None:
        await server.register_service({"id": "s", "block": gate.stop, "hello": asyncio.sleep})

    async with program(setup) as (user, _), trio.open_nursery() as nursery:
        service = await user.get_service("s")
        nursery.start_soon(service.block)
        await gate.reached()
        began = time.monotonic()
        assert await service.hello(0, "hello") == "hello"
        assert time.monotonic() - began < 5
        gate.open()


def test_the_end_of_the_process_waits_for_nothing_that_blocks() -> None:
    program = """
import asyncio, time, trio
from hypha.aio import AioThread

async def block():
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 1000)

async def main():
    async with AioThread("blocked") as thread:
        await thread.run(block)

trio.run(main)
"""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
    assert time.monotonic() - began < 10


async def test_jobs_of_the_executor_are_done_at_once_and_no_thread_is_made_in_vain() -> None:
    async def jobs() -> list[int]:
        barrier = threading.Barrier(8)
        loop = asyncio.get_running_loop()

        def meet(number: int) -> int:
            barrier.wait(10)
            return number

        return [*await asyncio.gather(*(loop.run_in_executor(None, meet, number) for number in range(8)))]

    async def one_by_one() -> set[str]:
        return {await asyncio.to_thread(lambda: threading.current_thread().name) for _ in range(20)}

    async with AioThread("jobs") as thread:
        assert await thread.run(jobs) == list(range(8))
    async with AioThread("few") as thread:
        assert len(await thread.run(one_by_one)) == 1
