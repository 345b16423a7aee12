"""The least that a relay by header does: read the header, find the target, say who sent it, pass the body on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import msgpack

#: Bytes in which the header ends: a large body is not touched to find its beginning.
_PEEK = 4096
#: About as large as what the server says of a client.
_USER = {
    "id": "a-user-of-the-benchmark",
    "is_anonymous": True,
    "email": None,
    "parent": None,
    "roles": ["anonymous"],
    "scopes": ["bench"],
    "expires_at": None,
}

_pack: Callable[[object], bytes] = msgpack.Packer().pack


class Named(Protocol):
    """Whoever is connected."""

    name: str


P = TypeVar("P", bound=Named)


def route(peers: Mapping[str, P], sender: P, data: bytes | bytearray | memoryview) -> tuple[P, bytes, memoryview]:
    """The target of a message, the header that it gets, and the body as it came."""
    view = memoryview(data)
    try:
        header, size = msgpack.unpackb(view[:_PEEK]), len(data)
    except msgpack.ExtraData as exc:
        header, size = exc.unpacked, min(len(data), _PEEK) - len(exc.extra)
    header["from"], header["user"] = sender.name, _USER
    return peers[header["to"]], _pack(header), view[size:]
