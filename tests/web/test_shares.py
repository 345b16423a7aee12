"""Shared services over HTTP: the page, the calls, and what a link does not open."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from hypha.broker.registration import Registration
from hypha.config import Config
from hypha.errors import NotStored
from hypha.web import shares
from tests.web.person import ORIGIN, Chrome, alert, opened, people_of, shown
from tests.web.stack import MemoryStack
from tests.web.wires import Call, HttpAnswer, Peer, http, join, upgrade

JSON = {"Content-Type": "application/json"}
SCHEMA = {
    "hello": {
        "type": "function",
        "function": {
            "name": "hello",
            "parameters": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "description": "<whom>"},
                    "times": {"type": "int", "default": 3},
                },
                "required": ["name"],
            },
        },
    }
}


async def hello(call: Call) -> Any:
    return f"Hello {call.kwargs.get('name')}"


async def who(call: Call) -> Any:
    return {name: call.main.get(name) for name in ("from", "user")}


@dataclass
class Lab:
    """A server with an owner, whose program offers ``model`` to nobody else."""

    stack: MemoryStack
    chrome: Chrome
    owner: str
    provider: Peer

    async def share(self, **fields: str) -> str:
        """The path of a new link."""
        given = {"service": f"{self.owner} model", "label": "reviewers", "life": "3600", **fields}
        link = shown(await self.chrome.send("/account/shares", **given))
        assert link.startswith(f"{ORIGIN}/share/")
        return link.removeprefix(ORIGIN)

    async def call(self, path: str, **arguments: Any) -> HttpAnswer:
        return await http(self.stack, path, "POST", JSON, json.dumps(arguments).encode())


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    with trio.fail_after(20):
        async with opened(Config(data_dir=tmp_path)) as stack:
            chrome = Chrome(stack)
            await chrome.become()
            account = people_of(stack).accounts.everybody()[0]
            token = await people_of(stack).tokens.issue(account, "model", 3600)
            provider = await join(stack, "worker", f"&token={token}")
            functions = {"hello": hello, "who": who, "tools.add": hello}
            await provider.provide("model", functions, "protected")
            yield Lab(stack, chrome, account.id, provider)


async def test_whoever_has_the_link_calls_and_others_do_not(lab: Lab) -> None:
    link = await lab.share()
    direct = f"/{lab.owner}/services/model/hello?name=Ada"
    assert (await http(lab.stack, direct)).status == 404
    assert (await http(lab.stack, f"{link}/hello?name=Ada")).json() == "Hello Ada"
    assert (await lab.call(f"{link}/hello", name="Bob")).json() == "Hello Bob"
    assert (await lab.call(f"{link}/tools.add", name="Eve")).json() == "Hello Eve"
    for path in (f"{link}x/hello", "/share/x/hello", "/share/x"):
        assert (await http(lab.stack, path)).status == 404


async def test_a_holder_is_told_as_what_it_is(lab: Lab) -> None:
    link = await lab.share()
    token = (await lab.provider.manager("generate_token")) or ""
    for headers in ({}, {"Authorization": f"Bearer {token}"}, {"Authorization": "Bearer nonsense"}):
        told = (await http(lab.stack, f"{link}/who", headers=headers)).json()
        assert told["from"] == f"{lab.owner}/http"
        assert told["user"]["id"].startswith("share-")
        assert (told["user"]["is_anonymous"], told["user"]["parent"]) == (True, lab.owner)
        assert (told["user"]["email"], told["user"]["roles"]) == (None, [])


async def test_what_is_in_a_workspace_that_the_account_has_made_is_shared_too(lab: Lab) -> None:
    account = people_of(lab.stack).accounts.everybody()[0]
    await lab.provider.manager("create_workspace", {"name": "lab"})
    token = await people_of(lab.stack).tokens.issue(account, "lab", 3600, "lab", "admin")
    provider = await join(lab.stack, "second", f"&token={token}")
    await provider.provide("model", {"hello": hello}, "protected")
    link = await lab.share(service="lab model")
    assert (await lab.call(f"{link}/hello", name="Ada")).json() == "Hello Ada"
    lab.stack.broker.registry.workspaces["lab"].owners = ["somebody"]
    assert (await lab.call(f"{link}/hello", name="Ada")).status == 404


async def test_a_link_to_one_function_leads_to_no_other(lab: Lab) -> None:
    link = await lab.share(function="hello")
    assert (await lab.call(f"{link}/hello", name="Ada")).status == 200
    for name in ("who", "tools.add", "hello.x", "nope"):
        refused = await lab.call(f"{link}/{name}")
        assert (refused.status, refused.detail) == (404, "this link is for the function hello")
    page = (await http(lab.stack, link)).body.decode()
    assert "Call hello" in page
    assert "Call who" not in page


async def test_calls_are_counted_shown_and_end(lab: Lab) -> None:
    link = await lab.share(calls="2")
    await http(lab.stack, link)  # looking at the page is no call
    assert [(await lab.call(f"{link}/hello", name="x")).status for _ in range(3)] == [200, 200, 429]
    refused = await lab.call(f"{link}/hello")
    assert refused.detail == "this link was for 2 calls, which are used up"
    listed = (await lab.chrome.get("/account")).body.decode()
    assert "calls: 2 of 2, the last just now" in listed
    over = (await http(lab.stack, link)).body.decode()
    assert ("All calls of this link are used up" in over, "<form" in over) == (True, False)
    assert link.rpartition("/")[2] not in listed


async def test_a_link_is_for_a_function_that_there_is(lab: Lab) -> None:
    given = {"service": f"{lab.owner} model", "label": "reviewers", "function": "helo", "life": "3600"}
    refused = await lab.chrome.send("/account/shares", **given)
    assert (refused.status, "has no function 'helo'" in alert(refused)) == (404, True)
    assert b'name="function" value="helo"' in refused.body  # to be mended


async def test_what_is_not_there_is_not_counted_and_says_nothing_of_what_else_there_is(lab: Lab) -> None:
    whole, one = await lab.share(calls="1"), await lab.share(function="hello", calls="1")
    missing = await lab.call(f"{whole}/helo")
    await lab.provider.provide("model-x", {"hello": hello}, "protected")  # in the place of the other one
    away = [await lab.call(f"{link}/hello", name="Ada") for link in (whole, one)]
    for answer in (missing, *away):
        assert (answer.status, answer.detail) == (404, shares.AWAY)
    account = people_of(lab.stack).accounts.everybody()[0]
    assert [item.used for item in people_of(lab.stack).shares.of(account)] == [0, 0]


async def test_what_is_no_call_is_not_counted(lab: Lab) -> None:
    link = await lab.share(calls="1")
    (item,) = people_of(lab.stack).shares.of(people_of(lab.stack).accounts.everybody()[0])
    for method, path, body in (("POST", f"{link}/hello", b"{"), ("PUT", f"{link}/hello", b""), ("GET", link, b"")):
        await http(lab.stack, path, method, JSON, body)
    await lab.provider.socket.stream.aclose()
    await lab.provider.ended.wait()
    assert item.used == 0


async def test_a_call_that_cannot_be_counted_is_not_made(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    link = await lab.share()
    calls = 0

    async def count(call: Call) -> None:
        nonlocal calls
        calls += 1

    async def full() -> None:
        raise NotStored("the disk is full")

    await lab.provider.provide("model", {"hello": count}, "protected")
    monkeypatch.setattr(lab.stack.broker.records, "kept", full)
    assert (await lab.call(f"{link}/hello")).status == 507
    assert calls == 0


async def test_a_revoked_link_is_like_one_that_never_was(lab: Lab) -> None:
    link = await lab.share()
    account = people_of(lab.stack).accounts.everybody()[0]
    (item,) = people_of(lab.stack).shares.of(account)
    done = await lab.chrome.send("/account/shares/revoke", id=item.id)
    assert b"The link is revoked" in done.body
    gone, never = await lab.call(f"{link}/hello"), await lab.call("/share/nonsense/hello")
    assert (gone.status, gone.body) == (never.status, never.body)
    assert gone.status == 404
    assert (await http(lab.stack, link)).body == (await http(lab.stack, "/share/nonsense")).body


async def test_the_page_has_a_form_for_each_function_and_runs_nothing_of_others(lab: Lab) -> None:
    registry = lab.stack.broker.registry
    session = registry.peers[lab.provider.name]
    config = {"visibility": "protected"}
    registry.register(session, Registration("model", "A <model>", "t", config, "<b>says</b>", schema=SCHEMA))
    link = await lab.share(label="<i>you</i>")
    answer = await http(lab.stack, link)
    page = answer.body.decode()
    assert "&lt;b&gt;says&lt;/b&gt;" in page
    for text in ("<b>says", "<i>you", "A <model>", "<whom>"):
        assert text not in page
    assert 'name <small>(&lt;whom&gt;)</small>\n<input name="name" autocomplete="off" required>' in page
    assert 'times <small>(int)</small>\n<input name="times" autocomplete="off" placeholder="3">' in page
    assert "-d &#x27;{&quot;name&quot;: &quot;...&quot;, &quot;times&quot;: 1}&#x27;" in page
    assert page.count('name="_args"') == 1  # of the function that has told nothing of its parameters
    assert f"curl {ORIGIN}{link}/hello" in page
    assert "Shared by ada" in page
    policy = answer.headers["content-security-policy"]
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy


async def test_a_service_that_is_not_there_now_is_shown_as_such(lab: Lab) -> None:
    link = await lab.share(service=f"{lab.owner} other")
    page = await http(lab.stack, link)
    assert (page.status, b"It is not offered now" in page.body) == (200, True)
    assert (await lab.call(f"{link}/hello")).status == 404


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"service": "public hypha-login"}, 403),
        ({"service": "nowhere x"}, 403),
        ({"service": ""}, 400),
        ({"calls": "0"}, 400),
        ({"calls": "-1"}, 400),
        ({"calls": "x"}, 400),
        ({"calls": "9" * 5000}, 400),
        ({"life": "5"}, 400),
        ({"label": " "}, 400),
    ],
)
async def test_what_makes_no_link(lab: Lab, fields: dict[str, str], status: int) -> None:
    given = {"service": f"{lab.owner} model", "label": "x", "life": "3600", **fields}
    assert (await lab.chrome.send("/account/shares", **given)).status == status


async def test_a_websocket_is_no_call(lab: Lab) -> None:
    link = await lab.share()
    stream = lab.stack.connect()
    with pytest.raises(Exception, match="websockets are served at"):
        await upgrade(stream, f"{link}/hello")


async def test_uses_outlive_a_restart(tmp_path: Path) -> None:
    config = Config(data_dir=tmp_path)
    async with opened(config) as stack:
        chrome = Chrome(stack)
        await chrome.become()
        account = people_of(stack).accounts.everybody()[0]
        secret = await people_of(stack).shares.share(account, "x", 3600, account.id, "model", calls=5)
        await people_of(stack).shares.spend(people_of(stack).shares.find(secret))
    async with opened(config) as stack:
        again = people_of(stack).shares.find(secret)
        assert (again.used, again.calls) == (1, 5)


async def revoke_all(lab: Lab) -> None:
    people = people_of(lab.stack)
    account = people.accounts.everybody()[0]
    for item in people.shares.of(account):
        await people.shares.revoke(account, item.id)


async def test_a_link_that_is_revoked_while_a_body_comes_calls_nothing(lab: Lab) -> None:
    link = await lab.share()
    body = b'{"name": "Eve"}'
    stream = await lab.stack.open()
    head = f"POST {link}/hello HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    await stream.send_all(head.encode() + body[:3])
    await trio.testing.wait_all_tasks_blocked()
    await revoke_all(lab)
    await stream.send_all(body[3:])
    assert (await stream.receive_some()).startswith(b"HTTP/1.1 404 ")


async def test_a_link_that_has_come_to_name_a_service_of_the_servers_own_calls_nothing(lab: Lab) -> None:
    lab.stack.broker.registry.workspaces["public"].permissions = {lab.owner: "read_write"}
    people = people_of(lab.stack)
    account = people.accounts.everybody()[0]
    secret = await people.shares.share(account, "x", 3600, "public", "later")
    people.shares.find(secret).service = "hypha-login"
    assert (await lab.call(f"/share/{secret}/start")).status == 404


async def test_a_stream_ends_with_its_link(lab: Lab) -> None:
    made = 0

    async def ticks(call: Call) -> Any:
        return {
            "_rtype": "generator",
            "_rtarget": lab.provider.name,
            "_rmethod": "session.next",
            "_rclose_method": "session.close",
            "_rpromise": "*",
        }

    async def following(call: Call) -> Any:
        nonlocal made
        made += 1
        if made == 3:
            await revoke_all(lab)
        return made

    async def close(call: Call) -> None:
        pass

    await lab.provider.provide("model", {"ticks": ticks}, "protected")
    lab.provider.functions |= {"session.next": following, "session.close": close}
    answer = await http(lab.stack, f"{await lab.share()}/ticks")
    assert answer.status == 200
    assert b"data: 3" in answer.body
    assert b"this link has ended" in answer.body
    assert made == 3


@pytest.mark.parametrize("key", [1, None, b"x"])
async def test_what_a_program_says_of_its_functions_may_be_anything(lab: Lab, key: Any) -> None:
    registry = lab.stack.broker.registry
    known = {"properties": {key: {"type": "string"}, "name": {}}}
    schema = {"hello": {"type": "function", "function": {"parameters": known}}}
    session = registry.peers[lab.provider.name]
    registry.register(session, Registration("model", "m", "t", {"visibility": "protected"}, "d", schema=schema))
    page = await http(lab.stack, await lab.share())
    assert (page.status, page.body.count(b"<input")) == (200, 1)


async def test_the_address_of_a_page_stays_with_it(lab: Lab) -> None:
    for path in (await lab.share(), "/share/nonsense"):
        assert (await http(lab.stack, path)).headers["referrer-policy"] == "no-referrer"
