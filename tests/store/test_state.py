"""The records at their own wall: a real SQLite file, broken in real ways, and a writer that is killed."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hypha.errors import ConfigError
from hypha.store import State, open_state
from hypha.store.state import MIGRATIONS, STATE_NAME

RECORDS = {("workspace", "lab"): b"\x00\xff", ("session", "lab/a"): "ä ü".encode(), ("session", ""): b""}


def records(directory: Path) -> dict[tuple[str, str], bytes]:
    with closing(open_state(directory)) as state:
        return {(kind, name): value for kind, name, value in state.load()}


def fill(directory: Path) -> None:
    with closing(open_state(directory)) as state:
        state.write(RECORDS, firm=False)


def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    fill(tmp_path)
    assert records(tmp_path) == RECORDS
    assert (tmp_path / STATE_NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("firm", [False, True])
def test_a_record_is_replaced_and_removed(tmp_path: Path, firm: bool) -> None:
    fill(tmp_path)
    with closing(open_state(tmp_path)) as state:
        state.write({("session", "lab/a"): None, ("session", ""): b"new", ("session", "none"): None}, firm=firm)
    assert records(tmp_path) == {("workspace", "lab"): b"\x00\xff", ("session", ""): b"new"}


def test_records_are_loaded_once(tmp_path: Path) -> None:
    """They are the broker's then, and need not be held twice."""
    fill(tmp_path)
    with closing(open_state(tmp_path)) as state:
        assert len(list(state.load())) == 3
        assert list(state.load()) == []


@pytest.mark.parametrize("how", ["no database", "empty header", "half of it", "a hole"])
def test_a_broken_file_is_set_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    with closing(open_state(tmp_path)) as state:
        state.write({("session", str(number)): os.urandom(500) for number in range(1000)}, firm=True)
    path = tmp_path / STATE_NAME
    content = path.read_bytes()
    broken = {
        "no database": b"\xde\xad" * 5000,
        "empty header": bytes(100) + content[100:],
        "half of it": content[: len(content) // 2 + 100],
        "a hole": content[:8192] + bytes(len(content) - 8192),
    }[how]
    path.write_bytes(broken)
    with caplog.at_level(logging.ERROR):
        assert records(tmp_path) == {}
    (aside,) = tmp_path.glob(f"{STATE_NAME}.corrupt-*")
    assert aside.read_bytes() == broken
    assert aside.name in caplog.text
    fill(tmp_path)
    assert records(tmp_path) == RECORDS


def test_an_empty_file_is_a_new_one(tmp_path: Path) -> None:
    (tmp_path / STATE_NAME).touch()
    assert records(tmp_path) == {}
    assert not list(tmp_path.glob("*.corrupt-*"))


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    fill(tmp_path)
    with closing(sqlite3.connect(tmp_path / STATE_NAME)) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = (tmp_path / STATE_NAME).read_bytes()
    with pytest.raises(ConfigError, match="newer version"):
        open_state(tmp_path)
    assert (tmp_path / STATE_NAME).read_bytes() == before


def test_a_directory_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / STATE_NAME).mkdir()
    with pytest.raises(ConfigError, match=r"state\.db cannot be used"):
        open_state(tmp_path)


def test_a_migration_that_was_interrupted_is_made_again(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / STATE_NAME, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("BEGIN")
        database.execute(MIGRATIONS[0])  # not committed
    assert records(tmp_path) == {}


def test_a_full_disk_is_an_error_and_nothing_is_half_written(tmp_path: Path) -> None:
    fill(tmp_path)
    with closing(open_state(tmp_path)) as state:
        limit_size(state)
        with pytest.raises(OSError, match="full"):
            state.write({("workspace", "lab"): b"other", ("big", "one"): bytes(100_000)}, firm=True)
        state.write({("workspace", "more"): b"fits"}, firm=True)
    assert records(tmp_path) == {**RECORDS, ("workspace", "more"): b"fits"}


def test_a_record_that_cannot_be_written_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(open_state(tmp_path)) as state:
        with caplog.at_level(logging.ERROR):
            state.write({("a", "\ud800"): b"", ("b", "\ud800"): None, **RECORDS}, firm=False)
        assert not state._database.in_transaction
    assert records(tmp_path) == RECORDS
    assert "'\\ud800'" in caplog.text


def test_an_error_of_any_kind_is_undone(tmp_path: Path) -> None:
    value: Any = object()
    with closing(open_state(tmp_path)) as state:
        with pytest.raises(Exception, match="type"):
            state.write({("a", "one"): b"", ("a", "two"): value}, firm=False)
        state.write(RECORDS, firm=False)
    assert records(tmp_path) == RECORDS


def test_records_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    """The events of a workspace count on it."""
    with closing(open_state(tmp_path)) as state:
        state.write({("event", f"lab/{number:012}"): b"" for number in (3, 10, 1, 2)}, firm=False)
    assert [name for _, name in records(tmp_path)] == [f"lab/{number:012}" for number in (1, 2, 3, 10)]


def test_a_state_that_is_being_written_is_left_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = open_state(tmp_path)
    with caplog.at_level(logging.WARNING), state._busy:
        state.close()
    assert "left open" in caplog.text
    state.write(RECORDS, firm=False)
    state.close()


def limit_size(state: State) -> None:
    """Let the database behave as on a disk that is nearly full."""
    state._database.execute("PRAGMA max_page_count = 10")


WRITER = """
import sys
from itertools import count
from pathlib import Path
from hypha.store import open_state
state = open_state(Path(sys.argv[1]))
for number in count():
    state.write({("a", str(number)): b"x" * 1000, ("b", str(number)): b"y"}, firm=number % 2 == 0)
    print(number, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_has_acknowledged(tmp_path: Path) -> None:
    said = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(300):
                line = writer.stdout.readline()
            said = int(line)
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().split()
        said = int(rest[-1]) if rest else said
        found = records(tmp_path)
        assert all({("a", str(number)), ("b", str(number))} <= found.keys() for number in range(said + 1))
        assert len(found) % 2 == 0  # each change whole
    assert not list(tmp_path.glob("*.corrupt-*"))
