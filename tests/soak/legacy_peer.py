"""A client of the imjoy-rpc generation, written by hand on a raw socket, that can end in every way a client can.

It speaks what ``protocol.md`` 1.2, 2, 4 and 5.4 say of client A: credentials in the query, explicit promises,
registration by call-back, a heartbeat at the start of every function that takes time. Nothing of the server's code
is used. ``tests/clients`` has the published clients; thousands of them would not fit a test.
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any

import msgpack
import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

Function = Callable[..., Any]
Map = dict[str, Any]
Send = Callable[[Map, Map], Awaitable[None]]

MANAGER = "workspace-manager"
_USER_AGENT = "Python/3.11 websockets/12.0"

CACHE = "services.built-in.message_cache."
#: Bytes of a part of a message, and of the largest message that is sent whole.
_PART, _WHOLE = 400_000, 512_000
#: So many messages in parts are kept: most of the older ones will never be finished.
_UNFINISHED = 64


class Refused(Exception):
    """The server did not accept the websocket. The first argument is the HTTP status."""


class CallFailed(Exception):
    """The call was rejected; the text is the one that the callee, or the server in its name, sent."""


class Disconnected(Exception):
    """The connection ended before the answer came."""


@dataclass(eq=False)
class Pending:
    """A call that waits for its answer."""

    settled: trio.Event = field(default_factory=trio.Event)
    #: (succeeded, value or error text); None when the connection ended first.
    outcome: tuple[bool, Any] | None = None


def handshake(host: str, query: Mapping[str, str]) -> bytes:
    """The upgrade request; values are written as they are, as these clients do."""
    pairs = "&".join(f"{name}={value}" for name, value in query.items())
    lines = [
        f"GET /ws?{pairs} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: c29hay1zb2FrLXNvYWstcw==",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        f"User-Agent: {_USER_AGENT}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def dial(port: int) -> trio.SocketStream:
    """A TCP connection to the server under test."""
    return await trio.open_tcp_stream("127.0.0.1", port)


def reset(stream: trio.SocketStream) -> None:
    """End a connection with RST, as a killed host or a firewall does."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


