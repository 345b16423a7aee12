"""``python3 -m tests bench``: measure, and print the table of ``docs/performance.md``."""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import hypha
from tests.bench import page, table
from tests.bench.servers import ALL_SERVERS, PUBLISHED, SERVERS, Live, Server
from tests.bench.work import WORKS, Found, Row, Work, compared, rows
from tests.house import environments
from tests.house.steps import Stop

#: What a cell takes at most: the server pings its clients after 20 s, which the load does not expect.
_LONGEST = 10.0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line. Ends the process when it is wrong."""
    parser = argparse.ArgumentParser(prog="python3 -m tests bench", description=__doc__, allow_abbrev=False)
    works, servers = [work.name for work in WORKS], [server.name for server in ALL_SERVERS]
    parser.add_argument(
        "works", nargs="*", metavar="WORK", help=f"what to measure (default: all that compares): {', '.join(works)}"
    )
    parser.add_argument(
        "--servers",
        default=",".join(server.name for server in SERVERS),
        help=f"which to measure, of {', '.join(servers)} (default: %(default)s)",
    )
    parser.add_argument("--seconds", type=_seconds, default=0.4, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the medians are taken (default: %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/performance.md has it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all rounds there, too")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", nargs="?", const=page.PAGE, help="write the table into the page, in place"
    )
    options = parser.parse_args(arguments)
    given = options.servers.split(",")
    for name in sorted({*options.works, *given} - {*works, *servers}):
        parser.error(f"{name!r} is none of {', '.join([*works, *servers])}")
    options.servers = tuple(server for server in ALL_SERVERS if server.name in given)
    options.works = [work for work in WORKS if work.name in options.works] or compared(options.servers)
    if options.write and (options.servers not in page.TABLES or options.works != compared(options.servers)):
        parser.error("the page has whole tables only, see docs/performance.md")
    return options


def _seconds(text: str) -> float:
    if not 0 < float(text) <= _LONGEST:
        raise argparse.ArgumentTypeError(f"between 0 and {_LONGEST:g}")
    return float(text)


Rounds = dict[Work, dict[Server, list[Found]]]


def measure(works: Sequence[Work], servers: Sequence[Server], seconds: float, count: int) -> Rounds:
    """Measure everything *count* times, in turns: what else the machine does meets all servers."""
    found: Rounds = {work: {server: [] for server in work.servers if server in servers} for work in works}
    with ExitStack() as stack:
        kept = {server for work in works if not work.once for server in found[work]}
        live = {server: stack.enter_context(server.running()) for server in ALL_SERVERS if server in kept}
        for number in range(count):
            print(f"bench: round {number + 1} of {count}", file=sys.stderr, flush=True)
            for work in works:
                if number == 0 or not work.once:
                    for server, results in found[work].items():
                        results.append(_cell(work, server, live, seconds))
    return found


def _cell(work: Work, server: Server, live: Mapping[Server, Live], seconds: float) -> Found:
    gc.collect()
    if not work.once:
        return work.measure(server, live[server], seconds)
    with server.running(*server.idle_flags) as fresh:
        return work.measure(server, fresh, seconds)


def main(arguments: Sequence[str]) -> int:
    """Measure and report; the exit code."""
    options = parse(arguments)
    works, servers = options.works, options.servers
    try:
        if PUBLISHED in servers and environments.ensure(environments.PUBLISHED):
            print(f"bench: built the environment of {PUBLISHED.title}", file=sys.stderr, flush=True)
    except Stop as reason:
        print(f"bench: {reason}", file=sys.stderr)
        return 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    found = measure(works, servers, options.seconds, options.rounds)
    table_rows: list[Row] = [row for work in works for row in rows(work, found[work])]
    for line in table.markdown(table_rows) if options.markdown else table.text(table_rows):
        print(line)
    if options.write:
        lines = list(table.markdown(table_rows))
        options.write.write_text(page.written(options.write.read_text(), servers, lines))
    if options.json:
        options.json.write_text(json.dumps(report(options, table_rows, found), indent=1) + "\n")
    return 0


def report(options: argparse.Namespace, table_rows: Sequence[Row], found: Rounds) -> dict[str, object]:
    """Everything that was found, for a program."""
    return {
        "version": hypha.__version__,
        "python": sys.version,
        "seconds": options.seconds,
        "rows": table.document(table_rows),
        "rounds": [
            {"work": work.name, "server": server.name, "rounds": results}
            for work, servers in found.items()
            for server, results in servers.items()
        ],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
