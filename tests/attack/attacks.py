"""The rows of the neighbour test: each bad thing that a connection can do, by name (``docs/robustness.md``).

An attack is what one connection does from its beginning to its end, which it asserts: an attack that the server does
not take as it should fails its row. Attackers repeat it for as long as the row lasts.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlencode

import msgpack
import trio

from tests.clients.raw import MANAGER, NotLetIn, header, masked
from tests.soak.legacy_peer import dial, reset

Attack = Callable[[int], Awaitable[None]]

MIB = 2**20
#: Where an HTTP request is read whole and then answered 404: nobody offers this.
NOWHERE = "/public/services/nothing/function"
FORM = "application/x-www-form-urlencoded"

_ECHO, _UPDATE = "services.default.echo", "services.default.update_client_info"
_FRAMES = 4000  # of a flood that is one connection's life
_DRIPS, _DRIP_SECONDS = 20, 0.01


@dataclass(frozen=True)
class Row:
    """An *attack*, and how many *connections* make it at once."""

    attack: Attack
    connections: int = 2


# --- connections --------------------------------------------------------------------------------------------------


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode() + body


def upgrade_request(*headers: str, **query: str) -> bytes:
    path = f"/ws?{urlencode({'client_id': 'attacker', **query})}"
    upgrade = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    return request("GET", path, *upgrade, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", *headers)


async def head_of(stream: trio.SocketStream) -> bytes:
    """The head of the next answer; empty when there is none."""
    head = b""
    while b"\r\n\r\n" not in head:
        chunk = await stream.receive_some(65536)
        if not chunk:
            return b""
        head += chunk
    return head


@asynccontextmanager
async def websocket(port: int, *headers: str, **query: str) -> AsyncIterator[trio.SocketStream]:
    """A websocket without any extension, whatever *headers* offer. Raises :class:`NotLetIn`."""
    async with await dial(port) as stream:
        await stream.send_all(upgrade_request(*headers, **query))
        head = await head_of(stream)
        if not head.startswith(b"HTTP/1.1 101 "):
            raise NotLetIn(head.decode())
        assert b"extensions" not in head.lower(), head
        yield stream


@cache
def zeros(wbits: int) -> bytes:
    """More zeros than any body may have, deflated to a thousandth; *wbits* is zlib's name of the form."""
    compressor = zlib.compressobj(wbits=wbits)
    return b"".join(compressor.compress(bytes(MIB)) for _ in range(110)) + compressor.flush()


# --- messages -----------------------------------------------------------------------------------------------------


def packed(*values: Any) -> bytes:
    """The *values* of a message, one behind the other."""
    return b"".join(map(msgpack.packb, values))


def call(session: str, value: Any = None, *, to: str = MANAGER, method: str = _ECHO) -> bytes:
    """A call with one argument, in one frame."""
    promise = {name: {"_rmethod": f"{session}.{name}"} for name in ("resolve", "reject")}
    return masked(2, packed(header(to, method, session), {"args": [value], "promise": promise}))


async def answered(stream: trio.SocketStream, session: str) -> None:
    """Read until the answer to *session* has come, whatever else comes."""
    wanted, tail = f"{session}.resolve".encode(), b""
    while wanted not in tail:
        chunk = await stream.receive_some(MIB)
        assert chunk, "the server has closed the connection"
        tail = tail[-len(wanted) :] + chunk


async def still_served(stream: trio.SocketStream) -> None:
    """What came before did not end this connection, and was taken up to here."""
    await stream.send_all(call("last"))
    await answered(stream, "last")


async def sends(port: int, data: bytes) -> None:
    """A connection that sends *data* and is served as before."""
    async with websocket(port) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data + call("last"))
        await answered(stream, "last")


async def ends(port: int, data: bytes, code: int) -> None:
    """A connection that sends *data* and is told *code* for it."""
    async with websocket(port) as stream:
        with suppress(trio.BrokenResourceError):  # the server need not take all of it
            await stream.send_all(data)
            await stream.send_eof()
        assert await close_code(stream) == code


async def close_code(stream: trio.SocketStream) -> int:
    """Read to the end; the code of the close frame, before which there may be pings."""
    answer = b"".join([chunk async for chunk in stream])
    while answer[:2] == b"\x89\x00":
        answer = answer[2:]
    assert answer[:1] == b"\x88", answer[:100]
    return int.from_bytes(answer[2:4], "big")


