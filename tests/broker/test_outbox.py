"""The queue towards one peer: its bounds, partial writes at every byte, the writer, and who is woken."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from hypha.broker.outbox import DirtyOutboxes, Outbox, flush_dirty
from tests.broker.memory import HEAD, MemoryTransport


def outbox(transport: MemoryTransport, limit: int = 100, reserve: int = 10) -> Outbox:
    return Outbox(transport, limit, reserve, {})


@asynccontextmanager
async def writing(takes: int = 0, limit: int = 100, reserve: int = 10) -> AsyncIterator[tuple[MemoryTransport, Outbox]]:
    """An outbox over a socket that takes *takes* bytes, and a nursery for its writer."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            transport = MemoryTransport(nursery, takes)
            yield transport, outbox(transport, limit, reserve)
            nursery.cancel_scope.cancel()


# --- bounds ---------------------------------------------------------------------------------------------------


def test_messages_are_taken_up_to_the_limit_and_not_a_byte_more() -> None:
    box = outbox(MemoryTransport(takes=0))
    assert box.put(b"x" * 40, b"y" * 10)
    assert box.pending == 50 + HEAD
    assert not box.put(b"z" * 47)
    assert box.pending == 50 + HEAD
    assert box.fits(46)
    assert not box.fits(47)
    assert box.put(b"z" * 46)
    assert not box.put(b"")
    assert box.missed == 0


def test_one_message_of_any_size_enters_an_empty_queue() -> None:
    box = outbox(MemoryTransport(takes=0))
    assert box.fits(1000)
    assert box.put(b"x" * 1000)
    assert not box.fits(0)
    assert not box.put(b"")


def test_control_messages_use_the_reserve_and_are_counted_when_it_is_full() -> None:
    box = outbox(MemoryTransport(takes=0))
    assert box.put(b"x" * 96)
    assert not box.put(b"y")
    assert box.put_control(b"z" * 6)
    assert box.missed == 0
    assert not box.put_control(b"z")
    assert box.missed == 1
    assert box.pending == 110


def test_pongs_use_the_reserve_and_are_dropped_when_it_is_full() -> None:
    box = outbox(MemoryTransport(takes=0))
    assert box.put(b"x" * 96)
    box.put_raw(b"p" * 10)
    assert box.pending == 110
    box.put_raw(b"p")
    assert box.pending == 110


def test_what_is_empty_is_not_queued() -> None:
    """Nothing would ever take it out, and the writer would not end."""
    transport = MemoryTransport()
    box = outbox(transport)
    box.put_raw(b"")
    box.flush()
    assert (box.pending, transport.writes, transport.tasks) == (0, 0, [])


# --- writing --------------------------------------------------------------------------------------------------


def test_a_flush_writes_everything_at_once() -> None:
    transport = MemoryTransport()
    box = outbox(transport)
    for body in (b"one", b"", b"three"):
        assert box.put(b"header", memoryview(body))
    box.flush()
    assert transport.frames() == [b"headerone", b"header", b"headerthree"]
    assert transport.writes == 1
    assert box.pending == 0
    box.flush()
    assert transport.writes == 1
    assert box.stalled_since is None


@pytest.mark.parametrize("first", range(26))
async def test_a_partial_write_at_every_byte_is_continued_there(first: int) -> None:
    async with writing(first) as (transport, box):
        assert box.put(b"abc", b"defgh")
        assert box.put(b"", memoryview(b"ijklmnop"))
        assert box.pending == 24
        box.flush()
        assert box.pending == max(0, 24 - first)
        assert len(transport.written) == min(first, 24)
        for _ in range(24 - first):
            transport.take(1)
            await wait_all_tasks_blocked()
        assert transport.frames() == [b"abcdefgh", b"ijklmnop"]
        assert (box.pending, box.stalled_since) == (0, None)


