"""The pages on which people sign in, see who they are, and give out tokens: ``/account`` and what is below.

The cookie that says who is signed in counts here and nowhere else: browsers send it to these pages alone, while
websockets and functions ask for a token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import cast
from urllib.parse import urlencode

from hypercorn.typing import HTTPScope
from quart import Response, redirect, request
from quart_trio import QuartTrio
from werkzeug.datastructures import MultiDict

from hypha.accounts.account import Account, Invitation, SignedIn
from hypha.accounts.oidc import host_of
from hypha.accounts.people import People
from hypha.broker.access import Level, level_in
from hypha.broker.broker import Broker
from hypha.broker.login import Attempt
from hypha.broker.own import Visit
from hypha.broker.registry import Workspace
from hypha.errors import HyphaError, InvalidArgument, NotAuthenticated, NotFound, NotStored, PermissionDenied
from hypha.web import account_pages as pages
from hypha.web.document import document, sentence
from hypha.web.forms import COOKIE, is_secure, require_navigation, sent_form, set_cookie, to_root
from hypha.web.http import base_url
from hypha.web.login import asked

Page = Callable[[], Awaitable[Response]]

_SIGNED_OUT = "You are signed out. Open your account again to sign in."


def add_routes(app: QuartTrio, broker_of: Callable[[], Broker], people_of: Callable[[], People]) -> None:
    """Add the routes to *app*. *broker_of* and *people_of* give both once the server has started."""
    desk = _Desk(broker_of, people_of)
    shown: dict[str, Page] = {"/account": desk.account, "/account/join": desk.join, "/account/allow": desk.allow}
    sent: dict[str, Page] = {
        "/account/sign-in": desk.sign_in,
        "/account/sign-out": desk.sign_out,
        "/account/join": desk.joined,
        "/account/password": desk.change_password,
        "/account/tokens": desk.make_token,
        "/account/tokens/revoke": desk.revoke_token,
        "/account/shares": desk.share,
        "/account/shares/revoke": desk.revoke_share,
        "/account/invitations": desk.invite,
        "/account/people/password": desk.offer_password,
        "/account/people/remove": desk.remove,
        "/account/allow": desk.allowed,
    }
    for method, table in (("GET", shown), ("POST", sent)):
        for path, page in table.items():
            app.add_url_rule(path, f"{method} {path}", for_people(page), methods=[method])

    @app.get("/apps/built-in/account-manager.html")
    async def account_manager() -> Response:
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
    def __init__(self, broker_of: Callable[[], Broker], people_of: Callable[[], People]) -> None:
        self._broker_of = broker_of
        self._people_of = people_of

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
        return await self._account(browser) if browser is not None else self._sign_in_page()

    def _sign_in_page(self, key: str = "", error: HyphaError | None = None, name: str = "") -> Response:
        problem, status = (None, 200) if error is None else (str(error), error.status)
        return document("Sign in", pages.sign_in(to_root(), self._provider(), key, problem, name), status)

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
        question = asked(attempt, self._broker.now() - attempt.since)
        return document("Let a program in?", pages.allow(to_root(), browser, key, *question))

    async def _account(self, browser: SignedIn, done: str | None = None) -> Response:
        accounts, account = self._people.accounts, browser.account
        content = pages.account(
            to_root(),
            self._provider(),
            browser,
            self._broker.clock(),
            accounts.browsers_of(account),
            await self._workspaces(browser),
            self._people.tokens.of(account),
            self._people.shares.of(account),
            self._crowd(account),
            done,
        )
        return document(account.name, content)

    # --- forms ------------------------------------------------------------------------------------------------

    async def sign_in(self) -> Response:
        """Sign in; with the key of a program go on to its question."""
        form = await sent_form(self._broker.config.public_base_url)
        name, password, key = (form.get(field, "") for field in ("name", "password", "key"))
        try:
            presented = request.cookies.get(COOKIE)
            secret = await self._people.accounts.sign_in(name, password, request.remote_addr, presented)
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
                account = await accounts.join(secret, name, password, form.get("email", ""), request.remote_addr)
            else:
                account = await accounts.renew(secret, password, request.remote_addr)
        except (NotFound, NotStored):  # there is nothing to be sent again
            raise
        except HyphaError as error:
            return self._join_page(secret, invitation, error, name)
        return self._with_cookie(to_page("account"), await accounts.enter_browser(account, request.cookies.get(COOKIE)))

    async def sign_out(self) -> Response:
        """Forget this browser."""
        browser, _ = await self._form()
        await self._people.accounts.sign_out(browser)
        answer = document("Signed out", pages.message(to_root(), "Signed out", _SIGNED_OUT))
        answer.delete_cookie(COOKIE, path=None, httponly=True, samesite="Lax", secure=is_secure())
        return answer

    async def change_password(self) -> Response:
        """Another password."""
        browser, form = await self._form()
        old, new = form.get("old", ""), form.get("new", "")
        await self._people.accounts.change_password(browser, old, new, request.remote_addr)
        return await self._account(browser, "The password is changed.")

    async def make_token(self) -> Response:
        """A new token, on a page of its own."""
        browser, form = await self._form()
        label, scope = form.get("label", ""), form.get("scope", pages.ALL)
        one = None if scope in {pages.ALL, pages.ALL_AND_SERVER} else scope
        admin = scope == pages.ALL_AND_SERVER
        life = _life(form.get("life", ""))
        text = await self._people.tokens.issue(browser.account, label, life, one, form.get("level", ""), admin=admin)
        return document("Your new token", pages.new_token(to_root(), text, label.strip(), self._url()))

    async def revoke_token(self) -> Response:
        """One token less."""
        browser, form = await self._form()
        await self._people.tokens.revoke(browser.account, form.get("id", ""))
        return await self._account(browser, "The token is revoked: nobody comes in with it any more.")

    async def share(self) -> Response:
        """A link to a service."""
        browser, form = await self._form()
        workspace, _, service = form.get("service", "").partition(" ")
        function, calls, life = form.get("function", "").strip(), form.get("calls", "").strip(), form.get("life", "")
        secret = await self._people.shares.share(
            browser.account, form.get("label", ""), _life(life), workspace, service, function or None, _calls(calls)
        )
        told = "Whoever has it can call the service. It is not shown again."
        content = pages.new_link(to_root(), "A link", told, f"{self._url()}/share/{secret}")
        return document("Link", content)

    async def revoke_share(self) -> Response:
        """One link less."""
        browser, form = await self._form()
        await self._people.shares.revoke(browser.account, form.get("id", ""))
        return await self._account(browser, "The link is revoked: nobody can call with it any more.")

    async def invite(self) -> Response:
        """A link with which somebody makes an account."""
        browser, form = await self._form()
        secret = await self._people.accounts.invite(browser.account, form.get("email", ""))
        told = "Send it to one person, who makes one account with it. It is not shown again."
        url = f"{self._url()}/account/join?link={secret}"
        return document("Invitation", pages.new_link(to_root(), "An invitation", told, url))

    async def offer_password(self) -> Response:
        """A link with which somebody gets another password."""
        browser, form = await self._form()
        secret = await self._people.accounts.offer_password(browser.account, form.get("id", ""))
        told = "Send it to the person whose account it is. It is good once, and not shown again."
        url = f"{self._url()}/account/join?link={secret}"
        return document("Another password", pages.new_link(to_root(), "Another password", told, url))

    async def remove(self) -> Response:
        """One account less."""
        browser, form = await self._form()
        removed = await self._people.remove(browser.account, form.get("id", ""))
        return await self._account(browser, f"{removed.name} has no account here any more.")

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
        seconds = attempt.expires_in or self._broker.limits.token_seconds
        level = self._level(browser, attempt.workspace)
        program, _, _ = asked(attempt, 0)
        label = f"login of {program[:1].lower()}{program[1:]}"
        text = await tokens.issue(account, label, seconds, attempt.workspace, level)
        visit = Visit(account.principal, account.id, self._url(), "HTTP")
        try:
            await self._broker.login.report(visit, key, text, name=account.name)
        except HyphaError:  # somebody else was faster: nobody has the token
            await tokens.revoke(account, self._broker.tokens.verify(text).tokens[-1])
            raise

    # ----------------------------------------------------------------------------------------------------------

    def _browser(self) -> SignedIn | None:
        """Who asks for a page."""
        require_navigation()
        return self._people.accounts.signed_in(request.cookies.get(COOKIE))

    async def _form(self) -> tuple[SignedIn, dict[str, str]]:
        """Who has sent a form, and what. Raises :class:`NotAuthenticated` and :class:`PermissionDenied`."""
        form = await sent_form(self._broker.config.public_base_url)
        return sender(self._people, form), form.to_dict()

    def _provider(self) -> str | None:
        """What people read of the provider at which they can sign in, too."""
        issuer = self._broker.config.oidc_issuer
        return None if issuer is None else host_of(issuer)

    def _waiting(self, key: str) -> Attempt:
        attempt = self._broker.login.waiting(key)
        if attempt is None:
            raise NotFound("no program waits here any more; start the login again in your program")
        return attempt

    async def _workspaces(self, browser: SignedIn) -> list[tuple[Workspace, Level]]:
        """Those that the account has a part in; its own first. Being everywhere as administrator is no part."""
        user = browser.account.as_member
        found = [item async for item in self._broker.administration.belonging(user)]
        return sorted(found, key=lambda item: (item[0].name != user.id, item[0].name))

    def _crowd(self, account: Account) -> pages.Crowd | None:
        """The people whom an administrator has asked for."""
        if not account.is_admin:
            return None
        wanted = request.args.get("find", "")
        found = self._people.accounts.search(wanted)
        return pages.Crowd(wanted, found[: pages.PEOPLE_SHOWN], len(found), len(self._people.accounts))

    def _level(self, browser: SignedIn, workspace: str | None) -> str:
        if workspace is None:
            return ""
        place = self._broker.registry.workspaces.get(workspace)
        own = Level.NONE if place is None else level_in(browser.account.as_member, place)
        if own is Level.NONE:
            raise PermissionDenied(f"you have no part in the workspace {workspace}")
        return min(own, Level.READ_WRITE).name.lower()

    def _url(self) -> str:
        return own_url(self._broker)

    def _with_cookie(self, answer: Response, secret: str) -> Response:
        # Without a path it is for the directory of this address, as the browser sees it: right behind every proxy.
        return set_cookie(answer, COOKIE, secret, self._broker.limits.browser_seconds, secure=is_secure())


def sender(people: People, form: MultiDict[str, str]) -> SignedIn:
    """Who is signed in where *form* comes from. Raises :class:`NotAuthenticated` and :class:`PermissionDenied`."""
    browser = people.accounts.signed_in(request.cookies.get(COOKIE))
    if browser is None:
        raise NotAuthenticated("you are not signed in any more; open your account again")
    people.accounts.check_form(browser, form.get("form", ""))
    return browser


def own_url(broker: Broker) -> str:
    """The address of the server, as it was told or as this browser has reached it."""
    return broker.config.public_base_url or base_url(cast(HTTPScope, request.scope), request.root_path)


def to_page(place: str, key: str = "") -> Response:
    """A relative redirection, to be read with GET."""
    answer = redirect(to_root() + place + (f"?{urlencode({'key': key})}" if key else ""), 303)
    assert isinstance(answer, Response)
    return answer


def _life(text: str) -> float:
    if not text.isdigit() or int(text) not in pages.LIVES:
        raise InvalidArgument("choose how long the token lives")
    return float(text)


def _calls(text: str) -> int | None:
    if text and not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise InvalidArgument("the number of calls is a whole number")
    return int(text) if text else None