async def malformed_messages(port: int) -> None:
    """Messages that are no messages, each in every way: dropped and counted."""
    junk = (b"", b"\xc1", b"\xc0", b"\x05", packed("x"), packed([1]), packed({}), packed({"to": MANAGER, "type": 5}))
    cut = (packed(header(MANAGER, _ECHO))[:-3], b"\x82\xa2to\xa2\xff\xff", b"\x82\x05\x05\xa2to\xa1x", b"\xff" * 500)
    await sends(port, b"".join(masked(2, message) for message in (*junk, *cut)) * 50)


async def malformed_bodies(port: int) -> None:
    """Calls whose body is no body: each is refused to its sender."""
    message = packed(header(port_name(port), "services.x.y", "s"))
    bodies = (b"\xc1" * 50, packed([1]), packed({"args": []}) * 2, packed({"method": "x"}), b"\x81\xa4args\xdc\xff\xff")
    await sends(port, b"".join(masked(2, message + body) for body in bodies) * 100)


def port_name(port: int) -> str:
    """Somebody who is not there."""
    return f"nobody-{port}"


async def empty_messages(port: int) -> None:
    """F3: binary messages without a byte, whole and in fragments."""
    await sends(port, (masked(2, b"") + masked(2, b"", final=False) + masked(0, b"")) * 500)


async def msgpack_bombs(port: int) -> None:
    """F8: few bytes that claim to be many values, or to be nested as deep as the stack."""
    claims = (b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff")
    nested = (b"\x91" * 60_000, b"\x81\xa1a" * 20_000, b"\x82\xa2to\xa1x\xa1a" + b"\x91" * 50_000)
    extension = packed(msgpack.ExtType(5, b"x" * 60_000))
    head = packed(header(port_name(port), "services.x.y", "s"))
    bombs = (*claims, *nested, extension)
    await sends(port, b"".join(masked(2, bomb) + masked(2, head + b"\x81\xa4args" + bomb) for bomb in bombs) * 4)


async def wide_messages(port: int) -> None:
    """A body of twenty thousand values, and a header of as many fields as fit."""
    head = packed(header(port_name(port), "services.x.y", "s"))
    wide = packed({str(number): 0 for number in range(6000)})
    await sends(port, masked(2, head + packed({"args": [0] * 20_000})) + masked(2, wide) * 20)


async def too_large_for_the_receiver(port: int) -> None:
    """Messages that a Python client could not take, to one that is there: refused to the sender."""
    agent = "User-Agent: Python/3.11 websockets/12.0"
    async with websocket(port, agent, client_id="receiver") as stream:
        await stream.send_all(call("s", b"x" * 3 * MIB, to="receiver", method="services.x.y"))
        await still_served(stream)


async def abandoned_parts(port: int) -> None:
    """Large messages in parts, of which the last part never comes."""
    cache = "services.built-in.message_cache"
    beginning = packed(header(port_name(port), "services.x.y", "s")) + b"\x81\xa4args\xc6\x7f\0\0\0" + bytes(50_000)
    parts = b""
    for number in range(60):
        key = f"k{number}"
        for word, args in (("create", [key, False]), ("append", [key, beginning, False])):
            parts += masked(2, packed(header(MANAGER, f"{cache}.{word}", f"{word}{number}"), {"args": args}))
    await sends(port, parts)


# --- frames -------------------------------------------------------------------------------------------------------

_BROKEN = {
    b"\x82\x03abc": 1002,  # no mask
    masked(3, b"abc"): 1002,  # a reserved opcode
    masked(9, b"x" * 126): 1002,  # a long ping
    masked(9, b"x", final=False): 1002,
    masked(0, b"x"): 1002,  # the rest of nothing
    masked(2, b"x", final=False) + masked(2, b"x"): 1002,
    masked(1, b"{}"): 1003,
    masked(1, b"\xff\xff"): 1007,
    masked(8, b"x"): 1002,
    masked(8, struct.pack(">H", 1005)): 1002,
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n": 1002,
}


async def malformed_frames(port: int) -> None:
    """What breaks the websocket protocol, one connection after the other."""
    for data, code in _BROKEN.items():
        await ends(port, data, code)


async def compressed(port: int) -> None:
    """F4: compression is offered and, though it was not accepted, used: a bomb of a thousand to one."""
    async with websocket(port, "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits") as stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(masked(2, zeros(-15), reserved=0x40))
            await stream.send_eof()
        assert await close_code(stream) == 1002


async def oversized_announcements(port: int) -> None:
    """The head of a frame that is too large, and of one that never comes."""
    await ends(port, b"\x82\xff\x7f" + b"\xff" * 7 + bytes(4), 1009)
    await ends(port, b"\x82\xff" + struct.pack(">Q", 16 * MIB + 1) + bytes(4), 1009)
    async with websocket(port) as stream:
        await stream.send_all(b"\x82\xff" + struct.pack(">Q", 16 * MIB) + bytes(4) + bytes(1000))


async def oversized_frames(port: int) -> None:
    """A frame that is too large and comes all the same."""
    await ends(port, masked(2, bytes(17 * MIB)), 1009)


async def growing_messages(port: int) -> None:
    """A message of fragments each of which is small enough, until together they are not."""
    fragment = masked(0, bytes(MIB), final=False)
    await ends(port, masked(2, b"", final=False) + fragment * 17, 1009)


async def large_messages(port: int) -> None:
    """Messages of megabytes, to nobody."""
    await sends(port, masked(2, packed(header(port_name(port), "services.x.y"), {"args": [bytes(4 * MIB)]})))


async def large_fragmented_messages(port: int) -> None:
    """The same in a thousand fragments."""
    message = packed(header(port_name(port), "services.x.y"), {"args": [bytes(15 * MIB)]})
    parts = [message[start : start + 16384] for start in range(0, len(message), 16384)]
    head, tail = masked(2, parts[0], final=False), masked(0, parts[-1])
    await sends(port, head + b"".join(masked(0, part, final=False) for part in parts[1:-1]) + tail)


async def endless_fragments(port: int) -> None:
    """A message of fragments of no byte or one, without an end, with pings between."""
    fragments = (masked(0, b"x", final=False) + masked(0, b"", final=False) + masked(9, b"")) * _FRAMES
    async with websocket(port) as stream:
        await stream.send_all(masked(2, b"", final=False) + fragments)


# --- floods -------------------------------------------------------------------------------------------------------


async def flood_of_messages(port: int) -> None:
    """Messages to itself, as many as the connection takes."""
    message = masked(2, packed(header("flood", "services.x.y"), {"args": [0]}))
    async with websocket(port, client_id="flood") as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, message * _FRAMES + call("last"))
        await answered(stream, "last")


