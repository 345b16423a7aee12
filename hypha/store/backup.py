"""A copy of the data directory in one file, also while a server uses it."""

from __future__ import annotations

import io
import os
import sqlite3
import tarfile
import tempfile
from contextlib import closing, suppress
from pathlib import Path

from hypha.errors import ConfigError
from hypha.store.datadir import KEY_NAME
from hypha.store.state import STATE_NAME, connect

#: Where the documents of installed apps are.
_APPS = "apps"


def back_up(directory: Path, target: Path) -> None:
    """Write the state, the signing key and the installed apps of the data *directory* into the tar file *target*.

    The state is that of one moment. *target* is complete or untouched, in the place of what was there, and readable by
    its owner only: who has it can sign tokens. Unpacked into an empty directory it is a data directory. Raises
    :class:`ConfigError`. Blocks.
    """
    if not (directory / STATE_NAME).is_file():
        raise ConfigError(f"there is no state of a server in {directory}; name its data directory with --data-dir")
    draft = target.with_name(target.name + ".new")
    try:
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            _write(directory, file, target.parent)
            file.flush()
            os.fsync(descriptor)
        draft.rename(target)
    except (OSError, sqlite3.Error, tarfile.TarError) as error:
        draft.unlink(missing_ok=True)
        raise ConfigError(f"the backup {target} of {directory} could not be made ({error})") from error


def _write(directory: Path, file: io.BufferedWriter, scratch: Path) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive, tempfile.TemporaryDirectory(dir=scratch) as name:
        copy = Path(name, STATE_NAME)
        _copy_state(directory / STATE_NAME, copy)
        archive.add(copy, STATE_NAME, filter=_plain)
        archive.add(directory / KEY_NAME, KEY_NAME, filter=_plain)
        for path in sorted((directory / _APPS).glob("*.json")):
            with suppress(FileNotFoundError):  # uninstalled meanwhile
                archive.add(path, f"{_APPS}/{path.name}", filter=_plain)


def _copy_state(source: Path, copy: Path) -> None:
    copy.touch(0o600)
    with closing(connect(source)) as database, closing(connect(copy)) as other:
        database.backup(other)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the names of people, and for the owner only."""
    entry.mode, entry.uid, entry.gid, entry.uname, entry.gname = 0o600, 0, 0, "", ""
    return entry
