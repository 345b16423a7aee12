"""hypha/config.py: what can be configured, how it is written, and what is refused with which words."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha.config import (
    RESERVED_NAMES,
    Config,
    Limits,
    Mount,
    parse_base_path,
    parse_data_dir,
    parse_domains,
    parse_issuer,
    parse_limits,
    parse_log_level,
    parse_mount,
    parse_mounts,
    parse_networks,
    parse_origins,
    parse_port,
    parse_public_base_url,
)
from hypha.errors import ConfigError

# --- Mounts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "directory"),
    [
        ("/tools:webtools", "/tools", "webtools"),
        ("/tools:./webtools/", "/tools", "webtools"),
        ("/tools/:webtools", "/tools", "webtools"),
        ("//a///b/:webtools", "/a/b", "webtools"),
        ("/a/b:webtools", "/a/b", "webtools"),
        ("/:webtools", "/", "webtools"),
        ("/x:.", "/x", "."),
        ("/x:webtools/../webtools", "/x", "webtools"),
        ("/t:C:\\x", "/t", "C:\\x"),
        ("/my tools:webtools", "/my tools", "webtools"),
        ("/ü:webtools", "/ü", "webtools"),
        ("/.well-known:webtools", "/.well-known", "webtools"),
        ("/tools:link", "/tools", "webtools"),
        ("/publications:webtools", "/publications", "webtools"),
    ],
)
def test_a_mount_is_a_path_and_a_directory(tmp_path: Path, text: str, path: str, directory: str) -> None:
    (tmp_path / "webtools").mkdir()
    (tmp_path / "C:\\x").mkdir()
    (tmp_path / "link").symlink_to("webtools")
    assert parse_mount(text, tmp_path) == Mount(path, (tmp_path / directory).resolve())


def test_an_absolute_directory_and_one_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in (f"/x:{tmp_path}/here", "/x:~/here"):
        assert parse_mount(text, Path("/nowhere")) == Mount("/x", tmp_path / "here")


@pytest.mark.parametrize(
    "text", ["", "tools:./x", "/tools", "/tools:", ":./x", "./tools:x", "C:\\x", "/x:a\0b", "/tools=./x"]
)
def test_a_mount_written_wrongly_shows_how_to_write_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"write it as /path:directory, for example /tools:\./webtools"):
        parse_mount(text, tmp_path)


@pytest.mark.parametrize("path", ["/..", "/a/../b", "/./a", "/a/."])
def test_a_mount_path_has_no_dot_segments(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match=r"must not contain '\.' or '\.\.'"):
        parse_mount(f"{path}:.", tmp_path)


@pytest.mark.parametrize("path", ["/a%20b", "/a?b", "/a#b", "/a\\b", "/a\nb", "/\x7f"])
def test_a_mount_path_that_no_request_would_name(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="must be plain text"):
        parse_mount(f"{path}:.", tmp_path)


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES | {"public"}))
def test_no_mount_takes_what_belongs_to_the_server(tmp_path: Path, name: str) -> None:
    for path in (f"/{name}", f"/{name}/", f"//{name}/below"):
        with pytest.raises(ConfigError, match=f"/{name} belongs to the server; choose another path"):
            parse_mount(f"{path}:.", tmp_path)


def test_public_is_a_workspace_and_no_reserved_name() -> None:
    assert "public" not in RESERVED_NAMES


def test_a_missing_directory_is_named_in_full(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("missing", "file", "loop", "~nobody-of-this-name/x"):
        with pytest.raises(ConfigError) as caught:
            parse_mount(f"/x:{name}", tmp_path)
        assert f"there is no directory {tmp_path / name} that can be read" in str(caught.value)


def test_a_directory_that_may_not_be_read_is_refused() -> None:
    with nobody_special():
        closed = Path(tempfile.mkdtemp())
        closed.chmod(0)
        try:
            with pytest.raises(ConfigError, match=f"there is no directory {closed} that can be read"):
                parse_mount(f"/x:{closed}", Path("/"))
        finally:
            closed.rmdir()


@contextmanager
def nobody_special() -> Iterator[None]:
    """Without the rights of root, who may read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_several_mounts_and_two_on_one_path(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert parse_mounts([], tmp_path) == ()
    both = parse_mounts(["/x:a", "/x/y:.", "/:a"], tmp_path)
    assert [mount.path for mount in both] == ["/x", "/x/y", "/"]
    with pytest.raises(ConfigError, match="/x is already mounted; use another path"):
        parse_mounts(["/x:a", "/x/:."], tmp_path)


# --- Limits ----------------------------------------------------------------------------------------------------------


def test_limits_are_numbers_above_zero() -> None:
    for item in fields(Limits):
        assert 0 < getattr(Limits(), item.name) < 2**53


def test_limits_can_be_set_one_by_one() -> None:
    changed = parse_limits({"frame_bytes": "1000", "ping_seconds": "1.5"})
    assert changed == replace(Limits(), frame_bytes=1000, ping_seconds=1.5)
    assert parse_limits({"frame_bytes": "2"}, changed) == replace(changed, frame_bytes=2)
    assert parse_limits({}) == Limits()


def test_an_unknown_limit_lists_those_that_exist() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown limit 'frame_size'; the limits are accounts, anonymous_workspaces, .*"
    ):
        parse_limits({"frame_size": "1"})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("frame_bytes", "", "'' is not a whole number"),
        ("frame_bytes", "1e6", "'1e6' is not a whole number"),
        ("frame_bytes", "16MB", "'16MB' is not a whole number"),
        ("frame_bytes", "9" * 5000, "is not a whole number"),
        ("ping_seconds", "soon", "'soon' is not a number"),
        ("frame_bytes", "0", "0 must be a number above 0"),
        ("frame_bytes", "-1", "-1 must be a number above 0"),
        ("ping_seconds", "inf", "inf must be a number above 0 and below"),
        ("ping_seconds", "nan", "nan must be a number above 0 and below"),
        ("frame_bytes", str(2**53), r"below 2\*\*53"),
    ],
)
def test_limits_that_cannot_be_used(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"limit {name}: .*{message}"):
        parse_limits({name: text})