async def flood_to_nobody(port: int) -> None:
    """Calls to somebody who is not there, each of which is refused."""
    await sends(port, call("s", to=port_name(port), method="services.x.y") * _FRAMES)


async def flood_of_server_calls(port: int) -> None:
    """Calls of the server's own functions, of which at most so many run at once, by somebody who does not wait."""
    async with websocket(port) as stream, trio.open_nursery() as nursery:
        flood = b"".join(call(f"s{number}", method="services.default.list_services") for number in range(1000))
        nursery.start_soon(stream.send_all, flood)
        await answered(stream, "s0")
    await sends(port, b"")


async def flood_of_pings(port: int) -> None:
    await sends(port, masked(9, b"x" * 125) * _FRAMES)


async def flood_of_connects(port: int) -> None:
    """Connections that say nothing, and end as they please."""
    for number in range(20):
        stream = await dial(port)
        if number % 2:
            reset(stream)
        else:
            await stream.aclose()


async def flood_of_upgrades(port: int) -> None:
    """Websockets that are accepted, and then end as they please."""
    for number in range(10):
        async with websocket(port) as stream:
            if number % 2:
                reset(stream)


async def flood_of_registrations(port: int) -> None:
    """A client that describes its services again and again."""
    services = [{"id": f"me:{number}", "type": "x", "name": "x", "config": {}} for number in range(10)]
    async with websocket(port, client_id="me") as stream:
        for number in range(30):
            await stream.send_all(call(f"s{number}", {"id": "me", "services": services}, method=_UPDATE))
            await answered(stream, f"s{number}")


async def bad_tokens(port: int) -> None:
    """Upgrades with tokens that are none, or not this server's."""
    forged = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0."
    for token in ("x", forged, "a.b.c", "x" * 5000, ""):
        with suppress(NotLetIn):
            async with websocket(port, token=token, workspace="public"):
                raise AssertionError("a bad token was let in")


async def glued_upgrades(port: int) -> None:
    """F1: bytes in the same packet as the upgrade request. The first packet that ever killed a Hypercorn."""
    for glued in (call("last"), b"\x00", b"\xff" * 5000, request("GET", "/health/liveness")):
        async with await dial(port) as stream:
            await stream.send_all(upgrade_request() + glued)
            assert (await stream.receive_some(12)) == b"HTTP/1.1 101"


