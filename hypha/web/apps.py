"""Web applications that clients offer: ``/{workspace}/apps/{service}/...`` (``protocol.md`` 8.5).

A service of type ``functions`` answers a request with one call (:mod:`hypha.web.functions`); one of type ``asgi`` or
``ASGI`` is a whole application, which has the request as a conversation (:mod:`hypha.web.exchange`), or a websocket
(:mod:`hypha.web.app_socket`). Who may use one is decided as for functions over HTTP, by the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope, WebsocketScope

from hypha.broker.access import Principal
from hypha.broker.broker import Broker
from hypha.broker.session import PeerSession
from hypha.errors import HyphaError, NotAuthenticated, NotFound
from hypha.web.app_socket import serve_socket
from hypha.web.bearer import count_bad_token
from hypha.web.exchange import serve_request
from hypha.web.functions import call_function
from hypha.web.http import BodyRoom, basic_password, bearer_token, credentials, send_error
from hypha.web.lookup import Target, find
from hypha.web.mount import Mount
from hypha.web.upgrade import refuse_upgrade

_APPLICATIONS = frozenset({"asgi", "ASGI"})
_FUNCTIONS = "functions"


@dataclass(frozen=True, slots=True)
class AppPath:
    """What a path below ``apps`` names. *mount*: the decoded path of the application, without a slash at its end.

    *rest*: what stands behind it, decoded; empty when not even a slash does.
    """

    target: Target
    mount: str
    rest: str


def parse_app_path(path: str) -> AppPath | None:
    """What an undecoded *path* names, or None when it is not one of an application."""
    segments = path.split("/")
    names = [unquote(segment) for segment in segments[:4]]
    if len(names) < 4 or names[0] or names[2] != "apps" or not all(names[1:]):
        return None
    rest = "/".join(segments[4:])
    return AppPath(Target(names[1], names[3], ()), "/".join(names), "/" + unquote(rest) if len(segments) > 4 else "")


class Apps:
    """Answers what :func:`parse_app_path` recognises."""

    def __init__(self, broker: Broker, room: BodyRoom) -> None:
        self._broker = broker
        self._room = room

    async def serve(
        self, path: AppPath, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Answer one request. *scope* has the base path as its ``root_path``."""
        if not path.rest:
            await _redirect(scope, send)
            return
        try:
            mount = await self._find(path, scope)
        except HyphaError as exc:
            await send_error(send, exc)
            return
        if mount.service.type == _FUNCTIONS:
            await call_function(mount, self._room, scope, receive, send)
        else:
            await serve_request(mount, scope, receive, send)

    async def serve_websocket(
        self, path: AppPath, scope: WebsocketScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Answer one websocket request; the websocket is served until it ends."""
        try:
            mount = await self._find(path, scope)
            if mount.service.type == _FUNCTIONS:
                raise NotFound(f"service {mount.service.id!r} has functions, which take no websocket")
        except HyphaError as exc:
            await refuse_upgrade(send, exc.status, str(exc))
            return
        await serve_socket(mount, scope, receive, send)

    async def _find(self, path: AppPath, scope: HTTPScope | WebsocketScope) -> Mount:
        principal, refusal = self._identify(scope)
        try:
            service, caller = await find(self._broker, path.target, principal)
        except NotFound:
            if refusal is not None:
                raise refusal from None
            raise
        if not isinstance(service.session, PeerSession) or service.type not in {_FUNCTIONS, *_APPLICATIONS}:
            raise NotFound(
                f"service {service.id!r} is no web application, its type is {service.type[:40]!r}; its functions are "
                f"at /{service.workspace}/services/{service.id}/{{function}}"
            )
        return Mount(
            self._broker,
            service,
            service.session,
            caller,
            scope["root_path"] + path.mount,
            path.rest or "/",
            refusal is not None,
        )

    def _identify(self, scope: HTTPScope | WebsocketScope) -> tuple[Principal, NotAuthenticated | None]:
        """Who asks. For what is no token of such a server it is nobody, with the error for where that is not enough.

        Raises :class:`NotAuthenticated` for a token that is not good any more, and :class:`LimitExceeded` for too many.
        """
        try:
            return self._broker.authenticate(bearer_token(scope)), None
        except NotAuthenticated as error:
            scheme, given = credentials(scope)
            if not self._broker.tokens.is_foreign(basic_password(given) if scheme == "basic" else given):
                count_bad_token(self._broker, scope)
                raise
            return self._broker.authenticate(None), error


async def _redirect(scope: HTTPScope, send: ASGISendCallable) -> None:
    """To the path with a slash, so that relative links of the application lead into it.

    Relative itself, for the reasons of :mod:`hypha.web.static`; 307, since the method must survive.
    """
    name = scope["raw_path"].rpartition(b"/")[2]
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    headers = [(b"location", b"./" + name + b"/" + query), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 307, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
