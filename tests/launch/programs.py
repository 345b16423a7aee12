"""Small programs that the tests of this directory start, and what is left of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import trio

#: Ignores SIGTERM, and says so before it sleeps.
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(99)"
)


def python(code: str) -> list[str]:
    """The command that runs *code*. Without the site packages, which makes it start in half of the time."""
    return [sys.executable, "-I", "-S", "-c", code]


def is_there(pid: int) -> bool:
    """Whether the process *pid* is there, zombies included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_alive(pid: int) -> bool:
    """Whether the process *pid* runs: a zombie whose parent does not look does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Screen:
    """What a child's output is shown on. Lines arrive in threads; a test waits for them in trio."""

    def __init__(self) -> None:
        self.text = ""
        self._news = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def show(self, text: str) -> None:
        self._token.run_sync_soon(self._take, text)

    def _take(self, text: str) -> None:
        self.text += text
        news, self._news = self._news, trio.Event()
        news.set()

    async def wait_for(self, part: str) -> None:
        """Wait until *part* was shown. Fails after 20 seconds."""
        with trio.fail_after(20):
            while part not in self.text:
                await self._news.wait()


async def gone(pid: int) -> None:
    """Wait until the process *pid*, whoever its parent is, does not run any more. Fails after 5 seconds."""
    with trio.fail_after(5):
        while is_alive(pid):  # noqa: ASYNC110  nobody tells of the ends of other processes' children
            await trio.sleep(0.01)
