"""What travels between the benchmark and a server: frames made by hand, and a blocking client to set a cell up with.

Of ``protocol.md`` 1.2, 2 and 4: the handshake in the query, calls and results. Frames that differ only in the id of
their call are made from one template.
"""

from __future__ import annotations

import itertools
import socket
import struct
from typing import Any

import msgpack

#: Bytes of a session id: frames of one kind have one length.
SESSION = 8
#: Seconds in which everything is answered.
PATIENCE = 20.0

_MARK = "@" * SESSION
_NUMBERS = itertools.count(1)
_MANAGER = "workspace-manager"

Map = dict[str, Any]


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


def call_message(to: str, method: str, args: list[Any], session: str = _MARK) -> bytes:
    """A call as the published clients make it, with heartbeats asked for and the arguments last."""
    header = {"type": "method", "from": "bench", "to": to, "method": method, "session": session}
    promise: Map = {name: _method(f"{session}.{name}") for name in ("heartbeat", "resolve", "reject")}
    return _pack(header) + _pack({"promise": {**promise, "interval": 15.0}, "args": args})


def result_message(to: str, value: Any, session: str = _MARK) -> bytes:
    """The answer to a call."""
    return _pack({"type": "method", "from": "bench", "to": to, "method": f"{session}.resolve"}) + _pack(
        {"args": [value]}
    )


def _method(name: str) -> Map:
    return {"_rtype": "method", "_rtarget": "bench", "_rmethod": name, "_rpromise": False}


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


class Wire:
    """A connection on which one message after the other is sent and awaited, until :mod:`tests.bench.load` takes it."""

    def __init__(self, port: int, name: str) -> None:
        self.name = name
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def prefix(self, to: str, size: int) -> bytes:
        """What precedes a message of *size* bytes for *to*."""
        raise NotImplementedError

    def receive_prefix(self) -> tuple[bytes, int]:
        """What precedes the next message, and the size of that."""
        raise NotImplementedError

    def template(self, to: str, message: bytes) -> Template:
        """*message* for *to*, to be sent many times."""
        return Template(self.prefix(to, len(message)), message)

    def send(self, to: str, message: bytes) -> None:
        self.socket.sendall(self.prefix(to, len(message)) + message)

    def receive(self) -> tuple[bytes, bytes]:
        """The prefix of the next message, and the message."""
        prefix, size = self.receive_prefix()
        return prefix, self._exactly(size)

    def call(self, method: str, *args: Any) -> Any:
        """Call a function of the server."""
        session = next_session().decode()
        self.send(_MANAGER, call_message(_MANAGER, method, list(args), session))
        answer = decode(self.receive()[1])
        if answer["method"] != f"{session}.resolve":
            raise WrongAnswer(f"{method}: {answer}")
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
    """Masked with zeros: the server's work is the same, and ours is done once."""

    def __init__(self, port: int, name: str, **credentials: str) -> None:
        super().__init__(port, name)
        query = "&".join(f"{key}={value}" for key, value in {"client_id": name, **credentials}.items())
        lines = (
            f"GET /ws?{query} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: YmVuY2gtYmVuY2gtYmVuYw==",
        )
        self.socket.sendall("\r\n".join((*lines, "", "")).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._exactly(1)
        if not head.startswith(b"HTTP/1.1 101 "):
            raise WrongAnswer(f"the handshake was answered with {head!r}")

    def prefix(self, to: str, size: int) -> bytes:
        if size < 126:
            return bytes((0x82, 0x80 | size)) + bytes(4)
        if size < 65536:
            return struct.pack(">BBH", 0x82, 0xFE, size) + bytes(4)
        return struct.pack(">BBQ", 0x82, 0xFF, size) + bytes(4)

    def receive_prefix(self) -> tuple[bytes, int]:
        first = self._exactly(2)
        if first[0] != 0x82:
            raise WrongAnswer(f"a binary message was expected, not {first!r}")
        if first[1] < 126:
            return first, first[1]
        length = self._exactly(2 if first[1] == 126 else 8)
        return first + length, int.from_bytes(length, "big")


class TcpWire(Wire):
    """:mod:`tests.bench.relays.tcp`: the length, and towards the relay the eight bytes of the target's name."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(port, name)
        self.send(name, b"")
        if self.receive()[1] != name.encode():
            raise WrongAnswer("the relay does not know its client")

    def prefix(self, to: str, size: int) -> bytes:
        return struct.pack(">I8s", 8 + size, to.encode())

    def receive_prefix(self) -> tuple[bytes, int]:
        prefix = self._exactly(4)
        return prefix, int.from_bytes(prefix, "big")
