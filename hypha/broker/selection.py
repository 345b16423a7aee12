"""Which of several providers of one service is meant: the option ``mode`` (``protocol.md`` 5.5)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from hypha.broker.session import Service
from hypha.errors import Conflict, InvalidArgument


def choose(services: Sequence[Service], mode: object = None) -> Service:
    """One of *services*, of which there is at least one, the oldest first. Without a *mode* the oldest.

    Raises :class:`InvalidArgument` for an unknown mode and :class:`Conflict` when ``exact`` finds several.
    """
    if mode is None:
        return services[0]
    pick = _MODES.get(mode.removeprefix("native:")) if isinstance(mode, str) else None
    if pick is None:
        raise InvalidArgument(f"mode {str(mode)[:100]!r} is none of {', '.join(_MODES)}")
    chosen = pick(services)
    chosen.turn = 1 + max(service.turn for service in services)
    return chosen


def _exact(services: Sequence[Service]) -> Service:
    if len(services) > 1:
        some = ", ".join(service.full_id for service in services[:5])
        raise Conflict(f"Multiple services found for {services[0].id}: {some}; name one of them, or another mode")
    return services[0]


def _least_busy(services: Sequence[Service]) -> Service:
    """The one whose client works on the fewest calls; of several the one that waited longest for its turn."""
    return min(services, key=lambda service: (len(service.session.inbound), service.turn))


_MODES: dict[str, Callable[[Sequence[Service]], Service]] = {
    "random": secrets.choice,
    "first": lambda services: services[0],
    "last": lambda services: services[-1],
    "exact": _exact,
    "min_load": _least_busy,
    "least_in_flight": _least_busy,
    "round_robin": lambda services: min(services, key=lambda service: service.turn),
}
