"""Variables of a workspace, secrets among them: for those who may change it, and never in a log or a list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hypha.broker.access import Action
from hypha.errors import InvalidArgument, LimitExceeded, NotFound
from hypha.wire.address import MAX_NAME

if TYPE_CHECKING:
    from hypha.broker.endpoint import ServerCall
    from hypha.broker.manager import Run
    from hypha.broker.modern import ModernManager


class EnvironmentFunctions:
    """What the manager of modern clients offers."""

    def __init__(self, manager: ModernManager) -> None:
        self._manager = manager

    def exported(self) -> Iterator[tuple[Run, Action]]:
        """Each function with what its caller must be allowed to do."""
        yield self.set_env, Action.WRITE
        yield self.get_env, Action.WRITE

    async def set_env(self, call: ServerCall, key: str, value: str | None) -> None:
        """Keep a variable of the workspace, a text; null removes it."""
        if not isinstance(key, str) or not 0 < len(key) <= MAX_NAME:
            raise InvalidArgument(f"the name of a variable is a text of 1 to {MAX_NAME} characters")
        if value is not None and not isinstance(value, str):
            raise InvalidArgument("the value of a variable is text")
        changed = {name: text for name, text in call.workspace.environment.items() if name != key}
        if value is not None:
            changed[key] = value
            limit = call.sender.limits.environment_bytes_per_workspace
            if sum(len(text.encode()) for item in changed.items() for text in item) > limit:
                raise LimitExceeded(f"the variables are larger than environment_bytes_per_workspace = {limit}")
        call.workspace.environment = changed
        self._manager.ledger.environment(call.workspace)

    async def get_env(self, call: ServerCall, key: str | None = None) -> str | dict[str, str]:
        """A variable of the workspace, or all of them as a map."""
        variables = call.workspace.environment
        if key is None:
            return variables
        if not isinstance(key, str) or key not in variables:
            raise NotFound(f"Environment variable {str(key)[:MAX_NAME]!r} not found in workspace {call.workspace.name}")
        return variables[key]
