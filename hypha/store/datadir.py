"""The data directory: one server at a time, and the key that signs its tokens."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from hypha.errors import ConfigError

logger = logging.getLogger(__name__)

LOCK_NAME = "lock"
KEY_NAME = "signing.key"
KEY_BYTES = 32

# A process with this in its command line serves on behalf of its parent, and its parent is the one to stop.
_WORKER_MARKS = (b"hypha.worker", b"multiprocessing.spawn")


class DataDir:
    """A data directory that this process holds. Made by :func:`open_data_dir`; not usable after it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def signing_key(self) -> bytes:
        """The 32 random bytes that sign the tokens of this server. They survive its restarts.

        Made on the first call, readable by the owner only, and complete or absent after a crash. A file that is
        not such a key is set aside as ``signing.key.corrupt-<time>`` with a line in the log, because a server
        that does not start helps nobody: the tokens issued with it are void. Raises :class:`ConfigError` when the
        file cannot be read or written.
        """
        path = self.path / KEY_NAME
        try:
            return self._read_key(path) or self._make_key(path)
        except OSError as error:
            raise ConfigError(
                f"the signing key {path} cannot be used ({error.strerror}); "
                f"make it readable and writable by the user that runs the server"
            ) from error

    def _read_key(self, path: Path) -> bytes | None:
        """The key in *path*, or None when there is none (any more)."""
        try:
            status = path.stat()
            key = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        except FileNotFoundError:
            return None
        if len(key) != KEY_BYTES:
            self._set_aside(path)
            return None
        if status.st_mode & 0o077:
            logger.warning("%s was open to other users; it is closed to them now", path)
            path.chmod(0o600)
        return key

    def _set_aside(self, path: Path) -> None:
        aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
        path.rename(aside)
        logger.error("%s is not a signing key: kept as %s, tokens issued until now are void", path, aside.name)

    def _make_key(self, path: Path) -> bytes:
        key = secrets.token_bytes(KEY_BYTES)
        draft = path.with_name(f"{path.name}.new")
        # We hold the lock: a draft that is already there was left by a crash.
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(descriptor)
        draft.rename(path)
        _sync_directory(self.path)
        return key


def signing_key_of(path: Path) -> bytes:
    """The signing key of the server whose data directory is *path*, which may run; the directory is only read.

    Raises :class:`ConfigError` when there is none: it is made by the first start.
    """
    try:
        key = (path / KEY_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"no server has used the data directory {path}; name that of yours with --data-dir") from None
    except OSError as error:
        raise ConfigError(f"the signing key in {path} cannot be read ({error.strerror})") from error
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{path / KEY_NAME} is not a signing key; a start of the server makes a new one")
    return key


@contextlib.contextmanager
def open_data_dir(path: Path) -> Iterator[DataDir]:
    """Create *path* (mode 0700) when it is missing, and hold it alone until the context ends.

    The kernel drops the lock when this process ends, however it ends. Raises :class:`ConfigError` when another
    server holds the directory (naming the process to stop) or when it cannot be created, written or locked.
    Blocks for the time of a few file operations.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"the data directory {path} cannot be used ({error.strerror}); choose another with --data-dir"
        ) from error
    try:
        _lock(descriptor, path)
        yield DataDir(path)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            raise ConfigError(_held_text(descriptor, path)) from None
        raise ConfigError(
            f"the data directory {path} cannot be locked ({error.strerror}); choose one on a local disk with --data-dir"
        ) from error


def _held_text(descriptor: int, path: Path) -> str:
    text = os.pread(descriptor, 32, 0).strip()
    if not text.isdigit():
        # Between another server's lock and its writing of the pid.
        return f"another server uses the data directory {path}; choose another with --data-dir"
    pid = _process_to_stop(int(text))
    if pid == os.getppid():
        return f"another worker of this server uses the data directory {path}; start one worker only"
    return f"another server (process {pid}) uses the data directory {path}; stop it, or choose another with --data-dir"


def _process_to_stop(pid: int) -> int:
    """*pid*, or its parent when *pid* is a worker, which its parent would start again. Linux; elsewhere *pid*."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return pid
    if not any(mark in command for mark in _WORKER_MARKS):
        return pid
    # proc(5): the second field is the name in parentheses, which may hold any character; the parent is the fourth.
    return int(status.rpartition(")")[2].split()[1])


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
