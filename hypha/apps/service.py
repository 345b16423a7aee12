"""The service ``server-apps``: programs that clients give the server, to run in its browser (``protocol.md`` 10.1).

Apps belong to a workspace. Whoever may change it installs, starts and stops apps there, and whoever may see it sees
them. An app is a client of its workspace with a token of its own, which ends with it, as it does with its owner's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import trio

from hypha.apps.app import RunningApp
from hypha.apps.browser import Browser, BrowserFailed, Page
from hypha.apps.catalog import Catalog, Installed, Store
from hypha.apps.fetch import fetch
from hypha.apps.found import NoBrowser, find_browser
from hypha.apps.gate import Gate
from hypha.apps.page import page
from hypha.apps.source import multihash, parse
from hypha.broker.access import Action, Level, Principal, level_in, may
from hypha.broker.function import Function
from hypha.broker.issuing import granted_by
from hypha.broker.own import Visit
from hypha.broker.registry import Workspace
from hypha.broker.session import PeerSession
from hypha.broker.tokens import new_user_id
from hypha.errors import (
    CallTimeout,
    Conflict,
    HyphaError,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    ServiceNotFound,
    TooLarge,
)
from hypha.wire.address import check_client_id

if TYPE_CHECKING:
    from hypha.broker.broker import Broker

DESCRIPTION = {
    "id": "server-apps",
    "name": "Server Apps",
    "type": "server-apps",
    "description": "Runs programs in a browser on the server",
    "config": {"visibility": "public", "require_context": True},
}

_LOOK_SECONDS = 0.02
#: Seconds in which an app that is stopped has ended.
_STOP_SECONDS = 10.0


class Host(Protocol):
    """The way into the server, for what runs in its browser."""

    @property
    def inner_url(self) -> str: ...
    async def dial(self) -> trio.abc.Stream: ...
    def end(self, token_id: str) -> None: ...
    def say(self, text: str) -> None: ...


class Apps:
    """The apps of one server."""

    def __init__(self, broker: Broker, store: Store, profiles: Path, say: Callable[[str], None]) -> None:
        """*profiles*: a directory for the browser alone, emptied at the start."""
        self._broker = broker
        self._limits = broker.limits
        config = broker.config
        self._catalog = Catalog(store, broker.limits)
        self._browser = Browser(
            lambda: find_browser(config.chromium_path, config.environ), profiles, config.environ, say
        )
        self._say = say
        self._running: dict[tuple[str, str], RunningApp] = {}
        self._pages: dict[str, RunningApp] = {}
        self._opened = trio.Event()
        self._retired = False
        self._trouble: str | None = None
        self._host: Host
        self._nursery: trio.Nursery

    def functions(self) -> dict[str, Function]:
        """What peers may call, under the names of both generations."""
        runs: dict[str, Callable[..., Any]] = {
            "install": self.install,
            "uninstall": self.uninstall,
            "launch": self.launch,
            "start": self.start,
            "stop": self.stop,
            "list_apps": self.list_apps,
            "list_running": self.list_running,
            "get_log": self.get_log,
            "get_logs": self.get_log,
            "screenshot": self.screenshot,
            "take_screenshot": self.screenshot,
        }
        return {name: Function.of(run, described=True) for name, run in runs.items()}

    # --- for the server ---------------------------------------------------------------------------------------

    async def run(self, host: Host) -> None:
        """Run apps until this is cancelled, which ends all of them with their browser."""
        self._host = host
        try:
            await self._catalog.load()
        except HyphaError as error:
            self._trouble = f"server apps cannot run: {error}"
        if self.lack is not None:
            self._say(self.lack)
        async with trio.open_nursery() as nursery:
            port = await nursery.start(Gate(_place(host.inner_url), host.dial).run)
            await nursery.start(self._browser.run, port)
            try:
                async with trio.open_nursery() as self._nursery:
                    self._opened.set()
                    await trio.sleep_forever()
            finally:
                self._retired = True

    @property
    def lack(self) -> str | None:
        """What is missing to run apps, in words that say what to do."""
        if self._trouble is not None:
            return self._trouble
        try:
            find_browser(self._broker.config.chromium_path, self._broker.config.environ)
        except NoBrowser as lack:
            return str(lack)
        return None

    def page_of(self, key: str) -> str | None:
        """The page that is at the address with *key*."""
        app = self._pages.get(key)
        return None if app is None else app.html

    def retire(self) -> None:
        """The server is about to end."""
        self._retired = True
        for app in self._running.values():
            app.end("the server is ending")

    def sweep(self, now: float) -> None:
        """Once a second: end the apps whose client or owner has left, or that nobody has called for long."""
        self._browser.sweep(now)
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
        if client.inbound or client.outbox.delivered != app.delivered:
            app.delivered, app.active_since = client.outbox.delivered, now
        return "nobody has called it for long" if now - app.active_since > app.idle_seconds else None

    # --- installing -------------------------------------------------------------------------------------------

    async def install(
        self,
        visit: Visit,
        source: str | None = None,
        source_hash: str | None = None,
        config: dict[str, Any] | None = None,
        template: str | None = None,
        attachments: dict[str, Any] | None = None,
        workspace: str | None = None,
        manifest: dict[str, Any] | None = None,
        overwrite: bool | None = None,
        version: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  a wire name
    ) -> dict[str, Any]:
        """Keep a program: JavaScript with a config that says its type, an ImJoy plugin file, or the address of one."""
        place = await self._place(visit, workspace, Action.WRITE)
        installed = await self._install(visit, place, source, source_hash, config or manifest, template, attachments)
        return self._told(installed)

    async def _install(
        self,
        visit: Visit,
        place: Workspace,
        source: object,
        source_hash: object,
        config: object,
        template: object,
        attachments: object,
    ) -> Installed:
        if not isinstance(source, str) or not source.strip():
            raise InvalidArgument("the source of an app is text, or the address of one")
        if attachments:
            raise InvalidArgument("attachments of apps are not kept here; load files from a static mount")
        most, address = self._limits.app_source_bytes, None
        if source.startswith(("http://", "https://")):
            address, source = source, await fetch(source, most)
        if len(source.encode(errors="replace")) > most:
            raise TooLarge(f"the source of an app is larger than app_source_bytes = {most}")
        digest = multihash(source if config is None else f"{config!r}\n{source}")
        if source_hash is not None and source_hash != multihash(source):
            raise InvalidArgument(f"the source does not have the hash {str(source_hash)[:100]}")
        parsed = parse(source, config, template)
        settings = parsed.config
        told: dict[str, Any] = {
            "type": "application",
            "id": f"{place.name}/{digest}",
            "name": parsed.name,
            "source": address,
            "version": settings.get("version", "0.1.0"),
            "description": settings.get("description", ""),
            "tags": _texts(settings.get("tags")),
            "documentation": parsed.documentation,
            "covers": [],
            "badges": [],
            "authors": [],
            "attachments": {},
            "services": settings.get("services") or [],
            "config": {"type": parsed.kind},
        }
        user = visit.principal
        installed = Installed(told["id"], place.name, user.id, user.is_anonymous, self._broker.clock(), told)
        await self._catalog.install(installed, parsed, self._is_running)
        return installed

    async def uninstall(self, visit: Visit, app_id: str) -> None:
        """Forget an app, and stop it where it runs."""
        installed = await self._installed(visit, app_id, Action.WRITE)
        for app in [app for app in self._running.values() if app.installed.id == installed.id]:
            await self._end(app, "it was uninstalled")
        await self._catalog.uninstall(installed)

    async def list_apps(self, visit: Visit, workspace: str | None = None) -> list[dict[str, Any]]:
        """The apps that are installed in the workspace."""
        place = await self._place(visit, workspace, Action.READ)
        return [self._told(app) for app in self._catalog.of(place.name)]

    # --- running ----------------------------------------------------------------------------------------------

    async def launch(
        self,
        visit: Visit,
        source: str,
        timeout: float = 60,  # noqa: ASYNC109  a wire name
        config: dict[str, Any] | None = None,
        attachments: dict[str, Any] | None = None,
        wait_for_service: str | bool | None = None,
        workspace: str | None = None,
        client_id: str | None = None,
        overwrite: bool | None = None,
        stop_after_inactive: float | None = None,
    ) -> dict[str, Any]:
        """Install a program and start it."""
        place = await self._place(visit, workspace, Action.WRITE)
        self._require_browser()
        installed = await self._install(visit, place, source, None, config, None, attachments)
        return await self._start(visit, installed, client_id, timeout, wait_for_service, stop_after_inactive)

    async def start(
        self,
        visit: Visit,
        app_id: str,
        client_id: str | None = None,
        timeout: float = 60,  # noqa: ASYNC109  a wire name
        loop_count: int = 0,
        wait_for_service: str | bool | None = None,
        workspace: str | None = None,
        version: str | None = None,
        stop_after_inactive: float | None = None,
    ) -> dict[str, Any]:
        """Start an app. Returns when its script has run and what it offers is there, and the service waited for."""
        installed = await self._installed(visit, app_id, Action.WRITE)
        if workspace not in (None, installed.workspace):
            raise InvalidArgument("Workspace mismatch between app_id and workspace.")
        self._require_browser()
        return await self._start(visit, installed, client_id, timeout, wait_for_service, stop_after_inactive)

    async def _start(
        self,
        visit: Visit,
        installed: Installed,
        client_id: str | None,
        timeout: object,  # noqa: ASYNC109  what a caller gave
        wait_for_service: object,
        stop_after_inactive: object,
    ) -> dict[str, Any]:
        longest = self._limits.app_launch_seconds
        patience = _seconds("timeout", timeout, longest)
        idle = _seconds("stop_after_inactive", stop_after_inactive, self._limits.app_idle_seconds)
        client = new_user_id() if client_id is None else check_client_id(client_id)
        waits_for = _service_name(wait_for_service)
        self._require_room(visit.principal)
        if (installed.workspace, client) in self._running:
            raise Conflict(f"an app runs as the client {client!r} already")
        lines = self._limits.app_log_lines
        app = RunningApp(installed, client, visit.principal, waits_for, idle, lines)
        self._running[installed.workspace, client] = self._pages[app.key] = app
        self._nursery.start_soon(self._live, app)
        try:
            with trio.move_on_after(patience):
                await app.settled.wait()
        finally:
            if not app.settled.is_set():  # late, or not wanted any more
                app.end("Timeout")
        if app.ready:
            return app.describe(self._urls(visit, app))
        with trio.move_on_after(_STOP_SECONDS):
            await app.over.wait()
        if not isinstance(app.failure, HyphaError) or app.reason == "Timeout":
            allowed = f"app_launch_seconds = {longest:g}" if patience >= longest else f"{patience:g} s"
            raise CallTimeout(f"Failed to start app: Timeout, after {allowed}{_with_error(app)}")
        raise app.failure

    async def _live(self, app: RunningApp) -> None:
        """The life of an app: its page, its token, and the end of both."""
        try:
            with app.scope:
                app.html = page(await self._catalog.source(app.installed))
                async with self._browser.open(app) as app.page:
                    await self._with_token(app, app.page)
        except HyphaError as error:
            app.failure = app.failure or error
        finally:
            app.page = None
            del self._running[app.workspace, app.client_id], self._pages[app.key]
            app.settled.set()
            app.over.set()

    async def _with_token(self, app: RunningApp, page: Page) -> None:
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
            if app.waits_for is None:
                await self._run_script(app, page, config)
            else:
                await self._wait_for_service(app, page, config, app.waits_for)
            app.settle()
            await trio.sleep_forever()
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

    async def stop(
        self,
        visit: Visit,
        client_id: str | None = None,
        raise_exception: bool = True,
        session_id: str | None = None,
    ) -> None:
        """Stop an app. Returns when nothing of it is left."""
        try:
            app = await self._found(visit, client_id or session_id, Action.WRITE)
        except NotFound:
            if raise_exception:
                raise
            return
        await self._end(app, "it was stopped")

    async def _end(self, app: RunningApp, reason: str) -> None:
        app.end(reason)
        with trio.move_on_after(_STOP_SECONDS):
            await app.over.wait()

    async def list_running(self, visit: Visit, workspace: str | None = None) -> list[dict[str, Any]]:
        """The apps that run in the workspace."""
        place = await self._place(visit, workspace, Action.READ)
        found = [app for app in self._running.values() if app.workspace == place.name]
        return [{**app.describe(self._urls(visit, app)), "name": app.installed.id} for app in found]

    async def get_log(
        self,
        visit: Visit,
        client_id: str | None = None,
        type: str | None = None,
        offset: int = 0,
        limit: int | None = None,
        session_id: str | None = None,
    ) -> dict[str, list[str]] | list[str]:
        """What an app has written to its console: all lines by type, or those of one type."""
        app = await self._found(visit, client_id or session_id, Action.READ)
        return app.log.show(type, offset, limit)

    async def screenshot(self, visit: Visit, client_id: str | None = None, session_id: str | None = None) -> bytes:
        """What is to be seen of an app, as PNG."""
        app = await self._found(visit, client_id or session_id, Action.READ)
        if app.page is None:
            raise Conflict("the app has no page yet")
        return await app.page.picture()

    async def launch_for(self, visit: Visit, service_id: str, name: str | None) -> str:
        """Start the app of the caller's workspace that has *name*, or offers a service of that id; its client id.

        Raises :class:`ServiceNotFound` when none does, and what a start raises.
        """
        place = await self._place(visit, None, Action.WRITE)
        offering = [app for app in self._catalog.of(place.name) if _offers(app, service_id, name)]
        if not offering:
            raise ServiceNotFound(f"Service id {service_id[:200]} not found")
        self._require_browser()
        started = await self._start(visit, offering[-1], None, 60, service_id, None)
        return str(started["id"])

    # ----------------------------------------------------------------------------------------------------------

    async def _place(self, visit: Visit, name: str | None, action: Action) -> Workspace:
        """The workspace of that name, the caller's own without one, where the caller may do *action*."""
        await self._opened.wait()
        wanted = visit.workspace if name is None else name
        place = self._broker.registry.workspaces.get(wanted) if isinstance(wanted, str) else None
        if place is None or not may(visit.principal, action, place).allowed:
            raise PermissionDenied(f"Permission denied for workspace {str(wanted)[:200]}.")
        return place

    async def _installed(self, visit: Visit, app_id: object, action: Action) -> Installed:
        if not isinstance(app_id, str) or "/" not in app_id:
            raise InvalidArgument(f"Invalid app id: {str(app_id)[:200]}; it is made of a workspace and a hash")
        await self._place(visit, app_id.partition("/")[0], action)
        return self._catalog.get(app_id)

    async def _found(self, visit: Visit, client_id: object, action: Action) -> RunningApp:
        """The app that runs as a client of that id, with its workspace in front or in the caller's own."""
        text = client_id if isinstance(client_id, str) else ""
        workspace, _, client = text.rpartition("/")
        place = await self._place(visit, workspace or None, action)
        app = self._running.get((place.name, client))
        if app is None:
            raise NotFound(f"Server app instance not found: {text[:200]}")
        return app

    def _require_browser(self) -> None:
        lack = self.lack
        if lack is not None:
            raise NoBrowser(lack)
        if self._retired:
            raise Conflict("the server is ending")

    def _require_room(self, user: Principal) -> None:
        everybody, one = self._limits.running_apps, self._limits.running_apps_per_user
        if len(self._running) >= everybody:
            raise LimitExceeded(f"running_apps = {everybody} apps run already; stop one")
        if sum(app.owner.id == user.id for app in self._running.values()) >= one:
            raise LimitExceeded(f"running_apps_per_user = {one} apps of this user run already; stop one")

    def _is_running(self, app_id: str) -> bool:
        return any(app.installed.id == app_id for app in self._running.values())

    def _told(self, installed: Installed) -> dict[str, Any]:
        return {**installed.manifest, "local_url": None, "public_url": None}

    def _urls(self, visit: Visit, app: RunningApp) -> dict[str, str]:
        base = self._broker.public_base_url(visit)
        return {"local_url": f"{visit.base_url}/apps/{app.key}", "public_url": f"{base}/apps/{app.key}"}


def _place(url: str) -> tuple[str, int]:
    """Host and port of the server's own address, which is plain HTTP."""
    host, _, port = url.partition("://")[2].partition("/")[0].rpartition(":")
    return (host.strip("[]"), int(port)) if host else (port, 80)


def _seconds(name: str, value: object, most: float) -> float:
    if value is None:
        return most
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise InvalidArgument(f"{name} is a number of seconds above 0")
    return min(float(value), most)


def _service_name(value: object) -> str | None:
    if value is None or value is False:
        return None
    if value is True:
        return "default"
    if not isinstance(value, str) or not value:
        raise InvalidArgument("wait_for_service is the id of a service, or true for the default one")
    return value.rpartition(":")[2]


def _offers(app: Installed, service_id: str, name: str | None) -> bool:
    if name is not None:
        return bool(app.manifest["name"] == name)
    services = app.manifest["services"]
    ids = (
        [item.get("id") if isinstance(item, dict) else item for item in services] if isinstance(services, list) else ()
    )
    return service_id in ids


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _with_error(app: RunningApp) -> str:
    error = app.log.last_error()
    return "" if error is None else f"; the last error in its log: {error[:500]}"
