"""hypha/web/static.py: mounts, files, conditions, ranges, listings, and what must never be served."""

from __future__ import annotations

import errno
import json
import mimetypes
import os
import re
import socket
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from email.utils import formatdate, parsedate_to_datetime
from functools import partial
from pathlib import Path
from urllib.parse import quote, urljoin

import httpx
import pytest
import trio
import trio.testing
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hypha.config import MIB, Mount
from hypha.web import conditional, static
from hypha.web.static import CHUNK_BYTES, StaticMounts, content_type
from tests.web.asgi_client import HttpApp, exchange, http_scope, loopback, request

#: 2020-01-01: long settled, so that ETags are strong.
OLD = 1577836800

MISSING = {
    "success": False,
    "detail": (
        "there is no such file below /m; check the spelling. "
        "Names that begin with a dot, and links that lead out of the directory, are not served"
    ),
}


def write(path: Path, data: bytes = b"", when: float = OLD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (when, when))
    return path


def serving(directory: Path, path: str = "/m", **options: bool) -> HttpApp:
    """The application that has one mount and gives it every request."""
    mount = Mount(path, directory)
    return partial(StaticMounts((mount,), **options).serve, mount)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory with something of everything, and a secret beside it."""
    root = tmp_path / "site"
    write(root / "a.js", b"export const a = 1;\n")
    write(root / "data.bin", bytes(range(256)))
    write(root / "empty.txt")
    write(root / "app" / "index.html", b"<h1>app</h1>")
    write(root / "app" / "deep" / "b.css", b"b {}")
    write(root / "bare" / "one.txt", b"1")
    write(root / ".git" / "config", b"SECRET")
    write(root / ".env", b"SECRET")
    write(root / "app" / ".hidden", b"SECRET")
    write(tmp_path / "secret.txt", b"SECRET")
    write(tmp_path / "outside" / "secret.txt", b"SECRET")
    write(tmp_path / "outside" / "index.html", b"SECRET")
    return root


@pytest.fixture
def app(site: Path) -> HttpApp:
    return serving(site)


# --- Which mount -----------------------------------------------------------------------------------------------------


def mounts(*paths: str) -> StaticMounts:
    return StaticMounts(tuple(Mount(path, Path("/nowhere")) for path in paths))


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("/tools", "/tools"),
        ("/tools/", "/tools"),
        ("/tools/services/x", "/tools"),
        ("/tools/deep", "/tools/deep"),
        ("/tools/deep/x", "/tools/deep"),
        ("/tools/deeper", "/tools"),
        ("/toolsx", None),
        ("/too", None),
        ("/", None),
        ("/a b/x", "/a b"),
        ("//tools", None),
    ],
)
def test_the_longest_mounted_prefix_owns_a_path(path: str, owner: str | None) -> None:
    found = mounts("/", "/tools", "/tools/deep", "/a b").find(path)
    assert (found.path if found else None) == owner


def test_the_mount_on_the_root_is_asked_for_apart() -> None:
    assert mounts("/tools").root is None
    everything = mounts("/tools", "/")
    assert everything.root == Mount("/", Path("/nowhere"))
    assert everything.find("/anything") is None


def test_first_segments_of_mounts_are_known_so_that_no_workspace_takes_them() -> None:
    assert mounts("/", "/tools/a", "/tools/b", "/images").names == {"tools", "images"}


# --- Files -----------------------------------------------------------------------------------------------------------


async def test_a_file_has_its_bytes_type_validators_and_ranges(app: HttpApp) -> None:
    answer = await request(app, "/m/a.js")
    assert answer.complete
    assert (answer.status, answer.body) == (200, b"export const a = 1;\n")
    headers = answer.headers
    assert headers["content-type"] == "text/javascript; charset=utf-8"
    assert headers["content-length"] == "20"
    assert headers["accept-ranges"] == "bytes"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-cache"
    assert headers["last-modified"] == "Wed, 01 Jan 2020 00:00:00 GMT"
    assert re.fullmatch(r'"[0-9a-f-]+"', headers["etag"])


async def test_head_has_the_headers_of_get_and_no_body(app: HttpApp) -> None:
    get, head = await request(app, "/m/a.js"), await request(app, "/m/a.js", "HEAD")
    assert (head.status, head.body, head.complete) == (200, b"", True)
    assert head.headers == get.headers


async def test_an_empty_file(app: HttpApp) -> None:
    answer = await request(app, "/m/empty.txt", headers={"Range": "bytes=0-"})
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW"])
async def test_other_methods_are_refused_with_those_that_work(app: HttpApp, method: str) -> None:
    answer = await request(app, "/m/a.js", method)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert answer.json() == {"success": False, "detail": "files below /m can only be read: use GET or HEAD"}


async def test_options_tells_the_methods(app: HttpApp) -> None:
    answer = await request(app, "/m/a.js", "OPTIONS")
    assert (answer.status, answer.body, answer.headers["allow"]) == (204, b"", "GET, HEAD, OPTIONS")
    assert "content-length" not in answer.headers  # RFC 9110 8.6


@pytest.mark.parametrize("name", ["a b.txt", "ä.txt", "100%.txt", "a#b?.txt", "a:b.txt", "'\"<&>.txt", "~x", "a+b"])
async def test_any_name_can_be_asked_for(site: Path, app: HttpApp, name: str) -> None:
    write(site / name, b"found")
    assert (await request(app, f"/m/{quote(name)}")).body == b"found"


async def test_a_name_that_is_not_utf8_can_be_asked_for(site: Path, app: HttpApp) -> None:
    write(Path(os.fsdecode(os.fsencode(site) + b"/caf\xe9.txt")), b"found")
    assert (await request(app, "/m/caf%e9.txt")).body == b"found"
    listing = (await request(app, "/m/")).body.decode()
    assert 'href="./caf%E9.txt"' in listing
    assert "caf\N{REPLACEMENT CHARACTER}.txt" in listing


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x.html", "text/html; charset=utf-8"),
        ("x.JS", "text/javascript; charset=utf-8"),
        ("x.mjs", "text/javascript; charset=utf-8"),
        ("x.css", "text/css; charset=utf-8"),
        ("x.txt", "text/plain; charset=utf-8"),
        ("x.csv", "text/csv; charset=utf-8"),
        ("x.md", "text/markdown; charset=utf-8"),
        ("x.wasm", "application/wasm"),
        ("x.json", "application/json"),
        ("x.min.js.map", "application/json"),
        ("x.svg", "image/svg+xml"),
        ("x.png", "image/png"),
        ("x.ome.tif", "image/tiff"),
        ("x.xml", "application/xml"),
        ("x.woff2", "font/woff2"),
        ("x.tar.gz", "application/gzip"),
        ("x.pdf", "application/pdf"),
        ("x.unheard-of", "application/octet-stream"),
        ("README", "application/octet-stream"),
        ("data:text/html,x", "application/octet-stream"),
    ],
)
def test_content_types(name: str, expected: str) -> None:
    assert content_type(name) == expected


def test_content_types_do_not_depend_on_the_mime_database_of_the_system() -> None:
    mimetypes.add_type("text/plain", ".js")
    mimetypes.add_type("text/x-surprise", ".png")
    try:
        assert content_type("x.js") == "text/javascript; charset=utf-8"
        assert content_type("x.png") == "image/png"
    finally:
        mimetypes.init()


# --- Directories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "root_path", "target", "location"),
    [
        ("/m", "", "/m", "/m/"),
        ("/m", "", "/m/app", "/m/app/"),
        ("/m", "", "/m/app/deep?x=1&y=%2f", "/m/app/deep/?x=1&y=%2f"),
        ("/m", "/lab", "/lab/m?x", "/lab/m/?x"),
        ("/m/n", "", "/m/n", "/m/n/"),
        ("/", "", "/app", "/app/"),
        ("/", "/lab", "/lab", "/lab/"),
        ("/ü", "", "/%C3%BC", "/%C3%BC/"),
    ],
)
async def test_a_directory_redirects_to_its_slash_form(
    site: Path, path: str, root_path: str, target: str, location: str
) -> None:
    answer = await request(serving(site, path), target, root_path=root_path)
    assert answer.status == 301
    assert urljoin(f"http://host{target}", answer.headers["location"]) == f"http://host{location}"
    assert answer.headers["cache-control"] == "no-cache"


async def test_a_redirect_survives_a_proxy_that_strips_a_prefix(app: HttpApp) -> None:
    answer = await request(app, "/m/app")
    assert urljoin("https://hub/user/x/proxy/9527/m/app", answer.headers["location"]).endswith("/9527/m/app/")


@pytest.mark.parametrize("target", ["//evil", "//evil/", "/\\evil", "/%5cevil", "/%2fevil", "//evil/..", "/%2f%2fevil"])
async def test_no_redirect_leaves_the_host(site: Path, target: str) -> None:
    (site / "evil").mkdir()
    answer = await request(serving(site, "/"), target)
    assert (answer.status, answer.json()["success"]) == (404, False)


async def test_a_directory_named_like_a_scheme_redirects_to_itself(site: Path, app: HttpApp) -> None:
    (site / "javascript:alert(1)").mkdir()
    answer = await request(app, "/m/javascript:alert(1)")
    assert urljoin("http://h/m/x", answer.headers["location"]) == "http://h/m/javascript%3Aalert%281%29/"


async def test_index_pages_at_every_level(site: Path, app: HttpApp) -> None:
    write(site / "index.html", b"top")
    write(site / "app" / "deep" / "index.html", b"deep")
    for target, body in [("/m/", b"top"), ("/m/app/", b"<h1>app</h1>"), ("/m/app/deep/", b"deep")]:
        answer = await request(app, target)
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"


async def test_a_mount_on_the_root_and_below_a_base_path(site: Path) -> None:
    write(site / "index.html", b"top")
    assert (await request(serving(site, "/"), "/")).body == b"top"
    assert (await request(serving(site, "/"), "/lab/", root_path="/lab")).body == b"top"
    assert (await request(serving(site, "/"), "/lab/bare/one.txt", root_path="/lab")).body == b"1"
    assert (await request(serving(site), "/lab/m/bare/one.txt", root_path="/lab")).body == b"1"


async def test_a_path_outside_the_base_path_is_not_found(app: HttpApp) -> None:
    assert (await request(app, "/m/a.js", root_path="/lab")).status == 404


async def test_a_path_rewritten_by_a_middleware_counts(app: HttpApp) -> None:
    scope = http_scope("/proxy/m/a.js")
    scope["path"] = "/m/a.js"
    assert (await exchange(app, scope)).status == 200


async def test_a_listing_shows_what_would_be_served(site: Path, tmp_path: Path, app: HttpApp) -> None:
    (site / "inside.js").symlink_to("a.js")
    (site / "leaving.txt").symlink_to(tmp_path / "secret.txt")
    (site / "leaving").symlink_to(tmp_path / "outside")
    (site / "dangling").symlink_to("nothing")
    os.mkfifo(site / "fifo")
    write(site / "back\\slash", b"")
    answer = await request(app, "/m/")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    links = re.findall(r'href="([^"]*)"', answer.body.decode())
    assert links == ["./app/", "./bare/", "./a.js", "./data.bin", "./empty.txt", "./inside.js"]
    for link in links:
        assert (await request(app, f"/m/{link[2:]}")).status == 200


async def test_a_listing_with_followed_links_shows_them(site: Path, tmp_path: Path) -> None:
    (site / "leaving").symlink_to(tmp_path / "outside")
    (site / "dangling").symlink_to("nothing")
    page = (await request(serving(site, follow_symlinks=True), "/m/")).body.decode()
    assert 'href="./leaving/"' in page
    assert "dangling" not in page


async def test_a_listing_escapes_names_loads_nothing_and_reads_everywhere(site: Path, app: HttpApp) -> None:
    write(site / "bare" / "<script>alert(1)<", b"x" * 1234567)
    write(site / "bare" / "a\"b'&:c", b"")
    answer = await request(app, "/m/bare/")
    page = answer.body.decode()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page
    assert 'href="./%3Cscript%3Ealert%281%29%3C"' in page
    assert 'href="./a%22b%27%26%3Ac"' in page
    assert "1.2 MB" in page
    assert "2020-01-01 00:00" in page
    assert '<a href="../">' in page
    assert "color-scheme: light dark" in page
    assert 'name="viewport"' in page
    assert not re.search(r"src=|@import|url\(|https?:", page)
    assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_the_top_of_a_mount_lists_no_way_up(app: HttpApp) -> None:
    assert b"../" not in (await request(app, "/m/")).body


async def test_a_listing_is_bounded(site: Path, app: HttpApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "LISTED_ENTRIES", 3)
    page = (await request(app, "/m/")).body.decode()
    assert page.count("<tr><td>") == 3
    assert "only 3 entries are listed" in page
    assert "entries are listed" not in (await request(app, "/m/bare/")).body.decode()


async def test_head_of_a_listing(app: HttpApp) -> None:
    get, head = await request(app, "/m/"), await request(app, "/m/", "HEAD")
    assert (head.status, head.body, head.headers) == (200, b"", get.headers)


async def test_without_listings_the_404_says_what_was_looked_for(site: Path) -> None:
    app = serving(site, listing=False)
    answer = await request(app, "/m/bare/")
    assert answer.status == 404
    assert answer.json()["detail"] == "there is no index.html in /m/bare/, and listings are switched off"
    assert (await request(app, "/m/app/")).status == 200
    assert (
        (await request(serving(site, "/", listing=False), "/"))
        .json()["detail"]
        .startswith("there is no index.html in /, and")
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123456, "123.5 kB"), (10**9, "1.0 GB"), (10**16, "10000.0 TB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert static._size(count) == text


# --- What is never served ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/m/nothing",
        "/m/app/nothing/",
        "/m/a.js/",
        "/m/a.js/x",
        "/m/..",
        "/m/../",
        "/m/../secret.txt",
        "/m/app/../../secret.txt",
        "/m/%2e%2e/secret.txt",
        "/m/%2E./secret.txt",
        "/m/..%2fsecret.txt",
        "/m/%2e%2e%2fsecret.txt",
        "/m/%252e%252e/secret.txt",
        "/m/app%2findex.html",
        "/m/app%5cindex.html",
        "/m/..%5csecret.txt",
        "/m%2fa.js",
        "/m//a.js",
        "/m//etc/passwd",
        "/m/%2fetc/passwd",
        "/m/file:///etc/passwd",
        "/m/a.js%00",
        "/m/a.js%00.txt",
        "/m/%00",
        "/m/./a.js",
        "/m/.git/config",
        "/m/.git",
        "/m/.git/",
        "/m/.env",
        "/m/%2eenv",
        "/m/app/.hidden",
        "/m/" + "x" * 5000,
        "/m/" + "x/" * 5000,
        "/m/%ff%fe",
        "/m/%",
        "/m/%zz",
        "/m/a.js;x",
    ],
)
async def test_what_is_not_served_looks_like_a_missing_file(app: HttpApp, target: str) -> None:
    answer = await request(app, target)
    assert (answer.status, answer.json()) == (404, MISSING)
    assert answer.headers["content-type"] == "application/json"
    assert (await request(app, target, "HEAD")).headers == answer.headers


@pytest.mark.parametrize("target", ["m/a.js", "a.js", "*", "", "http://host/a.js"])
async def test_targets_that_are_no_paths(site: Path, target: str) -> None:
    assert (await request(serving(site, "/"), target)).status == 404


@pytest.mark.parametrize("follow", [False, True])
async def test_devices_fifos_and_sockets_are_not_opened(site: Path, follow: bool) -> None:
    os.mkfifo(site / "fifo")
    (site / "null").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(site / "socket"))
        app = serving(site, follow_symlinks=follow)
        for name in ("fifo", "null", "socket"):
            answer = await request(app, f"/m/{name}")
            assert (answer.status, answer.json()) == (404, MISSING), name


@pytest.mark.parametrize("target", ["/m/file", "/m/dir", "/m/dir/", "/m/dir/secret.txt", "/m/hop", "/m/rel", "/m/git"])
async def test_links_that_leave_the_tree_or_lead_to_hidden_names(site: Path, tmp_path: Path, target: str) -> None:
    (site / "file").symlink_to(tmp_path / "secret.txt")
    (site / "dir").symlink_to(tmp_path / "outside")
    (site / "rel").symlink_to("../secret.txt")
    (site / "hop").symlink_to("rel")
    (site / "git").symlink_to(".git/config")
    answer = await request(serving(site), target)
    assert (answer.status, answer.json()) == (404, MISSING)
    followed = await request(serving(site, follow_symlinks=True), target)
    assert followed.status == (301 if target == "/m/dir" else 200)


async def test_links_inside_the_tree_are_followed(site: Path, app: HttpApp) -> None:
    (site / "link.js").symlink_to("a.js")
    (site / "absolute.js").symlink_to(site / "a.js")
    (site / "app2").symlink_to("app")
    (site / "app" / "up.js").symlink_to("../a.js")
    for target in ("/m/link.js", "/m/absolute.js", "/m/app2/up.js"):
        assert (await request(app, target)).body == b"export const a = 1;\n"
    assert (await request(app, "/m/app2/")).body == b"<h1>app</h1>"


async def test_link_loops_end(site: Path, app: HttpApp) -> None:
    (site / "loop").symlink_to("loop")
    for path in ("/m/loop", "/m/loop/x"):
        assert (await request(app, path)).json() == MISSING


async def test_an_index_page_that_leaves_the_tree_does_not_turn_into_a_listing(site: Path, tmp_path: Path) -> None:
    (site / "bare" / "index.html").symlink_to(tmp_path / "secret.txt")
    assert (await request(serving(site), "/m/bare/")).json() == MISSING


async def test_a_mount_whose_directory_is_itself_a_link(site: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("site")
    assert (await request(serving(tmp_path / "current"), "/m/a.js")).status == 200


async def test_a_mount_whose_directory_is_gone(tmp_path: Path) -> None:
    assert (await request(serving(tmp_path / "gone"), "/m/")).json() == MISSING


async def test_a_name_that_becomes_a_link_after_the_check_is_not_followed(
    site: Path, tmp_path: Path, app: HttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race between resolving and opening, won by the attacker each time: a file, and a directory on the way."""

    def swapped(path: Path, link: Path) -> Callable[..., str]:
        real = os.path.realpath

        def resolve_then_swap(name: str, *, strict: bool = False) -> str:
            result = real(name, strict=strict)
            if strict and path.exists() and not path.is_symlink():
                path.rename(tmp_path / f"moved-{path.name}")
                path.symlink_to(link)
            return result

        return resolve_then_swap

    monkeypatch.setattr(os.path, "realpath", swapped(site / "a.js", tmp_path / "secret.txt"))
    assert (await request(app, "/m/a.js")).json() == MISSING
    assert (site / "a.js").is_symlink()
    write(site / "bare" / "secret.txt", b"harmless")
    monkeypatch.setattr(os.path, "realpath", swapped(site / "bare", tmp_path / "outside"))
    assert (await request(app, "/m/bare/secret.txt")).json() == MISSING
    assert (site / "bare").is_symlink()


