"""A broker with clients in memory, whose tasks run in the test's nursery."""

from __future__ import annotations

import pytest
import trio

from tests.broker.memory import Scene


@pytest.fixture
async def live(nursery: trio.Nursery) -> Scene:
    """A scene in which calls of the server's functions run."""
    return Scene(nursery=nursery)
