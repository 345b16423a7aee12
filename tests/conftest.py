"""What holds for every test: a deadline, and nothing left behind. Soak tests run only when they are asked for."""

from __future__ import annotations

import secrets

import pytest

from tests.house import machine

pytest_plugins = ("tests.house.leaks", "tests.house.deadlines")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the tests marked soak, and no others")
    parser.addoption("--minutes", type=float, default=0.0, help="with --soak: run only the mixed load, for so long")
    parser.addoption("--seed", type=int, default=None, help="of the mixed load (default: another one each time)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: minutes of load; run with 'python3 -m tests soak'")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [
        item for item in items if not _wanted(item, bool(config.getoption("soak")), config.getoption("minutes"))
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _wanted(item: pytest.Item, soak: bool, minutes: float) -> bool:
    """Soak tests run when they are asked for; those that take as long as one likes, when that is said, and alone."""
    marked = item.get_closest_marker("soak") is not None
    timed = "minutes" in getattr(item, "fixturenames", ())
    return marked == soak and timed == (soak and minutes > 0)


@pytest.fixture
def minutes(request: pytest.FixtureRequest) -> float:
    """How long the mixed load runs."""
    return float(request.config.getoption("minutes"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Of a load that is drawn by chance. It is printed, so that it can be given again with ``--seed``."""
    given = request.config.getoption("seed")
    chosen = secrets.randbelow(10**6) if given is None else int(given)
    print(f"--seed {chosen}")
    return chosen


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
