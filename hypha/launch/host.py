"""The server as what starts with it sees it: a :class:`hypha.launch.supervisor.Host` made of the broker."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import trio

from hypha.broker.access import ROOT, Level, Principal, itself
from hypha.broker.broker import Broker
from hypha.errors import ConfigError, HyphaError

_STANDARD_ERROR = 2
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  compared with, not bound


class Door(Protocol):
    """The way into the server: where it listens, and what opens a connection from inside this process."""

    @property
    def sockets(self) -> Sequence[Any]: ...
    @property
    def is_secure(self) -> bool: ...

    async def connect(self) -> trio.abc.Stream: ...


class BrokerHost:
    """*door*: how the server is reached. *say* tells the person at the terminal."""

    def __init__(self, broker: Broker, door: Door, say: Callable[[str], None]) -> None:
        self._broker = broker
        self._door = door
        self.say = say

    @property
    def server_url(self) -> str:
        """The nearest address with a port. Raises :class:`ConfigError` when the server has none."""
        url = self._url("https" if self._door.is_secure else "http")
        if url is None:
            raise ConfigError(
                "programs that start with the server need a TCP address to reach it: listen on a port, too"
            )
        return url

    @property
    def inner_url(self) -> str:
        # The door itself speaks no TLS, whatever the server does where it listens.
        return self._url("http") or f"http://localhost{self._broker.config.base_path}"

    async def dial(self) -> trio.abc.Stream:
        return await self._door.connect()

    def _url(self, scheme: str) -> str | None:
        for sock in self._door.sockets:
            if sock.family in {trio.socket.AF_INET, trio.socket.AF_INET6}:
                host, port = sock.getsockname()[:2]
                host = _ANY.get(host, host)
                shown = f"[{host}]" if ":" in host else host
                return f"{scheme}://{shown}:{port}{self._broker.config.base_path}"
        return None

    def open_workspace(self, name: str) -> None:
        if name not in self._broker.registry.workspaces:
            try:
                self._broker.registry.create_workspace(name, owners=[ROOT.id], persistent=True)
            except HyphaError as error:
                raise ConfigError(f"services cannot start in the workspace {name}: {error}") from None

    def issue(self, workspace: str, user: str, level: Level = Level.READ_WRITE) -> tuple[str, str]:
        place = self._broker.registry.workspaces.get(workspace)
        principal = Principal(
            id=user,
            is_anonymous=False,
            parent=ROOT.id,
            grants={workspace: level},
            home=workspace,
            granted_by={} if place is None else {workspace: (itself(place),)},
        )
        return self._broker.tokens.issue_living(principal)

    def end(self, token_id: str) -> None:
        self._broker.tokens.end(token_id)
        for session in list(self._broker.registry.sessions()):
            if token_id in session.principal.tokens:
                session.transport.close(1008, "the program that this token was for has ended")
                self._broker.leave(session, clean=True)

    def offers(self, workspace: str, service: str) -> bool:
        return any(found.workspace == workspace for found in self._broker.registry.named(service))

    def show(self, text: str) -> None:
        # Not by sys.stderr: a thread that waits in there for a stopped terminal would keep its lock to the very end.
        # Line by line: pipe(7) keeps up to 4096 bytes together, and other programs print, too.
        with suppress(OSError):  # nobody reads any more: the server is needed all the same
            for line in text.encode(errors="replace").splitlines(keepends=True):
                left = memoryview(line)
                while left:
                    left = left[os.write(_STANDARD_ERROR, left) :]
