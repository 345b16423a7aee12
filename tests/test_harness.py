"""The harness itself: what leaks is found and named, what hangs is ended, and the environments are what they say."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests import __main__ as command
from tests.house import environments, machine, processes
from tests.house.steps import ROOT, Stop

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


async def test_a_process_is_awaited_line_by_line_and_killed_with_its_group(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    code = "import subprocess; print('one'); print('two'); subprocess.run(['sleep', '986'])"
    async with processes.start(nursery, [sys.executable, "-c", code], cwd=tmp_path) as running:
        assert (await running.wait_for("^t(wo)$"))[1] == "wo"
        assert (await running.wait_for("one"))[0] == "one"
    assert running.process.returncode == -signal.SIGKILL
    assert running.stdout == "one\ntwo\n"


async def test_a_process_that_ends_too_early_is_reported_with_its_output(nursery: trio.Nursery, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('hello'); sys.exit('sorry')"]
    async with processes.start(nursery, command, cwd=tmp_path) as running:
        with pytest.raises(processes.Ended, match=r"(?s)'never'.*hello.*sorry"):
            await running.wait_for("never")
        assert await running.wait() == processes.Result(1, "hello\n", "sorry\n")


async def test_a_process_that_takes_too_long_is_killed_and_reported(nursery: trio.Nursery, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import signal; print('stuck', flush=True); signal.pause()"]
    with pytest.raises(processes.Ended, match=r"(?s)still running after 1 s.*stuck"):
        await processes.run(nursery, command, cwd=tmp_path, seconds=1)


def test_processes_under_test_see_no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HYPHA_PORT", "HYPHA_TEST_ENVS", "PYTHONPATH", "VIRTUAL_ENV", "LISTEN_FDS"):
        monkeypatch.setenv(name, "1")
    assert not {"HYPHA_PORT", "HYPHA_TEST_ENVS", "PYTHONPATH", "VIRTUAL_ENV", "LISTEN_FDS"} & set(
        processes.environ_for()
    )


@pytest.mark.slow
def test_an_environment_is_reused_only_when_whole_and_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "HOME", tmp_path)
    broken = environments.Environment("empty", ("pip",), "import no_such_module")
    with pytest.raises(Stop, match="no_such_module"):
        environments.ensure(broken)
    assert broken.python.exists()
    assert not environments.is_complete(broken, environments.fingerprint(broken, sys.executable))
    whole = replace(broken, probe="import pip")
    assert environments.ensure(whole)
    assert not environments.ensure(whole)
    changed = replace(whole, probe="import pip, sys")
    assert not environments.is_complete(changed, environments.fingerprint(changed, sys.executable))


def test_an_environment_that_serves_another_tree_is_not_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = environments.fingerprint(environments.MAIN, sys.executable)
    client = environments.fingerprint(environments.CLIENTS[0], sys.executable)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    assert environments.fingerprint(environments.MAIN, sys.executable) != here
    assert environments.fingerprint(environments.CLIENTS[0], sys.executable) == client


def test_a_client_that_does_not_know_this_python_names_the_one_to_install() -> None:
    old = replace(environments.CLIENTS[0], pythons=((3, 2),))
    with pytest.raises(Stop, match=r"install python3\.2"):
        environments.interpreter_for(old)


def test_a_machine_without_the_tools_is_told_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setitem(machine.NEEDS, "a browser", (lambda: None, ("chromium-headless-shell",)))
    with pytest.raises(Stop) as stop:
        machine.prepare()
    assert str(stop.value).splitlines()[-1].strip() == (
        "sudo apt-get update && sudo apt-get install -y --no-install-recommends chromium-headless-shell"
    )


def test_the_tools_of_this_machine_are_found(node: str, npm: str, browser: str) -> None:
    for path in (node, npm, browser):
        assert os.access(path, os.X_OK)


@pytest.mark.slow
@pytest.mark.deadline(120)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_one_command_ends_cleanly_when_interrupted(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """Ctrl-C goes to the whole group, SIGTERM to the command alone; pytest ends by itself both times."""
    source = "import signal\ndef test_it():\n    print('started', flush=True)\n    signal.pause()\n"
    (tmp_path / "test_it.py").write_text(source)
    command = [sys.executable, "-m", "tests", "-p", "no:cacheprovider", "-s", str(tmp_path / "test_it.py")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert any(line.endswith("started\n") for line in process.stdout)
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            rest = process.stdout.read()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, rest
    assert "KeyboardInterrupt" in rest  # pytest's own summary
    assert "Traceback" not in rest


@pytest.mark.parametrize(
    ("check", "tests", "code"),
    [
        ("exit 0", "exit 0", 0),
        ("exit 7", "exit 0", 1),
        ("exit 0", "exit 5", 5),
        ("exit 7", "exit 3", 3),
        ("exit 0", "kill -9 $$", 137),
    ],
)
def test_the_exit_code_is_the_truth(check: str, tests: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "checks", lambda: {"check": ["bash", "-c", check]})
    monkeypatch.setattr(command, "pytest_command", lambda arguments: ["bash", "-c", tests])
    durations: dict[str, float] = {}
    assert command.execute([], durations) == code
    assert list(durations) == ["check", "pytest"]


def test_a_run_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(machine, "PYTHONS", ((3, 2),))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert command.main([]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "run the tests with one of 3.2" in capsys.readouterr().out


def test_the_benchmark_needs_one_environment_and_its_exit_code_is_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    built, started = [], []

    def spawn(words: list[str], environ: dict[str, str]) -> tuple[int, str]:
        started.append(words[1:])
        return 3, ""

    monkeypatch.setattr(environments, "ensure", lambda environment: built.append(environment.name))
    monkeypatch.setattr(command, "spawn", spawn)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert command.main(["bench", "small", "--rounds", "1"]) == 3
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (built, started) == (["main"], [["-m", "tests.bench", "small", "--rounds", "1"]])


@pytest.mark.slow
@pytest.mark.parametrize(("words", "chosen"), [([], "test_quick"), (["soak"], "test_long")])
def test_soak_tests_run_only_when_asked_for(words: list[str], chosen: str, tmp_path: Path) -> None:
    source = "import pytest\ndef test_quick(): pass\n@pytest.mark.soak\ndef test_long(): pass\n"
    (tmp_path / "test_it.py").write_text(source)
    # The conftest of this repository as a plugin, for tests that lie outside of it.
    arguments = [*words, "-p", "tests.conftest", "-p", "no:cacheprovider", "-v", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command.pytest_command(arguments)[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"::(\w+) PASSED", done.stdout) == [chosen]
