"""Messages in parts: small limits, failures half way, and what is forgotten."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from hypha.client import parts
from hypha.config import Limits
from hypha.errors import HyphaError, LimitExceeded, NotFound, PeerGone
from hypha.testing import LiveServer, open_server
from tests.client.conftest import pair


async def echo(value: Any) -> Any:
    return value


async def test_a_server_that_takes_short_frames_only() -> None:
    async with open_server(memory=True, limits=Limits(frame_bytes=100_000)) as live, pair(live) as (worker, user):
        await worker.register_service({"id": "svc", "echo": echo})
        service = await user.get_service("svc")
        array = np.arange(500_000)
        assert np.array_equal(await service.echo(array), array)
        assert await user.echo("x" * 200_000) == "x" * 200_000


async def test_a_message_that_is_cancelled_half_way_is_forgotten_by_its_receiver(live: LiveServer) -> None:
    half = trio.Event()

    async with pair(live) as (worker, user):
        await worker.register_service({"id": "svc", "echo": echo})
        service = await user.get_service("svc")
        put_part = user.peer.put_part

        async def stop_at_three(target: str, key: str, index: int | None, *rest: Any, **more: Any) -> None:
            if index == 3:
                half.set()
                await trio.sleep_forever()
            await put_part(target, key, index, *rest, **more)

        user.peer.put_part = stop_at_three  # type: ignore[method-assign]  # of this one
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.echo, np.zeros(10_000_000, np.uint8))
            await half.wait()
            await wait_all_tasks_blocked()
            assert len(worker.peer._built_in._parts) == 1
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert len(worker.peer._built_in._parts) == 0


async def test_a_receiver_that_goes_half_way_fails_the_call(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        await worker.register_service({"id": "svc", "echo": echo})
        service = await user.get_service("svc")
        put_part = user.peer.put_part

        async def leave_at_three(target: str, key: str, index: int | None, *rest: Any, **more: Any) -> None:
            if index == 3:
                await worker.disconnect()
            await put_part(target, key, index, *rest, **more)

        user.peer.put_part = leave_at_three  # type: ignore[method-assign]  # of this one
        with pytest.raises(PeerGone):
            await service.echo(np.zeros(10_000_000, np.uint8))
        assert await user.echo(1) == 1


def test_a_receiver_keeps_nothing_of_what_is_wrong_or_done() -> None:
    heard: list[tuple[str, str]] = []
    receiver = parts.Receiver(lambda sender, session: heard.append((sender, session)))

    def call(operation: str, *args: Any) -> Any:
        return receiver.take("ws/a", operation, {"args": list(args)})

    for bad in (("append", "key", b"x"), ("process", "key"), ("remove", "key"), ("nothing",), ("create", 3)):
        with pytest.raises(HyphaError):
            call(*bad)
        assert len(receiver) == 0
    call("create", "key")
    call("append", "key", b"a")
    call("set", "key", 1, memoryview(b"b"), True)
    assert heard == [("ws/a", "key")]
    assert call("process", "key") == b"ab"
    assert len(receiver) == 0
    call("create", "key")
    call("remove", "key")
    assert len(receiver) == 0
    call("create", "key")
    receiver.drop_idle()
    receiver.drop_idle()
    assert len(receiver) == 0


def test_all_peers_together_fill_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_MAX_BYTES", 5000)
    receiver = parts.Receiver(lambda sender, session: None)
    for number in range(5):
        receiver.take(f"ws/{number}", "create", {"args": ["key"]})
        receiver.take(f"ws/{number}", "append", {"args": ["key", b"x" * 1000]})
    receiver.take("ws/last", "create", {"args": ["key"]})
    with pytest.raises(LimitExceeded, match="messages in parts hold more than 5000 bytes"):
        receiver.take("ws/last", "append", {"args": ["key", b"x" * 1000]})


async def test_a_part_for_a_call_that_is_over_is_refused(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        await worker.register_service({"id": "svc", "echo": echo})
        with pytest.raises(NotFound, match="does not exist anymore"):
            await user.peer.call(worker.peer.name, "services.built-in.message_cache.create", ["no-session", True])
