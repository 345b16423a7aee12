"""Which branch answers a request: own paths, mounts, functions, pages; the base path; what is no path at all."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from hypha.config import Config, Mount
from tests.web.stack import MemoryStack, memory_stack
from tests.web.wires import (
    Call,
    Refused,
    exchange,
    http,
    join,
    read_answer,
    read_to_end,
    request_bytes,
    upgrade,
)


async def hello(call: Call) -> str:
    return f"Hello {call.kwargs.get('name', '')}"


def site(directory: Path, **files: str) -> Path:
    """A directory with *files*, an underscore in their names standing for a dot."""
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name.replace("_", ".")).write_text(text)
    return directory


@asynccontextmanager
async def offering(config: Config) -> AsyncIterator[tuple[MemoryStack, str]]:
    """A server with a client that offers ``demo``; yields its workspace too."""
    async with memory_stack(config) as stack:
        prefix = config.base_path
        peer = await join(stack, "prov", prefix=prefix)
        await peer.provide("demo", {"hello": hello})
        yield stack, peer.workspace


# --- precedence (A11, A12) ------------------------------------------------------------------------------------


async def test_a_mount_owns_its_prefix_and_services_have_the_rest(tmp_path: Path, autojump_clock: MockClock) -> None:
    tools = site(tmp_path / "tools", a_txt="A")
    site(tools / "services" / "demo", hello="a file")
    mounts = (Mount("/tools", tools), Mount("/tools/inner", site(tmp_path / "inner", b_txt="B")))
    async with offering(Config(data_dir=tmp_path, static_mounts=mounts)) as (stack, workspace):
        assert (await http(stack, "/tools/a.txt")).body == b"A"
        assert (await http(stack, "/tools/services/demo/hello")).body == b"a file"
        assert (await http(stack, "/tools/inner/b.txt")).body == b"B"
        assert (await http(stack, "/tools/services/demo/other")).status == 404
        assert (await http(stack, f"/{workspace}/services/demo/hello?name=you")).json() == "Hello you"
        assert (await http(stack, "/")).json()["name"] == "Hypha"
        assert (await http(stack, "/toolsx")).status == 404


async def test_a_mount_on_the_root_wins_over_the_first_page_and_nothing_else(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    root = site(tmp_path / "site", index_html="home", health="not this", x_txt="X")
    site(root / "api", stats="not this either")
    tools = site(tmp_path / "tools", a_txt="A")
    mounts = (Mount("/", root), Mount("/tools", tools))
    async with offering(Config(data_dir=tmp_path, static_mounts=mounts)) as (stack, workspace):
        assert (await http(stack, "/")).body == b"home"
        assert (await http(stack, "/x.txt")).body == b"X"
        assert (await http(stack, "/tools/a.txt")).body == b"A"
        assert (await http(stack, "/health/liveness")).json() == {"status": "OK"}
        assert (await http(stack, "/api/stats")).json()["service_count"] == 2
        assert (await http(stack, f"/{workspace}/services/demo/hello")).json() == "Hello "
        assert (await http(stack, f"/{workspace}/services")).json()[0]["name"] == "demo"
        assert (await http(stack, "/nothing")).status == 404
        peer = await join(stack, "ws")
        assert await peer.manager("echo", 1) == 1


@pytest.mark.parametrize("name", ["health", "api", "ws", "workspaces", "login", "metrics", "assets"])
async def test_own_names_are_never_those_of_workspaces(
    autojump_clock: MockClock, stack: MemoryStack, name: str
) -> None:
    answer = await http(stack, f"/{name}/services/demo/hello")
    assert answer.status == 404


# --- the base path (A15) ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "encoded"), [("/lab", "/lab"), ("/a/b", "/a/b"), ("/my lab/ä", "/my%20lab/%C3%A4"), ("/lab", "/%6cab")]
)
async def test_everything_is_below_the_base_path(
    tmp_path: Path, autojump_clock: MockClock, base: str, encoded: str
) -> None:
    mounts = (Mount("/tools", site(tmp_path / "tools", a_txt="A", index_html="tools")),)
    config = Config(data_dir=tmp_path, base_path=base, static_mounts=mounts)
    async with memory_stack(config) as stack:
        peer = await join(stack, "prov", prefix=encoded)
        await peer.provide("demo", {"hello": hello})
        info = await peer.manager("get_connection_info")
        assert info["local_base_url"] == f"http://lab.example:9527{base}"
        for path in ("", "/"):
            assert (await http(stack, encoded + path)).json()["name"] == "Hypha"
        assert (await http(stack, f"{encoded}/health/readiness")).status == 200
        assert (await http(stack, f"{encoded}/tools/a.txt")).body == b"A"
        target = f"{encoded}/{peer.workspace}/services/demo/hello?name=you"
        assert (await http(stack, target)).json() == "Hello you"
        assert len((await http(stack, f"{encoded}/{peer.workspace}/services")).json()) == 1
        page = await http(stack, encoded, headers={"Accept": "text/html"})
        assert f"http://lab.example:9527{base}" in page.body.decode()


async def test_outside_the_base_path_is_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with memory_stack(Config(data_dir=tmp_path, base_path="/lab")) as stack:
        for target in ("/", "/health/liveness", "/labs", "/labs/", "/x/lab/", "/public/services/x/y"):
            answer = await http(stack, target)
            assert (answer.status, answer.detail) == (404, "this server is at /lab/")


async def test_the_websocket_is_also_found_without_the_base_path(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A proxy may have taken it away."""
    async with memory_stack(Config(data_dir=tmp_path, base_path="/lab")) as stack:
        for prefix in ("", "/lab"):
            peer = await join(stack, "a", prefix=prefix)
            await peer.leave()
        for target in ("/lab", "/lab/ws/", "/other/ws", "/lab/lab/ws"):
            with pytest.raises(Refused, match="404") as refused:
                await upgrade(stack.connect(), f"{target}?client_id=a")
            assert refused.value.answer.detail == "websockets are served at /lab/ws"


