"""Masking of websocket payloads, and the opposite, which is the same (RFC 6455 section 5.3)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import cast

from hypha.wire.frame import Buffer


def mask_in_python(data: Buffer, mask: Buffer) -> bytes:
    """:func:`apply_mask` where the C function was not compiled: three times the time for a small message."""
    size = len(data)
    key = (bytes(mask) * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


Masking = Callable[[Buffer, Buffer], bytes]

#: The bytes of the first argument with the four of the second laid over them, again and again.
apply_mask: Masking = mask_in_python
with contextlib.suppress(ImportError):  # a platform without a wheel of websockets
    from websockets import speedups

    apply_mask = cast("Masking", speedups.apply_mask)
