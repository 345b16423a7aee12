"""The Quart application: the first page, health, and the errors of everything that nobody else claims."""

from __future__ import annotations

from html import escape
from http import HTTPStatus
from typing import Protocol, cast

from hypercorn.typing import HTTPScope
from quart import Response, jsonify, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

import hypha
from hypha.errors import HyphaError, internal_error
from hypha.web.http import base_url

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Hypha {version}</title>
<style>
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem; }}
  pre {{ overflow-x: auto; padding: .75rem 1rem; border: 1px solid; border-radius: .4rem; font-size: .875rem; }}
  small {{ opacity: .75; }}
</style>
<h1>Hypha <small>{version}</small></h1>
<p>This server is up. Programs connect to it and offer functions; everybody else calls them.</p>
<p>Offer a function from Python:</p>
<pre>pip install imjoy-rpc "websockets&lt;14"</pre>
<pre>import asyncio
from imjoy_rpc.hypha import connect_to_server

async def main():
    server = await connect_to_server({{"server_url": "{url}"}})
    await server.register_service({{
        "name": "Hello World",
        "id": "hello-world",
        "config": {{"visibility": "public"}},
        "hello": lambda name: "Hello " + name,
    }})
    print("{url}/" + server.config.workspace + "/services/hello-world/hello?name=John")
    try:
        await asyncio.Event().wait()
    finally:
        await server.disconnect()

asyncio.run(main())</pre>
<p>It prints an address; open it here, or call it from any program.</p>
<p>With <a href="{url}/account">an account</a> your programs are you, and keep their place here.</p>
</html>
"""


class Health(Protocol):
    """What the health routes ask."""

    @property
    def is_ready(self) -> bool:
        """Whether new work is accepted."""

    @property
    def services_loaded(self) -> bool:
        """Whether everything that was to start with the server has started."""


def create_app(health: Health) -> QuartTrio:
    """The Quart application with its routes and error handlers."""
    app = QuartTrio("hypha", static_folder=None)
    # Shutting down is bounded by the rooms themselves; Quart's own deadline must not come first.
    app.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = 20
    app.url_map.merge_slashes = False  # or // is redirected to an address made of the Host header

    @app.get("/")
    async def home() -> Response:
        best = request.accept_mimetypes.best_match(["application/json", "text/html"])
        # curl sends */*, for which both match: tools get what the original server sent (A5).
        if best == "text/html" and "text/html" in request.accept_mimetypes.values():
            url = escape(base_url(cast(HTTPScope, request.scope), request.root_path))
            response = Response(_PAGE.format(version=hypha.__version__, url=url), mimetype="text/html")
        else:
            response = jsonify({"name": "Hypha", "version": hypha.__version__})
        response.headers["Vary"] = "Accept"
        return response

    @app.get("/health/liveness")
    async def liveness() -> Response:
        return jsonify({"status": "OK"})

    @app.get("/health/readiness")
    async def readiness() -> Response:
        return _status(health.is_ready)

    @app.get("/health/services_loaded")
    async def services_loaded() -> Response:
        return _status(health.services_loaded)

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Response:
        status = HTTPStatus(error.code or 500)
        response = jsonify({"success": False, "detail": _detail(status)})
        response.status_code = status
        for name, value in error.get_headers():
            if name.lower() in {"allow", "location", "retry-after"}:
                response.headers[name] = value
        return response

    @app.errorhandler(HyphaError)
    async def refusal(error: HyphaError) -> Response:
        response = jsonify({"success": False, "detail": str(error)})
        response.status_code = error.status
        if error.status == HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    @app.errorhandler(Exception)
    async def fault(error: Exception) -> Response:
        response = jsonify({"success": False, "detail": str(internal_error(error))})
        response.status_code = 500
        return response

    return app


def _detail(status: HTTPStatus) -> str:
    if status is HTTPStatus.NOT_FOUND:
        path = request.path[:200]
        return f"nothing is at {path!r}; functions are at /{{workspace}}/services/{{service}}/{{function}}"
    return status.description or status.phrase


def _status(good: bool) -> Response:
    response = jsonify({"status": "OK" if good else "DOWN"})
    response.status_code = 200 if good else 503
    return response
