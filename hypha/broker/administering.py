"""The functions of both managers that administer: workspaces and their clients, tokens, and the server itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hypha.broker.access import Action
from hypha.errors import InvalidArgument

if TYPE_CHECKING:
    from hypha.broker.broker import Broker
    from hypha.broker.endpoint import ServerCall
    from hypha.broker.manager import Run
    from hypha.broker.registry import Workspace


class AdministrationFunctions:
    """Each is about the workspace that its caller is connected to, unless it names another."""

    def __init__(self, broker: Broker) -> None:
        self._administration = broker.administration

    def exported(self) -> Iterator[tuple[Run, Action]]:
        """Each function with what its caller must be allowed to do in the workspace that it is connected to.

        What is about another workspace is asked about that.
        """
        looking: tuple[Run, ...] = (
            self.create_workspace,
            self.delete_workspace,
            self.update_workspace,
            self.get_workspace_info,
            self.list_workspaces,
            self.set_permission,
            self.kick_client,
            self.list_tokens,
            self.revoke_token,
        )
        for run in looking:
            yield run, Action.READ
        operating: tuple[Run, ...] = (
            self.list_users,
            self.block_user,
            self.unblock_user,
            self.list_blocked,
            self.set_quota,
        )
        for run in operating:
            yield run, Action.OPERATE

    def _administered(self, call: ServerCall, name: object) -> Workspace:
        wanted = call.workspace.name if name is None else name
        return self._administration.administered(call.principal, wanted)

    # --- workspaces -------------------------------------------------------------------------------------------

    async def create_workspace(
        self, call: ServerCall, config: dict[str, Any], overwrite: bool = False
    ) -> dict[str, Any]:
        """Create a workspace that the caller owns; a persistent one only for users with an account."""
        return self._administration.create(call.principal, config, overwrite).describe()

    async def delete_workspace(self, call: ServerCall, workspace: str) -> None:
        """End a workspace that the caller administers: its clients are disconnected for good."""
        place = self._administration.administered(call.principal, workspace)
        if place is call.workspace:
            raise InvalidArgument("the workspace that you are connected to cannot be deleted; connect to another one")
        self._administration.delete(place)

    async def update_workspace(
        self, call: ServerCall, config: dict[str, Any], workspace: str | None = None
    ) -> dict[str, Any]:
        """Change owners, permissions, lists, visibility, description or persistence of a workspace."""
        return self._administration.update(call.principal, self._administered(call, workspace), config).describe()

    async def get_workspace_info(self, call: ServerCall, workspace: str | None = None) -> dict[str, Any]:
        """The WorkspaceInfo of the workspace, or of another that the caller may see."""
        place = call.workspace if workspace is None else self._administration.visible(call.principal, workspace)
        return place.describe()

    async def list_workspaces(
        self, call: ServerCall, match: dict[str, Any] | None = None, offset: int = 0, limit: int = 256
    ) -> list[dict[str, Any]]:
        """The workspaces that the caller has a part in, or those of them that match a map."""
        if match is not None and not isinstance(match, dict):
            raise InvalidArgument("'match' must be a map")
        return await self._administration.page_of(call.principal, match or {}, offset, limit)

    async def set_permission(
        self, call: ServerCall, user: str, permission: str | None, workspace: str | None = None
    ) -> dict[str, Any]:
        """Give a user ``read``, ``read_write`` or ``admin`` in a workspace, or null for nothing."""
        place = self._administered(call, workspace)
        return self._administration.set_permission(call.principal, place, user, permission).describe()

    # --- clients and tokens -----------------------------------------------------------------------------------

    async def kick_client(
        self, call: ServerCall, client_id: str, reason: str | None = None, workspace: str | None = None
    ) -> None:
        """Disconnect a client of a workspace that the caller administers, for good."""
        home = call.workspace.name if workspace is None else str(workspace)
        member = self._administration.client(call.principal, client_id, home)
        if member is call.sender:
            raise InvalidArgument("a client disconnects itself by ending its connection")
        self._administration.kick(member, reason)

    async def list_tokens(self, call: ServerCall, workspace: str | None = None) -> list[dict[str, Any]]:
        """The tokens for a workspace that the caller may revoke: its own, or all for who administers it."""
        place = call.workspace if workspace is None else self._administration.visible(call.principal, workspace)
        return self._administration.tokens(call.principal, place)

    async def revoke_token(self, call: ServerCall, token: str) -> None:
        """Let a token be refused from now on, with all that was issued through it; who came with it is disconnected.

        That may do who holds it, who issued it, and an administrator of every workspace that it opens. The token is
        named by its text, or by its id from ``list_tokens``.
        """
        self._administration.revoke(call.principal, token)

    # --- the server -------------------------------------------------------------------------------------------

    async def list_users(self, call: ServerCall) -> list[dict[str, Any]]:
        """Who is connected, has workspaces, has a quota, or is blocked. For administrators of the server."""
        return self._administration.users()

    async def block_user(self, call: ServerCall, user_id: str, reason: str | None = None) -> None:
        """Refuse a user, and all that it has issued, until it is unblocked. For administrators of the server."""
        self._administration.block(call.principal, user_id, reason)

    async def unblock_user(self, call: ServerCall, user_id: str) -> None:
        """Let a blocked user in again. For administrators of the server."""
        self._administration.unblock(user_id)

    async def list_blocked(self, call: ServerCall) -> list[dict[str, Any]]:
        """Who is blocked, since when and why. For administrators of the server."""
        return self._administration.blocked()

    async def set_quota(
        self, call: ServerCall, quota: dict[str, int | None], workspace: str | None = None, user: str | None = None
    ) -> dict[str, int]:
        """Set how much one user or one workspace may have, in the place of limits; null takes that back.

        For a user: ``clients``, ``workspaces``. For a workspace, by default the caller's: ``clients``, ``services``.
        For administrators of the server.
        """
        if user is not None:
            return self._administration.set_user_quota(user, quota)
        return self._administration.set_workspace_quota(self._administered(call, workspace), quota)
