"""Clients of every generation, and a server that is killed under them again and again, in every way.

What was acknowledged must be there after each time, whoever was connected must be back within its own delay, with each
of its services once, and no call may be done twice.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from hypha.client import Server, connect_to_server
from hypha.errors import HyphaError, PeerGone
from tests.clients.scripted import SCRIPTS
from tests.house import environments, npm
from tests.house.processes import Running, start
from tests.house.steps import ROOT
from tests.process.servers import SERVER, all_gone, group, until
from tests.soak.http_client import get, http_client
from tests.soak.legacy_peer import Disconnected

#: Seconds from "ready" in which every client of a generation answers again (``docs/operations.md``). The client of
#: imjoy-rpc for JavaScript waits for its ``method_timeout`` first, which is set to 2 here, 60 by default.
DELAYS = {"0.5.6": 3.0, "0.5.59": 3.0 + 3.0, "imjoy-rpc": 2.0 + 3.0, "0.21.47": 3.0, "hypha-rpc": 3.0, "own": 3.0}
_CALLERS = 4
_PATIENCE = 40.0
#: Seconds for which all have a server again before it ends the next time. Within 5 seconds hypha-rpc and our own client
#: return with growing delays, and imjoy-rpc 0.5.59 for Python looks at its connection 3 seconds after each return, and
#: computes for ever when that is closed in this very moment (``docs/clients.md``).
_CALM = 6.0

JAVASCRIPT = """
    const [count] = args;
    const done = new Set();
    faults.push = () => 0; // imjoy-rpc warns of each connection that ends
    for (let number = 0; number < Number(count); number++) {
      const server = await connect(library === "imjoy-rpc" ? { method_timeout: 2 } : {});
      const info = await server.registerService({
        id: "work",
        config: { visibility: "public" },
        do: async (key) => {
          if (done.has(key)) console.log("twice", key);
          done.add(key);
          return key;
        },
      });
      console.log("member", info.id.includes("/") ? info.id : `${server.config.workspace}/${info.id}`);
    }
    console.log("ready");
    await new Promise(() => {});
