"""One function of the server's own that peers may call."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypha.broker.access import Action
from hypha.errors import InvalidArgument


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
        named = [item for item in parameters if item.kind is item.POSITIONAL_OR_KEYWORD]
        schema = {
            "type": "object",
            "properties": {item.name: _json_schema(item) for item in named},
            "required": [item.name for item in named if item.default is item.empty],
        }
        first_line = text.partition("\n")[0]
        return {"_rdoc": text, "_rschema": {"name": name, "description": first_line, "parameters": schema}}


_JSON_TYPES = {
    "str": "string",
    "bool": "boolean",
    "int": "integer",
    "float": "number",
    "list": "array",
    "dict": "object",
}


def _json_schema(parameter: inspect.Parameter) -> dict[str, Any]:
    """A parameter as JSON schema, by its annotation, which is text; one of several types is of any."""
    kinds = [part.partition("[")[0].strip() for part in str(parameter.annotation).split("|")]
    known = [_JSON_TYPES[kind] for kind in kinds if kind in _JSON_TYPES]
    schema: dict[str, Any] = {"type": known[0]} if len(known) == 1 else {}
    if parameter.default is not parameter.empty:
        schema["default"] = parameter.default
    return schema
