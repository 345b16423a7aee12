"""Bookmarks: services and workspaces that the members of a workspace want to find again (``protocol.md`` 5.3).

They are shown in the WorkspaceInfo, as ``config["bookmarks"]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hypha.broker.access import Action
from hypha.broker.kept import pack
from hypha.errors import InvalidArgument, LimitExceeded

if TYPE_CHECKING:
    from hypha.broker.endpoint import ServerCall
    from hypha.broker.manager import Run
    from hypha.broker.modern import ModernManager
    from hypha.broker.registry import Workspace


class BookmarkFunctions:
    """What the manager of modern clients offers. *manager* knows what somebody may see."""

    def __init__(self, manager: ModernManager) -> None:
        self._manager = manager

    def exported(self) -> Iterator[tuple[Run, Action]]:
        """Each function with what its caller must be allowed to do."""
        yield self.bookmark, Action.WRITE
        yield self.unbookmark, Action.WRITE

    async def bookmark(self, call: ServerCall, item: dict[str, Any]) -> None:
        """Keep a bookmark in the workspace: a map with the ``bookmark_type``, service or workspace, and the ``id``."""
        kind, name = _parts(item)
        if kind == "service":
            info = await self._manager.get_service_info(call, name)
            made = {key: info[key] for key in ("id", "name", "description", "config")}
        else:
            info = self._manager.visible(call, name).describe()
            made = {key: info[key] for key in ("id", "name", "description")}
        bookmarks = [*_without(call.workspace.bookmarks, kind, made["id"]), {"bookmark_type": kind, **made}]
        limit = call.sender.limits.bookmarks_bytes_per_workspace
        if len(pack(bookmarks)) > limit:
            raise LimitExceeded(f"the bookmarks are larger than bookmarks_bytes_per_workspace = {limit}")
        self._keep(call.workspace, bookmarks)

    async def unbookmark(self, call: ServerCall, item: dict[str, Any]) -> None:
        """Remove the bookmark with that ``bookmark_type`` and ``id``, if it is there."""
        self._keep(call.workspace, _without(call.workspace.bookmarks, *_parts(item)))

    def _keep(self, workspace: Workspace, bookmarks: list[dict[str, Any]]) -> None:
        workspace.bookmarks = bookmarks
        self._manager.ledger.bookmarks(workspace)


def _without(bookmarks: list[dict[str, Any]], kind: str, name: str) -> list[dict[str, Any]]:
    return [item for item in bookmarks if (item["bookmark_type"], item["id"]) != (kind, name)]


def _parts(item: object) -> tuple[str, str]:
    kind, name = (item.get("bookmark_type"), item.get("id")) if isinstance(item, dict) else (None, None)
    if kind not in ("service", "workspace") or not isinstance(name, str):
        raise InvalidArgument("a bookmark is a map with an 'id' and the 'bookmark_type' service or workspace")
    return kind, name
