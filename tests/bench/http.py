"""The load over HTTP: connections that ask one after the other, and the provider whose function they call."""

from __future__ import annotations

import socket
import time
from array import array
from collections.abc import Callable
from typing import Any

from tests.bench.load import Connection, Loop
from tests.bench.wire import PATIENCE, Map, Wire, WrongAnswer, decode, first_message, result_message

SERVICE = "bench"
_ANSWER = "Hello John"
_BODY = b'"Hello John"'


class Asker(Connection):
    """One connection, kept alive, with one request in flight."""

    def __init__(self, port: int, request: bytes) -> None:
        super().__init__(socket.create_connection(("127.0.0.1", port), PATIENCE))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.running = True
        self.waiting = False
        self.seconds: array[float] = array("d")
        self._request = request
        self._read = b""
        self._began = 0.0

    def ask(self) -> None:
        self.waiting, self._began = True, time.perf_counter()
        self.out.append(self._request)

    def readable(self) -> None:
        self._read += self.received()
        head, separator, body = self._read.partition(b"\r\n\r\n")
        if len(body) < len(_BODY) or not separator:
            return
        if not head.startswith(b"HTTP/1.1 200 ") or body != _BODY:
            raise WrongAnswer(f"a request was answered with {self._read!r}")
        self.seconds.append(time.perf_counter() - self._began)
        self._read, self.waiting = b"", False
        if self.running:
            self.ask()


class Provider(Connection):
    """A client of the server that offers one function and describes it when it is asked."""

    def __init__(self, wire: Wire) -> None:
        entry: Map = {"id": f"{wire.name}:{SERVICE}", "type": "generic", "name": SERVICE}
        info = {"id": wire.name, "services": [{**entry, "config": {"visibility": "public"}}]}
        wire.call("services.default.update_client_info", info)
        #: Of its function over HTTP.
        self.path = f"/{wire.call('services.default.get_connection_info')['workspace']}/services/{SERVICE}/hello"
        super().__init__(wire.socket)
        self._wire = wire
        self._rest = b""

    def readable(self) -> None:
        self._rest += self.received()
        while True:
            packed, self._rest = first_message(self._rest)
            if packed is None:
                return
            if "session" in (message := decode(packed)):
                self._answer(message)

    def _answer(self, message: Map) -> None:
        value: Any = _ANSWER
        if message["method"] == "services.built-in.get_service":
            method = f"services.{SERVICE}.hello"
            hello = {"_rtype": "method", "_rtarget": self._wire.name, "_rmethod": method, "_rpromise": True}
            value = {"id": SERVICE, "config": {"visibility": "public"}, "hello": hello}
        elif message["args"] != [{"name": "John"}]:
            raise WrongAnswer(f"the function was called with {message['args']}")
        answer = result_message(message["from"], value, message["session"])
        self.out.append(self._wire.prefix(message["from"], len(answer)) + answer)


class HttpLoad:
    """*connections* that ask for *path* of the server at *port*, where *provider* may be the one that answers."""

    def __init__(self, port: int, path: str, connections: int, provider: Provider | None) -> None:
        request = f"GET {path}?name=John HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
        self._askers = [Asker(port, request) for _ in range(connections)]
        self._provider = provider
        self._loop = Loop([*self._askers, *([provider] if provider else [])])
        for asker in self._askers:
            asker.ask()

    def run(self, seconds: float) -> array[float]:
        """Ask for *seconds*; the seconds that each request took that was answered meanwhile."""
        for asker in self._askers:
            asker.seconds = array("d")
        self._loop.run(seconds)
        merged: array[float] = array("d")
        for asker in self._askers:
            merged += asker.seconds
        return merged

    def close(self) -> None:
        """Wait for the answers that are due, and close the connections."""
        for asker in self._askers:
            asker.running = False
        self._loop.run(PATIENCE, self._idle())
        for connection in (*self._askers, *([self._provider] if self._provider else [])):
            connection.socket.close()
        if not self._idle()():
            raise WrongAnswer("a request was not answered")

    def _idle(self) -> Callable[[], bool]:
        return lambda: not any(asker.waiting for asker in self._askers)
