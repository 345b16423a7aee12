"""Signing in at an OpenID Connect provider: the way of the browser there and back, below ``/account/oidc``."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from quart import Response, request
from quart_trio import QuartTrio

from hypha.accounts.oidc import Outcome, Purpose, SignInElsewhere, host_of
from hypha.accounts.people import People
from hypha.broker.broker import Broker
from hypha.errors import NotFound
from hypha.web import account_pages as pages
from hypha.web.accounts import for_people, to_page
from hypha.web.document import document
from hypha.web.forms import (
    asked_from,
    cookie_name,
    cookie_of,
    is_secure,
    own_url,
    require_navigation,
    sender,
    sent_form,
    set_cookie,
    to_root,
)

_CALLBACK = "/account/oidc/callback"


def add_routes(
    app: QuartTrio,
    broker_of: Callable[[], Broker],
    people_of: Callable[[], People],
    elsewhere_of: Callable[[], SignInElsewhere | None],
) -> None:
    """Add the routes to *app*. They are there without a provider, too, and then say that there is none."""
    desk = _Desk(broker_of, people_of, elsewhere_of)
    for method, path, page in (
        ("POST", "/account/oidc", desk.begin),
        ("GET", _CALLBACK, desk.finish),
        ("POST", "/account/oidc/disconnect", desk.disconnect),
    ):
        app.add_url_rule(path, f"{method} {path}", for_people(page), methods=[method])


class _Desk:
    def __init__(
        self,
        broker_of: Callable[[], Broker],
        people_of: Callable[[], People],
        elsewhere_of: Callable[[], SignInElsewhere | None],
    ) -> None:
        self._broker_of = broker_of
        self._people_of = people_of
        self._elsewhere_of = elsewhere_of

    async def begin(self) -> Response:
        """Send the browser to the provider: to sign in, to make an account, or to connect the one that it is in."""
        broker = self._broker_of()
        form = await sent_form(broker.config.public_base_url)
        connects = sender(broker, self._people_of(), form).mark if "form" in form else ""
        elsewhere = self._elsewhere()
        purpose = Purpose(form.get("key", ""), form.get("link", ""), connects)
        begun = await elsewhere.begin(purpose, f"{own_url(broker)}{_CALLBACK}", asked_from(broker))
        provider = host_of(elsewhere.provider.issuer)
        answer = document(provider, pages.elsewhere(to_root(), provider, begun.address))
        # No redirection: to browsers that would be part of sending the form, which our policy lets come to us alone.
        answer.headers["Refresh"] = f"0; url={begun.address}"
        seconds = broker.limits.oidc_attempt_seconds
        # Which browser has begun an attempt, for as long as that may take.
        return set_cookie(answer, cookie_name(broker, "oidc"), begun.cookie, seconds, secure=is_secure())

    async def finish(self) -> Response:
        """Where the provider sends the browser: sign in, and go on."""
        require_navigation()
        broker = self._broker_of()
        begun, presented = cookie_of(cookie_name(broker, "oidc")), cookie_of(cookie_name(broker, "account"))
        outcome = await self._elsewhere().finish(request.args, begun, presented)
        key = outcome.purpose.key
        return self._with_cookie(to_page("account/allow" if key else "account", key), outcome)

    def _with_cookie(self, answer: Response, outcome: Outcome) -> Response:
        if outcome.cookie is None:
            return answer
        # The same cookie as that of signing in with a password, which is for the directory of its page. This page is
        # below that; its address is known as the browser sees it, for the provider has sent it here.
        address = urlsplit(outcome.redirect_uri)
        path = address.path.removesuffix("/oidc/callback")
        broker = self._broker_of()
        seconds, secure = broker.limits.browser_seconds, address.scheme == "https"
        return set_cookie(answer, cookie_name(broker, "account"), outcome.cookie, seconds, secure=secure, path=path)

    async def disconnect(self) -> Response:
        """Sign in with the password alone from now on."""
        people = self._people_of()
        broker = self._broker_of()
        browser = sender(broker, people, await sent_form(broker.config.public_base_url))
        await people.accounts.connect(browser.account, None)
        return to_page("account")

    def _elsewhere(self) -> SignInElsewhere:
        elsewhere = self._elsewhere_of()
        if elsewhere is None:
            raise NotFound("this server knows no OpenID Connect provider; sign in with a password")
        return elsewhere
