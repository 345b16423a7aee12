"""Plays the client's side of a case, and judges what came back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

import pytest
import trio

from tests.web.conformance.cases import (
    BINARY,
    CLOSE,
    NO_CODE,
    PONG,
    TEXT,
    TOGETHER,
    Case,
    Frame,
    Pause,
    Slowly,
    Step,
    close,
    frames,
)
from tests.web.wires import Closed, read_to_end, send_while_open

#: Seconds, by the clock of the test, that a server has for a case; fewer than pass before it sends a ping of its own.
PATIENCE = 15.0


def listed(cases: Iterable[Case], slow: Callable[[Case], bool] | None = None) -> list[object]:
    """*cases* as the parameters of a test, each under its number."""
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(case, id=case.number, marks=marks[slow is not None and slow(case)]) for case in cases]


@dataclass
class Client:
    """The client's side of a fresh websocket on *stream*. It reads frames by hand: a library would repair them."""

    stream: trio.abc.Stream
    #: Messages and pongs that have come, and how many there were at the end of each pause.
    answers: list[Frame] = field(default_factory=list)
    at_pauses: list[int] = field(default_factory=list)
    #: The server's close frame; code 1006 when the connection has ended without one.
    end: Closed | None = None
    _sending: trio.Lock = field(default_factory=trio.Lock)
    _changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    async def play(self, case: Case) -> None:
        """Do what the client of *case* does, until the server has closed the stream."""
        owed = len(case.owed())
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                for count in range(case.rounds):
                    await self._take_steps(case)
                    while len(self.answers) < owed * (count + 1) and self.end is None:
                        await self._changed.park()
                if case.says_goodbye and self.end is None:
                    await self._send(close(1000).encoded())

    async def _take_steps(self, case: Case) -> None:
        for piece in segments(case.steps, case.chop):
            if isinstance(piece, Pause):
                await trio.sleep(1)
                if self.end is None:
                    self.at_pauses.append(len(self.answers))
            elif not await self._send(piece):
                return

    async def _send(self, data: bytes) -> bool:
        async with self._sending:
            return await send_while_open(self.stream, data)

    async def _read(self) -> None:
        rest = bytearray()
        while self.end is None:
            found = first_frame(rest)
            if found is not None:
                frame, size = found
                del rest[:size]
                self._take(frame)
            elif data := await self._receive():
                rest += data
            else:
                self.end = Closed(1006)
            self._changed.unpark_all()
        await self._send(Frame(CLOSE).encoded())
        assert rest + await read_to_end(self.stream) == b""

    async def _receive(self) -> bytes:
        try:
            return bytes(await self.stream.receive_some())
        except trio.BrokenResourceError:
            return b""

    def _take(self, frame: Frame) -> None:
        if frame.opcode == CLOSE:
            assert len(frame.payload) != 1
            code = int.from_bytes(frame.payload[:2], "big") if frame.payload else NO_CODE
            self.end = Closed(code, frame.payload[2:].decode())
        else:
            self.answers.append(frame)


def first_frame(data: bytes | bytearray) -> tuple[Frame, int] | None:
    """The frame of a server at the beginning of *data*, and its size in bytes; None when it is not whole.

    Ours sends whole messages only, and what holds for every server: no reserved bit, no mask, the shortest length.
    """
    if len(data) < 2:
        return None
    first, size, start = data[0], data[1], 2
    assert first & 0xF0 == 0x80
    assert first & 0x0F in {TEXT, BINARY, CLOSE, PONG}
    assert size < (126 if first & 0x08 else 128)
    if size > 125:
        start = 4 if size == 126 else 10
        if len(data) < start:
            return None
        least = 126 if size == 126 else 65536
        size = int.from_bytes(data[2:start], "big")
        assert size >= least
    stop = start + size
    return (Frame(first & 0x0F, bytes(data[start:stop])), stop) if len(data) >= stop else None


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


def judge(case: Case, client: Client, content: Callable[[bytes], bytes] = bytes) -> None:
    """Fail unless *client* got what *case* asks for. *content*: what of a binary message must be the same."""
    assert summary(client.answers, content) == summary(case.owed(), content) * case.rounds
    assert client.end is not None
    assert client.end.code in case.codes
    if case.says_goodbye:
        pauses = [index for index, step in enumerate(case.steps) if isinstance(step, Pause)]
        assert client.at_pauses == [len(case.owed(index)) for index in pauses]


def summary(answers: Iterable[Frame], content: Callable[[bytes], bytes]) -> list[tuple[int, int, bytes]]:
    """Opcode, size and content of each; of a long one its hash, so that a failure can be read."""
    found = []
    for frame in answers:
        data = content(frame.payload) if frame.opcode == BINARY else frame.payload
        found.append((frame.opcode, len(data), data if len(data) < 200 else sha256(data).digest()))
    return found
