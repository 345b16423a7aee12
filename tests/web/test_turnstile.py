"""Connections that begin or end in one moment take turns; nobody is lost on the way, and who stays has its turn."""

from __future__ import annotations

from pathlib import Path

import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from hypha.config import Config, Limits
from hypha.web.guard import TURNSTILE
from hypha.web.turnstile import Turnstile
from tests.web.stack import memory_stack, per_turn
from tests.web.wires import http, read_to_end, upgrade_bytes

KEEP_ALIVE = 5  # seconds, Hypercorn's default


async def test_so_many_go_on_in_each_turn_first_come_first_served() -> None:
    turnstile, passed = Turnstile(3), list[int]()

    async def come(number: int) -> None:
        await turnstile.wait()
        passed.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(come, number)
            if number % 3 == 2:  # the loop starts tasks of one turn in any order
                await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()
    assert [number // 3 for number in passed] == [place // 3 for place in range(30)]


async def test_a_crowd_passes_no_faster() -> None:
    turnstile, passed = Turnstile(3), 0

    async def come() -> None:
        nonlocal passed
        await turnstile.wait()
        passed += 1

    with per_turn(lambda: passed) as turns:
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(come)
    assert (passed, turns.largest) == (100, 3)


async def test_it_is_a_checkpoint_also_when_nobody_waits() -> None:
    with assert_checkpoints():
        await Turnstile(1).wait()


async def test_who_is_cancelled_in_the_queue_takes_no_turn_from_others() -> None:
    turnstile, passed = Turnstile(1), 0

    async def come() -> None:
        nonlocal passed
        await turnstile.wait()
        passed += 1

    async with trio.open_nursery() as nursery, trio.open_nursery() as leaving:
        for _ in range(10):
            leaving.start_soon(come)
            nursery.start_soon(come)
        await trio.lowlevel.checkpoint()
        leaving.cancel_scope.cancel()
    assert passed >= 10
    await turnstile.wait()


async def test_clients_that_come_at_once_and_go_at_once_take_turns(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with memory_stack(Config(data_dir=tmp_path, limits=Limits(turn_connections=2))) as stack:
        peers = stack.broker.registry.peers
        clients = [stack.connect() for _ in range(50)]
        await wait_all_tasks_blocked()
        with per_turn(lambda: len(peers)) as turns:
            async with trio.open_nursery() as nursery:
                for number, client in enumerate(clients):
                    nursery.start_soon(client.send_all, upgrade_bytes(f"/ws?client_id=c{number}"))
            await wait_all_tasks_blocked()
        assert (len(peers), turns.largest) == (50, 2)
        with per_turn(lambda: len(peers)) as turns:
            for client in clients:
                client.send_stream.close()
                client.receive_stream.close()
            await wait_all_tasks_blocked()
        assert (len(peers), turns.largest) == (0, 2)


class Slow(Turnstile):
    """A queue in which everybody waits for 12 seconds."""

    async def wait(self) -> None:
        await trio.sleep(12)


async def test_who_waits_for_its_turn_is_not_idle(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with memory_stack(Config(data_dir=tmp_path)) as stack:
        stack.state[TURNSTILE] = Slow(1)
        silent = stack.connect()
        answer = await http(stack, "/")
        assert (answer.status, trio.current_time()) == (200, 12)
        assert await read_to_end(silent) == b""


async def test_who_says_nothing_is_let_go_without_a_turn(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with memory_stack(Config(data_dir=tmp_path)) as stack:
        stack.state[TURNSTILE] = Slow(1)
        assert await read_to_end(stack.connect()) == b""
        assert trio.current_time() == KEEP_ALIVE


async def test_the_end_of_the_server_does_not_wait_for_the_queue(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with memory_stack(Config(data_dir=tmp_path)) as stack:
        stack.state[TURNSTILE] = Slow(1)
        client = stack.connect()
        await client.send_all(upgrade_bytes("/ws?client_id=a"))
        await wait_all_tasks_blocked()
    assert trio.current_time() <= Limits().drain_seconds
