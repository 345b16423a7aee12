"""Row 12, to the server itself: it waits for a provider that computes, and its caller is less patient than that."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from peer import connected, run

SECONDS = 7.0


async def main(url: str, service_id: str, workspace: str, token: str) -> None:
    settings: dict[str, Any] = {"workspace": workspace, "token": token}
    async with connected(url, **settings) as patient, connected(url, **settings, method_timeout=4) as caller:
        service = await patient.get_service(service_id)
        computing = asyncio.ensure_future(service.compute(SECONDS))
        await patient.echo("this message is behind the call, which has been passed on by now")
        started = time.monotonic()
        found = await caller.get_service(service_id)
        assert time.monotonic() - started > 5
        assert await found.add(1) == 2
        assert await computing == "computed"


run(main)
