"""The connection as programs see it that are not written for trio: in threads, or in another event loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from hypha.client.remote import RemoteFunction, RemoteGenerator
from hypha.client.run import END
from hypha.client.server import Server
from hypha.client.values import Received

#: Makes of a function that runs in trio one that the program can call.
Translate = Callable[[Callable[..., Any]], Callable[..., Any]]


class Face:
    """All that *server* has, its functions translated: coroutine functions by *waits*, plain ones by *plain*."""

    def __init__(self, server: Server, waits: Translate, plain: Translate) -> None:
        self._server = server
        self._waits = waits
        self._plain = plain

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._server, name)
        if inspect.iscoroutinefunction(found):
            return self._waits(found)
        return self._plain(found) if callable(found) else found

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(name for name in dir(self._server) if not name.startswith("_"))})

    def __repr__(self) -> str:
        return repr(self._server)


class FunctionFace(Received):
    """What is known of a function of another peer."""

    __slots__ = ("_remote",)

    def __init__(self, remote: RemoteFunction) -> None:
        super().__init__(remote.encoded)
        self._remote = remote

    @property
    def __name__(self) -> str:
        return self._remote.__name__

    @property
    def documentation(self) -> str | None:
        """What its provider says about it."""
        return self._remote.documentation

    @property
    def __schema__(self) -> dict[str, Any] | None:
        """What the function takes, as JSON schema, when its provider says it."""
        return self._remote.__schema__

    def __repr__(self) -> str:
        return repr(self._remote)


class GeneratorFace(Received):
    """A generator of another peer."""

    __slots__ = ("_remote",)

    def __init__(self, remote: RemoteGenerator) -> None:
        super().__init__(remote.encoded)
        self._remote = remote


class BlockingFunction(FunctionFace):
    """A function of another peer, whose call blocks the thread that calls.

    What interrupts the wait cancels the function at a provider that uses this client. Raises :class:`RemoteError` with
    the function's own text and other :class:`hypha.errors.HyphaError`.
    """

    __slots__ = ("_wait",)

    def __init__(self, remote: RemoteFunction, wait: Callable[..., Any]) -> None:
        """*wait* runs a function in trio and blocks until its result is there."""
        super().__init__(remote)
        self._wait = wait

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._wait(self._remote, *args, **kwargs)


class BlockingGenerator(GeneratorFace):
    """A generator of another peer, for ``for``. It is closed at its provider when it is closed or forgotten here."""

    __slots__ = ("_wait",)

    def __init__(self, remote: RemoteGenerator, wait: Callable[..., Any]) -> None:
        super().__init__(remote)
        self._wait = wait

    def __iter__(self) -> BlockingGenerator:
        return self

    def __next__(self) -> Any:
        value = self._wait(anext, self._remote, END)
        if value is END:
            raise StopIteration
        return value

    def close(self) -> None:
        """End it at its provider."""
        self._wait(self._remote.aclose)
