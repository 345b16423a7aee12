"""hypha/launch/process.py: a program runs as long as its block, and nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from hypha.launch import process
from hypha.launch.process import LINE_BYTES, TAIL_LINE_LENGTH, TAIL_LINES, Child, running
from tests.launch.programs import STUBBORN, Screen, gone, is_alive, is_there, python

pytestmark = pytest.mark.deadline(30)


@pytest.fixture
async def screen() -> Screen:
    return Screen()


def run(
    arguments: Sequence[str], screen: Screen, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> AbstractAsyncContextManager[Child]:
    return running(arguments, name="prog", environ=environ or {"PATH": os.environ["PATH"]}, cwd=cwd, show=screen.show)


async def finish(arguments: Sequence[str], screen: Screen, environ: Mapping[str, str] | None = None) -> Child:
    async with run(arguments, screen, environ) as child:
        await child.wait()
    return child


async def test_its_output_is_shown_with_its_name_and_its_end_is_told(screen: Screen) -> None:
    child = await finish(["sh", "-c", "echo one; echo two >&2; printf three; exit 3"], screen)
    await screen.wait_for("three")
    assert screen.text == "prog | one\nprog | two\nprog | three\n"
    assert child.tail == ["one", "two", "three"]
    assert child.ending == "ended with exit code 3"
    assert not is_there(child.pid)


async def test_who_was_killed_is_told_by_the_signals_name(screen: Screen) -> None:
    assert (await finish(["sh", "-c", "kill -9 $$"], screen)).ending == "was killed by SIGKILL"
    assert (await finish(["sh", "-c", "kill -35 $$"], screen)).ending == "was killed by signal 35"


async def test_it_sees_the_environment_that_it_is_given_and_no_other(screen: Screen, tmp_path: Path) -> None:
    async with run(["/bin/sh", "-c", "env; pwd"], screen, {"A": "1"}, tmp_path) as child:
        await child.wait()
    await screen.wait_for(f"{tmp_path}\n")
    shown = {line.removeprefix("prog | ").partition("=")[0] for line in screen.text.splitlines()}
    assert shown - {"PWD", "SHLVL", "_", "OLDPWD"} == {"A", str(tmp_path)}


async def test_it_has_no_input_and_a_group_of_its_own(screen: Screen) -> None:
    async with run(["sh", "-c", "cat; echo read; exec sleep 99"], screen) as child:
        await screen.wait_for("read")
        assert os.getpgid(child.pid) == os.getsid(child.pid) == child.pid


async def test_it_takes_the_signals_that_the_server_ignores_or_holds_back(screen: Screen) -> None:
    code = "import signal; print(signal.getsignal(2), signal.getsignal(15), signal.pthread_sigmask(0, ()))"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        await finish(python(code), screen)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        signal.signal(signal.SIGINT, before)
    await screen.wait_for("\n")
    assert screen.text == "prog | <built-in function default_int_handler> 0 set()\n"


async def test_a_program_that_is_not_there_is_an_error(screen: Screen, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await finish(["no-such-program-here"], screen)
    with pytest.raises(PermissionError):
        await finish([str(tmp_path)], screen)


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("import os; os.write(1, b'\\xff\\xfe caf\\xc3\\xa9\\r\\n')", "\ufffd\ufffd café\n"),
        ("import os; os.write(1, b'\\n\\n')", "\nprog | \n"),
        ("import os; os.write(1, b'a\\xc3'); os.write(1, b'\\xa9\\n')", "aé\n"),
    ],
)
async def test_output_of_any_bytes_is_text(code: str, shown: str, screen: Screen) -> None:
    await finish(python(code), screen)
    await screen.wait_for(shown)
    assert screen.text == f"prog | {shown}"


@pytest.mark.parametrize("end", ["\n", ""])
async def test_a_line_without_end_is_shown_in_pieces(end: str, screen: Screen) -> None:
    child = await finish(python(f"print('x' * {3 * LINE_BYTES + 5}, end={end!r})"), screen)
    await screen.wait_for("x" * 5 + "\n")
    with trio.fail_after(5):
        while screen.text.count("x") < 3 * LINE_BYTES + 5:
            await screen.wait_for("x")
            await trio.lowlevel.checkpoint()
    assert max(map(len, screen.text.splitlines())) <= LINE_BYTES + len("prog | ")
    assert {len(line) for line in child.tail} <= {TAIL_LINE_LENGTH, 5}


async def test_of_much_output_the_last_lines_are_remembered(screen: Screen) -> None:
    child = await finish(python("for n in range(20000): print(n)"), screen)
    assert child.tail == [str(number) for number in range(20000 - TAIL_LINES, 20000)]


async def test_a_screen_that_is_stopped_holds_up_the_program_and_nobody_else(nursery: trio.Nursery) -> None:
    stopped = threading.Event()
    try:
        async with running(
            python("for n in range(10**6): print('x' * 1000)"),
            name="prog",
            environ={},
            cwd=None,
            show=lambda text: stopped.wait(),
        ) as child:
            for _ in range(50):
                await trio.sleep(0.001)
            assert is_alive(child.pid)
        assert not is_there(child.pid)
    finally:
        stopped.set()


# --- the end ----------------------------------------------------------------------------------------------------


async def test_who_hears_sigterm_may_say_its_last_words(screen: Screen) -> None:
    began = time.monotonic()
    async with run(["sh", "-c", "trap 'echo bye; exit 0' TERM; echo here; while :; do sleep 0.05; done"], screen):
        await screen.wait_for("here")
    await screen.wait_for("prog | bye\n")
    assert time.monotonic() - began < process.TERM_SECONDS


async def test_who_ignores_sigterm_is_killed(screen: Screen) -> None:
    async with run(python(STUBBORN), screen) as child:
        await screen.wait_for("here")
        began = time.monotonic()
    assert process.TERM_SECONDS <= time.monotonic() - began < process.TERM_SECONDS + 0.5
    assert child.ending == "was killed by SIGKILL"
    assert not is_there(child.pid)


async def test_ten_end_as_fast_as_one(screen: Screen, nursery: trio.Nursery) -> None:
    pids: list[int] = []

    async def one(code: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with run(python(code), screen) as child:
            pids.append(child.pid)
            task_status.started()
            await trio.sleep_forever()

    async with trio.open_nursery() as group:
        for code in [STUBBORN] * 2 + ["import time; time.sleep(99)"] * 8:
            await group.start(one, code)
        await screen.wait_for("here\nprog | here")
        began = time.monotonic()
        group.cancel_scope.cancel()
    assert time.monotonic() - began < process.TERM_SECONDS + 0.9
    assert not any(map(is_there, pids))


@pytest.mark.parametrize("how", ["waits", "ends"])
async def test_what_the_program_has_started_ends_with_it(how: str, screen: Screen) -> None:
    script = "sleep 99 & echo pid $! end; " + ("wait" if how == "waits" else "exit 0")
    async with run(["sh", "-c", script], screen) as child:
        await screen.wait_for("end")
        if how == "ends":
            await child.wait()
    await gone(int(screen.text.split()[3]))


async def test_who_has_left_the_group_and_holds_the_pipe_is_not_waited_for(screen: Screen) -> None:
    began = time.monotonic()
    child = await finish(["sh", "-c", "setsid sh -c 'echo pid $$ done; exec sleep 99' & sleep 0.2"], screen)
    assert time.monotonic() - began < process.READ_SECONDS + 1.5
    (line,) = child.tail
    os.kill(int(line.split()[1]), signal.SIGKILL)


async def test_an_error_in_the_block_ends_the_program(screen: Screen) -> None:
    with pytest.RaisesGroup(KeyError):
        async with run(["sleep", "99"], screen) as child:
            raise KeyError
    assert not is_there(child.pid)


@pytest.mark.parametrize("checkpoints", range(8))
async def test_nothing_is_left_wherever_it_is_cancelled(
    checkpoints: int, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled before it starts, while it starts, while it runs, and while it ends."""
    started: list[subprocess.Popen[bytes]] = []
    spawn = process._spawn

    def watched(*args: Any) -> tuple[subprocess.Popen[bytes], int]:
        process, output = spawn(*args)
        started.append(process)
        return process, output

    monkeypatch.setattr(process, "_spawn", watched)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish, ["sleep", "99"], screen)
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert len(started) == 1
    assert all(child.returncode is not None and not is_there(child.pid) for child in started)