async def test_a_file_that_may_not_be_read_looks_missing(app: HttpApp, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_open(monkeypatch, errno.EACCES)
    assert (await request(app, "/m/a.js")).json() == MISSING


async def test_a_fault_of_the_disk_is_a_500_that_tells_only_a_reference(
    site: Path, app: HttpApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fail_to_open(monkeypatch, errno.EIO)
    answer = await request(app, "/m/a.js")
    assert answer.status == 500
    reference = re.fullmatch(r"internal error, reference (\w+); .*", answer.json()["detail"])
    assert reference is not None
    assert str(site) not in answer.body.decode()
    assert reference[1] in caplog.text


def fail_to_open(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Make the opening of a.js fail. The tests may run as root, who may read everything."""
    real = os.open

    def failing(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "a.js":
            raise OSError(number, os.strerror(number), "a.js")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", failing)


NAMES = ["a.js", "app", "index.html", "bare", "one.txt", "leaving", "file", "inside", "secret.txt", "outside", "site"]
TRICKS = [
    "..",
    ".",
    "",
    "%2e%2e",
    "%2E.",
    "..%2f",
    "%2f",
    "%5c",
    "..%5c..",
    "%00",
    ".git",
    "config",
    ".env",
    "%ff",
    "~",
]


@given(
    parts=st.lists(st.one_of(st.sampled_from(NAMES + TRICKS), st.text("./\\%25fe", max_size=6)), max_size=8),
    prefix=st.sampled_from(["/m/", "/m", "/m/../", "/m%2f", "//m/", "/"]),
    on_root=st.booleans(),
)
@example(parts=["leaving", "secret.txt"], prefix="/m/", on_root=False)
@example(parts=["app", "..", "..", "secret.txt"], prefix="/m/", on_root=False)
@example(parts=["inside", "..%2f..%2fsecret.txt"], prefix="/m/", on_root=False)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_path_yields_bytes_from_outside(parts: list[str], prefix: str, on_root: bool, tree: Path) -> None:
    target = prefix + "/".join(quote(part, safe="%./\\") for part in parts)
    answer = trio.run(request, serving(tree, "/" if on_root else "/m"), target)
    assert b"SECRET" not in answer.body
    assert b"root:" not in answer.body
    assert answer.status in {200, 301, 404}
    assert answer.status != 404 or b"Traceback" not in answer.body
    if answer.status == 301:
        assert answer.headers["location"].startswith("./")


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """The site of the property test: made once, since hypothesis runs a test hundreds of times."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        root = top / "site"
        write(root / "a.js", b"a")
        write(root / "app" / "index.html", b"app")
        write(root / "bare" / "one.txt", b"1")
        write(root / ".git" / "config", b"SECRET")
        write(root / ".env", b"SECRET")
        write(top / "secret.txt", b"SECRET")
        write(top / "outside" / "secret.txt", b"SECRET")
        (root / "leaving").symlink_to(top / "outside")
        (root / "file").symlink_to("../secret.txt")
        (root / "inside").symlink_to("app")
        yield root


# --- Conditions ------------------------------------------------------------------------------------------------------


async def test_etag_and_date_give_304_until_the_file_changes(site: Path, app: HttpApp) -> None:
    first = (await request(app, "/m/a.js")).headers
    for condition in ({"If-None-Match": first["etag"]}, {"If-Modified-Since": first["last-modified"]}):
        answer = await request(app, "/m/a.js", headers=condition)
        assert (answer.status, answer.body) == (304, b"")
        assert (answer.headers["etag"], answer.headers["cache-control"]) == (first["etag"], "no-cache")
        assert "content-length" not in answer.headers
        assert (await request(app, "/m/a.js", "HEAD", headers=condition)).status == 304
    write(site / "a.js", b"export const a = 2;\n", OLD + 1)
    for condition in ({"If-None-Match": first["etag"]}, {"If-Modified-Since": first["last-modified"]}):
        assert (await request(app, "/m/a.js", headers=condition)).body == b"export const a = 2;\n"


async def test_the_etag_sees_a_change_that_keeps_size_and_date(site: Path, app: HttpApp) -> None:
    before = (await request(app, "/m/a.js")).headers["etag"]
    replacement = write(site / "other.js", b"export const a = 3;\n")
    while replacement.stat().st_ctime_ns == (site / "a.js").stat().st_ctime_ns:  # the clock of the file system
        write(replacement, b"export const a = 3;\n")
    replacement.rename(site / "a.js")
    assert (await request(app, "/m/a.js")).headers["etag"] != before


async def test_a_file_that_has_just_changed_has_a_weak_etag(site: Path, app: HttpApp) -> None:
    write(site / "new.txt", b"new", time.time())
    tag = (await request(app, "/m/new.txt")).headers["etag"]
    assert tag.startswith('W/"')
    assert (await request(app, "/m/new.txt", headers={"If-None-Match": tag})).status == 304
    assert (await request(app, "/m/new.txt", headers={"If-Match": tag})).status == 412
    resumed = await request(app, "/m/new.txt", headers={"Range": "bytes=1-", "If-Range": tag})
    assert (resumed.status, resumed.body) == (200, b"new")


async def test_a_change_in_the_future_is_not_claimed(site: Path, app: HttpApp) -> None:
    write(site / "future.txt", b"x", time.time() + 10**6)
    headers = (await request(app, "/m/future.txt")).headers
    assert parsedate_to_datetime(headers["last-modified"]).timestamp() <= time.time()
    assert headers["etag"].startswith("W/")


THEN, BEFORE, AFTER = (formatdate(OLD + delta, usegmt=True) for delta in (0, -1, 1))


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": 'W/{tag}, "x"'}, 304),
        ({"If-None-Match": '"x", {tag}'}, 304),
        ({"If-None-Match": '"x"'}, 200),
        ({"If-None-Match": "x"}, 200),
        ({"If-None-Match": '"x"', "If-Modified-Since": AFTER}, 200),
        ({"If-Modified-Since": AFTER}, 304),
        ({"If-Modified-Since": THEN}, 304),
        ({"If-Modified-Since": BEFORE}, 200),
        ({"If-Modified-Since": "Wednesday, 01-Jan-20 00:00:00 GMT"}, 304),
        ({"If-Modified-Since": "Wed Jan  1 00:00:00 2020"}, 304),
        ({"If-Modified-Since": "yesterday"}, 200),
        ({"If-Modified-Since": "Wed, 99 Jan 2020 00:00:00 GMT"}, 200),
        ({"If-Modified-Since": "Wed, 01 Jan 2020 00:00:00 +99999999999999999999"}, 200),
        ({"If-Match": "*"}, 200),
        ({"If-Match": "{tag}"}, 200),
        ({"If-Match": '"x", {tag}'}, 200),
        ({"If-Match": '"x"'}, 412),
        ({"If-Match": "W/{tag}"}, 412),
        ({"If-Match": "{tag}", "If-Unmodified-Since": BEFORE}, 200),
        ({"If-Match": "{tag}", "If-None-Match": "{tag}"}, 304),
        ({"If-Unmodified-Since": BEFORE}, 412),
        ({"If-Unmodified-Since": THEN}, 200),
        ({"If-Unmodified-Since": "never"}, 200),
    ],
)
async def test_conditions(app: HttpApp, conditions: dict[str, str], status: int) -> None:
    tag = (await request(app, "/m/a.js")).headers["etag"]
    given = {name: value.format(tag=tag) for name, value in conditions.items()}
    answer = await request(app, "/m/a.js", headers=given)
    assert answer.status == status
    if status == 412:
        assert answer.json() == {"success": False, "detail": "the file has changed; get it anew"}


@given(text=st.text(max_size=60), number=st.integers())
@example(text="Wed, 01 Jan {} 00:00:00 GMT", number=10**20)
@example(text="Wed, 01 Jan 0001 00:00:00 +{}", number=2359)
def test_no_date_is_an_error(text: str, number: int) -> None:
    seconds = conditional._seconds(text.replace("{}", str(number)))
    assert seconds is None or isinstance(seconds, float)


# --- Ranges ----------------------------------------------------------------------------------------------------------

DATA = bytes(range(256))


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-0", range(1)),
        ("bytes=0-255", range(256)),
        ("bytes=10-19", range(10, 20)),
        ("bytes=250-", range(250, 256)),
        ("bytes=0-", range(256)),
        ("bytes=-5", range(251, 256)),
        ("bytes=-1000", range(256)),
        ("bytes=200-99999999999999999999", range(200, 256)),
        ("BYTES=1-2", range(1, 3)),
        ("bytes= 1-2 ", range(1, 3)),
        ("bytes=00001-2", range(1, 3)),
    ],
)
async def test_one_range(app: HttpApp, asked: str, part: range) -> None:
    answer = await request(app, "/m/data.bin", headers={"Range": asked})
    assert (answer.status, answer.body) == (206, DATA[part.start : part.stop])
    assert answer.headers["content-range"] == f"bytes {part.start}-{part.stop - 1}/256"
    assert answer.headers["content-length"] == str(len(part))
    assert "etag" in answer.headers