# --- Single values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "port"), [("0", 0), ("9000", 9000), ("65535", 65535), ("00080", 80)])
def test_ports(text: str, port: int) -> None:
    assert parse_port(text) == port


@pytest.mark.parametrize("text", ["", "-1", "65536", "80.0", "http", " 80", "\u0664\u0662", "\u00b2", "9" * 5000])
def test_ports_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a whole number from 0 to 65535"):
        parse_port(text)


@pytest.mark.parametrize(
    ("text", "path"), [("", ""), ("/", ""), ("lab", "/lab"), ("/lab/", "/lab"), ("//a//b//", "/a/b"), ("/a b", "/a b")]
)
def test_base_paths(text: str, path: str) -> None:
    assert parse_base_path(text) == path


@pytest.mark.parametrize("text", ["/..", "/a/./b", "/a%20b", "/a?b", "/a#b", "\\a", "https://host/lab?"])
def test_base_paths_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match=r"base path .* must"):
        parse_base_path(text)


@pytest.mark.parametrize(
    ("text", "url"),
    [("https://lab.example", "https://lab.example"), ("http://h:9000/hypha/", "http://h:9000/hypha")],
)
def test_public_base_urls(text: str, url: str) -> None:
    assert parse_public_base_url(text) == url


@pytest.mark.parametrize("text", ["", "lab.example", "ftp://x", "https://", "https:///x", "//x", "https://a b"])
def test_public_base_urls_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="write it as https://host or https://host/path"):
        parse_public_base_url(text)


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("*", ("*",)),
        ("", ()),
        (" , ", ()),
        ("https://a.example", ("https://a.example",)),
        ("https://a.example/ , http://b:8080", ("https://a.example", "http://b:8080")),
        ("HTTPS://A.Example:443,http://b:80,https://c:80", ("https://a.example", "http://b", "https://c:80")),
        ("http://[::1]:9000", ("http://[::1]:9000",)),
        ("http://127.0.0.1", ("http://127.0.0.1",)),
        ("chrome-extension://abcdef", ("chrome-extension://abcdef",)),
        ("*,https://a.example", ("*", "https://a.example")),
    ],
)
def test_origins_are_written_as_browsers_send_them(text: str, origins: tuple[str, ...]) -> None:
    assert parse_origins(text) == origins


