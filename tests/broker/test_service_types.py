"""Service types: what a workspace has agreed on, for its members, and for everybody where it is public."""

from __future__ import annotations

from typing import Any

import trio

from hypha.broker.access import Level
from hypha.broker.kept import pack
from hypha.config import Limits
from hypha.wire.dialect import MODERN
from tests.broker.managing import ask, refused
from tests.broker.memory import Scene

DEFINITION = {"id": {"type": "string"}, "add": {"type": "function", "function": {"name": "add", "parameters": {}}}}


def kind(type_id: str, **more: Any) -> dict[str, Any]:
    return {
        "id": type_id,
        "name": "N",
        "definition": DEFINITION,
        "description": None,
        "config": {},
        "docs": None,
        **more,
    }


async def test_a_type_is_registered_found_and_listed(live: Scene) -> None:
    a, b, far = (live.join(name, dialect=MODERN) for name in ("lab/a", "lab/b", "far/c"))
    assert await ask(a, "register_service_type", {**kind("adder"), "colour": "red"}) == kind("adder")
    least = await ask(a, "register_service_type", {"id": "lab/least", "definition": {}})
    assert least == kind("least", name="least", definition={})
    for asked in ("adder", "lab/adder"):
        assert await ask(b, "get_service_type", asked) == {**kind("adder"), "id": "lab/adder"}
    assert await ask(b, "list_service_types") == await ask(b, "list_service_types", "lab") == [kind("adder"), least]
    assert await ask(far, "list_service_types") == []
    assert await refused(b, "get_service_type", "none") == "KeyError: 'Service type not found: none'"
    assert "text" in await refused(b, "get_service_type", None)
    for name, *args in (("get_service_type", "lab/adder"), ("get_service_type", "no/x"), ("list_service_types", "lab")):
        assert "Permission denied for workspace" in await refused(far, name, *args)


async def test_a_public_type_is_for_everybody(live: Scene) -> None:
    a, far = live.join("lab/a", dialect=MODERN), live.join("far/c", dialect=MODERN)
    await ask(a, "register_service_type", kind("open", config={"visibility": "public"}))
    assert (await ask(far, "get_service_type", "lab/open"))["id"] == "lab/open"
    assert "Permission denied" in await refused(far, "get_service_type", "lab/none")
    assert "Permission denied" in await refused(far, "list_service_types", "lab")


async def test_a_type_stays_what_it_is(live: Scene) -> None:
    a, b = live.join("lab/a", dialect=MODERN), live.join("lab/b", dialect=MODERN)
    reader = live.join("lab/r", principal=live.principal("r", "lab", Level.READ), dialect=MODERN)
    for peer in (a, b):
        await ask(peer, "register_service_type", kind("adder"))
    changed = kind("adder", definition={})
    assert await refused(b, "register_service_type", changed) == "KeyError: 'Service type already exists: adder'"
    assert "Permission denied for workspace lab" in await refused(reader, "register_service_type", kind("x"))
    assert (await ask(reader, "get_service_type", "adder"))["definition"] == DEFINITION


async def test_what_is_no_type_is_refused(live: Scene) -> None:
    a = live.join("lab/a", dialect=MODERN)
    wrong = [None, "x", {}, {"id": "x"}, {"id": 5, "definition": {}}, kind("a b\n"), kind("lab/"), kind("x", name=5)]
    wrong += [kind("x", definition=[]), kind("x", config=1), kind("x", docs={}), kind("x", description=b"")]
    for item in wrong:
        assert (await refused(a, "register_service_type", item)).startswith("ValueError"), item
    assert "PermissionError" in await refused(a, "register_service_type", kind("far/x"))
    assert await ask(a, "list_service_types") == []


async def test_the_types_are_bounded_exactly(nursery: trio.Nursery) -> None:
    limit = len(pack(kind("a"))) + len(pack(kind("b")))
    a = Scene(Limits(service_types_bytes_per_workspace=limit), nursery).join("lab/a", dialect=MODERN)
    for name in "aba":
        await ask(a, "register_service_type", kind(name))
    text = await refused(a, "register_service_type", {"id": "c", "definition": {}})
    assert f"service_types_bytes_per_workspace = {limit}" in text
    b = Scene(Limits(service_types_bytes_per_workspace=limit - 1), nursery).join("lab/b", dialect=MODERN)
    await ask(b, "register_service_type", kind("a"))
    text = await refused(b, "register_service_type", kind("b"))
    assert f"service_types_bytes_per_workspace = {limit - 1}" in text
