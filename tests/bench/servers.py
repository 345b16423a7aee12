"""The servers that are compared: each is started for a run, dialled, and asked what it has used."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO
from urllib.parse import urlsplit

from tests.bench.wire import ModernWire, TcpWire, WebsocketWire, Wire
from tests.house.environments import PUBLISHED as PUBLISHED_ENVIRONMENT
from tests.house.environments import PUBLISHED_VERSION
from tests.house.processes import START_SECONDS, Ended, environ_for, serving
from tests.process.servers import group

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Live:
    """A server that runs, all its processes counted."""

    port: int
    pids: list[int]

    def processor(self) -> float:
        """Seconds of the processor that all threads have used."""
        tasks = [path for pid in self.pids for path in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int((path / "schedstat").read_text().split()[0]) for path in tasks) / 1e9

    def resident(self) -> int:
        """Bytes of resident memory."""
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids) * _PAGE


@dataclass(frozen=True, eq=False)
class Server:
    """One of the servers. *command*: a module and its arguments. *idle_flags*: what it needs to hold many clients."""

    name: str
    title: str
    command: Sequence[str] = ()
    idle_flags: Sequence[str] = ()
    wire: Callable[..., Wire] = field(default=WebsocketWire)

    @contextmanager
    def running(self, *flags: str) -> Iterator[Live]:
        """The server, in a directory of its own."""
        command = [sys.executable, "-m", *self.command]
        # Found from there, although the server runs elsewhere.
        root = str(Path(__file__).resolve().parents[2])
        with (
            TemporaryDirectory() as directory,
            serving(Path(directory), *flags, command=command, environ={"PYTHONPATH": root}) as process,
        ):
            port = urlsplit(process.url).port
            assert port is not None
            yield Live(port, group(process.pid))

    def dial(self, live: Live, names: list[str]) -> list[Wire]:
        """Clients that can call each other. Each has had a message: it is attached."""
        first = self.wire(live.port, names[0])
        credentials = self.credentials(first)
        wires = [first, *(self.wire(live.port, name, **credentials) for name in names[1:])]
        for wire in wires:
            wire.attach()
        return wires

    def credentials(self, first: Wire) -> dict[str, str]:
        """What the *first* client gives to others, so that they can call each other."""
        return {}


@dataclass(frozen=True, eq=False)
class Hypha(Server):
    """The server under test: its clients share the workspace of the first one."""

    def credentials(self, first: Wire) -> dict[str, str]:
        workspace = first.call("services.default.get_connection_info")["workspace"]
        return {"workspace": workspace, "token": first.call("services.default.generate_token")}


@dataclass(frozen=True, eq=False)
class Published(Server):
    """The present-day original from its package, in an environment of its own, with its limits of rate lifted."""

    @contextmanager
    def running(self, *flags: str) -> Iterator[Live]:
        command = [str(PUBLISHED_ENVIRONMENT.python), "-m", *self.command, "--host", "127.0.0.1", "--port", "0", *flags]
        with TemporaryDirectory() as directory:
            log = Path(directory, "log")
            environ = environ_for({**UNLIMITED, "HOME": directory, "TMPDIR": directory})
            with log.open("wb") as output, _leader(command, directory, output, environ) as process:
                yield Live(_port(process, log), group(process.pid))

    def credentials(self, first: Wire) -> dict[str, str]:
        assert isinstance(first, ModernWire)
        return {"workspace": first.workspace, "token": first.call("services.default.generate_token")}


#: The published server's own names of the limits that the load would hit.
UNLIMITED = {
    "HYPHA_WS_MSG_RATE_LIMIT": "1000000000",
    "HYPHA_WS_MSG_BURST_LIMIT": "1000000000",
    "HYPHA_HTTP_RATE_LIMIT": "1000000000",
    "HYPHA_HTTP_BURST_LIMIT": "1000000000",
    "HYPHA_MAX_CONNECTIONS_PER_USER": "100000",
    "HYPHA_MAX_CLIENTS_PER_WORKSPACE": "100000",
}


@contextmanager
def _leader(
    command: Sequence[str], directory: str, output: IO[bytes], environ: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a group, which is killed at the end: only our own servers promise how they stop."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=directory,
        env=environ,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """The port that the server has written into its *log*, which it does when it is ready."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(rb"running on http://127\.0\.0\.1:(\d+)", log.read_bytes()):
            return int(found[1])
        time.sleep(0.05)
    raise Ended(f"the published server did not become ready\n{log.read_text()}")


_RELAYS = "tests.bench.relays"

HYPHA = Hypha(
    "hypha",
    "hypha",
    ("hypha.server",),
    ("--limit", "sessions_per_principal=10000", "--limit", "sessions_per_workspace=10000"),
)
BARE = Server("bare", "bare relay", (f"{_RELAYS}.bare",))
TAKEN = Server("taken", "bare relay behind Hypercorn", (f"{_RELAYS}.taken",))
STACK = Server("stack", "the stack as it comes", (f"{_RELAYS}.stack",))
TCP = Server("tcp", "raw TCP", (f"{_RELAYS}.tcp",), wire=TcpWire)
PUBLISHED = Published("published", f"hypha {PUBLISHED_VERSION}", ("hypha.server",), wire=ModernWire)
#: Those of a run that asks for no others, and all.
SERVERS = (HYPHA, BARE, TAKEN, STACK, TCP)
ALL_SERVERS = (*SERVERS, PUBLISHED)
