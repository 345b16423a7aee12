"""``python -m tests.attack.neighbour PORT PID``: somebody who minds their own business, and how long they wait for it.

One connection calls itself a thousand times a second and answers itself: each echo passes the server twice. Calls are
made whether or not those before were answered, so that a moment in which the server does nothing is as many late echoes
as it is milliseconds long.

What is measured is the server and not the machine. The time in which the process *PID* could have worked, or this one
could have read, had the processor not been somebody else's, is not counted: the kernel tells it
(``/proc/PID/schedstat``, the second number). A server that sleeps or works for others is not excused by it.
"""

from __future__ import annotations

import itertools
import os
import sys
import time

import msgpack
import trio

from tests.attack.helper import Answer, obey
from tests.clients.raw import decode, masked, upgraded

PERIOD = 0.001
PATIENCE = 10.0

_NAME = "neighbour"
_CLOSE, _PING = 0x88, 0x89


class RunDelay:
    """How long a process has waited for the processor, in seconds. Costs a microsecond to ask."""

    def __init__(self, pid: int) -> None:
        self._descriptor = os.open(f"/proc/{pid}/schedstat", os.O_RDONLY)

    def __call__(self) -> float:
        return int(os.pread(self._descriptor, 100, 0).split()[1]) / 1e9


class Neighbour:
    """The connection *stream*, on which echoes are made while somebody asks for them."""

    def __init__(self, stream: trio.SocketStream, nursery: trio.Nursery, server: int) -> None:
        self._stream = stream
        self._servers_delay, self._own_delay = RunDelay(server), RunDelay(os.getpid())
        self._delay_before = 0.0  # our own, when we did something last
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._arrived = 0.0
        self._sending = trio.Lock()
        self._sent: dict[str, float] = {}
        self._taken: list[float] = []
        self._all_back = trio.Event()

    async def begin(self) -> Answer:
        """Make echoes from now on."""
        self._taken, self._scope = [], trio.CancelScope()
        self._nursery.start_soon(self._echo)
        return {}

    async def end(self) -> Answer:
        """Make no more; milliseconds that they took. Raises trio.TooSlowError when one does not come back."""
        self._scope.cancel()
        with trio.fail_after(PATIENCE):
            while self._sent:
                await self._all_back.wait()
        taken = sorted(self._taken)
        return {"count": len(taken), "p99": taken[int(len(taken) * 0.99)] * 1e3, "slowest": taken[-1] * 1e3}

    async def _echo(self) -> None:
        began = time.perf_counter()
        with self._scope:
            for number in itertools.count(1):
                await self._call(f"s{number}")
                await trio.sleep(max(0.0, began + number * PERIOD - time.perf_counter()))

    async def read(self) -> None:
        """Answer calls and pings until the connection ends, which it must not."""
        data = b""
        async for chunk in self._stream:
            late = self._own_delay() - self._delay_before
            self._arrived = time.perf_counter() - self._servers_delay() - late
            self._delay_before += late
            data += chunk
            while len(data) >= 4 or data[1:2] == b"\0":  # what the server sends is empty or longer than a byte
                start, size = _payload(data)
                if len(data) < start + size:
                    break
                await self._take(data[0], data[start : start + size])
                data = data[start + size :]
        raise AssertionError("the server has closed the neighbour's connection")

    async def _take(self, first: int, payload: bytes) -> None:
        assert first != _CLOSE, f"the server has closed the neighbour's connection: {payload!r}"
        if first == _PING:
            await self._send(masked(10, payload))
            return
        message = decode(payload)
        session, _, word = message["method"].rpartition(".")
        if word == "echo":
            await self._message({"method": f"{message['session']}.resolve"}, {"args": message["args"]})
            return
        assert (word, message["args"]) == ("resolve", [session])
        self._taken.append(self._arrived - self._sent.pop(session))
        if not self._sent:
            self._all_back.set()
            self._all_back = trio.Event()

    async def _call(self, session: str) -> None:
        self._delay_before = self._own_delay()
        self._sent[session] = time.perf_counter() - self._servers_delay()
        await self._message({"method": "services.self.echo", "session": session}, {"args": [session]})

    async def _message(self, main: dict[str, str], extra: dict[str, object]) -> None:
        header = {"type": "method", "to": _NAME, **main}
        await self._send(masked(2, msgpack.packb(header) + msgpack.packb(extra)))

    async def _send(self, data: bytes) -> None:
        with trio.CancelScope(shield=True):  # half a frame would be the end of the connection
            async with self._sending:
                await self._stream.send_all(data)


def _payload(data: bytes) -> tuple[int, int]:
    """Where the payload of an unmasked frame of less than 64 KiB begins, and its size."""
    size = data[1] & 0x7F
    assert size < 127
    return (2, size) if size < 126 else (4, int.from_bytes(data[2:4], "big"))


async def main(port: str, server: str) -> None:
    async with upgraded(f"http://127.0.0.1:{port}", client_id=_NAME) as stream, trio.open_nursery() as nursery:
        neighbour = Neighbour(stream, nursery, int(server))
        nursery.start_soon(neighbour.read)
        await obey({"begin": neighbour.begin, "end": neighbour.end})
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
