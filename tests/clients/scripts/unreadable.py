"""Results and arguments that a Python client can write and cannot read: an error for the caller, not its end."""

from __future__ import annotations

from peer import connected, joined, refused, run


async def main(url: str) -> None:
    async with connected(url) as provider, connected(url, **await joined(provider, url)) as caller:
        functions = {"numbered": lambda: {1: "one"}, "echo": lambda value: value}
        await provider.register_service({"id": "unreadable", **functions})
        service = await caller.get_service("unreadable")
        await refused(service.numbered(), "ValueError", "body")
        await refused(service.echo({1: "one"}), "ValueError", "body")
        await refused(caller.echo({1: "one"}), "ValueError", "body")
        assert await service.echo("still here") == "still here"
        assert await caller.echo("still here") == "still here"


run(main)
