"""The browser in which apps run: a program of ours, to which Playwright attaches from a thread of its own.

So its end is ours, whatever happens to Playwright: nothing of it is left behind when the server is cancelled, also in
the middle of its start. It is started when the first app needs it, and again after it has ended.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import trio

from hypha.aio import AioThread
from hypha.apps.found import unwrapped
from hypha.errors import CallTimeout, HyphaError, PeerGone
from hypha.launch.process import Child, running

if TYPE_CHECKING:
    from playwright.async_api import Browser as PlaywrightBrowser
    from playwright.async_api import BrowserContext, ConsoleMessage, Playwright
    from playwright.async_api import Page as PlaywrightPage

#: Seconds for the start of the browser, for a new page, for closing one, and for a picture of one.
START_SECONDS, OPEN_SECONDS, CLOSE_SECONDS, PICTURE_SECONDS = 20.0, 10.0, 5.0, 15.0
#: MiB that the JavaScript of one app may hold.
HEAP_MIB = 512
#: Seconds for which a browser without apps is kept for the next one.
UNUSED_SECONDS = 300.0

_ADDRESS = re.compile(r"DevTools listening on (ws://\S+)")
_CALLED = re.compile(r"^[A-Za-z]+\.[A-Za-z_]+: ")
_MESSAGE_LENGTH = 2000
_FLAGS = (
    "--headless",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",  # small in containers
    "--disable-extensions",
    "--disable-quic",
    "--disable-sync",
    "--hide-scrollbars",
    "--mute-audio",
    # Nobody looks at the pages, which is no reason to slow them down.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    # Everything goes through the gate, also to this machine, and nothing past it.
    "--proxy-bypass-list=<-loopback>",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    f"--js-flags=--max-old-space-size={HEAP_MIB}",
)
_VIEWPORT = {"width": 1280, "height": 720}


class Sink(Protocol):
    """The app of a page, as the browser tells it what happens."""

    def write(self, kind: str, text: str) -> None:
        """A line of the console. Called in the thread of Playwright."""

    def end(self, reason: str) -> None:
        """The page is gone. Called in trio."""


class BrowserFailed(HyphaError):
    """The browser did not start, or did not do what it was told."""


class Page:
    """One page in a context of its own. Made by :meth:`Browser.open`."""

    def __init__(self, thread: AioThread, page: PlaywrightPage) -> None:
        self._thread = thread
        self._page = page

    async def go(self, url: str) -> None:
        """Load *url*. Raises :class:`BrowserFailed`."""
        answer = await self._ask(self._page.goto, url)
        if answer is None or not answer.ok:
            raise BrowserFailed(f"the page of the app was answered with {answer and answer.status}")

    async def call(self, function: str, argument: object) -> None:
        """Call a function of the page and wait for its end. Raises :class:`BrowserFailed` with its error."""
        await self._ask(self._page.evaluate, f"(argument) => {function}(argument)", argument)

    async def picture(self) -> bytes:
        """What is to be seen, as PNG. Raises :class:`BrowserFailed`, and :class:`CallTimeout` for a page that hangs."""
        with trio.move_on_after(PICTURE_SECONDS):
            picture: bytes = await self._ask(self._page.screenshot, type="png")
            return picture
        raise CallTimeout(f"the page of the app gave no picture for {PICTURE_SECONDS:g} s")

    async def _ask(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await _ask(self._thread, function, *args, **kwargs)


class _Life:
    """One process of the browser. *pages*: those in it, by their sinks."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.address = trio.Event()
        self.url = ""
        #: It is attached to, or has failed.
        self.settled = trio.Event()
        self.failure: HyphaError | None = None
        self.browser: PlaywrightBrowser | None = None
        self.sinks: set[Sink] = set()
        self.unused_since = trio.current_time()

    def announce(self, url: str) -> None:
        """The address at which it is spoken to."""
        self.url = url
        self.address.set()


