"""An ASGI application as the ``serve`` of a service: ``{"id": "app", "type": "asgi", "serve": app}``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def is_application(value: object) -> bool:
    """Whether *value* is called as ASGI applications are: with ``scope``, ``receive`` and ``send``, and not one map."""
    if not callable(value):
        return False
    try:
        signature = inspect.signature(value)
        signature.bind(None, None, None)
    except (TypeError, ValueError):
        return False
    try:
        signature.bind(None)
    except TypeError:
        return True
    return False


def served(app: Callable[..., Any]) -> Callable[..., Any]:
    """*app* as it is called by the server, whose ``receive`` and ``send`` are functions of another peer."""

    async def serve(request: Mapping[str, Any]) -> None:
        scope = dict(request["scope"])
        # Lists are how tuples travel, and ASGI promises tuples.
        scope["headers"] = [tuple(pair) for pair in scope["headers"]]
        for end in ("client", "server"):
            scope[end] = None if scope[end] is None else tuple(scope[end])
        await app(scope, request["receive"], request["send"])

    return serve
