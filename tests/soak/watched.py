"""A server that tells what it holds: ``python watched.py --port 0 ...`` answers SIGUSR1 with a line of JSON.

With SIGUSR2 it stands still for :data:`MOMENT` seconds, as a server does that has a step which takes so long.

It is the worker of ``python -m hypha.server`` in one process, without a parent; SIGTERM ends it. What it holds is
found from outside: by the garbage collector, by trio's tree of tasks and in ``/proc``. No table is named here, so that
one added later is watched too.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import os
import signal
import sys
import time
from abc import ABCMeta
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

from hypha.banner import announce
from hypha.command import parse
from hypha.listen import open_sockets
from hypha.worker import Server, configure_logging

_CONTAINERS = (dict, set, list, deque)
MOMENT = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")


def holdings() -> dict[str, Any]:
    """Everything that could grow, after a collection of garbage.

    Resident memory in bytes: ``rss`` is from before the collection, ``used`` is without what the C library keeps for
    the next message.
    """
    rss = _resident()
    gc.unfreeze()  # what the start has made can grow, too
    for item in gc.get_objects():
        # What is remembered to be faster is bounded, and not a leak.
        if isinstance(item, functools._lru_cache_wrapper):
            item.cache_clear()
        elif isinstance(item, ABCMeta):
            item._abc_caches_clear()  # type: ignore[attr-defined]  # of no stub, but in the documentation of abc
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    objects = gc.get_objects()
    return {
        "rss": rss,
        "used": _resident(),
        "process": {name: len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task")},
        "tasks": dict(Counter(_tasks())),
        "tables": _tables(objects),
        "objects": dict(Counter(f"{type(item).__module__}.{type(item).__qualname__}" for item in objects)),
    }


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _tasks() -> Iterator[str]:
    """The name of every task of this trio run."""
    root = trio.lowlevel.current_root_task()
    todo = [root] if root else []
    while todo:
        task = todo.pop()
        yield task.name
        todo.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)


def _tables(objects: list[Any]) -> dict[str, int]:
    """How many instances each of our classes has, and how many items the containers in their attributes hold."""
    found: Counter[str] = Counter()
    for item in objects:
        kind = type(item)
        if str(kind.__module__).startswith("hypha."):
            found[kind.__qualname__] += 1
            for name, value in _attributes(item):
                if isinstance(value, _CONTAINERS):
                    found[f"{kind.__qualname__}.{name}"] += len(value)
    for name, module in list(sys.modules.items()):
        if name.startswith("hypha."):
            for key, value in vars(module).items():
                if isinstance(value, _CONTAINERS):
                    found[f"{name}.{key}"] += len(value)
    return dict(found)


def _attributes(item: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(item, "__dict__", {}).items()
    for kind in type(item).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if hasattr(item, name):
                yield name, getattr(item, name)


async def _obey(server: Server) -> None:
    with trio.open_signal_receiver(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM) as signals:
        async for number in signals:
            if number == signal.SIGTERM:
                server.drain()
                await trio.sleep_forever()
            if number == signal.SIGUSR2:
                time.sleep(MOMENT)  # noqa: ASYNC251  this is the step that blocks
            else:
                print(json.dumps(holdings()), flush=True)


def main() -> int:
    """Serve as the command line says; the exit code."""
    command = parse(sys.argv[1:], os.environ)
    configure_logging(command.config.log_level)
    sockets = open_sockets(command.config, ())

    def on_ready(_: str | None) -> None:
        announce(command.config, sockets, 0.0)

    return Server(command.config, [sock.fileno() for sock in sockets], on_ready).run(_obey)


if __name__ == "__main__":
    sys.exit(main())
