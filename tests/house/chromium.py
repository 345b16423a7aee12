"""A browser for tests, driven over its DevTools protocol through the websocket client that hypha itself depends on.

Nothing stands between the test and the browser: it is a child of the test, dies with it, and needs no second package
that has to fit its version.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

from tests.house import processes

#: The largest answer, in bytes.
_MAX_MESSAGE = 32 * 1024 * 1024

_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
    "--password-store=basic",
    "--remote-debugging-port=0",
)


class PageError(AssertionError):
    """A script threw, a command failed, or the browser has gone. The text is the browser's own."""


@dataclass(eq=False)
class _Command:
    answered: trio.Event = field(default_factory=trio.Event)
    answer: dict[str, Any] = field(default_factory=dict)


class Browser:
    """A running browser; :meth:`read` must run all the time."""

    def __init__(self, websocket: WebSocketConnection) -> None:
        self._websocket = websocket
        self._numbers = count(1)
        self._commands: dict[int, _Command] = {}
        self._pages: dict[str, Page] = {}

    async def read(self) -> None:
        """Hand answers to their commands and events to their pages, until the browser goes."""
        try:
            while True:
                message = json.loads(await self._websocket.get_message())
                if "id" in message:
                    command = self._commands.pop(message["id"])
                    command.answer = message
                    command.answered.set()
                elif message.get("sessionId") in self._pages:
                    self._pages[message["sessionId"]].take(message["method"], message["params"])
        except ConnectionClosed as reason:
            for command in self._commands.values():
                command.answer = {"error": {"message": f"the browser has gone: {reason}"}}
                command.answered.set()

    async def command(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """Send a command and return its result. Raises :class:`PageError`."""
        number = next(self._numbers)
        command = self._commands[number] = _Command()
        message = {"id": number, "method": method, "params": parameters}
        await self._websocket.send_message(json.dumps(message | ({"sessionId": session} if session else {})))
        await command.answered.wait()
        if "error" in command.answer:
            raise PageError(f"{method}: {command.answer['error']['message']}")
        return command.answer["result"]

    async def open_apart(self, url: str) -> Page:
        """The same, in a browser of somebody else's: it shares no cookies."""
        context = (await self.command("Target.createBrowserContext"))["browserContextId"]
        return await self.open(url, browserContextId=context)

    async def open(self, url: str, **where: str) -> Page:
        """A new tab that has loaded *url*, a page without problems so far."""
        target = (await self.command("Target.createTarget", url="about:blank", **where))["targetId"]
        session = (await self.command("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            await self.command(f"{domain}.enable", session)
        await page.go(url)
        return page


class Page:
    """One tab. *problems* are the errors and warnings of its console, and what it has thrown and nobody caught."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self._loaded = trio.Event()
        self._going = ""
        #: The address of what was loaded last.
        self.at = ""
        self.problems: list[str] = []

    def take(self, event: str, details: dict[str, Any]) -> None:
        """Note an event."""
        if event == "Page.frameNavigated" and "parentId" not in details["frame"]:
            self._going = details["frame"]["url"]
        elif event == "Page.loadEventFired":
            self.at = self._going
            self._loaded.set()
        elif event == "Runtime.exceptionThrown":
            self.problems.append(_thrown(details["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and details["type"] in {"error", "warning", "assert"}:
            words = [str(item.get("value", item.get("description"))) for item in details["args"]]
            self.problems.append(f"console.{details['type']}: {' '.join(words)}")
        elif event == "Log.entryAdded" and details["entry"]["level"] in {"error", "warning"}:
            self.problems.append(f"{details['entry']['text']} {details['entry'].get('url', '')}")

    async def go(self, url: str) -> None:
        """Leave for *url* and wait until it is loaded. Raises :class:`PageError`."""
        self._loaded = trio.Event()
        answer = await self._browser.command("Page.navigate", self._session, url=url)
        if answer.get("errorText"):
            raise PageError(f"{url}: {answer['errorText']}")
        await self._loaded.wait()

    async def evaluate(self, expression: str, *, as_person: bool = False) -> Any:
        """The value of a JavaScript expression, as JSON; a promise is awaited. Raises :class:`PageError`.

        *as_person*: as if somebody had clicked, without which no window opens.
        """
        answer = await self._browser.command(
            "Runtime.evaluate",
            self._session,
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=as_person,
        )
        if "exceptionDetails" in answer:
            raise PageError(_thrown(answer["exceptionDetails"]))
        return answer["result"].get("value")

    async def leave(self, expression: str) -> None:
        """Do what leads to another page, and wait until that is loaded."""
        self._loaded = trio.Event()
        await self.evaluate(expression)
        await self._loaded.wait()

    async def leave_for(self, expression: str, address: str) -> None:
        """Do what leads to another page, and perhaps by itself on to others, until one is loaded at such an *address*.

        *address*: a regular expression for the whole of it.
        """
        await self.leave(expression)
        while not re.fullmatch(address, self.at):
            self._loaded = trio.Event()
            await self._loaded.wait()

    async def type(self, text: str) -> None:
        """Type *text* where the focus is."""
        await self._browser.command("Input.insertText", self._session, text=text)

    async def press(self, key: str, *, leaves: bool = False) -> None:
        """Press ``Tab``, ``Enter`` or the space bar. With *leaves* it leads to another page, which is waited for."""
        code, text = _KEYS[key]
        self._loaded = trio.Event()
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self._browser.command("Input.dispatchKeyEvent", self._session, type="keyDown", text=text, **pressed)
        await self._browser.command("Input.dispatchKeyEvent", self._session, type="keyUp", **pressed)
        if leaves:
            await self._loaded.wait()

    async def show(self, width: int, height: int, *, dark: bool = False) -> None:
        """Become a window of that size, in which things are light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self._browser.command("Emulation.setDeviceMetricsOverride", self._session, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self._browser.command("Emulation.setEmulatedMedia", self._session, features=[scheme])


#: The keys that tests press: their number, and what they write.
_KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}


def _thrown(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])


@asynccontextmanager
async def launch(nursery: trio.Nursery, executable: str, profile: Path) -> AsyncIterator[Browser]:
    """A browser with a fresh *profile*, killed at the end of the block with all its processes."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # as root Chromium starts only without
    command = [executable, *_FLAGS, *sandbox, f"--user-data-dir={profile}", "about:blank"]
    async with processes.start(nursery, command, cwd=profile.parent) as running:
        url = (await running.wait_for(r"DevTools listening on (ws://\S+)", "stderr"))[1]
        async with open_websocket_url(url, max_message_size=_MAX_MESSAGE) as websocket:
            browser = Browser(websocket)
            nursery.start_soon(browser.read)
            yield browser
