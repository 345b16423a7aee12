"""Where apps in Python get their Python from: Pyodide, from a static mount of this server or from the Internet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from hypha.config import Mount

#: The static mount that is taken, when it holds Pyodide.
MOUNT = "/pyodide"
#: Otherwise; then the client for Python and what it needs come from the Internet, too.
PUBLIC = "https://cdn.jsdelivr.net/pyodide/v314.0.7/full/"
_SCRIPT, _WHEELS = "pyodide.mjs", "*.whl"


@dataclass(frozen=True, slots=True)
class Pyodide:
    """*url*: of its directory, as the page of an app finds it. *wheels*: names of packages that are loaded with it."""

    url: str = PUBLIC
    wheels: list[str] = field(default_factory=list)


async def find_pyodide(mounts: Sequence[Mount]) -> Pyodide:
    """Look for it as it is on the disk now, without making anybody else wait for that."""
    mount = next((mount for mount in mounts if mount.path == MOUNT), None)
    if mount is None:
        return Pyodide()

    def look() -> Pyodide:
        if not (mount.directory / _SCRIPT).is_file():
            return Pyodide()
        return Pyodide(f"..{MOUNT}/", sorted(path.name for path in mount.directory.glob(_WHEELS)))

    return await trio.to_thread.run_sync(look)
