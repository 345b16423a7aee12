"""Request bodies as arguments: JSON, msgpack, forms, files and plain bytes, compressed or not (A23)."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

import trio
from hypercorn.typing import HTTPScope
from werkzeug.exceptions import HTTPException
from werkzeug.formparser import MultiPartParser
from werkzeug.http import parse_options_header

from hypha.config import Limits
from hypha.errors import InvalidArgument, ProtocolViolation, TooLarge, UnsupportedContent
from hypha.web.http import header
from hypha.wire.calls import encode_value
from hypha.wire.frame import MAX_VALUES, unpack_body
from hypha.wire.values import stands_for_function

Arguments = tuple[list[Any], dict[str, Any]]
Body = bytes | bytearray

_MAX_FORM_PARTS = 1000
#: Bytes of text that is read in steps of Python's, or in one that cannot be divided, while nobody else is served.
_MAX_FORM, _MAX_JSON = 1024 * 1024, 16 * 1024 * 1024
#: Bytes of a form, and of what a body inflates to, between two moments for others: a tenth of a millisecond each. Three
#: times as many escapes need more small objects than the allocator keeps, and take ten times as long.
_ESCAPED_SLICE, _INFLATED_SLICE = 2048, 131072
#: What JSON writes for half of a character, of which two may be a whole one.
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
#: Without this in its bytes, with which all marks begin, JSON holds no function, unless it spells letters otherwise.
_MARK = b"_r"
#: Bodies that inflate at the same time: a small one becomes a hundred megabytes.
_INFLATING = trio.CapacityLimiter(4)


async def body_arguments(
    scope: HTTPScope,
    body: Body,
    limits: Limits,
    parameter: Callable[[list[str]], Any],
    take: Callable[[int], None],
) -> Arguments:
    """The arguments in a request body, by position and by name. An empty body has none.

    *parameter* takes the texts of one form field, as it takes those of a query parameter. *take* is told of the bytes
    that *body* inflates to, before they take memory, and raises when there is no room for them. Raises
    :class:`UnsupportedContent` for a format that is not understood, :class:`InvalidArgument` for a body that is not
    what it says, :class:`TooLarge` when it inflates beyond ``http_body_bytes`` or is larger than its format may be.
    Gives way to others while it inflates or reads a form. Cancel it freely.
    """
    kind, options = parse_options_header(header(scope, b"content-type"))
    kind = kind.lower()
    body = await _inflated(header(scope, b"content-encoding").strip().lower(), body, limits, take)
    if not body:
        return [], {}
    if kind in {"", "application/json"}:
        _check_size(body, _MAX_JSON, "send large values as msgpack")
        return [], _named(parse_json(body, "the body"))
    if kind == "application/msgpack":
        return [], _named(_parse_msgpack(body))
    if kind == "application/x-www-form-urlencoded":
        _check_size(body, _MAX_FORM, "send large values as multipart/form-data")
        return [], await _form(body, parameter)
    if kind == "multipart/form-data":
        return [], _multipart(body, options.get("boundary", ""), parameter)
    if kind == "application/octet-stream":
        return [body], {}
    raise UnsupportedContent(
        f"Content-Type {kind[:100]!r}: send application/json, application/msgpack, a form, or application/octet-stream"
    )


async def _inflated(encoding: str, body: Body, limits: Limits, take: Callable[[int], None]) -> Body:
    if encoding in {"", "identity"}:
        return body
    if encoding not in {"gzip", "x-gzip"}:
        raise UnsupportedContent(f"Content-Encoding {encoding[:100]!r}: send gzip, or none")
    async with _INFLATING:
        try:
            return await _inflate(body, limits.http_body_bytes, take)
        except zlib.error as exc:
            raise InvalidArgument(f"the body is not gzip: {exc}") from exc


async def _inflate(body: Body, limit: int, take: Callable[[int], None]) -> bytearray:
    size, whole = 0, bytearray()
    for piece in _inflated_pieces(body):  # counted first, so that what is too large takes no memory
        size += len(piece)
        if size > limit:
            raise TooLarge(f"the inflated body is larger than http_body_bytes = {limit}")
        take(len(piece))
        await trio.lowlevel.checkpoint()
    for piece in _inflated_pieces(body):
        whole += piece
        await trio.lowlevel.checkpoint()
    return whole


def _inflated_pieces(body: Body) -> Iterator[bytes]:
    inflater = zlib.decompressobj(31)  # 16 + 15: a gzip header and the largest window
    for start in range(0, len(body), _INFLATED_SLICE):
        rest: Body = body[start : start + _INFLATED_SLICE]
        while rest and not inflater.eof:
            yield inflater.decompress(rest, _INFLATED_SLICE)
            rest = inflater.unconsumed_tail
    if not inflater.eof:
        raise InvalidArgument("the gzip body is not complete")


def _check_size(body: Body, limit: int, instead: str) -> None:
    if len(body) > limit:
        raise TooLarge(f"a body of this Content-Type may have {limit} bytes; {instead}")


def parse_json(text: Body, what: str) -> Any:
    """Decode JSON. Raises :class:`InvalidArgument` that begins with *what*.

    One that could hold more than :data:`hypha.wire.frame.MAX_VALUES` values is refused by its punctuation, before it
    takes a hundred times its size in memory. So is one with text that nobody could be sent: JSON can spell half of a
    character, which UTF-8 cannot. And so is one that :func:`_no_function` refuses.
    """
    if len(text) > MAX_VALUES and len(text) - len(text.translate(None, b",[{")) > MAX_VALUES:
        raise InvalidArgument(f"{what} holds more than {MAX_VALUES} values; send large arrays as msgpack")
    try:
        # Few bodies hold a marked value, and asking for each map takes half as long again.
        hook = _no_function if _MARK in text or b"\\u" in text else None
        value = json.loads(text.decode("utf-8-sig"), object_hook=hook)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgument(f"{what} is not valid JSON: {exc}") from exc
    if _HALF.search(text):
        encode_value(value)
    return value


def _no_function(value: dict[Any, Any]) -> dict[Any, Any]:
    """*value*. Raises :class:`InvalidArgument` for a map that its receiver would take for a function of some client.

    Who calls over HTTP has none: it could name anybody's, and the receiver would call that with rights of its own.
    """
    if stands_for_function(value):
        raise InvalidArgument("arguments over HTTP hold no functions, interfaces or generators (_rtype, _rintf)")
    return value


def _parse_msgpack(body: Body) -> Any:
    try:
        return unpack_body(body, _no_function)
    except ProtocolViolation as exc:
        raise InvalidArgument(str(exc)) from exc


def _named(arguments: Any) -> dict[str, Any]:
    if not isinstance(arguments, dict) or not all(isinstance(name, str) for name in arguments):
        raise InvalidArgument("the body must be a map of argument names to values")
    return arguments


async def _form(body: Body, parameter: Callable[[list[str]], Any]) -> dict[str, Any]:
    if body.count(b"&") >= _MAX_FORM_PARTS:
        raise InvalidArgument(f"the form cannot be read: it has more than {_MAX_FORM_PARTS} fields")
    fields: dict[str, list[str]] = {}
    start = 0
    while start < len(body):
        stop = _found(body, b"&", start, len(body))
        if start < stop:
            equals = _found(body, b"=", start, stop)
            name = await _unescaped(body, start, equals)
            fields.setdefault(name, []).append(await _unescaped(body, equals + 1, stop))
        start = stop + 1
    return {name: parameter(texts) for name, texts in fields.items()}


def _found(body: Body, sign: bytes, start: int, stop: int) -> int:
    """Where *sign* is between the two, or *stop*."""
    found = body.find(sign, start, stop)
    return stop if found < 0 else found


async def _unescaped(body: Body, start: int, stop: int) -> str:
    """A name or a value of a form. Gives way to others within a long one, of which it makes no copy."""
    found = bytearray()
    while stop - start > _ESCAPED_SLICE:
        end = start + _ESCAPED_SLICE
        escape = body.rfind(b"%", end - 2, end)
        end = end if escape < 0 else escape
        found += _unquoted(body[start:end])
        start = end
        await trio.lowlevel.checkpoint()
    found += _unquoted(body[start:stop])
    try:
        return found.decode()
    except UnicodeDecodeError as exc:
        raise InvalidArgument(f"the form cannot be read: {exc}") from exc


def _unquoted(text: Body) -> bytes:
    return unquote_to_bytes(bytes(text).replace(b"+", b" "))


def _multipart(body: Body, boundary: str, parameter: Callable[[list[str]], Any]) -> dict[str, Any]:
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
