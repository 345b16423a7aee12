"""The tables of ``docs/performance.md``: written in place, read again, and held against what was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.bench.servers import BARE, HYPHA, PUBLISHED, SERVERS, STACK, TAKEN, Server
from tests.bench.table import BESIDE, BESIDE_COST, BESIDE_LATENCY, HEAD
from tests.bench.work import WORKS
from tests.house.steps import ROOT

PAGE = ROOT / "docs" / "performance.md"
#: The servers of each of its tables.
TABLES: tuple[Sequence[Server], ...] = (SERVERS, (HYPHA, PUBLISHED))

_ASKED_MARK = "<!-- asked -->\n"
_ASKED_HEAD = ("work", "figure", "against", "asked", "measured", "reached")


@dataclass(frozen=True)
class Asked:
    """One figure of hypha's, in units of another server's. *most*: it may not be above *bound*, else not below."""

    work: str
    column: str
    against: Server
    bound: float
    most: bool = False

    @property
    def title(self) -> str:
        """The work as the tables name it."""
        return next(work.title for work in WORKS if work.name == self.work)

    def cells(self, measured: str) -> tuple[str, ...]:
        """The row about it, when *measured* is what the table says."""
        value = float(measured.removesuffix("x"))
        reached = value <= self.bound if self.most else value >= self.bound
        asked = f"{'at most' if self.most else 'at least'} {self.bound:g}x"
        return (self.title, self.column, self.against.title, asked, measured, "yes" if reached else "no")


ASKED = (
    Asked("small", BESIDE, BARE, 0.7),
    Asked("small-16", BESIDE, BARE, 0.7),
    Asked("small", BESIDE, PUBLISHED, 5),
    Asked("small-16", BESIDE, PUBLISHED, 5),
    Asked("one", BESIDE_LATENCY, BARE, 1.3, most=True),
    Asked("large", BESIDE, BARE, 0.8),
    Asked("quarter", BESIDE, BARE, 0.8),
    Asked("http", BESIDE, STACK, 0.5),
    Asked("connect", BESIDE, TAKEN, 0.6),
    Asked("register", BESIDE, PUBLISHED, 2),
    Asked("idle", BESIDE_COST, STACK, 1.3, most=True),
)


def written(page: str, servers: Sequence[Server], lines: Sequence[str]) -> str:
    """*page* with *lines* as its table of *servers*, and with the table of what was asked for that follows from it."""
    page = _replaced(page, _mark(servers), lines)
    return _replaced(page, _ASKED_MARK, list(asked_table(page)))


def asked_table(page: str) -> Iterator[str]:
    """What was asked for, beside what the other tables of *page* say."""
    found = {(row[0], row[1]): row for servers in TABLES for row in rows(page, servers)}
    yield f"| {' | '.join(_ASKED_HEAD)} |"
    yield "|---|---|---|--:|--:|---|"
    for asked in ASKED:
        measured = found[asked.title, asked.against.title][HEAD.index(asked.column)]
        yield f"| {' | '.join(asked.cells(measured))} |"


def rows(page: str, servers: Sequence[Server]) -> list[list[str]]:
    """The cells of the table of *servers*, without its head."""
    _, _, *body = _table(page, _mark(servers))[0].splitlines()
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in body]


def _mark(servers: Sequence[Server]) -> str:
    """The line before the table of *servers*."""
    return f"<!-- bench --servers {','.join(server.name for server in servers)} -->\n"


def _table(page: str, mark: str) -> re.Match[str]:
    found = re.search(f"(?<={re.escape(mark)})(\\|.*\n)*", page)
    if not found:
        raise ValueError(f"the page has no line {mark!r}")
    return found


def _replaced(page: str, mark: str, lines: Sequence[str]) -> str:
    old = _table(page, mark)
    return page[: old.start()] + "".join(f"{line}\n" for line in lines) + page[old.end() :]
