"""Websockets at an application."""

from __future__ import annotations

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, WebsocketScope

from hypha.web.mount import Mount
from hypha.web.upgrade import refuse_upgrade


async def serve_socket(
    mount: Mount, scope: WebsocketScope, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> None:
    """Refuse."""
    await refuse_upgrade(send, 501, f"service {mount.service.id!r} cannot be reached by websocket here")
