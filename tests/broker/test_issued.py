"""The list of tokens: who sees which, and ending one by its id."""

from __future__ import annotations

import pytest

from hypha.broker.access import Level, Principal
from hypha.broker.broker import Credentials
from hypha.broker.issued import Issued, IssuedToken
from hypha.config import Limits
from hypha.errors import NotAuthenticated
from hypha.wire.dialect import MODERN
from tests.broker.managing import ask, refused
from tests.broker.memory import EPOCH, Peer, Scene


@pytest.fixture
def owner(live: Scene) -> Peer:
    return live.attach(live.broker.admit(Credentials("owner")), dialect=MODERN)


async def test_a_token_is_listed_until_it_is_revoked_by_its_id(live: Scene, owner: Peer) -> None:
    home = owner.session.address.workspace
    token = await ask(owner, "generate_token", {"permission": "read", "client_id": "c", "expires_in": 100})
    guest = live.attach(live.broker.admit(Credentials("c", token=token)), dialect=MODERN)
    through = await ask(guest, "generate_token")
    first, second = await ask(owner, "list_tokens")
    assert first == {
        "id": first["id"],
        "user": guest.session.principal.id,
        "issued_by": owner.session.principal.id,
        "permissions": {home: "read"},
        "client_id": "c",
        "issued_at": EPOCH,
        "expires_at": EPOCH + 100,
        "label": None,
        "last_used": EPOCH,
    }
    assert second["issued_by"] == guest.session.principal.id
    assert token not in str(await ask(owner, "list_tokens"))
    assert [item["id"] for item in await owner.ask("listTokens")] == [first["id"], second["id"]]
    await ask(owner, "revoke_token", first["id"])
    assert await ask(owner, "list_tokens") == []
    for text in (token, through):
        with pytest.raises(NotAuthenticated, match="the token was revoked"):
            live.broker.authenticate(text)
    assert "not one of this server" in await refused(owner, "revoke_token", first["id"])


async def test_tokens_of_a_workspace_that_had_the_name_before_are_not_listed(live: Scene, owner: Peer) -> None:
    await ask(owner, "create_workspace", {"name": "lab"})
    await ask(owner, "generate_token", {"workspace": "lab"})
    assert len(await ask(owner, "list_tokens", "lab")) == 1
    await ask(owner, "delete_workspace", "lab")
    other = live.attach(live.broker.admit(Credentials("other")), dialect=MODERN)
    await ask(other, "create_workspace", {"name": "lab"})
    assert await ask(other, "list_tokens", "lab") == []


async def test_who_administers_sees_all_and_others_what_comes_from_them(live: Scene) -> None:
    admin, one, two = (
        live.join(f"lab/{name}", principal=live.principal(name, "lab", level), dialect=MODERN)
        for name, level in (("admin", Level.ADMIN), ("one", Level.READ_WRITE), ("two", Level.READ))
    )
    made = {peer: await ask(peer, "generate_token", {"permission": "read"}) for peer in (one, two)}
    users = {peer: live.broker.authenticate(token).id for peer, token in made.items()}
    come_with = {"admin", "one", "two"}  # the tokens with which they have come
    assert {item["user"] for item in await ask(admin, "list_tokens")} == {*users.values(), *come_with}
    assert {item["user"] for item in await ask(one, "list_tokens")} == {users[one], "one"}
    assert {item["user"] for item in await ask(two, "list_tokens")} == {users[two], "two"}
    (foreign,) = [item for item in await ask(admin, "list_tokens") if item["user"] == users[two]]
    unknown = await refused(one, "revoke_token", "unknown")
    assert await refused(one, "revoke_token", foreign["id"]) == unknown
    both = Principal("both", False, grants={"lab": Level.READ, "far": Level.READ})
    live.broker.tokens.issue(both, expires_in=60)
    assert "both" not in {item["user"] for item in await ask(admin, "list_tokens")}


def token(name: str, account: str, seconds: float = 10, label: str | None = None) -> IssuedToken:
    return IssuedToken(name, Principal(account, False, grants={"lab": Level.READ}), EPOCH, EPOCH + seconds, label)


def test_the_listed_tokens_are_bounded_exactly() -> None:
    issued = Issued(Limits(listed_tokens=3, listed_tokens_per_principal=2))
    for name, account in (("a", "one"), ("b", "one"), ("c", "two")):
        issued.add(token(name, account))
    assert [item.id for item in issued.of("lab")] == ["a", "b", "c"]
    issued.add(token("d", "one"))
    assert [item.id for item in issued.of("lab")] == ["b", "c", "d"]
    issued.add(token("e", "three"))
    assert [item.id for item in issued.of("lab")] == ["c", "d", "e"]


def test_who_has_the_most_makes_room_for_others() -> None:
    issued = Issued(Limits(listed_tokens=8, listed_tokens_per_principal=3))
    issued.add(token("mine", "one"))
    for stranger in range(4):
        for number in range(3):
            issued.add(token(f"{stranger}-{number}", f"stranger-{stranger}"))
    assert len(issued) == 8
    assert issued.get("mine") is not None
    for name in [item.id for item in issued.of("lab")]:
        issued.discard(name)
    issued.add(token("again", "one"))
    assert [item.id for item in issued.of("lab")] == ["again"]


def test_tokens_with_labels_stay_whatever_is_issued_through_them() -> None:
    issued = Issued(Limits(listed_tokens=4, listed_tokens_per_principal=2))
    for number in range(5):
        issued.add(token(f"kept-{number}", "one", label=f"label {number}"))
        issued.add(token(f"other-{number}", "one"))
        issued.add(token(f"stranger-{number}", f"stranger-{number}"))
    assert [item.id for item in issued.labelled("one")] == [f"kept-{number}" for number in range(5)]
    assert sum(item.label is None for item in issued.of("lab")) == 4
    for number in range(5):
        issued.discard(f"kept-{number}")
    assert list(issued.labelled("one")) == []
    assert len(issued) == 4


def test_tokens_that_live_for_long_leave_nothing_when_they_are_forgotten() -> None:
    issued = Issued(Limits(listed_tokens_per_principal=10))
    for number in range(1000):
        issued.add(token(f"t{number}", "one", 2**39))
    assert len(issued._ends) <= 2 * len(issued) == 20
    for number in range(1000):
        issued.discard(f"t{number}")
    assert len(issued._ends) == 0


def test_a_token_is_forgotten_when_it_has_expired() -> None:
    issued = Issued(Limits())
    issued.add(token("a", "one", 10))
    issued.add(token("b", "one", 20))
    issued.discard("missing")
    issued.forget(EPOCH + 10)
    assert len(issued) == 2
    issued.forget(EPOCH + 11)
    assert [item.id for item in issued.of("lab")] == ["b"]
    issued.discard("b")
    issued.forget(EPOCH + 30)
    assert len(issued) == 0
    assert list(issued.of("lab")) == []
