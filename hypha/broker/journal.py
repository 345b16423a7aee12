"""Events that the members of a workspace write down there: ``log``, ``log_event``, and what reads them.

They are not what :mod:`hypha.broker.events` broadcasts: nobody is told of them (``protocol.md`` 5.3).
"""

from __future__ import annotations

import logging
import reprlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import trio

from hypha.broker.access import Action, may
from hypha.broker.kept import pack, unpack
from hypha.errors import InvalidArgument, LimitExceeded
from hypha.wire.address import MAX_NAME

if TYPE_CHECKING:
    from hypha.broker.broker import Broker
    from hypha.broker.endpoint import ServerCall
    from hypha.broker.manager import Run

logger = logging.getLogger(__name__)

_EVENT_SIZE = 200  # bytes that an event counts beside its type and data


@dataclass(frozen=True, slots=True)
class Event:
    """One entry. *time*: seconds since the epoch. *data*: msgpack."""

    number: int
    kind: str
    user_id: str
    time: float
    data: bytes

    @property
    def size(self) -> int:
        """What it counts, in bytes."""
        return _EVENT_SIZE + len(self.kind.encode()) + len(self.data)


class Journal:
    """The newest events of one workspace. When there is no room for another, the oldest is forgotten."""

    __slots__ = ("_bytes", "_events", "_number")

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._bytes = self._number = 0

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def add(self, kind: str, user_id: str, time: float, data: bytes, room: int) -> tuple[Event, list[Event]]:
        """Write one down. *room*: bytes of all together. Returns it, and those that were forgotten for it."""
        event = Event(self._number + 1, kind, user_id, time, data)
        self.restore(event)
        spare = 0
        while self._bytes > room:
            self._bytes -= self._events[spare].size
            spare += 1
        forgotten = self._events[:spare]
        del self._events[:spare]
        return event, forgotten

    def restore(self, event: Event) -> None:
        """Enter one that has its number already, and is newer than the others."""
        self._number = event.number
        self._events.append(event)
        self._bytes += event.size


class JournalFunctions:
    """What the manager of modern clients offers. *broker* knows what time it is."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        # A full journal may take 20 ms to write out. Others have their turn between one and the next.
        self._reading = trio.Lock()

    def exported(self) -> Iterator[tuple[Run, Action]]:
        """Each function with what its caller must be allowed to do."""
        yield self.log, Action.WRITE
        yield self.log_event, Action.WRITE
        yield self.get_events, Action.READ
        yield self.get_event_stats, Action.READ

    async def log(self, call: ServerCall, msg: Any) -> None:
        """A line for the server's log, which is also kept as an event "log"."""
        text = msg[:1000] if isinstance(msg, str) else reprlib.repr(msg)
        logger.info("%s says %r", call.sender.name, text)
        await self.log_event(call, "log", msg)

    async def log_event(self, call: ServerCall, event_type: str, data: Any = None) -> None:
        """Keep an event of the workspace, with the time and the caller's user id."""
        if not isinstance(event_type, str) or not 0 < len(event_type) <= MAX_NAME or " " in event_type:
            raise InvalidArgument(f"an event type is a text of 1 to {MAX_NAME} characters without spaces")
        packed, limits = pack(data), call.sender.limits
        if len(packed) > limits.event_bytes:
            raise LimitExceeded(f"the data of an event is larger than event_bytes = {limits.event_bytes}")
        journal, room = call.workspace.journal, limits.events_bytes_per_workspace
        event, forgotten = journal.add(event_type, call.principal.id, self._broker.clock(), packed, room)
        self._broker.registry.ledger.event(call.workspace, event, forgotten)

    async def get_events(
        self,
        call: ServerCall,
        event_type: str | None = None,
        start_time: float | str | None = None,
        end_time: float | str | None = None,
    ) -> list[dict[str, Any]]:
        """The events that the caller has logged, the oldest first; an administrator of the workspace gets all.

        Times are seconds since the epoch, or text as ISO 8601 has it.
        """
        async with self._reading:
            return [
                {
                    "id": event.number,
                    "event_type": event.kind,
                    "workspace": call.workspace.name,
                    "user_id": event.user_id,
                    "timestamp": datetime.fromtimestamp(event.time, UTC).isoformat(),
                    "data": unpack(event.data),
                }
                for event in _selected(call, event_type, start_time, end_time)
            ]

    async def get_event_stats(
        self,
        call: ServerCall,
        event_type: str | None = None,
        start_time: float | str | None = None,
        end_time: float | str | None = None,
    ) -> list[dict[str, Any]]:
        """How many events of each type ``get_events`` would give."""
        counts = Counter(event.kind for event in _selected(call, event_type, start_time, end_time))
        return [{"event_type": kind, "count": count} for kind, count in counts.items()]


def _selected(call: ServerCall, kind: str | None, start: object, end: object) -> Iterator[Event]:
    first, last = _seconds(start), _seconds(end)
    sees_all = may(call.principal, Action.ADMINISTER, call.workspace).allowed
    for event in call.workspace.journal:
        wanted = kind in {None, event.kind} and (sees_all or event.user_id == call.principal.id)
        if wanted and (first is None or event.time >= first) and (last is None or event.time <= last):
            yield event


def _seconds(moment: object) -> float | None:
    """A moment as seconds since the epoch; without a zone it is UTC. Raises :class:`InvalidArgument`."""
    if moment is None:
        return None
    if isinstance(moment, int | float):
        return float(moment)
    try:
        read = datetime.fromisoformat(str(moment))
    except ValueError:
        raise InvalidArgument("a time is a number of seconds since the epoch, or a text as ISO 8601 has it") from None
    return (read if read.tzinfo is not None else read.replace(tzinfo=UTC)).timestamp()
