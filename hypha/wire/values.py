"""Values as they travel: maps with ``_rtype`` (``protocol.md`` 3).

The server passes peers' values on as it gets them. What it does with them is here: it makes relative method targets
absolute, makes methods and errors of its own, and turns values into JSON for HTTP callers.
"""

from __future__ import annotations

import itertools
import math
import operator
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgpack

from hypha.errors import InvalidArgument, NotAcceptable

Value = Any

_TRACEBACK = "Traceback (most recent call last):"

#: Levels of lists and maps that are followed. Python's own recursion ends at a thousand frames.
MAX_DEPTH = 200


def method(target: str, path: str, *, promise: bool | str = True, **annotations: Value) -> dict[str, Value]:
    """A function of the peer *target* (absolute) at *path* of its object store (``protocol.md`` 3.2)."""
    return {"_rtype": "method", "_rtarget": target, "_rmethod": path, "_rpromise": promise, **annotations}


def error(text: str, code: str | None = None, trace: str = "") -> dict[str, Value]:
    """An exception.

    *code* is its stable name (:attr:`hypha.errors.HyphaError.code`), which published clients ignore. No traceback of
    the server leaves it, so that *trace* is empty there.
    """
    told = {"_rtype": "error", "_rvalue": text, "_rtrace": trace}
    return told if code is None else {**told, "_rcode": code}


def error_text(value: Value) -> str:
    """The message of an error that a peer sent, which may have several lines.

    Asynchronous Python functions reject with a formatted traceback, at whose end the message is
    (``protocol.md`` 4.3); what is above names files of the provider's machine.
    """
    told = value.get("_rvalue") if isinstance(value, dict) else value
    text = told.strip() if isinstance(told, str) else ""
    if _TRACEBACK in text:
        text = _below_the_frames(text.rpartition(_TRACEBACK)[2].splitlines())
    return text or "the function failed without a message"


def _below_the_frames(lines: list[str]) -> str:
    message = "\n".join(itertools.dropwhile(lambda line: line[:1] in {"", " "}, lines))
    # An exception group is indented as a whole: the last line that says something is its last member's.
    return message or next((line.strip(" |") for line in reversed(lines) if line.strip(" |+-")), "")


def absolute_targets(value: Value, workspace: str, depth: int = MAX_DEPTH) -> Value:
    """A copy of *value* in which every relative ``_rtarget`` lies in *workspace* (``protocol.md`` 3.2).

    Raises :class:`InvalidArgument` for a value nested deeper than :data:`MAX_DEPTH`.
    """
    if not isinstance(value, list | dict):
        return value
    if depth == 0:
        raise InvalidArgument(f"the value is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, list):
        return [absolute_targets(item, workspace, depth - 1) for item in value]
    copy = {key: absolute_targets(item, workspace, depth - 1) for key, item in value.items()}
    target = copy.get("_rtarget")
    if copy.get("_rtype") == "method" and isinstance(target, str) and "/" not in target:
        copy["_rtarget"] = f"{workspace}/{target}"
    return copy


#: What tells that a map may stand for something of a peer which its receiver would call.
FUNCTION_MARKS = frozenset({"_rtype", "_rintf"})
_CALLED = ("method", "interface", "generator")


def stands_for_function(value: dict[Any, Value]) -> bool:
    """Whether *value* itself is a function, an interface or a generator of a peer, in either generation.

    An ``orderedmap`` is none, but Python makes a map of its pairs, which is one for whoever gets that next.
    """
    kind = value.get("_rtype")
    if kind == "orderedmap":
        pairs = value.get("_rvalue")
        return not (isinstance(pairs, list) and all(_is_plain_pair(pair) for pair in pairs))
    return "_rintf" in value or kind in _CALLED


def _is_plain_pair(pair: Value) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and not (isinstance(pair[0], str) and pair[0] in FUNCTION_MARKS)


def is_method(value: Value) -> bool:
    """Whether *value* is a function of some peer."""
    return isinstance(value, dict) and value.get("_rtype") == "method"


def is_generator(value: Value) -> bool:
    """Whether *value* is a generator of some peer (``protocol.md`` 3.1)."""
    return isinstance(value, dict) and value.get("_rtype") == "generator" and isinstance(value.get("_rmethod"), str)


def is_end(value: Value) -> bool:
    """Whether *value* is what a generator answers with when it has nothing more."""
    return isinstance(value, dict) and value.get("_rtype") == "stop_iteration"


def to_json(value: Value, array_limit: int, depth: int = MAX_DEPTH) -> Value:
    """*value* as what :mod:`json` can write (``decisions.md`` 22).

    Arrays become nested lists of numbers, row by row, sets and typed arrays become lists, functions become text. A
    JavaScript Map becomes an object when all its keys are text, otherwise a list of pairs; a Date becomes text as
    ``Date.toJSON`` writes it. Raises :class:`NotAcceptable` for bytes, for arrays of more than *array_limit* bytes,
    and for nesting deeper than :data:`MAX_DEPTH`.
    """
    if depth == 0:
        raise NotAcceptable(f"the result is nested deeper than {MAX_DEPTH} levels; ask for application/msgpack")
    if isinstance(value, list | tuple):
        return [to_json(item, array_limit, depth - 1) for item in value]
    if isinstance(value, dict):
        return _map_to_json(value, array_limit, depth)
    if isinstance(value, float):
        return _json_number(value)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, msgpack.Timestamp):
        return _date_to_json(value)
    raise NotAcceptable(
        f"the result holds {type(value).__name__}, which JSON cannot express; "
        "send the request with Content-Type: application/msgpack to get it as msgpack"
    )


