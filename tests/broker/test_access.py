"""The whole of policy: every kind of principal, every action, every visibility, and nothing that is not here."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, cast

from hypha.broker.access import ROOT, Action, Level, Principal, itself, level_in, may

JOIN, READ, WRITE, ADMINISTER = Action.JOIN, Action.READ, Action.WRITE, Action.ADMINISTER
LIST, CALL = Action.LIST_SERVICE, Action.CALL_SERVICE


@dataclass
class Place:
    """A workspace as policy sees it."""

    name: str = "lab"
    identity: str = ""
    owners: list[str] = field(default_factory=lambda: ["owner", "owner@lab.org"])
    allow_list: list[str] = field(default_factory=lambda: ["guest", "guest@lab.org"])
    deny_list: list[str] = field(default_factory=lambda: ["banned", "banned@lab.org"])
    permissions: dict[str, str] = field(
        default_factory=lambda: {
            "viewer": "read",
            "editor@lab.org": "read_write",
            "deputy": "admin",
            "guest": "read",
            "banned": "admin",
            "odd": "everything",
        }
    )


@dataclass
class Offer:
    """A service as policy sees it."""

    visibility: str = "protected"
    authorized_workspaces: frozenset[str] = frozenset()
    workspace: str = "lab"


def user(name: str, email: str | None = None, **grants: Level) -> Principal:
    return Principal(id=name, is_anonymous=False, email=email, grants=grants)


def child(*issuers: str, email: str | None = None, by: str | None = None, **grants: Level) -> Principal:
    """Who came with a token that was issued through *issuers*, which had its level as *by* in the lists."""
    granted_by = {} if by is None else {"lab": (by,)}
    parent = issuers[0]
    return Principal("c1", False, email, parent=parent, grants=grants, issuers=issuers, granted_by=granted_by)


PRINCIPALS: dict[str, tuple[Principal, Level]] = {
    "the server itself": (ROOT, Level.ADMIN),
    "the workspace's own user": (user("lab"), Level.ADMIN),
    "an anonymous one of that name": (Principal("lab", is_anonymous=True), Level.ADMIN),
    "an owner by id": (user("owner"), Level.ADMIN),
    "an owner by e-mail": (user("u1", "owner@lab.org"), Level.ADMIN),
    "an owner whose token says less": (user("owner", lab=Level.READ), Level.ADMIN),
    "an allowed one by id": (user("guest"), Level.READ_WRITE),
    "an allowed one by e-mail": (user("u1", "guest@lab.org"), Level.READ_WRITE),
    "an allowed one with a wider token": (user("guest", lab=Level.ADMIN), Level.ADMIN),
    "an allowed one with a narrower token": (user("guest", lab=Level.READ), Level.READ_WRITE),
    "a token to read": (user("u1", lab=Level.READ), Level.READ),
    "a token to read and write": (user("u1", lab=Level.READ_WRITE), Level.READ_WRITE),
    "a token to administer": (user("u1", lab=Level.ADMIN), Level.ADMIN),
    "a token for elsewhere": (user("u1", other=Level.ADMIN), Level.NONE),
    "a token whose home this is, without a grant": (Principal("u1", is_anonymous=False, home="lab"), Level.NONE),
    "an administrator of the server": (Principal("u1", is_anonymous=False, roles=("admin",)), Level.ADMIN),
    "one that is banned": (Principal("banned", is_anonymous=False, roles=("admin",)), Level.ADMIN),
    "a user with another role": (Principal("u1", is_anonymous=False, roles=("tester", "administrator")), Level.NONE),
    "one with a permission to read": (user("viewer"), Level.READ),
    "one by e-mail": (user("u1", "editor@lab.org"), Level.READ_WRITE),
    "one that may administer": (user("deputy"), Level.ADMIN),
    "one with a wider token": (user("viewer", lab=Level.READ_WRITE), Level.READ_WRITE),
    "one whose permission is no level": (user("odd"), Level.NONE),
    "a token of an owner": (child("owner", by="owner", lab=Level.READ_WRITE), Level.READ_WRITE),
    "a token of one who was an owner": (child("former", by="former", lab=Level.ADMIN), Level.NONE),
    "a token of an owner who may read now": (child("viewer", by="viewer", lab=Level.ADMIN), Level.READ),
    "a token of a token of a former owner": (child("former", "x", by="former", lab=Level.READ), Level.NONE),
    "a token of a banned one": (child("banned", by="owner", lab=Level.ADMIN), Level.NONE),
    "a token of a token of a banned one": (child("x", "banned", lab=Level.ADMIN), Level.NONE),
    "a token for elsewhere with the address of an owner": (child("u1", email="owner@lab.org"), Level.NONE),
    "a token to read with that address": (child("u1", email="owner@lab.org", lab=Level.READ), Level.READ),
    "a token with the address of a banned one": (child("u1", email="banned@lab.org", lab=Level.READ), Level.NONE),
    "a user whose parent is an owner": (Principal("u1", is_anonymous=False, parent="owner"), Level.NONE),
    "an anonymous stranger": (Principal("u1", is_anonymous=True), Level.NONE),
    "a user named like an e-mail of the list": (user("x", "owner"), Level.ADMIN),
    "a banned one": (user("banned"), Level.NONE),
    "a banned one by e-mail": (user("u1", "banned@lab.org"), Level.NONE),
    "a banned one with a token": (user("banned", lab=Level.ADMIN), Level.NONE),
    "a banned owner": (user("owner", "banned@lab.org"), Level.NONE),
}

#: What each level opens, and nothing else.
OPENS = {
    Level.NONE: set(),
    Level.READ: {JOIN, READ},
    Level.READ_WRITE: {JOIN, READ, WRITE},
    Level.ADMIN: {JOIN, READ, WRITE, ADMINISTER},
}


def test_the_level_decides_what_may_be_done_in_a_workspace() -> None:
    for name in PRINCIPALS:
        principal, level = PRINCIPALS[name]
        assert level_in(principal, Place()) is level
        for action in Action:
            opens = OPENS[level] | ({Action.OPERATE} if "admin" in principal.roles else set())
            assert may(principal, action, Place()).allowed == (action in opens), action


def test_a_token_is_for_one_workspace_and_not_for_the_next_of_its_name() -> None:
    first, second = Place(identity="one"), Place(identity="two")
    token = child("admin", by=itself(first), lab=Level.READ_WRITE)
    assert [level_in(token, place) for place in (first, second, Place())] == [Level.READ_WRITE, Level.NONE, Level.NONE]
    # From before workspaces had an identity.
    token = child("admin", lab=Level.READ_WRITE)
    assert [level_in(token, place) for place in (first, Place())] == [Level.NONE, Level.READ_WRITE]
    assert level_in(child("admin", by=itself(Place()), lab=Level.READ), Place()) is Level.READ
    assert level_in(child("banned", by=itself(first), lab=Level.READ), first) is Level.NONE


def test_a_user_is_counted_with_those_to_whom_it_has_issued_tokens() -> None:
    rows = [(user("u1"), "u1"), (user("u1", "u@lab.org"), "u@lab.org"), (child("first", "second"), "first")]
    assert [principal.account for principal, _ in rows] == [account for _, account in rows]
    assert child("first", email="u@lab.org").account == "u@lab.org"


def visible(level: Level, action: Action, offer: Offer, home: str | None) -> bool:
    """The rule for services in other words than the code's."""
    if offer.visibility == "public":
        return True
    if offer.visibility == "unlisted" and action is CALL:
        return True
    if home in offer.authorized_workspaces:
        return True
    return home == "lab" and level >= Level.READ


