"""Names and addresses: what is one, what is not, and what the error says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha.errors import InvalidArgument
from hypha.wire.address import (
    HTTP_CLIENT,
    LEGACY_SERVER_CLIENT,
    Address,
    ServiceQuery,
    check_client_id,
    check_name,
    parse_service_id,
    parse_target,
)


def test_a_name_is_kept_as_it_is() -> None:
    rows: list[str] = ["a", "worker 1", "a.b", "...", "späti", "工作", "a|b~c-d_e", "{x}", "x" * 256]
    for name in rows:
        assert check_name("client id", name) == name
        assert check_client_id(name) == name


def test_what_is_not_a_name_is_refused_in_one_line_of_printable_text() -> None:
    rows: list[tuple[object, str]] = [
        (None, "client id must be a non-empty string"),
        ("", "client id must be a non-empty string"),
        (5, "client id must be a non-empty string"),
        (b"a", "client id must be a non-empty string"),
        (["a"], "client id must be a non-empty string"),
        ("x" * 257, "client id is longer than 256 characters"),
        ("a/b", "client id 'a/b' must not contain '/'"),
        ("a:b@c*", "client id 'a:b@c*' must not contain '*' ':' '@'"),
        ("a\nb", r"client id 'a\nb' must not contain '\n'"),
        ("a\x00", r"client id 'a\x00' must not contain '\x00'"),
        ("\u202egnp", r"client id '\u202egnp' must not contain '\u202e'"),
        (".", "client id '.' is not a name"),
        ("..", "client id '..' is not a name"),
    ]
    for name, complaint in rows:
        with pytest.raises(InvalidArgument) as caught:
            check_name("client id", name)
        assert str(caught.value) == complaint
        assert str(caught.value).isprintable()


def test_the_names_of_the_server_are_not_given_away() -> None:
    rows: list[str] = [LEGACY_SERVER_CLIENT, HTTP_CLIENT, "~"]
    for name in rows:
        assert check_name("service id", name) == name
        with pytest.raises(InvalidArgument, match="reserved for the server; choose another"):
            check_client_id(name)


def test_a_target_is_absolute_or_in_the_senders_workspace() -> None:
    rows: list[tuple[str, Address]] = [
        ("b", Address("home", "b")),
        ("other/b", Address("other", "b")),
        ("*/manager", Address("*", "manager")),
        ("other/*", Address("other", "*")),
        ("other/workspace-manager", Address("other", "workspace-manager")),
        ("a:b", Address("home", "a:b")),
    ]
    for text, address in rows:
        assert parse_target(text, "home") == address
        assert str(address) == f"{address.workspace}/{address.client}"


def test_what_is_no_target_is_refused() -> None:
    rows: list[str] = ["", "/", "/b", "other/", "a/b/c", "//", "a//b"]
    for text in rows:
        with pytest.raises(InvalidArgument, match="not of the form client or workspace/client"):
            parse_target(text, "home")


def test_the_error_for_a_long_target_is_short() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_target("a/b/" + "x\n" * 50_000, "home")
    assert len(str(caught.value)) < 700
    assert str(caught.value).isprintable()


def test_a_service_id_is_read() -> None:
    rows: list[tuple[str, ServiceQuery]] = [
        ("svc", ServiceQuery(None, None, "svc")),
        ("*", ServiceQuery(None, None, "*")),
        ("client:svc", ServiceQuery(None, "client", "svc")),
        ("*:svc", ServiceQuery(None, None, "svc")),
        ("ws/svc", ServiceQuery("ws", None, "svc")),
        ("*/svc", ServiceQuery(None, None, "svc")),
        ("ws/client:svc", ServiceQuery("ws", "client", "svc")),
        ("ws/*:svc", ServiceQuery("ws", None, "svc")),
        ("*/*:svc", ServiceQuery(None, None, "svc")),
        ("*/manager:default", ServiceQuery(None, "manager", "default")),
    ]
    for text, query in rows:
        assert parse_service_id(text) == query


@pytest.mark.parametrize(
    "text", ["", "/", ":", "a/", "a:", "/a", ":a", "a/b/c", "a:b:c", "a/:b", "a/b:", "ws//b", "::"]
)
def test_what_is_no_service_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="service id"):
        parse_service_id(text)


@given(st.text(max_size=60))
def test_parsing_either_answers_or_refuses(text: str) -> None:
    for parse in (parse_service_id, lambda value: parse_target(value, "home"), check_client_id):
        try:
            parse(text)
        except InvalidArgument as exc:
            complaint = str(exc)
            assert complaint.isprintable()


names = st.text(st.sampled_from("abc.-_~| ü"), min_size=1, max_size=8).filter(lambda name: name not in {".", ".."})


@given(names, names, names)
def test_what_is_written_is_read_again(workspace: str, client: str, service: str) -> None:
    assert str(parse_target(f"{workspace}/{client}", "home")) == f"{workspace}/{client}"
    query = ServiceQuery(workspace, client, service)
    assert parse_service_id(str(query)) == query
    assert parse_service_id(str(ServiceQuery(None, None, service))) == ServiceQuery(None, None, service)


def test_a_service_id_longer_than_its_parts_may_be_is_refused_at_once() -> None:
    with pytest.raises(InvalidArgument, match="too long"):
        parse_service_id("a" * 1_000_000)
