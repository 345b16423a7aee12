"""The data directory at its own wall: real files, real locks, a second real process where two are needed."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypha.errors import ConfigError
from hypha.store import open_data_dir, signing_key_of

HOLD = """
import sys
from pathlib import Path
from hypha.store import open_data_dir
with open_data_dir(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held_by_another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_missing_directory_is_made_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data"
    with open_data_dir(path) as data_dir:
        assert data_dir.path == path
        assert mode_of(path) == 0o700


def test_the_key_is_private_and_survives_a_restart(tmp_path: Path) -> None:
    with open_data_dir(tmp_path) as data_dir:
        key = data_dir.signing_key()
        assert data_dir.signing_key() == key
    with open_data_dir(tmp_path) as data_dir:
        assert data_dir.signing_key() == key
    assert len(key) == 32
    assert mode_of(tmp_path / "signing.key") == 0o600
    assert sorted(item.name for item in tmp_path.iterdir()) == ["lock", "signing.key"]


def test_two_directories_have_two_keys(tmp_path: Path) -> None:
    with open_data_dir(tmp_path / "a") as one, open_data_dir(tmp_path / "b") as other:
        assert one.signing_key() != other.signing_key()


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_malformed_key_is_set_aside_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "signing.key").write_bytes(content)
    with caplog.at_level(logging.ERROR), open_data_dir(tmp_path) as data_dir:
        key = data_dir.signing_key()
    (aside,) = tmp_path.glob("signing.key.corrupt-*")
    assert aside.read_bytes() == content
    assert aside.name in caplog.text
    assert (tmp_path / "signing.key").read_bytes() == key


def test_a_directory_in_the_place_of_the_key_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "signing.key").mkdir()
    with open_data_dir(tmp_path) as data_dir:
        assert len(data_dir.signing_key()) == 32
    (aside,) = tmp_path.glob("signing.key.corrupt-*")
    assert aside.is_dir()


def test_a_draft_left_by_a_crash_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "signing.key.new").write_bytes(b"half")
    with open_data_dir(tmp_path) as data_dir:
        assert len(data_dir.signing_key()) == 32
    assert not (tmp_path / "signing.key.new").exists()


def test_a_key_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "signing.key.new").mkdir()
    with open_data_dir(tmp_path) as data_dir, pytest.raises(ConfigError, match=r"signing\.key cannot be used"):
        data_dir.signing_key()


def test_a_key_open_to_others_is_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "signing.key"
    path.write_bytes(os.urandom(32))
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING), open_data_dir(tmp_path) as data_dir:
        assert data_dir.signing_key() == path.read_bytes()
    assert mode_of(path) == 0o600
    assert "open to other users" in caplog.text


def test_a_directory_in_use_names_its_holder(tmp_path: Path) -> None:
    with (
        held_by_another_process(tmp_path) as holder,
        pytest.raises(ConfigError, match=rf"process {holder.pid}\b.*--data-dir"),
        open_data_dir(tmp_path),
    ):
        raise AssertionError("two servers in one directory")


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    with held_by_another_process(tmp_path) as holder:
        holder.kill()
        holder.wait(timeout=10)
        with open_data_dir(tmp_path) as data_dir:
            assert data_dir.path == tmp_path


def test_one_process_cannot_open_it_twice(tmp_path: Path) -> None:
    with open_data_dir(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()}"), open_data_dir(tmp_path):
        raise AssertionError("two servers in one directory")


def test_a_lock_without_a_pid_is_still_a_lock(tmp_path: Path) -> None:
    with open_data_dir(tmp_path):
        (tmp_path / "lock").write_bytes(b"")
        with pytest.raises(ConfigError, match="another server uses"), open_data_dir(tmp_path):
            raise AssertionError("two servers in one directory")


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ConfigError, match=r"file cannot be used.*--data-dir"), open_data_dir(path):
        raise AssertionError("a file is no directory")


def test_the_lock_goes_with_the_context_even_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_data_dir(tmp_path):
        raise ZeroDivisionError
    with open_data_dir(tmp_path) as data_dir:
        assert data_dir.path == tmp_path


def test_the_key_can_be_read_beside_the_server_that_holds_the_directory(tmp_path: Path) -> None:
    with open_data_dir(tmp_path) as data_dir:
        key = data_dir.signing_key()
        assert signing_key_of(tmp_path) == key


def test_where_no_server_has_been_there_is_no_key_and_none_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(ConfigError, match="no server has used the data directory"):
            signing_key_of(path)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_no_key_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "signing.key").write_bytes(b"short")
    with pytest.raises(ConfigError, match="is not a signing key"):
        signing_key_of(tmp_path)
    (tmp_path / "signing.key").unlink()
    (tmp_path / "signing.key").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        signing_key_of(tmp_path)
