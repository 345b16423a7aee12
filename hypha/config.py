"""The configuration: built once, frozen, passed in. Two servers fit in one process.

This module is the only reader of the environment, and uses the standard library only, because the parent process
imports it (``decisions.md`` 1).
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from hypha.errors import ConfigError

KIB = 1024
MIB = 1024 * KIB

#: First path segments that belong to the server (``protocol.md`` 8.1), and therefore name neither a mount nor a
#: workspace.
RESERVED_NAMES = frozenset(
    {"ws", "rpc", "health", "api", "apps", "assets", "login", "static", "workspaces", "services", "metrics"}
    | {"api-docs", "api-redoc", "account", "share"}
)

#: First path segments that no mount may take. ``public`` is a workspace, and a mount would hide its services.
_NOT_MOUNTED = RESERVED_NAMES | {"public"}

#: What programs that start with the server see of its environment. The rest is the server's own business: among it may
#: be secrets. An entry of the services file adds what its program needs beyond this.
PASSED_ON = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TMP", "TEMP", "TERM"}
    | {"VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "LD_LIBRARY_PATH", "DISPLAY"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}
    | {"PLAYWRIGHT_BROWSERS_PATH"}
    | {"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"}
    | {"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"}
)
PASSED_ON_PREFIXES = ("LC_", "XDG_", "CUDA_", "NVIDIA_")

#: What a browser sends as Origin: scheme, host and perhaps a port.
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_DOMAIN = re.compile(r"[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True, slots=True)
class Limits:
    """Every limit of the server. Sizes in bytes, times in seconds, the rest are counts.

    Each can be set with ``--limit NAME=VALUE`` or the environment variable ``HYPHA_LIMIT_NAME``, and its name
    stands in the error that reaching it causes. ``docs/reference.md`` describes them one by one.
    """

    connections: int = 10_000
    frame_bytes: int = 16 * MIB
    header_bytes: int = 64 * KIB
    header_keys: int = 64
    header_depth: int = 32
    python_frame_bytes: int = 1_024_000  # their library takes 1 MiB, their decoder of either value less
    modern_python_frame_bytes: int = 524_288  # their decoder takes no larger value
    handshake_seconds: float = 10.0
    outbox_bytes: int = 16 * MIB
    outbox_reserve_bytes: int = 1 * MIB
    stall_seconds: float = 10.0
    ping_seconds: float = 20.0
    silence_seconds: float = 45.0
    busy_silence_seconds: float = 600.0
    turn_frames: int = 64
    turn_seconds: float = 0.0005
    turn_connections: int = 4
    server_calls_per_peer: int = 100
    server_call_bytes_per_peer: int = 64 * MIB
    inflight_per_peer: int = 4096
    correspondents_per_peer: int = 4096
    chunked_messages_per_peer: int = 64
    chunked_bytes_per_peer: int = 256 * MIB
    sessions_per_workspace: int = 1000
    sessions_per_principal: int = 100
    services_per_session: int = 500
    services_per_workspace: int = 10_000
    description_bytes: int = 64 * KIB
    descriptions_bytes_per_session: int = 4 * MIB
    list_bytes: int = 4 * MIB
    subscriptions_per_session: int = 500
    workspaces_per_principal: int = 100
    anonymous_workspaces: int = 1000
    anonymous_workspaces_per_principal: int = 10
    service_types_bytes_per_workspace: int = 256 * KIB
    bookmarks_bytes_per_workspace: int = 64 * KIB
    environment_bytes_per_workspace: int = 64 * KIB
    event_bytes: int = 16 * KIB
    events_bytes_per_workspace: int = 256 * KIB
    call_seconds: float = 60.0
    http_body_bytes: int = 100 * MIB
    http_bodies_bytes: int = 512 * MIB
    http_body_seconds: float = 60.0
    http_body_bytes_per_second: int = 1000
    app_finish_seconds: float = 30.0
    json_array_bytes: int = 1 * MIB
    token_seconds: float = 10800.0
    token_depth: int = 16
    listed_tokens: int = 20_000
    listed_tokens_per_principal: int = 1000
    revoked_tokens: int = 100_000
    revoked_tokens_per_principal: int = 1000
    reconnection_token_seconds: float = 172800.0
    login_keys: int = 2000
    login_seconds: float = 180.0
    accounts: int = 10_000
    invitations: int = 1000
    invitation_seconds: float = 86400.0
    sign_in_tries: int = 10
    sign_in_tries_per_account: int = 100
    sign_in_tries_per_address: int = 60
    bad_tokens_per_address: int = 60
    browsers_per_account: int = 20
    browser_seconds: float = 2592000.0
    oidc_attempts: int = 5000
    oidc_attempt_seconds: float = 600.0
    tokens_per_account: int = 200
    shares_per_account: int = 100
    app_source_bytes: int = 1 * MIB
    apps_per_user: int = 100
    installed_apps: int = 1000
    running_apps: int = 50
    running_apps_per_user: int = 20
    app_log_lines: int = 2048
    app_launch_seconds: float = 120.0
    app_idle_seconds: float = 1800.0
    session_grace: float = 3600.0
    suspended_sessions: int = 10_000
    suspended_per_principal: int = 100
    reclaim_seconds: float = 60.0
    return_seconds: float = 10.0
    returning_requests: int = 1000
    drain_seconds: float = 3.0


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory served as static files below *path* (``/tools``, or ``/`` for the whole site)."""

    path: str
    directory: Path


