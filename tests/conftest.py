"""What holds for every test: a deadline, and nothing left behind. Soak tests run only when they are asked for."""

from __future__ import annotations

import pytest

from tests.house import machine

pytest_plugins = ("tests.house.leaks", "tests.house.deadlines")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the tests marked soak, and no others")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: minutes of load; run with 'python3 -m tests soak'")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = bool(config.getoption("soak"))
    left_out = [item for item in items if (item.get_closest_marker("soak") is not None) != wanted]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def node() -> str:
    """The path of Node."""
    return _required("Node 18 or newer")


@pytest.fixture(scope="session")
def npm() -> str:
    """The path of npm."""
    return _required("npm")


@pytest.fixture(scope="session")
def browser() -> str:
    """The path of a Chromium."""
    return _required("a browser")


def _required(name: str) -> str:
    path = machine.NEEDS[name][0]()
    if path is None:
        pytest.fail(f"this test needs {name}; install it:\n  {machine.remedy([name])}")
    return path
