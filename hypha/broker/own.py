"""Services that the server itself offers to everybody, in ``public``.

One table. The registry knows them beside those of clients, so that they are looked up and listed like all others, and
no client can offer another of the same id there. They are called at ``public/<server id>`` and over HTTP; who calls is
told in the same words both ways.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypha.broker.access import Action, Principal, may
from hypha.broker.function import Function
from hypha.broker.info import summary
from hypha.errors import InvalidArgument, NotFound, PermissionDenied
from hypha.wire import values
from hypha.wire.address import PUBLIC_WORKSPACE, Address

if TYPE_CHECKING:
    from hypha.broker.registration import Registration
    from hypha.broker.registry import Registry
    from hypha.broker.session import Service, Session


#: Calls a function of a caller with arguments, and waits for its end.
CallBack = Callable[[list[Any]], Awaitable[Any]]


def _no_functions(function: object) -> CallBack:
    raise InvalidArgument("who calls over HTTP cannot send a function along")


@dataclass(frozen=True, slots=True)
class Visit:
    """Who calls. *workspace*: from where. *base_url*: the address at which the caller reached the server.

    *language*: what is known of the calling program, for people: ``Python``, ``JavaScript``, or ``HTTP``.
    *call_back*: what makes a function of the caller's, as it travels, one to be called here; see
    :meth:`ServerSession.caller_of`. Over HTTP there are none.
    """

    principal: Principal
    workspace: str
    base_url: str
    language: str
    call_back: Callable[[Any], CallBack] = _no_functions


class OwnServices:
    """The services of *server*, by id."""

    def __init__(self, server: Session, registry: Registry) -> None:
        self._server = server
        self._registry = registry
        self._address = Address(PUBLIC_WORKSPACE, server.address.client)
        self._services: dict[str, Service] = {}
        self._functions: dict[str, Function] = {}

    def add(self, entry: Registration, functions: Mapping[str, Function]) -> None:
        """Offer a service from now on."""
        service = self._registry.offer(self._server, self._registry.workspaces[PUBLIC_WORKSPACE], entry)
        service.functions.update((name,) for name in functions)
        self._services[service.id] = service
        self._functions.update({f"services.{service.id}.{name}": function for name, function in functions.items()})

    def find(self, to: Address, path: str) -> Service | None:
        """The service that a method *path* at the address *to* belongs to, if it is one of these."""
        return self._services.get(path.partition(".")[2].partition(".")[0]) if to == self._address else None

    async def call(
        self, service: Service, path: str, visit: Visit, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call a function by its path. Raises :class:`NotFound`, :class:`PermissionDenied` and what it raises."""
        place = self._registry.workspaces[service.workspace]
        decision = may(visit.principal, Action.CALL_SERVICE, place, service, caller_workspace=visit.workspace)
        if not decision.allowed:
            raise PermissionDenied(f"Permission denied for service: {service.id}")
        function = self._functions.get(path)
        if function is None:
            raise NotFound(f"Method not found: {self._address}:{path[:200]}")
        return await function.call(visit, path.rpartition(".")[2], args, kwargs)

    def interface(self, service_id: str) -> dict[str, Any]:
        """The service object. Raises :class:`NotFound`."""
        service = self._services.get(service_id)
        if service is None:
            raise NotFound(f"'Service not found: {str(service_id)[:200]}'")
        paths = {name: f"services.{service.id}.{name}" for (name,) in service.functions}
        target = str(self._address)
        methods = {
            name: values.method(target, path, _rcancel=True, **self._functions[path].annotations(name))
            for name, path in sorted(paths.items())
        }
        return {**summary(service), "id": service.id, **methods}
