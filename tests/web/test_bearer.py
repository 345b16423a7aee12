"""Tokens of requests, and who comes with too many bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio.testing

from hypha.broker.access import Principal
from hypha.config import Config, Limits
from tests.web.stack import MemoryStack, memory_stack
from tests.web.wires import HttpAnswer, http

PATHS = ["/workspaces", "/public/services/hypha-login/profile", "/api/users"]


async def ask(stack: MemoryStack, path: str, token: str) -> HttpAnswer:
    return await http(stack, path, headers={"Authorization": f"Bearer {token}"} if token else {})


@pytest.mark.parametrize("path", PATHS)
async def test_bad_tokens_are_bounded_exactly_and_good_ones_pass(
    path: str, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_stack(Config(data_dir=tmp_path, limits=Limits(bad_tokens_per_address=2))) as stack:
        good = stack.broker.tokens.issue(Principal("ada", False, roles=("admin",)), expires_in=1000)
        answers = [await ask(stack, path, text) for text in ("bad", "worse", "again", good, "")]
        assert [answer.status for answer in answers] == [401, 401, 429, 200, 403 if path == "/api/users" else 200]
        assert answers[2].detail == "bad_tokens_per_address = 2 tries a minute are used up; wait a minute"
        await trio.sleep(31)
        assert (await ask(stack, path, "bad")).status == 401


async def test_what_is_a_password_of_an_application_is_no_bad_token(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_stack(Config(data_dir=tmp_path, limits=Limits(bad_tokens_per_address=1))) as stack:
        for _ in range(3):
            assert (await ask(stack, "/public/apps/missing/", "its own")).status == 401
        assert len(stack.broker.bad_tokens) == 0
