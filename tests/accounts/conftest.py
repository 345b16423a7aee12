"""A server with people, in memory."""

from __future__ import annotations

import pytest
import trio

from tests.accounts.scene import Town


@pytest.fixture
async def town(nursery: trio.Nursery) -> Town:
    """Nobody has an account yet."""
    return Town(nursery)
