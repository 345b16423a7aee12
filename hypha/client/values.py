"""Python values as they travel, and back (``protocol.md`` 3)."""

from __future__ import annotations

import inspect
import io
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any, Protocol

from hypha.errors import HyphaError, InvalidArgument, RemoteError, by_code
from hypha.wire import values
from hypha.wire.values import MAX_DEPTH

if TYPE_CHECKING:
    import numpy as np

_PLAIN = (str, int, float, bytes, type(None))  # bool is an int
_FILE_FUNCTIONS = ("read", "readline", "readlines", "write", "writelines", "seek", "tell", "flush", "close")
_FILE_FACTS = ("name", "mode", "encoding")


class Record(dict[str, Any]):
    """A map whose entries can be read as attributes: ``service.hello`` is ``service["hello"]``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            known = ", ".join(sorted(key for key in self if not key.startswith("_"))[:20])
            raise AttributeError(f"there is no {name!r} here, only {known}") from None


class Received:
    """What stands for something of another peer. Sent on, it is what came: *encoded*."""

    __slots__ = ("encoded",)

    def __init__(self, encoded: dict[str, Any]) -> None:
        self.encoded = encoded


@dataclass(frozen=True, slots=True)
class Encoded:
    """A value that is as it travels already."""

    value: Any


@dataclass(frozen=True, slots=True)
class Codec:
    """How values of one type of a program's own travel (``protocol.md`` 3.4).

    *encode* makes a map of an instance of *kind*, *decode* the opposite; the map is marked with *name*.
    """

    name: str
    kind: type | None
    encode: Callable[[Any], Mapping[str, Any]] | None
    decode: Callable[[Any], Any] | None


class Offer(Protocol):
    """Makes the map under which a function is known to whom it is sent. *lasting*: it outlives the call."""

    def __call__(self, function: Callable[..., Any], /, *, lasting: bool) -> dict[str, Any]: ...


class Encoder:
    """Writes the values of one message. *offer* and *offer_generator* are asked for functions and generators."""

    def __init__(
        self,
        offer: Offer,
        offer_generator: Callable[[Any], dict[str, Any]],
        codecs: Mapping[str, Codec],
        *,
        lasting: bool = False,
    ) -> None:
        """*lasting*: the functions outlive the call in which they are sent."""
        self._all = (offer, offer_generator, codecs)
        self._offer = partial(offer, lasting=lasting)
        self._offer_generator = offer_generator
        self._codecs = codecs

    def encode(self, value: Any, depth: int = MAX_DEPTH) -> Any:
        """*value* as msgpack can write it. Raises :class:`InvalidArgument` for what cannot travel."""
        kind = type(value)
        if kind in (str, int, bool, float, bytes, type(None)):
            return value
        if depth == 0:
            raise InvalidArgument(f"the value is nested deeper than {MAX_DEPTH} levels")
        for codec in self._codecs.values():
            if codec.kind is not None and codec.encode is not None and isinstance(value, codec.kind):
                return {**self._map(codec.encode(value), depth), "_rtype": codec.name}
        if isinstance(value, Mapping):
            return self._map(value, depth)
        if isinstance(value, list | tuple):
            return [self.encode(item, depth - 1) for item in value]
        return self._other(value, depth)

    def _map(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        # An interface, whose functions are there to be kept (``protocol.md`` 3.3).
        encode = Encoder(*self._all, lasting=True).encode if value.get("_rintf") is True else self.encode
        encoded = {key: encode(item, depth - 1) for key, item in value.items()}
        if not all(isinstance(key, str) for key in encoded):
            wrong = next(key for key in encoded if not isinstance(key, str))
            raise InvalidArgument(f"the keys of a map must be text, {wrong!r} is not")
        return encoded

    def _other(self, value: Any, depth: int) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
            return _encode_array(value)
        if isinstance(value, Received):
            return value.encoded
        if isinstance(value, Encoded):
            return value.value
        if isinstance(value, _PLAIN):  # of a subclass
            return value
        if isinstance(value, bytearray):
            return bytes(value)
        if isinstance(value, memoryview):
            return {"_rtype": "memoryview", "_rvalue": value.tobytes()}
        if isinstance(value, set | frozenset):
            return {"_rtype": "set", "_rvalue": [self.encode(item, depth - 1) for item in value]}
        if isinstance(value, BaseException):
            return encode_error(value)
        if isinstance(value, io.IOBase):
            return self._file(value)
        if isinstance(value, GeneratorType | AsyncGeneratorType | AsyncIterator | Iterator):
            return self._offer_generator(value)
        if callable(value):
            return self._offer(value)
        raise InvalidArgument(
            f"a value of type {type(value).__name__} cannot be sent; register_codec says how your own types travel"
        )

    def _file(self, file: io.IOBase) -> dict[str, Any]:
        facts = {name: getattr(file, name, None) for name in _FILE_FACTS}
        told = {name: fact for name, fact in facts.items() if isinstance(fact, str)}
        functions = {name: self._offer(getattr(file, name)) for name in _FILE_FUNCTIONS if hasattr(file, name)}
        return {"_rtype": "iostream", "_rnative": f"py:{type(file).__name__}", **told, **functions}


def _encode_array(value: np.ndarray[Any, Any] | np.generic) -> dict[str, Any]:
    import numpy as np

    array = np.asarray(value)
    if array.dtype.hasobject or array.dtype.kind in "SUVMm":
        raise InvalidArgument(f"an array of dtype {array.dtype} cannot be sent; only numbers and booleans can")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    data = little.reshape(-1).view(np.uint8).data if little.size else b""
    return {"_rtype": "ndarray", "_rvalue": data, "_rshape": list(array.shape), "_rdtype": little.dtype.name}


def encode_error(error: BaseException) -> dict[str, Any]:
    """An exception with its traceback. The paths in it are those of this machine, whose function was called."""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, HyphaError):
        return values.error(error.remote_text(), error.code, trace)
    return values.error(f"{type(error).__name__}: {error}", None, trace)


def decode_error(value: Any) -> HyphaError:
    """The exception that a peer sent: of the class that it names, a :class:`RemoteError` when it names none of ours."""
    told = value if isinstance(value, dict) else {"_rvalue": str(value)}
    text, trace = values.error_text(told), told.get("_rtrace")
    kind = by_code(told.get("_rcode"))
    if kind is not None:
        return kind(_own_words(text))
    whole = str(told.get("_rvalue"))
    if not isinstance(trace, str) or not trace:
        trace = whole if "Traceback" in whole else ""
    return RemoteError(text, trace)


def _own_words(text: str) -> str:
    """An error of the server's without what is for published clients: the name of an exception, and its quotes."""
    name, _, rest = text.partition(": ")
    words = rest if rest and name.isidentifier() else text
    return words[1:].replace("'", "", 1) if words.startswith("'") else words


