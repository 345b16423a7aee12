"""What stands for the functions, generators and services of other peers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

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
    """A generator of another peer, for ``async for``. Leaving the loop early closes it at its provider."""

    __slots__ = ("_peer", "_values")

    def __init__(self, peer: Peer, encoded: dict[str, Any]) -> None:
        super().__init__(encoded)
        self._peer = peer
        self._values = self._iterate()

    def __aiter__(self) -> AsyncGenerator[Any, None]:
        return self._values

    async def __anext__(self) -> Any:
        return await anext(self._values)

    async def aclose(self) -> None:
        """End it at its provider."""
        await self._values.aclose()

    async def _iterate(self) -> AsyncGenerator[Any, None]:
        ended = False
        try:
            while True:
                value = await self._peer.invoke(self.encoded, (), {})
                if is_end(value):
                    ended = True
                    return
                yield value
        finally:
            closing = self.encoded.get("_rclose_method")
            if not ended and isinstance(closing, str):
                self._peer.notify(self.encoded["_rtarget"], closing)


class Service(Record):
    """A service of another peer: its functions and what is known of it, as attributes."""

    def __repr__(self) -> str:
        return f"<service {self.get('id')}>"
