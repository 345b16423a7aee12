"""The listening sockets and the screen, in this process: real sockets, no server."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from hypha import __version__
from hypha.banner import announce, banner, say
from hypha.config import Config, Mount
from hypha.errors import ConfigError
from hypha.listen import open_sockets, urls


@contextmanager
def opened(host: str, port: int = 0) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        sockets = open_sockets(Config(host=host, port=port), ())
        for sock in sockets:
            stack.enter_context(sock)
        yield sockets


def test_a_name_with_two_addresses_is_two_sockets_on_one_port() -> None:
    with opened("localhost") as sockets:
        assert {sock.getsockname()[0] for sock in sockets} <= {"127.0.0.1", "::1"}
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        for sock in sockets:
            with socket.create_connection(sock.getsockname()[:2], timeout=5):
                sock.accept()[0].close()


def test_a_connection_waits_in_a_long_backlog() -> None:
    with opened("127.0.0.1") as (sock,), ExitStack() as waiting:
        for _ in range(300):
            waiting.enter_context(socket.create_connection(sock.getsockname(), timeout=5))


def test_a_socket_is_not_inherited_by_accident() -> None:
    with opened("127.0.0.1") as (sock,):
        assert not sock.get_inheritable()
        copy = os.dup(sock.fileno())
        os.set_inheritable(copy, True)
        (taken,) = open_sockets(Config(), [copy])
        with taken:
            assert taken.getsockname() == sock.getsockname()
            assert not taken.get_inheritable()


@pytest.mark.parametrize("kind", ["datagram", "not listening", "file", "closed"])
def test_what_is_no_listening_socket_is_refused(kind: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        if kind == "file":
            fd = stack.enter_context(open(tmp_path / "file", "w")).fileno()
        elif kind == "closed":
            fd = 1000
        else:
            sock = socket.socket(type=socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM)
            stack.callback(os.close, fd := sock.detach())
        with pytest.raises(ConfigError, match=f"file descriptor {fd} is not"):
            open_sockets(Config(), [fd])


def test_a_taken_port_names_this_process_and_a_port_that_is_free() -> None:
    with opened("127.0.0.1") as (sock,):
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            open_sockets(Config(port=port), ())
        text = str(caught.value)
        assert text.startswith(f"port {port} is taken by ")
        assert f"(process {os.getpid()})" in text
        with opened("127.0.0.1", int(text.rpartition("--port ")[2])) as (other,):
            assert other.getsockname()[1] > port


def test_the_last_port_has_no_next_one() -> None:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 65535))
        sock.listen()
        with pytest.raises(ConfigError, match=r"or choose another port with --port$"):
            open_sockets(Config(port=65535), ())


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("", "host '' cannot be used"),
        ("no-such-host.invalid", "host 'no-such-host.invalid' cannot be used"),
        ("http://localhost", "cannot be used"),
        ("a" * 70, "cannot be used"),
        ("192.0.2.77", "'192.0.2.77' is not an address of this machine"),
    ],
)
def test_a_host_that_cannot_be_used(host: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_sockets(Config(host=host, port=0), ())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_loopback_is_for_this_machine(host: str) -> None:
    with opened(host) as (sock,):
        assert urls([sock], "/lab") == [(f"http://localhost:{sock.getsockname()[1]}/lab", "this machine")]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_unspecified_address_is_never_shown(host: str) -> None:
    with opened(host) as (sock,):
        port = sock.getsockname()[1]
        shown = dict(urls([sock], ""))
        assert shown.pop(f"http://localhost:{port}") == "this machine"
        for url in shown:
            name = url.removeprefix("http://").removesuffix(f":{port}").strip("[]")
            with socket.create_connection((name, port), timeout=5):
                sock.accept()[0].close()


def test_a_socket_in_the_file_system_is_shown_by_its_path(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.bind(path)
        assert urls([sock], "") == [(f"unix:{path}", "this machine")]


def test_the_screen_says_what_is_true_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tools").mkdir()
    mounts = (Mount("/tools", tmp_path / "tools"), Mount("/usr", Path("/usr")))
    config = Config(static_mounts=mounts, public_base_url="https://lab.example", data_dir=Path("d"))
    with opened("127.0.0.1") as sockets:
        local = f"http://localhost:{sockets[0].getsockname()[1]}"
        assert banner(config, sockets, 0.26).splitlines() == [
            f"  ready in 0.3 s   version {__version__}   data d (survives restarts)",
            "",
            f"  open      {local:<22}   this machine",
            "            https://lab.example      as clients are told",
            "  mounts    /tools -> ./tools",
            "            /usr -> /usr",
        ]
        assert banner(config, sockets, 0.26, "secret").splitlines()[-2:] == [
            "  owner     https://lab.example/account/join?link=secret",
            "            makes an administrator's account, once, for 24 h",
        ]


def test_a_reader_that_went_away_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone, opened("127.0.0.1") as sockets:
        monkeypatch.setattr("sys.stdout", gone)
        monkeypatch.setattr("sys.stderr", gone)
        announce(Config(), sockets, 0.1)
        say("one\ntwo")
        assert os.readlink(f"/proc/self/fd/{writer}") == os.devnull


def test_output_that_was_closed_before_the_start_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    say("one")
