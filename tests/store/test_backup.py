"""The copy of a data directory that is in use, and what can be done with it."""

from __future__ import annotations

import tarfile
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hypha.errors import ConfigError
from hypha.store import Documents, back_up, open_data_dir, open_state


def unpacked(backup: Path, directory: Path) -> Path:
    directory.mkdir()
    with tarfile.open(backup) as archive:
        archive.extractall(directory, filter="data")
    return directory


def test_a_backup_is_a_data_directory(tmp_path: Path) -> None:
    path, backup = tmp_path / "data", tmp_path / "backup.tar"
    with open_data_dir(path) as data_dir, closing(open_state(path)) as state:
        key = data_dir.signing_key()
        Documents(path / "apps").write("calculator", b"{}")
        state.write({("workspace", "lab"): b"settings"}, firm=False)
        back_up(path, backup)
        state.write({("workspace", "later"): b""}, firm=True)
    assert backup.stat().st_mode & 0o777 == 0o600
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith("backup")] == ["backup.tar"]
    other = unpacked(backup, tmp_path / "other")
    with open_data_dir(other) as data_dir, closing(open_state(other)) as state:
        assert data_dir.signing_key() == key
        assert list(state.load()) == [("workspace", "lab", b"settings")]
        assert Documents(other / "apps").read("calculator") == b"{}"


def test_a_backup_while_much_is_written_is_of_one_moment(tmp_path: Path) -> None:
    path, done = tmp_path / "data", threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            state.write({("a", str(number)): bytes(1000), ("b", str(number)): bytes(1000)}, firm=False)

    with open_data_dir(path) as data_dir, closing(open_state(path)) as state:
        data_dir.signing_key()
        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(5):
            back_up(path, tmp_path / "backup.tar")  # each time in the place of the last one
        done.set()
        writer.join()
    other = unpacked(tmp_path / "backup.tar", tmp_path / "other")
    with closing(open_state(other)) as state:
        names = [(kind, name) for kind, name, _ in state.load()]
    assert {name for kind, name in names if kind == "a"} == {name for kind, name in names if kind == "b"}


def test_what_is_no_data_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no state of a server"):
        back_up(tmp_path, tmp_path / "backup.tar")
    assert not list(tmp_path.iterdir())


def test_a_backup_that_fails_leaves_the_last_one(tmp_path: Path) -> None:
    path, backup = tmp_path / "data", tmp_path / "backup.tar"
    with open_data_dir(path), closing(open_state(path)):
        backup.write_bytes(b"the last one")
        with pytest.raises(ConfigError, match="could not be made"):  # there is no key
            back_up(path, backup)
    assert backup.read_bytes() == b"the last one"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["backup.tar", "data"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with open_data_dir(tmp_path), closing(open_state(tmp_path)), pytest.raises(ConfigError, match="could not be made"):
        back_up(tmp_path, tmp_path / "none" / "backup.tar")


class Killed(BaseException):
    """The end of the process, as far as a test can have it."""


def test_a_backup_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is made there is no copy of the state under a name, and what is beside it is not its own."""
    path, backups = tmp_path / "data", tmp_path / "backups"
    backups.mkdir()
    (backups / "backup.tar.new").write_bytes(b"somebody's")
    seen: list[str] = []

    def interrupt(*_: Any, **__: Any) -> None:
        seen.extend(item.name for item in backups.iterdir() if item.name != "backup.tar.new")
        raise Killed

    with open_data_dir(path) as data_dir, closing(open_state(path)):
        data_dir.signing_key()
        monkeypatch.setattr(tarfile.TarFile, "add", interrupt)
        with pytest.raises(Killed):
            back_up(path, backups / "backup.tar")
    (draft,) = seen
    assert draft.startswith(".backup.tar.")
    assert [item.name for item in backups.iterdir()] == ["backup.tar.new"]
    assert (backups / "backup.tar.new").read_bytes() == b"somebody's"
