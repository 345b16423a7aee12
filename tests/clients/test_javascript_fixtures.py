"""What the tests with the JavaScript client stand on: its environment, and a script runner that misses no fault."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.clients.conftest import RunJavascript
from tests.house import environments, npm
from tests.house.processes import Server

FAULTS = {
    "an assertion": ("assert.equal(1, 2);", "AssertionError"),
    "a warning": ("console.warn('mind the gap');", "a warning: mind the gap"),
    "a rejection that nobody looks at": (
        "Promise.reject(new Error('lost')); await new Promise(setImmediate);",
        "unhandled: Error: lost",
    ),
    "a text frame": (
        """
        const socket = new WebSocket(url.replace("http", "ws") + "/ws");
        socket.onopen = () => socket.send(JSON.stringify({ client_id: "modern" }));
        await new Promise((resolve) => { socket.onmessage = resolve; });
        """,
        "a text frame: {",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_fails_the_script(fault: str, run_javascript: RunJavascript, server: Server) -> None:
    script, words = FAULTS[fault]
    with pytest.raises(AssertionError, match=words):
        await run_javascript(script, server.url)


async def test_a_script_without_fault_gets_its_arguments(run_javascript: RunJavascript, server: Server) -> None:
    result = await run_javascript("console.log(args.join());", server.url, "one", "two")
    assert result.stdout == "one,two\n"


@pytest.mark.slow
def test_packages_are_installed_again_only_when_their_inputs_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(npm.SOURCE / name, source)
    monkeypatch.setattr(environments, "HOME", tmp_path / "home")
    monkeypatch.setattr(npm, "SOURCE", source)
    assert npm.ensure()
    assert not npm.ensure()
    assert (npm.modules() / "imjoy-rpc" / "package.json").is_file()
    with (source / "package.json").open("a") as file:
        file.write("\n")
    assert not npm.is_complete(npm.fingerprint(node))


def test_the_lock_names_no_place_to_download_from() -> None:
    assert "://" not in (npm.SOURCE / "package-lock.json").read_text()
