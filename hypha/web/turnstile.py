"""Thousands of connections can begin or end in one moment: a few pass in each turn, and others have theirs."""

from __future__ import annotations

import trio


class Turnstile:
    """Lets *limit* tasks go on in each turn of the event loop, first come, first served.

    The loop gives every task that can run one step in a turn. One step of a connection that comes or goes is nothing,
    but a turn with two thousand of them is a third of a second, and to come takes ten.
    """

    def __init__(self, limit: int) -> None:
        self._free = trio.Semaphore(limit)

    async def wait(self) -> None:
        """Wait for one's turn. Cancel it freely."""
        async with self._free:
            pass  # the next in the queue goes on in the next turn of the loop
