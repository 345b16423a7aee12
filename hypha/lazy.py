"""An ASGI application that is built at its first call, and says clearly why it cannot start.

Standard library only: ``hypha/server.py`` holds one of these, and the parent process imports that file.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from hypha.errors import ConfigError, HyphaError, internal_error

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the application cannot start or go on: a line for people, and the exit code that says it to programs.

    *final*: another start would end in the same way. So would every one with the code 2.
    """

    text: str
    code: int
    final: bool = False


class Unservable(HyphaError):
    """Something that must be there is not, whoever serves. Ends the server with exit code 1."""


class LazyApp:
    """The application that *make* builds at the first call.

    What goes wrong in *make* or in the start of the application's lifespan is told once to *on_failure*, and then
    to the ASGI server by ``lifespan.startup.failed``. A lifespan that ends by itself later is told too, because
    Hypercorn would go on serving without the rooms that it held (``stack.md``, point 4).
    """

    def __init__(self, make: Callable[[], Application], on_failure: Callable[[Failure], None]) -> None:
        self._make = make
        self._on_failure = on_failure
        self._app: Application | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One ASGI call. Raises what the application raises, but for the start of the lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await self._built()(scope, receive, send)

    def _built(self) -> Application:
        if self._app is None:
            self._app = self._make()
        return self._app

    async def _lifespan(self, scope: Message, receive: Receive, send: Send) -> None:
        sent: list[str] = []

        async def watched(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                self._on_failure(Failure(message.get("message") or "the application did not start", 1))
            sent.append(message["type"])
            await send(message)

        try:
            await self._built()(scope, receive, watched)
        except Exception as error:  # whatever it is: the server that asked must be told
            if sent and sent[-1] != "lifespan.startup.complete":
                raise  # the server has its answer: this is how it ends the application
            failure = explain(error)
            self._on_failure(failure)
            if not sent:
                await send({"type": "lifespan.startup.failed", "message": failure.text})


def explain(error: BaseException) -> Failure:
    """The line for people and the exit code. A fault of ours is logged with its traceback."""
    known = [leaf for leaf in _leaves(error) if isinstance(leaf, HyphaError)]
    for leaf in known:
        if isinstance(leaf, ConfigError):
            return Failure(str(leaf), 2)
    for leaf in known:
        if isinstance(leaf, Unservable):
            return Failure(str(leaf), 1, final=True)
    return Failure(str(known[0] if known else internal_error(error)), 1)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]
