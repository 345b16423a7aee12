"""Fixtures for pytest-trio, active where ``pytest_plugins = ["hypha.pytest_plugin"]`` says so, in a ``conftest.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from hypha.testing import LiveServer, open_server


@pytest.fixture
def hypha_options() -> Mapping[str, Any]:
    """What :func:`hypha.testing.open_server` is called with. Override it for other than the defaults."""
    return {}


@pytest.fixture
async def hypha_server(hypha_options: Mapping[str, Any]) -> AsyncIterator[LiveServer]:
    """A server that is open while the test runs.

    With ``memory`` among the options a test may ask for ``autojump_clock``, too, in its own list of arguments.
    """
    async with open_server(**hypha_options) as server:
        yield server
