"""Row 10 of the checklist: what a function learns of its caller, and that nobody else can say it."""

from __future__ import annotations

from typing import Any

from peer import client_id, connected, joined, refused, run


def functions() -> dict[str, Any]:
    """New function objects each time: a client remembers of each function how it was registered last."""

    def who(context: Any = None) -> Any:
        return context

    async def who_later(word: str, context: Any = None) -> Any:
        return {"word": word, "context": context}

    nested = {"who": lambda context: context}
    return {"who": who, "who_later": who_later, "plain": lambda value: value, "nested": nested}


async def main(url: str) -> None:
    async with connected(url) as provider, connected(url, **await joined(provider, url)) as colleague:
        everywhere = {"visibility": "public", "require_context": True}
        some = {"visibility": "public", "require_context": ["who_later", "nested.who"]}
        all_of_it = await provider.register_service({"id": "row-10", "config": everywhere, **functions()})
        some_of_it = await provider.register_service({"id": "row-10-list", "config": some, **functions()})
        async with connected(url) as stranger:
            for caller in (provider, colleague, stranger):
                await _with_context(await caller.get_service(all_of_it["id"]), provider, caller)
                await _with_a_list(await caller.get_service(some_of_it["id"]), provider, caller)
            owners = {server.config.workspace for server in (provider, stranger)}
            for server in (provider, stranger):
                assert await _user_id(server, all_of_it["id"]) == server.config.workspace
            assert await _user_id(colleague, all_of_it["id"]) not in owners
        await refused((await colleague.get_service("row-10")).plain(5), "unexpected keyword argument 'context'")


async def _user_id(caller: Any, service_id: str) -> Any:
    return (await (await caller.get_service(service_id)).who())["user"]["id"]


async def _with_context(service: Any, provider: Any, caller: Any) -> None:
    _check(await service.who(), provider, caller, "services.row-10.who")
    later = await service.who_later("x")
    assert later["word"] == "x"
    _check(later["context"], provider, caller, "services.row-10.who_later")
    _check(await service.nested.who(), provider, caller, "services.row-10.nested.who")
    forged = await service.who(context={"from": "root", "user": {"id": "root"}})
    _check(forged, provider, caller, "services.row-10.who")


async def _with_a_list(service: Any, provider: Any, caller: Any) -> None:
    assert await service.who() is None
    assert await service.plain(5) == 5
    _check((await service.who_later("x"))["context"], provider, caller, "services.row-10-list.who_later")
    _check(await service.nested.who(), provider, caller, "services.row-10-list.nested.who")


def _check(context: Any, provider: Any, caller: Any, method: str) -> None:
    assert context["type"] == "method"
    assert context["method"] == method
    assert context["connection_type"] == "websocket"
    assert context["from"] == f"{caller.config.workspace}/{client_id(caller)}"
    assert context["to"] == f"{provider.config.workspace}/{client_id(provider)}"
    assert context["ws"] == caller.config.workspace
    user = context["user"]
    assert user["is_anonymous"] is True
    assert {"id", "email", "roles", "scopes", "parent", "expires_at"} <= set(user)


run(main)
