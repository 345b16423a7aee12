"""Services that start with the server, with real servers and real programs: from ``--services-config`` to the end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from tests.house.processes import Result, run
from tests.launch.programs import STUBBORN, gone, is_alive, is_there
from tests.process.servers import (
    HYPERCORN,
    SERVER,
    SINGLE,
    Live,
    big_mount,
    command_line,
    live,
    refused,
    stalled_reader,
    until,
)

pytestmark = pytest.mark.slow

BOTH = pytest.mark.parametrize("command", [SERVER, SINGLE], ids=["parent", "single"])
ALL = pytest.mark.parametrize("command", [SERVER, SINGLE, HYPERCORN], ids=["parent", "single", "hypercorn"])

#: Offers the service of its argument, as the programs of the published clients do.
WORKER = """
import asyncio, os, sys
from imjoy_rpc.hypha import connect_to_server

async def main():
    server = await connect_to_server({
        "server_url": os.environ["HYPHA_SERVER_URL"],
        "workspace": os.environ["HYPHA_WORKSPACE"],
        "token": os.environ["HYPHA_TOKEN"],
        "client_id": "worker",
    })
    await server.register_service({
        "id": sys.argv[1], "name": "x", "config": {"visibility": "public"}, "hello": lambda name: "Hello " + name,
    })
    print("pid", os.getpid(), "offers", sys.argv[1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
SLEEPER = "import os, time; print('pid', os.getpid(), 'sleeps', flush=True); time.sleep(99)"


def services(directory: Path, *entries: dict[str, Any]) -> Path:
    """A services file in *directory*, with the program that offers services beside it."""
    (directory / "worker.py").write_text(WORKER)
    path = directory / "services.yaml"
    path.write_text(yaml.safe_dump({"format_version": 1, "services": list(entries)}))
    return path


def started(command: Sequence[str], path: Path) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment with which *command* starts what *path* says."""
    if "hypercorn" in command:
        return list(command), {"HYPHA_SERVICES_CONFIG": str(path)}
    return [*command, "--services-config", str(path)], {}


async def failed(command: Sequence[str], path: Path) -> Result:
    """The result of a server that must end by itself."""
    full, environ = started(command, path)
    port = () if "hypercorn" in command else ("--port", "0")
    async with trio.open_nursery() as nursery:
        result = await run(nursery, [*full, *port], cwd=path.parent, environ=environ, seconds=30)
    assert "Traceback" not in result.stdout + result.stderr, result.stderr
    return result


async def pid_of(server: Live, name: str, word: str = "") -> int:
    """The process of the service *name*, which says its number."""
    return int((await server.running.wait_for(rf"^{name} \| pid (\d+) {word}", "stderr"))[1])


async def get(port: int, path: str) -> tuple[int, str]:
    """Status and body of an answer over HTTP."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        head, _, body = b"".join([chunk async for chunk in stream]).decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


async def loaded(port: int) -> bool:
    return (await get(port, "/health/services_loaded"))[0] == 200


async def until_loaded(port: int) -> None:
    with trio.fail_after(20):
        while not await loaded(port):  # noqa: ASYNC110  it comes true in another process
            await trio.sleep(0.05)


async def handshake(port: int, token: str) -> int:
    """The status with which a client that has *token* is answered."""
    lines = [
        f"GET /ws?client_id=stranger&workspace=public&token={token} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "\r\n",
    ]
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all("\r\n".join(lines).encode())
        return int((await stream.receive_some()).split()[1])


# --- a start ----------------------------------------------------------------------------------------------------


@ALL
async def test_a_service_is_there_when_it_is_said_and_gone_with_the_server(
    command: Sequence[str], tmp_path: Path
) -> None:
    entry = {"name": "greeter", "command": "python worker.py hello", "check_services": ["hello"], "timeout": 20}
    full, environ = started(command, services(tmp_path, {**entry, "workspace": "lab"}))
    async with live(full, tmp_path, environ) as server:
        before = await loaded(server.port)
        pid = await pid_of(server, "greeter", "offers hello")
        await until_loaded(server.port)
        assert not before
        assert await get(server.port, "/lab/services/hello/hello?name=John") == (200, '"Hello John"')
        await server.running.wait_for(r"^hypha: greeter is ready after [\d.]+ s", "stderr")
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0
        assert not is_alive(pid)


ECHO = "import json, os, sys; print('echo', json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), sys.executable]))"


@ALL
async def test_what_a_program_is_told(command: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "dir with space").mkdir()
    echo = tmp_path / "my echo.py"
    echo.write_text(ECHO + "\nimport time; time.sleep(99)")
    path = services(tmp_path)
    path.write_text(
        f"""
format_version: 1
services:
  - name: text
    command: >-
      python "{echo}" 'two words' {{server_url}} --ws={{workspace}} --t={{token}} '{{"json": {{}}}}' {{0}} {{other}}
    env: {{MINE: 5, LANG: mine}}
    cwd: dir with space
  - name: list
    command: [python3, "{echo}", "two words", "{{workspace}}/{{token}}", "'", "{{"]
    workspace: den
"""
    )
    full, environ = started(command, path)
    environ |= {"HYPHA_BASE_PATH": "/lab", "SECRET": "canary", "LC_MINE": "passed"}
    async with live(full, tmp_path, environ) as server:
        url = f"http://127.0.0.1:{server.port}/lab"
        told: dict[str, Any] = {}
        for name in ("text", "list"):
            told[name] = json.loads((await server.running.wait_for(rf"^{name} \| echo (.*)$", "stderr"))[1])
        arguments, seen, cwd, interpreter = told["text"]
        token = seen["HYPHA_TOKEN"]
        assert arguments == ["two words", url, "--ws=public", f"--t={token}", '{"json": {}}', "{0}", "{other}"]
        assert token.count(".") == 2
        assert (seen["HYPHA_SERVER_URL"], seen["HYPHA_WORKSPACE"], seen["MINE"]) == (url, "public", "5")
        assert (seen["LANG"], seen["LC_MINE"], "SECRET" in seen, "HYPHA_BASE_PATH" in seen) == (
            *("mine", "passed", False, False),
        )
        assert (cwd, interpreter) == (str(tmp_path / "dir with space"), sys.executable)
        arguments, seen, cwd, _ = told["list"]
        assert arguments == ["two words", f"den/{seen['HYPHA_TOKEN']}", "'", "{"]
        assert cwd == str(tmp_path)
        server.kill(signal.SIGTERM)
        assert "canary" not in (await server.ended()).stderr


async def test_programs_of_a_server_that_listens_everywhere_reach_it(tmp_path: Path) -> None:
    path = services(tmp_path, {"command": ["sh", "-c", "echo at $HYPHA_SERVER_URL; sleep 99"]})
    for host, url in (("0.0.0.0", "127.0.0.1"), ("::", "[::1]")):
        async with live([*SERVER, "--host", host, "--services-config", str(path)], tmp_path) as server:
            await server.running.wait_for(re.escape(f"sh | at http://{url}:{server.port}") + "$", "stderr")
            server.kill(signal.SIGTERM)
            assert (await server.ended()).returncode == 0


async def test_an_address_that_answers_makes_a_service_ready(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    serve = f"import http.server as h; h.HTTPServer(('127.0.0.1', {port}), h.BaseHTTPRequestHandler).serve_forever()"
    entry = {"name": "web", "command": ["python", "-c", serve], "timeout": 20}
    path = services(tmp_path, {**entry, "check_url": f"http://127.0.0.1:{port}/any"})
    async with live([*SERVER, "--services-config", str(path)], tmp_path) as server:
        await server.running.wait_for("web is ready after", "stderr")
        assert await loaded(server.port)
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0


# --- failures ---------------------------------------------------------------------------------------------------


@ALL
async def test_a_service_that_is_missing_ends_the_server(command: Sequence[str], tmp_path: Path) -> None:
    """The message names it and shows what its program said last; no other program is left either."""
    talker = "import os, time; print('pid', os.getpid(), 'begins'); print('no luck'); time.sleep(99)"
    bad = {"name": "bad", "command": ["python", "-c", talker], "check_services": ["absent"], "timeout": 2.5}
    path = services(tmp_path, {"name": "good", "command": ["python", "-c", SLEEPER]}, bad)
    began = time.monotonic()
    result = await failed(command, path)
    assert time.monotonic() - began < 12
    pids = [int(pid) for pid in re.findall(r"\| pid (\d+)", result.stderr)]
    assert len(pids) == 2
    assert not any(map(is_alive, pids))
    said = [line for line in result.stderr.splitlines() if line.startswith("hypha: ")]
    assert said[-3:] == [
        "hypha: bad did not offer absent in the workspace public within 2.5 s; it last printed:",
        f"hypha:   pid {next(pid for pid in pids if f'bad | pid {pid}' in result.stderr)} begins",
        "hypha:   no luck",
    ]
    assert "hypha: waiting for bad: service absent (2.5 s)" in said
    assert result.stderr.count("did not offer") == 1
    if "hypercorn" not in command:
        assert result.returncode == 1


@BOTH
@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"command": "no-such-program --x"}, "cannot be started: No such file or directory: no-such-program"),
        ({"command": ["sh", "-c", "echo why; exit 7"]}, "sh ended with exit code 7 before it was ready"),
    ],
)
async def test_a_program_that_does_not_run_ends_the_server(
    command: Sequence[str], entry: dict[str, Any], said: str, tmp_path: Path
) -> None:
    result = await failed(command, services(tmp_path, entry))
    assert result.returncode == 1
    assert said in result.stderr
    assert "another one starts" not in result.stderr


