"""The pages on which people sign in, make their account, and let programs in: ``/account`` and what is below.

The cookie that says who is signed in counts here and nowhere else: browsers send it to these pages alone, while
websockets and functions ask for a token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from html import escape
from urllib.parse import urlencode

from quart import Response, redirect, request
from quart_trio import QuartTrio

from hypha.accounts.account import Invitation, SignedIn
from hypha.accounts.oidc import host_of
from hypha.accounts.people import People
from hypha.broker.access import Level
from hypha.broker.broker import Broker
from hypha.broker.login import Attempt
from hypha.broker.own import Visit
from hypha.errors import HyphaError, NotFound, NotStored
from hypha.web import account_pages as pages
from hypha.web.document import document, sentence, span
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
from hypha.web.login import asked
from hypha.web.own_account import OwnAccount

Page = Callable[[], Awaitable[Response]]

_SIGNED_OUT = "You are signed out. Open your account again to sign in."


def add_routes(app: QuartTrio, broker_of: Callable[[], Broker], people_of: Callable[[], People]) -> None:
    """Add the routes to *app*. *broker_of* and *people_of* give both once the server has started."""
    own = OwnAccount(broker_of, people_of)
    desk = _Desk(broker_of, people_of, own)
    shown: dict[str, Page] = {"/account": desk.account, "/account/join": desk.join, "/account/allow": desk.allow}
    sent: dict[str, Page] = {
        "/account/sign-in": desk.sign_in,
        "/account/sign-out": desk.sign_out,
        "/account/join": desk.joined,
        "/account/allow": desk.allowed,
        **own.forms(),
    }
    # Where a form was sent to is what stands in the address bar then.
    shown |= dict.fromkeys(sent.keys() - shown.keys(), _back)
    for method, table in (("GET", shown), ("POST", sent)):
        for path, page in table.items():
            app.add_url_rule(path, f"{method} {path}", for_people(page), methods=[method], strict_slashes=False)

    @app.get("/apps/built-in/account-manager.html")
    async def account_manager() -> Response:
        return to_page("account")


async def _back() -> Response:
    return to_page("account")


def for_people(page: Page) -> Page:
    """*page*, whose errors are pages, too."""

    @wraps(page)
    async def answer() -> Response:
        try:
            return await page()
        except NotStored as error:
            return document(
                "Not kept", pages.message(to_root(), "Done, but not kept", sentence(str(error))), error.status
            )
        except HyphaError as error:
            return document(
                "Not done", pages.message(to_root(), "That was not done", sentence(str(error))), error.status
            )

    return answer


class _Desk:
    def __init__(self, broker_of: Callable[[], Broker], people_of: Callable[[], People], own: OwnAccount) -> None:
        self._broker_of = broker_of
        self._people_of = people_of
        self._own = own

    @property
    def _broker(self) -> Broker:
        return self._broker_of()

    @property
    def _people(self) -> People:
        return self._people_of()

    # --- pages ------------------------------------------------------------------------------------------------

    async def account(self) -> Response:
        """All about the account; the form to sign in for who is not."""
        browser = self._browser()
        return await self._own.show(browser) if browser is not None else self._sign_in_page()

    def _sign_in_page(self, key: str = "", error: HyphaError | None = None, name: str = "") -> Response:
        problem, status = (None, 200) if error is None else (str(error), error.status)
        first = not self._people.accounts.is_founded
        content = pages.sign_in(to_root(), self._provider(), key, problem, name, first=first)
        return document("Sign in", content, status)

    async def join(self) -> Response:
        """The form to make an account, for who has a link."""
        require_navigation()
        secret = request.args.get("link", "")
        invitation = self._people.accounts.invitation(secret)
        return self._join_page(secret, invitation)

    def _join_page(
        self, secret: str, invitation: Invitation, error: HyphaError | None = None, name: str = ""
    ) -> Response:
        problem, status = (None, 200) if error is None else (str(error), error.status)
        account = self._people.accounts.get(invitation.account or "")
        if account is not None:
            return document("Choose a password", pages.renew(to_root(), secret, account.name, problem), status)
        content = pages.join(to_root(), self._provider(), secret, invitation, problem, name)
        return document("Make your account", content, status)

    async def allow(self) -> Response:
        """Whether a program that waits gets a token."""
        browser, key = self._browser(), request.args.get("key", "")
        attempt = self._waiting(key)
        if browser is None:
            return self._sign_in_page(key)
        program, time, _ = asked(attempt, self._broker.now() - attempt.since)
        if request.headers.get("Sec-Fetch-Site") == "cross-site":  # nobody is led straight to the button
            return document("Let a program in?", pages.led_here(to_root(), key, program, time))
        what = "all your workspaces"
        if attempt.workspace is not None:
            what = f"the workspace <b>{escape(attempt.workspace)}</b>"
        life = span(self._life(attempt))
        return document("Let a program in?", pages.allow(to_root(), browser, key, program, time, what, life))

    # --- forms ------------------------------------------------------------------------------------------------

    async def sign_in(self) -> Response:
        """Sign in; with the key of a program go on to its question."""
        form = await sent_form(self._broker.config.public_base_url)
        name, password, key = (form.get(field, "") for field in ("name", "password", "key"))
        try:
            presented = self._presented()
            secret = await self._people.accounts.sign_in(name, password, asked_from(self._broker), presented)
        except HyphaError as error:
            return self._sign_in_page(key, error, name)
        # The address is ours, whatever was sent: a key only chooses which page.
        return self._with_cookie(to_page("account/allow" if key else "account", key), secret)

    async def joined(self) -> Response:
        """Make the account, and be signed in."""
        form = await sent_form(self._broker.config.public_base_url)
        secret, name = form.get("link", ""), form.get("name", "")
        accounts = self._people.accounts
        invitation = accounts.invitation(secret)
        password = form.get("password", "")
        try:
            if invitation.account is None:
                account = await accounts.join(secret, name, password, form.get("email", ""), asked_from(self._broker))
            else:
                account = await accounts.renew(secret, password, asked_from(self._broker))
        except (NotFound, NotStored):  # there is nothing to be sent again
            raise
        except HyphaError as error:
            return self._join_page(secret, invitation, error, name)
        return self._with_cookie(to_page("account"), await accounts.enter_browser(account, self._presented()))

    async def sign_out(self) -> Response:
        """Forget this browser."""
        browser, _ = await self._form()
        await self._people.accounts.sign_out(browser)
        answer = document("Signed out", pages.message(to_root(), "Signed out", _SIGNED_OUT))
        name = cookie_name(self._broker, "account")
        answer.delete_cookie(name, path=None, httponly=True, samesite="Lax", secure=is_secure())
        return answer

    async def allowed(self) -> Response:
        """Give the program that waits a token."""
        browser, form = await self._form()
        key = form.get("key", "")
        attempt = self._waiting(key)
        await self._give(browser, key, attempt)
        told = "The program has its token and goes on. You can close this page."
        return document("Done", pages.message(to_root(), "Done", told))

    async def _give(self, browser: SignedIn, key: str, attempt: Attempt) -> None:
        account, tokens = browser.account, self._people.tokens
        level = ""
        if attempt.workspace is not None:
            level = min(tokens.level_in(account, attempt.workspace), Level.READ_WRITE).name.lower()
        program, _, _ = asked(attempt, 0)
        label = f"login of {program[:1].lower()}{program[1:]}"
        text = await tokens.issue(account, label, self._life(attempt), attempt.workspace, level)
        visit = Visit(account.principal, account.id, own_url(self._broker), "HTTP")
        try:
            await self._broker.login.report(visit, key, text, name=account.name)
        except HyphaError:  # somebody else was faster: nobody has the token
            await tokens.revoke(account, self._broker.tokens.verify(text).tokens[-1])
            raise

    def _life(self, attempt: Attempt) -> float:
        return attempt.expires_in or self._broker.limits.token_seconds

    # ----------------------------------------------------------------------------------------------------------

    def _browser(self) -> SignedIn | None:
        """Who asks for a page."""
        require_navigation()
        return self._people.accounts.signed_in(self._presented())

    def _presented(self) -> str | None:
        """The secret of who is signed in in this browser, good or not."""
        return cookie_of(cookie_name(self._broker, "account"))

    async def _form(self) -> tuple[SignedIn, dict[str, str]]:
        """Who has sent a form, and what. Raises :class:`NotAuthenticated` and :class:`PermissionDenied`."""
        form = await sent_form(self._broker.config.public_base_url)
        return sender(self._broker, self._people, form), form.to_dict()

    def _provider(self) -> str | None:
        """What people read of the provider at which they can sign in, too."""
        issuer = self._broker.config.oidc_issuer
        return None if issuer is None else host_of(issuer)

    def _waiting(self, key: str) -> Attempt:
        attempt = self._broker.login.waiting(key)
        if attempt is None:
            raise NotFound("no program waits here any more; start the login again in your program")
        return attempt

    def _with_cookie(self, answer: Response, secret: str) -> Response:
        # Without a path it is for the directory of this address, as the browser sees it: right behind every proxy.
        name, seconds = cookie_name(self._broker, "account"), self._broker.limits.browser_seconds
        return set_cookie(answer, name, secret, seconds, secure=is_secure())


def to_page(place: str, key: str = "") -> Response:
    """A relative redirection, to be read with GET."""
    answer = redirect(to_root() + place + (f"?{urlencode({'key': key})}" if key else ""), 303)
    assert isinstance(answer, Response)
    return answer
