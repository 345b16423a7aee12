"""Every case against ``/ws``, as a client of the legacy generation.

``/ws`` is no echo server: it takes binary messages with a header, and text from such a client is an error. So a case is
played in one of two forms.

* With real messages (sections 1 to 5, 7, 9 and 10): each message of the case, text or binary, becomes a binary one to
  the client itself, of the same size, in frames of the same sizes, cut into the same segments; only where header and
  body do not fit is the last frame longer. It must arrive, once and in its place among the pongs, with the content that
  was sent. Frames that must not be there stay as they are, and so do all control frames and close codes.
* As it is (1.1, 6): text that is UTF-8 is answered with 1003, all other with 1007, and nothing comes back before it.

A message of 16 MiB with what the server puts into its header would be larger than what a client can be sent: in 9.1.6
and 9.2.6 it is smaller by what such a header takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
from trio.testing import MockClock

from hypha.config import Limits
from tests.web.conformance.cases import BINARY, CASES, CLOSE, TEXT, Case, Frame, Pause, Step, filler, frames
from tests.web.conformance.player import Client, judge, listed
from tests.web.stack import LoopbackStack, MemoryStack, Stack
from tests.web.wires import decode, encode, upgrade

_HEADER = {"type": "method", "to": "a", "method": "m"}
_STAMP = 8 * 1024
TEXTS = [case for case in CASES if case.section == 6 or (case.section, case.part) == (1, 1)]


def message(size: int) -> bytes:
    """A message to the client itself of *size* bytes, or of the few that it needs at least."""
    least = len(_message_with(0))
    size = max(least, min(size, Limits().frame_bytes - _STAMP))
    found = _message_with(size - least)
    excess = len(found) - size  # a long content has a longer head
    return _message_with(size - least - excess) if excess else found


def _message_with(length: int) -> bytes:
    return encode(_HEADER, {"args": [filler(BINARY, length)]})


def content(data: bytes) -> bytes:
    """What was sent in a :func:`message`."""
    value = decode(data)[1]["args"][0]
    assert isinstance(value, bytes)
    return value


def with_messages(case: Case) -> Case:
    """*case* with a real message in the place of each."""
    good = list(_expanded(case.steps[: case.lawful]))
    parts = list[tuple[int, Frame]]()
    for index, step in enumerate(good):
        if isinstance(step, Pause) or step.opcode >= CLOSE:
            continue
        parts.append((index, step))
        if step.final:
            sizes = [len(part.payload) for _, part in parts]
            for (place, part), payload in zip(parts, _cut(message(sum(sizes)), sizes), strict=True):
                good[place] = replace(part, payload=payload)
            parts.clear()
    steps = [_as_binary(step) for step in (*good, *_expanded(case.steps[case.lawful :]))]
    return replace(case, steps=tuple(steps), lawful=len(good))


def _cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """*data* in parts of *sizes*; the last one is what is left."""
    begin = 0
    for size in sizes[:-1]:
        yield data[begin : begin + size]
        begin += size
    yield data[begin:]


def _expanded(steps: Iterable[Step]) -> Iterator[Frame | Pause]:
    for step in steps:
        if isinstance(step, Pause):
            yield step
        else:
            yield from frames([step])


def _as_binary(step: Frame | Pause) -> Frame | Pause:
    return replace(step, opcode=BINARY) if isinstance(step, Frame) and step.opcode == TEXT else step


async def connected(stack: Stack) -> Client:
    """A client of the legacy generation."""
    return Client((await upgrade(await stack.open(), "/ws?client_id=a")).stream)


async def play_messages(stack: Stack, case: Case) -> None:
    client, case = await connected(stack), with_messages(case)
    await client.play(case)
    judge(case, client, content)


@pytest.mark.parametrize("case", listed(case for case in CASES if case.section not in {6, 9}))
async def test_a_case_with_real_messages(autojump_clock: MockClock, stack: MemoryStack, case: Case) -> None:
    await play_messages(stack, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", listed(case for case in CASES if case.section == 9))
async def test_a_large_case_with_real_messages(loopback: LoopbackStack, case: Case) -> None:
    await play_messages(loopback, case)


@pytest.mark.parametrize("case", listed(TEXTS, slow=lambda case: case.section == 6 and case.part > 4))
async def test_text_is_refused(autojump_clock: MockClock, stack: MemoryStack, case: Case) -> None:
    client = await connected(stack)
    await client.play(case)
    assert client.answers == []
    assert client.end is not None
    assert client.end.code == (1003 if case.lawful else 1007)
