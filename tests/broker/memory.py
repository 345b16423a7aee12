"""Peers without sockets: a transport over lists, and a broker with clients that send frames and read what came.

What a client has been written is kept as bytes; :meth:`MemoryTransport.messages` reads them as a client would.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import coroutine
from typing import Any, cast

import msgpack
import trio

from hypha.broker.access import Level, Principal, itself
from hypha.broker.broker import Admission, Broker, Credentials
from hypha.broker.registration import Registration
from hypha.broker.registry import Workspace
from hypha.broker.session import PeerSession
from hypha.config import Config, Limits
from hypha.wire.dialect import LEGACY, Dialect
from hypha.wire.frame import Buffer

#: A wall clock for tokens: seconds since the epoch at which a test begins.
EPOCH = 1_700_000_000.0
KEY = b"k" * 32
SERVER_ID = "server-id"
#: What the server itself offers to everybody.
LOGIN = f"public/{SERVER_ID}:hypha-login"
HEAD = 4  # bytes that MemoryTransport puts in front of a message


@coroutine
def _pause() -> Generator[None, None, None]:
    """Give way to whoever drives the coroutine by hand."""
    yield


class MemoryTransport:
    """A :class:`hypha.broker.outbox.Transport` that keeps what is written.

    *takes*: how many bytes the socket takes before it is full, None for any number; :meth:`take` makes room.
    *writes* and *sends* count the calls that do not wait and those that do.
    *nursery*: where tasks run; without one they are kept in *tasks* and run when a test wants it.
    """

    def __init__(self, nursery: trio.Nursery | None = None, takes: int | None = None) -> None:
        self.nursery = nursery
        self.takes = takes
        self.written = bytearray()
        self.writes = self.sends = 0
        self.broken = False
        self.closed: list[tuple[int, str]] = []
        self.tasks: list[partial[Coroutine[Any, Any, None]]] = []
        self._writers: list[Coroutine[Any, Any, None]] = []
        self._room = trio.Event()
        self.arrived = trio.Event()

    def frame(self, size: int) -> bytes:
        return struct.pack(">I", size)

    def write_now(self, buffers: Sequence[Buffer]) -> int:
        self.writes += 1
        if self.broken:
            return 0
        return self._accept(b"".join(map(bytes, buffers)))

    def _accept(self, data: bytes) -> int:
        count = len(data) if self.takes is None else min(self.takes, len(data))
        self.written += data[:count]
        self.arrived.set()
        if self.takes is not None:
            self.takes -= count
        return count

    async def send_all(self, data: Buffer) -> None:
        rest = bytes(data)
        self.sends += 1
        if self.nursery is not None:
            await trio.lowlevel.checkpoint()
        while rest:
            if self.broken:
                raise trio.BrokenResourceError
            rest = rest[self._accept(rest) :]
            if rest:
                await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        if self.nursery is None:
            await _pause()
        else:
            self._room = trio.Event()
            await self._room.wait()

    def take(self, count: int | None) -> None:
        """The peer reads: the socket takes *count* bytes more, or from now on any number."""
        self.takes = None if count is None else (self.takes or 0) + count
        self._room.set()

    def run_writers(self) -> None:
        """Without a nursery: let the writer go on as far as there is room. Other tasks stay where they are."""
        for task in [task for task in self.tasks if getattr(task.func, "__qualname__", "") == "Outbox._drain"]:
            self.tasks.remove(task)
            self._writers.append(task())
        for writer in list(self._writers):
            try:
                writer.send(None)
            except StopIteration:
                self._writers.remove(writer)

    def break_off(self) -> None:
        """The network is gone: writing fails."""
        self.broken = True
        self._room.set()

    def start_soon(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        if self.nursery is None:
            self.tasks.append(partial(cast("Callable[..., Coroutine[Any, Any, None]]", task), *args))
        else:
            self.nursery.start_soon(task, *args)

    def close(self, code: int, reason: str) -> None:
        self.closed.append((code, reason))

    def frames(self) -> list[bytes]:
        """Every whole message that was written, and, last, an incomplete one if there is one."""
        found, data = [], bytes(self.written)
        while data:
            (size,) = struct.unpack(">I", data[:4])
            found.append(data[4 : 4 + size])
            data = data[4 + size :]
        return found

    def messages(self) -> list[dict[str, Any]]:
        """Every message that was written, header and body merged as clients do it."""
        return [read_message(data) for data in self.frames()]


def read_message(data: bytes) -> dict[str, Any]:
    """A message as its receiver sees it. Fields of the body win (``protocol.md`` 2.1)."""
    unpacker = msgpack.Unpacker(strict_map_key=False)
    unpacker.feed(data)
    message: dict[str, Any] = {}
    for value in unpacker:
        message.update(value)
    return message


def pack_message(header: dict[str, Any], body: object = None) -> bytes:
    """A message as a client sends it; *body* may be bytes that are no message pack."""
    if body is None:
        return bytes(msgpack.packb(header))
    return bytes(msgpack.packb(header) + (body if isinstance(body, bytes) else msgpack.packb(body)))


class Rejected(Exception):
    """A call was answered with an error; the text is the error's."""


