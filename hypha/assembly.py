"""Builds the rooms of one server and opens its root nursery."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
from quart_trio import QuartTrio

from hypha.accounts.oidc import SignInElsewhere, require_oidc
from hypha.accounts.people import People
from hypha.apps.found import require_playwright
from hypha.apps.page import HEADERS
from hypha.apps.service import DESCRIPTION, Apps
from hypha.banner import say
from hypha.broker.broker import Broker
from hypha.broker.registration import parse_registration
from hypha.config import Config
from hypha.errors import NotStored
from hypha.launch.host import BrokerHost
from hypha.launch.launcher import Launcher
from hypha.launch.plan import read_plan
from hypha.launch.supervisor import LaunchFailed
from hypha.lazy import Unservable
from hypha.memory import Spare
from hypha.store import DataDir, Documents, State, open_data_dir, open_state
from hypha.web import accounts, administration, app_pages, assets, guard, listing, login, oidc, shares
from hypha.web.apps import Apps as Mounts
from hypha.web.front import Front
from hypha.web.http import BodyRoom
from hypha.web.pages import create_app
from hypha.web.proxy import Proxy
from hypha.web.rpc import Rpc
from hypha.web.shares import SharedCalls
from hypha.web.upgrade import Upgrade
from hypha.web.ws import GOODBYE_SECONDS, Connections

_SWEEP_SECONDS = 1.0
_DRAIN_STEP = 0.02  # seconds
_KEEP_SECONDS = 2.0


class Assembly:
    """One server as an ASGI application.

    The root nursery belongs to one task that the ASGI lifespan starts (``stack.md`` section 2), and is cancelled
    after Hypercorn has ended the connections. The data directory is locked as long as the lifespan.
    """

    def __init__(self, config: Config) -> None:
        """Raises :class:`hypha.errors.ConfigError` for what is to start with the server and cannot."""
        self.config = config
        config.check()
        if config.enable_server_apps:
            require_playwright()
        if config.oidc_issuer is not None:
            require_oidc()
        self._plan = read_plan(config.services_config, config.startup_functions)
        self._launcher: Launcher | None = None
        self._door: guard.Door | None = None
        self._opened = trio.Event()
        self.is_ready = False
        #: Whether threads write what is kept and hash passwords, as they should where time is real.
        self.writes_in_thread = True
        self._rooms: Rooms | None = None
        self._nursery: trio.Nursery | None = None
        self._terminated: Any = None
        self._stop = trio.Event()
        self._done = trio.Event()
        self._app = create_app(self)
        assets.add_routes(self._app)
        for pages_of in (listing, login, administration):
            pages_of.add_routes(self._app, lambda: self._open_rooms().broker)
        for pages_with_people in (accounts, shares):
            pages_with_people.add_routes(
                self._app, lambda: self._open_rooms().broker, lambda: self._open_rooms().people
            )
        oidc.add_routes(
            self._app,
            lambda: self._open_rooms().broker,
            lambda: self._open_rooms().people,
            lambda: self._open_rooms().elsewhere,
        )
        app_pages.add_routes(self._app, lambda: self._open_rooms().apps, HEADERS)
        self._app.before_serving(self._start)
        self._app.after_serving(self._finish)

    async def first_invitation(self) -> str | None:
        """The secret of a new invitation for an administrator, while there is none or when one is asked for.

        To be called once the server is ready. It is kept then, so that it is good also when this process is killed; a
        disk that does not take it, or does not answer, holds nobody up, and the invitation is good in this process.
        """
        rooms = self._open_rooms()
        secret = rooms.people.accounts.first_invitation(always=self.config.owner_link)
        if secret is not None:
            with trio.move_on_after(_KEEP_SECONDS), suppress(NotStored):
                await rooms.broker.records.kept()
        return secret

    @property
    def services_loaded(self) -> bool:
        """Whether everything that starts with the server is ready, or there is nothing of the kind."""
        loaded = self._plan.is_empty or (self._launcher is not None and self._launcher.loaded)
        return self.is_ready and loaded

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One ASGI call."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            self._watch(scope)
            await self._open_rooms().front(scope, receive, send)

    async def _live(self, scope: Any, receive: Any, send: Any) -> None:
        """The lifespan. Raises :class:`hypha.errors.ConfigError` when the data directory cannot be used."""
        # Around Quart's own lifespan, which would log the refusal of a data directory with its traceback.
        with open_data_dir(self.config.data_dir) as data_dir, closing(open_state(data_dir.path)) as state:
            self._rooms = rooms = _build_rooms(self.config, self._app, data_dir, state)
            shared = scope.setdefault("state", {})
            shared[guard.CONNECTIONS] = self.config.limits.connections
            shared[guard.TURNSTILE] = rooms.connections.turnstile
            if not self._plan.is_empty or rooms.apps is not None:
                shared[guard.OPENED] = self._on_opened
            app: Any = self._app
            try:
                await app(scope, receive, send)
            finally:
                rooms.broker.tokens.issued.write_down()
                rooms.broker.records.close()

    def _open_rooms(self) -> Rooms:
        assert self._rooms is not None, "requests come after the start of the lifespan"
        return self._rooms

    def _watch(self, scope: Any) -> None:
        """Learn from the first connection when Hypercorn shuts down: nobody tells the application in time."""
        if self._terminated is None and self._nursery is not None and "hypha.guard" in scope.get("extensions", {}):
            connection: guard.GuardedServer = scope["extensions"]["hypha.guard"]
            self._terminated = connection.terminated
            self._nursery.start_soon(self._say_goodbye, connection.config.graceful_timeout)

    async def _say_goodbye(self, graceful_seconds: float) -> None:
        """Let calls that run when Hypercorn shuts down come to their end, then tell all clients to come back.

        Hypercorn cuts all connections after *graceful_seconds*; what a goodbye takes of them is not the calls'.
        """
        await self._terminated.wait()
        self.is_ready = False
        if self._launcher is not None:
            self._launcher.retire()
        server_apps = self._open_rooms().apps
        if server_apps is not None:
            server_apps.retire()
        patience = min(graceful_seconds, self.config.limits.drain_seconds) - GOODBYE_SECONDS
        with trio.move_on_after(max(0, patience)):
            while self._open_rooms().broker.is_busy():  # noqa: ASYNC110  the frame path tells nobody of an end
                await trio.sleep(_DRAIN_STEP)
        self._open_rooms().connections.say_goodbye("the server is restarting")

    def _on_opened(self, door: guard.Door) -> None:
        self._door = door
        self._opened.set()

    async def _launch(self) -> None:
        """Start what starts with the server when it can be reached, and keep it (C-START-2)."""
        await self._opened.wait()
        assert self._door is not None
        rooms = self._open_rooms()
        host = BrokerHost(rooms.broker, self._door, say)
        self._launcher = Launcher(self._plan, host, self.config.environ)
        try:
            await self._launcher.run()
        except* LaunchFailed as failures:
            self.is_ready = False
            rooms.connections.say_goodbye("the server is ending")
            raise Unservable("\n".join(map(str, _leaves(failures)))) from None

    async def _run_apps(self, server_apps: Apps) -> None:
        """Run server apps from when the server can be reached on."""
        await self._opened.wait()
        assert self._door is not None
        await server_apps.run(BrokerHost(self._open_rooms().broker, self._door, say))

    async def _start(self) -> None:
        await self._app.nursery.start(self._run)

    async def _run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        rooms = self._open_rooms()
        rooms.people.accounts.passwords.in_thread = self.writes_in_thread
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(_sweep, rooms)
                nursery.start_soon(partial(rooms.broker.records.run, in_thread=self.writes_in_thread))
                if not self._plan.is_empty:
                    nursery.start_soon(self._launch)
                if rooms.apps is not None:
                    nursery.start_soon(self._run_apps, rooms.apps)
                self.is_ready = True
                task_status.started()
                await self._stop.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.is_ready = False
            self._done.set()

    async def _finish(self) -> None:
        self._stop.set()
        await self._done.wait()


@dataclass(frozen=True, slots=True)
class Rooms:
    """What lives as long as the data directory is held."""

    broker: Broker
    connections: Connections
    front: Front
    people: People
    elsewhere: SignInElsewhere | None
    apps: Apps | None


def _leaves(group: BaseExceptionGroup[LaunchFailed]) -> Iterator[LaunchFailed]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _build_rooms(config: Config, app: QuartTrio, data_dir: DataDir, state: State) -> Rooms:
    key = data_dir.signing_key()
    broker = Broker(config, key, _server_id(key), store=state)
    connections = Connections(broker)
    bodies = BodyRoom(config.limits.http_bodies_bytes)
    rpc = Rpc(broker, connections, bodies)
    people, proxy = People(broker), Proxy(broker, bodies)
    branches = Upgrade(broker, connections), rpc, proxy, Mounts(broker, bodies), SharedCalls(people, proxy)
    server_apps = _build_apps(broker, data_dir) if config.enable_server_apps else None
    people.restore(broker.restore())
    elsewhere = None if config.oidc_issuer is None else _build_elsewhere(broker, people)
    return Rooms(broker, connections, Front(config, app, *branches), people, elsewhere, server_apps)


def _build_elsewhere(broker: Broker, people: People) -> SignInElsewhere:
    from hypha.accounts.provider import Provider  # it needs the extra, which a server without a provider does without

    return SignInElsewhere(broker, people.accounts, Provider(broker.config))


def _build_apps(broker: Broker, data_dir: DataDir) -> Apps:
    server_apps = Apps(broker, Documents(data_dir.path / "apps"), data_dir.path / "browser", say)
    entry = parse_registration(DESCRIPTION, broker.server.address.client)
    broker.server.own.add(entry, server_apps.functions())
    broker.launch = server_apps.launch_for
    return server_apps


def _server_id(key: bytes) -> str:
    """The name of the server on the wire: the same for the life of the data directory (``protocol.md`` 1.6)."""
    return hashlib.sha256(b"hypha server id" + key).hexdigest()[:22]


async def _sweep(rooms: Rooms) -> None:
    """The clock of everything that has a deadline: one task for all."""
    spare = Spare()
    while True:
        await trio.sleep(_SWEEP_SECONDS)
        rooms.connections.sweep(trio.current_time())
        rooms.broker.sweep()
        rooms.people.sweep(trio.current_time())
        if rooms.apps is not None:
            rooms.apps.sweep(trio.current_time())
        spare.sweep()


def build(config: Config) -> Assembly:
    """The ASGI application of one server.

    Raises :class:`hypha.errors.ConfigError` for an untested Hypercorn, and for a services file that cannot be used.
    """
    guard.install()
    return Assembly(config)
