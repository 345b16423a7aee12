"""What an OpenID Connect provider says of who has signed in there, checked (OpenID Connect Core 1.0 section 3.1.3.7).

Nothing is believed of a token before its signature was checked with a key of the provider's; how keys and tokens get
here is the business of :mod:`hypha.accounts.provider`. This module needs the extra ``oidc``.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jwt

from hypha.errors import PeerGone, PermissionDenied

if TYPE_CHECKING:
    from jwt.types import Options

#: Algorithms by the kind of key, and for curves by the curve. No shared secret is among them: with one, whoever knows
#: what everybody may know could sign.
_ALGORITHMS = {
    "RSA": frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    "P-256": frozenset({"ES256"}),
    "P-384": frozenset({"ES384"}),
    "P-521": frozenset({"ES512"}),
    "Ed25519": frozenset({"EdDSA"}),
}
ALGORITHMS = frozenset().union(*_ALGORITHMS.values())

#: Times and the rest are checked with the server's own clock, and with words for each.
_CHECKED_HERE: Options = {
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}

_CLOCK_SKEW = 30  # seconds
_MAX_SUBJECT = 255  # characters, as the standard says
_MIN_RSA_BITS = 2048


class UnknownKey(PeerGone):
    """The token names a key that is not among those of the provider that are known here."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Of what a token must be: who has made it, for whom, and for which attempt to sign in."""

    issuer: str
    client_id: str
    nonce: str


def checked(token: str, keys: Sequence[Mapping[str, Any]], expected: Expected, now: float) -> dict[str, Any]:
    """The claims of *token*, which must be signed with one of *keys* (RFC 7517). *now*: seconds since the epoch.

    Raises :class:`UnknownKey`, :class:`PeerGone` for a token that no provider should send, and
    :class:`PermissionDenied` for one of another attempt.
    """
    claims = _signed(token, keys)
    _check_times(claims, now)
    _check_audience(claims, expected.client_id)
    if claims.get("iss") != expected.issuer:
        raise _bad("it is not from the issuer that was asked")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= _MAX_SUBJECT:
        raise _bad("it does not say who has signed in")
    nonce = claims.get("nonce")
    if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), expected.nonce.encode()):
        raise PermissionDenied("the answer of the provider is for another sign-in; start again")
    return claims


def _signed(token: str, keys: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    try:
        header = jwt.get_unverified_header(token)
        algorithm = header["alg"]
        if algorithm not in ALGORITHMS or "crit" in header:
            raise _bad("it is signed in a way that is not accepted")
        # The key is for the algorithm that the token names, and for no other one.
        key = jwt.PyJWK(dict(_key_for(header.get("kid"), algorithm, keys)), algorithm=algorithm)
        if key.key_type == "RSA" and key.key.key_size < _MIN_RSA_BITS:
            raise _bad("its key is too short")
        return dict(
            jwt.decode(
                token,
                key,
                algorithms=["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"],
                options=_CHECKED_HERE,
            )
        )
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
        raise _bad("its signature does not hold") from error


def _key_for(kid: object, algorithm: str, keys: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The key of that name which can have made such a signature; without a name, the only one that can."""
    fitting = [key for key in keys if _fits(key, algorithm) and (kid is None or key.get("kid") == kid)]
    if len(fitting) != 1:
        raise UnknownKey("the sign-in cannot be checked: the provider has signed with a key that it does not show")
    return fitting[0]


def _fits(key: Mapping[str, Any], algorithm: str) -> bool:
    kind = key.get("kty") if key.get("kty") == "RSA" else key.get("crv")
    allowed = _ALGORITHMS.get(kind, frozenset()) if isinstance(kind, str) else frozenset()
    return algorithm in allowed and key.get("use", "sig") == "sig" and key.get("alg", algorithm) == algorithm


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    made, end = _time(claims, "iat"), _time(claims, "exp")
    start = max(made, _time(claims, "nbf")) if "nbf" in claims else made
    if end + _CLOCK_SKEW < now:
        raise _bad("it has expired; compare the clocks of both servers")
    if start - _CLOCK_SKEW > now:
        raise _bad("it is from the future; compare the clocks of both servers")


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise _bad("it does not say from when to when it is good")
    return value


def _check_audience(claims: Mapping[str, Any], client_id: str) -> None:
    audience = claims.get("aud")
    several = audience if isinstance(audience, list) else [audience]
    party = claims.get("azp", client_id if len(several) == 1 else None)
    if client_id not in several or party != client_id:
        raise _bad("it is for another program")


def _bad(why: str) -> PeerGone:
    return PeerGone(f"the sign-in was not taken from the provider: {why}")
