"""An account, what leads to one, and what stands for one in a browser: data, and how it is kept."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hypha.broker.access import ADMIN_ROLE, Level, Principal
from hypha.errors import InvalidArgument

_FOREIGN = re.compile(r"[^A-Za-z0-9._-]+")
_PROPOSED_LENGTH = 56
_MAX_LABEL = 100  # characters
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_EMAIL = re.compile(r"[^@\s\"<>,;:()\\\x00-\x1f]{1,64}@[A-Za-z0-9.-]{1,189}")


@dataclass(slots=True, eq=False)
class Account:
    """Somebody who can sign in. *id* is the user's for ever, and the name of the user's own workspace.

    *password*: its hash; None for who signs in elsewhere alone. *email*: as given by who has invited, or as checked by
    the provider, because workspaces can be shared by address. *since*: seconds since the epoch. *identity*: who it is
    at an OpenID Connect provider: the issuer, and the name there that is never another one's.
    """

    id: str
    name: str
    email: str | None
    password: str | None = field(repr=False)
    roles: tuple[str, ...]
    since: float
    identity: tuple[str, str] | None = None

    @property
    def is_admin(self) -> bool:
        """Whether it administers the server."""
        return ADMIN_ROLE in self.roles

    @property
    def principal(self) -> Principal:
        """Who it is in calls, with everything that it may do."""
        return Principal(
            id=self.id,
            is_anonymous=False,
            email=self.email,
            roles=self.roles,
            grants={self.id: Level.ADMIN},
            home=self.id,
        )

    @property
    def as_member(self) -> Principal:
        """The same without what it may do as administrator: what it gives away is its own."""
        return replace(self.principal, roles=())

    def to_record(self) -> dict[str, Any]:
        """What is kept."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Account:
        """The inverse of :meth:`to_record`. Records of before OpenID Connect have no identity."""
        identity = record.get("identity")
        return cls(**{**record, "roles": tuple(record["roles"]), "identity": tuple(identity) if identity else None})


@dataclass(frozen=True, slots=True)
class Invitation:
    """The right to make one account. *by*: the id of who has invited; None for the first account of a server.

    *account*: the id of one that is there and that only gets another password. *until*: seconds since the epoch.
    """

    email: str | None
    roles: tuple[str, ...]
    by: str | None
    until: float
    account: str | None = None

    def to_record(self) -> dict[str, Any]:
        """What is kept."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Invitation:
        """The inverse of :meth:`to_record`."""
        return cls(**{**record, "roles": tuple(record["roles"])})


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A browser in which somebody is signed in. *mark*: what is kept of its cookie. Times since the epoch."""

    mark: str
    account: Account
    since: float
    until: float
    #: What the forms of its pages hold, so that no other page can send one.
    form: str = field(repr=False)


def new_secret() -> str:
    """What a link or a cookie holds: 256 random bits."""
    return secrets.token_urlsafe(32)


def mark_of(secret: str) -> str:
    """What is kept of a secret: nobody who reads it can make the secret of it."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def form_of(secret: str) -> str:
    """What the forms of the browser with this cookie hold."""
    return hashlib.sha256(b"form " + secret.encode("utf-8", "replace")).hexdigest()


def proposed_name(text: str) -> str:
    """A name as much like *text* as a name can be, and short enough for a number behind it."""
    plain = _FOREIGN.sub("-", text.partition("@")[0]).strip("-._")[:_PROPOSED_LENGTH]
    return plain if _NAME.fullmatch(plain) else "user"


def checked_name(text: str) -> str:
    """The name of an account. Raises :class:`InvalidArgument`."""
    if not _NAME.fullmatch(text.strip()):
        raise InvalidArgument("a name has 1 to 64 letters, digits and . _ - and begins with a letter or digit")
    return text.strip()


def checked_email(text: str) -> str | None:
    """An e-mail address in lower case, None for an empty text. Raises :class:`InvalidArgument`."""
    address = text.strip().lower()
    if address and not _EMAIL.fullmatch(address):
        raise InvalidArgument("this is no e-mail address")
    return address or None


def checked_label(text: str, what: str) -> str:
    """What a person says of a thing; *what* is asked for. Raises :class:`InvalidArgument`."""
    if not 0 < len(text.strip()) <= _MAX_LABEL:
        raise InvalidArgument(f"say in 1 to {_MAX_LABEL} characters {what}")
    return text.strip()
