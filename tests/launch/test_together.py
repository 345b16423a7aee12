"""Services that start with a server in this process: what its health says, and how it ends for their sake."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from hypha.banner import say
from hypha.errors import ConfigError
from hypha.lazy import Failure, Unservable, explain
from hypha.testing import open_server
from tests.launch.programs import gone
from tests.process.servers import until

pytestmark = pytest.mark.deadline(40)


def services(directory: Path, *entries: dict[str, Any]) -> Path:
    path = directory / "services.yaml"
    path.write_text(yaml.safe_dump({"format_version": 1, "services": list(entries)}))
    return path


def sleeper(directory: Path, name: str, **more: Any) -> dict[str, Any]:
    """A program that writes its number into the file *name* and sleeps."""
    code = f"import os, time; open({str(directory / name)!r}, 'w').write(f'{{os.getpid()}}.'); time.sleep(99)"
    return {"name": name, "command": [sys.executable, "-I", "-S", "-c", code], **more}


async def pid_in(path: Path) -> int:
    """The number in the file *path*, when it is whole."""

    def number() -> str:
        return path.read_text().partition(".")[0] if path.exists() and "." in path.read_text() else ""

    await until(lambda: number() != "")
    return int(number())


async def is_loaded(port: int) -> bool:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(b"GET /health/services_loaded HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return (await stream.receive_some()).startswith(b"HTTP/1.1 200")


async def test_a_server_is_loaded_when_its_programs_are_ready(tmp_path: Path) -> None:
    path = services(tmp_path, sleeper(tmp_path, "one"), sleeper(tmp_path, "two"))
    async with open_server(data_dir=tmp_path / "data", services_config=path) as server:
        assert not await is_loaded(server.port)
        pids = [await pid_in(tmp_path / name) for name in ("one", "two")]
        with trio.fail_after(10):
            while not await is_loaded(server.port):  # noqa: ASYNC110  its health is what is asked here
                await trio.sleep(0.05)
    for pid in pids:
        await gone(pid)


async def test_a_server_without_its_service_raises_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = services(tmp_path, sleeper(tmp_path, "one"), sleeper(tmp_path, "two", check_services=["no"], timeout=0.5))
    with pytest.raises(Unservable) as caught:
        async with open_server(data_dir=tmp_path / "data", services_config=path):
            await trio.sleep_forever()
    said = "two did not offer no in the workspace public within 0.5 s; it has printed nothing"
    assert explain(caught.value) == Failure(said, 1, final=True)
    for name in ("one", "two"):
        await gone(await pid_in(tmp_path / name))


async def test_programs_cannot_reach_a_server_in_memory(tmp_path: Path) -> None:
    path = services(tmp_path, {"command": "sleep 99"})
    with pytest.raises(ConfigError, match="need a TCP address"):
        async with open_server(memory=True, data_dir=tmp_path / "data", services_config=path):
            await trio.sleep_forever()


async def test_a_mistake_is_told_before_anything_is_made(tmp_path: Path) -> None:
    path = services(tmp_path, {"comand": "sleep 99"})
    with pytest.raises(ConfigError, match="did you mean command"):
        async with open_server(data_dir=tmp_path / "data", services_config=path):
            raise AssertionError("it is not open")
    assert not (tmp_path / "data").exists()


def test_what_the_server_says_is_not_torn_by_what_programs_print(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unbuffered(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    written: list[str] = []
    monkeypatch.setattr(sys, "stderr", Unbuffered())
    say("one\ntwo")
    assert [text for text in written if text] == ["hypha: one\nhypha: two\n"]


async def test_a_server_with_nothing_to_start_is_loaded(tmp_path: Path) -> None:
    async with open_server(data_dir=tmp_path / "data", services_config=services(tmp_path)) as server:
        assert await is_loaded(server.port)
