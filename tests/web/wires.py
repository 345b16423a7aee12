"""Clients for tests of the stack, over any trio stream: HTTP by h11, websockets by wsproto, and RPC by hand.

Nothing here uses our own codecs: a mistake on both sides would not be seen.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import h11
import msgpack
import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, Pong, TextMessage

from tests.web.stack import Stack

# --- HTTP -----------------------------------------------------------------------------------------------------


@dataclass
class HttpAnswer:
    """One response. Header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        """The text of an error, whose body must have the form of errors."""
        document = self.json()
        assert document.keys() == {"success", "detail"}
        assert document["success"] is False
        return str(document["detail"])


async def http(
    stack: Stack,
    target: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> HttpAnswer:
    """One request on a connection of its own, which is closed afterwards."""
    stream = await stack.open()
    try:
        return await exchange(stream, target, method, headers, body)
    finally:
        await trio.aclose_forcefully(stream)


async def exchange(
    stream: trio.abc.Stream,
    target: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> HttpAnswer:
    """One request on *stream*."""
    await stream.send_all(request_bytes(target, method, headers, body))
    return await read_answer(stream, method)


def request_bytes(
    target: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
) -> bytes:
    """A request as it stands on the wire; nothing is checked."""
    fields = {"Host": "lab.example:9527", **(headers or {})}
    if body and not {name.lower() for name in fields} & {"content-length", "transfer-encoding"}:
        fields["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


async def read_answer(stream: trio.abc.Stream, method: str = "GET") -> HttpAnswer:
    """The next response on *stream* to a request with *method*. Raises EOFError when there is none."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "x"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    response: h11.Response | None = None
    body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = await stream.receive_some()
            if not data and response is None:
                raise EOFError("the server has closed the connection")
            connection.receive_data(bytes(data))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert response is not None
            fields: dict[str, str] = {}
            for name, value in response.headers:
                text = value.decode("latin-1")
                key = name.decode("latin-1")
                fields[key] = f"{fields[key]}, {text}" if key in fields else text
            return HttpAnswer(response.status_code, fields, body)


async def read_to_end(stream: trio.abc.Stream) -> bytes:
    """All that comes until the server closes."""
    data = b""
    try:
        while part := await stream.receive_some():
            data += part
    except trio.BrokenResourceError:
        pass  # an end, too
    return data


async def send_while_open(stream: trio.abc.SendStream, data: bytes) -> bool:
    """Send *data*; False when the server has closed."""
    try:
        await stream.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return False
    return True


# --- websockets -----------------------------------------------------------------------------------------------


class Refused(Exception):
    """The websocket request was answered in HTTP."""

    def __init__(self, answer: HttpAnswer) -> None:
        super().__init__(f"{answer.status} {answer.body!r}")
        self.answer = answer


def upgrade_bytes(target: str, headers: Mapping[str, str] | None = None) -> bytes:
    """A websocket request as it stands on the wire."""
    fields = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        **(headers or {}),
    }
    return request_bytes(target, headers=fields)


@dataclass
class Closed:
    """The server's close frame; code 1006 when the connection ended without one."""

    code: int
    reason: str = ""


class WebSocket:
    """The client's side of an accepted websocket. *headers*: those of the 101."""

    def __init__(self, stream: trio.abc.Stream, headers: dict[str, str], rest: bytes) -> None:
        self.stream = stream
        self.headers = headers
        self._connection = Connection(ConnectionType.CLIENT, trailing_data=rest)
        self._sending = trio.Lock()

    async def send(self, event: Event) -> None:
        async with self._sending:
            await self.stream.send_all(self._connection.send(event))

    async def send_bytes(self, data: bytes) -> None:
        await self.send(BytesMessage(data))

    def encoded(self, *events: Event) -> bytes:
        """What :meth:`send` would write for all of *events*."""
        return b"".join(self._connection.send(event) for event in events)

    async def receive(self) -> bytes | str | Pong | Ping | Closed:
        """The next message, whole; pings are answered. A close frame is answered too."""
        parts: list[Any] = []
        while True:
            for event in self._connection.events():
                if isinstance(event, Message):
                    parts.append(event.data)
                    if event.message_finished:
                        return "".join(parts) if isinstance(event, TextMessage) else b"".join(map(bytes, parts))
                elif isinstance(event, Ping):
                    await self._answer(event)
                    return event
                elif isinstance(event, CloseConnection):
                    # wsproto makes a close frame, too, of what it cannot read.
                    assert self._connection.state in {ConnectionState.REMOTE_CLOSING, ConnectionState.CLOSED}, event
                    if self._connection.state is ConnectionState.REMOTE_CLOSING:
                        await self._answer(event)
                    return Closed(int(event.code), event.reason or "")
                elif isinstance(event, Pong):
                    return event
            try:
                data = await self.stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return Closed(1006, "reset")
            if not data:
                return Closed(1006, "no close frame")
            self._connection.receive_data(bytes(data))

    async def _answer(self, event: Ping | CloseConnection) -> None:
        # The server may have closed already, and another task of the test may still be sending.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            await self.send(event.response())

    async def closed(self) -> Closed:
        """Read on until the end and return it."""
        while True:
            item = await self.receive()
            if isinstance(item, Closed):
                return item


async def upgrade(
    stream: trio.abc.Stream, target: str, headers: Mapping[str, str] | None = None, glued: bytes = b""
) -> WebSocket:
    """Ask for a websocket, with *glued* behind the request in the same segment. Raises :class:`Refused`."""
    await stream.send_all(upgrade_bytes(target, headers) + glued)
    data = b""
    while b"\r\n\r\n" not in data:
        part = await stream.receive_some()
        if not part:
            raise EOFError(f"the server has closed the connection after {data!r}")
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(status_line.split()[1])
    if status == 101:
        assert fields["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        return WebSocket(stream, fields, rest)
    while len(rest) < int(fields["content-length"]):
        rest += await stream.receive_some()
    raise Refused(HttpAnswer(status, fields, rest))


# --- RPC ------------------------------------------------------------------------------------------------------


class Rejected(Exception):
    """A call was answered with an error. Raised by a function of a :class:`Peer`, it is its answer."""


def encode(main: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> bytes:
    """One binary message (``protocol.md`` 2.1)."""
    return bytes(msgpack.packb(main)) + (bytes(msgpack.packb(extra)) if extra is not None else b"")


def decode(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and payload of a binary message."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(data)
    values = list(unpacker)
    assert 1 <= len(values) <= 2
    return values[0], values[1] if len(values) == 2 else {}


@dataclass
class Call:
    """A call that a peer has received."""

    peer: Peer
    main: dict[str, Any]
    extra: dict[str, Any]

    @property
    def args(self) -> list[Any]:
        args: list[Any] = self.extra.get("args", [])
        return args[:-1] if self.extra.get("with_kwargs") else args

    @property
    def kwargs(self) -> dict[str, Any]:
        return self.extra["args"][-1] if self.extra.get("with_kwargs") else {}

    async def answer(self, name: str, value: Any) -> None:
        """Send the result (*name* is "resolve") or the error ("reject")."""
        method = self.extra["promise"][name]["_rmethod"]
        header = {"type": "method", "to": self.main["from"], "method": method, "parent": self.main["session"]}
        await self.peer.send(header, {"args": [value]})

    async def heartbeat(self) -> Any:
        """Tell the caller that the call goes on, as Python clients do. Raises :class:`Rejected` when it is over."""
        method = self.extra["promise"]["heartbeat"]["_rmethod"]
        return await self.peer.call(self.main["from"], method, parent=self.main["session"])


Function = Callable[[Call], Awaitable[Any]]


@dataclass
class Peer:
    """A client of imjoy-rpc 0.5, as far as the server can tell."""

    socket: WebSocket
    client_id: str
    nursery: trio.Nursery
    workspace: str = ""
    functions: dict[str, Function] = field(default_factory=dict)
    #: Messages that nothing here takes: events, answers to calls that nobody knows.
    others: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    pings: int = 0
    closed: Closed | None = None
    ended: trio.Event = field(default_factory=trio.Event)
    _reading: trio.CancelScope = field(default_factory=trio.CancelScope)
    _arrived: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    _stopped: trio.Event = field(default_factory=trio.Event)
    _pending: dict[str, tuple[trio.Event, list[Any]]] = field(default_factory=dict)
    _sessions: Any = field(default_factory=lambda: (f"s{number}" for number in itertools.count(1)))

    @property
    def name(self) -> str:
        return f"{self.workspace}/{self.client_id}"

    async def send(self, main: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> None:
        await self.socket.send_bytes(encode({"from": self.client_id, **main}, extra))

    async def pump(self) -> None:
        """Take what comes until the connection ends."""
        with self._reading:
            while not self.ended.is_set():
                item = await self.socket.receive()
                if isinstance(item, Closed):
                    self.closed = item
                    self.ended.set()
                elif isinstance(item, Ping):
                    self.pings += 1
                elif isinstance(item, bytes):
                    self._take(*decode(item))
        self._stopped.set()

    async def stop_reading(self) -> None:
        """Take nothing any more; the connection stays open."""
        self._reading.cancel()
        await self._stopped.wait()

    def _take(self, main: dict[str, Any], extra: dict[str, Any]) -> None:
        session, _, name = str(main.get("method", "")).rpartition(".")
        if name in {"resolve", "reject"} and session in self._pending:
            settled, outcome = self._pending[session]
            outcome += [name, extra["args"][0]]
            settled.set()
        elif "session" in main and main["method"] in self.functions:
            self.nursery.start_soon(self._run, Call(self, main, extra))
        else:
            self.others.append((main, extra))
            self._arrived.unpark_all()

    async def received(self, count: int) -> None:
        """Wait for *count* messages in :attr:`others`."""
        while len(self.others) < count:
            await self._arrived.park()

    async def _run(self, call: Call) -> None:
        try:
            value = await self.functions[call.main["method"]](call)
        except Rejected as exc:
            await call.answer("reject", {"_rtype": "error", "_rvalue": str(exc)})
        else:
            await call.answer("resolve", value)

    def begin(self, to: str, method: str, *args: Any, parent: str | None = None, **kwargs: Any) -> tuple[str, bytes]:
        """A call that is not sent yet: its session and its message."""
        session = next(self._sessions)
        self._pending[session] = (trio.Event(), [])

        def callback(name: str) -> dict[str, Any]:
            return {"_rtype": "method", "_rtarget": self.client_id, "_rmethod": f"{session}.{name}", "_rpromise": False}

        promise = {"heartbeat": callback("beat"), "interval": 5.0}
        promise |= {"resolve": callback("resolve"), "reject": callback("reject")}
        extra: dict[str, Any] = {"args": [*args, kwargs] if kwargs else list(args), "promise": promise}
        if kwargs:
            extra["with_kwargs"] = True
        main = {"type": "method", "from": self.client_id, "to": to, "method": method, "session": session}
        if parent is not None:
            main["parent"] = parent
        return session, encode(main, extra)

    async def outcome(self, session: str) -> Any:
        """Wait for the answer of a call that was begun. Raises :class:`Rejected`."""
        settled, outcome = self._pending[session]
        await settled.wait()
        del self._pending[session]
        name, value = outcome
        if name == "reject":
            raise Rejected(value["_rvalue"])
        return value

    async def call(self, to: str, method: str, *args: Any, parent: str | None = None, **kwargs: Any) -> Any:
        session, message = self.begin(to, method, *args, parent=parent, **kwargs)
        await self.socket.send_bytes(message)
        return await self.outcome(session)

    async def manager(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call the workspace manager."""
        return await self.call("workspace-manager", f"services.default.{name}", *args, **kwargs)

    async def provide(
        self, service_id: str, functions: Mapping[str, Function], visibility: str = "public", **values: Any
    ) -> None:
        """Offer a service. *values* are further entries of the service object."""
        config = {"visibility": visibility, "require_context": False}
        service: dict[str, Any] = {"id": service_id, "name": service_id, "type": "generic", "config": config, **values}
        for name, function in functions.items():
            path = f"services.{service_id}.{name}"
            self.functions[path] = function
            *groups, last = name.split(".")
            place = service
            for group in groups:
                place = place.setdefault(group, {})
            place[last] = {"_rtype": "method", "_rtarget": self.client_id, "_rmethod": path, "_rpromise": True}

        async def get_service(call: Call) -> Any:
            if call.args != [service_id]:
                raise Rejected(f"KeyError: {call.args}")
            return service

        self.functions["services.built-in.get_service"] = get_service
        entry = {"id": f"{self.client_id}:{service_id}", "name": service_id, "config": service["config"]}
        entry["type"] = service["type"]
        await self.manager("update_client_info", {"id": self.client_id, "services": [entry]})

    def accept_parts(self) -> None:
        """Take messages in parts (``protocol.md`` 2.7)."""
        parts: dict[str, bytes] = {}

        async def create(call: Call) -> None:
            parts[call.args[0]] = b""

        async def append(call: Call) -> None:
            parts[call.args[0]] += call.args[1]

        async def process(call: Call) -> None:
            main, extra = decode(parts.pop(call.args[0]))
            self._take({**main, "from": call.main["from"], "to": call.main["to"]}, extra)

        for name, function in (("create", create), ("append", append), ("process", process)):
            self.functions[f"services.built-in.message_cache.{name}"] = function

    async def leave(self, code: int = 1000) -> None:
        """Say goodbye and wait for the end."""
        await self.socket.send(CloseConnection(code))
        await self.ended.wait()
        await trio.aclose_forcefully(self.socket.stream)


async def join(
    stack: Stack, client_id: str = "a", query: str = "", stream: trio.abc.Stream | None = None, prefix: str = ""
) -> Peer:
    """Connect a peer; its workspace is known afterwards. *query* begins with ``&`` unless it is empty."""
    peer = await attach(stack, client_id, query, stream, prefix)
    info = await peer.manager("get_connection_info")
    peer.workspace = info["workspace"]
    return peer


async def attach(
    stack: Stack, client_id: str, query: str = "", stream: trio.abc.Stream | None = None, prefix: str = ""
) -> Peer:
    """Connect a peer that has said nothing yet."""
    socket = await upgrade(stream or await stack.open(), f"{prefix}/ws?client_id={client_id}{query}")
    peer = Peer(socket, client_id, stack.clients)
    stack.clients.start_soon(peer.pump)
    return peer
