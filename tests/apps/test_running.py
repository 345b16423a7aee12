"""Apps in a real browser: from their launch to the end of everything that belongs to them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from hypha.client import Server
from hypha.config import Limits
from hypha.errors import HyphaError, PeerGone
from tests.apps.conftest import OpenServer

pytestmark = [pytest.mark.slow, pytest.mark.deadline(90)]

CALCULATOR = """
    console.log("hello from the app");
    console.warn("a warning");
    await api.export({
        name: "Calculator",
        add: (a, b) => a + b,
        fail: async () => { throw new Error("on purpose") },
        hang: () => new Promise(() => {}),
        reach: async (url) => {
            try {
                return (await fetch(url, { mode: "no-cors" })).type;
            } catch (error) {
                return String(error);
            }
        },
        dial: (url) => new Promise((resolve) => {
            const socket = new WebSocket(url);
            socket.onopen = () => resolve("open");
            socket.onerror = () => resolve("refused");
        }),
        paint: () => { document.body.style.background = "rgb(0, 128, 0)"; },
        popup: () => window.open("about:blank") === null,
        crash: () => { setTimeout(() => { const all = []; for (;;) all.push(new Array(1e6).fill(all.length)); }, 0); },
    });
"""
WINDOW = {"type": "window", "name": "Calculator"}
WORKER = {"type": "web-worker", "name": "Calculator"}

#: Seconds in which an app on a browser that runs is ready and has answered (issue 7).
WARM_SECONDS = 1.5
#: MiB that one small app may take of the browser, and of the server with its log and its connection.
APP_MIB, SERVER_APP_MIB = 60.0, 2.0


def browsers(data_dir: Path) -> list[int]:
    """The processes of the browser whose profiles are in *data_dir*; the one that was started first."""
    found = []
    for process in sorted(map(int, filter(str.isdigit, os.listdir("/proc")))):
        with suppress(OSError):
            command = Path(f"/proc/{process}/cmdline").read_bytes()
            # Those that it has started are in its group, and do not name the directory.
            if f"--user-data-dir={data_dir}".encode() in command or os.getpgid(process) in found:
                found.append(process)
    return found


def is_alive(process: int) -> bool:
    """Whether a process is there, and not merely remembered because nobody has asked how it has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def held(processes: Iterable[int]) -> float:
    """MiB that *processes* hold, what several share counted once."""
    total = 0
    for process in processes:
        with suppress(OSError):  # a renderer that has just ended
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += int(rollup.partition("\nPss:")[2].split()[0])
    return total / 1024


async def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    with trio.fail_after(seconds):
        while not holds():  # noqa: ASYNC110  what the kernel does tells nobody
            await trio.sleep(0.02)


async def until_so_many_run(apps: Any, number: int, seconds: float = 10.0) -> list[dict[str, Any]]:
    """The apps that run, when there are so many."""
    with trio.fail_after(seconds):
        while True:
            running: list[dict[str, Any]] = await apps.list_running()
            if len(running) == number:
                return running
            await trio.sleep(0.05)


async def calculator_of(user: Server, app: dict[str, Any]) -> Any:
    return await user.get_service(f"{app['id']}:default")


@pytest.mark.parametrize("config", [WINDOW, WORKER], ids=lambda config: str(config["type"]))
async def test_a_client_launches_calls_and_looks(config: dict[str, Any], open_apps: OpenServer) -> None:
    async with open_apps() as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        app = await apps.launch(CALCULATOR, config=config)
        calculator = await calculator_of(user, app)
        assert await calculator.add(1, 2) == 3
        with pytest.raises(HyphaError, match="on purpose"):
            await calculator.fail()
        assert await apps.get_log(app["id"], "log") == ["hello from the app"]
        assert (await apps.get_log(app["session_id"]))["warning"] == ["a warning"]
        (running,) = await apps.list_running()
        assert (running["id"], running["name"], running["status"]) == (app["id"], app["app_id"], "connected")
        if config is WINDOW:
            await calculator.paint()
        picture = await apps.screenshot(app["id"])
        assert picture.startswith(b"\x89PNG")
        if "HYPHA_PICTURE" in os.environ:
            await trio.Path(os.environ["HYPHA_PICTURE"]).write_bytes(picture)
        await apps.stop(app["id"])
        assert await apps.list_running() == []
        with pytest.raises(HyphaError, match="not connected"):
            await calculator.add(1, 2)
        with pytest.raises(HyphaError, match="Server app instance not found"):
            await apps.stop(app["id"])
        await apps.stop(app["id"], raise_exception=False)


