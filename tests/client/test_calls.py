"""Calling and being called: values, callbacks, generators, errors, deadlines, cancellation."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hypha.client import Record, RemoteFunction, Server, Service
from hypha.config import Limits
from hypha.errors import (
    CallTimeout,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    PeerGone,
    PermissionDenied,
    RemoteError,
    ServiceNotFound,
)
from hypha.testing import LiveServer, open_server
from tests.client.conftest import pair


async def offered(worker: Server, user: Server, *, visibility: str = "public", **functions: Any) -> Service:
    """What *worker* offers, as *user* sees it."""
    info = await worker.register_service({"id": "svc", "config": {"visibility": visibility}, **functions})
    return await user.get_service(info)


async def identity(value: Any) -> Any:
    return value


async def test_the_example_of_the_documentation(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        service = await offered(worker, user, hello=lambda name: f"Hello {name}")
        assert await service.hello("John") == "Hello John"
        assert await service.hello(name="Jane") == "Hello Jane"


VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    1.5,
    math.inf,
    "text",
    b"bytes",
    [1, [2, [3]]],
    {"a": {"b": [None]}},
    {1, 2},
    "x" * 100_000,
    b"y" * 100_000,
]


async def test_values_come_back_as_they_went(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        service = await offered(worker, user, echo=identity)
        for value in VALUES:
            back = await service.echo(value)
            assert back == value, value
            assert type(back) is type(value) or isinstance(value, dict)
        assert await service.echo((1, 2)) == [1, 2]
        assert await service.echo(bytearray(b"ab")) == b"ab"
        assert bytes(await service.echo(memoryview(b"ab"))) == b"ab"
        assert isinstance(await service.echo(frozenset({1})), set)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float32", "float64", "bool", "complex64", ">i4"])
async def test_arrays_keep_their_shape_and_type(live: LiveServer, dtype: str) -> None:
    async with pair(live) as (worker, user):
        service = await offered(worker, user, echo=identity)
        for shape in [(), (0,), (3,), (2, 3, 4), (0, 5)]:
            array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
            back = await service.echo(array)
            assert back.shape == array.shape
            assert back.dtype == array.dtype.newbyteorder("=")
            assert np.array_equal(back, array)
        turned = np.arange(6).reshape(2, 3).astype(dtype).T
        assert np.array_equal(await service.echo(turned), turned)


@pytest.mark.parametrize("size", [262_000, 263_000, 1024 * 1024, 3_000_000, 20 * 1024 * 1024])
async def test_large_values_go_both_ways(live: LiveServer, size: int) -> None:
    async with pair(live) as (worker, user):
        service = await offered(worker, user, echo=identity)
        array = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
        assert np.array_equal(await service.echo(array), array)
        assert await service.echo({"many": [array.tobytes()[:1000]] * 3}) == {"many": [array.tobytes()[:1000]] * 3}
        assert not worker.peer._built_in._parts
        assert not user.peer._built_in._parts


async def test_large_values_reach_the_server(live: LiveServer) -> None:
    async with live.connect() as user:
        text = "x" * 3_000_000
        assert await user.echo(text) == text


async def test_a_callback_is_called_within_the_call_and_not_after_it(live: LiveServer) -> None:
    kept: list[RemoteFunction] = []

    async def call_back(function: RemoteFunction) -> Any:
        kept.append(function)
        return await function(3)

    async with pair(live) as (worker, user):
        service = await offered(worker, user, call_back=call_back)
        assert await service.call_back(lambda number: number * 2) == 6
        with pytest.raises(NotFound, match="expired"):
            await kept[0](3)
        assert not user.peer.store._groups


async def test_an_interface_outlives_the_call(live: LiveServer) -> None:
    kept: list[Any] = []

    async with pair(live) as (worker, user):
        service = await offered(worker, user, keep=kept.append)
        await service.keep({"_rintf": True, "double": lambda number: number * 2})
        assert await kept[0].double(4) == 8


async def test_a_function_in_a_result_can_be_called_until_its_receiver_goes(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        service = await offered(worker, user, adder=lambda a: {"add": lambda b: a + b})
        made = await service.adder(1)
        assert await made.add(2) == 3
        await worker.subscribe("client_disconnected")
        assert len(worker.peer.store._kept) == 1
        await user.disconnect()
        await wait_all_tasks_blocked()
        assert not worker.peer.store._kept


async def test_functions_of_others_are_passed_on(live: LiveServer) -> None:
    async def apply(function: RemoteFunction, value: Any) -> Any:
        return await function(value)

    async with (
        pair(live) as (worker, user),
        live.connect({"workspace": worker.config.workspace, "token": await worker.generate_token()}) as third,
    ):
        service = await offered(worker, user, apply=apply)
        await third.register_service({"id": "other", "triple": lambda number: number * 3})
        other = await user.get_service("other")
        assert await service.apply(other.triple, 5) == 15


async def test_only_whom_it_was_given_to_may_call_a_callback(live: LiveServer) -> None:
    begun, over = trio.Event(), trio.Event()

    async def hold(function: RemoteFunction) -> None:
        names.append(function.encoded["_rmethod"])
        begun.set()
        await over.wait()

    names: list[str] = []
    async with (
        pair(live) as (worker, user),
        live.connect({"workspace": worker.config.workspace, "token": await worker.generate_token()}) as thief,
        trio.open_nursery() as nursery,
    ):
        service = await offered(worker, user, hold=hold)
        nursery.start_soon(service.hold, lambda: "secret")
        await begun.wait()
        with pytest.raises(PermissionDenied, match="Access denied"):
            await thief.peer.call(user.peer.name, names[0], [])
        over.set()


# --- generators -----------------------------------------------------------------------------------------------


async def count(ended: list[str], number: int) -> AsyncIterator[int]:
    try:
        for value in range(number):
            yield value
    finally:
        ended.append("closed")


async def test_generators_of_both_kinds(live: LiveServer) -> None:
    ended: list[str] = []

    def plain(number: int) -> Iterator[int]:
        yield from range(number)

    async with pair(live) as (worker, user):
        service = await offered(worker, user, count=lambda number: count(ended, number), plain=plain)
        assert [value async for value in await service.count(3)] == [0, 1, 2]
        assert ended == ["closed"]
        assert [value async for value in await service.plain(3)] == [0, 1, 2]
        assert not worker.peer.store._kept


async def test_a_generator_in_the_arguments(live: LiveServer) -> None:
    async def total(numbers: Any) -> int:
        return sum([number async for number in numbers])

    async with pair(live) as (worker, user):
        service = await offered(worker, user, total=total)
        assert await service.total(iter([1, 2, 3])) == 6
        assert await service.total(count([], 4)) == 6


async def test_leaving_a_generator_early_closes_it(live: LiveServer) -> None:
    ended: list[str] = []
    async with pair(live) as (worker, user):
        service = await offered(worker, user, count=lambda: count(ended, 1000))
        async with aclosing(await service.count()) as values:
            async for value in values:
                if value == 3:
                    break
        await wait_all_tasks_blocked()
        assert ended == ["closed"]
        assert not worker.peer.store._kept


async def test_a_generator_may_hold_a_nursery_between_its_steps(live: LiveServer) -> None:
    async def ticks() -> AsyncIterator[int]:
        send, receive = trio.open_memory_channel[int](0)

        async def tick() -> None:
            for number in range(3):
                await send.send(number)
            send.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            async for number in receive:
                yield number

    async with pair(live) as (worker, user):
        service = await offered(worker, user, ticks=ticks)
        assert [value async for value in await service.ticks()] == [0, 1, 2]


async def test_a_generator_that_fails_fails_at_its_reader(live: LiveServer) -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ValueError("no more")

    async with pair(live) as (worker, user):
        service = await offered(worker, user, broken=broken)
        values = await service.broken()
        assert await anext(values) == 1
        with pytest.raises(RemoteError, match=r"^ValueError: no more$"):
            await anext(values)


async def test_a_generator_ends_with_its_reader(live: LiveServer) -> None:
    ended: list[str] = []
    async with pair(live) as (worker, user):
        await worker.subscribe("client_disconnected")
        service = await offered(worker, user, count=lambda: count(ended, 1000))
        values = await service.count()
        assert await anext(values) == 0
        await user.disconnect()
        await wait_all_tasks_blocked()
        assert ended == ["closed"]


# --- errors ---------------------------------------------------------------------------------------------------


async def test_errors_are_short_and_carry_the_traceback(live: LiveServer) -> None:
    def fail() -> None:
        raise ValueError("this went wrong")

    async with pair(live) as (worker, user):
        service = await offered(worker, user, fail=fail)
        with pytest.raises(RemoteError, match=r"^ValueError: this went wrong$") as caught:
            await service.fail()
        assert "in fail" in caught.value.traceback
        assert caught.value.traceback.endswith("ValueError: this went wrong\n")


async def test_errors_of_ours_keep_their_type(live: LiveServer) -> None:
    async def refuse() -> None:
        raise PermissionDenied("not today")

    async with pair(live) as (worker, user):
        service = await offered(worker, user, refuse=refuse)
        with pytest.raises(PermissionDenied, match=r"^not today$"):
            await service.refuse()
        with pytest.raises(ServiceNotFound, match=r"^Service not found: [^']*$"):
            await user.get_service("nothing-like-it")


@pytest.mark.parametrize(
    "error", [SystemExit(3), StopAsyncIteration(), RuntimeError(), ExceptionGroup("g", [OSError()])]
)
async def test_whatever_a_function_raises_the_connection_stays(live: LiveServer, error: BaseException) -> None:
    async def fail() -> None:
        raise error

    async with pair(live) as (worker, user):
        service = await offered(worker, user, fail=fail, echo=identity)
        with pytest.raises(RemoteError):
            await service.fail()
        assert await service.echo(1) == 1


async def test_what_cannot_be_sent_fails_where_it_is(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        service = await offered(worker, user, echo=identity, give=lambda: object())
        deep: list[Any] = []
        for _ in range(300):
            deep = [deep]
        for value in (object(), {1: 2}, 2**70, deep, np.array([object()])):
            with pytest.raises(InvalidArgument):
                await service.echo(value)
        with pytest.raises(InvalidArgument, match="object"):
            await service.give()
        assert not user.peer._calls.pending


async def test_no_function_of_that_name(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        service = await offered(worker, user, echo=identity)
        with pytest.raises(AttributeError, match="there is no 'ecko'"):
            service.ecko  # noqa: B018  what is asked for is that it is not there
        for method in ("services.svc.nothing", "services.none.echo", "services.svc.echo.__call__", "x", "x.y"):
            with pytest.raises((NotFound, PeerGone)):  # what is no name of a function the server lets nobody call
                await user.peer.call(worker.peer.name, method, [])
        with pytest.raises(RemoteError, match="TypeError"):
            await service.echo()


async def test_a_function_that_blocks_holds_nobody_up(live: LiveServer) -> None:
    over = threading.Event()
    async with pair(live) as (worker, user), trio.open_nursery() as nursery:
        service = await offered(worker, user, block=over.wait, echo=identity)
        nursery.start_soon(service.block)
        assert await service.echo(1) == 1
        over.set()


# --- who calls ------------------------------------------------------------------------------------------------


async def test_who_calls_is_told_to_functions_that_ask(live: LiveServer) -> None:
    async def named(value: int, context: Record) -> Any:
        return [value, context["from"], context.user.is_anonymous]

    async def gathered(**rest: Any) -> bool:
        return "context" in rest

    async with pair(live) as (worker, user):
        config = {"visibility": "public", "require_context": True}
        await worker.register_service(
            {"id": "asks", "config": config, "named": named, "gathered": gathered, "plain": identity}
        )
        service = await user.get_service("asks")
        value, sender, _ = await service.named(1)
        assert (value, sender) == (1, user.peer.name)
        assert await service.gathered()
        assert await service.plain(7) == 7


async def test_a_protected_service_is_for_its_workspace(live: LiveServer) -> None:
    async with pair(live, apart=True) as (worker, user):
        with pytest.raises(PermissionDenied):
            await offered(worker, user, visibility="protected", echo=identity)
        with pytest.raises(PeerGone):
            await user.peer.call(worker.peer.name, "services.svc.echo", [1])


async def test_across_workspaces_everything_works_that_works_inside(live: LiveServer) -> None:
    async def call_back(function: RemoteFunction) -> Any:
        return await function(3)

    async with pair(live, apart=True) as (worker, user):
        service = await offered(worker, user, call_back=call_back, count=lambda: count([], 3), echo=identity)
        assert await service.call_back(lambda number: number + 1) == 4
        assert [value async for value in await service.count()] == [0, 1, 2]
        array = np.arange(1_000_000)
        assert np.array_equal(await service.echo(array), array)


# --- time -----------------------------------------------------------------------------------------------------


class Sleeper:
    """A service that says how its functions ended."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self.ended: list[tuple[str, float]] = []

    async def sleep(self, seconds: float = math.inf) -> str:
        self.begun.set()
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            self.ended.append(("cancelled", trio.current_time()))
            raise
        return "slept"


