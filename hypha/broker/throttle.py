"""How often somebody may try: a bounded table of who has tried."""

from __future__ import annotations

import ipaddress

from hypha.errors import LimitExceeded

#: Of whom it is remembered that they have tried; the one that has not for longest is forgotten.
KEYS = 10_000


class Throttle:
    """So many tries in a minute for each key; they come back one by one. *name* is the limit's, for the error."""

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
        #: By key, the longest silent first: how many are used up, and when that was.
        self._used: dict[str, tuple[float, float]] = {}

    def take(self, key: str, now: float) -> None:
        """Use up one try. *now*: seconds. Raises :class:`LimitExceeded` when there is none."""
        used, since = self._used.pop(key, (0.0, now))
        used = max(0.0, used - (now - since) * self._most / 60)
        allowed = used + 1 <= self._most
        self._used[key] = (used + 1 if allowed else used, now)
        if len(self._used) > KEYS:
            del self._used[next(iter(self._used))]
        if not allowed:
            raise LimitExceeded(f"{self._name} = {self._most} tries a minute are used up; wait a minute")

    def give_back(self, key: str) -> None:
        """It was no bad try."""
        if key in self._used:
            used, since = self._used[key]
            self._used[key] = (max(0.0, used - 1), since)

    def __len__(self) -> int:
        return len(self._used)


def parse_address(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """A network address, None for what is none. A socket for both writes IPv4 as IPv6; it is taken for what it is."""
    try:
        number = ipaddress.ip_address(text or "")
    except ValueError:
        return None
    mapped = number.ipv4_mapped if isinstance(number, ipaddress.IPv6Address) else None
    return mapped or number


def place(address: str | None) -> str:
    """What *address* counts as: of IPv6, everybody has a whole network of 64 bits to choose from."""
    number = parse_address(address)
    if number is None:
        return "elsewhere"
    if number.version == 6 and not number.is_loopback:
        return str(ipaddress.ip_network((int(number), 64), strict=False))
    return str(number)
