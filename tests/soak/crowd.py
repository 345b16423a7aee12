"""Many clients in one process, all of which come back at once: ``python -m tests.soak.crowd PORT CLIENTS WORKSPACES``.

Each keeps a public service, fetches a token to come back with, as the library does when it has connected, and comes
back with it as soon as its connection has ended, for whatever reason. SIGUSR1 resets all connections at once.
SIGTERM ends all of them cleanly. A line of JSON says when the crowd has come for the first time, and each time that
all are back after that. Whatever goes wrong ends the program with an error.

One loop and sockets by hand, so that the server is what has to work.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.bench.wire import Map, call_message, decode, next_session, result_message
from tests.soak.legacy_peer import MANAGER, handshake

#: Of each workspace so many clients use one token, and are one user to the server.
USERS = 5
#: Seconds that the crowd waits for anything.
PATIENCE = 60.0
#: So many calls are in flight while all services are tried: that is not part of the storm.
AT_ONCE = 20
SERVICE = "work"

_DEFAULT = "services.default."
_BINARY, _CLOSE, _PING, _PONG = 0x82, 0x88, 0x89, 0x8A
_RESET = struct.pack("ii", 1, 0)

Then = Callable[[Any], None]


class Wrong(AssertionError):
    """The server did what it should not."""


def frame(opcode: int, data: bytes) -> bytes:
    """A websocket frame, masked with zeros."""
    if len(data) < 126:
        return bytes((opcode, 0x80 | len(data))) + bytes(4) + data
    return struct.pack(">BBH", opcode, 0xFE, len(data)) + bytes(4) + data


class Client:
    """One client id, and the connection that it has now. *back*: its latest connection has been answered."""

    def __init__(self, crowd: Crowd, name: str, **credentials: str) -> None:
        self.name = name
        self.workspace = ""
        self.back = False
        #: How often it came.
        self.arrivals = 0
        self._crowd = crowd
        self._query = {"client_id": name, **credentials}
        self._socket: socket.socket
        self._data = b""
        self._open = False
        self._pending: dict[str, Then] = {}
        self.connect()

    @property
    def address(self) -> str:
        """``workspace/client``."""
        return f"{self.workspace}/{self.name}"

    def connect(self) -> None:
        """Begin a connection."""
        self.back = self._open = False
        self._data = b""
        self._pending.clear()
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.connect_ex(("127.0.0.1", self._crowd.port))
        self._crowd.watch(self, self._socket.fileno())

    def writable(self) -> None:
        """The connection is there, or was refused."""
        self._send(handshake(f"127.0.0.1:{self._crowd.port}", self._query))

    def readable(self) -> None:
        """Take what has come. Comes back at the end of the connection."""
        try:
            data = self._socket.recv(2**18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.reset()
            self.connect()
            return
        self._data += data
        if not self._open:
            self._read_answer()
        while self._open and self._read_frame():
            pass

    def reset(self) -> None:
        """End the connection as a killed host does."""
        self._crowd.forget(self._socket.fileno())
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._socket.close()

    def leave(self) -> None:
        """Say goodbye and wait for the answer."""
        self._send(frame(_CLOSE, (1000).to_bytes(2, "big")))
        self._socket.settimeout(PATIENCE)
        while self._socket.recv(2**16):
            pass
        self._socket.close()

    def call(self, to: str, method: str, *args: Any, then: Then) -> None:
        """Call a function; *then* is called with its result."""
        session = next_session().decode()
        self._pending[session] = then
        self._send(frame(_BINARY, call_message(self.name, to, method, list(args), session)))

    def ask(self, function: str, *args: Any, then: Then) -> None:
        """Call a function of the server."""
        self.call(MANAGER, _DEFAULT + function, *args, then=then)

    def _send(self, data: bytes) -> None:
        try:
            if self._socket.send(data) != len(data):
                raise Wrong("the server does not read")
        except OSError:
            pass  # its end will be read

    def _read_answer(self) -> None:
        head, end, self._data = self._data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "[: len(head)]):
            raise Wrong(f"{self.name} was refused: {head!r}")
        if not end:
            self._data = head
            return
        self._open = True
        self.ask("get_connection_info", then=self._arrived)

    def _arrived(self, info: Map) -> None:
        self.workspace = info["workspace"]
        self._query["reconnection_token"] = info["reconnection_token"]
        self.back = True
        self.arrivals += 1

    def _read_frame(self) -> bool:
        data = self._data
        size, start = data[1] if len(data) > 1 else 0, 2
        if size > 125:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start], "big")
        if len(data) < max(2, start + size):
            return False
        self._data = data[start + size :]
        self._take(data[0], data[start : start + size])
        return True

    def _take(self, opcode: int, data: bytes) -> None:
        if opcode == _PING:
            self._send(frame(_PONG, data))
        elif opcode == _BINARY:
            self._take_message(decode(data))
        elif opcode != _CLOSE:
            raise Wrong(f"{self.name} got a frame that begins with {opcode:#x}")

    def _take_message(self, message: Map) -> None:
        session, _, word = message["method"].rpartition(".")
        if word == "resolve":
            self._pending.pop(session)(message["args"][0])
        elif message["method"] == f"services.{SERVICE}.hello":
            self._send(frame(_BINARY, result_message(message["from"], self.address, message["session"])))
        else:
            raise Wrong(f"{self.name} got {message}")


class Crowd:
    """All clients, and the loop in which they live."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.clients: list[Client] = []
        self._poll = select.epoll()
        self._by_descriptor: dict[int, Client] = {}

    def watch(self, client: Client, descriptor: int) -> None:
        """Wait for the connection of *client*."""
        self._by_descriptor[descriptor] = client
        self._poll.register(descriptor, select.EPOLLOUT)

    def forget(self, descriptor: int) -> None:
        """A connection is to be closed."""
        self._poll.unregister(descriptor)
        del self._by_descriptor[descriptor]

    def run(self, until: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        """Serve all until something is true."""
        began = time.perf_counter()
        while not until():
            for descriptor, event in self._poll.poll(0.02):
                client = self._by_descriptor[descriptor]
                if event == select.EPOLLOUT:
                    self._poll.modify(descriptor, select.EPOLLIN)
                    client.writable()
                else:
                    client.readable()
            if time.perf_counter() - began > patience:
                back = sum(client.back for client in self.clients)
                raise Wrong(f"{what}: not within {patience:g} s, {back} of {len(self.clients)} are here")

    def are_back(self) -> bool:
        """Whether the server has answered everybody."""
        return all(client.back for client in self.clients)

    # --- the story ------------------------------------------------------------------------------------------------

    def come(self, count: int, workspaces: int) -> None:
        """Connect and register."""
        founders = [Client(self, f"c{number:04}") for number in range(workspaces)]
        self.clients += founders
        self.run(self.are_back, "the first ones come")
        tokens: list[tuple[str, str]] = []
        for founder in founders * USERS:
            founder.ask("generate_token", then=partial(_note, tokens, founder.workspace))
        self.run(lambda: len(tokens) == workspaces * USERS, "they get tokens")
        for number in range(workspaces, count):
            workspace, token = tokens[number % len(tokens)]
            self.clients.append(Client(self, f"c{number:04}", workspace=workspace, token=token))
        self.run(self.are_back, "all come")
        done: list[None] = []
        for client in self.clients:
            config = {"visibility": "public", "workspace": client.workspace}
            service = {"id": f"{client.name}:{SERVICE}", "type": "generic", "name": SERVICE, "config": config}
            client.ask("update_client_info", {"id": client.name, "services": [service]}, then=done.append)
        self.run(lambda: len(done) == count, "all register")

    def check(self) -> None:
        """See that each service answers a client of another workspace, and is listed once."""
        waiting = list(zip(self.clients, [*self.clients[1:], self.clients[0]], strict=True))
        answers: list[str] = []

        def call_next(*answer: str) -> None:
            answers.extend(answer)
            if waiting:
                client, other = waiting.pop()
                client.call(other.address, f"services.{SERVICE}.hello", then=call_next)

        for _ in range(AT_ONCE):
            call_next()
        self.run(lambda: len(answers) == len(self.clients), "all answer")
        addresses = sorted(client.address for client in self.clients)
        if sorted(answers) != addresses:
            raise Wrong("somebody else answered")
        lists: list[list[Map]] = []
        by_workspace = {client.workspace: client for client in self.clients}
        for client in by_workspace.values():
            client.ask("list_services", client.workspace, then=lists.append)
        self.run(lambda: len(lists) == len(by_workspace), "all lists come")
        listed = sorted(entry["id"] for entries in lists for entry in entries)
        if listed != [f"{address}:{SERVICE}" for address in addresses]:
            raise Wrong(f"{len(listed)} services of {len(addresses)} clients are listed, {len(set(listed))} ids")

    def drop(self) -> None:
        """Reset all connections at once and let all come back at once."""
        for client in self.clients:
            client.reset()
        for client in self.clients:
            client.connect()

    def leave(self) -> None:
        """End all connections cleanly."""
        for client in self.clients:
            client.leave()


def _note(tokens: list[tuple[str, str]], workspace: str, token: str) -> None:
    tokens.append((workspace, token))


def say(**facts: object) -> None:
    """One line for the test."""
    print(json.dumps(facts), flush=True)


def main(port: int, count: int, workspaces: int) -> None:
    """The life of a crowd."""
    orders: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: orders.append(number))
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    os.nice(10)  # it stands for many machines: the calls that are measured are made beside it
    crowd = Crowd(port)
    began = time.perf_counter()
    crowd.come(count, workspaces)
    crowd.check()
    say(visit=1, seconds=time.perf_counter() - began)
    for visit in itertools.count(2):
        crowd.run(lambda: bool(orders) or not crowd.are_back(), "an order", 600)
        order = orders.pop() if orders else None
        if order == signal.SIGTERM:
            crowd.leave()
            return
        began = time.perf_counter()
        if order == signal.SIGUSR1:
            crowd.drop()
        crowd.run(crowd.are_back, "all come back")
        if order == signal.SIGUSR1:  # a server that was killed does not know the services
            crowd.check()
        say(visit=visit, seconds=time.perf_counter() - began)
        if {client.arrivals for client in crowd.clients} != {visit}:
            raise Wrong("some came more often than they were lost")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