"""


def flock_command(generation: str, url: str, count: int, directory: Path) -> list[str | Path]:
    """The command of *count* clients of one generation."""
    if generation == "own":
        return [sys.executable, "-m", "tests.clients.trio_flock", url, str(count)]
    if generation.endswith("-rpc"):
        script = directory / f"flock-{generation}.js"
        script.write_text(JAVASCRIPT)
        return ["node", npm.SOURCE / "run.js", generation, script, url, str(count)]
    python = next(item.python for item in environments.CLIENTS if item.name.endswith(f"-rpc-{generation}"))
    return [python, SCRIPTS / "flock.py", url, str(count)]


@dataclass
class Restarted:
    """A server that a supervisor keeps."""

    supervisor: Running
    port: int

    def parent(self) -> int:
        """The process that was started last."""
        return int(re.findall(r"^server (\d+)$", self.supervisor.stdout, re.MULTILINE)[-1])

    def worker(self) -> int:
        """The process that serves; 0 when there is none."""
        children = Path(f"/proc/{self.parent()}/task/{self.parent()}/children").read_text().split()
        return int(children[0]) if children else 0

    def times_ready(self) -> int:
        """How often a worker was ready."""
        said = self.supervisor.stdout + self.supervisor.stderr
        return len(re.findall(r"ready in [\d.]+ s|back after [\d.]+ s", said))


@asynccontextmanager
async def supervised(directory: Path, *flags: str) -> AsyncIterator[Restarted]:
    """A server below a supervisor, with its data in *directory*."""
    command = [sys.executable, "-m", "tests.soak.supervisor", *SERVER, "--data-dir", str(directory / "data"), *flags]
    async with trio.open_nursery() as nursery, start(nursery, command, cwd=ROOT) as running:
        port = int((await running.wait_for(r"^port (\d+)"))[1])
        server = Restarted(running, port)
        await until(lambda: server.times_ready() == 1)
        pid = server.parent()
        yield server
        running.kill_group()
        await all_gone(group(pid))


@dataclass
class Flocks:
    """The clients. *members*: generation -> the full ids of their services."""

    members: dict[str, list[str]] = field(default_factory=dict)
    running: list[Running] = field(default_factory=list)

    def twice(self) -> list[str]:
        """Calls that were done twice."""
        return [line for flock in self.running for line in re.findall(r"^twice .*$", flock.stdout, re.MULTILINE)]


@asynccontextmanager
async def flocks(server: Restarted, sizes: dict[str, int], directory: Path) -> AsyncIterator[Flocks]:
    """So many clients of each generation, all of them at work."""
    url = f"http://localhost:{server.port}"
    together = Flocks()
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        for generation, count in sizes.items():
            command = flock_command(generation, url, count, directory)
            environ = {"NODE_PATH": str(npm.modules())}
            flock = await stack.enter_async_context(start(nursery, command, cwd=ROOT, environ=environ))
            together.running.append(flock)
            with trio.fail_after(_PATIENCE):
                await flock.wait_for("^ready$")
            together.members[generation] = re.findall(r"^member (\S+)$", flock.stdout, re.MULTILINE)
            assert len(together.members[generation]) == count, flock.report()
        yield together


# --- ways to end a server -------------------------------------------------------------------------------------


async def kill_worker(server: Restarted) -> None:
    """The parent keeps the socket and starts another one."""
    os.kill(server.worker(), signal.SIGKILL)
    await trio.lowlevel.checkpoint()


async def kill_everything(server: Restarted) -> None:
    """As if the power were pulled: the worker dies with its parent, and nobody says goodbye."""
    os.kill(server.parent(), signal.SIGKILL)
    await trio.lowlevel.checkpoint()


async def replace_worker(server: Restarted) -> None:
    """The worker finishes what runs and says goodbye."""
    os.kill(server.parent(), signal.SIGHUP)
    await trio.lowlevel.checkpoint()


async def stop_and_start(server: Restarted) -> None:
    """The whole server ends well, and another one starts."""
    os.kill(server.parent(), signal.SIGTERM)
    await trio.lowlevel.checkpoint()


WAYS: tuple[Callable[[Restarted], Awaitable[None]], ...] = (
    kill_worker,
    kill_everything,
    replace_worker,
    stop_and_start,
)


# --- the load -------------------------------------------------------------------------------------------------


class Load:
    """Calls of every service all the time, and changes that are acknowledged and remembered.

    *answered* and *lost* count calls; a call is lost when its connection ended before the answer. *late*: how long each
    service took to answer after the last restart, in seconds from when the server was ready.
    """

    def __init__(self, server: Restarted, together: Flocks) -> None:
        self.server = server
        self.together = together
        self.answered: Counter[str] = Counter()
        self.lost = 0
        self.failed: Counter[str] = Counter()
        self.workspaces: list[str] = []
        self.revoked: list[str] = []
        self._numbers = 0

    def key(self) -> str:
        """What no other call has had."""
        self._numbers += 1
        return f"k{self._numbers}"

    async def call(self) -> None:
        """Call one after the other over HTTP, and go on when the server is lost."""
        names = [name for names in self.together.members.values() for name in names]
        while True:
            name = names[secrets.randbelow(len(names))]
            try:
                async with http_client(self.server.port) as client:
                    status, body = await client.ask(get(path_of(name, self.key())))
            except (Disconnected, OSError, trio.BrokenResourceError):
                self.lost += 1
                continue
            if status == 200:
                self.answered[name] += 1
            else:
                assert status == 502, (name, status, body)
                self.failed[re.sub(r"Target peer \S+", "Target peer", body.decode())] += 1

    async def change(self) -> None:
        """Make workspaces and revoke tokens, and remember what was acknowledged."""
        async with connect_to_server({"server_url": f"http://localhost:{self.server.port}"}) as server:
            while True:
                try:
                    await self._change(server)
                except (PeerGone, HyphaError) as error:
                    self.failed[f"{type(error).__name__} of a change"] += 1
                await trio.sleep(0.02)

    async def _change(self, server: Server) -> None:
        name = f"made-{secrets.token_hex(8)}"
        with trio.fail_after(_PATIENCE):
            await server.create_workspace({"name": name})
            self.workspaces.append(name)
            token = await server.generate_token()
            await server.revoke_token(token)
            self.revoked.append(token)

    async def check(self) -> None:
        """Everything that was acknowledged is so."""
        async with connect_to_server({"server_url": f"http://localhost:{self.server.port}"}) as server:
            for name in _some(self.workspaces):
                # Whoever may not see a workspace is told the same whether or not it is there: making it tells.
                try:
                    await server.create_workspace({"name": name})
                except HyphaError as error:
                    if "already exists" not in str(error):
                        raise
                else:
                    raise AssertionError(f"{name} was acknowledged and is not there")
            for token in _some(self.revoked):
                async with http_client(self.server.port) as client:
                    request = get("/workspaces").replace(b"\r\n\r\n", f"\r\nAuthorization: {token}\r\n\r\n".encode())
                    status, _ = await client.ask(request)
                assert status == 401, f"a revoked token is taken again: {status}"


def _some(acknowledged: list[str]) -> list[str]:
    """The latest, and some of all."""
    return acknowledged[-50:] + random.sample(acknowledged, min(50, len(acknowledged)))


def path_of(service: str, key: str) -> str:
    """The address of the function of a flock's member."""
    workspace, _, rest = service.partition("/")
    return f"/{workspace}/services/{rest}/do?_args=%5B%22{key}%22%5D"


