"""From frame and sender to the target's queue. Synchronous: decides, enters, returns (``decisions.md`` 6).

Every frame between two peers passes :meth:`Router.route`; policy for frames stands in :meth:`Router._permits`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from hypha.broker.access import Action, may
from hypha.broker.inflight import begin_call, settle
from hypha.broker.registry import Registry
from hypha.broker.returning import Expected, Returning, late_text
from hypha.broker.session import Offer, PeerSession, Service, gone_text
from hypha.errors import HyphaError, InvalidArgument, LimitExceeded, PeerGone, PermissionDenied, ProtocolViolation
from hypha.wire.address import HTTP_CLIENT, LEGACY_SERVER_CLIENT, PUBLIC_WORKSPACE, Address, parse_target
from hypha.wire.body import check_body
from hypha.wire.calls import CANCEL, is_declared, rejection
from hypha.wire.chunks import CACHE_PREFIX, EARLY_BYTES, by_position, overwriting
from hypha.wire.frame import Frame, FrameReader, encode_header

if TYPE_CHECKING:
    from hypha.broker.endpoint import ServerSession

logger = logging.getLogger(__name__)

_BUILT_IN = "services.built-in."
_OPEN_BUILT_INS = frozenset({"services.built-in.get_service", "services.built-in.ping", CANCEL})


class Router:
    """Delivers frames between the sessions of *registry* and the server's own session, *server*.

    *reader* reads the headers of messages that come in parts.
    """

    def __init__(self, registry: Registry, server: ServerSession, reader: FrameReader, returning: Returning) -> None:
        self._registry = registry
        self._server = server
        self._reader = reader
        self._returning = returning

    def route(self, sender: PeerSession, frame: Frame) -> PeerSession | None:
        """Deal with *frame* and return None, or return the session whose outbox has no room for it.

        In the second case nothing has changed: wait for room there and route the same frame again. Frames of a
        session that is over go nowhere.
        """
        if not sender.open:
            return None
        target = self._registry.peers.get(frame.to)
        if target is not None:
            return self._to_peer(sender, target, frame)
        if frame.to == "*":
            self._broadcast(sender, frame)
            return None
        try:
            to = parse_target(frame.to, sender.address.workspace)
        except HyphaError as exc:
            self.refuse(sender, frame, sender.address, exc.remote_text(), exc.code)
            return None
        if self.is_server(to):
            settle(sender, self._server, frame)
            self._server.deliver(sender, frame, to)
            return None
        target = self._registry.find(to)
        if target is not None:
            return self._to_peer(sender, target, frame)
        expected = self._returning.holder(sender, frame, to)
        if expected is not None:
            self._hold(sender, frame, expected)
        else:
            self.refuse(sender, frame, to, gone_text(to), PeerGone.code)
        return None

    # --- what waits for a client that is coming back ----------------------------------------------------------

    def _hold(self, sender: PeerSession, frame: Frame, expected: Expected) -> None:
        """Keep *frame* until its receiver is back. It counts as a call of the sender's that the server works on."""
        refusal = self._server.refusal(sender)
        if refusal is not None:
            self.refuse(sender, frame, expected.address, refusal.remote_text(), refusal.code)
            return
        sender.server_calls += 1
        sender.server_call_bytes += len(frame.body)
        expected.held.append((sender, frame))

    def release(self, expected: Expected) -> None:
        """Deliver what waited for a client that is back, in its order. Flush afterwards."""
        for sender, frame in self._let_go(expected):
            if self.route(sender, frame) is not None:
                full = LimitExceeded(f"outbox_bytes: {expected.address} has no room for so much at once; call again")
                self.refuse(sender, frame, expected.address, full.remote_text(), full.code)

    def give_up(self, expected: Expected) -> None:
        """Refuse what waited for a client that did not come back. Flush afterwards."""
        for sender, frame in self._let_go(expected):
            if sender.open:
                self.refuse(sender, frame, expected.address, late_text(expected.address), PeerGone.code)

    def _let_go(self, expected: Expected) -> Iterator[tuple[PeerSession, Frame]]:
        for sender, frame in expected.held:
            sender.server_calls -= 1
            sender.server_call_bytes -= len(frame.body)
            yield sender, frame

    def is_server(self, to: Address) -> bool:
        """Whether the server itself answers at *to* (``protocol.md`` 2.4)."""
        if to.client == LEGACY_SERVER_CLIENT or to.client == HTTP_CLIENT:
            return True
        return to.client == self._server.address.client and to.workspace in {"*", PUBLIC_WORKSPACE}

    def _to_peer(self, sender: PeerSession, target: PeerSession, frame: Frame) -> PeerSession | None:
        method = frame.method or ""
        in_service = method.startswith("services.")
        # Most frames stay in their workspace and name what is_declared() would let pass: they need not be looked at.
        near = sender.workspace == target.workspace and "._" not in method and (in_service or method.count(".") < 2)
        # Who may not write to the target must not wait for its room either: waiting too long cuts the target.
        if not near and not self._permits(sender, target, frame):
            self._deny(sender, frame, target.address)
            return None
        if sender.dialect.redirections and self._redirected(sender, target, frame):
            return None
        operation = _chunk_operation(method) if in_service else None
        if operation is not None or not frame.is_clean:
            try:
                check_body(frame)
                if operation is not None:
                    _make_receivable(sender, target, operation, frame)
            except HyphaError as exc:
                self._refuse_unreadable(sender, target, frame, exc)
                return None
        frame.fields["to"] = target.name
        header = encode_header(frame.fields, sender.stamp)
        size = len(header) + len(frame.body)
        if size > target.frame_limit:
            self._refuse_unreadable(sender, target, frame, _oversize(size, target))
        elif operation is not None:
            return self._part(sender, target, header, operation, frame)
        elif not target.outbox.put(header, frame.body):
            return target
        else:
            if not in_service:
                settle(sender, target, frame)
            _note(sender, target, frame)
        return None

    def _part(
        self, sender: PeerSession, target: PeerSession, header: bytes, operation: str, frame: Frame
    ) -> PeerSession | None:
        """Pass on a chunk call."""
        if not target.outbox.fits(len(header) + len(frame.body)):
            return target
        try:
            message = self._completed(sender, target, operation, frame)
        except PermissionDenied:
            self._deny(sender, frame, target.address)
            return None
        except HyphaError as exc:
            self.refuse(sender, frame, target.address, exc.remote_text(), exc.code)
            return None
        target.outbox.put(header, frame.body)
        _note(sender, target, frame)
        if message is not None:
            settle(sender, target, message)
            _note(sender, target, message)
        return None

    def _redirected(self, sender: PeerSession, target: PeerSession, frame: Frame) -> bool:
        """Whether the server itself answers in the place of *target*, which it then does."""
        substitute = sender.dialect.redirection(frame.method or "", target.dialect)
        if substitute is not None:
            self._server.redirected(sender, frame, target, substitute)
        return substitute is not None

    def _completed(self, sender: PeerSession, target: PeerSession, operation: str, frame: Frame) -> Frame | None:
        """The message that a chunk call completes, if it does."""
        permits = partial(self._permits, sender, target)
        compact = target.dialect.compact_promise
        message = target.chunk_peek.pass_through(sender, operation, frame, permits, self._reader, compact=compact)
        sender.known_by.add(target)
        if operation == "set" and sum(peer.chunk_peek.early_bytes(sender) for peer in sender.known_by) > EARLY_BYTES:
            target.forget_parts(sender)
            raise LimitExceeded("too many parts of messages came before their turn")
        return message

    # --- policy for frames (``decisions.md`` 16) --------------------------------------------------------------

    def _permits(self, sender: PeerSession, target: PeerSession, message: Frame) -> bool:
        method = message.method
        if method is not None and not is_declared(method):
            return False
        if sender.workspace == target.workspace:
            return True
        if message.type != "method" or method is None:
            return False
        if not method.startswith("services.") or method.startswith("services._rintf_"):
            return target in sender.correspondents
        if method.startswith(_BUILT_IN):
            known = method in _OPEN_BUILT_INS or method.startswith(CACHE_PREFIX)
            return known and (target in sender.correspondents or self._may_call(sender, target, target.offer))
        service = target.services.get(method.split(".", 2)[1])
        return service is not None and self._may_call(sender, target, service)

    def _may_call(self, sender: PeerSession, target: PeerSession, service: Service | Offer) -> bool:
        workspace = self._registry.workspaces[target.address.workspace]
        home = sender.address.workspace
        return may(sender.principal, Action.CALL_SERVICE, workspace, service, caller_workspace=home).allowed

    # --- what cannot be delivered -----------------------------------------------------------------------------

    def refuse(self, sender: PeerSession, frame: Frame, to: Address, text: str, code: str) -> None:
        """Tell the sender, if it waits for an answer; results and heartbeats are dropped (``protocol.md`` 2.5)."""
        if frame.wants_answer and frame.session is not None:
            sender.tell(rejection(sender.name, frame.session, text, code), to)

    def _is_readable(self, sender: PeerSession, frame: Frame) -> bool:
        try:
            check_body(frame)
        except ProtocolViolation as exc:
            sender.malformed += 1
            logger.info("dropped an event from %s: %s", sender.name, exc)
            return False
        return True

    def _deny(self, sender: PeerSession, frame: Frame, to: Address) -> None:
        logger.info("refused %r from %s to %s", (frame.method or frame.type)[:200], sender.name, to)
        self.refuse(sender, frame, to, gone_text(to), PeerGone.code)

    def _refuse_unreadable(self, sender: PeerSession, target: PeerSession, frame: Frame, error: HyphaError) -> None:
        """A frame that its receiver could not take fails where somebody waits for it (``decisions.md`` 11)."""
        self.refuse(sender, frame, target.address, error.remote_text(), error.code)
        session_id, _, name = (frame.method or "").rpartition(".")
        if name in ("resolve", "reject") and session_id:
            settle(sender, target, frame)
            target.tell(rejection(target.name, session_id, error.remote_text(), error.code), sender.address)

    def _broadcast(self, sender: PeerSession, frame: Frame) -> None:
        """An event to those of the sender's workspace who asked for its type (``protocol.md`` 5.9)."""
        workspace = self._registry.workspaces[sender.address.workspace]
        if frame.type == "method":
            error = InvalidArgument("a call cannot be broadcast; name one target")
            self.refuse(sender, frame, sender.address, error.remote_text(), error.code)
        elif may(sender.principal, Action.WRITE, workspace).allowed and self._is_readable(sender, frame):
            frame.fields["to"] = str(Address(workspace.name, "*"))
            header = encode_header(frame.fields, sender.stamp)
            size = len(header) + len(frame.body)
            for member in workspace.members.values():
                if frame.type in member.subscriptions:
                    fits = size <= member.frame_limit
                    if not fits or not member.outbox.put(header, frame.body):
                        member.outbox.missed += 1


def _note(sender: PeerSession, target: PeerSession, message: Frame) -> None:
    """Enter a call that passes, and remember who may be answered."""
    if message.session is not None and message.type == "method":
        begin_call(sender, message.session, target, target.address)
    if sender.workspace != target.workspace:
        target.heard_from(sender)


def _make_receivable(sender: PeerSession, target: PeerSession, operation: str, frame: Frame) -> None:
    """Write a chunk call as its receiver must get it. Doing it twice changes nothing more."""
    if operation == "create":
        frame.set_body(overwriting(frame, compact=target.dialect.compact_promise))
    elif target.dialect.by_position and not sender.dialect.by_position:
        frame.set_body(by_position(operation, frame))


def _chunk_operation(method: str) -> str | None:
    """Which function of a message cache is called, if it is one."""
    return method[len(CACHE_PREFIX) :] if method.startswith(CACHE_PREFIX) else None


def _oversize(size: int, target: PeerSession) -> LimitExceeded:
    return LimitExceeded(
        f"a message of {size} bytes is larger than {target.dialect.frame_limit} = {target.frame_limit}, "
        f"which is all that {target.name} can take; send it in parts"
    )
