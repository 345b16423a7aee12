"""A server that ends and begins again on its data directory, in memory: what HTTP and websockets notice of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from hypha.config import Config
from tests.web.stack import MemoryStack, memory_stack
from tests.web.wires import Call, HttpAnswer, attach, http, join

#: Address of a request, and the type of the service that it is for.
KINDS = [
    ("/services/demo/hello", "generic"),
    ("/services/prov:demo/hello", "generic"),
    ("/services/demo", "generic"),
    ("/apps/demo/hello", "functions"),
]


async def hello(call: Call) -> dict[str, object]:
    return {"body": "hello"}


@dataclass(frozen=True)
class Lost:
    """A provider that was connected when its server ended."""

    workspace: str
    token: str
    functions: dict[str, Any]

    async def come_back(self, stack: MemoryStack) -> None:
        """As imjoy-rpc does: with its functions, and without registering them again."""
        peer = await attach(stack, "prov", f"&reconnection_token={self.token}")
        peer.functions.update(self.functions)


async def lost(path: Path, kind: str = "generic") -> Lost:
    """The provider of a server that has been."""
    async with memory_stack(Config(data_dir=path)) as stack:
        peer = await join(stack, "prov")
        await peer.provide("demo", {"hello": hello}, type=kind)
        info = await peer.manager("get_connection_info")
        await stack.shut_down()
        return Lost(peer.workspace, info["reconnection_token"], peer.functions)


@pytest.mark.parametrize(("path", "kind"), KINDS)
async def test_a_request_waits_for_the_provider(
    tmp_path: Path, autojump_clock: MockClock, path: str, kind: str
) -> None:
    provider = await lost(tmp_path, kind)
    async with memory_stack(Config(data_dir=tmp_path)) as stack, trio.open_nursery() as nursery:
        answers: list[HttpAnswer] = []

        async def ask() -> None:
            answers.append(await http(stack, f"/{provider.workspace}{path}"))

        nursery.start_soon(ask)
        await trio.sleep(5)
        assert answers == []
        await provider.come_back(stack)
        with trio.fail_after(5):
            while not answers:  # noqa: ASYNC110  the mock clock jumps
                await trio.sleep(0.1)
    assert answers[0].status == 200


@pytest.mark.parametrize(("path", "kind"), KINDS)
async def test_a_request_for_who_does_not_come(tmp_path: Path, autojump_clock: MockClock, path: str, kind: str) -> None:
    provider = await lost(tmp_path, kind)
    async with memory_stack(Config(data_dir=tmp_path)) as stack:
        started = trio.current_time()
        answer = await http(stack, f"/{provider.workspace}{path}")
        assert answer.status == 502
        assert b"has not come back since the server was started again" in answer.body
        assert 9 < trio.current_time() - started < 12
        assert (await http(stack, f"/{provider.workspace}{path}")).status == 404


async def test_what_was_not_there_is_not_waited_for(tmp_path: Path, autojump_clock: MockClock) -> None:
    provider = await lost(tmp_path)
    async with memory_stack(Config(data_dir=tmp_path)) as stack:
        started = trio.current_time()
        for path in ("/services/other/hello", "/services/gone:demo/hello"):
            assert (await http(stack, f"/{provider.workspace}{path}")).status == 404
        assert (await http(stack, "/elsewhere/services/demo/hello")).status == 404
        assert trio.current_time() - started < 1
