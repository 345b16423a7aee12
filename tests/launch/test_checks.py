"""hypha/launch/checks.py: whether somebody answers, whatever else is at that address."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from hypha.launch import checks
from hypha.launch.checks import is_answered
from tests.house.certificate import CERTIFICATE, KEY

pytestmark = pytest.mark.deadline(30)

Handler = Callable[[trio.abc.Stream], Awaitable[None]]


def answering(data: bytes) -> Handler:
    async def handle(stream: trio.abc.Stream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(data)

    return handle


async def serve(nursery: trio.Nursery, handler: Handler, context: ssl.SSLContext | None = None) -> int:
    """The port at which *handler* serves every connection."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = int(listeners[0].socket.getsockname()[1])
    served: list[Any] = list(listeners)
    if context is not None:
        served = [trio.SSLListener(listener, context, https_compatible=True) for listener in listeners]
    nursery.start_soon(partial(trio.serve_listeners, handler, served))
    return port


@pytest.mark.parametrize(
    ("data", "answered"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.0 503 Service Unavailable\r\n\r\n", True),
        (b"SSH-2.0-x\r\n", False),
        (b"HTT", False),
        (b"", False),
    ],
)
async def test_any_answer_of_http_counts(data: bytes, answered: bool, nursery: trio.Nursery) -> None:
    port = await serve(nursery, answering(data))
    assert await is_answered(f"http://127.0.0.1:{port}/health?a=b") is answered
    nursery.cancel_scope.cancel()


async def test_what_is_asked(nursery: trio.Nursery) -> None:
    asked: list[bytes] = []

    async def handle(stream: trio.abc.Stream) -> None:
        asked.append(bytes(await stream.receive_some()))
        await stream.aclose()

    port = await serve(nursery, handle)
    for path in ("", "/a?b=c#d"):
        assert not await is_answered(f"http://localhost:{port}{path}")
    host = f"Host: localhost:{port}"
    assert [data.decode().splitlines()[:2] for data in asked] == [
        ["GET / HTTP/1.1", host],
        ["GET /a?b=c HTTP/1.1", host],
    ]
    nursery.cancel_scope.cancel()


async def test_an_answer_by_tls_counts_whoever_has_signed(nursery: trio.Nursery, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text(KEY)
    (tmp_path / "certificate.pem").write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    port = await serve(nursery, answering(b"HTTP/1.1 200 OK\r\n\r\n"), context)
    assert await is_answered(f"https://127.0.0.1:{port}")
    plain = await serve(nursery, answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    assert not await is_answered(f"https://127.0.0.1:{plain}")
    nursery.cancel_scope.cancel()


async def test_nobody_is_there() -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        assert not await is_answered(f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert not await is_answered(f"http://{'x' * 70}.invalid")


async def test_who_says_nothing_is_not_waited_for(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ATTEMPT_SECONDS", 0.1)

    async def silent(stream: trio.abc.Stream) -> None:
        async with stream:
            await trio.sleep_forever()

    port = await serve(nursery, silent)
    assert not await is_answered(f"http://127.0.0.1:{port}")
    nursery.cancel_scope.cancel()
