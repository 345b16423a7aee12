"""The examples of the documentation.

A fenced block of Python, JavaScript or shell has a comment right above it: ``<!-- example: NAME -->`` when a test runs
it, or ``<!-- not run: WHY -->``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.house.steps import ROOT

_BLOCK = re.compile(r"^(?P<above>[^\n]*)\n```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"<!-- example: (?P<name>[\w-]+) -->")
_EXCUSED = re.compile(r"<!-- not run: \S.* -->")

RUNNABLE = frozenset({"bash", "sh", "shell", "console", "python", "py", "javascript", "js"})


@dataclass(frozen=True)
class Block:
    """One fenced block. *name* is empty when none is given, *excused* tells whether a reason is."""

    language: str
    code: str
    name: str
    excused: bool


def pages() -> list[Path]:
    """Every page of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = []
    for match in _BLOCK.finditer(text):
        named = _NAMED.fullmatch(match["above"])
        excused = bool(_EXCUSED.fullmatch(match["above"]))
        found.append(Block(match["language"], match["code"], named["name"] if named else "", excused))
    return found


def examples(page: str) -> dict[str, str]:
    """The code of the named blocks of *page*, by name."""
    return {block.name: block.code for block in blocks((ROOT / page).read_text()) if block.name}
