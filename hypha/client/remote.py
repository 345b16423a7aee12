"""What stands for the functions, generators and services of other peers."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from hypha.client.values import Received, Record
from hypha.wire.values import is_end

if TYPE_CHECKING:
    from hypha.client.peer import Peer


class RemoteFunction(Received):
    """A function of another peer: ``await function(...)``.

    The deadline of the surrounding cancel scope travels with the call. Cancelling the call cancels the function at a
    provider that uses this client; others finish, and their answer is dropped. Raises what :meth:`Peer.call` raises.
    """

    __slots__ = ("_peer",)

    def __init__(self, peer: Peer, encoded: dict[str, Any]) -> None:
        super().__init__(encoded)
        self._peer = peer

    @property
    def __name__(self) -> str:
        return str(self.encoded.get("_rname") or self.encoded["_rmethod"])

    @property
    def documentation(self) -> str | None:
        """What its provider says about it."""
        return self.encoded.get("_rdoc")

    @property
    def __schema__(self) -> dict[str, Any] | None:
        """What the function takes, as JSON schema, when its provider says it."""
        return self.encoded.get("_rschema")

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await self._peer.invoke(self.encoded, args, kwargs)

    def __repr__(self) -> str:
        return f"<function {self.encoded['_rmethod']} of {self.encoded['_rtarget']}>"


class RemoteGenerator(Received):
    """A generator of another peer, for ``async for``. It is closed at its provider when it is closed or forgotten here.

    No async generator, which trio wants to be closed by its program, and which does nothing when it was not begun.
    """

    __slots__ = ("_ended", "_peer", "_token")

    def __init__(self, peer: Peer, encoded: dict[str, Any]) -> None:
        super().__init__(encoded)
        self._peer = peer
        self._token = trio.lowlevel.current_trio_token()
        self._ended = False

    def __aiter__(self) -> RemoteGenerator:
        return self

    async def __anext__(self) -> Any:
        if self._ended:
            raise StopAsyncIteration
        try:
            value = await self._peer.invoke(self.encoded, (), {})
        except BaseException:  # cancelled, above all: its provider must not keep what nobody reads
            await self.aclose()
            raise
        if is_end(value):
            self._ended = True
            raise StopAsyncIteration
        return value

    async def aclose(self) -> None:
        """End it at its provider. Does not wait."""
        if not self._ended:
            self._ended = True
            _close(self._peer, self.encoded)

    def __del__(self) -> None:
        if not self._ended:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(_close, self._peer, self.encoded)  # this may be any thread


def _close(peer: Peer, encoded: dict[str, Any]) -> None:
    closing = encoded.get("_rclose_method")
    if isinstance(closing, str):
        peer.notify(encoded["_rtarget"], closing)


class Service(Record):
    """A service of another peer: its functions and what is known of it, as attributes."""

    def __repr__(self) -> str:
        return f"<service {self.get('id')}>"
