"""Every error that may cross to a peer, and the one table that translates it.

Only the text of a :class:`HyphaError` is ever shown to a peer. Anything else becomes "internal error" with a
reference number that stands in the log (:func:`internal_error`).
"""

from __future__ import annotations

import logging
import secrets
from typing import ClassVar

logger = logging.getLogger(__name__)


class HyphaError(Exception):
    """An error with a meaning for the peer.

    Class attributes:
      code: stable name for programs.
      status: HTTP status (RFC 9110).
      close_code: websocket close code (RFC 6455 section 7.4).
      remote_type: the exception type that published clients expect in front of the message
        (``protocol.md`` 4.3, 5.5).
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    close_code: ClassVar[int] = 1011
    remote_type: ClassVar[str] = "Exception"

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else self.code

    def remote_text(self) -> str:
        """The text that a calling peer receives: ``ExceptionType: message``."""
        return f"{self.remote_type}: {self}"


class ProtocolViolation(HyphaError):
    """The peer broke the wire protocol."""

    code, status, close_code, remote_type = "protocol_violation", 400, 1002, "ValueError"


class InvalidArgument(HyphaError):
    """A well-formed request with an argument that cannot be used."""

    code, status, close_code, remote_type = "invalid_argument", 400, 1008, "ValueError"


class NotAuthenticated(HyphaError):
    """The token is missing where one is needed, malformed, expired or revoked."""

    code, status, close_code, remote_type = "not_authenticated", 401, 1008, "PermissionError"


class PermissionDenied(HyphaError):
    """The principal is known and may not do this."""

    code, status, close_code, remote_type = "permission_denied", 403, 1008, "PermissionError"


class NotFound(HyphaError):
    """No such workspace, client, service or function, or none that the asker may see."""

    code, status, close_code, remote_type = "not_found", 404, 1008, "KeyError"


class ServiceNotFound(NotFound):
    """No service answers to the query. Published clients know it as ``IndexError`` (``protocol.md`` 5.5)."""

    code, remote_type = "service_not_found", "IndexError"


class Conflict(HyphaError):
    """The name is taken."""

    code, status, close_code, remote_type = "conflict", 409, 1008, "Exception"


class NotAcceptable(HyphaError):
    """The result cannot be expressed in the representation that was asked for."""

    code, status, close_code, remote_type = "not_acceptable", 406, 1003, "TypeError"


class UnsupportedContent(HyphaError):
    """The request body has a content type or encoding that is not understood."""

    code, status, close_code, remote_type = "unsupported_content", 415, 1003, "TypeError"


class LimitExceeded(HyphaError):
    """A limit of ``hypha.config.Limits`` was reached. The message names it."""

    code, status, close_code, remote_type = "limit_exceeded", 429, 1008, "RuntimeError"


class TooLarge(LimitExceeded):
    """A message or body is larger than its limit."""

    code, status, close_code = "too_large", 413, 1009


class NotStored(HyphaError):
    """The change is in force, and will be forgotten when the server ends now: the disk does not take it."""

    code, status, close_code, remote_type = "not_stored", 507, 1011, "OSError"


class PeerGone(HyphaError):
    """The peer that should answer is not connected, or went away during the call."""

    code, status, close_code, remote_type = "peer_gone", 502, 1001, "ConnectionError"


class CallTimeout(HyphaError):
    """Neither a result nor a heartbeat arrived in time."""

    code, status, close_code, remote_type = "call_timeout", 504, 1001, "TimeoutError"


class RemoteError(HyphaError):
    """The called function raised. The message is the function's own text.

    *traceback*: what the provider tells of where, for people; empty when it tells nothing.
    """

    code, status, close_code, remote_type = "remote_error", 500, 1011, "RemoteError"

    def __init__(self, text: str, traceback: str = "") -> None:
        super().__init__(text)
        self.traceback = traceback


class ConfigError(HyphaError):
    """The configuration cannot be used. Ends the start with exit code 2."""

    code, status, close_code, remote_type = "config_error", 500, 1011, "ValueError"


class InternalError(HyphaError):
    """A fault of the server. Carries a reference to the log and nothing else."""

    code, status, close_code, remote_type = "internal_error", 500, 1011, "RuntimeError"


def by_code(code: object) -> type[HyphaError] | None:
    """The class whose stable name is *code*, for an error that was sent; None when there is none."""
    return _CODES.get(code) if isinstance(code, str) else None


_CODES: dict[str, type[HyphaError]] = {
    kind.code: kind
    for kind in (
        ProtocolViolation,
        InvalidArgument,
        NotAuthenticated,
        PermissionDenied,
        NotFound,
        ServiceNotFound,
        Conflict,
        NotAcceptable,
        LimitExceeded,
        TooLarge,
        NotStored,
        PeerGone,
        CallTimeout,
        InternalError,
    )
}


def internal_error(exc: BaseException) -> InternalError:
    """Log *exc* with its traceback and return what a peer may see of it: a reference."""
    reference = secrets.token_hex(4)
    logger.error("internal error %s", reference, exc_info=exc)
    return InternalError(f"internal error, reference {reference}; the server's log has the details")
