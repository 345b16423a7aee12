"""What the server tells those who subscribed to it, and the shapes that modern clients read (``protocol.md`` 5.9)."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from hypha.broker.broker import Credentials
from hypha.broker.events import subscribe, unsubscribe
from hypha.broker.registration import Registration
from hypha.config import Limits
from hypha.errors import InvalidArgument, LimitExceeded, PermissionDenied
from hypha.wire.dialect import LEGACY, MODERN, MODERN_JAVASCRIPT, Dialect
from tests.broker.memory import EPOCH, Peer, Scene

KINDS = ["client_connected", "client_disconnected", "client_updated"]
SERVICE_KINDS = ["service_added", "service_removed", "service_updated"]


@pytest.fixture
async def scene(mock_clock: MockClock) -> Scene:
    return Scene(wall=lambda: EPOCH + trio.current_time())


def listener(scene: Scene, *kinds: str) -> Peer:
    peer = scene.join("lab/listener", dialect=MODERN)
    subscribe(peer.session, list(kinds))
    return peer


def heard(peer: Peer) -> list[tuple[str, Any]]:
    """The events that came since the last look, which hold nothing but what is here."""
    peer.broker.flush()
    messages = peer.received()
    assert all(message.keys() == {"type", "to", "data"} and message["to"] == "*" for message in messages), messages
    return [(message["type"], message["data"]) for message in messages]


async def test_clients_that_come_go_and_return(scene: Scene) -> None:
    ear = listener(scene, *KINDS)
    away = {"id": "a", "workspace": "lab"}
    there = {"id": "lab/a", "workspace": "lab"}
    a = scene.join("lab/a")
    assert heard(ear) == [("client_connected", there)]
    token = scene.broker.resumption_token(a.session)
    scene.attach(scene.broker.admit(Credentials("a", reconnection_token=token)))
    assert heard(ear) == [("client_updated", there)]  # superseded: it was never gone
    a = Peer(scene.broker, scene.broker.registry.workspaces["lab"].members["a"], a.transport)
    a.leave(clean=False)
    assert heard(ear) == [("client_disconnected", away)]
    a = scene.attach(scene.broker.admit(Credentials("a", reconnection_token=token)))
    assert heard(ear) == [("client_connected", there)]
    a.leave()
    assert heard(ear) == [("client_disconnected", away)]
    scene.join("elsewhere/b").leave()
    assert heard(ear) == []


async def test_services_that_are_added_changed_and_removed(scene: Scene) -> None:
    ear, a = listener(scene, *SERVICE_KINDS), scene.join("lab/a")
    a.announce("x", "y")
    assert [(kind, data["id"]) for kind, data in heard(ear)] == [
        ("service_added", "lab/a:x"),
        ("service_added", "lab/a:y"),
    ]
    a.announce("x", "y")
    assert heard(ear) == []
    a.announce("x", visibility="public")
    told = heard(ear)
    assert [(kind, data["id"]) for kind, data in told] == [
        ("service_removed", "lab/a:y"),
        ("service_updated", "lab/a:x"),
    ]
    assert told[1][1] == {
        "id": "lab/a:x",
        "name": "x",
        "type": "test",
        "description": None,
        "docs": None,
        "app_id": "*",
        "service_schema": {},
        "config": {
            "visibility": "public",
            "require_context": False,
            "workspace": "lab",
            "flags": [],
            "singleton": False,
            "service_embedding": None,
            "authorized_workspaces": None,
            "created_by": {"id": "user-of-a"},
        },
    }
    registry = scene.broker.registry
    for kind in ("service_updated", "service_removed", "service_added"):
        if kind == "service_removed":
            assert registry.unregister(a.session, "x")
            assert not registry.unregister(a.session, "x")
        else:
            registry.register(a.session, Registration("x", "x", "test", {}, None))
        assert [name for name, _ in heard(ear)] == [kind]
    a.leave(clean=False)
    assert [name for name, _ in heard(ear)] == ["service_removed"]


async def test_a_lost_listener_goes_on_to_hear(scene: Scene) -> None:
    ear = listener(scene, *KINDS)
    token = scene.broker.resumption_token(ear.session)
    ear.leave(clean=False)
    ear = scene.attach(scene.broker.admit(Credentials("listener", reconnection_token=token)), dialect=MODERN)
    ear.received()
    scene.join("lab/a")
    assert [kind for kind, _ in heard(ear)] == ["client_connected"]
    again = scene.attach(scene.broker.admit(Credentials("listener", reconnection_token=token)), dialect=MODERN)
    scene.join("lab/b")
    assert [kind for kind, _ in heard(again)][-1:] == ["client_connected"]


async def test_a_listener_without_room_misses_it_and_nobody_waits(scene: Scene) -> None:
    ear = listener(scene, *KINDS)
    limits = scene.limits
    ear.fill(limits.outbox_bytes + limits.outbox_reserve_bytes - 10)
    scene.join("lab/a")
    assert ear.session.outbox.missed == 1


async def test_what_may_be_subscribed_to() -> None:
    scene = Scene(limits=Limits(subscriptions_per_session=2))
    session = scene.join("lab/a").session
    subscribe(session, "one")
    subscribe(session, ["one", "two"])
    with pytest.raises(LimitExceeded, match="subscriptions_per_session = 2"):
        subscribe(session, "three")
    unsubscribe(session, ["two", "never"])
    assert session.subscriptions == {"one"}
    for wrong in (None, "", 5, ["x", {}], "x" * 257):
        with pytest.raises(InvalidArgument):
            subscribe(session, wrong)
    with pytest.raises(PermissionDenied):
        subscribe(session, "other/one")


@pytest.mark.parametrize("dialect", [MODERN_JAVASCRIPT, MODERN, LEGACY])
async def test_who_is_expelled_is_told_not_to_come_back(scene: Scene, dialect: Dialect) -> None:
    a = scene.join("lab/a", dialect=dialect)
    token = scene.broker.resumption_token(a.session)
    scene.broker.expel(a.session, "because")
    assert a.transport.closed == [(1008, "because")]
    messages = a.received()
    if dialect is MODERN_JAVASCRIPT:  # hypha-rpc for Python does not survive that word
        (message,) = messages
        assert (message["type"], message["reason"], message["from"]) == ("force-exit", "because", "*/server-id")
    else:
        assert messages == []
    with pytest.raises(Exception, match="the session has ended"):
        scene.broker.admit(Credentials("a", reconnection_token=token))


async def test_a_deleted_workspace_leaves_nothing(scene: Scene) -> None:
    ear, lost = listener(scene, "workspace_deleted"), scene.join("lab/lost")
    lost.leave(clean=False)
    workspace = scene.workspace("lab")
    workspace.persistent = True
    scene.broker.delete_workspace(workspace)
    assert [message["type"] for message in ear.received()] == ["workspace_deleted"]
    assert ear.transport.closed == [(1008, "the workspace was deleted")]
    assert "lab" not in scene.broker.registry.workspaces
    with pytest.raises(Exception, match="the session has ended"):
        scene.broker.admit(Credentials("lost", reconnection_token=scene.broker.resumption_token(lost.session)))
