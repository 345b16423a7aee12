"""The text messages of modern clients: credentials, what they are answered, and the signs of life (``protocol.md`` 1).

Every other client generation is sent binary messages only.
"""

from __future__ import annotations

import json
from typing import Any

import hypha
from hypha.broker.broker import Broker, Credentials
from hypha.broker.session import PeerSession
from hypha.broker.tokens import new_user_id
from hypha.errors import HyphaError, LimitExceeded, NotAuthenticated, ProtocolViolation

_MAX_TEXT = 1000  # characters of a text message that is looked at; those of clients have twenty
_CREDENTIALS = ("client_id", "workspace", "token", "reconnection_token")

#: Closes a connection without refusing the client, which comes back later (RFC 6455, IANA registry).
TRY_AGAIN_LATER = 1013


def read_credentials(first: object) -> Credentials:
    """The credentials in a client's first message. Raises :class:`ProtocolViolation`.

    A client that has no id is given one.
    """
    document = _document(first) if isinstance(first, str) else None
    if document is None:
        raise ProtocolViolation("the first message must be a JSON map with client_id, workspace and token")
    given = {name: document.get(name) for name in _CREDENTIALS}
    wrong = [name for name, value in given.items() if not (value is None or isinstance(value, str))]
    if wrong:
        raise ProtocolViolation(f"{wrong[0]} must be text")
    return Credentials(**{**given, "client_id": given["client_id"] or new_user_id()})


def connection_info(broker: Broker, session: PeerSession) -> dict[str, Any]:
    """The first message to a client that was let in."""
    home = session.address.workspace
    return {
        "type": "connection_info",
        "hypha_version": hypha.__version__,
        "public_base_url": broker.public_base_url(session),
        "local_base_url": session.base_url,
        "manager_id": broker.server.address.client,
        "workspace": home,
        "client_id": session.address.client,
        "user": session.principal.to_wire(home),
        "reconnection_token": broker.resumption_token(session),
        "reconnection_token_life_time": broker.limits.reconnection_token_seconds,
        "frame_bytes": broker.limits.frame_bytes,  # for our own client: the published ones send smaller ones
    }


def refusal(error: HyphaError) -> str | None:
    """The message that refuses a client for good, even one that wants to come back; None when it may try again."""
    if isinstance(error, LimitExceeded):
        return None
    kind = "Authentication error" if isinstance(error, NotAuthenticated) else "Failed to establish connection"
    return json.dumps({"type": "error", "message": f"{kind}: {error}", "code": error.code})


def answer(broker: Broker, session: PeerSession, text: str) -> str | None:
    """What a text message is answered with; those that no client sends are ignored."""
    document = _document(text) if len(text) <= _MAX_TEXT else None
    reply = None if document is None else sign_of_life(broker, session, document.get("type"))
    return None if reply is None else json.dumps(reply)


def sign_of_life(broker: Broker, session: PeerSession, kind: object) -> dict[str, Any] | None:
    """The answer to a message that is for the server alone; None when *kind* is none of these."""
    if kind == "ping":
        return {"type": "pong"}
    if kind == "refresh_token":
        return {"type": "reconnection_token", "reconnection_token": broker.resumption_token(session)}
    return None


def _document(text: str) -> dict[str, Any] | None:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
