"""A process beside the server that does what the test tells it: a line of words in, a line of JSON out.

Neighbour and attackers are processes of their own, because in one process they would wait for each other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

from tests.house.processes import environ_for
from tests.house.steps import ROOT

Answer = dict[str, Any]


class Helper:
    """The test's side of *process*."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    async def ask(self, *words: str) -> Answer:
        """Say *words* and wait for the answer. Fails with the traceback of what the helper met."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{' '.join(words)}\n".encode())
        self._process.stdin.flush()
        line = b""
        async with trio.lowlevel.FdStream(os.dup(self._process.stdout.fileno())) as output:
            while not line.endswith(b"\n"):
                received = await output.receive_some(65536)
                assert received, f"the helper has ended while it was told {words}"
                line += received
        answer: Answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer


@contextmanager
def helper(module: str, *arguments: int) -> Iterator[Helper]:
    """Start ``python -m tests.attack.<module> ARGUMENTS``; it ends with the block."""
    command = [sys.executable, "-m", f"tests.attack.{module}", *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environ_for(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield Helper(process)
        finally:
            process.kill()


async def obey(orders: dict[str, Callable[..., Awaitable[Answer]]]) -> None:
    """The helper's side: carry out one order after the other until the test has gone."""
    buffer = b""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream:
        async for chunk in stream:
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                name, *words = line.decode().split()
                print(json.dumps(await _answer(orders[name], words)), flush=True)


async def _answer(order: Callable[..., Awaitable[Answer]], words: list[str]) -> Answer:
    try:
        return await order(*words)
    except Exception:  # noqa: BLE001  the boundary of the process: the test gets the text and fails with it
        return {"error": traceback.format_exc()}
