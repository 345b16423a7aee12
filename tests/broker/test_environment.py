"""Variables of a workspace: for those who may change it, bounded, and in no log."""

from __future__ import annotations

import pytest
import trio

from hypha.broker.access import Level
from hypha.config import Limits
from hypha.wire.dialect import MODERN
from tests.broker.managing import ask, refused
from tests.broker.memory import Scene

SECRET = "canary-4711"


async def test_variables_are_set_read_and_removed(live: Scene) -> None:
    a, b, far = (live.join(name, dialect=MODERN) for name in ("lab/a", "lab/b", "far/c"))
    assert await ask(a, "get_env") == {}
    assert await ask(a, "set_env", "KEY", "one") is None
    await ask(b, "set_env", "OTHER", "")
    assert await ask(b, "get_env", "KEY") == "one"
    assert await ask(b, "get_env") == {"KEY": "one", "OTHER": ""}
    await ask(a, "set_env", "OTHER", None)
    await ask(a, "set_env", "NEVER", None)
    assert await ask(a, "get_env") == {"KEY": "one"}
    missing = "KeyError: Environment variable 'OTHER' not found in workspace lab"
    assert await refused(a, "get_env", "OTHER") == missing
    assert await ask(far, "get_env") == {}
    for key, value in (("", "x"), (None, "x"), ("x" * 257, "x"), ("x", 5), ("x", b"x")):
        assert (await refused(a, "set_env", key, value)).startswith("ValueError")
    assert "not found" in await refused(a, "get_env", [])


async def test_the_variables_are_bounded_exactly_and_can_always_be_removed(nursery: trio.Nursery) -> None:
    a = Scene(Limits(environment_bytes_per_workspace=10), nursery).join("lab/a", dialect=MODERN)
    await ask(a, "set_env", "KEY", "é")
    await ask(a, "set_env", "K", "1234")
    for key, value in (("K", "12345"), ("L", ""), ("KEY", "123")):
        assert "environment_bytes_per_workspace = 10" in await refused(a, "set_env", key, value)
    assert await ask(a, "get_env") == {"KEY": "é", "K": "1234"}
    await ask(a, "set_env", "KEY", None)
    await ask(a, "set_env", "K", "123456789")


async def test_a_secret_is_seen_by_nobody_else_and_in_no_log(live: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    a = live.join("lab/a", dialect=MODERN)
    reader = live.join("lab/r", principal=live.principal("r", "lab", Level.READ), dialect=MODERN)
    await ask(a, "set_env", "KEY", SECRET)
    await refused(a, "set_env", SECRET * 30, SECRET)
    await refused(a, "set_env", "KEY", {"value": SECRET})
    assert "Permission denied for workspace lab" in await refused(reader, "get_env", "KEY")
    assert "Permission denied for workspace lab" in await refused(reader, "set_env", "KEY", "x")
    for name in ("get_workspace_info", "get_summary", "list_workspaces", "get_events"):
        assert SECRET not in repr(await ask(a, name))
    assert SECRET not in caplog.text
    assert SECRET not in repr(live.workspace("lab"))


async def test_variables_go_with_their_workspace(live: Scene) -> None:
    a = live.join("lab/a", dialect=MODERN)
    await ask(a, "set_env", "KEY", SECRET)
    a.leave()
    assert await ask(live.join("lab/a", dialect=MODERN), "get_env") == {}