# --- requests that are odd, or meant to be misread ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("OPTIONS", "*"),
        ("GET", "*"),
        ("GET", "health/liveness"),
        ("CONNECT", "example.com:443"),
        ("GET", "ftp://example.com/"),
    ],
)
async def test_what_is_no_path_is_not_found(
    autojump_clock: MockClock, stack: MemoryStack, method: str, target: str
) -> None:
    assert (await http(stack, target, method)).status == 404


async def test_the_whole_url_may_stand_in_the_request(autojump_clock: MockClock, stack: MemoryStack) -> None:
    """RFC 9112 section 3.2.2."""
    peer = await join(stack, "prov")
    await peer.provide("demo", {"hello": hello})
    assert (await http(stack, "http://lab.example:9527/health/liveness")).status == 200
    target = f"HTTP://lab.example/{peer.workspace}/services/demo/hello?name=you"
    assert (await http(stack, target)).json() == "Hello you"
    assert (await http(stack, "https://lab.example")).json()["name"] == "Hypha"


@pytest.mark.parametrize("end", ["0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"])
async def test_two_lengths_end_the_connection(autojump_clock: MockClock, stack: MemoryStack, end: str) -> None:
    """What follows is a second request to one reader and the body of the first to another (RFC 9112 6.1)."""
    body = end.encode() + request_bytes("/health/liveness")
    headers = {"Content-Length": str(len(body)), "Transfer-Encoding": "chunked"}
    stream = stack.connect()
    await stream.send_all(request_bytes("/public/services/x/y", "POST", headers, body))
    answer = await read_to_end(stream)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"connection: close" in answer


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 1e3\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: 5\r\n 6\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Bad header: x\r\n",
        "X: a\rb\r\n",
        "X: a\0b\r\n",
    ],
    ids=repr,
)
async def test_ambiguous_requests_are_refused(autojump_clock: MockClock, stack: MemoryStack, head: str) -> None:
    stream = stack.connect()
    await stream.send_all(f"POST / HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode() + request_bytes("/health/liveness"))
    answer = await read_to_end(stream)
    assert answer[:11] in {b"HTTP/1.1 40", b"HTTP/1.1 50"}
    assert b'{"status"' not in answer


CHUNKED = b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
HIDDEN = request_bytes("/health/liveness")


@pytest.mark.parametrize(
    "body",
    [
        b"5\nhello\n0\n\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"5;a\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"5 5\r\nhello\r\n0\r\n\r\n",
        b"1" * 40 + b"\r\nhello\r\n0\r\n\r\n",
    ],
    ids=repr,
)
async def test_chunks_that_two_could_read_in_two_ways_end_the_connection(
    autojump_clock: MockClock, stack: MemoryStack, body: bytes
) -> None:
    stream = stack.connect()
    await stream.send_all(CHUNKED + body + HIDDEN)
    answer = await read_to_end(stream)
    assert b"HTTP/1.1 200" not in answer
    assert answer.count(b"HTTP/1.1") <= 1
    await trio.testing.wait_all_tasks_blocked()
    assert stack.ends[0].closed.is_set()


@pytest.mark.parametrize(
    "request_and_body",
    [
        CHUNKED + b'5;name=value;"quoted"\r\nhello\r\n0;last\r\n\r\n',
        CHUNKED + b"005\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
        CHUNKED.replace(b"\r\n", b"\n") + b"0\r\n\r\n",
        CHUNKED.replace(b": chunked", b":\r\n chunked") + b"5\r\nhello\r\n0\r\n\r\n",
        CHUNKED.replace(b"Host: x", b"Host: x\r\nX: a\r\n b") + b"0\r\n\r\n",
    ],
    ids=["extensions", "zeros and trailers", "line feeds", "a folded length", "a folded line"],
)
async def test_strange_but_clear_requests_end_where_they_end(
    autojump_clock: MockClock, stack: MemoryStack, request_and_body: bytes
) -> None:
    """What RFC 9112 lets a server read (2.2, 5.2, 7.1.1) is read as it says, and the next request begins behind it."""
    stream = stack.connect()
    await stream.send_all(request_and_body + HIDDEN)
    answer = await read_to_end(stream)
    assert re.findall(rb"HTTP/1.1 ([0-9]{3})", answer) == [b"404", b"200"]


async def test_requests_on_one_connection_are_answered_in_order(autojump_clock: MockClock, stack: MemoryStack) -> None:
    peer = await join(stack, "prov")
    await peer.provide("demo", {"hello": hello})
    stream = stack.connect()
    targets = [f"/{peer.workspace}/services/demo/hello?name=a", "/nothing", "/health/liveness"]
    answers = [await exchange(stream, target) for target in targets]
    assert [answer.status for answer in answers] == [200, 404, 200]
    await trio.aclose_forcefully(stream)


# --- CORS reaches every branch ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "method", "status"),
    [
        ("/", "GET", 200),
        ("/nothing", "GET", 404),
        ("/", "POST", 405),
        ("/public/services/x/y", "GET", 404),
        ("/public/services/x/y", "PUT", 405),
        ("/public/services/x", "GET", 404),
        ("/tools/nothing", "GET", 404),
        ("*", "GET", 404),
    ],
)
async def test_errors_carry_cors_headers(
    tmp_path: Path, autojump_clock: MockClock, target: str, method: str, status: int
) -> None:
    mounts = (Mount("/tools", site(tmp_path / "tools")),)
    async with memory_stack(replace(Config(data_dir=tmp_path), static_mounts=mounts)) as stack:
        answer = await http(stack, target, method, {"Origin": "https://page.example"})
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert answer.detail if status != 200 else answer.body


async def test_head_has_the_head_alone(autojump_clock: MockClock, stack: MemoryStack) -> None:
    for target in ("/", "/health/liveness", "/nothing", "/public/services/x/y", "/workspaces"):
        stream = stack.connect()
        await stream.send_all(request_bytes(target, "HEAD") + request_bytes("/health/liveness"))
        first = await read_answer(stream, "HEAD")
        assert first.body == b""
        assert int(first.headers["content-length"]) > 0
        await trio.aclose_forcefully(stream)