@pytest.mark.parametrize("apart", [False, True])
async def test_cancelling_a_call_cancels_the_function(live: LiveServer, apart: bool) -> None:
    sleeper = Sleeper()
    async with pair(live, apart=apart) as (worker, user), trio.open_nursery() as nursery:
        service = await offered(worker, user, sleep=sleeper.sleep)
        with trio.CancelScope() as scope:
            nursery.start_soon(sleeper.begun.wait)
            async with trio.open_nursery() as calls:
                calls.start_soon(service.sleep)
                await sleeper.begun.wait()
                scope.cancel()
        await wait_all_tasks_blocked()
        assert [how for how, _ in sleeper.ended] == ["cancelled"]
        assert not worker.peer.serving._running
        assert not user.peer._calls.pending


async def test_the_deadline_of_the_caller_holds_at_the_provider(live: LiveServer, autojump_clock: MockClock) -> None:
    sleeper = Sleeper()
    async with pair(live) as (worker, user):
        service = await offered(worker, user, sleep=sleeper.sleep)
        began = trio.current_time()
        # The word of the caller does not come through: only its deadline is known.
        user.peer.put = lambda message: None  # type: ignore[method-assign]  # of this one
        with trio.move_on_after(5):
            await service.sleep()
        await wait_all_tasks_blocked(0.01)
        assert [how for how, _ in sleeper.ended] == ["cancelled"]
        assert sleeper.ended[0][1] - began == pytest.approx(5, abs=0.5)


