"""Request bodies as arguments: JSON, msgpack, forms, files and plain bytes, compressed or not (A23)."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs

from hypercorn.typing import HTTPScope
from werkzeug.exceptions import HTTPException
from werkzeug.formparser import MultiPartParser
from werkzeug.http import parse_options_header

from hypha.config import Limits
from hypha.errors import InvalidArgument, ProtocolViolation, TooLarge, UnsupportedContent
from hypha.web.http import header
from hypha.wire.frame import MAX_VALUES, unpack_body

Arguments = tuple[list[Any], dict[str, Any]]

_MAX_FORM_PARTS = 1000


def body_arguments(scope: HTTPScope, body: bytes, limits: Limits, parameter: Callable[[list[str]], Any]) -> Arguments:
    """The arguments in a request body, by position and by name. An empty body has none.

    *parameter* reads the texts of one form field, as it reads those of a query parameter. Raises
    :class:`UnsupportedContent` for a format that is not understood, :class:`InvalidArgument` for a body that is not
    what it says, :class:`TooLarge` when it inflates beyond ``http_body_bytes``.
    """
    kind, options = parse_options_header(header(scope, b"content-type"))
    kind = kind.lower()
    body = _inflated(header(scope, b"content-encoding").strip().lower(), body, limits)
    if not body:
        return [], {}
    if kind in {"", "application/json"}:
        return [], _named(parse_json(body, "the body"))
    if kind == "application/msgpack":
        return [], _named(_parse_msgpack(body))
    if kind == "application/x-www-form-urlencoded":
        return [], _form(body, parameter)
    if kind == "multipart/form-data":
        return [], _multipart(body, options.get("boundary", ""), parameter)
    if kind == "application/octet-stream":
        return [body], {}
    raise UnsupportedContent(
        f"Content-Type {kind[:100]!r}: send application/json, application/msgpack, a form, or application/octet-stream"
    )


def _inflated(encoding: str, body: bytes, limits: Limits) -> bytes:
    if encoding in {"", "identity"}:
        return body
    if encoding not in {"gzip", "x-gzip"}:
        raise UnsupportedContent(f"Content-Encoding {encoding[:100]!r}: send gzip, or none")
    inflater = zlib.decompressobj(31)  # 16 + 15: a gzip header and the largest window
    try:
        whole = inflater.decompress(body, limits.http_body_bytes + 1)
    except zlib.error as exc:
        raise InvalidArgument(f"the body is not gzip: {exc}") from exc
    if len(whole) > limits.http_body_bytes:
        raise TooLarge(f"the inflated body is larger than http_body_bytes = {limits.http_body_bytes}")
    if not inflater.eof:
        raise InvalidArgument("the gzip body is not complete")
    return whole


def parse_json(text: bytes, what: str) -> Any:
    """Decode JSON. Raises :class:`InvalidArgument` that begins with *what*.

    One that could hold more than :data:`hypha.wire.calls.MAX_VALUES` values is refused by its punctuation, before it
    takes a hundred times its size in memory.
    """
    if text.count(b",") + text.count(b"[") + text.count(b"{") > MAX_VALUES:
        raise InvalidArgument(f"{what} holds more than {MAX_VALUES} values; send large arrays as msgpack")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgument(f"{what} is not valid JSON: {exc}") from exc


def _parse_msgpack(body: bytes) -> Any:
    try:
        return unpack_body(body)
    except ProtocolViolation as exc:
        raise InvalidArgument(str(exc)) from exc


def _named(arguments: Any) -> dict[str, Any]:
    if not isinstance(arguments, dict) or not all(isinstance(name, str) for name in arguments):
        raise InvalidArgument("the body must be a map of argument names to values")
    return arguments


def _form(body: bytes, parameter: Callable[[list[str]], Any]) -> dict[str, Any]:
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FORM_PARTS)
    except ValueError as exc:
        raise InvalidArgument(f"the form cannot be read: {exc}") from exc
    return {name: parameter(texts) for name, texts in fields.items()}


def _multipart(body: bytes, boundary: str, parameter: Callable[[list[str]], Any]) -> dict[str, Any]:
    """Fields as in a form; files as bytes, several under one name as a list."""
    parser = MultiPartParser(stream_factory=_in_memory, max_form_memory_size=len(body), max_form_parts=_MAX_FORM_PARTS)
    try:
        form, files = parser.parse(BytesIO(body), boundary.encode(), len(body))
    except (ValueError, HTTPException) as exc:
        raise InvalidArgument("the multipart body cannot be read: check its boundary and its parts") from exc
    arguments = {name: parameter(texts) for name, texts in form.lists()}
    for name, found in files.lists():
        contents = [file.stream.read() for file in found]
        arguments[name] = contents[0] if len(contents) == 1 else contents
    return arguments


def _in_memory(*_: Any, **__: Any) -> BytesIO:
    # The whole body is in memory and bounded already; werkzeug's own choice would write temporary files.
    return BytesIO()
