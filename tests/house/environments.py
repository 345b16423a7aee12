"""The virtual environments of the tests, below ``.tests`` in the tree or ``HYPHA_TEST_ENVS``. Standard library only.

An environment is reused while its inputs are the ones that it was built from. The file ``complete`` is written
last, so a half-built environment is never taken for a whole one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.house.machine import PYTHONS
from tests.house.steps import ROOT, Stop, run

#: Where the environments stand. A clone that is given another's takes the main one over, for it holds one tree.
HOME = Path(os.environ.get("HYPHA_TEST_ENVS") or ROOT / ".tests").absolute()
#: The names of the client generations of ``protocol.md`` that are published for Python: A and Bp, and Cp.
GENERATIONS = ("0.5.6", "0.5.59")
MODERN = "0.21.47"


@dataclass(frozen=True)
class Environment:
    """What is installed where. *pythons* are the versions on which its packages are known to work."""

    name: str
    requirements: tuple[str, ...]
    probe: str
    editable: bool = False
    pythons: tuple[tuple[int, int], ...] = PYTHONS

    @property
    def directory(self) -> Path:
        return HOME / self.name

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"


#: The server's own, with the published client beside it: the two must be installable together.
MAIN = Environment("main", ("-e", ".[imjoy,test]"), "import hypha, imjoy_rpc.hypha, pytest", editable=True)

CLIENTS = (
    *(
        Environment(
            f"imjoy-rpc-{version}",
            (f"imjoy-rpc=={version}", "websockets<14", "numpy"),
            "import numpy; from imjoy_rpc.hypha import connect_to_server",
        )
        for version in GENERATIONS
    ),
    Environment(
        f"hypha-rpc-{MODERN}",
        (f"hypha-rpc=={MODERN}", "numpy"),
        "import numpy; from hypha_rpc import connect_to_server",
    ),
)

#: The latest of either generation beside a web framework. Apart, since it changes what hypha-rpc says of functions.
APPLICATIONS = (
    Environment(
        f"imjoy-rpc-{GENERATIONS[-1]}-fastapi",
        (f"imjoy-rpc=={GENERATIONS[-1]}", "websockets<14", "numpy", "fastapi"),
        "import fastapi; from imjoy_rpc.hypha import connect_to_server",
    ),
    Environment(
        f"hypha-rpc-{MODERN}-fastapi",
        (f"hypha-rpc=={MODERN}", "numpy", "fastapi"),
        "import fastapi; from hypha_rpc import connect_to_server",
    ),
)

#: The present-day original, which the benchmark can measure beside this server. It lacks two of its requirements.
PUBLISHED_VERSION = "0.21.137"
PUBLISHED = Environment(
    f"hypha-{PUBLISHED_VERSION}",
    (f"hypha=={PUBLISHED_VERSION}", "hypha-rpc==0.21.47", "aiobotocore", "sqlmodel<0.0.30"),
    "import hypha.server",
)


def fingerprint(environment: Environment, interpreter: str) -> str:
    """A digest of everything that *environment* is built from."""
    version = subprocess.check_output([interpreter, "-c", "import sys; print(sys.version, sys.base_prefix)"], text=True)
    inputs: list[object] = [environment.name, environment.requirements, environment.probe, version]
    if environment.editable:
        import tomllib  # not in the Pythons that are only told that they are too old

        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        inputs.extend((project["build-system"], project["project"], str(ROOT)))
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def interpreter_for(environment: Environment) -> str:
    """An interpreter on which *environment* works. Raises :class:`Stop` naming the one to install."""
    if sys.version_info[:2] in environment.pythons:
        # Not the interpreter of an environment: it may be the very one that is going to be replaced.
        base = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
        return str(base) if base.exists() else sys.executable
    names = [f"python{major}.{minor}" for major, minor in environment.pythons]
    for name in reversed(names):
        found = shutil.which(name)
        if found:
            return found
    raise Stop(
        f"{environment.name} does not work on Python {sys.version_info.major}.{sys.version_info.minor}; "
        f"install {names[-1]} with its venv module, so that '{names[-1]}' is found, and start again"
    )


def is_complete(environment: Environment, digest: str) -> bool:
    """Whether *environment* was built to its end from the inputs that *digest* stands for."""
    marker = environment.directory / "complete"
    return environment.python.exists() and marker.is_file() and marker.read_text() == digest


def ensure(environment: Environment) -> bool:
    """Build *environment* unless it stands. Returns whether it was built; raises :class:`Stop` with pip's words."""
    interpreter = interpreter_for(environment)
    digest = fingerprint(environment, interpreter)
    with locked():
        if is_complete(environment, digest):
            return False
        shutil.rmtree(environment.directory, ignore_errors=True)
        run([interpreter, "-m", "venv", str(environment.directory)], environ=clean_environ(), quiet=True)
        python = str(environment.python)
        for command in (
            ["-m", "pip", "install", "--quiet", *environment.requirements],
            ["-m", "pip", "check"],
            ["-c", environment.probe],
        ):
            run([python, *command], environ=clean_environ(), quiet=True)
        (environment.directory / "complete").write_text(digest)
    return True


@contextmanager
def locked() -> Iterator[None]:
    """One builder at a time; a second one waits. Raises :class:`Stop` where this user may not write."""
    try:
        HOME.mkdir(parents=True, exist_ok=True)
        with open(HOME / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except PermissionError as error:
        raise Stop(f"{error.filename} cannot be written; run the tests as the user who owns this tree") from None


def clean_environ() -> dict[str, str]:
    """The environment without what changes how Python runs, or lets one installation see another's packages."""
    foreign = ("PYTHON", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    return {name: text for name, text in os.environ.items() if not name.startswith(foreign)}
