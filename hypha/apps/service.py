"""The service ``server-apps``: programs that clients give the server, to run in its browser (``protocol.md`` 10.1).

Apps belong to a workspace. Whoever may change it installs, starts and stops apps there, and whoever may see it sees
them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from hypha.apps.app import RunningApp
from hypha.apps.catalog import Catalog, Installed, Store
from hypha.apps.fetch import fetch
from hypha.apps.found import NoBrowser
from hypha.apps.progress import Progress, Tell, tell_nobody, telling
from hypha.apps.runner import Host, Runner, Wish
from hypha.apps.source import Source, multihash, parse
from hypha.broker.access import Action, may
from hypha.broker.function import Function
from hypha.broker.own import CallBack, Visit
from hypha.broker.registry import Workspace
from hypha.errors import (
    Conflict,
    HyphaError,
    InvalidArgument,
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


class Apps:
    """The apps of one server."""

    def __init__(self, broker: Broker, store: Store, profiles: Path, say: Callable[[str], None]) -> None:
        """*profiles*: a directory for the browser alone, emptied at the start."""
        self._broker = broker
        self._limits = broker.limits
        self._catalog = Catalog(store, broker.limits)
        self.runner = Runner(broker, self._catalog, profiles, say)
        self._say = say
        self._opened = trio.Event()
        self._trouble: str | None = None

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
        try:
            await self._catalog.load()
        except HyphaError as error:
            self._trouble = f"server apps cannot run: {error}"
        if self.lack is not None:
            self._say(self.lack)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.runner.run, host)
            self._opened.set()

    @property
    def lack(self) -> str | None:
        """What is missing to run apps, in words that say what to do."""
        return self._trouble or self.runner.lack

    def page_of(self, key: str) -> str | None:
        """The page that is at the address with *key*."""
        app = self.runner.at(key)
        return None if app is None else app.html

    def retire(self) -> None:
        """The server is about to end."""
        self.runner.retire()

    def sweep(self, now: float) -> None:
        """Once a second. *now* is trio time."""
        self.runner.sweep(now)

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
        progress_callback: object = None,
    ) -> dict[str, Any]:
        """Keep a program: JavaScript with a config that says its type, an ImJoy plugin file, or the address of one."""
        place = await self._place(visit, workspace, Action.WRITE)
        given = source, source_hash, config or manifest, template, attachments
        installed = await telling(_call_back(visit, progress_callback), partial(self._install, visit, place, *given))
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
        tell: Tell,
    ) -> Installed:
        if not isinstance(source, str) or not source.strip():
            raise InvalidArgument("the source of an app is text, or the address of one")
        if attachments:
            raise InvalidArgument("attachments of apps are not kept here; load files from a static mount")
        most, address = self._limits.app_source_bytes, None
        if source.startswith(("http://", "https://")):
            tell("info", f"fetching {source[:200]}")
            address, source = source, await fetch(source, most)
        if len(source.encode(errors="replace")) > most:
            raise TooLarge(f"the source of an app is larger than app_source_bytes = {most}")
        digest = multihash(source if config is None else f"{config!r}\n{source}")
        if source_hash is not None and source_hash != multihash(source):
            raise InvalidArgument(f"the source does not have the hash {str(source_hash)[:100]}")
        parsed = parse(source, config, template)
        Progress(parsed.name, place.name, tell, self._say).info("installing it")
        app_id, user = f"{place.name}/{digest}", visit.principal
        manifest = _manifest(app_id, address, parsed)
        installed = Installed(app_id, place.name, user.id, user.is_anonymous, self._broker.clock(), manifest)
        await self._catalog.install(installed, parsed, self.runner.is_running)
        return installed

    async def uninstall(self, visit: Visit, app_id: str) -> None:
        """Forget an app, and stop it where it runs."""
        installed = await self._installed(visit, app_id, Action.WRITE)
        for app in self.runner.of(installed.workspace):
            if app.installed.id == installed.id:
                await self.runner.end(app, "it was uninstalled")
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
        progress_callback: object = None,
    ) -> dict[str, Any]:
        """Install a program and start it. *progress_callback* is called with a map of type and message."""
        place = await self._place(visit, workspace, Action.WRITE)
        self._require_browser()
        wish = self._wish(client_id, timeout, wait_for_service, stop_after_inactive)

        async def launch(tell: Tell) -> RunningApp:
            installed = await self._install(visit, place, source, None, config, None, attachments, tell)
            return await self.runner.start(installed, visit.principal, wish, tell)

        app = await telling(_call_back(visit, progress_callback), launch)
        return app.describe(self._urls(visit, app))

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
        progress_callback: object = None,
    ) -> dict[str, Any]:
        """Start an app. Returns when its script has run and what it offers is there, and the service waited for."""
        installed = await self._installed(visit, app_id, Action.WRITE)
        if workspace not in (None, installed.workspace):
            raise InvalidArgument("Workspace mismatch between app_id and workspace.")
        self._require_browser()
        wish = self._wish(client_id, timeout, wait_for_service, stop_after_inactive)
        start = partial(self.runner.start, installed, visit.principal, wish)
        app = await telling(_call_back(visit, progress_callback), start)
        return app.describe(self._urls(visit, app))

    def _wish(self, client_id: str | None, patience: object, wait_for_service: object, idle: object) -> Wish:
        return Wish(
            None if client_id is None else check_client_id(client_id),
            _service_name(wait_for_service),
            _seconds("timeout", patience, self._limits.app_launch_seconds),
            _seconds("stop_after_inactive", idle, self._limits.app_idle_seconds),
        )

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
        await self.runner.end(app, "it was stopped")

    async def list_running(self, visit: Visit, workspace: str | None = None) -> list[dict[str, Any]]:
        """The apps that run in the workspace."""
        place = await self._place(visit, workspace, Action.READ)
        found = self.runner.of(place.name)
        return [
            {**app.describe(self._urls(visit, app)), "name": app.installed.id, "progress": app.progress.stage}
            for app in found
        ]

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
        wish = self._wish(None, 60, service_id, None)
        return (await self.runner.start(offering[-1], visit.principal, wish, tell_nobody)).client_id

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
        app = self.runner.get(place.name, client)
        if app is None:
            raise NotFound(f"Server app instance not found: {text[:200]}")
        return app

    def _require_browser(self) -> None:
        lack = self.lack
        if lack is not None:
            raise NoBrowser(lack)

    def _told(self, installed: Installed) -> dict[str, Any]:
        return {**installed.manifest, "local_url": None, "public_url": None}

    def _urls(self, visit: Visit, app: RunningApp) -> dict[str, str]:
        base = self._broker.public_base_url(visit)
        return {"local_url": f"{visit.base_url}/apps/{app.key}", "public_url": f"{base}/apps/{app.key}"}


def _call_back(visit: Visit, function: object) -> CallBack | None:
    """Raises :class:`InvalidArgument` for what is no function of the caller's."""
    return None if function is None else visit.call_back(function)


def _manifest(app_id: str, address: str | None, parsed: Source) -> dict[str, Any]:
    """What callers are told of an installed app (``protocol.md`` 10.1)."""
    settings = parsed.config
    return {
        "type": "application",
        "id": app_id,
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