@pytest.mark.parametrize("text", ["proxy.example", "192.0.2.1/16", "192.0.2", "*", "192.0.2.1:80"])
def test_proxies_that_are_no_networks(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write it as 192\.0\.2\.1 or as a network"):
        parse_networks(text)


@pytest.mark.parametrize(
    "text",
    [
        *("a.example", "https://", "https://a/b", "https://*.a.example", "null", "https://a:port", "https://ü.example"),
        *("**", "https://u@a.example", "https://a.example?x", "https://a b", "ht tp://a"),
    ],
)
def test_origins_that_no_browser_sends(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write it as https://host or https://host:port \(no patterns\), or \*"):
        parse_origins(text)


@pytest.mark.parametrize("text", ["debug", "INFO", "Warning", "error"])
def test_log_levels(text: str) -> None:
    assert parse_log_level(text) == text.lower()


@pytest.mark.parametrize("text", ["", "trace", "10"])
def test_log_levels_that_do_not_exist(text: str) -> None:
    with pytest.raises(ConfigError, match="choose debug, info, warning or error"):
        parse_log_level(text)


def test_data_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert parse_data_dir("data") == Path("data")
    assert parse_data_dir("~/data") == Path("/home/somebody/data")
    with pytest.raises(ConfigError, match="the home directory is not known; write the path in full"):
        parse_data_dir("~nobody-of-this-name/data")


# --- The whole -------------------------------------------------------------------------------------------------------


def test_the_defaults() -> None:
    config = Config()
    assert (config.host, config.port, config.base_path, config.data_dir) == ("127.0.0.1", 9527, "", Path(".hypha"))
    assert (config.allow_origins, config.listing, config.follow_symlinks) == (("*",), True, False)


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().port = 1  # type: ignore[misc]  # the assignment that must fail


def test_without_environment_there_are_the_defaults() -> None:
    assert Config.from_environment({}) == Config()
    assert Config.from_environment({"PATH": "/bin", "HYPHA_PORT": "", "HYPHA_LIMIT_FRAME_BYTES": ""}) == Config()


def test_the_environment_sets_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "s.yaml").touch()
    monkeypatch.chdir(tmp_path)
    config = Config.from_environment(
        {
            "PATH": "/bin",
            "HYPHA_SERVICES_CONFIG": "s.yaml",
            "HYPHA_STARTUP_FUNCTIONS": "a.py:f 'b c.py:g'",
            "HYPHA_ENABLE_SERVER_APPS": "yes",
            "HYPHA_CHROMIUM_PATH": "/opt/chrome",
            "HYPHA_HOST": "0.0.0.0",
            "HYPHA_PORT": "9000",
            "HYPHA_BASE_PATH": "lab/",
            "HYPHA_PUBLIC_BASE_URL": "https://lab.example/",
            "HYPHA_DATA_DIR": "state",
            "HYPHA_STATIC_MOUNTS": "/tools:web",
            "HYPHA_LISTING": "no",
            "HYPHA_FOLLOW_SYMLINKS": "1",
            "HYPHA_ALLOW_ORIGINS": "https://a.example,https://b.example",
            "HYPHA_TRUSTED_PROXIES": "192.0.2.1, 2001:db8::/32",
            "HYPHA_LOG_LEVEL": "DEBUG",
            "HYPHA_OWNER_LINK": "1",
            "HYPHA_OIDC_ISSUER": "https://id.example/realms/lab",
            "HYPHA_OIDC_CLIENT_ID": "hypha",
            "HYPHA_OIDC_CLIENT_SECRET": "canary",
            "HYPHA_OIDC_DOMAINS": "lab.example, Example.org",
            "HYPHA_LIMIT_FRAME_BYTES": "1000",
        }
    )
    assert config == Config(
        host="0.0.0.0",
        port=9000,
        base_path="/lab",
        public_base_url="https://lab.example",
        data_dir=Path("state"),
        static_mounts=(Mount("/tools", tmp_path / "web"),),
        listing=False,
        follow_symlinks=True,
        allow_origins=("https://a.example", "https://b.example"),
        trusted_proxies=("192.0.2.1/32", "2001:db8::/32"),
        log_level="debug",
        services_config=Path("s.yaml"),
        startup_functions=("a.py:f", "b c.py:g"),
        enable_server_apps=True,
        owner_link=True,
        chromium_path="/opt/chrome",
        oidc_issuer="https://id.example/realms/lab",
        oidc_client_id="hypha",
        oidc_client_secret="canary",
        oidc_domains=("lab.example", "example.org"),
        limits=replace(Limits(), frame_bytes=1000),
    )
    untouched = [item.name for item in fields(Config) if getattr(config, item.name) == getattr(Config(), item.name)]
    assert untouched == []


def test_mounts_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "my files", "back\\slash"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    config = Config.from_environment({"HYPHA_STATIC_MOUNTS": " /a:a '/b:my files'\n/c:back\\slash /d:./\"my files\" "})
    assert [(mount.path, mount.directory.name) for mount in config.static_mounts] == [
        ("/a", "a"),
        ("/b", "my files"),
        ("/c", "back\\slash"),
        ("/d", "my files"),
    ]
    with pytest.raises(ConfigError, match="a quote is not closed"):
        Config.from_environment({"HYPHA_STATIC_MOUNTS": "/a:it's"})


@pytest.mark.parametrize("text", ["1", "true", "Yes", "ON"])
def test_switches_on(text: str) -> None:
    assert Config.from_environment({"HYPHA_FOLLOW_SYMLINKS": text}).follow_symlinks


@pytest.mark.parametrize("text", ["0", "false", "No", "OFF"])
def test_switches_off(text: str) -> None:
    assert not Config.from_environment({"HYPHA_LISTING": text}).listing


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("HYPHA_LISTING", "maybe", "HYPHA_LISTING='maybe': write 1 or 0"),
        ("HYPHA_PORT", "http", "port 'http'"),
        ("HYPHA_LIMIT_NOTHING", "1", "unknown limit 'nothing'"),
        ("HYPHA_STATIC_MOUNTS", "/x:/no/such/directory", "there is no directory /no/such/directory"),
        ("HYPHA_ALLOW_ORIGINS", "a.example", "origin 'a.example'"),
        ("HYPHA_SERVICES_CONFIG", "/no/such/file", "the services file '/no/such/file' cannot be read"),
        ("HYPHA_OIDC_ISSUER", "id.example", "OpenID Connect issuer 'id.example'"),
        ("HYPHA_OIDC_DOMAINS", "a b", "e-mail domain 'a b'"),
        ("HYPHA_STARTUP_FUNCTIONS", "'a", 'HYPHA_STARTUP_FUNCTIONS="\'a": a quote is not closed'),
    ],
)
def test_what_the_environment_says_wrongly(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.from_environment({name: text})


_TEXT = st.text(min_size=1, max_size=12)

_CONFIGS = st.builds(
    Config,
    host=_TEXT,
    port=st.integers(0, 65535),
    base_path=st.sampled_from(["", "/lab", "/a b/ü"]),
    public_base_url=st.none() | _TEXT,
    data_dir=st.builds(Path, _TEXT),
    static_mounts=st.lists(st.builds(Mount, _TEXT, st.builds(Path, _TEXT)), max_size=3).map(tuple),
    listing=st.booleans(),
    follow_symlinks=st.booleans(),
    allow_origins=st.lists(_TEXT, max_size=3).map(tuple),
    trusted_proxies=st.lists(_TEXT, max_size=3).map(tuple),
    log_level=_TEXT,
    services_config=st.none() | st.builds(Path, _TEXT),
    startup_functions=st.lists(_TEXT, max_size=3).map(tuple),
    enable_server_apps=st.booleans(),
    owner_link=st.booleans(),
    chromium_path=st.none() | _TEXT,
    oidc_issuer=st.none() | _TEXT,
    oidc_client_id=st.none() | _TEXT,
    oidc_client_secret=st.none() | _TEXT,
    oidc_domains=st.lists(_TEXT, max_size=3).map(tuple),
    environ=st.dictionaries(_TEXT, _TEXT, max_size=3),
    limits=st.builds(Limits),
)


# --- OpenID Connect ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "https://id.example",
        "https://id.example/",
        "https://id.example:8443/realms/lab",
        "https://ID.example",
        "http://localhost:8080/realms/lab",
        "http://127.0.0.1:1",
        "http://127.1.2.3",
        "http://[::1]:1",
    ],
)
def test_an_issuer_is_kept_as_it_is_written(text: str) -> None:
    assert parse_issuer(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "id.example", "https://", "https:///a", "ftp://id.example", "javascript:alert(1)", "https://[::1"),
        *(
            "https://a.example?b=c",
            "https://a.example#b",
            "https://a:b@id.example",
            "https://a.example:x",
            "https://a b",
        ),
    ],
)
def test_what_is_no_issuer(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"issuer {text!r}: write it as https://host or https://host/path")):
        parse_issuer(text)


