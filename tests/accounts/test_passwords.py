"""Passwords are kept as scrypt makes them, with what was used to make them."""

from __future__ import annotations

import hashlib
import time
from base64 import b64decode

import pytest
import trio

from hypha.accounts.passwords import MAX_LENGTH, MIN_LENGTH, Cost, Passwords
from hypha.errors import InvalidArgument

CHEAP = Cost(n=2)


async def test_a_hash_is_that_of_scrypt_and_says_how_it_was_made() -> None:
    kept = await Passwords(Cost(n=4, r=2, p=3)).hash("correct horse")
    kind, n, r, p, salt, digest = kept.split("$")
    assert (kind, n, r, p, len(b64decode(salt))) == ("scrypt", "4", "2", "3", 16)
    assert b64decode(digest) == hashlib.scrypt(b"correct horse", salt=b64decode(salt), n=4, r=2, p=3, dklen=32)


async def test_the_same_password_twice_is_two_hashes_and_both_match() -> None:
    passwords = Passwords(CHEAP)
    first, second = await passwords.hash("p4ßwörter"), await passwords.hash("p4ßwörter")
    assert first != second
    assert await passwords.match("p4ßwörter", first)
    assert await passwords.match("p4ßwörter", second)
    assert not await passwords.match("p4sswörter", first)
    assert not await passwords.match("", first)


async def test_hashes_of_older_parameters_stay_good() -> None:
    kept = await Passwords(CHEAP).hash("correct horse")
    assert await Passwords(Cost(n=8)).match("correct horse", kept)


async def test_nobody_has_no_password() -> None:
    passwords = Passwords(CHEAP)
    assert not await passwords.match("", None)
    assert not await passwords.match("correct horse", None)


@pytest.mark.parametrize(("length", "good"), [(MIN_LENGTH - 1, False), (MIN_LENGTH, True), (MAX_LENGTH, True)])
async def test_the_length_is_bounded_exactly(length: int, good: bool) -> None:
    passwords = Passwords(CHEAP)
    if good:
        kept = await passwords.hash("x" * length)
        assert await passwords.match("x" * length, kept)
    else:
        with pytest.raises(InvalidArgument, match="8 to 1024 characters"):
            await passwords.hash("x" * length)
    with pytest.raises(InvalidArgument):
        await passwords.hash("x" * (MAX_LENGTH + 1))


async def test_text_that_is_no_unicode_is_a_wrong_password() -> None:
    passwords = Passwords(CHEAP)
    assert not await passwords.match("\udcff" * 9, await passwords.hash("x" * 9))


@pytest.mark.parametrize(
    "kept",
    [
        "",
        "nonsense",
        "argon2$1$1$1$AA==$AA==",
        "scrypt$2$1$1$AA==",
        "scrypt$-2$1$1$AA==$" + "A" * 43 + "=",
        "scrypt$3$1$1$AA==$" + "A" * 43 + "=",
        "scrypt$2$0$1$AA==$" + "A" * 43 + "=",
        "scrypt$1073741824$8$1$AA==$" + "A" * 43 + "=",
        "scrypt$2$1$1$!$" + "A" * 43 + "=",
        "scrypt$2$1$1$AA==$AA==",
    ],
)
async def test_what_cannot_be_read_is_a_wrong_password_takes_as_long_and_is_said_once(
    kept: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    passwords, costs = Passwords(CHEAP), []
    compute = passwords._scrypt

    async def counted(password: str, cost: Cost, salt: bytes) -> bytes:
        costs.append(cost)
        return await compute(password, cost, salt)

    monkeypatch.setattr(passwords, "_scrypt", counted)
    assert not await passwords.match("x", kept)
    assert not await passwords.match("x", kept)
    assert costs == [CHEAP, CHEAP]
    (record,) = caplog.records
    assert "none is right for its account" in record.getMessage()
    assert not kept or kept not in record.getMessage()


async def test_the_real_cost_is_paid_in_a_thread() -> None:
    passwords = Passwords()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.sleep(0.001)
            ticks += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        before = time.thread_time()
        assert not await passwords.match("correct horse", None)
        assert time.thread_time() - before < 0.05  # this thread went on with other things
        nursery.cancel_scope.cancel()
    assert ticks > 3