async def test_a_long_call_is_kept_alive_by_heartbeats(live: LiveServer, autojump_clock: MockClock) -> None:
    async with (
        live.connect({"client_id": "patient", "method_timeout": 30}) as user,
        live.connect({"workspace": user.config.workspace, "token": await user.generate_token()}) as worker,
    ):
        service = await offered(worker, user, sleep=Sleeper().sleep)
        assert await service.sleep(300) == "slept"


async def test_without_a_sign_for_method_timeout_a_call_fails(live: LiveServer, autojump_clock: MockClock) -> None:
    async with (
        live.connect({"client_id": "patient", "method_timeout": 30}) as user,
        live.connect({"workspace": user.config.workspace, "token": await user.generate_token()}) as worker,
    ):
        service = await offered(worker, user, sleep=Sleeper().sleep)
        worker.peer.serving.beat = lambda now: None  # type: ignore[method-assign]  # of this one
        began = trio.current_time()
        with pytest.raises(CallTimeout, match="method_timeout = 30 s"):
            await service.sleep()
        assert trio.current_time() - began == pytest.approx(30, abs=1)


async def test_a_provider_that_goes_fails_its_calls_at_once(live: LiveServer) -> None:
    sleeper = Sleeper()
    async with pair(live) as (worker, user), trio.open_nursery() as nursery:
        service = await offered(worker, user, sleep=sleeper.sleep)

        async def ask() -> None:
            began = trio.current_time()
            with pytest.raises(PeerGone, match="is not connected"):
                await service.sleep()
            assert trio.current_time() - began < 1

        nursery.start_soon(ask)
        await sleeper.begun.wait()
        await worker.disconnect()
    assert [how for how, _ in sleeper.ended] == ["cancelled"]


