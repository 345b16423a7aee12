"""How often somebody may try to sign in: counted before it is known whether that is right, given back when it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hypha.broker.throttle import Throttle, place
from hypha.config import Limits


class Tries:
    """Tries from one network address, for one account from one address, and for one account from everywhere.

    So who guesses from one address keeps out nobody who comes from another. *now* gives seconds.
    """

    def __init__(self, limits: Limits, now: Callable[[], float]) -> None:
        self._now = now
        self._from = Throttle("sign_in_tries_per_address", limits.sign_in_tries_per_address)
        self._for_one_from = Throttle("sign_in_tries", limits.sign_in_tries)
        self._for_one = Throttle("sign_in_tries_per_account", limits.sign_in_tries_per_account)

    @contextmanager
    def one(self, address: str | None, who: str | None = None) -> Iterator[None]:
        """One try, which was a bad one when an error leaves the block. *who*: the account that it is for.

        Raises :class:`hypha.errors.LimitExceeded`.
        """
        where = place(address)
        counted = [(self._from, where)]
        if who is not None:
            counted += [(self._for_one_from, f"{who} {where}"), (self._for_one, who)]
        for throttle, key in counted:
            throttle.take(key, self._now())
        yield
        for throttle, key in counted:
            throttle.give_back(key)
