"""Tokens of requests, and who comes with too many bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio.testing

from hypha.broker.access import Principal
from hypha.config import Config, Limits
from tests.web.stack import MemoryStack, loopback_stack, memory_stack
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


@pytest.mark.parametrize("proxies", [(), ("127.0.0.1/32",)])
async def test_who_comes_by_a_proxy_is_counted_as_itself_where_the_proxy_is_known(
    proxies: tuple[str, ...], tmp_path: Path
) -> None:
    config = Config(data_dir=tmp_path, trusted_proxies=proxies, limits=Limits(bad_tokens_per_address=1))
    async with loopback_stack(config) as stack:
        for address, status in (
            ("198.51.100.1", 401),
            ("198.51.100.2", 401 if proxies else 429),
            ("198.51.100.1", 429),
        ):
            headers = {"Authorization": "Bearer bad", "X-Forwarded-For": address}
            assert (await http(stack, "/workspaces", headers=headers)).status == status
