"""People on a server without sockets, whose records live in a map that outlasts it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import trio

from hypha.accounts.account import Account
from hypha.accounts.passwords import Cost, Passwords
from hypha.accounts.people import People
from hypha.broker.broker import Broker
from hypha.config import Config, Limits
from tests.broker.memory import EPOCH, KEY, SERVER_ID

PASSWORD = "correct horse"
#: scrypt that costs nothing: how long it takes is no matter of these tests.
CHEAP = Cost(n=2)


@dataclass
class Disk:
    """A store of records."""

    records: dict[tuple[str, str], bytes] = field(default_factory=dict)

    def load(self) -> Iterator[tuple[str, str, bytes]]:
        yield from [(kind, name, value) for (kind, name), value in self.records.items()]

    def write(self, changes: Mapping[tuple[str, str], bytes | None], *, firm: bool) -> None:
        for key, value in changes.items():
            if value is None:
                self.records.pop(key, None)
            else:
                self.records[key] = value


@dataclass(eq=False)
class Town:
    """A server and its people. *later*: seconds since the beginning, which a test moves."""

    nursery: trio.Nursery
    limits: Limits = field(default_factory=Limits)
    disk: Disk = field(default_factory=Disk)
    later: float = 0.0

    def __post_init__(self) -> None:
        self.broker = Broker(Config(limits=self.limits), KEY, SERVER_ID, lambda: EPOCH + self.later, self.disk)
        self.people = People(self.broker, Passwords(CHEAP))
        self.people.accounts.passwords.in_thread = False
        self.people.restore(self.broker.restore())
        self.nursery.start_soon(self._keep)

    async def _keep(self) -> None:
        await self.broker.records.run(in_thread=False)

    def killed(self) -> Town:
        """The server that starts after this one was killed: what this one has not written is lost."""
        return Town(self.nursery, self.limits, self.disk, self.later)

    async def owner(self, name: str = "ada", email: str = "ada@lab.example") -> Account:
        """The first account."""
        secret = self.people.accounts.first_invitation()
        assert secret is not None
        return await self.people.accounts.join(secret, name, PASSWORD, email)

    async def administrator(self, name: str) -> Account:
        """One more, whom whoever starts the server has invited."""
        secret = self.people.accounts.first_invitation(always=True)
        assert secret is not None
        return await self.people.accounts.join(secret, name, PASSWORD)

    async def guest(self, owner: Account, name: str = "bob", email: str = "") -> Account:
        """Another one, invited."""
        secret = await self.people.accounts.invite(owner, email)
        return await self.people.accounts.join(secret, name, PASSWORD)
