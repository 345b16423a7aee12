"""The account pages as a browser asks for them: forms, cookies, and what is refused."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin

import pytest
import trio

from hypha.broker.access import Level, level_in
from hypha.config import Config, Limits
from hypha.errors import NotStored
from tests.web.person import ORIGIN, PASSWORD, Chrome, alert, field_of, opened, people_of, shown
from tests.web.stack import MemoryStack
from tests.web.wires import Closed, Refused, http, join, upgrade


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[MemoryStack]:
    """Time is real here."""
    with trio.fail_after(20):
        async with opened(Config(data_dir=tmp_path)) as stack:
            yield stack


@pytest.fixture
async def chrome(server: MemoryStack) -> Chrome:
    """The browser of the owner."""
    found = Chrome(server)
    await found.become()
    return found


# --- the pages ----------------------------------------------------------------------------------------------------


async def test_signing_in_again_leaves_other_browsers_signed_in(tmp_path: Path) -> None:
    async with opened(Config(data_dir=tmp_path, limits=replace(Limits(), browsers_per_account=2))) as stack:
        phone, laptop = Chrome(stack), Chrome(stack)
        await phone.become()
        for _ in range(3):
            await laptop.post("/account/sign-in", {"name": "ada", "password": PASSWORD})
        assert people_of(stack).accounts.signed_in(phone.cookie.partition("=")[2]) is not None


async def test_what_the_disk_does_not_take_is_done_and_said_to_be_so(
    chrome: Chrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    people, records = people_of(chrome.stack), chrome.stack.broker.records
    link = await people.accounts.invite(people.accounts.everybody()[0])

    async def full() -> None:
        raise NotStored("the disk is full")

    fields = {"link": link, "name": "bob", "password": PASSWORD}
    monkeypatch.setattr(records, "kept", full)
    answer = await Chrome(chrome.stack).post("/account/join", fields)
    assert (answer.status, b"Done, but not kept" in answer.body) == (507, True)
    monkeypatch.undo()
    assert (await Chrome(chrome.stack).post("/account/sign-in", fields)).status == 303


async def test_invitations_that_are_not_accepted_are_counted_by_address(tmp_path: Path) -> None:
    async with opened(Config(data_dir=tmp_path, limits=replace(Limits(), sign_in_tries_per_address=2))) as stack:
        await Chrome(stack).become()
        (owner,) = people_of(stack).accounts.everybody()
        link = await people_of(stack).accounts.invite(owner)
        fields = {"link": link, "name": "ada", "password": PASSWORD}
        statuses = [(await Chrome(stack).post("/account/join", fields)).status for _ in range(3)]
    assert statuses == [409, 409, 429]


async def test_the_first_account_is_made_and_is_signed_in(server: MemoryStack) -> None:
    chrome = Chrome(server)
    secret = people_of(server).accounts.first_invitation()
    page = await chrome.get(f"/account/join?link={secret}")
    assert b"administers the server and invites" in page.body
    assert field_of(page, "link") == secret
    fields = {"link": str(secret), "name": "ada", "password": PASSWORD, "email": "ada@lab.example"}
    answer = await chrome.post("/account/join", fields)
    assert (answer.status, answer.headers["location"]) == (303, "../account")
    account = (await chrome.get("/account")).body.decode()
    for part in ("<h1>ada</h1>", "ada@lab.example", "administers this server", "your own, where your programs go"):
        assert part in account
    used = await chrome.get(f"/account/join?link={secret}")
    assert (used.status, b"was used already" in used.body) == (404, True)


@pytest.mark.parametrize("path", ["/login", "/apps/built-in/account-manager.html"])
async def test_the_other_ways_to_the_page(server: MemoryStack, path: str) -> None:
    answer = await http(server, path)
    assert urljoin(path, answer.headers["location"]) == "/account"
    assert b"Nobody has an account here yet" in (await http(server, "/account")).body
    await Chrome(server).become()
    assert b"<h1>Sign in</h1>" in (await http(server, "/account")).body


@pytest.mark.parametrize("path", ["/account/", "/account/tokens", "/account/people/remove", "/account/sign-in"])
async def test_what_stands_in_the_address_bar_leads_back(chrome: Chrome, path: str) -> None:
    answer = await chrome.get(path)
    if answer.status == 303:
        answer = await chrome.get(urljoin(path, answer.headers["location"]))
    assert (answer.status, b"<h1>ada</h1>" in answer.body) == (200, True)


@pytest.mark.parametrize("path", ["/account", "/account/join?link=x", "/account/allow?key=x"])
async def test_every_page_permits_itself_and_nothing_else(server: MemoryStack, path: str) -> None:
    answer = await http(server, path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert (answer.headers["x-frame-options"], answer.headers["cross-origin-opener-policy"]) == ("DENY", "same-origin")
    assert (answer.headers["cache-control"], answer.headers["referrer-policy"]) == ("no-store", "same-origin")
    assert "://" not in answer.body.decode()  # nothing from elsewhere


async def test_what_somebody_chose_is_text_everywhere(chrome: Chrome) -> None:
    label = '"><script>alert(1)</script>'
    made = await chrome.send("/account/tokens", label=label, scope=" all", life="3600")
    listed = await chrome.get("/account")
    for page in (made, listed):
        assert label not in page.body.decode()
        assert "&lt;script&gt;alert(1)" in page.body.decode()
    wrong = await chrome.post("/account/sign-in", {"name": label, "password": "x", "key": label})
    assert label not in wrong.body.decode()


# --- signing in and out -------------------------------------------------------------------------------------------


async def test_the_cookie_is_for_the_account_pages_of_this_browser_alone(chrome: Chrome) -> None:
    answer = await chrome.post("/account/sign-in", {"name": "ada", "password": PASSWORD})
    name, *attributes = [part.strip() for part in answer.headers["set-cookie"].split(";")]
    assert re.fullmatch(r"hypha-rpc-account-[0-9a-f]{8}=[\w-]{43}", name)
    assert {"HttpOnly", "SameSite=Lax", "Max-Age=2592000"} <= set(attributes)
    # Without a path: of the directory of the form, /account as the browser sees it.
    assert not [part for part in attributes if part.lower().startswith(("path", "domain", "secure"))]
    secure = await chrome.post(
        "/account/sign-in", {"name": "ada", "password": PASSWORD}, Origin=ORIGIN.replace("http:", "https:")
    )
    assert "; Secure" in secure.headers["set-cookie"]


async def test_signing_out_ends_the_cookie(chrome: Chrome) -> None:
    before, form = chrome.cookie, await chrome.form()
    answer = await chrome.post("/account/sign-out", {"form": form})
    assert "Max-Age=0" in answer.headers["set-cookie"]
    chrome.cookie = before
    assert b"<h1>Sign in</h1>" in (await chrome.get("/account")).body
    late = await chrome.post("/account/tokens", {"form": form, "label": "x", "scope": " all", "life": "3600"})
    assert (late.status, b"not signed in any more" in late.body) == (401, True)


async def test_a_wrong_password_and_an_unknown_name_answer_the_same(chrome: Chrome) -> None:
    answers = [
        await Chrome(chrome.stack).post("/account/sign-in", {"name": name, "password": "wrong horse"})
        for name in ("ada", "eve")
    ]
    wrong, unknown = [(answer.status, answer.headers.keys(), answer.body.replace(b"eve", b"ada")) for answer in answers]
    assert wrong == unknown
    assert wrong[0] == 401
    assert alert(answers[0]) == "This name and this password do not belong together."


async def test_too_many_tries_are_refused(tmp_path: Path) -> None:
    async with opened(Config(data_dir=tmp_path, limits=replace(Limits(), sign_in_tries=1))) as stack:
        chrome = Chrome(stack)
        await chrome.become()
        statuses = [
            (await Chrome(stack).post("/account/sign-in", {"name": "ada", "password": "wrong horse"})).status
            for _ in range(3)
        ]
    assert statuses == [401, 429, 429]


async def test_another_password(chrome: Chrome) -> None:
    assert (await chrome.send("/account/password", old="wrong horse", new="another horse")).status == 401
    done = await chrome.send("/account/password", old=PASSWORD, new="another horse")
    assert b"The password is changed" in done.body
    other = Chrome(chrome.stack)
    assert (await other.post("/account/sign-in", {"name": "ada", "password": "another horse"})).status == 303


# --- tokens -------------------------------------------------------------------------------------------------------


async def test_a_token_is_made_used_listed_and_revoked(chrome: Chrome) -> None:
    made = await chrome.send("/account/tokens", label="microscope", scope=" all", level="", life="3600")
    token = shown(made)
    assert f'"server_url": "{ORIGIN}"' in unescape(made.body.decode())
    peer = await join(chrome.stack, "a", f"&token={token}")
    account = people_of(chrome.stack).accounts.everybody()[0]
    assert peer.workspace == account.id
    listed = (await chrome.get("/account")).body.decode()
    assert "microscope" in listed
    assert "in use by 1 program<" in listed
    assert "1 program, " in listed
    assert token not in listed
    assert token.rpartition(".")[2] not in listed
    (item,) = people_of(chrome.stack).tokens.of(account)
    done = await chrome.send("/account/tokens/revoke", id=item.id)
    assert b"The token is revoked" in done.body
    await peer.ended.wait()
    assert b"You have none." in (await chrome.get("/account")).body
    assert peer.closed == Closed(1008, "the token was revoked")
    with pytest.raises(Refused):
        await join(chrome.stack, "b", f"&token={token}")
    refused = await http(chrome.stack, "/workspaces", headers={"Authorization": f"Bearer {token}"})
    assert (refused.status, refused.detail) == (401, "the token was revoked; generate a new one")


async def test_a_token_for_one_workspace(chrome: Chrome) -> None:
    account = people_of(chrome.stack).accounts.everybody()[0]
    token = shown(await chrome.send("/account/tokens", label="reader", scope=account.id, level="read", life="86400"))
    peer = await join(chrome.stack, "a", f"&token={token}")
    assert peer.workspace == account.id
    assert b"opens only my own workspace (read);" in (await chrome.get("/account")).body
    await peer.leave()
    assert b"used just now" in (await chrome.get("/account")).body


async def test_a_token_for_one_workspace_may_as_much_as_one_may_there(chrome: Chrome) -> None:
    place = chrome.stack.broker.registry.create_workspace("lab", owners=["somebody"])
    account = people_of(chrome.stack).accounts.everybody()[0]
    place.permissions[account.id] = "read"
    token = shown(await chrome.send("/account/tokens", label="x", scope="lab", level="", life="3600"))
    assert level_in(chrome.stack.broker.tokens.verify(token), place) is Level.READ
    refused = await chrome.send("/account/tokens", label="x", scope="lab", level="admin", life="3600")
    assert (refused.status, "lab" in alert(refused)) == (403, True)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"life": "1"}, 400),
        ({"life": "x"}, 400),
        ({"scope": "nowhere"}, 403),
        ({"label": ""}, 400),
        ({"scope": "", "life": "3600"}, 403),
        ({"life": "\u00b2"}, 400),
        ({"level": "read"}, 400),  # of everything that one may
    ],
)
async def test_what_makes_no_token(chrome: Chrome, fields: dict[str, str], status: int) -> None:
    good = {"label": "what I wrote", "scope": " all", "level": "", "life": "3600"}
    answer = await chrome.send("/account/tokens", **{**good, **fields})
    assert (answer.status, alert(answer) != "") == (status, True)
    # What was sent is not lost.
    assert ('value="what I wrote"' in answer.body.decode()) is (fields.get("label") != "")
    assert b"You have none." in (await chrome.get("/account")).body


# --- inviting -----------------------------------------------------------------------------------------------------


async def test_a_guest_is_invited_and_is_no_administrator(chrome: Chrome) -> None:
    link = shown(await chrome.send("/account/invitations", email="bob@lab.example"))
    assert link.startswith(f"{ORIGIN}/account/join?link=")
    guest = Chrome(chrome.stack)
    page = await guest.get(link.removeprefix(ORIGIN))
    assert b"bob@lab.example" in page.body
    assert b'name="email"' not in page.body
    await guest.become("bob", link.partition("link=")[2])
    account = (await guest.get("/account")).body.decode()
    assert "Make an invitation link" not in account
    assert "administering the server" not in account
    assert "ada" not in account
    assert (await guest.send("/account/invitations")).status == 403
    assert (await guest.send("/account/tokens", label="x", scope=" server", life="3600")).status == 403
    taken = shown(await chrome.send("/account/invitations"))
    fields = {"link": taken.partition("link=")[2], "name": "BOB", "password": PASSWORD}
    again = await Chrome(chrome.stack).post("/account/join", fields)
    assert (again.status, alert(again)) == (409, "This name is taken; choose another.")


async def test_one_of_many_people_is_found(chrome: Chrome) -> None:
    accounts = people_of(chrome.stack).accounts
    (owner,) = accounts.everybody()
    page = (await chrome.get("/account")).body.decode()
    assert ('name="find"' in page, "Invite" in page or "invitation link" in page) == (False, True)
    for number in range(120):
        secret = await accounts.invite(owner, f"p{number}@lab.example")
        await accounts.join(secret, f"Guest-{number}", PASSWORD)
    page = (await chrome.get("/account")).body.decode()
    assert "(100 of 121 are shown)" in page
    assert page.count("Remove the account") == 99  # not oneself
    for wanted in ("guest-117", "P117@lab", " 117 "):
        found = (await chrome.get(f"/account?{urlencode({'find': wanted})}")).body.decode()
        assert "(1 found)" in found
        assert "Guest-117" in found
        assert found.count("Remove the account") == 1
    odd = (await chrome.get("/account?find=%3Cb%3Eodd")).body.decode()
    assert ("(0 found)" in odd, "<b>odd" in odd, 'value="&lt;b&gt;odd"' in odd) == (True, False, True)


async def test_links_that_wait_are_listed_and_withdrawn(chrome: Chrome) -> None:
    link = shown(await chrome.send("/account/invitations", email="bob@lab.example")).removeprefix(ORIGIN)
    page = await chrome.get("/account")
    assert b"an account for bob@lab.example" in page.body
    assert link.partition("link=")[2].encode() not in page.body
    mark = re.findall(r'name="id" value="([0-9a-f]{64})"', page.body.decode())
    gone = await chrome.send("/account/invitations/withdraw", id=mark[0])
    assert b"The link is withdrawn" in gone.body
    assert (await Chrome(chrome.stack).get(link)).status == 404
    assert (await chrome.send("/account/invitations/withdraw", id=mark[0])).status == 404


async def test_another_password_by_a_link_and_removing(chrome: Chrome) -> None:
    guest = Chrome(chrome.stack)
    await guest.become(
        "bob", await people_of(chrome.stack).accounts.invite(people_of(chrome.stack).accounts.everybody()[0])
    )
    bob = people_of(chrome.stack).accounts.everybody()[1]
    assert (await guest.send("/account/people/password", id=bob.id)).status == 403
    assert (await guest.send("/account/people/remove", id=bob.id)).status == 403
    link = shown(await chrome.send("/account/people/password", id=bob.id))
    page = await guest.get(link.removeprefix(ORIGIN))
    assert b"For the account <b>bob</b>" in page.body
    fields = {"link": field_of(page, "link"), "name": "ignored", "password": "short"}
    short = await guest.post("/account/join", fields)
    assert (short.status, alert(short)) == (400, "A password has 8 to 1024 characters.")
    done = await guest.post("/account/join", {**fields, "password": "another horse"})
    assert done.status == 303
    assert b"<h1>bob</h1>" in (await guest.get("/account")).body
    asked = await chrome.send("/account/people/remove", id=bob.id)
    assert b"<h1>Remove bob?</h1>" in asked.body
    assert b"<h1>bob</h1>" in (await guest.get("/account")).body
    removed = await chrome.send("/account/people/remove", id=field_of(asked, "id"), sure=field_of(asked, "sure"))
    assert b"bob has no account here any more" in removed.body
    assert b"<h1>Sign in</h1>" in (await guest.get("/account")).body
    mine = await chrome.send("/account/people/remove", id=people_of(chrome.stack).accounts.everybody()[0].id)
    assert (mine.status, b"does not remove itself" in mine.body) == (403, True)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", ["", "null", "http://evil.example", "http://lab.example", "http://lab.example:9527.x"]
)
@pytest.mark.parametrize("path", ["/account/sign-in", "/account/join", "/account/tokens", "/account/sign-out"])
async def test_forms_of_other_sites_are_refused(chrome: Chrome, path: str, origin: str) -> None:
    fields = {"form": await chrome.form(), "name": "ada", "password": PASSWORD, "label": "x", "life": "3600"}
    answer = await chrome.post(path, fields, Origin=origin)
    assert (answer.status, "set-cookie" in answer.headers) == (403, False)
    assert b"comes from another site" in answer.body


#: Forms that are of who is signed in, with what else they hold.
FORMS = {
    "/account/tokens": {"label": "x", "scope": " all", "life": "3600"},
    "/account/tokens/revoke": {"id": "x"},
    "/account/invitations": {},
    "/account/invitations/withdraw": {"id": "x"},
    "/account/password": {"old": PASSWORD, "new": "another horse"},
    "/account/allow": {"key": "x"},
    "/account/shares": {"service": "x y"},
    "/account/shares/revoke": {"id": "x"},
    "/account/people/password": {"id": "x"},
    "/account/people/remove": {"id": "x"},
    "/account/sign-out": {},
    "/account/oidc/disconnect": {},
}


async def test_every_form_is_of_who_is_signed_in_or_makes_that(server: MemoryStack) -> None:
    rules = server.assembly._app.url_map.iter_rules()
    sent = {rule.rule for rule in rules if rule.rule.startswith("/account") and "POST" in (rule.methods or ())}
    assert sent == set(FORMS) | {"/account/sign-in", "/account/join", "/account/oidc"}


@pytest.mark.parametrize(("path", "fields"), FORMS.items())
async def test_a_token_is_no_cookie(chrome: Chrome, path: str, fields: dict[str, str]) -> None:
    account = people_of(chrome.stack).accounts.everybody()[0]
    token = await people_of(chrome.stack).tokens.issue(account, "x", 3600, admin=True)
    sent = {**fields, "form": await chrome.form()}
    answer = await Chrome(chrome.stack).post(path, sent, Authorization=f"Bearer {token}")
    assert (answer.status, b"not signed in" in answer.body) == (401, True)


@pytest.mark.parametrize(("path", "fields"), FORMS.items())
async def test_a_form_that_no_page_of_this_browser_has_made_is_refused(
    chrome: Chrome, path: str, fields: dict[str, str]
) -> None:
    other = Chrome(chrome.stack)
    await other.post("/account/sign-in", {"name": "ada", "password": PASSWORD})
    for form in ({}, {"form": ""}, {"form": await other.form()}):
        answer = await chrome.post(path, {**fields, **form})
        assert (answer.status, b"not of a page of yours" in answer.body) == (403, True)


@pytest.mark.parametrize(
    "told",
    [
        {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Mode": "same-origin", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
        {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    ],
)
async def test_scripts_and_frames_do_not_read_the_pages(chrome: Chrome, told: dict[str, str]) -> None:
    form = await chrome.form()
    for answer in (await chrome.get("/account", **told), await chrome.post("/account/tokens", {"form": form}, **told)):
        assert (answer.status, form in answer.body.decode()) == (403, False)


async def test_the_cookie_counts_nowhere_else(chrome: Chrome) -> None:
    headers = {"Cookie": chrome.cookie}
    account = people_of(chrome.stack).accounts.everybody()[0]
    told = await http(chrome.stack, "/public/services/hypha-login/profile", headers=headers)
    assert told.json()["is_anonymous"] is True
    assert account.id not in (await http(chrome.stack, "/workspaces", headers=headers)).json()
    stream = chrome.stack.connect()
    with pytest.raises(Refused):
        await upgrade(stream, f"/ws?client_id=x&workspace={account.id}", headers)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x--", 415),
        ({"Content-Length": str(17 * 1024)}, b"", 413),
        ({"Transfer-Encoding": "chunked"}, b"0\r\n\r\n", 413),
    ],
)
async def test_what_is_no_small_form(server: MemoryStack, headers: dict[str, str], body: bytes, status: int) -> None:
    told = {"Origin": ORIGIN, "Content-Type": "application/x-www-form-urlencoded", **headers}
    assert (await http(server, "/account/sign-in", "POST", told, body)).status == status


async def test_no_address_leads_elsewhere(chrome: Chrome) -> None:
    for key in ("https://evil.example", "//evil.example", "x\r\nSet-Cookie: a=b", "../../x"):
        answer = await chrome.post("/account/sign-in", {"name": "ada", "password": PASSWORD, "key": key})
        place = urljoin(f"{ORIGIN}/account/sign-in", answer.headers["location"])
        assert place.startswith(f"{ORIGIN}/account/allow?key=")
        assert "a=b" not in answer.headers["set-cookie"]


async def test_behind_a_base_path_and_a_proxy(tmp_path: Path) -> None:
    public = "https://lab.example/outside"
    async with opened(Config(data_dir=tmp_path, base_path="/in", public_base_url=public)) as stack:
        secret = people_of(stack).accounts.first_invitation()
        chrome = Chrome(stack, prefix="/in")
        fields = {"link": str(secret), "name": "ada", "password": PASSWORD}
        answer = await chrome.post("/account/join", fields, Origin="https://lab.example")
        assert (answer.status, answer.headers["location"]) == (303, "../account")
        assert "; Secure" in answer.headers["set-cookie"]
        page = (await chrome.get("/account")).body.decode()
        assert 'action="account/tokens"' in page
        link = shown(await chrome.send("/account/invitations"))
        assert link.startswith(f"{public}/account/join?link=")


async def test_nothing_secret_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with opened(Config(data_dir=tmp_path, log_level="debug")) as stack:
            chrome = Chrome(stack)
            secret = people_of(stack).accounts.first_invitation()
            assert secret is not None
            await chrome.get(f"/account/join?link={secret}")
            await chrome.become(invitation=secret)
            token = shown(await chrome.send("/account/tokens", label="x", scope=" all", life="3600"))
            await join(stack, "a", f"&token={token}")
            await chrome.post("/account/sign-in", {"name": "ada", "password": "wrong horse"})
            form = await chrome.form()
    for text in (secret, token, PASSWORD, "wrong horse", form, chrome.cookie.partition("=")[2]):
        assert text not in caplog.text


# --- a program that logs in ---------------------------------------------------------------------------------------


async def start(stack: MemoryStack, **arguments: Any) -> str:
    headers = {"Content-Type": "application/json"}
    answer = await http(stack, "/public/services/hypha-login/start", "POST", headers, json.dumps(arguments).encode())
    return str(answer.json()["key"])


async def fetch(stack: MemoryStack, key: str) -> Any:
    answer = await http(stack, f"/public/services/hypha-login/check?key={key}&profile=1&timeout=0")
    return answer.json()


async def test_another_site_leads_nobody_straight_to_the_button(chrome: Chrome) -> None:
    key = await start(chrome.stack)
    led = await chrome.get(f"/account/allow?key={key}", **{"Sec-Fetch-Site": "cross-site"})
    assert b"Another site has led you" in led.body
    assert b"<form" not in led.body
    further = await chrome.get(f"/account/allow?key={key}", **{"Sec-Fetch-Site": "same-origin"})
    assert b"Give it a token" in further.body


async def test_a_program_is_let_in_by_who_signs_in(chrome: Chrome) -> None:
    account = people_of(chrome.stack).accounts.everybody()[0]
    key = await start(chrome.stack)
    page = await http(chrome.stack, f"/login?key={key}")
    page = await http(chrome.stack, urljoin("/login", page.headers["location"]))
    assert f'href="../../../account/allow?key={key}"' in page.body.decode()
    newcomer = Chrome(chrome.stack)
    asked = await newcomer.get(f"/account/allow?key={key}")
    assert b"<h1>Sign in</h1>" in asked.body
    fields = {"name": "ada", "password": PASSWORD, "key": field_of(asked, "key")}
    answer = await newcomer.post("/account/sign-in", fields)
    question = await newcomer.get(urljoin("/account/sign-in", answer.headers["location"]))
    assert b"A program that speaks HTTP started to log in just now" in question.body
    assert b"opens all your workspaces and is good for" in question.body
    assert await fetch(chrome.stack, key) is None  # nobody has agreed yet
    assert b"has its token" in (await newcomer.send("/account/allow", key=key)).body
    told = await fetch(chrome.stack, key)
    assert (told["user_id"], told["workspace"], told["name"]) == (account.id, account.id, "ada")
    (item,) = people_of(chrome.stack).tokens.of(account)
    assert item.label == "login of a program that speaks HTTP"
    assert item.id in chrome.stack.broker.tokens.verify(told["token"]).tokens
    over = await newcomer.send("/account/allow", key=key)
    assert (over.status, b"no program waits" in over.body.lower()) == (404, True)


async def test_a_program_that_asks_for_less_gets_less_and_it_is_revoked_with_the_list(chrome: Chrome) -> None:
    account = people_of(chrome.stack).accounts.everybody()[0]
    key = await start(chrome.stack, workspace=account.id, expires_in=60)
    await chrome.send("/account/allow", key=key)
    token = (await fetch(chrome.stack, key))["token"]
    holder = chrome.stack.broker.tokens.verify(token)
    assert holder.id != account.id
    assert {name: level.letter for name, level in holder.grants.items()} == {account.id: "rw"}
    (item,) = people_of(chrome.stack).tokens.of(account)
    await chrome.send("/account/tokens/revoke", id=item.id)
    refused = await http(chrome.stack, "/workspaces", headers={"Authorization": f"Bearer {token}"})
    assert refused.status == 401


async def test_a_program_that_asks_for_what_one_does_not_have(chrome: Chrome) -> None:
    key = await start(chrome.stack, workspace="nowhere")
    answer = await chrome.send("/account/allow", key=key)
    assert (answer.status, b"no part in the workspace" in answer.body) == (403, True)
    assert people_of(chrome.stack).tokens.of(people_of(chrome.stack).accounts.everybody()[0]) == []


# --- after a restart ----------------------------------------------------------------------------------------------


async def test_one_is_still_signed_in_after_a_restart_and_tokens_are_good(tmp_path: Path) -> None:
    config = Config(data_dir=tmp_path)
    async with opened(config) as stack:
        chrome = Chrome(stack)
        await chrome.become()
        token = shown(await chrome.send("/account/tokens", label="microscope", scope=" all", life="3600"))
    async with opened(config) as stack:
        again = Chrome(stack, cookie=chrome.cookie)
        assert b"microscope" in (await again.get("/account")).body
        assert (await join(stack, "a", f"&token={token}")).workspace == people_of(stack).accounts.everybody()[0].id
