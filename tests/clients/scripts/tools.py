"""A service with everything that a function can take and give, and a caller that uses all of it."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from peer import refused

MEGABYTE = 1_000_000


def tools(service_id: str = "tools", **config: Any) -> dict[str, Any]:
    """The service, to be registered."""
    return {
        "id": service_id,
        "name": "Tools",
        "type": "demo",
        "config": {"visibility": "public", **config},
        "echo": echo,
        "add": add,
        "add_later": add_later,
        "nested": {"const": 5, "deep": {"twice": twice}, "several": [twice, add]},
        "count": count,
        "counter": counter,
        "fail": fail,
        "fail_later": fail_later,
        "make_array": make_array,
        "checksum": checksum,
    }


def echo(value: Any) -> Any:
    return value


def add(a: Any, b: Any = 1) -> Any:
    return a + b


async def add_later(a: Any, b: Any = 1) -> Any:
    await asyncio.sleep(0)
    return a + b


def twice(value: Any) -> Any:
    return value * 2


async def count(upto: int, progress: Any) -> int:
    """Tell *progress* each number, and add up what it answers."""
    return sum([await progress(number, total=upto) for number in range(upto)])


def counter(start: int) -> dict[str, Any]:
    """A function as a result: it remembers."""
    numbers = iter(range(start, start + 10))
    return {"start": start, "next": lambda: next(numbers)}


def fail(text: str) -> None:
    raise ValueError(text)


async def fail_later(text: str) -> None:
    await asyncio.sleep(0)
    raise KeyError(text)


def make_array(size: int) -> Any:
    return np.arange(size, dtype=np.uint32).astype(np.uint8)


def checksum(array: Any) -> dict[str, Any]:
    return {"sum": int(array.astype(np.uint64).sum()), "shape": list(array.shape), "dtype": str(array.dtype)}


async def use_functions(service: Any) -> None:
    """Keyword arguments, nested functions, callbacks both ways, errors (``protocol.md`` 12, row 5)."""
    assert await service.add(40, 2) == 42
    assert await service.add(a=40, b=2) == 42
    assert await service.add("a", b="b") == "ab"
    assert await service.add_later(41) == 42
    assert service.nested.const == 5
    assert await service.nested.deep.twice(21) == 42
    assert [await function(4) for function in service.nested.several] == [8, 5]
    await _use_callbacks(service)
    await _use_errors(service)


async def _use_callbacks(service: Any) -> None:
    heard: list[tuple[int, int]] = []

    async def slowly(number: int, total: int) -> int:
        await asyncio.sleep(0)
        heard.append((number, total))
        return number

    assert await service.count(4, slowly) == 6
    assert await service.count(upto=3, progress=lambda number, total: total) == 9
    assert heard == [(0, 4), (1, 4), (2, 4), (3, 4)]
    counting = await service.counter(7)
    assert counting.start == 7
    assert [await counting.next() for _ in range(3)] == [7, 8, 9]

    def angry(number: int, total: int) -> int:
        raise RuntimeError("the callback is angry")

    await refused(service.count(1, angry), "the callback is angry")


async def _use_errors(service: Any) -> None:
    await refused(service.fail("boom 123"), "boom 123")
    await refused(service.fail_later("boom 456"), "KeyError", "boom 456")
    await refused(service.add(), "missing 1 required positional argument")
    await refused(service.add(1, 2, 3), "takes from 1 to 2 positional arguments")
    await refused(service.add(a=1, c=2), "unexpected keyword argument 'c'")
    assert await service.add(1) == 2


async def use_values(service: Any) -> None:
    """Every type there and back (``protocol.md`` 3.1; ``promises.md`` A27)."""
    for value in plain_values():
        back = await service.echo(value)
        assert back == value, (value, back)
        assert type(back) is type(value) or isinstance(back, dict), (value, back)
    assert await service.echo((1, (2, 3))) == [1, [2, 3]]
    view = await service.echo(memoryview(b"view"))
    assert isinstance(view, memoryview)
    assert view.tobytes() == b"view"
    error = await service.echo(ValueError("an error as a value"))
    assert isinstance(error, Exception)
    assert "an error as a value" in str(error)
    for array in arrays():
        back = await service.echo(array)
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert np.array_equal(back, array)
    mixed = await service.echo({"list": [{"array": np.eye(2)}, {1, 2}], "data": b"\x00\xff"})
    assert np.array_equal(mixed["list"][0]["array"], np.eye(2))
    assert mixed["list"][1] == {1, 2}
    assert mixed["data"] == b"\x00\xff"


def plain_values() -> list[Any]:
    numbers = [0, -1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1, 0.1, 1e308, float("inf")]
    texts = ["", "text", "Größe 測試 \U0001f9ea", "x" * 100_000]
    return [
        None,
        True,
        False,
        *numbers,
        *texts,
        b"",
        bytes(range(256)),
        [],
        [1, [2, [3]]],
        {},
        {"a": {"b": None}},
        {1, 2},
    ]


def arrays() -> list[Any]:
    names = ("bool", "uint8", "int16", "int64", "float32", "float64", "complex64")
    shaped = [np.arange(24).reshape(2, 3, 4).astype(name) for name in names]
    return [*shaped, np.zeros((0, 3)), np.float32(0.5), np.asfortranarray(np.arange(6).reshape(2, 3))]


async def use_large_values(service: Any, megabytes: int = 12) -> None:
    """Arrays that travel in parts, as argument alone, as result alone, and both ways."""
    array = make_array(megabytes * MEGABYTE).reshape(1000, -1)
    assert await service.checksum(array) == checksum(array)
    assert np.array_equal(await service.make_array(megabytes * MEGABYTE), array.reshape(-1))
    back = await service.echo({"image": array})
    assert np.array_equal(back["image"], array)
    assert await service.echo(None) is None  # behind the answer to the last part, which is still on its way