_numbers = itertools.count()


@dataclass(eq=False)
class Peer:
    """A connected client: what it sends and what it has received."""

    broker: Broker
    session: PeerSession
    transport: MemoryTransport
    seen: int = 0
    #: Messages that came while this peer waited for another one.
    inbox: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.session.name

    def send(self, header: dict[str, Any], body: object = None) -> PeerSession | None:
        """Send one message and flush. Returns the session that had no room, as the router does."""
        frame = self.broker.reader.read(pack_message(header, body))
        blocked = self.broker.router.route(self.session, frame)
        self.broker.flush()
        return blocked

    def call(self, to: str, method: str, *args: Any, session: str = "s1", **kwargs: Any) -> PeerSession | None:
        """Call a function with the promise that modern clients write."""
        extra: dict[str, Any] = {"args": list(args), "promise": "*", "t": 5.0}
        if kwargs:
            extra |= {"args": [*args, kwargs], "with_kwargs": True}
        return self.send({"type": "method", "to": to, "method": method, "session": session}, extra)

    def cache(self, to: str, operation: str, *args: Any, session: str = "c1") -> PeerSession | None:
        """Call a function of a message cache as imjoy-rpc does for what is large (``protocol.md`` 2.7)."""
        promise = {
            name: {"_rtype": "method", "_rtarget": self.name, "_rmethod": f"{session}.{name}", "_rpromise": False}
            for name in ("resolve", "reject")
        }
        method = f"services.built-in.message_cache.{operation}"
        header = {"type": "method", "to": to, "method": method, "session": session}
        return self.send(header, {"args": list(args), "promise": promise})

    def answer(self, message: dict[str, Any], value: Any = None, name: str = "resolve") -> PeerSession | None:
        """Answer a call that this peer has received."""
        session = message["session"]
        header = {"type": "method", "to": message["from"], "method": f"{session}.{name}", "parent": session}
        return self.send(header, {"args": [value]})

    async def ask(self, method: str, *args: Any, to: str = "workspace-manager", **kwargs: Any) -> Any:
        """Call a function, by default one of the server's, and return its value. Raises :class:`Rejected`."""
        session = f"ask-{next(_numbers)}"
        path = method if method.startswith("services.") else f"services.default.{method}"
        assert self.call(to, path, *args, session=session, **kwargs) is None
        message = await self.message_for(session)
        if message["method"] == f"{session}.reject":
            raise Rejected(message["args"][0]["_rvalue"])
        assert message["method"] == f"{session}.resolve"
        (value,) = message["args"]
        return value

    async def message_for(self, session: str) -> dict[str, Any]:
        """The next message to *session*, heartbeats left out."""
        while True:
            message = await self.next_message(lambda message: message.get("method", "").startswith(f"{session}."))
            if not message["method"].endswith(".heartbeat"):
                return message

    async def next_message(self, wanted: Callable[[dict[str, Any]], bool] = lambda message: True) -> dict[str, Any]:
        """The next message that is *wanted*; others wait in the inbox."""
        while True:
            if self.transport.arrived.is_set():
                self.transport.arrived = trio.Event()
            arrived = self.transport.arrived
            self.inbox += self.received()
            for message in self.inbox:
                if wanted(message):
                    self.inbox.remove(message)
                    return message
            await arrived.wait()

    async def serve(self, answer: Callable[[dict[str, Any]], Any]) -> None:
        """Answer every call that comes with what *answer* returns for it; an exception becomes an error."""
        while True:
            message = await self.next_message(lambda message: "session" in message)
            try:
                value, name = answer(message), "resolve"
            except Exception as exc:  # noqa: BLE001  what a provider's function raises goes to its caller
                value, name = {"_rtype": "error", "_rvalue": str(exc)}, "reject"
            self.answer(message, value, name)

    def received(self) -> list[dict[str, Any]]:
        """The messages that came since the last look."""
        messages = self.transport.messages()[self.seen :]
        self.seen += len(messages)
        return messages

    def errors(self) -> list[str]:
        """The texts of the rejections that came since the last look; nothing else may have come."""
        messages = self.received()
        assert all(message["method"].endswith(".reject") for message in messages), messages
        return [message["args"][0]["_rvalue"] for message in messages]

    def fill(self, size: int) -> None:
        """Let a message of *size* bytes wait in the outbox, and nothing of it be taken."""
        self.transport.takes = 0
        head, body = pack_message({"type": "filler"}), bytes(msgpack.packb({"x": b"." * size}))
        body = bytes(msgpack.packb({"x": b"." * (2 * size - len(head) - len(body))}))
        assert self.session.outbox.put(head, body)
        assert self.session.outbox.pending == size + HEAD

    def drain(self) -> None:
        """Take everything that waits, and whatever comes from now on."""
        self.transport.take(None)
        self.session.outbox.flush()
        self.transport.run_writers()
        assert not self.session.outbox.pending

    def announce(self, *services: str, visibility: str = "protected", **config: Any) -> None:
        """Register services by id."""
        entries = [Registration(name, name, "test", {"visibility": visibility, **config}, None) for name in services]
        self.broker.registry.announce(self.session, entries)

    def leave(self, *, clean: bool = True) -> None:
        self.broker.leave(self.session, clean=clean)


