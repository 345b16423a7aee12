"""What accounts have: found by account, forgotten when it has ended, and nothing left behind."""

from __future__ import annotations

from typing import NamedTuple

from hypha.accounts.owned import Owned


class Item(NamedTuple):
    account: str
    until: float


def test_things_are_found_by_mark_and_by_account_in_their_order() -> None:
    owned = Owned([("b", Item("ada", 20)), ("a", Item("ada", 10))])
    owned.add("c", Item("bob", 30))
    assert owned.get("a") == Item("ada", 10)
    assert owned.get("missing") is None
    assert [mark for mark, _ in owned.of("ada")] == ["b", "a"]
    assert (owned.count("ada"), owned.count("bob"), owned.count("eve"), len(owned._things)) == (2, 1, 0, 3)
    owned.discard("a")
    owned.discard("a")
    assert [mark for mark, _ in owned.of("ada")] == ["b"]


def test_what_has_ended_is_told_once_and_not_what_was_forgotten_before() -> None:
    owned = Owned([(f"t{number}", Item("ada", number)) for number in range(5)])
    owned.discard("t1")
    told = []
    for mark in owned.ended(3):
        told.append(mark)
        owned.discard(mark)
    assert told == ["t0", "t2", "t3"]
    assert list(owned.ended(3)) == []
    assert [mark for mark, _ in owned.of("ada")] == ["t4"]


def test_what_comes_and_goes_leaves_nothing() -> None:
    owned = Owned[Item]()
    owned.add("stays", Item("ada", 2**40))
    for number in range(1000):
        owned.add(f"t{number}", Item("ada", 2**39))
        owned.discard(f"t{number}")
    assert len(owned._ends) <= 2 * len(owned._things)
    owned.discard("stays")
    assert (len(owned._ends), owned._by_account) == (0, {})