async def test_a_browser_that_is_killed_ends_its_apps_and_the_next_app_starts_another(
    open_apps: OpenServer, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    async with open_apps(data_dir=data) as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        app = await apps.launch(CALCULATOR, config=WINDOW)
        calculator = await calculator_of(user, app)
        errors: list[HyphaError] = []

        async def call() -> None:
            try:
                await calculator.hang()
            except HyphaError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await calculator.add(1, 2)
            started = time.perf_counter()
            os.kill(browsers(data / "browser")[0], signal.SIGKILL)
        print(f"callers knew after {time.perf_counter() - started:.3f} s")
        (error,) = errors
        assert isinstance(error, PeerGone)
        await until_so_many_run(apps, 0)
        again = await apps.start(app["app_id"])
        assert await (await calculator_of(user, again)).add(1, 2) == 3


async def test_a_page_that_crashes_ends_its_app_alone(open_apps: OpenServer) -> None:
    async with open_apps() as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        one, other = [await apps.launch(CALCULATOR, config=WINDOW) for _ in range(2)]
        await (await calculator_of(user, one)).crash()
        (left,) = await until_so_many_run(apps, 1, 60)
        assert left["id"] == other["id"]
        assert await (await calculator_of(user, other)).add(1, 2) == 3


async def test_an_app_reaches_the_server_and_nothing_else_of_this_machine(open_apps: OpenServer) -> None:
    async with open_apps() as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        for config in (WINDOW, WORKER):
            calculator = await calculator_of(user, await apps.launch(CALCULATOR, config=config))
            assert await calculator.reach(f"{server.url}/health/liveness") == "opaque"
            assert await calculator.dial(f"ws://127.0.0.1:{port}/") == "refused"
            for address in (f"http://127.0.0.1:{port}/", f"http://localhost:{port}/", "http://169.254.169.254/"):
                # What the gate answers is all that there is to be had, and cannot be read.
                assert await calculator.reach(address) in {"opaque", "TypeError: Failed to fetch"}
            assert "Failed to fetch" in await calculator.reach("file:///etc/passwd")
        with trio.move_on_after(0.2) as patience:
            await listeners[0].accept()
        assert patience.cancelled_caught, "something of the browser has connected"
        await listeners[0].aclose()


async def test_twenty_apps_leave_nothing(open_apps: OpenServer, tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with open_apps(data_dir=data) as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        kept = await apps.launch(CALCULATOR, config=WINDOW)
        before = len(browsers(data / "browser"))
        alone, server_alone = held(browsers(data / "browser")), held([os.getpid()])
        times, running = [], []
        for _ in range(19):
            started = time.perf_counter()
            app = await apps.launch(CALCULATOR, config=WINDOW)
            assert await (await calculator_of(user, app)).add(1, 2) == 3
            times.append(time.perf_counter() - started)
            running.append(app)
        each = (held(browsers(data / "browser")) - alone) / len(running)
        server_each = (held([os.getpid()]) - server_alone) / len(running)
        print(f"one app: {alone:.0f} MiB; each more {each:.1f} MiB in the browser, {server_each:.2f} MiB in the server")
        print(f"a launch on a warm browser: {sorted(times)[len(times) // 2]:.2f} s, the slowest {max(times):.2f} s")
        with pytest.raises(HyphaError, match="running_apps_per_user = 20"):
            await apps.launch(CALCULATOR, config=WINDOW)
        for app in running:
            await apps.stop(app["id"])
        assert [app["id"] for app in await apps.list_running()] == [kept["id"]]
        browser = server._assembly._open_rooms().apps
        assert browser is not None
        assert browser.runner.browser.contexts == 1 + 1  # the browser's own, and that of the app that is kept
        # A renderer is kept for the next page, and one is always ready.
        await until(lambda: len(browsers(data / "browser")) <= before + 1)
        print(f"after 19 of 20 were stopped: {held(browsers(data / 'browser')):.0f} MiB")
        assert sorted(times)[len(times) // 2] < WARM_SECONDS
        assert each < APP_MIB
        assert server_each < SERVER_APP_MIB
        processes = browsers(data / "browser")
    # Those that the browser itself has started are waited for by others.
    await until(lambda: not any(is_alive(process) for process in processes), 2)
    assert os.listdir(data / "browser") == []


async def test_an_app_ends_with_its_owner(open_apps: OpenServer) -> None:
    async with open_apps() as server, server.connect({"token": server.token("lab")}) as watcher:
        apps = await watcher.get_service("server-apps")
        async with server.connect({"token": server.token("lab")}) as owner:
            theirs = await owner.get_service("server-apps")
            await theirs.launch(CALCULATOR, config=WINDOW)
            await trio.sleep(1.1)  # the sweeper has seen its owner
            assert len(await apps.list_running()) == 1
        await until_so_many_run(apps, 0)


async def test_a_caller_that_leaves_during_a_launch_leaves_nothing(open_apps: OpenServer) -> None:
    async with open_apps() as server, server.connect({"token": server.token("lab")}) as watcher:
        apps = await watcher.get_service("server-apps")
        for seconds in (0.05, 0.3, 0.6, 0.9):
            with trio.move_on_after(seconds):
                async with server.connect({"token": server.token("lab")}) as user:
                    theirs = await user.get_service("server-apps")
                    await theirs.launch("await new Promise(() => {})", config=WINDOW)
            await until_so_many_run(apps, 0)


async def test_a_launch_over_http_ends_when_its_client_leaves(open_apps: OpenServer) -> None:
    async with (
        open_apps() as server,
        server.connect({"token": server.token("lab")}) as watcher,
        httpx.AsyncClient(headers={"Authorization": f"Bearer {server.token('lab')}"}) as client,
    ):
        apps = await watcher.get_service("server-apps")
        url = f"{server.url}/public/services/server-apps/launch"
        launch = {"source": "await new Promise(() => {})", "config": WINDOW, "workspace": "lab"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.post, url, json=launch, timeout=60))
            (app,) = await until_so_many_run(apps, 1)
            assert app["status"] == "connecting"
            nursery.cancel_scope.cancel()
        await until_so_many_run(apps, 0)
        for callback, said in (({"_rtype": "method"}, "hold no functions"), ("x", "cannot send a function along")):
            answer = await client.post(url, json={**launch, "progress_callback": callback})
            assert (answer.status_code, said in answer.json()["detail"]) == (400, True)


@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.8])
async def test_a_server_that_is_cancelled_during_a_launch_leaves_nothing(
    seconds: float, open_apps: OpenServer, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    with trio.move_on_after(seconds):
        async with open_apps(data_dir=data) as server, server.connect() as user:
            apps = await user.get_service("server-apps")
            await apps.launch("await new Promise(() => {})", config=WINDOW)
    await until(lambda: browsers(data / "browser") == [])


async def test_a_launch_that_its_caller_cancels_leaves_nothing(open_apps: OpenServer, tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with open_apps(data_dir=data) as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        for seconds in (0.05, 0.3, 0.6, 0.9):
            stages: list[str] = []
            with trio.move_on_after(seconds) as patience:
                await apps.launch(
                    "await new Promise(() => {})",
                    config=WINDOW,
                    progress_callback=lambda told, stages=stages: stages.append(told["message"]),
                )
            assert patience.cancelled_caught
            assert stages[:1] in ([], ["installing it"])
            # At once: nothing but the closing of a context may still be under way.
            await until_so_many_run(apps, 0, 2)
        runner = server._assembly._open_rooms().apps
        assert runner is not None
        await until(lambda: runner.runner.browser.contexts <= 1)


async def test_a_caller_and_the_terminal_see_how_far_a_launch_is(
    open_apps: OpenServer, capfd: pytest.CaptureFixture[str]
) -> None:
    async with open_apps() as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        for expected in (["installing it", "starting the browser"], ["installing it", "opening its page"]):
            told: list[dict[str, str]] = []
            app = await apps.launch(CALCULATOR, config=WINDOW, wait_for_service=True, progress_callback=told.append)
            *begun, ready = [each["message"] for each in told]
            assert begun == [*expected, "running its script", "waiting for its service 'default'"]
            assert ready.startswith("ready after ")
            assert [each["type"] for each in told] == ["info"] * 4 + ["success"]
        running = {each["id"]: each["progress"] for each in await apps.list_running()}
        assert running[app["id"]] == ready
        told.clear()
        with pytest.raises(HyphaError, match="Failed to start app"):
            await apps.launch("throw new Error('\x1b[31mon purpose')", config=WINDOW, progress_callback=told.append)
        assert (told[-1]["type"], told[-1]["message"][:20]) == ("error", "Failed to start app:")
        await apps.stop(app["id"])
    said = capfd.readouterr().err
    place = f"hypha: server app 'Calculator' of {app['workspace']}: "
    for line in (*begun, ready, "Failed to start app: Error: ?[31mon purpose", "has ended: it was stopped"):
        assert f"{place}{line}\n" in said


async def test_an_app_is_ready_when_its_probe_says_so_and_ends_when_it_does_not_live(open_apps: OpenServer) -> None:
    config = {
        **WINDOW,
        "readiness_probe": {"exec": "isReady", "period_seconds": 0.1},
        "liveness_probe": {"exec": "isAlive", "period_seconds": 0.1, "failure_threshold": 2},
    }
    source = """
        let asked = 0, alive = true;
        await api.export({
            isReady: () => (asked += 1) >= 3,
            isAlive: () => alive,
            asked: () => asked,
            die: () => { alive = false; },
        });
    """
    async with open_apps(limits=Limits(app_idle_seconds=2)) as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        app = await apps.launch(source, config=config)
        service = await calculator_of(user, app)
        assert await service.asked() == 3
        await service.die()
        await until_so_many_run(apps, 0, 1.5)
        app = await apps.start(app["app_id"])
        # Its probes are no use of it.
        started = trio.current_time()
        await until_so_many_run(apps, 0, 6)
        assert trio.current_time() - started > 1
        config["readiness_probe"] = {"exec": "nothing", "period_seconds": 0.1, "timeout": 1, "failure_threshold": 2}
        with pytest.raises(HyphaError, match="Failed to start app: its readiness_probe 'nothing' has failed 2 times"):
            await apps.launch(source, config=config)


async def test_an_app_may_be_a_web_application(open_apps: OpenServer) -> None:
    source = """
        const config = { visibility: "public" };
        const index = ({ query_string }) => ({ headers: { "X-Own": "1" }, body: `<h1>${query_string}</h1>` });
        await api.registerService({ id: "pages", type: "functions", config, index });
        const serve = async ({ scope, receive, send }) => {
            const { body } = await receive();
            await send({ type: "http.response.start", status: 201, headers: [] });
            await send({ type: "http.response.body", body: `${scope.method} ${body.length}`, more_body: false });
        };
        await api.registerService({ id: "whole", type: "ASGI", config, serve });
    """
    async with open_apps() as server, server.connect() as user, httpx.AsyncClient() as client:
        apps = await user.get_service("server-apps")
        for config in (WINDOW, WORKER):
            app = await apps.launch(source, config=config)
            home = f"{server.url}/{app['workspace']}/apps"
            answer = await client.get(f"{home}/pages/?hello")
            assert (answer.headers["x-own"], answer.text) == ("1", "<h1>hello</h1>")
            answer = await client.post(f"{home}/whole/a", content=b"12345")
            assert (answer.status_code, answer.text) == (201, "POST 5")
            await apps.stop(app["id"])
            assert (await client.get(f"{home}/pages/?hello")).status_code == 404


async def test_what_fails_says_why(open_apps: OpenServer) -> None:
    async with open_apps() as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        with pytest.raises(HyphaError, match=r"Failed to start app: .*ReferenceError: nothing is not defined"):
            await apps.launch("nothing()", config=WINDOW)
        with pytest.raises(HyphaError, match=r"Failed to start app: .*SyntaxError"):
            await apps.launch("this is no code", config=WORKER)
        with pytest.raises(HyphaError, match="Failed to start app: Timeout, after 1 s"):
            await apps.launch("console.error('I wait'); await new Promise(() => {})", config=WINDOW, timeout=1)
        app = await apps.launch(
            "await api.registerService({id: 'early', hello: () => 'hello'}); await new Promise(() => {})",
            config=WINDOW,
            wait_for_service="early",
        )
        assert await (await user.get_service(f"{app['id']}:early")).hello() == "hello"


async def test_python_says_what_it_needs(open_apps: OpenServer) -> None:
    async with open_apps() as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        with pytest.raises(HyphaError, match="Pyodide cannot be loaded from https://"):
            await apps.launch("print(1)", config={"type": "web-python"})


async def test_an_imjoy_plugin_with_a_window(open_apps: OpenServer) -> None:
    plugin = """
        <docs>What it does</docs>
        <config lang="json">{"name": "Old plugin", "type": "window", "tags": ["a"], "version": "0.2.0"}</config>
        <window><h1 id="title">A title with &lt; in it</h1></window>
        <style>h1 { color: red }</style>
        <script lang="javascript">
        class Plugin {
            async setup() { console.log("set up") }
            title() { return document.getElementById("title").textContent }
        }
        api.export(new Plugin())
        </script>
    """
    async with open_apps() as server, server.connect() as user:
        apps = await user.get_service("server-apps")
        app = await apps.launch(plugin, wait_for_service=True)
        assert await (await calculator_of(user, app)).title() == "A title with < in it"
        (installed,) = await apps.list_apps()
        assert (installed["name"], installed["documentation"]) == ("Old plugin", "What it does")
        await apps.uninstall(app["app_id"])
        assert await apps.list_apps() == await apps.list_running() == []
