"""JSON schema of functions."""

from __future__ import annotations

import inspect
from typing import Any

from hypha.wire.schema import function_schema


def schema_of(function: Any) -> Any:
    return function_schema("f", "First line.\n\nMore.", inspect.signature(function).parameters.values())


def test_types_are_taken_from_annotations_as_text_or_as_classes() -> None:
    def annotated(a: int, b: str = "x", *rest: int, c: list[int] | None = None, d: Any = ..., **more: int) -> None: ...

    def plain(a, b=1.5): ...  # type: ignore[no-untyped-def]  # as people write them

    schema = schema_of(annotated)
    assert schema["description"] == "First line."
    assert schema["parameters"]["required"] == ["a"]
    assert schema["parameters"]["properties"] == {
        "a": {"type": "integer"},
        "b": {"type": "string", "default": "x"},
        "c": {"type": "array", "default": None},
        "d": {},
    }
    plain.__annotations__ = {"a": dict}
    assert schema_of(plain)["parameters"]["properties"] == {"a": {"type": "object"}, "b": {"default": 1.5}}
