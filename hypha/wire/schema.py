"""What a Python function takes, as JSON schema: for people, and for callers that have only text."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

_JSON_TYPES = {
    "str": "string",
    "bool": "boolean",
    "int": "integer",
    "float": "number",
    "list": "array",
    "tuple": "array",
    "dict": "object",
}


def function_schema(name: str, text: str, parameters: Iterable[inspect.Parameter]) -> dict[str, Any]:
    """The schema of a function. *text* documents it; its first line is the description."""
    named = [item for item in parameters if item.kind in {item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY}]
    return {
        "name": name,
        "description": text.partition("\n")[0],
        "parameters": {
            "type": "object",
            "properties": {item.name: _parameter(item) for item in named},
            "required": [item.name for item in named if item.default is item.empty],
        },
    }


def _parameter(parameter: inspect.Parameter) -> dict[str, Any]:
    """A parameter by its annotation, which may be text; one of several types is of any."""
    kinds = [part.partition("[")[0].strip() for part in _annotation(parameter.annotation).split("|")]
    known = [_JSON_TYPES[kind] for kind in kinds if kind in _JSON_TYPES]
    schema: dict[str, Any] = {"type": known[0]} if len(known) == 1 else {}
    if _is_plain(parameter.default):
        schema["default"] = parameter.default
    return schema


def _annotation(annotation: object) -> str:
    return annotation.__name__ if type(annotation) is type else str(annotation)


def _is_plain(default: object) -> bool:
    return default is None or type(default) in {str, int, float, bool}
