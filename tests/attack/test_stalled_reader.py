"""A client that reads nothing, beside fifty that go on as before: cut in time, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from hypha.config import Limits
from tests.attack.attacks import MIB, answered, call, websocket
from tests.attack.place import resident
from tests.clients import raw
from tests.clients.raw import MANAGER, RawPeer, header
from tests.house.processes import Server, serving
from tests.process.servers import HYPERCORN, SERVER, group

COMMANDS = {"hypha.server": SERVER, "hypercorn": HYPERCORN}
HEALTHY = 50
#: Calls of each healthy client in a second.
RATE = 10
#: Messages for the client that reads nothing, each of half a MiB: more than all buffers hold.
MESSAGES = 120
#: What the healthy ones keep of their throughput.
KEPT = 0.9
#: Bytes that the server may take for all this: the outbox, its reserve, what is read of one message, and some air.
ROOM = Limits().outbox_bytes + Limits().outbox_reserve_bytes + 10 * MIB


@contextmanager
def serve(command: str, directory: Path, environ: Mapping[str, str]) -> Iterator[Server]:
    with serving(directory, command=COMMANDS[command], environ={"HYPHA_LOG_LEVEL": "error", **environ}) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
async def test_a_stalled_reader_is_cut_and_hurts_nobody(command: str, tmp_path: Path) -> None:
    with serve(command, tmp_path, {"HYPHA_LIMIT_STALL_SECONDS": "2"}) as server:
        await check(server, seconds=6, gone=4)


@pytest.mark.soak
@pytest.mark.parametrize("command", COMMANDS)
async def test_a_minute_beside_a_stalled_reader(command: str, tmp_path: Path) -> None:
    """With the limits as they are."""
    with serve(command, tmp_path, {}) as server:
        await check(server, seconds=60, gone=12)


async def check(server: Server, seconds: float, gone: float) -> None:
    """Compare so many *seconds* without and with a stalled reader, which must be gone after *gone* of them."""
    async with trio.open_nursery() as nursery:
        healthy = Healthy()
        for _ in range(HEALTHY):
            await nursery.start(healthy.run, server.port)
        baseline = await healthy.throughput(seconds)
        async with raw.connected(server.url) as sender, trio.open_nursery() as sending:
            token = await sender.call(MANAGER, "services.default.generate_token")
            joining = {"client_id": "stalled", "workspace": sender.workspace, "token": token}
            async with raw.upgraded(server.url, **joining):
                memory = Memory(server)
                nursery.start_soon(memory.watch)
                ended = Ending(sender)
                sending.start_soon(ended.wait)
                sending.start_soon(send, sender, f"{sender.workspace}/stalled")
                beside = await healthy.throughput(seconds)
                with trio.fail_after(gone):
                    await ended.told.wait()
        nursery.cancel_scope.cancel()
    print(
        f"{baseline:.0f} calls/s without and {beside:.0f} beside the stalled reader, which was cut after "
        f"{ended.seconds:.1f} s; {memory.grown / MIB:.1f} MiB more at most"
    )
    assert ended.seconds <= gone
    assert beside >= KEPT * baseline
    assert memory.grown <= ROOM


class Healthy:
    """Clients that call the server's echo in their rhythm. *echoed*: calls that were answered."""

    def __init__(self) -> None:
        self.echoed = 0

    async def run(self, port: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with websocket(port) as stream:
            task_status.started()
            began, number = trio.current_time(), 0
            while True:
                await stream.send_all(call(f"s{number}", "x" * 100))
                await answered(stream, f"s{number}")
                self.echoed += 1
                number += 1
                await trio.sleep_until(began + number / RATE)

    async def throughput(self, seconds: float) -> float:
        """Answered calls per second, from now on for so many *seconds*."""
        before, began = self.echoed, trio.current_time()
        await trio.sleep(seconds)
        return (self.echoed - before) / (trio.current_time() - began)


class Ending:
    """When the first call to the stalled reader fails: *seconds* after now, its *sender* is *told*."""

    def __init__(self, sender: RawPeer) -> None:
        self.seconds = 0.0
        self.told = trio.Event()
        self._sender = sender
        self._began = trio.current_time()

    async def wait(self) -> None:
        message = await self._sender.message(lambda main: main.get("method") == "c0.reject")
        assert "is not connected" in message["args"][0]["_rvalue"]
        self.seconds = trio.current_time() - self._began
        self.told.set()


class Memory:
    """How much more the server holds than now, at most, while this is watched."""

    def __init__(self, server: Server) -> None:
        self.grown = 0
        self._server = server
        self._before = self._resident()

    async def watch(self) -> None:
        while True:
            self.grown = max(self.grown, self._resident() - self._before)
            await trio.sleep(0.05)

    def _resident(self) -> int:
        return resident(group(self._server.pid))


async def send(sender: RawPeer, target: str) -> None:
    """Calls that nobody reads; once the target is gone each is refused."""
    for number in range(MESSAGES):
        extra = sender.body(f"c{number}", [bytes(MIB // 2)])
        await sender.send(header(target, "services.x.y", f"c{number}"), extra)
