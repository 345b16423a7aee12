"""A server for the tests of the web room: in memory on a mock clock, and on the loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hypha.config import Config
from tests.web.stack import LoopbackStack, MemoryStack, loopback_stack, memory_stack


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[MemoryStack]:
    """A server in memory. Tests ask for ``autojump_clock`` too: pytest-trio must see it in their own list."""
    async with memory_stack(Config(data_dir=tmp_path)) as found:
        yield found


@pytest.fixture
async def loopback(tmp_path: Path) -> AsyncIterator[LoopbackStack]:
    """A server behind a socket, in real time."""
    async with loopback_stack(Config(data_dir=tmp_path)) as found:
        yield found
