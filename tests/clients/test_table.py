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
    17: "`login`, reported over HTTP and on the page",
}
CLIENTS = ("0.5.6", "0.5.59", "js")
#: What a client itself does not have.
ABSENT = {(17, "0.5.6")}

MODERN_ROWS = {
    18: "connect with only an address; what the client knows afterwards",
    19: "a token names its workspace; workspaces and tokens for them",
    20: "refusals say why",
    21: "registration by description, every form of `get_service`, lists, `unregister_service`",
    22: "keywords, callbacks, errors, generators of both kinds, and leaving one early",
    23: "signs of life in text, and a fresh reconnection token",
    24: "back at once with its services after 1000, 1001, 1006, 1008",
    25: "back with its services when the worker was replaced or killed",
    26: "calls to a lost client fail at once, and who subscribed hears of it",
    27: "events: to all that subscribed, to one, and to nobody else",
    28: "arguments and results of 12 MB, lists of 3 MB; no frame that the client cannot take",
    29: '`transport: "http"`: connect, register, call, come back',
    30: "`login`, also to a workspace and with the profile, and `logout`",
}
MODERN_CLIENTS = ("0.21.47", "hypha-rpc-js")
#: Our own client for JavaScript, which is not on the page, and what it does not have.
OWN = "hypha-js"
NOT_OWN = {29}


def collected() -> Counter[tuple[int, str]]:
    """How many tests there are for each row and client, by their names. A test that is there passes or fails CI."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "slow or not slow", "tests/clients"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    found: Counter[tuple[int, str]] = Counter()
    for line in listed.stdout.splitlines():
        row = re.search(r"row[-_]0*(\d+)", line)
        if row:
            found[int(row[1]), client_of(line)] += 1
    return found


def client_of(line: str) -> str:
    """Whose test it is, by its file or its parameter."""
    if re.search(rf"[\[-]{OWN}[-\]]", line):
        return OWN
    if "test_javascript" in line or "imjoy-rpc-js" in line:
        return "js"
    if "test_modern_javascript" in line or "hypha-rpc-js" in line:
        return "hypha-rpc-js"
    return next(iter(re.findall(r"\[.*?(0\.(?:5|21)\.\d+)[-\]]", line)), "")


def table(found: Counter[tuple[int, str]], rows: dict[int, str], clients: tuple[str, ...], *titles: str) -> str:
    lines = [f"| row | what | {' | '.join(titles)} |", "|---" * (2 + len(clients)) + "|"]
    for number, what in rows.items():
        cells = " | ".join("-" if (number, client) in ABSENT else _cell(found[number, client]) for client in clients)
        lines.append(f"| {number} | {what} | {cells} |")
    return "\n".join(lines) + "\n"


def _cell(tests: int) -> str:
    return "yes" if tests else "no"


@pytest.mark.slow
def test_the_page_shows_what_is_tested_without_a_gap() -> None:
    found = collected()
    text = PAGE.read_text()
    for mark, rows, clients, titles in (
        ("rows", ROWS, CLIENTS, ("Python 0.5.6", "Python 0.5.59", "JavaScript 0.5.59")),
        ("modern rows", MODERN_ROWS, MODERN_CLIENTS, ("Python 0.21.47", "JavaScript 0.21.40")),
    ):
        gaps = {(number, client) for number in rows for client in clients if not found[number, client]}
        assert gaps <= ABSENT
        shown = text.partition(f"<!-- {mark} -->\n")[2].partition(f"<!-- end of {mark} -->")[0]
        expected = table(found, rows, clients, *titles)
        assert shown == expected, f"put this into {PAGE.name}:\n{expected}"
    assert {number for number in MODERN_ROWS if not found[number, OWN]} == NOT_OWN
