"""A copy of the data directory in one file, also while a server uses it."""

from __future__ import annotations

import os
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hypha.errors import ConfigError
from hypha.store.datadir import KEY_NAME
from hypha.store.state import STATE_NAME, connect

#: Where the documents of installed apps are.
_APPS = "apps"


def back_up(directory: Path, target: Path) -> None:
    """Write the state, the signing key and the installed apps of the data *directory* into the tar file *target*.

    The state is that of one moment. *target* is complete or untouched, in the place of what was there, and readable by
    its owner only: who has it can sign tokens. Unpacked into an empty directory it is a data directory. Raises
    :class:`ConfigError`. Blocks. Killed, it leaves at most a hidden file beside *target*, for its owner only.
    """
    if not (directory / STATE_NAME).is_file():
        raise ConfigError(f"there is no state of a server in {directory}; name its data directory with --data-dir")
    try:
        with _draft(target) as file:
            _write(directory, file, target.parent)
    except (OSError, sqlite3.Error, tarfile.TarError) as error:
        raise ConfigError(f"the backup {target} of {directory} could not be made ({error})") from error


@contextmanager
def _draft(target: Path) -> Iterator[BinaryIO]:
    """A file for the owner only, of a name that nothing had, which takes the place of *target* at the end."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(name, target)
    except BaseException:  # Ctrl-C, too: it holds the signing key, and must not stay
        os.unlink(name)
        raise


def _write(directory: Path, file: BinaryIO, scratch: Path) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive, _copy_of(directory / STATE_NAME, scratch) as copy:
        archive.addfile(_plain(archive.gettarinfo(arcname=STATE_NAME, fileobj=copy)), copy)
        archive.add(directory / KEY_NAME, KEY_NAME, filter=_plain)
        for path in sorted((directory / _APPS).glob("*.json")):
            with suppress(FileNotFoundError):  # uninstalled meanwhile
                archive.add(path, f"{_APPS}/{path.name}", filter=_plain)


@contextmanager
def _copy_of(source: Path, scratch: Path) -> Iterator[BinaryIO]:
    """The state of one moment, in a file without a name: nothing of it is left, even when the process is killed."""
    descriptor, name = tempfile.mkstemp(dir=scratch)
    with open(descriptor, "r+b") as file:
        try:
            copy = connect(Path(name))
        finally:
            os.unlink(name)
        with closing(copy), closing(connect(source)) as database:
            copy.execute("PRAGMA journal_mode = OFF")  # which would need the name
            database.backup(copy)
        yield file


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the names of people, and for the owner only."""
    entry.mode, entry.uid, entry.gid, entry.uname, entry.gname = 0o600, 0, 0, "", ""
    return entry
