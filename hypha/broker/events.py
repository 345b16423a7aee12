"""What the server tells those who asked to hear of it (``protocol.md`` 5.9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hypha.errors import InvalidArgument, PermissionDenied
from hypha.wire.address import MAX_NAME
from hypha.wire.frame import packer

if TYPE_CHECKING:
    from hypha.broker.registry import Workspace
    from hypha.broker.session import PeerSession


def publish(workspace: Workspace, kind: str, data: Callable[[], dict[str, Any]]) -> None:
    """Tell the clients of *workspace* that subscribed to *kind*; one without room misses it, counted.

    *data* is asked only when somebody listens. Flush afterwards.
    """
    listeners = [member for member in workspace.members.values() if kind in member.subscriptions]
    if listeners:
        message = bytes(packer.pack({"type": kind, "to": "*", "data": data()}))
        for member in listeners:
            member.outbox.put_control(message)


def subscribe(session: PeerSession, kinds: object) -> None:
    """Let *session* hear of *kinds*, one name or a list of them, when they are broadcast in its workspace.

    Raises :class:`InvalidArgument`, :class:`PermissionDenied` for names of other workspaces' events, and
    :class:`LimitExceeded`.
    """
    for kind in _event_types(kinds):
        session.subscribe(kind)


def unsubscribe(session: PeerSession, kinds: object) -> None:
    """The opposite of :func:`subscribe`."""
    session.subscriptions.difference_update(_event_types(kinds))


def _event_types(kinds: object) -> list[str]:
    """One event type or several as a list. Raises what :func:`subscribe` does."""
    return [_event_type(kind) for kind in (kinds if isinstance(kinds, list) else [kinds])]


def _event_type(kind: object) -> str:
    if not isinstance(kind, str) or not kind or len(kind) > MAX_NAME:
        raise InvalidArgument(f"an event type is a text of 1 to {MAX_NAME} characters")
    if "/" in kind:
        raise PermissionDenied("events of other workspaces cannot be subscribed to")
    return kind
