"""Conditional requests and ranges for files (RFC 9110 sections 8.8, 13 and 14)."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus

from hypercorn.typing import HTTPScope

from hypha.web.http import Headers


@dataclass(frozen=True, slots=True)
class Version:
    """The validators of a file: its ETag, and its last change in seconds since 1970, never in the future."""

    etag: str
    modified: int

    @property
    def strong(self) -> bool:
        return not self.etag.startswith("W/")

    def headers(self) -> Headers:
        return [(b"etag", self.etag.encode()), (b"last-modified", formatdate(self.modified, usegmt=True).encode())]


#: How long after a change a file may change again without a new time of change. Far above any clock's tick.
_SETTLED_NS = 2_000_000_000

_TAG = re.compile(r'(?:W/)?"[^"]*"')

#: One range. More digits than any file needs make it malformed, and a malformed one is ignored.
_RANGE = re.compile(r"bytes=\s*([0-9]{0,30})-([0-9]{0,30})\s*", re.ASCII | re.IGNORECASE)


def version_of(status: os.stat_result) -> Version:
    """The version that *status* shows. It is weak while the file may change again unseen (8.8.1)."""
    now = time.time_ns()
    tag = f'"{status.st_mtime_ns:x}-{status.st_ctime_ns:x}-{status.st_size:x}"'
    settled = now - status.st_mtime_ns > _SETTLED_NS
    return Version(tag if settled else f"W/{tag}", max(0, min(status.st_mtime_ns, now) // 10**9))


def _header(scope: HTTPScope, name: bytes) -> str | None:
    values = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return ", ".join(values) if values else None


def _seconds(date: str | None) -> float | None:
    """An HTTP date in seconds since 1970. None without a date, and for one that cannot be read (13.1.3)."""
    if date is None:
        return None
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def precondition(scope: HTTPScope, version: Version) -> HTTPStatus | None:
    """412, 304, or None for the file. The order is that of 13.2.2."""
    match, none_match = _header(scope, b"if-match"), _header(scope, b"if-none-match")
    before, since = (_seconds(_header(scope, name)) for name in (b"if-unmodified-since", b"if-modified-since"))
    if match is not None:
        if match.strip() != "*" and not (version.strong and version.etag in _TAG.findall(match)):
            return HTTPStatus.PRECONDITION_FAILED
    elif before is not None and version.modified > before:
        return HTTPStatus.PRECONDITION_FAILED
    if none_match is not None:
        known = {tag.removeprefix("W/") for tag in _TAG.findall(none_match)}
        if none_match.strip() == "*" or version.etag.removeprefix("W/") in known:
            return HTTPStatus.NOT_MODIFIED
    elif since is not None and version.modified <= since:
        return HTTPStatus.NOT_MODIFIED
    return None


def part_of(scope: HTTPScope, version: Version, size: int) -> tuple[HTTPStatus, range]:
    """The status and the bytes to send: 206 for one range, 416 for one beyond the end, otherwise 200 and all."""
    whole = HTTPStatus.OK, range(size)
    asked = _RANGE.fullmatch(_header(scope, b"range") or "")
    # An empty file has no byte that Content-Range could name. HEAD knows no ranges (14.2).
    if asked is None or not size or scope["method"] != "GET" or not _same_version(scope, version):
        return whole
    first, last = (int(digits) if digits else None for digits in asked.groups())
    if first is None:
        if last is None:
            return whole
        part = range(max(0, size - last), size)
    elif last is not None and last < first:
        return whole
    else:
        part = range(first, size if last is None else min(last + 1, size))
    return (HTTPStatus.PARTIAL_CONTENT, part) if part else (HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, range(0))


def _same_version(scope: HTTPScope, version: Version) -> bool:
    """Whether ``If-Range`` (13.1.5) is absent or names this version, by a strong ETag or the exact date."""
    known = _header(scope, b"if-range")
    if known is None:
        return True
    return version.strong and (known.strip() == version.etag or _seconds(known) == version.modified)