async def test_a_caller_that_goes_stops_what_works_for_it(live: LiveServer) -> None:
    sleeper = Sleeper()
    async with pair(live, apart=True) as (worker, user), trio.open_nursery() as nursery:
        service = await offered(worker, user, sleep=sleeper.sleep)

        async def ask() -> None:
            with pytest.raises(PeerGone):
                await service.sleep()

        nursery.start_soon(ask)
        await sleeper.begun.wait()
        await user.disconnect()
        await wait_all_tasks_blocked()
        assert [how for how, _ in sleeper.ended] == ["cancelled"]


async def test_a_file_can_be_read_from_afar(live: LiveServer) -> None:
    async def read(file: Any) -> bytes:
        return bytes(await file.read(3)) + bytes(await file.read())

    async with pair(live) as (worker, user):
        service = await offered(worker, user, read=read)
        assert await service.read(io.BytesIO(b"abcdef")) == b"abcdef"


async def test_values_of_ones_own_types(live: LiveServer) -> None:
    class Point:
        def __init__(self, x: int, y: int) -> None:
            self.x, self.y = x, y

    codec: dict[str, Any] = {
        "name": "point",
        "type": Point,
        "encoder": lambda point: {"x": point.x, "y": point.y},
        "decoder": lambda told: Point(told["x"], told["y"]),
    }
    async with pair(live) as (worker, user):
        service = await offered(worker, user, swap=lambda point: Point(point.y, point.x), echo=identity)
        for program in (worker, user):
            program.register_codec(codec)
        back = await service.swap(Point(1, 2))
        assert (back.x, back.y) == (2, 1)
        wrong: tuple[dict[str, Any], ...] = ({}, {"name": "a"}, {"name": "a", "encoder": identity})
        for bad in wrong:
            with pytest.raises(InvalidArgument):
                user.register_codec(bad)


