"""What is done to workspaces and their clients, whoever asks and by whatever way: managers and HTTP both come here.

Every function takes the principal that asks, and asks :func:`hypha.broker.access.may` itself.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import trio

from hypha.broker.access import Action, Level, Principal, granted_level, level_in, may
from hypha.broker.events import publish
from hypha.broker.info import summary
from hypha.broker.quotas import OF_USERS, OF_WORKSPACES, ceiling, changed
from hypha.broker.registry import Workspace
from hypha.broker.tokens import is_user_id
from hypha.errors import Conflict, InvalidArgument, LimitExceeded, NotFound, PermissionDenied
from hypha.wire.address import MAX_NAME, PUBLIC_WORKSPACE, Address, parse_target
from hypha.wire.calls import encode_value

if TYPE_CHECKING:
    from hypha.broker.broker import Broker
    from hypha.broker.session import PeerSession

_LISTS = ("owners", "allow_list", "deny_list")
_MAX_LIST = 1000
_MAX_ENTRY = 256  # characters of a user id or an e-mail address
_MAX_LISTED = 1000  # workspaces in one answer
_LOOKED_AT_ONCE = 100  # workspaces: a few milliseconds at most, where all lists are long
_MAX_REASON = 100  # bytes; a close frame takes 123
_WORKSPACE_KEYS = frozenset({*_LISTS, "permissions", "persistent", "visibility", "description"})
#: Keys of WorkspaceInfo that users of the original pass and that mean nothing here.
_IGNORED_KEYS = frozenset(
    {"read_only", "icon", "covers", "docs", "applications", "interfaces", "config", "environments", "quota"}
)


class InvalidKey(InvalidArgument):
    """WorkspaceInfo does not have the key that it was given."""

    remote_type = "KeyError"


class Hidden(PermissionDenied):
    """There is no such workspace, or the asker may not know of it: one answer for both (``decisions.md`` 17)."""


class ClientNotThere(NotFound):
    """No such client is connected. Its type is the one that legacy users match on."""

    remote_type = "Exception"


class Administration:
    """The workspaces of one broker and who may do what in them."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._registry = broker.registry
        self._ledger = broker.registry.ledger

    # --- looking ----------------------------------------------------------------------------------------------

    def visible(self, principal: Principal, name: object) -> Workspace:
        """The workspace of that name. Raises :class:`Hidden`."""
        place = self._registry.workspaces.get(name) if isinstance(name, str) else None
        if place is None or not may(principal, Action.READ, place).allowed:
            raise Hidden(f"Permission denied for workspace {str(name)[:200]}.")
        return place

    def administered(self, principal: Principal, name: object) -> Workspace:
        """The same, when *principal* may administer it. Raises :class:`PermissionDenied` when it may only see it."""
        place = self.visible(principal, name)
        if not may(principal, Action.ADMINISTER, place).allowed:
            raise PermissionDenied(f"Permission denied for workspace {place.name}.")
        return place

    async def page_of(
        self, principal: Principal, match: dict[str, Any], offset: int, limit: int
    ) -> list[dict[str, Any]]:
        """Workspaces that *principal* has a part in and that have the values of *match*, in the order of their making.

        *limit* of them, at most 1000, from *offset* on. Others have their turn in between. Raises
        :class:`InvalidArgument`.
        """
        if not all(isinstance(number, int) and number >= 0 for number in (offset, limit)):
            raise InvalidArgument("'offset' and 'limit' must be whole numbers")
        found, end = list[dict[str, Any]](), offset + min(limit, _MAX_LISTED)
        async with aclosing(self.belonging(principal)) as places:
            async for place, _ in places:
                if len(found) == end:
                    break
                entry = _entry(place)
                found += [entry] if all(entry.get(key) == value for key, value in match.items()) else []
        return found[offset:]

    async def belonging(self, principal: Principal) -> AsyncGenerator[tuple[Workspace, Level]]:
        """The workspaces that *principal* has a part in, and which, in the order of their making.

        Others have their turn in between. To be closed, or exhausted.
        """
        for number, place in enumerate(list(self._registry.workspaces.values())):
            if number % _LOOKED_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            level = level_in(principal, place)
            if level > Level.NONE:
                yield place, level

    def summary(self, place: Workspace) -> dict[str, Any]:
        """What is in the workspace."""
        services = list(place.services())
        return {
            "name": place.name,
            "description": place.description,
            "client_count": len(place.members),
            "clients": list(place.members),
            "service_count": len(services),
            "services": [summary(service) for service in self._registry.in_one_list(services)],
        }

    def clients(self, place: Workspace) -> list[dict[str, Any]]:
        """The clients that are connected, each with its user."""
        return [{"id": item.name, "user": item.principal.to_wire(place.name)} for item in place.members.values()]

    # --- workspaces -------------------------------------------------------------------------------------------

    def create(self, principal: Principal, config: object, overwrite: bool = False) -> Workspace:
        """Create a workspace that the caller owns; a persistent one only for users with an account.

        *overwrite* changes one that is there, for those who may administer it. Raises :class:`Conflict`,
        :class:`PermissionDenied`, :class:`LimitExceeded` and what is wrong with *config*.
        """
        if not isinstance(config, dict):
            raise InvalidArgument("create_workspace takes a map with a 'name'")
        name = config.get("name") or config.get("id")
        if config.get("persistent") and principal.is_anonymous:
            raise PermissionDenied("Only registered user can create persistent workspace.")
        settings = workspace_settings({key: value for key, value in config.items() if key not in {"name", "id"}})
        existing = self._registry.workspaces.get(name) if isinstance(name, str) else None
        if existing is not None and not (overwrite and level_in(principal, existing) is Level.ADMIN):
            raise Conflict(f"Workspace {name} already exists.")
        owners = settings.get("owners", existing.owners if existing is not None else [])
        # An administrator of the server makes workspaces for others, and needs to own none.
        added = [] if principal.listed_as in owners or (principal.is_admin and owners) else [principal.listed_as]
        settings["owners"] = [*owners, *added]
        if existing is None:
            _require_owner(settings["owners"], settings.get("deny_list", []))
            existing = self._create(principal, name, persistent=bool(config.get("persistent")))
        self._apply(principal, existing, settings)
        return existing

    def _create(self, principal: Principal, name: object, *, persistent: bool) -> Workspace:
        self._require_room(principal)
        if principal.is_anonymous:
            self._registry.make_room_for_stranger()
        if isinstance(name, str) and is_user_id(name) and name != principal.id:
            raise PermissionDenied("a name of this form is some user's own workspace; choose another")
        created = self._registry.create_workspace(name, persistent=persistent)
        created.identity = secrets.token_urlsafe(12)
        created.creator, created.of_stranger = principal.account, principal.is_anonymous
        self._registry.count(created)
        created.idle_since = self._broker.now()
        return created

    def _require_room(self, principal: Principal) -> None:
        quota, limits = self._broker.quotas.get(principal.account, {}), self._registry.limits
        if principal.is_anonymous:
            limit, name = limits.anonymous_workspaces_per_principal, "anonymous_workspaces_per_principal"
        else:
            limit, name = limits.workspaces_per_principal, "workspaces_per_principal"
        most, name = ceiling(quota, "workspaces", limit, name)
        if len(self._registry.created_by(principal.account)) >= most:
            raise LimitExceeded(f"{name} = {most} workspaces are yours already")

    def update(self, principal: Principal, place: Workspace, config: object) -> Workspace:
        """Change a workspace that *principal* may administer. Who may not be in it any more is disconnected."""
        if not isinstance(config, dict):
            raise InvalidArgument("the settings of a workspace are a map")
        if any(config.get(key, place.name) != place.name for key in ("name", "id")):
            raise PermissionDenied("Changing workspace name is not allowed.")
        if config.get("persistent") and principal.is_anonymous:
            raise PermissionDenied("Only registered user can have a persistent workspace.")
        settings = workspace_settings({key: config[key] for key in config if key not in {"name", "id"}})
        self._apply(principal, place, settings)
        return place

    def set_permission(self, principal: Principal, place: Workspace, user: object, permission: object) -> Workspace:
        """Give a user, by id or e-mail address, a level in a workspace, or take it away with None.

        It takes it from the allow list, too. Owners, and what tokens give, are not touched.
        """
        level = Level.parse(permission) if isinstance(permission, str) else None
        user = _checked_user(user)
        if permission is not None and level is None:
            raise InvalidArgument("permission must be read, read_write or admin, or null for none")
        permissions = {name: given for name, given in place.permissions.items() if name != user}
        if level is not None:
            permissions[user] = level.name.lower()
        allowed = [name for name in place.allow_list if name != user]
        self._apply(principal, place, workspace_settings({"permissions": permissions, "allow_list": allowed}))
        return place

    def _apply(self, principal: Principal, place: Workspace, settings: dict[str, Any]) -> None:
        """Change a workspace by settings that were checked. Raises :class:`InvalidArgument` before it has no owner."""
        if place.name == PUBLIC_WORKSPACE and not settings.get("persistent", True):
            raise InvalidArgument(f"the workspace {place.name} stays")
        changes = not {"owners", "deny_list"}.isdisjoint(settings)
        # What has none, as a workspace that is its user's own, can be changed all the same.
        if changes and not set(place.owners) <= set(place.deny_list):
            _require_owner(settings.get("owners", place.owners), settings.get("deny_list", place.deny_list))
        if principal.is_anonymous and place.creator is None and settings.get("owners") and not place.of_stranger:
            self._registry.make_room_for_stranger()
            place.of_stranger = True
            self._registry.count(place)
        place.owners = list(settings.get("owners", place.owners))
        place.allow_list = list(settings.get("allow_list", place.allow_list))
        place.deny_list = list(settings.get("deny_list", place.deny_list))
        place.permissions = dict(settings.get("permissions", place.permissions))
        place.persistent = bool(settings.get("persistent", place.persistent))
        place.visibility = settings.get("visibility", place.visibility)
        place.description = settings.get("description", place.description)
        self._ledger.workspace(place)
        publish(place, "workspace_changed", lambda: {"id": place.name, "workspace": place.name})
        self._broker.expel_denied(place, principal)
        self._broker.flush()

    def delete(self, place: Workspace) -> None:
        """End a workspace: its clients are disconnected for good. Raises :class:`PermissionDenied` for ``public``."""
        if place.name == PUBLIC_WORKSPACE:
            raise PermissionDenied(f"Permission denied for workspace {place.name}.")
        self._broker.delete_workspace(place)

    # --- clients and tokens -----------------------------------------------------------------------------------

    def client(self, principal: Principal, client_id: object, home: str) -> PeerSession:
        """A client of a workspace that *principal* may administer. Raises :class:`NotFound`.

        *client_id* is its id in the workspace *home*, or ``workspace/client``.
        """
        if not isinstance(client_id, str) or not 0 < len(client_id) <= 2 * MAX_NAME:
            raise InvalidArgument("the client is named by its id")
        address = parse_target(client_id, home) if "/" in client_id else Address(home, client_id)
        member = self.administered(principal, address.workspace).members.get(address.client)
        if member is None:
            raise ClientNotThere(f"Client not found: {address.client}")
        return member

    def kick(self, member: PeerSession, reason: object = None) -> None:
        """Disconnect a client for good. Its user may connect again, unless it is denied, too."""
        if reason is not None and not isinstance(reason, str):
            raise InvalidArgument("the reason is text")
        text = (reason or "").encode()[:_MAX_REASON].decode(errors="ignore")
        self._broker.expel(member, text or "disconnected by an administrator")

    def revoke(self, principal: Principal, token: object) -> None:
        """Let a token be refused from now on, with all that was issued through it; who came with it is disconnected.

        That may do who holds it, who issued it, and an administrator of every workspace that it opens. *token* is its
        text, or its id from the list.
        """
        if not isinstance(token, str):
            raise InvalidArgument("a token is text")
        holder = self._broker.tokens.holder(token)
        if not self._may_end(principal, holder):
            self._broker.tokens.verify(token)  # an id that the asker may not know of is as good as none
            raise PermissionDenied("a token is revoked by who holds or issued it, or administers its workspace")
        self._broker.tokens.revoke(holder, principal)

    def tokens(self, principal: Principal, place: Workspace) -> list[dict[str, Any]]:
        """The tokens for *place* that *principal* may revoke, as far as they are remembered.

        One for a workspace that had this name before is none.
        """
        tokens = self._broker.tokens.listed(place.name)
        open_it = (token for token in tokens if granted_level(token.holder, place) > Level.NONE)
        return [token.describe() for token in open_it if self._may_end(principal, token.holder)]

    def _may_end(self, principal: Principal, holder: Principal) -> bool:
        opened = [self._registry.workspaces.get(name) for name in holder.grants]
        administers = bool(opened) and all(
            place is not None and may(principal, Action.ADMINISTER, place).allowed for place in opened
        )
        return administers or principal.is_admin or principal.holds_or_issued(holder)

    # --- users: for administrators of the server --------------------------------------------------------------

    def users(self) -> list[dict[str, Any]]:
        """Who is connected, has workspaces, a quota or is blocked, by account."""
        blocked = {entry["user"] for entry in self._broker.tokens.blocked()}
        clients: dict[str, list[str]] = {}
        workspaces: dict[str, list[str]] = {}
        for session in self._registry.sessions():
            clients.setdefault(session.principal.account, []).append(session.name)
        for place in self._registry.workspaces.values():
            if place.creator is not None:
                workspaces.setdefault(place.creator, []).append(place.name)
        accounts = {**clients, **workspaces, **self._broker.quotas, **dict.fromkeys(blocked)}
        return [
            {
                "user": account,
                "clients": clients.get(account, []),
                "workspaces": workspaces.get(account, []),
                "quota": self._broker.quotas.get(account, {}),
                "blocked": account in blocked,
            }
            for account in accounts
        ]

    def block(self, principal: Principal, user: object, reason: object = None) -> None:
        """Refuse a user, and all that it has issued, from now on; its sessions end at once."""
        user = _checked_user(user)
        encode_value([user, reason])
        if user in principal.known_as:
            raise InvalidArgument("that is yourself")
        if reason is not None and not (isinstance(reason, str) and len(reason) <= _MAX_ENTRY):
            raise InvalidArgument(f"the reason is a text of at most {_MAX_ENTRY} characters")
        self._broker.tokens.block(user, reason or "")
        self._broker.end_revoked()
        self._broker.flush()

    def blocked(self) -> list[dict[str, Any]]:
        """Who is blocked, since when, and why."""
        return self._broker.tokens.blocked()

    def unblock(self, user: object) -> None:
        """Take that back. Raises :class:`NotFound`."""
        if not isinstance(user, str) or not self._broker.tokens.unblock(_written(user)):
            raise NotFound(f"{str(user)[:_MAX_ENTRY]!r} is not blocked")

    def set_user_quota(self, account: object, change: object) -> dict[str, int]:
        """Change the quota of a user, and return it."""
        account = _checked_user(account)
        encode_value(account)
        quota = changed(self._broker.quotas.get(account, {}), change, OF_USERS)
        self._ledger.quota(account, quota)
        self._broker.quotas[account] = quota
        if not quota:
            del self._broker.quotas[account]
        return quota

    def set_workspace_quota(self, place: Workspace, change: object) -> dict[str, int]:
        """Change the quota of a workspace, and return it."""
        place.quota = changed(place.quota, change, OF_WORKSPACES)
        self._ledger.workspace(place)
        return place.quota


