"""Our own client calls the published ones, and they call it: values, callbacks, errors, context, large messages."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any

import numpy as np
import pytest
import trio

from hypha.client import Server, connect_to_server
from hypha.errors import HyphaError, RemoteError
from tests.clients.conftest import RunClient, RunJavascript, StartClient, StartJavascript
from tests.clients.scripted import SCRIPTS, passes, service_of
from tests.clients.test_javascript_pairs import JAVASCRIPT_CALLER, JAVASCRIPT_PROVIDER
from tests.house import processes
from tests.house.environments import GENERATIONS, MODERN

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("place", ["inside", "outside"])]
every_python = pytest.mark.parametrize("generation", [*GENERATIONS, MODERN])
every_javascript = pytest.mark.parametrize("library", ["imjoy-rpc", "hypha-rpc", "hypha"])

LARGE = [900_000, 12_000_000]


def connected(server: processes.Server, place: str, workspace: str, token: str) -> AbstractAsyncContextManager[Server]:
    """Our client, in the workspace of the other or outside it."""
    where = {"workspace": workspace, "token": token} if place == "inside" else {}
    return connect_to_server({"server_url": server.url, **where})


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


# --- ours calls -----------------------------------------------------------------------------------------------


@every_python
async def test_ours_calls_python(
    start_client: StartClient, server: processes.Server, generation: str, place: str
) -> None:
    async with start_client(generation, SCRIPTS / "provider.py", server.url, "id=for-trio") as provider:
        service_id, workspace, token = await service_of(provider)
        async with connected(server, place, workspace, token) as user:
            service = await user.get_service(service_id)
            await use_functions(service)
            await use_values(service)
            for size in LARGE:
                array = np.frombuffer(pattern(size), np.uint8)
                assert np.array_equal(await service.echo(array), array)
            if generation == GENERATIONS[0]:
                return  # it looks at heartbeats once a second
            with trio.move_on_after(0.5) as scope:
                await service.wait(60)
            assert scope.cancelled_caught


async def use_functions(service: Any) -> None:
    """What ``tools.py`` offers, over ``protocol.md`` 12, row 5."""
    assert await service.add(40, 2) == 42
    assert await service.add(a="a", b="b") == "ab"
    assert await service.add_later(41) == 42
    assert service.nested.const == 5
    assert [await function(4) for function in service.nested.several] == [8, 5]
    heard: list[tuple[int, int]] = []

    async def slowly(number: int, total: int) -> int:
        await trio.lowlevel.checkpoint()
        heard.append((number, total))
        return number

    assert await service.count(4, slowly) == 6
    assert await service.count(upto=3, progress=lambda number, total: total) == 9
    assert heard == [(0, 4), (1, 4), (2, 4), (3, 4)]
    counting = await service.counter(7)
    assert [await counting.next() for _ in range(3)] == [7, 8, 9]
    for call, words in (
        (service.fail("boom 123"), "boom 123"),
        (service.fail_later("boom 456"), "KeyError: 'boom 456'"),
        (service.add(), "missing 1 required positional argument"),
    ):
        with pytest.raises(RemoteError, match=words) as caught:
            await call
        assert "\n" not in str(caught.value)


async def use_values(service: Any) -> None:
    plain: list[Any] = [None, True, 0, -1, 2**63 - 1, 0.5, math.inf, "Grüße 🧪", b"", [[]], {"a": {"b": None}}, {1, 2}]
    for value in plain:
        assert await service.echo(value) == value
    for array in (np.arange(24, dtype="int16").reshape(2, 3, 4), np.zeros((0, 3)), np.float32(0.5)):
        back = await service.echo(array)
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert np.array_equal(back, array)
    error = await service.echo(ValueError("an error as a value"))
    assert "an error as a value" in str(error)


@every_javascript
async def test_ours_calls_javascript(
    start_javascript: StartJavascript, server: processes.Server, library: str, place: str
) -> None:
    service_id = f"for-trio-{library}-{place}"
    async with start_javascript(JAVASCRIPT_PROVIDER, server.url, service_id, library=library) as provider:
        workspace, token = (await provider.wait_for(r"^ready (\S+) (\S+)$")).groups()
        async with connected(server, place, workspace, token) as user:
            service = await user.get_service(service_id)
            plain: list[Any] = [None, True, 0, -1, 2**53 - 1, 0.5, "Grüße 🧪", [[]], {"a": {"b": 1}}, b"\0\xff"]
            assert await service.echo(plain) == plain
            array = np.arange(6, dtype="int16").reshape(2, 3)
            assert np.array_equal(await service.echo(array), array)
            assert (await service.array()).tolist() == [0, 1, 2]
            assert await service.map() == {"a": 1, "b": 2}
            assert await service.nested.deeper.add(2, 3) == 5
            assert await service.each([1, 2], lambda number: number * 10) == [10, 20]
            with pytest.raises(RemoteError, match="TypeError: boom"):
                await service.fails("boom")
            word, context = await service.who("word")
            assert (word, context["from"]) == ("word", user.peer.name)
            for size in LARGE:
                data = pattern(size)
                assert await service.make(size) == data
                assert await service.describe(data) == ["Uint8Array", size]
                assert bytes(await service.echo(np.frombuffer(data, "uint8"))) == data


# --- ours is called -------------------------------------------------------------------------------------------


def tools(service_id: str) -> dict[str, Any]:
    """The service of ``scripts/tools.py``, written for trio."""

    async def count(upto: int, progress: Any) -> int:
        return sum([await progress(number, total=upto) for number in range(upto)])

    async def add_later(a: Any, b: Any = 1) -> Any:
        await trio.lowlevel.checkpoint()
        return a + b

    async def fail_later(text: str) -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError(text)

    def add(a: Any, b: Any = 1) -> Any:
        return a + b

    def counter(start: int) -> dict[str, Any]:
        numbers = itertools.count(start)
        return {"start": start, "next": lambda: next(numbers)}

    def fail(text: str) -> None:
        raise ValueError(text)

    def twice(value: Any) -> Any:
        return value * 2

    def make_array(size: int) -> Any:
        return np.arange(size, dtype=np.uint32).astype(np.uint8)

    def checksum(array: Any) -> dict[str, Any]:
        return {"sum": int(array.astype(np.uint64).sum()), "shape": list(array.shape), "dtype": str(array.dtype)}

    functions = [count, add_later, fail_later, add, counter, fail, make_array, checksum]
    return {
        "id": service_id,
        "config": {"visibility": "public"},
        "nested": {"const": 5, "deep": {"twice": twice}, "several": [twice, add]},
        "echo": lambda value: value,
        **{function.__name__: function for function in functions},
    }


@every_python
async def test_python_calls_ours(run_client: RunClient, server: processes.Server, generation: str, place: str) -> None:
    async with connect_to_server({"server_url": server.url}) as worker:
        info = await worker.register_service(tools("of-trio"))
        where = [f"workspace={worker.config.workspace}", f"token={await worker.generate_token()}"]
        for part in ("functions", "values", "large"):
            await passes(
                run_client, generation, "caller.py", server.url, info.id, part, *(where if place == "inside" else ())
            )


@every_javascript
async def test_javascript_calls_ours(
    run_javascript: RunJavascript, server: processes.Server, library: str, place: str
) -> None:
    async def each(items: list[Any], callback: Any) -> list[Any]:
        return [await callback(item) for item in items]

    async def fails(text: str) -> None:
        raise ValueError(text)

    def fails_at_once(text: str) -> None:
        raise ValueError(text)

    def describe(value: Any) -> list[Any]:
        """The names of types are those that the published Python clients give."""
        if isinstance(value, dict):
            return ["OrderedDict", None, len(value)]
        return [type(value).__name__, list(value.shape) if isinstance(value, np.ndarray) else None, len(value)]

    service_id = f"of-trio-{library}-{place}"
    async with connect_to_server({"server_url": server.url, "client_id": "python"}) as worker:
        await worker.register_service(
            {
                "id": service_id,
                "config": {"visibility": "public", "require_context": ["who"]},
                "echo": lambda value: value,
                "describe": describe,
                "make": pattern,
                "array": lambda: np.arange(6, dtype="float32").reshape(2, 3),
                "each": each,
                "fails": fails,
                "fails_at_once": fails_at_once,
                "options": lambda first, second=2, **more: [first, second, more],
                "who": lambda word, context=None: [word, context],
                "nested": {"deeper": {"add": lambda a, b: a + b}},
            }
        )
        arguments = (service_id, place, worker.config.workspace, await worker.generate_token())
        await run_javascript(JAVASCRIPT_CALLER, server.url, *arguments, library=library, seconds=60)


# --- generators -----------------------------------------------------------------------------------------------

READER = """
    import asyncio, sys
    from hypha_rpc import connect_to_server

    async def main(url, service_id, *login):
        settings = dict(zip(("workspace", "token"), login))
        server = await connect_to_server({"server_url": url, **settings})
        service = await server.get_service(service_id)
        assert [number async for number in await service.later(4)] == [0, 1, 2, 3]
        assert [number async for number in await service.at_once(4)] == [0, 1, 2, 3]
        async for number in await service.later(10**9):
            if number == 2:
                break
        while not await service.is_closed():
            pass
        await server.disconnect()
        print("passed")

    asyncio.run(main(*sys.argv[1:]))
