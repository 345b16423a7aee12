"""A service that this program offers: its description, and its functions by their paths."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hypha.client.application import is_application, served
from hypha.client.values import Encoder, takes_context
from hypha.errors import InvalidArgument
from hypha.wire import values
from hypha.wire.address import check_name
from hypha.wire.schema import function_schema

_FACTS = frozenset({"id", "name", "type", "description", "docs", "config", "app_id", "service_schema"})
_SETTINGS = frozenset({"visibility", "require_context", "authorized_workspaces"})
_VISIBILITIES = {"public": "public", "unlisted": "unlisted", "protected": "protected", "private": "protected"}
_KEPT = frozenset({"__enter__", "__exit__"})  # of what begins with an underscore (``protocol.md`` 3.3)


@dataclass(frozen=True, slots=True)
class Offered:
    """A function that others may call. *injects*: it is told who calls, as ``context``.

    *native*: it is this client's own, and async, and runs in trio wherever the program's functions run.
    """

    function: Callable[..., Any]
    injects: bool = False
    native: bool = False


@dataclass(frozen=True, slots=True)
class LocalService:
    """One service of ours. *content*: what was registered beside the description, functions in it."""

    id: str
    name: str
    type: str
    config: dict[str, Any]
    description: str | None
    docs: str | None
    app_id: str
    content: dict[str, Any]
    functions: dict[str, Offered] = field(default_factory=dict)

    @property
    def visibility(self) -> str:
        """``public``, ``unlisted`` or ``protected``."""
        return str(self.config["visibility"])

    def is_open_to(self, workspace: str, home: str) -> bool:
        """Whether callers in *workspace* may call it (``protocol.md`` 4.4). *home*: the workspace of this client."""
        if workspace in {home, "*"} or self.visibility != "protected":
            return True
        return workspace in (self.config.get("authorized_workspaces") or ())

    def info(self, address: str, workspace: str) -> dict[str, Any]:
        """The description that the server keeps (``protocol.md`` 5.3)."""
        return {
            "id": f"{address}:{self.id}",
            "name": self.name,
            "type": self.type,
            "description": self.description,
            "docs": self.docs,
            "app_id": self.app_id,
            "config": {**self.config, "workspace": workspace},
            "service_schema": self._schemas(),
        }

    def _schemas(self) -> dict[str, Any]:
        known = {path: _schema(path, offered) for path, offered in self.functions.items()}
        return {path: {"type": "function", "function": schema} for path, schema in known.items()}

    def interface(self, address: str, workspace: str, encoder: Encoder) -> dict[str, Any]:
        """The service as a value: its description and its functions, to be called at *address*."""
        facts = self.info(address, workspace)
        content = self._encoded(self.content, "", address, encoder)
        facts["id"] = self.id
        return {**content, **facts}

    def _encoded(self, value: Any, path: str, address: str, encoder: Encoder) -> Any:
        offered = self.functions.get(path)
        if offered is not None:
            return self._method(path, offered, address)
        if isinstance(value, Mapping):
            return {key: self._encoded(item, _join(path, key), address, encoder) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._encoded(item, _join(path, str(n)), address, encoder) for n, item in enumerate(value)]
        return encoder.encode(value)

    def _method(self, path: str, offered: Offered, address: str) -> dict[str, Any]:
        schema = _schema(path, offered)
        annotations = {"_rname": path, "_rdoc": inspect.getdoc(offered.function), "_rschema": schema, "_rcancel": True}
        return values.method(address, f"services.{self.id}.{path}", promise="*", **annotations)


def _schema(path: str, offered: Offered) -> dict[str, Any]:
    given = getattr(offered.function, "__schema__", None)
    if isinstance(given, dict):
        return given
    try:
        parameters = list(inspect.signature(offered.function).parameters.values())
    except (TypeError, ValueError):  # of some functions that are written in C nothing is known
        parameters = []
    if offered.injects:
        parameters = [item for item in parameters if item.name != "context"]
    name = path.rpartition(".")[2]
    return function_schema(name, inspect.getdoc(offered.function) or name, parameters)


def parse_service(api: object, config: Mapping[str, Any] | None = None) -> LocalService:
    """Understand what a program registers: a map with an ``id``, or an object, whose public attributes are offered.

    Raises :class:`InvalidArgument`.
    """
    content = _content(api)
    service_id = content.get("id") if isinstance(api, Mapping) else content.get("id", "default")
    checked = check_name("service id", service_id)
    if "." in checked:
        raise InvalidArgument(f"service id {checked!r} must not contain '.'")
    misplaced = sorted(_SETTINGS & content.keys())
    if misplaced:
        raise InvalidArgument(f"{misplaced[0]!r} of a service belongs into its 'config'")
    settings = {**_config(content.get("config")), **_config(config)}
    wanted = settings.setdefault("visibility", "protected")
    if wanted not in _VISIBILITIES:
        raise InvalidArgument(f"visibility {wanted!r}: choose public, unlisted or protected")
    settings["visibility"] = _VISIBILITIES[wanted]
    service = LocalService(
        id=checked,
        name=_text(content, "name") or checked,
        type=_text(content, "type") or "generic",
        config=settings,
        description=_text(content, "description"),
        docs=_text(content, "docs"),
        app_id=_text(content, "app_id") or "*",
        content={key: value for key, value in content.items() if key not in _FACTS},
    )
    if service.type.lower() == "asgi" and is_application(service.content.get("serve")):
        service.content["serve"] = served(service.content["serve"])
    _collect(service, service.content, "", settings.get("require_context"))
    _check_content(service)
    return service


def _check_content(service: LocalService) -> None:
    """Whoever asked for a service with something in it that cannot be sent would get an error in its place."""
    nothing = Encoder(lambda function, *, lasting: {}, lambda generator: {}, {})
    try:
        service.interface("", "", nothing)
    except InvalidArgument as exc:
        raise InvalidArgument(f"the service {service.id} cannot be offered: {exc}") from exc


def _content(api: object) -> dict[str, Any]:
    if isinstance(api, Mapping):
        given = dict(api)
    elif inspect.isclass(api) or isinstance(api, str | bytes | int | float | list | tuple | None):
        raise InvalidArgument("register_service takes a map with an 'id' and functions, or an object with methods")
    else:
        given = {name: getattr(api, name) for name in dir(api) if not name.startswith("_")}
    if not all(isinstance(key, str) for key in given):
        raise InvalidArgument("the keys of a service must be text")
    return {key: value for key, value in given.items() if not key.startswith("_") or key in _KEPT}


def _collect(service: LocalService, value: Any, path: str, context: object) -> None:
    """Find the functions at and below *path*."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or "." in key:
                raise InvalidArgument(f"the keys of a service must be text without '.', {key!r} is not")
            _collect(service, item, _join(path, key), context)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _collect(service, item, _join(path, str(number)), context)
    elif callable(value):
        asked = context is True or (isinstance(context, list | tuple | set) and path in context)
        service.functions[path] = Offered(value, injects=asked and takes_context(value))


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _config(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidArgument("the config of a service must be a map")
    return dict(value)


def _text(content: Mapping[str, Any], key: str) -> str | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidArgument(f"{key!r} of a service must be text")
    return value
