"""The server as a peer: how it answers, what it asks, how long it waits, and that nothing of a call stays."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import msgpack
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hypha.broker.access import Action, Level, Principal
from hypha.broker.endpoint import ServerCall
from hypha.broker.function import Function
from hypha.broker.own import Visit
from hypha.broker.registration import parse_registration
from hypha.config import Limits
from hypha.errors import CallTimeout, InvalidArgument, PeerGone, RemoteError
from hypha.wire.address import Address
from hypha.wire.calls import CANCEL
from hypha.wire.chunks import CACHE_PREFIX
from hypha.wire.dialect import MODERN
from tests.broker.memory import SERVER_ID, Peer, Rejected, Scene, pack_message

pytestmark = pytest.mark.deadline(20)

CHUNK = 262_144


def at_rest(scene: Scene) -> None:
    """The server has no call of its own open, runs none for others, and remembers none in flight."""
    server = scene.broker.server
    assert not server._table.pending
    assert not server._running
    assert not server._cancellable
    assert not server.outbound
    assert not server.inbound
    assert all(session.server_calls == session.server_call_bytes == 0 for session in scene.broker.registry.sessions())


def add(scene: Scene, path: str, run: Any, needs: Action | None = None) -> None:
    scene.broker.server.functions[path] = Function.of(run, needs)


def offer(scene: Scene, **functions: Any) -> None:
    """Let the server offer a service of its own, called ``test``."""
    entry = parse_registration({"id": "test", "config": {"visibility": "public"}}, SERVER_ID)
    scene.broker.server.own.add(entry, {name: Function.of(run) for name, run in functions.items()})


# --- being called ---------------------------------------------------------------------------------------------


async def test_a_call_is_answered_from_the_address_that_was_asked(live: Scene) -> None:
    a = live.join("lab/a")
    for to in ("workspace-manager", "lab/workspace-manager", f"*/{SERVER_ID}", f"public/{SERVER_ID}"):
        a.call(to, "services.default.echo", {"x": [1]}, session="s.1")
        message = await a.message_for("s.1")
        assert message["from"] == (to if "/" in to else f"lab/{to}")
        assert (message["method"], message["parent"], message["to"]) == ("s.1.resolve", "s.1", "lab/a")
        assert message["args"] == [{"x": [1]}]
        assert (message["user"]["id"], message["ws"]) == ("root", "lab")
    at_rest(live)


async def test_an_explicit_promise_is_answered_at_the_names_in_it(live: Scene) -> None:
    a = live.join("lab/a")

    def reference(name: str) -> dict[str, Any]:
        return {"_rtype": "method", "_rtarget": "a", "_rmethod": name, "_rpromise": False}

    promise = {"resolve": reference("x.y.done"), "reject": reference("x.y.failed"), "interval": 5}
    header = {"type": "method", "to": "workspace-manager", "session": "s1"}
    a.send(header | {"method": "services.default.echo"}, {"args": [1], "promise": promise})
    a.send(header | {"method": "services.default.nothing"}, {"promise": promise})
    await wait_all_tasks_blocked()
    assert sorted(message["method"] for message in a.received()) == ["x.y.done", "x.y.failed"]


async def test_a_call_without_a_promise_runs_and_is_not_answered(live: Scene) -> None:
    ran: list[Any] = []

    async def note(call: ServerCall, value: Any) -> None:
        ran.append(value)

    add(live, "services.test.note", note)
    a = live.join("lab/a")
    a.send({"type": "method", "to": "workspace-manager", "method": "services.test.note"}, {"args": [1]})
    a.send({"type": "method", "to": "workspace-manager", "method": "services.test.other"}, {"args": [1]})
    await wait_all_tasks_blocked()
    assert (ran, a.received()) == ([1], [])
    at_rest(live)


@pytest.mark.parametrize("body", [b"\xc1", b"\x90", b"\x81\xa4args\x05", b"\x81", b"\x91" * 2000])
async def test_a_call_that_cannot_be_read_is_rejected(body: bytes, live: Scene) -> None:
    a = live.join("lab/a")
    header = {"type": "method", "to": "workspace-manager", "method": "services.default.echo"}
    a.send(header | {"session": "s1"}, body)
    a.send(header, body)
    await wait_all_tasks_blocked()
    (error,) = a.errors()
    assert error.startswith("ValueError: ")
    at_rest(live)


async def test_other_messages_to_the_server_are_dropped(live: Scene) -> None:
    a = live.join("lab/a")
    for header in ({"type": "progress"}, {"type": "method", "method": "s1.resolve"}, {"type": "force-exit"}):
        a.send({"to": "workspace-manager", **header}, b"\xc1")
    await wait_all_tasks_blocked()
    assert a.received() == []
    at_rest(live)


async def test_a_caller_cancels_a_call_of_a_service_of_the_server_and_nobody_else_does(live: Scene) -> None:
    running: set[str] = set()

    async def hang(visit: Visit) -> None:
        running.add(visit.workspace)
        try:
            await trio.sleep_forever()
        finally:
            running.discard(visit.workspace)

    offer(live, hang=hang)
    a, b = live.join("lab/a"), live.join("other/b")
    place = f"public/{SERVER_ID}"
    for peer in (a, b):
        peer.call(place, "services.test.hang", session="s1")
    await wait_all_tasks_blocked()
    assert running == {"lab", "other"}
    cancel = {"type": "method", "to": place, "method": CANCEL}
    bodies: list[Any] = [b"\xc1", {"args": []}, {"args": [1]}, {"args": [["s1"]]}, {"args": ["s2"]}]
    for body in bodies:
        a.send(cancel, body)
    await wait_all_tasks_blocked()
    assert running == {"lab", "other"}
    a.send(cancel, {"args": ["s1"]})
    await wait_all_tasks_blocked()
    assert running == {"other"}
    assert a.received() == b.received() == []
    # One that comes in the same breath, before the call has begun.
    a.call(place, "services.test.hang", session="s2")
    a.send(cancel, {"args": ["s2"]})
    b.send(cancel, {"args": ["s1"]})
    await wait_all_tasks_blocked()
    assert running == set()
    at_rest(live)


async def test_of_two_calls_of_one_session_the_first_is_cancelled(live: Scene) -> None:
    """The end of the other one does not take that away."""
    running: list[str] = []
    go_on = trio.Event()

    async def hang(visit: Visit) -> None:
        running.append("hang")
        try:
            await trio.sleep_forever()
        finally:
            running.remove("hang")

    async def wait(visit: Visit) -> None:
        await go_on.wait()

    offer(live, hang=hang, wait=wait)
    a = live.join("lab/a")
    place = f"public/{SERVER_ID}"
    a.call(place, "services.test.hang", session="s1")
    a.call(place, "services.test.wait", session="s1")
    await wait_all_tasks_blocked()
    go_on.set()
    await a.message_for("s1")
    assert running == ["hang"]
    a.send({"type": "method", "to": place, "method": CANCEL}, {"args": ["s1"]})
    await wait_all_tasks_blocked()
    assert running == []
    at_rest(live)


async def test_the_server_calls_back_only_its_caller(live: Scene) -> None:
    async def ring(visit: Visit, function: Any) -> Any:
        return await visit.call_back(function)(["hello"])

    offer(live, ring=ring)
    a = live.join("lab/a")
    place = f"public/{SERVER_ID}"
    for target in ("lab/a", "a"):
        own = {"_rtype": "method", "_rtarget": target, "_rmethod": "s1.bell", "_rpromise": True}
        a.call(place, "services.test.ring", own, session="s1")
        message = await a.message_for("s1")
        assert (message["method"], message["from"], message["args"]) == ("s1.bell", place, ["hello"])
        a.answer(message, 7)
        assert (await a.message_for("s1"))["args"] == [7]
    a.received()
    changes: list[dict[str, Any]] = [{"_rtarget": "lab/b"}, {"_rtarget": ["a"]}, {"_rmethod": None}]
    for stranger in (*({**own, **change} for change in changes), "bell", None):
        a.call(place, "services.test.ring", stranger, session="s2")
    await wait_all_tasks_blocked()
    assert a.errors() == ["ValueError: a function to be called back must be one of the caller's own"] * 5
    at_rest(live)


async def test_only_declared_functions_are_callable(live: Scene) -> None:
    a = live.join("lab/a")
    rows: list[str] = [
        "services.default.__class__",
        "services.default.echo.__globals__",
        "services.default._broker",
        "services.default.get-service",
        "services.default",
        "services.default.",
        "services..echo",
        "services.built-in.message_cache",
        "services.built-in.message_cache.create.__call__",
        "services.built-in.register_service",
        "services.other.echo",
        "services.default.echo\n",
        "services.Default.echo",
        "services.0",
        "services.built_in_with_api_version",
    ]
    for method in rows:
        with pytest.raises(Rejected) as caught:
            await a.ask(method, "x")
        assert str(caught.value) == f"KeyError: Method not found: lab/workspace-manager:{method}"


async def test_the_internal_name_of_a_redirection_is_no_method(live: Scene) -> None:
    a = live.join("lab/a")
    a.send({"type": "method", "to": "workspace-manager", "method": "built_in_with_api_version", "session": "s1"})
    await wait_all_tasks_blocked()
    assert a.received() == []
    assert all(path.startswith("services.") or path.isidentifier() for path in live.broker.server.functions)


async def test_wrong_arguments_are_named(live: Scene) -> None:
    a = live.join("lab/a")
    rows: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((), {}, "missing a required argument: 'data'"),
        ((1, 2), {}, "too many positional arguments"),
        ((1,), {"data": 2}, "multiple values for argument 'data'"),
        ((1,), {"call": 2}, "multiple values for argument 'call'"),
        ((), {"data": 1, "_broker": 2}, "got an unexpected keyword argument '_broker'"),
        ((1,), {"__class__": 2}, "got an unexpected keyword argument '__class__'"),
    ]
    for args, kwargs, complaint in rows:
        with pytest.raises(Rejected) as caught:
            await a.ask("echo", *args, **kwargs)
        assert str(caught.value) == f"ValueError: echo: {complaint}"


async def test_an_error_of_ours_is_text_and_a_fault_is_a_reference(
    live: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(call: ServerCall) -> None:
        raise InvalidArgument("no")

    async def fail(call: ServerCall) -> None:
        raise RuntimeError("/secret/path")

    add(live, "services.test.refuse", refuse)
    add(live, "services.test.fail", fail)
    a = live.join("lab/a")
    with pytest.raises(Rejected, match=r"^ValueError: no$"):
        await a.ask("services.test.refuse")
    with caplog.at_level(logging.ERROR), pytest.raises(Rejected) as caught:
        await a.ask("services.test.fail")
    reference = str(caught.value).split()[4].rstrip(";")
    assert str(caught.value).startswith("RuntimeError: internal error, reference ")
    assert "secret" not in str(caught.value)
    assert reference in caplog.text
    assert "/secret/path" in caplog.text
    at_rest(live)


@pytest.mark.parametrize("value", [2**70, object(), "\ud800", [[]] * 2 + [{1, 2}]])
async def test_a_result_that_cannot_be_sent_is_an_error_for_its_caller_only(value: Any, live: Scene) -> None:
    async def give(call: ServerCall) -> Any:
        return value

    add(live, "services.test.give", give)
    a = live.join("lab/a")
    with pytest.raises(Rejected, match="cannot be sent as msgpack"):
        await a.ask("services.test.give")
    assert await a.ask("echo", 1) == 1


# --- who may call ---------------------------------------------------------------------------------------------

NEEDS: dict[str, Action | None] = {
    "nothing": None,
    "read": Action.READ,
    "write": Action.WRITE,
    "administer": Action.ADMINISTER,
}


async def test_a_function_runs_for_those_who_may_what_it_needs(live: Scene) -> None:
    async def where(call: ServerCall) -> str:
        return call.workspace.name

    for name, needs in NEEDS.items():
        add(live, f"services.test.{name}", where, needs)
    for level, reaches in zip(("READ", "READ_WRITE", "ADMIN"), (2, 3, 4), strict=True):
        a = live.join(f"lab/{level}", principal=live.principal(level, "lab", Level[level]))
        for number, name in enumerate(NEEDS):
            if number < reaches:
                assert await a.ask(f"services.test.{name}") == "lab"
            else:
                with pytest.raises(Rejected, match=r"^PermissionError: Permission denied for workspace lab\.$"):
                    await a.ask(f"services.test.{name}")


async def test_the_manager_of_a_workspace_answers_its_members_wherever_they_are(live: Scene) -> None:
    both = Principal("u", False, grants={"lab": Level.READ_WRITE, "other": Level.READ})
    live.workspace("other")
    a = live.join("lab/a", principal=both)
    assert (await a.ask("get_workspace_info", to="other/workspace-manager"))["name"] == "other"
    with pytest.raises(Rejected, match="Permission denied for workspace other"):
        await a.ask("update_client_info", {"id": "a"}, to="other/workspace-manager")


@pytest.mark.parametrize(
    "method",
    [
        "services.default.echo",
        "services.default.nothing",
        "services.built-in.ping",
        "services.built-in.get_service",
        "services.built-in.message_cache.create",
    ],
)
@pytest.mark.parametrize("argument", ["default", "built-in", "ping"])
async def test_a_stranger_gets_one_answer_whether_a_workspace_exists_or_not(
    method: str, argument: str, live: Scene
) -> None:
    live.workspace("secret")
    a = live.join("lab/a")
    told = []
    for name in ("secret", "nowhere"):
        with pytest.raises(Rejected) as caught:
            await a.ask(method, argument, to=f"{name}/workspace-manager")
        told.append(str(caught.value).replace(name, "X"))
    assert told == ["PermissionError: Permission denied for workspace X."] * 2


async def test_everybody_may_see_the_public_workspaces_manager(live: Scene) -> None:
    a = live.join("lab/a")
    assert await a.ask("services.built-in.ping", "ping", to="public/workspace-manager") == "pong"
    service = await a.ask("services.built-in.get_service", "default", to="public/workspace-manager")
    assert service["config"]["visibility"] == "public"
    with pytest.raises(Rejected, match="Permission denied for workspace public"):
        await a.ask("list_clients", to="public/workspace-manager")


# --- how many, how long ---------------------------------------------------------------------------------------


async def test_a_hundred_calls_run_at_once_and_the_next_is_rejected(live: Scene) -> None:
    release = trio.Event()

    async def wait(call: ServerCall) -> str:
        await release.wait()
        return "done"

    add(live, "services.test.wait", wait)
    a, b = live.join("lab/a"), live.join("lab/b")
    for number in range(100):
        a.call("workspace-manager", "services.test.wait", session=f"s{number}")
    await wait_all_tasks_blocked()
    a.call("workspace-manager", "services.test.wait", session="over")
    a.send({"type": "method", "to": "workspace-manager", "method": "services.test.wait"})
    assert a.errors() == ["RuntimeError: server_calls_per_peer = 100 calls are running; wait"]
    b.call("workspace-manager", "services.test.wait")  # another's calls are counted apart
    release.set()
    await wait_all_tasks_blocked()
    assert {message["method"] for message in a.received()} == {f"s{number}.resolve" for number in range(100)}
    assert len(b.received()) == 1
    assert await a.ask("echo", 1) == 1
    at_rest(live)


async def test_the_bytes_of_calls_that_run_are_bounded(live: Scene) -> None:
    """The call that exceeds them still runs, whatever its size; the next one does not."""
    release = trio.Event()

    async def wait(call: ServerCall, data: bytes) -> int:
        await release.wait()
        return len(data)

    add(live, "services.test.wait", wait)
    a = live.join("lab/a")
    server = live.broker.server
    a.call("workspace-manager", "services.test.wait", bytes(1000), session="first")
    room = 3 * a.session.server_call_bytes
    server.limits = replace(server.limits, server_call_bytes_per_peer=room)
    for name, size in (("second", 1000), ("over", 1001), ("next", 0)):
        a.call("workspace-manager", "services.test.wait", bytes(size), session=name)
    await wait_all_tasks_blocked()
    assert a.errors() == [f"RuntimeError: the calls that run hold server_call_bytes_per_peer = {room} bytes; wait"]
    assert a.session.server_call_bytes == room + 1
    release.set()
    await wait_all_tasks_blocked()
    assert a.session.server_call_bytes == 0
    a.call("workspace-manager", "services.test.wait", bytes(2 * room), session="large")
    assert (await a.message_for("large"))["args"] == [2 * room]
    at_rest(live)


async def sweep_for(scene: Scene, seconds: int) -> None:
    """Let time pass as it does in a server: the sweeper looks once a second."""
    for _ in range(seconds):
        await trio.sleep(1)
        scene.broker.sweep()


@pytest.mark.parametrize(("interval", "beats"), [(5.0, [4, 9, 14, 19]), (10, [8, 18]), (0.5, list(range(1, 21)))])
async def test_a_long_call_sends_heartbeats_at_eight_tenths_and_then_each_interval(
    interval: float, beats: list[int], live: Scene, autojump_clock: MockClock
) -> None:
    async def slow(call: ServerCall) -> str:
        await trio.sleep(20.5)
        return "done"

    add(live, "services.test.slow", slow)
    a = live.join("lab/a")
    header = {"type": "method", "to": "workspace-manager", "method": "services.test.slow", "session": "s.1"}
    a.send(header, {"promise": "*", "t": interval})
    started, heard = trio.current_time(), []
    for _ in range(20):
        await sweep_for(live, 1)
        for message in a.received():
            assert (message["method"], message["parent"]) == ("s.1.heartbeat", "s.1")
            assert (message["from"], "args" in message, "session" in message) == (
                "lab/workspace-manager",
                False,
                False,
            )
            heard.append(round(trio.current_time() - started))
    assert heard == beats
    await sweep_for(live, 1)
    assert a.received()[-1]["method"] == "s.1.resolve"
    at_rest(live)
    await sweep_for(live, 30)
    assert a.received() == []


async def test_a_fast_call_sends_no_heartbeat(live: Scene, autojump_clock: MockClock) -> None:
    a = live.join("lab/a")
    assert await a.ask("echo", 1) == 1
    await sweep_for(live, 30)
    assert a.received() == []


async def test_a_call_ends_with_the_connection_of_its_caller() -> None:
    cancelled = trio.Event()

    async def wait(call: ServerCall) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with trio.open_nursery() as nursery:
        scene = Scene(nursery=nursery)
        add(scene, "services.test.wait", wait)
        a = scene.join("lab/a")
        a.call("workspace-manager", "services.test.wait")
        await wait_all_tasks_blocked()
        assert scene.broker.server._running
        a.leave()
        nursery.cancel_scope.cancel()
    assert cancelled.is_set()
    at_rest(scene)
    assert a.session.server_calls == 0


# --- calling --------------------------------------------------------------------------------------------------


class Outgoing:
    """A call of the server's in a task of its own, and how it ended."""

    def __init__(self, scene: Scene, target: Peer, *args: Any, **options: Any) -> None:
        self.outcome: Any = None
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        assert scene.nursery is not None
        scene.nursery.start_soon(self._run, scene, target, args, options)

    async def _run(self, scene: Scene, target: Peer, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        try:
            with self.scope:
                self.outcome = await scene.broker.server.call(
                    target.session, "services.svc.f", list(args), options.pop("kwargs", None), **options
                )
        except (PeerGone, CallTimeout, RemoteError, InvalidArgument) as exc:
            self.outcome = exc
        finally:
            self.done.set()


async def test_the_server_calls_and_gets_the_value(live: Scene) -> None:
    provider = live.join("lab/p")
    call = Outgoing(live, provider, 1, kwargs={"k": 2})
    message = await provider.next_message()
    session = message["session"]
    assert (message["from"], message["to"], message["ws"]) == ("lab/workspace-manager", "lab/p", "lab")
    assert (message["method"], message["args"], message["with_kwargs"]) == ("services.svc.f", [1, {"k": 2}], True)
    assert message["promise"]["resolve"]["_rtarget"] == "lab/workspace-manager"
    assert message["promise"]["resolve"]["_rmethod"] == f"{session}.resolve"
    assert live.broker.server.outbound == {session: provider.session}
    provider.answer(message, [3])
    await call.done.wait()
    assert call.outcome == [3]
    at_rest(live)
    assert not provider.session.inbound


async def test_each_generation_is_called_from_the_address_that_it_trusts(live: Scene) -> None:
    provider = live.join("lab/p", dialect=MODERN)
    Outgoing(live, provider)
    assert (await provider.next_message())["from"] == f"*/{SERVER_ID}"
    source = Address("home", "http")
    Outgoing(live, provider, source=source)
    message = await provider.next_message()
    assert (message["from"], message["promise"]["reject"]["_rtarget"]) == ("home/http", "home/http")


async def test_an_error_of_the_function_arrives_as_its_message(live: Scene) -> None:
    provider = live.join("lab/p")
    call = Outgoing(live, provider)
    trace = 'Traceback (most recent call last):\n  File "/home/p/x.py", line 1, in f\nValueError: boom'
    provider.answer(await provider.next_message(), {"_rtype": "error", "_rvalue": trace}, "reject")
    await call.done.wait()
    assert isinstance(call.outcome, RemoteError)
    assert str(call.outcome) == "ValueError: boom"
    at_rest(live)


@pytest.mark.parametrize("value", [None, 5, [], {}, {"_rvalue": None}, {"_rvalue": ["deep"]}, [[[[]]]]])
async def test_an_error_of_any_shape_is_an_error(value: Any, live: Scene) -> None:
    provider = live.join("lab/p")
    call = Outgoing(live, provider)
    provider.answer(await provider.next_message(), value, "reject")
    await call.done.wait()
    assert isinstance(call.outcome, RemoteError)


async def test_a_call_to_a_provider_that_goes_fails_at_once(live: Scene) -> None:
    provider = live.join("lab/p")
    call = Outgoing(live, provider)
    await provider.next_message()
    provider.leave(clean=False)
    await call.done.wait()
    assert isinstance(call.outcome, PeerGone)
    assert str(call.outcome) == "Target peer lab/p is not connected"
    at_rest(live)
    again = Outgoing(live, provider)
    await again.done.wait()
    assert isinstance(again.outcome, PeerGone)
    at_rest(live)
    assert not provider.session.inbound


async def test_a_call_times_out_without_result_and_heartbeat(live: Scene, autojump_clock: MockClock) -> None:
    provider = live.join("lab/p")
    started = trio.current_time()
    call = Outgoing(live, provider, patience=7)
    message = await provider.next_message()
    for _ in range(3):
        await trio.sleep(6)
        assert not call.done.is_set()
        session = message["session"]
        provider.send({"type": "method", "to": "workspace-manager", "method": f"{session}.heartbeat"})
    await call.done.wait()
    assert isinstance(call.outcome, CallTimeout)
    assert str(call.outcome) == "lab/p gave neither a result nor a heartbeat for 7 s"
    assert trio.current_time() - started == 25
    at_rest(live)


async def test_the_default_patience_is_a_minute(live: Scene, autojump_clock: MockClock) -> None:
    started = trio.current_time()
    call = Outgoing(live, live.join("lab/p"))
    await call.done.wait()
    assert trio.current_time() - started == 60
    assert str(call.outcome) == "lab/p gave neither a result nor a heartbeat for call_seconds = 60"


async def test_cancelling_forgets_the_call_and_its_late_answer_is_refused(live: Scene) -> None:
    provider = live.join("lab/p")
    call = Outgoing(live, provider)
    message = await provider.next_message()
    call.scope.cancel()
    await call.done.wait()
    at_rest(live)
    assert not provider.session.inbound
    provider.answer(message, 1)
    session = message["session"]
    provider.call("workspace-manager", f"{session}.heartbeat", session="beat")
    assert provider.errors() == [
        f"KeyError: Method not found: lab/workspace-manager:{session}.heartbeat, the call is over"
    ]


async def test_cancelling_while_there_is_no_room_forgets_the_call() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(Limits(outbox_bytes=1000), nursery=nursery)
        provider = scene.join("lab/p")
        provider.fill(990)
        call = Outgoing(scene, provider, "x" * 500)
        await wait_all_tasks_blocked()
        assert not call.done.is_set()
        call.scope.cancel()
        await call.done.wait()
        at_rest(scene)
        assert not provider.session.inbound
        nursery.cancel_scope.cancel()


async def test_a_call_waits_for_room_and_a_provider_that_goes_meanwhile_ends_it() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(Limits(outbox_bytes=1000), nursery=nursery)
        stays, goes = scene.join("lab/p"), scene.join("lab/q")
        for provider in (stays, goes):
            provider.fill(990)
        calls = [Outgoing(scene, provider, "x" * 500) for provider in (stays, goes)]
        await wait_all_tasks_blocked()
        stays.transport.take(None)
        stays.answer(await stays.next_message(lambda message: "session" in message), "late")
        goes.leave()
        for call in calls:
            await call.done.wait()
        assert calls[0].outcome == "late"
        assert isinstance(calls[1].outcome, PeerGone)
        at_rest(scene)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("who", ["another client", "another workspace", "the wrong address"])
async def test_nobody_else_answers_a_call_of_the_server(who: str, live: Scene) -> None:
    provider, other, stranger = live.join("lab/p"), live.join("lab/q"), live.join("other/p")
    call = Outgoing(live, provider)
    session = (await provider.next_message())["session"]
    sender, to = {
        "another client": (other, "workspace-manager"),
        "another workspace": (stranger, "lab/workspace-manager"),
        "the wrong address": (provider, f"*/{SERVER_ID}"),
    }[who]
    for name in ("resolve", "reject", "heartbeat"):
        sender.call(to, f"{session}.{name}", 1, session="probe")
        assert "the call is over" in sender.errors()[0]
    await wait_all_tasks_blocked()
    assert not call.done.is_set()
    provider.send({"type": "method", "to": "workspace-manager", "method": f"{session}.resolve"}, {"args": ["right"]})
    await call.done.wait()
    assert call.outcome == "right"


async def test_a_heartbeat_is_confirmed_to_those_who_wait_for_that(live: Scene) -> None:
    provider = live.join("lab/p")
    call = Outgoing(live, provider)
    message = await provider.next_message()
    provider.call("workspace-manager", f"{message['session']}.heartbeat", session="b.1")
    confirmed = await provider.next_message()
    assert (confirmed["method"], confirmed["args"]) == ("b.1.resolve", [None])
    provider.answer(message, 1)
    await call.done.wait()


@pytest.mark.parametrize("body", [b"\xc1", b"\x81\xa4args\x05"])
async def test_an_answer_that_cannot_be_read_ends_the_call(body: bytes, live: Scene) -> None:
    provider = live.join("lab/p")
    call = Outgoing(live, provider)
    session = (await provider.next_message())["session"]
    provider.send({"type": "method", "to": "workspace-manager", "method": f"{session}.resolve"}, body)
    await call.done.wait()
    assert "cannot be read" in str(call.outcome)
    at_rest(live)


# --- large messages -------------------------------------------------------------------------------------------


class Receiver:
    """A client's message cache, and what it was sent in parts. JavaScript clients count on every position."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.parts: dict[str, list[bytes]] = {}
        self.log: list[tuple[str, Any, Any]] = []
        self.whole: list[dict[str, Any]] = []

    def __call__(self, message: dict[str, Any]) -> Any:
        operation = message["method"].removeprefix(CACHE_PREFIX)
        assert "with_kwargs" not in message
        key, *data, heartbeat = message["args"]
        self.log.append((operation, key, heartbeat))
        if operation == "create":
            self.parts[key] = []
        elif operation == "append":
            assert len(data[0]) <= CHUNK
            self.parts[key].append(data[0])
        else:
            assert operation == "process"
            unpacker = msgpack.Unpacker(max_buffer_size=0)
            unpacker.feed(b"".join(self.parts.pop(key)))
            self.whole.append({**unpacker.unpack(), **unpacker.unpack()})


async def test_a_result_of_the_exact_size_goes_in_one_piece_and_a_byte_more_in_parts(live: Scene) -> None:
    a = live.join("lab/a")
    receiver = Receiver(a)
    assert live.nursery is not None
    a.call("workspace-manager", "services.default.echo", b"x" * 262_000, session="s1")
    await wait_all_tasks_blocked()
    size = len(a.transport.frames()[-1])
    a.received()
    room = 262_000 + CHUNK + 1024 - size
    a.call("workspace-manager", "services.default.echo", b"x" * room, session="s2")
    await wait_all_tasks_blocked()
    assert len(a.transport.frames()[-1]) == CHUNK + 1024
    assert a.received()[-1]["args"] == [b"x" * room]
    live.nursery.start_soon(a.serve, receiver)
    a.call("workspace-manager", "services.default.echo", b"x" * (room + 1), session="s3")
    await wait_all_tasks_blocked()
    assert [entry[0] for entry in receiver.log] == ["create", "append", "append", "process"]
    at_rest(live)


@pytest.mark.parametrize("size", [300_000, 3_000_000])
async def test_a_large_result_goes_in_parts_that_keep_the_callers_session_alive(size: int, live: Scene) -> None:
    a = live.join("lab/a")
    receiver = Receiver(a)
    assert live.nursery is not None
    live.nursery.start_soon(a.serve, receiver)
    a.call("workspace-manager", "services.default.echo", b"x" * size, session="s.1")
    await wait_all_tasks_blocked()
    (message,) = receiver.whole
    assert (message["method"], message["parent"], message["args"]) == ("s.1.resolve", "s.1", [b"x" * size])
    assert {(key, heartbeat) for _, key, heartbeat in receiver.log} == {("s.1", True)}
    assert all(len(frame) < 1 << 20 for frame in a.transport.frames())
    at_rest(live)


async def test_a_large_argument_goes_in_parts_under_a_key_of_its_own(live: Scene) -> None:
    provider = live.join("lab/p")
    receiver = Receiver(provider)
    assert live.nursery is not None
    live.nursery.start_soon(provider.serve, receiver)
    call = Outgoing(live, provider, b"x" * 1_000_000)
    await wait_all_tasks_blocked()
    (message,) = receiver.whole
    assert message["args"] == [b"x" * 1_000_000]
    assert {heartbeat for _, _, heartbeat in receiver.log} == {False}
    assert receiver.log[0][1] != message["session"]
    provider.answer(message | {"from": "lab/workspace-manager"}, "got it")
    await call.done.wait()
    assert call.outcome == "got it"
    at_rest(live)


@pytest.mark.parametrize("step", ["create", "append", "process"])
async def test_a_receiver_that_refuses_a_part_of_a_result_gets_an_error_instead(step: str, live: Scene) -> None:
    a = live.join("lab/a")
    assert live.nursery is not None

    def refuse(message: dict[str, Any]) -> None:
        if message["method"] == CACHE_PREFIX + step:
            raise RuntimeError("session does not exist anymore")

    live.nursery.start_soon(a.serve, refuse)
    a.call("workspace-manager", "services.default.echo", b"x" * 300_000, session="s.1")
    message = await a.message_for("s.1")
    assert message["method"] == "s.1.reject"
    assert "session does not exist anymore" in message["args"][0]["_rvalue"]
    at_rest(live)


async def test_a_caller_that_goes_while_its_result_is_sent_leaves_nothing(live: Scene) -> None:
    a = live.join("lab/a")
    a.call("workspace-manager", "services.default.echo", b"x" * 300_000, session="s.1")
    assert (await a.next_message())["method"] == CACHE_PREFIX + "create"
    a.leave()
    await wait_all_tasks_blocked()
    at_rest(live)


# --- the server as a receiver of parts ------------------------------------------------------------------------


async def send_in_parts(peer: Peer, package: bytes, *, key: str = "K", style: str, size: int = 1000) -> None:
    """As the three generations do it: A by keyword, B and C by position, C with ``set`` in any order."""
    hb: dict[str, Any] = {"heartbeat": False} if style == "A" else {}
    tail = () if style == "A" else (False,)
    parts = [package[start : start + size] for start in range(0, len(package), size)]
    await peer.ask(CACHE_PREFIX + "create", key, *tail, **hb)
    if style == "C":
        for index in reversed(range(len(parts))):
            await peer.ask(CACHE_PREFIX + "set", key, index, parts[index], *tail)
    else:
        for part in parts:
            await peer.ask(CACHE_PREFIX + "append", key, part, *tail, **hb)
    await peer.ask(CACHE_PREFIX + "process", key, *tail, **hb)


@pytest.mark.parametrize("style", ["A", "B", "C"])
async def test_a_large_call_reaches_the_server_in_parts(style: str, live: Scene) -> None:
    a = live.join("lab/a")
    header = {"type": "method", "to": "ignored/x", "from": "forged", "method": "services.default.echo", "session": "s9"}
    await send_in_parts(a, pack_message(header, {"args": [b"y" * 5000], "promise": "*"}), style=style)
    assert (await a.message_for("s9"))["args"] == [b"y" * 5000]
    assert not a.session.chunks.messages
    assert a.session.chunks.size == 0
    at_rest(live)


async def test_a_call_in_parts_may_be_larger_than_the_room_for_calls(live: Scene) -> None:
    """As one that is whole: it runs within the call that says that it is complete."""
    a = live.join("lab/a")
    live.broker.server.limits = replace(live.broker.server.limits, server_call_bytes_per_peer=3000)
    header = {"type": "method", "to": "x", "method": "services.default.echo", "session": "s9"}
    await send_in_parts(a, pack_message(header, {"args": [b"y" * 5000], "promise": "*"}), style="B")
    assert (await a.message_for("s9"))["args"] == [b"y" * 5000]
    at_rest(live)


async def test_a_large_answer_reaches_the_server_in_parts_and_each_part_keeps_the_call_alive(
    live: Scene, autojump_clock: MockClock
) -> None:
    provider = live.join("lab/p")
    call = Outgoing(live, provider, patience=10)
    session = (await provider.next_message())["session"]
    package = pack_message({"type": "method", "to": "x", "method": f"{session}.resolve"}, {"args": [b"z" * 5000]})
    await provider.ask(CACHE_PREFIX + "create", session, True)
    for start in range(0, len(package), 1000):
        await trio.sleep(9)
        await provider.ask(CACHE_PREFIX + "append", session, package[start : start + 1000], True)
    await provider.ask(CACHE_PREFIX + "process", session, True)
    await call.done.wait()
    assert call.outcome == b"z" * 5000
    at_rest(live)


async def test_a_wrong_part_is_refused(live: Scene) -> None:
    a = live.join("lab/a")
    await a.ask(CACHE_PREFIX + "create", "K")
    rows: list[tuple[str, tuple[Any, ...], str]] = [
        ("create", (5,), "ValueError: key must be text"),
        ("create", ([],), "ValueError: key must be text"),
        ("create", ("K",), "ValueError: Message with the same key (K) already exists"),
        ("append", ("K", "text"), "ValueError: data must be bytes"),
        ("append", ("none", b"x"), "KeyError: Message with key none does not exists."),
        ("set", ("K", -1, b"x"), "ValueError: index must be a whole number"),
        ("set", ("K", "0", b"x"), "ValueError: index must be a whole number"),
        ("set", ("K", 2**60, b"x"), "ValueError: index must be a whole number"),
        ("process", ("none",), "KeyError: Message with key none does not exists."),
        ("process", ("K",), "ValueError: the message is not msgpack"),
        ("remove", ("none",), "KeyError: Message with key none does not exists."),
    ]
    for operation, args, complaint in rows:
        with pytest.raises(Rejected) as caught:
            await a.ask(CACHE_PREFIX + operation, *args)
        assert str(caught.value) == complaint


async def test_a_part_inside_a_message_in_parts_is_refused(live: Scene) -> None:
    a = live.join("lab/a")
    header = {"type": "method", "to": "x", "method": CACHE_PREFIX + "process"}
    with pytest.raises(Rejected, match="a message in parts cannot itself be a part"):
        await send_in_parts(a, pack_message(header, {"args": ["K"]}), style="B")


async def test_the_parts_that_wait_are_bounded_in_number_and_bytes_and_belong_to_one_session() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(Limits(chunked_messages_per_peer=2, chunked_bytes_per_peer=2000), nursery=nursery)
        a, b = scene.join("lab/a"), scene.join("lab/b")
        await a.ask(CACHE_PREFIX + "create", "one")
        await a.ask(CACHE_PREFIX + "create", "two")
        with pytest.raises(Rejected, match="chunked_messages_per_peer = 2"):
            await a.ask(CACHE_PREFIX + "create", "three")
        await a.ask(CACHE_PREFIX + "create", "two", False, True)
        with pytest.raises(Rejected, match="Message with key one does not exists"):
            await b.ask(CACHE_PREFIX + "append", "one", b"x")
        with pytest.raises(Rejected, match="chunked_bytes_per_peer = 2000"):
            await a.ask(CACHE_PREFIX + "append", "one", b"x" * 2001)
        assert list(a.session.chunks.messages) == ["two"]
        nursery.cancel_scope.cancel()
