"""Row 12 of the checklist: calls that last longer than their caller waits for a word, kept alive by heartbeats."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from peer import connected, joined, refused, run

PATIENCE = 10
SECONDS = 25.0


async def wait(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


async def wait_and_fail(seconds: float) -> None:
    await asyncio.sleep(seconds)
    raise ValueError("late failure")


async def wait_with_word(seconds: float, progress: Any) -> int:
    return sum([await progress(await asyncio.sleep(seconds / 5, 1)) for _ in range(5)])


async def main(url: str) -> None:
    async with connected(url) as provider:
        patient = await joined(provider, url, method_timeout=PATIENCE)
        async with connected(url, **patient) as caller, connected(url, method_timeout=PATIENCE) as stranger:
            functions = {"wait": wait, "wait_and_fail": wait_and_fail, "wait_with_word": wait_with_word}
            config = {"visibility": "public"}
            registered = await provider.register_service({"id": "row-12", "config": config, **functions})
            inside, outside = [await who.get_service(registered["id"]) for who in (caller, stranger)]
            started = time.monotonic()
            answers = await asyncio.gather(
                inside.wait(SECONDS),
                outside.wait(SECONDS),
                outside.wait_with_word(SECONDS, lambda number: number),
                refused(inside.wait_and_fail(SECONDS), "late failure"),
            )
            assert list(answers[:3]) == ["done", "done", 5]
            assert SECONDS <= time.monotonic() - started < SECONDS + 5


run(main)
