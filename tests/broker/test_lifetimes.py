"""Coming, going, coming back: what a session leaves behind is nothing, and what is parked is exactly what may return.

The second half is a state machine: hypothesis plays clients that connect, register, call, vanish and return, while
time passes, and after each step every table of the broker is compared with every other one.
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from trio.testing import MockClock

from hypha.broker.access import Level, Principal
from hypha.broker.broker import Admission, Credentials
from hypha.broker.session import PeerSession, Session
from hypha.config import Limits
from hypha.errors import Conflict, HyphaError, InvalidArgument, LimitExceeded, NotAuthenticated, PermissionDenied
from tests.broker.memory import EPOCH, Peer, Scene, pack_message

USER = Principal("user", False, grants={"lab": Level.READ_WRITE})
OTHER = Principal("other", False, grants={"lab": Level.READ_WRITE})
READER = Principal("reader", False, grants={"lab": Level.READ})


@pytest.fixture
async def scene(mock_clock: MockClock) -> Scene:
    scene = Scene(wall=lambda: EPOCH + trio.current_time())
    scene.workspace("lab").owners.append("somebody")
    return scene


def come_back(scene: Scene, peer: Peer, *, token: str | None = None) -> Peer:
    """Connect again with the reconnection token, as the same client."""
    token = token or scene.broker.resumption_token(peer.session)
    return scene.attach(scene.broker.admit(Credentials(peer.session.address.client, reconnection_token=token)))


def services(scene: Scene, workspace: str = "lab") -> list[str]:
    return [service.full_id for service in scene.workspace(workspace).services()]


def parked(scene: Scene, workspace: str = "lab") -> list[str]:
    return list(scene.workspace(workspace).parked)


# --- who gets in (protocol.md 1.3 and 1.4) --------------------------------------------------------------------


async def test_without_anything_a_client_gets_a_user_and_a_workspace_of_its_own(scene: Scene) -> None:
    admissions = [scene.broker.admit(Credentials("a")) for _ in range(2)]
    assert len({admission.address for admission in admissions}) == 2
    for admission in admissions:
        assert admission.principal.is_anonymous
        assert admission.address.workspace == admission.principal.id
    assert set(scene.broker.registry.workspaces) == {"public", "lab"}  # who is only admitted leaves nothing
    peer = scene.attach(admissions[0])
    workspace = scene.workspace(peer.session.address.workspace)
    assert (workspace.visibility, workspace.persistent, list(workspace.members)) == ("protected", False, ["a"])
    peer.leave()
    assert set(scene.broker.registry.workspaces) == {"public", "lab"}


async def test_a_token_names_the_workspace_when_nobody_else_does(scene: Scene) -> None:
    issue = scene.broker.tokens.issue
    home = issue(replace(USER, home="lab"), expires_in=100)
    assert scene.broker.admit(Credentials("a", token=home)).address.workspace == "lab"
    homeless = issue(USER, expires_in=100)
    assert scene.broker.admit(Credentials("a", token=homeless)).address.workspace == "user"
    assert scene.broker.admit(Credentials("a", "lab", homeless)).address.workspace == "lab"
    assert scene.broker.admit(Credentials("a", "lab", f"user@imjoy@{homeless}")).address.workspace == "lab"


async def test_who_may_not_come_in_is_told_why(scene: Scene) -> None:
    rows: list[tuple[Credentials, type[HyphaError], str]] = [
        (Credentials(None), InvalidArgument, "client id must be a non-empty string"),
        (Credentials(""), InvalidArgument, "client id must be a non-empty string"),
        (Credentials("a/b"), InvalidArgument, "client id 'a/b' must not contain '/'"),
        (Credentials("workspace-manager"), InvalidArgument, "reserved for the server"),
        (Credentials("a", "lab"), PermissionDenied, "Permission denied for workspace lab"),
        (Credentials("a", "nowhere"), PermissionDenied, "Permission denied for workspace nowhere"),
        (Credentials("a", "public"), PermissionDenied, "Permission denied for workspace public"),
        (Credentials("a", "two\nlines"), InvalidArgument, r"workspace 'two\nlines' must not contain '\n'"),
        (Credentials("a", "x" * 1000), InvalidArgument, "workspace is longer than 256 characters"),
        (Credentials("a", token="bad"), NotAuthenticated, "the token is not one of this server"),
        (Credentials("a", reconnection_token="bad"), NotAuthenticated, "the token is not one of this server"),
    ]
    for credentials, error, text in rows:
        with pytest.raises(error) as caught:
            scene.broker.admit(credentials)
        assert text in str(caught.value)
        assert str(caught.value).isprintable()
        assert set(scene.broker.registry.workspaces) == {"public", "lab"}


async def test_a_client_id_is_given_once(scene: Scene) -> None:
    scene.join("lab/a", principal=USER)
    for principal in (USER, OTHER):
        with pytest.raises(Conflict, match="Client already exists and is active: lab/a; choose another id"):
            scene.join("lab/a", principal=principal)
    scene.workspace("other").owners.append("user")
    scene.join("other/a", principal=USER)


async def test_of_two_who_are_admitted_under_one_id_the_first_to_attach_has_it(scene: Scene) -> None:
    token = scene.broker.tokens.issue(USER, expires_in=100)
    one, two = (scene.broker.admit(Credentials("a", "lab", token)) for _ in range(2))
    peer = scene.attach(one)
    with pytest.raises(Conflict):
        scene.attach(two)
    assert scene.workspace("lab").members == {"a": peer.session}
    assert len(scene.broker.registry.sessions_of("user")) == 1


async def test_the_clients_of_one_user_are_bounded_exactly() -> None:
    scene = Scene(Limits(sessions_per_principal=2))
    peers = [scene.join(f"lab/{name}", principal=USER) for name in "ab"]
    with pytest.raises(LimitExceeded, match="sessions_per_principal = 2"):
        scene.join("lab/c", principal=USER)
    scene.join("lab/c", principal=OTHER)
    come_back(scene, peers[0])  # takes its own place
    peers[1].leave()
    scene.join("lab/d", principal=USER)


async def test_nothing_is_left_of_an_attachment_that_failed() -> None:
    scene = Scene(Limits(sessions_per_principal=1))
    principal = Principal("user", False)
    token = scene.broker.tokens.issue(principal, expires_in=100)
    late = scene.broker.admit(Credentials("late", token=token))
    first = scene.attach(scene.broker.admit(Credentials("first", token=token)))
    with pytest.raises(LimitExceeded):
        scene.attach(late)
    first.leave()
    assert set(scene.broker.registry.workspaces) == {"public"}


# --- how one leaves -------------------------------------------------------------------------------------------


async def test_a_clean_goodbye_removes_everything(scene: Scene) -> None:
    peer = scene.join("lab/a", principal=USER)
    peer.announce("svc")
    token = scene.broker.resumption_token(peer.session)
    peer.leave(clean=True)
    assert (services(scene), parked(scene)) == ([], [])
    with pytest.raises(NotAuthenticated, match="the session has ended"):
        scene.broker.admit(Credentials("a", reconnection_token=token))
    peer.leave(clean=False)  # a second word changes nothing
    assert parked(scene) == []


async def test_a_lost_client_is_out_at_once_and_what_it_offered_is_kept_as_data(scene: Scene) -> None:
    peer, other = scene.join("lab/a", principal=USER), scene.join("lab/b")
    peer.announce("svc", visibility="public", extra=[1])
    other.call("a", "services.svc.f")
    peer.leave(clean=False)
    assert (services(scene), parked(scene)) == ([], ["a"])
    assert other.errors() == ["Target peer lab/a is not connected"]
    other.call("a", "services.svc.f")
    assert other.errors() == ["Target peer lab/a is not connected"]
    (entry,) = scene.workspace("lab").parked["a"].registrations
    assert (entry.id, entry.config["extra"]) == ("svc", [1])


async def test_the_token_brings_everything_back_in_one_step(scene: Scene) -> None:
    peer = scene.join("lab/a", principal=USER)
    peer.announce("one", "two", visibility="public")
    ages = {name: service.since for name, service in peer.session.services.items()}
    peer.leave(clean=False)
    again = come_back(scene, peer)
    assert (services(scene), parked(scene)) == (["lab/a:one", "lab/a:two"], [])
    assert {name: service.since for name, service in again.session.services.items()} == ages
    assert again.session.identity == peer.session.identity
    assert again.session.generation > peer.session.generation
    assert again.session.principal == peer.session.principal


async def test_a_second_connection_supersedes_the_first_and_its_callers_learn_it_at_once(scene: Scene) -> None:
    peer, other = scene.join("lab/a", principal=USER), scene.join("lab/b")
    peer.announce("svc")
    other.call("a", "services.svc.f")
    again = come_back(scene, peer)
    assert peer.transport.closed == [(1012, "superseded by a newer connection")]
    assert other.errors() == ["Target peer lab/a is not connected"]
    assert services(scene) == ["lab/a:svc"]
    peer.leave(clean=True)  # the late clean-up of the old connection
    assert (services(scene), parked(scene)) == (["lab/a:svc"], [])
    other.call("a", "services.svc.f")
    assert len(again.received()) == 1
    assert come_back(scene, again).session.identity == peer.session.identity


async def test_of_two_holders_of_a_token_the_newest_has_the_place(scene: Scene) -> None:
    peer = scene.join("lab/a", principal=USER)
    token = scene.broker.resumption_token(peer.session)
    admissions = [scene.broker.admit(Credentials("a", reconnection_token=token)) for _ in range(2)]
    first, second = (scene.attach(admission) for admission in admissions)
    assert first.transport.closed == [(1012, "superseded by a newer connection")]
    assert scene.workspace("lab").members == {"a": second.session}
    assert not first.session.open


async def test_a_token_comes_back_only_as_the_client_it_is_of(scene: Scene) -> None:
    peer = scene.join("lab/a", principal=USER)
    token = scene.broker.resumption_token(peer.session)
    with pytest.raises(PermissionDenied, match="belongs to another client id"):
        scene.broker.admit(Credentials("b", reconnection_token=token))
    peer.leave(clean=False)
    new = scene.join("lab/a", principal=USER)
    with pytest.raises(Conflict, match="is used by another session now"):
        scene.broker.admit(Credentials("a", reconnection_token=token))
    new.leave(clean=False)
    with pytest.raises(Conflict, match="is used by another session now"):
        scene.broker.admit(Credentials("a", reconnection_token=token))


async def test_the_same_user_takes_a_lost_id_at_once_and_what_was_kept_is_dropped(scene: Scene) -> None:
    peer = scene.join("lab/a", principal=USER)
    peer.announce("svc")
    peer.leave(clean=False)
    scene.join("lab/a", principal=USER)
    assert (services(scene), parked(scene), len(scene.broker._suspended)) == ([], [], 0)


async def test_another_user_takes_a_lost_id_after_a_minute_and_only_with_write_permission(
    scene: Scene, mock_clock: MockClock
) -> None:
    peer = scene.join("lab/a", principal=USER)
    peer.leave(clean=False)
    mock_clock.jump(59.9)
    for principal in (OTHER, READER):
        with pytest.raises(Conflict, match="belongs to a client that may come back"):
            scene.join("lab/a", principal=principal)
    mock_clock.jump(0.1)
    with pytest.raises(Conflict, match="belongs to a client that may come back"):
        scene.join("lab/a", principal=READER)
    scene.join("lab/a", principal=OTHER)
    assert parked(scene) == []


async def test_what_is_kept_is_kept_for_an_hour(scene: Scene, mock_clock: MockClock) -> None:
    peer = scene.join("lab/a", principal=USER)
    peer.announce("svc")
    token = scene.broker.tokens.issue_resumption  # a token that outlives the hour
    peer.leave(clean=False)
    mock_clock.jump(3599)
    scene.broker.sweep()
    assert parked(scene) == ["a"]
    mock_clock.jump(1)
    scene.broker.sweep()
    assert (parked(scene), len(scene.broker._suspended)) == ([], 0)
    del token
    again = Principal("user", False, grants=USER.grants)  # a token without an end still lets it in, without services
    scene.broker.admit(Credentials("a", "lab", scene.broker.tokens.issue(again, expires_in=100)))


async def test_after_its_time_a_client_still_gets_in_without_its_services(mock_clock: MockClock) -> None:
    scene = Scene(wall=lambda: EPOCH + trio.current_time())
    peer = scene.attach(scene.broker.admit(Credentials("a")))  # anonymous: it has no token that could expire
    peer.announce("svc")
    token = scene.broker.resumption_token(peer.session)
    peer.leave(clean=False)
    mock_clock.jump(4000)
    scene.broker.sweep()
    assert set(scene.broker.registry.workspaces) == {"public"}
    again = come_back(scene, peer, token=token)
    assert again.session.address == peer.session.address
    assert again.session.services == {}
    mock_clock.jump(172_800)
    with pytest.raises(NotAuthenticated, match="the token has expired"):
        scene.broker.admit(Credentials("a", reconnection_token=token))


async def test_a_session_does_not_outlive_its_token(scene: Scene, mock_clock: MockClock) -> None:
    peer = scene.join("lab/a", principal=USER)  # its token lives an hour
    token = scene.broker.resumption_token(peer.session)
    mock_clock.jump(3600)
    scene.broker.sweep()
    assert peer.transport.closed == []
    mock_clock.jump(0.1)
    scene.broker.sweep()
    assert peer.transport.closed == [(1008, "the token has expired")]
    with pytest.raises(NotAuthenticated, match="the token of the session has expired"):
        scene.broker.admit(Credentials("a", reconnection_token=token))


async def test_an_unused_workspace_of_somebody_is_dropped_after_an_hour(scene: Scene, mock_clock: MockClock) -> None:
    peer = scene.join("lab/a", principal=USER)
    peer.leave()
    mock_clock.jump(3600)
    scene.broker.sweep()
    assert "lab" in scene.broker.registry.workspaces
    mock_clock.jump(1)
    scene.broker.sweep()
    assert set(scene.broker.registry.workspaces) == {"public"}


async def test_the_suspended_are_bounded_for_each_user_and_in_all_and_the_oldest_go_first() -> None:
    scene = Scene(Limits(suspended_per_principal=2, suspended_sessions=4))
    people = [Principal(f"user{number}", False, grants={"lab": Level.READ_WRITE}) for number in range(3)]
    scene.workspace("lab").owners.append("somebody")
    for number, name in enumerate("abcdef"):
        scene.join(f"lab/{name}", principal=people[number // 3]).leave(clean=False)
    assert parked(scene) == ["b", "c", "e", "f"]
    scene.join("lab/g", principal=people[2]).leave(clean=False)
    assert parked(scene) == ["c", "e", "f", "g"]
    assert len(scene.broker._suspended) == 4


async def test_losing_and_finding_clients_costs_the_same_however_many_there_are() -> None:
    """Ten thousand clients that vanish at once must not hold up the rest. Steps are counted, not seconds."""
    scene = Scene(Limits(sessions_per_workspace=5000, suspended_sessions=5000, suspended_per_principal=5000))
    scene.workspace("lab").owners.append("somebody")
    touched = 0

    class Counted(dict[Any, Any]):
        def __iter__(self) -> Any:
            nonlocal touched
            for key in super().__iter__():
                touched += 1
                yield key

    suspended = scene.broker._suspended
    suspended._all = Counted()
    peers = [scene.join(f"lab/c{number}", principal=USER) for number in range(90)]
    for peer in peers:
        peer.leave(clean=False)
    assert len(suspended) == 90
    assert touched == 0


# --- the state machine ----------------------------------------------------------------------------------------

LIMITS = Limits(
    suspended_per_principal=2,
    suspended_sessions=3,
    sessions_per_principal=3,
    services_per_session=3,
    inflight_per_peer=3,
    correspondents_per_peer=2,
    chunked_messages_per_peer=2,
)
WORKSPACES = ("lab", "den")
PEOPLE = tuple(
    Principal(name, False, grants=dict.fromkeys(WORKSPACES, Level.READ_WRITE)) for name in ("ann", "ben", "cid")
)


class Lifetimes(RuleBasedStateMachine):
    """Clients of two workspaces, under three ids in each, of three users."""

    clock: ClassVar[MockClock]

    workspaces = st.sampled_from(WORKSPACES)
    clients = st.sampled_from(["a", "b", "c"])
    people = st.sampled_from(PEOPLE)
    picks = st.integers(0, 20)

    @initialize()
    def begin(self) -> None:
        self.scene = Scene(LIMITS, wall=lambda: EPOCH + trio.current_time())
        for name in WORKSPACES:
            self.scene.workspace(name).owners.append("somebody")
        self.peers: list[Peer] = []
        self.tokens: list[tuple[str, str]] = []
        self.admissions: list[Admission] = []
        self.ended: list[weakref.ref[PeerSession]] = []
        for number, (workspace, client) in enumerate([("lab", "a"), ("den", "a"), ("lab", "b"), ("den", "c")]):
            self.connect(workspace, client, PEOPLE[number % 3])

    def pick(self, number: int) -> Peer | None:
        """One of the connected clients."""
        return self.peers[number % len(self.peers)] if self.peers else None

    @rule(workspace=workspaces, client=clients, person=people)
    def admit(self, workspace: str, client: str, person: Principal) -> None:
        token = self.scene.broker.tokens.issue(person, expires_in=5000)
        try:
            self.admissions.append(self.scene.broker.admit(Credentials(client, workspace, token)))
        except (Conflict, PermissionDenied):
            return

    @rule(workspace=workspaces, client=clients, person=people)
    def connect(self, workspace: str, client: str, person: Principal) -> None:
        before = len(self.admissions)
        self.admit(workspace, client, person)
        if len(self.admissions) > before:
            self.attach(before, keep=False)
            self.peers[-1].announce("svc", visibility="public")

    @rule()
    def admit_somebody_new(self) -> None:
        self.admissions.append(self.scene.broker.admit(Credentials("a")))

    @rule(number=picks)
    def admit_again(self, number: int) -> None:
        if not self.tokens:
            return
        client, token = self.tokens[number % len(self.tokens)]
        try:
            self.admissions.append(self.scene.broker.admit(Credentials(client, reconnection_token=token)))
        except (Conflict, NotAuthenticated, PermissionDenied):
            return

    @rule(number=picks, keep=st.booleans())
    def attach(self, number: int, keep: bool) -> None:
        if not self.admissions:
            return
        admission = self.admissions[number % len(self.admissions)]
        if not keep:
            self.admissions.remove(admission)
        try:
            peer = self.scene.attach(admission)
        except (Conflict, LimitExceeded, PermissionDenied):
            return
        self.peers.append(peer)
        self.tokens.append((peer.session.address.client, self.scene.broker.resumption_token(peer.session)))
        for old in [old for old in self.peers if not old.session.open]:
            self.bury(old)

    @rule(number=picks, clean=st.booleans())
    def leave(self, number: int, clean: bool) -> None:
        peer = self.pick(number)
        if peer is not None:
            peer.leave(clean=clean)
            assert self.scene.broker.registry.find(peer.session.address) is None
            self.bury(peer)

    def bury(self, peer: Peer) -> None:
        self.peers.remove(peer)
        self.ended.append(weakref.ref(peer.session))

    @rule(number=picks, names=st.sets(st.sampled_from(["svc", "two", "three"])), public=st.booleans())
    def announce(self, number: int, names: set[str], public: bool) -> None:
        peer = self.pick(number)
        if peer is not None:
            peer.announce(*sorted(names), visibility="public" if public else "protected")

    @rule(one=picks, two=picks, what=st.sampled_from(["call", "call", "create", "append", "answer", "event", "server"]))
    def talk(self, one: int, two: int, what: str) -> None:
        sender, receiver = self.pick(one), self.pick(two)
        if sender is None or receiver is None:
            return
        if what == "call":
            sender.call(receiver.name, "services.svc.f", session=f"s{one % 5}")
        elif what == "answer":
            sender.send({"type": "method", "to": receiver.name, "method": f"s{one % 5}.resolve"}, {"args": [1]})
        elif what == "event":
            sender.session.subscriptions.add("event")
            sender.send({"type": "event", "to": "*"})
        elif what == "server":
            sender.call("workspace-manager", "services.default.echo", 1)
        else:
            package = pack_message({"type": "method", "to": "x", "method": "services.svc.f", "session": "inner"}, {})
            sender.cache(receiver.name, what, f"k{one % 3}", *([package] if what == "append" else []), False)

    @rule(seconds=st.sampled_from([0.5, 30, 70, 1900, 5100]))
    def time_passes(self, seconds: float) -> None:
        self.clock.jump(seconds)
        self.scene.broker.sweep()
        now, wall = self.scene.broker.now(), EPOCH + trio.current_time()
        for peer in list(self.peers):
            if peer.transport.closed:
                assert (peer.session.principal.expires_at or 0) < wall
                peer.leave(clean=False)
                self.bury(peer)
        for workspace in self.scene.broker.registry.workspaces.values():
            assert all(entry.until > now for entry in workspace.parked.values())

    @invariant()
    def the_tables_agree(self) -> None:
        if hasattr(self, "scene"):
            self.check_places()
            self.check_services()
            self.check_suspended()
            self.check_sessions()

    def check_places(self) -> None:
        registry = self.scene.broker.registry
        connected = {peer.session.address: peer.session for peer in self.peers}
        assert len(connected) == len(self.peers)
        found = {}
        for name, workspace in registry.workspaces.items():
            assert workspace.name == name
            assert not workspace.members.keys() & workspace.parked.keys()
            for client, session in workspace.members.items():
                assert session.address == (name, client)
                assert session.open
                found[session.address] = session
            if not (workspace.members or workspace.parked or workspace.persistent):
                assert workspace.owners
        assert found == connected
        by_principal: dict[str, set[PeerSession]] = {}
        for session in found.values():
            by_principal.setdefault(session.principal.id, set()).add(session)
        assert {name: set(sessions) for name, sessions in registry._by_principal.items()} == by_principal
        assert all(len(sessions) <= LIMITS.sessions_per_principal for sessions in by_principal.values())

    def check_services(self) -> None:
        registry = self.scene.broker.registry
        offered = [service for peer in self.peers for service in peer.session.services.values()]
        offered += registry.workspaces["public"].own_services.values()
        listed = [service for same in registry._by_service_id.values() for service in same]
        assert len(offered) == len(listed)
        assert set(offered) == set(listed)
        assert all(service.session.open for service in offered)
        assert len({service.since for service in offered}) == len(offered)

    def check_suspended(self) -> None:
        suspended = self.scene.broker._suspended
        parked = [entry for place in self.scene.broker.registry.workspaces.values() for entry in place.parked.values()]
        assert set(suspended._all) == set(parked)
        assert [entry.since for entry in suspended._all] == sorted(entry.since for entry in parked)
        assert {entry for own in suspended._by_principal.values() for entry in own} == set(parked)
        assert all(0 < len(own) <= LIMITS.suspended_per_principal for own in suspended._by_principal.values())
        assert len(parked) <= LIMITS.suspended_sessions

    def check_sessions(self) -> None:
        sessions: set[Session] = {*(peer.session for peer in self.peers), self.scene.broker.server}
        for session in sessions:
            assert len(session.outbound) <= LIMITS.inflight_per_peer
            assert len(session.correspondents) <= LIMITS.correspondents_per_peer
            for name, target in session.outbound.items():
                assert target in sessions
                assert (session, name) in target.inbound
            for caller, name in session.inbound:
                assert caller in sessions
                assert caller.outbound[name] is session
            assert session.unheard <= session.inbound.keys()
            assert session.keeps() <= sessions
            assert session.known_by <= sessions
            assert all(session in other.known_by for other in session.keeps())
            for sender, keys in session.chunk_peek.senders.items():
                assert len(keys) <= LIMITS.chunked_messages_per_peer
                assert all(session.chunk_peek.messages[key].sender is sender for key in keys)
        assert not self.scene.broker.dirty

    def teardown(self) -> None:
        if not hasattr(self, "scene"):
            return
        while self.peers:
            self.leave(0, clean=True)
        self.the_tables_agree()
        gc.collect()
        assert [session.name for ref in self.ended if (session := ref()) is not None] == []
        server = self.scene.broker.server
        assert not any((server.inbound, server.outbound, server.known_by, server.keeps()))


@pytest.mark.parametrize("histories", [15, pytest.param(100, marks=pytest.mark.slow)])
async def test_the_tables_agree_whatever_happens(histories: int, mock_clock: MockClock) -> None:
    Lifetimes.clock = mock_clock
    play = settings(max_examples=histories, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(Lifetimes, settings=play)
