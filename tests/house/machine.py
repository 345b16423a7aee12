"""What the machine must bring: Python with venv, Node with npm, curl for the examples of the docs, a browser.

Standard library only. As root the missing parts are installed with ``apt-get``; otherwise :func:`prepare` raises
before anything is changed, with the one line that installs them.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable

from tests.house.steps import Stop, run

PYTHONS = ((3, 11), (3, 12), (3, 13))
NODE_AT_LEAST = 18
BROWSERS = (
    "chromium",
    "chromium-browser",
    "chromium-headless-shell",
    "google-chrome-stable",
    "google-chrome",
    "chrome",
)


def check_python() -> None:
    """Raise :class:`Stop` unless this interpreter is one of :data:`PYTHONS`."""
    if sys.version_info[:2] not in PYTHONS:
        known = ", ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        raise Stop(f"this is Python {sys.version.split()[0]}; run the tests with one of {known}: python3.11 -m tests")


def find_venv() -> str | None:
    """The module that makes environments able to install; Debian ships it apart from Python."""
    return "venv" if importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv") else None


def find_node() -> str | None:
    """The path of a Node of at least :data:`NODE_AT_LEAST`."""
    path = shutil.which("node") or shutil.which("nodejs")
    if path is None:
        return None
    answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    major = answer.stdout.strip().removeprefix("v").partition(".")[0]
    return path if major.isdigit() and int(major) >= NODE_AT_LEAST else None


def find_npm() -> str | None:
    """The path of npm."""
    return shutil.which("npm")


def find_browser() -> str | None:
    """The path of a Chromium: the one that is set, Playwright's own download, or the system's."""
    chosen = os.environ.get("HYPHA_CHROMIUM_PATH")
    if chosen:
        return shutil.which(chosen)
    return _playwright_download() or next(filter(None, map(shutil.which, BROWSERS)), None)


def _playwright_download() -> str | None:
    """Playwright's newest own download. ``glob`` takes what cannot be read for absent."""
    home = os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or os.path.expanduser("~/.cache/ms-playwright")
    names = ("chrome", "headless_shell", "chrome-headless-shell")
    found = [path for name in names for path in glob.glob(f"{home}/chromium*/chrome-*/{name}")]
    return max(found, default=None)


#: What is needed, how it is found, and the Debian packages that bring it.
NEEDS: dict[str, tuple[Callable[[], str | None], tuple[str, ...]]] = {
    "Python's venv": (find_venv, (f"python{sys.version_info.major}.{sys.version_info.minor}-venv",)),
    f"Node {NODE_AT_LEAST} or newer": (find_node, ("nodejs",)),
    "npm": (find_npm, ("npm",)),
    "curl": (lambda: shutil.which("curl"), ("curl",)),
    "a browser": (find_browser, ("chromium-headless-shell",)),
}


def missing() -> list[str]:
    """The names of the needs that this machine does not meet."""
    return [name for name, (find, _) in NEEDS.items() if find() is None]


def apt_lines(names: Iterable[str]) -> list[list[str]]:
    """The two commands that install *names*, as argument lists."""
    packages = sorted({package for name in names for package in NEEDS[name][1]})
    return [["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *packages]]


def remedy(names: Iterable[str]) -> str:
    """The one shell line that installs *names* on Debian."""
    return " && ".join(f"sudo {shlex.join(line)}" for line in apt_lines(names))


def prepare() -> None:
    """Install what is missing as root, or raise :class:`Stop` naming it and the line that installs it."""
    check_python()
    names = missing()
    if not names:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Stop(
            f"this machine lacks {', '.join(names)}. Install what is missing and start again:\n  {remedy(names)}"
        )
    for line in apt_lines(names):
        run(line, environ={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    importlib.invalidate_caches()
    still = missing()
    if still:
        raise Stop(f"apt-get brought no usable {', '.join(still)}; install it by hand and start again")