OFFERS = [
    Offer(visibility, authorized)
    for visibility in ("public", "unlisted", "protected", "private", "", "Public", "hidden")
    for authorized in (frozenset(), frozenset({"friends"}), frozenset({"lab"}))
]


def test_a_service_is_open_by_its_visibility_to_authorized_workspaces_and_to_its_own() -> None:
    for name in PRINCIPALS:
        principal, level = PRINCIPALS[name]
        for action, offer, home in itertools.product((LIST, CALL), OFFERS, ("lab", "friends", "other", None)):
            allowed = may(principal, action, Place(), offer, caller_workspace=home).allowed
            assert allowed == visible(level, action, offer, home), (action, offer, home)


def test_membership_opens_nothing_from_outside_the_workspace() -> None:
    """That is what a provider's own check compares, and what a token for one of two workspaces must not widen."""
    for principal, _ in PRINCIPALS.values():
        assert not may(principal, CALL, Place(), Offer(), caller_workspace="other").allowed


def test_what_is_not_known_is_denied() -> None:
    rows: list[object] = [None, "CALL_SERVICE", "", 0, object()]
    for action in rows:
        unknown = cast("Action", action)
        for principal, _ in PRINCIPALS.values():
            assert not may(principal, unknown, Place()).allowed
            assert not may(principal, unknown, Place(), Offer(), caller_workspace="other").allowed
            assert not may(principal, unknown, Place(), Offer("public"), caller_workspace="other").allowed


def test_an_action_on_a_service_needs_a_service() -> None:
    for action in (LIST, CALL):
        decision = may(ROOT, action, Place())
        assert (decision.allowed, decision.reason) == (False, "no service was named")


def test_a_decision_gives_its_reason() -> None:
    assert may(user("u1", lab=Level.READ), WRITE, Place()).reason == "level READ in 'lab', READ_WRITE is needed"
    assert may(user("u1"), CALL, Place(), Offer(), caller_workspace="x").reason.startswith("the service is protected")


def test_levels_are_read() -> None:
    rows: list[tuple[str, Level | None]] = [
        ("r", Level.READ),
        ("read", Level.READ),
        ("rw", Level.READ_WRITE),
        ("read_write", Level.READ_WRITE),
        ("a", Level.ADMIN),
        ("admin", Level.ADMIN),
        ("", None),
        ("A", None),
        ("write", None),
        ("root", None),
    ]
    for text, level in rows:
        assert Level.parse(text) is level


def test_levels_are_written_as_they_are_read() -> None:
    assert [Level.parse(level.letter) for level in Level if level] == [Level.READ, Level.READ_WRITE, Level.ADMIN]


def test_the_user_map_has_the_fields_of_both_generations() -> None:
    principal = Principal("u1", False, "u@lab.org", ("r",), "parent", {"lab": Level.READ_WRITE}, "lab", 12.5)
    wire: dict[str, Any] = principal.to_wire("lab")
    assert wire == {
        "id": "u1",
        "is_anonymous": False,
        "email": "u@lab.org",
        "roles": ["r"],
        "parent": "parent",
        "scopes": ["lab"],
        "scope": {"current_workspace": "lab", "workspaces": {"lab": "rw"}},
        "expires_at": 12.5,
        "current_workspace": "lab",
    }


def test_a_decision_about_a_public_service_does_not_read_the_lists() -> None:
    """They can be long, and every name look-up of everybody asks about every public service of that name."""

    class Unread(Place):
        @property
        def deny_list(self) -> list[str]:  # type: ignore[override]  # a list that must not be asked for
            raise AssertionError

    assert may(user("u1"), CALL, Unread.__new__(Unread), Offer("public"), caller_workspace="other").allowed
