"""Our own client for JavaScript, as a classic script and as a module, made of one file (``protocol.md`` 8.7)."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import NamedTuple

from quart import Response, request
from quart_trio import QuartTrio

_NAME = "hypha-rpc-websocket"
_TYPE = "text/javascript; charset=utf-8"

#: What makes a module of the script. The names are those of the client's object.
_EXPORTS = """
export { hyphaWebsocketClient };
export default hyphaWebsocketClient;
export const { connectToServer, login, logout, loadRequirements, schemaFunction, HyphaError, msgpack } =
  hyphaWebsocketClient;
"""


class _Asset(NamedTuple):
    body: bytes
    etag: str


@cache
def asset(suffix: str) -> _Asset:
    """The client as a script (``js``) or as a module (``mjs``)."""
    source = (resources.files("hypha.web") / "assets" / f"{_NAME}.js").read_bytes()
    body = source + (_EXPORTS.encode() if suffix == "mjs" else b"")
    return _Asset(body, hashlib.sha256(body).hexdigest()[:32])


def add_routes(app: QuartTrio) -> None:
    """Add the routes to *app*."""

    @app.get(f"/assets/{_NAME}.js")
    async def script() -> Response:
        return _answer(asset("js"))

    @app.get(f"/assets/{_NAME}.mjs")
    async def module() -> Response:
        return _answer(asset("mjs"))


def _answer(found: _Asset) -> Response:
    # Asked for again each time, which costs a small 304: pages and the server are never of two versions.
    known = request.if_none_match.contains_weak(found.etag)
    # Bytes in either case: a body of nothing at all is one that Quart reads with asyncio.
    response = Response(b"" if known else found.body, 304 if known else 200, content_type=_TYPE)
    response.set_etag(found.etag)
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
