"""What makes the forms of account pages safe: they come from a page of ours, which no script has read.

All services share their origin with the account pages, so that a page of one of them is, for the browser, as good as
ours. It cannot open ours in a frame, nor keep a window with it (``Cross-Origin-Opener-Policy``), and a script that asks
for it is refused by what the browser says of it. What it cannot read it cannot send: each form holds a text that
belongs to the cookie.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple, cast
from urllib.parse import urlsplit

from hypercorn.typing import HTTPScope
from quart import Response, request
from werkzeug.datastructures import MultiDict

from hypha.accounts.account import SignedIn
from hypha.accounts.people import People
from hypha.broker.broker import Broker
from hypha.config import KIB
from hypha.errors import NotAuthenticated, PermissionDenied, TooLarge, UnsupportedContent
from hypha.web.http import base_url, client_address, header, media_type
from hypha.web.rpc import COOKIE_PREFIX

_MAX_FORM = 16 * KIB
_DEFAULT_PORTS = {"http": 80, "https": 443}


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


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
    host = header(_scope(), b"host")
    own = {_origin(f"http://{host}"), _origin(f"https://{host}"), _origin(public_base_url or "")} - {None}
    if _origin(header(_scope(), b"origin")) not in own:
        raise PermissionDenied("this form comes from another site; behind a proxy, start with --public-base-url")


def sender(broker: Broker, people: People, form: MultiDict[str, str]) -> SignedIn:
    """Who is signed in where *form* comes from. Raises :class:`NotAuthenticated` and :class:`PermissionDenied`."""
    browser = people.accounts.signed_in(cookie_of(cookie_name(broker, "account")))
    if browser is None:
        raise NotAuthenticated("you are not signed in any more; open your account again")
    people.accounts.check_form(browser, form.get("form", ""))
    return browser


def _origin(url: str) -> _Origin | None:
    """The origin of *url* in the one form that tells it from others, None when it has none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        return None
    return _Origin(parts.scheme, parts.hostname, _DEFAULT_PORTS[parts.scheme] if port is None else port)


def own_url(broker: Broker) -> str:
    """The address of the server, as it was told or as this browser has reached it.

    Who sends a form says how: behind a proxy nobody else knows that it was by https. Ask for it after
    :func:`sent_form`, which has checked what was said.
    """
    if broker.config.public_base_url is not None:
        return broker.config.public_base_url
    origin = _origin(header(_scope(), b"origin")) if request.method == "POST" else None
    return f"{origin}{request.root_path}" if origin is not None else base_url(_scope(), request.root_path)


def asked_from(broker: Broker) -> str | None:
    """The network address that this request comes from."""
    return client_address(_scope(), broker.config.trusted_proxies)


def is_secure() -> bool:
    """Whether the browser that has sent a form speaks https, be it with a proxy."""
    return header(_scope(), b"origin").startswith("https:")


def cookie_name(broker: Broker, purpose: str) -> str:
    """The name of a cookie of this server's: browsers send it to others on this host, too, whatever their port."""
    server = hashlib.sha256(broker.server.address.client.encode()).hexdigest()[:8]
    return f"{COOKIE_PREFIX.decode()}{purpose}-{server}"


def cookie_of(name: str) -> str | None:
    """What the one cookie of that name holds, None without one.

    Of several none counts: a page of another service can set one for a longer path, which comes first.
    """
    pairs = [pair.partition("=") for line in request.headers.getlist("Cookie") for pair in line.split(";")]
    found = [value.strip() for key, _, value in pairs if key.strip() == name]
    return found[0] if len(found) == 1 else None


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
