"""The life of services without processes: when they are ready, what follows when they fail, on a mock clock."""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hypha.errors import ConfigError
from hypha.launch import supervisor
from hypha.launch.command import Command
from hypha.launch.launcher import Launcher
from hypha.launch.plan import Checks, CommandEntry, LaunchPlan
from hypha.launch.supervisor import ALIVE_SECONDS, RESTARTS, LaunchFailed
from tests.launch.fakes import FakeHost, Program, Programs


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


def command(host: FakeHost, programs: Programs, checks: Checks | None = None, **more: Any) -> Command:
    entry = CommandEntry("prog", ("prog", "--url={server_url}"), checks=checks or Checks(), **more)
    return Command(entry, host, {"PATH": "/bin"}, programs)


def plan(*entries: CommandEntry) -> LaunchPlan:
    return LaunchPlan((), entries)


@asynccontextmanager
async def alive(service: Command) -> AsyncIterator[trio.CancelScope]:
    """Let *service* live as long as the block, and see that nothing is left of it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)
        yield nursery.cancel_scope
        nursery.cancel_scope.cancel()


async def failure_of(service: Command) -> str:
    with pytest.raises(LaunchFailed) as caught:
        await service.run()
    return str(caught.value)


# --- becoming ready ---------------------------------------------------------------------------------------------


async def test_a_program_is_told_where_the_server_is_and_what_it_may(host: FakeHost, autojump_clock: MockClock) -> None:
    programs = Programs()
    words = ("python", "x.py", "{server_url}", "{workspace}", "--token={token}", '{"a": 1}')
    entry = CommandEntry("prog", words, "public", env={"A": "1", "PATH": "/own"}, cwd=Path("/tmp"))
    async with alive(Command(entry, host, {"PATH": "/bin", "LANG": "C"}, programs)):
        program = await programs.nth(0)
    url = "http://127.0.0.1:9527"
    assert program.arguments == [sys.executable, "x.py", url, "public", "--token=token-1", '{"a": 1}']
    assert program.cwd == Path("/tmp")
    assert program.environ == {
        "PATH": "/own",
        "LANG": "C",
        "A": "1",
        "PYTHONUNBUFFERED": "1",
        "HYPHA_SERVER_URL": url,
        "HYPHA_WORKSPACE": "public",
        "HYPHA_TOKEN": "token-1",
    }


async def test_without_checks_it_is_ready_when_it_has_lived_for_a_second(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    service = command(host, Programs())
    async with alive(service):
        await trio.sleep(ALIVE_SECONDS - 0.1)
        assert (service.ready, host.said) == (False, [])
        await trio.sleep(0.2)
        assert (service.ready, host.said) == (True, ["prog is ready after 1.0 s"])


async def test_it_is_ready_when_all_its_services_are_offered_in_its_workspace(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    service = command(host, Programs(), Checks(("a", "b")))
    async with alive(service):
        host.offered |= {("public", "a"), ("other", "b")}
        await trio.sleep(1)
        assert not service.ready
        host.offered.add(("public", "b"))
        await trio.sleep(0.1)
        assert service.ready


async def test_what_is_slow_is_told_once(host: FakeHost, autojump_clock: MockClock) -> None:
    service = command(host, Programs(), Checks(("a", "b"), timeout=9))
    async with alive(service):
        host.offered.add(("public", "a"))
        await trio.sleep(1.9)
        assert host.said == []
        await trio.sleep(4.05)
        assert host.said == ["waiting for prog: service b (9 s)"]
        host.offered.add(("public", "b"))
        await trio.sleep(0.1)
        assert host.said[1:] == ["prog is ready after 6.0 s"]


async def test_services_and_an_address_must_both_be_there(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    there: list[bool] = []

    async def answered(url: str) -> bool:
        await trio.lowlevel.checkpoint()
        assert url == "http://x"
        return bool(there)

    monkeypatch.setattr(supervisor, "is_answered", answered)
    service = command(host, Programs(), Checks(("a",), "http://x"))
    async with alive(service):
        host.offered.add(("public", "a"))
        await trio.sleep(3)
        assert (service.ready, host.said) == (False, ["waiting for prog: an answer of http://x (5 s)"])
        there.append(True)
        await trio.sleep(0.2)
        assert service.ready
    there.clear()
    said = await failure_of(command(host, Programs(), Checks(("a",), "http://x")))
    assert said == "prog did not answer at http://x within 5 s; it has printed nothing"


# --- failing ----------------------------------------------------------------------------------------------------


async def test_a_missing_service_is_named_with_the_last_words_of_the_program(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    def speak(program: Program) -> None:
        program.tail = ["one", "two"]

    programs = Programs(speak)
    began = trio.current_time()
    said = await failure_of(command(host, programs, Checks(("a", "b"), timeout=3)))
    assert said == ("prog did not offer a and b in the workspace public within 3 s; it last printed:\n  one\n  two")
    assert 3 <= trio.current_time() - began < 3.3
    assert (programs.running, host.living) == ([], {})


@pytest.mark.parametrize("after", [0.0, 0.5, 1.5, 1000.0])
async def test_an_end_is_a_failure_whenever_it_comes(
    after: float, host: FakeHost, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    programs = Programs()

    async def end() -> None:
        program = await programs.nth(0)
        await trio.sleep(after)
        program.exit(0, "done")

    nursery.start_soon(end)
    early = "" if after > ALIVE_SECONDS else " before it was ready"
    said = await failure_of(command(host, programs))
    assert said == f"prog ended with exit code 0{early}; it last printed:\n  done"
    assert (programs.running, host.living) == ([], {})


async def test_a_program_that_cannot_be_started(host: FakeHost, autojump_clock: MockClock) -> None:
    def refuse(program: Program) -> None:
        raise FileNotFoundError(2, "No such file or directory", "prog")

    said = await failure_of(command(host, Programs(refuse)))
    assert said == "prog cannot be started: No such file or directory: prog"
    assert host.living == {}


async def test_restart_waits_longer_each_time_and_gives_up(host: FakeHost, autojump_clock: MockClock) -> None:
    times: list[float] = []

    def fail(program: Program) -> None:
        times.append(trio.current_time())
        program.exit(3)

    programs = Programs(fail)
    said = await failure_of(command(host, programs, Checks(on_failure="restart")))
    assert said.splitlines()[-1] == f"prog has failed {RESTARTS + 1} times in a row; giving up"
    waits = [round(later - earlier) for earlier, later in itertools.pairwise(times)]
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30, 30, 30]
    assert host.said[0] == (
        "prog ended with exit code 3 before it was ready; it has printed nothing\nprog starts again in 1 s"
    )
    assert (programs.running, host.living) == ([], {})


async def test_a_program_that_was_well_for_long_starts_the_row_anew(host: FakeHost, autojump_clock: MockClock) -> None:
    programs = Programs()
    service = command(host, programs, Checks(on_failure="restart"))
    async with alive(service):
        for number in range(2 * RESTARTS):
            program = await programs.nth(number)
            assert not service.ready
            await trio.sleep(ALIVE_SECONDS + 61)
            assert service.ready
            program.exit(1)
        assert {said.splitlines()[-1] for said in host.said if "again" in said} == {"prog starts again in 1 s"}


async def test_a_program_that_cannot_be_started_any_more_was_not_well_for_long(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    def vanish(program: Program) -> None:
        if programs.started:
            raise FileNotFoundError(2, "No such file or directory", "prog")

    programs = Programs(vanish)

    async def end() -> None:
        await trio.sleep(100)
        programs.started[0].exit(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end)
        said = await failure_of(command(host, programs, Checks(on_failure="restart")))
    assert said.splitlines()[-1] == f"prog has failed {RESTARTS + 1} times in a row; giving up"


async def test_a_service_that_is_there_in_the_last_moment_is_there(host: FakeHost, autojump_clock: MockClock) -> None:
    service = command(host, Programs(), Checks(("a",), timeout=0.975))
    async with alive(service):
        await trio.sleep(0.96)
        host.offered.add(("public", "a"))
        await trio.sleep(0.1)
        assert service.ready


async def test_nothing_starts_again_when_the_server_is_about_to_end(host: FakeHost, autojump_clock: MockClock) -> None:
    programs = Programs(lambda program: program.exit(1))
    service = command(host, programs, Checks(on_failure="restart"))
    async with alive(service):
        await trio.sleep(0.5)
        service.retire()
        await trio.sleep(60)
        assert len(programs.started) == 1


async def test_each_start_has_a_token_of_its_own_for_the_same_user(host: FakeHost, autojump_clock: MockClock) -> None:
    programs = Programs()
    async with alive(command(host, programs, Checks(on_failure="restart"))):
        (await programs.nth(0)).exit(1)
        second = await programs.nth(1)
        assert second.environ["HYPHA_TOKEN"] == "token-2"
        assert list(host.living.values()) == ["token-2"]
    assert host.living == {}
    assert host.issued[0] == host.issued[1]


async def test_a_missing_service_ends_the_program_before_the_next_start(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    programs = Programs()
    async with alive(command(host, programs, Checks(("a",), on_failure="restart"))):
        await programs.nth(1)
        assert programs.running == programs.started[1:]


async def test_with_warn_the_server_goes_on_when_it_ends(host: FakeHost, autojump_clock: MockClock) -> None:
    programs = Programs(lambda program: program.exit(1, "oh"))
    service = command(host, programs, Checks(on_failure="warn"))
    await service.run()
    assert host.said == ["prog ended with exit code 1 before it was ready; it last printed:\n  oh"]
    assert (service.ready, service.settled.is_set(), host.living) == (False, True, {})


async def test_with_warn_who_is_late_is_left_alone_and_counts_when_it_is_there(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    service = command(host, Programs(), Checks(("a",), timeout=1, on_failure="warn"))
    async with alive(service):
        await trio.sleep(20)
        assert host.said == [
            "prog did not offer a in the workspace public within 1 s; the server goes on, and so does prog"
        ]
        assert (service.ready, service.settled.is_set()) == (False, True)
        host.offered.add(("public", "a"))
        await trio.sleep(0.1)
        assert service.ready


async def test_with_warn_who_is_late_may_end(host: FakeHost, autojump_clock: MockClock) -> None:
    programs = Programs()
    async with alive(service := command(host, programs, Checks(("a",), timeout=1, on_failure="warn"))):
        await trio.sleep(5)
        programs.started[0].exit(1)
        await wait_all_tasks_blocked()
        await trio.sleep(1)
        assert host.said[-1].startswith("prog ended with exit code 1 before it was ready")
        assert not service.ready


@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.5, 4.5])
@pytest.mark.parametrize("on_failure", ["stop", "restart", "warn"])
async def test_nothing_is_left_whenever_it_is_cancelled(
    seconds: float, on_failure: Any, host: FakeHost, autojump_clock: MockClock
) -> None:
    programs = Programs()
    async with alive(command(host, programs, Checks(("a",), on_failure=on_failure))):
        await trio.sleep(seconds)
    assert (programs.running, host.living) == ([], {})


# --- all of them ------------------------------------------------------------------------------------------------


def launcher(host: FakeHost, programs: Programs, *entries: CommandEntry) -> Launcher:
    made = Launcher(plan(*entries), host, {})
    made._phases = [[Command(entry, host, {}, programs) for entry in entries]]
    return made


def entry(name: str, *services: str, **more: Any) -> CommandEntry:
    return CommandEntry(name, (name,), checks=Checks(services, **more))


async def test_what_is_not_offered_any_more_is_not_ready(host: FakeHost, autojump_clock: MockClock) -> None:
    async with alive(service := command(host, Programs(), Checks(("a",)))):
        for _ in range(2):
            host.offered.add(("public", "a"))
            await trio.sleep(0.1)
            assert service.ready
            host.offered.clear()
            assert not service.ready


async def run(started: Launcher, during: Callable[[], Any]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(started.run)
        await during()
        nursery.cancel_scope.cancel()


async def test_all_start_at_once_and_are_loaded_when_the_last_is_ready(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    programs = Programs()
    all_three = launcher(host, programs, entry("one"), entry("two", "a"), entry("three", "b"))

    async def watch() -> None:
        await programs.nth(2)
        assert trio.current_time() == began
        await trio.sleep(2)
        assert not all_three.loaded
        host.offered |= {("public", "a"), ("public", "b")}
        await trio.sleep(0.1)
        assert all_three.loaded

    began = trio.current_time()
    assert not all_three.loaded
    await run(all_three, watch)
    assert programs.running == []


async def test_loaded_tells_the_truth_when_one_starts_again(host: FakeHost, autojump_clock: MockClock) -> None:
    programs = Programs()
    both = launcher(host, programs, entry("one", on_failure="restart"), entry("two", on_failure="restart"))

    async def watch() -> None:
        await trio.sleep(1.5)
        assert both.loaded
        programs.started[1].exit(1)
        await wait_all_tasks_blocked()
        assert not both.loaded
        await trio.sleep(1.2)
        assert len(programs.started) == 3
        assert not both.loaded
        await trio.sleep(1)
        assert both.loaded

    await run(both, watch)


async def test_one_that_must_be_there_stops_all_others_at_the_same_time(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    programs = Programs()
    began = trio.current_time()
    with pytest.RaisesGroup(pytest.RaisesExc(LaunchFailed, match="^bad did not offer a ")):
        await launcher(host, programs, entry("bad", "a", timeout=2), *map(entry, "abcdefghi")).run()
    assert len(programs.started) == 10
    assert (programs.running, host.living) == ([], {})
    assert trio.current_time() - began < 2.3  # each end takes a tenth


async def test_what_ends_when_the_server_is_about_to_end_is_no_failure(
    host: FakeHost, autojump_clock: MockClock
) -> None:
    programs = Programs()
    three = launcher(host, programs, *(entry(kind, on_failure=kind) for kind in ("stop", "restart", "warn")))

    async def watch() -> None:
        await trio.sleep(2)
        said = list(host.said)
        three.retire()
        for program in programs.started:
            program.exit(1)
        await trio.sleep(60)
        assert (host.said, len(programs.started)) == (said, 3)

    await run(three, watch)


async def test_workspaces_are_there_before_anything_starts(host: FakeHost, autojump_clock: MockClock) -> None:
    programs = Programs(lambda program: workspaces.append(set(host.workspaces)))
    workspaces: list[set[str]] = []
    entries = [CommandEntry("one", ("one",), "lab"), CommandEntry("two", ("two",), "den")]
    await run(launcher(host, programs, *entries), partial(trio.sleep, 1))
    assert workspaces == [{"public", "lab", "den"}] * 2
    assert [workspace for workspace, _ in host.issued] in (["lab", "den"], ["den", "lab"])
    with pytest.raises(ConfigError, match="the workspace is reserved"):
        await launcher(host, programs, CommandEntry("x", ("x",), "reserved")).run()


async def test_nothing_to_start_is_loaded(host: FakeHost, autojump_clock: MockClock) -> None:
    empty = Launcher(LaunchPlan(), host, {})
    assert empty.loaded
    await empty.run()
