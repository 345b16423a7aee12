"""The table of ``docs/clients.md``: the rows of ``protocol.md`` section 12 that the tests of this folder show."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "clients.md"

ROWS = {
    1: "connect with only an address; a workspace of one's own",
    2: "`echo` and `log`",
    3: "`generate_token`, and a second client with it",
    4: "refusals: bad token, unknown workspace, taken client id",
    5: "registration; functions, keywords, callbacks, errors",
    6: "`overwrite`",
    7: "`rpc.register_service`, `export`, `unregister_service` show in the lists at once",
    8: "every form of `get_service`, and its error texts",
    9: "protected services are closed to other workspaces, public ones found by name",
    10: "`require_context`",
    11: "arrays, bytes, sets, large messages, both ways",
    12: "a call longer than the caller's limit is kept alive",
    13: "a cut connection comes back with its services",
    14: "a clean goodbye removes everything at once",
    15: "no text frame ever reaches the client",
    16: "`create_workspace`, and a token with scopes",
}
CLIENTS = ("0.5.6", "0.5.59", "js")


def collected() -> Counter[tuple[int, str]]:
    """How many tests there are for each row and client, by their names. A test that is there passes or fails CI."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "slow or not slow", "tests/clients"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    found: Counter[tuple[int, str]] = Counter()
    for line in listed.stdout.splitlines():
        row = re.search(r"row[-_]0*(\d+)", line)
        client = "js" if "test_javascript" in line else next(iter(re.findall(r"\[.*?(0\.5\.\d+)[-\]]", line)), "")
        if row and client:
            found[int(row[1]), client] += 1
    return found


def table(found: Counter[tuple[int, str]]) -> str:
    lines = ["| row | what | Python 0.5.6 | Python 0.5.59 | JavaScript 0.5.59 |", "|---|---|---|---|---|"]
    for number, what in ROWS.items():
        cells = " | ".join("yes" if found[number, client] else "no" for client in CLIENTS)
        lines.append(f"| {number} | {what} | {cells} |")
    return "\n".join(lines) + "\n"


@pytest.mark.slow
def test_the_page_shows_what_is_tested_without_a_gap() -> None:
    found = collected()
    gaps = [(number, client) for number in ROWS for client in CLIENTS if not found[number, client]]
    assert not gaps
    text = PAGE.read_text()
    shown = text.partition("<!-- rows -->\n")[2].partition("<!-- end of rows -->")[0]
    assert shown == table(found), f"put this into {PAGE.name}:\n{table(found)}"