@BOTH
async def test_an_end_long_after_the_start_ends_the_server_too(command: Sequence[str], tmp_path: Path) -> None:
    full, _ = started(command, services(tmp_path, {"name": "prog", "command": ["python", "-c", SLEEPER]}))
    async with live(full, tmp_path) as server:
        pid = await pid_of(server, "prog")
        await until_loaded(server.port)
        os.kill(pid, signal.SIGKILL)
        result = await server.ended()
    assert result.returncode == 1
    assert "hypha: prog was killed by SIGKILL; it last printed:" in result.stderr
    assert "another one starts" not in result.stderr


@ALL
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("format_version: 2\nservices: []\n", "services.yaml:1: format_version is '2', but only 1 is known"),
        ("format_version: 1\nservices:\n- comand: x\n", "services.yaml:3: unknown key 'comand'; did you mean command?"),
    ],
)
async def test_a_mistake_in_the_file_is_one_line_and_nothing_starts(
    command: Sequence[str], text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "services.yaml"
    path.write_text(text)
    result = await failed(command, path)
    (line,) = result.stderr.splitlines()
    assert said in line
    assert result.stdout == ""
    if "hypercorn" not in command:
        assert result.returncode == 2
    assert not (tmp_path / ".hypha").exists()


@BOTH
async def test_a_workspace_that_cannot_be_made_ends_the_server(command: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    path = services(tmp_path, {"command": "sleep 99", "workspace": "taken"})
    result = await failed([*command, "--static-mounts", f"/taken:{tmp_path}/files"], path)
    assert result.returncode == 2
    assert "services cannot start in the workspace taken: " in result.stderr


async def test_programs_need_a_port(tmp_path: Path) -> None:
    path = services(tmp_path, {"command": "sleep 99"})
    result = await failed([*HYPERCORN[:-1], f"unix:{tmp_path}/socket"], path)
    assert "hypha: programs that start with the server need a TCP address to reach it" in result.stderr


async def test_a_service_that_ends_is_started_again(tmp_path: Path) -> None:
    entry = {"name": "greeter", "command": "python worker.py hello", "check_services": ["hello"], "timeout": 20}
    path = services(tmp_path, {**entry, "on_failure": "restart"})
    async with live([*SERVER, "--services-config", str(path)], tmp_path) as server:
        first = await pid_of(server, "greeter")
        await until_loaded(server.port)
        os.kill(first, signal.SIGKILL)
        await server.running.wait_for("greeter starts again in 1 s", "stderr")
        assert not await loaded(server.port)
        assert (await get(server.port, "/public/services/hello/hello?name=x"))[0] == 404
        await until_loaded(server.port)
        assert await get(server.port, "/public/services/hello/hello?name=x") == (200, '"Hello x"')
        server.kill(signal.SIGTERM)
        result = await server.ended()
    assert result.returncode == 0
    second = [int(pid) for pid in re.findall(r"greeter \| pid (\d+)", result.stderr)][-1]
    assert second != first
    assert not is_alive(second)


async def test_with_warn_the_server_goes_on(tmp_path: Path) -> None:
    path = services(tmp_path, {"name": "extra", "command": ["sh", "-c", "exit 3"], "on_failure": "warn"})
    async with live([*SERVER, "--services-config", str(path)], tmp_path) as server:
        await server.running.wait_for("extra ended with exit code 3 before it was ready", "stderr")
        assert not await loaded(server.port)
        assert (await get(server.port, "/health/readiness"))[0] == 200
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0


# --- tokens -----------------------------------------------------------------------------------------------------

TOKEN = ["sh", "-c", "echo pid $$ token $HYPHA_TOKEN; exec sleep 99"]


async def test_a_token_lives_as_long_as_its_program(tmp_path: Path) -> None:
    path = services(tmp_path, {"name": "prog", "command": TOKEN, "on_failure": "warn"})
    async with live([*SERVER, "--services-config", str(path)], tmp_path) as server:
        pid, token = (await server.running.wait_for(r"^prog \| pid (\d+) token (\S+)", "stderr")).groups()
        assert await handshake(server.port, token) == 101
        os.kill(int(pid), signal.SIGKILL)
        await server.running.wait_for("prog was killed by SIGKILL", "stderr")
        assert await handshake(server.port, token) == 403
        server.kill(signal.SIGTERM)
        await server.ended()


async def test_no_token_outlives_a_worker_that_was_killed(tmp_path: Path) -> None:
    path = services(tmp_path, {"name": "prog", "command": TOKEN})
    async with live([*SERVER, "--services-config", str(path)], tmp_path) as server:
        pid, token = (await server.running.wait_for(r"^prog \| pid (\d+) token (\S+)", "stderr")).groups()
        os.kill(server.worker(), signal.SIGKILL)
        await server.running.wait_for("back after", "stderr")
        await gone(int(pid))
        assert await handshake(server.port, token) == 403
        await until(lambda: server.running.stderr.count("prog | pid ") == 2)
        again = re.findall(r"^prog \| pid \d+ token (\S+)", server.running.stderr, re.MULTILINE)[-1]
        assert await handshake(server.port, again) == 101
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0


# --- ends -------------------------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("whole_group", [False, True], ids=["process", "group"])
async def test_ten_programs_of_which_one_ignores_sigterm_are_gone_in_three_seconds(
    command: Sequence[str], whole_group: bool, tmp_path: Path
) -> None:
    entries = [{"name": f"n{number}", "command": ["python", "-c", SLEEPER]} for number in range(9)]
    path = services(tmp_path, *entries, {"name": "stubborn", "command": ["python", "-c", STUBBORN]})
    full, environ = started(command, path)
    async with live(full, tmp_path, environ) as server:
        pids = [await pid_of(server, f"n{number}") for number in range(9)]
        await server.running.wait_for(r"^stubborn \| here", "stderr")
        await until_loaded(server.port)
        began = time.monotonic()
        server.kill(signal.SIGTERM, whole_group=whole_group)
        result = await server.running.wait()
        seconds = time.monotonic() - began
        await server.ended()
        assert not any(map(is_alive, pids))
    print(f"{seconds:.2f} s from SIGTERM to the end, of which {2.0} s are given to the program that ignores it")
    assert seconds < 3
    assert result.returncode == 0


@ALL
async def test_a_program_that_ends_when_it_is_sent_away_is_no_failure(command: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "stay").touch()
    entry = {"name": "brief", "command": ["sh", "-c", "while test -e stay; do sleep 0.02; done; exit 4"]}
    full, environ = started(command, services(tmp_path, entry))
    environ["HYPHA_STATIC_MOUNTS"] = big_mount(tmp_path)[1]
    environ["HYPHA_LIMIT_DRAIN_SECONDS"] = "1"
    async with live(full, tmp_path, environ) as server, stalled_reader(server.port, "/files/big"):
        await until_loaded(server.port)
        server.kill(signal.SIGTERM)
        await refused(server.port)
        (tmp_path / "stay").unlink()  # while the download may still end
        result = await server.ended()
    assert result.returncode == 0
    assert "brief ended" not in result.stderr


@BOTH
async def test_a_signal_while_services_start_is_obeyed(command: Sequence[str], tmp_path: Path) -> None:
    entry = {"name": "prog", "command": ["python", "-c", SLEEPER], "check_services": ["absent"], "timeout": 60}
    full, _ = started(command, services(tmp_path, entry))
    async with live(full, tmp_path) as server:
        pid = await pid_of(server, "prog")
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0
        assert not is_alive(pid)


@ALL
async def test_no_program_outlives_a_server_that_is_killed(command: Sequence[str], tmp_path: Path) -> None:
    full, environ = started(command, services(tmp_path, {"name": "prog", "command": ["python", "-c", SLEEPER]}))
    async with live(full, tmp_path, environ) as server:
        pid = await pid_of(server, "prog")
        server.kill(signal.SIGKILL)
        await server.running.wait()
        await gone(pid)
        await refused(server.port)


#: Starts another program, which the kernel does not kill with the worker, and one that has left its group, too.
NEST = """
sh -c 'echo pid $$ inner; exec sleep 99' &
setsid sh -c 'echo pid $$ apart; exec sleep 99' &
echo pid $$ outer
wait
"""


async def test_what_programs_have_started_does_not_outlive_a_worker_that_was_killed(tmp_path: Path) -> None:
    path = services(tmp_path, {"name": "nest", "command": ["sh", "-c", NEST]})
    async with live([*SERVER, "--services-config", str(path)], tmp_path) as server:
        pids = [await pid_of(server, "nest", word) for word in ("inner", "apart", "outer")]
        os.kill(server.worker(), signal.SIGKILL)
        await server.running.wait_for("back after", "stderr")
        assert not any(map(is_alive, pids))
        await until(lambda: server.running.stderr.count("nest | pid ") == 6)
        again = [int(pid) for pid in re.findall(r"nest \| pid (\d+)", server.running.stderr)[3:]]
        assert all(map(is_alive, again))
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0
        assert not any(map(is_alive, again))


async def test_what_programs_leave_behind_is_no_zombie(tmp_path: Path) -> None:
    (tmp_path / "parent.sh").write_text(
        "sh -c 'echo pid $$ left; sleep 0.2' &\nsleep 0.1; echo pid $$ parent; exec sleep 99\n"
    )
    path = services(tmp_path, {"name": "prog", "command": ["sh", "-c", "sh parent.sh & wait; sleep 99"]})
    async with live([*SERVER, "--services-config", str(path)], tmp_path) as server:
        left = await pid_of(server, "prog", "left")
        os.kill(await pid_of(server, "prog", "parent"), signal.SIGKILL)
        await until(lambda: not is_there(left))
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0


async def test_processes_that_are_not_of_its_programs_are_left_alone(tmp_path: Path) -> None:
    """What was there when the server took the place of a shell, and what it inherits from elsewhere."""
    path = services(tmp_path, {"command": "sleep 99"})
    script = 'sleep 98 & echo other $!; exec "$@"'
    full = ["sh", "-c", script, "sh", *SERVER, "--services-config", str(path)]
    async with live(full, tmp_path) as server:
        other = int((await server.running.wait_for(r"^other (\d+)$"))[1])
        (worker,) = [pid for pid in server.workers() if "hypha.worker" in command_line(pid)]
        os.kill(worker, signal.SIGKILL)
        await server.running.wait_for("back after", "stderr")
        assert is_alive(other)
        server.kill(signal.SIGTERM)
        await refused(server.port)
        assert is_alive(other)
        os.kill(other, signal.SIGKILL)
        assert (await server.ended()).returncode == 0


async def test_a_new_worker_starts_the_programs_anew(tmp_path: Path) -> None:
    path = services(tmp_path, {"name": "prog", "command": ["python", "-c", SLEEPER]})
    async with live([*SERVER, "--services-config", str(path)], tmp_path) as server:
        pid = await pid_of(server, "prog")
        server.kill(signal.SIGHUP)
        await until(lambda: server.running.stderr.count("prog | pid ") == 2)
        assert not is_alive(pid)
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0


async def test_one_restart_after_another_does_not_save_a_server_whose_service_is_missing(tmp_path: Path) -> None:
    """The new worker finds it missing, too: that ends the server although the old one was well."""
    flag = tmp_path / "flag"
    flag.touch()
    entry = {"name": "prog", "command": ["sh", "-c", f"test -e {flag} || exit 5; echo pid $$ x; exec sleep 99"]}
    async with live([*SERVER, "--services-config", str(services(tmp_path, entry))], tmp_path) as server:
        await pid_of(server, "prog")
        await until_loaded(server.port)
        flag.unlink()
        os.kill(server.worker(), signal.SIGKILL)
        result = await server.running.wait()
    assert result.returncode == 1
    assert "prog ended with exit code 5 before it was ready" in result.stderr
