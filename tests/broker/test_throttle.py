"""How often somebody may try."""

from __future__ import annotations

import pytest

from hypha.broker.throttle import KEYS, Throttle, place
from hypha.errors import LimitExceeded


def test_tries_are_counted_for_each_key_and_come_back_one_by_one() -> None:
    throttle = Throttle("tries", 3)
    for _ in range(3):
        throttle.take("a", 0.0)
    with pytest.raises(LimitExceeded, match="tries = 3 tries a minute"):
        throttle.take("a", 19.0)
    throttle.take("b", 19.0)
    throttle.take("a", 21.0)
    with pytest.raises(LimitExceeded):
        throttle.take("a", 21.0)
    for _ in range(3):
        throttle.take("a", 1000.0)


def test_who_is_refused_does_not_wait_longer_for_having_tried() -> None:
    throttle = Throttle("tries", 1)
    throttle.take("a", 0.0)
    for second in range(1, 60):
        with pytest.raises(LimitExceeded):
            throttle.take("a", float(second))
    throttle.take("a", 60.0)


def test_a_good_try_costs_nothing() -> None:
    throttle = Throttle("tries", 1)
    for _ in range(10):
        throttle.take("a", 0.0)
        throttle.give_back("a")
    throttle.give_back("nobody")


def test_the_table_is_bounded_and_forgets_the_longest_silent() -> None:
    throttle = Throttle("tries", 1)
    for number in range(KEYS + 1):
        throttle.take(str(number), 0.0)
    assert len(throttle) == KEYS
    throttle.take("0", 0.0)
    with pytest.raises(LimitExceeded):
        throttle.take(str(KEYS), 0.0)


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::1", "::1"),
        ("fe80::1%eth0", "fe80::/64"),
        (None, "elsewhere"),
        ("<local>", "elsewhere"),
    ],
)
def test_what_an_address_counts_as(address: str | None, counted: str) -> None:
    assert place(address) == counted
