"""Connections to the public Internet and nowhere else: not to this machine, nor to the network that it stands in.

A name is looked up once, all its addresses are judged, and one of them is connected to by number: a name that means
something else the next time it is asked for changes nothing.
"""

from __future__ import annotations

import ipaddress

import trio

from hypha.errors import PeerGone, PermissionDenied

#: Seconds in which a connection must be there.
CONNECT_SECONDS = 15.0

#: Prefixes whose addresses hold one of IPv4, and the bits behind it (RFC 6052 and RFC 3056).
_EMBEDDING = ((ipaddress.IPv6Network("64:ff9b::/96"), 0), (ipaddress.IPv6Network("2002::/16"), 80))


def is_public(text: str) -> bool:
    """Whether an address, written in numbers, is one of the public Internet. False for what is no address."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        for network, shift in _EMBEDDING:
            if address in network:
                return is_public(str(ipaddress.IPv4Address((int(address) >> shift) & 0xFFFFFFFF)))
    return address.is_global and not address.is_multicast


async def connect(host: str, port: int) -> trio.SocketStream:
    """A connection to a public *host*. Raises :class:`PermissionDenied` for another, :class:`PeerGone` for none."""
    try:
        with trio.fail_after(CONNECT_SECONDS):
            for address in await _addresses(host, port):
                try:
                    return await trio.open_tcp_stream(address, port)
                except OSError:
                    continue
    except trio.TooSlowError:
        raise PeerGone(f"{host} did not answer in {CONNECT_SECONDS:g} s") from None
    raise PeerGone(f"{host} cannot be connected to")


async def _addresses(host: str, port: int) -> list[str]:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise PeerGone(f"the name {host[:200]!r} is not known") from None
    addresses = [str(place[4][0]) for place in found]
    for address in addresses:
        if not is_public(address):
            raise PermissionDenied(f"{host[:200]} is {address}, which is not an address of the public Internet")
    return addresses
