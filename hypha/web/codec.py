"""Websocket framing (RFC 6455) for one connection: bytes in, messages out. No I/O.

Incoming frames are parsed and validated by wsproto. Outgoing binary messages need no more than a head in front of
bytes that are not touched again, which is written here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import LocalProtocolError

_MAX_REASON = 123  # bytes of a close reason (RFC 6455 section 5.5)


@dataclass(frozen=True, slots=True)
class Closed:
    """The conversation is over.

    *by_peer*: the peer said goodbye with *code*, and *reply* is what it is owed. Otherwise it broke the websocket
    protocol, and *code* and *reason* are for :meth:`Codec.close`.
    """

    code: int
    reason: str
    by_peer: bool
    reply: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """Bytes that the peer is owed at once: a pong."""

    data: bytes


Incoming = bytes | str | Reply | Closed


def message_head(size: int) -> bytes:
    """The head of an unfragmented, unmasked binary message of *size* bytes."""
    if size < 126:
        return bytes((0x82, size))
    if size < 65536:
        return struct.pack(">BBH", 0x82, 126, size)
    return struct.pack(">BBQ", 0x82, 127, size)


class Codec:
    """The server's side of one websocket. *limit*: the largest message in bytes that is taken."""

    def __init__(self, limit: int) -> None:
        self._connection = Connection(ConnectionType.SERVER)
        self._limit = limit
        self._parts: list[bytes | bytearray | str] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[Incoming]:
        """The messages that *data* completes, in order. After :class:`Closed` nothing more comes."""
        self._connection.receive_data(data)
        for event in self._connection.events():
            if isinstance(event, BytesMessage | TextMessage):
                self._parts.append(event.data)
                self._size += len(event.data)
                if self._size > self._limit:
                    yield Closed(1009, f"a message is larger than frame_bytes = {self._limit}", by_peer=False)
                    return
                if event.message_finished:
                    yield self._whole()
            elif isinstance(event, Ping):
                yield Reply(self._connection.send(event.response()))
            elif isinstance(event, CloseConnection):
                yield self._closed(event)
                return

    def _whole(self) -> bytes | str:
        parts, self._parts, self._size = self._parts, [], 0
        if isinstance(parts[0], str):
            return "".join(part for part in parts if isinstance(part, str))
        return bytes(parts[0]) if len(parts) == 1 else b"".join(part for part in parts if not isinstance(part, str))

    def _closed(self, event: CloseConnection) -> Closed:
        by_peer = self._connection.state is ConnectionState.REMOTE_CLOSING
        reply = self._connection.send(event.response()) if by_peer else b""
        return Closed(event.code, event.reason or "", by_peer, reply)

    def ping(self) -> bytes:
        """A ping frame; empty once the closing has begun."""
        return self._connection.send(Ping()) if self._connection.state is ConnectionState.OPEN else b""

    def text(self, message: str) -> bytes:
        """A text message, for modern clients only: the legacy ones break on text (``protocol.md`` 1.2)."""
        return self._connection.send(TextMessage(message))

    def close(self, code: int, reason: str) -> bytes:
        """A close frame; empty when one was sent already. A long *reason* is cut."""
        text = reason.encode()[:_MAX_REASON].decode(errors="ignore")
        try:
            return self._connection.send(CloseConnection(code, text))
        except LocalProtocolError:
            return b""
