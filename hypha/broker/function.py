"""One function of the server's own that peers may call."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypha.broker.access import Action
from hypha.errors import InvalidArgument
from hypha.wire.schema import function_schema


@dataclass(frozen=True, slots=True)
class Function:
    """One function that peers may call. *needs* is what the caller must be allowed to do in the workspace."""

    run: Callable[..., Awaitable[Any]]
    needs: Action | None
    signature: inspect.Signature
    described: bool = False

    @classmethod
    def of(
        cls, run: Callable[..., Awaitable[Any]], needs: Action | None = None, *, described: bool = False
    ) -> Function:
        """Wrap a coroutine function whose first parameter says who calls.

        *described*: its callers are told what it does and takes.
        """
        return cls(run, needs, inspect.signature(run), described)

    async def call(self, caller: object, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run it. Raises :class:`InvalidArgument` with *name* for arguments that do not fit, and what it raises."""
        try:
            bound = self.signature.bind(caller, *args, **kwargs)
        except TypeError as exc:
            raise InvalidArgument(f"{name}: {exc}") from exc
        return await self.run(*bound.args, **bound.kwargs)

    def annotations(self, name: str) -> dict[str, Any]:
        """What callers are told of the function beside its address (``protocol.md`` 3.2)."""
        if not self.described:
            return {}
        text = inspect.cleandoc(self.run.__doc__ or name)
        _, *parameters = self.signature.parameters.values()
        return {"_rdoc": text, "_rschema": function_schema(name, text, parameters)}
