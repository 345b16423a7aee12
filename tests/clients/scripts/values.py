"""Row 11 of the checklist: every value round trip, to another client and to the server itself."""

from __future__ import annotations

from peer import connected, joined, run
from tools import tools, use_large_values, use_values


async def main(url: str) -> None:
    async with connected(url) as provider, connected(url, **await joined(provider, url)) as caller:
        await provider.register_service(tools("row-11"))
        service = await caller.get_service("row-11")
        await use_values(service)
        await use_values(caller)  # the workspace manager has an echo, too
        await use_large_values(service)


run(main)