async def seconds_until_back(load: Load, began: float) -> dict[str, float]:
    """Call every service at once, each until it answers; the longest time of each generation since *began*."""
    taken: dict[str, float] = {}

    async def ask(generation: str, name: str) -> None:
        answer: tuple[int, bytes] | None = None
        with trio.move_on_after(_PATIENCE):
            while answer is None or answer[0] != 200:
                try:
                    async with http_client(load.server.port) as client:
                        answer = await client.ask(get(path_of(name, load.key())))
                except (Disconnected, OSError, trio.BrokenResourceError):
                    continue
                # Not there after the time for which calls wait, it is told apart from what never was.
                await trio.sleep(0.05)
        assert answer is not None, (generation, name)
        assert answer[0] == 200, (generation, name, answer)
        taken[generation] = max(taken.get(generation, 0), time.monotonic() - began)

    async with trio.open_nursery() as nursery:
        for generation, names in load.together.members.items():
            for name in names:
                nursery.start_soon(ask, generation, name)
    return taken


async def listed_once(load: Load) -> None:
    """Each service stands in the list of its workspace, once."""
    for names in load.together.members.values():
        for name in names:
            async with http_client(load.server.port) as client:
                status, body = await client.ask(get(f"/{name.partition('/')[0]}/services"))
            assert status == 200
            assert body.decode().count(f'"{name}"') == 1, (name, body)


async def restarts(
    server: Restarted, load: Load, ways: Sequence[Callable[[Restarted], Awaitable[None]]]
) -> list[tuple[str, dict[str, float]]]:
    """End the server in each of the *ways* in its turn; how long each generation took to be back."""
    figures = []
    async with trio.open_nursery() as nursery:
        for _ in range(_CALLERS):
            nursery.start_soon(load.call)
        nursery.start_soon(load.change)
        for way in ways:
            before, done = server.times_ready(), load.answered.total()
            await until(partial(_is_more, load.answered.total, done + 50), _PATIENCE)
            await way(server)
            await until(partial(_is_more, server.times_ready, before), 20)
            taken = await seconds_until_back(load, time.monotonic())
            back = time.monotonic()
            figures.append((way.__name__, taken))
            print(way.__name__, {name: round(seconds, 2) for name, seconds in taken.items()}, flush=True)
            for generation, seconds in taken.items():
                assert seconds <= DELAYS[generation], (way.__name__, generation, seconds)
            await load.check()
            await listed_once(load)
            await until(partial(_is_more, time.monotonic, back + _CALM))
        nursery.cancel_scope.cancel()
    assert load.together.twice() == []
    return figures


def _is_more(count: Callable[[], float], than: float) -> bool:
    return count() > than


def report(load: Load) -> None:
    """The figures of a run."""
    print(
        f"{load.answered.total()} calls answered, {load.lost} connections lost with their call, "
        f"{len(load.workspaces)} workspaces and {len(load.revoked)} revoked tokens acknowledged; refused: "
        f"{dict(load.failed)}"
    )
