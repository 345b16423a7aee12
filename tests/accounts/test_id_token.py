"""ID tokens with real signatures: what is taken, and what is not, each for its own reason."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hypha.accounts.id_token import ALGORITHMS, Expected, UnknownKey, checked
from hypha.errors import HyphaError, PeerGone, PermissionDenied
from tests.accounts.provider import CLIENT_ID, claims_for, private, public, signed

ISSUER, NONCE, NOW = "https://id.example", "nonce-1", 1_800_000_000.0
KEYS = [public("one"), public("two", number=1), public("curve", "ES256"), public("edwards", "EdDSA")]
EXPECTED = Expected(ISSUER, CLIENT_ID, NONCE)
OTHER = "somebody else"


def ada(**more: Any) -> dict[str, Any]:
    return claims_for(ISSUER, NONCE, NOW, **more)


def taken(token: str) -> dict[str, Any]:
    return checked(token, KEYS, EXPECTED, NOW)


@pytest.mark.parametrize(
    ("kid", "algorithm", "key"),
    [
        ("one", "RS256", private()),
        ("one", "RS512", private()),
        ("one", "PS256", private()),
        ("two", "RS256", private(number=1)),
        ("curve", "ES256", private("ES256")),
        (None, "ES256", private("ES256")),  # the only one of its kind
        ("edwards", "EdDSA", private("EdDSA")),
    ],
)
def test_every_asymmetric_algorithm_is_taken_with_its_own_key(kid: str | None, algorithm: str, key: Any) -> None:
    assert taken(signed(ada(email="ada@lab.example"), kid, algorithm, key))["email"] == "ada@lab.example"


@pytest.mark.parametrize(
    "more",
    [
        {"exp": NOW - 29},
        {"iat": NOW + 29},
        {"nbf": NOW + 29},
        {"iat": NOW - 100_000},
        {"aud": [CLIENT_ID]},
        {"aud": [CLIENT_ID, OTHER], "azp": CLIENT_ID},
        {"azp": CLIENT_ID},
        {"sub": "x" * 255},
    ],
)
def test_what_is_allowed_is_taken(more: dict[str, Any]) -> None:
    assert taken(signed(ada(**more)))["iss"] == ISSUER


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"iss": "https://id.example.evil.example"}, "not from the issuer"),
        ({"iss": f"{ISSUER}/"}, "not from the issuer"),
        ({"iss": None}, "not from the issuer"),
        ({"aud": OTHER}, "for another program"),
        ({"aud": None}, "for another program"),
        ({"aud": []}, "for another program"),
        ({"aud": [OTHER], "azp": CLIENT_ID}, "for another program"),
        ({"aud": [CLIENT_ID, OTHER]}, "for another program"),
        ({"aud": [CLIENT_ID, OTHER], "azp": OTHER}, "for another program"),
        ({"azp": OTHER}, "for another program"),
        ({"exp": NOW - 31}, "has expired"),
        ({"exp": None}, "from when to when"),
        ({"exp": "tomorrow"}, "from when to when"),
        ({"exp": True}, "from when to when"),
        ({"exp": float("nan")}, "from when to when"),
        ({"exp": 10**400}, "from when to when"),
        ({"iat": NOW + 31}, "from the future"),
        ({"nbf": NOW + 31}, "from the future"),
        ({"iat": None}, "from when to when"),
        ({"nbf": "now"}, "from when to when"),
        ({"sub": None}, "who has signed in"),
        ({"sub": ""}, "who has signed in"),
        ({"sub": 7}, "who has signed in"),
        ({"sub": "x" * 256}, "who has signed in"),
    ],
)
def test_a_signed_token_that_says_something_else_is_the_providers_fault(more: dict[str, Any], complaint: str) -> None:
    # pyjwt makes no token whose times or names are no times or names.
    with pytest.raises(PeerGone, match=complaint):
        taken(by_hand({"alg": "RS256", "kid": "one"}, ada(**more)))


@pytest.mark.parametrize("nonce", [None, "", "nonce-2", 7, "é"])
def test_a_token_of_another_attempt_is_refused(nonce: Any) -> None:
    with pytest.raises(PermissionDenied, match="another sign-in"):
        taken(signed(ada(nonce=nonce)))


def encoded(part: Any) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def by_hand(header: Any, claims: Any, key: Any = None) -> str:
    """A token with whatever header, signed with RS256."""
    text = f"{encoded(header)}.{encoded(claims)}"
    algorithm = jwt.get_algorithm_by_name("RS256")
    return f"{text}.{encoded(algorithm.sign(text.encode(), private() if key is None else key))}"


def with_the_public_key_as_secret(form: Encoding, layout: PublicFormat) -> str:
    """HS256 with what everybody can know. pyjwt itself refuses to make one."""
    secret = private().public_key().public_bytes(form, layout)
    text = f"{encoded({'alg': 'HS256', 'kid': 'one'})}.{encoded(ada())}"
    algorithm = jwt.get_algorithm_by_name("HS256")
    return f"{text}.{encoded(algorithm.sign(text.encode(), secret))}"


FORGED = {
    "no signature": f"{encoded({'alg': 'none'})}.{encoded(ada())}.",
    "no signature, with a key": f"{encoded({'alg': 'none', 'kid': 'one'})}.{encoded(ada())}.",
    "None": f"{encoded({'alg': 'None', 'kid': 'one'})}.{encoded(ada())}.",
    "the public key in PEM as secret": with_the_public_key_as_secret(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    "the public key in DER as secret": with_the_public_key_as_secret(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    "a key of the same name": signed(ada(), key=private(number=2)),
    "a key of another name": signed(ada(), "two"),
    "the key in the header": by_hand({"alg": "RS256", "kid": "one", "jwk": public(number=2)}, ada(), private(number=2)),
    "another algorithm than that of the key": signed(ada(), "one", "ES256", private("ES256")),
    "what must be understood": by_hand({"alg": "RS256", "kid": "one", "crit": ["exp"], "exp": 1}, ada()),
    "no algorithm": by_hand({"kid": "one"}, ada()),
    "an algorithm that is no name": by_hand({"alg": ["RS256"], "kid": "one"}, ada()),
    "changed after it was signed": ".".join(
        [*signed(ada()).split(".")[:1], encoded(ada(sub="bob-1")), signed(ada()).split(".")[2]]
    ),
    "no claims": by_hand({"alg": "RS256", "kid": "one"}, [1]),
    "no JSON": by_hand({"alg": "RS256", "kid": "one"}, b"\xff"),
    "nothing": "",
    "words": "a.b.c",
    "five parts": "a.b.c.d.e",
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_token_is_refused(name: str) -> None:
    with pytest.raises(PeerGone, match=r"signature does not hold|is not accepted|does not show"):
        taken(FORGED[name])


def test_a_key_that_is_not_shown_can_be_looked_for() -> None:
    for token in (signed(ada(), "three"), signed(ada(), None)):  # of two that fit, none is chosen
        with pytest.raises(UnknownKey):
            taken(token)


@pytest.mark.parametrize(
    "key",
    [
        public("one", use="enc"),
        public("one", alg="RS512"),
        public("one") | {"crv": "P-256", "kty": "EC"},
        public("one") | {"kty": None},
        public("one") | {"n": "!"},
        {"kid": "one", "kty": "RSA"},
        {"kid": "one", "kty": "oct", "k": "c2VjcmV0", "alg": "RS256"},
        {"kid": "one", "kty": ["RSA"], "crv": {}},
    ],
)
def test_a_key_that_is_for_something_else_or_is_none_is_not_used(key: dict[str, Any]) -> None:
    with pytest.raises(HyphaError, match=r"signature does not hold|does not show"):
        checked(signed(ada()), [key], EXPECTED, NOW)


@pytest.mark.filterwarnings("ignore::UserWarning")  # which newer versions of pyjwt give
def test_a_key_that_is_too_short_is_not_used() -> None:
    token = signed(ada(), key=private("short"))
    with pytest.raises(PeerGone, match="too short"):
        checked(token, [public("one", "short")], EXPECTED, NOW)


def test_no_algorithm_is_accepted_for_which_a_secret_is_shared() -> None:
    assert not {name for name in ALGORITHMS if name.startswith("HS") or name.lower() == "none"}
