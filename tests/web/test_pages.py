"""The first page, health, and the errors of what nobody claims."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from quart_trio import QuartTrio
from trio.testing import MockClock, wait_all_tasks_blocked

import hypha
from hypha.config import Config
from hypha.errors import NotAuthenticated
from hypha.web.pages import create_app
from tests.web.asgi_client import request
from tests.web.stack import LoopbackStack, MemoryStack, memory_stack
from tests.web.wires import exchange, http, join, read_answer, request_bytes

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
TOOL = {"name": "Hypha", "version": hypha.__version__}


# --- the first page (A5) ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "accept", [None, "*/*", "application/json", "application/json, text/html;q=0.9", "image/png", "", "text/*", "x"]
)
async def test_tools_get_json(autojump_clock: MockClock, stack: MemoryStack, accept: str | None) -> None:
    answer = await http(stack, "/", headers={} if accept is None else {"Accept": accept})
    assert (answer.status, answer.json()) == (200, TOOL)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["vary"] == "Accept, Origin"


@pytest.mark.parametrize("accept", [BROWSER, "text/html", "text/html, application/json;q=0.5"])
async def test_browsers_get_a_page(autojump_clock: MockClock, stack: MemoryStack, accept: str) -> None:
    answer = await http(stack, "/", headers={"Accept": accept})
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["vary"] == "Accept, Origin"
    page = answer.body.decode()
    assert f"<title>Hypha {hypha.__version__}</title>" in page
    assert 'connect_to_server({"server_url": "http://lab.example:9527"})' in page


@pytest.mark.parametrize(
    "host",
    [
        '"><script>alert(1)</script>',
        "a'b&c<d",
        "x/y?z",
        "{version}",
        "user@evil.example",
        "a" * 64,
        "a..b",
        ".",
        "a:b",
        "a:123456",
        "[::1",
        "\u00e4.example".encode().decode("latin-1"),
    ],
)
@pytest.mark.parametrize("target", ["/", "/health/liveness", "/public/services/x/y", "/nothing"])
async def test_what_is_no_host_is_refused(
    autojump_clock: MockClock, stack: MemoryStack, host: str, target: str
) -> None:
    """RFC 9112 section 3.2."""
    answer = await http(stack, target, headers={"Accept": BROWSER, "Host": host})
    assert (answer.status, answer.detail) == (400, "the Host header is not the name of a host")


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("localhost", "localhost"),
        ("10.0.0.1:9527", "10.0.0.1:9527"),
        ("[::1]:80", "[::1]"),
        ("a_b.c-d.example:1", "a_b.c-d.example:1"),
        ("name.example.", "name.example"),
        ("xn--4ca.example", "xn--4ca.example"),
    ],
)
async def test_hosts(autojump_clock: MockClock, stack: MemoryStack, host: str, shown: str) -> None:
    answer = await http(stack, "/", headers={"Accept": BROWSER, "Host": host})
    assert f'connect_to_server({{"server_url": "http://{shown}' in answer.body.decode()


async def test_a_request_may_be_of_http_1_0_and_name_no_host(autojump_clock: MockClock, stack: MemoryStack) -> None:
    for target, status in (("/", 200), ("/health/liveness", 200), ("/public/services/x/y", 404)):
        stream = stack.connect()
        await stream.send_all(f"GET {target} HTTP/1.0\r\nAccept: text/html\r\n\r\n".encode())
        answer = await read_answer(stream)
        assert answer.status == status
        assert target != "/" or '"server_url": "http://127.0.0.1:9527"' in answer.body.decode()


# --- health (A54) -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["liveness", "readiness", "services_loaded"])
async def test_a_server_that_runs_is_healthy(autojump_clock: MockClock, stack: MemoryStack, name: str) -> None:
    answer = await http(stack, f"/health/{name}")
    assert (answer.status, answer.json()) == (200, {"status": "OK"})
    assert (await http(stack, f"/health/{name}", "HEAD")).status == 200


async def test_a_server_that_shuts_down_lives_and_is_not_ready(autojump_clock: MockClock, stack: MemoryStack) -> None:
    await join(stack, "a")  # from the first connection it learns when Hypercorn shuts down
    await stack.context.terminated.set()
    await wait_all_tasks_blocked()
    for name, status in (("liveness", 200), ("readiness", 503), ("services_loaded", 503)):
        assert (await request(stack.assembly, f"/health/{name}")).status == status


class Waking:
    """Health of a server that starts."""

    is_ready = False
    services_loaded = False


@pytest.fixture
async def waking() -> QuartTrio:
    return create_app(Waking())


async def test_a_server_that_starts_is_not_ready(waking: QuartTrio) -> None:
    for name, status in (("liveness", 200), ("readiness", 503), ("services_loaded", 503)):
        answer = await request(waking, f"/health/{name}")
        assert answer.status == status
        assert answer.json() == {"status": "OK" if status == 200 else "DOWN"}


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/nothing",
        "/health",
        "/health/x",
        "/health//liveness",
        "/a/b/c",
        "/%00",
        "/%FF",
        "/\xc3\xa4",
    ],
)
async def test_what_is_not_there(autojump_clock: MockClock, stack: MemoryStack, target: str) -> None:
    stream = stack.connect()
    await stream.send_all(request_bytes(target))
    answer = await read_answer(stream)
    if target.isascii():
        assert answer.status == 404
        assert answer.detail.endswith("functions are at /{workspace}/services/{service}/{function}")
        assert "location" not in answer.headers
    else:
        assert answer.status == 400  # such bytes must be percent-encoded


async def test_a_path_is_shown_as_text_and_in_part(autojump_clock: MockClock, stack: MemoryStack) -> None:
    answer = await http(stack, "/" + "x" * 5000 + "%0d%0aSet-Cookie:a=b")
    assert len(answer.detail) < 400
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("target", ["/", "/health/liveness", "/api/stats"])
async def test_pages_are_read_only(autojump_clock: MockClock, stack: MemoryStack, target: str) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "FOO"):
        answer = await http(stack, target, method, body=b"x")
        assert (answer.status, answer.detail) == (405, "Specified method is invalid for this resource"), method
        assert {name.strip() for name in answer.headers["allow"].split(",")} == {"GET", "HEAD", "OPTIONS"}


async def test_faults_are_a_reference_and_refusals_have_their_status(
    waking: QuartTrio, caplog: pytest.LogCaptureFixture
) -> None:
    @waking.get("/fault")
    async def fault() -> str:
        raise RuntimeError("a secret")

    @waking.get("/refusal")
    async def refusal() -> str:
        raise NotAuthenticated("write it otherwise")

    answer = await request(waking, "/fault")
    assert answer.status == 500
    assert "reference" in answer.json()["detail"]
    assert "secret" not in answer.body.decode()
    assert "a secret" in caplog.text
    answer = await request(waking, "/refusal")
    assert (answer.status, answer.json()) == (401, {"success": False, "detail": "write it otherwise"})
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_pages_on_a_socket(loopback: LoopbackStack) -> None:
    stream = await loopback.open()
    assert (await exchange(stream, "/")).json() == TOOL
    assert (await exchange(stream, "/health/readiness")).status == 200
    assert (await exchange(stream, "/nothing")).status == 404
    await loopback.shut_down()
    with trio.fail_after(1), pytest.raises(EOFError):
        await read_answer(stream)


async def test_a_server_in_its_last_moments(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A request that is being answered when the server shuts down is answered."""
    async with memory_stack(Config(data_dir=tmp_path)) as stack:
        stream = stack.connect(lockstep=True)
        await stream.send_all(request_bytes("/"))
        await wait_all_tasks_blocked()
        await stack.shut_down()
        assert (await read_answer(stream)).json() == TOOL
