"""Messages in parts (``protocol.md`` 2.7): the store of a receiver, and the look that a router takes in passing."""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hypha.errors import InvalidArgument, LimitExceeded, NotFound, PermissionDenied, ProtocolViolation, TooLarge
from hypha.wire.body import BodyScan
from hypha.wire.calls import encode_value
from hypha.wire.frame import Buffer, Frame, FrameReader, packer

#: Method prefix of the chunk functions in every peer's built-in service.
CACHE_PREFIX = "services.built-in.message_cache."
#: The longest key in characters. Session ids serve as keys and are far shorter.
MAX_KEY = 1024
_PART_ROOM = 128  # bytes that a stored part is charged beside its own

#: What clients write into a chunk call.
_HEADER = frozenset({"to", "type", "method", "session"})
_BODY = frozenset({"args", "with_kwargs", "promise", "t"})
_PROMISE = frozenset({"resolve", "reject", "heartbeat", "interval"})

#: Parts that may wait for the ones before them, and their bytes; modern clients have 30 of 256 KiB on their way.
_MAX_EARLY, _MAX_EARLY_BYTES = 64, 16 * 1024 * 1024
#: The same for all messages of one sender together.
EARLY_BYTES = 2 * _MAX_EARLY_BYTES

_SIGNATURES: dict[str, tuple[str, ...]] = {
    "create": ("key", "heartbeat", "overwrite"),
    "append": ("key", "data", "heartbeat"),
    "set": ("key", "index", "data", "heartbeat"),
    "process": ("key", "heartbeat"),
    "remove": ("key",),
}
_OPTIONAL = frozenset({"heartbeat", "overwrite"})
_FITS: dict[str, Callable[[Any], bool]] = {
    "key": lambda value: isinstance(value, str) and len(value) <= MAX_KEY,
    "data": lambda value: isinstance(value, bytes | memoryview),
    "index": lambda value: type(value) is int and value >= 0,
    "heartbeat": lambda value: isinstance(value, bool),
    "overwrite": lambda value: isinstance(value, bool),
}


def slices(package: Buffer, size: int) -> Iterator[memoryview]:
    """Cut *package* into parts of *size* bytes, which are not copied."""
    whole = memoryview(package)
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


def part_call(
    fields: dict[str, Any], key: str, index: int | None, part: Buffer, *, heartbeat: bool, promise: dict[str, Any]
) -> tuple[bytes, Buffer, bytes]:
    """A ``set`` call, or without *index* an ``append`` call, in three pieces: the *part* itself is not copied.

    *fields* is its header, *promise* what else its body holds (``protocol.md`` 4.2).
    """
    args: list[Any] = [key] if index is None else [key, index]
    head = [
        packer.pack(fields),
        _map_of(1 + len(promise)),
        packer.pack("args"),
        _list_of(len(args) + 2),
        *map(packer.pack, args),
        struct.pack(">BI", 0xC6, len(part)),
    ]
    tail = [packer.pack(heartbeat), *(packer.pack(name) + packer.pack(value) for name, value in promise.items())]
    return b"".join(head), part, b"".join(tail)


def _map_of(count: int) -> bytes:
    return bytes((0x80 | count,))


def _list_of(count: int) -> bytes:
    return bytes((0x90 | count,))


def parse_chunk_call(operation: str, frame: Frame, *, compact: bool) -> dict[str, Any]:
    """The arguments of a chunk call by name, whether they came by position or by keyword.

    Raises :class:`ProtocolViolation` for anything that no client sends: the receiver could refuse it for reasons that
    nobody else sees, and what passes after it would be taken for something else than it is. *compact* says whether
    the receiver knows the compact promise.
    """
    if not frame.fields.keys() <= _HEADER:
        raise ProtocolViolation(f"message_cache.{operation} has a header that no client writes")
    extra = frame.extra()
    given = arguments(operation, extra)
    if not extra.keys() <= _BODY or not _is_promise(extra.get("promise"), frame.session, compact=compact):
        raise ProtocolViolation(f"message_cache.{operation} has a body or a promise that no client writes")
    return given


