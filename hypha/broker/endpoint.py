"""The server's own session: answers calls to its services, and makes calls of its own.

It is addressed as ``<any workspace>/workspace-manager``, as ``*/<server id>``, and, by answers to HTTP requests, as
``<workspace>/http`` (``protocol.md`` 2.4, ``decisions.md`` 22). Functions are found by exact path in the table of the
caller's generation, or of the server's own services at ``public/<server id>``; no attribute of anything is
ever looked up by a peer's text.
"""

from __future__ import annotations

import inspect
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from hypha.broker.access import ROOT, Action, Principal, may
from hypha.broker.function import Function
from hypha.broker.inflight import begin_call, cancel_call, end_call, settle
from hypha.broker.outbox import DirtyOutboxes, flush_dirty
from hypha.broker.own import CallBack, OwnServices, Visit
from hypha.broker.registry import Registry, Workspace
from hypha.broker.session import Arrival, PeerSession, Session, gone_text, server_stamp
from hypha.config import Limits
from hypha.errors import (
    CallTimeout,
    HyphaError,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    PeerGone,
    PermissionDenied,
    ProtocolViolation,
    RemoteError,
    internal_error,
)
from hypha.wire import calls, values
from hypha.wire.address import LEGACY_SERVER_CLIENT, PUBLIC_WORKSPACE, Address
from hypha.wire.calls import CallBody, CallTable, Promise
from hypha.wire.chunks import CACHE_PREFIX, slices
from hypha.wire.dialect import MODERN
from hypha.wire.frame import Fields, Frame, FrameReader

logger = logging.getLogger(__name__)

_CHUNK_HEADROOM = 1024  # bytes; clients switch to parts at the same size (``protocol.md`` 2.6)
_CALLBACKS_AT_ONCE = 16  # of one call: each waits for what only its caller can bring

#: What answers a callback of a call. Raises :class:`HyphaError`.
Callback = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class ServerCall:
    """A call of one of the server's functions, as the function sees it."""

    sender: PeerSession
    to: Address
    workspace: Workspace
    principal: Principal


@dataclass(slots=True, eq=False)
class _Running:
    """A function that has not answered yet; the sweeper keeps its caller waiting."""

    sender: PeerSession
    to: Address
    session_id: str
    promise: Promise
    next_beat: float


@dataclass(slots=True, eq=False)
class Callbacks:
    """What the callee of one call may call as long as that runs: name -> function.

    They run in *nursery*, which must live as long as the call. Those of one name run one after the other, in the order
    in which they were asked for: some callers do not wait for one before the next.
    """

    nursery: trio.Nursery
    functions: Mapping[str, Callback]
    running: int = 0
    _last: dict[str, trio.Event] = field(default_factory=dict)

    def encoded(self, caller: Address, session: str) -> dict[str, Any]:
        """The functions as they travel, to be called at *caller* within the call *session*."""
        return {name: values.method(str(caller), f"{session}.{name}", _rname=name) for name in self.functions}

    def place_in_line(self, name: str) -> tuple[trio.Event | None, trio.Event]:
        """What a call of *name* has to wait for, and what it must set at its end."""
        before, done = self._last.get(name), trio.Event()
        self._last[name] = done
        return before, done


