"""Logging in: a program waits for a token, and a person gives it one on a page (``protocol.md`` 7.4).

The program gets a key and shows its user the address of the page. Who knows the key may report a token for it, once;
the program fetches that with the key, once. Keys are unguessable and live for ``login_seconds``. What is kept is small,
bounded by ``login_keys``, beyond which the oldest is forgotten, and does not outlive the server.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import trio

from hypha.broker.access import Principal
from hypha.broker.function import Function
from hypha.broker.issuing import grant, issue
from hypha.broker.own import Visit
from hypha.errors import CallTimeout, InvalidArgument, NotFound
from hypha.wire.address import check_name

if TYPE_CHECKING:
    from hypha.broker.broker import Broker

DESCRIPTION = {
    "id": "hypha-login",
    "name": "Hypha Login",
    "type": "functions",
    "description": "Gives a program a token that a person has chosen for it",
    "config": {"visibility": "public", "require_context": True},
}
PAGE = "public/apps/hypha-login/"

_FUNCTIONS = "public/services/hypha-login"
_MAX_TEXT = 1000  # characters of a name or an address that is reported


class UnknownKey(NotFound):
    """One answer for keys that never were, are used up, or are too old."""

    def __init__(self) -> None:
        super().__init__("Invalid key, key does not exist")


@dataclass(slots=True, eq=False)
class Attempt:
    """A login that has begun. *since* and *until*: trio time. *language*: of the program that waits.

    *workspace* and *expires_in*: what it asked for. *profile*: what it is given, when *reported*, unless the login was
    forgotten to make room, which wakes who waits, too.
    """

    language: str
    workspace: str | None
    expires_in: float | None
    since: float
    until: float
    reported: trio.Event = field(default_factory=trio.Event)
    profile: dict[str, Any] = field(default_factory=dict)


class Login:
    """The service ``hypha-login``, one for all."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        #: By key, the oldest first: all live equally long.
        self._attempts: dict[str, Attempt] = {}

    def functions(self) -> dict[str, Function]:
        """What peers may call."""
        runs: tuple[Callable[..., Any], ...] = (
            self.start,
            self.check,
            self.report,
            self.generate,
            self.profile,
            self.logout,
        )
        return {run.__name__: Function.of(run, described=True) for run in runs}

    def waiting(self, key: str) -> Attempt | None:
        """The login that waits for a token under *key*."""
        attempt = self._attempts.get(key)
        return attempt if attempt is not None and self._lives(attempt) and not attempt.reported.is_set() else None

    def sweep(self, now: float) -> None:
        """Forget what is too old. *now* is trio time."""
        for key, _ in list(takewhile(lambda entry: entry[1].until <= now, self._attempts.items())):
            del self._attempts[key]

    # --- for programs -----------------------------------------------------------------------------------------

    async def start(
        self, visit: Visit, workspace: str | None = None, expires_in: float | None = None
    ) -> dict[str, Any]:
        """Begin a login, for a token that is limited to a workspace or a time, if one is given."""
        if workspace is not None:
            check_name("workspace", workspace)
        asked = {"workspace": workspace, "expires_in": _seconds(expires_in)}
        now, limits = self._broker.now(), self._broker.limits
        self.sweep(now)
        # Anybody may begin: if one too many was refused, a dozen a second would keep everybody out.
        while len(self._attempts) >= limits.login_keys:
            oldest = self._attempts.pop(next(iter(self._attempts)))
            oldest.reported.set()  # whoever waits for it learns that it is gone
        key = secrets.token_urlsafe(32)
        self._attempts[key] = Attempt(visit.language, workspace, expires_in, now, now + limits.login_seconds)
        base = self._broker.public_base_url(visit)
        query = urlencode({"key": key, **{name: value for name, value in asked.items() if value is not None}})
        urls = {f"{name}_url": f"{base}/{_FUNCTIONS}/{name}" for name in ("report", "check", "generate")}
        return {"key": key, "login_url": f"{base}/{PAGE}?{query}", **urls}

    async def check(
        self,
        visit: Visit,
        key: str,
        timeout: float | None = 180,  # noqa: ASYNC109  a wire name
        profile: bool | None = False,
    ) -> str | dict[str, Any] | None:
        """The token, or all that was reported, as soon as it is there; then the key is used up.

        Waits *timeout* seconds and raises :class:`CallTimeout`; with 0 or less it answers null while nothing is there.
        """
        attempt = self._attempts.get(key) if isinstance(key, str) else None
        if attempt is None or not self._lives(attempt):
            raise UnknownKey
        patience = self._patience(timeout)
        if not attempt.reported.is_set():
            if patience <= 0:
                return None
            with trio.move_on_at(min(self._broker.now() + patience, attempt.until)):
                await attempt.reported.wait()
            if not attempt.reported.is_set():
                waited = f"for {patience:g} s, and a login has login_seconds = {self._broker.limits.login_seconds:g}"
                raise CallTimeout(f"Login timeout: nobody has logged in {waited}")
        if self._attempts.get(key) is not attempt:  # another one that waited was faster
            raise UnknownKey
        del self._attempts[key]
        return attempt.profile if profile else str(attempt.profile["token"])

    async def logout(self, visit: Visit, config: dict[str, Any] | None = None) -> dict[str, Any]:
        """The address of a page that says how to log out."""
        base = self._broker.public_base_url(visit)
        return {"logout_url": f"{base}/{PAGE}?logout"}

    # --- for the page -----------------------------------------------------------------------------------------

    async def report(
        self,
        visit: Visit,
        key: str,
        token: str,
        workspace: str | None = None,
        expires_in: float | None = None,
        email: str | None = None,
        email_verified: bool | None = None,
        name: str | None = None,
        nickname: str | None = None,
        user_id: str | None = None,
        picture: str | None = None,
    ) -> None:
        """Give the program that waits for *key* a token of this server's; a narrower one where one was asked for.

        Who the user is stands in the token, whatever else is said. The rest is for show.
        """
        attempt = self.waiting(key) if isinstance(key, str) else None
        if attempt is None:
            raise UnknownKey
        if not isinstance(token, str):
            raise InvalidArgument("a token is text")
        user = self._broker.tokens.verify(token)
        shown = {"email": email, "name": name, "nickname": nickname, "picture": picture}
        for what, text in shown.items():
            if text is not None and not (isinstance(text, str) and len(text) <= _MAX_TEXT):
                raise InvalidArgument(f"{what} must be a text of at most {_MAX_TEXT} characters")
        given = self._narrowed(
            token,
            user,
            attempt.workspace if workspace is None else workspace,
            attempt.expires_in if expires_in is None else expires_in,
        )
        holder = self._broker.tokens.verify(given)
        attempt.profile = {
            **shown,
            "token": given,
            "workspace": holder.home or holder.id,
            "expires_in": self._broker.remaining(holder),
            "email": user.email or email,
            "email_verified": user.email is not None,
            "user_id": user.id,
        }
        attempt.reported.set()

    async def generate(self, visit: Visit, workspace: str | None = None, expires_in: float | None = None) -> str:
        """A token for the caller; who comes without one is a new anonymous user."""
        user = replace(visit.principal, home=visit.principal.home or visit.principal.id)
        life = self._broker.token_life(user, expires_in)
        return self._narrowed(self._broker.tokens.issue(user, expires_in=life), user, workspace, expires_in)

    async def profile(self, visit: Visit) -> dict[str, Any]:
        """Who the caller is."""
        user = visit.principal
        return {"user_id": user.id, "email": user.email, "is_anonymous": user.is_anonymous, "workspace": user.home}

    # ----------------------------------------------------------------------------------------------------------

    def _lives(self, attempt: Attempt) -> bool:
        return self._broker.now() < attempt.until

    def _patience(self, timeout: object) -> float:
        longest = self._broker.limits.login_seconds
        if timeout is None:
            return longest
        if not isinstance(timeout, int | float) or timeout != timeout:  # NaN
            raise InvalidArgument("timeout must be a number of seconds")
        return min(timeout, longest)

    def _narrowed(self, token: str, user: Principal, workspace: str | None, expires_in: float | None) -> str:
        """*token*, or one that is for less: never wider, nor longer."""
        if workspace is not None:
            grants = {check_name("workspace", workspace): grant(self._broker, user, workspace)}
            return issue(self._broker, user, {"expires_in": expires_in}, grants, workspace)[1]
        if expires_in is not None:
            return self._broker.tokens.issue(user, expires_in=self._broker.token_life(user, expires_in))
        return token


def _seconds(value: object) -> float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**40):
        return value
    raise InvalidArgument("expires_in must be a number of seconds above 0")
