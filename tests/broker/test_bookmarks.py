"""Bookmarks of a workspace: of what their maker may see, bounded, and shown in the WorkspaceInfo."""

from __future__ import annotations

from typing import Any

import trio

from hypha.broker.access import Level
from hypha.broker.kept import pack
from hypha.config import Limits
from hypha.wire.dialect import MODERN
from tests.broker.managing import ask, refused
from tests.broker.memory import Peer, Scene


async def bookmarks(peer: Peer) -> Any:
    return (await ask(peer, "get_workspace_info"))["config"]["bookmarks"]


async def test_bookmarks_are_made_and_removed(live: Scene) -> None:
    a, far = live.join("lab/a", dialect=MODERN), live.join("far/b", dialect=MODERN)
    far.announce("open", visibility="public")
    far.announce("open", "closed", visibility="public")
    far.announce("closed")
    far.announce("open", visibility="public")
    service = {"bookmark_type": "service", "id": "far/b:open"}
    for asked in ("open", "far/open", "far/b:open"):
        assert await ask(a, "bookmark", {"bookmark_type": "service", "id": asked}) is None
    assert await ask(a, "bookmark", {"bookmark_type": "workspace", "id": "lab", "name": "forged"}) is None
    first, second = await bookmarks(a)
    info = await ask(a, "get_service_info", "far/b:open")
    assert first == {**service, **{key: info[key] for key in ("name", "description", "config")}}
    assert second == {"bookmark_type": "workspace", "id": "lab", "name": "lab", "description": None}
    assert await bookmarks(far) == []
    assert await ask(a, "unbookmark", service) is None
    await ask(a, "unbookmark", {"bookmark_type": "service", "id": "lab"})
    assert await bookmarks(a) == [second]


async def test_nobody_makes_a_bookmark_of_what_he_may_not_see(live: Scene) -> None:
    a, far = live.join("lab/a", dialect=MODERN), live.join("far/b", dialect=MODERN)
    reader = live.join("lab/r", principal=live.principal("r", "lab", Level.READ), dialect=MODERN)
    far.announce("closed")
    for kind, name in (("service", "far/closed"), ("service", "far/b:none"), ("workspace", "far"), ("workspace", "no")):
        assert "Permission denied" in await refused(a, "bookmark", {"bookmark_type": kind, "id": name})
    assert "Service not found" in await refused(a, "bookmark", {"bookmark_type": "service", "id": "none"})
    for name in ("bookmark", "unbookmark"):
        item = {"bookmark_type": "workspace", "id": "lab"}
        assert "Permission denied for workspace lab" in await refused(reader, name, item)
        for wrong in (None, "lab", {}, {"id": "lab"}, {"bookmark_type": "page", "id": "x"}, {**item, "id": 5}):
            assert "a bookmark is a map" in await refused(a, name, wrong)
    assert await bookmarks(a) == []


async def test_the_bookmarks_are_bounded_exactly(nursery: trio.Nursery) -> None:
    own = {"bookmark_type": "workspace", "id": "lab", "name": "lab", "description": None}
    limit = len(pack([own]))
    a = Scene(Limits(bookmarks_bytes_per_workspace=limit), nursery).join("lab/a", dialect=MODERN)
    for _ in range(2):
        await ask(a, "bookmark", own)
    a.announce("x")
    text = await refused(a, "bookmark", {"bookmark_type": "service", "id": "x"})
    assert f"bookmarks_bytes_per_workspace = {limit}" in text
    assert await bookmarks(a) == [own]
    b = Scene(Limits(bookmarks_bytes_per_workspace=limit - 1), nursery).join("lab/b", dialect=MODERN)
    assert f"bookmarks_bytes_per_workspace = {limit - 1}" in await refused(b, "bookmark", own)
