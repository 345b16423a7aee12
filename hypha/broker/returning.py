"""Who was connected when the server ended, for the first seconds after its start: they are waited for.

All clients come back by themselves, most of them in a moment. Who calls or looks up one of them meanwhile waits with
them, at most until the time is over, instead of being told that nobody is there (``decisions.md`` 12).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from typing import TypeVar

import trio

from hypha.broker.access import Action, Principal, may
from hypha.broker.registration import Registration, authorized_workspaces, visibility
from hypha.broker.registry import Registry
from hypha.broker.session import PeerSession, Service, gone_text
from hypha.broker.suspended import Parked
from hypha.config import Limits
from hypha.errors import HyphaError, LimitExceeded, NotFound, PeerGone, PermissionDenied
from hypha.wire.address import PUBLIC_WORKSPACE, Address, ServiceQuery
from hypha.wire.frame import Frame

_BUILT_IN = "built-in"

K = TypeVar("K")


@dataclass(frozen=True, slots=True, eq=False)
class Missed:
    """A service of a client that is not back yet, as policy and look-up see it."""

    address: Address
    id: str
    app_id: str
    since: int
    visibility: str
    authorized_workspaces: frozenset[str]

    @property
    def workspace(self) -> str:
        """That of its client."""
        return self.address.workspace

    @property
    def place(self) -> tuple[str, str]:
        """Its workspace and its id."""
        return self.address.workspace, self.id


@dataclass(slots=True, eq=False)
class Expected:
    """A client that is not back yet. *held*: what others have sent it, in the order in which it came."""

    address: Address
    services: tuple[Missed, ...]
    over: trio.Event = field(default_factory=trio.Event)
    held: list[tuple[PeerSession, Frame]] = field(default_factory=list)


class Returning:
    """The clients that are not back yet, by address and by what they offer. Empty but for a moment.

    All come back within the same seconds, while many wait: a client that returns wakes only those who wait for it.
    """

    def __init__(self, registry: Registry, limits: Limits) -> None:
        self._registry = registry
        self._limits = limits
        self._expected: dict[str, Expected] = {}
        #: By workspace and id.
        self._missed: dict[tuple[str, str], dict[Missed, None]] = {}
        #: By id: those that everybody may find by their bare names, the oldest first.
        self._public: dict[str, dict[Missed, None]] = {}
        #: Who takes any service of a workspace and id waits for these.
        self._news: dict[tuple[str, str], trio.Event] = {}
        self._requests = 0
        #: trio time after which nobody is waited for.
        self.until = 0.0

    def expect(self, all_parked: Iterable[Parked]) -> None:
        """Wait for the clients of *all_parked*. Called once."""
        for parked in all_parked:
            services = tuple(_missed(parked.address, item) for item in parked.registrations)
            self._expected[str(parked.address)] = Expected(parked.address, services)
        offered = (missed for expected in self._expected.values() for missed in expected.services)
        for missed in sorted(offered, key=attrgetter("since")):
            self._missed.setdefault(missed.place, {})[missed] = None
            if missed.visibility == "public":
                self._public.setdefault(missed.id, {})[missed] = None

    # --- who waits --------------------------------------------------------------------------------------------

    async def client(self, address: Address) -> None:
        """Wait for the client at *address*, if it is expected. Raises :class:`PeerGone` when it does not come."""
        expected = self._expected.get(str(address))
        if expected is not None:
            await expected.over.wait()
            if self._registry.find(address) is None:
                raise PeerGone(late_text(address))

    async def find(
        self,
        look: Callable[[], Service],
        queries: Collection[ServiceQuery],
        principal: Principal,
        home: str,
        app: str | None = None,
        *,
        is_request: bool = False,
    ) -> Service:
        """What *look* finds, now or when a client that is expected has come.

        *queries* say what is looked for, *app* of which app, *principal* and *home* who asks and from where: nobody
        learns by waiting what it may not see. *is_request*: it comes by HTTP, where nothing else bounds how many wait.
        Raises what *look* raises, :class:`PeerGone` when it was waited for nothing, and :class:`LimitExceeded` for a
        request too many.
        """
        waited: Missed | None = None
        while True:
            found, error = _attempt(look)
            best = self._best(queries, principal, home, app, found) if self._expected else None
            if best is None:
                break
            waited, news = best
            with self._request() if is_request else nullcontext():
                await news.wait()
        if found is not None:
            return found
        if waited is not None and isinstance(error, NotFound | PermissionDenied):
            raise PeerGone(late_text(waited.address))
        raise error or NotFound("there is no such service")

    @contextmanager
    def _request(self) -> Iterator[None]:
        """Around the waiting of an HTTP request."""
        most = self._limits.returning_requests
        if self._requests >= most:
            raise LimitExceeded(f"returning_requests = {most} requests wait for clients to come back; ask again later")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    def _best(
        self,
        queries: Iterable[ServiceQuery],
        principal: Principal,
        home: str,
        app: str | None,
        found: Service | None,
    ) -> tuple[Missed, trio.Event] | None:
        """A service that is not back and would be taken in the place of *found*, and what to wait for."""
        for query in queries:
            for missed in self._candidates(query, home):
                if found is not None and not (_is_bare(query) and _rank(missed, home) < _rank(found, home)):
                    break  # nor are those behind it
                if app in {None, missed.app_id} and self._may_call(principal, home, missed):
                    return missed, self._end_of_waiting(query, missed)
        return None

    def _candidates(self, query: ServiceQuery, home: str) -> Iterable[Missed]:
        """What *query* may mean, in the order of :func:`_rank`."""
        if _is_bare(query):
            places = (self._missed.get((place, query.service), ()) for place in (home, PUBLIC_WORKSPACE))
            return chain(*places, self._public.get(query.service, ()))
        place = query.workspace or home
        if query.client is None:
            return self._missed.get((place, query.service), ())
        expected = self._expected.get(f"{place}/{query.client}")
        return (missed for missed in expected.services if missed.id == query.service) if expected is not None else ()

    def _end_of_waiting(self, query: ServiceQuery, missed: Missed) -> trio.Event:
        if query.client is not None:
            return self._expected[str(missed.address)].over
        return self._news.setdefault(missed.place, trio.Event())  # another client of the workspace will do

    def _may_call(self, principal: Principal, home: str, missed: Missed) -> bool:
        workspace = self._registry.workspaces[missed.workspace]
        return may(principal, Action.CALL_SERVICE, workspace, missed, caller_workspace=home).allowed

    def holder(self, sender: PeerSession, frame: Frame, to: Address) -> Expected | None:
        """The client at *to*, when *frame* may wait for it."""
        expected = self._expected.get(str(to)) if self._expected else None
        if expected is None or frame.type != "method" or frame.method is None:
            return None
        if sender.workspace == to.workspace:
            return expected
        group, *names = frame.method.split(".")
        named = set(names[:1]) if group == "services" else set[str]()
        wanted = (missed for missed in expected.services if missed.id in named or _BUILT_IN in named)
        permitted = any(self._may_call(sender.principal, sender.workspace, missed) for missed in wanted)
        return expected if permitted else None

    # --- the end of waiting -----------------------------------------------------------------------------------

    def over(self, address: Address) -> Expected | None:
        """The client at *address* is there, or will not come: who waits goes on. What is held is the caller's."""
        expected = self._expected.pop(str(address), None) if self._expected else None
        if expected is not None:
            for missed in expected.services:
                _take_out(self._missed, missed.place, missed)
                if missed.visibility == "public":
                    _take_out(self._public, missed.id, missed)
                news = self._news.pop(missed.place, None)
                if news is not None:
                    news.set()
            expected.over.set()
        return expected

    def late(self, now: float) -> Iterator[Expected]:
        """Those whose time is over at *now*, trio time; nobody waits for them any more."""
        if self._expected and now >= self.until:
            for expected in list(self._expected.values()):
                self.over(expected.address)
                yield expected


def late_text(address: Address) -> str:
    """What is said of a client that did not come back in time."""
    return f"{gone_text(address)}; it has not come back since the server was started again"


def _take_out(index: dict[K, dict[Missed, None]], key: K, missed: Missed) -> None:
    same = index[key]
    del same[missed]
    if not same:
        del index[key]


def _missed(address: Address, entry: Registration) -> Missed:
    return Missed(
        address,
        entry.id,
        entry.app_id,
        entry.since or 0,
        visibility(entry.config),
        authorized_workspaces(entry.config),
    )


def _attempt(look: Callable[[], Service]) -> tuple[Service | None, HyphaError | None]:
    try:
        return look(), None
    except (NotFound, PermissionDenied) as error:
        return None, error


def _is_bare(query: ServiceQuery) -> bool:
    return query.workspace is None and query.client is None


def _rank(service: Service | Missed, home: str) -> tuple[int, int]:
    """The smaller is taken first (A28). Within a workspace whoever is there will do."""
    place = {home: 0, PUBLIC_WORKSPACE: 1}.get(service.workspace, 2)
    return place, service.since if place == 2 else 0
