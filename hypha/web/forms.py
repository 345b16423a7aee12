"""What makes the forms of account pages safe: they come from a page of ours, which no script has read.

All services share their origin with the account pages, so that a page of one of them is, for the browser, as good as
ours. It cannot open ours in a frame, nor keep a window with it (``Cross-Origin-Opener-Policy``), and a script that asks
for it is refused by what the browser says of it. What it cannot read it cannot send: each form holds a text that
belongs to the cookie.
"""

from __future__ import annotations

from typing import cast

from hypercorn.typing import HTTPScope
from quart import Response, request
from werkzeug.datastructures import MultiDict

from hypha.accounts.account import SignedIn
from hypha.accounts.people import People
from hypha.broker.broker import Broker
from hypha.config import KIB
from hypha.errors import NotAuthenticated, PermissionDenied, TooLarge, UnsupportedContent
from hypha.web.http import base_url, header, media_type

COOKIE = "hypha-rpc-account"

_MAX_FORM = 16 * KIB


def require_navigation() -> None:
    """Raise :class:`PermissionDenied` when it is a script or a frame that asks, as far as the browser says."""
    told = {name: request.headers.get(f"Sec-Fetch-{name}") for name in ("Mode", "Dest")}
    if told["Mode"] not in {None, "navigate"} or told["Dest"] not in {None, "document"}:
        raise PermissionDenied("this page is for people, not for scripts and frames")


async def sent_form(public_base_url: str | None) -> MultiDict[str, str]:
    """The fields of the form that was sent. Raises :class:`PermissionDenied` for a page of another origin's."""
    require_navigation()
    _require_own_origin(public_base_url)
    if media_type(_scope()) != "application/x-www-form-urlencoded":
        raise UnsupportedContent("a form is sent as application/x-www-form-urlencoded")
    length = request.content_length
    if length is None or length > _MAX_FORM:
        raise TooLarge(f"a form says its length, which is at most {_MAX_FORM} bytes")
    return cast("MultiDict[str, str]", await request.form)


def _require_own_origin(public_base_url: str | None) -> None:
    host = header(_scope(), b"host").lower()
    own = {f"http://{host}", f"https://{host}"} if host else set()
    if public_base_url is not None:
        own.add("/".join(public_base_url.lower().split("/")[:3]))
    if header(_scope(), b"origin") not in own:
        raise PermissionDenied("this form comes from another site; behind a proxy, start with --public-base-url")


def sender(people: People, form: MultiDict[str, str]) -> SignedIn:
    """Who is signed in where *form* comes from. Raises :class:`NotAuthenticated` and :class:`PermissionDenied`."""
    browser = people.accounts.signed_in(request.cookies.get(COOKIE))
    if browser is None:
        raise NotAuthenticated("you are not signed in any more; open your account again")
    people.accounts.check_form(browser, form.get("form", ""))
    return browser


def own_url(broker: Broker) -> str:
    """The address of the server, as it was told or as this browser has reached it."""
    return broker.config.public_base_url or base_url(_scope(), request.root_path)


def is_secure() -> bool:
    """Whether the browser that has sent a form speaks https, be it with a proxy."""
    return header(_scope(), b"origin").startswith("https:")


def set_cookie(
    answer: Response, name: str, secret: str, seconds: float, *, secure: bool, path: str | None = None
) -> Response:
    """Give *answer* a cookie that scripts do not see, and that is sent with requests of other sites' links alone.

    Without *path* it is for the directory of the address that was asked for, as the browser sees that.
    """
    answer.set_cookie(name, secret, max_age=int(seconds), path=path, httponly=True, samesite="Lax", secure=secure)
    return answer


def to_root() -> str:
    """The way from the page that is asked for to the root of the server: it is right behind every proxy."""
    return "../" * (request.path.count("/") - 1)  # which is below the base path


def _scope() -> HTTPScope:
    return cast(HTTPScope, request.scope)
