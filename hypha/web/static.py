"""Static mounts: files of the machine under a path of the server (``promises.md`` A8-A13).

**A mount never serves a byte from outside its directory.** A path is taken apart while it is still percent-encoded,
so ``%2f`` never becomes a separator. A name that is empty, hidden (it begins with a dot, which covers ``..`` and
``.git``) or holds a slash, backslash or NUL ends the request. Symbolic links are then resolved, and what leads out
of the directory, or to a hidden name inside it, is refused. Because the tree may change between that check and the
opening, the resolved names are opened one by one, each relative to the directory opened before it and with
``O_NOFOLLOW``: a name that has meanwhile become a link fails instead of being followed. Only regular files and
directories are opened; the kind is checked before the opening, since opening a device can have effects, and again
on the open file. Not covered, because only who may write into the tree can bring it about: hard links, bind mounts,
and a directory that is moved out of the tree while it is being walked. With ``follow_symlinks`` links are followed
wherever they lead; the checks of the requested names remain. Every refusal gives the answer of a missing file.

**Answers follow RFC 9110.** ETags are strong, made of the times of change (nanoseconds) and the size, but weak while
the last change is younger than two seconds: the clock of a file system ticks in milliseconds, so that a second write
could go unseen. A request for several ranges gets the whole file (14.2 allows it): hardly anything reads multipart
answers, and a list of overlapping ranges is an attack. ``Cache-Control: no-cache`` lets browsers keep a file but ask
first, which costs one small 304 and never shows yesterday's script.

**Redirects** to the slash form are 301, not 308: only GET and HEAD come this far, so that the method survives
either, and Python's ``urllib`` follows 308 only since 3.11. The ``Location`` is relative (``./name/``, RFC 9110
10.2.2): it keeps the base path, also one that a proxy has stripped without telling us, and cannot name another host.
"""

from __future__ import annotations

import errno
import json
import logging
import mimetypes
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from http import HTTPStatus
from itertools import islice
from pathlib import PurePath
from typing import NamedTuple
from urllib.parse import quote, unquote, unquote_to_bytes

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope

from hypha.config import KIB, Mount
from hypha.errors import internal_error
from hypha.web.conditional import part_of, precondition, version_of
from hypha.web.http import Headers, cancel_when_gone

logger = logging.getLogger(__name__)

#: How much of a file is in memory at once, for each request.
CHUNK_BYTES = 64 * KIB

#: Threads that wait for the disk at once. A limit of our own, so that a dead network drive does not take the threads
#: that other rooms need.
FILE_THREADS = 16

#: A listing stops here and says so.
LISTED_ENTRIES = 5000

_ALLOW = (b"allow", b"GET, HEAD, OPTIONS")
_LISTING_POLICY = b"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

#: What the file system says about a name that cannot be served. Anything else is a fault of the server.
_ABSENT = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.EACCES,
        errno.EPERM,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.EILSEQ,
    }
)


