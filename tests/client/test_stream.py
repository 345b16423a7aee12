"""The stream below the websocket: whole binary messages pass by, everything else is the websocket's."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage

from hypha.client.stream import MessageStream, masked_message

HEAD = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"


def frame(first: int, payload: bytes) -> bytes:
    """A frame of a server."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return struct.pack(">BBH", first, 126, size) + payload
    return struct.pack(">BBQ", first, 127, size) + payload


async def no_wait() -> None:
    """There is always room."""


async def sorted_out(data: bytes, cuts: list[int]) -> tuple[list[bytes], bytes]:
    """The messages and the rest of *data*, which arrives in pieces."""
    client, server = memory_stream_pair()
    taken: list[bytes] = []
    stream = MessageStream(client, no_wait)
    stream.take = taken.append
    rest = b""

    async def feed() -> None:
        positions = [0, *sorted(cuts), len(data)]
        for begin, end in pairwise(positions):
            await server.send_all(data[begin:end])
            await trio.testing.wait_all_tasks_blocked()
        await server.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        while received := await stream.receive_some():
            rest += received
    return taken, rest


MESSAGES = [b"", b"a", b"b" * 125, b"c" * 126, b"d" * 70_000]
OTHERS = [frame(0x81, b"text"), frame(0x89, b"ping"), frame(0x02, b"begun"), frame(0x80, b"ended"), frame(0x88, b"")]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000, 10**6])
async def test_every_cut_gives_the_same(step: int) -> None:
    mixed = [part for pair in zip((frame(0x82, m) for m in MESSAGES), OTHERS, strict=True) for part in pair]
    data = HEAD + b"".join(mixed)
    data = data if step > 1 else data.replace(frame(0x82, MESSAGES[4]), frame(0x82, b"d"))
    taken, rest = await sorted_out(data, list(range(step, len(data), step)))
    assert taken == (MESSAGES if step > 1 else [*MESSAGES[:4], b"d"])
    assert rest == HEAD + b"".join(OTHERS)


async def test_what_is_no_websocket_is_left_alone() -> None:
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\n\x82\x02ab"
    assert await sorted_out(answer, [10, 40, 46]) == ([], answer)
    assert await sorted_out(b"HTTP/1.1 1", []) == ([], b"HTTP/1.1 1")


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.sampled_from([0, 70_000]))
def test_a_masked_message_is_read_by_wsproto(pieces: list[bytes], more: int) -> None:
    pieces = [*pieces, b"x" * more]
    server = Connection(ConnectionType.SERVER)
    server.receive_data(b"".join(masked_message(tuple(pieces))))
    events = list(server.events())
    assert all(isinstance(event, BytesMessage) for event in events)
    read: Any = b"".join(bytes(event.data) for event in events if isinstance(event, BytesMessage))
    assert read == b"".join(pieces)


async def test_it_reads_when_there_is_room() -> None:
    client, server = memory_stream_pair()
    room = trio.Event()
    stream = MessageStream(client, room.wait)
    await server.send_all(HEAD)
    async with trio.open_nursery() as nursery:
        received: list[bytes] = []

        async def read() -> None:
            received.append(await stream.receive_some())

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        assert not received
        room.set()
    assert received == [HEAD]
