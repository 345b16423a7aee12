"""Messages that are too long to be sent whole (``protocol.md`` 2.7): how they go, and where they are put together."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import trio

from hypha.errors import HyphaError, LimitExceeded
from hypha.wire.chunks import CACHE_PREFIX, ChunkStore, arguments, slices
from hypha.wire.frame import Buffer

#: Bytes of a message up to which every peer takes it whole, and of the parts of a longer one (``protocol.md`` 2.6).
SMALL_PART = 262_144
#: The same between two clients of this kind, and to the server.
LARGE_PART = 1024 * 1024
_HEADER_ROOM = 8192  # bytes of a frame that are not the part's: header, and what the server adds to it
_PARTS_AT_ONCE = 8
_MESSAGES_AT_ONCE = 8  # the server remembers 64 of a client that are not finished
_MAX_KNOWN = 1000  # peers whose abilities are remembered
_MAX_BYTES = 1 << 30  # of unfinished messages, from one peer and from all
_MAX_MESSAGES = 64  # unfinished, from one peer


@dataclass(frozen=True, slots=True)
class Abilities:
    """How long messages go to a peer. *by_index*: parts come in any order. *promise*: the form that it knows."""

    part_bytes: int
    by_index: bool
    promise: object


class Caller(Protocol):
    """What calls the functions of a peer's message cache."""

    async def call(
        self, target: str, method: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, promise: object
    ) -> Any:
        """Call a function and wait."""

    async def put_part(
        self,
        target: str,
        key: str,
        index: int | None,
        part: Buffer,
        *,
        heartbeat: bool,
        promise: object,
        sent: Callable[[], None],
    ) -> None:
        """Send one part, which is not copied, and wait until it is there. *sent*: called when it is on its way."""

    def ask(self, target: str, method: str, args: list[Any], promise: object) -> None:
        """Call a function, whose answer nobody waits for."""


