"""Making tokens from others: never wider, nor longer, than the rights of whoever asks (``protocol.md`` 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hypha.broker.access import ADMIN_ROLE, Level, Principal, granted_level, itself, level_in
from hypha.broker.tokens import Tokens, new_user_id
from hypha.config import Limits
from hypha.errors import InvalidArgument, LimitExceeded, PermissionDenied
from hypha.wire.address import check_client_id
from hypha.wire.calls import encode_value

if TYPE_CHECKING:
    from hypha.broker.broker import Broker

_MAX_USER = 4096  # bytes of the user map, which is a part of every message (``protocol.md`` 2.6)


def issue(
    broker: Broker,
    issuer: Principal,
    config: dict[str, Any],
    grants: dict[str, Level],
    home: str | None,
    label: str | None = None,
) -> tuple[str, str]:
    """A new user's id and the token that proves it. *config* may hold ``email``, ``client_id`` and ``expires_in``.

    *label*: what a person says that it is for.
    """
    principal = Principal(
        id=new_user_id(),
        is_anonymous=issuer.is_anonymous,
        email=_own_email(issuer, config.get("email")),
        parent=issuer.parent or issuer.id,
        grants=grants,
        home=home,
        client=_own_client(issuer, config.get("client_id")),
        tokens=issuer.tokens,
        issuers=(*issuer.issuers, issuer.id),
        granted_by=granted_by(broker, issuer, grants),
    )
    if len(encode_value(principal.to_wire(None))) > _MAX_USER:
        raise LimitExceeded("a token for so many workspaces would make every message too long; ask for fewer")
    life = broker.token_life(issuer, config.get("expires_in"))
    return principal.id, broker.tokens.issue(principal, expires_in=life, label=label)


def admin_token(key: bytes, limits: Limits) -> str:
    """A token of a new user that administers the server whose signing key is *key*, for ``token_seconds``."""
    admin = Principal(id=new_user_id(), is_anonymous=False, roles=(ADMIN_ROLE,))
    return Tokens(key, limits=limits).issue(admin, expires_in=limits.token_seconds)


def grant(broker: Broker, issuer: Principal, name: str, wanted: Level | None = None) -> Level:
    """The level that a token of *issuer* gives in the workspace *name*. Raises :class:`PermissionDenied`."""
    workspace = broker.registry.workspaces.get(name)
    own = level_in(issuer, workspace) if workspace is not None else Level.NONE
    level = min(own, Level.READ_WRITE) if wanted is None else wanted
    if own is Level.NONE or level > own:
        raise PermissionDenied(f"User has no permission to workspace: {name}")
    return level


def granted_by(broker: Broker, issuer: Principal, grants: Mapping[str, Level]) -> dict[str, tuple[str, ...]]:
    """Under which names the lists of the workspaces give *issuer* what it grants, or gave it to its own issuer."""
    found = dict[str, tuple[str, ...]]()
    for name, level in grants.items():
        workspace = broker.registry.workspaces[name]
        if granted_level(issuer, workspace) >= level:
            found |= {key: names for key, names in issuer.granted_by.items() if key == name}
        else:
            found[name] = (itself(workspace),) if issuer.is_admin else issuer.names
    return found


def scopes(broker: Broker, issuer: Principal, config: dict[str, Any], default: str) -> dict[str, Level]:
    """What a token that is asked for by *config* grants: ``scopes`` or a ``workspace``, with a ``permission``.

    Without them it is the workspace *default*. Raises :class:`InvalidArgument` and :class:`PermissionDenied`.
    """
    names = config.get("scopes") or [config.get("workspace") or default]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidArgument("Scopes must be empty or contains a list of workspace names.")
    asked = config.get("permission")
    wanted = Level.parse(asked) if isinstance(asked, str) else None
    if asked is not None and wanted is None:
        raise InvalidArgument("permission must be read, read_write or admin")
    return {name: grant(broker, issuer, name, wanted) for name in names}


def _own_email(principal: Principal, asked: Any) -> str | None:
    if asked is None or asked == principal.email:
        return principal.email
    raise PermissionDenied("a token cannot carry another e-mail address than its issuer's")


def _own_client(principal: Principal, asked: Any) -> str | None:
    """The one client id that a token is for; a token of such a token is for the same."""
    if asked is None or asked == principal.client:
        return principal.client
    if principal.client is not None:
        raise PermissionDenied("a token cannot be for another client id than its issuer's")
    return check_client_id(asked)
