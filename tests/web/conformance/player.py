"""Plays the client's side of a case, and judges what came back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

import trio
from wsproto.events import CloseConnection, Pong

from tests.web.conformance.cases import BINARY, PONG, TEXT, TOGETHER, Case, Frame, Pause, Slowly, Step, frames
from tests.web.wires import Closed, WebSocket, read_to_end, send_while_open

#: Seconds, by the clock of the test, that a server has for a case.
PATIENCE = 100.0


@dataclass
class Record:
    """What a client has received: messages and pongs, how many of them before the end of each pause, and the end."""

    answers: list[Frame] = field(default_factory=list)
    at_pauses: list[int] = field(default_factory=list)
    end: Closed | None = None
    _changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    async def read(self, socket: WebSocket) -> None:
        """Take what comes until the server has closed the websocket, and then the stream."""
        while self.end is None:
            item = await socket.receive()
            if isinstance(item, Closed):
                self.end = item
            else:
                self.answers.append(_as_frame(item))
            self._changed.unpark_all()
        assert await read_to_end(socket.stream) == b""

    async def until(self, count: int) -> None:
        """Wait for so many answers, or the end."""
        while len(self.answers) < count and self.end is None:
            await self._changed.park()


def _as_frame(item: object) -> Frame:
    if isinstance(item, str):
        return Frame(TEXT, item.encode())
    if isinstance(item, bytes):
        return Frame(BINARY, item)
    assert isinstance(item, Pong)
    return Frame(PONG, bytes(item.payload))


async def play(socket: WebSocket, case: Case) -> Record:
    """Do what the client of *case* does, on a fresh connection, until the server has ended it."""
    record, owed = Record(), len(case.owed())
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(record.read, socket)
            for count in range(case.rounds):
                await _send(socket, case, record)
                await record.until(owed * (count + 1))
            if case.says_goodbye and record.end is None:
                await socket.send(CloseConnection(1000))
    return record


async def _send(socket: WebSocket, case: Case, record: Record) -> None:
    for piece in segments(case.steps, case.chop):
        if isinstance(piece, Pause):
            await trio.sleep(1)
            if record.end is None:
                record.at_pauses.append(len(record.answers))
        elif not await send_while_open(socket.stream, piece):
            return


def segments(steps: Iterable[Step], chop: int) -> Iterator[bytes | Pause]:
    """What the client hands to the network at once, and its pauses between."""
    together = bytearray()
    for item in _pieces(steps):
        if chop == TOGETHER and isinstance(item, bytes):
            together += item
            continue
        if together:
            yield bytes(together)
            together.clear()
        if isinstance(item, Pause):
            yield item
        else:
            width = chop if chop > 0 else len(item)
            yield from (item[start : start + width] for start in range(0, len(item), width))
    if together:
        yield bytes(together)


def _pieces(steps: Iterable[Step]) -> Iterator[bytes | Pause]:
    """Frames, or the parts of a slow one, and pauses."""
    for step in steps:
        if isinstance(step, Pause):
            yield step
        elif isinstance(step, Slowly):
            data = step.frame.encoded()
            head = len(data) - len(step.frame.payload)
            begin = 0
            for cut in step.cuts:
                yield data[begin : head + cut]
                yield Pause()
                begin = head + cut
            yield data[begin:]
        else:
            yield from (frame.encoded() for frame in frames([step]))


def judge(case: Case, record: Record) -> None:
    """Fail unless *record* is what *case* asks for."""
    assert summary(record.answers) == summary(case.owed() * case.rounds)
    assert record.end is not None
    assert record.end.code in case.codes
    in_time = [len(case.owed(index)) for index, step in enumerate(case.steps) if isinstance(step, Pause)]
    if case.says_goodbye:
        assert record.at_pauses == in_time


def summary(answers: Iterable[Frame]) -> list[tuple[int, int, bytes]]:
    """Opcode, size and content of each; of a long one its hash, of which a failure can be read."""
    return [
        (frame.opcode, size, frame.payload if size < 200 else sha256(frame.payload).digest())
        for frame in answers
        for size in [len(frame.payload)]
    ]
