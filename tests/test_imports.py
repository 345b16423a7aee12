"""Imports point one way, and a process that does not serve yet imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import rooms
from tests.house.steps import ROOT


def test_no_arrow_points_backwards() -> None:
    assert rooms.violations(ROOT / "hypha") == []


def test_every_arrow_has_two_ends() -> None:
    named = {target for allowed in rooms.ARROWS.values() for target in allowed}
    assert (named | set(rooms.FOREIGN) | rooms.FOR_ALL) <= set(rooms.ARROWS)


def test_no_permission_is_left_over() -> None:
    """A room that stands uses every distribution that the table lets it have."""
    package = ROOT / "hypha"
    used: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        names = rooms.imported(ast.parse(path.read_text()), package)
        room = rooms.room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        used.setdefault(room, set()).update(name.partition(".")[0] for _, name in names)
    unused = {room: set(allowed) - used[room] for room, allowed in rooms.FOREIGN.items() if room in used}
    assert not any(unused.values()), unused


def test_the_arrows_make_no_circle() -> None:
    left = {room: set(allowed) for room, allowed in rooms.ARROWS.items()}
    while free := {room for room, allowed in left.items() if not allowed & set(left)}:
        left = {room: allowed for room, allowed in left.items() if room not in free}
    assert not left


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("wire/frame.py", "from hypha.broker import router", "wire must not import broker"),
        ("wire/frame.py", "def f():\n    import hypha.web.ws", "wire must not import web"),
        ("wire/frame.py", "import trio", "wire must not import trio"),
        ("broker/router.py", "from hypha import web", "broker must not import web"),
        ("broker/router.py", "import socket", "broker must not import socket"),
        ("broker/router.py", "from hypha.store import datadir", "broker must not import store"),
        ("broker/router.py", "import quart.wrappers", "broker must not import quart"),
        ("web/ws.py", "from hypha.launch.plan import Plan", "web must not import launch"),
        ("web/ws.py", "import playwright", "web must not import playwright"),
        ("web/ws.py", "import asyncio", "web must not import asyncio"),
        ("web/ws.py", "from . import guard", "relative import"),
        ("web/ws.py", "from ..wire import frame", "relative import"),
        ("client/session.py", "from hypha.broker.session import Session", "client must not import broker"),
        ("store/datadir.py", "import trio", "store must not import trio"),
        ("config.py", "from hypha.wire import frame", "config must not import wire"),
        ("errors.py", "import hypha.config", "errors must not import config"),
        ("parent.py", "from hypha.worker import main", "parent must not import worker"),
        ("attic/old.py", "", "the room 'attic' is not in"),
    ],
)
def test_a_wrong_import_is_found(path: str, source: str, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "hypha" / path
    file.parent.mkdir(parents=True)
    (tmp_path / "hypha" / "web").mkdir(exist_ok=True)
    file.write_text(f'"""A docstring."""\n{source}\n')
    (found,) = rooms.violations(tmp_path / "hypha")
    assert complaint in found
    assert found.startswith(f"hypha/{path}:")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("broker/router.py", "from hypha import __version__\nfrom hypha.wire.frame import Frame\nimport trio"),
        ("broker/router.py", "from hypha.broker import session\nfrom hypha.errors import HyphaError"),
        ("web/ws.py", "from hypha.config import Config\nimport socket, hypercorn.trio"),
        ("aio.py", "import asyncio"),
    ],
)
def test_a_right_import_is_left_alone(path: str, source: str, tmp_path: Path) -> None:
    file = tmp_path / "hypha" / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    assert rooms.violations(tmp_path / "hypha") == []


def test_the_parent_process_stays_on_the_standard_library() -> None:
    program = f"""
import sys
before = set(sys.modules)
for name in {rooms.LIGHT!r}:
    __import__(name)
tops = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(sorted(tops - set(sys.stdlib_module_names) - {{"hypha"}}))
print(sorted(name for name in sys.modules if name.startswith("hypha")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    foreign, ours = done.stdout.splitlines()
    assert foreign == "[]"
    assert ours == str(sorted({*rooms.LIGHT, "hypha.config", "hypha.errors"}))


def test_what_extras_bring_is_loaded_only_when_it_is_asked_for() -> None:
    program = "import sys, hypha.worker; print(sorted({'httpx', 'playwright', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "[]\n"
