"""Keeps a program connected: comes back when the connection is lost, and says goodbye (``protocol.md`` 1.6)."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Awaitable, Callable

import trio
from trio_websocket import ConnectionClosed, HandshakeError
from wsproto.utilities import LocalProtocolError

from hypha.client.channel import Channel, Dial, Refused, open_channel, read_text, reason_of
from hypha.client.peer import Peer
from hypha.client.settings import Settings
from hypha.errors import HyphaError, NotAuthenticated, PeerGone

logger = logging.getLogger(__name__)

_MAX_DELAY = 60.0
_SENT_AWAY = 1008  # the close code of a server that does not want the client any more
#: A connection that lived for less is a failed attempt: coming back at once would be a way to hurt the server.
_STABLE_SECONDS = 5.0
_TICK_SECONDS = 1.0
#: Seconds between pings to the server, and in which it must answer one.
_PING_SECONDS = 20.0
_GOODBYE_SECONDS = 1.0
#: Seconds in which the next part of a message must come, or twice as many.
_IDLE_SECONDS = 60.0


class Link:
    """The connections of one *peer*, one after the other. *on_up* is awaited when there is a new one.

    *on_down* is told why there is none any more, and whether the client tries again.
    """

    def __init__(
        self,
        peer: Peer,
        settings: Settings,
        dial: Dial | None,
        on_up: Callable[[Channel], Awaitable[None]],
        on_down: Callable[[HyphaError, bool], None],
    ) -> None:
        self._peer = peer
        self._settings = settings
        self._location = settings.location
        self._dial = dial or self._location.dial
        self._on_up = on_up
        self._on_down = on_down
        self._life = trio.CancelScope(shield=True)
        self._first = trio.Event()
        self._channel: Channel | None = None
        self._token: str | None = None
        self._workspace: str | None = settings.workspace
        self._close_code: int | None = None
        self._closing = False
        self._said_goodbye = trio.Event()
        self._over = trio.Event()
        self._error: HyphaError | None = None

    async def live(self) -> None:
        """The task of the client: ends after :meth:`close`, or when there will be no connection any more.

        A cancellation from outside does not end it: who starts it must close it, and goodbye is said first.
        """
        with self._life:
            self._end(await self._stay())

    async def wait_up(self) -> None:
        """Wait for the first connection. Raises the :class:`HyphaError` that prevents it."""
        await self._first.wait()
        if self._error is not None:
            raise self._error

    async def _stay(self) -> HyphaError:
        """Connect again and again; returns why there is no connection any more."""
        attempt = 0
        while True:
            began = trio.current_time()
            failure, was_up = await self._connect()
            if isinstance(failure, Refused):
                if not self._may_come_anew(failure.error):
                    return failure.error
                self._token, self._workspace = None, self._settings.workspace
                continue
            if self._closing or not self._settings.reconnect or self._token is None:
                return failure
            attempt = 0 if was_up and trio.current_time() - began > _STABLE_SECONDS else attempt + 1
            if was_up:
                self._on_down(failure, True)
            delay = 0.0 if attempt == 0 else min(2.0 ** (attempt - 1), _MAX_DELAY) * random.uniform(0.5, 1.0)  # noqa: S311  jitter is no secret
            logger.info("%s; the next attempt comes in %.1f s", failure, delay)
            await trio.sleep(delay)

    def _may_come_anew(self, refusal: HyphaError) -> bool:
        """Whether the token of the session alone is refused: it is too old, or the server has forgotten its key.

        Then the program's own credentials may do, unless the server has sent the client away (1008).
        """
        known = self._token is not None and self._first.is_set()
        return known and isinstance(refusal, NotAuthenticated) and self._close_code != _SENT_AWAY

    async def _connect(self) -> tuple[Refused | HyphaError, bool]:
        """One connection from its begin to its end; returns why it ended, and whether there was one."""
        failure: Refused | HyphaError = PeerGone(f"the connection to {self._location.url} was lost")
        was_up = False
        try:
            async with trio.open_nursery() as nursery:
                try:
                    channel = await open_channel(nursery, self._location, self._dial, self._credentials())
                except (Refused, PeerGone) as exc:
                    failure = exc
                else:
                    was_up = True
                    try:
                        await self._serve(channel, nursery)
                        if self._closing:
                            await self._said_goodbye.wait()  # the tasks of the websocket take the server's answer
                    finally:
                        await channel.abandon()
                nursery.cancel_scope.cancel()
        except* HandshakeError as group:  # what is no hypha server answers otherwise
            failure = PeerGone(f"cannot connect to {self._location.url}: {reason_of(group.exceptions[0])}")
        except* LocalProtocolError:  # a ping has crossed our goodbye: the websocket would answer it, and may not
            logger.debug("the connection ended between a ping and its answer")
        return failure, was_up

    async def _serve(self, channel: Channel, nursery: trio.Nursery) -> None:
        self._channel = channel
        self._token = channel.info.get("reconnection_token")
        self._workspace = channel.info["workspace"]
        self._peer.attach(channel, nursery)
        channel.stream.take = self._peer.take
        try:
            with trio.CancelScope() as scope:
                for task in (Channel.write, self._read, self._tick, self._watch):
                    nursery.start_soon(self._until_closed, task, channel, scope)
                await self._on_up(channel)
                self._first.set()
                await trio.sleep_forever()
        finally:
            self._channel = None
            self._peer.detach()

    async def _read(self, channel: Channel) -> None:
        while True:
            message = await channel.receive()
            if isinstance(message, bytes):
                self._peer.take(message)
            else:
                self._take_text(message)

    def _take_text(self, text: str) -> None:
        document = read_text(text)
        token = document.get("reconnection_token")
        if document.get("type") == "reconnection_token" and isinstance(token, str):
            self._token = token

    async def _tick(self, channel: Channel) -> None:
        """Heartbeats, a new reconnection token before the old one expires, and what nobody finishes."""
        life = float(channel.info.get("reconnection_token_life_time") or 3600.0)
        refresh_at = trio.current_time() + life / 1.5
        tidy_at = trio.current_time() + _IDLE_SECONDS
        while True:
            await trio.sleep(_TICK_SECONDS)
            now = trio.current_time()
            self._peer.serving.beat(now)
            if now >= tidy_at:
                tidy_at = now + _IDLE_SECONDS
                self._peer.drop_idle_parts()
            if now >= refresh_at:
                refresh_at = now + life / 1.5
                channel.put_text(json.dumps({"type": "refresh_token"}))

    async def _watch(self, channel: Channel) -> None:
        """Ping the server; returns when it does not answer any more."""
        while True:
            await trio.sleep(_PING_SECONDS)
            if not await channel.is_alive(_PING_SECONDS):
                logger.warning("%s does not answer any more", self._location.url)
                return

    def _credentials(self) -> dict[str, str | None]:
        return {
            "client_id": self._settings.client_id,
            "workspace": self._workspace,
            "token": self._settings.token,
            "reconnection_token": self._token,
        }

    def _end(self, error: HyphaError) -> None:
        if self._closing:
            return
        self._error = error
        self._peer.end(error)
        if self._first.is_set():
            self._on_down(error, False)
        self._first.set()
        self._over.set()

    async def wait_over(self) -> None:
        """Wait until there will be no connection any more. Raises why, unless :meth:`close` has ended it."""
        await self._over.wait()
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """Say goodbye, for which the server has a second, and end, whether there is a connection or not."""
        self._closing = True
        if self._channel is not None:
            await self._channel.close(_GOODBYE_SECONDS)
        self._said_goodbye.set()
        self._peer.end(PeerGone("this client has disconnected"))
        self._over.set()
        self._life.cancel()

    async def _until_closed(
        self, task: Callable[[Channel], Awaitable[None]], channel: Channel, scope: trio.CancelScope
    ) -> None:
        """Run *task*, and end *scope* with it: it returns, or the connection is closed."""
        try:
            await task(channel)
        except ConnectionClosed as exc:
            self._close_code = None if exc.reason is None else exc.reason.code
            logger.info("the connection was closed: %r", exc)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            logger.info("the connection was closed: %r", exc)
        finally:
            scope.cancel()
