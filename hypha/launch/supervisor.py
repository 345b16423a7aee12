"""How a service that starts with the server is watched: when it counts as ready, and what follows when it fails."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from hypha.broker.access import Level
from hypha.errors import HyphaError
from hypha.launch.checks import is_answered
from hypha.launch.plan import Checks

#: Seconds for which a service without checks must live to count as ready.
ALIVE_SECONDS = 1.0
#: Seconds after which the person at the terminal is told what is waited for.
SLOW_SECONDS = 2.0
#: Seconds before the 1st, 2nd, ... new start in a row, and of each further one.
BACK_OFF = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
#: So often in a row a service is started again; the failure after the last one ends the server.
RESTARTS = 10
#: A service that was ready for so many seconds starts the row anew.
CALM_SECONDS = 60.0

_LOOK_SECONDS = 0.05


class LaunchFailed(HyphaError):
    """A service that must be there is not. The server ends with exit code 1."""


class Host(Protocol):
    """The server, as far as what starts with it needs it."""

    @property
    def server_url(self) -> str:
        """The address of the server for programs on this machine. Raises :class:`hypha.errors.ConfigError`."""

    @property
    def inner_url(self) -> str:
        """What the server is called by who reaches it through :meth:`dial`: its address, if it has one."""

    async def dial(self) -> trio.abc.Stream:
        """A connection of this process to its own server. Raises OSError when the server ends."""

    def open_workspace(self, name: str) -> None:
        """Create the workspace *name* if there is none. Raises :class:`hypha.errors.ConfigError`."""

    def issue(self, workspace: str, user: str, level: Level = Level.READ_WRITE) -> tuple[str, str]:
        """A token for *workspace*, and the id with which :meth:`end` is told that its holder has ended."""

    def end(self, token_id: str) -> None:
        """The holder of a token has ended: refuse the token, and let go of who came with it."""

    def offers(self, workspace: str, service: str) -> bool:
        """Whether a service of that id is offered in *workspace* now."""

    def say(self, text: str) -> None:
        """Tell the person at the terminal."""

    def show(self, text: str) -> None:
        """Show lines that a program has printed. Called in threads; may block them."""


class Supervisor(ABC):
    """One service. :meth:`run` is its life."""

    def __init__(self, name: str, workspace: str, checks: Checks, host: Host) -> None:
        self.name = name
        self.workspace = workspace
        #: It has been ready, or the server goes on without it.
        self.settled = trio.Event()
        self._checks = checks
        self._host = host
        self._runs = self._retired = False
        #: trio time since which it is ready, or was in the life that has just ended.
        self._ready_since: float | None = None

    @property
    def ready(self) -> bool:
        """Whether it has become ready, runs, and offers what it should now."""
        return self._runs and self.was_ready and not self._missing()

    @property
    def was_ready(self) -> bool:
        """Whether it has become ready in this life, or in the one that has just ended."""
        return self._ready_since is not None

    def retire(self) -> None:
        """The server is about to end: whatever happens to the service from now on is no failure."""
        self._retired = True

    @abstractmethod
    async def live(self) -> str:
        """Start the service and stay as long as it runs. Returns why it failed, in words that begin with its name."""

    async def begin(self) -> None:
        """Wait until the service has begun: until then it is not ready, and without checks it is from then on."""
        if not self._has_checks:
            await trio.sleep(ALIVE_SECONDS)

    @property
    def beginning(self) -> str | None:
        """What keeps the service from having begun, in words, when there is something to be said."""
        return None

    async def run(self) -> None:
        """Keep the service running as its entry says. Returns when it has ended and the server goes on without it.

        Raises :class:`LaunchFailed` when it must not.
        """
        row = 0
        while not self._retired:
            self._ready_since = None
            failure = await self.live()
            if self._retired:
                return
            since = self._ready_since
            calm = since is not None and trio.current_time() - since >= CALM_SECONDS
            if self._checks.on_failure == "stop":
                raise LaunchFailed(failure)
            if self._checks.on_failure == "warn":
                self._host.say(failure)
                self.settled.set()
                return
            self.settled.set()
            row = 1 if calm else row + 1
            if row > RESTARTS:
                raise LaunchFailed(f"{failure}\n{self.name} has failed {row} times in a row; giving up")
            seconds = BACK_OFF[min(row, len(BACK_OFF)) - 1]
            self._host.say(f"{failure}\n{self.name} starts again in {seconds:g} s")
            await trio.sleep(seconds)

    async def attend(self, ended: Callable[[], Awaitable[None]]) -> str | None:
        """Say when the service is ready, and wait until it has *ended*; None then.

        When it is not ready in time, return what is missing; where a warning is enough, wait on all the same.
        """
        self._runs = True
        try:
            return await self._attend(ended)
        finally:
            self._runs = False

    async def _attend(self, ended: Callable[[], Awaitable[None]]) -> str | None:
        began = trio.current_time()
        with trio.move_on_after(self._patience) as patience:
            if not await _unless(ended, self._become_ready):
                return None
        # Unless it is there in the last moment.
        if patience.cancelled_caught and (self.beginning or self._missing() or self._checks.url):
            failure = f"{self._lack()} within {self._checks.timeout:g} s"
            if self._checks.on_failure != "warn":
                return failure
            self._host.say(f"{self.name} {failure}; the server goes on, and so does {self.name}")
            self.settled.set()
            if not await _unless(ended, self._wait_for_checks):
                return None
        self._ready_since = trio.current_time()
        self.settled.set()
        self._host.say(f"{self.name} is ready after {self._ready_since - began:.1f} s")
        await ended()
        return None

    @property
    def _has_checks(self) -> bool:
        return bool(self._checks.services) or self._checks.url is not None

    @property
    def _patience(self) -> float:
        return self._checks.timeout if self._has_checks else float("inf")

    async def _become_ready(self) -> None:
        with trio.move_on_after(SLOW_SECONDS):
            await self._wait_for_checks()
            return
        self._host.say(f"waiting for {self.name}: {self._wanted()}")
        await self._wait_for_checks()

    async def _wait_for_checks(self) -> None:
        await self.begin()
        while self._missing():  # noqa: ASYNC110  the registry tells clients of changes, and nobody else
            await trio.sleep(_LOOK_SECONDS)
        while self._checks.url is not None and not await is_answered(self._checks.url):  # noqa: ASYNC110  as above
            await trio.sleep(_LOOK_SECONDS)

    def _missing(self) -> list[str]:
        return [name for name in self._checks.services if not self._host.offers(self.workspace, name)]

    def _wanted(self) -> str:
        missing = self._missing()
        if self.beginning or not self._has_checks:
            wanted = self.beginning or "its function to return"
        elif missing:
            wanted = f"{'services' if len(missing) > 1 else 'service'} {', '.join(missing)}"
        else:
            wanted = f"an answer of {self._checks.url}"
        return f"{wanted} ({self._checks.timeout:g} s)" if self._has_checks else wanted

    def _lack(self) -> str:
        missing = self._missing()
        if self.beginning:
            return f"did not finish {self.beginning}"
        if missing:
            return f"did not offer {' and '.join(missing)} in the workspace {self.workspace}"
        return f"did not answer at {self._checks.url}"


async def _unless(ended: Callable[[], Awaitable[None]], work: Callable[[], Awaitable[None]]) -> bool:
    """Do *work* until *ended* returns. Whether the work was done before."""
    done = False
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await ended()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        await work()
        done = True
        nursery.cancel_scope.cancel()
    return done


def with_tail(text: str, tail: Sequence[str]) -> str:
    """*text* with the last lines that a program has printed."""
    if not tail:
        return f"{text}; it has printed nothing"
    return "\n".join([f"{text}; it last printed:", *(f"  {line}" for line in tail)])