class ServerSession(Session):
    """The one server-side peer of a broker.

    Its functions are found by the whole path of a method (``services.default.echo``).
    """

    def __init__(
        self, server_id: str, registry: Registry, limits: Limits, dirty: DirtyOutboxes, reader: FrameReader
    ) -> None:
        super().__init__(Address("*", server_id), ROOT, MODERN, 0, limits)
        #: What is called at ``<workspace>/workspace-manager``, and in the place of a peer.
        self.functions: dict[str, Function] = {}
        #: What is called at ``*/<server id>``, where modern clients ask.
        self.modern_functions: dict[str, Function] = {}
        self.own = OwnServices(self, registry)
        self.reader = reader
        self._registry = registry
        self._dirty = dirty
        self._table = CallTable()
        self._running: set[_Running] = set()
        self._callbacks: dict[str, Callbacks] = {}
        #: By caller and session: the calls of the server's own services that have not been answered.
        self._cancellable: dict[tuple[PeerSession, str], trio.CancelScope] = {}

    # --- being called -----------------------------------------------------------------------------------------

    def deliver(self, sender: PeerSession, frame: Frame, to: Address) -> None:
        """Take a frame that is addressed to the server as *to*."""
        if frame.type == "method" and frame.method is not None:
            if frame.method == calls.CANCEL and not frame.wants_answer:
                self._cancel(sender, frame)
            elif frame.method.startswith("services."):
                self._start(sender, frame, to)
            else:
                self._session_method(sender, frame, to, frame.method)

    def redirected(self, sender: PeerSession, frame: Frame, target: PeerSession, substitute: str) -> None:
        """Answer *frame* in the place of *target*, with a function that its dialect pair names."""
        self._start(sender, frame, target.address, substitute)

    def _start(self, sender: PeerSession, frame: Frame, to: Address, substitute: str | None = None) -> None:
        size = len(frame.body)
        refusal = self.refusal(sender)
        if refusal is not None:
            self._reject(sender, frame, to, refusal)
            return
        sender.server_calls += 1
        sender.server_call_bytes += size
        scope = None
        # Of two calls of one session the first is meant by it.
        is_first = frame.session is not None and (sender, frame.session) not in self._cancellable
        if frame.session is not None and is_first and self.own.find(to, frame.method or "") is not None:
            scope = self._cancellable[sender, frame.session] = trio.CancelScope()
        sender.arrived.append(Arrival(frame, to, substitute, size, scope))
        sender.transport.start_soon(self._serve, sender)

    def _cancel(self, sender: PeerSession, frame: Frame) -> None:
        """A caller waits no more for a call of one of the server's own services, which then ends at once."""
        try:
            args = calls.parse_call(frame.extra(), None).args
        except HyphaError as exc:
            logger.info("unreadable cancellation from %s: %s", sender.name, exc)
            return
        scope = self._cancellable.get((sender, args[0])) if args and isinstance(args[0], str) else None
        if scope is not None:
            scope.cancel()

    def refusal(self, sender: PeerSession) -> LimitExceeded | None:
        """Why a further call cannot run now."""
        count, room = self.limits.server_calls_per_peer, self.limits.server_call_bytes_per_peer
        if sender.server_calls >= count:
            return LimitExceeded(f"server_calls_per_peer = {count} calls are running; wait")
        # That one, however large: what comes in parts is a call within the call that brought the last of them.
        if sender.server_call_bytes >= room:
            return LimitExceeded(f"the calls that run hold server_call_bytes_per_peer = {room} bytes; wait")
        return None

    async def _serve(self, sender: PeerSession) -> None:
        """One call, in the nursery of the caller's connection: ends with the call or with the connection.

        Of those that have not begun it is the one that came first: tasks that are started together begin in any order.
        """
        frame, to, substitute, size, scope = sender.arrived.popleft()
        try:
            with scope or nullcontext():
                body = calls.parse_call(frame.extra(), frame.session)
                frame.set_body(b"")  # decoded, it need not be kept as bytes too
                call = partial(self._call_function, sender, to, body, substitute or frame.method or "")
                await self._run(sender, frame, to, body.promise, call)
        except HyphaError as exc:
            logger.info("call from %s cannot be answered: %s", sender.name, exc)
            self._reject(sender, frame, to, exc)
        finally:
            if scope is not None and frame.session is not None:
                self._cancellable.pop((sender, frame.session), None)
            sender.server_calls -= 1
            sender.server_call_bytes -= size
            flush_dirty(self._dirty)

    def _reject(self, sender: PeerSession, frame: Frame, to: Address, error: HyphaError) -> None:
        """Fail a call whose own promise is not known, or could not be kept (``protocol.md`` 2.5)."""
        if frame.wants_answer and frame.session is not None:
            sender.tell(calls.rejection(sender.name, frame.session, error.remote_text(), error.code), to)

    async def _run(
        self,
        sender: PeerSession,
        frame: Frame,
        to: Address,
        promise: Promise | None,
        call: Callable[[], Awaitable[Any]],
    ) -> None:
        """Answer with what *call* returns or raises, and keep the caller waiting meanwhile."""
        running = None
        if promise is not None and promise.heartbeat is not None and promise.interval is not None:
            first = trio.current_time() + 0.8 * promise.interval
            running = _Running(sender, to, frame.session or "", promise, first)
            self._running.add(running)
        try:
            outcome = await _outcome(call)
            if promise is not None:
                session_id = frame.session or promise.resolve.rpartition(".")[0]
                message = _answer(sender.name, promise, session_id, *outcome)
                await self._send(sender, server_stamp(to, sender.address.workspace), message, to, session_id)
        finally:
            if running is not None:
                self._running.discard(running)

    async def _call_function(self, sender: PeerSession, to: Address, body: CallBody, path: str) -> Any:
        service = self.own.find(to, path)
        if service is not None:
            visit = Visit(
                sender.principal,
                sender.address.workspace,
                sender.base_url,
                sender.dialect.language,
                partial(self.caller_of, sender, to),
            )
            return await self.own.call(service, path, visit, body.args, body.kwargs)
        home = sender.address.workspace if to.client != LEGACY_SERVER_CLIENT else to.workspace
        workspace = self._registry.workspaces.get(home)
        if workspace is None or not _is_visible(workspace, sender):
            raise PermissionDenied(f"Permission denied for workspace {home}.")
        function = (self.modern_functions if to.client == self.address.client else self.functions).get(path)
        if function is None:
            raise NotFound(f"Method not found: {to}:{path[:200]}")
        if function.needs is not None and not may(sender.principal, function.needs, workspace).allowed:
            raise PermissionDenied(f"Permission denied for workspace {home}.")
        call = ServerCall(sender, to, workspace, sender.principal)
        records = self._registry.ledger.records
        records.begin()
        value = await function.call(call, path.rpartition(".")[2], body.args, body.kwargs)
        await records.kept()  # what is answered is not lost when the server ends now
        return value

    def sweep(self, now: float) -> None:
        """Send the heartbeats that are due (``protocol.md`` 4.6). *now* is trio time."""
        for running in self._running:
            if running.next_beat <= now:
                assert running.promise.interval is not None
                running.next_beat = now + running.promise.interval
                beat = calls.heartbeat(running.sender.name, running.promise, running.session_id)
                running.sender.tell(beat, running.to)

    # --- answers to calls of our own --------------------------------------------------------------------------

    def _session_method(self, sender: PeerSession, frame: Frame, to: Address, method: str) -> None:
        """A callback, a result, an error or a heartbeat. What nobody waits for is refused, so that an imjoy-rpc
        provider whose heartbeat it is stops the function (``decisions.md`` 21)."""
        session, _, name = method.rpartition(".")
        entry, callbacks = self._table.asked_of(sender.name, str(to), session), self._callbacks.get(session)
        if entry is not None and callbacks is not None and name in callbacks.functions:
            entry.alive()
            self._start_callback(sender, frame, to, callbacks, name)
            return
        try:
            known = self._table.receive(sender.name, str(to), frame)
            promise = calls.parse_call(frame.extra(), frame.session).promise if frame.wants_answer else None
        except HyphaError as exc:
            logger.info("unreadable answer from %s: %s", sender.name, exc)
            return
        if promise is None or frame.session is None:
            return
        if known:
            sender.tell(calls.answer(sender.name, promise.resolve, frame.session, None), to)
        else:
            over = NotFound(f"Method not found: {to}:{method[:200]}, the call is over")
            sender.tell(calls.answer(sender.name, promise.reject, frame.session, _error(over)), to)

    def _start_callback(self, sender: PeerSession, frame: Frame, to: Address, callbacks: Callbacks, name: str) -> None:
        room = self.limits.server_call_bytes_per_peer
        if callbacks.running >= _CALLBACKS_AT_ONCE:
            self._reject(sender, frame, to, LimitExceeded(f"{_CALLBACKS_AT_ONCE} callbacks of a call run; wait"))
        elif sender.server_call_bytes >= room:
            refusal = LimitExceeded(f"the calls that run hold server_call_bytes_per_peer = {room} bytes; wait")
            self._reject(sender, frame, to, refusal)
        else:
            line = callbacks.place_in_line(name)
            callbacks.running += 1
            sender.server_call_bytes += len(frame.body)
            callbacks.nursery.start_soon(self._serve_callback, sender, frame, to, callbacks, name, line)

    async def _serve_callback(
        self,
        sender: PeerSession,
        frame: Frame,
        to: Address,
        callbacks: Callbacks,
        name: str,
        line: tuple[trio.Event | None, trio.Event],
    ) -> None:
        """One callback, in the nursery of the call that it belongs to; cancelled, it is not answered."""
        size = len(frame.body)
        before, done = line
        try:
            if before is not None:
                await before.wait()
            body = calls.parse_call(frame.extra(), frame.session)
            frame.set_body(b"")
            await self._run(sender, frame, to, body.promise, partial(_callback, name, callbacks.functions[name], body))
        except HyphaError as exc:
            self._reject(sender, frame, to, exc)
        finally:
            done.set()
            callbacks.running -= 1
            sender.server_call_bytes -= size
            flush_dirty(self._dirty)

    def peer_gone(self, session_id: str, address: Address) -> None:
        entry = self._table.pending.get(session_id)
        if entry is not None:
            self._table.close(entry)
            entry.settle(False, PeerGone(gone_text(address)))

    def keep_alive(self, call: ServerCall, key: str, heartbeat: object) -> None:
        """A part of a result arrived: the call that it answers goes on."""
        entry = self._table.pending.get(key) if heartbeat else None
        if entry is not None and entry.target == call.sender.name:
            entry.alive()

    # --- calling ----------------------------------------------------------------------------------------------

    async def get_service(self, provider: Session, service_id: str, patience: float | None = None) -> Any:
        """The service object as its provider describes it now; the server knows its own. Raises what a call does."""
        if isinstance(provider, PeerSession):
            return await self.call(provider, "services.built-in.get_service", [service_id], patience=patience)
        return self.own.interface(service_id)

    def address_for(self, provider: PeerSession) -> Address:
        """The address as which the server calls a provider: each dialect trusts another (``protocol.md`` 5.5)."""
        if provider.dialect.legacy_manager:
            return Address(provider.address.workspace, LEGACY_SERVER_CLIENT)
        return self.address

    async def call(
        self,
        target: PeerSession,
        method: str,
        args: list[Any],
        kwargs: Mapping[str, Any] | None = None,
        *,
        source: Address | None = None,
        stamp: Fields | None = None,
        patience: float | None = None,
        callbacks: Callbacks | None = None,
    ) -> Any:
        """Call *method* at *target* and return its value as it travels.

        *source* and *stamp* say as whom (default: the server). *patience*: seconds without result, heartbeat or
        callback. *callbacks* are added to the last argument, a map, under their names; nobody but *target* can call
        them, and only until this ends.
        Raises :class:`PeerGone`, :class:`CallTimeout`, or :class:`RemoteError` with the function's own text.
        Cancelling it forgets the call; a late answer is refused.
        """
        source = source or self.address_for(target)
        stamp = stamp or server_stamp(source, target.address.workspace)
        longest_silence = patience or self.limits.call_seconds
        outcome: list[tuple[bool, Any]] = []
        settled = trio.Event()
        scope = trio.CancelScope(deadline=trio.current_time() + longest_silence)

        def settle_call(succeeded: bool, value: Any) -> None:
            outcome.append((succeeded, value))
            settled.set()

        def alive() -> None:
            scope.deadline = trio.current_time() + longest_silence

        entry = self._table.open(str(source), target.name, settle_call, alive)
        begin_call(self, entry.session, target, target.address)
        if callbacks is not None:
            self._callbacks[entry.session] = callbacks
            args = [*args[:-1], {**args[-1], **callbacks.encoded(source, entry.session)}]
        try:
            message = calls.call(target.name, method, entry.session, str(source), args, dict(kwargs or {}))
            with scope:
                await self._send(target, stamp, message, source, None, alive)
                await settled.wait()
        finally:
            self._table.close(entry)
            self._callbacks.pop(entry.session, None)
            end_call(self, entry.session)
            if not outcome:
                cancel_call(target, entry.session, source)
                flush_dirty(self._dirty)
        if not outcome:
            waited = f"{patience:g} s" if patience else f"call_seconds = {longest_silence:g}"
            raise CallTimeout(f"{target.name} gave neither a result nor a heartbeat for {waited}")
        return _value(*outcome[0])

    def notify(self, target: PeerSession, method: str, source: Address, stamp: Fields) -> None:
        """Call *method* at *target* as *source* without waiting; nothing happens when it is gone."""
        if target.open:
            target.outbox.put_control(*calls.notice(target.name, method).encode(stamp))
            flush_dirty(self._dirty)

    def caller_of(self, sender: PeerSession, to: Address, function: object) -> CallBack:
        """What calls a function that *sender* has sent along with a call to *to*. Raises what :meth:`call` raises.

        Raises :class:`InvalidArgument` itself for what is no function, or one of somebody else.
        """
        told = function if isinstance(function, dict) and values.is_method(function) else {}
        method, target = told.get("_rmethod"), told.get("_rtarget")
        if not isinstance(method, str) or target not in (sender.name, sender.address.client):
            raise InvalidArgument("a function to be called back must be one of the caller's own")
        return partial(self.call, sender, method, source=to, stamp=server_stamp(to, sender.address.workspace))

    async def _send(
        self,
        target: PeerSession,
        stamp: Fields,
        message: calls.Message,
        source: Address,
        session_id: str | None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Send a message in one piece, or in parts when its receiver could not take it (``protocol.md`` 2.6).

        *session_id* is the caller's session when the message is a result: the parts then keep it alive. *progress* is
        called for each part that has arrived.
        """
        header, body = message.encode(stamp)
        part_size = target.dialect.chunk_bytes
        if len(header) + len(body) <= part_size + _CHUNK_HEADROOM or _is_chunk_call(message):
            await self._put(target, header, body)
            return
        key, keeps_alive = session_id or secrets.token_urlsafe(12), session_id is not None

        async def cache(operation: str, *args: Any) -> None:
            # All arguments by position: a JavaScript receiver appends the context after them (protocol.md 11.9).
            await self.call(target, CACHE_PREFIX + operation, [key, *args, keeps_alive], source=source, stamp=stamp)
            progress()

        await cache("create")
        for part in slices(header + body, part_size):
            await cache("append", part)
        await cache("process")

    async def _put(self, target: PeerSession, header: bytes, body: bytes) -> None:
        while not target.outbox.put(header, body):
            if not target.open:
                raise PeerGone(gone_text(target.address))
            await target.outbox.wait_room(len(header) + len(body))
        target.outbox.flush()


async def _outcome(call: Callable[[], Awaitable[Any]]) -> tuple[bool, Any]:
    try:
        return True, await call()
    except HyphaError as exc:
        return False, _error(exc)
    except Exception as exc:  # noqa: BLE001  the call boundary: a fault of ours must not end the connection
        return False, _error(internal_error(exc))


def _is_visible(workspace: Workspace, sender: PeerSession) -> bool:
    """A workspace of others answers those who may see it; to the rest it is as if it were not there."""
    known = {sender.address.workspace, PUBLIC_WORKSPACE}
    return workspace.name in known or may(sender.principal, Action.READ, workspace).allowed


def _answer(to: str, promise: Promise, session_id: str, succeeded: bool, value: Any) -> calls.Message:
    try:
        return calls.answer(to, promise.resolve if succeeded else promise.reject, session_id, value)
    except InvalidArgument as exc:  # what came in as msgpack need not go out again: it may be nested too deeply
        return calls.answer(to, promise.reject, session_id, _error(exc))


async def _callback(name: str, function: Callback, body: CallBody) -> Any:
    try:
        bound = inspect.signature(function).bind(*body.args, **body.kwargs)
    except TypeError as exc:
        raise InvalidArgument(f"{name}: {exc}") from exc
    return await function(*bound.args, **bound.kwargs)


def _error(exc: HyphaError) -> dict[str, Any]:
    return values.error(exc.remote_text(), exc.code)


def _is_chunk_call(message: calls.Message) -> bool:
    return str(message.fields["method"]).startswith(CACHE_PREFIX)


def _value(succeeded: bool, value: Any) -> Any:
    if succeeded:
        return value
    if isinstance(value, HyphaError):
        raise value
    raise RemoteError(values.error_text(value))


# --- messages in parts, the server being the receiver ---------------------------------------------------------


def chunk_functions(server: ServerSession) -> dict[str, Function]:
    """The five functions of the server's message cache (``protocol.md`` 2.7)."""

    async def create(call: ServerCall, key: str, heartbeat: bool = False, overwrite: bool = False) -> None:
        call.sender.chunks.create(_text(key), overwrite=bool(overwrite))
        server.keep_alive(call, key, heartbeat)

    async def append(call: ServerCall, key: str, data: bytes, heartbeat: bool = False) -> None:
        call.sender.chunks.append(_text(key), _data(data))
        server.keep_alive(call, key, heartbeat)

    async def set_part(call: ServerCall, key: str, index: int, data: bytes, heartbeat: bool = False) -> None:
        if not isinstance(index, int) or not 0 <= index < 1_000_000:
            raise InvalidArgument("index must be a whole number")
        call.sender.chunks.set(_text(key), index, _data(data))
        server.keep_alive(call, key, heartbeat)

    async def process(call: ServerCall, key: str, heartbeat: bool = False) -> None:
        frame = server.reader.read(call.sender.chunks.take(_text(key)))
        if frame.method is not None and frame.method.startswith(CACHE_PREFIX):
            raise ProtocolViolation("a message in parts cannot itself be a part")
        settle(call.sender, server, frame)
        server.deliver(call.sender, frame, call.to)

    async def remove(call: ServerCall, key: str) -> None:
        call.sender.chunks.remove(_text(key))

    return {
        CACHE_PREFIX + "create": Function.of(create),
        CACHE_PREFIX + "append": Function.of(append),
        CACHE_PREFIX + "set": Function.of(set_part),
        CACHE_PREFIX + "process": Function.of(process),
        CACHE_PREFIX + "remove": Function.of(remove),
    }


def _text(key: object) -> str:
    if not isinstance(key, str):
        raise InvalidArgument("key must be text")
    return key


def _data(data: object) -> bytes:
    if not isinstance(data, bytes):
        raise InvalidArgument("data must be bytes")
    return data
