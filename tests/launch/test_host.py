"""hypha/launch/host.py: what a program is given of the server, and what is left of it when it has ended."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio

from hypha.broker.access import Level
from hypha.broker.broker import Credentials
from hypha.errors import ConfigError, Conflict, NotAuthenticated, PermissionDenied
from hypha.launch.host import BrokerHost
from tests.broker.memory import Scene


class Socket:
    """Where a server listens, as far as it is asked for."""

    def __init__(self, family: int, *name: Any) -> None:
        self.family = family
        self._name = name

    def getsockname(self) -> Any:
        return self._name


IPV4, IPV6, UNIX = trio.socket.AF_INET, trio.socket.AF_INET6, 1


@pytest.fixture
def scene() -> Scene:
    return Scene()


class Door:
    """How a server is reached, as far as it is asked for."""

    is_secure = False

    def __init__(self, sockets: Sequence[Socket]) -> None:
        self.sockets = sockets

    async def connect(self) -> trio.abc.Stream:
        raise ConnectionRefusedError("the server is closed")


def host_of(scene: Scene, *sockets: Socket) -> BrokerHost:
    return BrokerHost(scene.broker, Door(sockets), lambda text: None)


def test_the_address_says_whether_the_server_speaks_tls(scene: Scene) -> None:
    door = Door([Socket(IPV4, "127.0.0.1", 9000)])
    door.is_secure = True
    host = BrokerHost(scene.broker, door, lambda text: None)
    assert host.server_url == "https://127.0.0.1:9000"
    assert host.inner_url == "http://127.0.0.1:9000"


@pytest.mark.parametrize(
    ("sockets", "url"),
    [
        ([Socket(IPV4, "127.0.0.1", 9000)], "http://127.0.0.1:9000"),
        ([Socket(IPV4, "0.0.0.0", 9000)], "http://127.0.0.1:9000"),
        ([Socket(IPV4, "10.0.0.5", 80)], "http://10.0.0.5:80"),
        ([Socket(IPV6, "::1", 9000, 0, 0)], "http://[::1]:9000"),
        ([Socket(IPV6, "::", 9000, 0, 0)], "http://[::1]:9000"),
        ([Socket(UNIX, "/run/x"), Socket(IPV4, "0.0.0.0", 1)], "http://127.0.0.1:1"),
    ],
)
def test_the_address_is_one_that_a_program_on_this_machine_reaches(
    sockets: list[Socket], url: str, scene: Scene
) -> None:
    assert host_of(scene, *sockets).server_url == url
    scene.broker.config = replace(scene.broker.config, base_path="/lab")
    assert host_of(scene, *sockets).server_url == f"{url}/lab"


@pytest.mark.parametrize("sockets", [[], [Socket(UNIX, "/run/x")]])
def test_a_server_without_a_port_is_told_so(sockets: list[Socket], scene: Scene) -> None:
    with pytest.raises(ConfigError, match="need a TCP address to reach it: listen on a port, too"):
        _ = host_of(scene, *sockets).server_url
    scene.broker.config = replace(scene.broker.config, base_path="/lab")
    assert host_of(scene, *sockets).inner_url == "http://localhost/lab"


async def test_who_is_inside_comes_through_the_door(scene: Scene) -> None:
    host = host_of(scene, Socket(IPV4, "127.0.0.1", 9000))
    assert host.inner_url == host.server_url
    with pytest.raises(ConnectionRefusedError):
        await host.dial()


def test_a_workspace_is_made_once_and_belongs_to_the_server(scene: Scene) -> None:
    host = host_of(scene)
    for _ in range(2):
        host.open_workspace("lab")
        host.open_workspace("public")
    lab = scene.broker.registry.workspaces["lab"]
    assert (lab.owners, lab.persistent, lab.visibility) == (["root"], True, "protected")


def test_a_workspace_that_cannot_be_made_is_a_matter_of_the_configuration(scene: Scene) -> None:
    for name in ("health", "a b"):
        with pytest.raises(ConfigError, match=f"services cannot start in the workspace {name}: "):
            host_of(scene).open_workspace(name)


def test_a_token_is_for_reading_and_writing_in_its_workspace_and_for_no_other(scene: Scene) -> None:
    host = host_of(scene)
    for name in ("lab", "den"):
        host.open_workspace(name)
    token, _ = host.issue("lab", "somebody")
    holder = scene.broker.tokens.verify(token)
    assert (holder.id, holder.grants, holder.home) == ("somebody", {"lab": Level.READ_WRITE}, "lab")
    assert (holder.is_root, holder.is_anonymous) == (False, False)
    assert scene.broker.admit(Credentials("c", None, token)).address.workspace == "lab"
    with pytest.raises(PermissionDenied):
        scene.broker.admit(Credentials("c", "den", token))


async def test_with_its_token_everything_of_a_program_ends(scene: Scene) -> None:
    host = host_of(scene)
    token, token_id = host.issue("public", "somebody")
    peer = scene.attach(scene.broker.admit(Credentials("worker", "public", token)))
    through = scene.broker.tokens.issue(peer.session.principal, expires_in=99)
    child = scene.attach(scene.broker.admit(Credentials("helper", "public", through)))
    other = scene.join("public/other")
    peer.announce("hello")
    assert host.offers("public", "hello")
    assert not host.offers("den", "hello")
    host.end(token_id)
    assert (peer.session.open, child.session.open, other.session.open) == (False, False, True)
    assert peer.transport.closed == child.transport.closed == [(1008, "the program that this token was for has ended")]
    assert not host.offers("public", "hello")
    assert not scene.broker.registry.workspaces["public"].parked
    for text in (token, through):
        with pytest.raises(NotAuthenticated, match="revoked"):
            scene.broker.admit(Credentials("worker", "public", text))


async def test_the_next_start_takes_the_client_id_of_the_one_before_at_once(scene: Scene) -> None:
    host = host_of(scene)
    token, token_id = host.issue("public", "somebody")
    lost = scene.attach(scene.broker.admit(Credentials("worker", "public", token)))
    lost.leave(clean=False)
    host.end(token_id)
    again, _ = host.issue("public", "somebody")
    assert scene.broker.admit(Credentials("worker", "public", again)).address.client == "worker"
    stranger, _ = host.issue("public", "somebody-else")
    with pytest.raises(Conflict):
        scene.broker.admit(Credentials("worker", "public", stranger))


def test_what_a_program_prints_goes_to_standard_error(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    host_of(scene).show("prog | caf\u00e9 \ud800\n")
    assert capfd.readouterr().err == "prog | caf\u00e9 ?\n"


def test_nobody_need_read_it(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    before = os.dup(2)
    os.dup2(writer, 2)
    try:
        host_of(scene).show("prog | x\n")
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(writer)