async def test_a_second_cancellation_while_it_ends_leaves_nothing_either(screen: Screen) -> None:
    with trio.CancelScope() as outer:
        async with run(python(STUBBORN), screen) as child:
            await screen.wait_for("here")
            outer.cancel()
            with trio.move_on_after(0):
                await trio.sleep_forever()
    assert not is_there(child.pid)


async def test_without_a_pidfd_the_end_is_seen_too(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    child = await finish(["sh", "-c", "echo here; exit 4"], screen)
    assert (child.tail, child.ending) == (["here"], "ended with exit code 4")
    async with run(["sleep", "99"], screen) as child:
        pass
    assert not is_there(child.pid)


# --- the end of the server --------------------------------------------------------------------------------------

SERVER = """
import trio
from hypha.launch.process import running

async def main():
    async with running(["sleep", "99"], name="n", environ={"PATH": "/bin:/usr/bin"}, cwd=None, show=print) as child:
        print(child.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@asynccontextmanager
async def server() -> AsyncIterator[tuple[trio.Process, int]]:
    """A process that runs a program, and the number of that program."""
    command = [sys.executable, "-c", SERVER]
    parent = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    try:
        with trio.fail_after(20):
            yield parent, int(await parent.stdout.receive_some())
    finally:
        parent.kill()
        await parent.wait()
        await parent.stdout.aclose()


async def test_it_dies_with_a_server_that_is_killed() -> None:
    async with server() as (parent, pid):
        assert is_alive(pid)
        parent.send_signal(signal.SIGKILL)
        await gone(pid)


@pytest.mark.slow
async def test_it_lives_longer_than_threads_do() -> None:
    """trio forks in a thread that ends after 10 idle seconds, and the parent-death signal with it."""
    async with server() as (_, pid):
        await trio.sleep(12)  # the time is the point
        assert is_alive(pid)
