"""ASGI applications as services: which functions are taken for one, and what they are called with."""

from __future__ import annotations

from typing import Any

import pytest

from hypha.client.application import is_application, served
from hypha.client.service import parse_service


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send(scope)


class Application:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


async def serve(args: Any, context: Any = None) -> None: ...


async def anything(*args: Any) -> None: ...


async def with_options(scope: Any, receive: Any = None, send: Any = None) -> None: ...


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (app, True),
        (Application(), True),
        (lambda scope, receive, send: None, True),
        (serve, False),
        (anything, False),
        (with_options, False),
        (int, False),
        ("text", False),
        (None, False),
    ],
    ids=repr,
)
def test_what_is_an_application(value: object, expected: bool) -> None:
    assert is_application(value) is expected


async def test_an_application_gets_what_asgi_promises() -> None:
    got: list[Any] = []

    async def send(message: Any) -> None:
        got.append(message)

    scope = {"headers": [[b"a", b"b"]], "client": ["1.2.3.4", 5], "server": None, "path": "/"}
    await served(app)({"scope": scope, "receive": None, "send": send})
    assert got == [{"headers": [(b"a", b"b")], "client": ("1.2.3.4", 5), "server": None, "path": "/"}]
    assert scope["client"] == ["1.2.3.4", 5]


@pytest.mark.parametrize(
    ("kind", "function", "wrapped"),
    [("asgi", app, True), ("ASGI", app, True), ("asgi", serve, False), ("x", app, False)],
)
def test_only_services_of_that_type_are_adapted(kind: str, function: Any, wrapped: bool) -> None:
    service = parse_service({"id": "app", "type": kind, "serve": function})
    assert (service.functions["serve"].function is not function) is wrapped
