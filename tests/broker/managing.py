"""Calls of the manager of modern clients, in memory."""

from __future__ import annotations

from typing import Any

import pytest

from hypha.errors import InvalidArgument
from hypha.wire.calls import encode_value
from tests.broker.memory import SERVER_ID, Peer, Rejected

MANAGER = f"*/{SERVER_ID}"


async def ask(peer: Peer, name: str, *args: Any, **kwargs: Any) -> Any:
    return await peer.ask(name, *args, to=MANAGER, **kwargs)


async def refused(peer: Peer, name: str, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(Rejected) as caught:
        await ask(peer, name, *args, **kwargs)
    return str(caught.value)


def is_written(value: Any) -> bool:
    """Whether *value* can be sent: it is not nested too deep."""
    try:
        encode_value(value)
    except InvalidArgument:
        return False
    return True
