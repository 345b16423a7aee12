"""What clients say of their services, as data: checked, measured, and kept while a client is away."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from hypha.broker.kept import pack
from hypha.broker.session import PeerSession, Service
from hypha.config import Limits
from hypha.errors import InvalidArgument, LimitExceeded
from hypha.wire.address import check_name

_HIDDEN = ("built-in", "_rintf_")


@dataclass(frozen=True, slots=True)
class Registration:
    """What a client says of one of its services, *size* bytes. *since*: its age when it was registered before."""

    id: str
    name: str
    type: str
    config: dict[str, Any]
    description: str | None
    since: int | None = None
    size: int = 0
    docs: Any = None
    app_id: str = "*"
    schema: dict[str, Any] | None = None

    @property
    def is_hidden(self) -> bool:
        """Whether it is not for others to find (``protocol.md`` 3.3 and 5.6): built-in, or of one callback."""
        return self.id.startswith(_HIDDEN) or self.config.get("_local_only") is True


def parse_registration(entry: object, client: str) -> Registration:
    """Check one service description of a client (``protocol.md`` 5.2). Raises :class:`InvalidArgument`."""
    if not isinstance(entry, dict):
        raise InvalidArgument("a service description must be a map")
    full_id = entry.get("id")
    if not isinstance(full_id, str):
        raise InvalidArgument("a service description needs an 'id'")
    owner, _, service_id = full_id.rpartition("/")[2].rpartition(":")
    if owner not in {"", client}:
        raise InvalidArgument(f"service id {full_id[:200]!r} does not belong to client {client!r}")
    config = entry.get("config")
    if config is None:
        config = {}
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise InvalidArgument(f"the config of service {full_id[:200]!r} must be a map")
    checked, name = check_name("service id", service_id), _text(entry, "name") or service_id
    kind, description = _text(entry, "type") or "generic", _text(entry, "description")
    docs, app_id = entry.get("docs"), _text(entry, "app_id") or "*"
    schema = _schema(entry.get("service_schema"), service_id)
    size = _size([name, kind, config, description]) + sum(_size(item) for item in (docs, schema) if item is not None)
    return Registration(checked, name, kind, config, description, size=size, docs=docs, app_id=app_id, schema=schema)


def registrations(session: PeerSession) -> tuple[Registration, ...]:
    """The services of *session* as data, with their age: whoever comes back as the same client keeps it."""
    return tuple(map(registration_of, session.services.values()))


def registration_of(service: Service) -> Registration:
    """One service as data, with its age."""
    return Registration(
        service.id,
        service.name,
        service.type,
        service.config,
        service.description,
        service.since,
        service.size,
        service.docs,
        service.app_id,
        service.schema,
    )


def visibility(config: dict[str, Any]) -> str:
    """How visible a service with that *config* is: public, unlisted or protected (``decisions.md`` 20)."""
    named = config.get("visibility")
    return named if named in ("public", "unlisted") else "protected"


def authorized_workspaces(config: dict[str, Any]) -> frozenset[str]:
    """The workspaces from which a service with that *config* may be called although it is protected."""
    named = config.get("authorized_workspaces")
    return frozenset(item for item in named if isinstance(item, str)) if isinstance(named, list) else frozenset()


def require_within(limits: Limits, entries: Collection[Registration]) -> None:
    """Raises :class:`LimitExceeded` when one session may not have all of *entries*."""
    if len(entries) > limits.services_per_session:
        raise LimitExceeded(f"more than services_per_session = {limits.services_per_session} services")
    for entry in entries:
        if entry.size > limits.description_bytes:
            what = f"the description of service {entry.id[:200]!r}"
            raise LimitExceeded(f"{what} is larger than description_bytes = {limits.description_bytes}")
    most = limits.descriptions_bytes_per_session
    if sum(entry.size for entry in entries) > most:
        raise LimitExceeded(f"the descriptions of all services are larger than descriptions_bytes_per_session = {most}")


def _schema(value: object, service_id: str) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidArgument(f"the schema of service {service_id[:200]!r} must be a map of function names")
    return value


def _size(described: object) -> int:
    """Bytes of a description as msgpack. Raises :class:`InvalidArgument` for one that no list could hold."""
    return len(pack(described))


def _text(entry: dict[str, Any], key: str) -> str | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidArgument(f"{key!r} of a service must be text")
    return value
