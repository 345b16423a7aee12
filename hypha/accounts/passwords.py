"""Passwords: scrypt (RFC 7914), computed in threads of which there are few, so that guessing costs nobody else."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import secrets
from dataclasses import dataclass
from functools import partial

import trio

from hypha.errors import InvalidArgument

logger = logging.getLogger(__name__)

MIN_LENGTH, MAX_LENGTH = 8, 1024  # characters

_SALT_BYTES, _HASH_BYTES = 16, 32
_SPARE_BYTES = 2**20  # beside what the algorithm itself needs
_AT_ONCE = 2  # each takes 32 MiB and a tenth of a second of one core
_MAX_COST = 2**20  # n * r * p of a hash that is kept: four times what we make now


@dataclass(frozen=True, slots=True)
class Cost:
    """The parameters of scrypt. They stand in each hash, so that older ones stay good when these change."""

    n: int = 2**15
    r: int = 8
    p: int = 1


class Passwords:
    """Makes hashes and compares with them. Not *in_thread* it blocks, for those whose clock jumps."""

    def __init__(self, cost: Cost | None = None) -> None:
        self._cost = cost or Cost()
        self._limiter = trio.CapacityLimiter(_AT_ONCE)
        self.in_thread = True
        #: What is compared with where there is no account: it takes as long, and nothing has this hash.
        self._nobody = self._cost, secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_HASH_BYTES)
        self._is_said = False

    async def hash(self, password: str) -> str:
        """What is kept of *password*. Raises :class:`InvalidArgument` for one that is too short or too long."""
        if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
            raise InvalidArgument(f"a password has {MIN_LENGTH} to {MAX_LENGTH} characters")
        salt = secrets.token_bytes(_SALT_BYTES)
        return _written(self._cost, salt, await self._scrypt(password, self._cost, salt))

    async def match(self, password: str, kept: str | None) -> bool:
        """Whether *kept* was made of *password*.

        With None it takes the same time, and the answer is no; and so with what cannot be read.
        """
        cost, salt, wanted = self._parts(kept) or self._nobody
        found = await self._scrypt(password[:MAX_LENGTH], cost, salt)
        return hmac.compare_digest(found, wanted)

    def _parts(self, kept: str | None) -> tuple[Cost, bytes, bytes] | None:
        try:
            return None if kept is None else _read(kept)
        except ValueError as error:
            if not self._is_said:  # anybody can try as often as there are tries
                logger.error("a password cannot be read, and none is right for its account: %s", error)
            self._is_said = True
            return None

    async def _scrypt(self, password: str, cost: Cost, salt: bytes) -> bytes:
        compute = partial(
            hashlib.scrypt,
            password.encode("utf-8", "surrogatepass"),
            salt=salt,
            n=cost.n,
            r=cost.r,
            p=cost.p,
            maxmem=128 * cost.r * (cost.n + cost.p + 2) + _SPARE_BYTES,
            dklen=_HASH_BYTES,
        )
        if self.in_thread:
            return await trio.to_thread.run_sync(compute, limiter=self._limiter)
        await trio.lowlevel.checkpoint()
        return compute()


def _written(cost: Cost, salt: bytes, digest: bytes) -> str:
    parts = (base64.b64encode(part).decode() for part in (salt, digest))
    return "$".join(("scrypt", str(cost.n), str(cost.r), str(cost.p), *parts))


def _read(kept: str) -> tuple[Cost, bytes, bytes]:
    """The inverse of :func:`_written`. Raises ValueError for what this version cannot have made, without showing it."""
    kind, *fields = kept.split("$")
    if kind != "scrypt" or len(fields) != 5:
        raise ValueError("it is of a kind that this version does not know")
    if not all(field.isascii() and field.isdigit() and len(field) < 10 for field in fields[:3]):
        raise ValueError("its parameters are no numbers")
    n, r, p = map(int, fields[:3])
    if n < 2 or n & (n - 1) or not 0 < n * r * p <= _MAX_COST:
        raise ValueError("its parameters are out of range")
    salt, digest = (binascii.a2b_base64(field, strict_mode=True) for field in fields[3:])
    if len(digest) != _HASH_BYTES:
        raise ValueError("its hash has another length")
    return Cost(n, r, p), salt, digest
