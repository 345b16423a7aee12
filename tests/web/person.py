"""A person with a browser, as far as the server can tell, for the tests of the account pages."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import unescape
from urllib.parse import urlencode

from hypha.accounts.passwords import Cost, Passwords
from hypha.accounts.people import People
from hypha.config import Config
from tests.web.stack import MemoryStack, memory_stack
from tests.web.wires import HttpAnswer, http

ORIGIN = "http://lab.example:9527"
PASSWORD = "correct horse"
#: What a browser says when a person goes to a page or sends a form.
PERSON = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


def people_of(stack: MemoryStack) -> People:
    return stack.assembly._open_rooms().people


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[MemoryStack]:
    """A server on which passwords cost nothing."""
    async with memory_stack(config) as stack:
        people_of(stack).accounts.passwords = Passwords(Cost(n=2))
        yield stack


@dataclass
class Chrome:
    """A person's browser."""

    stack: MemoryStack
    prefix: str = ""
    cookie: str = ""

    async def get(self, path: str, **headers: str) -> HttpAnswer:
        return await http(self.stack, self.prefix + path, headers={**PERSON, **self._cookies(), **headers})

    async def post(self, path: str, fields: dict[str, str], **headers: str) -> HttpAnswer:
        """Send a form, by default as a page of ours does."""
        told = {"Origin": ORIGIN, "Content-Type": "application/x-www-form-urlencoded", **PERSON, **self._cookies()}
        told = {name: value for name, value in {**told, **headers}.items() if value}
        answer = await http(self.stack, self.prefix + path, "POST", told, urlencode(fields).encode() or b"empty=")
        if "set-cookie" in answer.headers:
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return answer

    async def send(self, path: str, **fields: str) -> HttpAnswer:
        """Send a form of the account page."""
        return await self.post(path, {"form": await self.form(), **fields})

    async def form(self) -> str:
        """What the forms of this browser hold."""
        return field_of(await self.get("/account"), "form")

    def _cookies(self) -> dict[str, str]:
        return {"Cookie": self.cookie} if self.cookie else {}

    async def become(self, name: str = "ada", invitation: str | None = None) -> None:
        """Make an account: the first one, or by invitation."""
        secret = invitation or people_of(self.stack).accounts.first_invitation()
        assert secret is not None
        answer = await self.post("/account/join", {"link": secret, "name": name, "password": PASSWORD})
        assert answer.status == 303, answer.body


def field_of(answer: HttpAnswer, name: str) -> str:
    match = re.search(rf'name="{name}" value="([^"]*)"', answer.body.decode())
    assert match is not None, answer.body
    return unescape(match[1])


def shown(answer: HttpAnswer) -> str:
    """What stands to be copied."""
    match = re.search(r"<textarea[^>]*>\n(.*?)</textarea>", answer.body.decode(), re.DOTALL)
    assert match is not None, answer.body
    return unescape(match[1])


def alert(answer: HttpAnswer) -> str:
    match = re.search(r'role="alert">(.*?)</p>', answer.body.decode())
    return unescape(match[1]) if match else ""
