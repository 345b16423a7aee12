"""Quotas: what an administrator of the server has set for one user, or for one workspace, in the place of a limit.

A quota may be smaller or larger than the limit that holds for all others. It is asked when something is added: what is
there already stays.
"""

from __future__ import annotations

from collections.abc import Mapping

from hypha.errors import InvalidArgument

#: Clients that are connected at once, and workspaces that the user has created.
OF_USERS = ("clients", "workspaces")
#: Clients that are connected at once, and services that they offer.
OF_WORKSPACES = ("clients", "services")

_MOST = 2**31


def ceiling(quota: Mapping[str, int], key: str, limit: int, limit_name: str) -> tuple[int, str]:
    """How many there may be, and what says so: the quota, or the limit where there is none."""
    return (quota[key], f"the quota of {key}") if key in quota else (limit, limit_name)


def changed(quota: Mapping[str, int], change: object, known: tuple[str, ...]) -> dict[str, int]:
    """*quota* with the numbers of *change*, in which null removes one. Raises :class:`InvalidArgument`."""
    if not isinstance(change, dict) or not change.keys() <= set(known):
        raise InvalidArgument(f"a quota is a map of {' and '.join(known)}")
    for key, number in change.items():
        whole = isinstance(number, int) and not isinstance(number, bool)
        if number is not None and not (whole and 0 <= number < _MOST):
            raise InvalidArgument(f"the quota of {key} must be a whole number from 0 on, or null for none")
    return {key: number for key, number in {**quota, **change}.items() if number is not None}
