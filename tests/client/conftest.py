"""Two programs and the server between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from hypha.client import Server
from hypha.testing import LiveServer, open_server


@pytest.fixture
async def live() -> AsyncIterator[LiveServer]:
    """A server in memory. Time jumps where a test asks for ``autojump_clock``."""
    async with open_server(memory=True) as server:
        yield server


@asynccontextmanager
async def pair(live: LiveServer, *, apart: bool = False) -> AsyncIterator[tuple[Server, Server]]:
    """Two programs in one workspace, or in two."""
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(live.connect({"client_id": "worker"}))
        place = {} if apart else {"workspace": worker.config.workspace, "token": await worker.generate_token()}
        user = await stack.enter_async_context(live.connect({"client_id": "user", **place}))
        yield worker, user
