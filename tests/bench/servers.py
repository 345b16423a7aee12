"""The servers that are compared: each is started for a run, dialled, and asked what it has used."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from tests.bench.wire import TcpWire, WebsocketWire, Wire, result_message
from tests.house.processes import serving
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
    wire: type[Wire] = field(default=WebsocketWire)

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
        wires = [self.wire(live.port, name) for name in names]
        for wire in wires:
            wire.send(wire.name, result_message(wire.name, "here"))
            wire.receive()
        return wires


@dataclass(frozen=True, eq=False)
class Hypha(Server):
    """The server under test: its clients share the workspace of the first one."""

    def dial(self, live: Live, names: list[str]) -> list[Wire]:
        first = WebsocketWire(live.port, names[0])
        token = first.call("services.default.generate_token")
        workspace = first.call("services.default.get_connection_info")["workspace"]
        others = [WebsocketWire(live.port, name, workspace=workspace, token=token) for name in names[1:]]
        for other in others:
            other.call("services.default.echo", "here")
        return [first, *others]


_RELAYS = "tests.bench.relays"

HYPHA = Hypha(
    "hypha",
    "hypha",
    ("hypha.server",),
    ("--limit", "sessions_per_principal=10000", "--limit", "sessions_per_workspace=10000"),
)
BARE = Server("bare", "bare relay", (f"{_RELAYS}.bare",))
STACK = Server("stack", "the stack as it comes", (f"{_RELAYS}.stack",))
TCP = Server("tcp", "raw TCP", (f"{_RELAYS}.tcp",), wire=TcpWire)
SERVERS = (HYPHA, BARE, STACK, TCP)
