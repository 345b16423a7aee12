"""The apps that are installed: what they are called in memory, what they are made of in the data directory."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import trio

from hypha.apps.source import Source
from hypha.config import Limits
from hypha.errors import HyphaError, LimitExceeded, NotFound

logger = logging.getLogger(__name__)


class Store(Protocol):
    """Documents by name. All block, and raise OSError."""

    def names(self) -> Iterator[str]: ...
    def read(self, name: str) -> bytes: ...
    def write(self, name: str, content: bytes) -> None: ...
    def remove(self, name: str) -> None: ...


class NotKept(HyphaError):
    """The data directory does not take it."""


@dataclass(frozen=True, slots=True)
class Installed:
    """One app. *owner*: who has installed it. *since*: seconds since the epoch. *manifest*: what callers are told."""

    id: str
    workspace: str
    owner: str
    is_anonymous: bool
    since: float
    manifest: dict[str, Any]


class Catalog:
    """Every installed app by id, the oldest first. :meth:`load` comes first."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self._apps: dict[str, Installed] = {}
        self._writing = trio.Lock()  # the order on the disk is the order here

    async def load(self) -> None:
        """Read what was installed before. A document that cannot be read is left alone, with a line in the log.

        Raises :class:`NotKept` when the disk does not give anything.
        """
        for app in await self._disk(self._read_all):
            self._apps[app.id] = app

    def _read_all(self) -> list[Installed]:
        found = []
        for name in self._store.names():
            try:
                found.append(Installed(**json.loads(self._store.read(name))["app"]))
            except (OSError, ValueError, TypeError, KeyError) as error:
                logger.error("the app in the document %s cannot be read: %r", name, error)
        return sorted(found, key=lambda app: app.since)

    def of(self, workspace: str) -> list[Installed]:
        """The apps of a workspace."""
        return [app for app in self._apps.values() if app.workspace == workspace]

    def get(self, app_id: str) -> Installed:
        """Raises :class:`NotFound`."""
        app = self._apps.get(app_id)
        if app is None:
            raise NotFound(f"Invalid app id: {app_id[:200]}; list_apps names those that are installed")
        return app

    async def source(self, app: Installed) -> Source:
        """What an app is made of. Raises :class:`NotKept` when the disk does not give it."""
        content = await self._disk(self._store.read, _name(app.id))
        return Source.from_json(json.loads(content)["source"])

    async def install(self, app: Installed, source: Source, is_running: Callable[[str], bool]) -> None:
        """Keep an app, in the place of one of its id. When all room is taken, one of an anonymous user makes some.

        *is_running* tells by id what must not be forgotten. Raises :class:`LimitExceeded` and :class:`NotKept`.
        """
        content = json.dumps({"app": _document(app), "source": source.to_json()}).encode()
        async with self._writing:
            if app.id not in self._apps:
                self._require_quota(app.owner)
                await self._make_room(is_running)
            await self._disk(self._store.write, _name(app.id), content)
            self._apps[app.id] = app

    async def uninstall(self, app: Installed) -> None:
        """Forget an app. Raises :class:`NotKept`."""
        async with self._writing:
            await self._disk(self._store.remove, _name(app.id))
            self._apps.pop(app.id, None)

    def _require_quota(self, owner: str) -> None:
        limit = self._limits.apps_per_user
        if sum(app.owner == owner for app in self._apps.values()) >= limit:
            raise LimitExceeded(f"apps_per_user = {limit} apps are installed by this user already; uninstall one")

    async def _make_room(self, is_running: Callable[[str], bool]) -> None:
        limit = self._limits.installed_apps
        if len(self._apps) < limit:
            return
        oldest = next((app for app in self._apps.values() if app.is_anonymous and not is_running(app.id)), None)
        if oldest is None:
            raise LimitExceeded(f"installed_apps = {limit} apps are installed already")
        await self._disk(self._store.remove, _name(oldest.id))
        del self._apps[oldest.id]

    async def _disk(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return await trio.to_thread.run_sync(function, *args)
        except OSError as error:
            logger.error("the data directory does not keep apps: %s", error)
            raise NotKept(f"the server cannot use its data directory ({error.strerror})") from None


def _document(app: Installed) -> dict[str, Any]:
    return asdict(app)


def _name(app_id: str) -> str:
    # An id holds a slash and differs from others in the case of letters alone.
    return hashlib.sha256(app_id.encode()).hexdigest()
