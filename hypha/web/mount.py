"""A web application where a request has found it, and the request as the application is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypercorn.typing import HTTPScope, WebsocketScope

from hypha.broker.broker import Broker
from hypha.broker.endpoint import Callbacks
from hypha.broker.session import PeerSession, Service
from hypha.web.app_headers import request_headers
from hypha.web.lookup import Caller

#: Seconds in which an application sees that its client is gone before it is cancelled.
TOLD_SECONDS = 0.05
#: Calls of one provider beyond which none goes on when nobody waits for it.
MANY_CALLS = 1000


@dataclass(frozen=True, slots=True)
class Mount:
    """*provider* offers *service* at *root*, the base path included; *rest* is the path behind that, decoded.

    *passes_authorization*: what the client has sent in that header is not for this server.
    """

    broker: Broker
    service: Service
    provider: PeerSession
    caller: Caller
    root: str
    rest: str
    passes_authorization: bool

    async def call(self, function: str, args: list[Any], callbacks: Callbacks | None = None) -> Any:
        """Call a function of the service as the caller. Raises what :meth:`ServerSession.call` raises."""
        return await self.broker.server.call(
            self.provider,
            f"services.{self.service.id}.{function}",
            args,
            source=self.caller.source,
            stamp=self.caller.stamp(),
            callbacks=callbacks,
        )

    def finish_seconds(self, *, told: bool) -> float:
        """For how long a call may go on that nobody waits for any more.

        *told*: its application has just been told so. One that can be cancelled gets a moment to see it. A provider
        with very many calls gets no time at all: such calls are not bounded by the connections that have made them.
        """
        if len(self.provider.inbound) > MANY_CALLS:
            return 0.0
        return TOLD_SECONDS if told and self.provider.dialect.cancels else self.broker.limits.app_finish_seconds

    def require_valid(self) -> None:
        """Raises :class:`NotAuthenticated` when the caller's token has ended meanwhile."""
        self.broker.require_valid(self.caller.principal)

    def scope(self, scope: HTTPScope | WebsocketScope) -> dict[str, Any]:
        """*scope* as it travels: what ASGI says of a request, and nothing of this server's.

        ``path`` begins with ``root_path``, and ``raw_path`` is as it came (ASGI 3.0, HTTP connection scope).
        """
        told: dict[str, Any] = {
            "type": scope["type"],
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": scope["http_version"],
            "scheme": scope["scheme"],
            "path": self.root + self.rest,
            "raw_path": scope["raw_path"],
            "query_string": scope["query_string"],
            "root_path": self.root,
            "headers": request_headers(scope, authorization=self.passes_authorization),
            "client": scope["client"],
            "server": scope["server"],
            "state": {},
            "extensions": {},
        }
        if scope["type"] == "http":
            told["method"] = scope["method"]
        else:
            told["subprotocols"] = list(scope["subprotocols"])
        return told