@given(st.lists(st.lists(st.binary(max_size=9), min_size=1, max_size=2), min_size=1, max_size=6), st.data())
def test_bytes_arrive_whole_and_in_order_however_the_socket_takes_them(
    messages: list[list[bytes]], data: st.DataObject
) -> None:
    transport = MemoryTransport()
    box = outbox(transport, limit=10_000)
    for parts in messages:
        assert box.put(*parts)
    total = box.pending
    while box.pending:
        transport.takes = data.draw(st.integers(1, box.pending))
        before = box.pending
        box._took(transport.write_now(box._parts))
        assert 0 <= box.pending < before
        assert box.pending + len(transport.written) == total
    assert transport.frames() == [b"".join(parts) for parts in messages]
    assert not box._parts


async def test_the_writer_takes_over_when_the_socket_is_full_and_there_is_one_at_a_time() -> None:
    async with writing(takes=5) as (transport, box):
        assert box.put(b"x" * 20)
        box.flush()
        assert box.put(b"y" * 20)
        box.flush()
        await wait_all_tasks_blocked()
        assert len(transport.nursery.child_tasks if transport.nursery else []) == 1
        assert transport.writes == 1  # nobody else writes while the writer is at work
        transport.take(None)
        await wait_all_tasks_blocked()
        assert transport.frames() == [b"x" * 20, b"y" * 20]
        assert transport.nursery is not None
        assert not transport.nursery.child_tasks
        assert box.put(b"z")
        box.flush()
        assert transport.frames()[-1] == b"z"


async def test_the_writer_gathers_what_came_while_it_waited() -> None:
    async with writing(limit=10_000) as (transport, box):
        assert box.put(b"first")
        box.flush()
        for number in range(100):
            assert box.put(b"header", str(number).encode())
        await wait_all_tasks_blocked()
        transport.take(None)
        await wait_all_tasks_blocked()
        assert len(transport.frames()) == 101
        assert (transport.sends, transport.writes) == (1, 2)


async def test_large_messages_are_written_in_pieces_with_a_clock_for_each(autojump_clock: MockClock) -> None:
    size = 65536
    async with writing(limit=10 * size) as (transport, box):
        assert box.put(b"x" * (3 * size))
        box.flush()
        started = trio.current_time()
        assert box.stalled_since == started
        for number in range(3):
            await trio.sleep(5)
            transport.take(size)
            await wait_all_tasks_blocked()
            assert box.stalled_since == trio.current_time(), number
        transport.take(HEAD)
        await wait_all_tasks_blocked()
        assert box.stalled_since is None


# --- waking ---------------------------------------------------------------------------------------------------


async def test_who_waits_for_room_has_it_when_it_is_there() -> None:
    async with writing() as (transport, box):
        assert box.put(b"x" * 96)
        woken: list[int] = []

        async def wait(number: int, size: int) -> None:
            await box.wait_room(size)
            assert box.put(b"y" * (size - HEAD))
            box.flush()
            woken.append(number)

        assert transport.nursery is not None
        for number in range(3):
            transport.nursery.start_soon(wait, number, 40)
            await wait_all_tasks_blocked()
        assert woken == []
        transport.take(100)
        await wait_all_tasks_blocked()
        assert woken == [0, 1]  # and for the third one there is no room
        transport.take(80)
        await wait_all_tasks_blocked()
        assert woken == [0, 1, 2]


async def test_nobody_gets_ahead_of_a_large_message_that_waits() -> None:
    async with writing() as (transport, box):
        assert box.put(b"x" * 26)
        order: list[str] = []

        async def send(name: str, size: int) -> None:
            if not box.put(b"y" * size):
                await box.wait_room(size)
                assert box.put(b"y" * size)
                box.flush()
            order.append(name)

        assert transport.nursery is not None
        for name, size in (("large", 90), ("small", 10)):
            transport.nursery.start_soon(send, name, size)
            await wait_all_tasks_blocked()
        assert not box.fits(10)
        assert not box.put(b"z" * 10)
        assert box.put_control(b"c" * 10)
        assert order == []
        transport.take(None)
        await wait_all_tasks_blocked()
        assert order == ["large", "small"]
        assert box.put(b"z" * 10)


async def test_who_gives_up_waiting_leaves_its_place() -> None:
    async with writing() as (_, box):
        assert box.put(b"x" * 26)
        box.flush()
        with trio.move_on_after(0.01):
            await box.wait_room(90)
        assert box.put(b"y" * 10)


