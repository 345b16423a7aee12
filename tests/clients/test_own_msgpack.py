"""The msgpack of our client for JavaScript beside that of Python: values go there and come back as they were."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.house import npm


class Echo:
    """A Node that reads values and writes them again."""

    def __init__(self, node: str) -> None:
        self._process = subprocess.Popen(
            [node, npm.SOURCE / "msgpack.js"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def raw(self, data: bytes) -> str:
        """The line that it writes for *data*."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{data.hex()}\n")
        return self._process.stdout.readline().strip()

    def __call__(self, value: Any) -> Any:
        answer = self.raw(msgpack.packb(value))
        assert not answer.startswith("no "), answer
        return msgpack.unpackb(bytes.fromhex(answer), strict_map_key=True)

    def close(self) -> None:
        self._process.communicate(timeout=10)
        assert self._process.returncode == 0


@pytest.fixture(scope="module")
def echo(node: str) -> Iterator[Echo]:
    running = Echo(node)
    yield running
    running.close()


#: What JavaScript keeps to the millisecond, in the years that its dates know.
milliseconds = st.integers(-(10**14), 10**14)
timestamps = milliseconds.map(lambda time: msgpack.Timestamp(time // 1000, time % 1000 * 10**6))
extensions = st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | timestamps
    | extensions
)
values = st.recursive(scalars, lambda item: st.lists(item) | st.dictionaries(st.text(), item), max_leaves=40)

EDGES: list[Any] = [
    *[sign * (2**bits + step) for bits in (5, 7, 8, 15, 16, 31, 32, 53, 62) for step in (-1, 0, 1) for sign in (1, -1)],
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
    math.inf,
    -math.inf,
    5e-324,
    *["x" * size for size in (31, 32, 255, 256, 65535, 65536)],
    *[bytes(size) for size in (0, 255, 256, 65535, 65536, 3_000_000)],
    *[[None] * size for size in (15, 16, 65535, 65536)],
    *[{str(number): number for number in range(size)} for size in (15, 16, 65535, 65536)],
    *[msgpack.ExtType(5, bytes(size)) for size in (1, 2, 3, 4, 8, 16, 17, 256, 65536)],
    {"__proto__": {"a": 1}, "constructor": 1, "then": 2, "": 3},
    "\ufeffa text that begins like a file",
    [[]] * 3,
]


@given(values)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_values_come_back(echo: Echo, value: Any) -> None:
    assert echo(value) == value


@pytest.mark.parametrize("value", EDGES, ids=lambda value: f"{str(value)[:30]}-{len(str(value))}")
def test_edges_come_back(echo: Echo, value: Any) -> None:
    back = echo(value)
    assert back == value
    assert type(back) is type(value)


def test_signs_and_what_is_no_number(echo: Echo) -> None:
    assert math.copysign(1, echo(-0.0)) == -1
    assert math.isnan(echo(math.nan))


@given(st.binary(max_size=64))
@settings(max_examples=500, deadline=None)
def test_bytes_that_are_no_value_are_refused_and_nothing_else_happens(echo: Echo, data: bytes) -> None:
    try:
        msgpack.unpackb(data, strict_map_key=True)
    except (ValueError, OverflowError):
        echo.raw(data)  # maps with keys of other kinds, and timestamps, may be read differently
    else:
        assert echo.raw(data) != ""
    assert echo("still there") == "still there"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xc6\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\x90\x01",
        b"\x91" * 100_000,
        b"\x01\x02",
        b"\xc7\x05\xff\x00\x00\x00\x00\x00",
    ],
    ids=lambda data: data[:5].hex(),
)
def test_what_is_cut_off_or_lies_is_refused_at_once(echo: Echo, data: bytes) -> None:
    assert echo.raw(data).startswith("no ")
