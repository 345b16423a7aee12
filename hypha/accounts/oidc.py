"""Signing in at an OpenID Connect provider: attempts that have begun, and whose account each leads to.

An attempt belongs to one browser, by a cookie, and ends with the first answer that comes to it. What is kept of it is
small, bounded by ``oidc_attempts``, and does not outlive the server. Nothing here needs the extra ``oidc``: who is
asked, and how, is the business of :mod:`hypha.accounts.provider`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hypha.accounts.account import Account, SignedIn, checked_email, mark_of, new_secret
from hypha.accounts.accounts import Accounts
from hypha.broker.throttle import Throttle, place
from hypha.errors import ConfigError, InvalidArgument, NotFound, PeerGone, PermissionDenied

if TYPE_CHECKING:
    from hypha.accounts.provider import Provider
    from hypha.broker.broker import Broker

_NEEDED = ("httpx", "cryptography")
_MAX_ADDRESS = 1000  # characters
_MAX_SHOWN = 200  # characters of what a provider says
#: What a provider says of itself (RFC 6749 4.1.2.1): a server that has failed.
_FAILURES = frozenset({"server_error", "temporarily_unavailable"})


def require_oidc() -> None:
    """Raise :class:`ConfigError` unless the extra for OpenID Connect is installed."""
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        raise ConfigError(
            "--oidc-issuer needs the extra hypha[oidc]; install what it holds: "
            f"{sys.executable} -m pip install 'httpx>=0.27' 'pyjwt[crypto]>=2.10'"
        )


def host_of(issuer: str) -> str:
    """What people read of an issuer."""
    return urlsplit(issuer).netloc


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the provider is told of one attempt to sign in. *verifier*: what proves that it is ours (RFC 7636)."""

    nonce: str = field(repr=False)
    verifier: str = field(repr=False)
    redirect_uri: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the provider says of who has signed in; *token* opens what it says beyond that."""

    claims: Mapping[str, Any]
    token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Purpose:
    """What an attempt is for, beside signing in.

    *key*: of a program that waits for a token. *link*: the secret of an invitation. *connects*: the mark of the browser
    whose account gets the identity.
    """

    key: str = ""
    link: str = field(default="", repr=False)
    connects: str = ""


@dataclass(frozen=True, slots=True)
class _Begun:
    """An attempt. *cookie*: what is kept of it. *place*: where it came from. *until*: trio time."""

    attempt: Attempt
    purpose: Purpose
    cookie: str
    place: str
    until: float


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where the browser goes, and the secret for its cookie."""

    address: str
    cookie: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Who has signed in, with the purpose and the address of the answer. *cookie*: None where somebody was already."""

    account: Account
    purpose: Purpose
    redirect_uri: str
    cookie: str | None = field(repr=False)


class SignInElsewhere:
    """Signing in at one provider."""

    def __init__(self, broker: Broker, accounts: Accounts, provider: Provider) -> None:
        self._broker = broker
        self._limits = broker.limits
        self._accounts = accounts
        self.provider = provider
        #: By what is kept of the state, the oldest first.
        self._begun: dict[str, _Begun] = {}
        self._tries = Throttle("sign_in_tries_per_address", self._limits.sign_in_tries_per_address)

    async def begin(self, purpose: Purpose, redirect_uri: str, address: str | None) -> Beginning:
        """Begin an attempt. *redirect_uri*: where the provider sends the browser; *address*: from where it asks.

        Raises :class:`LimitExceeded` for too many attempts, :class:`NotFound` for a link that invites nobody and a
        program that does not wait, :class:`InvalidArgument` for an address that nobody can have registered, and what a
        provider that cannot be asked raises.
        """
        self._tries.take(place(address), self._broker.now())
        if purpose.link and self._accounts.invitation(purpose.link).account is not None:
            raise NotFound("this link is for somebody who has an account already")
        if purpose.key and self._broker.login.waiting(purpose.key) is None:
            raise NotFound("no program waits here any more; start the login again in your program")
        if len(redirect_uri) > _MAX_ADDRESS:  # whatever is kept of an attempt is small
            raise InvalidArgument("the address of this server is too long")
        state, cookie = new_secret(), new_secret()
        attempt = Attempt(new_secret(), new_secret(), redirect_uri)
        target = await self.provider.address(state, attempt)
        self._forget_old()
        until = self._broker.now() + self._limits.oidc_attempt_seconds
        self._begun[mark_of(state)] = _Begun(attempt, purpose, mark_of(cookie), place(address), until)
        return Beginning(target, cookie)

    def _forget_old(self) -> None:
        """Those that are too old; and of too many the oldest, since one that is refused would keep people out."""
        now = self._broker.now()
        while self._begun:
            state, oldest = next(iter(self._begun.items()))
            if oldest.until > now and len(self._begun) < self._limits.oidc_attempts:
                return
            del self._begun[state]

    async def finish(self, query: Mapping[str, str], cookie: str | None, presented: str | None) -> Outcome:
        """What becomes of the answer that a browser brings with *cookie*; *presented*: the secret of who is signed in.

        Raises :class:`InvalidArgument` and :class:`PermissionDenied` for an answer that is not taken, and for whom
        there is no account; :class:`NotFound`, :class:`Conflict` and :class:`LimitExceeded` for an account that cannot
        be made; and what a provider that cannot be asked raises.
        """
        begun = self._begun.pop(mark_of(query.get("state", "")), None)
        if begun is None or begun.until <= self._broker.now() or begun.cookie != mark_of(cookie or ""):
            raise InvalidArgument(
                "this sign-in was not begun in this browser, is used up, or took too long; start again"
            )
        await self.provider.check_sender(query.get("iss"))
        if "error" in query:
            raise _told(query["error"], query.get("error_description", ""))
        if not query.get("code"):
            raise InvalidArgument("the provider's answer says nothing; start again")
        answer = await self.provider.redeem(query["code"], begun.attempt, self._broker.clock())
        identity = (self.provider.issuer, str(answer.claims["sub"]))
        if begun.purpose.connects:
            return await self._connect(begun, self._accounts.signed_in(presented), identity)
        account = self._accounts.identified(identity) or await self._join(identity, answer, begun.purpose.link)
        secret = await self._accounts.let_in(account, presented)
        self._tries.give_back(begun.place)
        return Outcome(account, begun.purpose, begun.attempt.redirect_uri, secret)

    async def _connect(self, begun: _Begun, browser: SignedIn | None, identity: tuple[str, str]) -> Outcome:
        # The browser may have come to another account meanwhile, or to none, also while the provider was asked.
        if browser is None or browser.mark != begun.purpose.connects:
            raise PermissionDenied("you are not signed in any more; open your account again")
        await self._accounts.connect(browser.account, identity)
        self._tries.give_back(begun.place)
        return Outcome(browser.account, begun.purpose, begun.attempt.redirect_uri, None)

    async def _join(self, identity: tuple[str, str], answer: Answer, link: str) -> Account:
        """Make an account, by invitation or because of the domain of the e-mail address."""
        claims = await self.provider.more(answer)
        known = self._accounts.identified(identity)
        if known is not None:  # another browser was faster
            return known
        email = _verified_email(claims)
        if not link and not self._is_welcome(email):
            raise PermissionDenied(
                "you have no account here yet: ask whoever runs this server for an invitation, or connect the account "
                "that you have: sign in with its password"
            )
        name = claims.get("preferred_username")
        return await self._accounts.join_as(
            identity, name if isinstance(name, str) else email or "", email, link or None
        )

    def _is_welcome(self, email: str | None) -> bool:
        """Whether an address needs no invitation. The first account of a server does: it administers the server."""
        domains = self._broker.config.oidc_domains
        domain = None if email is None else email.rpartition("@")[2]
        return self._accounts.is_founded and ("*" in domains or domain in domains)


def shown(text: object) -> str:
    """What a provider says, in a sentence: cut, and in one line."""
    return repr(str(text)[:_MAX_SHOWN])


def _verified_email(claims: Mapping[str, Any]) -> str | None:
    """The address that the provider vouches for."""
    email = claims.get("email")
    if claims.get("email_verified") is not True or not isinstance(email, str):
        return None
    try:
        return checked_email(email)
    except InvalidArgument:
        return None


def _told(error: str, description: str) -> PermissionDenied | PeerGone | InvalidArgument:
    """The words of a provider that lets nobody in: cut, and no more than text."""
    words = shown(f"{error} {description}".strip())
    if error == "access_denied":
        return PermissionDenied(f"you were not let in by the provider, which says {words}")
    if error in _FAILURES:
        return PeerGone(f"the provider cannot sign you in now, and says {words}; try later")
    return InvalidArgument(f"the provider did not sign you in, and says {words}")
