"""Unmasking of websocket payloads (RFC 6455 section 5.3)."""

from __future__ import annotations

import contextlib
from typing import Any

from hypha.wire.frame import Buffer


def mask_in_python(data: Buffer, mask: Buffer) -> bytes:
    """:func:`apply_mask` where the C function was not compiled: three times the time for a small message."""
    size = len(data)
    key = (bytes(mask) * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


_apply_mask: Any = mask_in_python
with contextlib.suppress(ImportError):  # a platform without a wheel of websockets
    from websockets.speedups import apply_mask as _apply_mask


def apply_mask(data: Buffer, mask: Buffer) -> bytes:
    """*data* with the four bytes of *mask* laid over it, again and again."""
    masked: bytes = _apply_mask(data, mask)
    return masked
