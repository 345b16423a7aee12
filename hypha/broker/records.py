"""What outlives the process, on its way to the store: written behind, in batches, in the order of the changes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

import trio

from hypha.broker.kept import unpack
from hypha.errors import HyphaError
from hypha.wire.calls import encode_value

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0

Changes = dict[tuple[str, str], bytes | None]

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
        self._changes: Changes = {}
        self._firm = False
        #: What is being written now.
        self._batch: Changes = {}
        self._wanted = trio.Event()
        self._round = trio.Event()
        self._failure: str | None = None
        #: How many changes there were, how many of them were taken to be written, and how many are.
        self._asked = self._taken = self._written = 0

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

        One thread does it all the time. Not *in_thread* it blocks, for those whose clock jumps while no task runs: it
        would jump over the thread.
        """
        if in_thread:
            await trio.to_thread.run_sync(self._write_all, limiter=trio.CapacityLimiter(1))
            return
        failure = None
        while True:
            failure = self._write(*await self._next(failure))

    def _write_all(self) -> None:
        """The thread. Ends with an exception that trio knows, when :meth:`run` is cancelled."""
        failure = None
        while True:
            failure = self._write(*trio.from_thread.run(self._next, failure))

    def _write(self, changes: Changes, firm: bool) -> str | None:
        """Why it could not be written."""
        assert self._store is not None
        try:
            self._store.write(changes, firm=firm)
        except OSError as error:
            return str(error)
        return None

    async def _next(self, failure: str | None) -> tuple[Changes, bool]:
        """Take note of how the last batch went, and wait for the next one."""
        self._settle(failure)
        if failure is not None:
            await trio.sleep(_RETRY_SECONDS)
        await self._wanted.wait()
        self._batch, self._changes = self._changes, {}
        firm, self._firm = self._firm, False
        self._taken, self._wanted = self._asked, trio.Event()
        return self._batch, firm

    def _settle(self, failure: str | None) -> None:
        if failure is None:
            self._written = self._taken
        else:
            self._changes, self._firm = {**self._batch, **self._changes}, True
            self._wanted.set()
            if self._failure is None:
                logger.error("the data directory does not take what must outlive the server: %s", failure)
        self._failure, self._batch = failure, {}
        self._round.set()
        self._round = trio.Event()

    def close(self) -> None:
        """Write what still waits, after :meth:`run`. Blocks; for the end of the process."""
        changes = {**self._batch, **self._changes}  # of the last batch nobody has said that it is written
        if changes:
            failure = self._write(changes, firm=True)
            if failure is not None:
                logger.error("the last %d changes are lost: %s", len(changes), failure)
            self._batch, self._changes = {}, {}
