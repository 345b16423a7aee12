"""What the server must still know after a restart: records in one SQLite file of the data directory."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from hypha.errors import ConfigError

logger = logging.getLogger(__name__)

STATE_NAME = "state.db"

#: What turns a file of one version into one of the next. A step is never changed once it was released.
MIGRATIONS = (
    "CREATE TABLE records (kind TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, name))"
    " WITHOUT ROWID",
)

#: SQLite keeps what was committed and not yet copied into the file itself beside it.
_BESIDE = ("-wal", "-shm")
_BUSY_SECONDS = 5.0
_BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

#: A record's kind and name.
Key = tuple[str, str]


class State:
    """The records. Everything here blocks; used by one thread at a time. Made by :func:`open_state`."""

    def __init__(self, database: sqlite3.Connection, records: dict[Key, bytes]) -> None:
        self._database = database
        self._busy = threading.Lock()
        self._loaded = records

    def load(self) -> Iterator[tuple[str, str, bytes]]:
        """Every record as it was when the file was opened, once: its kind, its name, its value."""
        loaded, self._loaded = self._loaded, {}
        for (kind, name), value in loaded.items():
            yield kind, name, value

    def write(self, changes: Mapping[Key, bytes | None], *, firm: bool) -> None:
        """Write all *changes* or none; None removes. What is written outlives the process, however that ends.

        *firm*: it also outlives the machine, which costs a wait for the disk. A record whose name cannot be written is
        left out, with a line in the log. Raises OSError when the disk says so.
        """
        able = {key: value for key, value in changes.items() if _can_be_written(key)}
        with self._busy:
            try:
                self._database.execute(f"PRAGMA synchronous = {'FULL' if firm else 'NORMAL'}")
                self._database.execute("BEGIN IMMEDIATE")
                self._database.executemany("DELETE FROM records WHERE kind = ? AND name = ?", _removed(able))
                self._database.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", _replaced(able))
                self._database.execute("COMMIT")
            except sqlite3.Error as error:
                raise OSError(f"{STATE_NAME}: {error}") from error
            finally:
                self._undo()

    def close(self) -> None:
        """Copy everything into the file itself, and close it; while the disk hangs it is left as it is."""
        if not self._busy.acquire(blocking=False):
            logger.warning("%s is left open: a change is still being written", STATE_NAME)
            return
        self._database.close()

    def _undo(self) -> None:
        """Take back what was not committed, if there is anything."""
        if self._database.in_transaction:
            try:
                self._database.execute("ROLLBACK")
            except sqlite3.Error as error:
                logger.warning("%s: a change that failed could not be undone: %s", STATE_NAME, error)


def _can_be_written(key: Key) -> bool:
    try:
        "".join(key).encode()
    except UnicodeEncodeError:
        logger.error("the record %r is not kept: its name cannot be written", key)
        return False
    return True


def _removed(changes: Mapping[Key, bytes | None]) -> Iterator[Key]:
    return (key for key, value in changes.items() if value is None)


def _replaced(changes: Mapping[Key, bytes | None]) -> Iterator[tuple[str, str, bytes]]:
    return ((*key, value) for key, value in changes.items() if value is not None)


def open_state(directory: Path) -> State:
    """The state in the data *directory*, which this process holds; made when there is none.

    A file that is no database, or a broken one, is set aside as ``state.db.corrupt-<time>`` with a line in the log,
    because a server that does not start helps nobody. Raises :class:`ConfigError` when it cannot be read or written,
    and when a newer version has written it.
    """
    path = directory / STATE_NAME
    try:
        try:
            return _open(path)
        except sqlite3.DatabaseError as error:
            if not is_broken(error):
                raise
            _set_aside(path, error)
            return _open(path)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(
            f"the state {path} cannot be used ({error}); make it readable and writable by the user that runs the server"
        ) from error


def is_broken(error: sqlite3.Error) -> bool:
    """Whether *error* says that the file is no database, or not whole."""
    return error.sqlite_errorcode & 0xFF in _BROKEN


def connect(path: Path) -> sqlite3.Connection:
    """The database in the file *path*, which must be there. Raises sqlite3.Error."""
    # To be used from threads, by one at a time. Without an isolation level the module begins no transaction by itself.
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def _open(path: Path) -> State:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    database = connect(path)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        _migrate(database, path)
        # Read as a whole, which also finds out whether it can be.
        with closing(database.execute("SELECT kind, name, value FROM records ORDER BY kind, name")) as rows:
            return State(database, {(kind, name): value for kind, name, value in rows})
    except BaseException:  # a broken file is set aside and opened anew, and nobody else would close this one
        database.close()
        raise


def _migrate(database: sqlite3.Connection, path: Path) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise ConfigError(f"the state {path} was written by a newer version of this server; start that one")
    for number, step in enumerate(MIGRATIONS[version:], version + 1):
        database.execute("BEGIN IMMEDIATE")
        database.execute(step)
        database.execute(f"PRAGMA user_version = {number}")
        database.execute("COMMIT")


def _set_aside(path: Path, error: sqlite3.Error) -> None:
    suffix = f".corrupt-{time.time_ns()}"
    for name in (path.name, *(path.name + end for end in _BESIDE)):
        file = path.with_name(name)
        if file.exists():
            file.rename(path.with_name(path.name + suffix + name.removeprefix(path.name)))
    logger.error(
        "%s cannot be read (%s): kept as %s. Accounts, links, workspaces, revoked tokens and registrations begin anew",
        path,
        error,
        path.name + suffix,
    )
