"""Calls in flight: who waits for whom, so that a lost peer fails its callers at once (``decisions.md`` 15).

A call is entered on both of its ends and struck out by its answer or by the end of either. All of it is plain
dictionary work, under a microsecond on the frame path.
"""

from __future__ import annotations

from hypha.broker.session import Session
from hypha.wire.address import Address
from hypha.wire.frame import Frame

_MAX_SESSION_ID = 1024  # characters; what clients make is far shorter


def begin_call(caller: Session, session_id: str, target: Session, to: Address) -> None:
    """Enter a call.

    When the caller has too many, its oldest is forgotten, and only loses the early word. So does a call whose session
    id is so long that remembering it would be a way to fill the memory.
    """
    if len(session_id) > _MAX_SESSION_ID:
        return
    if len(caller.outbound) >= caller.limits.inflight_per_peer:
        end_call(caller, next(iter(caller.outbound)))
    end_call(caller, session_id)
    caller.outbound[session_id] = target
    target.inbound[caller, session_id] = to


def end_call(caller: Session, session_id: str) -> None:
    """Strike out a call: it was answered, or nobody waits for it any more."""
    target = caller.outbound.pop(session_id, None)
    if target is not None:
        target.inbound.pop((caller, session_id), None)


def settle(sender: Session, caller: Session, message: Frame) -> None:
    """Strike out the call of *caller* that *message* from *sender* answers, if it is an answer."""
    method = message.method
    if method is None or not method.endswith((".resolve", ".reject")):
        return
    session_id = method.rpartition(".")[0]
    if caller.outbound.get(session_id) is sender:
        end_call(caller, session_id)


def end_session(session: Session) -> None:
    """Fail every call that *session* worked on and forget it everywhere. For when it is over."""
    session.open = False
    for session_id in list(session.outbound):
        end_call(session, session_id)
    for (caller, session_id), address in list(session.inbound.items()):
        end_call(caller, session_id)
        if caller.open:
            caller.peer_gone(session_id, address)
    for other in session.known_by:
        other.forget(session)
    session.known_by.clear()
    for other in (*session.correspondents, *session.chunk_peeks):
        other.known_by.discard(session)
    session.correspondents.clear()
    session.chunk_peeks.clear()