"""

WRITER = """
    import asyncio, sys
    from hypha_rpc import connect_to_server

    async def main(url):
        server = await connect_to_server({"server_url": url})
        closed = asyncio.Event()

        async def later(upto):
            try:
                for number in range(upto):
                    yield number
            finally:
                closed.set()

        def at_once(upto):
            yield from range(upto)

        functions = {"later": later, "at_once": at_once, "is_closed": lambda: closed.is_set()}
        await server.register_service({"id": "streams", "config": {"visibility": "public"}, **functions})
        print("ready", server.config.workspace, await server.generate_token(), flush=True)
        await asyncio.Event().wait()

    asyncio.run(main(*sys.argv[1:]))
"""


@asynccontextmanager
async def streams(server: processes.Server) -> AsyncIterator[Server]:
    """Our client, which offers generators."""
    closed = trio.Event()

    async def later(upto: int) -> AsyncIterator[int]:
        try:
            for number in range(upto):
                yield number
        finally:
            closed.set()

    def at_once(upto: int) -> Iterator[int]:
        yield from range(upto)

    functions: dict[str, Any] = {"later": later, "at_once": at_once, "is_closed": closed.is_set}
    async with connect_to_server({"server_url": server.url}) as worker:
        await worker.register_service({"id": "streams", "config": {"visibility": "public"}, **functions})
        yield worker


async def test_generators_go_to_hypha_rpc(run_client: RunClient, server: processes.Server, place: str) -> None:
    async with streams(server) as worker:
        where = [worker.config.workspace, await worker.generate_token()]
        arguments = (f"{worker.peer.name}:streams", *(where if place == "inside" else ()))
        result = await run_client(MODERN, READER, server.url, *arguments)
    assert result.stdout.endswith("passed\n"), result.stdout + result.stderr


async def test_generators_come_from_hypha_rpc(start_client: StartClient, server: processes.Server, place: str) -> None:
    async with start_client(MODERN, WRITER, server.url) as provider:
        workspace, token = (await provider.wait_for(r"^ready (\S+) (\S+)$")).groups()
        async with connected(server, place, workspace, token) as user:
            service = await user.get_service(f"{workspace}/*:streams" if place == "outside" else "streams")
            for function in (service.later, service.at_once):
                assert [number async for number in await function(4)] == [0, 1, 2, 3]
            async with aclosing(await service.later(10**9)) as numbers:
                async for number in numbers:
                    if number == 2:
                        break
            while not await service.is_closed():
                pass


async def test_a_cancelled_call_is_known_within_100_ms(server: processes.Server, place: str) -> None:
    """Over real sockets, with the server in a process of its own."""
    begun, ended = trio.Event(), trio.Event()

    async def hang() -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with connect_to_server({"server_url": server.url}) as worker:
        info = await worker.register_service({"id": "hangs", "config": {"visibility": "public"}, "hang": hang})
        async with connected(server, place, worker.config.workspace, await worker.generate_token()) as user:
            service = await user.get_service(info)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(service.hang)
                await begun.wait()
                nursery.cancel_scope.cancel()
            began = trio.current_time()
            await ended.wait()
            print(f"known after {(trio.current_time() - began) * 1000:.1f} ms")
            assert trio.current_time() - began < 0.1
            with pytest.raises(HyphaError):
                await user.get_service("nothing")
