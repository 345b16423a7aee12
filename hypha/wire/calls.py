"""Calls as data: what a call message says, how an answer is written, and which calls of ours are pending.

No I/O and no clock: :class:`CallTable` keeps the state, its owner sends and waits (``protocol.md`` 4).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack

from hypha.errors import InvalidArgument, ProtocolViolation, RemoteError
from hypha.wire.frame import Buffer, Fields, Frame, encode_header, packer
from hypha.wire.values import error

#: Seconds between heartbeats that the server asks of a callee.
HEARTBEAT_SECONDS = 15.0
_COPIED = 256 * 1024  # bytes of a message that is copied rather than given its own buffer

#: The function of the built-in service by which callers cancel a call. The published clients have none.
CANCEL = "services.built-in.cancel"


@dataclass(frozen=True, slots=True)
class Promise:
    """Where the answer of a call goes: method names in the caller's object store (``protocol.md`` 4.2).

    *interval* is the longest time in seconds between two heartbeats, None when the caller wants none.
    """

    resolve: str
    reject: str
    heartbeat: str | None
    interval: float | None


@dataclass(frozen=True, slots=True)
class CallBody:
    """The arguments of a call, as they came. *timeout*: seconds that the caller still has, when it says so."""

    args: list[Any]
    kwargs: dict[str, Any]
    promise: Promise | None
    timeout: float | None = None


def parse_call(extra: dict[str, Any], session: str | None) -> CallBody:
    """What the second value of a ``method`` message means. Raises :class:`ProtocolViolation`."""
    args = extra.get("args") or []
    if not isinstance(args, list):
        raise ProtocolViolation("'args' must be an array")
    kwargs: Any = {}
    if extra.get("with_kwargs") and args:
        *args, kwargs = args
        if not isinstance(kwargs, dict) or not all(isinstance(name, str) for name in kwargs):
            raise ProtocolViolation("'with_kwargs' needs a map as the last argument")
        kwargs.pop("_rkwargs", None)
    return CallBody(args, kwargs, _parse_promise(extra, session), _timeout(extra.get("timeout")))


def _parse_promise(extra: dict[str, Any], session: str | None) -> Promise | None:
    promise = extra.get("promise")
    if promise == "*" and session is not None:
        return Promise(f"{session}.resolve", f"{session}.reject", f"{session}.heartbeat", _seconds(extra.get("t")))
    if not isinstance(promise, dict):
        return None
    resolve, reject = _method_name(promise.get("resolve")), _method_name(promise.get("reject"))
    if resolve is None or reject is None:
        return None
    return Promise(resolve, reject, _method_name(promise.get("heartbeat")), _seconds(promise.get("interval")))


def _method_name(encoded: Any) -> str | None:
    name = encoded.get("_rmethod") if isinstance(encoded, dict) else None
    return name if isinstance(name, str) else None


def _timeout(value: Any) -> float | None:
    # Comparisons with NaN are false.
    return float(value) if type(value) in {int, float} and 0 <= value < 1e9 else None


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 < value < 86400 else None


#: What begins with an underscore and may still be called (``protocol.md`` 3.3).
_SPECIAL = frozenset({"__enter__", "__exit__", "_dispose"})
#: What clients of imjoy-rpc keep in a session beside its callbacks and its children.
_SESSION_PARTS = frozenset({"timer", "target_id", "resolve", "reject", "heartbeat"})


def is_declared(method: str) -> bool:
    """Whether *method* can name what a client has declared, rather than a part of it.

    Python clients of imjoy-rpc follow a path through attributes as well: by ``<session>.resolve.__globals__`` whoever
    they called could reach every module of theirs. No client makes such a name.
    """
    in_service = method.startswith("services.")
    if "._" not in method and (in_service or method.count(".") < 2):
        return True
    _, *path = method.split(".")
    if any(part.startswith("_") and part not in _SPECIAL and not part.startswith("_rintf_") for part in path):
        return False
    return in_service or all(part.isalnum() and part not in _SESSION_PARTS for part in path[:-1])


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the server's own, before the sender's fields are added."""

    fields: dict[str, Any]
    body: bytes

    def encode(self, sender: Fields) -> tuple[bytes, bytes]:
        """Header and body, with the *sender* fields (``from``, ``user``, ``ws``) in the header."""
        return encode_header(self.fields, sender), self.body


def encode_value(value: Any) -> bytes:
    """*value* as msgpack. Raises :class:`InvalidArgument` for what it cannot express.

    That is an integer of more than 64 bits, which JSON can hold, and nesting beyond 511 levels, of which msgpack
    reads more than it writes.
    """
    try:
        return bytes(packer.pack(value))
    except (ValueError, OverflowError, TypeError) as exc:
        raise InvalidArgument(f"the value cannot be sent as msgpack: {exc}") from exc


class MessagePacker:
    """Writes whole messages as a client sends them, header and body. Not for several threads at once.

    A short message is copied out of its buffer, which is used again. The buffer of a long one is the message.
    """

    def __init__(self) -> None:
        self._packer = msgpack.Packer(autoreset=False)

    def pack(self, fields: dict[str, Any], extra: dict[str, Any]) -> Buffer:
        """One message. Raises :class:`InvalidArgument` as :func:`encode_value`."""
        packer = self._packer
        try:
            packer.pack(fields)
            packer.pack(extra)
        except (ValueError, OverflowError, TypeError) as exc:
            packer.reset()
            raise InvalidArgument(f"the value cannot be sent as msgpack: {exc}") from exc
        whole = memoryview(packer.getbuffer())
        if len(whole) > _COPIED:
            self._packer = msgpack.Packer(autoreset=False)
            return whole
        short = bytes(whole)
        whole.release()
        packer.reset()
        return short


