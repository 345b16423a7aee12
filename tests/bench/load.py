"""The load: callers that have several calls in flight each, and the provider that echoes them, on sockets by hand.

One process and one loop for all of them, so that the server is what has to work. The first calls are decoded and
compared, value for value; from them it is known what every later frame begins with, how long it is and where its
session id stands, and that is checked of each frame of the measurement.
"""

from __future__ import annotations

import select
import socket
import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.bench.wire import (
    PATIENCE,
    SESSION,
    Template,
    Wire,
    WrongAnswer,
    call_message,
    decode,
    next_session,
    result_message,
)

_READ = 2**18
_PARTS = 512
#: From this size on a frame is received in one buffer, once and for all.
_LARGE = 2**16
_TAIL = 16  # bytes at the end of each frame that are compared
_PROVIDER = "provider"
_METHOD = "services.bench.echo"

Buffer = bytes | memoryview


class Connection(ABC):
    """One socket in the loop. *out* waits to be written."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.out: list[Buffer] = []
        sock.setblocking(False)

    @abstractmethod
    def readable(self) -> None:
        """Take what has come and put the answers into *out*. Raises :class:`WrongAnswer`."""

    def flush(self) -> None:
        """Write what the socket takes."""
        while self.out:
            buffers = self.out[:_PARTS]
            try:
                sent = self.socket.sendmsg(buffers)
            except BlockingIOError:
                return
            done = 0
            while done < len(buffers) and sent >= len(buffers[done]):
                sent -= len(buffers[done])
                done += 1
            del self.out[:done]
            if sent:
                self.out[0] = memoryview(self.out[0])[sent:]

    def received(self) -> bytes:
        """Some bytes, none when there are none yet. Raises :class:`WrongAnswer` at the end of the stream."""
        try:
            data = self.socket.recv(_READ)
        except BlockingIOError:
            return b""
        if not data:
            raise WrongAnswer("the server has closed a connection")
        return data


class Loop:
    """Runs connections until a moment has come, or until a fact is true."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = {item.socket.fileno(): item for item in connections}
        self._blocked: set[int] = set()

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Serve the connections for *seconds*, or until *until* says so."""
        with self._polling() as poll:
            self._flush(poll)
            deadline = time.perf_counter() + seconds
            while not until() and time.perf_counter() < deadline:
                for descriptor, event in poll.poll(0.05):
                    if event & ~select.EPOLLOUT:
                        self._connections[descriptor].readable()
                self._flush(poll)

    @contextmanager
    def _polling(self) -> Iterator[select.epoll]:
        self._blocked.clear()
        with select.epoll() as poll:
            for descriptor in self._connections:
                poll.register(descriptor, select.EPOLLIN)
            yield poll

    def _flush(self, poll: select.epoll) -> None:
        for descriptor, connection in self._connections.items():
            if connection.out:
                connection.flush()
            if bool(connection.out) != (descriptor in self._blocked):
                self._blocked ^= {descriptor}
                poll.modify(descriptor, select.EPOLLIN | (select.EPOLLOUT if connection.out else 0))


@dataclass(frozen=True)
class Shape:
    """What the frames on a connection have in common."""

    head: bytes
    length: int
    session: int
    tail: bytes

    @classmethod
    def of(cls, prefix: bytes, packed: bytes, session: bytes) -> Shape:
        """Learn from a message and the *prefix* that frames it."""
        return cls(prefix, len(prefix) + len(packed), len(prefix) + packed.index(session), packed[-_TAIL:])

    def check(self, frame: bytes | bytearray, start: int) -> bytes:
        """The session id of the frame at *start*. Raises :class:`WrongAnswer` when it is of another shape."""
        stop = start + self.length
        if not frame.startswith(self.head, start) or not frame.endswith(self.tail, start, stop):
            raise WrongAnswer(f"an unknown frame: {bytes(frame[start : start + 500])!r}")
        return bytes(frame[start + self.session : start + self.session + SESSION])


class Peer(Connection):
    """A connection on which frames of one shape come."""

    def __init__(self, wire: Wire, shape: Shape) -> None:
        super().__init__(wire.socket)
        self._shape = shape
        self._rest = b""
        self._large = bytearray(shape.length if shape.length >= _LARGE else 0)
        self._taken = 0

    @abstractmethod
    def take(self, session: bytes) -> None:
        """One frame has come."""

    def readable(self) -> None:
        if self._large:
            self._read_large()
            return
        data = self._rest + self.received()
        length = self._shape.length
        for start in range(0, len(data) - length + 1, length):
            self.take(self._shape.check(data, start))
        self._rest = data[len(data) // length * length :]

    def _read_large(self) -> None:
        with memoryview(self._large) as view:
            try:
                count = self.socket.recv_into(view[self._taken :])
            except BlockingIOError:
                return
        if not count:
            raise WrongAnswer("the server has closed a connection")
        self._taken += count
        if self._taken == len(self._large):
            self._taken = 0
            self.take(self._shape.check(self._large, 0))


@dataclass(eq=False)
class Counters:
    """What is in flight and what was measured. *running*: answers are followed by the next call."""

    running: bool = True
    seconds: array[float] = field(default_factory=lambda: array("d"))
    pending: dict[bytes, tuple[Caller, float]] = field(default_factory=dict)


class Caller(Peer):
    """Keeps its number of calls in flight."""

    def __init__(self, wire: Wire, shape: Shape, call: Template, reply: Template, counters: Counters) -> None:
        super().__init__(wire, shape)
        self.reply = reply
        self._call = call
        self._counters = counters

    def issue(self) -> None:
        session = next_session()
        self._counters.pending[session] = (self, time.perf_counter())
        self.out += (self._call.head(session), self._call.tail)

    def take(self, session: bytes) -> None:
        caller, began = self._counters.pending.pop(session, (None, 0.0))
        if caller is not self:
            raise WrongAnswer(f"an answer to {session!r} came to a client that did not ask")
        self._counters.seconds.append(time.perf_counter() - began)
        if self._counters.running:
            self.issue()


class Provider(Peer):
    """Answers each call with what it came with."""

    def __init__(self, wire: Wire, shape: Shape, counters: Counters) -> None:
        super().__init__(wire, shape)
        self._counters = counters

    def take(self, session: bytes) -> None:
        caller, _ = self._counters.pending[session]
        self.out += (caller.reply.head(session), caller.reply.tail)


class EchoLoad:
    """Calls of *payload* bytes that are echoed: *depth* of them in flight from each of *callers*, through one server.

    *dial* makes the connections, the provider's first: it is called with the names of the clients.
    """

    def __init__(self, dial: Callable[[list[str]], list[Wire]], payload: int, callers: int, depth: int) -> None:
        self._counters = Counters()
        provider, *wires = dial([_PROVIDER, *(f"caller{number:02}" for number in range(callers))])
        self._value = bytes(number % 251 for number in range(payload))
        shapes, peers = [], []
        for wire in wires:
            called, answered = self._warm_up(wire, provider)
            shapes.append(called)
            peers.append(Caller(wire, answered, self._call(wire), self._reply(wire, provider), self._counters))
        if len({(shape.length, shape.session) for shape in shapes}) != 1:
            raise WrongAnswer("calls of one length came with several lengths")
        self._peers: list[Connection] = [Provider(provider, shapes[0], self._counters), *peers]
        self._loop = Loop(self._peers)
        for peer in peers:
            for _ in range(depth):
                peer.issue()

    def _call(self, wire: Wire) -> Template:
        provider = wire.address(_PROVIDER)
        return wire.template(provider, call_message(wire.address(wire.name), provider, _METHOD, [self._value]))

    def _reply(self, wire: Wire, provider: Wire) -> Template:
        caller = wire.address(wire.name)
        return provider.template(caller, result_message(caller, self._value))

    def _warm_up(self, wire: Wire, provider: Wire) -> tuple[Shape, Shape]:
        """Make some calls in which every value is compared; the shapes of a call and of its answer."""
        call, reply = self._call(wire), self._reply(wire, provider)
        for _ in range(4):
            session = next_session()
            wire.socket.sendall(call.head(session) + call.tail)
            called = self._expect(provider, _METHOD, session, session)
            provider.socket.sendall(reply.head(session) + reply.tail)
            answered = self._expect(wire, f"{session.decode()}.resolve", session)
        return called, answered

    def _expect(self, wire: Wire, method: str, session: bytes, names: bytes | None = None) -> Shape:
        prefix, packed = wire.receive()
        message = decode(packed)
        found = (message["method"], message.get("session"), message["args"])
        if found != (method, names and names.decode(), [self._value]):
            raise WrongAnswer(f"{wire.name} got {str(message)[:500]}")
        return Shape.of(prefix, packed, session)

    def run(self, seconds: float) -> array[float]:
        """Keep the calls in flight for *seconds*; the seconds that each of those took that ended meanwhile."""
        self._counters.seconds = array("d")
        self._loop.run(seconds)
        return self._counters.seconds

    def close(self) -> None:
        """Wait for the calls in flight, and close the connections."""
        self._counters.running = False
        self._loop.run(PATIENCE, lambda: not self._counters.pending)
        for peer in self._peers:
            peer.socket.close()
        if self._counters.pending:
            raise WrongAnswer(f"{len(self._counters.pending)} calls were not answered")
