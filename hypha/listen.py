"""The listening sockets: opened here or inherited, and the addresses at which they really answer.

Standard library only, because the parent process imports it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from hypha.config import Config
from hypha.errors import ConfigError

#: Connections that wait while no worker accepts: during a restart all clients come back at once. The kernel
#: lowers it to net.core.somaxconn.
BACKLOG = 4096

#: What getaddrinfo(3) gives and bind(2) takes: host, port and, for IPv6, flow and scope.
_Address = tuple[Any, ...]

_SIOCGIFADDR = 0x8915  # netdevice(7)
_TCP_LISTEN = "0A"  # proc_net_tcp: the state column


def open_sockets(config: Config, fds: Sequence[int]) -> list[socket.socket]:
    """The sockets to serve on, listening: those in *fds*, or new ones for ``config.host`` and ``config.port``.

    A name with several addresses (``localhost``) gives several sockets on one port. Raises :class:`ConfigError`
    with one line that says what to do.
    """
    if fds:
        return [_inherited(fd) for fd in fds]
    with ExitStack() as opened:
        sockets: list[socket.socket] = []
        port = config.port
        for family, (address, _, *scope) in _resolve(config.host, port):
            sock = _bound(family, (address, port, *scope))
            if sock is not None:
                sockets.append(opened.enter_context(sock))
                port = sock.getsockname()[1]
        if not sockets:
            raise ConfigError(f"{config.host!r} is not an address of this machine; use --host 127.0.0.1 or 0.0.0.0")
        opened.pop_all()
        return sockets


def _inherited(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(f"file descriptor {fd} is not an open socket ({error.strerror})") from error
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise ConfigError(f"file descriptor {fd} is not a listening stream socket; pass one that listens")
    sock.set_inheritable(False)
    return sock


def _resolve(host: str, port: int) -> list[tuple[int, _Address]]:
    try:
        if not host:
            raise socket.gaierror("it is empty")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"host {host!r} cannot be used ({reason}); give a name or address of this machine") from error
    return list(dict.fromkeys((int(family), where) for family, _, _, _, where in found))


def _bound(family: int, address: _Address) -> socket.socket | None:
    """A listening socket, or None when this machine does not have *address*. Raises :class:`ConfigError`."""
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return None  # a kernel without IPv6
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" alone means the whole network, also for peers that speak IPv4.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL:
            return None
        raise ConfigError(_bind_text(error, family, address)) from error
    return sock


def _bind_text(error: OSError, family: int, address: _Address) -> str:
    host, port, *_ = address
    if error.errno == errno.EADDRINUSE:
        holder = _holder(port)
        free = _next_free_port(family, address)
        return (
            f"port {port} is taken{f' by {holder}' if holder else ''}; "
            f"stop that program, or choose another port{f': --port {free}' if free else ' with --port'}"
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"port {port} may not be opened by this user; choose one above 1023, for example --port 9527"
    return f"cannot listen on {host} port {port} ({error.strerror}); choose another --host or --port"


def _next_free_port(family: int, address: _Address) -> int | None:
    host, port, *scope = address
    for candidate in range(port + 1, min(port + 100, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as sock, suppress(OSError):
            # With the option a port in TIME_WAIT counts as free, as it will for the server.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, candidate, *scope))
            sock.listen(1)  # two sockets with the option may bind one port, but only one may listen
            return candidate
    return None


def _holder(port: int) -> str | None:
    """``python3 (process 123)``: who listens on *port*, as far as /proc tells this user."""
    wanted = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile, or of another user
            if any(os.readlink(link) in wanted for link in _links(process / "fd")):
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return None


def _links(directory: Path) -> Iterator[Path]:
    for link in directory.iterdir():
        if link.is_symlink():
            yield link


def _listening_inodes(port: int) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        with suppress(OSError), open(f"/proc/net/{name}") as table:
            next(table)
            for row in table:
                fields = row.split()
                if fields[3] == _TCP_LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def urls(sockets: Sequence[socket.socket], base_path: str) -> list[tuple[str, str]]:
    """``(url, for whom)`` for every address at which *sockets* can be reached, nearest first.

    Never the unspecified address, which is no address at all. A socket in the file system has none either and is
    shown by its path.
    """
    found: dict[str, str] = {}
    for sock in sockets:
        if sock.family not in {socket.AF_INET, socket.AF_INET6}:
            found[f"unix:{sock.getsockname()}"] = "this machine"
            continue
        host, port = sock.getsockname()[:2]
        for name, whom in _names(host, sock.family):
            found.setdefault(f"http://{name}:{port}{base_path}", whom)
    return sorted(found.items(), key=lambda item: item[1] != "this machine")


def _names(host: str, family: int) -> list[tuple[str, str]]:
    if host == "0.0.0.0":  # noqa: S104  compared with, not bound
        return [("localhost", "this machine"), *((name, "your network") for name in _network_addresses())]
    if host == "::":
        named = [*_network_addresses(), *(f"[{name}]" for name in _network_addresses_6())]
        return [("localhost", "this machine"), *((name, "your network") for name in named)]
    if host in {"127.0.0.1", "::1"}:
        return [("localhost", "this machine")]
    return [(f"[{host}]" if family == socket.AF_INET6 else host, "your network")]


def _network_addresses() -> list[str]:
    """The IPv4 address of each interface except loopback. Linux; elsewhere empty."""
    found: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(sock.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.append(socket.inet_ntoa(answer[20:24]))
    return [address for address in found if not address.startswith("127.")]


def _network_addresses_6() -> list[str]:
    """The global IPv6 addresses of this machine. Linux; elsewhere empty."""
    found: list[str] = []
    with suppress(OSError), open("/proc/net/if_inet6") as table:
        for row in table:
            digits, _, _, scope, *_ = row.split()
            if scope == "00":
                found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return found
