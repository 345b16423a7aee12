"""Request bodies as arguments (A23)."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any, cast
from urllib.parse import urlencode

import msgpack
import pytest
import trio
from hypercorn.typing import HTTPScope
from hypothesis import given
from hypothesis import strategies as st

from hypha.config import Limits
from hypha.errors import HyphaError, InvalidArgument, TooLarge, UnsupportedContent
from hypha.web.bodies import Arguments, body_arguments, parse_json
from hypha.wire.frame import MAX_VALUES

LIMITS = Limits(http_body_bytes=1000)

MULTIPART = (
    b'--edge\r\nContent-Disposition: form-data; name="title"\r\n\r\ncells\r\n'
    b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a.bin"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n\x00\xff\x01\r\n--edge--\r\n"
)


def test_a_function_is_found_in_a_body_whose_values_are_counted() -> None:
    many: dict[str, Any] = {"a": [0] * 300_000, "b": {"_rtype": "method"}}
    for kind, body in (("application/msgpack", msgpack.packb(many)), ("application/json", json.dumps(many).encode())):
        scope = cast(HTTPScope, {"headers": [(b"content-type", kind.encode())]})
        with pytest.raises(InvalidArgument, match="no functions"):
            read_as(scope, body, Limits())


def read(body: bytes, content_type: str = "", encoding: str = "") -> Arguments:
    headers = [(b"content-type", content_type.encode()), (b"content-encoding", encoding.encode())]
    scope = cast(HTTPScope, {"headers": [item for item in headers if item[1]]})
    return read_as(scope, body, LIMITS)


def read_as(scope: HTTPScope, body: bytes, limits: Limits) -> Arguments:
    def parameter(texts: list[str]) -> Any:
        return texts[0] if len(texts) == 1 else texts

    return trio.run(body_arguments, scope, body, limits, parameter, lambda size: None)


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("", b'{"a": 1}', ([], {"a": 1})),
        ("application/json", b"", ([], {})),
        ("application/json; charset=utf-8", b'{"a": [1, null]}', ([], {"a": [1, None]})),
        ("application/json", b'{"a": "\\ud83c\\udf44"}', ([], {"a": "\N{MUSHROOM}"})),
        ("Application/JSON", '{"ä": "ü"}'.encode(), ([], {"ä": "ü"})),
        ("application/msgpack", msgpack.packb({"a": b"\x00"}), ([], {"a": b"\x00"})),
        ("application/x-www-form-urlencoded", b"a=x+y&b=&c=1&c=2", ([], {"a": "x y", "b": "", "c": ["1", "2"]})),
        ("multipart/form-data; boundary=edge", MULTIPART, ([], {"title": "cells", "image": b"\x00\xff\x01"})),
        ("application/octet-stream", b"\x00\x01", ([b"\x00\x01"], {})),
    ],
)
def test_formats(content_type: str, body: bytes, expected: Arguments) -> None:
    assert read(body, content_type) == expected


def test_several_files_under_one_name_become_a_list() -> None:
    part = b'--edge\r\nContent-Disposition: form-data; name="f"; filename="%d"\r\n\r\n%d\r\n'
    body = part % (1, 1) + part % (2, 2) + b"--edge--\r\n"
    assert read(body, "multipart/form-data; boundary=edge") == ([], {"f": [b"1", b"2"]})


@pytest.mark.parametrize("shift", range(4))
def test_a_long_form_is_read_in_pieces(shift: int) -> None:
    """No escape is torn, wherever the pieces end; %25 must not become the beginning of another one."""
    value = "x" * shift + "ü%41+" * 10_000
    body = f"{urlencode({'a': value})}&b=%zz%".encode()
    assert read_large(body, "application/x-www-form-urlencoded") == ([], {"a": value, "b": "%zz%"})


@pytest.mark.parametrize(
    ("content_type", "limit", "instead"),
    [("application/json", 2**24, "msgpack"), ("application/x-www-form-urlencoded", 2**20, "multipart")],
)
def test_text_that_would_take_long_to_read_is_refused(content_type: str, limit: int, instead: str) -> None:
    body = b'{"a": "' + b"x" * (limit - 9) + b'"}'
    if "form" in content_type:
        body = b"a=" + b"x" * (limit - 2)
    assert read_large(body, content_type)[1].keys() == {"a"}
    with pytest.raises(TooLarge, match=f"{limit} bytes; send large values as {instead}"):
        read_large(body + b" ", content_type)


def test_a_form_of_so_many_fields() -> None:
    fields = [b"a=1"] * 1000
    assert len(read_large(b"&".join(fields), "application/x-www-form-urlencoded")[1]) == 1
    with pytest.raises(InvalidArgument, match="more than 1000 fields"):
        read_large(b"&".join([*fields, b"a=1"]), "application/x-www-form-urlencoded")


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP"])
def test_gzip(encoding: str) -> None:
    body = gzip.compress(json.dumps({"a": "x" * 500}).encode())
    assert read(body, "application/json", encoding) == ([], {"a": "x" * 500})


@pytest.mark.parametrize("size", [LIMITS.http_body_bytes - 1, LIMITS.http_body_bytes])
def test_a_body_that_inflates_to_the_limit_passes(size: int) -> None:
    assert read(gzip.compress(b"x" * size), "application/octet-stream", "gzip") == ([b"x" * size], {})


def test_a_body_that_inflates_beyond_the_limit_is_refused_by_name() -> None:
    with pytest.raises(TooLarge, match="http_body_bytes = 1000"):
        read(gzip.compress(b"x" * 1001), "application/octet-stream", "gzip")


@pytest.mark.parametrize(
    ("content_type", "body", "encoding", "error", "words"),
    [
        ("application/json", b"{", "", InvalidArgument, "not valid JSON"),
        ("application/json", b"[1]", "", InvalidArgument, "map of argument names"),
        ("application/json", b"[" * 900, "", InvalidArgument, "not valid JSON"),
        ("application/json", b'{"a": "\xed\xa0\x80"}', "", InvalidArgument, "not valid JSON"),
        ("application/json", b'{"a": "\\ud800"}', "", InvalidArgument, "surrogates not allowed"),
        ("application/json", b'{"\\uDFFF": 1}', "", InvalidArgument, "surrogates not allowed"),
        ("application/msgpack", b"\xc1", "", InvalidArgument, "not one msgpack value"),
        ("application/msgpack", msgpack.packb({1: 2}), "", InvalidArgument, "msgpack"),
        ("application/x-www-form-urlencoded", b"a=%ff", "", InvalidArgument, "form cannot be read"),
        ("application/x-www-form-urlencoded", b"\xff", "", InvalidArgument, "form cannot be read"),
        ("multipart/form-data; boundary=edge", b"--edge\r\nno", "", InvalidArgument, "multipart"),
        ("multipart/form-data", MULTIPART, "", InvalidArgument, "multipart"),
        ("text/plain", b"x", "", UnsupportedContent, "text/plain"),
        ("application/json", b"{}", "br", UnsupportedContent, "send gzip"),
        ("application/json", b"{}", "gzip", InvalidArgument, "not gzip"),
        ("application/json", gzip.compress(b"{}")[:-4], "gzip", InvalidArgument, "not complete"),
        ("application/json", zlib.compress(b"{}"), "gzip", InvalidArgument, "not gzip"),
    ],
)
def test_refusals_say_what_to_send(
    content_type: str, body: bytes, encoding: str, error: type[HyphaError], words: str
) -> None:
    with pytest.raises(error, match=words):
        read(body, content_type, encoding)


@given(
    body=st.binary(max_size=200),
    content_type=st.sampled_from(
        [
            "",
            "application/json",
            "application/msgpack",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=edge",
            "multipart/form-data; boundary=",
            "application/octet-stream",
        ]
    ),
    encoding=st.sampled_from(["", "gzip"]),
)
def test_no_body_raises_anything_else(body: bytes, content_type: str, encoding: str) -> None:
    try:
        args, kwargs = read(body, content_type, encoding)
    except (InvalidArgument, TooLarge, UnsupportedContent):
        return
    assert isinstance(args, list)
    assert all(isinstance(name, str) for name in kwargs)


def test_a_body_that_could_hold_millions_of_values_is_refused_by_its_punctuation() -> None:
    with pytest.raises(InvalidArgument, match="send large arrays as msgpack"):
        parse_json(b"[" + b"[]," * MAX_VALUES + b"[]]", "the body")
    with pytest.raises(InvalidArgument, match="not one msgpack value"):
        read_large(b"\x81\xa1a\xdd" + (3_000_000).to_bytes(4, "big") + b"\x90" * 3_000_000, "application/msgpack")


def read_large(body: bytes, content_type: str) -> Arguments:
    scope = cast(HTTPScope, {"headers": [(b"content-type", content_type.encode())]})
    return read_as(scope, body, Limits())
