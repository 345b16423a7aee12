"""A client in a process of its own, to be killed: ``python -m tests.soak.victim PORT HOME SEED``.

It says where it is, and then calls home without an end, with messages of all sizes.
"""

from __future__ import annotations

import random
import secrets
import sys

import trio

from tests.soak.legacy_peer import Map, connect

SIZES = (100, 50_000, 400_000, 1_500_000)


async def main(port: int, home: str, seed: int) -> None:
    """Never returns."""
    chance = random.Random(seed)
    async with connect(port, f"victim-{secrets.token_hex(4)}") as peer:
        service: Map = {"id": "job", "config": {"visibility": "public"}, "hold": trio.sleep_forever}
        await peer.register(service)
        print(f"ready {peer.address}", flush=True)
        while True:
            value = chance.randbytes(chance.choice(SIZES))
            assert await peer.call(home, "services.soak.echo", value) == value


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