# --- silence ------------------------------------------------------------------------------------------------------


async def stalled_reader(port: int) -> None:
    """A client that reads nothing, while it is sent as much as there is room for."""
    message = masked(2, packed(header("stalled", "services.x.y"), {"args": [bytes(MIB // 2)]}))
    async with websocket(port, client_id="stalled") as stream:
        with trio.move_on_after(_DRIPS * _DRIP_SECONDS):
            while True:
                await stream.send_all(message)


async def half_open(port: int) -> None:
    """Half of a frame, and then nothing; the end of the attack is a reset."""
    async with websocket(port) as stream:
        await stream.send_all(masked(2, bytes(100_000))[:50_000])
        await trio.sleep(_DRIPS * _DRIP_SECONDS)
        reset(stream)


async def dripped_frames(port: int) -> None:
    """A frame of a byte a packet."""
    async with websocket(port) as stream:
        await drip(stream, call("last"))
        await answered(stream, "last")


async def drip(stream: trio.SocketStream, data: bytes) -> None:
    """Send a little at a time, not in step with others: requests that are whole in one moment are ordinary load."""
    size = max(1, len(data) // _DRIPS)
    for start in range(0, len(data), size):
        await stream.send_all(data[start : start + size])
        await trio.sleep(_DRIP_SECONDS * random.uniform(0, 2))


# --- HTTP ---------------------------------------------------------------------------------------------------------


async def refused(port: int, data: bytes, *statuses: int) -> None:
    """A connection that sends *data* and gets an answer of one of *statuses*."""
    async with await dial(port) as stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(data)
        status = int((await head_of(stream))[9:12])
        assert status in statuses, f"{status} instead of {statuses} for {data[:200]!r}"


async def posted(port: int, body: bytes, *statuses: int, kind: str = "application/json", more: str = "X: y") -> None:
    lines = (f"Content-Type: {kind}", f"Content-Length: {len(body)}", more)
    await refused(port, request("POST", NOWHERE, *lines, body=body), *statuses)


async def slow_headers(port: int) -> None:
    async with await dial(port) as stream:
        await drip(stream, request("GET", NOWHERE, *[f"X-{number}: y" for number in range(100)]))
        assert (await head_of(stream)).startswith(b"HTTP/1.1 404 ")


async def slow_bodies(port: int) -> None:
    async with await dial(port) as stream:
        await stream.send_all(request("POST", NOWHERE, "Content-Type: application/json", "Content-Length: 400"))
        await drip(stream, b" " * 398 + b"{}")
        assert (await head_of(stream)).startswith(b"HTTP/1.1 404 ")


async def abandoned_bodies(port: int) -> None:
    """Half of a body, whole and in chunks, and the end of the connection."""
    for lines in (("Content-Length: 1000000",), ("Transfer-Encoding: chunked",)):
        async with await dial(port) as stream:
            await stream.send_all(request("POST", NOWHERE, *lines, body=b"8000\r\n" + bytes(30_000)))
            await trio.sleep(_DRIP_SECONDS)
            reset(stream)


#: Heads that say where the next request begins in two ways, or in a way that nobody can know (RFC 9112 section 6).
SMUGGLED = (
    ("Content-Length: 5", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding: chunked", "Content-Length: 5"),
    ("Content-Length: 5", "Content-Length: 6"),
    ("Content-Length: 5, 6",),
    ("Content-Length: +5",),
    ("Content-Length: 5 5",),
    ("Content-Length: -1",),
    ("Content-Length: 0x5",),
    ("Transfer-Encoding: xchunked",),
    ("Transfer-Encoding: chunked, identity",),
    ("Transfer-Encoding : chunked",),
    ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
)


async def smuggled(port: int) -> None:
    """F7: a second request in what one of two lengths says is the body."""
    hidden = request("GET", "/health/liveness")
    for lines in SMUGGLED:
        async with await dial(port) as stream:
            await stream.send_all(request("POST", NOWHERE, *lines, body=b"0\r\n\r\n" + hidden))
            answer = b""
            with suppress(trio.BrokenResourceError):
                async for chunk in stream:
                    answer += chunk
            assert answer[9:12] in {b"400", b"501"}, (lines, answer)
            assert answer.count(b"HTTP/1.1 ") == 1, (lines, answer)


async def large_headers(port: int) -> None:
    await refused(port, request("GET", "/", "X: " + "y" * 100_000), 400, 431)
    await refused(port, request("GET", "/?" + "y" * 100_000), 400, 414, 431)
    await refused(port, request("GET", "/", *["X: y"] * 5_000), 431)


async def pipelined(port: int) -> None:
    """Requests that do not wait for the answers before."""
    async with await dial(port) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, request("GET", "/health/liveness") * 100)
        seen = 0
        while seen < 100:
            chunk = await stream.receive_some(65536)
            assert chunk
            seen += chunk.count(b"HTTP/1.1 200")


async def abandoned_pipelines(port: int) -> None:
    """The same, by somebody who does not want the answers."""
    async with await dial(port) as stream:
        await stream.send_all(request("GET", "/health/liveness") * 1000)
        await stream.receive_some(10)
        reset(stream)


async def bodies_of_values(port: int) -> None:
    """Bodies of very many values, in little text."""
    await posted(port, b"[" * 2_100_000, 400)
    await posted(port, packed({"a": [0] * 100_000}), 404, kind="application/msgpack")
    await posted(port, b"&".join(b"a=0" for _ in range(100_000)), 400, kind=FORM)


async def nested_bodies(port: int) -> None:
    await posted(port, b"[" * 50_000, 400)
    await posted(port, b"\x91" * 500_000, 400, kind="application/msgpack")


async def large_bodies(port: int) -> None:
    """As many escapes as a form may have, megabytes of bytes, and more than is taken at all."""
    await posted(port, b"a=" + b"%20" * 340_000, 404, kind=FORM)
    await posted(port, bytes(4 * MIB), 404, kind="application/octet-stream")
    await posted(port, b"a=" + b"%20" * 400_000, 413, kind=FORM)
    await refused(port, request("POST", NOWHERE, f"Content-Length: {2**40}", body=bytes(MIB)), 413)


async def inflating_bodies(port: int) -> None:
    """A hundred kilobytes that become more than is taken."""
    await posted(port, zeros(31), 413, more="Content-Encoding: gzip")


# --- good manners -------------------------------------------------------------------------------------------------


async def polite(port: int) -> None:
    """A connection as most are: a call, a moment, and another one."""
    async with websocket(port) as stream:
        for number in range(_DRIPS):
            await stream.send_all(call(f"s{number}"))
            await answered(stream, f"s{number}")
            await trio.sleep(_DRIP_SECONDS)
        await stream.send_all(masked(8, struct.pack(">H", 1000)))
        assert await stream.receive_some(65536), "no goodbye"


#: What the neighbour is measured beside for comparison.
POLITE = "polite"

ROWS = {
    "malformed-messages": Row(malformed_messages),
    "malformed-bodies": Row(malformed_bodies),
    "malformed-frames": Row(malformed_frames),
    "empty-messages": Row(empty_messages),
    "msgpack-bombs": Row(msgpack_bombs),
    "wide-messages": Row(wide_messages, 1),
    "too-large-for-the-receiver": Row(too_large_for_the_receiver),
    "abandoned-parts": Row(abandoned_parts),
    "compressed": Row(compressed),
    "oversized-announcements": Row(oversized_announcements),
    "oversized-frames": Row(oversized_frames),
    "growing-messages": Row(growing_messages),
    "large-messages": Row(large_messages),
    "large-fragmented-messages": Row(large_fragmented_messages),
    "endless-fragments": Row(endless_fragments),
    "flood-of-messages": Row(flood_of_messages, 1),
    "flood-to-nobody": Row(flood_to_nobody, 1),
    "flood-of-server-calls": Row(flood_of_server_calls, 1),
    "flood-of-pings": Row(flood_of_pings, 1),
    "flood-of-connects": Row(flood_of_connects),
    "flood-of-upgrades": Row(flood_of_upgrades),
    "flood-of-registrations": Row(flood_of_registrations),
    "bad-tokens": Row(bad_tokens),
    "glued-upgrades": Row(glued_upgrades),
    "stalled-reader": Row(stalled_reader),
    "half-open": Row(half_open, 20),
    "dripped-frames": Row(dripped_frames, 20),
    "slow-headers": Row(slow_headers, 20),
    "slow-bodies": Row(slow_bodies, 20),
    "abandoned-bodies": Row(abandoned_bodies),
    "smuggled": Row(smuggled),
    "large-headers": Row(large_headers),
    "pipelined": Row(pipelined),
    "abandoned-pipelines": Row(abandoned_pipelines),
    "bodies-of-values": Row(bodies_of_values, 1),
    "nested-bodies": Row(nested_bodies),
    "large-bodies": Row(large_bodies),
    "inflating-bodies": Row(inflating_bodies),
}
