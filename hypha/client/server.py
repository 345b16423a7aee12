"""The server as a program sees it: what it may ask for, and what it offers (``protocol.md`` 5.3)."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import trio

from hypha.client.channel import Channel, Dial
from hypha.client.link import Link
from hypha.client.peer import Peer
from hypha.client.remote import Service
from hypha.client.run import RAISED, Runner, TrioRunner, own_error
from hypha.client.service import parse_service
from hypha.client.settings import Settings, parse_settings
from hypha.client.values import Codec, Record
from hypha.errors import HyphaError, InvalidArgument, NotFound

logger = logging.getLogger(__name__)

_MANAGER = "services.default."
_MAX_EVENTS = 10_000  # that wait for one handler


class Server:
    """A connection to a server, which comes back by itself when it is lost.

    Every function of the server's manager can be called as ``await server.name(...)``; those that programs need most
    are written out below. All of them raise :class:`hypha.errors.HyphaError`: :class:`NotFound`,
    :class:`PermissionDenied` and so on, and :class:`PeerGone` when the connection is lost meanwhile. Called while it
    is lost, they wait for the next one: give them a deadline.
    """

    def __init__(self, settings: Settings, dial: Dial | None, runner: Runner) -> None:
        self.config = Record()
        self._peer = Peer(runner, settings.method_timeout, self._take_event)
        self._link = Link(self._peer, settings, dial, self._came, self._went)
        self._listeners: dict[str, list[_Listener]] = {}
        self._subscribed: set[str] = set()
        #: Held by who tells the server of services, so that it hears of them in the order in which they changed.
        self._telling = trio.Lock()
        #: The ids of services that the server may have of this program.
        self._told: set[str] = set()
        self._nursery: trio.Nursery | None = None

    @property
    def peer(self) -> Peer:
        """What speaks for this program on the wire."""
        return self._peer

    # --- lifetime ---------------------------------------------------------------------------------------------

    async def start(self, nursery: trio.Nursery) -> None:
        """Connect; the tasks run in *nursery* until :meth:`disconnect`, which must follow whatever happens here.

        Raises the :class:`HyphaError` that says why there is no connection.
        """
        self._nursery = nursery
        nursery.start_soon(self._link.live)
        await self._link.wait_up()

    async def serve(self) -> None:
        """Wait until :meth:`disconnect`, or until the server refuses this client for good, which is raised."""
        await self._link.wait_over()

    async def disconnect(self) -> None:
        """Say goodbye: nothing of this program is left at the server."""
        await self._link.close()

    async def _came(self, channel: Channel) -> None:
        """There is a connection: tell the server again what this program offers and wants to hear."""
        told = {key: value for key, value in channel.info.items() if key != "type"}
        self.config = Record({**told, "id": self._peer.name})
        await self._tell_again(channel)
        self._fire("connected", Record(self.config))

    async def _tell_again(self, channel: Channel) -> None:
        async with self._telling:
            for name in sorted(self._told | self._peer.store.services.keys()):
                try:
                    await self._tell(channel, name)
                except HyphaError as exc:
                    logger.warning("the service %s could not be registered again: %s", name, exc)
        try:
            if self._subscribed:
                await self._ask("subscribe", sorted(self._subscribed), through=channel)
        except HyphaError as exc:
            logger.warning("the server does not tell of events any more: %s", exc)

    async def _tell(self, channel: Channel, name: str) -> None:
        """Let the server know what this program offers as *name* now, if anything."""
        service = self._peer.store.services.get(name)
        if service is not None:
            self._told.add(name)
            info = service.info(self._peer.name, self._peer.workspace)
            await self._ask("register_service", info, through=channel)
        elif name in self._told:
            with suppress(NotFound):
                await self._ask("unregister_service", f"{self._peer.name}:{name}", through=channel)
            self._told.discard(name)

    def _went(self, error: HyphaError, comes_back: bool) -> None:
        self._fire("disconnected", Record(reason=str(error), reconnecting=comes_back))

    # --- services ---------------------------------------------------------------------------------------------

    async def register_service(
        self, api: Any, config: Mapping[str, Any] | None = None, *, overwrite: bool = False
    ) -> Record:
        """Offer a service: a map with an ``id`` and functions, or an object with methods.

        *config* is laid over its ``config``: ``visibility`` (protected, public, unlisted), ``require_context``. Async
        functions run in trio, plain ones in threads. Returns its description, whose ``id`` is
        ``workspace/client:service``. Raises :class:`InvalidArgument`, :class:`Conflict`, :class:`PermissionDenied`,
        :class:`LimitExceeded`.
        """
        service = parse_service(api, config)
        before = self._peer.store.services.get(service.id)
        self._peer.store.register(service, overwrite=overwrite)
        told = False
        try:
            await self._announce(service.id)
            told = True
        finally:
            if not told and self._peer.store.services.get(service.id) is service:
                self._peer.store.replace(service.id, before)
                self._forget_soon(service.id)
        return Record(service.info(self._peer.name, self._peer.workspace))

    def _forget_soon(self, name: str) -> None:
        """The server may have heard of what this program does not offer: set that right, without waiting."""
        before = self._peer.store.services.get(name)
        if before is None:
            target = f"{self._peer.name}:{name}"
            self._peer.ask(self._peer.manager, _MANAGER + "unregister_service", [target], "*")
        else:
            info = before.info(self._peer.name, self._peer.workspace)
            self._peer.ask(self._peer.manager, _MANAGER + "register_service", [info], "*")

    async def _announce(self, name: str) -> None:
        channel = await self._peer.channel()
        async with self._telling:
            await self._tell(channel, name)

    async def unregister_service(self, service: str | Mapping[str, Any]) -> None:
        """Take a service back: its id, or what :meth:`register_service` returned. Raises :class:`NotFound`."""
        service_id = _service_id(service).rpartition(":")[2].rpartition("/")[2]
        if self._peer.store.services.pop(service_id, None) is None:
            raise NotFound(f"this program offers no service {service_id!r}")
        await self._announce(service_id)

    async def get_service(self, service: str | Mapping[str, Any], **options: Any) -> Service:
        """The service of that id, whose functions can be called: ``[workspace/][client:]id``.

        *options*: ``mode`` (random, first, last, min_load, round_robin, least_in_flight) says which of several;
        ``timeout`` in seconds. Raises :class:`ServiceNotFound` and :class:`PermissionDenied`.
        """
        return Service(await self._ask("get_service", _service_id(service), options))

    async def list_services(self, query: str | Mapping[str, Any] | None = None, **options: Any) -> list[Record]:
        """Descriptions of services: of this workspace, of another, or those that match a map."""
        return list(await self._ask("list_services", query, **options))

    # --- workspaces and tokens --------------------------------------------------------------------------------

    async def generate_token(self, config: Mapping[str, Any] | None = None) -> str:
        """A token for others: ``workspace``, ``permission`` (read, read_write, admin), ``expires_in`` seconds."""
        return str(await self._ask("generate_token", dict(config or {})))

    async def create_workspace(self, config: Mapping[str, Any], *, overwrite: bool = False) -> Record:
        """Make a workspace: ``id`` or ``name``, ``owners``, ``persistent`` and so on. Raises :class:`Conflict`."""
        if not isinstance(config, Mapping):
            raise InvalidArgument(f"create_workspace takes a map, such as {{'id': {config!r}}}")
        return Record(await self._ask("create_workspace", dict(config), overwrite))

    # --- events -----------------------------------------------------------------------------------------------

    def on(self, event: str, handler: Callable[..., Any]) -> None:
        """Call *handler* with each event of that type, a map, one after the other.

        ``connected`` and ``disconnected`` are our own.
        """
        assert self._nursery is not None
        listener = _Listener(handler, self._peer.runner)
        self._listeners.setdefault(event, []).append(listener)
        self._nursery.start_soon(listener.run)

    def off(self, event: str, handler: Callable[..., Any] | None = None) -> None:
        """The opposite of :meth:`on`; without *handler* for all of that type."""
        kept = []
        for listener in self._listeners.pop(event, []):
            if handler is None or listener.handler == handler:
                listener.end()
            else:
                kept.append(listener)
        if kept:
            self._listeners[event] = kept

    async def emit(self, event: str, data: Any = None, to: str = "*") -> None:
        """Send an event to the client *to*, or to all clients of the workspace that have subscribed to it."""
        address = to if to == "*" or "/" in to else f"{self._peer.workspace}/{to}"
        await self._peer.emit(event, address, data)

    async def subscribe(self, event: str | list[str]) -> None:
        """Hear of events that are sent to all, also after a reconnection; :meth:`on` says what happens then."""
        names = [event] if isinstance(event, str) else event
        await self._ask("subscribe", names)
        self._subscribed.update(names)

    async def unsubscribe(self, event: str | list[str]) -> None:
        """The opposite of :meth:`subscribe`."""
        names = [event] if isinstance(event, str) else event
        self._subscribed.difference_update(names)
        await self._ask("unsubscribe", names)

    def _take_event(self, event: Record) -> None:
        self._fire(str(event.get("type")), event)

    def _fire(self, kind: str, event: Record) -> None:
        for listener in self._listeners.get(kind, ()):
            listener.hear(event)

    # --- the rest ---------------------------------------------------------------------------------------------

    def register_codec(self, config: Mapping[str, Any]) -> None:
        """Say how values of a type of one's own travel: ``name``, ``type``, ``encoder``, ``decoder``."""
        name = config.get("name")
        if not isinstance(name, str) or not (config.get("encoder") or config.get("decoder")):
            raise InvalidArgument("a codec needs a 'name', and an 'encoder' with its 'type', or a 'decoder'")
        kind = config.get("type")
        if config.get("encoder") is not None and not inspect.isclass(kind):
            raise InvalidArgument("a codec with an 'encoder' needs a 'type', the class of what it encodes")
        self._peer.codecs[name] = Codec(name, kind, config.get("encoder"), config.get("decoder"))

    async def _ask(self, name: str, *args: Any, through: Channel | None = None, **kwargs: Any) -> Any:
        """Call a function of the server's manager; *through* this connection and no later one, if it is given."""
        if through is None:
            await self._peer.channel()
        return await self._peer.call(self._peer.manager, _MANAGER + name, args, kwargs, through=through)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return partial(self._ask, name)

    def __repr__(self) -> str:
        return f"<server {self.config.get('public_base_url')} as {self._peer.name}>"


