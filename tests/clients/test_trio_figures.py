"""Our own client against imjoy-rpc 0.5.59, on the same server in the same run (issue 6, figures)."""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.clients.scripted import SCRIPTS
from tests.house import processes
from tests.house.environments import GENERATIONS
from tests.house.processes import Server

ROUNDS = 3
OURS = Path(__file__).with_name("trio_echo.py")
#: What a busy machine must show at least; ``docs/performance.md`` has what a quiet one does.
CALLS, ARRAYS = 1.4, 2.0


@pytest.mark.slow
async def test_ours_is_faster_than_imjoy_rpc(
    client_command: Callable[..., list[str | Path]], server: Server, tmp_path: Path, nursery: trio.Nursery
) -> None:
    published = GENERATIONS[1]
    commands: dict[str, tuple[list[str | Path], list[str | Path]]] = {
        "imjoy-rpc": (
            client_command(published, SCRIPTS / "echo_provider.py", server.url),
            client_command(published, SCRIPTS / "echo_caller.py", server.url),
        ),
        "ours": ([sys.executable, OURS, "provider", server.url], [sys.executable, OURS, "caller", server.url]),
    }
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, (provider, caller) in commands.items():
            async with processes.start(nursery, provider, cwd=tmp_path) as running:
                service_id = (await running.wait_for(r"^ready (\S+)$"))[1]
                result = await processes.run(nursery, [*caller, service_id], cwd=tmp_path, seconds=60)
            found = re.search(r"calls (\S+)\narray (\S+)\n", result.stdout)
            assert found is not None, result.stdout + result.stderr
            assert result.returncode == 0, result.stdout + result.stderr
            figures[name].append((float(found[1]), float(found[2])))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in figures.items()
    }
    calls = medians["ours"][0] / medians["imjoy-rpc"][0]
    arrays = medians["imjoy-rpc"][1] / medians["ours"][1]
    for name, (per_second, seconds) in medians.items():
        print(f"{name}: {per_second:.0f} calls/s, 64 at once; 20 MiB there and back in {seconds * 1000:.0f} ms")
    print(f"calls {calls:.2f}x, arrays {arrays:.2f}x")
    assert calls >= CALLS
    assert arrays >= ARRAYS