def parse_mount(text: str, base: Path) -> Mount:
    """Parse ``/path:directory``.

    The path ends at the first colon after its leading slash, so a directory may hold colons (``C:\\x``). A
    relative directory is taken from *base*. Raises :class:`ConfigError` naming the resolved directory when there
    is none that can be read.
    """
    path, colon, directory = text.partition(":")
    if not path.startswith("/") or not colon or not directory or "\0" in directory:
        raise ConfigError(f"static mount {text!r}: write it as /path:directory, for example /tools:./webtools")
    segments = _parse_segments(f"static mount {text!r}: the path", path)
    if segments and segments[0] in _NOT_MOUNTED:
        raise ConfigError(f"static mount {text!r}: /{segments[0]} belongs to the server; choose another path")
    resolved = os.path.realpath(base / os.path.expanduser(directory))
    effective = os.access in os.supports_effective_ids
    if not os.path.isdir(resolved) or not os.access(resolved, os.R_OK | os.X_OK, effective_ids=effective):
        raise ConfigError(f"static mount {text!r}: there is no directory {resolved} that can be read")
    return Mount("/" + "/".join(segments), Path(resolved))


def _parse_segments(what: str, path: str) -> list[str]:
    """The segments of a URL path as people read it. Refuses what a request could not name, or would name otherwise."""
    segments = [segment for segment in path.split("/") if segment]
    if any(segment in {".", ".."} for segment in segments):
        raise ConfigError(f"{what} must not contain '.' or '..'")
    if any(character in "\\%?#" or not character.isprintable() for character in path):
        raise ConfigError(f"{what} must be plain text without \\ % ? # (a space is written as a space)")
    return segments


def parse_mounts(texts: list[str], base: Path) -> tuple[Mount, ...]:
    """Parse every mount and refuse two on one path. Raises :class:`ConfigError`."""
    mounts: dict[str, Mount] = {}
    for text in texts:
        mount = parse_mount(text, base)
        if mount.path in mounts:
            raise ConfigError(f"static mount {text!r}: {mount.path} is already mounted; use another path")
        mounts[mount.path] = mount
    return tuple(mounts.values())


def parse_limits(pairs: Mapping[str, str], base: Limits | None = None) -> Limits:
    """Apply ``name -> text`` pairs to *base*. Raises :class:`ConfigError` for an unknown name or a bad number."""
    limits = base or Limits()
    kinds = {item.name: type(getattr(limits, item.name)) for item in fields(Limits)}
    values: dict[str, Any] = {}
    for name, text in pairs.items():
        if name not in kinds:
            raise ConfigError(f"unknown limit {name!r}; the limits are {', '.join(sorted(kinds))}")
        try:
            values[name] = kinds[name](text)
        except ValueError:
            kind = "whole number" if kinds[name] is int else "number"
            raise ConfigError(f"limit {name}: {text!r} is not a {kind}") from None
        if not 0 < values[name] < 2**53:
            raise ConfigError(f"limit {name}: {text} must be a number above 0 and below 2**53")
    return replace(limits, **values)


