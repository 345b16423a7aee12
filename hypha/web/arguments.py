"""The arguments of an HTTP call, from its query and its body (A20, ``protocol.md`` 8.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from hypercorn.typing import HTTPScope

from hypha.config import Limits
from hypha.errors import InvalidArgument
from hypha.web.bodies import body_arguments, parse_json
from hypha.web.http import RoomForOne, read_body
from hypha.wire.values import FUNCTION_MARKS

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_MAX_INT = 2**63 - 1
_MAX_DIGITS = len(str(-_MAX_INT))
#: Query parameters that speak to the server and are not passed on.
_OPTIONS = frozenset({"_args", "_timeout", "_mode"})

#: What hypha-rpc for Python says of each parameter whose type it does not know, one without a type hint among them.
_UNKNOWN = {"type": "string", "description": ""}
#: Types as JSON schema names them, and as hypha-rpc does that finds no pydantic.
_STRING, _BOOLEAN, _ARRAY = ("string", "str"), ("boolean", "bool"), ("array", "list")


class Texts(list[str]):
    """What a query parameter or a field of a form holds, as often as it is there."""


@dataclass(slots=True)
class Arguments:
    """What a function is called with.

    *patience*: seconds of silence after which the caller gives up. *mode*: which of several providers is called.
    """

    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    patience: float | None = None
    mode: str | None = None

    def named(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments. *schema* says of which types they are: parameter name -> JSON schema."""
        return {
            name: _read(value, schema.get(name)) if isinstance(value, Texts) else value
            for name, value in self.kwargs.items()
        }


async def read_arguments(scope: HTTPScope, room: RoomForOne, limits: Limits) -> Arguments:
    """Read them all. Raises :class:`InvalidArgument`, :class:`UnsupportedContent` and what ``read_body`` raises."""
    try:
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True, errors="strict")
    except ValueError as exc:
        raise InvalidArgument(f"the query cannot be read: {exc}") from exc
    options = {name: texts[-1] for name, texts in query.items() if name in _OPTIONS}
    found = Arguments(patience=_patience(options.get("_timeout")), mode=options.get("_mode"))
    found.kwargs = {name: Texts(texts) for name, texts in query.items() if name not in _OPTIONS}
    if "_args" in options:
        found.args, more = _as_arguments(parse_json(options["_args"].encode(), "_args"))
        found.kwargs.update(more)
    if scope["method"] == "POST":
        body = await read_body(scope, room.receive, limits)
        args, kwargs = await body_arguments(scope, body, limits, Texts, room.take)
        found.args += args
        found.kwargs.update(kwargs)
    # All arguments together are one map, too: JavaScript clients pass it to the function as it is read.
    if not FUNCTION_MARKS.isdisjoint(found.kwargs):
        raise InvalidArgument("no argument is named _rtype or _rintf")
    return found


def _read(texts: Texts, declared: object) -> Any:
    """A parameter of the type that is *declared*; without one numbers become numbers, and several a list (A20)."""
    kind = declared.get("type") if isinstance(declared, dict) and declared != _UNKNOWN else None
    if kind in _STRING:
        return texts[0] if len(texts) == 1 else list(texts)
    if kind in _BOOLEAN and texts[-1] in {"true", "false"}:
        return texts[-1] == "true"
    found = [_coerce(text) for text in texts]
    return found[0] if len(found) == 1 and kind not in _ARRAY else found


def _coerce(text: str) -> str | int | float:
    """A number when *text* is written as JSON writes numbers. ``007``, ``nan`` and ``true`` stay text."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return text
    if match.group(2) is None and match.group(3) is None:
        # Python does not read numbers of thousands of digits: their length says enough.
        return int(text) if len(text) <= _MAX_DIGITS and abs(int(text)) <= _MAX_INT else text
    value = float(text)
    return value if abs(value) != float("inf") else text


def _as_arguments(value: Any) -> tuple[list[Any], dict[str, Any]]:
    if isinstance(value, list):
        return value, {}
    if isinstance(value, dict):
        return [], value
    raise InvalidArgument("_args must be a JSON list of arguments or a JSON map of argument names to values")


def _patience(text: str | None) -> float | None:
    if text is None:
        return None
    number = _coerce(text)
    if isinstance(number, str) or not 0 < number <= 86400:
        raise InvalidArgument("_timeout must be a number of seconds from above 0 to 86400")
    return float(number)
