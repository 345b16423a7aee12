"""Python for browsers, and what the published client needs there: a directory as users are told to make one.

Pyodide itself comes with the packages of npm, the others as wheels from the index of Python. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from tests.house import environments, npm
from tests.house.steps import run

#: What is built for Pyodide says so in its name; all others are pure Python. numpy is not among them: hypha-rpc does
#: without.
WHEELS = (
    f"hypha-rpc=={environments.MODERN}",
    *("msgpack", "shortuuid", "munch", "httpx", "httpcore", "h11", "anyio", "certifi", "idna", "sniffio"),
)
PLATFORM, PYTHON = "pyemscripten_2026_0_wasm32", "3.14"
_FILES = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json")


def directory() -> Path:
    """Where it stands."""
    return environments.HOME / "pyodide"


def fingerprint() -> str:
    """A digest of everything that it is made from."""
    inputs = [WHEELS, PLATFORM, PYTHON, (npm.SOURCE / "package-lock.json").read_text()]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def is_complete(digest: str) -> bool:
    """Whether it was made to the end from the inputs that *digest* stands for."""
    marker = directory() / "complete"
    return marker.is_file() and marker.read_text() == digest


def ensure() -> bool:
    """Make it unless it is there; npm's packages are. Returns whether it did; raises ``Stop`` with pip's words."""
    digest = fingerprint()
    with environments.locked():
        if is_complete(digest):
            return False
        shutil.rmtree(directory(), ignore_errors=True)
        directory().mkdir()
        for name in _FILES:
            shutil.copy(npm.modules() / "pyodide" / name, directory())
        target = ["--platform", PLATFORM, "--python-version", PYTHON, "--only-binary", ":all:"]
        command = [environments.MAIN.python, "-m", "pip", "download", "--quiet", "--no-deps", *target]
        run([*map(str, command), "--dest", str(directory()), *WHEELS], environ=environments.clean_environ(), quiet=True)
        (directory() / "complete").write_text(digest)
    return True
