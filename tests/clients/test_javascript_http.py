"""Functions that Bj, the published JavaScript client, provides, called over HTTP (``protocol.md`` 8.2, row 32)."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import msgpack
import pytest
import trio

from tests.clients.conftest import StartJavascript
from tests.house.processes import Server

OCTETS = "application/octet-stream"

PROVIDER = """
    const server = await connect({ client_id: "page" });
    const visibility = "public";
    const tools = {
      version: "1.2",
      hello: ({ name, punctuation = "!" }) => `Hello ${name}${punctuation}`,
      later: async ({ name }) => `Hello ${name}, later`,
      add: (a, b) => a + b,
      arguments: (...given) => given,
      nothing: () => undefined,
      nested: { depth: 2, deeper: { add: (a, b) => a + b } },
      list: [async () => "in a list"],
      floats: () => new Float32Array([0, 0.5, -1]),
      bytes: () => new Uint8Array([0, 255]),
      map: () => new Map([["a", 1], ["b", new Map([["c", new Set([2])]])]]),
      pairs: () => new Map([[1, "one"], [[2], "two"]]),
      date: () => new Date("2024-02-29T12:34:56.789Z"),
      describe: (value) => [value.constructor.name, value.length],
      describeNamed: ({ value }) => [value.constructor.name, value.length],
      makeNamed: ({ size }) => new Uint8Array(size).map((_, index) => index % 251),
      callable: () => () => 1,
      async fails(kind) {
        throw new { TypeError, RangeError, Error }[kind](`wrong\\n  in two lines`);
      },
      failsAtOnce() { throw new TypeError("at once"); },
      endless: () => new Promise(() => {}),
    };
    await server.rpc.register_service({ id: "tools", config: { visibility }, ...tools });
    const who = (word, context) => [word, context.from, context.ws, context.user.id];
    await server.register_service({ id: "whose", config: { visibility, require_context: true }, who });
    await server.register_service({ id: "ours", config: { visibility: "protected" }, hello: () => "Hello member" });
    console.log("ready", server.config.workspace, await server.generate_token());
    await new Promise(() => {});
"""


@dataclass(frozen=True)
class Page:
    """The provider above and a client that asks below its workspace's services."""

    client: httpx.AsyncClient
    workspace: str
    token: str

    async def get(self, path: str, expected: int = 200, **parameters: Any) -> Any:
        """The JSON that a GET of *path* answers with status *expected*."""
        response = await self.client.get(path, params=parameters)
        assert response.status_code == expected, response.text
        return response.json()

    async def post(self, function: str, **arguments: Any) -> Any:
        """What a function of the tools answers to a POST, both in msgpack."""
        packed = {"content-type": "application/msgpack"}
        response = await self.client.post(f"tools/{function}", content=msgpack.packb(arguments), headers=packed)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/msgpack"
        return msgpack.unpackb(response.content)


@pytest.fixture
async def page(start_javascript: StartJavascript, server: Server) -> AsyncIterator[Page]:
    async with start_javascript(PROVIDER, server.url) as worker:
        workspace, token = (await worker.wait_for(r"^ready (\S+) (\S+)$")).groups()
        async with httpx.AsyncClient(base_url=f"{server.url}/{workspace}/services/") as client:
            yield Page(client, workspace, token)


async def test_get_calls_with_one_map_or_with_arguments_in_their_places(page: Page) -> None:
    assert await page.get("tools/hello", name="John") == "Hello John!"
    assert await page.get("page:tools/later", name="John") == "Hello John, later"
    assert await page.get("tools/add", _args="[2, 3]") == 5
    assert await page.get("tools/arguments", _args='[1, "x"]', named=7, list=["a", "b"]) == [
        1,
        "x",
        {"named": 7, "list": ["a", "b"]},
    ]
    assert await page.get("tools/arguments") == []
    assert await page.get("tools/nothing") is None


