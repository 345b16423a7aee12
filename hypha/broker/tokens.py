"""Tokens: issue, verify, revoke. JWT with HS256 (RFC 7519), one signing key per data directory (``protocol.md`` 7)."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jwt

from hypha.broker.access import Level, Principal
from hypha.broker.issued import Issued, IssuedToken
from hypha.broker.records import Records
from hypha.broker.revocations import Passed, Revocations
from hypha.config import Limits
from hypha.errors import LimitExceeded, NotAuthenticated
from hypha.wire.address import Address

_ISSUER = "hypha"
_LEGACY_MARK = "@imjoy@"
_CLOCK_SKEW = 30  # seconds
#: In front of the id of a token that lives as long as a program; no other id holds a colon.
_LIVING = "life:"
_LIVING_SECONDS = 10 * 365 * 86400.0  # a token says when it expires: later than any program ends
_USER_ID_LETTERS = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_USER_ID_SIZE = 22
_USER_ID_BITS = 192  # 64 more than the letters take, so that none of them is likelier than another


@dataclass(frozen=True, slots=True)
class Resumption:
    """What a reconnection token proves: who it was, where, and which of the sessions there (``decisions.md`` 13)."""

    address: Address
    principal: Principal
    identity: str


#: How often it is kept when tokens were used last, in seconds.
_WRITE_SECONDS = 30.0

#: Tokens of which it is remembered that they were made with our key.
_DECODED_TOKENS = 1000


class Tokens:
    """Issues and verifies tokens with one key. *clock* gives seconds since the epoch.

    A token holds its own id and those of the tokens through which it was issued, so that revoking one of them ends it.
    """

    def __init__(
        self,
        key: bytes,
        clock: Callable[[], float] = time.time,
        limits: Limits | None = None,
        records: Records | None = None,
    ) -> None:
        self._key = key
        self._clock = clock
        # A tenth of the cost of a connection is the check of its token, and programs use theirs again and again.
        self._decoded = lru_cache(_DECODED_TOKENS)(self._decode)
        self._limits = limits or Limits()
        self.revocations = Revocations(self._limits, records)
        self.issued = Issued(self._limits, records)
        self._passed = Passed()
        self._next_write = 0.0  # trio time
        self._living: set[str] = set()

    def issue(self, principal: Principal, *, expires_in: float, label: str | None = None) -> str:
        """A token that proves *principal* for *expires_in* seconds. Plain JWT; :func:`legacy_form` marks it.

        *label*: what a person says that it is for. It ends with the tokens of *principal*, too, when one is revoked.
        Raises :class:`LimitExceeded` for too many.
        """
        if len(principal.tokens) >= self._limits.token_depth:
            limit = self._limits.token_depth
            raise LimitExceeded(f"token_depth = {limit} tokens were issued one through the other; begin with the first")
        token_id, now = secrets.token_urlsafe(12), self._clock()
        self.issued.add(IssuedToken(token_id, principal, now, now + expires_in, label))
        return self._sign(principal, "access", expires_in, token_id=token_id)

    def issue_living(self, principal: Principal) -> tuple[str, str]:
        """A token that is good until :meth:`end` is told its id, which comes with it.

        What is issued through it ends with it. Another process refuses it, even one with the same key: that these are
        good is known in memory alone, so that no crash leaves one behind.
        """
        token_id = _LIVING + secrets.token_urlsafe(12)
        self._living.add(token_id)
        return self._sign(principal, "access", _LIVING_SECONDS, token_id=token_id), token_id

    def end(self, token_id: str) -> None:
        """Let the token of :meth:`issue_living` be refused from now on, and whatever was issued through it."""
        self._living.discard(token_id)

    def issue_resumption(self, resumption: Resumption, *, expires_in: float) -> str:
        """A token with which a client comes back as the same client."""
        extra = {"ws": resumption.address.workspace, "cid": resumption.address.client, "ses": resumption.identity}
        return self._sign(resumption.principal, "resume", expires_in, extra)

    def verify(self, text: str) -> Principal:
        """The principal that an access token proves. Raises :class:`NotAuthenticated` saying what is wrong."""
        principal = _principal(self._claims(text, "access"))
        self.issued.touch(principal.tokens, self._clock())
        return principal

    def is_foreign(self, text: str) -> bool:
        """Whether *text* has neither the form of a token of ours nor of another such server's, good or not."""
        return _LEGACY_MARK not in text and _named_issuer(text) != _ISSUER

    def verify_resumption(self, text: str) -> Resumption:
        """What a reconnection token proves. Raises :class:`NotAuthenticated`."""
        claims = self._claims(text, "resume")
        address = Address(str(claims.get("ws")), str(claims.get("cid")))
        principal = _principal(claims)
        self.issued.touch(principal.tokens, self._clock())
        return Resumption(address, principal, str(claims.get("ses")))

    def revoke(self, principal: Principal, by: Principal) -> None:
        """Let the token that proved *principal* be refused from now on, and whatever was issued through it.

        It is remembered until the token would have expired, and counts against *by*, or against who has labelled it.
        Raises :class:`LimitExceeded`, but for tokens with labels.
        """
        if principal.tokens[-1].startswith(_LIVING):
            self.end(principal.tokens[-1])
            return
        assert principal.expires_at is not None, "it was proved by a token, which ends"
        known = self.issued.get(principal.tokens[-1])
        person = None if known is None or known.label is None else known.holder.origin
        self.revocations.add(principal.tokens[-1], by, principal.expires_at + _CLOCK_SKEW, person)
        self.issued.discard(principal.tokens[-1])

    def is_revoked(self, principal: Principal) -> bool:
        """Whether *principal* came with a token that was revoked since, or is or comes from a blocked user."""
        if self._has_ended(principal.tokens):
            return True
        # Asked for every session, every second.
        return bool(self.revocations.blocked) and self.revocations.is_blocked(principal.known_as)

    def block(self, user: str, reason: str) -> None:
        """Refuse a user, by id or e-mail address, and whatever it has issued, until :meth:`unblock`."""
        self.revocations.block(user, self._clock(), reason)

    def unblock(self, user: str) -> bool:
        """Take that back. False when it was not blocked."""
        return self.revocations.unblock(user)

    def blocked(self) -> list[dict[str, Any]]:
        """Who is blocked: ``user``, ``since`` in seconds since the epoch, ``reason``."""
        return [{"user": user, **entry} for user, entry in self.revocations.blocked.items()]

    def sweep(self, now: float) -> None:
        """Forget the tokens that have expired, and keep, now and then, when others were used. *now*: trio time."""
        passed = self._passed.until(self._clock(), now)
        self.revocations.forget(passed)
        self.issued.forget(passed)
        if now >= self._next_write:
            self._next_write = now + _WRITE_SECONDS
            self.issued.write_down()

    def listed(self, workspace: str) -> list[IssuedToken]:
        """The tokens for *workspace* that are known to have been issued and are good, the oldest first."""
        now = self._clock()
        known = self.issued.of(workspace)
        return [token for token in known if token.expires_at >= now and not self._has_ended(token.chain)]

    def holder(self, text: str) -> Principal:
        """The principal that a token proves, which is named by its text or by its id in the list.

        Raises :class:`NotAuthenticated` as :meth:`verify` does.
        """
        known = self.issued.get(text)
        if known is None:
            return self.verify(text)
        return replace(known.holder, tokens=known.chain, expires_at=known.expires_at)

    def _has_ended(self, ids: Collection[str]) -> bool:
        ended = any(token.startswith(_LIVING) and token not in self._living for token in ids)
        return ended or self.revocations.touch(ids)

    def _sign(
        self,
        principal: Principal,
        use: str,
        expires_in: float,
        extra: Mapping[str, str] | None = None,
        token_id: str | None = None,
    ) -> str:
        now = self._clock()
        scope = [f"ws:{name}#{level.letter}" for name, level in principal.grants.items()]
        if principal.home is not None:
            scope.append(f"wid:{principal.home}")
        claims: dict[str, Any] = {
            "iss": _ISSUER,
            "aud": _ISSUER,
            "sub": principal.id,
            "iat": int(now),
            "exp": int(now + expires_in),
            "jti": token_id or secrets.token_urlsafe(12),
            "via": list(principal.tokens),
            "line": list(principal.issuers),
            "by": {name: list(names) for name, names in principal.granted_by.items()},
            "use": use,
            "scope": " ".join(scope),
            "anonymous": principal.is_anonymous,
            "roles": list(principal.roles),
            "email": principal.email,
            "parent": principal.parent,
            "until": principal.expires_at,
            "client": principal.client,  # no word of the scope: it may hold spaces
            **(extra or {}),
        }
        return jwt.encode(claims, self._key, algorithm="HS256")

    def _claims(self, text: str, use: str) -> Mapping[str, Any]:
        claims = self._decoded(text.rpartition(_LEGACY_MARK)[2].strip())
        if claims["exp"] + _CLOCK_SKEW < self._clock():
            raise NotAuthenticated("the token has expired; generate a new one")
        if claims.get("use") != use:
            raise NotAuthenticated("the token is not meant for this use")
        if self._has_ended([*claims.get("via", ()), str(claims.get("jti"))]):
            raise NotAuthenticated("the token was revoked; generate a new one")
        if self.revocations.is_blocked({claims["sub"], claims.get("email"), *claims.get("line", ())}):
            raise NotAuthenticated("this user is blocked; ask whoever runs the server")
        return claims

    def _decode(self, bare: str) -> Mapping[str, Any]:
        """What a token says that was made with our key, whenever that was."""
        try:
            return jwt.decode(
                bare,
                self._key,
                algorithms=["HS256"],
                audience=_ISSUER,
                issuer=_ISSUER,
                leeway=_CLOCK_SKEW,
                options={"require": ["exp", "iat", "sub"], "verify_exp": False, "verify_iat": False},
            )
        except (jwt.InvalidTokenError, UnicodeError) as exc:
            raise NotAuthenticated("the token is not one of this server; generate a new one") from exc


