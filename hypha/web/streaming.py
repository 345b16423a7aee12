"""A function that returns a generator: its items go out one by one as they come (``protocol.md`` 8.4).

To a client of JSON they are server-sent events, to one of msgpack the values one behind the other. The generator stays
where it is: each item is one call of its provider, made when the one before has been sent, so a client that reads
slowly slows the generator down. When the client leaves, or the stream ends in another way, the generator is closed.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from hypercorn.typing import ASGISendCallable

from hypha.broker.broker import Broker
from hypha.broker.session import PeerSession
from hypha.errors import HyphaError, NotAcceptable
from hypha.web.http import MSGPACK
from hypha.web.lookup import Caller
from hypha.wire import values

EVENTS = b"text/event-stream"

#: What a value becomes before it is sent.
Encode = Callable[[Any], bytes]


async def items(
    broker: Broker,
    provider: PeerSession,
    value: dict[str, Any],
    caller: Caller,
    patience: float | None,
    require_valid: Callable[[], None],
) -> AsyncGenerator[Any, None]:
    """The items of the generator *value* that *provider* has returned to *caller*.

    *patience*: seconds to wait for each. Raises what :meth:`ServerSession.call` raises, :class:`NotAcceptable` for the
    generator of another client, :class:`NotAuthenticated` when the caller's token ends meanwhile, and what
    *require_valid* raises, which is asked before each item. Close it, also when it is not read to its end; that does
    not wait.
    """
    if value.get("_rtarget") not in {provider.name, provider.address.client}:
        raise NotAcceptable("the result is a generator of another client; only its own can be read over HTTP")
    stamp = caller.stamp()
    try:
        while True:
            broker.require_valid(caller.principal)
            require_valid()
            item = await broker.server.call(
                provider, value["_rmethod"], [], source=caller.source, stamp=stamp, patience=patience
            )
            if values.is_end(item):
                return
            yield item
    finally:
        close = value.get("_rclose_method")
        if isinstance(close, str):
            broker.server.notify(provider, close, caller.source, stamp)


async def send_stream(
    source: AsyncGenerator[Any, None], send: ASGISendCallable, encode: Encode, *, as_msgpack: bool
) -> None:
    """Send a 200 with the items of *source*. An error before the first item is raised, a later one is sent."""
    async with aclosing(_parts(source, encode, as_msgpack=as_msgpack)) as parts:
        first = await anext(parts)
        headers = [(b"content-type", MSGPACK if as_msgpack else EVENTS), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _parts(source: AsyncGenerator[Any, None], encode: Encode, *, as_msgpack: bool) -> AsyncGenerator[bytes, None]:
    """The pieces of the body, of which there is at least one."""
    started = False
    async with aclosing(source):
        try:
            async for item in source:
                yield encode(item) if as_msgpack else _event(encode(item))
                started = True
        except HyphaError as exc:
            if not started:
                raise
            error = {"error": exc.remote_text()}
            yield encode(values.error(exc.remote_text())) if as_msgpack else _event(json.dumps(error).encode())
    yield b"" if as_msgpack else _event(b"[DONE]")


def _event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data