class LegacyPeer:
    """One client. *services* outlives the connection: pass it to the client that comes back in this one's place."""

    def __init__(self, client_id: str, services: Map, stream: trio.SocketStream, nursery: trio.Nursery) -> None:
        self.client_id = client_id
        self.services = services
        self.workspace = ""
        self.reconnection_token = ""
        self.manager: Map = {}
        #: Code of the server's close frame, None when there was none.
        self.close_code: int | None = None
        #: The server's close frame has come, or the stream has ended.
        self.dismissed = trio.Event()
        #: The stream has ended.
        self.ended = trio.Event()
        self._stream = stream
        self._nursery = nursery
        self._codec = Connection(ConnectionType.CLIENT)
        self._sending = trio.Lock()
        self._frozen = False
        self._parts: list[bytes] = []
        self._cached: dict[str, list[bytes]] = {}
        self._pending: dict[str, Pending] = {}
        self._callbacks: dict[str, Function] = {}

    @property
    def address(self) -> str:
        """``workspace/client``."""
        return f"{self.workspace}/{self.client_id}"

    # --- calling ----------------------------------------------------------------------------------------------

    async def call(self, target: str, method: str, *args: Any, interval: float = 5.0, **kwargs: Any) -> Any:
        """Call *method* of *target*. *interval*: seconds between the heartbeats that are asked of the callee.

        Raises :class:`CallFailed` or :class:`Disconnected`. A cancelled call is forgotten: its callee learns that
        from its next heartbeat.
        """
        if self.ended.is_set():
            raise Disconnected
        session, pending = secrets.token_hex(8), Pending()
        self._pending[session] = pending
        self._callbacks[f"{session}.hb-reset"] = lambda: None
        try:
            extra = {"args": self._encode([*args, kwargs] if kwargs else list(args), session)}
            if kwargs:
                extra["with_kwargs"] = True
            extra["promise"] = self._promise(session, interval)
            await self.deliver({"to": target, "method": method, "session": session}, extra)
            await pending.settled.wait()
        finally:
            del self._pending[session]
            for name in [name for name in self._callbacks if name.startswith(session)]:
                del self._callbacks[name]
        if pending.outcome is None:
            raise Disconnected
        succeeded, value = pending.outcome
        if not succeeded:
            raise CallFailed(value)
        return value

    async def invoke(self, method: Map, *args: Any, **kwargs: Any) -> Any:
        """Call a function that was received as a value (``protocol.md`` 3.2)."""
        return await self.call(method["_rtarget"], method["_rmethod"], *args, **kwargs)

    async def send(self, main: Map, extra: Map | None = None) -> None:
        """Send one message. Raises :class:`Disconnected`."""
        await self._send_packed(self._packed(main, extra))

    async def deliver(self, main: Map, extra: Map) -> None:
        """Send one message, in parts when it is a large one (``protocol.md`` 2.7).

        The parts are calls: not for the task that reads their answers. Raises what :meth:`call` raises.
        """
        packed = self._packed(main, extra)
        if len(packed) <= _WHOLE:
            await self._send_packed(packed)
            return
        key = secrets.token_hex(8)
        await self.call(main["to"], CACHE + "create", key, False)
        for start in range(0, len(packed), _PART):
            await self.call(main["to"], CACHE + "append", key, packed[start : start + _PART], False)
        await self.call(main["to"], CACHE + "process", key, False)

    def _packed(self, main: Map, extra: Map | None) -> bytes:
        packed: bytes = msgpack.packb({"type": "method", "from": self.client_id, **main})
        return packed if extra is None else packed + msgpack.packb(extra)

    async def _send_packed(self, packed: bytes) -> None:
        if self._codec.state is not ConnectionState.OPEN:
            raise Disconnected
        await self.send_raw(self._codec.send(BytesMessage(packed)))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes that need not be a websocket frame. Raises :class:`Disconnected`."""
        try:
            async with self._sending:
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise Disconnected from exc

    def _promise(self, session: str, interval: float) -> Map:
        return {
            "heartbeat": self._method(f"{session}.hb-reset"),
            "interval": interval,
            "resolve": self._method(f"{session}.resolve", promise=False),
            "reject": self._method(f"{session}.reject", promise=False),
        }

    def _method(self, name: str, *, promise: bool = True) -> Map:
        return {"_rtype": "method", "_rtarget": self.client_id, "_rmethod": name, "_rpromise": promise}

    def _encode(self, value: Any, session: str) -> Any:
        """*value* with its functions as methods of *session*."""
        if callable(value):
            name = f"{session}.{secrets.token_hex(2)}-{value.__name__}"
            self._callbacks[name] = value
            return self._method(name)
        if isinstance(value, dict):
            return {key: self._encode(item, session) for key, item in value.items()}
        return [self._encode(item, session) for item in value] if isinstance(value, list) else value

    # --- the conversations of the library ---------------------------------------------------------------------

    async def introduce(self) -> None:
        """What the library does right after it connected (``protocol.md`` 5.1)."""
        self.manager = await self.call(MANAGER, "services.built-in.get_service", "default")
        info = await self.invoke(self.manager["getConnectionInfo"])
        self.workspace, self.reconnection_token = info["workspace"], info["reconnection_token"]

    async def register(self, service: Map, **options: Any) -> str:
        """``server.register_service``; returns the service's absolute id (``protocol.md`` 5.4)."""
        answer = await self.invoke(self.manager["registerService"], service, **options)
        return str(answer["id"])

    async def _register_locally(self, service: Map, overwrite: bool = False, notify: bool = True) -> Map:
        """Step 2 of 5.4: take the functions over from the session of our own call, tell the manager, answer."""
        name = service["id"]
        if name in self.services and not overwrite:
            raise ValueError(f"Service already exists: {name}, please specify a different id or overwrite=True")
        self.services[name] = {key: self._own(value) for key, value in service.items()}
        if notify:
            entries = [self._describe(known) for known in self.services.values()]
            await self.invoke(self.manager["update_client_info"], {"id": self.client_id, "services": entries})
        return self._describe(service)

    def _own(self, value: Any) -> Any:
        return self._callbacks[value["_rmethod"]] if isinstance(value, dict) and "_rmethod" in value else value

    def _describe(self, service: Map) -> Map:
        config = {"visibility": "protected", **service.get("config", {})}
        return {"id": f"{self.client_id}:{service['id']}", "type": "generic", "name": service["id"], "config": config}

    def _get_service(self, name: str) -> Map:
        if name not in self.services:
            raise KeyError(f"Service not found: {name}")
        service = self.services[name]
        functions = {key: self._method(f"services.{name}.{key}") for key, value in service.items() if callable(value)}
        for method in functions.values():
            method["_rtarget"] = self.address
        return {**service, **functions}

    # --- being called -----------------------------------------------------------------------------------------

    async def _take(self, message: bytes) -> None:
        await self._dispatch(*_unpacked(message))

    async def _dispatch(self, main: Map, extra: Map) -> None:
        method = main.get("method", "")
        session, _, word = method.rpartition(".")
        if word in {"resolve", "reject"} and session in self._pending:
            (value,) = extra["args"]
            pending = self._pending[session]
            pending.outcome = (True, value) if word == "resolve" else (False, value["_rvalue"])
            pending.settled.set()
        elif method == CACHE + "process":
            await self._process(main, extra)
        elif main["type"] == "method":
            await self._serve(main, extra)

    async def _process(self, main: Map, extra: Map) -> None:
        """All parts of a message have come: it is as good as one that came whole, from whoever says so."""
        parts = self._cached.pop(extra["args"][0], None)
        if parts is None:
            await self._answer(main, extra, "reject", f"Message with key {extra['args'][0]} does not exists.")
            return
        await self._answer(main, extra, "resolve", None)
        inner, body = _unpacked(b"".join(parts))
        await self._dispatch({**inner, **{name: main[name] for name in ("from", "to", "user")}}, body)

    async def _serve(self, main: Map, extra: Map) -> None:
        function = self._find(main["method"])
        args, kwargs = extra.get("args") or [], {}
        if extra.get("with_kwargs"):
            *args, kwargs = args
        kwargs.pop("_rkwargs", None)
        if function is None:
            await self._answer(main, extra, "reject", f"Method not found: {main['method']}")
            return
        try:
            value = function(*args, **kwargs)
        except Exception as exc:  # noqa: BLE001  the call boundary of a client: its caller gets the text
            await self._answer(main, extra, "reject", str(exc))
            return
        if isawaitable(value):
            self._nursery.start_soon(self._finish, main, extra, value)
        else:
            await self._answer(main, extra, "resolve", value)

    def _find(self, method: str) -> Function | None:
        if method in self._callbacks:
            return self._callbacks[method]
        head, _, path = method.partition(".")
        name, _, key = path.partition(".")
        if head != "services":
            return None
        if name == "built-in":
            return self._built_in.get(key)
        found = self.services.get(name, {}).get(key)
        return found if callable(found) else None

    @property
    def _built_in(self) -> dict[str, Function]:
        return {
            "get_service": self._get_service,
            "register_service": self._register_locally,
            "ping": lambda message: "pong",
            "message_cache.create": self._create,
            "message_cache.append": lambda key, part, *args, **kwargs: self._cached[key].append(part),
        }

    def _create(self, key: str, *args: Any, **kwargs: Any) -> None:
        self._cached[key] = []
        if len(self._cached) > _UNFINISHED:
            del self._cached[next(iter(self._cached))]

    async def _finish(self, main: Map, extra: Map, value: Awaitable[Any]) -> None:
        """Await a function that takes time. A heartbeat that fails cancels it, as in the library (4.6)."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat, main, extra, nursery.cancel_scope)
            try:
                await self._answer(main, extra, "resolve", await value, self.deliver)
            except (CallFailed, ValueError) as exc:
                await self._answer(main, extra, "reject", str(exc))
            except Disconnected:
                pass  # nobody is left to be answered
            nursery.cancel_scope.cancel()

    async def _beat(self, main: Map, extra: Map, function: trio.CancelScope) -> None:
        promise = extra.get("promise")
        if promise is None:
            return
        beat = promise["heartbeat"]
        try:
            while True:
                await self.call(self._target(main, beat), beat["_rmethod"])
                await trio.sleep(promise["interval"])
        except (CallFailed, Disconnected):
            function.cancel()

    async def _answer(self, main: Map, extra: Map, word: str, value: Any, send: Send | None = None) -> None:
        promise = extra.get("promise")
        if promise is None:
            return
        to = promise[word]
        result = {"_rtype": "error", "_rvalue": value} if word == "reject" else value
        header = {"to": self._target(main, to), "method": to["_rmethod"], "parent": main["session"]}
        await (send or self.send)(header, {"args": [result]})

    def _target(self, main: Map, method: Map) -> str:
        """Where *method* is called: a relative target belongs to the workspace of its sender (3.2)."""
        target: str = method["_rtarget"]
        return target if "/" in target else f"{main['from'].partition('/')[0]}/{target}"

    # --- the socket -------------------------------------------------------------------------------------------

    async def read(self, early: bytes) -> None:
        """Read until the connection ends; then every call that waits fails. *early* was read with the handshake."""
        try:
            await self._feed(early)
            while data := await self._stream.receive_some(65536):
                if not self._frozen:
                    await self._feed(bytes(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError, Disconnected):
            pass  # an end as good as any other
        finally:
            self.dismissed.set()
            self.ended.set()
            for pending in self._pending.values():
                pending.settled.set()

    async def _feed(self, data: bytes) -> None:
        self._codec.receive_data(data)
        for event in self._codec.events():
            if isinstance(event, BytesMessage):
                self._parts.append(bytes(event.data))
                if event.message_finished:
                    message, self._parts = b"".join(self._parts), []
                    await self._take(message)
            elif isinstance(event, Ping):
                if self._codec.state is ConnectionState.OPEN:
                    await self.send_raw(self._codec.send(event.response()))
            elif isinstance(event, CloseConnection):
                await self._take_close(event)
            else:
                # A client of this generation dies of a text frame (protocol.md 1.2).
                raise AssertionError(f"the server sent {event!r} to a legacy client")

    async def _take_close(self, event: CloseConnection) -> None:
        if self.close_code is None:
            self.close_code = event.code
            self.dismissed.set()
        if self._codec.state is ConnectionState.REMOTE_CLOSING:
            await self.send_raw(self._codec.send(event.response()))  # the server ends the stream (RFC 6455 7.1.1)

    # --- the ends ---------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """The clean end: 1000, the server's answer, the end of the stream."""
        await self.send_raw(self._codec.send(CloseConnection(1000, "")))
        await self.ended.wait()

    def vanish(self) -> None:
        """FIN without a close frame: a client whose process ended."""
        self._stream.socket.close()

    def reset(self) -> None:
        """RST: a client whose host was rebooted."""
        reset(self._stream)

    def freeze(self) -> None:
        """Answer nothing any more, pings included, and keep the socket: a half-open connection."""
        self._frozen = True

    def text_frame(self) -> bytes:
        """A frame that no client of this generation sends."""
        return self._codec.send(TextMessage("no"))


