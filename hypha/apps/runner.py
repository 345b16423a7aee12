"""The apps that run, from their start to the end of everything that belongs to them.

An app is a client of its workspace with a token of its own, which ends with it, as it does with its owner's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import trio

from hypha.apps.app import RunningApp
from hypha.apps.browser import Browser, BrowserFailed, Page
from hypha.apps.catalog import Catalog, Installed
from hypha.apps.found import NoBrowser, find_browser
from hypha.apps.gate import Gate
from hypha.apps.page import page
from hypha.apps.probe import Probe, ProbeFailed, parse_probe
from hypha.apps.progress import Progress, Tell
from hypha.apps.python import find_pyodide
from hypha.apps.source import Source
from hypha.broker.access import Level, Principal, level_in
from hypha.broker.issuing import granted_by
from hypha.broker.session import PeerSession
from hypha.broker.tokens import new_user_id
from hypha.errors import CallTimeout, Conflict, HyphaError, LimitExceeded, PeerGone, PermissionDenied

if TYPE_CHECKING:
    from hypha.broker.broker import Broker

_LOOK_SECONDS = 0.02
#: Seconds in which an app that is stopped has ended.
_STOP_SECONDS = 10.0
_TIMEOUT, _NOT_WANTED = "Timeout", "who has started it does not wait any more"


class Host(Protocol):
    """The way into the server, for what runs in its browser."""

    @property
    def inner_url(self) -> str: ...
    async def dial(self) -> trio.abc.Stream: ...
    def end(self, token_id: str) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Wish:
    """How an app is to run. *client_id*: as whom; None for a new one. *waits_for*: see :class:`RunningApp`.

    *patience*: seconds in which it must be ready. *idle_seconds*: how long nobody need call it.
    """

    client_id: str | None
    waits_for: str | None
    patience: float
    idle_seconds: float


class Runner:
    """The apps of one server that run, and their browser."""

    def __init__(self, broker: Broker, catalog: Catalog, profiles: Path, say: Callable[[str], None]) -> None:
        """*profiles*: a directory for the browser alone, emptied at the start."""
        config = broker.config
        self._broker = broker
        self._limits = broker.limits
        self._catalog = catalog
        self._say = say
        self.browser = Browser(
            lambda: find_browser(config.chromium_path, config.environ), profiles, config.environ, say
        )
        self._running: dict[tuple[str, str], RunningApp] = {}
        self._pages: dict[str, RunningApp] = {}
        self._retired = False
        self._host: Host
        self._nursery: trio.Nursery

    async def run(self, host: Host, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run apps until this is cancelled, which ends all of them with their browser."""
        self._host = host
        async with trio.open_nursery() as nursery:
            port = await nursery.start(Gate(_place(host.inner_url), host.dial).run)
            await nursery.start(self.browser.run, port)
            try:
                async with trio.open_nursery() as self._nursery:
                    task_status.started()
                    await trio.sleep_forever()
            finally:
                self._retired = True

    @property
    def lack(self) -> str | None:
        """What is missing to run apps, in words that say what to do."""
        try:
            find_browser(self._broker.config.chromium_path, self._broker.config.environ)
        except NoBrowser as lack:
            return str(lack)
        return None

    def retire(self) -> None:
        """The server is about to end."""
        self._retired = True
        for app in self._running.values():
            app.end("the server is ending")

    # --- who runs ---------------------------------------------------------------------------------------------

    def of(self, workspace: str) -> list[RunningApp]:
        """The apps that run in a workspace."""
        return [app for app in self._running.values() if app.workspace == workspace]

    def get(self, workspace: str, client_id: str) -> RunningApp | None:
        """The app that runs as that client."""
        return self._running.get((workspace, client_id))

    def at(self, key: str) -> RunningApp | None:
        """The app whose page is at the address with *key*."""
        return self._pages.get(key)

    def is_running(self, app_id: str) -> bool:
        """Whether an installed app runs."""
        return any(app.installed.id == app_id for app in self._running.values())

    # --- starting and ending ----------------------------------------------------------------------------------

    async def start(self, installed: Installed, owner: Principal, wish: Wish, tell: Tell) -> RunningApp:
        """Start an app; returns when it is ready. Cancelling this ends it, and leaves nothing.

        *tell* gets the progress. Raises :class:`LimitExceeded`, :class:`Conflict`, :class:`CallTimeout`, and why the
        app has failed.
        """
        if self._retired:
            raise Conflict("the server is ending")
        self._require_room(owner)
        client = wish.client_id or new_user_id()
        if (installed.workspace, client) in self._running:
            raise Conflict(f"an app runs as the client {client!r} already")
        progress = Progress(installed.manifest["name"], installed.workspace, tell, self._say)
        lines = self._limits.app_log_lines
        app = RunningApp(installed, client, owner, wish.waits_for, wish.idle_seconds, lines, progress)
        self._running[installed.workspace, client] = self._pages[app.key] = app
        self._nursery.start_soon(self._live, app)
        try:
            with trio.move_on_after(wish.patience) as patience:
                await app.settled.wait()
        finally:
            if not app.settled.is_set():
                app.end(_TIMEOUT if patience.cancelled_caught else _NOT_WANTED)
        if not app.ready:
            await self.gone(app)
            raise self._why(app, wish)
        return app

    def _why(self, app: RunningApp, wish: Wish) -> HyphaError:
        """Why a launch has failed."""
        if app.failure is not None and app.reason != _TIMEOUT:
            return app.failure
        longest = self._limits.app_launch_seconds
        allowed = f"app_launch_seconds = {longest:g}" if wish.patience >= longest else f"{wish.patience:g} s"
        return CallTimeout(f"Failed to start app: Timeout, after {allowed}{_with_error(app)}")

    def _require_room(self, user: Principal) -> None:
        everybody, one = self._limits.running_apps, self._limits.running_apps_per_user
        if len(self._running) >= everybody:
            raise LimitExceeded(f"running_apps = {everybody} apps run already; stop one")
        if sum(app.owner.id == user.id for app in self._running.values()) >= one:
            raise LimitExceeded(f"running_apps_per_user = {one} apps of this user run already; stop one")

    async def end(self, app: RunningApp, reason: str) -> None:
        """End an app; returns when nothing of it is left."""
        app.end(reason)
        await self.gone(app)

    async def gone(self, app: RunningApp) -> None:
        """Wait until nothing of an app that ends is left, for ten seconds at most."""
        with trio.move_on_after(_STOP_SECONDS):
            await app.over.wait()

    # --- the life of one --------------------------------------------------------------------------------------

    async def _live(self, app: RunningApp) -> None:
        """The life of an app: its page, its token, and the end of both."""
        try:
            with app.scope:
                source = await self._catalog.source(app.installed)
                app.html = page(source, await find_pyodide(self._broker.config.static_mounts))
                app.progress.info("opening its page" if self.browser.is_up else "starting the browser")
                async with self.browser.open(app) as app.page:
                    await self._with_token(app, app.page, source)
        except HyphaError as error:
            app.failure = app.failure or error
            app.reason = str(error) if app.ready else app.reason
        finally:
            app.page = None
            del self._running[app.workspace, app.client_id], self._pages[app.key]
            app.tell_end()
            app.settled.set()
            app.over.set()

    async def _with_token(self, app: RunningApp, page: Page, source: Source) -> None:
        token, token_id = self._issue(app)
        try:
            config = {
                "server_url": self._host.inner_url,
                "workspace": app.workspace,
                "client_id": app.client_id,
                "token": token,
                "name": app.installed.manifest["name"],
            }
            await page.go(f"{self._host.inner_url}/apps/{app.key}")
            app.progress.info("loading Python" if source.kind == "web-python" else "running its script")
            if app.waits_for is None:
                await self._run_script(app, page, config)
            else:
                await self._wait_for_service(app, page, config, app.waits_for)
            await self._until_ready(app, parse_probe(source.config, "readiness_probe"))
            app.settle()
            await self._keep(app, parse_probe(source.config, "liveness_probe"))
        finally:
            # Before the page is closed: callers shall know at once, however long that takes.
            self._host.end(token_id)

    async def _run_script(self, app: RunningApp, page: Page, config: dict[str, Any]) -> None:
        try:
            await page.call("startHyphaApp", config)
        except BrowserFailed as error:
            app.write("error", str(error))
            raise BrowserFailed(f"Failed to start app: {error}") from None

    async def _wait_for_service(self, app: RunningApp, page: Page, config: dict[str, Any], name: str) -> None:
        """Until the app offers it: its script may well go on for ever."""
        app.progress.info(f"waiting for its service {name[:100]!r}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_beside, app, page, config)
            while not self._offers(app, name):
                if app.failure is not None:
                    nursery.cancel_scope.cancel()
                await trio.sleep(_LOOK_SECONDS)
            nursery.cancel_scope.cancel()
        if app.failure is not None:
            raise app.failure

    async def _run_beside(self, app: RunningApp, page: Page, config: dict[str, Any]) -> None:
        try:
            await self._run_script(app, page, config)
        except BrowserFailed as error:
            app.failure = error

    async def _until_ready(self, app: RunningApp, probe: Probe | None) -> None:
        if probe is None:
            return
        app.progress.info(f"waiting until its function {probe.function!r} says that it is ready")
        try:
            await probe.until_ready(partial(self._ask, app, probe))
        except ProbeFailed as error:
            raise ProbeFailed(f"Failed to start app: {error}") from None

    async def _keep(self, app: RunningApp, probe: Probe | None) -> None:
        if probe is None:
            await trio.sleep_forever()
        else:
            await probe.until_dead(partial(self._ask, app, probe))

    async def _ask(self, app: RunningApp, probe: Probe) -> object:
        """Call the function of a probe. Raises what a call raises."""
        client = self._client(app)
        if client is None:
            raise PeerGone("its client is not connected")
        with app.asked_by_us():
            return await self._broker.server.call(
                client, f"services.default.{probe.function}", [], patience=probe.timeout
            )

    def _offers(self, app: RunningApp, name: str) -> bool:
        client = self._client(app)
        return client is not None and name in client.services

    def _client(self, app: RunningApp) -> PeerSession | None:
        place = self._broker.registry.workspaces.get(app.workspace)
        return None if place is None else place.members.get(app.client_id)

    def _issue(self, app: RunningApp) -> tuple[str, str]:
        """A token of a new user for the workspace of the app, as far as its owner's rights go."""
        place = self._broker.registry.workspaces.get(app.workspace)
        level = Level.NONE if place is None else min(level_in(app.owner, place), Level.READ_WRITE)
        if level is Level.NONE:
            raise PermissionDenied(f"Permission denied for workspace {app.workspace}.")
        principal = Principal(
            id=new_user_id(),
            is_anonymous=app.owner.is_anonymous,
            parent=app.owner.parent or app.owner.id,
            grants={app.workspace: level},
            home=app.workspace,
            client=app.client_id,
            tokens=app.owner.tokens,
            issuers=(*app.owner.issuers, app.owner.id),
            granted_by=granted_by(self._broker, app.owner, {app.workspace: level}),
        )
        return self._broker.tokens.issue_living(principal)

    # --- the end of those that nobody needs -------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Once a second: end the apps whose client or owner has left, or that nobody has called for long."""
        self.browser.sweep(now)
        if not self._running:
            return
        places = self._broker.registry.workspaces.values()
        parked = {lost.principal_id for place in places for lost in place.parked.values()}
        for app in list(self._running.values()):
            reason = self._ending(app, parked, now)
            if reason is not None:
                app.end(reason)

    def _ending(self, app: RunningApp, parked: set[str], now: float) -> str | None:
        if self._broker.registry.sessions_of(app.owner.id):
            app.was_accompanied = True
        elif app.was_accompanied and app.owner.id not in parked:
            return "its owner has left"
        place = self._broker.registry.workspaces.get(app.workspace)
        if place is None:
            return "its workspace was removed"
        client = place.members.get(app.client_id)
        if client is None:
            return "its client has left" if app.ready and app.client_id not in place.parked else None
        app.note_use(len(client.inbound), client.outbox.delivered, now)
        is_idle = app.ready and now - app.active_since > app.idle_seconds
        return "nobody has called it for long" if is_idle else None


def _place(url: str) -> tuple[str, int]:
    """Host and port of the server's own address, which is plain HTTP."""
    host, _, port = url.partition("://")[2].partition("/")[0].rpartition(":")
    return (host.strip("[]"), int(port)) if host else (port, 80)


def _with_error(app: RunningApp) -> str:
    error = app.log.last_error()
    return "" if error is None else f"; the last error in its log: {error[:500]}"