# --- settings -------------------------------------------------------------------------------------------------


def workspace_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Check settings of a workspace, which can be kept then. Raises :class:`InvalidKey` or :class:`InvalidArgument`."""
    settings = {key: value for key, value in config.items() if key not in _IGNORED_KEYS and value is not None}
    for key, value in settings.items():
        if key not in _WORKSPACE_KEYS:
            raise InvalidKey(f"Invalid key: {str(key)[:100]}")
        if key in _LISTS:
            _check_list(key, value)
            settings[key] = [_written(item) for item in value]
    if "permissions" in settings:
        settings["permissions"] = _permissions(settings["permissions"])
    if settings.get("visibility", "protected") not in ("public", "protected"):
        raise InvalidArgument("visibility of a workspace must be public or protected")
    if not isinstance(settings.get("description", ""), str):
        raise InvalidArgument("description must be text")
    encode_value(settings)
    return settings


def _check_list(key: str, value: Any) -> None:
    # Every decision about the workspace looks into its lists.
    if not isinstance(value, list) or not all(isinstance(item, str) and len(item) <= _MAX_ENTRY for item in value):
        raise InvalidArgument(f"{key} must be a list of texts")
    if len(value) > _MAX_LIST:
        raise LimitExceeded(f"{key} takes at most {_MAX_LIST} entries")


def _permissions(value: Any) -> dict[str, str]:
    """Levels by user, written in full. Raises :class:`InvalidArgument` and :class:`LimitExceeded`."""
    _check_list("permissions", list(value) if isinstance(value, dict) else None)
    levels = {user: Level.parse(text) if isinstance(text, str) else None for user, text in value.items()}
    if None in levels.values():
        raise InvalidArgument("permissions are read, read_write or admin, for each user")
    return {_written(user): level.name.lower() for user, level in levels.items() if level is not None}


def _written(user: str) -> str:
    """A user, by id or e-mail address, as lists, blocks and quotas hold it.

    Addresses of accounts are in lower case, however people write them. Ids are as they are, and hold no @.
    """
    return user.lower() if "@" in user else user


def _checked_user(user: object) -> str:
    """The same of what may be none. Raises :class:`InvalidArgument`."""
    if not isinstance(user, str) or not 0 < len(user) <= _MAX_ENTRY:
        raise InvalidArgument("the user is an id or an e-mail address")
    return _written(user)


def _entry(place: Workspace) -> dict[str, Any]:
    """A workspace as it stands in lists."""
    shown = ("id", "name", "description", "read_only", "persistent", "owners")
    return {key: value for key, value in place.describe().items() if key in shown}


def _require_owner(owners: list[str], denied: list[str]) -> None:
    """Whoever has a workspace can give it away, but not leave it to nobody. Raises :class:`InvalidArgument`."""
    if set(owners) <= set(denied):
        raise InvalidArgument("a workspace keeps at least one owner who is not denied")
