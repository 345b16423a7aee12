"""A peer's presence: who it is, what it offers, what it has to do with others. Data, not tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import trio

from hypha.broker.access import ROOT, Principal
from hypha.broker.outbox import DirtyOutboxes, Outbox, Transport
from hypha.config import Limits
from hypha.errors import LimitExceeded, PeerGone
from hypha.wire.address import Address
from hypha.wire.calls import Message, rejection
from hypha.wire.chunks import ChunkPeek, ChunkStore
from hypha.wire.dialect import Dialect
from hypha.wire.frame import Fields, Frame


class Arrival(NamedTuple):
    """A call of one of the server's functions, *size* bytes. *substitute*: the function, when it is not the frame's.

    *scope*: around the call, where its caller may cancel it.
    """

    frame: Frame
    to: Address
    substitute: str | None
    size: int
    scope: trio.CancelScope | None


@dataclass(frozen=True, slots=True)
class Offer:
    """The most open of several services: whoever may call it may call one of them, and nobody else may."""

    workspace: str
    visibility: str = "protected"
    authorized_workspaces: frozenset[str] = frozenset()


@dataclass(slots=True, eq=False)
class Service:
    """A registration as others see it. The functions stay with the provider (``protocol.md`` 3.3).

    *visibility* is public, unlisted or protected (``decisions.md`` 20). *authorized_workspaces* may call although it
    is protected. *since* orders services by age: the smaller, the older. *size*: bytes of what its client said of it.
    *session*: who answers for it, a client or the server itself.
    """

    workspace: str
    client: str
    id: str
    name: str
    type: str
    config: dict[str, Any]
    description: str | None
    visibility: str
    authorized_workspaces: frozenset[str]
    since: int
    size: int
    session: Session
    docs: Any = None
    app_id: str = "*"
    #: Function name -> what its client says of it, with the parameters as JSON schema (``protocol.md`` 5.3).
    schema: dict[str, Any] | None = None
    #: How often this provider was chosen, compared with the others of the same id (:mod:`hypha.broker.selection`).
    turn: int = 0
    #: Paths of functions that the service has been seen to have, when somebody asked over HTTP.
    functions: set[tuple[str, ...]] = field(default_factory=set)

    @property
    def full_id(self) -> str:
        """``workspace/client:service``."""
        return f"{self.workspace}/{self.client}:{self.id}"


class Session(ABC):
    """One peer of the router.

    *generation* tells a session from its predecessors at the same address: clean-up of an old one never touches a
    newer one. *open* turns false when the session is over; nothing is delivered to it any more.
    """

    def __init__(
        self, address: Address, principal: Principal, dialect: Dialect, generation: int, limits: Limits
    ) -> None:
        self.address = address
        self.workspace = address.workspace
        self.name = str(address)
        self.principal = principal
        self.dialect = dialect
        self.generation = generation
        self.limits = limits
        self.open = True
        self.services: dict[str, Service] = {}
        #: All of them as one, for what is permitted to whoever may call any.
        self.offer = Offer(address.workspace)
        #: Event types that this peer asked to hear when they are broadcast (``protocol.md`` 5.9).
        self.subscriptions: set[str] = set()
        #: Calls of this peer that wait for an answer: session id -> who was asked (``decisions.md`` 15).
        self.outbound: dict[str, Session] = {}
        #: Calls that this peer works on: (caller, session id) -> the address at which it was asked.
        self.inbound: dict[tuple[Session, str], Address] = {}
        #: Those of them of which there was no sign since the sweeper looked last.
        self.unheard: set[tuple[Session, str]] = set()
        #: Sessions of other workspaces that had a permitted frame delivered here, oldest first (``decisions.md`` 16).
        self.correspondents: dict[Session, None] = {}
        #: The look at the messages in parts that are on their way here (``decisions.md`` 14).
        self.chunk_peek = ChunkPeek(limits.chunked_messages_per_peer)
        #: Sessions that keep something about this one, to be told when it ends.
        self.known_by: set[Session] = set()
        self.stamp = Fields.encode(
            {"from": self.name, "user": principal.to_wire(address.workspace), "ws": address.workspace}
        )

    @abstractmethod
    def peer_gone(self, session_id: str, address: Address) -> None:
        """Learn that the call *session_id* at *address* will get no answer."""

    def subscribe(self, event_type: str) -> None:
        """Hear the events of *event_type* from now on. Raises :class:`LimitExceeded`."""
        limit = self.limits.subscriptions_per_session
        if len(self.subscriptions) >= limit and event_type not in self.subscriptions:
            raise LimitExceeded(f"subscriptions_per_session = {limit} event types are subscribed to already")
        self.subscriptions.add(event_type)

    def heard_from(self, sender: Session) -> None:
        """Remember that a session of another workspace wrote to this one and may be answered."""
        if sender in self.correspondents:
            return
        if len(self.correspondents) >= self.limits.correspondents_per_peer:
            self._forget_oldest()
        self.correspondents[sender] = None
        sender.known_by.add(self)

    def _forget_oldest(self) -> None:
        oldest = next(iter(self.correspondents))
        del self.correspondents[oldest]
        if oldest not in self.chunk_peek.senders:
            oldest.known_by.discard(self)

    def forget_parts(self, sender: Session) -> None:
        """Drop what *sender* has begun to send in parts."""
        self.chunk_peek.forget(sender)
        if sender not in self.correspondents:
            sender.known_by.discard(self)

    def keeps(self) -> set[Session]:
        """The sessions that this one keeps something about."""
        senders = (sender for sender in self.chunk_peek.senders if isinstance(sender, Session))
        return {*self.correspondents, *senders}

    def forget(self, other: Session) -> None:
        """Drop what is kept about a session that has ended."""
        self.correspondents.pop(other, None)
        self.chunk_peek.forget(other)


class PeerSession(Session):
    """A client that is connected: its frames leave through the outbox.

    *base_url*: the address at which it reached the server.
    """

    def __init__(
        self,
        address: Address,
        principal: Principal,
        dialect: Dialect,
        generation: int,
        limits: Limits,
        *,
        transport: Transport,
        base_url: str,
        identity: str,
        dirty: DirtyOutboxes,
    ) -> None:
        super().__init__(address, principal, dialect, generation, limits)
        self.transport = transport
        #: The largest frame in bytes that this peer takes.
        self.frame_limit = _frame_limit(dialect, limits)
        self.base_url = base_url
        #: Survives reconnections, ends with a clean close: what reconnection tokens are bound to.
        self.identity = identity
        self.outbox = Outbox(transport, limits.outbox_bytes, limits.outbox_reserve_bytes, dirty)
        self.chunks = ChunkStore(limits.chunked_bytes_per_peer, limits.chunked_messages_per_peer)
        #: Calls of the server's own services that run for this peer now.
        self.server_calls = 0
        #: What they take, in bytes of their messages.
        self.server_call_bytes = 0
        #: Those of which no task has begun yet, in the order in which they came.
        self.arrived: deque[Arrival] = deque()
        #: Messages of this peer that could not be read and were dropped.
        self.malformed = 0

    def tell(self, message: Message, sender: Address) -> bool:
        """Put a message of the server's own, written as *sender*; it may use the reserve. False when it was lost."""
        return self.outbox.put_control(*message.encode(server_stamp(sender)))

    def peer_gone(self, session_id: str, address: Address) -> None:
        # In the name of the peer that is gone (protocol.md 2.5).
        self.tell(rejection(self.name, session_id, gone_text(address), PeerGone.code), address)


def server_stamp(sender: Address, workspace: str | None = None) -> Fields:
    """What the server writes into a frame of its own that goes out as *sender*.

    *workspace* is the ``ws`` field, which modern receivers check; by default the sender's.
    """
    return Fields.encode({"from": str(sender), "user": _ROOT_USER, "ws": workspace or sender.workspace})


def gone_text(address: Address) -> str:
    """One text for a peer that is gone, never was, or may not be seen (``decisions.md`` 17).

    Lower-case "peer" keeps modern clients from calling again at once (``protocol.md`` 2.5).
    """
    return f"Target peer {address} is not connected"


_ROOT_USER = ROOT.to_wire(None)


def _frame_limit(dialect: Dialect, limits: Limits) -> int:
    of_all = {
        "frame_bytes": limits.frame_bytes,
        "python_frame_bytes": limits.python_frame_bytes,
        "modern_python_frame_bytes": limits.modern_python_frame_bytes,
    }
    return of_all[dialect.frame_limit]
