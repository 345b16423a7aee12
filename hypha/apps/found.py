"""Finding the browser, and saying what to do when there is none."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Mapping

from hypha.errors import ConfigError, HyphaError

NAMES = (
    "chromium",
    "chromium-browser",
    "chromium-headless-shell",
    "google-chrome-stable",
    "google-chrome",
    "chrome",
)
_PLACES = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
#: The line of a script that starts a program and stays in front of it.
_STARTS = re.compile(rb'^(/\S+) "\$@"\s*$', re.MULTILINE)
_SCRIPT_BYTES = 4096
_DOWNLOADS = ("chrome", "headless_shell", "chrome-headless-shell")


class NoBrowser(HyphaError):
    """Apps cannot run on this machine. The text says what to do."""


def require_playwright() -> None:
    """Raise :class:`ConfigError` unless the extra for server apps is installed (A2)."""
    if importlib.util.find_spec("playwright") is None:
        raise ConfigError(
            f"--enable-server-apps needs Playwright; install it: {sys.executable} -m pip install 'playwright>=1.49'"
        )


def find_browser(chosen: str | None, environ: Mapping[str, str]) -> str:
    """The path of a Chromium: the chosen one, Playwright's own download, or the system's. Raises :class:`NoBrowser`."""
    path = environ.get("PATH")
    if chosen is not None:
        found = shutil.which(chosen, path=path)
        if found is None:
            raise NoBrowser(f"server apps cannot run: --chromium-path {chosen} is no program")
        return found
    system = (shutil.which(name, path=path) for name in NAMES)
    found = _download(environ) or next(filter(None, system), None) or next(filter(os.path.exists, _PLACES), None)
    if found is None:
        raise NoBrowser(
            "server apps need a browser; install one, or name it with --chromium-path:\n"
            f"  apt-get install -y chromium-headless-shell\n  {sys.executable} -m playwright install chromium"
        )
    return found


def unwrapped(path: str) -> str:
    """The program that a script at *path* does nothing but start: Debian's, for the headless shell.

    The kernel kills what the server has started when the server is killed, and would kill the script alone.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(_SCRIPT_BYTES)
    except OSError:
        return path
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(b"#")]
    match = _STARTS.fullmatch(lines[0]) if text.startswith(b"#!") and len(lines) == 1 else None
    program = os.fsdecode(match[1]) if match else path
    return program if os.access(program, os.X_OK) else path


def _download(environ: Mapping[str, str]) -> str | None:
    """Playwright's newest own download. ``glob`` takes what cannot be read for absent."""
    home = environ.get("PLAYWRIGHT_BROWSERS_PATH") or os.path.expanduser("~/.cache/ms-playwright")
    found = [path for name in _DOWNLOADS for path in glob.glob(f"{glob.escape(home)}/chromium*/chrome-*/{name}")]
    return max(found, default=None)
