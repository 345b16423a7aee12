"""Starting: sockets of others, addresses that work, and every reason not to start, in one line each."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest
import trio

from hypha.listen import urls
from tests.house.processes import Result, run, start
from tests.process.servers import (
    HYPERCORN,
    SERVER,
    SINGLE,
    all_gone,
    answers,
    ask,
    group,
    listens,
    live,
    port_of,
    refused,
    until,
)

pytestmark = pytest.mark.slow

BOTH = pytest.mark.parametrize("command", [SERVER, SINGLE], ids=["parent", "single"])

#: Opens a socket, says its port, and becomes the command behind it with the socket as descriptor 3.
LAUNCHER = """
import os, socket, sys
sock = socket.create_server(("127.0.0.1", 0))
print("port", sock.getsockname()[1], flush=True)
os.dup2(sock.fileno(), 3)
os.set_inheritable(3, True)
if sys.argv[1] == "systemd":
    os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


async def failed(command: tuple[str, ...] | list[str], cwd: Path, environ: dict[str, str] | None = None) -> Result:
    """The result of a command that must not start; it may say only what is wrong."""
    async with trio.open_nursery() as nursery:
        result = await run(nursery, command, cwd=cwd, environ=environ, seconds=20)
    assert "Traceback" not in result.stdout + result.stderr
    return result


@BOTH
@pytest.mark.parametrize("way", ["systemd", "--fd"])
async def test_a_socket_of_a_supervisor_is_served(command: tuple[str, ...], way: str, tmp_path: Path) -> None:
    flags = ["--fd", "3"] if way == "--fd" else []
    full = [sys.executable, "-c", LAUNCHER, way, *command, *flags]
    async with trio.open_nursery() as nursery, start(nursery, full, cwd=tmp_path) as running:
        port = int((await running.wait_for(r"^port (\d+)"))[1])
        assert await port_of(running, command) == port
        assert await answers(port)
        running.send_signal(signal.SIGTERM)
        result = await running.wait()
        await all_gone(group(running.pid))
        await refused(port)
    assert (result.returncode, result.stderr) == (0, "")


async def test_sockets_passed_to_another_process_are_not_taken(tmp_path: Path) -> None:
    async with live(SERVER, tmp_path, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}) as server:
        assert await answers(server.port)
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0


@BOTH
async def test_every_address_that_is_shown_answers(command: tuple[str, ...], tmp_path: Path) -> None:
    async with live([*command, "--host=0.0.0.0", "--base-path", "lab"], tmp_path) as server:
        screen = server.running.stdout
        assert f"http://localhost:{server.port}/lab " in screen
        assert "0.0.0.0" not in screen
        with closing(socket.create_server(("0.0.0.0", 0))) as other:
            network = [url.split("/")[2].split(":")[0] for url, _ in urls([other], "")]
        for host in network:
            assert f"http://{host}:{server.port}/lab " in screen
            async with await trio.open_tcp_stream(host, server.port) as stream:
                await stream.send_all(b"GET /lab/ HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await stream.receive_some(12)) == b"HTTP/1.1 200"
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0


async def test_one_name_with_two_addresses_is_one_port(tmp_path: Path) -> None:
    async with live([*SERVER, "--host=::"], tmp_path) as server:
        assert await answers(server.port)  # by IPv4
        async with await trio.open_tcp_stream("::1", server.port) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await stream.receive_some(12)) == b"HTTP/1.1 200"
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0


@BOTH
async def test_a_taken_port_names_its_holder_and_a_free_one(command: tuple[str, ...], tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as holder:
        port = holder.getsockname()[1]
        result = await failed([*command, f"--port={port}"], tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"hypha: port {port} is taken by ")
    assert f"(process {os.getpid()})" in line
    assert "--port " in line


@BOTH
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--port=http"], "port 'http' must be a whole number"),
        (["--prot=9000"], "unknown option --prot; did you mean --port?"),
        (["--static-mounts", "/a:missing"], "there is no directory "),
        (["--data-dir", "file"], "the data directory file cannot be used (File exists)"),
        (["--host", "256.1.1.1"], "host '256.1.1.1' cannot be used"),
        (["--fd", "77"], "file descriptor 77 is not an open socket"),
        (["--fd", "1"], "file descriptor 1 is not an open socket"),
        (["--redis-uri=redis://x"], "--redis-uri: "),
    ],
)
async def test_a_command_line_that_cannot_be_used_is_one_line(
    command: tuple[str, ...], flags: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    port = [] if "--port=http" in flags else ["--port", "0"]
    result = await failed([*command, *port, *flags], tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert said in line


@BOTH
async def test_two_servers_on_one_data_directory(command: tuple[str, ...], tmp_path: Path) -> None:
    async with live(SERVER, tmp_path) as server:
        result = await failed([*command, "--port", "0"], tmp_path)
        assert (result.returncode, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert f"another server (process {server.pid}) uses the data directory .hypha" in line
        assert await answers(server.port)
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0


@pytest.mark.parametrize("workers", ["1", "0"])
async def test_hypercorn_says_in_one_line_why_it_does_not_start(workers: str, tmp_path: Path) -> None:
    result = await failed([*HYPERCORN, "-w", workers], tmp_path, {"HYPHA_DATA_DIR": "/dev/null"})
    (line,) = result.stderr.splitlines()
    assert line.startswith("hypha: the data directory /dev/null cannot be used")
    # With a child process Hypercorn loses the exit code: README says so.
    assert result.returncode == (2 if workers == "0" else 0)


async def test_hypercorn_with_two_workers_does_not_start(tmp_path: Path) -> None:
    result = await failed([*HYPERCORN, "-w", "2"], tmp_path)
    assert "another worker of this server uses the data directory .hypha; start one worker only" in result.stderr


async def test_hypercorn_takes_its_settings_from_the_environment(tmp_path: Path) -> None:
    async with live(HYPERCORN, tmp_path, {"HYPHA_BASE_PATH": "/lab", "HYPHA_DATA_DIR": "elsewhere"}) as server:
        assert b" 404 " in await ask(server.port)
        server.kill(signal.SIGTERM)
        await server.ended()
    assert os.listdir(tmp_path) == ["elsewhere"]


async def test_the_console_script_does_not_import_from_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "hypha"
    script.write_text("import sys\nfrom hypha.server import main\nsys.exit(main())\n")
    (tmp_path / "trio.py").write_text("raise SystemExit('the wrong trio')\n")
    async with live([sys.executable, str(script)], tmp_path) as server:
        assert await answers(server.port)
        server.kill(signal.SIGTERM)
        assert (await server.ended()).returncode == 0


async def test_a_needless_flag_is_answered_and_the_server_starts(tmp_path: Path) -> None:
    async with live([*SERVER, "--in-docker", "--reset-redis"], tmp_path) as server:
        server.kill(signal.SIGTERM)
        result = await server.ended()
    assert result.returncode == 0
    first, second = result.stderr.splitlines()
    assert first.startswith("hypha: --in-docker is not needed: ")
    assert second.startswith("hypha: --reset-redis is not needed: ")


@BOTH
async def test_a_server_whose_output_cannot_be_written_serves(command: tuple[str, ...], tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        port = sock.getsockname()[1]
    full = ["sh", "-c", 'exec "$@" >/dev/full', "sh", *command, "--port", str(port)]
    async with trio.open_nursery() as nursery, start(nursery, full, cwd=tmp_path) as running:
        await until(lambda: listens(running.pid, port))
        assert await answers(port)
        running.send_signal(signal.SIGTERM)
        result = await running.wait()
        await all_gone(group(running.pid))
    assert (result.returncode, result.stderr) == (0, "")
