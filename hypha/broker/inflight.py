"""Calls in flight: who waits for whom, so that a lost peer fails its callers at once (``decisions.md`` 15).

A call is entered on both of its ends and struck out by its answer or by the end of either, or when there was no sign
of it for a long time. All of it is plain dictionary work, under a microsecond on the frame path.
"""

from __future__ import annotations

from hypha.broker.session import PeerSession, Session
from hypha.wire.address import Address
from hypha.wire.calls import cancellation
from hypha.wire.frame import Frame

_MAX_SESSION_ID = 1024  # characters; what clients make is far shorter


def begin_call(caller: Session, session_id: str, target: Session, to: Address) -> None:
    """Enter a call.

    When a client has too many, its oldest is forgotten, and only loses the early word; the server strikes out its
    own by itself. So is a call whose session id is so long that remembering it would be a way to fill the memory.
    """
    if len(session_id) > _MAX_SESSION_ID:
        return
    outbound = caller.outbound
    if len(outbound) >= caller.limits.inflight_per_peer and isinstance(caller, PeerSession):
        end_call(caller, next(iter(outbound)))
    if session_id in outbound:
        end_call(caller, session_id)
    outbound[session_id] = target
    target.inbound[caller, session_id] = to


def end_call(caller: Session, session_id: str) -> None:
    """Strike out a call: it was answered, or nobody waits for it any more."""
    target = caller.outbound.pop(session_id, None)
    if target is not None:
        target.inbound.pop((caller, session_id), None)
        if target.unheard:
            target.unheard.discard((caller, session_id))


def cancel_call(target: Session, session_id: str, caller: Address) -> None:
    """Tell a *target* that understands it that *caller* waits no more for a call; it stops the function at once."""
    if isinstance(target, PeerSession) and target.open and target.dialect.cancels:
        target.tell(cancellation(target.name, session_id), caller)


def settle(sender: Session, caller: Session, message: Frame) -> None:
    """Strike out the call of *caller* that *message* from *sender* answers; a heartbeat or a callback keeps it."""
    method = message.method
    if method is None or message.type != "method" or method.startswith("services."):
        return
    session_id, _, name = method.rpartition(".")
    if caller.outbound.get(session_id) is not sender:
        return
    if name == "resolve" or name == "reject":
        del caller.outbound[session_id], sender.inbound[caller, session_id]
    if sender.unheard:
        sender.unheard.discard((caller, session_id))


def forget_silent(session: Session) -> None:
    """Strike out the calls of other peers to *session* of which there was no sign since this was asked last.

    A caller that ran out of patience says nothing, and a function that is stopped for that reason never answers. The
    server's own calls are not touched: each has a deadline, and whoever waits for it strikes it out.
    """
    for caller, session_id in list(session.unheard):
        end_call(caller, session_id)
    session.unheard = {
        (caller, session_id) for caller, session_id in session.inbound if isinstance(caller, PeerSession)
    }


def fail_calls(session: Session) -> None:
    """Tell every caller of *session* that there will be no answer."""
    for (caller, session_id), address in list(session.inbound.items()):
        end_call(caller, session_id)
        if caller.open:
            caller.peer_gone(session_id, address)


def end_session(session: Session) -> None:
    """Fail every call that *session* worked on and forget it everywhere. For when it is over."""
    session.open = False
    for session_id, target in list(session.outbound.items()):
        end_call(session, session_id)
        cancel_call(target, session_id, session.address)
    fail_calls(session)
    for other in session.known_by:
        other.forget(session)
    session.known_by.clear()
    for other in session.keeps():
        other.known_by.discard(session)
        session.forget(other)
