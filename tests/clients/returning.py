"""What tests of clients ask that are cut off and come back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from tests.clients import raw
from tests.clients.raw import MANAGER, NotLetIn, RawPeer, Refused
from tests.clients.scripted import worker_of
from tests.house.processes import Server

#: Seconds after which a client that was cut off is at work again (row 13).
BACK = 5.0


async def listed(peer: RawPeer, workspace: str) -> list[str]:
    """The ids of the services of *workspace* that *peer* sees."""
    return [entry["id"] for entry in await peer.call(MANAGER, "services.default.list_services", workspace)]


async def at_work(peer: RawPeer, client: str) -> bool:
    """Whether *client*, which is ``provider.py``, takes calls and makes its own."""
    try:
        return bool(await peer.call(client, "services.tools.ask_server", True))
    except Refused:
        return False


async def until(check: Callable[..., Awaitable[bool]], *args: object, seconds: float = BACK) -> None:
    """Ask again and again until *check* gives true; each time takes a round trip at least."""
    with trio.fail_after(seconds):
        while not await check(*args):
            pass


async def serves_anew(server: Server, before: int) -> bool:
    """Whether another process than *before* serves."""
    await trio.lowlevel.checkpoint()
    return worker_of(server) not in {before, 0}


@asynccontextmanager
async def member(server: Server, workspace: str, token: str) -> AsyncIterator[RawPeer]:
    """A raw peer in a workspace, which is there as soon as a client of it is back."""
    await until(lets_in, server, workspace, token)
    async with raw.connected(server.url, workspace=workspace, token=token) as peer:
        yield peer


async def lets_in(server: Server, workspace: str, token: str) -> bool:
    """Whether a client may connect to *workspace* with *token*."""
    try:
        async with raw.upgraded(server.url, workspace=workspace, token=token):
            return True
    except (OSError, trio.BrokenResourceError, NotLetIn):
        return False
