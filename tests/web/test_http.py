"""Small pieces of HTTP, and of the websocket request, without a server."""

from __future__ import annotations

import pytest
from hypercorn.typing import HTTPScope, WebsocketScope

from hypha.errors import NotAuthenticated
from hypha.web.http import base_url, bearer_token, client_address, header
from hypha.web.lookup import Target, parse_path
from hypha.web.upgrade import is_python, parse_query
from tests.web.asgi_client import http_scope


def asking(**headers: str) -> HTTPScope:
    return http_scope("/", headers={name.replace("_", "-"): value for name, value in headers.items()})


def upgrading(**headers: str) -> WebsocketScope:
    scope: WebsocketScope = {
        "type": "websocket",
        "asgi": {"spec_version": "2.3", "version": "3.0"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/ws",
        "raw_path": b"/ws",
        "query_string": b"",
        "root_path": "",
        "headers": asking(**headers)["headers"],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 9527),
        "subprotocols": [],
        "state": asking()["state"],
        "extensions": {},
    }
    return scope


def test_several_values_of_a_header_are_joined() -> None:
    scope = asking()
    scope["headers"] = [(b"accept", b"a"), (b"x", b"y"), (b"accept", b"b")]
    assert header(scope, b"accept") == "a, b"
    assert header(scope, b"nothing") == ""


@pytest.mark.parametrize(
    ("text", "token"),
    [("Bearer abc", "abc"), ("bearer abc ", "abc"), ("BEARER  abc", "abc"), ("abc", "abc"), ("", None), ("  ", None)],
)
def test_tokens_in_headers(text: str, token: str | None) -> None:
    assert bearer_token(asking(Authorization=text)) == token


@pytest.mark.parametrize("text", ["Basic abc", "Digest a=b, c=d", "abc def"])
def test_other_schemes_are_told_how_to_write_it(text: str) -> None:
    with pytest.raises(NotAuthenticated, match="Authorization: Bearer <token>"):
        bearer_token(asking(Authorization=text))


@pytest.mark.parametrize(
    ("host", "server", "url"),
    [
        ("lab.example", ("127.0.0.1", 9527), "http://lab.example/x"),
        ("[::1]:80", ("::1", 9527), "http://[::1]:80/x"),
        ("", ("127.0.0.1", 9527), "http://127.0.0.1:9527/x"),
        ("<script>", ("127.0.0.1", 9527), "http://127.0.0.1:9527/x"),
        ("a/b", ("::1", 9527), "http://[::1]:9527/x"),
        ("a" * 64, None, "http://localhost/x"),
    ],
)
def test_the_address_as_a_client_reached_it(host: str, server: tuple[str, int | None] | None, url: str) -> None:
    scope = upgrading(Host=host)
    scope["server"] = server
    assert base_url(scope, "/x") == url
    scope["scheme"] = "wss"
    assert base_url(scope, "/x") == url.replace("http", "https", 1)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (b"", {}),
        (b"client_id=a", {"client_id": "a"}),
        (
            b"client_id=a&workspace=w&token=t@imjoy@x.y-z_",
            {"client_id": "a", "workspace": "w", "token": "t@imjoy@x.y-z_"},
        ),
        (b"client_id=a=b+c%20d%26", {"client_id": "a=b+c d&"}),
        (b"client_id=%C3%A4&x=%FF", {"client_id": "ä", "x": "\N{REPLACEMENT CHARACTER}"}),
        (b"client_id", {}),
        (b"client_id=", {"client_id": ""}),
        (b"&&=&a=1&a=2", {"": "", "a": "2"}),
        (b"\xff=1", {"\N{REPLACEMENT CHARACTER}": "1"}),
    ],
)
def test_queries_of_handshakes(query: bytes, found: dict[str, str]) -> None:
    assert parse_query(query) == found


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ("Python/3.11 websockets/12.0", True),
        ("Python/3.13 websockets/13.1", True),
        ("Mozilla/5.0 (X11; Linux) Python/3.11 websockets/12.0", False),
        ("Mozilla/5.0", False),
        ("", False),
    ],
)
def test_python_clients_are_known_by_what_they_say_of_themselves(agent: str, expected: bool) -> None:
    assert is_python(upgrading(User_Agent=agent)) is expected


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/w/services/s/f", Target("w", "s", ("f",))),
        ("/w/services/s/f/g.h", Target("w", "s", ("f", "g", "h"))),
        ("/w/services/c:s/f", Target("w", "c:s", ("f",))),
        ("/w%20x/services/s%2Ft/f%2Eg", Target("w x", "s/t", ("f", "g"))),
        ("/w/serv%69ces/s/f", Target("w", "s", ("f",))),
        ("/w/services/s", None),
        ("/w/services/s/", None),
        ("/w/services//f", None),
        ("//services/s/f", None),
        ("/w/services/s/f/", None),
        ("/w/Services/s/f", None),
        ("/w/apps/s/f", None),
        ("w/services/s/f", None),
        ("", None),
    ],
)
def test_paths_of_functions(path: str, target: Target | None) -> None:
    assert parse_path(path) == target


@pytest.mark.parametrize(
    ("client", "said", "proxies", "address"),
    [
        ("192.0.2.1", "198.51.100.7", (), "192.0.2.1"),  # nobody is believed
        ("192.0.2.1", "198.51.100.7", ("192.0.2.0/24",), "198.51.100.7"),
        ("192.0.2.9", "198.51.100.7", ("192.0.2.1/32",), "192.0.2.9"),  # who connects is no proxy
        ("192.0.2.1", "203.0.113.5, 198.51.100.7", ("192.0.2.0/24",), "198.51.100.7"),  # what its client says is not
        ("192.0.2.1", "203.0.113.5, 192.0.2.2", ("192.0.2.0/24",), "203.0.113.5"),  # one proxy behind the other
        ("::ffff:192.0.2.1", "2001:db8::7", ("192.0.2.0/24",), "2001:db8::7"),
        ("192.0.2.1", "", ("192.0.2.0/24",), "192.0.2.1"),
        ("192.0.2.1", "unknown", ("192.0.2.0/24",), "unknown"),
    ],
)
def test_from_where_a_request_comes(client: str, said: str, proxies: tuple[str, ...], address: str) -> None:
    scope = asking(**({"x_forwarded_for": said} if said else {}))
    scope["client"] = (client, 1234)
    assert client_address(scope, proxies) == address


def test_what_comes_from_no_network_comes_from_nowhere() -> None:
    scope = asking(x_forwarded_for="198.51.100.7")
    scope["client"] = None
    assert client_address(scope, ("192.0.2.0/24",)) is None