@pytest.mark.parametrize("asked", ["bytes=256-", "bytes=256-300", "bytes=99999999999999999999-", "bytes=-0"])
async def test_a_range_beyond_the_end(app: HttpApp, asked: str) -> None:
    answer = await request(app, "/m/data.bin", headers={"Range": asked})
    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */256")
    assert answer.json()["detail"] == "the file has 256 bytes; ask for a range that begins below that"


@pytest.mark.parametrize(
    "asked",
    [
        *(
            "bytes=5-4",
            "bytes=-",
            "bytes=",
            "bytes",
            "lines=0-1",
            "bytes=a-b",
            "bytes=--5",
            "bytes=0x1-2",
            "bytes=\u00b2-",
        ),
        *("bytes=0-1,5-6", "bytes=0-0,-1", "", "bytes=" + "9" * 9999 + "-"),
    ],
)
async def test_ranges_that_are_malformed_or_several_get_the_whole_file(app: HttpApp, asked: str) -> None:
    answer = await request(app, "/m/data.bin", headers={"Range": asked})
    assert (answer.status, answer.body) == (200, DATA)
    assert "content-range" not in answer.headers


async def test_head_ignores_a_range(app: HttpApp) -> None:
    answer = await request(app, "/m/data.bin", "HEAD", headers={"Range": "bytes=0-0"})
    assert (answer.status, answer.headers["content-length"]) == (200, "256")


