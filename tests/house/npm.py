"""The JavaScript packages of the tests, installed as their lock file says, beside the Python environments.

Like those they are reused while the inputs are the ones that they were installed from, and the file ``complete`` is
written last. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.house import environments, machine
from tests.house.steps import ROOT, run

#: Where ``package.json`` and ``package-lock.json`` are kept, and what has to be loadable afterwards.
SOURCE = ROOT / "tests" / "clients" / "js"
PROBE = "require('imjoy-rpc'); require('hypha-rpc'); require('ws'); require.resolve('oidc-provider')"

_INPUTS = ("package.json", "package-lock.json")


def directory() -> Path:
    """Where the packages are installed."""
    return environments.HOME / "npm"


def modules() -> Path:
    """What Node is told in ``NODE_PATH``."""
    return directory() / "node_modules"


def fingerprint(node: str) -> str:
    """A digest of everything that the packages are installed from."""
    version = subprocess.check_output([node, "--version"])
    return hashlib.sha256(b"\0".join([version, *((SOURCE / name).read_bytes() for name in _INPUTS)])).hexdigest()


def is_complete(digest: str) -> bool:
    """Whether the packages were installed to the end from the inputs that *digest* stands for."""
    marker = directory() / "complete"
    return marker.is_file() and marker.read_text() == digest


def ensure() -> bool:
    """Install the packages unless they are there. Returns whether it did; raises ``Stop`` with npm's words."""
    node, npm = machine.find_node(), machine.find_npm()
    assert node is not None, "the machine was prepared"
    assert npm is not None, "the machine was prepared"
    digest = fingerprint(node)
    with environments.locked():
        if is_complete(digest):
            return False
        shutil.rmtree(directory(), ignore_errors=True)
        directory().mkdir()
        for name in _INPUTS:
            shutil.copy(SOURCE / name, directory())
        # No script of a package is needed, so none is run.
        run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(directory())], quiet=True)
        run([node, "-e", PROBE], environ={**os.environ, "NODE_PATH": str(modules())}, quiet=True)
        (directory() / "complete").write_text(digest)
    return True