class _Listener:
    """Calls *handler* with events, one after the other."""

    def __init__(self, handler: Callable[..., Any], runner: Runner) -> None:
        self.handler = handler
        self._runner = runner
        self._send, self._receive = trio.open_memory_channel[Record](_MAX_EVENTS)

    def hear(self, event: Record) -> None:
        """Take an event; one that comes when very many wait is dropped."""
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            logger.warning("an event of type %r is dropped: its handler is too slow", event.get("type"))

    def end(self) -> None:
        """No more events will come."""
        self._send.close()

    async def run(self) -> None:
        """The task of the handler."""
        async for event in self._receive:
            try:
                await self._runner.call(self.handler, [event], {})
            except RAISED as exc:  # the program's own: it must not end the connection
                if own_error(exc) is None:
                    raise
                logger.error("the handler of %r failed", event.get("type"), exc_info=exc)


def _service_id(service: str | Mapping[str, Any]) -> str:
    found = service if isinstance(service, str) else service.get("id")
    if not isinstance(found, str):
        raise InvalidArgument("a service is named by its id, a text, or by a map with an 'id'")
    return found


@asynccontextmanager
async def connect_to_server(
    config: Mapping[str, Any] | None = None,
    /,
    *,
    dial: Dial | None = None,
    runner: Runner | None = None,
    **options: Any,
) -> AsyncIterator[Server]:
    """Connect to the server at ``server_url``; the connection lives as long as the block.

    *config*, or keyword arguments: the fields of :class:`hypha.client.settings.Settings`, as for the published
    clients. *dial* opens the stream to the server in another way, *runner* runs the functions of the program in
    another way. Raises :class:`PeerGone` when the server cannot be reached, :class:`NotAuthenticated` and
    :class:`PermissionDenied` when it refuses. What the block raises comes out as it is. Leaving the block, also by
    cancellation, takes at most a second: the server is told.
    """
    if not trio.lowlevel.in_trio_run():
        raise RuntimeError(
            "hypha.client is for programs that trio runs; scripts take hypha.sync, those of asyncio a published one"
        )
    if not (config is None or isinstance(config, Mapping)):
        raise InvalidArgument(f"connect_to_server takes a map, such as {{'server_url': {config!r}}}")
    server = Server(parse_settings({**(config or {}), **options}), dial, runner or TrioRunner())
    error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            await server.start(nursery)
            yield server
        except BaseException as exc:  # noqa: BLE001  raised below, where no nursery wraps it
            error = exc
        await server.disconnect()
        nursery.cancel_scope.cancel()
    if error is not None:
        raise error
