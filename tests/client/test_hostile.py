"""What other peers send: none of it ends the connection, and each learns what was wrong."""

from __future__ import annotations

import gc
import itertools
import logging
import math
from typing import Any

import msgpack
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from hypha.client import parts
from hypha.client.peer import Peer
from hypha.client.run import TrioRunner
from hypha.errors import HyphaError, InvalidArgument
from hypha.testing import LiveServer
from tests.client.conftest import pair

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
)
words = st.sampled_from(
    ["method", "services.built-in.ping", "services.svc.f", "s1.resolve", "a.b", "ndarray", "set", "orderedmap", "*"]
)
HEADER = ["type", "method", "session", "parent", "from", "to", "data"]
BODY = ["args", "with_kwargs", "promise", "t", "timeout", "resolve", "reject", "heartbeat", "interval"]
MARKS = ["_rtype", "_rvalue", "_rshape", "_rdtype", "_rtarget", "_rmethod"]
keys = st.sampled_from([*HEADER, *BODY, *MARKS])
values = st.recursive(
    scalars | words, lambda item: st.lists(item, max_size=4) | st.dictionaries(keys, item, max_size=6), max_leaves=12
)
maps = st.dictionaries(keys, values, max_size=8)


@given(maps, maps)
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_no_message_makes_a_fault_of_ours(main: dict[str, Any], extra: dict[str, Any]) -> None:
    """Nothing but what we say of bad messages: the log has no traceback."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Keep(logging.ERROR)
    log = logging.getLogger("hypha.client.peer")
    log.addHandler(handler)
    try:
        peer = Peer(TrioRunner(), None, lambda event: None)
        peer.take(msgpack.packb({"type": "method", **main}) + msgpack.packb(extra))
    finally:
        log.removeHandler(handler)
    assert not records, [record.exc_text or record.exc_info for record in records]


BAD: list[Any] = [
    {"_rtype": "ndarray"},
    {"_rtype": "ndarray", "_rvalue": b"abc", "_rshape": [1000], "_rdtype": "uint8"},
    {"_rtype": "ndarray", "_rvalue": 3, "_rshape": [1], "_rdtype": "uint8"},
    {"_rtype": "ndarray", "_rvalue": b"abc", "_rshape": [1], "_rdtype": 7},
    {"_rtype": "set"},
    {"_rtype": "set", "_rvalue": [[1]]},
    {"_rtype": "orderedmap", "_rvalue": [1]},
    {"_rtype": "memoryview"},
    {"_rtype": "typedarray", "_rvalue": None, "_rdtype": "int8"},
]


@pytest.mark.parametrize("value", BAD)
async def test_a_value_that_is_not_what_it_says(live: LiveServer, value: Any) -> None:
    async with pair(live) as (worker, user):
        await worker.register_service({"id": "svc", "f": lambda value: 1})
        service = await user.get_service("svc")
        with pytest.raises(InvalidArgument, match="cannot be read"):
            await _raw(user.peer, worker.peer.name, [value])
        assert await service.f(1) == 1


async def _raw(peer: Peer, target: str, args: list[Any]) -> Any:
    """Call with arguments that are sent as they are."""

    async def send(channel: Any, session: str, progress: Any) -> None:
        fields = {"type": "method", "to": target, "method": "services.svc.f", "session": session}
        await channel.send(msgpack.packb(fields), msgpack.packb({"args": args, "promise": "*", "t": 15.0}))

    return await peer._exchange(target, "services.svc.f", send, promise="*")


async def test_nobody_cancels_the_call_of_another(live: LiveServer) -> None:
    begun, over = trio.Event(), trio.Event()
    sessions: list[str] = []

    async def hold(context: Any) -> str:
        sessions.append(context["session"])
        begun.set()
        await over.wait()
        return "done"

    async with (
        pair(live) as (worker, user),
        live.connect({"workspace": worker.config.workspace, "token": await worker.generate_token()}) as rogue,
    ):
        await worker.register_service({"id": "svc", "config": {"require_context": True}, "hold": hold})
        service = await user.get_service("svc")
        results: list[str] = []

        async def ask() -> None:
            results.append(await service.hold())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await begun.wait()
            assert await rogue.peer.call(worker.peer.name, "services.built-in.cancel", sessions) is None
            over.set()
        assert results == ["done"]


async def test_messages_that_are_never_finished_are_dropped(live: LiveServer, autojump_clock: MockClock) -> None:
    async with pair(live) as (worker, user):
        await worker.register_service({"id": "svc", "f": lambda: 1})
        cache = "services.built-in.message_cache."
        await user.peer.call(worker.peer.name, cache + "create", ["key", False])
        assert len(worker.peer._built_in._parts) == 1
        wrong: list[list[Any]] = [[], ["key"], [1, 2, 3]]
        for name, args in itertools.product(["append", "set", "process", "remove", "nothing"], wrong):
            if args != ["key"] or name not in {"process", "remove"}:
                with pytest.raises(HyphaError):
                    await user.peer.call(worker.peer.name, cache + name, args)
        await trio.sleep(130)
        assert not worker.peer._built_in._parts


async def test_one_session_runs_once(live: LiveServer) -> None:
    """A second call of a session that runs is refused, and takes nothing with it."""
    begun, over = trio.Event(), trio.Event()

    async def hold() -> str:
        begun.set()
        await over.wait()
        return "done"

    async with pair(live) as (worker, user), trio.open_nursery() as nursery:
        await worker.register_service({"id": "svc", "f": hold})
        fields = {"type": "method", "to": worker.peer.name, "method": "services.svc.f", "session": "s1"}
        message = msgpack.packb(fields) + msgpack.packb({"args": [], "promise": "*", "t": 15.0})
        channel = await user.peer.channel()
        for _ in range(3):
            await channel.send(message)
        await begun.wait()
        over.set()
        service = await user.get_service("svc")
        nursery.start_soon(service.f)
    assert not worker.peer.serving._running


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0, True, "5", [], 1e300])
async def test_a_deadline_that_is_none(live: LiveServer, seconds: Any) -> None:
    async with pair(live) as (worker, user):
        await worker.register_service({"id": "svc", "f": lambda: 1})
        fields = {"type": "method", "to": worker.peer.name, "method": "services.svc.f", "session": "s1"}
        extra = {"args": [], "promise": "*", "t": 15.0, "timeout": seconds}
        await (await user.peer.channel()).send(msgpack.packb(fields), msgpack.packb(extra))
        service = await user.get_service("svc")
        assert await service.f() == 1


FORGED: list[dict[str, Any]] = [
    {"_rmethod": "x", "_rclose_method": "y"},
    {"_rtarget": 3, "_rmethod": "x", "_rclose_method": "y"},
    {"_rtarget": "SENDER", "_rclose_method": "y"},
    {"_rtarget": "SENDER", "_rmethod": "x", "_rclose_method": 3},
    {"_rtarget": "SENDER", "_rmethod": "x", "_rclose_method": "services.danger.reset"},
    {"_rtarget": "VICTIM", "_rmethod": "x", "_rclose_method": "services.danger.reset"},
    {"_rtarget": "VICTIM", "_rmethod": "x", "_rclose_method": "y"},
]


@pytest.mark.parametrize("forged", FORGED)
async def test_a_generator_cannot_make_its_receiver_call_others(live: LiveServer, forged: dict[str, Any]) -> None:
    called: list[str] = []
    async with pair(live) as (worker, rogue):
        await worker.register_service({"id": "danger", "reset": lambda: called.append("reset")})
        names = {"SENDER": rogue.peer.name, "VICTIM": worker.peer.name}
        value = {key: names.get(item, item) if isinstance(item, str) else item for key, item in forged.items()}
        main = {"type": "news", "to": worker.peer.name}
        channel = await rogue.peer.channel()
        await channel.send(msgpack.packb(main), msgpack.packb({"data": {"_rtype": "generator", **value}}))
        assert await rogue.peer.call(worker.peer.name, "services.built-in.ping", ["ping"]) == "pong"
        gc.collect()
        await wait_all_tasks_blocked()
        assert not called


async def test_a_short_part_does_not_keep_a_long_message() -> None:
    receiver = parts.Receiver(lambda sender, session: None)
    receiver.take("ws/a", "create", {"args": ["key"]})
    message = memoryview(b"x" * 1_000_000)
    receiver.take("ws/a", "set", {"args": ["key", 0, message[:4096]]})
    (kept,) = receiver._stores["ws/a"].messages["key"].values()
    assert isinstance(kept, bytes)
    whole = memoryview(b"y" * 5000)
    receiver.take("ws/a", "set", {"args": ["key", 1, whole[100:]]})
    assert isinstance(receiver._stores["ws/a"].messages["key"][1], memoryview)