def arguments(operation: str, extra: dict[str, Any]) -> dict[str, Any]:
    """The arguments in *extra*, the body of a chunk call, by name. Raises :class:`ProtocolViolation`."""
    names = _SIGNATURES.get(operation)
    if names is None:
        raise ProtocolViolation(f"message_cache has no function {operation!r}")
    args: Any = extra.get("args")
    kwargs: Any = {}
    if isinstance(args, list) and extra.get("with_kwargs"):
        kwargs = args[-1] if args else None
        args = args[:-1]
    if not isinstance(args, list) or not isinstance(kwargs, dict) or len(args) > len(names):
        raise ProtocolViolation(f"message_cache.{operation} takes {', '.join(names)}")
    given = dict(zip(names, args, strict=False))
    if given.keys() & kwargs.keys():
        # A JavaScript receiver would take the positional value, a Python one neither.
        raise ProtocolViolation(f"message_cache.{operation} got an argument twice")
    given |= kwargs
    needed = [name for name in names if name not in _OPTIONAL]
    if not given.keys() <= set(names) or not all(_FITS[name](given.get(name)) for name in {*needed, *given}):
        raise ProtocolViolation(f"message_cache.{operation} got other arguments than clients give")
    return given


def _is_promise(promise: Any, session: str | None, *, compact: bool) -> bool:
    """Whether every receiver can make functions of *promise*."""
    if promise == "*":
        return compact and session is not None
    if not isinstance(promise, dict) or not {"resolve", "reject"} <= promise.keys() <= _PROMISE:
        return False
    interval = promise.get("interval", 0)
    return isinstance(interval, int | float) and all(
        _is_reference(value) for name, value in promise.items() if name != "interval"
    )