async def test_post_calls_with_json_and_msgpack(page: Page) -> None:
    response = await page.client.post("tools/hello", json={"name": "John", "punctuation": "?"})
    assert (response.status_code, response.json()) == (200, "Hello John?")
    assert await page.post("hello", name="John") == "Hello John!"
    response = await page.client.post("tools/describe", content=b"a file", headers={"content-type": OCTETS})
    assert response.json() == ["Uint8Array", 6]


async def test_nested_functions_and_plain_values(page: Page) -> None:
    assert await page.get("tools/nested.deeper.add", _args="[2, 3]") == 5
    assert await page.get("tools/nested/deeper/add", _args="[2, 3]") == 5
    assert await page.get("tools/list.0") == "in a list"
    assert await page.get("tools/version") == "1.2"
    assert await page.get("tools/nested/depth") == 2


async def test_results_become_json(page: Page) -> None:
    assert await page.get("tools/floats") == [0, 0.5, -1]
    assert await page.get("tools/map") == {"a": 1, "b": {"c": [2]}}
    assert await page.get("tools/pairs") == [[1, "one"], [[2], "two"]]
    assert await page.get("tools/date") == "2024-02-29T12:34:56.789Z"
    assert (await page.get("tools/callable")).startswith("<function: ")
    refusal = await page.get("tools/bytes", 406)
    assert "application/msgpack" in refusal["detail"]


async def test_arrays_travel_as_msgpack(page: Page) -> None:
    floats = {"_rtype": "typedarray", "_rvalue": struct.pack("<3f", 0, 0.5, -1), "_rdtype": "float32"}
    assert await page.post("floats") == floats
    assert await page.post("bytes") == b"\x00\xff"
    assert await page.post("describeNamed", value=floats) == ["Float32Array", 3]
    assert await page.post("describeNamed", value=b"abc") == ["Uint8Array", 3]


@pytest.mark.slow
async def test_three_megabytes_as_argument_and_as_result(page: Page) -> None:
    data = bytes(index % 251 for index in range(3_000_000))
    assert await page.post("describeNamed", value=data) == ["Uint8Array", len(data)]
    assert await page.post("makeNamed", size=len(data)) == data


@pytest.mark.parametrize(("kind", "status"), [("TypeError", 400), ("RangeError", 500), ("Error", 500)])
async def test_errors_of_asynchronous_functions_cross_without_their_stack(page: Page, kind: str, status: int) -> None:
    answer = await page.get("tools/fails", status, _args=f'["{kind}"]')
    assert answer == {"success": False, "detail": f"{kind}: wrong\n  in two lines"}


async def test_an_unknown_function_is_told_at_once(page: Page) -> None:
    """The client itself would never answer (11.10)."""
    for path in ("tools/nope", "tools/nested/nope", "tools/nested.deeper.add.more", "tools/constructor"):
        with trio.fail_after(2):
            answer = await page.get(path, 404)
        assert not answer["success"]
    assert "it has add, " in (await page.get("tools/nope", 404))["detail"]


@pytest.mark.slow
async def test_only_the_time_limit_ends_a_function_that_throws_at_once(page: Page) -> None:
    """The client's own defect (11.10); a function that never ends looks the same."""
    for function in ("failsAtOnce", "endless"):
        with trio.fail_after(5):
            answer = await page.get(f"tools/{function}", 504, _timeout=1)
        assert "neither a result nor a heartbeat for 1 s" in answer["detail"]


async def test_the_context_names_the_caller(page: Page) -> None:
    word, source, workspace, user = await page.get("whose/who", _args='["word"]')
    assert (word, source) == ("word", f"{workspace}/http")
    assert workspace == user != page.workspace
    page.client.headers["authorization"] = f"Bearer {page.token}"
    word, source, workspace, user = await page.get("whose/who", _args='["word"]')
    assert (source, workspace) == (f"{page.workspace}/http", page.workspace)
    assert user == page.token.partition("@")[0]


async def test_a_protected_service_needs_a_token(page: Page) -> None:
    for path in ("ours/hello", "page:ours/hello"):
        page.client.headers.pop("authorization", None)
        assert "not visible without a token" in (await page.get(path, 404))["detail"]
        page.client.headers["authorization"] = f"Bearer {page.token}"
        assert await page.get(path) == "Hello member"
