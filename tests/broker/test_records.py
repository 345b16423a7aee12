"""The way of changes to the store: in batches, the latest of each record, and nobody is told too early."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hypha.broker.kept import unpack
from hypha.broker.records import Records
from hypha.errors import NotStored
from tests.broker.memory import MemoryStore


def started(store: MemoryStore, nursery: trio.Nursery) -> Records:
    """Records that are written to *store*."""
    records = Records(store)
    nursery.start_soon(partial(records.run, in_thread=False))
    return records


async def test_changes_reach_the_store_and_the_latest_counts(nursery: trio.Nursery) -> None:
    store = MemoryStore()
    records = Records(store)
    nursery.start_soon(records.run)
    records.put("a", "one", {"x": 1})
    records.put("a", "one", {"x": 2}, firm=True)
    records.put("a", "two", [])
    records.remove("a", "two")
    await records.kept()
    assert {key: unpack(data) for key, data in store.records.items()} == {("a", "one"): {"x": 2}}
    assert (store.writes, store.firm) == (1, True)
    records.put("a", "one", {"x": 2})  # nothing new
    records.remove("a", "two")
    await records.kept()
    records.put("a", "three", None)
    await records.kept()
    assert (store.writes, store.firm) == (2, False)


class SlowStore(MemoryStore):
    """A store whose disk takes as long as the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def write(self, changes: Mapping[tuple[str, str], bytes | None], *, firm: bool) -> None:
        self.begun.set()
        self.go_on.wait(5)
        super().write(changes, firm=firm)


async def test_who_waits_is_told_when_its_own_change_is_written(nursery: trio.Nursery) -> None:
    """While one batch is written the next one gathers; the event loop goes on."""
    store = SlowStore()
    records = Records(store)
    told: list[str] = []

    async def change(name: str) -> None:
        records.put("a", name, name)
        await records.kept()
        assert ("a", name) in store.records
        told.append(name)

    nursery.start_soon(records.run)
    nursery.start_soon(change, "one")
    await trio.to_thread.run_sync(store.begun.wait)
    for name in ("two", "three"):
        nursery.start_soon(change, name)
    await wait_all_tasks_blocked()
    assert told == []
    store.go_on.set()
    with trio.fail_after(5):
        while len(told) < 3:  # noqa: ASYNC110  threads write
            await trio.sleep(0.001)
    assert sorted(told) == ["one", "three", "two"]
    assert store.writes == 2


async def test_a_full_disk_is_said_and_tried_again(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    records = started(store, nursery)
    store.full = "no space left"
    records.put("a", "one", 1, firm=True)
    told = r"\(no space left\); what was changed is in force, and forgotten if the server ends before it can"
    with caplog.at_level(logging.ERROR), pytest.raises(NotStored, match=told):
        await records.kept()
    await trio.sleep(5.5)
    assert len(caplog.records) == 1
    store.full = None
    await trio.sleep(1)
    await records.kept()
    assert store.kinds() == ["a"]


async def test_a_full_disk_holds_nobody_up_whose_change_is_not_firm(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = MemoryStore()
    records = started(store, nursery)
    store.full = "no space left"
    records.begin()
    records.put("a", "one", 1)
    await records.kept()
    records.put("a", "two", 2, firm=True)
    records.put("a", "three", 3)
    with pytest.raises(NotStored):
        await records.kept()
    records.begin()
    records.put("a", "four", 4)
    await records.kept()
    store.full = None
    await trio.sleep(2)
    assert len(store.records) == 4
    records.put("a", "five", 5)
    await records.kept()
    assert ("a", "five") in store.records


async def test_what_comes_and_goes_while_the_disk_is_full_leaves_nothing(
    nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    records = started(store, nursery)
    records.put("a", "old", 0)
    await records.kept()
    store.full = "no space left"
    with caplog.at_level(logging.ERROR):
        for number in range(10):
            records.put("a", str(number), number)
            await trio.sleep(0.5 * (number % 4))
            records.remove("a", str(number))
            assert set(records._changes) | set(records._batch) <= {("a", str(number))}
        records.remove("a", "old")
        await trio.sleep(2)
    assert len(caplog.records) == 1
    assert records._changes == {("a", "old"): None}
    store.full = None
    await trio.sleep(2)
    assert store.records == {}
    records.put("a", "new", 1, firm=True)
    await records.kept()
    assert len(store.records) == len(records._stored) == 1


async def test_a_change_that_is_undone_before_it_is_written_is_not_waited_for(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = MemoryStore()
    records = started(store, nursery)
    store.full = "no space left"
    records.put("a", "one", 1, firm=True)
    await trio.sleep(0.5)
    records.remove("a", "one", firm=True)
    await trio.sleep(1)
    store.full = None
    await records.kept()
    records.put("a", "two", 2, firm=True)
    await records.kept()
    assert list(store.records) == [("a", "two")]


async def test_two_servers_of_a_process_wait_each_for_its_own_changes(nursery: trio.Nursery) -> None:
    one, other = Records(MemoryStore()), Records(MemoryStore())
    nursery.start_soon(other.run)
    for number in range(3):
        one.put("a", str(number), number)
    with trio.fail_after(5):
        await other.kept()


async def test_a_disk_that_hangs_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hypha.broker.records._LAST_SECONDS", 0.05)
    store = SlowStore()
    records = Records(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(records.run)
        records.put("a", "one", 1)
        await trio.to_thread.run_sync(store.begun.wait)
        nursery.cancel_scope.cancel()
    records.put("a", "two", 2)
    with caplog.at_level(logging.ERROR):
        records.close()
    assert "the disk does not answer: the last 2 changes are lost" in caplog.text
    store.go_on.set()


async def test_what_waits_at_the_end_is_written(nursery: trio.Nursery) -> None:
    store = MemoryStore()
    records = Records(store)
    records.put("a", "one", 1)
    records.close()
    records.close()
    assert (store.kinds(), store.writes) == (["a"], 1)


async def test_a_cancelled_writer_loses_nothing() -> None:
    store = MemoryStore()
    records = Records(store)
    records.put("a", "one", 1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await records.run()
    records.close()
    assert store.kinds() == ["a"]


async def test_a_last_write_that_fails_is_said(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    store.full = "no space left"
    records = Records(store)
    records.put("a", "one", 1)
    with caplog.at_level(logging.ERROR):
        records.close()
    assert "the last 1 changes are lost: no space left" in caplog.text


async def test_what_a_store_does_not_expect_ends_the_writer(nursery: trio.Nursery) -> None:
    class Surprise(MemoryStore):
        def write(self, changes: Mapping[tuple[str, str], bytes | None], *, firm: bool) -> None:
            raise ZeroDivisionError

    records = Records(Surprise())
    records.put("a", "one", 1)
    with pytest.raises(ZeroDivisionError):
        await records.run()


async def test_without_a_store_nothing_waits() -> None:
    records = Records()
    records.put("a", "one", 1)
    await records.kept()
    records.close()
    assert records.load().each("a", int) == []


def test_a_record_that_cannot_be_read_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    store.records = {("a", "bad"): b"\xc1", ("a", "good"): b"\x01", ("b", "bad"): b"\xc1"}
    records = Records(store)
    with caplog.at_level(logging.ERROR):
        loaded = records.load()
    assert loaded.each("a", int) == [("good", 1)]
    assert [loaded.has(kind) for kind in "abc"] == [True, True, False]
    assert "'bad'" in caplog.text
    assert ("a", "good") in records
    records.close()
    assert ("a", "bad") in store.records
