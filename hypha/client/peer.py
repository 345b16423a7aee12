"""One client as its peers see it: it calls their functions, and its own are called (``protocol.md`` 2 to 6).

Every call that comes in is a task of its own in the nursery of the connection, and ends with it; so do generators that
others iterate. What is small and must keep its order (answers, heartbeats, parts of messages) is done by the reader.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from hypha.client import parts
from hypha.client.builtin import BUILT_IN, BuiltIn
from hypha.client.channel import Channel
from hypha.client.drive import Drive
from hypha.client.remote import RemoteFunction, RemoteGenerator
from hypha.client.run import Runner
from hypha.client.serving import Serving
from hypha.client.store import Group, Store
from hypha.client.values import Codec, Decoder, Encoder, Record, decode_error
from hypha.errors import CallTimeout, HyphaError, InvalidArgument, NotFound, PeerGone
from hypha.wire import calls
from hypha.wire.calls import CallTable, MessagePacker, encode_value
from hypha.wire.chunks import CACHE_PREFIX, part_call
from hypha.wire.delivery import read_delivered
from hypha.wire.frame import Buffer, Frame

logger = logging.getLogger(__name__)

_ANSWERS = frozenset({"resolve", "reject", "heartbeat"})
_FAR = 1e15  # a deadline that nobody has set, in trio time


@dataclass(slots=True)
class _Outcome:
    settled: trio.Event = field(default_factory=trio.Event)
    succeeded: bool = False
    value: Any = None
    on_sign: Callable[[], None] | None = None

    def alive(self) -> None:
        if self.on_sign is not None:
            self.on_sign()

    def settle(self, succeeded: bool, value: Any) -> None:
        self.succeeded, self.value = succeeded, value
        self.settled.set()


class Peer:
    """The logical presence of a program at the server; it survives the connections that serve it one after another.

    *patience*: seconds without an answer or a heartbeat after which a call fails, None for ever. *on_event* takes
    what is no call.
    """

    def __init__(self, runner: Runner, patience: float | None, on_event: Callable[[Record], None]) -> None:
        self.store = Store()
        self.codecs: dict[str, Codec] = {}
        self.decoder = Decoder(
            lambda encoded: runner.present(RemoteFunction(self, encoded)),
            lambda encoded: runner.present(RemoteGenerator(self, encoded)),
            self.codecs,
        )
        self.runner = runner
        #: ``workspace/client``, as others address it.
        self.name = ""
        self.workspace = ""
        #: Where the server's own services are.
        self.manager = ""
        self._patience = patience
        self._on_event = on_event
        #: The connection that there is now, and what its calls run in.
        self.current: Channel | None = None
        self.nursery: trio.Nursery | None = None
        self._attached = trio.Event()
        self._over: HyphaError | None = None
        self._calls = CallTable()
        self._packer = MessagePacker()
        self._parts = parts.Sender(self)
        self.serving = Serving(self)
        self._built_in = BuiltIn(self, self.serving, self._dispatch)

    # --- the connection ---------------------------------------------------------------------------------------

    def attach(self, channel: Channel, nursery: trio.Nursery) -> None:
        """Speak through *channel* from now on; the calls of others run in *nursery*."""
        info = channel.info
        self.workspace = info["workspace"]
        self.name = f"{self.workspace}/{info['client_id']}"
        self.manager = f"*/{info['manager_id']}"
        self._parts.begin(self.manager, info.get("frame_bytes", 2 * parts.LARGE_PART))
        self.current, self.nursery = channel, nursery
        self._attached.set()

    def detach(self) -> None:
        """The connection is over: calls fail, and nothing of it is left but the services."""
        self.current = self.nursery = None
        self._attached = trio.Event()
        for entry in list(self._calls.pending.values()):
            self._calls.close(entry)
            entry.settle(False, PeerGone("the connection to the server was lost during the call"))
        self.serving.clear()
        self.store.clear()
        self._built_in.clear()

    def end(self, error: HyphaError) -> None:
        """There will be no connection any more; calls fail with *error*."""
        self._over = error
        self._attached.set()

    async def channel(self) -> Channel:
        """The connection, when there is one: waits while the client comes back. Raises what ended it for good."""
        while self.current is None:
            if self._over is not None:
                raise self._over
            await self._attached.wait()
        return self.current

    def take(self, message: bytes) -> None:
        """Take a message that has come. Nothing in it can end the connection."""
        try:
            self._dispatch(read_delivered(message))
        except HyphaError as exc:
            logger.warning("dropped a message that cannot be read: %s", exc)
        except Exception:  # a fault of ours, which one peer must not turn against all others
            logger.exception("dropped a message")

    def drop_idle_parts(self) -> None:
        """Forget messages in parts that did not move since this was asked last."""
        self._built_in.drop_idle_parts()

    def put(self, message: calls.Message) -> None:
        """Send a short message without waiting; it is dropped while there is no connection."""
        if self.current is not None:
            self.current.put(encode_value(message.fields), message.body)

    # --- calling ----------------------------------------------------------------------------------------------

    async def invoke(self, function: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a function that another peer has sent (``protocol.md`` 3.2). Raises what :meth:`call` raises."""
        return await self.call(
            function["_rtarget"],
            function["_rmethod"],
            args,
            kwargs,
            promise=function.get("_rpromise", True),
            cancels=bool(function.get("_rcancel")),
        )

    async def call(
        self,
        target: str,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        *,
        promise: object = "*",
        cancels: bool = False,
        through: Channel | None = None,
    ) -> Any:
        """Call *method* of *target* and return its value.

        *promise*: how the answer is wanted, as the function's own map says (``protocol.md`` 4.2); without any, nothing
        is waited for. *cancels*: the callee stops when it is told to. *through*: this connection and no later
        one. Raises :class:`RemoteError` with the function's own text, :class:`PeerGone`, :class:`CallTimeout`, another
        :class:`HyphaError` that the other end has named, and :class:`InvalidArgument` for what cannot be sent. While
        there is no connection it waits for the next one.
        """
        deadline = trio.current_effective_deadline()
        is_timed = deadline < _FAR and not method.startswith(CACHE_PREFIX)  # routers know what chunk calls hold

        async def send(channel: Channel, session: str, progress: Callable[[], None]) -> None:
            with self.giving() as given:
                extra = self._arguments(args, kwargs, self.encoder(target, session, given))
                extra.update(self._promise(promise, session))
                if is_timed:
                    extra["timeout"] = max(0.0, deadline - trio.current_time())
                await self.send(channel, _header(target, method, session), extra, None, progress)

        return await self._exchange(target, method, send, promise=promise, cancels=cancels, through=through)

    async def _exchange(
        self,
        target: str,
        method: str,
        send: Callable[[Channel, str, Callable[[], None]], Awaitable[None]],
        *,
        promise: object,
        cancels: bool = False,
        through: Channel | None = None,
    ) -> Any:
        """Let *send* send a call, and wait for the answer.

        *send* gets the channel, the session of the call, and what it calls when a part of it has arrived.
        """
        channel = through or await self.channel()
        outcome = _Outcome()
        entry = self._calls.open(self.name, target, outcome.settle, outcome.alive)
        try:
            if self._patience is None:
                await send(channel, entry.session, outcome.alive)
                if promise:
                    await outcome.settled.wait()
            else:
                await self._within(
                    self._patience, outcome, partial(send, channel, entry.session, outcome.alive), wait=bool(promise)
                )
        finally:
            self._calls.close(entry)
            self.store.close(entry.session)
            if cancels and promise and not outcome.settled.is_set() and channel is self.current:
                self.put(calls.cancellation(target, entry.session))
        if not promise:
            return None
        if not outcome.settled.is_set():
            waited = f"method_timeout = {self._patience:g} s"
            raise CallTimeout(f"{target}:{method} gave neither a result nor a heartbeat for {waited}")
        return self._result(target, outcome)

    async def _within(
        self, patience: float, outcome: _Outcome, send: Callable[[], Awaitable[None]], *, wait: bool
    ) -> None:
        """Send, and wait for the answer; give up when there was no sign of the callee for *patience* seconds."""
        with trio.move_on_after(patience) as scope:

            def extend() -> None:
                scope.deadline = trio.current_time() + patience

            outcome.on_sign = extend
            await send()
            if wait:
                await outcome.settled.wait()

    def notify(self, target: str, method: str) -> None:
        """Call *method* of *target* without arguments; nobody waits for it."""
        self.put(calls.notice(target, method))

    def _promise(self, promise: object, session: str) -> dict[str, Any]:
        if promise == "*":
            return {"promise": "*", "t": calls.HEARTBEAT_SECONDS}
        return {"promise": calls.explicit_promise(self.name, session)} if promise else {}

    def _arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None, encoder: Encoder) -> dict[str, Any]:
        encode = encoder.encode
        encoded = [encode(item) for item in args]
        if not kwargs:
            return {"args": encoded}
        return {"args": [*encoded, {key: encode(item) for key, item in kwargs.items()}], "with_kwargs": True}

    @contextmanager
    def giving(self) -> Iterator[list[Group]]:
        """A message is encoded and sent in the block; what it gives away is taken back when it is not sent."""
        given: list[Group] = []
        sent = False
        try:
            yield given
            sent = True
        finally:
            if not sent:
                for group in given:
                    self.store.forget(group)

    def encoder(self, target: str, session: str | None, given: list[Group]) -> Encoder:
        """Encodes for *target*. Functions live as long as the call *session*, or until *target* is gone.

        *given* collects the groups of those that live longer.
        """
        groups: dict[bool, Group] = {}

        def offer(function: Callable[..., Any], *, lasting: bool) -> dict[str, Any]:
            if lasting not in groups:
                kept = lasting or session is None
                groups[lasting] = self.store.keep(target) if kept else self.store.open(str(session), target)
                if kept:
                    given.append(groups[lasting])
            return groups[lasting].offer(function, self.name)

        return Encoder(offer, partial(self._offer_generator, target, given), self.codecs)

    def _offer_generator(self, target: str, given: list[Group], generator: Any) -> dict[str, Any]:
        if self.nursery is None:
            raise PeerGone("the connection to the server was lost")
        group = self.store.keep(target)
        given.append(group)
        drive = Drive(generator, self.runner, partial(self.store.forget, group))
        group.on_end = drive.end
        step, closing = group.add(drive.next, native=True), group.add(drive.close, native=True)
        self.nursery.start_soon(drive.run)
        return {
            "_rtype": "generator",
            "_rtarget": self.name,
            "_rmethod": step,
            "_rclose_method": closing,
            "_rpromise": "*",
            "_rdoc": getattr(generator, "__doc__", None),
            "_rcancel": True,
        }

    def _result(self, target: str, outcome: _Outcome) -> Any:
        if outcome.succeeded:
            return self.decoder.decode(outcome.value, target)
        error = outcome.value if isinstance(outcome.value, HyphaError) else decode_error(outcome.value)
        if isinstance(error, PeerGone):
            self.store.forget_peer(target)
        raise error

    # --- sending ----------------------------------------------------------------------------------------------

    async def emit(self, kind: str, to: str, data: Any) -> None:
        """Send an event to a client, or with ``*`` to all that have subscribed. Raises :class:`InvalidArgument`.

        Functions can be sent to a client only.
        """
        channel = await self.channel()
        with self.giving() as given:
            encoder = self.encoder(to, None, given) if to != "*" else Encoder(_refuse, _refuse_generator, self.codecs)
            body = encode_value({"data": encoder.encode(data)})
            await channel.send(encode_value({"type": kind, "to": to}), body)

    async def send(
        self,
        channel: Channel,
        fields: dict[str, Any],
        extra: dict[str, Any],
        session: str | None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Send a message, in parts when it is long. *session*: the call that it answers, which the parts keep alive."""
        packed = self._packer.pack(fields, extra)
        target = fields["to"]
        if len(packed) <= self._parts.small:
            await channel.send(packed)
            return
        able = await self._parts.able(target)
        if len(packed) <= able.part_bytes:
            await channel.send(packed)
        else:
            await self._parts.send(target, packed, able, session, progress)

    async def put_part(
        self,
        target: str,
        key: str,
        index: int | None,
        part: Buffer,
        *,
        heartbeat: bool,
        promise: object,
        sent: Callable[[], None],
    ) -> None:
        method = CACHE_PREFIX + ("append" if index is None else "set")

        async def send(channel: Channel, session: str, progress: Callable[[], None]) -> None:
            fields, extra = _header(target, method, session), self._promise(promise, session)
            await channel.send(*part_call(fields, key, index, part, heartbeat=heartbeat, promise=extra))
            sent()

        await self._exchange(target, method, send, promise=promise)

    def ask(self, target: str, method: str, args: list[Any], promise: object) -> None:
        session = secrets.token_hex(8)  # its answer finds nobody
        body = encode_value({"args": args, **self._promise(promise, session)})
        self.put(calls.Message(_header(target, method, session), body))

    # --- what comes -------------------------------------------------------------------------------------------

    def _dispatch(self, frame: Frame) -> None:
        method = frame.method
        if frame.type != "method" or method is None:
            self._event(frame)
            return
        sender = str(frame.fields.get("from", ""))
        if method.startswith(BUILT_IN):
            self._built_in.take(frame, sender, method.removeprefix(BUILT_IN))
            return
        session, _, name = method.rpartition(".")
        if name not in _ANSWERS or method.startswith("services."):
            self.serving.start(frame, sender, partial(self.store.find, method, sender, self.workspace))
        elif session in self._calls.pending:
            self._take_answer(frame, sender)
        elif frame.session is not None:
            self.serving.start(frame, sender, partial(self.store.find, method, sender, self.workspace))
        else:
            logger.debug("a late answer from %s", sender)

    def _take_answer(self, frame: Frame, sender: str) -> None:
        if not self._calls.receive(sender, self.name, frame):
            logger.warning("an answer from %s, of whom it was not asked", sender)
        elif frame.wants_answer:  # a heartbeat of an older client, which must know that it was heard
            self.serving.answer_at_once(frame, lambda: None)

    def keep_alive(self, sender: str, session: str) -> None:
        """A part of the answer to one of our calls has come."""
        entry = self._calls.pending.get(session)
        if entry is None or entry.target != sender:
            raise NotFound(f"session does not exist anymore: {session[:100]}")
        entry.alive()

    def _event(self, frame: Frame) -> None:
        told = {**frame.fields, **frame.extra()}
        sender = str(told.get("from") or self.manager)
        event = Record({key: self.decoder.decode(item, sender) for key, item in told.items()})
        data = event.get("data")
        if frame.type == "client_disconnected" and "from" not in frame.fields and isinstance(data, dict):
            self.store.forget_peer(f"{self.workspace}/{data.get('id')}")
        self._on_event(event)


def _header(target: str, method: str, session: str) -> dict[str, Any]:
    return {"type": "method", "to": target, "method": method, "session": session}


def _refuse(function: Callable[..., Any], /, *, lasting: bool) -> dict[str, Any]:
    raise InvalidArgument("a function cannot be sent to all clients: name the one that it is for")


def _refuse_generator(generator: Any) -> dict[str, Any]:
    raise InvalidArgument("a generator cannot be sent to all clients: name the one that it is for")
