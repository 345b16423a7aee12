"""The load of those who come and go: clients that connect, show that they are attached, and leave, some at a time."""

from __future__ import annotations

import select
import socket
import time
from array import array
from collections.abc import Callable

from tests.bench.wire import GOODBYE, PATIENCE, Talk, Wire, WrongAnswer, first_message

_READ = 2**16


class Visit:
    """One client, from its connect until the server has closed the connection that the client has said goodbye to."""

    def __init__(self, port: int, talk: Talk) -> None:
        self.began = time.perf_counter()
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._talk = talk
        self._read = b""
        self._upgraded = self._leaving = False
        self.socket.sendall(next(talk))

    def readable(self) -> bool:
        """Take what has come and answer it. Whether the visit is over. Raises :class:`WrongAnswer`."""
        data = self.socket.recv(_READ)
        if self._leaving:
            return not data
        if not data:
            raise WrongAnswer("the server has closed a connection")
        self._read += data
        while not self._leaving and (message := self._take()) is not None:
            self._answer(message)
        return False

    def _take(self) -> bytes | None:
        """The first message, or the head before them all."""
        if self._upgraded:
            message, self._read = first_message(self._read)
            return message
        head, end, rest = self._read.partition(b"\r\n\r\n")
        if not end:
            return None
        if not head.startswith(b"HTTP/1.1 101 "):
            raise WrongAnswer(f"the handshake was answered with {head!r}")
        self._upgraded, self._read = True, rest
        return head

    def _answer(self, message: bytes) -> None:
        try:
            self.socket.sendall(self._talk.send(message))
        except StopIteration:
            self._leaving = True
            self.socket.sendall(GOODBYE)


class VisitLoad:
    """*count* visits at a time: each is followed by the next, whose client has another name.

    *talk* is what the client of a name says. *host* is a client of the same server that stays.
    """

    def __init__(self, talk: Callable[[str], Talk], count: int, host: Wire) -> None:
        self._talk, self._host = talk, host
        self._visits: dict[int, Visit] = {}
        self._number = 0
        self._poll = select.epoll()
        for _ in range(count):
            self._begin()

    def _begin(self) -> None:
        self._number += 1
        visit = Visit(self._host.port, self._talk(f"visitor{self._number:06}"))
        self._visits[visit.socket.fileno()] = visit
        self._poll.register(visit.socket, select.EPOLLIN)

    def run(self, seconds: float) -> array[float]:
        """Let clients come and go for *seconds*; the seconds that each visit took that ended meanwhile."""
        return self._serve(seconds, self._begin)

    def _serve(self, seconds: float, follow: Callable[[], None]) -> array[float]:
        """Serve the visits, and *follow* each, for *seconds* or until there are none."""
        found: array[float] = array("d")
        deadline = time.perf_counter() + seconds
        while self._visits and time.perf_counter() < deadline:
            for descriptor, _ in self._poll.poll(0.05):
                visit = self._visits[descriptor]
                if visit.readable():
                    found.append(time.perf_counter() - visit.began)
                    del self._visits[descriptor]
                    visit.socket.close()
                    follow()
        return found

    def close(self) -> None:
        """Wait for the visits that have begun, and close the connections."""
        self._serve(PATIENCE, lambda: None)
        self._host.socket.close()
        self._poll.close()
        if self._visits:
            raise WrongAnswer(f"{len(self._visits)} visits did not end")
