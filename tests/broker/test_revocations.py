"""Revoked tokens: refused at once wherever they are shown, with all that was issued through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from hypha.broker.access import ROOT, Level, Principal
from hypha.broker.broker import Credentials
from hypha.broker.revocations import Revocations
from hypha.config import Limits
from hypha.errors import LimitExceeded, NotAuthenticated
from hypha.wire.dialect import LEGACY, MODERN, Dialect
from tests.broker.managing import ask, refused
from tests.broker.memory import EPOCH, SERVER_ID, Peer, Scene

LOGIN_HOME = f"public/{SERVER_ID}"
REVOKED = "the token was revoked; generate a new one"


def come(scene: Scene, client: str, token: str, dialect: Dialect = MODERN) -> Peer:
    return scene.attach(scene.broker.admit(Credentials(client, token=token)), dialect=dialect)


def is_refused(check: Callable[..., Any], *args: Any) -> bool:
    with pytest.raises(NotAuthenticated) as caught:
        check(*args)
    return str(caught.value) == REVOKED


@pytest.fixture
def owner(live: Scene) -> Peer:
    """A client that came without a token, as most do."""
    return live.attach(live.broker.admit(Credentials("owner")), dialect=MODERN)


async def test_a_revoked_token_is_refused_everywhere_at_once(live: Scene, owner: Peer) -> None:
    token, other = await ask(owner, "generate_token"), await ask(owner, "generate_token")
    legacy = await owner.ask("generate_token")
    guest = come(live, "guest", token)
    returning = live.broker.resumption_token(guest.session)
    assert await ask(owner, "revoke_token", token) is None
    assert await ask(owner, "revoke_token", legacy) is None
    for text in (token, legacy, f"x@imjoy@{token}"):
        assert is_refused(live.broker.authenticate, text)  # the handshake of every client, and HTTP
        assert await refused(owner, "parse_token", text) == f"PermissionError: {REVOKED}"
        assert await refused(owner, "revoke_token", text) == f"PermissionError: {REVOKED}"
    assert is_refused(live.broker.admit, Credentials("guest", reconnection_token=returning))
    assert is_refused(live.broker.require_valid, guest.session.principal)
    assert live.broker.authenticate(other).parent == owner.session.principal.id
    assert await ask(owner, "echo", "x") == "x"


@pytest.mark.parametrize("dialect", [MODERN, LEGACY])
async def test_who_came_with_it_is_gone_a_second_later_and_stays_away(
    live: Scene, owner: Peer, dialect: Dialect
) -> None:
    guest = come(live, "guest", await ask(owner, "generate_token"), dialect)
    token = await ask(owner, "generate_token")
    ends = [come(live, "a", token, dialect), come(live, "b", token, dialect)]
    ends[0].announce("svc")
    returning = [live.broker.resumption_token(peer.session) for peer in ends]
    await ask(owner, "revoke_token", token)
    live.broker.sweep()
    for peer in ends:
        assert peer.transport.closed == [(1008, "the token was revoked")]
        assert not peer.session.open
    assert list(live.broker.registry.named("svc")) == []
    assert guest.session.open
    for client, text in zip("ab", returning, strict=True):
        assert is_refused(live.broker.admit, Credentials(client, reconnection_token=text))


async def test_who_revokes_its_own_token_is_answered_first(live: Scene, owner: Peer) -> None:
    token = await ask(owner, "generate_token")
    guest = come(live, "guest", token)
    assert await ask(guest, "revoke_token", token) is None
    live.broker.sweep()
    assert not guest.session.open


async def test_what_a_revoked_token_has_issued_is_revoked_with_it(live: Scene, owner: Peer) -> None:
    first = await ask(owner, "generate_token", {"permission": "read_write"})
    child = come(live, "child", first)
    second = await ask(child, "generate_token")
    resumed = live.attach(
        live.broker.admit(Credentials("child", reconnection_token=live.broker.resumption_token(child.session))),
        dialect=MODERN,
    )
    third = await ask(resumed, "generate_token")
    grandchild = come(live, "grandchild", second)
    fourth = await ask(grandchild, "generate_token")
    lost = live.broker.resumption_token(grandchild.session)
    grandchild.leave(clean=False)
    await ask(owner, "revoke_token", second)
    assert is_refused(live.broker.authenticate, fourth)
    assert is_refused(live.broker.admit, Credentials("grandchild", reconnection_token=lost))
    assert live.broker.authenticate(third).grants == live.broker.authenticate(first).grants
    await ask(owner, "revoke_token", first)
    for token in (first, second, third, fourth):
        assert is_refused(live.broker.authenticate, token)
    live.broker.sweep()
    assert not resumed.session.open
    assert owner.session.open


async def test_what_one_logs_in_with_is_revoked_with_the_token_that_was_reported(live: Scene, owner: Peer) -> None:
    token = await ask(owner, "generate_token")
    guest = come(live, "guest", token)
    of_page = await guest.ask("services.hypha-login.generate", to=LOGIN_HOME)
    key = (await owner.ask("services.hypha-login.start", expires_in=60, to=LOGIN_HOME))["key"]
    await owner.ask("services.hypha-login.report", key, token, to=LOGIN_HOME)
    given = await owner.ask("services.hypha-login.check", key, to=LOGIN_HOME)
    assert given != token
    await ask(owner, "revoke_token", token)
    for text in (of_page, given):
        assert is_refused(live.broker.authenticate, text)


async def test_it_is_revoked_by_its_holder_its_issuer_or_an_administrator(live: Scene) -> None:
    issuer, admin, member, reader, far = (
        live.join(f"{place}/{name}", principal=live.principal(name, place, level), dialect=MODERN)
        for place, name, level in (
            ("lab", "issuer", Level.READ_WRITE),
            ("lab", "admin", Level.ADMIN),
            ("lab", "member", Level.READ_WRITE),
            ("lab", "reader", Level.READ),
            ("far", "far", Level.ADMIN),
        )
    )
    denied = "PermissionError: a token is revoked by who holds or issued it, or administers its workspace"
    for revoking in (issuer, admin):
        token = await ask(issuer, "generate_token")
        for other in (member, reader, far):
            assert await refused(other, "revoke_token", token) == denied
        await ask(revoking, "revoke_token", token)
        assert is_refused(live.broker.authenticate, token)
    # Through another client: who issued it is the one whose token it came with.
    through = come(live, "through", await ask(issuer, "generate_token"))
    token, sibling = await ask(through, "generate_token"), await ask(issuer, "generate_token")
    assert await refused(through, "revoke_token", sibling) == denied
    await ask(through, "revoke_token", token)
    # Of two workspaces, whoever administers one takes nothing from the other.
    both = Principal("both", False, grants={"lab": Level.READ, "far": Level.READ})
    token = live.broker.tokens.issue(both, expires_in=60)
    for other in (admin, far):
        assert await refused(other, "revoke_token", token) == denied
    lone = live.broker.tokens.issue(Principal("lone", False), expires_in=60)
    assert await refused(admin, "revoke_token", lone) == denied
    for wrong, words in ((None, "a token is text"), ("x", "not one of this server")):
        assert words in await refused(admin, "revoke_token", wrong)
    returning = live.broker.resumption_token(admin.session)
    assert "not meant for this use" in await refused(admin, "revoke_token", returning)


async def test_it_is_remembered_until_it_would_have_expired(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    scene = Scene(nursery=nursery, wall=lambda: EPOCH + trio.current_time())
    owner = scene.attach(scene.broker.admit(Credentials("owner")), dialect=MODERN)
    token = await ask(owner, "generate_token", {"expires_in": 100})
    await ask(owner, "revoke_token", token)
    mock_clock.jump(130)
    scene.broker.sweep()
    assert is_refused(scene.broker.authenticate, token)
    mock_clock.jump(1)
    scene.broker.sweep()
    with pytest.raises(NotAuthenticated, match="expired"):
        scene.broker.authenticate(token)


async def test_tokens_are_issued_one_through_the_other_so_often(nursery: trio.Nursery) -> None:
    scene = Scene(Limits(token_depth=3), nursery)
    peer = scene.attach(scene.broker.admit(Credentials("owner")), dialect=MODERN)
    for number in range(3):
        peer = come(scene, f"c{number}", await ask(peer, "generate_token"))
    assert "token_depth = 3" in await refused(peer, "generate_token")
    with pytest.raises(Exception, match="token_depth = 3"):
        await peer.ask("generate_token")


async def test_a_clock_that_jumps_ahead_and_back_makes_no_revoked_token_good(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    ahead = 0.0
    scene = Scene(nursery=nursery, wall=lambda: EPOCH + trio.current_time() + ahead)
    owner = scene.attach(scene.broker.admit(Credentials("owner")), dialect=MODERN)
    token, other = [await ask(owner, "generate_token", {"expires_in": 100}) for _ in range(2)]
    await ask(owner, "revoke_token", token)
    scene.broker.sweep()
    ahead = 1000.0
    mock_clock.jump(1)
    scene.broker.sweep()
    assert await ask(owner, "list_tokens") == []
    ahead = 0.0
    scene.broker.sweep()
    assert is_refused(scene.broker.authenticate, token)
    (listed,) = await ask(owner, "list_tokens")  # it is good, and so it can still be revoked
    assert listed["user"] == scene.broker.authenticate(other).id
    ahead = -50.0
    scene.broker.sweep()
    ahead = 0.0
    mock_clock.jump(180)
    scene.broker.sweep()
    assert len(scene.broker.tokens.revocations) == 0


ONE, TWO, THREE = (Principal(name, is_anonymous=False) for name in ("one", "two", "three"))


def test_the_revoked_tokens_are_bounded_exactly() -> None:
    revoked = Revocations(Limits(revoked_tokens=3, revoked_tokens_per_principal=2))
    for token in ("a", "b", "a"):
        revoked.add(token, ONE, EPOCH)
    with pytest.raises(LimitExceeded, match="revoked_tokens_per_principal = 2 "):
        revoked.add("c", ONE, EPOCH)
    revoked.add("c", TWO, EPOCH + 1)
    with pytest.raises(LimitExceeded, match="revoked_tokens = 3 "):
        revoked.add("d", THREE, EPOCH)
    assert [revoked.touch([token]) for token in "abcd"] == [True, True, True, False]
    assert revoked.touch(["d", "c"])
    assert not revoked.touch([])
    revoked.forget(EPOCH)
    assert len(revoked) == 3
    revoked.forget(EPOCH + 0.5)
    assert [revoked.touch([token]) for token in "abc"] == [False, False, True]
    for token in ("d", "e"):
        revoked.add(token, ONE, EPOCH + 2)
    revoked.forget(EPOCH + 3)
    assert len(revoked) == 0


def test_users_without_an_account_have_half_and_administrators_always_have_room() -> None:
    revoked = Revocations(Limits(revoked_tokens=4, revoked_tokens_per_principal=2))
    for token in ("a", "b"):
        revoked.add(token, Principal(f"stranger-{token}", is_anonymous=True), EPOCH)
    with pytest.raises(LimitExceeded, match="revoked_tokens / 2 = 2 "):
        revoked.add("c", Principal("stranger", is_anonymous=True), EPOCH)
    for token in ("c", "d"):
        revoked.add(token, ONE, EPOCH)
    with pytest.raises(LimitExceeded, match="revoked_tokens = 4 "):
        revoked.add("e", TWO, EPOCH)
    for token in ("e", "f", "g"):
        revoked.add(token, ROOT, EPOCH)
    assert len(revoked) == 7


async def test_a_token_of_a_user_without_an_account_lives_no_longer_than_one_that_names_no_time(
    live: Scene, owner: Peer
) -> None:
    life = live.broker.limits.token_seconds
    for asked, given in ((life - 1, life - 1), (life + 1, life), (2**39, life)):
        token = await ask(owner, "generate_token", {"expires_in": asked})
        assert live.broker.authenticate(token).expires_at == EPOCH + given
    known = Principal("known", is_anonymous=False, grants={"lab": Level.READ})
    assert live.broker.token_life(known, life + 1) == life + 1
