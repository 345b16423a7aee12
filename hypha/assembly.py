"""Builds the rooms of one server and opens its root nursery."""

from __future__ import annotations

import trio
from quart_trio import QuartTrio

from hypha.config import Config


class Assembly:
    """One server: its configuration, its ASGI application and its root nursery.

    The root nursery belongs to one task that the ASGI lifespan starts (``stack.md`` section 2). It is cancelled
    after Hypercorn has stopped accepting and its connections have ended.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.app = QuartTrio("hypha")
        self.ready = trio.Event()
        self._stop = trio.Event()
        self._done = trio.Event()
        self.app.before_serving(self._start)
        self.app.after_serving(self._finish)

    async def _start(self) -> None:
        await self.app.nursery.start(self._run)

    async def _run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                self.ready.set()
                await self._stop.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._done.set()

    async def _finish(self) -> None:
        self._stop.set()
        await self._done.wait()