@dataclass(frozen=True, slots=True)
class Config:
    """What a server is told before it starts.

    *base_path* is empty or begins with a slash and does not end with one. *public_base_url* is told to clients
    as information (``protocol.md`` 1.1); without it they are told the address that they connected to.
    *services_config* is a file that can be read, and *startup_functions* are ``module_or_file:function``; what they
    hold is checked by the process that serves. *chromium_path* is the browser in which apps run, a name or a path;
    without it one is looked for. *trusted_proxies* are networks of whose machines it is believed for whom they ask.
    *owner_link*: each start invites an administrator. *oidc_issuer* is the OpenID Connect
    provider at which people can sign in, and *oidc_domains* are the domains of e-mail addresses that make an account
    there without an invitation, ``*`` for all. *environ* is what the programs that start with the server see of the
    environment (:data:`PASSED_ON`); it says where the server runs, not what it is told.
    """

    host: str = "127.0.0.1"
    port: int = 9527
    base_path: str = ""
    public_base_url: str | None = None
    data_dir: Path = Path(".hypha")
    static_mounts: tuple[Mount, ...] = ()
    listing: bool = True
    follow_symlinks: bool = False
    allow_origins: tuple[str, ...] = ("*",)
    trusted_proxies: tuple[str, ...] = ()
    log_level: str = "info"
    services_config: Path | None = None
    startup_functions: tuple[str, ...] = ()
    enable_server_apps: bool = False
    chromium_path: str | None = None
    owner_link: bool = False
    oidc_issuer: str | None = None
    oidc_client_id: str | None = None
    oidc_client_secret: str | None = field(default=None, repr=False)
    oidc_domains: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    environ: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def to_json(self) -> str:
        """One line of JSON from which :meth:`from_json` builds an equal configuration."""
        document = {item.name: getattr(self, item.name) for item in fields(self)}
        document["data_dir"] = str(self.data_dir)
        document["services_config"] = None if self.services_config is None else str(self.services_config)
        document["environ"] = dict(self.environ)
        document["static_mounts"] = [[mount.path, str(mount.directory)] for mount in self.static_mounts]
        document["limits"] = {item.name: getattr(self.limits, item.name) for item in fields(Limits)}
        return json.dumps(document)

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The inverse of :meth:`to_json`."""
        document = json.loads(text)
        document["data_dir"] = Path(document["data_dir"])
        document["static_mounts"] = tuple(Mount(path, Path(name)) for path, name in document["static_mounts"])
        document["allow_origins"] = tuple(document["allow_origins"])
        document["trusted_proxies"] = tuple(document["trusted_proxies"])
        document["startup_functions"] = tuple(document["startup_functions"])
        document["oidc_domains"] = tuple(document["oidc_domains"])
        if document["services_config"] is not None:
            document["services_config"] = Path(document["services_config"])
        document["limits"] = Limits(**document["limits"])
        return cls(**document)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Config:
        """The configuration of ``hypercorn hypha.server:app``, which has no command line of ours.

        Reads ``HYPHA_HOST``, ``HYPHA_PORT``, ``HYPHA_BASE_PATH``, ``HYPHA_PUBLIC_BASE_URL``, ``HYPHA_DATA_DIR``,
        ``HYPHA_STATIC_MOUNTS`` (separated by spaces or line ends; one that holds spaces in quotes),
        ``HYPHA_LISTING``, ``HYPHA_FOLLOW_SYMLINKS``,
        ``HYPHA_ALLOW_ORIGINS`` and ``HYPHA_TRUSTED_PROXIES`` (separated by commas), ``HYPHA_LOG_LEVEL``,
        ``HYPHA_SERVICES_CONFIG``,
        ``HYPHA_STARTUP_FUNCTIONS`` (separated like the mounts), ``HYPHA_ENABLE_SERVER_APPS``,
        ``HYPHA_CHROMIUM_PATH``, ``HYPHA_OWNER_LINK``, ``HYPHA_OIDC_ISSUER``, ``HYPHA_OIDC_CLIENT_ID``,
        ``HYPHA_OIDC_DOMAINS`` and ``HYPHA_LIMIT_<NAME>``, which are also the defaults of the command line, and
        ``HYPHA_OIDC_CLIENT_SECRET``, for which that has no option. An empty one counts as absent. Raises
        :class:`ConfigError`.
        """
        prefix = "HYPHA_"
        set_ones = {name: text for name, text in environ.items() if name.startswith(prefix) and text}
        given = {name[len(prefix) :].lower(): text for name, text in set_ones.items()}
        limits = {name[len("limit_") :]: text for name, text in given.items() if name.startswith("limit_")}
        values: dict[str, Any] = {"limits": parse_limits(limits), "environ": _passed_on(environ)}
        if given.get("host"):
            values["host"] = given["host"]
        if given.get("public_base_url"):
            values["public_base_url"] = parse_public_base_url(given["public_base_url"])
        if given.get("log_level"):
            values["log_level"] = parse_log_level(given["log_level"])
        if given.get("port"):
            values["port"] = parse_port(given["port"])
        if given.get("base_path"):
            values["base_path"] = parse_base_path(given["base_path"])
        if given.get("data_dir"):
            values["data_dir"] = parse_data_dir(given["data_dir"])
        if given.get("static_mounts"):
            values["static_mounts"] = parse_mounts(_split("HYPHA_STATIC_MOUNTS", given["static_mounts"]), Path.cwd())
        if given.get("services_config"):
            values["services_config"] = parse_services_config(given["services_config"])
        if given.get("startup_functions"):
            values["startup_functions"] = tuple(_split("HYPHA_STARTUP_FUNCTIONS", given["startup_functions"]))
        if given.get("chromium_path"):
            values["chromium_path"] = os.path.expanduser(given["chromium_path"])
        for name in ("listing", "follow_symlinks", "enable_server_apps", "owner_link"):
            if given.get(name):
                values[name] = _parse_flag(f"HYPHA_{name.upper()}", given[name])
        if given.get("allow_origins"):
            values["allow_origins"] = parse_origins(given["allow_origins"])
        if given.get("trusted_proxies"):
            values["trusted_proxies"] = parse_networks(given["trusted_proxies"])
        if given.get("oidc_issuer"):
            values["oidc_issuer"] = parse_issuer(given["oidc_issuer"])
        if given.get("oidc_domains"):
            values["oidc_domains"] = parse_domains(given["oidc_domains"])
        for name in ("oidc_client_id", "oidc_client_secret"):
            if given.get(name):
                values[name] = given[name]
        return cls(**values)

    def check(self) -> None:
        """Raise :class:`ConfigError` for settings that do not go together."""
        if self.oidc_issuer is not None and not self.oidc_client_id:
            raise ConfigError("--oidc-issuer needs --oidc-client-id, under which its provider knows this server")
        rest = {
            "--oidc-client-id": self.oidc_client_id,
            "HYPHA_OIDC_CLIENT_SECRET": self.oidc_client_secret,
            "--oidc-domains": self.oidc_domains,
        }
        idle = [name for name, value in rest.items() if value]
        if self.oidc_issuer is None and idle:
            raise ConfigError(f"{idle[0]} needs --oidc-issuer, the address of the OpenID Connect provider")


def parse_port(text: str) -> int:
    """A TCP port, 0 meaning any free one. Raises :class:`ConfigError`."""
    if not text.isascii() or not text.isdigit() or len(text) > 5 or int(text) > 65535:
        raise ConfigError(f"port {text!r} must be a whole number from 0 to 65535")
    return int(text)


def parse_base_path(text: str) -> str:
    """``/lab/``, ``lab`` and ``/lab`` all become ``/lab``; ``/`` becomes the empty string. Raises ConfigError."""
    return "".join(f"/{segment}" for segment in _parse_segments(f"base path {text!r}", text))


def parse_public_base_url(text: str) -> str:
    """``https://lab.example/hypha/`` without its last slash. Raises :class:`ConfigError` for what is no such URL."""
    scheme, _, rest = text.partition("://")
    if scheme not in {"http", "https"} or not rest.partition("/")[0] or any(letter.isspace() for letter in text):
        raise ConfigError(f"public base URL {text!r}: write it as https://host or https://host/path")
    return text.rstrip("/")


