"""Tokens: what was issued, to whom, for what and for how long, and nothing that merely looks like it."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha.broker.access import Level, Principal
from hypha.broker.tokens import Resumption, Tokens, legacy_form, new_user_id
from hypha.config import Limits
from hypha.errors import NotAuthenticated
from hypha.wire.address import Address, check_name
from tests.broker.memory import EPOCH, KEY

USER = Principal(
    id="u1",
    is_anonymous=False,
    email="u@lab.org",
    roles=("tester",),
    parent="issuer",
    grants={"lab": Level.READ_WRITE, "a.b|c": Level.ADMIN, "public": Level.READ},
    home="lab",
)


class Clock:
    """Seconds since the epoch, as a test wants them."""

    def __init__(self) -> None:
        self.now = EPOCH

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> Tokens:
    return Tokens(KEY, clock)


def claims_of(token: str) -> dict[str, Any]:
    segment = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    return found


def refused(tokens: Tokens, text: str) -> str:
    with pytest.raises(NotAuthenticated) as caught:
        tokens.verify(text)
    with pytest.raises(NotAuthenticated):
        tokens.verify_resumption(text)
    return str(caught.value)


FOREIGN = "the token is not one of this server; generate a new one"


def test_a_token_proves_what_it_was_issued_for(tokens: Tokens) -> None:
    proven = tokens.verify(tokens.issue(USER, expires_in=100))
    assert proven == Principal(**{**{f: getattr(USER, f) for f in USER.__slots__}, "expires_at": EPOCH + 100})


names = st.text(st.sampled_from("abcXYZ019._~|-"), min_size=1, max_size=20).filter(lambda name: name[0] not in "._~|-")
principals = st.builds(
    Principal,
    id=names,
    is_anonymous=st.booleans(),
    email=st.none() | st.text(max_size=20),
    roles=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    parent=st.none() | names,
    grants=st.dictionaries(names, st.sampled_from([Level.READ, Level.READ_WRITE, Level.ADMIN]), max_size=4),
    home=st.none() | names,
    expires_at=st.none() | st.floats(EPOCH, EPOCH * 2),
)


@given(principals, names, names, names)
def test_any_principal_goes_round(principal: Principal, workspace: str, client: str, identity: str) -> None:
    tokens = Tokens(KEY, Clock())
    access = tokens.verify(legacy_form(principal.id, tokens.issue(principal, expires_in=50)))
    assert access == Principal(**{**{f: getattr(principal, f) for f in principal.__slots__}, "expires_at": EPOCH + 50})
    resumption = Resumption(Address(workspace, client), principal, identity)
    assert tokens.verify_resumption(tokens.issue_resumption(resumption, expires_in=50)) == resumption


def test_the_legacy_form_carries_the_mark_and_is_read_with_and_without_it(tokens: Tokens) -> None:
    token = tokens.issue(USER, expires_in=100)
    marked = legacy_form(USER.id, token)
    assert marked.startswith("u1@imjoy@ey")
    assert marked.count(".") == 2
    for text in (token, marked, f"@imjoy@{token}", f" {token}\n", f"other@imjoy@{token}", f"a@imjoy@b@imjoy@{token}"):
        assert tokens.verify(text).id == "u1"


def test_a_token_lives_exactly_as_long_as_it_says_and_half_a_minute(tokens: Tokens, clock: Clock) -> None:
    token = tokens.issue(USER, expires_in=100)
    resume = tokens.issue_resumption(Resumption(Address("lab", "c"), USER, "i"), expires_in=100)
    clock.now = EPOCH + 130
    assert tokens.verify(token).expires_at == EPOCH + 100
    assert tokens.verify_resumption(resume).address == Address("lab", "c")
    clock.now = EPOCH + 130.001
    for verify, text in ((tokens.verify, token), (tokens.verify_resumption, resume)):
        with pytest.raises(NotAuthenticated, match="the token has expired; generate a new one"):
            verify(text)


def test_a_clock_that_was_set_back_refuses_nobody(tokens: Tokens, clock: Clock) -> None:
    token = tokens.issue(USER, expires_in=100)
    clock.now = EPOCH - 3600
    assert tokens.verify(token).id == "u1"


def test_a_token_of_one_use_is_not_taken_for_the_other(tokens: Tokens) -> None:
    resumption = Resumption(Address("lab", "c"), USER, "i")
    with pytest.raises(NotAuthenticated, match="not meant for this use"):
        tokens.verify(tokens.issue_resumption(resumption, expires_in=100))
    with pytest.raises(NotAuthenticated, match="not meant for this use"):
        tokens.verify_resumption(tokens.issue(USER, expires_in=100))


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("change", ["cut", "flip", "swap", "empty"])
def test_a_token_with_any_part_changed_is_refused(part: int, change: str, tokens: Tokens, clock: Clock) -> None:
    mine = tokens.issue(USER, expires_in=100).split(".")
    other = tokens.issue(Principal("root", is_anonymous=False), expires_in=1000).split(".")
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT","x":1}').rstrip(b"=").decode()
    other[0] = header
    changed = {
        "cut": mine[part][:-4],
        "flip": ("B" if mine[part][5] == "A" else "A").join((mine[part][:5], mine[part][6:])),
        "swap": other[part],
        "empty": "",
    }[change]
    assert refused(tokens, ".".join([*mine[:part], changed, *mine[part + 1 :]])) == FOREIGN


def test_no_other_algorithm_is_accepted(tokens: Tokens) -> None:
    rows: list[str] = ["none", "HS384", "HS512"]
    for algorithm in rows:
        claims = claims_of(tokens.issue(USER, expires_in=100))
        key: Any = None if algorithm == "none" else KEY * 2
        assert refused(tokens, jwt.encode(claims, key, algorithm=algorithm)) == FOREIGN


def test_a_token_for_somebody_else_is_refused_although_it_is_signed(tokens: Tokens) -> None:
    rows: list[dict[str, Any]] = [
        {"aud": "elsewhere"},
        {"aud": None},
        {"iss": "elsewhere"},
        {"iss": None},
        {"exp": None},
        {"iat": None},
        {"sub": None},
    ]
    for changes in rows:
        claims = claims_of(tokens.issue(USER, expires_in=100)) | changes
        token = jwt.encode({name: value for name, value in claims.items() if value is not None}, KEY, algorithm="HS256")
        assert refused(tokens, token) == FOREIGN


def test_another_servers_token_is_refused(tokens: Tokens, clock: Clock) -> None:
    assert refused(tokens, Tokens(b"x" * 32, clock).issue(USER, expires_in=100)) == FOREIGN


def encoded(header: bytes) -> str:
    return base64.urlsafe_b64encode(header).rstrip(b"=").decode()


def test_what_is_no_token_is_refused(tokens: Tokens) -> None:
    rows: list[str] = [
        " ",
        "x",
        ".",
        "..",
        "a.b.c",
        "a.b.c.d",
        "@imjoy@",
        "\0",
        "\ud800.a.b",
        "ü.ü.ü",
        encoded(b"[" * 9000) + ".e30.c2ln",
        encoded(b'{"a":' * 5000) + ".e30.c2ln",
        encoded(b"[]") + ".e30.c2ln",
        encoded(b'{"alg":["HS256"]}') + ".e30.c2ln",
        encoded(b'{"alg":"HS256","crit":["exp"]}') + ".e30.c2ln",
        encoded(b'{"alg":"HS256","b64":false}') + ".e30.c2ln",
        encoded(b"\xff\xfe") + ".e30.c2ln",
        "x" * 100_000,
    ]
    for text in rows:
        assert refused(tokens, text) == FOREIGN


@given(st.text(max_size=80))
def test_no_text_is_a_token_by_chance(text: str) -> None:
    assert refused(Tokens(KEY), text) == FOREIGN


def test_every_token_is_another(tokens: Tokens) -> None:
    assert tokens.issue(USER, expires_in=100) != tokens.issue(USER, expires_in=100)


def test_a_token_for_a_programs_life_is_good_until_it_is_ended(tokens: Tokens, clock: Clock) -> None:
    token, token_id = tokens.issue_living(USER)
    clock.now = EPOCH + 5 * 365 * 86400
    holder = tokens.verify(token)
    assert (holder.id, holder.grants, tokens.is_revoked(holder)) == (USER.id, USER.grants, False)
    tokens.end(token_id)
    assert tokens.is_revoked(holder)
    assert refused_as_revoked(tokens, token)
    tokens.end(token_id)  # again, which changes nothing


def test_what_was_issued_through_a_programs_token_ends_with_it(tokens: Tokens) -> None:
    token, token_id = tokens.issue_living(USER)
    other = tokens.issue_living(USER)[0]
    through = tokens.issue(tokens.verify(token), expires_in=100)
    resumption = tokens.issue_resumption(Resumption(Address("lab", "c"), tokens.verify(token), "i"), expires_in=100)
    tokens.end(token_id)
    assert refused_as_revoked(tokens, through)
    with pytest.raises(NotAuthenticated, match="the token was revoked"):
        tokens.verify_resumption(resumption)
    assert tokens.verify(other).id == USER.id


def test_another_process_refuses_a_programs_token(tokens: Tokens, clock: Clock) -> None:
    token, _ = tokens.issue_living(USER)
    through = tokens.issue(tokens.verify(token), expires_in=100)
    after_a_crash = Tokens(KEY, clock)
    assert refused_as_revoked(after_a_crash, token)
    assert refused_as_revoked(after_a_crash, through)
    assert after_a_crash.verify(tokens.issue(USER, expires_in=100)).id == USER.id


def test_a_programs_token_can_be_revoked_like_others_and_nothing_is_kept_of_it(clock: Clock) -> None:
    tokens = Tokens(KEY, clock, Limits(revoked_tokens=1))
    for _ in range(5):
        token, _ = tokens.issue_living(USER)
        tokens.revoke(tokens.verify(token), USER)
        assert refused_as_revoked(tokens, token)


def refused_as_revoked(tokens: Tokens, text: str) -> bool:
    return refused(tokens, text) == "the token was revoked; generate a new one"


def test_the_claims_that_clients_read_are_where_they_look(tokens: Tokens) -> None:
    """hypha-rpc reads ``wid:`` from the scope of a three-part JWT (``protocol.md`` 7.2)."""
    claims = claims_of(tokens.issue(USER, expires_in=100))
    assert claims["scope"].split() == ["ws:lab#rw", "ws:a.b|c#a", "ws:public#r", "wid:lab"]
    assert (claims["exp"], claims["iat"], claims["sub"]) == (EPOCH + 100, EPOCH, "u1")


def test_user_ids_are_fresh_names_of_one_length() -> None:
    found = {new_user_id() for _ in range(500)}
    assert len(found) == 500
    assert {len(name) for name in found} == {22}
    assert all(name.isalnum() and check_name("workspace", name) for name in found)
