"""What differs between the generations of clients, as data."""

from __future__ import annotations

import itertools

import pytest

from hypha.wire.dialect import LEGACY, LEGACY_JAVASCRIPT, MODERN, Dialect

ALL = (LEGACY, LEGACY_JAVASCRIPT, MODERN)
GET_SERVICE = "services.built-in.get_service"


def test_one_call_is_redirected_and_only_from_modern_to_legacy_clients() -> None:
    """``decisions.md`` 18."""
    for caller, target in itertools.product(ALL, ALL):
        expected = "built_in_with_api_version" if caller is MODERN and target is not MODERN else None
        assert caller.redirection(GET_SERVICE, target) == expected
        for method in ("", "services.built-in.ping", f"{GET_SERVICE}.x", "services.svc.get_service", "s1.resolve"):
            assert caller.redirection(method, target) is None


@pytest.mark.parametrize("legacy", [LEGACY, LEGACY_JAVASCRIPT])
def test_what_legacy_clients_are(legacy: Dialect) -> None:
    """``protocol.md`` 1.6, 2.4, 4.2."""
    assert (legacy.legacy_manager, legacy.reannounces, legacy.compact_promise) == (True, False, False)


def test_what_modern_clients_are() -> None:
    assert (MODERN.legacy_manager, MODERN.reannounces, MODERN.compact_promise) == (False, True, True)


def test_javascript_counts_positions() -> None:
    """``protocol.md`` 4.5: keyword arguments arrive as one more argument there."""
    assert [dialect.by_position for dialect in ALL] == [False, True, False]


def test_every_part_that_the_server_sends_fits_into_the_smallest_receiver() -> None:
    """``protocol.md`` 2.6: modern Python decodes values of 524 288 bytes at most, and takes frames of 1 MiB."""
    assert {dialect.chunk_bytes for dialect in ALL} == {262_144}
    assert len({dialect.name for dialect in ALL}) == len(ALL)
