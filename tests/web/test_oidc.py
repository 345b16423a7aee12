"""Signing in at a provider as a browser does it: forms, addresses, cookies, pages, and what is refused."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import trio

from hypha.config import Config, Limits
from hypha.testing import open_server
from tests.accounts import provider as scene
from tests.accounts.provider import CLIENT_ID
from tests.web.person import ORIGIN, PASSWORD, PERSON, Chrome, field_of, opened, people_of
from tests.web.stack import MemoryStack
from tests.web.wires import HttpAnswer, http

SECRET = "canary-secret"
#: What a browser says when another site leads it here.
FROM_ELSEWHERE = {**PERSON, "Sec-Fetch-Site": "cross-site"}


@dataclass
class Guest(Chrome):
    """A browser with a jar for its cookies, which also goes where it is led."""

    jar: dict[str, str] = field(default_factory=dict)

    async def post(self, path: str, fields: dict[str, str], **headers: str) -> HttpAnswer:
        return self._keep(await super().post(path, fields, **headers))

    async def get(self, path: str, **headers: str) -> HttpAnswer:
        return self._keep(await super().get(path, **headers))

    def _keep(self, answer: HttpAnswer) -> HttpAnswer:
        if "set-cookie" in answer.headers:
            name, _, value = answer.headers["set-cookie"].partition(";")[0].partition("=")
            self.jar[name] = value
        return answer

    def _cookies(self) -> dict[str, str]:
        return {"Cookie": "; ".join(f"{name}={value}" for name, value in self.jar.items())} if self.jar else {}

    async def leave(self, **fields: str) -> str:
        """Press the button; where it leads."""
        answer = await self.post("/account/oidc", fields)
        assert answer.status == 200, answer.body
        return address_of(answer)

    async def back(self, there: scene.Provider, address: str, **changes: str) -> HttpAnswer:
        """Sign in at the provider, and come back."""
        query = {**dict(parse_qsl(there.visited(address))), **changes}
        target = "/account/oidc/callback?" + "&".join(f"{name}={value}" for name, value in query.items())
        return await self.get(target, **FROM_ELSEWHERE)

    async def through(self, there: scene.Provider, **fields: str) -> HttpAnswer:
        return await self.back(there, await self.leave(**fields))


def address_of(answer: HttpAnswer) -> str:
    """Where a page leads at once, and by its link."""
    address = answer.headers["refresh"].removeprefix("0; url=")
    assert f'href="{address.replace("&", "&amp;")}"' in answer.body.decode()
    return address


@dataclass
class Scene:
    stack: MemoryStack
    there: scene.Provider

    def guest(self) -> Guest:
        return Guest(self.stack)

    async def program(self) -> str:
        """The key of a program that waits for a token."""
        headers = {"Content-Type": "application/json"}
        answer = await http(self.stack, "/public/services/hypha-login/start", "POST", headers, b"{}")
        return str(answer.json()["key"])

    async def invited(self) -> str:
        """The secret of a link to an account."""
        accounts = people_of(self.stack).accounts
        return await accounts.invite(accounts.everybody()[0])


@asynccontextmanager
async def lab(directory: Path, **settings: Any) -> AsyncIterator[Scene]:
    """A server with an owner, and a provider. Time is real here."""
    with trio.fail_after(20):
        async with scene.provider(time.time) as there:
            there.says.update(email="ada@lab.example", email_verified=True, preferred_username="ada")
            known = {"oidc_issuer": there.issuer, "oidc_client_id": CLIENT_ID}
            config = Config(data_dir=directory, **{**known, **settings})
            async with opened(config) as stack:
                await Chrome(stack, config.base_path).become("grace")
                yield Scene(stack, there)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Scene]:
    async with lab(tmp_path, oidc_domains=("lab.example",), oidc_client_secret=SECRET) as found:
        yield found


def told(answer: HttpAnswer) -> str:
    """What the page says."""
    return unescape(re.sub(r"<[^>]*>", " ", answer.body.decode().partition("<main>")[2].partition("</main>")[0]))


# --- the pages ----------------------------------------------------------------------------------------------------


async def test_the_button_is_where_one_signs_in_and_makes_an_account(place: Scene) -> None:
    host, guest = urlsplit(place.there.issuer).netloc, place.guest()
    link, key = await place.invited(), await place.program()
    for path, name, value in (
        ("/account", None, None),
        (f"/account/join?link={link}", "link", link),
        (f"/account/allow?key={key}", "key", key),
    ):
        page = await guest.get(path)
        assert f"Continue with {host}" in told(page)
        form = page.body.decode().partition('account/oidc">')[2].partition("</form>")[0]
        assert re.findall(r'name="(\w+)" value="([^"]*)"', form) == ([] if name is None else [(name, value)])


async def test_without_a_provider_nothing_of_it_is_shown_and_nothing_works(tmp_path: Path) -> None:
    async with opened(Config(data_dir=tmp_path)) as stack:
        guest = Guest(stack)
        await guest.become()
        for path in ("/account", f"/account/join?link={await people_of(stack).accounts.invite(owner(stack))}"):
            assert "oidc" not in (await guest.get(path)).body.decode()
            guest.jar.clear()
        for answer in (await guest.post("/account/oidc", {}), await guest.get("/account/oidc/callback?state=x&code=y")):
            assert (answer.status, "knows no OpenID Connect provider" in told(answer)) == (404, True)


def owner(stack: MemoryStack) -> Any:
    return people_of(stack).accounts.everybody()[0]


# --- the way there and back ---------------------------------------------------------------------------------------


async def test_there_and_back_one_is_signed_in(place: Scene) -> None:
    guest = place.guest()
    address = urlsplit(await guest.leave())
    assert f"{address.scheme}://{address.netloc}" == place.there.issuer
    query = dict(parse_qsl(address.query))
    assert query["redirect_uri"] == f"{ORIGIN}/account/oidc/callback"
    assert query["code_challenge_method"] == "S256"
    answer = await guest.back(place.there, address.geturl())
    assert (answer.status, answer.headers["location"]) == (303, "../../account")
    page = told(await guest.get("/account"))
    for part in (" ada ", "ada@lab.example", f"with {urlsplit(place.there.issuer).netloc}"):
        assert part in page


async def test_the_cookies_are_of_this_browser_and_of_the_account_pages_alone(place: Scene) -> None:
    guest = place.guest()
    begun = await guest.post("/account/oidc", {})
    name, *attributes = [part.strip() for part in begun.headers["set-cookie"].split(";")]
    assert re.fullmatch(r"hypha-rpc-oidc-[0-9a-f]{8}=[\w-]{43}", name)
    # Of the directory of the form.
    assert {item for item in attributes if "Expires" not in item} == {"HttpOnly", "SameSite=Lax", "Max-Age=600"}
    answer = await guest.back(place.there, address_of(begun))
    name, *attributes = [part.strip() for part in answer.headers["set-cookie"].split(";")]
    assert re.fullmatch(r"hypha-rpc-account-[0-9a-f]{8}=[\w-]{43}", name)
    assert {"HttpOnly", "SameSite=Lax", "Max-Age=2592000", "Path=/account"} <= set(attributes)
    assert not [item for item in attributes if item.lower().startswith(("domain", "secure"))]
    assert [page.headers["cache-control"] for page in (begun, await guest.get("/account"))] == ["no-store"] * 2


async def test_behind_a_proxy_that_speaks_https_and_changes_the_path(tmp_path: Path) -> None:
    async with lab(tmp_path, public_base_url="https://lab.example/h", oidc_domains=("*",)) as place:
        guest = place.guest()
        begun = await guest.post("/account/oidc", {}, Origin="https://lab.example")
        assert "; Secure" in begun.headers["set-cookie"]
        address = address_of(begun)
        assert dict(parse_qsl(address))["redirect_uri"] == "https://lab.example/h/account/oidc/callback"
        answer = await guest.back(place.there, address)
        assert {"Path=/h/account", "Secure"} <= set(answer.headers["set-cookie"].split("; "))
        assert answer.headers["location"] == "../../account"


async def test_below_a_base_path(tmp_path: Path) -> None:
    async with lab(tmp_path, base_path="/h", oidc_domains=("*",)) as place:
        guest = replace(place.guest(), prefix="/h")
        address = await guest.leave()
        assert dict(parse_qsl(address))["redirect_uri"] == f"{ORIGIN}/h/account/oidc/callback"
        answer = await guest.back(place.there, address)
        assert "; Path=/h/account" in answer.headers["set-cookie"]
        assert " ada " in told(await guest.get("/account"))


async def test_an_invitation_is_accepted(tmp_path: Path) -> None:
    async with lab(tmp_path) as place:
        link = await place.invited()
        assert (await place.guest().through(place.there, link=link)).status == 303
        used = await place.guest().post("/account/oidc", {"link": link})
        assert (used.status, "was used already" in told(used)) == (404, True)


async def test_who_is_not_invited_is_told_so(tmp_path: Path) -> None:
    async with lab(tmp_path) as place:
        guest = place.guest()
        answer = await guest.through(place.there)
        assert (answer.status, "ask whoever runs this server for an invitation" in told(answer)) == (403, True)
        assert "set-cookie" not in answer.headers


async def test_with_the_key_of_a_program_one_goes_on_to_its_question(place: Scene) -> None:
    key = await place.program()
    guest = place.guest()
    answer = await guest.through(place.there, key=key)
    assert answer.headers["location"] == f"../../account/allow?key={key}"
    assert "Let a program in?" in told(await guest.get(f"/account/allow?key={key}"))
    strange = await place.guest().post("/account/oidc", {"key": "https://evil.example/\r\nX: y"})
    assert (strange.status, "no program waits here" in told(strange).lower()) == (404, True)


async def test_an_address_that_is_too_long_to_be_registered(place: Scene) -> None:
    host = ".".join(["x" * 60] * 20)
    answer = await place.guest().post("/account/oidc", {}, Host=host, Origin=f"http://{host}")
    assert (answer.status, "address of this server is too long" in told(answer)) == (400, True)


# --- connecting ---------------------------------------------------------------------------------------------------


async def test_an_account_is_connected_and_disconnected(place: Scene) -> None:
    host, guest = urlsplit(place.there.issuer).netloc, place.guest()
    await guest.post("/account/sign-in", {"name": "grace", "password": PASSWORD})
    page = await guest.get("/account")
    assert f"Connect {host}" in told(page)
    answer = await guest.through(place.there, form=field_of(page, "form"))
    assert (answer.status, "set-cookie" in answer.headers) == (303, False)
    page = await guest.get("/account")
    assert f"with a password and with {host}" in told(page)
    assert " grace " in told(await other(place))
    gone = await guest.post("/account/oidc/disconnect", {"form": field_of(page, "form")})
    assert gone.status == 303
    assert f"Connect {host}" in told(await guest.get("/account"))
    assert " ada " in told(await other(place))


async def other(place: Scene) -> HttpAnswer:
    """The account to which another browser comes through the provider."""
    guest = place.guest()
    await guest.through(place.there)
    return await guest.get("/account")


async def test_a_page_of_another_browser_connects_nothing(place: Scene) -> None:
    guest = place.guest()
    await guest.post("/account/sign-in", {"name": "grace", "password": PASSWORD})
    for form in ("", "x"):
        answer = await guest.post("/account/oidc", {"form": form})
        assert (answer.status, "not of a page of yours" in told(answer)) == (403, True)
    answer = await place.guest().post("/account/oidc", {"form": ""})
    assert (answer.status, "not signed in" in told(answer)) == (401, True)


async def test_who_has_no_password_is_told_how_to_get_one_and_stays_connected(place: Scene) -> None:
    guest = place.guest()
    await guest.through(place.there)
    page = await guest.get("/account")
    assert "This account has none. Whoever administers this server" in told(page)
    assert "Disconnect" not in told(page)
    answer = await guest.post("/account/oidc/disconnect", {"form": field_of(page, "form")})
    assert (answer.status, "nobody could sign in" in told(answer)) == (409, True)
    changed = await guest.post("/account/password", {"form": field_of(page, "form"), "old": "", "new": PASSWORD})
    assert changed.status == 401


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": ""}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Sec-Fetch-Mode": "cors"}, 403),
        ({"Sec-Fetch-Dest": "iframe"}, 403),
    ],
)
async def test_only_a_page_of_ours_begins(place: Scene, headers: dict[str, str], status: int) -> None:
    answer = await place.guest().post("/account/oidc", {}, **headers)
    assert (answer.status, place.there.asked) == (status, [])
    assert "refresh" not in answer.headers


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Mode": "cors"}, {"Sec-Fetch-Dest": "iframe"}])
async def test_no_script_and_no_frame_brings_an_answer(place: Scene, headers: dict[str, str]) -> None:
    guest = place.guest()
    address = await guest.leave()
    target = f"/account/oidc/callback?{place.there.visited(address)}"
    assert (await guest.get(target, **{**FROM_ELSEWHERE, **headers})).status == 403
    assert (await guest.get(target, **FROM_ELSEWHERE)).status == 303  # and nothing is used up


async def test_an_answer_is_for_the_browser_that_began_and_good_once(place: Scene) -> None:
    guest, thief = place.guest(), place.guest()
    await thief.leave()
    address = await guest.leave()
    answer = await thief.back(place.there, address)
    assert (answer.status, "not begun in this browser" in told(answer)) == (400, True)
    address = await guest.leave()
    target = f"/account/oidc/callback?{place.there.visited(address)}"
    assert [(await guest.get(target, **FROM_ELSEWHERE)).status for _ in range(2)] == [303, 400]


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"error": "access_denied"}, 403, "You were not let in by the provider, which says 'access_denied'."),
        ({"error": "server_error"}, 502, "try later"),
        ({"error": "%3Cscript%3Ealert(1)%3C/script%3E"}, 400, "says '<script>alert(1)</script>'"),
        ({"error": "x" * 3000}, 400, f"says '{'x' * 200}'"),
        ({"iss": "https://evil.example"}, 400, "does not come from the provider"),
        ({"code": ""}, 400, "says nothing"),
    ],
)
async def test_a_provider_that_lets_nobody_in_is_shown_as_text(
    place: Scene, changes: dict[str, str], status: int, said: str
) -> None:
    guest = place.guest()
    answer = await guest.back(place.there, await guest.leave(), **changes)
    assert (answer.status, said in told(answer)) == (status, True), told(answer)
    assert "<script>alert" not in answer.body.decode()
    assert "Your account" in told(answer)  # the way back


@pytest.mark.parametrize(
    ("says", "status", "said"),
    [
        ({"nonce": "another"}, 403, "for another sign-in"),
        ({"iss": "https://evil.example"}, 502, "not from the issuer"),
        ({"aud": "another"}, 502, "for another program"),
        ({"exp": 1}, 502, "has expired"),
    ],
)
async def test_a_token_that_is_not_taken(place: Scene, says: dict[str, Any], status: int, said: str) -> None:
    place.there.says.update(says)
    guest = place.guest()
    answer = await guest.through(place.there)
    assert (answer.status, said in told(answer)) == (status, True)
    assert " Sign in " in told(await guest.get("/account"))


async def test_a_provider_that_cannot_be_reached_keeps_nobody_out_who_has_a_password(tmp_path: Path) -> None:
    async with lab(tmp_path, oidc_issuer="http://127.0.0.1:1") as place:
        guest = place.guest()
        answer = await guest.post("/account/oidc", {})
        assert (answer.status, "cannot be reached; try later" in told(answer)) == (502, True)
        assert (await guest.post("/account/sign-in", {"name": "grace", "password": PASSWORD})).status == 303


async def test_too_many_attempts(tmp_path: Path) -> None:
    async with lab(tmp_path, limits=Limits(sign_in_tries_per_address=2)) as place:
        answers = [await place.guest().post("/account/oidc", {}) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]


async def test_no_token_counts_on_the_way_back(place: Scene) -> None:
    token = await people_of(place.stack).tokens.issue(owner(place.stack), "x", 3600, admin=True)
    answer = await http(
        place.stack,
        "/account/oidc/callback?state=x&code=y",
        headers={**FROM_ELSEWHERE, "Authorization": f"Bearer {token}"},
    )
    assert answer.status == 400


async def test_nothing_secret_is_logged_or_shown(place: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    guest = place.guest()
    link = await place.invited()
    address = await guest.leave(link=link)
    answer = await guest.back(place.there, address)
    page = await guest.get("/account")
    everything = caplog.text + answer.body.decode() + page.body.decode() + json.dumps([answer.headers, page.headers])
    query = dict(parse_qsl(urlsplit(address).query))
    sent = [item.form for item in place.there.asked if "code_verifier" in item.form]
    found = [SECRET, link, sent[0]["code_verifier"], "access-1", query["state"], query["nonce"]]
    assert [secret for secret in found if secret in everything] == []
    assert guest.jar
    assert [value for value in guest.jar.values() if value and value in caplog.text] == []


async def test_a_server_starts_without_its_provider_and_not_without_what_it_needs() -> None:
    with trio.fail_after(20):
        async with open_server(memory=True, oidc_issuer="http://127.0.0.1:1", oidc_client_id="x"):
            pass
