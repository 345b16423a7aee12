"""The benchmark runs, its answers are right, and the page about it has its rows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.bench.load import Shape
from tests.bench.page import PAGE, TABLES, Asked, asked_table, rows, written
from tests.bench.servers import BARE, HYPHA, PUBLISHED, SERVERS, UNLIMITED, Published, Server
from tests.bench.table import BESIDE, BESIDE_LATENCY, HEAD, labels, markdown
from tests.bench.wire import (
    SESSION,
    ModernWire,
    Template,
    WrongAnswer,
    call_message,
    decode,
    first_message,
    next_session,
)
from tests.bench.work import WORKS, Work, compared
from tests.house.environments import clean_environ
from tests.house.steps import ROOT


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench", *arguments]
    return subprocess.run(command, cwd=ROOT, env=clean_environ(), capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_cell_has_its_figures_and_every_answer_is_right(tmp_path: Path) -> None:
    copy = tmp_path / "page.md"
    copy.write_text(PAGE.read_text())
    done = bench("--seconds", "0.1", "--rounds", "1", "--write", str(copy), "--json", str(tmp_path / "figures.json"))
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "figures.json").read_text())
    found = [(row["work"], row["server"]) for row in document["rows"]]
    assert found == [
        (work.name, server.name) for work in compared(SERVERS) for server in work.servers if server in SERVERS
    ]
    for row in document["rows"]:
        assert row["medians"]
        assert min(row["medians"].values()) > 0, row
        assert all(ratio > 0 for ratio in row["hypha_is"].values()), row
        assert bool(row["hypha_is"]) == (row["server"] != "hypha")
    page = copy.read_text()
    assert rows(page, SERVERS) != rows(PAGE.read_text(), SERVERS)
    the_page_is_whole(page)


@pytest.mark.slow
def test_clients_come_and_go_with_a_service_each(tmp_path: Path) -> None:
    done = bench("register", "--servers", "hypha", "--seconds", "0.1", "--rounds", "1", "--json", str(tmp_path / "one"))
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "one").read_text())["rows"]
    assert row["medians"]["calls/s"] > 0


@pytest.mark.slow
def test_one_measurement_runs_alone(tmp_path: Path) -> None:
    done = bench("small", "--servers", "bare", "--seconds", "0.05", "--rounds", "2", "--json", str(tmp_path / "one"))
    assert done.returncode == 0, done.stderr
    (rounds,) = json.loads((tmp_path / "one").read_text())["rounds"]
    assert (rounds["work"], rounds["server"], len(rounds["rounds"])) == ("small", "bare", 2)


class Ours(Published):
    """This server, spoken to as the published one is."""

    running = Server.running


@pytest.mark.slow
@pytest.mark.parametrize("work", compared((HYPHA, PUBLISHED)), ids=lambda work: work.name)
def test_the_load_of_the_published_server_is_right(work: Work) -> None:
    ours = Ours("ours", "ours", HYPHA.command, wire=ModernWire)
    with ours.running() as live:
        assert min(work.measure(ours, live, 0.05).values()) > 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["--servers", "nobody"],
        ["--seconds", "0"],
        ["--seconds", "21"],
        ["small", "--write"],
        ["--servers", "hypha,bare", "--write"],
    ],
)
def test_what_is_not_known_is_refused(arguments: list[str]) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert "error: " in done.stderr


def test_a_frame_of_another_shape_is_not_counted() -> None:
    session, message = next_session(), call_message("caller", "provider", "services.bench.echo", [bytes(100)])
    template = Template(b"prefix", message)
    frame = template.head(session) + template.tail
    assert decode(frame[6:])["session"] == session.decode()
    shape = Shape.of(b"prefix", frame[6:], session)
    other = next_session()
    two = frame + template.head(other) + template.tail
    assert (shape.check(two, 0), shape.check(two, len(frame))) == (session, other)
    assert len(session) == SESSION
    for wrong in (b"q" + frame[1:], frame[:-1] + b"\1"):
        with pytest.raises(WrongAnswer):
            shape.check(wrong, 0)


def the_page_is_whole(page: str) -> None:
    """Its tables have the rows and the columns of the program, and what is said of them follows from them."""
    for servers in TABLES:
        found = rows(page, servers)
        assert [row[:2] for row in found] == [list(names) for names in labels(compared(servers), servers)]
        assert all(len(row) == len(HEAD) for row in found)
    assert page.endswith("".join(f"{line}\n" for line in asked_table(page)))


def test_the_page_has_the_rows_and_the_names_of_the_program() -> None:
    page = PAGE.read_text()
    the_page_is_whole(page)
    for command in ("python3 -m tests bench\n", "python3 -m tests bench --servers hypha,published\n"):
        assert command in page
    named = set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE))
    assert named == {work.name for work in WORKS} | {server.name for work in WORKS for server in work.servers}
    assert all(name in page for name in UNLIMITED)


def test_what_was_asked_for_is_held_against_the_tables() -> None:
    least, most = Asked("small", BESIDE, BARE, 0.7), Asked("one", BESIDE_LATENCY, BARE, 1.3, most=True)
    assert [least.cells(figure)[-2:] for figure in ("0.70x", "0.69x")] == [("0.70x", "yes"), ("0.69x", "no")]
    assert [most.cells(figure)[-2:] for figure in ("1.30x", "1.31x")] == [("1.30x", "yes"), ("1.31x", "no")]


def test_a_table_is_replaced_and_the_rest_of_the_page_is_not() -> None:
    before = PAGE.read_text()
    assert written(before, SERVERS, lines_of(before, SERVERS)) == before
    after = written(before, SERVERS, [line.replace("0.", "9.") for line in lines_of(before, SERVERS)])
    assert rows(after, TABLES[1]) == rows(before, TABLES[1])
    assert rows(after, SERVERS) != rows(before, SERVERS)
    the_page_is_whole(after)
    with pytest.raises(ValueError, match="no line"):
        written("nothing", SERVERS, [])


def lines_of(page: str, servers: Sequence[Server]) -> list[str]:
    """The table of *servers* as it stands in *page*."""
    head, rule, *_ = markdown([])
    return [head, rule, *(f"| {' | '.join(row)} |" for row in rows(page, servers))]


def test_messages_of_a_server_are_told_apart() -> None:
    for size in (0, 125, 126, 65535, 65536):
        length = size.to_bytes(1, "big") if size < 126 else b""
        length = length or (b"\x7e" + size.to_bytes(2, "big") if size < 65536 else b"\x7f" + size.to_bytes(8, "big"))
        frame = b"\x82" + length + bytes(size)
        assert first_message(frame + b"\x82\x01!") == (bytes(size), b"\x82\x01!")
        assert first_message(frame[:-1]) == (None, frame[:-1])
    with pytest.raises(WrongAnswer):
        first_message(b"\x88\x02\x03\xe8")
