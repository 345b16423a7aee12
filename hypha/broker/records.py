"""What outlives the process, on its way to the store: written behind, in batches, in the order of the changes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

import trio

from hypha.broker.kept import unpack
from hypha.errors import HyphaError
from hypha.wire.calls import encode_value

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0

#: The number of the latest change that this task has made: others' failures are none of its own.
_latest: ContextVar[int] = ContextVar("latest change", default=0)


class Store(Protocol):
    """Records by kind and name, as bytes. All block; used by one thread at a time."""

    def load(self) -> Iterable[tuple[str, str, bytes]]:
        """Every record, once."""

    def write(self, changes: Mapping[tuple[str, str], bytes | None], *, firm: bool) -> None:
        """Write all changes or none; None removes. *firm*: they outlive the machine, too. Raises OSError."""


class NotStored(HyphaError):
    """The change is in force, and will be forgotten when the server ends now: the disk does not take it."""


class Records:
    """Changes of records, and who waits for them to be kept. Without a *store* nothing is kept.

    Of one record only the latest change waits, so that what waits is never more than what there is. While one batch is
    written, in a thread, the next one gathers.
    """

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        #: Of each record that is kept, or about to be, what tells it from another one of its name.
        self._known: dict[tuple[str, str], int] = {}
        self._changes: dict[tuple[str, str], bytes | None] = {}
        self._firm = False
        self._wanted = trio.Event()
        self._round = trio.Event()
        self._limiter = trio.CapacityLimiter(1)
        self._failure: str | None = None
        self._asked = self._written = 0

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._known

    def load(self) -> list[tuple[str, str, Any]]:
        """Every record: kind, name and value. One that cannot be read is left alone, with a line in the log."""
        found: list[tuple[str, str, Any]] = []
        for kind, name, data in self._store.load() if self._store is not None else ():
            try:
                found.append((kind, name, unpack(data)))
            except ValueError as error:
                logger.error("the record %s %r cannot be read: %s", kind, name, error)
            else:
                self._known[kind, name] = hash(data)
        return found

    def put(self, kind: str, name: str, value: Any, *, firm: bool = False) -> None:
        """Keep *value*, in the place of the one of that name. Nothing happens when it is the same.

        *firm*: it is to outlive the machine, too, not only the process.
        """
        if self._store is None:
            return
        data = encode_value(value)
        if self._known.get((kind, name)) != hash(data):
            self._known[kind, name] = hash(data)
            self._change((kind, name), data, firm)

    def remove(self, kind: str, name: str, *, firm: bool = False) -> None:
        """Forget a record, if there is one."""
        if self._known.pop((kind, name), None) is not None:
            self._change((kind, name), None, firm)

    def _change(self, key: tuple[str, str], data: bytes | None, firm: bool) -> None:
        self._changes[key] = data
        self._firm = self._firm or firm
        self._asked += 1
        _latest.set(self._asked)
        self._wanted.set()

    def begin(self) -> None:
        """What this task has changed so far is nothing that it will wait for."""
        _latest.set(0)

    async def kept(self) -> None:
        """Wait until what this task has changed is written. Raises :class:`NotStored` when the disk refuses it."""
        own = _latest.get()
        while self._written < own:
            if self._failure is not None:
                raise NotStored(f"the server cannot write to its data directory ({self._failure})")
            await self._round.wait()

    async def run(self, *, in_thread: bool = True) -> None:
        """Write until cancelled. What fails is tried again.

        Not *in_thread* it blocks, for those whose clock jumps while no task runs: it would jump over the thread.
        """
        while True:
            await self._wanted.wait()
            await self._write(in_thread)
            if self._failure is not None:
                await trio.sleep(_RETRY_SECONDS)

    async def _write(self, in_thread: bool) -> None:
        assert self._store is not None
        changes, firm, asked = self._take()
        done = False
        try:
            write = partial(self._store.write, changes, firm=firm)
            if in_thread:
                await trio.to_thread.run_sync(write, limiter=self._limiter)
            else:
                write()
            done, self._written, self._failure = True, asked, None
        except OSError as error:
            if self._failure is None:
                logger.error("the data directory does not take what must outlive the server: %s", error)
            self._failure = str(error)
        finally:
            if not done:
                self._changes, self._firm = {**changes, **self._changes}, self._firm or firm
                self._wanted.set()
            self._round.set()
            self._round = trio.Event()

    def _take(self) -> tuple[dict[tuple[str, str], bytes | None], bool, int]:
        taken = self._changes, self._firm, self._asked
        self._changes, self._firm, self._wanted = {}, False, trio.Event()
        return taken

    def close(self) -> None:
        """Write what still waits. Blocks; for the end of the process."""
        if self._store is None or not self._changes:
            return
        changes, _, _ = self._take()
        try:
            self._store.write(changes, firm=True)
        except OSError as error:
            logger.error("the last %d changes are lost: %s", len(changes), error)