class MemoryStore:
    """A :class:`hypha.broker.records.Store` without a disk. *full*: what the disk says to every change."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], bytes] = {}
        self.full: str | None = None
        self.firm = False
        self.writes = 0

    def load(self) -> list[tuple[str, str, bytes]]:
        return [(kind, name, data) for (kind, name), data in self.records.items()]

    def write(self, changes: Mapping[tuple[str, str], bytes | None], *, firm: bool) -> None:
        if self.full is not None:
            raise OSError(self.full)
        self.writes += 1
        self.firm = firm
        for key, data in changes.items():
            if data is None:
                self.records.pop(key, None)
            else:
                self.records[key] = data

    def kinds(self) -> list[str]:
        """The kinds of all records."""
        return sorted(kind for kind, _ in self.records)


@dataclass(eq=False)
class Scene:
    """A broker and its clients. *nursery*: see :class:`MemoryTransport`."""

    limits: Limits = field(default_factory=Limits)
    nursery: trio.Nursery | None = None
    wall: Callable[[], float] = lambda: EPOCH
    #: What outlives the broker; without one nothing does.
    store: MemoryStore | None = None

    def __post_init__(self) -> None:
        self.broker = Broker(Config(limits=self.limits), KEY, SERVER_ID, self.wall, self.store)

    def restarted(self, limits: Limits | None = None) -> Scene:
        """What a new process makes of what this one has kept. Nobody is connected."""
        self.broker.records.close()
        scene = Scene(limits or self.limits, self.nursery, self.wall, self.store)
        scene.broker.restore()
        return scene

    def workspace(self, name: str) -> Workspace:
        found = self.broker.registry.workspaces.get(name)
        return found or self.broker.registry.create_workspace(name)

    def principal(self, name: str, workspace: str, level: Level = Level.READ_WRITE) -> Principal:
        return Principal(id=name, is_anonymous=False, grants={workspace: level})

    def join(
        self,
        address: str,
        *,
        principal: Principal | None = None,
        dialect: Dialect = LEGACY,
        takes: int | None = None,
        frame_limit: int | None = None,
    ) -> Peer:
        """Connect a client at ``workspace/client``; by default a user of its own who may write there.

        What its principal is granted is for the workspace that has the name now.
        """
        workspace, _, client = address.partition("/")
        place = self.workspace(workspace)
        principal = principal or self.principal(f"user-of-{client}", workspace)
        if workspace in principal.grants.keys() - principal.granted_by.keys() and place.identity:
            principal = replace(principal, granted_by={**principal.granted_by, workspace: (itself(place),)})
        token = self.broker.tokens.issue(principal, expires_in=3600)
        admission = self.broker.admit(Credentials(client, workspace, token))
        return self.attach(admission, dialect=dialect, takes=takes, frame_limit=frame_limit)

    def attach(
        self,
        admission: Admission,
        *,
        dialect: Dialect = LEGACY,
        takes: int | None = None,
        frame_limit: int | None = None,
    ) -> Peer:
        transport = MemoryTransport(self.nursery, takes)
        session = self.broker.attach(admission, dialect, transport, base_url="http://localhost:9527")
        session.frame_limit = self.limits.frame_bytes if frame_limit is None else frame_limit
        return Peer(self.broker, session, transport)