async def test_calls_leave_nothing_behind(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        service = await offered(worker, user, echo=identity, apply=lambda function, value: value)
        for number in range(50):
            assert await service.echo(number) == number
            assert await service.apply(print, number) == number
        for program in (worker, user):
            peer = program.peer
            held: list[Any] = [
                peer.serving._running,
                peer._calls.pending,
                peer._built_in._parts,
                peer.store._groups,
                peer.store._kept,
            ]
            assert not any(held)


# --- what went wrong once -------------------------------------------------------------------------------------


async def test_large_messages_go_under_a_deadline(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        service = await offered(worker, user, echo=identity, make=lambda size: b"x" * size)
        with trio.fail_after(30):
            assert await service.echo(b"x" * 3_000_000) == b"x" * 3_000_000
            assert await service.make(3_000_000) == b"x" * 3_000_000


async def test_many_large_messages_at_once(live: LiveServer) -> None:
    results: list[bool] = []

    async def ask(number: int) -> None:
        array = np.full(4_000_000, number, np.uint8)
        results.append(np.array_equal(await service.echo(array), array))

    async with pair(live) as (worker, user):
        service = await offered(worker, user, echo=identity)
        async with trio.open_nursery() as nursery:
            for number in range(24):
                nursery.start_soon(ask, number)
    assert results == [True] * 24


async def test_calls_and_events_begin_in_their_order(live: LiveServer) -> None:
    called: list[int] = []
    heard: list[int] = []

    async def call(number: int) -> None:
        called.append(number)

    async def hear(event: Any) -> None:
        heard.append(event.data)

    async with pair(live) as (worker, user):
        await worker.register_service({"id": "svc", "call": call})
        worker.on("news", hear)
        for number in range(200):
            await user.peer.call(worker.peer.name, "services.svc.call", [number], promise=False)
            await user.emit("news", number, to="worker")
        for number in range(200, 300):
            user.peer.ask(worker.peer.name, "services.svc.call", [number], "*")
        await user.peer.call(worker.peer.name, "services.built-in.ping", ["ping"])
        await wait_all_tasks_blocked()
    assert called == list(range(300))
    assert heard == list(range(200))


class Stubborn:
    """Generators that fail when they are closed."""

    async def later(self) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            raise ValueError("not like this")

    def at_once(self) -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            raise ValueError("not like this")

    async def leaves(self) -> AsyncIterator[int]:
        yield 1
        raise SystemExit(3)


async def test_generators_that_fail_when_they_are_closed_end_nothing(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        service = await offered(
            worker, user, **{name: getattr(Stubborn(), name) for name in ("later", "at_once", "leaves")}
        )
        for name in ("later", "at_once"):
            async with aclosing(await service[name]()) as values:
                assert await anext(values) == 1
        values = await service.leaves()
        assert await anext(values) == 1
        with pytest.raises(RemoteError, match="SystemExit"):
            await anext(values)
        await wait_all_tasks_blocked()
        assert await user.peer.call(worker.peer.name, "services.built-in.ping", ["ping"]) == "pong"


async def test_a_function_may_raise_a_group_with_anything_in_it(live: LiveServer) -> None:
    async def leave() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)

    async def fail() -> None:
        raise SystemExit(3)

    async with pair(live) as (worker, user):
        service = await offered(worker, user, leave=leave, echo=identity)
        with pytest.raises(RemoteError):
            await service.leave()
        assert await service.echo(1) == 1


async def test_what_was_given_away_in_a_call_that_was_not_sent_is_taken_back(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        service = await offered(worker, user, echo=identity)
        for bad in (object(), 2**80):
            with pytest.raises(InvalidArgument):
                await service.echo([count([], 3), {"_rintf": True, "f": print}, bad])
        await wait_all_tasks_blocked()
        assert not user.peer.store._kept
        assert not user.peer.store._of_target


async def test_a_service_may_be_long(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        await worker.register_service({"id": "svc", "table": b"x" * 5_000_000, "echo": identity})
        service = await user.get_service("svc")
        assert len(service.table) == 5_000_000
        assert await service.echo(1) == 1


async def test_an_event_that_is_too_long_fails_at_its_sender() -> None:
    async with open_server(memory=True, limits=Limits(frame_bytes=100_000)) as live, pair(live) as (_, user):
        with pytest.raises(LimitExceeded, match="frame_bytes = 100000"):
            await user.emit("news", "x" * 200_000, to="worker")
        with pytest.raises(InvalidArgument, match="cannot be sent to all"):
            await user.emit("news", print)
        assert await user.echo(1) == 1


async def test_a_function_in_an_event_can_be_called(live: LiveServer) -> None:
    answers: list[int] = []
    heard = trio.Event()

    async def hear(event: Any) -> None:
        answers.append(await event.data(20))
        heard.set()

    async with pair(live) as (worker, user):
        worker.on("question", hear)
        await user.emit("question", lambda number: number + 1, to="worker")
        await heard.wait()
    assert answers == [21]


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
async def test_arrays_that_arrive_can_be_changed(live: LiveServer, size: int) -> None:
    def darken(image: Any) -> Any:
        image -= 1
        return image

    async with pair(live) as (worker, user):
        service = await offered(worker, user, darken=darken)
        image = await service.darken(np.full(size, 5, np.uint8))
        image[0] = 7
        assert (image[0], image[-1]) == (7, 4)
        assert isinstance(await service.darken(np.float64(1.5)), np.float64)
