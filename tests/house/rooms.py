"""Who may import whom, and the check of it. The arrows are those of ``docs/design.md``, *Rooms*."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

#: Every other room may import these, and the version in ``hypha/__init__.py``.
FOR_ALL = frozenset({"errors", "config"})

_PEERS = frozenset({"wire", "broker"})
_PROCESS = frozenset({"banner", "command", "lazy", "listen", "memory", "orphans", "parent"})
_ROOMS = frozenset({"wire", "broker", "store", "accounts", "web", "launch", "apps", "scale", "aio"})
_ASSEMBLED = _ROOMS | _PROCESS | {"assembly"}

#: Room (a package of hypha, or a module beside the packages) -> the rooms that it may import.
ARROWS: dict[str, Set[str]] = {
    "hypha": frozenset(),
    "errors": frozenset(),
    "config": {"errors"},
    "wire": frozenset(),
    "store": frozenset(),
    "aio": frozenset(),
    "broker": {"wire"},
    "accounts": _PEERS,
    "web": _PEERS | {"accounts"},
    "launch": _PEERS | {"aio", "client"},  # modules are clients of the server in whose process they run
    "apps": _PEERS | {"aio", "launch"},  # the browser is a program that the server starts
    "scale": _PEERS,
    "client": {"wire", "aio"},  # functions of the program that are written for asyncio
    "sync": {"client"},
    "assembly": _ROOMS | {"banner", "lazy", "memory"},
    # The two commands, from the light end to the heavy one.
    "lazy": frozenset(),
    "memory": frozenset(),
    "listen": frozenset(),
    "orphans": frozenset(),
    "command": frozenset(),
    "banner": {"listen"},
    "parent": {"banner", "orphans"},
    "worker": _ASSEMBLED,
    "hypercorn_command": _ASSEMBLED | {"worker"},
    "server": _ASSEMBLED | {"worker", "hypercorn_command"},
    "__main__": {"server"},
    "testing": _ASSEMBLED | {"client", "worker"},
    "pytest_plugin": {"testing"},
}

#: Room -> the distributions outside the standard library that it may import.
FOREIGN: dict[str, Set[str]] = {
    "wire": {"msgpack", "websockets"},
    "broker": {"jwt", "trio"},
    "accounts": {"httpx", "jwt", "trio"},
    "web": {"h11", "hypercorn", "quart", "quart_trio", "trio", "werkzeug"},
    "launch": {"trio", "yaml"},
    "apps": {"h11", "playwright", "trio", "yaml"},
    "scale": {"trio"},
    "client": {"numpy", "trio", "trio_websocket", "wsproto"},
    "aio": {"trio"},
    "sync": {"trio"},
    "testing": {"hypercorn", "trio"},
    "pytest_plugin": {"pytest"},
    "assembly": {"quart_trio", "trio"},
    "worker": {"hypercorn", "trio"},
    "hypercorn_command": {"trio"},
}

#: Modules of the standard library that only these rooms may import.
RESERVED: dict[str, Set[str]] = {
    "asyncio": {"aio"},
    "socket": {"banner", "client", "listen", "parent", "server", "web", "worker"},
    "ssl": {"apps", "client", "launch"},
    "subprocess": {"apps", "launch", "parent"},
    "multiprocessing": {"hypercorn_command"},
    "threading": {"aio", "store", "sync", "worker"},
    "sqlite3": {"store"},
    "pickle": frozenset(),
    "marshal": frozenset(),
}

#: Modules that a process imports before it knows that it will serve: they stay on the standard library.
LIGHT = (
    "hypha",
    "hypha.server",
    "hypha.parent",
    "hypha.command",
    "hypha.banner",
    "hypha.listen",
    "hypha.lazy",
    "hypha.orphans",
)


def room_of(module: str) -> str:
    """``hypha.wire.frame`` is in ``wire``, ``hypha.server`` is ``server``, and ``hypha`` itself is ``hypha``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imported(tree: ast.AST, package: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in *tree*, at any depth; a relative one as its dots and name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            yield from ((node.lineno, _submodule(name, alias.name, package)) for alias in node.names)


def _submodule(name: str, member: str, package: Path) -> str:
    """``from hypha import worker`` imports a module, ``from hypha import __version__`` does not."""
    if name == package.name and ((package / member).is_dir() or (package / f"{member}.py").is_file()):
        return f"{name}.{member}"
    return name


def violations(package: Path, arrows: Mapping[str, Set[str]] = ARROWS) -> list[str]:
    """Every import below *package* (a folder named like its package) that its room may not make, explained."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        room = room_of(".".join(part for part in parts if part != "__init__"))
        where = path.relative_to(package.parent)
        if room not in arrows:
            found.append(f"{where}: the room {room!r} is not in tests/house/rooms.py; say there what it may import")
            continue
        for line, name in imported(ast.parse(path.read_text()), package):
            reason = _objection(room, name, package.name, arrows[room])
            if reason:
                found.append(f"{where}:{line}: {reason}")
    return found


def _objection(room: str, name: str, package: str, allowed: Set[str]) -> str | None:
    top = name.partition(".")[0]
    if not top:
        return f"relative import of {name}; write the whole name"
    if top == package:
        target = room_of(name)
        fine = target in {package, room, *allowed} or (target in FOR_ALL and room not in FOR_ALL)
        return None if fine else f"{room} must not import {target}: the arrows point the other way"
    if top in sys.stdlib_module_names:
        fine = top not in RESERVED or room in RESERVED[top]
        return None if fine else f"{room} must not import {top}; it belongs to {sorted(RESERVED[top]) or 'nobody'}"
    return None if top in FOREIGN.get(room, ()) else f"{room} must not import {top}"
