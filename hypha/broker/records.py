"""What outlives the process, on its way to the store: written behind, in batches, in the order of the changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, nullcontext, suppress
from contextvars import ContextVar
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeVar

import trio

from hypha.broker.kept import unpack
from hypha.errors import NotStored
from hypha.wire.calls import encode_value

logger = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_SECONDS = 1.0
#: For so long changes gather that nobody waits for. A client that comes and goes in between leaves hardly any.
_GATHER_SECONDS = 0.05

Key = tuple[str, str]
Changes = dict[Key, bytes | None]

#: Seconds for which the end waits for the disk: fewer than the parent waits for the end.
_LAST_SECONDS = 3.0


class Store(Protocol):
    """Records by kind and name, as bytes. All block; used by one thread at a time."""

    def load(self) -> Iterable[tuple[str, str, bytes]]:
        """Every record, once."""

    def write(self, changes: Mapping[tuple[str, str], bytes | None], *, firm: bool) -> None:
        """Write all changes or none; None removes. *firm*: they outlive the machine, too. Raises OSError."""


class _Changed(NamedTuple):
    """The numbers of the latest changes that one task has made, of any kind and *firm* ones; 0 for none."""

    latest: int = 0
    firm: int = 0


_NOTHING = _Changed()


class _Writer:
    """A thread that writes one batch after the other, and that nobody waits for at the end: it may hang for ever."""

    def __init__(self, write: Callable[[Changes, bool], str | None]) -> None:
        self._write = write
        self._token = trio.lowlevel.current_trio_token()
        self._batches: SimpleQueue[tuple[Changes, bool] | None] = SimpleQueue()
        self._end: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._failure: str | None = None
        self._done = trio.Event()
        trio.lowlevel.start_thread_soon(self._work, lambda outcome: self._on_end(outcome.unwrap), "records")

    async def write(self, changes: Changes, firm: bool) -> str | None:
        """Why it could not be written. Raises what has ended the thread."""
        self._done = trio.Event()
        self._batches.put((changes, firm))
        await self._done.wait()
        if not self._end.empty():
            self._end.get()()
        return self._failure

    def close(self) -> None:
        """Let the thread end with what it is doing."""
        self._batches.put(None)

    def wait(self) -> None:
        """Wait until the thread has ended. Blocks."""
        self._end.put(self._end.get())  # for who asks again

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            self._tell(self._write(*batch))

    def _on_end(self, unwrap: Callable[[], None]) -> None:
        self._end.put(unwrap)
        self._tell(None)

    def _tell(self, failure: str | None) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._settle, failure)

    def _settle(self, failure: str | None) -> None:
        self._failure = failure
        self._done.set()


class Loaded:
    """What an earlier process has kept: the names and values of records, by their kind."""

    def __init__(self) -> None:
        self._by_kind: dict[str, list[tuple[str, Any]]] = {}
        #: The kinds of those whose value could not be read.
        self._unread: set[str] = set()

    def add(self, kind: str, name: str, value: Any) -> None:
        """Enter one."""
        self._by_kind.setdefault(kind, []).append((name, value))

    def add_unread(self, kind: str) -> None:
        """Take note that there is one, of which nothing else is known."""
        self._unread.add(kind)

    def has(self, kind: str) -> bool:
        """Whether there is a record of a kind at all, whatever can be made of it."""
        return kind in self._by_kind or kind in self._unread

    def each(self, kind: str, build: Callable[[Any], T]) -> list[tuple[str, T]]:
        """What *build* makes of each value of a kind, with the name of its record.

        A record of another form than they have is left alone, with a line in the log.
        """
        found: list[tuple[str, T]] = []
        for name, value in self._by_kind.get(kind, ()):
            try:
                found.append((name, build(value)))
            except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
                logger.error("the record %s %r is of another form and is left alone: %r", kind, name, error)
        return found


class Records:
    """Changes of records, and who waits for them to be kept. Without a *store* nothing is kept.

    Of one record only the latest change waits, and of one that was removed before it was ever written none, so that
    what waits is never more than what there is. While one batch is written, in a thread, the next one gathers.

    Firm changes are those that somebody has decided: they outlive the machine, and whoever makes one is told when the
    disk does not take it. All others are of clients that come back by themselves: they outlive the process, and go on
    while the disk takes nothing.
    """

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        #: Of each record that is kept, or about to be, what tells it from another one of its name.
        self._known: dict[Key, int] = {}
        #: What the store holds, as far as it has said.
        self._stored: set[Key] = set()
        self._changes: Changes = {}
        self._firm = False
        #: What is being written now.
        self._batch: Changes = {}
        self._wanted = trio.Event()
        #: Somebody waits for changes that are not being written yet.
        self._awaited = trio.Event()
        self._round = trio.Event()
        self._failure: str | None = None
        #: Whether the log has it that the disk takes nothing.
        self._is_said = False
        #: How many changes there were, how many of them were taken to be written, and how many are.
        self._asked = self._taken = self._written = 0
        #: Others' failures are none of a task's own.
        self._own: ContextVar[_Changed | None] = ContextVar("own changes", default=None)
        self._writer: _Writer | None = None

    def __contains__(self, key: Key) -> bool:
        return key in self._known

    def load(self) -> Loaded:
        """Every record. One that cannot be read is left alone, with a line in the log."""
        found = Loaded()
        for kind, name, data in self._store.load() if self._store is not None else ():
            key = kind, name
            try:
                found.add(kind, name, unpack(data))
            except ValueError as error:
                logger.error("the record %s %r cannot be read: %s", kind, name, error)
                found.add_unread(kind)
            else:
                self._known[key] = hash(data)
                self._stored.add(key)
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
        key = kind, name
        if self._known.pop(key, None) is None:
            return
        if key in self._stored or key in self._batch:
            self._change(key, None, firm)
        else:
            self._changes.pop(key, None)

    def _change(self, key: Key, data: bytes | None, firm: bool) -> None:
        self._changes[key] = data
        self._firm = self._firm or firm
        self._asked += 1
        own = self._own.get()
        if own is not None:
            self._own.set(_Changed(self._asked, self._asked if firm else own.firm))
        self._wanted.set()

    def begin(self) -> None:
        """What this task has changed so far is nothing that it will wait for."""
        self._own.set(_NOTHING)

    async def kept(self) -> None:
        """Wait until what this task has changed since :meth:`begin` is written, as long as the disk takes anything.

        For a task that has not begun so that is whatever has changed. Raises :class:`NotStored` when it refuses a
        change that is firm.
        """
        own = self._own.get() or _Changed(self._asked, self._asked)
        while self._written < own.latest:
            if self._failure is not None:
                if self._written < own.firm:
                    raise NotStored(
                        f"the server cannot write to its data directory ({self._failure}); what was changed is in "
                        "force, and forgotten if the server ends before it can"
                    )
                return
            self._awaited.set()
            await self._round.wait()

    async def run(self, *, in_thread: bool = True) -> None:
        """Write until cancelled. What fails is tried again.

        One thread does it all the time; when the disk hangs, the end does not wait for it. Not *in_thread* it blocks,
        for those whose clock jumps while no task runs: it would jump over the thread.
        """
        failure = None
        self._writer = _Writer(self._write) if in_thread else None
        with closing(self._writer) if self._writer is not None else nullcontext() as writer:
            while True:
                batch = await self._next(failure)
                failure = self._write(*batch) if writer is None else await writer.write(*batch)

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
        while not self._changes:
            self._written, self._failure = self._asked, None  # what else was asked for was undone
            self._tell()
            await self._wanted.wait()
            self._wanted = trio.Event()
            with trio.move_on_after(_GATHER_SECONDS):
                await self._awaited.wait()
        self._awaited = trio.Event()
        self._batch, self._changes = self._changes, {}
        firm, self._firm = self._firm, False
        self._taken = self._asked
        return self._batch, firm

    def _settle(self, failure: str | None) -> None:
        if failure is None:
            self._written = self._taken
            for key, data in self._batch.items():
                if data is None:
                    self._stored.discard(key)
                else:
                    self._stored.add(key)
        else:
            self._changes, self._firm = self._waiting(), True
            if not self._is_said:
                logger.error("the data directory does not take what must outlive the server: %s", failure)
        self._is_said = failure is not None
        self._failure, self._batch = failure, {}
        self._tell()

    def _waiting(self) -> Changes:
        """What is not written, or nobody has said so. What was never written need not be removed."""
        waiting = {**self._batch, **self._changes}
        return {key: data for key, data in waiting.items() if data is not None or key in self._stored}

    def _tell(self) -> None:
        self._round.set()
        self._round = trio.Event()

    def close(self) -> None:
        """Write what still waits, after :meth:`run`. Blocks, but not for long; for the end of the process.

        When the disk hangs, what waits is lost, with a line in the log.
        """
        changes = {**self._batch, **self._changes}  # of the last batch nobody has said that it is written
        if changes:
            end: SimpleQueue[Callable[[], None]] = SimpleQueue()
            last = partial(self._write_last, changes)
            trio.lowlevel.start_thread_soon(last, lambda outcome: end.put(outcome.unwrap), "last records")
            try:
                end.get(timeout=_LAST_SECONDS)()
            except Empty:
                logger.error("the disk does not answer: the last %d changes are lost", len(changes))
            self._batch, self._changes = {}, {}

    def _write_last(self, changes: Changes) -> None:
        if self._writer is not None:
            self._writer.wait()
        failure = self._write(changes, firm=True)
        if failure is not None:
            logger.error("the last %d changes are lost: %s", len(changes), failure)
