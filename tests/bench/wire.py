"""What travels between the benchmark and a server: frames made by hand, and a blocking client to set a cell up with.

Of ``protocol.md`` 1.2, 2 and 4: the two kinds of handshake, calls and results. Frames that differ only in the id of
their call are made from one template.
"""

from __future__ import annotations

import itertools
import json
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Any

import msgpack

#: Bytes of a session id: frames of one kind have one length.
SESSION = 8
#: Seconds in which everything is answered.
PATIENCE = 20.0

_MARK = "@" * SESSION
_NUMBERS = itertools.count(1)
_BINARY, _TEXT, _CLOSE = 0x82, 0x81, 0x88
_SERVICE = {"type": "generic", "name": "bench"}

#: The close frame of a client that leaves for good.
GOODBYE = bytes((_CLOSE, 0x82)) + bytes(4) + (1000).to_bytes(2, "big")

Map = dict[str, Any]
#: One side of a conversation: yields what to send, and is sent each message that came. It may have nothing to say.
Talk = Generator[bytes, bytes, None]


class WrongAnswer(AssertionError):
    """A server sent something else than it should. The figures would mean nothing."""


def next_session() -> bytes:
    """The id of a call, new each time."""
    return b"%08x" % next(_NUMBERS)


class Template:
    """A message whose session id is filled in: *head* is made for each, *tail* is shared."""

    def __init__(self, prefix: bytes, message: bytes) -> None:
        *parts, self.tail = message.split(_MARK.encode())
        self._parts = [prefix + parts[0], *parts[1:], b""]

    def head(self, session: bytes) -> bytes:
        """Everything up to the shared rest."""
        return session.join(self._parts)


def call_message(sender: str, to: str, method: str, args: list[Any], session: str = _MARK) -> bytes:
    """A call as the published clients make it, with heartbeats asked for and the arguments last."""
    header = {"type": "method", "from": sender, "to": to, "method": method, "session": session}
    promise: Map = {name: _method(sender, f"{session}.{name}") for name in ("heartbeat", "resolve", "reject")}
    return _pack(header) + _pack({"promise": {**promise, "interval": 15.0}, "args": args})


def result_message(to: str, value: Any, session: str = _MARK) -> bytes:
    """The answer to a call."""
    return _pack({"type": "method", "from": "bench", "to": to, "method": f"{session}.resolve"}) + _pack(
        {"args": [value]}
    )


def _method(target: str, name: str) -> Map:
    return {"_rtype": "method", "_rtarget": target, "_rmethod": name, "_rpromise": False}


