"""Where forms come from, what they say of the way to the server, and whose cookie is taken."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from hypha.config import Config
from tests.web.person import ORIGIN, PASSWORD, Chrome, opened, people_of, shown

SECURE = ORIGIN.replace("http:", "https:")


@pytest.fixture
async def chrome(tmp_path: Path) -> AsyncIterator[Chrome]:
    """The browser of the owner."""
    with trio.fail_after(20):
        async with opened(Config(data_dir=tmp_path)) as stack:
            found = Chrome(stack)
            await found.become()
            yield found


async def test_links_are_as_secure_as_the_page_that_asks_for_them(chrome: Chrome) -> None:
    for origin in (ORIGIN, SECURE):
        page = await chrome.post("/account/invitations", {"form": await chrome.form()}, Origin=origin)
        assert shown(page).startswith(f"{origin}/account/join?link=")


async def test_a_page_believes_no_origin(chrome: Chrome) -> None:
    page = await chrome.get("/account", Origin="https://evil.example")
    assert b"evil.example" not in page.body


@pytest.mark.parametrize(
    ("public", "origin", "host", "status"),
    [
        ("https://lab.example:443", "https://lab.example", "inside:9527", 303),
        ("https://Lab.Example", "https://lab.example", "inside:9527", 303),
        ("http://lab.example:80/h", "http://lab.example", "inside:9527", 303),
        ("https://lab.example:443", "http://lab.example", "inside:9527", 403),
        ("https://lab.example", "https://lab.example:444", "inside:9527", 403),
        (None, "https://lab.example", "lab.example:443", 303),
        (None, "https://lab.example", "LAB.example", 303),
        (None, "https://lab.example:80", "lab.example", 403),
        (None, "http://[::1]:9527", "[::1]:9527", 303),
        (None, "https://lab.example:x", "lab.example", 403),
        (None, "ftp://lab.example", "lab.example", 403),
        (None, "https://", "", 403),
    ],
)
async def test_origins_are_the_same_however_they_are_written(
    tmp_path: Path, public: str | None, origin: str, host: str, status: int
) -> None:
    async with opened(Config(data_dir=tmp_path, public_base_url=public)) as stack:
        secret = people_of(stack).accounts.first_invitation()
        fields = {"link": str(secret), "name": "ada", "password": PASSWORD}
        assert (await Chrome(stack).post("/account/join", fields, Origin=origin, Host=host)).status == status


async def test_of_several_cookies_none_counts(chrome: Chrome) -> None:
    name, _, secret = chrome.cookie.partition("=")
    form = await chrome.form()
    assert b"<h1>ada</h1>" in (await chrome.get("/account", Cookie=f"a=b; {chrome.cookie};c")).body
    for cookies in (
        f"{name}=x; {chrome.cookie}",
        f"{chrome.cookie}; {name}=x",
        f"{chrome.cookie};{chrome.cookie}",
        f"{name} =x; {chrome.cookie}",
        secret,
    ):
        assert b"<h1>Sign in</h1>" in (await chrome.get("/account", Cookie=cookies)).body
        assert (await chrome.post("/account/sign-out", {"form": form}, Cookie=cookies)).status == 401


async def test_servers_on_one_host_do_not_take_each_others_cookies(tmp_path: Path, chrome: Chrome) -> None:
    async with opened(Config(data_dir=tmp_path / "other")) as stack:
        other = Chrome(stack)
        await other.become("bob")
    assert chrome.cookie.partition("=")[0] != other.cookie.partition("=")[0]
    both = f"{other.cookie}; {chrome.cookie}"
    assert b"<h1>ada</h1>" in (await chrome.get("/account", Cookie=both)).body
