"""The function of a module that starts with the server: how it is imported, and for which world it is written."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from hypha.launch.plan import ModuleEntry

#: The variable of a module that says for what its async functions are written, and what it may say.
BACKEND = "__hypha_backend__"
_BACKENDS = ("asyncio", "trio")

_NUMBERS = count(1)


class Unfit(Exception):
    """The module is not what its entry says, or its connection is over. The text follows the name of the service."""


@dataclass(frozen=True, slots=True)
class Entrypoint:
    """A function, and where it runs."""

    function: Callable[..., Any]
    world: Literal["asyncio", "trio", "thread"]


def find_entrypoint(entry: ModuleEntry, module: ModuleType) -> Entrypoint:
    """The function that *entry* names. Raises :class:`Unfit`."""
    what, names = f"{entry.entrypoint} in {entry.module}", vars(module)
    function, backend = names.get(entry.entrypoint), names.get(BACKEND, "asyncio")
    if not callable(function):
        raise Unfit(f"cannot start: {what} is {'no function' if entry.entrypoint in names else 'not there'}")
    if backend not in _BACKENDS:
        raise Unfit(f"cannot start: {BACKEND} of {entry.module} is {backend!r}; write 'asyncio' or 'trio'")
    if _is_coroutine_function(function):
        return Entrypoint(function, "trio" if backend == "trio" else "asyncio")
    if backend == "trio":
        raise Unfit(f"cannot start: {what} is no async function, as {BACKEND} = 'trio' wants it to be")
    return Entrypoint(function, "thread")


def _is_coroutine_function(function: Callable[..., Any]) -> bool:
    inner = inspect.unwrap(function)
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)


@contextmanager
def findable(module: Path | str) -> Iterator[None]:
    """As long as the block lasts, what stands beside the file *module* can be imported, by its functions, too.

    It comes last on the path, so that it does not hide what the server itself imports.
    """
    if isinstance(module, str):
        yield
        return
    directory = str(module.parent)
    sys.path.append(directory)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):  # the module has changed the path, too
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(directory)]


def load(module: Path | str) -> ModuleType:
    """Run the code of *module*, a file or a dotted name. Blocks. Raises what that raises."""
    if isinstance(module, str):
        return importlib.import_module(module)
    name = f"hypha_module_{next(_NUMBERS)}_{re.sub(r'[^A-Za-z0-9_]', '_', module.stem)}"
    spec = importlib.util.spec_from_file_location(name, module)
    assert spec is not None, "the plan takes files that end in .py"
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # dataclasses and type hints look their module up
    try:
        spec.loader.exec_module(made)
    except BaseException:  # a module may call sys.exit, and half of one must not stay
        unload(made)
        raise
    return made


def unload(module: ModuleType) -> None:
    """Let the next import run its code anew."""
    sys.modules.pop(module.__name__, None)