def decode(message: bytes) -> Map:
    """Header and body merged."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(message) + 1)
    unpacker.feed(message)
    merged: Map = {}
    for value in unpacker:
        merged.update(value)
    return merged


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def masked_head(first: int, size: int) -> bytes:
    """The head of a client's frame, masked with zeros: the server's work is the same, and ours is done once."""
    if size < 126:
        return bytes((first, 0x80 | size)) + bytes(4)
    if size < 65536:
        return struct.pack(">BBH", first, 0xFE, size) + bytes(4)
    return struct.pack(">BBQ", first, 0xFF, size) + bytes(4)


def first_message(data: bytes) -> tuple[bytes | None, bytes]:
    """The first whole message in *data*, which a server has sent, if there is one, and the rest."""
    if len(data) < 4:
        return None, data
    if data[0] not in (_BINARY, _TEXT):
        raise WrongAnswer(f"a message was expected, not {data[:200]!r}")
    start = {126: 4, 127: 10}.get(data[1], 2)
    stop = start + (int.from_bytes(data[2:start], "big") if start > 2 else data[1])
    return (data[start:stop], data[stop:]) if len(data) >= stop else (None, data)


def upgrade_request(port: int, **query: str) -> bytes:
    """The beginning of a websocket."""
    lines = (
        f"GET /ws?{'&'.join(f'{key}={value}' for key, value in query.items())} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: YmVuY2gtYmVuY2gtYmVuYw==",
    )
    return "\r\n".join((*lines, "", "")).encode()


class Wire(ABC):
    """A connection on which one message after the other is sent and awaited, until :mod:`tests.bench.load` takes it."""

    #: Who answers for the server.
    manager = "workspace-manager"

    def __init__(self, port: int, name: str, **credentials: str) -> None:
        self.port, self.name = port, name
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def address(self, name: str) -> str:
        """How the client *name* is called in a message."""
        return name

    @abstractmethod
    def prefix(self, to: str, size: int) -> bytes:
        """What precedes a message of *size* bytes for *to*."""

    @abstractmethod
    def receive_prefix(self) -> tuple[bytes, int]:
        """What precedes the next message, and the size of that."""

    def template(self, to: str, message: bytes) -> Template:
        """*message* for *to*, to be sent many times."""
        return Template(self.prefix(to, len(message)), message)

    def send(self, to: str, message: bytes) -> None:
        self.socket.sendall(self.prefix(to, len(message)) + message)

    def receive(self) -> tuple[bytes, bytes]:
        """The prefix of the next message, and the message."""
        prefix, size = self.receive_prefix()
        return prefix, self._exactly(size)

    def attach(self) -> None:
        """Wait until the server knows this client: it delivers a message that the client has sent to itself."""
        address = self.address(self.name)
        self.send(address, result_message(address, "here"))
        expect_here(self.receive()[1])

    def call(self, method: str, *args: Any) -> Any:
        """Call a function of the server."""
        session = next_session().decode()
        message = call_message(self.address(self.name), self.manager, method, list(args), session)
        self.send(self.manager, message)
        while not (answer := answer_to(session, self.receive()[1])):
            pass
        return answer["args"][0]

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = self.socket.recv(min(size, 2**20))
            if not part:
                raise WrongAnswer("the server has closed the connection")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class WebsocketWire(Wire):
    """A websocket whose handshake is in the query."""

    def __init__(self, port: int, name: str, **credentials: str) -> None:
        super().__init__(port, name)
        self._upgrade(client_id=name, **credentials)

    def _upgrade(self, **query: str) -> None:
        self.socket.sendall(upgrade_request(self.port, **query))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._exactly(1)
        if not head.startswith(b"HTTP/1.1 101 "):
            raise WrongAnswer(f"the handshake was answered with {head!r}")

    def prefix(self, to: str, size: int) -> bytes:
        return masked_head(_BINARY, size)

    def receive_prefix(self) -> tuple[bytes, int]:
        first = self._exactly(2)
        if first[0] not in (_BINARY, _TEXT):
            raise WrongAnswer(f"a message was expected, not {first!r}")
        if first[1] < 126:
            return first, first[1]
        length = self._exactly(2 if first[1] == 126 else 8)
        return first + length, int.from_bytes(length, "big")

    def visit(self, name: str, register: bool, **credentials: str) -> Talk:
        yield upgrade_request(self.port, client_id=name, **credentials)
        expect_here((yield framed(result_message(name, "here"))))
        if register:
            info = {"id": name, "services": [{**_SERVICE, "id": f"{name}:bench", "config": {"visibility": "public"}}]}
            yield from asking(name, self.manager, "services.default.update_client_info", info)


class ModernWire(WebsocketWire):
    """A websocket whose handshake is its first message. Names are those of a workspace."""

    def __init__(self, port: int, name: str, **credentials: str) -> None:
        Wire.__init__(self, port, name)
        self._upgrade()
        self.socket.sendall(_introduction(name, **credentials))
        info = _connection_info(self.receive()[1])
        self.workspace: str = info["workspace"]
        self.manager = f"*/{info['manager_id']}"

    def address(self, name: str) -> str:
        return f"{self.workspace}/{name}"

    def visit(self, name: str, register: bool, **credentials: str) -> Talk:
        yield upgrade_request(self.port)
        _connection_info((yield _introduction(name, **credentials)))
        address = self.address(name)
        expect_here((yield framed(result_message(address, "here"))))
        if register:
            config = {"visibility": "public", "require_context": False, "workspace": self.workspace}
            entry = {**_SERVICE, "id": f"{address}:bench", "description": "", "config": config, "service_schema": {}}
            yield from asking(address, self.manager, "services.default.register_service", entry)


def framed(message: bytes, first: int = _BINARY) -> bytes:
    """*message* in a client's frame."""
    return masked_head(first, len(message)) + message


def asking(sender: str, to: str, method: str, *args: Any) -> Talk:
    """A call and the wait for its answer, as a part of a conversation."""
    session = next_session().decode()
    message = yield framed(call_message(sender, to, method, list(args), session))
    while not answer_to(session, message):
        message = yield b""


def answer_to(session: str, message: bytes) -> Map | None:
    """The answer to a call, none when *message* is only a heartbeat of it. Raises :class:`WrongAnswer` for others."""
    answer = decode(message)
    if answer["method"] == f"{session}.heartbeat":
        return None
    if answer["method"] != f"{session}.resolve":
        raise WrongAnswer(f"a call was answered with {answer}")
    return answer


def expect_here(message: bytes) -> None:
    """*message* is the one that a client sends to itself, or :class:`WrongAnswer` is raised."""
    if (found := decode(message))["args"] != ["here"]:
        raise WrongAnswer(f"a client that wrote to itself got {found}")


def _introduction(name: str, **credentials: str) -> bytes:
    first = {"client_id": name, "workspace": None, "token": None, "reconnection_token": None, **credentials}
    return framed(json.dumps(first).encode(), _TEXT)


def _connection_info(message: bytes) -> Map:
    info: Map = json.loads(message)
    if info["type"] != "connection_info":
        raise WrongAnswer(f"the introduction was answered with {info}")
    return info


class TcpWire(Wire):
    """:mod:`tests.bench.relays.tcp`: the length, and towards the relay the eight bytes of the target's name."""

    def __init__(self, port: int, name: str, **credentials: str) -> None:
        super().__init__(port, name)
        self.send(name, b"")
        if self.receive()[1] != name.encode():
            raise WrongAnswer("the relay does not know its client")

    def prefix(self, to: str, size: int) -> bytes:
        return struct.pack(">I8s", 8 + size, to.encode())

    def receive_prefix(self) -> tuple[bytes, int]:
        prefix = self._exactly(4)
        return prefix, int.from_bytes(prefix, "big")
