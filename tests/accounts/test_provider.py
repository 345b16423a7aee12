"""What the server asks of a provider and how it takes the answers, over real sockets."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from hypha.accounts import provider as module
from hypha.accounts.oidc import Attempt
from hypha.accounts.provider import Provider
from hypha.config import Config
from hypha.errors import CallTimeout, HyphaError, InvalidArgument, PeerGone
from tests.accounts import provider as scene
from tests.accounts.provider import CLIENT_ID, claims_for, private, public, signed

DISCOVERY = "/.well-known/openid-configuration"
#: From RFC 7636, appendix B.
VERIFIER, CHALLENGE = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
ATTEMPT = Attempt("nonce-1", VERIFIER, "http://lab.example/account/oidc/callback")
SECRET = "s3cret/+ :%"


@pytest.fixture
async def there() -> AsyncIterator[scene.Provider]:
    """Time is real here."""
    with trio.fail_after(20):
        async with scene.provider(time.time) as running:
            running.codes["code-1"] = ATTEMPT.nonce
            yield running


def asking(there: scene.Provider, secret: str | None = None) -> Provider:
    return Provider(Config(oidc_issuer=there.issuer, oidc_client_id=CLIENT_ID, oidc_client_secret=secret))


# --- the way there ------------------------------------------------------------------------------------------------


async def test_a_browser_is_sent_with_all_that_binds_its_answer(there: scene.Provider) -> None:
    there.document["authorization_endpoint"] = f"{there.issuer}/authorize?tenant=lab"
    address = urlsplit(await asking(there).address("state-1", ATTEMPT))
    assert f"{address.scheme}://{address.netloc}{address.path}" == f"{there.issuer}/authorize"
    assert {name: value for name, (value,) in parse_qs(address.query, strict_parsing=True).items()} == {
        "tenant": "lab",
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": ATTEMPT.redirect_uri,
        "scope": "openid email profile",
        "state": "state-1",
        "nonce": "nonce-1",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
    }


async def test_nothing_is_asked_before_somebody_signs_in_and_then_once(there: scene.Provider) -> None:
    provider = asking(there)
    assert there.asked == []
    async with trio.open_nursery() as nursery:
        for state in ("a", "b", "c"):
            nursery.start_soon(provider.address, state, ATTEMPT)
    assert there.count(DISCOVERY) == 1
    assert provider._known is not None
    provider._known.until = trio.current_time()  # an hour later
    await provider.address("d", ATTEMPT)
    assert there.count(DISCOVERY) == 2
    assert module._KNOWN_SECONDS == 3600


async def test_an_issuer_with_a_path_is_asked_below_it(there: scene.Provider) -> None:
    own = there.issuer
    there.issuer = f"{own}/realms/lab"
    there.answers("/realms/lab/.well-known/openid-configuration", 200, there._document())
    assert (await asking(there).address("a", ATTEMPT)).startswith(f"{own}/realms/lab/authorize?")


# --- what a provider may say of itself ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "complaint"),
    [
        (404, b"{}", "answers 404"),
        (302, b"", "answers 302"),  # and nobody goes there
        (500, b"oops", "answers 500"),
        (200, b"<!doctype html>", "not what the standard says"),
        (200, b"[]", "not what the standard says"),
        (200, b"\xff\xfe\xfd", "not what the standard says"),
        (200, b"[" * 100_000, "not what the standard says"),
        (200, b'{"issuer": "https://evil.example"}', "calls itself 'https://evil.example', and not http://127.0.0.1"),
        (200, b"{}", "calls itself 'None'"),
        (200, b" " * (module._MAX_ANSWER + 1), "more than 1048576 bytes"),
    ],
)
async def test_a_provider_that_misbehaves_is_told_so(
    there: scene.Provider, status: int, body: bytes, complaint: str
) -> None:
    there.answers(DISCOVERY, status, body)
    provider = asking(there)
    with pytest.raises(PeerGone, match=complaint) as caught:
        await provider.address("a", ATTEMPT)
    assert len(str(caught.value)) < 400
    assert len(there.asked) == 1
    del there.replies[DISCOVERY]
    await provider.address("a", ATTEMPT)  # it is well again


@pytest.mark.parametrize(
    "place",
    [
        None,
        7,
        "",
        "/authorize",
        "javascript:alert(1)",
        "http://elsewhere.example/authorize",
        "https://a.example/authorize#x",
        "https://a.example/\r\nSet-Cookie: a=b",
        "https://[::1/authorize",
        "https:///authorize",
    ],
)
async def test_an_address_that_is_none_or_is_not_safe_is_not_used(there: scene.Provider, place: Any) -> None:
    there.document["authorization_endpoint"] = place
    with pytest.raises(PeerGone, match="authorization_endpoint is no https address"):
        await asking(there).address("a", ATTEMPT)


async def test_a_provider_that_speaks_https_has_no_address_on_this_machine() -> None:
    provider = Provider(Config(oidc_issuer="https://id.example", oidc_client_id="x"))
    assert provider._endpoint({"jwks_uri": "https://keys.example/"}, "jwks_uri") == "https://keys.example/"
    with pytest.raises(PeerGone):
        provider._endpoint({"jwks_uri": "http://127.0.0.1/"}, "jwks_uri")


async def test_a_provider_that_is_not_there(unused_port: int) -> None:
    provider = Provider(Config(oidc_issuer=f"http://127.0.0.1:{unused_port}", oidc_client_id="x"))
    with trio.fail_after(20), pytest.raises(PeerGone, match="cannot be reached"):
        await provider.address("a", ATTEMPT)


@pytest.fixture
async def unused_port() -> int:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listener.socket.getsockname()[1]
    await listener.aclose()
    return port


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"])
async def test_a_provider_that_goes_silent_is_given_up_and_all_who_wait_for_it_are_told(
    beginning: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module._SECONDS == 10
    monkeypatch.setattr(module, "_SECONDS", 0.2)
    ended = trio.Event()

    async def silent(stream: trio.SocketStream) -> None:
        await stream.send_all(beginning)
        while await stream.receive_some(65536):
            pass
        ended.set()

    told = []

    async def ask(provider: Provider) -> None:
        with pytest.raises(CallTimeout, match="does not answer") as caught:
            await provider.address("a", ATTEMPT)
        told.append(caught.value.status)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, silent, [listener])
            port = listener.socket.getsockname()[1]
            provider = Provider(Config(oidc_issuer=f"http://127.0.0.1:{port}", oidc_client_id="x"))
            began = trio.current_time()
            async with trio.open_nursery() as people:
                for _ in range(20):
                    people.start_soon(ask, provider)
            assert trio.current_time() - began < 2  # and not one after the other
            await ended.wait()  # the connection is closed
            nursery.cancel_scope.cancel()
    assert told == [504] * 20


async def test_so_many_requests_at_once_and_no_more(there: scene.Provider) -> None:
    provider = asking(there)
    await provider.address("a", ATTEMPT)
    here, most, go_on, full = 0, 0, trio.Event(), trio.Event()

    async def reply() -> tuple[int, bytes]:
        nonlocal here, most
        here += 1
        most = max(most, here)
        if here == module._AT_ONCE:
            full.set()
        await go_on.wait()
        here -= 1
        return 400, b"{}"

    there.replies["/token"] = reply

    async def redeem() -> None:
        with pytest.raises(PeerGone):
            await provider.redeem("code-1", ATTEMPT, time.time())

    async with trio.open_nursery() as nursery:
        for _ in range(3 * module._AT_ONCE):
            nursery.start_soon(redeem)
        await full.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        go_on.set()
    assert (most, there.count("/token")) == (module._AT_ONCE, 3 * module._AT_ONCE)


# --- the way back -------------------------------------------------------------------------------------------------


async def test_a_code_is_redeemed_with_what_proves_that_it_is_ours(there: scene.Provider) -> None:
    answer = await asking(there).redeem("code-1", ATTEMPT, time.time())
    assert (answer.claims["sub"], answer.token) == ("ada-1", "access-1")
    (sent,) = [item for item in there.asked if item.line.startswith("POST")]
    assert sent.form == {
        "grant_type": "authorization_code",
        "code": "code-1",
        "redirect_uri": ATTEMPT.redirect_uri,
        "code_verifier": VERIFIER,
        "client_id": CLIENT_ID,
    }
    assert "authorization" not in sent.headers


@pytest.mark.parametrize(
    ("ways", "basic"),
    [
        (None, True),
        (["client_secret_basic", "client_secret_post"], True),
        (["private_key_jwt"], True),  # it will say that it does not know us
        (["client_secret_post"], False),
        ("client_secret_post", True),
    ],
)
async def test_a_secret_is_sent_in_the_way_that_the_provider_wants(
    there: scene.Provider, ways: Any, basic: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    there.document["token_endpoint_auth_methods_supported"] = ways
    await asking(there, SECRET).redeem("code-1", ATTEMPT, time.time())
    (sent,) = [item for item in there.asked if item.line.startswith("POST")]
    if basic:
        both = base64.b64decode(sent.headers["authorization"].removeprefix("Basic "))
        assert both == b"hypha+lab:s3cret%2F%2B+%3A%25"
        assert "client_secret" not in sent.form
    else:
        assert (sent.form["client_id"], sent.form["client_secret"]) == (CLIENT_ID, SECRET)
        assert "authorization" not in sent.headers
    for secret in (SECRET, "s3cret", VERIFIER, sent.headers.get("authorization", SECRET)[6:]):
        assert secret not in caplog.text


@pytest.mark.parametrize(
    ("status", "body", "kind", "complaint"),
    [
        (400, {"error": "invalid_grant"}, InvalidArgument, "used already, or took too long"),
        (401, {"error": "invalid_client"}, PeerGone, "its client id or secret is wrong"),
        (400, {"error": "<b>" * 1000}, PeerGone, "it answers 400"),
        (500, b"oops", PeerGone, "it answers 500"),
        (302, b"", PeerGone, "it answers 302"),
        (200, b"oops", PeerGone, "not what the standard says"),
        (200, {}, PeerGone, "no ID token"),
        (200, {"id_token": 7}, PeerGone, "no ID token"),
        (200, {"id_token": "x"}, PeerGone, "signature does not hold"),
    ],
)
async def test_what_is_no_answer_to_a_code(
    there: scene.Provider, status: int, body: Any, kind: type[HyphaError], complaint: str
) -> None:
    there.answers("/token", status, body)
    with pytest.raises(kind, match=complaint) as caught:
        await asking(there).redeem("code-1", ATTEMPT, time.time())
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("told", "issuer", "taken"),
    [
        (True, "own", True),
        (True, None, False),
        (True, "https://evil.example", False),
        (False, None, True),
        (False, "own", True),
        (False, "https://evil.example", False),
    ],
)
async def test_an_answer_of_another_provider_is_refused(
    there: scene.Provider, told: bool, issuer: str | None, taken: bool
) -> None:
    there.document["authorization_response_iss_parameter_supported"] = told
    provider, sender = asking(there), there.issuer if issuer == "own" else issuer
    if taken:
        await provider.check_sender(sender)
    else:
        with pytest.raises(InvalidArgument, match="does not come from the provider"):
            await provider.check_sender(sender)


# --- keys ---------------------------------------------------------------------------------------------------------


async def test_keys_are_kept_until_another_one_is_used_and_looked_for_once_a_minute(there: scene.Provider) -> None:
    provider = asking(there)
    for _ in range(3):
        await provider.redeem("code-1", ATTEMPT, time.time())
    assert there.count("/keys") == 1
    new = private(number=1)
    claims = claims_for(there.issuer, ATTEMPT.nonce, time.time())
    there.token["id_token"] = signed(claims, "two", key=new)
    there.keys.append(public("two", number=1))
    with pytest.raises(PeerGone, match="a key that it does not show"):
        await provider.redeem("code-1", ATTEMPT, time.time())
    assert there.count("/keys") == 1
    assert provider._known is not None
    assert provider._known.keys_since is not None
    provider._known.keys_since -= 60
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(provider.redeem, "code-1", ATTEMPT, time.time())
    assert there.count("/keys") == 2


async def test_a_key_that_is_not_shown_any_more_is_believed_for_an_hour_at_most(there: scene.Provider) -> None:
    provider = asking(there)
    await provider.redeem("code-1", ATTEMPT, time.time())
    there.keys = [public("two", number=1)]
    await provider.redeem("code-1", ATTEMPT, time.time())
    assert provider._known is not None
    provider._known.until = trio.current_time()
    with pytest.raises(PeerGone, match="a key that it does not show"):
        await provider.redeem("code-1", ATTEMPT, time.time())


@pytest.mark.parametrize(("status", "body"), [(404, b"{}"), (200, b"[]"), (200, {"keys": {}}), (200, {})])
async def test_keys_that_cannot_be_had_now_are_asked_for_again(there: scene.Provider, status: int, body: Any) -> None:
    provider = asking(there)
    there.answers("/keys", status, body)
    with pytest.raises(PeerGone):
        await provider.redeem("code-1", ATTEMPT, time.time())
    del there.replies["/keys"]
    there.keys.insert(0, "no key")  # type: ignore[arg-type]  # what a bad provider shows
    await provider.redeem("code-1", ATTEMPT, time.time())


# --- what it says beyond that -------------------------------------------------------------------------------------


async def told_by(there: scene.Provider) -> dict[str, Any]:
    provider = asking(there)
    return dict(await provider.more(await provider.redeem("code-1", ATTEMPT, time.time())))


async def test_an_address_that_the_token_does_not_hold_is_asked_for(there: scene.Provider) -> None:
    there.says["email_verified"] = True  # of which address?
    there.userinfo = {"sub": "ada-1", "email": "ada@lab.example", "preferred_username": "ada"}
    told = await told_by(there)
    assert (told["email"], told["email_verified"], told["preferred_username"]) == ("ada@lab.example", False, "ada")
    there.userinfo["email_verified"] = True
    assert (await told_by(there))["email_verified"] is True
    (first, _) = [item for item in there.asked if item.line.startswith("GET /me")]
    assert first.headers["authorization"] == "Bearer access-1"


async def test_what_is_said_of_somebody_else_is_not_listened_to(there: scene.Provider) -> None:
    there.userinfo = {"sub": "bob-1", "email": "bob@lab.example", "email_verified": True}
    assert "email" not in await told_by(there)
    there.answers("/me", 403, there.userinfo)
    assert "email" not in await told_by(there)


async def test_a_token_that_says_it_all_needs_no_second_question(there: scene.Provider) -> None:
    there.says["email"] = "ada@lab.example"
    assert (await told_by(there))["email"] == "ada@lab.example"
    assert there.count("/me") == 0
