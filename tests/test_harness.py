"""The harness itself: what leaks is found and named, what hangs is ended, and the environments are what they say."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.house.steps import ROOT

LEAKING = """
    import os, signal, socket, subprocess, sys, threading
    import pytest, trio

    kept = []
    held = threading.Event()

    async def test_clean():
        await trio.to_thread.run_sync(lambda: None)
        await trio.run_process([sys.executable, "-c", ""])

    def test_process():
        kept.append(subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]))

    def test_orphan():
        code = "import subprocess, sys; subprocess.Popen(['sleep', '987'])"
        subprocess.run([sys.executable, "-c", code], check=True)

    async def test_socket():
        kept.append(await trio.open_tcp_listeners(0, host="127.0.0.1"))

    def test_file(tmp_path):
        kept.append(open(tmp_path / "held-open", "w"))

    def test_thread():
        thread = threading.Thread(target=held.wait, name="left-running", daemon=True)
        thread.start()

    async def test_system_task():
        trio.lowlevel.spawn_system_task(trio.sleep_forever, name="forgotten")

    @pytest.fixture(scope="session")
    def wide():
        kept.append(open(__file__))

    def test_of_wide_fixture(wide):
        assert kept
"""

HANGING = """
    import signal, time
    import pytest, trio

    @pytest.mark.deadline(0.2)
    async def test_waits_for_ever():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever, name="the-sleeper")

    @pytest.mark.deadline(0.2)
    async def test_waits_on_a_mock_clock(mock_clock):
        await trio.sleep(1)

    @pytest.mark.deadline(0.2)
    async def test_virtual_hours_are_free(autojump_clock):
        await trio.sleep(36000)

    @pytest.mark.deadline(0.2)
    def test_blocks():
        signal.pause()

    @pytest.fixture
    async def stuck():
        await trio.sleep_forever()

    @pytest.mark.deadline(0.2)
    async def test_with_stuck_fixture(stuck):
        pass
"""

SHIELDED = """
    import pytest, trio

    @pytest.mark.deadline(0.2)
    async def test_refuses_to_be_cancelled():
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()
"""

BLOCKING = """
    import itertools
    import pytest

    @pytest.mark.deadline(0.2)
    def test_holds_the_interpreter():
        sum(itertools.repeat(0))  # a loop in C that looks at no signal
"""


def run_pytest(directory: Path, source: str, grace: float = 10.0) -> str:
    """Run *source* under the plugins of the house in a process of its own and return the report."""
    (directory / "test_it.py").write_text(textwrap.dedent(source))
    (directory / "pytest.ini").write_text("[pytest]\ntrio_mode = true\nfilterwarnings = error\n")
    setting = f"from tests.house import deadlines, leaks\ndeadlines.GRACE = {grace}\nleaks.GRACE = 0.3\n"
    (directory / "conftest.py").write_text(setting)
    plugins = ["-p", "tests.house.leaks", "-p", "tests.house.deadlines"]
    command = [sys.executable, "-m", "pytest", *plugins, "-rA", "-p", "no:cacheprovider", "test_it.py"]
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout + done.stderr


def outcomes(report: str) -> dict[str, set[str]]:
    """What the summary of *report* says, by test."""
    found: dict[str, set[str]] = {}
    for verdict, name in re.findall(r"^(PASSED|FAILED|ERROR) test_it.py::(\w+)", report, re.MULTILINE):
        found.setdefault(name, set()).add(verdict)
    return found


@pytest.mark.slow
def test_leaks_are_found_and_named(tmp_path: Path) -> None:
    report = run_pytest(tmp_path, LEAKING)
    leaking = {"PASSED", "ERROR"}
    assert outcomes(report) == {
        "test_clean": {"PASSED"},
        "test_process": leaking,
        "test_orphan": leaking,
        "test_socket": leaking,
        "test_file": leaking,
        "test_thread": leaking,
        "test_system_task": {"FAILED"},
        "test_of_wide_fixture": {"PASSED"},
    }
    for name in ("signal.pause()", "sleep 987", "AF_INET ('127.0.0.1', ", "held-open", "'left-running'", "forgotten"):
        assert name in report
    assert re.search(r"fixtures leak\n(.*\n)*.*test_it\.py", report)
    assert not [entry for entry in Path("/proc").glob("[0-9]*/cmdline") if b"sleep\x00987" in entry.read_bytes()]


@pytest.mark.slow
def test_hanging_tests_are_ended_and_their_tasks_named(tmp_path: Path) -> None:
    report = run_pytest(tmp_path, HANGING)
    assert outcomes(report) == {
        "test_waits_for_ever": {"FAILED"},
        "test_waits_on_a_mock_clock": {"FAILED"},
        "test_virtual_hours_are_free": {"PASSED"},
        "test_blocks": {"FAILED"},
        "test_with_stuck_fixture": {"FAILED"},
    }
    assert "the-sleeper: " in report
    assert report.count("DeadlineExceeded: longer than 0.2 s") >= 4


@pytest.mark.slow
def test_a_shielded_test_is_ended_at_the_second_stage(tmp_path: Path) -> None:
    report = run_pytest(tmp_path, SHIELDED, grace=0.3)
    assert "FAILED" in outcomes(report)["test_refuses_to_be_cancelled"]
    assert "DeadlineExceeded: longer than 0.2 s" in report


@pytest.mark.slow
def test_a_blocked_interpreter_is_ended_at_the_third_stage(tmp_path: Path) -> None:
    report = run_pytest(tmp_path, BLOCKING, grace=0.3)
    assert "Timeout (" in report
    assert "test_holds_the_interpreter" in report
