"""What a peer cannot do to others, whatever it sends, while neighbours of both generations mind their own business."""

from __future__ import annotations

import signal
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import msgpack
import pytest
import trio

from tests.clients import raw
from tests.clients.conftest import RunClient, StartClient, StartServer
from tests.clients.raw import MANAGER, RawPeer, Refused, header, masked, refused
from tests.clients.scripted import SCRIPTS, passes, worker_of
from tests.house.environments import GENERATIONS
from tests.house.processes import Server

#: Milliseconds that no call of a neighbour may take, whatever happens; alone it takes about 5.
NEIGHBOURS_PATIENCE = 1000


@pytest.fixture
async def neighbours(start_client: StartClient, server: Server) -> AsyncIterator[None]:
    """One client of each generation that calls its own service all the time; at the end, nobody was hurt."""
    worker = worker_of(server)
    async with AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(start_client(generation, SCRIPTS / "neighbour.py", server.url))
            for generation in GENERATIONS
        ]
        for neighbour in running:
            await neighbour.wait_for("^ready$")
        yield
        for neighbour in running:
            neighbour.send_signal(signal.SIGTERM)
            told = await neighbour.wait_for(r"^echoed (\d+) slowest (\d+) ms$")
            assert int(told[1]) > 0
            assert int(told[2]) < NEIGHBOURS_PATIENCE, told[0]
    assert worker_of(server) == worker


# --- forged identity --------------------------------------------------------------------------------------------


