"""The cases of the Autobahn test suite for servers, sections 1 to 7, 9 and 10, as data under their public numbers.

Sections 8 and 11 are empty, and 12 and 13 are about compression, which this server never negotiates. The suite itself
needs an interpreter that nobody has any more; the cases are written again from what its reports say of each.

A case is what a client sends, and when. What an echo server owes it follows from that (:func:`answers`), up to the step
at which the client breaks the protocol. Where the suite also takes a connection that is dropped without a word, or
answers that are lost with it, we do not: every case ends with a close frame, and with all that was owed before.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KIB, MIB = 1 << 10, 1 << 20
#: How the bytes are cut into segments: all at once, each frame by itself, or (any positive number) so many bytes.
TOGETHER, BY_FRAME = 0, -1
_MASK = b"\x37\xfa\x21\x3d"


@dataclass(frozen=True)
class Frame:
    """One frame, right or wrong."""

    opcode: int
    payload: bytes = b""
    final: bool = True
    reserved: int = 0

    def encoded(self) -> bytes:
        """As a client sends it."""
        first = (0x80 if self.final else 0) | self.reserved << 4 | self.opcode
        size = len(self.payload)
        if size < 126:
            head = struct.pack(">BB", first, 0x80 | size)
        elif size < 65536:
            head = struct.pack(">BBH", first, 0xFE, size)
        else:
            head = struct.pack(">BBQ", first, 0xFF, size)
        key = (_MASK * (size // 4 + 1))[:size]
        masked = int.from_bytes(self.payload, "big") ^ int.from_bytes(key, "big")
        return head + _MASK + masked.to_bytes(size, "big")


@dataclass(frozen=True)
class Pause:
    """The client waits for a second."""


@dataclass(frozen=True)
class Slowly:
    """One frame, with a pause at each of *cuts* (positions in its payload)."""

    frame: Frame
    cuts: tuple[int, ...]


@dataclass(frozen=True)
class Message:
    """*size* bytes, too many to be kept, in frames of *fragment* bytes, or in one."""

    opcode: int
    size: int
    fragment: int = 0

    def frames(self) -> Iterator[Frame]:
        content = filler(self.opcode, self.size)
        part = self.fragment or max(self.size, 1)
        for start in range(0, max(self.size, 1), part):
            payload = content[start : start + part]
            yield Frame(CONTINUATION if start else self.opcode, payload, final=start + part >= self.size)


def filler(opcode: int, size: int) -> bytes:
    """*size* bytes of text or others, of which no two neighbouring kilobytes are the same."""
    unit = bytes(range(0x21, 0x7A)) if opcode == TEXT else bytes(range(251))
    return (unit * (size // len(unit) + 1))[:size]


Step = Frame | Message | Slowly | Pause


@dataclass(frozen=True)
class Case:
    """*lawful*: how many of *steps* the server must take as they are. *codes*: what its close frame may say.

    After its last step a client that has kept to the protocol, and not said goodbye, waits for its answers and says it.
    All that is done *rounds* times on one connection, but the goodbye.
    """

    number: str
    steps: tuple[Step, ...]
    lawful: int
    codes: tuple[int, ...]
    chop: int = TOGETHER
    rounds: int = 1

    @property
    def section(self) -> int:
        return int(self.number.split(".")[0])

    @property
    def part(self) -> int:
        """The second number."""
        return int(self.number.split(".")[1])

    @property
    def says_goodbye(self) -> bool:
        """Whether the client ends the conversation with a close frame that is none of the steps."""
        return self.lawful == len(self.steps)

    def owed(self, steps: int | None = None) -> list[Frame]:
        """What the server must have answered, after so many of the steps or after all."""
        return list(answers(self.steps[: self.lawful if steps is None else min(steps, self.lawful)]))


def frames(steps: Iterable[Step]) -> Iterator[Frame]:
    """All frames of *steps*."""
    for step in steps:
        if isinstance(step, Message):
            yield from step.frames()
        elif isinstance(step, Slowly):
            yield step.frame
        elif isinstance(step, Frame):
            yield step


def answers(steps: Iterable[Step]) -> Iterator[Frame]:
    """What an echo server owes to lawful *steps*: a pong for each ping, and each message whole."""
    opcode, parts = 0, list[bytes]()
    for frame in frames(steps):
        if frame.opcode == PING:
            yield Frame(PONG, frame.payload)
        elif frame.opcode < CLOSE:
            opcode = opcode or frame.opcode
            parts.append(frame.payload)
            if frame.final:
                yield Frame(opcode, b"".join(parts))
                opcode, parts = 0, []


# --- the forms that cases have --------------------------------------------------------------------------------------


def lawful(number: str, *steps: Step, chop: int = TOGETHER, rounds: int = 1) -> Case:
    return Case(number, steps, len(steps), (1000,), chop, rounds)


def broken(number: str, good: int, *steps: Step, chop: int = TOGETHER, code: int = 1002) -> Case:
    """The first *good* steps are lawful, the next is not."""
    return Case(number, steps, good, (code,), chop)


def closing(number: str, codes: Sequence[int], *steps: Step) -> Case:
    """One of the steps is a close frame: nothing behind it counts."""
    good = next(index for index, step in enumerate(steps) if isinstance(step, Frame) and step.opcode == CLOSE)
    return Case(number, steps, good, tuple(codes))


def text(payload: str) -> Frame:
    return Frame(TEXT, payload.encode())


def fragments(opcode: int, *parts: bytes) -> list[Frame]:
    """One message in frames."""
    last = len(parts) - 1
    return [Frame(CONTINUATION if index else opcode, part, index == last) for index, part in enumerate(parts)]


def octets(data: bytes) -> list[Frame]:
    """One text message in frames of one byte."""
    return fragments(TEXT, *(data[index : index + 1] for index in range(len(data))))


def close(code: int, reason: bytes = b"") -> Frame:
    return Frame(CLOSE, struct.pack(">H", code) + reason)


# --- 1: framing -----------------------------------------------------------------------------------------------------


def _framing() -> Iterator[Case]:
    sizes = (0, 125, 126, 127, 128, 65535, 65536, 65536)
    for kind, opcode in ((1, TEXT), (2, BINARY)):
        for index, size in enumerate(sizes, 1):
            chop = 997 if index == len(sizes) else TOGETHER
            yield lawful(f"1.{kind}.{index}", Message(opcode, size), chop=chop)


# --- 2: pings and pongs ---------------------------------------------------------------------------------------------

_BYTES = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
_TEN = [Frame(PING, b"ping number %d" % number) for number in range(10)]


def _pings() -> Iterator[Case]:
    yield lawful("2.1", Frame(PING))
    yield lawful("2.2", Frame(PING, b"are you there?"))
    yield lawful("2.3", Frame(PING, _BYTES))
    yield lawful("2.4", Frame(PING, b"\xfe" * 125))
    yield broken("2.5", 0, Frame(PING, b"\xfe" * 126))
    yield lawful("2.6", Frame(PING, b"\xfe" * 125), chop=1)
    yield lawful("2.7", Frame(PONG))
    yield lawful("2.8", Frame(PONG, b"nobody has asked"))
    yield lawful("2.9", Frame(PONG, b"nobody has asked"), Frame(PING, b"are you there?"))
    yield lawful("2.10", *_TEN)
    yield lawful("2.11", *_TEN, chop=1)


# --- 3: reserved bits -----------------------------------------------------------------------------------------------

_HELLO = text("a small message")


def _reserved() -> Iterator[Case]:
    yield broken("3.1", 0, replace(_HELLO, reserved=1))
    for number, bits, chop in ((2, 2, TOGETHER), (3, 3, BY_FRAME), (4, 4, 1)):
        steps = (_HELLO, replace(_HELLO, reserved=bits), Frame(PING))
        yield broken(f"3.{number}", 1, *steps, chop=chop)
    yield broken("3.5", 0, Frame(BINARY, _BYTES, reserved=5))
    yield broken("3.6", 0, Frame(PING, b"are you there?", reserved=6))
    yield broken("3.7", 0, Frame(CLOSE, reserved=7))


# --- 4: opcodes -----------------------------------------------------------------------------------------------------


def _opcodes() -> Iterator[Case]:
    for kind, first in ((1, 3), (2, 11)):
        yield broken(f"4.{kind}.1", 0, Frame(first))
        yield broken(f"4.{kind}.2", 0, Frame(first + 1, b"what is this?"))
        yield broken(f"4.{kind}.3", 1, _HELLO, Frame(first + 2), Frame(PING))
        yield broken(f"4.{kind}.4", 1, _HELLO, Frame(first + 3, b"what is this?"), Frame(PING))
        yield broken(f"4.{kind}.5", 1, _HELLO, Frame(first + 4, b"what is this?"), Frame(PING), chop=1)


# --- 5: fragments ---------------------------------------------------------------------------------------------------

_PARTS = [b"first part", b"second part", b"third part", b"fourth part", b"fifth part"]
_CHOPS = (TOGETHER, BY_FRAME, 1)


def _fragments() -> Iterator[Case]:
    for number, opcode in ((1, PING), (2, PONG)):
        yield broken(f"5.{number}", 0, *fragments(opcode, *_PARTS[:2]))
    begin, end = fragments(TEXT, *_PARTS[:2])
    for index, chop in enumerate(_CHOPS):
        yield lawful(f"5.{3 + index}", begin, end, chop=chop)
        yield lawful(f"5.{6 + index}", begin, Frame(PING, b"between"), end, chop=chop)
        yield broken(f"5.{9 + index}", 0, Frame(CONTINUATION, b"of nothing"), _HELLO, chop=chop)
        yield broken(f"5.{12 + index}", 0, Frame(CONTINUATION, b"of nothing", final=False), _HELLO, chop=chop)
    yield broken("5.15", 2, begin, end, Frame(CONTINUATION, b"of nothing", final=False), _HELLO)
    for number, final in ((16, False), (17, True)):
        yield broken(f"5.{number}", 0, *[Frame(CONTINUATION, b"of nothing", final), begin, end] * 2)
    yield broken("5.18", 1, begin, _HELLO)
    one, two, three, four, five = fragments(TEXT, *_PARTS)
    steps = one, two, Frame(PING, b"first"), Pause(), three, four, Frame(PING, b"second"), five
    yield lawful("5.19", *steps)
    yield lawful("5.20", *steps, chop=BY_FRAME)


# --- 6: text --------------------------------------------------------------------------------------------------------

_GREEK = "\u03ba\u1f79\u03c3\u03bc\u03b5".encode()
_MIXED = ("Gr\u00fc\u00dfe aus K\u00f6ln, ", "\u00b5m und \u00c5ngstr\u00f6m")


def long_form(number: int, size: int) -> bytes:
    """*number* in *size* bytes by the scheme of UTF-8, also where UTF-8 forbids it (RFC 3629 section 3)."""
    lead = 0xFF00 >> size & 0xFF
    tail = [0x80 | number >> 6 * place & 0x3F for place in reversed(range(size - 1))]
    return bytes((lead | number >> 6 * (size - 1), *tail))


def _characters(*points: int) -> list[bytes]:
    return [chr(point).encode() for point in points]


_LARGEST = {1: 0x7F, 2: 0x7FF, 3: 0xFFFF, 4: 0x1FFFFF, 5: 0x3FFFFFF, 6: 0x7FFFFFFF}  # number of each size of long form
_INCOMPLETE = [long_form(_LARGEST[size] * factor, size)[:-1] for factor in (0, 1) for size in range(2, 7)]
_SURROGATES = (0xD800, 0xDB7F, 0xDB80, 0xDBFF, 0xDC00, 0xDF80, 0xDFFF)

#: By subsection of 6: what is UTF-8, then what is not.
_SEQUENCES: dict[int, tuple[list[bytes], list[bytes]]] = {
    5: ([*(f"hello{sign}world".encode() for sign in "$\u00a2\u20ac\U00024b62"), _GREEK], []),
    7: (_characters(0, 0x80, 0x800, 0x10000), []),
    8: ([], [long_form(0x200000, 5), long_form(0x4000000, 6)]),
    9: (_characters(0x7F, 0x7FF, 0xFFFF, 0x10FFFF), []),
    10: ([], [long_form(_LARGEST[size], size) for size in (4, 5, 6)]),
    11: (_characters(0xD7FF, 0xE000, 0xFFFD, 0x10FFFF), [long_form(0x110000, 4)]),
    12: ([], [b"\x80", b"\xbf", *((b"\x80\xbf" * 3)[:size] for size in range(2, 7)), bytes(range(0x80, 0xBF))]),
    13: (
        [],
        [
            b"".join(bytes((lead, 0x20)) for lead in range(*ends))
            for ends in ((0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD))
        ],
    ),
    14: ([], _INCOMPLETE),
    15: ([], [b"".join(_INCOMPLETE)]),
    16: ([], [b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"]),
    17: ([], [long_form(ord("/"), size) for size in range(2, 7)]),
    18: ([], [long_form(_LARGEST[size - 1], size) for size in range(2, 7)]),
    19: ([], [long_form(0, size) for size in range(2, 7)]),
    20: ([], [long_form(half, 3) for half in _SURROGATES]),
    21: ([], [long_form(high, 3) + long_form(low, 3) for high in _SURROGATES[:4] for low in (0xDC00, 0xDFFF)]),
    22: (_characters(*(plane << 16 | end for plane in range(17) for end in (0xFFFE, 0xFFFF))), []),
    23: (_characters(*range(0xFFF9, 0x10000)), []),
}


def _texts() -> Iterator[Case]:
    yield lawful("6.1.1", text(""))
    yield lawful("6.1.2", *fragments(TEXT, b"", b"", b""))
    yield lawful("6.1.3", *fragments(TEXT, b"", b"between", b""))
    yield lawful("6.2.1", text("".join(_MIXED)))
    yield lawful("6.2.2", *fragments(TEXT, *(part.encode() for part in _MIXED)))
    yield lawful("6.2.3", *octets("".join(_MIXED).encode()))
    yield lawful("6.2.4", *octets(_GREEK))
    surrogate = _GREEK + long_form(0xD800, 3) + b"and more"
    yield broken("6.3.1", 0, Frame(TEXT, surrogate), code=1007)
    yield broken("6.3.2", 0, *octets(surrogate), code=1007)
    beyond = _GREEK + long_form(0x110000, 4) + b"and more"
    for index, cuts in enumerate(((11, 15), (12, 13)), 1):
        parts = beyond[: cuts[0]], beyond[slice(*cuts)], beyond[cuts[1] :]
        first, second, third = fragments(TEXT, *parts)
        yield broken(f"6.4.{index}", 0, first, Pause(), second, Pause(), third, code=1007)
        yield broken(f"6.4.{index + 2}", 0, Slowly(Frame(TEXT, beyond), cuts), code=1007)
    for size in range(1, len(_GREEK) + 1):  # 6.6: it is UTF-8 when it ends with a character
        number, step = f"6.6.{size}", Frame(TEXT, _GREEK[:size])
        yield lawful(number, step) if size in {2, 5, 7, 9, 11} else broken(number, 0, step, code=1007)
    for subsection, (good, bad) in _SEQUENCES.items():
        for index, payload in enumerate(good, 1):
            yield lawful(f"6.{subsection}.{index}", Frame(TEXT, payload))
        for index, payload in enumerate(bad, len(good) + 1):
            yield broken(f"6.{subsection}.{index}", 0, Frame(TEXT, payload), code=1007)


# --- 7: closing -----------------------------------------------------------------------------------------------------

VALID_CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
INVALID_CODES = (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999)
NO_CODE = 1005  # what a close frame without a code counts as (RFC 6455 section 7.1.5)


def _closes() -> Iterator[Case]:
    begin, end = fragments(TEXT, *_PARTS[:2])
    bye = close(1000)
    yield closing("7.1.1", [1000], _HELLO, bye)
    yield closing("7.1.2", [1000], bye, Frame(CLOSE))
    yield closing("7.1.3", [1000], bye, Frame(PING))
    yield closing("7.1.4", [1000], bye, _HELLO)
    yield closing("7.1.5", [1000], begin, bye, end)
    yield closing("7.1.6", [1000], Message(TEXT, 256 * KIB), _HELLO, bye, Frame(PING))
    yield closing("7.3.1", [1000, NO_CODE], Frame(CLOSE))
    yield closing("7.3.2", [1002], Frame(CLOSE, b"a"))
    yield closing("7.3.3", [1000], bye)
    yield closing("7.3.4", [1000], close(1000, b"it is late"))
    yield closing("7.3.5", [1000], close(1000, b"*" * 123))
    yield closing("7.3.6", [1002], close(1000, b"*" * 124))
    yield closing("7.5.1", [1002, 1007], close(1000, _GREEK + long_form(0xD800, 3) + b"and more"))
    for index, code in enumerate(VALID_CODES, 1):
        yield closing(f"7.7.{index}", [1000, code], close(code))
    for index, code in enumerate(INVALID_CODES, 1):
        yield closing(f"7.9.{index}", [1002], close(code))
    for index, code in enumerate((5000, 65535), 1):
        yield closing(f"7.13.{index}", [1000, 1002, code], close(code))


# --- 9 and 10: large messages, many messages ------------------------------------------------------------------------

SIZES = (64 * KIB, 256 * KIB, MIB, 4 * MIB, 8 * MIB, 16 * MIB)
FRAGMENTS = tuple(64 * 4**power for power in range(9))
CHOPS = (64, 128, 256, 512, KIB, 2 * KIB)
ROUND_TRIPS = (0, 16, 64, 256, KIB, 4 * KIB)


def _large() -> Iterator[Case]:
    for kind, opcode in enumerate((TEXT, BINARY), 1):
        for index, size in enumerate(SIZES, 1):
            yield lawful(f"9.{kind}.{index}", Message(opcode, size))
        for index, size in enumerate(FRAGMENTS, 1):
            yield lawful(f"9.{kind + 2}.{index}", Message(opcode, 4 * MIB, size))
        for index, size in enumerate(CHOPS, 1):
            yield lawful(f"9.{kind + 4}.{index}", Message(opcode, MIB), chop=size)
        for index, size in enumerate(ROUND_TRIPS, 1):
            yield lawful(f"9.{kind + 6}.{index}", Message(opcode, size), rounds=1000)
    yield lawful("10.1.1", Message(TEXT, 65536, 1300))


_SECTIONS = (_framing, _pings, _reserved, _opcodes, _fragments, _texts, _closes, _large)
CASES = tuple(case for section in _SECTIONS for case in section())
