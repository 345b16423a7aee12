"""A server and programs without processes: what :mod:`hypha.launch` talks to, as a test wants it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import trio

from hypha.broker.access import Level
from hypha.errors import ConfigError
from hypha.launch.process import Child


@dataclass
class FakeHost:
    """A :class:`hypha.launch.supervisor.Host`. *offered* and *workspaces* are what it has."""

    server_url: str = "http://127.0.0.1:9527"
    offered: set[tuple[str, str]] = field(default_factory=set)
    workspaces: set[str] = field(default_factory=lambda: {"public"})
    living: dict[str, str] = field(default_factory=dict)
    issued: list[tuple[str, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    shown: str = ""

    def open_workspace(self, name: str) -> None:
        if name == "reserved":
            raise ConfigError("the workspace is reserved")
        self.workspaces.add(name)

    @property
    def inner_url(self) -> str:
        return self.server_url

    async def dial(self) -> trio.abc.Stream:
        raise ConnectionRefusedError("the server is closed")

    def issue(self, workspace: str, user: str, level: Level = Level.READ_WRITE) -> tuple[str, str]:
        assert workspace in self.workspaces
        self.issued.append((workspace, user))
        token = f"token-{len(self.issued)}"
        self.living[f"id-of-{token}"] = token
        return token, f"id-of-{token}"

    def end(self, token_id: str) -> None:
        del self.living[token_id]

    def offers(self, workspace: str, service: str) -> bool:
        return (workspace, service) in self.offered

    def say(self, text: str) -> None:
        self.said.append(text)

    def show(self, text: str) -> None:
        self.shown += text


@dataclass(eq=False)
class Program:
    """A program that runs until :meth:`exit`, or until its block ends."""

    arguments: Sequence[str]
    environ: Mapping[str, str]
    cwd: Path | None
    ending: str = "was killed by SIGTERM"
    tail: list[str] = field(default_factory=list)
    running: bool = True
    ended: trio.Event = field(default_factory=trio.Event)

    async def wait(self) -> None:
        await self.ended.wait()

    def exit(self, code: int, *printed: str) -> None:
        self.ending, self.tail = f"ended with exit code {code}", list(printed)
        self.ended.set()


class Programs:
    """Stands for :func:`hypha.launch.process.running`. *on_start* is told of every program; it may raise OSError."""

    def __init__(self, on_start: Callable[[Program], object] = lambda program: None) -> None:
        self.started: list[Program] = []
        self._on_start = on_start
        self._news = trio.Event()

    @property
    def running(self) -> list[Program]:
        return [program for program in self.started if program.running]

    def __call__(
        self, arguments: Sequence[str], *, environ: Mapping[str, str], cwd: Path | None, **_: Any
    ) -> AbstractAsyncContextManager[Child]:
        return self._run(Program(arguments, environ, cwd))

    @asynccontextmanager
    async def _run(self, program: Program) -> AsyncIterator[Child]:
        self._on_start(program)
        self.started.append(program)
        news, self._news = self._news, trio.Event()
        news.set()
        try:
            yield cast(Child, program)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.1)  # the end takes its time, too
            program.running = False

    async def nth(self, number: int) -> Program:
        """The program that is started as the *number*-th, the first being 0."""
        while len(self.started) <= number:
            await self._news.wait()
        return self.started[number]
