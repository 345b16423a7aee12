"""The ASGI application of a server: which branch answers a request.

In this order: the websocket and its stand-in; the server's own paths, shared functions among them; static mounts by
their prefix; functions of services and web applications; lists of services; a mount on ``/``; and Quart for the rest,
which is the first page and "not found" (A11, A12).
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope, WebsocketScope
from quart_trio import QuartTrio

from hypha.broker.login import PAGE
from hypha.config import RESERVED_NAMES, Config
from hypha.errors import ProtocolViolation
from hypha.web.apps import AppPath, Apps, parse_app_path
from hypha.web.cors import Cors
from hypha.web.http import HOST, header, send_error, send_json
from hypha.web.listing import is_listing
from hypha.web.lookup import parse_path
from hypha.web.proxy import Proxy
from hypha.web.rpc import Rpc
from hypha.web.shares import SharedCalls, parse_share_path
from hypha.web.static import StaticMounts
from hypha.web.upgrade import Upgrade, refuse_upgrade

_ORIGIN = re.compile(rb"https?://[^/]*", re.IGNORECASE)


class Front:
    """Dispatches by path. *app* takes the lifespan and what no other branch claims."""

    def __init__(
        self,
        config: Config,
        app: QuartTrio,
        upgrade: Upgrade,
        rpc: Rpc,
        proxy: Proxy,
        apps: Apps,
        shared_calls: SharedCalls,
    ) -> None:
        self._base_path = config.base_path
        self._app: Any = app
        self._upgrade = upgrade
        self._rpc = rpc
        self._proxy = proxy
        self._apps = apps
        self._shared_calls = shared_calls
        self._mounts = StaticMounts(
            config.static_mounts, listing=config.listing, follow_symlinks=config.follow_symlinks
        )
        self._http = Cors(self._dispatch, config.allow_origins)

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """One ASGI call."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._http(scope, receive, send)

    async def _websocket(self, scope: WebsocketScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        # Behind a proxy that takes the base path away, only /ws arrives (A15).
        if scope["path"] in {"/ws", f"{self._base_path}/ws"}:
            await self._upgrade.serve(scope, receive, send)
            return
        app = self._app_of(self._enter_base(scope))
        if app is not None:
            await self._apps.serve_websocket(app, scope, receive, send)
        else:
            await refuse_upgrade(send, 404, f"websockets are served at {self._base_path}/ws")

    def _app_of(self, raw_path: str | None) -> AppPath | None:
        """The web application at an undecoded path below the base path, None outside of it."""
        path = unquote(raw_path or "/")
        hidden = raw_path is None or _is_own(path) or self._mounts.find(path) is not None
        return None if hidden else parse_app_path(raw_path or "")

    async def _dispatch(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        assert scope["type"] == "http"
        if header(scope, b"transfer-encoding") and header(scope, b"content-length"):
            # Two lengths are two readings of where the next request begins, so there is none (RFC 9112 6.1).
            error = ProtocolViolation("send Content-Length or Transfer-Encoding, not both")
            await send_error(send, error, [(b"connection", b"close")])
            return
        host = header(scope, b"host")
        if host and not HOST.fullmatch(host):
            # Pages are made with it, and what looks up names does not survive all that can stand there.
            await send_error(send, ProtocolViolation("the Host header is not the name of a host"))
            return
        if scope["path"] in {"/rpc", f"{self._base_path}/rpc"}:  # as with the websocket
            await self._rpc.serve(scope, receive, send)
            return
        raw_path = self._enter_base(scope)
        if raw_path is None:
            detail = f"this server is at {self._base_path}/"
            await send_json(send, 404, {"success": False, "detail": detail})
            return
        await self._branch(raw_path, scope, receive, send)

    async def _branch(
        self, raw_path: str, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        path = unquote(raw_path)
        own = _is_own(path)
        mount = None if own else self._mounts.find(path)
        target = None if own else parse_path(raw_path)
        app = self._app_of(raw_path)
        link = parse_share_path(raw_path)
        if link is not None:
            await self._shared_calls.serve(link, scope, receive, send)
        elif mount is not None:
            await self._mounts.serve(mount, scope, receive, send)
        elif target is not None:
            await self._proxy.serve(target, scope, receive, send)
        elif app is not None:
            await self._apps.serve(app, scope, receive, send)
        elif self._mounts.root is not None and not own and not is_listing(path):
            await self._mounts.serve(self._mounts.root, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _enter_base(self, scope: HTTPScope | WebsocketScope) -> str | None:
        """The undecoded path below the base path, which becomes the ``root_path`` of *scope*; None outside of it.

        What is no path, as in ``OPTIONS *``, lies outside, too. A whole URL is one (RFC 9112 3.2.2).
        """
        scope["raw_path"] = _ORIGIN.sub(b"", scope["raw_path"]) or b"/"
        segments = scope["raw_path"].decode("ascii").split("/")
        base = self._base_path.split("/")
        if [unquote(segment) for segment in segments[: len(base)]] != base:
            return None
        raw_path = "/" + "/".join(segments[len(base) :])
        scope["root_path"] = self._base_path
        scope["path"] = self._base_path + unquote(raw_path)
        return raw_path


def _is_own(path: str) -> bool:
    """Whether a decoded *path* is the server's, whatever is offered or mounted there."""
    return path.split("/")[1] in RESERVED_NAMES or f"{path}/".startswith(f"/{PAGE}")
