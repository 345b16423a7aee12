"""One app that runs."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import trio

from hypha.apps.browser import Page
from hypha.apps.catalog import Installed
from hypha.apps.log import Log
from hypha.apps.progress import Progress
from hypha.broker.access import Principal
from hypha.errors import HyphaError, PeerGone


class RunningApp:
    """An app from its launch to its end. It is data, and an end that others can ask for; its task is elsewhere.

    *owner*: who has started it. *idle_seconds*: how long nobody need call it. *waits_for*: the service that it must
    offer to be ready; None when it is ready as soon as its script has run.
    """

    def __init__(
        self,
        installed: Installed,
        client_id: str,
        owner: Principal,
        waits_for: str | None,
        idle_seconds: float,
        lines: int,
        progress: Progress,
    ) -> None:
        self.installed = installed
        self.workspace = installed.workspace
        self.client_id = client_id
        self.owner = owner
        self.waits_for = waits_for
        self.idle_seconds = idle_seconds
        self.log = Log(lines)
        self.progress = progress
        #: What stands in the address of its page. Whoever knows it sees the source.
        self.key = secrets.token_urlsafe(24)
        self.html = ""
        self.page: Page | None = None
        self.scope = trio.CancelScope()
        #: It is ready, or is over and has a *failure*.
        self.settled = trio.Event()
        self.over = trio.Event()
        self.ready = False
        self.failure: HyphaError | None = None
        self.reason = "it was stopped"
        #: Whether a client of its owner was there, so that its going ends the app.
        self.was_accompanied = False
        self._began = self.active_since = trio.current_time()
        self._delivered = 0
        #: Calls of the server's own, which are no use of it: those that go on now, and all.
        self._asking = self._asked = 0

    def write(self, kind: str, text: str) -> None:
        """A line of its console."""
        self.log.add(kind, text)

    def end(self, reason: str) -> None:
        """Let it end. Returns at once."""
        if not self.settled.is_set():
            self.failure = self.failure or PeerGone(f"Failed to start app: {reason}")
        self.reason = reason
        self.scope.cancel()

    def settle(self) -> None:
        """It is ready."""
        self.ready = True
        self.active_since = trio.current_time()
        self.settled.set()
        self.progress.success(f"ready after {self.active_since - self._began:.1f} s")

    def tell_end(self) -> None:
        """Say that it is over, or that it has not become ready."""
        if self.ready:
            self.progress.over(self.reason)
        else:
            self.progress.error(str(self.failure or self.reason))

    @contextmanager
    def asked_by_us(self) -> Iterator[None]:
        """Around a call of the server's own to it."""
        self._asking, self._asked = self._asking + 1, self._asked + 1
        try:
            yield
        finally:
            self._asking -= 1

    def note_use(self, calls: int, delivered: int, now: float) -> None:
        """How many calls its client works on, and how many messages that was given so far."""
        delivered -= self._asked
        if calls > self._asking or delivered != self._delivered:
            self._delivered, self.active_since = delivered, now

    def describe(self, urls: Mapping[str, str]) -> dict[str, Any]:
        """What callers are told (``protocol.md`` 10.1)."""
        return {
            "id": self.client_id,
            "session_id": f"{self.workspace}/{self.client_id}",
            "app_id": self.installed.id,
            "name": self.installed.manifest["name"],
            "workspace": self.workspace,
            "status": "connected" if self.ready else "connecting",
            "watch": False,
            **urls,
        }