@pytest.mark.parametrize(
    ("condition", "status"),
    [("{tag}", 206), (THEN, 206), ('"x"', 200), ("W/{tag}", 200), (BEFORE, 200), (AFTER, 200), ("rubbish", 200)],
)
async def test_a_download_resumes_only_in_the_same_version(app: HttpApp, condition: str, status: int) -> None:
    tag = (await request(app, "/m/data.bin")).headers["etag"]
    given = {"Range": "bytes=100-", "If-Range": condition.format(tag=tag)}
    answer = await request(app, "/m/data.bin", headers=given)
    assert (answer.status, answer.body) == (status, DATA[100:] if status == 206 else DATA)


@given(asked=st.from_regex(r"bytes=[0-9]{0,3}-[0-9]{0,3}(,[0-9]-)?", fullmatch=True), size=st.integers(0, 300))
def test_a_range_is_inside_the_file_or_refused(asked: str, size: int) -> None:
    scope = http_scope("/x", headers={"Range": asked})
    status, part = conditional.part_of(scope, conditional.Version('"x"', 0), size)
    assert 0 <= part.start <= part.stop <= size or not part
    assert part or status == 416 or size == 0
    assert status == 206 or part in (range(size), range(0))


# --- Sending -------------------------------------------------------------------------------------------------------

