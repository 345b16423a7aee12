"""What each client generation can say and must be told. Data, chosen once per session."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

#: Redirections: (method asked, dialect of the one asked) -> name of the server's substitute (``decisions.md`` 18).
Redirections = dict[tuple[str, str], str]


@dataclass(frozen=True, slots=True)
class Dialect:
    """A client generation's abilities.

    *frame_limit*: the limit that says how large a frame it can take (``decisions.md`` 11).
    *chunk_bytes*: slice size of messages that the server sends in parts (``protocol.md`` 2.6).
    *legacy_manager*: its server peer is ``<workspace>/workspace-manager``, else ``*/<manager_id>``.
    *reannounces*: it registers its services again after a reconnect (``protocol.md`` 1.6).
    *compact_promise*: it knows the promise ``"*"`` (``protocol.md`` 4.2).
    *by_position*: its functions take arguments by position; keyword ones arrive as one map (``protocol.md`` 4.5).
    *cancels*: it stops a function when it is told that nobody waits for it any more.
    *redirections*: calls of this dialect that the server answers in the target's place.
    """

    name: str
    legacy_manager: bool
    reannounces: bool
    compact_promise: bool = False
    by_position: bool = False
    frame_limit: Literal["frame_bytes", "python_frame_bytes", "modern_python_frame_bytes"] = "frame_bytes"
    chunk_bytes: int = 262_144
    cancels: bool = False
    redirections: Redirections = field(default_factory=dict)

    @property
    def language(self) -> str:
        """What the client is written in."""
        return "JavaScript" if self.by_position else "Python"

    def redirection(self, method: str, target: Dialect) -> str | None:
        """The name of the server's substitute for a call of *method* at *target*, if there is one."""
        return self.redirections.get((method, target.name)) if self.redirections else None


#: imjoy-rpc 0.5.6 to 0.5.59 for Python.
LEGACY = Dialect("legacy", legacy_manager=True, reannounces=False, frame_limit="python_frame_bytes")

#: The same for JavaScript.
LEGACY_JAVASCRIPT = Dialect("legacy-javascript", legacy_manager=True, reannounces=False, by_position=True)

_API_VERSION: Redirections = {
    ("services.built-in.get_service", legacy.name): "built_in_with_api_version"
    for legacy in (LEGACY, LEGACY_JAVASCRIPT)
}

#: hypha-rpc 0.21 for Python. It reads ``config.api_version`` of a receiver's built-in service as an attribute, and
#: legacy built-ins have none (``protocol.md`` 2.7, cross-generation defect).
MODERN = Dialect(
    "modern",
    legacy_manager=False,
    reannounces=True,
    compact_promise=True,
    frame_limit="modern_python_frame_bytes",
    redirections=_API_VERSION,
)

#: The same for JavaScript. Its message cache loses all arguments of a call with keyword ones.
MODERN_JAVASCRIPT = Dialect(
    "modern-javascript",
    legacy_manager=False,
    reannounces=True,
    compact_promise=True,
    by_position=True,
    redirections=_API_VERSION,
)

#: What the User-Agent of our own client begins with.
TRIO_AGENT = "hypha-trio/"

#: Our own client (:mod:`hypha.client`).
TRIO = Dialect(
    "trio", legacy_manager=False, reannounces=True, compact_promise=True, chunk_bytes=1024 * 1024, cancels=True
)
