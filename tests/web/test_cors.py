"""hypha/web/cors.py: which pages may read what, over every kind of answer."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope, Scope

from hypha.web.cors import EXPOSED_HEADERS, Cors
from tests.web.asgi_client import Answer, exchange, http_scope, loopback, request

PAGE = "https://page.example"
ANYBODY = ("*",)


class Echo:
    """Answers every request with *status* and *headers* in several chunks, and counts the requests."""

    def __init__(self, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        self.status = status
        self.headers = headers or []
        self.requests = 0

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self.requests += 1
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        for chunk in (b"one", b"two", b""):
            await send({"type": "http.response.body", "body": chunk, "more_body": bool(chunk)})


async def asked(
    app: Echo, allow_origins: tuple[str, ...], origin: str | None, method: str = "GET", **headers: str
) -> Answer:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if origin is not None:
        given["Origin"] = origin
    return await request(Cors(app, allow_origins), "/x", method, given)


async def preflight(allow_origins: tuple[str, ...], origin: str, asked_headers: str = "") -> Answer:
    app = Echo()
    answer = await asked(
        app,
        allow_origins,
        origin,
        "OPTIONS",
        Access_Control_Request_Method="PUT",
        Access_Control_Request_Headers=asked_headers,
    )
    assert app.requests == 0
    return answer


@pytest.mark.parametrize("status", [200, 301, 304, 404, 500, 504])
async def test_every_answer_carries_the_origin_that_asked(status: int) -> None:
    answer = await asked(Echo(status, [(b"x-own", b"1")]), ANYBODY, PAGE)
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["vary"] == "Origin"
    assert answer.headers["x-own"] == "1"
    assert answer.headers["access-control-expose-headers"] == EXPOSED_HEADERS.decode()
    assert answer.chunks == [b"one", b"two", b""]


@pytest.mark.parametrize(
    ("allow_origins", "origin", "allowed", "credentials"),
    [
        (ANYBODY, PAGE, True, False),
        (ANYBODY, "http://localhost:9000", True, False),
        (ANYBODY, "http://[::1]:9000", True, False),
        (ANYBODY, "null", True, False),
        (ANYBODY, "chrome-extension://abcdef", True, False),
        (ANYBODY, "*", False, False),
        (ANYBODY, "https://a.example, https://b.example", False, False),
        (ANYBODY, "https://a.example/path", False, False),
        (ANYBODY, "<script>", False, False),
        (ANYBODY, "", False, False),
        ((PAGE,), PAGE, True, True),
        ((PAGE,), "https://page.example:8443", False, False),
        ((PAGE,), "http://page.example", False, False),
        ((PAGE,), "https://page.example.evil", False, False),
        ((PAGE,), "https://evilpage.example", False, False),
        ((PAGE,), "https://sub.page.example", False, False),
        ((PAGE,), "null", False, False),
        ((PAGE, "*"), PAGE, True, True),
        ((PAGE, "*"), "https://other.example", True, False),
        ((), PAGE, False, False),
    ],
)
async def test_who_may_read_and_who_with_credentials(
    allow_origins: tuple[str, ...], origin: str, allowed: bool, credentials: bool
) -> None:
    simple, before = await asked(Echo(), allow_origins, origin), await preflight(allow_origins, origin or "x")
    assert (simple.status, before.status) == (200, 200 if allowed else 403)
    for answer in (simple, before):
        assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
        assert answer.headers.get("access-control-allow-credentials") == ("true" if credentials else None)
        assert "origin" in answer.headers["vary"].lower()


async def test_a_preflight_tells_methods_headers_and_how_long_it_holds() -> None:
    answer = await preflight(ANYBODY, PAGE, "authorization, x-mine")
    assert (answer.status, answer.body, answer.complete) == (200, b"", True)
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
    assert answer.headers["access-control-allow-headers"] == "authorization, x-mine"
    assert answer.headers["access-control-max-age"] == "600"
    assert answer.headers["content-length"] == "0"


@pytest.mark.parametrize("given", ["", "a b", "a,,b", "a;b", "ä", "a,"])
async def test_headers_that_are_no_names_are_not_echoed(given: str) -> None:
    answer = await preflight(ANYBODY, PAGE, given)
    assert answer.headers["access-control-allow-headers"] == "Authorization, Content-Type, Range"


async def test_a_refused_preflight_says_what_to_do() -> None:
    answer = await preflight(("https://lab.example",), PAGE)
    assert answer.json() == {
        "success": False,
        "detail": f"pages from '{PAGE}' may not use this server; its operator can add --allow-origins",
    }


@pytest.mark.parametrize("headers", [{"Origin": PAGE}, {"Access-Control-Request-Method": "PUT"}, {}])
async def test_other_options_requests_reach_the_application(headers: dict[str, str]) -> None:
    app = Echo()
    answer = await request(Cors(app, ANYBODY), "/x", "OPTIONS", headers)
    assert (app.requests, answer.body) == (1, b"onetwo")


async def test_an_answer_without_an_origin_varies_too_so_that_caches_keep_it_apart() -> None:
    answer = await asked(Echo(), ANYBODY, None)
    assert answer.headers == {"vary": "Origin"}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("Accept-Encoding", "Accept-Encoding, Origin"),
        ("accept-encoding, origin", "accept-encoding, origin"),
        ("*", "*"),
    ],
)
async def test_vary_is_added_to(own: str, expected: str) -> None:
    answer = await asked(Echo(headers=[(b"Vary", own.encode())]), ANYBODY, PAGE)
    assert answer.headers["vary"] == expected


@pytest.mark.parametrize("allow_origins", [ANYBODY, (PAGE,), ()])
async def test_what_a_service_says_about_origins_is_replaced(allow_origins: tuple[str, ...]) -> None:
    own = [
        (b"Access-Control-Allow-Origin", b"*"),
        (b"access-control-allow-credentials", b"true"),
        (b"Access-Control-Expose-Headers", b"X-Mine"),
    ]
    answer = await asked(Echo(headers=own), allow_origins, "https://page.example")
    names = [name.lower() for name, _ in answer.raw_headers]
    assert names.count(b"access-control-allow-origin") == (1 if allow_origins else 0)
    assert names.count(b"access-control-allow-credentials") == (1 if PAGE in allow_origins else 0)
    assert answer.headers["access-control-expose-headers"] == "X-Mine"


async def test_bodies_are_not_held_back() -> None:
    """Each chunk arrives before the application sends the next one."""
    arrived: list[bytes] = []

    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": number < 2})
            assert arrived[-1] == b"%d" % number

    async def take(message: ASGISendEvent) -> None:
        if message["type"] == "http.response.body":
            arrived.append(message["body"])

    answer = await exchange(Cors(app, ANYBODY), http_scope("/x", headers={"Origin": PAGE}), take)
    assert answer.complete


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_other_scopes_pass_untouched(kind: str) -> None:
    seen: list[Any] = []

    async def app(*given: Any) -> None:
        seen.extend(given)

    async def receive() -> Any:
        raise AssertionError("not called")

    async def send(message: Any) -> None:
        raise AssertionError("not called")

    scope: Any = {"type": kind, "headers": [(b"origin", PAGE.encode())]}
    await Cors(app, ANYBODY)(scope, receive, send)
    assert seen == [scope, receive, send]
    assert scope == {"type": kind, "headers": [(b"origin", PAGE.encode())]}


async def test_what_the_application_raises_passes() -> None:
    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await request(Cors(app, ANYBODY), "/x", headers={"Origin": PAGE})


async def test_over_the_loopback() -> None:
    async def app(scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await Cors(Echo(404), ANYBODY)(scope, receive, send)

    async with loopback(app) as url, httpx.AsyncClient(base_url=url, headers={"Origin": PAGE}) as client:
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        before = await client.options("/public/services/x/f", headers=asks)
        assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, PAGE)
        answer = await client.post("/public/services/x/f", json={})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (404, PAGE)
        assert answer.content == b"onetwo"
        plain = await client.get("/", headers={"Origin": ""})
        assert "access-control-allow-origin" not in plain.headers