BIG = 5 * CHUNK_BYTES + 100


async def test_a_big_file_is_read_no_faster_than_it_is_taken(
    site: Path, app: HttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(site / "big", os.urandom(BIG))
    read = count_reads(monkeypatch)
    taken: list[int] = []

    async def take(message: ASGISendEvent) -> None:
        if message["type"] == "http.response.body" and message["body"]:
            taken.append(len(message["body"]))
            await trio.testing.wait_all_tasks_blocked()
            assert read == taken

    answer = await exchange(app, http_scope("/m/big"), take)
    assert answer.body == (site / "big").read_bytes()
    assert taken == [CHUNK_BYTES] * 5 + [100]


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all reads from files, as they happen."""
    sizes: list[int] = []
    real = os.pread

    def counting(fd: int, length: int, offset: int) -> bytes:
        data = real(fd, length, offset)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counting)
    return sizes


async def test_a_file_that_becomes_shorter_ends_the_answer_early(
    site: Path, app: HttpApp, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(site / "big", b"x" * BIG)

    async def shorten(message: ASGISendEvent) -> None:
        os.truncate(path, CHUNK_BYTES + 10)

    answer = await exchange(app, http_scope("/m/big"), shorten)
    assert answer.headers["content-length"] == str(BIG)
    assert (len(answer.body), answer.complete) == (CHUNK_BYTES + 10, False)
    assert f"at byte {CHUNK_BYTES + 10}" in caplog.text


async def test_a_file_that_grows_keeps_its_announced_length(site: Path, app: HttpApp) -> None:
    path = write(site / "big", b"x" * BIG)

    async def grow(message: ASGISendEvent) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    answer = await exchange(app, http_scope("/m/big"), grow)
    assert (answer.body, answer.complete) == (b"x" * BIG, True)


async def test_a_client_that_goes_away_ends_the_reading(
    site: Path, app: HttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(site / "big", b"x" * BIG)
    read, gone = count_reads(monkeypatch), trio.Event()

    async def leave(message: ASGISendEvent) -> None:
        if message["type"] == "http.response.body":
            gone.set()
            await trio.sleep_forever()

    answer = await exchange(app, http_scope("/m/big"), leave, gone)
    assert (len(answer.chunks), answer.complete, read) == (1, False, [CHUNK_BYTES])


@pytest.mark.parametrize("target", ["/m/big", "/m/", "/m/app/", "/m/nothing"])
async def test_cancelling_leaves_nothing_open(site: Path, app: HttpApp, target: str) -> None:
    """At every checkpoint; the leak check of the house looks for open files after each test."""
    write(site / "big", b"x" * BIG)
    before = sorted(os.listdir("/proc/self/fd"))
    checkpoints, finished = 0, False
    while not finished:
        checkpoints += 1
        finished = await cancelled_at(checkpoints, app, target)
        assert sorted(os.listdir("/proc/self/fd")) == before
    assert checkpoints > 3


async def cancelled_at(checkpoint: int, app: HttpApp, target: str) -> bool:
    """Serve *target*, cancelled when the task is scheduled for the n-th time. Returns whether it came to its end."""

    class Canceller(trio.abc.Instrument):
        seen = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.seen += 1
            if self.seen == checkpoint:
                scope.cancel()

    canceller = Canceller()
    finished = False
    with trio.CancelScope() as scope:
        trio.lowlevel.add_instrument(canceller)
        try:
            finished = (await request(app, target)).complete
        finally:
            trio.lowlevel.remove_instrument(canceller)
    return finished


# --- Through a real server -------------------------------------------------------------------------------------------


async def test_files_over_the_loopback(site: Path, app: HttpApp) -> None:
    write(site / "big", os.urandom(BIG))
    async with loopback(app) as url, httpx.AsyncClient(base_url=url, follow_redirects=True) as client:
        whole = await client.get("/m/big")
        assert (whole.status_code, whole.content) == (200, (site / "big").read_bytes())
        part = await client.get("/m/big", headers={"Range": "bytes=-100"})
        assert (part.status_code, part.content) == (206, whole.content[-100:])
        head = await client.head("/m/big")
        assert (head.status_code, head.headers["content-length"], head.content) == (200, str(BIG), b"")
        unchanged = await client.get("/m/big", headers={"If-Modified-Since": whole.headers["last-modified"]})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        index = await client.get("/m/app?x=1")
        assert (str(index.url), index.text) == (f"{url}/m/app/?x=1", "<h1>app</h1>")
        assert (await client.options("/m/a.js")).status_code == 204
        assert (await client.post("/m/a.js", content=b"x" * 10)).status_code == 405


async def test_traversal_over_the_loopback(site: Path, app: HttpApp) -> None:
    """With raw bytes, because HTTP clients tidy a path up before they send it."""
    async with loopback(app) as url:
        port = int(url.rpartition(":")[2])
        for target in ("/m/../secret.txt", "/m/%2e%2e/secret.txt", "/m/..%2fsecret.txt", "/m/%00", "/m//etc/passwd"):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                answer = b"".join([chunk async for chunk in stream])
            assert answer.startswith(b"HTTP/1.1 404 "), target
            assert json.loads(answer.partition(b"\r\n\r\n")[2]) == MISSING


def sparse(path: Path, size: int) -> Path:
    """A file of zeros that takes no room."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


async def test_a_file_that_becomes_shorter_closes_the_connection(site: Path, app: HttpApp) -> None:
    path = sparse(site / "big", 64 * MIB)
    async with loopback(app) as url, httpx.AsyncClient(base_url=url) as client, client.stream("GET", "/m/big") as big:
        chunks = big.aiter_raw()
        await anext(chunks)
        os.truncate(path, 0)
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
            async for _ in chunks:
                pass


async def test_a_client_that_leaves_ends_the_reading_in_the_server(
    site: Path, app: HttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse(site / "big", 1024 * MIB)
    read, ended = count_reads(monkeypatch), trio.Event()

    async def observed(scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await app(scope, receive, send)
        ended.set()

    async with loopback(observed) as url:
        async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as stream:
            await stream.send_all(b"GET /m/big HTTP/1.1\r\nHost: x\r\n\r\n")
            await stream.receive_some(CHUNK_BYTES)
        await ended.wait()
    assert sum(read) < 64 * MIB


async def test_a_big_file_takes_no_memory(site: Path, app: HttpApp) -> None:
    sparse(site / "big", 64 * MIB)
    async with loopback(app) as url, httpx.AsyncClient(base_url=url) as client, client.stream("GET", "/m/big") as big:
        tracemalloc.start()
        try:
            received = 0
            async for chunk in big.aiter_raw():
                received += len(chunk)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert received == 64 * MIB
    assert peak < 4 * MIB
