"""Our client for JavaScript as the server gives it away."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.testing import MockClock

from hypha.config import Config
from tests.web.stack import MemoryStack, memory_stack
from tests.web.wires import http

SCRIPT, MODULE = "/assets/hypha-rpc-websocket.js", "/assets/hypha-rpc-websocket.mjs"
SOURCE = Path(__file__).parents[2] / "hypha" / "web" / "assets" / "hypha-rpc-websocket.js"


async def test_the_script_is_the_file_as_it_stands(autojump_clock: MockClock, stack: MemoryStack) -> None:
    answer = await http(stack, SCRIPT)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.body == SOURCE.read_bytes()


async def test_the_module_is_the_same_with_exports(autojump_clock: MockClock, stack: MemoryStack) -> None:
    answer = await http(stack, MODULE)
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    source, exports = answer.body[: SOURCE.stat().st_size], answer.body[SOURCE.stat().st_size :].decode()
    assert source == SOURCE.read_bytes()
    assert "export default hyphaWebsocketClient;" in exports


@pytest.mark.parametrize("path", [SCRIPT, MODULE])
async def test_browsers_keep_it_and_ask(
    autojump_clock: MockClock, stack: MemoryStack, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = await http(stack, path)
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await http(stack, path, headers={"if-none-match": known})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    assert (await http(stack, path, headers={"if-none-match": '"other"'})).status == 200
    head = await http(stack, path, method="HEAD")
    assert (head.status, head.body, head.headers["etag"]) == (200, b"", tag)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_pages_of_other_origins_may_load_it(autojump_clock: MockClock, stack: MemoryStack) -> None:
    answer = await http(stack, MODULE, headers={"origin": "https://other.example"})
    assert answer.headers["access-control-allow-origin"] == "https://other.example"


async def test_it_is_below_the_base_path_and_nothing_else_is_there(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with memory_stack(Config(data_dir=tmp_path, base_path="/lab")) as stack:
        assert (await http(stack, f"/lab{SCRIPT}")).status == 200
        for path in (
            SCRIPT,
            "/lab/assets/",
            "/lab/assets/x.js",
            "/lab/assets/..%2fassets.py",
            "/lab/assets/../assets.py",
        ):
            assert (await http(stack, path)).status == 404
