"""Small documents in the data directory, by name: each is complete or absent, also after a crash."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SUFFIX, _DRAFT = ".json", ".new"


class Documents:
    """The documents in one directory, which is made with the first of them. Everything here blocks.

    Used by the process that holds the data directory. All raise OSError when the disk says so.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> Iterator[str]:
        """The names of all documents. What a crash has left half written is removed."""
        for path in sorted(self._path.glob(f"*{_DRAFT}")):
            path.unlink(missing_ok=True)
        for path in sorted(self._path.glob(f"*{_SUFFIX}")):
            if _NAME.fullmatch(path.stem):
                yield path.stem
            else:
                logger.warning("%s is no document of this server and is left alone", path)

    def read(self, name: str) -> bytes:
        """What was written. Raises FileNotFoundError."""
        return self._file(name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Keep *content* under *name*, in the place of what was there. It is on the disk when this returns."""
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._file(name)
        draft = path.with_name(path.name + _DRAFT)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
        self._sync()

    def remove(self, name: str) -> None:
        """Forget *name*; nothing happens when there is none."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        assert _NAME.fullmatch(name), "names are made by the server"
        return self._path / f"{name}{_SUFFIX}"

    def _sync(self) -> None:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
