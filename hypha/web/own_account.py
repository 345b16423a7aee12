"""The account page and its forms: tokens, links, people, and the password, for who is signed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from quart import Response, request

from hypha.accounts.account import Account, SignedIn
from hypha.accounts.oidc import host_of
from hypha.accounts.people import People
from hypha.broker.access import Level
from hypha.broker.broker import Broker
from hypha.broker.registry import Workspace
from hypha.errors import HyphaError, InvalidArgument, NotStored
from hypha.web import account_page as page
from hypha.web import account_pages as pages
from hypha.web.document import document, span
from hypha.web.forms import asked_from, own_url, sender, sent_form, to_root
from hypha.web.shares import require_function

#: Does what a form says, with what it holds.
Deed = Callable[[SignedIn, dict[str, str]], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class OwnAccount:
    """The page of whoever is signed in, and what its forms do."""

    broker_of: Callable[[], Broker]
    people_of: Callable[[], People]

    def forms(self) -> dict[str, Callable[[], Awaitable[Response]]]:
        """What answers to the forms of the page, by their paths."""
        deeds: dict[str, Deed] = {
            "/account/password": self._change_password,
            "/account/tokens": self._make_token,
            "/account/tokens/revoke": self._revoke_token,
            "/account/shares": self._share,
            "/account/shares/revoke": self._revoke_share,
            "/account/invitations": self._invite,
            "/account/invitations/withdraw": self._withdraw,
            "/account/people/password": self._offer_password,
            "/account/people/remove": self._remove,
        }
        return {path: partial(self._do, deed) for path, deed in deeds.items()}

    async def _do(self, deed: Deed) -> Response:
        """Do what a form says. What is wrong with it is told on the page, with what was sent in its place."""
        form = await sent_form(self._broker.config.public_base_url)
        browser = sender(self._broker, self._people, form)
        try:
            return await deed(browser, form.to_dict())
        except HyphaError as error:
            wrong = f"done, but not kept: {error}" if isinstance(error, NotStored) else str(error)
            answer = await self.show(browser, wrong=wrong, sent=form.to_dict())
            answer.status_code = error.status
            return answer

    async def show(
        self,
        browser: SignedIn,
        done: str | None = None,
        *,
        wrong: str | None = None,
        sent: Mapping[str, str] | None = None,
    ) -> Response:
        """The page."""
        account, issuer = browser.account, self._broker.config.oidc_issuer
        view = page.View(
            to_root(),
            browser,
            self._broker.clock(),
            None if issuer is None else host_of(issuer),
            self._people.accounts.browsers_of(account),
            await self._workspaces(account),
            self._people.tokens.of(account),
            self._in_use(account),
            self._people.shares.of(account),
            self._crowd(account),
            done,
            wrong,
            sent or {},
        )
        return document(account.name, page.account_page(view))

    @property
    def _broker(self) -> Broker:
        return self.broker_of()

    @property
    def _people(self) -> People:
        return self.people_of()

    async def _workspaces(self, account: Account) -> list[tuple[Workspace, Level]]:
        """Those that the account has a part in; its own first. Being everywhere as administrator is no part."""
        found = [item async for item in self._broker.administration.belonging(account.as_member)]
        return sorted(found, key=lambda item: (item[0].name != account.id, item[0].name))

    def _in_use(self, account: Account) -> Counter[str]:
        """How many programs are connected with a token, by its id."""
        users = {account.id, *(token.holder.id for token in self._people.tokens.of(account))}
        sessions = (session for user in users for session in self._broker.registry.sessions_of(user))
        return Counter(token for session in sessions for token in session.principal.tokens)

    def _crowd(self, account: Account) -> page.Crowd | None:
        """The people whom an administrator has asked for."""
        if not account.is_admin:
            return None
        wanted, accounts = request.args.get("find", ""), self._people.accounts
        found = accounts.search(wanted)
        shown = found[: page.PEOPLE_SHOWN]
        waiting = accounts.invitations(account)[: page.PEOPLE_SHOWN]
        return page.Crowd(wanted, shown, len(found), len(accounts), waiting)

    # --- tokens and links -------------------------------------------------------------------------------------

    async def _make_token(self, browser: SignedIn, form: dict[str, str]) -> Response:
        """A new token, on a page of its own."""
        label, scope, level = (form.get(name, "") for name in ("label", "scope", "level"))
        admin, life = scope == page.ALL_AND_SERVER, _life(form)
        one = None if scope in {page.ALL, page.ALL_AND_SERVER} else scope
        if one is None and level != page.AS_MUCH:
            raise InvalidArgument("a token for all your workspaces may whatever you may; for less, choose one of them")
        if one is not None and level == page.AS_MUCH:
            level = self._people.tokens.level_in(browser.account, one).name.lower()
        text = await self._people.tokens.issue(browser.account, label, life, one, level, admin=admin)
        return document("Your new token", pages.new_token(to_root(), text, label.strip(), own_url(self._broker)))

    async def _revoke_token(self, browser: SignedIn, form: dict[str, str]) -> Response:
        await self._people.tokens.revoke(browser.account, form.get("id", ""))
        return await self.show(browser, "The token is revoked: nobody comes in with it any more.")

    async def _share(self, browser: SignedIn, form: dict[str, str]) -> Response:
        """A link to a service, on a page of its own."""
        workspace, _, service = form.get("service", "").partition(" ")
        function, calls, label = (form.get(name, "").strip() for name in ("function", "calls", "label"))
        life = _life(form)
        if function:
            await require_function(self._broker, browser.account.as_member, workspace, service, function)
        shares = self._people.shares
        secret = await shares.share(browser.account, label, life, workspace, service, function or None, _calls(calls))
        told = f"For {label}. Whoever has it can call {function or 'the service'}. It is not shown again."
        content = pages.new_link(to_root(), "A link", told, f"{own_url(self._broker)}/share/{secret}")
        return document("Link", content)

    async def _revoke_share(self, browser: SignedIn, form: dict[str, str]) -> Response:
        await self._people.shares.revoke(browser.account, form.get("id", ""))
        return await self.show(browser, "The link is revoked: nobody can call with it any more.")

    # --- people -----------------------------------------------------------------------------------------------

    async def _invite(self, browser: SignedIn, form: dict[str, str]) -> Response:
        """A link with which somebody makes an account, on a page of its own."""
        email = form.get("email", "").strip()
        secret = await self._people.accounts.invite(browser.account, email)
        whom = email or "one person"
        told = f"Send it to {whom}, who makes one account with it {self._in_time()}. It is not shown again."
        return self._joining("An invitation", told, secret)

    async def _withdraw(self, browser: SignedIn, form: dict[str, str]) -> Response:
        await self._people.accounts.withdraw(browser.account, form.get("id", ""))
        return await self.show(browser, "The link is withdrawn: it leads nowhere any more.")

    async def _offer_password(self, browser: SignedIn, form: dict[str, str]) -> Response:
        """A link with which somebody gets another password, on a page of its own."""
        account_id = form.get("id", "")
        secret = await self._people.accounts.offer_password(browser.account, account_id)
        account = self._people.accounts.get(account_id)
        name = account.name if account is not None else ""
        told = f"Send it to {name}, who chooses another password with it, {self._in_time()}. It is not shown again."
        return self._joining(f"Another password for {name}", told, secret)

    def _in_time(self) -> str:
        return f"within {span(self._broker.limits.invitation_seconds)}"

    def _joining(self, title: str, told: str, secret: str) -> Response:
        url = f"{own_url(self._broker)}/account/join?link={secret}"
        return document(title, pages.new_link(to_root(), title, told, url))

    async def _remove(self, browser: SignedIn, form: dict[str, str]) -> Response:
        """One account less, when that was asked twice."""
        account = self._people.accounts.removable(browser.account, form.get("id", ""))
        if form.get("sure") != "yes":
            told = (
                f"{account.name} is signed out everywhere. The account's workspace ends with all that is in it, and so "
                "do its tokens, its links, and the programs that are connected with them. Nothing brings that back."
            )
            fields = {"id": account.id}
            content = pages.sure(to_root(), browser, "account/people/remove", fields, f"Remove {account.name}?", told)
            return document("Remove an account", content)
        removed = await self._people.remove(browser.account, account.id)
        return await self.show(browser, f"{removed.name} has no account here any more.")

    async def _change_password(self, browser: SignedIn, form: dict[str, str]) -> Response:
        old, new = form.get("old", ""), form.get("new", "")
        await self._people.accounts.change_password(browser, old, new, asked_from(self._broker))
        return await self.show(browser, "The password is changed.")


def _life(form: dict[str, str]) -> float:
    text = form.get("life", "")
    lives = {str(seconds): float(seconds) for seconds in page.LIVES}
    if text not in lives:
        raise InvalidArgument("choose how long it lives")
    return lives[text]


def _calls(text: str) -> int | None:
    if text and not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise InvalidArgument("the number of calls is a whole number")
    return int(text) if text else None
