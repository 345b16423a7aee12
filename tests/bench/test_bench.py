"""The benchmark runs, its answers are right, and the page about it has its rows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.load import Shape
from tests.bench.table import HEAD, labels
from tests.bench.wire import SESSION, Template, WrongAnswer, call_message, decode, next_session
from tests.bench.work import WORKS
from tests.house.environments import clean_environ
from tests.house.steps import ROOT

_PAGE = ROOT / "docs" / "performance.md"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench", *arguments]
    return subprocess.run(command, cwd=ROOT, env=clean_environ(), capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_cell_has_its_figures_and_every_answer_is_right(tmp_path: Path) -> None:
    done = bench("--seconds", "0.1", "--rounds", "1", "--markdown", "--json", str(tmp_path / "figures.json"))
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "figures.json").read_text())
    found = [(row["work"], row["server"]) for row in document["rows"]]
    assert found == [(work.name, server.name) for work in WORKS for server in work.servers]
    for row in document["rows"]:
        assert row["medians"]
        assert min(row["medians"].values()) > 0, row
        assert all(ratio > 0 for ratio in row["hypha_is"].values()), row
        assert bool(row["hypha_is"]) == (row["server"] != "hypha")
    printed = table_of(done.stdout)
    assert [row[:2] for row in printed] == table_rows()
    assert all(len(row) == len(HEAD) for row in printed)


@pytest.mark.slow
def test_one_measurement_runs_alone(tmp_path: Path) -> None:
    done = bench("small", "--servers", "bare", "--seconds", "0.05", "--rounds", "2", "--json", str(tmp_path / "one"))
    assert done.returncode == 0, done.stderr
    (rounds,) = json.loads((tmp_path / "one").read_text())["rounds"]
    assert (rounds["work"], rounds["server"], len(rounds["rounds"])) == ("small", "bare", 2)


@pytest.mark.parametrize("arguments", [["nothing"], ["--servers", "nobody"], ["--seconds", "0"], ["--seconds", "21"]])
def test_what_is_not_known_is_refused(arguments: list[str]) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert "error: " in done.stderr


def test_a_frame_of_another_shape_is_not_counted() -> None:
    session, message = next_session(), call_message("provider", "services.bench.echo", [bytes(100)])
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


def table_rows() -> list[list[str]]:
    return [list(names) for names in labels(WORKS)]


def table_of(text: str) -> list[list[str]]:
    """The cells of the table in *text* whose head is ours, without the head."""
    _, head, rest = text.partition(f"| {' | '.join(HEAD)} |\n")
    assert head, "the table has another head"
    lines = re.match(r"(\|.*\n)+", rest)
    assert lines
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()[1:]]


def test_the_page_has_the_rows_and_the_names_of_the_program() -> None:
    page = _PAGE.read_text()
    assert [row[:2] for row in table_of(page)] == table_rows()
    assert "python3 -m tests bench" in page
    named = set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE))
    assert named == {work.name for work in WORKS} | {server.name for work in WORKS for server in work.servers}
