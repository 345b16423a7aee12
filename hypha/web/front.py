"""The ASGI application of a server: which branch answers a request.

In this order: the websocket; the server's own paths; static mounts by their prefix; functions of services; a mount
on ``/``; and Quart for the rest, which is the first page and "not found" (A11, A12).
"""

from __future__ import annotations

from typing import Any

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope, WebsocketScope
from quart_trio import QuartTrio

from hypha.config import RESERVED_NAMES, Config
from hypha.errors import ProtocolViolation
from hypha.web.cors import Cors
from hypha.web.http import header, send_error, send_json
from hypha.web.lookup import parse_path
from hypha.web.proxy import Proxy
from hypha.web.static import StaticMounts
from hypha.web.upgrade import Upgrade, refuse_upgrade


class Front:
    """Dispatches by path. *app* takes the lifespan and what no other branch claims."""

    def __init__(self, config: Config, app: QuartTrio, upgrade: Upgrade, proxy: Proxy) -> None:
        self._base_path = config.base_path
        self._app: Any = app
        self._upgrade = upgrade
        self._proxy = proxy
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
        else:
            await refuse_upgrade(send, 404, f"websockets are served at {self._base_path}/ws")

    async def _dispatch(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        assert scope["type"] == "http"
        if header(scope, b"transfer-encoding") and header(scope, b"content-length"):
            # Two lengths are two readings of where the next request begins, so there is none (RFC 9112 6.1).
            error = ProtocolViolation("send Content-Length or Transfer-Encoding, not both")
            await send_error(send, error, [(b"connection", b"close")])
            return
        path = self._below_base(scope)
        if path is None:
            detail = f"this server is at {self._base_path}/"
            await send_json(send, 404, {"success": False, "detail": detail})
            return
        await self._branch(path, scope, receive, send)

    async def _branch(self, path: str, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        own = path.split("/")[1] in RESERVED_NAMES if path != "/" else False
        mount = None if own else self._mounts.find(path)
        if mount is not None:
            await self._mounts.serve(mount, scope, receive, send)
            return
        raw_path = scope["raw_path"].decode("latin-1")[len(self._base_path) :]
        target = None if own else parse_path(raw_path)
        if target is not None:
            await self._proxy.serve(target, scope, receive, send)
        elif self._mounts.root is not None and not own:
            await self._mounts.serve(self._mounts.root, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _below_base(self, scope: HTTPScope) -> str | None:
        """The path without the base path, which ``root_path`` then holds; None when it lies elsewhere."""
        base, path = self._base_path, scope["path"]
        if not base:
            return path
        if path == base or path.startswith(f"{base}/"):
            scope["root_path"] = base
            return path[len(base) :] or "/"
        return None
