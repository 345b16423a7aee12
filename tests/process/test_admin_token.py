"""The token of whoever can read the data directory: a command of its own, beside a server that runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import httpx
import pytest
import trio

from tests.house.processes import Result, run, serving

pytestmark = pytest.mark.slow


async def issue(nursery: trio.Nursery, cwd: Path, *flags: str) -> Result:
    command = [sys.executable, "-m", "hypha.server", "--issue-admin-token", *flags]
    return await run(nursery, command, cwd=cwd, seconds=20)


async def test_it_is_printed_while_the_server_runs_and_opens_it(nursery: trio.Nursery, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        result = await issue(nursery, tmp_path)
        assert (result.returncode, result.stderr, result.stdout.count("\n")) == (0, "", 1)
        headers = {"Authorization": f"Bearer {result.stdout.strip()}"}
        async with httpx.AsyncClient(base_url=server.url) as client:
            assert (await client.get("/api/users", headers=headers)).status_code == 200
            assert (await client.get("/workspaces/public", headers=headers)).json()["name"] == "public"
            ended = await client.post(
                "/api/tokens/revoke", headers=headers, json={"token": headers["Authorization"].partition(" ")[2]}
            )
            assert ended.status_code == 204
            assert (await client.get("/api/users", headers=headers)).status_code == 401


async def test_a_token_of_another_data_directory_opens_nothing(nursery: trio.Nursery, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with serving(tmp_path / "one"):
        foreign = (await issue(nursery, tmp_path / "one")).stdout.strip()
    with serving(tmp_path / "other") as server:
        async with httpx.AsyncClient(base_url=server.url) as client:
            answer = await client.get("/api/users", headers={"Authorization": f"Bearer {foreign}"})
    assert answer.status_code == 401


async def test_where_no_server_has_been_it_says_so(nursery: trio.Nursery, tmp_path: Path) -> None:
    result = await issue(nursery, tmp_path, "--data-dir", "elsewhere")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "hypha: no server has used the data directory elsewhere; name that of yours with --data-dir\n"
    )
    assert os.listdir(tmp_path) == []
