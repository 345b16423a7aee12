"""The pages in which server apps run, and whether they can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from quart import Response, abort, jsonify
from quart_trio import QuartTrio


class Pages(Protocol):
    """The apps, as far as they are seen over HTTP."""

    @property
    def lack(self) -> str | None:
        """What is missing to run apps."""

    def page_of(self, key: str) -> str | None:
        """The page of the app that runs now under an unguessable key."""


def add_routes(app: QuartTrio, pages_of: Callable[[], Pages | None], headers: Mapping[str, str]) -> None:
    """Add the routes to *app*. *pages_of* gives the apps; None where there are none. *headers*: those of each page."""

    @app.get("/health/server_apps")
    async def server_apps() -> Response:
        pages = pages_of()
        lack = None if pages is None else pages.lack
        if pages is None:
            return jsonify({"status": "OFF"})
        response = jsonify({"status": "OK"} if lack is None else {"status": "DOWN", "detail": lack})
        response.status_code = 200 if lack is None else 503
        return response

    @app.get("/apps/<page>")
    async def app_page(page: str) -> Response:
        pages = pages_of()
        text = None if pages is None else pages.page_of(page)
        if text is None:
            abort(404)
        return Response(text, mimetype="text/html", headers=dict(headers))
