"""The table: for people, for the documentation, for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.bench.servers import Server
from tests.bench.work import CALLS, LATENCY_50, LATENCY_99, MEMORY, PROCESSOR, Row, Work

#: The columns of what the server under test does and needs, in units of another server's.
BESIDE, BESIDE_LATENCY, BESIDE_COST = "hypha: calls/s", "hypha: p50", "hypha: CPU or memory"
HEAD = ("work", "server", CALLS, LATENCY_50, LATENCY_99, PROCESSOR, MEMORY, BESIDE, BESIDE_LATENCY, BESIDE_COST)


def labels(works: Sequence[Work], servers: Sequence[Server]) -> list[tuple[str, str]]:
    """The first two cells of every row."""
    return [(work.title, server.title) for work in works for server in work.servers if server in servers]


def cells(row: Row) -> tuple[str, ...]:
    """One row as text."""
    figures = (_figure(row.medians.get(name)) for name in HEAD[2:7])
    cost = row.ratios.get(PROCESSOR, row.ratios.get(MEMORY))
    ratios = (row.ratios.get(CALLS), row.ratios.get(LATENCY_50), cost)
    return (row.work.title, row.server.title, *figures, *map(_ratio, ratios))


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def text(found: Sequence[Row]) -> Iterator[str]:
    """Aligned lines, an empty one between the works."""
    table = [HEAD, *map(cells, found)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEAD))]
    before = ""
    for line in table:
        if line[0] != before:
            yield ""
        before = line[0]
        names = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        yield "  ".join([*names, *(cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True))])


def markdown(found: Sequence[Row]) -> Iterator[str]:
    """The table of ``docs/performance.md``."""
    yield f"| {' | '.join(HEAD)} |"
    yield f"|{'---|' * 2}{'--:|' * (len(HEAD) - 2)}"
    for row in found:
        yield f"| {' | '.join(cells(row))} |"


def document(found: Sequence[Row]) -> list[dict[str, object]]:
    """The same for a program, not rounded."""
    return [
        {"work": row.work.name, "server": row.server.name, "medians": row.medians, "hypha_is": row.ratios}
        for row in found
    ]