@dataclass(frozen=True, slots=True)
class Decoder:
    """Reads the values of messages. The functions make what stands for the functions and generators of others."""

    function: Callable[[dict[str, Any]], Any]
    generator: Callable[[dict[str, Any]], Any]
    codecs: Mapping[str, Codec]

    def decode(self, value: Any, sender: str, depth: int = MAX_DEPTH) -> Any:
        """*value* for the program. *sender*: the address from which it came.

        Raises :class:`InvalidArgument` for what is nested too deeply, or is not what it is marked as.
        """
        if isinstance(value, memoryview):  # a long byte string, not copied before it is known whether it must be
            return bytes(value)
        if not isinstance(value, dict | list):
            return value
        if depth == 0:
            raise InvalidArgument(f"the value is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, list):
            return [self.decode(item, sender, depth - 1) for item in value]
        kind = value.get("_rtype")
        if not isinstance(kind, str):
            return Record({key: self.decode(item, sender, depth - 1) for key, item in value.items()})
        try:
            return self._marked(kind, value, sender, depth)
        except (KeyError, TypeError, ValueError) as exc:  # whoever sent it made it by hand
            raise InvalidArgument(f"a value that is marked as {kind[:40]!r} cannot be read: {exc!r}") from exc

    def _marked(self, kind: str, value: dict[str, Any], sender: str, depth: int) -> Any:
        if kind in {"method", "generator"}:
            known = _absolute(value, sender.partition("/")[0])
            if kind == "method":
                return self.function(known)
            _check_generator(known, sender)
            return self.generator(known)
        if kind == "ndarray":
            return _decode_array(value)
        if kind == "memoryview":
            return memoryview(value["_rvalue"])
        if kind == "typedarray":
            return _decode_array({**value, "_rshape": None})
        if kind == "error":
            return decode_error(value)
        parts = {key: self.decode(item, sender, depth - 1) for key, item in value.items()}
        if kind == "set":
            return set(parts["_rvalue"])
        if kind == "orderedmap":
            return dict(parts["_rvalue"])
        codec = self.codecs.get(kind)
        return Record(parts) if codec is None or codec.decode is None else codec.decode(Record(parts))


def _absolute(value: dict[str, Any], workspace: str) -> dict[str, Any]:
    """A function of another peer with its full address. Raises TypeError when it cannot be called."""
    target = value["_rtarget"]
    if not isinstance(target, str) or not isinstance(value["_rmethod"], str):
        raise TypeError("a function is a target and a method")
    return value if "/" in target else {**value, "_rtarget": f"{workspace}/{target}"}


def _check_generator(value: dict[str, Any], sender: str) -> None:
    """A generator is closed without the program's doing: so only what its sender has made for this is called there.

    Anything else would let the sender call functions of others in our name. Raises ValueError.
    """
    closing = value.get("_rclose_method")
    if value["_rtarget"] != sender or (closing is not None and not isinstance(closing, str)):
        raise ValueError("a generator belongs to who sends it")
    if isinstance(closing, str) and closing.startswith("services."):
        raise ValueError("a generator is not closed by a function of a service")


def _decode_array(value: dict[str, Any]) -> Any:
    """A numpy array, or a scalar; the map as it came where there is no numpy, or it is not of numpy's types."""
    data = value["_rvalue"]
    if isinstance(data, list):
        data = b"".join(data)
    name = value["_rdtype"]
    if not isinstance(name, str):
        raise TypeError("a dtype is named by a text")
    try:
        import numpy as np

        dtype = np.dtype(name).newbyteorder("<")
    except (ImportError, TypeError):
        return Record(value)
    # An array of read-only memory could not be changed: short messages are copied, long ones were put together here.
    array = np.frombuffer(bytearray(data) if memoryview(data).readonly else data, dtype=dtype)
    shape = value.get("_rshape")
    if shape is None:
        return array
    return array.reshape(shape) if shape else array.reshape(())[()]


def takes_context(function: Callable[..., Any]) -> bool:
    """Whether *function* can be called with ``context=...``."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(item.name == "context" or item.kind is item.VAR_KEYWORD for item in parameters)
