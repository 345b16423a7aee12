"""``python -m tests.attack.crowd PORT``: those beside the neighbour, well-behaved ones or attackers."""

from __future__ import annotations

import os
import sys

import trio

from tests.attack.attacks import POLITE, ROWS, Attack, polite
from tests.attack.helper import Answer, obey

#: Attackers are elsewhere: they may not take the processor away from the server and the neighbour.
NICENESS = 10
#: Seconds that an attack may take once nobody repeats it any more.
PATIENCE = 20.0


class Crowd:
    """So many connections that do the same again and again."""

    def __init__(self, port: int, nursery: trio.Nursery) -> None:
        self._port = port
        self._nursery = nursery
        self._stopping = False
        self._running = 0
        self._finished = trio.Event()
        self._rounds = 0
        self._error: BaseException | None = None

    async def begin(self, name: str, connections: str) -> Answer:
        """Let so many *connections* repeat what row *name* does."""
        attack = polite if name == POLITE else ROWS[name].attack
        self._stopping, self._rounds, self._error, self._finished = False, 0, None, trio.Event()
        self._running = int(connections)
        for _ in range(self._running):
            self._nursery.start_soon(self._repeat, attack)
        return {}

    async def end(self) -> Answer:
        """Wait until all have come to their ends; how often they did. Raises what one of them met."""
        self._stopping = True
        with trio.fail_after(PATIENCE):
            await self._finished.wait()
        if self._error is not None:
            raise self._error
        return {"rounds": self._rounds}

    async def _repeat(self, attack: Attack) -> None:
        try:
            while not self._stopping:
                await attack(self._port)
                self._rounds += 1
                await trio.lowlevel.checkpoint()
        except Exception as exc:  # noqa: BLE001  told by end()
            self._error, self._stopping = exc, True
        finally:
            self._running -= 1
            if not self._running:
                self._finished.set()


async def main(port: str) -> None:
    os.nice(NICENESS)
    async with trio.open_nursery() as nursery:
        crowd = Crowd(int(port), nursery)
        await obey({"begin": crowd.begin, "end": crowd.end})
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