@pytest.mark.parametrize("host", ["id.example", "10.0.0.1", "localhost.evil.example", "127.0.0.1.evil.example"])
def test_elsewhere_an_issuer_speaks_https(host: str) -> None:
    with pytest.raises(ConfigError, match="only https is safe, except on the machine itself"):
        parse_issuer(f"http://{host}")


def test_domains() -> None:
    assert parse_domains(" Lab.Example, example.org ,") == ("lab.example", "example.org")
    assert (parse_domains("*"), parse_domains("")) == (("*",), ())
    for wrong in ("*.example.org", "@example.org", "a b", "example.org.", "ada@example.org", "a..b"):
        with pytest.raises(ConfigError, match=re.escape(f"e-mail domain {wrong!r}: write it as lab.example")):
            parse_domains(wrong)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"oidc_issuer": "https://a"}, "--oidc-issuer needs --oidc-client-id"),
        ({"oidc_issuer": "https://a", "oidc_client_id": ""}, "--oidc-issuer needs --oidc-client-id"),
        ({"oidc_client_id": "a"}, "--oidc-client-id needs --oidc-issuer"),
        ({"oidc_client_secret": "canary"}, "HYPHA_OIDC_CLIENT_SECRET needs --oidc-issuer"),
        ({"oidc_domains": ("*",)}, "--oidc-domains needs --oidc-issuer"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        Config(**settings).check()
    assert "canary" not in str(caught.value)


def test_settings_that_go_together() -> None:
    Config().check()
    Config(oidc_issuer="https://a", oidc_client_id="b").check()
    Config(oidc_issuer="https://a", oidc_client_id="b", oidc_client_secret="c", oidc_domains=("*",)).check()


def test_the_secret_is_not_shown_and_not_passed_on() -> None:
    config = Config.from_environment({"PATH": "/bin", "HYPHA_OIDC_CLIENT_SECRET": "canary"})
    assert config.oidc_client_secret == "canary"
    assert "canary" not in repr(config)
    assert config.environ == {"PATH": "/bin"}


# --- JSON -------------------------------------------------------------------------------------------------------------


@given(_CONFIGS)
def test_json_and_back(config: Config) -> None:
    text = config.to_json()
    assert "\n" not in text
    assert text.isascii()
    assert Config.from_json(text) == config
    assert Config.from_json(text).environ == config.environ


def test_json_keeps_a_directory_whose_name_is_not_utf8() -> None:
    config = Config(data_dir=Path(os.fsdecode(b"caf\xe9")))
    assert os.fsencode(Config.from_json(config.to_json()).data_dir) == b"caf\xe9"