def _is_reference(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("_rtype") != "method":
        return False
    named = isinstance(value.get("_rtarget"), str) and isinstance(value.get("_rmethod"), str)
    return named and all(item is None or isinstance(item, str | bool) for item in value.values())


def overwriting(frame: Frame, *, compact: bool) -> Buffer:
    """The body of a ``create`` call by which it makes room at the receiver.

    Receivers keep what a sender has left unfinished, and would take it for the beginning of this message. Raises as
    :func:`parse_chunk_call` does.
    """
    given = parse_chunk_call("create", frame, compact=compact)
    return _with_arguments(frame, [given["key"], given.get("heartbeat", False), True])


def by_position(operation: str, frame: Frame) -> Buffer:
    """The body of the chunk call *frame* with its keyword arguments in their places.

    imjoy-rpc 0.5.6 gives ``heartbeat`` by keyword. A JavaScript receiver would take the map of keywords for a true
    ``heartbeat`` and refuse the message (``protocol.md`` 11.9). Raises :class:`ProtocolViolation`.
    """
    if not frame.extra().get("with_kwargs"):
        return frame.body
    given = arguments(operation, frame.extra())
    names = _SIGNATURES[operation]
    count = 1 + max(index for index, name in enumerate(names) if name in given)
    return _with_arguments(frame, [given.get(name, False) for name in names[:count]])


def _with_arguments(frame: Frame, args: list[Any]) -> bytes:
    """The body of *frame* with *args* by position."""
    extra = {**frame.extra(), "args": args}
    extra.pop("with_kwargs", None)
    return encode_value(extra)


@dataclass(slots=True)
class _Passing:
    """A message of which parts have passed: its header, and how far its body was followed.

    *heartbeat* is the same in all calls for a message: whether the receiver refuses them depends on it.
    """

    sender: Hashable
    heartbeat: bool
    head: Frame | None = None
    body: BodyScan = field(default_factory=BodyScan)
    #: How the parts come, by "append" or by "set"; empty before the first.
    operation: str = ""
    next_index: int = 0
    #: Parts that came before their turn.
    early: dict[int, bytes] = field(default_factory=dict)

    def take(self, operation: str, given: dict[str, Any], reader: FrameReader) -> bool:
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
            self._follow(self.early.pop(self.next_index), reader)
            self.next_index += 1
        return unknown and self.head is not None

    def _follow(self, data: bytes, reader: FrameReader) -> None:
        if self.head is not None:
            self.body.feed(data)
            return
        self.head = reader.read(data)
        if self.head.method is not None and self.head.method.startswith(CACHE_PREFIX):
            raise ProtocolViolation("a message in parts cannot itself be a part")
        self.body.feed(self.head.body)
        # What policy asks for is remembered, the rest is not.
        self.head.set_body(b"")
        self.head.fields = {}

    def whole(self) -> Frame:
        """The header of a message whose last part has passed. Raises :class:`ProtocolViolation`."""
        if self.head is None or self.early or not self.body.complete:
            raise ProtocolViolation("the message is not complete")
        return self.head


@dataclass(slots=True)
class ChunkPeek:
    """What the router knows of the messages in parts that are on their way to one target.

    Without it a forged call hidden in parts would walk around every check, and a large call would not be known to be
    in flight (``decisions.md`` 14). What is known here must be what the receiver has. Its store has no owners: so a
    key belongs here to the sender that created it. It refuses parts for reasons of its own: so only calls pass of
    which it refuses all or none. A message of which one part is refused here is forgotten, and nothing of it passes
    any more. Of each sender the *limit* messages are remembered that moved last, and of parts that came before their
    turn 32 MiB: clients that give up never say so.
    """

    limit: int
    messages: dict[str, _Passing] = field(default_factory=dict)
    #: The keys of each sender, the one that moved last at the end.
    senders: dict[Hashable, dict[str, None]] = field(default_factory=dict)

    def pass_through(
        self,
        sender: Hashable,
        operation: str,
        frame: Frame,
        permits: Callable[[Frame], bool],
        reader: FrameReader,
        *,
        compact: bool,
    ) -> Frame | None:
        """Look at one chunk call. Returns the inner message at ``process``, None for the other operations.

        *reader* reads its header. *permits* says whether it may pass; it is asked as soon as the header is known, and
        again when the message is complete. *compact*: see :func:`parse_chunk_call`. Raises :class:`PermissionDenied`
        when it may not, :class:`InvalidArgument` for a key of another sender, :class:`ProtocolViolation` for what no
        client sends.
        """
        given = parse_chunk_call(operation, frame, compact=compact)
        key, heartbeat = given["key"], given.get("heartbeat", False)
        message = self._take_out(sender, key)
        if operation == "create":
            self._remember(key, _Passing(sender, heartbeat))
            return None
        if message is None:
            raise ProtocolViolation(f"no beginning of message {key[:64]!r} was seen")
        if operation == "remove":
            return None
        if heartbeat is not message.heartbeat:
            raise ProtocolViolation("the parts of a message have one heartbeat, or none has")
        if operation == "process":
            return _permitted(message.whole(), permits)
        if message.take(operation, given, reader) and message.head is not None:
            _permitted(message.head, permits)
        self._remember(key, message)
        return None

    def forget(self, sender: Hashable) -> None:
        """Drop what *sender* has not finished."""
        for key in self.senders.pop(sender, ()):
            del self.messages[key]

    def _take_out(self, sender: Hashable, key: str) -> _Passing | None:
        message = self.messages.get(key)
        if message is None:
            return None
        if message.sender is not sender:
            raise InvalidArgument(f"Message with the same key ({key[:64]}) already exists")
        del self.messages[key], self.senders[sender][key]
        return message

    def _remember(self, key: str, message: _Passing) -> None:
        own = self.senders.setdefault(message.sender, {})
        self.messages[key], own[key] = message, None
        while len(own) > self.limit or self.early_bytes(message.sender) > EARLY_BYTES:
            oldest = next(iter(own))
            del self.messages[oldest], own[oldest]

    def early_bytes(self, sender: Hashable) -> int:
        """Bytes of the parts of *sender* that came before their turn."""
        return sum(len(part) for key in self.senders.get(sender, ()) for part in self.messages[key].early.values())


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
    messages: dict[str, dict[int, Buffer]] = field(default_factory=dict)
    size: int = 0
    #: Keys of the messages that did not move since :meth:`drop_idle` was asked last.
    idle: set[str] = field(default_factory=set)

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

    def append(self, key: str, data: Buffer) -> None:
        """Add the next part."""
        self.set(key, len(self._parts(key)), data)

    def set(self, key: str, index: int, data: Buffer) -> None:
        """Put part *index*. Raises :class:`TooLarge` when the sender's parts would exceed the limit."""
        parts = self._parts(key)
        before = parts.get(index)
        size = self.size + _charge(data) - (0 if before is None else _charge(before))
        if size > self.limit:
            self.remove(key)
            raise TooLarge(f"message in parts is larger than chunked_bytes_per_peer = {self.limit} bytes")
        parts[index] = data
        self.size = size
        self.idle.discard(key)

    def take(self, key: str) -> bytearray:
        """Remove a message and return its bytes. Raises :class:`InvalidArgument` when a part is missing."""
        parts = self._parts(key)
        self.remove(key)
        try:
            return bytearray().join(parts[index] for index in range(len(parts)))
        except KeyError:
            raise InvalidArgument(f"message {key[:64]!r} has a missing part") from None

    def remove(self, key: str) -> None:
        """Drop a message. Raises :class:`NotFound` when there is none."""
        parts = self._parts(key)
        del self.messages[key]
        self.idle.discard(key)
        self.size -= sum(map(_charge, parts.values()))

    def drop_idle(self) -> None:
        """Drop the messages that did not move since this was asked last: clients that give up never say so."""
        for key in list(self.idle):
            self.remove(key)
        self.idle = set(self.messages)

    def _parts(self, key: str) -> dict[int, Buffer]:
        try:
            return self.messages[key]
        except KeyError:
            raise NotFound(f"Message with key {key[:64]} does not exists.") from None


def _charge(part: Buffer) -> int:
    return len(part) + _PART_ROOM