class Sender:
    """Sends long messages. *limit*: the longest frame in bytes that the server takes."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._limit = LARGE_PART
        self._manager = ""
        self._known: OrderedDict[str, Abilities] = OrderedDict()
        self._room = trio.Semaphore(_MESSAGES_AT_ONCE)

    @property
    def small(self) -> int:
        """Bytes of a message up to which it need not be asked what its receiver can take."""
        return min(SMALL_PART, self._limit)

    def begin(self, manager: str, frame_bytes: int) -> None:
        """A connection has begun, to a server that is called *manager* and takes frames of so many bytes."""
        self._known.clear()
        self._manager = manager
        self._limit = max(1, frame_bytes - _HEADER_ROOM)

    async def able(self, target: str) -> Abilities:
        """What *target* can take: it is asked once, and an older client each time."""
        if target == self._manager:
            return Abilities(min(LARGE_PART, self._limit), by_index=True, promise="*")
        known = self._known.get(target)
        if known is None:
            method = "services.built-in.get_service"
            service = await self._caller.call(target, method, ["built-in"], promise=True)
            config = service.get("config") if isinstance(service, dict) else None
            known = self._read(config if isinstance(config, dict) else {})
            if known.by_index:
                self._remember(target, known)
        return known

    def _remember(self, target: str, known: Abilities) -> None:
        # Older clients are asked before each message. imjoy-rpc 0.5.6 starts the clock of a call some time after it has
        # sent it, and fails the call when a part of its answer comes before (``protocol.md`` 4.6).
        self._known[target] = known
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    def _read(self, config: Mapping[str, Any]) -> Abilities:
        version, size = config.get("api_version"), config.get("part_bytes")
        modern = isinstance(version, int | float) and version >= 3
        part = size if isinstance(size, int) and size > SMALL_PART else SMALL_PART
        return Abilities(min(part, self._limit), by_index=modern, promise="*" if modern else True)

    async def send(
        self, target: str, packed: Buffer, able: Abilities, session: str | None, progress: Callable[[], None]
    ) -> None:
        """Send *packed* in parts. *session*: the call that it answers, which the parts keep alive.

        *progress* is called for each part that is there. Raises what a call raises. When it fails, or is cancelled, the
        receiver is told to forget what it has.
        """
        async with self._room:
            await self._send(target, packed, able, session, progress)

    async def _send(
        self, target: str, packed: Buffer, able: Abilities, session: str | None, progress: Callable[[], None]
    ) -> None:
        key, heartbeat = session or secrets.token_urlsafe(12), session is not None

        async def put(index: int | None, part: Buffer, sent: Callable[[], None] = lambda: None) -> None:
            await self._caller.put_part(target, key, index, part, heartbeat=heartbeat, promise=able.promise, sent=sent)
            progress()

        done = False
        try:
            # All by position: a JavaScript receiver appends the context after them (``protocol.md`` 11.9).
            await self._caller.call(target, CACHE_PREFIX + "create", [key, heartbeat], promise=able.promise)
            parts = slices(packed, able.part_bytes)
            if able.by_index:
                await _at_once([partial(put, index, part) for index, part in enumerate(parts)])
            else:
                for part in parts:
                    await put(None, part)
            await self._caller.call(target, CACHE_PREFIX + "process", [key, heartbeat], promise=able.promise)
            done = True
        finally:
            if not done:
                self._known.pop(target, None)  # another client may have come in its place
                self._caller.ask(target, CACHE_PREFIX + "remove", [key], able.promise)


async def _at_once(functions: Sequence[Callable[[Callable[[], None]], Awaitable[None]]]) -> None:
    """Run all of them, some at once, each when the one before has *sent*. Raises what the first one raises that fails.

    A router keeps what comes before its turn, and not much of it.
    """
    failure: list[HyphaError] = []
    room = trio.Semaphore(_PARTS_AT_ONCE)

    async def run(
        function: Callable[[Callable[[], None]], Awaitable[None]],
        scope: trio.CancelScope,
        task_status: trio.TaskStatus[None],
    ) -> None:
        begun = False

        def sent() -> None:
            nonlocal begun
            begun = True
            task_status.started()

        try:
            await function(sent)
        except HyphaError as exc:
            failure.append(exc)
            if not begun:
                sent()
            scope.cancel()
        finally:
            room.release()

    async with trio.open_nursery() as nursery:
        for function in functions:
            await room.acquire()
            await nursery.start(run, function, nursery.cancel_scope)
    if failure:
        raise failure[0]


def _own(data: Buffer) -> Buffer:
    """*data* without the message that it came in, when that is much longer: it would be kept as long."""
    if isinstance(data, memoryview) and 2 * len(data) < len(memoryview(data.obj)):
        return bytes(data)
    return data


class Receiver:
    """Puts together what others send in parts. *on_sign*: called with sender and session when a part keeps that alive.

    It raises when the sender has no such session.
    """

    def __init__(self, on_sign: Callable[[str, str], None]) -> None:
        self._on_sign = on_sign
        self._stores: dict[str, ChunkStore] = {}

    def __len__(self) -> int:
        """How many peers have sent something that is not finished."""
        return len(self._stores)

    def take(self, sender: str, operation: str, extra: dict[str, Any]) -> Buffer | None:
        """One chunk call; returns the message that it completes. Raises :class:`HyphaError`."""
        given = arguments(operation, extra)
        if given.get("heartbeat"):
            self._on_sign(sender, given["key"])
        store = self._stores.setdefault(sender, ChunkStore(_MAX_BYTES, _MAX_MESSAGES))
        try:
            return self._enter(store, operation, given)
        finally:
            if not store.messages:
                del self._stores[sender]

    def _enter(self, store: ChunkStore, operation: str, given: dict[str, Any]) -> Buffer | None:
        key = given["key"]
        if operation in {"append", "set"} and sum(other.size for other in self._stores.values()) > _MAX_BYTES:
            raise LimitExceeded(f"messages in parts hold more than {_MAX_BYTES} bytes; try again later")
        if operation == "process":
            return store.take(key)
        if operation == "create":
            store.create(key, overwrite=given.get("overwrite", False))
        elif operation == "append":
            store.append(key, _own(given["data"]))
        elif operation == "set":
            store.set(key, given["index"], _own(given["data"]))
        else:
            store.remove(key)
        return None

    def drop_idle(self) -> None:
        """Forget messages that did not move since this was asked last: who gives up never says so."""
        for sender, store in list(self._stores.items()):
            store.drop_idle()
            if not store.messages:
                del self._stores[sender]

    def clear(self) -> None:
        """Forget everything."""
        self._stores.clear()