class StaticMounts:
    """Finds the mount that owns a path, and serves its files over ASGI."""

    def __init__(self, mounts: tuple[Mount, ...], *, listing: bool = True, follow_symlinks: bool = False) -> None:
        #: The mount on ``/``, which owns what nobody else claims: ask it last. :meth:`find` never returns it.
        self.root = next((mount for mount in mounts if mount.path == "/"), None)
        self._mounts = sorted((mount for mount in mounts if mount.path != "/"), key=lambda mount: -len(mount.path))
        #: The first segments of all other mounts. No workspace may be created with one of these names (A12).
        self.names = frozenset(mount.path.split("/")[1] for mount in self._mounts)
        self._listing = listing
        self._follow_symlinks = follow_symlinks
        self._threads = trio.CapacityLimiter(FILE_THREADS)

    def find(self, path: str) -> Mount | None:
        """The mount with the longest prefix of *path*, which is decoded and has no base path.

        A mount owns its whole prefix: ``/tools``, ``/tools/`` and everything below, whether a file is there or not.
        """
        return next((mount for mount in self._mounts if f"{path}/".startswith(f"{mount.path}/")), None)

    async def serve(self, mount: Mount, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer one request for a path of *mount*.

        The path comes from *scope* and includes ``root_path``, as ASGI has it. The file is read in chunks, as fast
        as *send* takes them. A client that goes away ends the reading. A file that becomes shorter meanwhile ends
        the answer without a last body event, so that the server closes the connection. Safe to cancel: nothing
        stays open. Raises what *receive* and *send* raise, and OSError when the disk fails half way, each in an
        ExceptionGroup.
        """
        if scope["method"] == "OPTIONS":
            await _respond(scope, send, HTTPStatus.NO_CONTENT, [_ALLOW])
        elif scope["method"] not in {"GET", "HEAD"}:
            detail = f"files below {mount.path} can only be read: use GET or HEAD"
            await _problem(scope, send, HTTPStatus.METHOD_NOT_ALLOWED, detail, [_ALLOW])
        else:
            await self._get(mount, scope, receive, send)

    async def _get(self, mount: Mount, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        place = _place(mount, scope)
        if place is None:
            await _not_found(mount, scope, send)
            return
        try:
            found = await trio.to_thread.run_sync(self._look_up, place, limiter=self._threads)
        except OSError as exc:
            if exc.errno in _ABSENT:
                logger.debug("not served: %r: %s", scope["path"], exc)
                await _not_found(mount, scope, send)
            else:
                await _problem(scope, send, HTTPStatus.INTERNAL_SERVER_ERROR, str(internal_error(exc)))
            return
        try:
            await self._answer(found, place, scope, receive, send)
        finally:
            os.close(found.fd)

    def _look_up(self, place: _Place) -> _Found:
        """Open what *place* names: a file, the index page of a directory, or a directory. Blocks. Raises OSError."""
        root = os.path.realpath(place.mount.directory)
        if not place.slash:
            return _open(root, place.names, self._follow_symlinks, _is_served)
        try:
            return _open(root, (*place.names, "index.html"), self._follow_symlinks, stat.S_ISREG)
        except FileNotFoundError:
            return _open(root, place.names, self._follow_symlinks, stat.S_ISDIR)

    async def _answer(
        self, found: _Found, place: _Place, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if stat.S_ISREG(found.status.st_mode):
            name = "index.html" if place.slash else place.last
            await self._file(found, content_type(name), scope, receive, send)
        elif not place.slash:
            location = f"./{quote(os.fsencode(place.last), safe='')}/".encode()
            query = b"?" + scope["query_string"] if scope["query_string"] else b""
            await _respond(scope, send, HTTPStatus.MOVED_PERMANENTLY, [(b"location", location + query)])
        elif not self._listing:
            detail = f"there is no index.html in {place.shown}, and listings are switched off"
            await _problem(scope, send, HTTPStatus.NOT_FOUND, detail)
        else:
            page = await trio.to_thread.run_sync(
                _listing_page, found, place, self._follow_symlinks, limiter=self._threads
            )
            headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-security-policy", _LISTING_POLICY)]
            await _respond(scope, send, HTTPStatus.OK, headers, page)

    async def _file(
        self, found: _Found, kind: str, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        version, size = version_of(found.status), found.status.st_size
        refusal = precondition(scope, version)
        if refusal is HTTPStatus.NOT_MODIFIED:
            await _respond(scope, send, refusal, version.headers())
            return
        if refusal is not None:
            await _problem(scope, send, refusal, "the file has changed; get it anew", version.headers())
            return
        status, part = part_of(scope, version, size)
        content_range = f"bytes {part.start}-{part.stop - 1}/{size}" if part else f"bytes */{size}"
        if status is HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            detail = f"the file has {size} bytes; ask for a range that begins below that"
            await _problem(scope, send, status, detail, [(b"content-range", content_range.encode())])
            return
        headers = [(b"content-type", kind.encode()), (b"accept-ranges", b"bytes"), *version.headers()]
        if status is HTTPStatus.PARTIAL_CONTENT:
            headers.append((b"content-range", content_range.encode()))
        await _start(send, status, headers, len(part))
        await self._body(found.fd, range(0) if scope["method"] == "HEAD" else part, receive, send)

    async def _body(self, fd: int, part: range, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        # Hypercorn drops silently what is sent to a client that has gone: only receive() tells.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
            await self._pump(fd, part, send)
            nursery.cancel_scope.cancel()

    async def _pump(self, fd: int, part: range, send: ASGISendCallable) -> None:
        position = part.start
        while position < part.stop:
            size = min(CHUNK_BYTES, part.stop - position)
            chunk = await trio.to_thread.run_sync(os.pread, fd, size, position, limiter=self._threads)
            if not chunk:
                logger.warning("a file became shorter while it was sent; its answer ends at byte %d", position)
                return
            position += len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


# ---------------------------------------------------------------------------------------------------------------------
# From the path of a request to an open file


@dataclass(frozen=True, slots=True)
class _Place:
    """What a path names below its mount. *slash*: it ends with one and therefore means a directory."""

    mount: Mount
    names: tuple[str, ...]
    last: str
    slash: bool

    @property
    def shown(self) -> str:
        """The path of the directory, for people."""
        return "/".join([self.mount.path.rstrip("/"), *map(_shown, self.names), ""])


class _Found(NamedTuple):
    """An open regular file or directory."""

    fd: int
    status: os.stat_result


def _place(mount: Mount, scope: HTTPScope) -> _Place | None:
    """Read the path of *scope*. None when no file can be meant."""
    raw = scope.get("raw_path", b"")
    if unquote(raw) != scope["path"]:  # something in front of us has rewritten the path: that one counts
        raw = quote(scope["path"]).encode()
    if not raw.startswith(b"/"):
        return None
    segments = [os.fsdecode(unquote_to_bytes(segment)) for segment in raw.split(b"/")[1:]]
    above = [segment for segment in f"{scope.get('root_path', '')}/{mount.path}".split("/") if segment]
    below = segments[len(above) :]
    if segments[: len(above)] != above:
        return None
    slash = below[-1:] == [""]
    names = tuple(below[:-1] if slash else below)
    return _Place(mount, names, segments[-1], slash) if all(map(_is_plain, names)) else None


def _is_plain(name: str) -> bool:
    return bool(name) and not name.startswith(".") and not any(character in name for character in "/\\\0")


def _is_served(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _open(root: str, names: tuple[str, ...], follow_symlinks: bool, wanted: Callable[[int], bool]) -> _Found:
    """Open *names* below *root*, a path without links. Raises OSError when it is not there or not to be served."""
    fd = _open_one(os.path.join(root, *names), None) if follow_symlinks else _walk(root, _resolve(root, names))
    try:
        status = os.fstat(fd)
        if not wanted(status.st_mode):
            raise PermissionError(errno.EACCES, "neither a file nor a directory, or not the one that was asked for")
    except OSError:
        os.close(fd)
        raise
    return _Found(fd, status)


def _resolve(root: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The same place in names that are not links. Raises OSError when it is not there or outside *root*."""
    real = PurePath(os.path.realpath(os.path.join(root, *names), strict=True))
    if not real.is_relative_to(root):
        raise PermissionError(errno.EACCES, "a link leaves the mounted directory")
    resolved = real.relative_to(root).parts
    if not all(map(_is_plain, resolved)):
        raise PermissionError(errno.EACCES, "a link leads to a hidden name")
    return resolved


def _walk(root: str, names: tuple[str, ...]) -> int:
    """Open *names* one inside the other, following no link."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    for name in names:
        try:
            inner = _open_one(name, fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def _open_one(name: str, directory: int | None) -> int:
    """Open a regular file or a directory; links are followed only without *directory*. Never waits for a FIFO."""
    follow = directory is None
    if not _is_served(os.stat(name, dir_fd=directory, follow_symlinks=follow).st_mode):
        raise PermissionError(errno.EACCES, "neither a file nor a directory")
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    return os.open(name, flags, dir_fd=directory)


# ---------------------------------------------------------------------------------------------------------------------
# Content types

#: Only the table inside Python: what the system's mime database says differs from machine to machine.
_KNOWN_TYPES = mimetypes.MimeTypes().types_map[True]

#: What that table lacks in some version of Python, or says differently. A compressed file is sent as what it is,
#: without Content-Encoding: otherwise a browser would unpack what a person wants to download.
_OUR_TYPES = {
    ".7z": "application/x-7z-compressed",
    ".avif": "image/avif",
    ".br": "application/octet-stream",
    ".bz2": "application/x-bzip2",
    ".cjs": "text/javascript",
    ".flac": "audio/flac",
    ".geojson": "application/geo+json",
    ".glb": "model/gltf-binary",
    ".gltf": "model/gltf+json",
    ".gz": "application/gzip",
    ".ipynb": "application/x-ipynb+json",
    ".js": "text/javascript",
    ".json": "application/json",
    ".log": "text/plain",
    ".map": "application/json",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".otf": "font/otf",
    ".tgz": "application/gzip",
    ".toml": "application/toml",
    ".ttf": "font/ttf",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".whl": "application/zip",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".xml": "application/xml",
    ".xsl": "application/xml",
    ".xz": "application/x-xz",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".zst": "application/zstd",
}


def content_type(name: str) -> str:
    """The content type of a file called *name*, the same on every machine. Text is taken to be UTF-8."""
    suffix = os.path.splitext(name)[1].lower()
    kind = _OUR_TYPES.get(suffix) or _KNOWN_TYPES.get(suffix, "application/octet-stream")
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


# ---------------------------------------------------------------------------------------------------------------------
# Listings

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 56rem; margin: 0 auto; padding: 1rem }}
h1 {{ font-size: 1.3rem; overflow-wrap: anywhere }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; padding: .4rem .5rem; border-bottom: 1px solid #8885 }}
th:first-child, td:first-child {{ padding-left: 0; overflow-wrap: anywhere }}
th + th, td + td {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }}
@media (max-width: 36rem) {{ th:last-child, td:last-child {{ display: none }} }}
</style>
<h1>{title}</h1>
{up}<table>
<thead><tr><th>Name<th>Size<th>Changed (UTC)</thead>
<tbody>
{rows}
</tbody>
</table>
{note}</html>
"""


class _Entry(NamedTuple):
    name: str
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    def row(self) -> str:
        slash = "/" if self.is_directory else ""
        href = f"./{quote(os.fsencode(self.name), safe='')}{slash}"
        size = "" if self.is_directory else _size(self.status.st_size)
        changed = time.strftime("%Y-%m-%d %H:%M", time.gmtime(self.status.st_mtime))
        # bdi: a name with right-to-left characters must not reorder the rest of its row.
        return f'<tr><td><a href="{href}"><bdi>{escape(_shown(self.name))}{slash}</bdi></a><td>{size}<td>{changed}'


def _listing_page(found: _Found, place: _Place, follow_symlinks: bool) -> bytes:
    """The page that lists an open directory: what a request would be served, and nothing else. Blocks."""
    with os.scandir(found.fd) as scan:
        visible = (entry for entry in scan if _is_plain(entry.name))
        read = (_entry(entry, found, place, follow_symlinks) for entry in visible)
        entries = list(islice((entry for entry in read if entry is not None), LISTED_ENTRIES + 1))
    note = f"<p>There is more: only {LISTED_ENTRIES} entries are listed.</p>\n" if entries[LISTED_ENTRIES:] else ""
    listed = sorted(entries[:LISTED_ENTRIES], key=lambda e: (not e.is_directory, e.name.casefold(), e.name))
    up = '<p><a href="../">Up</a></p>\n' if place.names else ""
    rows = "\n".join(entry.row() for entry in listed)
    return _PAGE.format(title=escape(place.shown), up=up, rows=rows, note=note).encode()


def _entry(entry: os.DirEntry[str], found: _Found, place: _Place, follow_symlinks: bool) -> _Entry | None:
    try:
        if entry.is_symlink() and not follow_symlinks:
            root = os.path.realpath(place.mount.directory)
            status = os.lstat(os.path.join(root, *_resolve(root, (*place.names, entry.name))))
        else:
            status = os.stat(entry.name, dir_fd=found.fd, follow_symlinks=follow_symlinks)
    except OSError:  # gone, or a link that is not followed: a request for it would be a 404
        return None
    return _Entry(entry.name, status) if _is_served(status.st_mode) else None


def _shown(name: str) -> str:
    """A name that need not be UTF-8, for people."""
    return os.fsencode(name).decode(errors="replace")


def _size(count: int) -> str:
    power = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**power:.{1 if power else 0}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


# ---------------------------------------------------------------------------------------------------------------------
# Responses


async def _start(send: ASGISendCallable, status: HTTPStatus, headers: Headers, length: int | None) -> None:
    common = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-cache")]
    if length is not None:
        common.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *common]})


async def _respond(
    scope: HTTPScope, send: ASGISendCallable, status: HTTPStatus, headers: Headers, body: bytes = b""
) -> None:
    bodiless = status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
    await _start(send, status, headers, None if bodiless else len(body))
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body, "more_body": False})


async def _problem(
    scope: HTTPScope, send: ASGISendCallable, status: HTTPStatus, detail: str, headers: Headers | None = None
) -> None:
    body = json.dumps({"success": False, "detail": detail}).encode()
    await _respond(scope, send, status, [*(headers or []), (b"content-type", b"application/json")], body)


async def _not_found(mount: Mount, scope: HTTPScope, send: ASGISendCallable) -> None:
    detail = (
        f"there is no such file below {mount.path}; check the spelling. "
        "Names that begin with a dot, and links that lead out of the directory, are not served"
    )
    await _problem(scope, send, HTTPStatus.NOT_FOUND, detail)