class Browser:
    """The one browser of a server. *find* gives its path, *directory* is for its profiles, *say* tells the terminal."""

    def __init__(
        self,
        find: Callable[[], str],
        directory: Path,
        environ: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self._find = find
        self._directory = directory.absolute()  # for a program whose home it becomes
        self._environ = environ
        self._say = say
        self._life: _Life | None = None
        self._wanted = trio.Event()
        self._playwright: Playwright | None = None
        self._thread: AioThread

    async def run(self, proxy_port: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the browser whenever it is needed, until this is cancelled. Pages reach what the proxy lets through."""
        shutil.rmtree(self._directory, ignore_errors=True)  # profiles that a crash has left behind
        async with AioThread("server-apps") as self._thread:
            try:
                task_status.started()
                while True:
                    await self._wanted.wait()
                    self._wanted = trio.Event()
                    await self._one_life(proxy_port)
            finally:
                if self._playwright is not None:
                    with trio.move_on_after(CLOSE_SECONDS, shield=True), suppress(HyphaError):
                        await _ask(self._thread, self._playwright.stop)

    def sweep(self, now: float) -> None:
        """End a browser that nobody has used for long. *now* is trio time."""
        life = self._life
        if life is not None and not life.sinks and now - life.unused_since > UNUSED_SECONDS:
            life.scope.cancel()

    @property
    def is_up(self) -> bool:
        """Whether it runs and opens pages."""
        return self._life is not None and self._life.browser is not None

    @property
    def contexts(self) -> int:
        """How many apps have a part of the browser now."""
        life = self._life
        return len(life.browser.contexts) if life is not None and life.browser is not None else 0

    # --- its lives --------------------------------------------------------------------------------------------

    async def _one_life(self, proxy_port: int) -> None:
        life = self._life
        assert life is not None, "it is wanted"
        reason = "the browser has ended"
        try:
            with life.scope:
                reason = await self._live(life, proxy_port)
                self._say(f"server apps: {reason}; the next app starts a new one")
        except (HyphaError, OSError) as error:
            reason = f"the browser cannot be started: {error}"
            self._say(reason)
        finally:
            self._let_go(life, reason)

    def _let_go(self, life: _Life, reason: str) -> None:
        """The browser has ended: so have the apps in it, and the next one starts another."""
        if self._life is life:
            self._life = None
        life.failure = BrowserFailed(reason)
        life.settled.set()
        for sink in list(life.sinks):
            sink.end(reason)

    async def _live(self, life: _Life, proxy_port: int) -> str:
        """From the start of the process to its end, by itself or from outside; returns how it ended."""
        executable = unwrapped(self._find())
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        profile = Path(tempfile.mkdtemp(dir=self._directory))
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # as root Chromium starts only without
        proxy = f"--proxy-server=http://127.0.0.1:{proxy_port}"
        command = [executable, *_FLAGS, *sandbox, proxy, f"--user-data-dir={profile}", "about:blank"]
        # The parent of the server ends what is left of a worker that was killed, and knows it by this variable.
        environ = {**self._environ, "HOME": str(profile), "HYPHA_TOKEN": ""}
        failure: HyphaError | None = None
        try:
            async with running(
                command, name="browser", environ=environ, cwd=None, show=partial(_notice, life.announce)
            ) as child:
                try:
                    await self._attach(life, child)
                    await child.wait()
                    self._let_go(life, "the browser has ended")  # what follows takes its time
                except HyphaError as error:  # raised behind the block, which would put it into a group
                    failure = error
            if failure is not None:
                raise failure
            return f"the browser {child.ending}"
        finally:
            with trio.CancelScope(shield=True):  # some milliseconds, for hundreds of files
                await trio.to_thread.run_sync(partial(shutil.rmtree, profile, ignore_errors=True))

    async def _attach(self, life: _Life, child: Child) -> None:
        with trio.move_on_after(START_SECONDS) as patience:
            await _first(life.address.wait, child.wait)
            if not life.url:
                said = f": {child.tail[-1]}" if child.tail else ""
                raise BrowserFailed(f"it ended at once{said}")
            playwright = await self._attached_playwright()
            life.browser = await _ask(self._thread, playwright.chromium.connect_over_cdp, life.url)
        if patience.cancelled_caught:
            raise BrowserFailed(f"it was not ready after {START_SECONDS:g} s")
        life.unused_since = trio.current_time()
        life.settled.set()

    async def _attached_playwright(self) -> Playwright:
        if self._playwright is None:
            from playwright.async_api import async_playwright  # an extra, and slow to import

            # Not cancelled half-way: nobody else would end what it starts.
            with trio.move_on_after(START_SECONDS, shield=True):
                self._playwright = await _ask(self._thread, async_playwright().start)
            if self._playwright is None:
                raise BrowserFailed("Playwright does not start")
        return self._playwright

    # --- its pages --------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, sink: Sink) -> AsyncIterator[Page]:
        """A page in a context of its own, closed at the end of the block. Starts the browser when there is none.

        Raises :class:`BrowserFailed`. When the browser does not close the page, it is ended, with all other pages.
        """
        life = await self._alive(sink)
        context: BrowserContext | None = None
        try:
            assert life.browser is not None, "it is attached to"
            # Not cancelled half-way: nobody else would close what has been opened.
            with trio.move_on_after(OPEN_SECONDS, shield=True):
                context = await _ask(
                    self._thread,
                    life.browser.new_context,
                    accept_downloads=False,
                    permissions=[],
                    service_workers="block",
                    viewport=_VIEWPORT,
                )
            if context is None:
                life.scope.cancel()
                raise BrowserFailed("the browser opens no page any more, and is started anew")
            yield Page(self._thread, await _ask(self._thread, _open_page, context, self._thread, sink))
        finally:
            if context is not None:
                await self._close(life, context)
            life.sinks.discard(sink)
            life.unused_since = trio.current_time()

    async def _alive(self, sink: Sink) -> _Life:
        """The life of the browser, once that is attached to; the sink is entered into it."""
        life = self._life
        if life is None:
            self._find()  # says what to do when there is none
            life = self._life = _Life()
            self._wanted.set()
        life.sinks.add(sink)
        try:
            await life.settled.wait()
            if life.failure is not None:
                raise life.failure
        except BaseException:  # cancelled, too: who does not wait any more must not keep the browser
            life.sinks.discard(sink)
            raise
        return life

    async def _close(self, life: _Life, context: BrowserContext) -> None:
        if self._life is not life:
            return  # the browser has ended, and the context with it
        with trio.move_on_after(CLOSE_SECONDS, shield=True) as patience, suppress(HyphaError):
            await _ask(self._thread, context.close)
        if patience.cancelled_caught:
            life.scope.cancel()


async def _open_page(context: BrowserContext, thread: AioThread, sink: Sink) -> PlaywrightPage:
    """In the loop: the page of an app, whose events go to *sink*. A handler that raised would be the last to hear."""
    page = await context.new_page()

    def on_console(message: ConsoleMessage) -> None:
        sink.write(message.type, message.text)

    def on_error(error: object) -> None:
        sink.write("error", str(error))

    def on_crash(_: object) -> None:
        with suppress(PeerGone):
            thread.to_trio(sink.end, "its page has crashed")

    async def on_page(other: PlaywrightPage) -> None:
        from playwright.async_api import Error

        with suppress(Error):
            await other.close()  # one page for each app

    page.on("console", on_console)
    page.on("pageerror", on_error)
    page.on("crash", on_crash)
    context.on("page", on_page)
    return page


async def _ask(thread: AioThread, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function of Playwright. Raises :class:`BrowserFailed` with its words."""
    from playwright.async_api import Error

    try:
        return await thread.run(function, *args, **kwargs)
    except Error as error:
        raise BrowserFailed(_CALLED.sub("", error.message)[:_MESSAGE_LENGTH]) from None


async def _first(*waits: Callable[[], Any]) -> None:
    """Wait for the first of several."""
    async with trio.open_nursery() as nursery:

        async def wait(one: Callable[[], Any]) -> None:
            await one()
            nursery.cancel_scope.cancel()

        for one in waits:
            nursery.start_soon(wait, one)


def _notice(announce: Callable[[str], None], text: str) -> None:
    """Look for the address in what the browser prints, which is otherwise of no use. Called in threads."""
    match = _ADDRESS.search(text)
    if match:
        with suppress(trio.RunFinishedError, trio.Cancelled):
            trio.from_thread.run_sync(announce, match[1])