@asynccontextmanager
async def connect(
    port: int, client_id: str, *, services: Map | None = None, **credentials: str
) -> AsyncIterator[LegacyPeer]:
    """A connected and introduced client; its socket is closed at the end of the block, its functions are cancelled.

    *credentials*: ``workspace``, ``token``, ``reconnection_token``. Raises :class:`Refused`.
    """
    async with await dial(port) as stream:
        await stream.send_all(handshake(f"127.0.0.1:{port}", {"client_id": client_id, **credentials}))
        status, early = await _read_head(stream)
        if status != 101:
            raise Refused(status)
        async with trio.open_nursery() as nursery:
            peer = LegacyPeer(client_id, {} if services is None else services, stream, nursery)
            nursery.start_soon(peer.read, early)
            await peer.introduce()
            yield peer
            nursery.cancel_scope.cancel()


def _unpacked(message: bytes) -> tuple[Map, Map]:
    unpacker = msgpack.Unpacker(max_buffer_size=len(message) + 1)
    unpacker.feed(message)
    main, *rest = unpacker
    return main, rest[0] if rest else {}


async def _read_head(stream: trio.SocketStream) -> tuple[int, bytes]:
    """The status of the answer to the upgrade, and the bytes behind its head."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = await stream.receive_some(65536)
        if not received:
            raise Disconnected
        data += received
    head, _, early = data.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), early
