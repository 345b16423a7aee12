"""What a program offers: maps and objects, descriptions, visibility."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from hypha.client import connect_to_server
from hypha.client.service import parse_service
from hypha.errors import Conflict, InvalidArgument, NotFound, PermissionDenied
from hypha.testing import LiveServer
from tests.client.conftest import pair
from tests.web.wires import exchange


class Microscope:
    """An instrument."""

    name = "the microscope"
    type = "instrument"

    def __init__(self) -> None:
        self.exposure = 10
        self._secret = 1

    async def snap(self, count: int, *, wait: bool = False) -> list[int]:
        """Take pictures.

        As many as asked for.
        """
        return [self.exposure] * count


async def test_a_map_is_registered_found_and_taken_back(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        info = await worker.register_service({"id": "svc", "name": "Tools", "description": "all of them", "one": int})
        assert info.id == f"{worker.peer.name}:svc"
        (entry,) = [item for item in await user.list_services() if item.id == info.id]
        assert (entry.name, entry.type, entry.description) == ("Tools", "generic", "all of them")
        assert entry.config.visibility == "protected"
        await worker.unregister_service(info)
        with pytest.raises(NotFound):
            await user.get_service("svc")
        with pytest.raises(NotFound, match="offers no service 'svc'"):
            await worker.unregister_service("svc")


async def test_an_object_offers_its_public_methods(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        info = await worker.register_service(Microscope(), {"visibility": "public"})
        assert info.id.endswith(":default")
        service = await user.get_service(info)
        assert await service.snap(2) == [10, 10]
        assert (service.exposure, service.type) == (10, "instrument")
        assert "_secret" not in service
        schema = service.snap.__schema__
        assert schema["name"] == "snap"
        assert schema["description"] == "Take pictures."
        assert schema["parameters"]["properties"] == {
            "count": {"type": "integer"},
            "wait": {"type": "boolean", "default": False},
        }
        assert schema["parameters"]["required"] == ["count"]
        assert service.snap.documentation.startswith("Take pictures.")
        assert service.snap.__name__ == "snap"


async def test_functions_in_maps_and_lists(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        service = await user.get_service(
            await worker.register_service(
                {"id": "svc", "constant": 5, "deep": {"twice": lambda x: 2 * x}, "all": [str, lambda x: x + 1]}
            )
        )
        assert service.constant == 5
        assert await service.deep.twice(4) == 8
        assert await service.all[1](4) == 5


async def test_a_taken_id_is_refused_unless_it_is_overwritten(live: LiveServer) -> None:
    async with pair(live) as (worker, user):
        await worker.register_service({"id": "svc", "number": lambda: 1})
        with pytest.raises(Conflict, match="Service already exists: svc"):
            await worker.register_service({"id": "svc", "number": lambda: 2})
        service = await user.get_service("svc")
        assert await service.number() == 1
        await worker.register_service({"id": "svc", "number": lambda: 2}, overwrite=True)
        assert await service.number() == 2


@pytest.mark.parametrize(
    ("service", "words"),
    [
        ({}, "service id must be a non-empty string"),
        ({"id": "a/b"}, "must not contain '/'"),
        ({"id": "a.b"}, "must not contain '.'"),
        ({"id": "a", 1: int}, "must be text"),
        ({"id": "a", "deep": {"x.y": int}}, "without '.'"),
        ({"id": "a", "config": 3}, "must be a map"),
        ({"id": "a", "config": {"visibility": "secret"}}, "choose public, unlisted or protected"),
        ({"id": "a", "name": 3}, "'name' of a service must be text"),
        ([1], "takes a map with an 'id'"),
        ("text", "takes a map with an 'id'"),
        ({"id": "a", "visibility": "public"}, "'visibility' of a service belongs into its 'config'"),
        ({"id": "a", "stage": object()}, "the service a cannot be offered: a value of type object"),
        (Microscope, "takes a map with an 'id'"),
    ],
)
def test_what_cannot_be_a_service(service: Any, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        parse_service(service)


async def test_what_the_server_refuses_is_not_offered(live: LiveServer) -> None:
    async with pair(live) as (worker, _):
        reader = {"workspace": worker.config.workspace}
        reader["token"] = await worker.generate_token({"permission": "read"})
        async with live.connect(reader) as guest:
            with pytest.raises(PermissionDenied):
                await guest.register_service({"id": "svc", "one": int})
            assert not guest.peer.store.services
            await guest.disconnect()
        await worker.register_service({"id": "svc", "number": lambda: 1})
        before = worker.peer.store.services["svc"]
        with pytest.raises(Exception, match="description_bytes"):
            await worker.register_service({"id": "svc", "docs": "x" * 10**6}, overwrite=True)
        assert worker.peer.store.services["svc"] is before


async def test_a_service_is_a_plain_http_call(live: LiveServer) -> None:
    async with live.connect({"client_id": "worker"}) as worker:
        config = {"visibility": "public"}
        await worker.register_service({"id": "svc", "config": config, "hello": lambda name: f"Hello {name}"})
        path = f"/{worker.config.workspace}/services/svc/hello?name=John"
        async with await live.open_stream() as stream:
            answer = await exchange(stream, path)
        assert (answer.status, json.loads(answer.body)) == (200, "Hello John")


async def test_a_function_stops_when_its_http_client_goes_away(live: LiveServer) -> None:
    begun, ended = trio.Event(), trio.Event()

    async def hang() -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with live.connect({"client_id": "worker"}) as worker:
        await worker.register_service({"id": "svc", "config": {"visibility": "public"}, "hang": hang})
        async with await live.open_stream() as stream:
            path = f"/{worker.config.workspace}/services/svc/hang"
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: hypha.test\r\n\r\n".encode())
            await begun.wait()
        await ended.wait()
        await wait_all_tasks_blocked()
        assert not worker.peer.serving._running


async def test_workspaces_tokens_and_the_rest_of_the_manager(live: LiveServer) -> None:
    async with live.connect({"token": live.token("public", "admin")}) as admin:
        made = await admin.create_workspace({"id": "my-lab", "description": "My lab"})
        assert made.name == "my-lab"
        with pytest.raises(Conflict):
            await admin.create_workspace({"id": "my-lab"})
        token = await admin.generate_token({"workspace": "my-lab", "permission": "read_write"})
        async with live.connect({"token": token, "workspace": "my-lab"}) as member:
            assert member.config.workspace == "my-lab"
            assert (await member.check_status()).status == "ready"
        with pytest.raises(AttributeError):
            admin._nothing  # noqa: B018  what is asked for is that it is not there
        with pytest.raises(NotFound, match="Method not found"):
            await admin.no_such_function()


async def test_wrong_calls_say_what_to_write(live: LiveServer) -> None:
    wrong: Any = "http://localhost:9000"
    with pytest.raises(InvalidArgument, match=r"takes a map, such as {'server_url': 'http://localhost:9000'}"):
        async with connect_to_server(wrong):
            pass
    async with live.connect() as server:
        with pytest.raises(InvalidArgument, match=r"takes a map, such as {'id': 'my-lab'}"):
            await server.create_workspace("my-lab")  # type: ignore[arg-type]  # that is the point


def test_another_event_loop_is_told_apart() -> None:
    async def connect() -> None:
        async with connect_to_server({"server_url": "http://localhost:9000"}):
            pass

    with pytest.raises(RuntimeError, match=r"hypha\.sync"):
        connect().send(None)
