"""The ends of sessions: how many are remembered, and for how long."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from hypha.broker import ends
from hypha.broker.ends import Ends
from hypha.broker.ledger import Ledger
from hypha.broker.records import Records


def some_ends() -> Ends:
    return Ends(Ledger(Records(), trio.current_time, trio.current_time), trio.current_time, 100.0)


async def test_who_leaves_pushes_out_nobody_who_was_expelled() -> None:
    found = some_ends()
    found.add("expelled", expelled=True)
    for number in range(ends._REMEMBERED + 1):
        found.add(f"left-{number}", expelled=False)
    assert "expelled" in found
    assert "left-0" not in found
    assert "left-1" in found
    for number in range(ends._REMEMBERED):
        found.add(f"expelled-{number}", expelled=True)
    assert "expelled" not in found
    assert len(found) == 2 * ends._REMEMBERED


async def test_an_end_is_forgotten_when_no_token_is_good_any_more(mock_clock: MockClock) -> None:
    found = some_ends()
    found.restore({"restored": trio.current_time() + 50, "expelled:restored-too": trio.current_time() + 50})
    found.add("left", expelled=False)
    found.add("expelled", expelled=True)
    names = ("restored", "restored-too", "left", "expelled")
    assert all(name in found for name in names)
    mock_clock.jump(50)
    found.sweep()
    assert [name in found for name in names] == [False, False, True, True]
    mock_clock.jump(50)
    found.sweep()
    assert len(found) == 0
