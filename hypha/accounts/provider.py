"""An OpenID Connect provider, as this server asks it: where things are, its keys, and who has signed in there.

Every answer has a deadline and a largest size, redirections are not followed, and nothing is asked before somebody
wants to sign in. This module needs the extra ``oidc``.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus, urlencode, urlsplit

import httpx
import trio

from hypha.accounts.id_token import Expected, UnknownKey, checked
from hypha.accounts.oidc import Answer, Attempt, shown
from hypha.config import MIB, Config, is_loopback
from hypha.errors import CallTimeout, InvalidArgument, PeerGone

_SECONDS = 10.0  # for one answer
_MAX_ANSWER = MIB
_AT_ONCE = 8  # requests
_KNOWN_SECONDS = 3600.0
_KEYS_APART_SECONDS = 60.0  # between two looks for a key that is not known


@dataclass(slots=True)
class _Known:
    """What the provider has told about itself. Times of trio."""

    document: Mapping[str, Any]
    until: float
    keys: list[Mapping[str, Any]] = field(default_factory=list)
    keys_since: float | None = None


class Provider:
    """The provider of a configuration that names one."""

    def __init__(self, config: Config) -> None:
        assert config.oidc_issuer is not None
        assert config.oidc_client_id is not None
        self.issuer = config.oidc_issuer
        self._client_id, self._secret = config.oidc_client_id, config.oidc_client_secret
        self._known: _Known | None = None
        self._lock = trio.Lock()
        # Nothing stays open between two requests: so nothing is to be closed at the end.
        pool = httpx.Limits(max_connections=_AT_ONCE, max_keepalive_connections=0)
        self._client = httpx.AsyncClient(limits=pool, timeout=None, follow_redirects=False)  # noqa: S113  _in_time bounds it

    async def address(self, state: str, attempt: Attempt) -> str:
        """Where a browser goes to sign in.

        Raises :class:`PeerGone` and :class:`CallTimeout` for a provider that cannot be asked.
        """
        place = self._endpoint(await self._about(), "authorization_endpoint")
        query = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": attempt.redirect_uri,
            "scope": "openid email profile",
            "state": state,
            "nonce": attempt.nonce,
            "code_challenge": _challenge(attempt.verifier),
            "code_challenge_method": "S256",
        }
        return f"{place}{'&' if urlsplit(place).query else '?'}{urlencode(query)}"

    async def check_sender(self, issuer: str | None) -> None:
        """See that an answer comes from this provider (RFC 9207). Raises :class:`InvalidArgument`."""
        told = (await self._about()).get("authorization_response_iss_parameter_supported") is True
        if issuer != self.issuer and (told or issuer is not None):
            raise InvalidArgument("this answer does not come from the provider that was asked; start again")

    async def redeem(self, code: str, attempt: Attempt, now: float) -> Answer:
        """Who has signed in, for the *code* that the browser brings. *now*: seconds since the epoch.

        Raises :class:`InvalidArgument` for a code that is not taken, :class:`PermissionDenied` for one of another
        attempt, :class:`PeerGone` and :class:`CallTimeout`.
        """
        about = await self._about()
        sent = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": attempt.redirect_uri,
            "code_verifier": attempt.verifier,
        }
        headers = self._authenticate(about, sent)
        status, body = await self._fetch("POST", self._endpoint(about, "token_endpoint"), headers, sent)
        if status != 200:
            raise _refused(status, body)
        answer = _document(body)
        token, access = answer.get("id_token"), answer.get("access_token")
        if not isinstance(token, str):
            raise PeerGone("the provider does not say who has signed in: its answer has no ID token")
        expected = Expected(self.issuer, self._client_id, attempt.nonce)
        return Answer(await self._checked(token, expected, now), access if isinstance(access, str) else None)

    async def more(self, answer: Answer) -> Mapping[str, Any]:
        """All that the provider says of who has signed in: some tell the e-mail address only when asked for it."""
        about = await self._about()
        if "email" in answer.claims or answer.token is None or "userinfo_endpoint" not in about:
            return answer.claims
        place = self._endpoint(about, "userinfo_endpoint")
        status, body = await self._fetch("GET", place, {"Authorization": f"Bearer {answer.token}"})
        told = _document(body) if status == 200 else {}
        if told.get("sub") != answer.claims["sub"]:  # Core 5.3.2: it may speak of somebody else
            return answer.claims
        return {**answer.claims, "email_verified": False, **told}  # whether it is, says who says which

    # --- what is known of it ----------------------------------------------------------------------------------

    async def _about(self) -> Mapping[str, Any]:
        return (await self._current()).document

    async def _current(self) -> _Known:
        async with self._alone():
            now = trio.current_time()
            if self._known is None or self._known.until <= now:
                # With the keys, so that one which the provider does not use any more is not believed for ever.
                self._known = _Known(await self._discover(), now + _KNOWN_SECONDS)
            return self._known

    async def _discover(self) -> Mapping[str, Any]:
        place = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        status, body = await self._fetch("GET", place)
        if status != 200:
            raise PeerGone(f"the provider cannot be used: {place} answers {status}")
        document = _document(body)
        if document.get("issuer") != self.issuer:
            raise PeerGone(
                f"the provider calls itself {shown(document.get('issuer'))}, and not {self.issuer} as this server does"
            )
        return document

    async def _checked(self, token: str, expected: Expected, now: float) -> Mapping[str, Any]:
        known = await self._current()
        try:
            return checked(token, known.keys, expected, now)
        except UnknownKey:
            if not await self._learn_keys(known):
                raise
        return checked(token, known.keys, expected, now)

    async def _learn_keys(self, known: _Known) -> bool:
        """Fetch the keys, unless that was just done. Returns whether there may be new ones."""
        asked = trio.current_time()
        async with self._alone():
            if known.keys_since is not None and trio.current_time() < known.keys_since + _KEYS_APART_SECONDS:
                return known.keys_since >= asked
            status, body = await self._fetch("GET", self._endpoint(known.document, "jwks_uri"))
            keys = _document(body).get("keys") if status == 200 else None
            if not isinstance(keys, list):
                raise PeerGone("the provider cannot be used: it does not show its keys")
            known.keys, known.keys_since = [key for key in keys if isinstance(key, dict)], trio.current_time()
            return True

    def _endpoint(self, document: Mapping[str, Any], name: str) -> str:
        """An address of the provider's, as safe as that of the provider itself."""
        place = document.get(name)
        try:
            address = urlsplit(place if isinstance(place, str) else "")
            host = address.hostname or ""
        except ValueError:
            host = ""
        plain = isinstance(place, str) and all("!" <= letter <= "~" for letter in place)
        here = self.issuer.startswith("http:") and is_loopback(host)
        if not plain or not host or not (address.scheme == "https" or here) or address.fragment:
            raise PeerGone(f"the provider cannot be used: its {name} is no https address")
        return str(place)

    def _authenticate(self, about: Mapping[str, Any], sent: dict[str, str]) -> dict[str, str]:
        """Say who this server is, in the way that the provider wants; the headers for it."""
        ways = about.get("token_endpoint_auth_methods_supported")
        by_post = isinstance(ways, list) and "client_secret_post" in ways and "client_secret_basic" not in ways
        if self._secret is not None and not by_post:
            # RFC 6749 2.3.1: both are written as in a form first.
            both = f"{quote_plus(self._client_id)}:{quote_plus(self._secret)}"
            return {"Authorization": f"Basic {base64.b64encode(both.encode()).decode()}"}
        sent["client_id"] = self._client_id
        if self._secret is not None:
            sent["client_secret"] = self._secret
        return {}

    async def _fetch(
        self, method: str, place: str, headers: Mapping[str, str] | None = None, form: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """The status and the body of an answer, to which the deadline and the size of all answers apply."""
        # Not compressed: so it is never larger than what has come.
        told = {"Accept": "application/json", "Accept-Encoding": "identity", **(headers or {})}
        status, body = 0, bytearray()
        try:
            with self._in_time(), trio.CancelScope() as enough:
                async with self._client.stream(method, place, headers=told, data=form) as answer:
                    status = answer.status_code
                    async for chunk in answer.aiter_raw():
                        body += chunk
                        if len(body) > _MAX_ANSWER:
                            enough.cancel()  # httpx ends well in the middle when it is cancelled, and not otherwise
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise PeerGone(f"the provider at {self.issuer} cannot be reached; try later") from error
        if len(body) > _MAX_ANSWER:
            raise PeerGone(f"the provider cannot be used: an answer has more than {_MAX_ANSWER} bytes")
        return status, bytes(body)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """One at a time looks for what everybody needs; nobody waits longer for that than for an answer."""
        with self._in_time():
            async with self._lock:
                yield

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        try:
            with trio.fail_after(_SECONDS):
                yield
        except trio.TooSlowError:
            raise CallTimeout(f"the provider at {self.issuer} does not answer; try later") from None


def _challenge(verifier: str) -> str:
    """What is told of *verifier* before it is shown: S256 of RFC 7636."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise PeerGone("the provider cannot be used: its answer is not what the standard says")
    return document


def _refused(status: int, body: bytes) -> InvalidArgument | PeerGone:
    try:
        reason = _document(body).get("error")
    except PeerGone:
        reason = None
    if reason == "invalid_grant":
        return InvalidArgument("this sign-in was used already, or took too long; start again")
    if reason in {"invalid_client", "unauthorized_client"}:
        return PeerGone("the provider does not know this server: its client id or secret is wrong")
    return PeerGone(f"the provider did not say who has signed in: it answers {status} {shown(reason)}")
