"""Messages in parts (``protocol.md`` 2.7): the store of a receiver, and the look that a router takes in passing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hypha.errors import InvalidArgument, LimitExceeded, NotFound, ProtocolViolation, TooLarge
from hypha.wire.calls import parse_call, unpack_body
from hypha.wire.frame import Buffer, Frame, HeaderBounds, packer, parse_frame

#: Method prefix of the chunk functions in every peer's built-in service.
CACHE_PREFIX = "services.built-in.message_cache."

_SIGNATURES: dict[str, tuple[str, ...]] = {
    "create": ("key", "heartbeat", "overwrite"),
    "append": ("key", "data", "heartbeat"),
    "set": ("key", "index", "data", "heartbeat"),
    "process": ("key", "heartbeat"),
    "remove": ("key",),
}


def slices(package: bytes, size: int) -> Iterator[bytes]:
    """Cut *package* into parts of *size* bytes."""
    for start in range(0, len(package), size):
        yield package[start : start + size]


def parse_chunk_call(operation: str, frame: Frame) -> dict[str, Any]:
    """The arguments of a chunk call by name, whether they came by position or by keyword.

    Raises :class:`ProtocolViolation` for an operation, a key or data that no client sends.
    """
    names = _SIGNATURES.get(operation)
    if names is None:
        raise ProtocolViolation(f"message_cache has no function {operation!r}")
    body = parse_call(frame.body, frame.session)
    given = dict(zip(names, body.args, strict=False))
    if given.keys() & body.kwargs.keys():
        # A JavaScript receiver would take the positional value, a Python one neither.
        raise ProtocolViolation(f"message_cache.{operation} got an argument twice")
    given.update(body.kwargs)
    if not isinstance(given.get("key"), str):
        raise ProtocolViolation(f"message_cache.{operation} needs a key")
    if operation in {"append", "set"} and not isinstance(given.get("data"), bytes):
        raise ProtocolViolation(f"message_cache.{operation} needs bytes")
    if operation == "set" and type(given.get("index")) is not int:
        raise ProtocolViolation("message_cache.set needs an index")
    return given


def by_position(operation: str, frame: Frame) -> Buffer:
    """The body of the chunk call *frame* with its keyword arguments in their places.

    imjoy-rpc 0.5.6 gives ``heartbeat`` by keyword. A JavaScript receiver would take the map of keywords for a true
    ``heartbeat`` and refuse the message (``protocol.md`` 11.9). Raises as :func:`parse_chunk_call` does.
    """
    extra = unpack_body(frame.body)
    if not extra.pop("with_kwargs", False):
        return frame.body
    given = parse_chunk_call(operation, frame)
    names = _SIGNATURES[operation]
    count = 1 + max(index for index, name in enumerate(names) if name in given)
    extra["args"] = [given.get(name, False) for name in names[:count]]
    body: bytes = packer.pack(extra)
    return body


@dataclass(slots=True)
class ChunkPeek:
    """What the router knows of the chunked messages from one sender to one target: their inner headers.

    Without it a forged call hidden in parts would walk around every check, and a large call would not be known to be
    in flight (``decisions.md`` 14). Dies with either end.
    """

    bounds: HeaderBounds
    limit: int
    heads: dict[str, Frame | None] = field(default_factory=dict)

    def pass_through(self, operation: str, frame: Frame) -> Frame | None:
        """Look at one chunk call. Returns the inner message at ``process``, None for the other operations.

        Raises :class:`ProtocolViolation` for what must not pass, :class:`LimitExceeded` for one message too many.
        """
        if operation == "append" and None not in self.heads.values():
            return None  # no message waits for its first slice: nothing to learn, and the body is large
        given = parse_chunk_call(operation, frame)
        key = given["key"]
        if operation == "create":
            self._create(key)
        elif operation == "append" and key in self.heads and self.heads[key] is None:
            self.heads[key] = self._inner(given["data"])
        elif operation == "set" and given["index"] == 0:
            self._require_room(key)
            self.heads[key] = self._inner(given["data"])
        elif operation == "remove":
            self.heads.pop(key, None)
        elif operation == "process":
            head = self.heads.pop(key, None)
            if head is None:
                raise ProtocolViolation(f"no beginning of message {key[:64]!r} was seen")
            return head
        return None

    def _create(self, key: str) -> None:
        self._require_room(key)
        self.heads[key] = None

    def _require_room(self, key: str) -> None:
        if key not in self.heads and len(self.heads) >= self.limit:
            raise LimitExceeded(f"chunked_messages_per_peer = {self.limit} messages are already being sent in parts")

    def _inner(self, data: bytes) -> Frame:
        inner = parse_frame(data, self.bounds)
        inner.body = b""  # the head is remembered, the slice is not
        if inner.method is not None and inner.method.startswith(CACHE_PREFIX):
            raise ProtocolViolation("a message in parts cannot itself be a part")
        return inner


@dataclass(slots=True)
class ChunkStore:
    """A receiver's cache of messages that arrive in parts from one sender; at most *limit* bytes in all."""

    limit: int
    messages: dict[str, dict[int, bytes]] = field(default_factory=dict)
    size: int = 0

    def create(self, key: str, *, overwrite: bool = False) -> None:
        """Begin a message. Raises :class:`InvalidArgument` for a key in use unless *overwrite*."""
        if key in self.messages:
            if not overwrite:
                raise InvalidArgument(f"Message with the same key ({key[:64]}) already exists")
            self.remove(key)
        self.messages[key] = {}

    def append(self, key: str, data: bytes) -> None:
        """Add the next part."""
        self.set(key, len(self._parts(key)), data)

    def set(self, key: str, index: int, data: bytes) -> None:
        """Put part *index*. Raises :class:`TooLarge` when the sender's parts would exceed the limit."""
        parts = self._parts(key)
        size = self.size + len(data) - len(parts.get(index, b""))
        if size > self.limit:
            self.remove(key)
            raise TooLarge(f"message in parts is larger than chunked_bytes_per_peer = {self.limit} bytes")
        parts[index] = data
        self.size = size

    def take(self, key: str) -> bytes:
        """Remove a message and return its bytes. Raises :class:`InvalidArgument` when a part is missing."""
        parts = self._parts(key)
        self.remove(key)
        try:
            return b"".join(parts[index] for index in range(len(parts)))
        except KeyError:
            raise InvalidArgument(f"message {key[:64]!r} has a missing part") from None

    def remove(self, key: str) -> None:
        """Drop a message. Raises :class:`NotFound` when there is none."""
        parts = self._parts(key)
        del self.messages[key]
        self.size -= sum(map(len, parts.values()))

    def _parts(self, key: str) -> dict[int, bytes]:
        try:
            return self.messages[key]
        except KeyError:
            raise NotFound(f"Message with key {key[:64]} does not exists.") from None
