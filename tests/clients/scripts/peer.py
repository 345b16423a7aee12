"""What the scripts of this directory share.

They run in a published client's own environment, imjoy-rpc or hypha-rpc, as programs that people write, and know
nothing of the server's code. A script asserts what it expects; when one of its promises is broken it ends with a
traceback.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

try:
    from imjoy_rpc.hypha import connect_to_server
except ModuleNotFoundError:
    from hypha_rpc import connect_to_server

#: How :func:`connected` connects, one after the other: hypha-rpc also knows "http".
transports: Iterator[str] = itertools.repeat("websocket")

#: Seconds that something may take which happens "at once" on a busy machine.
SOON = 5.0


@asynccontextmanager
async def connected(url: str, **settings: Any) -> AsyncIterator[Any]:
    """A connection that is closed at the end of the block, as a well-behaved client closes it."""
    transport = next(transports)
    if transport != "websocket":
        settings.setdefault("transport", transport)
    server = await connect_to_server({"server_url": url, **settings})
    try:
        # imjoy-rpc asks for its reconnection token in the background. Told to leave before it has sent that, it would
        # connect again to send it.
        await until(lambda: _has_token(server))
        yield server
    finally:
        await server.disconnect()


async def _has_token(server: Any) -> bool:
    return getattr(server.rpc, "_connection_info", server.config) is not None


def client_id(server: Any) -> str:
    """The plain client id of a connection."""
    return str(server.rpc._client_id)


async def joined(server: Any, url: str, **settings: Any) -> Any:
    """The settings of :func:`connected` for one more client of *server*'s workspace."""
    return {"workspace": server.config.workspace, "token": await server.generate_token(), **settings}


async def refused(call: Awaitable[Any], *words: str, kind: type[Exception] = Exception) -> str:
    """Assert that *call* fails with an error of *kind* that holds all of *words*, and return its text."""
    outcome = (await asyncio.gather(call, return_exceptions=True))[0]
    assert isinstance(outcome, kind), f"{outcome!r}, expected an error with {words}"
    text = str(outcome)
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"
    assert "site-packages/hypha/" not in text, text
    return text


async def until(check: Callable[[], Awaitable[bool]], seconds: float = SOON) -> float:
    """Ask again and again until *check* gives true, and return the seconds that it took."""
    started = time.perf_counter()
    while not await check():
        assert time.perf_counter() - started < seconds, f"not true within {seconds} s"
        await asyncio.sleep(0.005)
    return time.perf_counter() - started


async def service_ids(server: Any, query: Any = None) -> list[str]:
    """The ids in a listing."""
    return [entry["id"] for entry in await server.list_services(query)]


def run(main: Callable[..., Awaitable[None]]) -> None:
    """Run *main* with the arguments of the command line; the last line of output says that it came to its end."""
    asyncio.run(_with_arguments(main))
    print("passed")


async def _with_arguments(main: Callable[..., Awaitable[None]]) -> None:
    await main(*sys.argv[1:])
