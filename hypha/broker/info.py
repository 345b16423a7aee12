"""How a service is described in lists and events, to each generation (``protocol.md`` 5.6 and 13.5)."""

from __future__ import annotations

from typing import Any

from hypha.broker.session import PeerSession, Service


def summary(service: Service) -> dict[str, Any]:
    """A service as legacy clients, and lists over HTTP, know it."""
    summary: dict[str, Any] = {
        "id": service.full_id,
        "name": service.name,
        "type": service.type,
        "config": {
            "require_context": False,
            "flags": [],
            **service.config,
            "visibility": service.visibility,
            "workspace": service.workspace,
        },
    }
    if service.description is not None:
        summary["description"] = service.description
    if service.schema:
        summary["service_schema"] = service.schema
    return summary


def service_info(service: Service) -> dict[str, Any]:
    """A service as modern clients know it: their ServiceInfo."""
    config = {
        "require_context": False,
        "flags": [],
        "singleton": False,
        "service_embedding": None,
        "authorized_workspaces": None,
        **service.config,
        "visibility": service.visibility,
        "workspace": service.workspace,
        "created_by": {"id": service.session.principal.id},
    }
    return {
        "id": service.full_id,
        "name": service.name,
        "type": service.type,
        "description": service.description,
        "docs": service.docs,
        "app_id": service.app_id,
        "service_schema": service.schema or {},
        "config": config,
    }


def built_in_info(session: PeerSession) -> dict[str, Any]:
    """The ServiceInfo of the service that every client has, whether it speaks of it or not."""
    config = {
        "visibility": "public",
        "require_context": True,
        "workspace": session.address.workspace,
        "flags": [],
        "singleton": False,
        "service_embedding": None,
        "authorized_workspaces": None,
        "created_by": {"id": session.principal.id},
    }
    return {
        "id": f"{session.name}:built-in",
        "name": "built-in",
        "type": "built-in",
        "description": None,
        "docs": None,
        "app_id": "*",
        "service_schema": {},
        "config": config,
    }