def _map_to_json(value: dict[Any, Value], array_limit: int, depth: int) -> Value:
    kind = value.get("_rtype")
    if not isinstance(kind, str):
        return {str(key): to_json(item, array_limit, depth - 1) for key, item in value.items()}
    if kind in {"ndarray", "typedarray"} and isinstance(value.get("_rvalue"), bytes):
        return _array_to_json(value, array_limit)
    if kind == "orderedmap" and _is_pairs(value.get("_rvalue")):
        return {key: to_json(item, array_limit, depth - 1) for key, item in value["_rvalue"]}
    if kind in {"set", "orderedmap"}:
        return to_json(value.get("_rvalue"), array_limit, depth - 1)
    if kind == "method":
        return f"<function: {value.get('_rmethod')}>"
    return {str(key): to_json(item, array_limit, depth - 1) for key, item in value.items()}


def _is_pairs(value: Value) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in value
    )


def _date_to_json(value: msgpack.Timestamp) -> str:
    try:
        text: str = value.to_datetime().isoformat(timespec="milliseconds")
    except OverflowError as exc:
        raise NotAcceptable("the result holds a date that is not of the years 1 to 9999") from exc
    return text.replace("+00:00", "Z")


def _json_number(value: float) -> float | None:
    # RFC 8259 has no NaN and no infinity, and browsers refuse a document that holds one.
    return value if math.isfinite(value) else None


def _unpack_with(code: str) -> Callable[[bytes], Iterator[Any]]:
    form = struct.Struct("<" + code)
    return lambda data: (row[0] for row in form.iter_unpack(data))


#: numpy dtype name -> item size in bytes and reader of little-endian items. No numpy needed at the server.
_DTYPES: dict[str, tuple[int, Callable[[bytes], Iterator[Any]]]] = {
    name: (struct.calcsize("<" + code), _unpack_with(code))
    for name, code in {
        "bool": "?",
        "int8": "b",
        "uint8": "B",
        "int16": "h",
        "uint16": "H",
        "int32": "i",
        "uint32": "I",
        "int64": "q",
        "uint64": "Q",
        "float16": "e",
        "float32": "f",
        "float64": "d",
    }.items()
}


def _array_to_json(value: dict[str, Value], array_limit: int) -> Value:
    data, dtype = value["_rvalue"], value.get("_rdtype")
    shape = value.get("_rshape")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise NotAcceptable(
            f"an array of dtype {str(dtype)[:40]!r} cannot be written as JSON; ask for application/msgpack"
        )
    size, read = _DTYPES[dtype]
    if len(data) > array_limit:
        raise NotAcceptable(
            f"an array of {len(data)} bytes is over json_array_bytes = {array_limit}; ask for application/msgpack"
        )
    if shape is None:
        shape = [len(data) // size]
    count = len(data) // size
    if not _is_shape(shape) or math.prod(shape) * size != len(data) or _lists(shape) > 2 * count + 64:
        raise NotAcceptable("the array's shape does not fit its bytes; ask for application/msgpack to see it")
    items = (_json_number(item) if isinstance(item, float) else item for item in read(data))
    return _nest(items, list(shape))


def _is_shape(shape: Value) -> bool:
    return isinstance(shape, list | tuple) and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape)


def _lists(shape: Iterable[int]) -> int:
    """How many lists the nesting of *shape* takes. [10**9, 0] holds no item, [10**6, 1, 1, 1] has three around each."""
    return sum(itertools.accumulate(shape, operator.mul, initial=1)) - math.prod(shape)


def _nest(items: Iterator[Any], shape: list[int]) -> Value:
    if not shape:
        return next(items)
    return [_nest(items, shape[1:]) for _ in range(shape[0])]