def parse_issuer(text: str) -> str:
    """The address of an OpenID Connect provider, as it is: providers compare it letter by letter.

    It is https, or http on the machine itself. Raises :class:`ConfigError`.
    """
    try:
        address = urlsplit(text)
        host, _ = address.hostname, address.port
    except ValueError:
        address, host = SplitResult("", "", "", "", ""), None
    odd = address.query or address.fragment or address.username or any(not "!" <= letter <= "~" for letter in text)
    if not host or odd or address.scheme not in {"http", "https"}:
        raise ConfigError(f"OpenID Connect issuer {text!r}: write it as https://host or https://host/path")
    if address.scheme == "http" and not is_loopback(host):
        raise ConfigError(f"OpenID Connect issuer {text!r}: only https is safe, except on the machine itself")
    return text


def is_loopback(host: str) -> bool:
    """Whether *host* is this very machine, whoever is asked."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def parse_domains(text: str) -> tuple[str, ...]:
    """Domains of e-mail addresses, separated by commas, or ``*``. Raises :class:`ConfigError`."""
    found = tuple(item.strip().lower() for item in text.split(",") if item.strip())
    for item in found:
        if item != "*" and not _DOMAIN.fullmatch(item):
            raise ConfigError(f"e-mail domain {item!r}: write it as lab.example (no patterns), or * for everybody")
    return found


def parse_networks(text: str) -> tuple[str, ...]:
    """Network addresses, and networks of them, separated by commas. Raises :class:`ConfigError`."""
    return tuple(_parse_network(item.strip()) for item in text.split(",") if item.strip())


def _parse_network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ConfigError(f"proxy {text!r}: write it as 192.0.2.1 or as a network, 192.0.2.0/24") from error


def parse_origins(text: str) -> tuple[str, ...]:
    """Origins separated by commas, or ``*``; no origin at all when *text* is empty.

    They become what browsers send: lower case, no default port. Raises :class:`ConfigError` for what no browser
    sends, and for patterns.
    """
    return tuple(_parse_origin(item.strip()) for item in text.split(",") if item.strip())


def _parse_origin(text: str) -> str:
    if text == "*":
        return text
    match = _ORIGIN.fullmatch(text.lower().rstrip("/"))
    if match is None:
        raise ConfigError(f"origin {text!r}: write it as https://host or https://host:port (no patterns), or *")
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" if port in {None, _DEFAULT_PORTS.get(scheme)} else f"{scheme}://{host}:{port}"


def parse_log_level(text: str) -> str:
    """One of debug, info, warning, error. Raises :class:`ConfigError`."""
    if text.lower() not in {"debug", "info", "warning", "error"}:
        raise ConfigError(f"log level {text!r}: choose debug, info, warning or error")
    return text.lower()


def _parse_flag(name: str, text: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in known:
        raise ConfigError(f"{name}={text!r}: write 1 or 0")
    return known[text.lower()]


def parse_data_dir(text: str) -> Path:
    """A directory, which need not exist yet. Raises :class:`ConfigError` when it begins with an unknown ``~name``."""
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ConfigError(f"data directory {text!r}: the home directory is not known; write the path in full")
    return Path(expanded)


def parse_services_config(text: str) -> Path:
    """A file that can be read; what it holds is checked by the process that serves. Raises :class:`ConfigError`."""
    path = Path(os.path.expanduser(text))
    try:
        with open(path, "rb"):
            return path
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"the services file {text!r} cannot be read ({reason})") from None


def _passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in environ.items() if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)}


def _split(name: str, text: str) -> list[str]:
    """Split at white space, except in quotes. A backslash means itself: it separates directories on Windows."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="")
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
    try:
        return list(lexer)
    except ValueError:
        raise ConfigError(f"{name}={text!r}: a quote is not closed") from None
