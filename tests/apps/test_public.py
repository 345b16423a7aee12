"""Which addresses are of the public Internet, and that only those are connected to."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from hypha.apps import public
from hypha.errors import PeerGone, PermissionDenied


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822", "::ffff:8.8.8.8"])
def test_public_ones(address: str) -> None:
    assert public.is_public(address)


PRIVATE = """
    127.0.0.1 127.9.9.9 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 0.0.0.0 100.64.0.1 192.0.2.1 224.0.0.1
    255.255.255.255 ::1 :: fe80::1%eth0 fc00::1 ff02::1 ::ffff:127.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: name
"""


@pytest.mark.parametrize("address", [*PRIVATE.split(), ""])
def test_others(address: str) -> None:
    assert not public.is_public(address)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "2130706433", "0x7f.1", "0"])
async def test_this_machine_is_refused_under_all_its_names(host: str) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listeners[0] as listener:
        with pytest.raises(PermissionDenied, match="is not an address of the public Internet"):
            await public.connect(host, listener.socket.getsockname()[1])


async def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [(0, 0, 0, "", ("93.184.216.34", port)), (0, 0, 0, "", ("10.0.0.1", port))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(PermissionDenied, match=r"rebound\.example is 10\.0\.0\.1"):
        await public.connect("rebound.example", 80)


async def test_an_unknown_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        raise OSError("not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(PeerGone, match=r"'a\.example' is not known"):
        await public.connect("a.example", 80)