async def test_waiting_for_room_flushes_first_and_yields_when_there_is_some() -> None:
    async with writing() as (transport, box):
        transport.take(None)
        assert box.put(b"x")
        with trio.testing.assert_checkpoints():
            await box.wait_room(1)
        assert transport.frames() == [b"x"]


async def test_closing_drops_what_waits_wakes_who_waits_and_takes_nothing_more() -> None:
    async with writing() as (transport, box):
        assert box.put(b"x" * 96)
        box.flush()
        done = trio.Event()

        async def wait() -> None:
            await box.wait_room(1)
            done.set()

        assert transport.nursery is not None
        transport.nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        box.close()
        await done.wait()
        assert box.pending == 0
        for refused in (box.put(b""), box.put_control(b""), box.fits(0)):
            assert not refused
        box.put_raw(b"pong")
        assert box.pending == 0
        transport.take(None)
        await wait_all_tasks_blocked()  # the writer ends with what it was writing
        assert box.pending == 0
        with trio.fail_after(1):
            await box.wait_room(1)


async def test_nothing_is_taken_after_the_last_bytes_and_what_waits_before_them_is_written() -> None:
    async with writing() as (transport, box):
        assert box.put(b"before")
        box.end_with(b"bye")
        for refused in (box.put(b""), box.put_control(b""), box.fits(0)):
            assert not refused
        box.put_raw(b"pong")
        box.flush()
        transport.take(None)
        await box.wait_empty()
        assert bytes(transport.written).endswith(b"beforebye")


@pytest.mark.parametrize("taken", [0, 1, 20])
async def test_a_socket_that_breaks_ends_the_writer_and_the_queue(taken: int) -> None:
    """Bytes after a frame that was cut would be read as its rest."""
    async with writing() as (transport, box):
        assert box.put(b"x" * 50)
        box.flush()
        await wait_all_tasks_blocked()
        transport.take(taken)
        transport.break_off()
        await wait_all_tasks_blocked()
        assert transport.closed == [(1006, "the socket broke while writing")]
        assert box.pending == 0
        assert not box.put(b"y")
        assert transport.nursery is not None
        assert not transport.nursery.child_tasks
        with trio.fail_after(1):
            await box.wait_room(1)


@pytest.mark.parametrize("checkpoint", range(5))
async def test_a_writer_that_is_cancelled_anywhere_leaves_nothing_that_could_be_written_twice(checkpoint: int) -> None:
    """Cancellation comes at the n-th time that the writer waits; how much of a frame is out is not known then."""
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            transport = MemoryTransport(nursery, 0)
            box = outbox(transport)
            assert box.put(b"ab", b"cd")
            assert box.put(b"ef")
            box.flush()
            for _ in range(checkpoint):
                await wait_all_tasks_blocked()
                transport.take(3)
            nursery.cancel_scope.cancel()
        written = bytes(transport.written)
        transport.take(None)
        transport.nursery = None
        box.flush()
        assert bytes(transport.written) == written
        assert (box.pending, transport.tasks) == (0, [])
        assert not box.put(b"more")


# --- the outboxes that were touched ---------------------------------------------------------------------------


def test_each_touched_outbox_is_flushed_once() -> None:
    dirty: DirtyOutboxes = {}
    transports = [MemoryTransport() for _ in range(3)]
    boxes = [Outbox(transport, 100, 10, dirty) for transport in transports]
    for _ in range(4):
        for box in boxes[:2]:
            assert box.put(b"x")
    assert boxes[0].put_control(b"c")
    boxes[1].put_raw(b"\x00\x00\x00\x01r")
    assert list(dirty) == boxes[:2]
    flush_dirty(dirty)
    assert not dirty
    assert [transport.writes for transport in transports] == [1, 1, 0]
    assert transports[1].frames()[-1] == b"r"


def test_an_outbox_that_was_closed_after_it_was_touched_is_not_written() -> None:
    dirty: DirtyOutboxes = {}
    transport = MemoryTransport()
    box = Outbox(transport, 100, 10, dirty)
    assert box.put(b"x")
    box.close()
    flush_dirty(dirty)
    assert not dirty
    assert cast("bytes", transport.written) == b""
