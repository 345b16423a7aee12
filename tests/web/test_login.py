"""The login service over HTTP, and its page (``protocol.md`` 7.4)."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hypha.config import Config, Mount
from tests.web.stack import MemoryStack, memory_stack
from tests.web.wires import HttpAnswer, exchange, http, join

SERVICE = "/public/services/hypha-login/"
PAGE = "/public/apps/hypha-login/"


async def post(stack: MemoryStack, name: str, bearer: str | None = None, prefix: str = "", /, **arguments: Any) -> Any:
    """Call a function of the service as its page and other programs do."""
    answer = await ask(stack, name, bearer, prefix, **arguments)
    assert answer.status == 200, answer.body
    return answer.json()


async def ask(
    stack: MemoryStack, name: str, bearer: str | None = None, prefix: str = "", /, **arguments: Any
) -> HttpAnswer:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {bearer}"} if bearer else {})
    return await http(stack, prefix + SERVICE + name, "POST", headers, json.dumps(arguments).encode())


# --- the service ------------------------------------------------------------------------------------------------


async def test_a_login_by_http_alone(stack: MemoryStack, autojump_clock: MockClock) -> None:
    begun = await post(stack, "start")
    assert begun["report_url"] == "http://lab.example:9527/public/services/hypha-login/report"
    key = begun["key"]
    assert await post(stack, "check", key=key, timeout=0) is None
    token = await post(stack, "generate")
    assert await post(stack, "report", key=key, token=token) is None
    assert await post(stack, "check", key=key, timeout=0) == token
    again = await ask(stack, "check", key=key)
    assert (again.status, again.detail) == (404, "Invalid key, key does not exist")


async def test_the_context_of_a_call_is_never_what_its_body_says(stack: MemoryStack, autojump_clock: MockClock) -> None:
    for name in ("visit", "context", "self", "call", "principal"):
        told: dict[str, Any] = {name: {"user": {"id": "root"}}}
        assert (await ask(stack, "profile", **told)).status == 400
    peer = await join(stack, "a")
    token = await peer.manager("generate_token")
    who = await post(stack, "profile", token)
    assert (who["user_id"], who["workspace"]) == (token.partition("@imjoy@")[0], None)
    first, second = await post(stack, "profile"), await post(stack, "profile")
    assert first["is_anonymous"]
    assert first["user_id"] != second["user_id"]


async def test_a_generated_token_is_a_new_user_with_a_workspace_or_the_caller(
    stack: MemoryStack, autojump_clock: MockClock
) -> None:
    token = await post(stack, "generate")
    user = stack.broker.tokens.verify(token)
    assert (user.is_anonymous, user.home) == (True, user.id)
    newcomer = await join(stack, "n", f"&token={token}")
    assert newcomer.workspace == user.id
    assert stack.broker.tokens.verify(await post(stack, "generate", token)).id == user.id
    refused = await ask(stack, "generate", workspace=newcomer.workspace)
    assert (refused.status, refused.detail) == (403, f"User has no permission to workspace: {newcomer.workspace}")


async def test_statuses(stack: MemoryStack, autojump_clock: MockClock) -> None:
    key = (await post(stack, "start"))["key"]
    for name, arguments, status in (
        ("report", {"key": key, "token": "nonsense"}, 401),
        ("report", {"key": "x", "token": "nonsense"}, 404),
        ("report", {"key": key}, 400),
        ("check", {"key": key, "timeout": "x"}, 400),
        ("check", {"key": key, "timeout": 2}, 504),
        ("check?_timeout=1", {"key": key}, 504),
        ("nope", {}, 404),
        ("start/x", {}, 404),
        ("start.x", {}, 404),
    ):
        assert (await ask(stack, name, **arguments)).status == status, name


async def test_who_leaves_while_it_waits_leaves_nothing(stack: MemoryStack, autojump_clock: MockClock) -> None:
    key, token = (await post(stack, "start"))["key"], await post(stack, "generate")
    stream = stack.connect()
    body = json.dumps({"key": key}).encode()
    head = f"POST {SERVICE}check HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    await stream.send_all(f"{head}\r\n\r\n".encode() + body)
    await wait_all_tasks_blocked()
    await trio.aclose_forcefully(stream)
    await wait_all_tasks_blocked()
    await post(stack, "report", key=key, token=token)
    assert await post(stack, "check", key=key, timeout=0) == token


async def test_it_is_listed_and_described_like_every_service(stack: MemoryStack, autojump_clock: MockClock) -> None:
    (entry,) = (await http(stack, "/public/services")).json()
    assert entry["id"].endswith(":hypha-login")
    service = (await http(stack, "/public/services/hypha-login")).json()
    assert service["id"] == entry["id"]
    assert service["check"] == "<function: services.hypha-login.check>"
    assert (await http(stack, "/public/services/hypha-login/name")).json() == "Hypha Login"
    assert (await http(stack, f"/{entry['id'].replace('/', '/services/')}/profile")).json()["is_anonymous"] is True


@pytest.mark.parametrize("public", [None, "https://lab.example/outside"])
async def test_addresses_behind_a_base_path_and_a_proxy(
    tmp_path: Path, public: str | None, autojump_clock: MockClock
) -> None:
    async with memory_stack(Config(data_dir=tmp_path, base_path="/in", public_base_url=public)) as stack:
        base = public or "http://lab.example:9527/in"
        begun = await post(stack, "start", None, "/in")
        assert begun["check_url"] == f"{base}/public/services/hypha-login/check"
        assert begun["login_url"].startswith(f"{base}/public/apps/hypha-login/?key=")
        peer = await join(stack, "a", prefix="/in")
        name = stack.broker.server.address.client
        told = await peer.call(f"public/{name}", "services.hypha-login.start")
        assert told["login_url"].startswith(f"{base}/public/apps/hypha-login/?key=")
        answer = await http(stack, "/in/login?key=x")
        assert urljoin("http://lab.example/in/login", answer.headers["location"]) == (
            "http://lab.example/in/public/apps/hypha-login/?key=x"
        )


# --- the page ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/login", PAGE[:-1]])
async def test_the_short_address_leads_to_the_page_and_keeps_what_it_needs(
    stack: MemoryStack, path: str, autojump_clock: MockClock
) -> None:
    answer = await http(stack, f"{path}?key=a%26b&workspace=x%0d%0aSet-Cookie:y&expires_in=60&token=secret")
    assert answer.status == 302
    place = urlsplit(urljoin(f"http://lab.example{path}", answer.headers["location"]))
    assert (place.netloc, place.path) == ("lab.example", PAGE)
    assert parse_qs(place.query) == {"key": ["a&b"], "workspace": ["x\r\nSet-Cookie:y"], "expires_in": ["60"]}
    assert "set-cookie" not in answer.headers
    plain = urljoin(path, (await http(stack, path)).headers["location"])
    assert plain == (PAGE if path != "/login" else "/account")


async def test_the_page_permits_itself_and_nothing_else(stack: MemoryStack, autojump_clock: MockClock) -> None:
    key = (await post(stack, "start"))["key"]
    answer = await http(stack, f"{PAGE}?key={key}")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert (answer.headers["cache-control"], answer.headers["referrer-policy"]) == ("no-store", "no-referrer")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    page = answer.body.decode()
    for kind, tag in (("script-src", "script"), ("style-src", "style")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy.pop(kind) == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": "'self'",
    }
    assert re.findall(r"(?:src|href)=\"([^\"]*)\"", page) == ["data:,", f"../../../account/allow?key={key}"]
    assert " on" not in "".join(re.findall(r"<(?:button|form|input)[^>]*>", page))


async def test_the_page_says_who_asks_for_what(stack: MemoryStack, autojump_clock: MockClock) -> None:
    server = f"public/{stack.broker.server.address.client}"
    program = await join(stack, "a")
    for arguments, told, anonymous in (
        ({}, "It asks for everything that your token allows.", True),
        ({"expires_in": 1}, "It asks for everything that your token allows, for 1 second.", True),
        ({"workspace": "<i>&"}, "It asks for the workspace <b>&lt;i&gt;&amp;</b>.", False),
        ({"workspace": "lab", "expires_in": 5400}, "It asks for the workspace <b>lab</b>, for 2 hours.", False),
        ({"expires_in": 172800}, "It asks for everything that your token allows, for 2 days.", True),
    ):
        key = (await program.call(server, "services.hypha-login.start", **arguments))["key"]
        page = (await http(stack, f"{PAGE}?key={key}")).body.decode()
        assert "A program in JavaScript started to log in just now" in page
        assert told in page
        assert ('id="anonymous"' in page) == anonymous
    key = (await post(stack, "start"))["key"]
    await trio.sleep(130)
    assert "A program that speaks HTTP started to log in 2 minutes ago" in (
        (await http(stack, f"{PAGE}?key={key}")).body.decode()
    )


async def test_a_key_that_nobody_waits_for(stack: MemoryStack, autojump_clock: MockClock) -> None:
    used = (await post(stack, "start"))["key"]
    await post(stack, "report", key=used, token=await post(stack, "generate"))
    old = (await post(stack, "start"))["key"]
    await trio.sleep(180)
    pages = {(await http(stack, PAGE + query)).body for query in ("", "?key=", "?key=x", f"?key={used}", f"?key={old}")}
    (page,) = pages
    assert b"No program waits here any more" in page
    assert b"<script" not in page
    assert b"nothing to log out of" in (await http(stack, f"{PAGE}?logout")).body


@pytest.mark.parametrize("path", ["/login", PAGE])
async def test_the_page_is_only_read(stack: MemoryStack, path: str, autojump_clock: MockClock) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert (await http(stack, path, method, body=b"key=x")).status == 405


async def test_a_mount_on_the_root_does_not_hide_the_page(tmp_path: Path, autojump_clock: MockClock) -> None:
    site = tmp_path / "site" / "public" / "apps" / "hypha-login"
    site.mkdir(parents=True)
    (site / "index.html").write_text("give me your token")
    (tmp_path / "site" / "login").write_text("give me your token")
    mounts = (Mount("/", tmp_path / "site"),)
    (tmp_path / "site" / "account").write_text("give me your password")
    async with memory_stack(Config(data_dir=tmp_path, static_mounts=mounts)) as stack:
        assert b"Nobody has an account here yet" in (await http(stack, "/account")).body
        stream = stack.connect()
        assert b"No program waits" in (await exchange(stream, PAGE)).body
        assert (await exchange(stream, "/login")).status == 302