KEEPER = """
    import asyncio, sys
    from imjoy_rpc.hypha import connect_to_server

    def kept(context=None):
        print("the protected function ran", flush=True)
        return "secret"

    def shown(*args, context=None):
        return {key: context[key] for key in ("from", "to", "method", "user")}

    async def main():
        server = await connect_to_server({"server_url": sys.argv[1], "client_id": "keeper"})
        config = {"require_context": True}
        await server.register_service({"id": "kept", "config": config, "kept": kept})
        config = {"require_context": True, "visibility": "public"}
        await server.register_service({"id": "shown", "config": config, "shown": shown})
        print("ready", server.config.workspace, await server.generate_token(), flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


@pytest.fixture(params=GENERATIONS)
async def keeper(request: pytest.FixtureRequest, start_client: StartClient, server: Server) -> AsyncIterator[str]:
    """The address of a client with one protected and one public function; the protected one must never run."""
    async with start_client(request.param, KEEPER, server.url) as running:
        workspace = (await running.wait_for(r"^ready (\S+) \S+$"))[1]
        yield f"{workspace}/keeper"
        async with raw.connected(server.url) as peer:
            assert (await peer.call(f"{workspace}/keeper", "services.shown.shown"))["from"] == peer.name
        assert "the protected function ran" not in running.stdout


FORGED_USER = {"id": "root", "is_anonymous": False, "roles": ["admin"]}


async def test_the_header_says_who_calls(neighbours: None, keeper: str, server: Server) -> None:
    async with raw.connected(server.url) as peer:
        main = {"from": f"{keeper}", "user": FORGED_USER, "ws": keeper.partition("/")[0], "ctx": {"user": FORGED_USER}}
        await peer.send({**header(keeper, "services.shown.shown", "s"), **main}, peer.body("s"))
        seen = await peer.answer("s")
        assert (seen["from"], seen["to"]) == (peer.name, keeper)
        assert seen["user"]["id"] == peer.workspace


FORGED: list[dict[str, Any]] = [
    {"method": "services.kept.kept"},
    {"method": "services.kept.kept", "from": "{workspace}/keeper"},
    {"from": "{workspace}/keeper"},
    {"ctx": {"user": FORGED_USER, "from": "x/y", "to": "x/y", "method": "x"}},
    {"user": FORGED_USER},
    {"ws": "{workspace}"},
    {"to": "x/y"},
    {"type": "other"},
    {"session": "x"},
    {"parent": "x"},
]


@pytest.mark.parametrize("forged", FORGED, ids="+".join)
async def test_the_body_cannot_say_what_the_header_says(forged: dict[str, Any], keeper: str, server: Server) -> None:
    """Clients merge the body over the header, and it wins (``protocol.md`` 2.1)."""
    workspace = keeper.partition("/")[0]
    filled = {key: text.format(workspace=workspace) if isinstance(text, str) else text for key, text in forged.items()}
    async with raw.connected(server.url) as peer:
        bodies: list[Any] = [{**peer.body("s0"), **filled}, {**filled, **peer.body("s1")}]
        bodies.append([[key, value] for key, value in {**peer.body("s2"), **filled}.items()])
        for number, extra in enumerate(bodies):
            await peer.send(header(keeper, "services.shown.shown", f"s{number}"), extra)
            with refused("ValueError"):
                await peer.answer(f"s{number}")
        for number, extra in enumerate(bodies):
            package = packed(header(keeper, "services.shown.shown", f"p{number}"), extra)
            with refused("ValueError"):
                await peer.send_in_parts(keeper, package)


def packed(*values: Any) -> bytes:
    """The *values* of a message, one behind the other."""
    return b"".join(map(msgpack.packb, values))


async def test_row_9_a_protected_function_cannot_be_called_from_elsewhere(
    neighbours: None, keeper: str, server: Server
) -> None:
    """Neither by a message to it, nor by the same message in parts."""
    workspace = keeper.partition("/")[0]
    methods = ["services.kept.kept", "services.built-in.register_service", "services.nothing.x", "services.kept"]
    async with raw.connected(server.url) as peer:
        for number, method in enumerate(methods):
            with refused("is not connected"):
                await peer.call(keeper, method)
            package = packed(header(keeper, method, f"p{number}"), peer.body(f"p{number}"))
            with refused("is not connected"):
                await peer.send_in_parts(keeper, package)
        with refused("Permission denied for service: kept"):
            await peer.call(keeper, "services.built-in.get_service", "kept")
        with refused("PermissionError: Permission denied for service: kept"):
            await peer.call("workspace-manager", "services.default.get_service", f"{keeper}:kept")
        for method in ("list_services", "generate_token", "list_clients", "get_summary", "update_client_info"):
            with refused(f"PermissionError: Permission denied for workspace {workspace}"):
                await peer.call(f"{workspace}/workspace-manager", f"services.default.{method}")


# --- messages in parts ------------------------------------------------------------------------------------------


async def test_a_message_in_parts_arrives(keeper: str, server: Server) -> None:
    async with raw.connected(server.url) as peer:
        package = packed(header(keeper, "services.shown.shown", "s"), peer.body("s", ["x" * 1000]))
        await peer.send_in_parts(keeper, package, size=300)
        seen = await peer.answer("s")
        assert (seen["from"], seen["user"]["id"]) == (peer.name, peer.workspace)


async def test_tricks_with_parts(neighbours: None, keeper: str, server: Server) -> None:
    async with raw.connected(server.url) as peer, raw.connected(server.url) as friend:
        good = packed(header(keeper, "services.shown.shown", "good"), peer.body("good"))
        evil = packed({**header(keeper, "services.kept.kept", "evil"), "from": keeper}, peer.body("evil"))

        async def fails(operation: str, *args: Any, by: RawPeer = peer, words: str = "ValueError") -> None:
            with refused(words):
                await by.cache(keeper, operation, *args)

        for operation, args in (("append", [evil]), ("process", []), ("remove", []), ("set", [0, evil])):
            await fails(operation, "never begun", *args)
        await peer.cache(keeper, "create", "empty")
        await fails("process", "empty")
        await peer.cache(keeper, "create", "header in two")
        await fails("append", "header in two", good[:50])
        await peer.cache(keeper, "create", "short")
        await peer.cache(keeper, "append", "short", good[:-5])
        await fails("process", "short")
        await peer.cache(keeper, "create", "long")
        await fails("append", "long", good + evil)
        await peer.cache(keeper, "create", "refused, then more")
        await fails("append", "refused, then more", evil, words="not connected")
        await fails("append", "refused, then more", good)
        await peer.cache(keeper, "create", "two ways")
        await fails("set", "two ways", 0, good, words="")  # the keeper has no such function
        await fails("append", "two ways", evil)
        await peer.cache(keeper, "create", "a friend's help")
        await fails("append", "a friend's help", evil, by=friend)
        await peer.cache(keeper, "append", "a friend's help", good)
        await peer.cache(keeper, "process", "a friend's help")
        assert (await peer.answer("good"))["from"] == peer.name
        nested = packed(header(keeper, "services.built-in.message_cache.process", "n"), peer.body("n", ["never begun"]))
        await peer.cache(keeper, "create", "nested")
        await fails("append", "nested", nested)
        await fails("create", 5)
        await fails("append", "nested", "text")


async def test_an_abandoned_message_makes_room_for_new_ones(keeper: str, server: Server) -> None:
    async with raw.connected(server.url) as peer:
        for number in range(70):
            await peer.cache(keeper, "create", f"abandoned{number}")
        await peer.send_in_parts(keeper, packed(header(keeper, "services.shown.shown", "s"), peer.body("s")))
        assert (await peer.answer("s"))["from"] == peer.name


async def test_tricks_with_parts_for_the_server(neighbours: None, server: Server) -> None:
    async with raw.connected(server.url) as peer:
        manager = "workspace-manager"
        echo = packed(header(manager, "services.default.echo", "s"), peer.body("s", ["x" * 1000]))
        await peer.send_in_parts(manager, echo)
        assert await peer.answer("s") == "x" * 1000
        for operation, args in (("append", [echo]), ("process", []), ("remove", [])):
            with refused("does not exists"):
                await peer.cache(manager, operation, "never begun", *args)
        for junk in (b"", b"junk", packed({}), packed(header(manager, "services.built-in.message_cache.process"))):
            with refused("ValueError"):
                await peer.send_in_parts(manager, junk)
        for number in range(64):
            await peer.cache(manager, "create", str(number))
        with refused("chunked_messages_per_peer = 64"):
            await peer.cache(manager, "create", "one more")


async def test_the_bytes_in_parts_are_bounded(start_server: StartServer) -> None:
    with start_server("--limit", "chunked_bytes_per_peer=100000") as small:
        async with raw.connected(small.url) as peer:
            with refused("chunked_bytes_per_peer = 100000"):
                await peer.send_in_parts("workspace-manager", b"x" * 200_000, size=30_000)
            echo = packed(header("workspace-manager", "services.default.echo", "s"), peer.body("s", ["x" * 90_000]))
            await peer.send_in_parts("workspace-manager", echo, size=30_000)
            assert len(await peer.answer("s")) == 90_000


# --- what a client of imjoy-rpc could not survive ---------------------------------------------------------------


def shown(peer: RawPeer, session: str, value: Any) -> bytes:
    """A body that calls with *value*."""
    return packed(peer.body(session, [value]))


@pytest.mark.parametrize("what", ["map", "utf-8", "junk", "cut", "deep", "list", "two", "date", "large", "larger"])
async def test_a_body_that_its_receiver_cannot_read_is_not_delivered(
    what: str, neighbours: None, keeper: str, server: Server
) -> None:
    """imjoy-rpc for Python stops listening for ever when it meets one; the fixture asks the keeper afterwards."""
    async with raw.connected(server.url) as peer:
        extra = {
            "map": shown(peer, "s", {1: 2}),
            "utf-8": shown(peer, "s", "AAAA").replace(b"AAAA", b"\xff\xfe\xff\xff"),
            "junk": b"\xc1" * 50,
            "cut": shown(peer, "s", "AAAA")[:-3],
            "deep": shown(peer, "s", "AAAA").replace(b"\xa4AAAA", b"\x91" * 3000 + b"\x90"),
            "list": packed([1]),
            "two": shown(peer, "s", 1) * 2,
            "date": shown(peer, "s", "AAAA").replace(b"\xa4AAAA", b"\xd4\xff\x00"),
            "large": shown(peer, "s", b"x" * 1_024_000),
            "larger": shown(peer, "s", b"x" * 3_000_000),
        }[what]
        await peer.websocket.send_message(packed(header(keeper, "services.shown.shown", "s")) + extra)
        with refused("RuntimeError" if what.startswith("large") else "ValueError"):
            await peer.answer("s")


async def test_an_answer_that_its_receiver_cannot_read_fails_the_call(run_client: RunClient, server: Server) -> None:
    """A provider that answers with what its caller cannot take: the caller hears it, and goes on."""
    for generation in GENERATIONS:
        await passes(run_client, generation, "unreadable.py", server.url)


# --- garbage ----------------------------------------------------------------------------------------------------

ECHO = "services.default.echo"


def nested(depth: int, *, maps: bool = False) -> bytes:
    """msgpack of lists or maps, one in another."""
    return (b"\x81\xa1a" if maps else b"\x91") * depth + b"\xc0"


MALFORMED = {
    "empty": b"",
    "nil": packed(None),
    "number": packed(5),
    "text": packed("text"),
    "list": packed([1, 2]),
    "reserved byte": b"\xc1",
    "cut": packed({"to": "x", "type": "method"})[:-3],
    "no end": b"\xdf\xff\xff\xff\xff",
    "huge text": b"\xdb\xff\xff\xff\xff" + b"x" * 100,
    "extension": packed(msgpack.ExtType(5, b"x" * 100)),
    "not UTF-8": b"\x82\xa2to\xa2\xff\xff\xa4type\xa6method",
    "number as key": b"\x82\x05\x05\xa2to\xa1x",
    "nothing in it": packed({}),
    "no target": packed({"type": "method", "method": ECHO}),
    "no type": packed({"to": MANAGER, "method": ECHO}),
    "no method": packed({"to": MANAGER, "type": "method"}),
    "empty target": packed({"to": "", "type": "method", "method": ECHO}),
    "target of a wrong type": packed({"to": 5, "type": "method", "method": ECHO}),
    "type of a wrong type": packed({"to": MANAGER, "type": [], "method": ECHO}),
    "method of a wrong type": packed({"to": MANAGER, "type": "method", "method": {}}),
    "session of a wrong type": packed({"to": MANAGER, "type": "method", "method": ECHO, "session": 5}),
    "too many fields": packed({"to": MANAGER, "type": "method", "method": ECHO, **{str(n): n for n in range(100)}}),
    "nested header": b"\x82\xa2to\xa1x\xa1a" + nested(500),
    "very nested header": b"\x82\xa2to\xa1x\xa1a" + nested(100_000),
    "large header": packed({"to": MANAGER, "type": "method", "method": ECHO, "more": "x" * 100_000}),
}


async def test_malformed_messages_are_dropped(neighbours: None, server: Server) -> None:
    async with raw.connected(server.url) as peer:
        for name, message in MALFORMED.items():
            for again in (message, message + packed({"args": []})):
                await peer.websocket.send_message(again)
            assert await peer.call(MANAGER, ECHO, name) == name


async def test_messages_of_unknown_types_hurt_nobody(neighbours: None, keeper: str, server: Server) -> None:
    workspace = keeper.partition("/")[0]
    async with raw.connected(server.url) as peer:
        for kind in ("", "x" * 10_000, "force-exit", "peer_not_found", "disconnect", "service-updated", "error"):
            for to in (keeper, MANAGER, "*", f"{workspace}/*", f"{workspace}/{MANAGER}", "*/x", peer.name):
                await peer.send({"type": kind, "to": to, "session": "s", "data": {"id": "keeper"}}, {"args": [1]})
        assert await peer.call(MANAGER, ECHO, "x") == "x"


@pytest.mark.parametrize(
    "to",
    ["nobody", "nowhere/nobody", "{ws}/nobody", "*/nobody", "{ws}/*", "a/b/c", "/", "x/", "/x", "*", "\n", "x" * 5000],
)
async def test_calls_to_nobody_fail_at_once(to: str, server: Server) -> None:
    async with raw.connected(server.url) as peer:
        with refused(""):
            await peer.call(to.format(ws=peer.workspace), "services.x.y")
        await peer.send(header(to, "x.resolve"), {"args": [1]})  # nobody waits for an answer to this
        assert await peer.call(MANAGER, ECHO, "x") == "x"
        assert sum(message["method"].endswith(".reject") for message in peer.received) == 1


# --- websocket frames (RFC 6455) --------------------------------------------------------------------------------

#: What breaks the websocket protocol -> the close code that answers it.
BROKEN = {
    "no mask": (b"\x82\x03abc", 1002),
    "reserved bit": (masked(2, b"abc", reserved=0x40), 1002),
    "reserved opcode": (masked(3, b"abc"), 1002),
    "long ping": (masked(9, b"x" * 126), 1002),
    "ping in two": (masked(9, b"x", final=False), 1002),
    "continuation of nothing": (masked(0, b"x"), 1002),
    "message inside a message": (masked(2, b"x", final=False) + masked(2, b"x"), 1002),
    "text": (masked(1, b"{}"), 1003),
    "text that is not UTF-8": (masked(1, b"\xff\xff"), 1007),
    "close code that nobody may send": (masked(8, struct.pack(">H", 1005)), 1002),
    "close of one byte": (masked(8, b"x"), 1002),
    "too large": (masked(2, b"x" * (17 * 2**20)), 1009),
    "too large in parts": (masked(2, b"x" * 2**20, final=False) + masked(0, b"x" * 2**20, final=False) * 16, 1009),
    "announced as endless": (b"\x82\xff\x7f" + b"\xff" * 7 + bytes(4), 1009),
}


async def test_broken_frames_end_their_own_connection(neighbours: None, server: Server) -> None:
    for name, (data, code) in BROKEN.items():
        async with raw.upgraded(server.url) as stream:
            with trio.fail_after(raw.PATIENCE), suppress(trio.BrokenResourceError):
                await stream.send_all(data)
                await stream.send_eof()
            with trio.fail_after(raw.PATIENCE):
                answer = b"".join([chunk async for chunk in stream])
            assert answer[:1] == b"\x88", name
            assert struct.unpack(">H", answer[2:4]) == (code,), name


async def test_frames_of_a_byte_each_are_a_message(neighbours: None, server: Server) -> None:
    message = packed(header(MANAGER, ECHO, "s"), {"args": ["in pieces"], "promise": "*"})
    async with raw.upgraded(server.url) as stream:
        await stream.send_all(masked(2, b"", final=False))
        for byte in message:
            await stream.send_all(masked(0, bytes((byte,)), final=False) + masked(9, b"ping"))
        await stream.send_all(masked(0, b""))
        answer = b""
        with trio.fail_after(raw.PATIENCE):
            while b"in pieces" not in answer:
                answer += await stream.receive_some()
        assert b"\x8a\x04ping" in answer  # one pong may answer several pings (RFC 6455 section 5.5.3)


# --- calls of the server's own functions ------------------------------------------------------------------------

STRANGE: list[list[Any]] = [
    [],
    [None],
    [5],
    [-(2**63)],
    [float("nan")],
    [""],
    ["x" * 100_000],
    ["\x00/../:*"],
    [b"bytes"],
    [[]],
    [[[[]]]],
    [{}],
    [{"id": 5, "services": 5, "name": 5, "config": 5, "workspace": 5, "scopes": 5, "expires_in": "x", "client_id": []}],
    [{"id": "x", "services": [5], "name": "", "scopes": [5], "expires_in": -1, "workspace": "x", "owners": "x"}],
    [{"id": {}, "name": {}, "email": "x@y", "scopes": ["*"], "permission": [], "visibility": []}],
    [{"visibility": []}],
    [{"workspace": {}, "scopes": None}],
    [{"permission": "x", "description": 5, "persistent": []}],
    [{"_rtype": "method", "_rtarget": 5, "_rmethod": 5}],
    [{"_rtype": {}}, {"_rtype": "ndarray", "_rvalue": 5}],
    [{"a": 1}, {"a": 1}, {"a": 1}, {"a": 1}, {"a": 1}],
    [True, False],
]


async def test_strange_arguments_are_answered_in_one_line(neighbours: None, server: Server) -> None:
    async with raw.connected(server.url) as peer:
        functions = await peer.call(MANAGER, "services.built-in.get_service", "default")
        paths = sorted(value["_rmethod"] for value in functions.values() if "_rmethod" in value)
        assert len(paths) > 15
        for path in (*paths, "services.built-in.ping", "services.built-in.get_service"):
            for args in STRANGE:
                with suppress(Refused):
                    await peer.call(MANAGER, path, *args)
            with pytest.raises(Refused, match=r"argument|Permission denied"):  # what only administrators may call
                await peer.call(MANAGER, path, **{"no such argument": 1})
        assert await peer.call(MANAGER, ECHO, "x") == "x"


@pytest.mark.parametrize("maps", [False, True], ids=["lists", "maps"])
@pytest.mark.parametrize("depth", [100, 300, 600, 1000, 5000, 100_000])
async def test_deep_nesting_ends_in_an_answer(depth: int, maps: bool, neighbours: None, server: Server) -> None:
    async with raw.connected(server.url) as peer:
        functions = ["echo", "get_service", "list_services", "register_service", "update_client_info", "generate_token"]
        for number, name in enumerate([*functions, "create_workspace", "set", "log"]):
            message = packed({**header(MANAGER, f"services.default.{name}", f"d{number}")})
            extra = packed(peer.body(f"d{number}", ["AAAA"])).replace(b"\xa4AAAA", nested(depth, maps=maps))
            await peer.websocket.send_message(message + extra)
            with suppress(Refused):
                await peer.answer(f"d{number}")
        await peer.call(MANAGER, "services.default.list_services")
        assert await peer.call(MANAGER, ECHO, "x") == "x"


@pytest.mark.parametrize(
    "method",
    [
        "services.default.__class__",
        "services.default.echo.__call__",
        "services.__init__",
        "services.default",
        "services..",
        "services.default.echo.x",
        "services.default.0",
        "services.built_in_with_api_version",
        "built_in_with_api_version",
        "__class__.x",
        "x",
    ],
)
async def test_only_registered_paths_are_functions(method: str, server: Server) -> None:
    async with raw.connected(server.url) as peer:
        with refused("KeyError: Method not found"):
            await peer.call(MANAGER, method)


async def test_two_hundred_calls_that_wait(neighbours: None, server: Server) -> None:
    """A provider that never answers its look-ups: its callers are limited, and fail when it leaves."""
    async with raw.connected(server.url) as caller:
        token = await caller.call(MANAGER, "services.default.generate_token")
        async with raw.connected(server.url, workspace=caller.workspace, token=token) as silent:
            silent.silent = True
            services = [{"id": f"{silent.client}:silent", "type": "x", "name": "x", "config": {}}]
            await silent.call(
                MANAGER, "services.default.update_client_info", {"id": silent.client, "services": services}
            )
            for number in range(200):
                await caller.send(
                    header(MANAGER, "services.default.get_service", f"w{number}"), caller.body(f"w{number}", ["silent"])
                )
            for number in range(100, 200):
                with refused("server_calls_per_peer = 100"):
                    await caller.answer(f"w{number}")
        for number in range(100):
            with refused(f"{silent.name} is not connected"):
                await caller.answer(f"w{number}")
        assert await caller.call(MANAGER, ECHO, "x") == "x"


# --- identities -------------------------------------------------------------------------------------------------


async def reconnection_token(peer: RawPeer) -> str:
    return str((await peer.call(MANAGER, "services.default.get_connection_info"))["reconnection_token"])


async def is_let_in(server: Server, **parameters: str) -> bool:
    with suppress(raw.NotLetIn):
        async with raw.upgraded(server.url, **parameters):
            return True
    return False


async def test_a_reconnection_token_is_good_for_one_thing(server: Server) -> None:
    async with raw.connected(server.url) as peer:
        token, access = await reconnection_token(peer), await peer.call(MANAGER, "services.default.generate_token")
        own = {"client_id": peer.client, "reconnection_token": token}
        wrong = [
            {"reconnection_token": token},
            {**own, "reconnection_token": f"{token}x"},
            {**own, "reconnection_token": access},
            {"token": token},
            {"token": token, "workspace": peer.workspace},
            {"client_id": peer.client, "token": access, "workspace": peer.workspace},
        ]
        for parameters in wrong:
            assert not await is_let_in(server, **parameters), parameters
        assert await peer.call(MANAGER, ECHO, "still here") == "still here"
    assert not await is_let_in(server, **own), "the session has said goodbye"


async def test_the_newest_holder_of_a_session_has_it(server: Server) -> None:
    async with raw.connected(server.url) as old:
        service = {"id": f"{old.client}:mine", "type": "x", "name": "x", "config": {}}
        await old.call(MANAGER, "services.default.update_client_info", {"id": old.client, "services": [service]})
        token = await reconnection_token(old)
        async with raw.connected(server.url, client_id=old.client, reconnection_token=token) as new:
            assert new.name == old.name
            assert await old.closed() == 1012
            (listed,) = await new.call(MANAGER, "services.default.list_services")
            assert listed["id"] == f"{old.name}:mine"


# --- a peer that does not read ----------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_peer_that_stops_reading_is_cut_and_hurts_nobody(
    start_server: StartServer, start_client: StartClient
) -> None:
    """Its callers wait for room a bounded while, then they are told; others are served meanwhile."""
    with start_server("--limit", "stall_seconds=2", "--limit", "outbox_bytes=2000000") as server:
        async with (
            raw.connected(server.url) as caller,
            start_client(GENERATIONS[1], SCRIPTS / "neighbour.py", server.url) as neighbour,
        ):
            await neighbour.wait_for("^ready$")
            token = await caller.call(MANAGER, "services.default.generate_token")
            joining = {"client_id": "stalled", "workspace": caller.workspace, "token": token}
            async with raw.upgraded(server.url, **joining):
                stalled = f"{caller.workspace}/stalled"
                for number in range(40):
                    extra = caller.body(f"c{number}", [b"x" * 500_000])
                    await caller.send(header(stalled, "services.x.y", f"c{number}"), extra)
                for number in range(40):
                    with refused(f"{stalled} is not connected"):
                        await caller.answer(f"c{number}")
            neighbour.send_signal(signal.SIGTERM)
            told = await neighbour.wait_for(r"^echoed (\d+) slowest (\d+) ms$")
            assert int(told[2]) < NEIGHBOURS_PATIENCE, told[0]
