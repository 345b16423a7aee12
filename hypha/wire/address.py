"""Who: workspaces, clients and services by name (``protocol.md`` 2.4 and 5.5). Ids are parsed once, here."""

from __future__ import annotations

from typing import NamedTuple

from hypha.errors import InvalidArgument

#: Client part of the addresses at which the server itself answers (``protocol.md`` 2.4).
LEGACY_SERVER_CLIENT = "workspace-manager"
#: Client part of the address from which HTTP requests call (``decisions.md`` 22).
HTTP_CLIENT = "http"
#: The workspace whose services everybody finds by name.
PUBLIC_WORKSPACE = "public"

_RESERVED_CLIENTS = frozenset({LEGACY_SERVER_CLIENT, HTTP_CLIENT, "~"})
_SEPARATORS = frozenset("/:@*")
#: Characters; longer names would not fit the 8 KiB that stamping may add to a frame.
MAX_NAME = 256


def check_name(kind: str, name: object) -> str:
    """Return *name* if it can be part of an address, else raise :class:`InvalidArgument` saying why.

    *kind* is the word for the error: "client id", "workspace", "service id".
    """
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"{kind} must be a non-empty string")
    if len(name) > MAX_NAME:
        raise InvalidArgument(f"{kind} is longer than {MAX_NAME} characters")
    bad = sorted({char for char in name if char in _SEPARATORS or not char.isprintable()})
    if bad:
        raise InvalidArgument(f"{kind} {name!r} must not contain {' '.join(map(repr, bad))}")
    if name in {".", ".."}:
        raise InvalidArgument(f"{kind} {name!r} is not a name")
    return name


def check_client_id(name: object) -> str:
    """Return a client id that a peer may take; the server's own are refused (``protocol.md`` 11.36)."""
    checked = check_name("client id", name)
    if checked in _RESERVED_CLIENTS:
        raise InvalidArgument(f"client id {checked!r} is reserved for the server; choose another")
    return checked


class Address(NamedTuple):
    """``workspace/client``: where a peer is reached. Workspace ``*`` is the server's own (``*/<manager_id>``)."""

    workspace: str
    client: str

    def __str__(self) -> str:
        return f"{self.workspace}/{self.client}"


def parse_target(text: str, workspace: str) -> Address:
    """Resolve the ``to`` of a frame for a sender in *workspace* (``protocol.md`` 2.3 step 2).

    Raises :class:`InvalidArgument` when a part is empty or there are too many.
    """
    owner, slash, client = text.partition("/")
    if not slash:
        owner, client = workspace, owner
    if not owner or not client or "/" in client:
        raise InvalidArgument(f"target {text[:MAX_NAME]!r} is not of the form client or workspace/client")
    return Address(owner, client)


class ServiceQuery(NamedTuple):
    """Which service is meant. None means any; the service name is always there."""

    workspace: str | None
    client: str | None
    service: str

    def __str__(self) -> str:
        """The query as error texts show it: ``workspace/client:service``, ``*`` for any."""
        return f"{self.workspace or '*'}/{self.client or '*'}:{self.service}"


def parse_service_id(text: str) -> ServiceQuery:
    """Parse ``[workspace/][client:]service`` where ``*`` means any (``protocol.md`` 5.5).

    ``workspace/x`` without a colon reads as a *service* here; the legacy reading, a client, is the caller's
    business, because only it knows which clients there are. Raises :class:`InvalidArgument`.
    """
    if len(text) > 3 * MAX_NAME:
        raise InvalidArgument(f"service id {text[:MAX_NAME]!r}... is too long")
    if text.count("/") > 1 or text.count(":") > 1:
        raise InvalidArgument(f"service id {text[:MAX_NAME]!r} is not of the form [workspace/][client:]service")
    owner, slash, rest = text.rpartition("/")
    client, colon, service = rest.rpartition(":")
    if (slash and not owner) or (colon and not client) or not service:
        raise InvalidArgument(f"service id {text[:MAX_NAME]!r} has an empty part")
    return ServiceQuery(_any(owner), _any(client), service)


def _any(part: str) -> str | None:
    return None if part in {"", "*"} else part
