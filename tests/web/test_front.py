"""Which branch answers a request: own paths, mounts, functions, pages; the base path; what is no path at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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


@pytest.mark.parametrize("name", ["health", "api", "ws", "workspaces", "login", "metrics", "assets"])
async def test_own_names_are_never_those_of_workspaces(
    autojump_clock: MockClock, stack: MemoryStack, name: str
) -> None:
    answer = await http(stack, f"/{name}/services/demo/hello")
    assert answer.status == 404


# --- the base path (A15) ----------------------------------------------------------------------------------------


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


async def test_requests_on_one_connection_are_answered_in_order(autojump_clock: MockClock, stack: MemoryStack) -> None:
    peer = await join(stack, "prov")
    await peer.provide("demo", {"hello": hello})
    stream = stack.connect()
    targets = [f"/{peer.workspace}/services/demo/hello?name=a", "/nothing", "/health/liveness"]
    answers = [await exchange(stream, target) for target in targets]
    assert [answer.status for answer in answers] == [200, 404, 200]
    await trio.aclose_forcefully(stream)


# --- CORS reaches every branch ----------------------------------------------------------------------------------


async def test_head_has_the_head_alone(autojump_clock: MockClock, stack: MemoryStack) -> None:
    for target in ("/", "/health/liveness", "/nothing", "/public/services/x/y", "/workspaces"):
        stream = stack.connect()
        await stream.send_all(request_bytes(target, "HEAD") + request_bytes("/health/liveness"))
        first = await read_answer(stream, "HEAD")
        assert first.body == b""
        assert int(first.headers["content-length"]) > 0
        await trio.aclose_forcefully(stream)
