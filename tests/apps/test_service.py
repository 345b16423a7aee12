"""The service: who may do what, its limits, and what is said where there is no browser."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from hypha.apps.found import NoBrowser, find_browser, unwrapped
from hypha.config import Limits, parse_mount
from hypha.errors import ConfigError, HyphaError
from hypha.store import Documents
from hypha.testing import open_server
from tests.apps.conftest import OpenServer
from tests.apps.test_running import CALCULATOR, WINDOW, until_so_many_run

SOURCE = "api.export({})"


async def test_apps_are_kept_listed_and_forgotten(tmp_path: Path) -> None:
    async with open_server(enable_server_apps=True, data_dir=tmp_path) as server:
        token = server.token("lab")
        async with server.connect({"token": token}) as user:
            apps = await user.get_service("server-apps")
            config = {"type": "window", "name": "A", "description": "says little", "tags": ["x"], "version": "1.2"}
            app = await apps.install(SOURCE, config=config)
            assert app["id"].startswith("lab/Qm")
            assert (app["type"], app["name"], app["version"]) == ("application", "A", "1.2")
            assert await apps.install(SOURCE, config=config) == app
            assert await apps.list_apps() == [app]
    again = open_server(enable_server_apps=True, data_dir=tmp_path)
    async with again as server, server.connect({"token": server.token("lab")}) as user:
        apps = await user.get_service("public/server-apps")
        assert await apps.list_apps() == [app]
        await apps.uninstall(app["id"])
        assert await apps.list_apps() == await apps.list_running() == []


async def test_who_may_not_change_a_workspace_may_only_look() -> None:
    async with open_server(enable_server_apps=True) as server:
        async with server.connect({"token": server.token("lab")}) as owner:
            apps = await owner.get_service("server-apps")
            app = await apps.install(SOURCE, config=WINDOW)
        async with server.connect({"token": server.token("lab", "read")}) as reader:
            apps = await reader.get_service("server-apps")
            assert [found["id"] for found in await apps.list_apps()] == [app["id"]]
            calls: list[tuple[str, list[Any]]] = [
                ("install", [SOURCE, None, WINDOW]),
                ("launch", [SOURCE, 60, WINDOW]),
                ("start", [app["id"]]),
                ("uninstall", [app["id"]]),
                ("stop", ["lab/x"]),
            ]
            for name, args in calls:
                with pytest.raises(HyphaError, match="Permission denied for workspace lab"):
                    await apps[name](*args)
            with pytest.raises(HyphaError, match="Server app instance not found"):
                await apps.get_log("x")
        async with server.connect() as stranger:
            apps = await stranger.get_service("server-apps")
            calls = [
                ("list_apps", ["lab"]),
                ("list_running", ["lab"]),
                ("get_log", ["lab/x"]),
                ("screenshot", ["lab/x"]),
                ("install", [SOURCE, None, WINDOW, None, None, "lab"]),
                ("start", [app["id"]]),
                ("list_apps", ["there-is-none"]),
            ]
            for name, args in calls:
                with pytest.raises(HyphaError, match="Permission denied for workspace"):
                    await apps[name](*args)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"source": ""}, "the source of an app is text"),
        ({"source": SOURCE, "source_hash": "Qm"}, "does not have the hash"),
        ({"config": {**WINDOW, "liveness_probe": {"exec": 1}}}, "exec of the liveness_probe is the name of a function"),
        ({"source": SOURCE, "attachments": {"files": []}}, "attachments of apps are not kept"),
        ({"source": "http://127.0.0.1/app.js"}, "is not an address of the public Internet"),
        ({"source": "http://localhost:9527/app.js"}, "is not an address of the public Internet"),
    ],
)
async def test_what_cannot_be_installed_says_why(arguments: dict[str, Any], reason: str) -> None:
    async with open_server(enable_server_apps=True) as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        with pytest.raises(HyphaError, match=reason):
            await apps.install(**{"source": SOURCE, "config": WINDOW, **arguments})
        with pytest.raises(HyphaError, match="Invalid app id: x"):
            await apps.start("x")


async def test_the_source_of_an_app_is_bounded_exactly() -> None:
    limits = Limits(app_source_bytes=100)
    async with open_server(enable_server_apps=True, limits=limits) as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        await apps.install("x" * 100, config=WINDOW)
        for source in ("x" * 101, "x" * 99 + "é"):
            with pytest.raises(HyphaError, match="app_source_bytes = 100"):
                await apps.install(source, config=WINDOW)


async def test_the_apps_of_a_workspace_are_listed_over_http_to_who_may_see_it(tmp_path: Path) -> None:
    (tmp_path / "apps").mkdir()
    mounts = (parse_mount(f"/:{tmp_path}", tmp_path),)  # which hides no list of the server
    async with (
        open_server(enable_server_apps=True, base_path="/base", static_mounts=mounts) as server,
        server.connect({"token": server.token("lab")}) as user,
        httpx.AsyncClient(base_url=server.url, follow_redirects=True) as client,
    ):
        apps = await user.get_service("server-apps")
        app = await apps.install(SOURCE, config=WINDOW)
        reader = {"Authorization": f"Bearer {server.token('lab', 'read')}"}
        for path in ("lab/apps", "lab/apps/"):
            assert (await client.get(path, headers=reader)).json() == [app]
        stranger, missing = await client.get("lab/apps"), await client.get("there-is-none/apps")
        assert (stranger.status_code, missing.status_code) == (404, 404)
        assert stranger.json()["detail"].replace("lab", "there-is-none") == missing.json()["detail"]


# --- without a browser ------------------------------------------------------------------------------------------


async def test_without_a_browser_the_server_says_what_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    missing = open_server(enable_server_apps=True, chromium_path="there-is-none")
    async with missing as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        await apps.install(SOURCE, config=WINDOW)
        with pytest.raises(HyphaError, match="--chromium-path there-is-none is no program"):
            await apps.launch(SOURCE, config=WINDOW)
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"{server.url}/health/server_apps")
            assert (answer.status_code, answer.json()["status"]) == (503, "DOWN")
            assert "there-is-none" in answer.json()["detail"]
            assert (await client.get(f"{server.url}/health/readiness")).status_code == 200
    assert "hypha: server apps cannot run: --chromium-path there-is-none is no program" in capfd.readouterr().err


async def test_without_playwright_the_server_does_not_start_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "playwright" else found(name))
    command = re.escape(f"{sys.executable} -m pip install 'playwright>=1.49'")
    with pytest.raises(ConfigError, match=f"^--enable-server-apps needs Playwright; install it: {command}$"):
        async with open_server(enable_server_apps=True):
            pass  # not reached


async def test_a_data_directory_that_does_not_keep_apps_is_told_and_the_server_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def names(self: Documents) -> list[str]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Documents, "names", names)
    async with open_server(enable_server_apps=True, data_dir=tmp_path) as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        with pytest.raises(HyphaError, match=r"cannot use its data directory \(Input/output error\)"):
            await apps.launch(SOURCE, config=WINDOW)
    assert "hypha: server apps cannot run: the server cannot use its data directory" in capfd.readouterr().err


async def test_without_the_option_there_is_no_service() -> None:
    async with open_server() as server, server.connect() as user, httpx.AsyncClient() as client:
        with pytest.raises(HyphaError, match="not found"):
            await user.get_service("server-apps")
        assert (await client.get(f"{server.url}/health/server_apps")).json() == {"status": "OFF"}
        assert (await client.get(f"{server.url}/apps/x")).status_code == 404


def test_a_browser_is_looked_for_in_its_places(tmp_path: Path) -> None:
    def program(*parts: str) -> str:
        path = tmp_path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o755)
        return str(path)

    system = program("bin", "google-chrome")
    environ = {"PATH": str(tmp_path / "bin"), "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path / "downloads")}
    assert find_browser(None, environ) == system
    downloaded = program("downloads", "chromium-1", "chrome-linux", "chrome")
    assert find_browser(None, environ) == downloaded
    assert find_browser("google-chrome", environ) == system
    assert find_browser(system, environ) == system
    with pytest.raises(NoBrowser, match=r"apt-get install -y chromium-headless-shell\n.*playwright install chromium"):
        find_browser(None, {"PATH": "/nowhere", "PLAYWRIGHT_BROWSERS_PATH": "/nowhere"})


def test_a_script_in_front_of_a_browser_is_gone_past(tmp_path: Path) -> None:
    program, script = tmp_path / "program", tmp_path / "script"
    program.touch(mode=0o755)
    script.write_text(f'#!/bin/sh -e\n{program} "$@"\n')
    assert unwrapped(str(script)) == str(program)
    for text in (f'#!/bin/sh\nexport A=1\n{program} "$@"\n', f'#!/bin/sh\n{tmp_path}/none "$@"\n', "ELF"):
        script.write_text(text)
        assert unwrapped(str(script)) == str(script)
    assert unwrapped("/there/is/none") == "/there/is/none"


# --- with a browser ---------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_the_apps_that_run_are_bounded_exactly(open_apps: OpenServer) -> None:
    limits = Limits(running_apps=3, running_apps_per_user=2)
    async with open_apps(limits=limits) as server, server.connect() as user, server.connect() as other:
        apps, theirs = await user.get_service("server-apps"), await other.get_service("server-apps")
        for _ in range(2):
            app = await apps.launch(CALCULATOR, config=WINDOW)
        with pytest.raises(HyphaError, match="running_apps_per_user = 2"):
            await apps.start(app["app_id"])
        await theirs.launch(CALCULATOR, config=WINDOW)
        with pytest.raises(HyphaError, match="running_apps = 3"):
            await theirs.launch(CALCULATOR, config=WINDOW)
        await apps.stop(app["id"])
        await apps.start(app["app_id"], client_id=app["id"])


@pytest.mark.slow
async def test_a_client_id_is_taken_once(open_apps: OpenServer) -> None:
    async with open_apps() as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        app = await apps.launch(CALCULATOR, config=WINDOW, client_id="calculator")
        assert app["id"] == "calculator"
        with pytest.raises(HyphaError, match="an app runs as the client 'calculator' already"):
            await apps.start(app["app_id"], client_id="calculator")


@pytest.mark.slow
async def test_an_app_that_does_not_become_ready_is_ended(open_apps: OpenServer) -> None:
    async with open_apps(limits=Limits(app_launch_seconds=1)) as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        with pytest.raises(HyphaError, match="Failed to start app: Timeout, after app_launch_seconds = 1"):
            await apps.launch("console.error('I wait'); await new Promise(() => {})", config=WINDOW)
        assert await apps.list_running() == []


@pytest.mark.slow
async def test_an_app_that_nobody_calls_is_ended(open_apps: OpenServer) -> None:
    async with open_apps(limits=Limits(app_idle_seconds=2)) as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        app = await apps.launch(CALCULATOR, config=WINDOW)
        calculator = await user.get_service(f"{app['id']}:default")
        for _ in range(12):
            await calculator.add(1, 2)
            await trio.sleep(0.3)
        await until_so_many_run(apps, 0)


@pytest.mark.slow
async def test_the_page_holds_no_token_and_is_sandboxed(open_apps: OpenServer) -> None:
    async with open_apps() as server, server.connect() as user, httpx.AsyncClient() as client:
        apps = await user.get_service("server-apps")
        app = await apps.launch(CALCULATOR, config=WINDOW)
        page = await client.get(app["local_url"])
        assert page.headers["content-security-policy"].startswith("sandbox allow-scripts;")
        assert "hello from the app" in page.text
        assert "eyJ" not in page.text  # the head of every token
        await apps.stop(app["id"])
        assert (await client.get(app["local_url"])).status_code == 404
