"""Drives an ASGI application: in memory, with the scope that Hypercorn would build, or in a real Hypercorn."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import unquote

import hypercorn.trio
import trio
from hypercorn.config import Config
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    ConnectionState,
    HTTPScope,
    Scope,
)

HttpApp = Callable[[HTTPScope, ASGIReceiveCallable, ASGISendCallable], Awaitable[None]]

#: Seconds that a request in memory may take.
DEADLINE = 10


@dataclass
class Answer:
    """What an application has sent. *complete* tells whether the last body event came."""

    status: int = 0
    raw_headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def headers(self) -> dict[str, str]:
        """Names in lower case; several values of one name are joined."""
        joined: dict[str, str] = {}
        for name, value in self.raw_headers:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            joined[key] = f"{joined[key]}, {text}" if key in joined else text
        return joined

    def json(self) -> Any:
        return json.loads(self.body)

    def take(self, message: ASGISendEvent) -> None:
        """Record one event, and check that it may come now."""
        if message["type"] == "http.response.start":
            assert not self.status, "a second start of the answer"
            self.status, self.raw_headers = message["status"], list(message["headers"])
        elif message["type"] == "http.response.body":
            assert self.status, "a body before the start"
            assert not self.complete, "a body after the last one"
            self.chunks.append(message["body"])
            self.complete = not message["more_body"]
        else:
            raise AssertionError(f"unexpected event {message['type']}")


def http_scope(
    target: str, method: str = "GET", headers: Mapping[str, str] | None = None, root_path: str = ""
) -> HTTPScope:
    """The scope of a request for *target*, the path and query as they stand in the request line."""
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("ascii"),
        "query_string": query.encode("ascii"),
        "root_path": root_path,
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 9527),
        "state": ConnectionState({}),
        "extensions": {},
    }


async def request(
    app: HttpApp, target: str, method: str = "GET", headers: Mapping[str, str] | None = None, root_path: str = ""
) -> Answer:
    """Send one request without a body from a client that stays until it has its answer."""
    return await exchange(app, http_scope(target, method, headers, root_path))


async def exchange(
    app: HttpApp,
    scope: HTTPScope,
    on_event: Callable[[ASGISendEvent], Awaitable[None]] | None = None,
    gone: trio.Event | None = None,
) -> Answer:
    """Run *app* for one request.

    *on_event* is awaited for each event before the application's ``send`` returns. The client is told to have gone
    once *gone* is set.
    """
    answer = Answer()
    left = trio.Event() if gone is None else gone
    waiting: list[ASGIReceiveEvent] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> ASGIReceiveEvent:
        if waiting:
            return waiting.pop(0)
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: ASGISendEvent) -> None:
        await trio.lowlevel.checkpoint()
        answer.take(message)
        if on_event is not None:
            await on_event(message)

    with trio.fail_after(DEADLINE):
        await app(scope, receive, send)
    return answer


@asynccontextmanager
async def loopback(app: HttpApp) -> AsyncIterator[str]:
    """Serve *app* with Hypercorn on a free port of the loopback. Yields the base URL."""

    async def with_lifespan(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "http":
            await app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})

    config, stop = Config(), trio.Event()
    config.bind = ["127.0.0.1:0"]
    serve = partial(hypercorn.trio.serve, with_lifespan, config, shutdown_trigger=stop.wait, mode="asgi")
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            urls: list[str] = await nursery.start(serve)
            try:
                yield urls[0]
            finally:
                stop.set()