def decode_value(data: bytes) -> Any:
    """The inverse of :func:`encode_value`, for what that has written."""
    return msgpack.unpackb(data, strict_map_key=True)


def answer(to: str, method: str, session: str, value: Any) -> Message:
    """A result or an error: always exactly one argument (``protocol.md`` 4.3). Raises :class:`InvalidArgument`."""
    fields = {"type": "method", "to": to, "method": method, "parent": session}
    return Message(fields, encode_value({"args": [value]}))


def rejection(to: str, session: str, text: str, code: str) -> Message:
    """An answer to a call that cannot be delivered, made in the target's name (``protocol.md`` 2.5).

    *code* is that of the error (:attr:`hypha.errors.HyphaError.code`).
    """
    fields = {"type": "method", "to": to, "method": f"{session}.reject"}
    return Message(fields, packer.pack({"args": [error(text, code)]}))


def heartbeat(to: str, promise: Promise, session: str) -> Message:
    """A fire-and-forget heartbeat for a call that goes on (``protocol.md`` 4.6)."""
    return Message({"type": "method", "to": to, "method": promise.heartbeat, "parent": session}, b"")


def cancellation(to: str, session: str) -> Message:
    """What tells a callee that knows it that nobody waits any more for the call *session* of the sender's."""
    return Message({"type": "method", "to": to, "method": CANCEL}, packer.pack({"args": [session]}))


def notice(to: str, method: str) -> Message:
    """A call without arguments to which no answer is wanted."""
    return Message({"type": "method", "to": to, "method": method}, packer.pack({"args": []}))


def call(to: str, method: str, session: str, caller: str, args: list[Any], kwargs: dict[str, Any]) -> Message:
    """A call with an explicit promise, which every generation honours (``protocol.md`` 3.2).

    Raises :class:`InvalidArgument` for arguments that cannot be sent.
    """

    extra: dict[str, Any] = {
        "args": [*args, kwargs] if kwargs else args,
        "promise": explicit_promise(caller, session),
    }
    if kwargs:
        extra["with_kwargs"] = True
    return Message({"type": "method", "to": to, "method": method, "session": session}, encode_value(extra))


def explicit_promise(caller: str, session: str) -> dict[str, Any]:
    """The promise that every generation honours: the functions of *caller* that take the answer."""

    def callback(name: str, *, promise: bool = False) -> dict[str, Any]:
        return {"_rtype": "method", "_rtarget": caller, "_rmethod": f"{session}.{name}", "_rpromise": promise}

    return {
        "heartbeat": callback("heartbeat", promise=True),
        "interval": HEARTBEAT_SECONDS,
        "resolve": callback("resolve"),
        "reject": callback("reject"),
    }


@dataclass(slots=True, eq=False)
class PendingCall:
    """A call of ours that waits for its answer.

    *caller* and *target* are absolute addresses: the answer must come from the target and go to the caller.
    *settle* is called once with (succeeded, value); *alive* at every heartbeat.
    """

    session: str
    caller: str
    target: str
    settle: Callable[[bool, Any], None]
    alive: Callable[[], None]


@dataclass(slots=True)
class CallTable:
    """The pending calls of one peer, by session id."""

    pending: dict[str, PendingCall] = field(default_factory=dict)

    def open(
        self, caller: str, target: str, settle: Callable[[bool, Any], None], alive: Callable[[], None]
    ) -> PendingCall:
        """Enter a new call under an unguessable session id. The owner must :meth:`close` it."""
        entry = PendingCall(secrets.token_urlsafe(12), caller, target, settle, alive)
        self.pending[entry.session] = entry
        return entry

    def close(self, entry: PendingCall) -> None:
        """Forget a call; late answers find nothing and are dropped."""
        self.pending.pop(entry.session, None)

    def asked_of(self, sender: str, to: str, session: str) -> PendingCall | None:
        """The call *session*, when it was asked of *sender* at *to*: nobody else may have a say in it.

        That is what its callees check, too (``protocol.md`` 4.4).
        """
        entry = self.pending.get(session)
        return entry if entry is not None and entry.target == sender and entry.caller == to else None

    def receive(self, sender: str, to: str, frame: Frame) -> bool:
        """Take *frame*, a ``<session>.resolve``, ``.reject`` or ``.heartbeat`` message.

        Returns False when :meth:`asked_of` knows no such call. An answer that cannot be read fails the call with
        :class:`RemoteError`.
        """
        session, _, name = (frame.method or "").rpartition(".")
        entry = self.asked_of(sender, to, session)
        if entry is None:
            return False
        if name == "heartbeat":
            entry.alive()
        elif name in {"resolve", "reject"}:
            self.close(entry)
            try:
                args = parse_call(frame.extra(), None).args
            except ProtocolViolation as exc:
                entry.settle(False, RemoteError(f"{sender} sent an answer that cannot be read: {exc}"))
            else:
                entry.settle(name == "resolve", args[0] if args else None)
        else:
            return False
        return True
