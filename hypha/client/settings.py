"""What a program says when it connects."""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hypha.client.channel import Location, parse_server_url
from hypha.errors import InvalidArgument
from hypha.wire.address import check_client_id

_ID_LETTERS = string.ascii_letters + string.digits
_TEXTS = ("workspace", "token", "client_id", "name")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to connect to, and as whom. *method_timeout*: seconds of silence after which a call fails, None for ever.

    *reconnect*: whether the client comes back when the connection is lost.
    """

    server_url: str
    workspace: str | None = None
    token: str | None = None
    client_id: str | None = None
    name: str | None = None
    method_timeout: float | None = None
    reconnect: bool = True

    @property
    def location(self) -> Location:
        """Where the server is."""
        return parse_server_url(self.server_url)


def parse_settings(given: Mapping[str, Any]) -> Settings:
    """Check what a program gave. Raises :class:`InvalidArgument`, for unknown keys too."""
    known = [item.name for item in fields(Settings)]
    unknown = [key for key in given if key not in known]
    if unknown:
        raise InvalidArgument(f"connect_to_server does not know {unknown[0]!r}; the keys are {', '.join(known)}")
    if given.get("server_url") is None:
        raise InvalidArgument("connect_to_server needs a 'server_url', such as http://127.0.0.1:9527")
    parse_server_url(given["server_url"])
    for key in _TEXTS:
        if not (given.get(key) is None or isinstance(given[key], str)):
            raise InvalidArgument(f"{key} must be text")
    patience = given.get("method_timeout")
    if patience is not None and not (isinstance(patience, int | float) and patience > 0):
        raise InvalidArgument("method_timeout must be a number of seconds above 0")
    if not isinstance(given.get("reconnect", True), bool):
        raise InvalidArgument("reconnect is True or False")
    chosen = {**given, "client_id": given.get("client_id") or _new_id()}
    check_client_id(chosen["client_id"])
    return Settings(**chosen)


def _new_id() -> str:
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(22))
