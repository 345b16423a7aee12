"""The service ``built-in``, which every client has: what peers ask each other for (``protocol.md`` 6)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from hypha.client import parts
from hypha.client.service import Offered
from hypha.client.serving import Serving
from hypha.client.values import Encoded
from hypha.errors import InvalidArgument, NotFound, PermissionDenied
from hypha.wire import calls, values
from hypha.wire.chunks import CACHE_PREFIX
from hypha.wire.delivery import read_delivered
from hypha.wire.frame import Buffer, Frame

if TYPE_CHECKING:
    from hypha.client.peer import Peer

BUILT_IN = "services.built-in."

#: What this client says of its built-in service.
BUILT_IN_CONFIG = {"visibility": "public", "require_context": True, "api_version": 3, "part_bytes": parts.LARGE_PART}


class BuiltIn:
    """The one of *peer*."""

    def __init__(self, peer: Peer, serving: Serving, dispatch: Callable[[Frame], None]) -> None:
        """*dispatch* takes a message that was put together."""
        self._peer = peer
        self._serving = serving
        self._dispatch = dispatch
        self._parts = parts.Receiver(peer.keep_alive)

    def clear(self) -> None:
        """The connection is over."""
        self._parts.clear()

    def drop_idle_parts(self) -> None:
        """Forget messages in parts that did not move since this was asked last."""
        self._parts.drop_idle()

    def take(self, frame: Frame, sender: str, name: str) -> None:
        """A call of the function *name*, without the prefix."""
        operation = name.removeprefix("message_cache.")
        if name == "get_service":  # the answer may be long
            offered = Offered(partial(self._get_service, sender), native=True)
            self._serving.start(frame, sender, lambda: offered)
        elif operation != name:
            self._serving.answer_at_once(frame, partial(self._take_part, sender, operation, frame))
        else:
            self._serving.answer_at_once(frame, partial(self._short_function, sender, name, frame))

    def _take_part(self, sender: str, operation: str, frame: Frame) -> None:
        package = self._parts.take(sender, operation, frame.extra())
        if package is not None:
            self._process(package, frame)

    def _short_function(self, sender: str, name: str, frame: Frame) -> Any:
        function = {"ping": self._ping, "cancel": self._serving.cancel}.get(name)
        if function is None:
            raise NotFound(f"Method not found: {BUILT_IN}{name[:200]}")
        body = calls.parse_call(frame.extra(), frame.session)
        if len(body.args) != 1 or body.kwargs:
            raise InvalidArgument(f"{name} takes one argument")
        return function(sender, body.args[0])

    def _ping(self, sender: str, message: object) -> str:
        if message != "ping":
            raise InvalidArgument("ping takes the text 'ping'")
        return "pong"

    async def _get_service(self, sender: str, service_id: object) -> Encoded:
        if service_id == "built-in":
            return Encoded(self._built_in_interface())
        service = self._peer.store.services.get(str(service_id))
        if service is None:
            raise NotFound(f"'Service not found: {str(service_id)[:200]}'")
        if not service.is_open_to(sender.partition("/")[0], self._peer.workspace):
            raise PermissionDenied(f"Permission denied for getting protected service: {service.id}")
        with self._peer.giving() as given:
            encoder = self._peer.encoder(sender, None, given)
            return Encoded(service.interface(self._peer.name, self._peer.workspace, encoder))

    def _built_in_interface(self) -> dict[str, Any]:
        def function(path: str) -> dict[str, Any]:
            return values.method(self._peer.name, BUILT_IN + path, promise="*")

        cache = {name: function(f"message_cache.{name}") for name in ("create", "append", "set", "process", "remove")}
        functions = {name: function(name) for name in ("ping", "get_service", "cancel")}
        return {
            "id": "built-in",
            "name": "built-in",
            "type": "built-in",
            "config": {**BUILT_IN_CONFIG, "workspace": self._peer.workspace},
            "message_cache": cache,
            **functions,
        }

    def _process(self, package: Buffer, frame: Frame) -> None:
        inner = read_delivered(package)
        if inner.method is not None and inner.method.startswith(CACHE_PREFIX):
            raise InvalidArgument("a message in parts cannot itself be a part")
        inner.fields.update({name: frame.fields.get(name) for name in ("from", "to", "user", "ws")})
        inner.to = self._peer.name
        self._dispatch(inner)
