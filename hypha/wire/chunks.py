"""Messages in parts (``protocol.md`` 2.7): the store of a receiver, and the look that a router takes in passing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hypha.errors import InvalidArgument, LimitExceeded, NotFound, PermissionDenied, ProtocolViolation, TooLarge
from hypha.wire.body import BodyScan
from hypha.wire.calls import parse_call, unpack_body
from hypha.wire.frame import Buffer, Frame, HeaderBounds, packer, parse_frame

#: The longest key in characters. Session ids serve as keys and are far shorter.
MAX_KEY = 1024
_PART_ROOM = 128  # bytes

#: Method prefix of the chunk functions in every peer's built-in service.
CACHE_PREFIX = "services.built-in.message_cache."

#: Parts that may wait for the ones before them, and their bytes; modern clients have 30 of 256 KiB on their way.
_MAX_EARLY, _MAX_EARLY_BYTES = 64, 16 * 1024 * 1024

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
    key = given.get("key")
    if not isinstance(key, str) or len(key) > MAX_KEY:
        raise ProtocolViolation(f"message_cache.{operation} needs a key of at most {MAX_KEY} characters")
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
class _Passing:
    """A message of which parts have passed: its header, and how far its body was followed."""

    head: Frame | None = None
    body: BodyScan = field(default_factory=BodyScan)
    #: How the parts come, by "append" or by "set"; empty before the first.
    operation: str = ""
    next_index: int = 0
    #: Parts that came before their turn.
    early: dict[int, bytes] = field(default_factory=dict)

    def take(self, operation: str, given: dict[str, Any], bounds: HeaderBounds) -> bool:
        """Take one part. Returns whether the header is known from now on. Raises :class:`ProtocolViolation`."""
        index = given["index"] if operation == "set" else self.next_index
        if self.operation not in {"", operation}:
            raise ProtocolViolation("the parts of a message come by append or by set, not by both")
        if index < self.next_index or index in self.early:
            raise ProtocolViolation(f"part {index} came before")
        self.operation = operation
        self.early[index] = given["data"]
        if len(self.early) > _MAX_EARLY or sum(map(len, self.early.values())) > _MAX_EARLY_BYTES + len(given["data"]):
            raise ProtocolViolation("too many parts came before their turn")
        unknown = self.head is None
        while self.next_index in self.early:
            self._follow(self.early.pop(self.next_index), bounds)
            self.next_index += 1
        return unknown and self.head is not None

    def _follow(self, data: bytes, bounds: HeaderBounds) -> None:
        if self.head is not None:
            self.body.feed(data)
            return
        self.head = parse_frame(data, bounds)
        if self.head.method is not None and self.head.method.startswith(CACHE_PREFIX):
            raise ProtocolViolation("a message in parts cannot itself be a part")
        self.body.feed(self.head.body)
        self.head.body = b""  # the header is remembered, the part is not

    def whole(self) -> Frame:
        """The header of a message whose last part has passed. Raises :class:`ProtocolViolation`."""
        if self.head is None or self.early or not self.body.complete:
            raise ProtocolViolation("the message is not complete")
        return self.head


@dataclass(slots=True)
class ChunkPeek:
    """What the router knows of the messages in parts from one sender to one target.

    Without it a forged call hidden in parts would walk around every check, and a large call would not be known to be
    in flight (``decisions.md`` 14). What is known here must be what the receiver has: a message of which one part is
    refused is forgotten, and nothing of it passes any more. At most *limit* messages are remembered, those that moved
    last: clients that give up never say so. Dies with either end.
    """

    bounds: HeaderBounds
    limit: int
    messages: dict[str, _Passing] = field(default_factory=dict)

    def pass_through(self, operation: str, frame: Frame, permits: Callable[[Frame], bool]) -> Frame | None:
        """Look at one chunk call. Returns the inner message at ``process``, None for the other operations.

        *permits* says whether an inner message may pass; it is asked as soon as its header is known, and again when
        it is complete. Raises :class:`PermissionDenied` when it may not, :class:`ProtocolViolation` for what no client
        sends.
        """
        given = parse_chunk_call(operation, frame)
        key = given["key"]
        message = self.messages.pop(key, None)
        if operation == "create":
            self._remember(key, _Passing())
            return None
        if message is None:
            raise ProtocolViolation(f"no beginning of message {key[:64]!r} was seen")
        if operation == "remove":
            return None
        if operation == "process":
            return _permitted(message.whole(), permits)
        if message.take(operation, given, self.bounds) and message.head is not None:
            _permitted(message.head, permits)
        self._remember(key, message)
        return None

    def _remember(self, key: str, message: _Passing) -> None:
        self.messages[key] = message
        if len(self.messages) > self.limit:
            del self.messages[next(iter(self.messages))]


def _permitted(message: Frame, permits: Callable[[Frame], bool]) -> Frame:
    if not permits(message):
        raise PermissionDenied("the message in parts may not pass")
    return message


@dataclass(slots=True)
class ChunkStore:
    """A receiver's cache of messages that arrive in parts from one sender.

    At most *limit* bytes and *count* messages. A part is charged for the room that it takes beside its bytes, so that
    empty ones are not free.
    """

    limit: int
    count: int
    messages: dict[str, dict[int, bytes]] = field(default_factory=dict)
    size: int = 0

    def create(self, key: str, *, overwrite: bool = False) -> None:
        """Begin a message.

        Raises :class:`InvalidArgument` for a key in use unless *overwrite*, and :class:`LimitExceeded`.
        """
        if len(key) > MAX_KEY:
            raise InvalidArgument(f"the key of a message in parts is longer than {MAX_KEY} characters")
        if key in self.messages:
            if not overwrite:
                raise InvalidArgument(f"Message with the same key ({key[:64]}) already exists")
            self.remove(key)
        if len(self.messages) >= self.count:
            raise LimitExceeded(f"chunked_messages_per_peer = {self.count} messages are open; finish or remove one")
        self.messages[key] = {}

    def append(self, key: str, data: bytes) -> None:
        """Add the next part."""
        self.set(key, len(self._parts(key)), data)

    def set(self, key: str, index: int, data: bytes) -> None:
        """Put part *index*. Raises :class:`TooLarge` when the sender's parts would exceed the limit."""
        parts = self._parts(key)
        before = parts.get(index)
        size = self.size + _charge(data) - (0 if before is None else _charge(before))
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
        self.size -= sum(map(_charge, parts.values()))

    def _parts(self, key: str) -> dict[int, bytes]:
        try:
            return self.messages[key]
        except KeyError:
            raise NotFound(f"Message with key {key[:64]} does not exists.") from None


def _charge(part: bytes) -> int:
    return len(part) + _PART_ROOM