def _principal(claims: Mapping[str, Any]) -> Principal:
    grants: dict[str, Level] = {}
    home = None
    for word in str(claims.get("scope", "")).split():
        kind, _, rest = word.partition(":")
        name, _, letter = rest.rpartition("#")
        level = Level.parse(letter)
        if kind == "ws" and level is not None:
            grants[name] = level
        elif kind == "wid":
            home = rest
    is_access = claims.get("use") == "access"
    through = tuple(claims.get("via", ()))
    return Principal(
        id=str(claims["sub"]),
        is_anonymous=bool(claims.get("anonymous")),
        email=claims.get("email"),
        roles=tuple(claims.get("roles") or ()),
        parent=claims.get("parent"),
        grants=grants,
        home=home,
        client=claims.get("client"),
        expires_at=claims["exp"] if is_access else claims.get("until"),
        tokens=(*through, str(claims.get("jti"))) if is_access else through,
        issuers=tuple(claims.get("line", ())),
        granted_by={name: tuple(names) for name, names in claims.get("by", {}).items()},
    )


def _named_issuer(text: str) -> object:
    """Who a JWT says that it is from, which proves nothing; None for what is no JWT."""
    try:
        claims = json.loads(base64.urlsafe_b64decode(text.split(".")[1] + "=="))
        return claims.get("iss") if isinstance(claims, dict) else None
    except (IndexError, ValueError, RecursionError):
        return None


def lives_with_a_program(principal: Principal) -> bool:
    """Whether *principal* came, however indirectly, with a token that ends with a program of this process."""
    return any(token.startswith(_LIVING) for token in principal.tokens)


def legacy_form(principal_id: str, token: str) -> str:
    """The token as legacy users know it: ``<user id>@imjoy@<jwt>`` (``protocol.md`` 7.1)."""
    return f"{principal_id}{_LEGACY_MARK}{token}"


def new_user_id() -> str:
    """A fresh URL-safe user id of 22 characters. Legacy anonymous workspaces are named after it (A16)."""
    number = secrets.randbits(_USER_ID_BITS)  # one request to the kernel: every anonymous HTTP call makes an id
    letters = []
    for _ in range(_USER_ID_SIZE):
        number, index = divmod(number, len(_USER_ID_LETTERS))
        letters.append(_USER_ID_LETTERS[index])
    return "".join(letters)


def is_user_id(name: str) -> bool:
    """Whether *name* has the form that :func:`new_user_id` makes, and so may be, or have been, somebody's own."""
    return len(name) == _USER_ID_SIZE and set(name) <= set(_USER_ID_LETTERS)
