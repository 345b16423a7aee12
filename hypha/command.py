"""The command line of ``python -m hypha.server``: from arguments and environment to a :class:`Command`.

Standard library only, because the parent process imports it. Every flag of the servers whose place this one takes
is known here: it works, or it is answered with one honest line (``promises.md`` B1).
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from hypha import __version__
from hypha.config import (
    Config,
    parse_base_path,
    parse_data_dir,
    parse_domains,
    parse_issuer,
    parse_limits,
    parse_log_level,
    parse_mounts,
    parse_networks,
    parse_origins,
    parse_port,
    parse_public_base_url,
    parse_services_config,
)
from hypha.errors import ConfigError

# sd_listen_fds(3): the first inherited socket.
_FIRST_LISTEN_FD = 3

_NO_STORE = "there is no object store here; serve files from a directory with --static-mounts"

#: Flags that ask for something which this server would silently lack. They end the start: (values, why).
REFUSED: dict[str, tuple[int | str, str]] = {
    "--redis-uri": (1, "servers are not joined through Redis here: one server keeps its state in its --data-dir"),
    "--triton-servers": ("+", "Triton is not proxied here; offer the model from a Python program that connects"),
    "--enable-s3": (0, _NO_STORE),
    "--endpoint-url": (1, _NO_STORE),
    "--endpoint-url-public": (1, _NO_STORE),
    "--access-key-id": (1, _NO_STORE),
    "--secret-access-key": (1, _NO_STORE),
    "--rdf-bucket": (1, _NO_STORE),
    "--workspace-bucket": (1, _NO_STORE),
}

#: Flags without which nothing is missing. They are answered with a line, and the server starts: (values, why).
NEEDLESS: dict[str, tuple[int | str, str]] = {
    "--in-docker": (0, "nothing needs to be set for a container"),
    "--reset-redis": (
        0,
        "there is no Redis here and nothing was reset; to start afresh, remove the data directory while stopped",
    ),
    "--redis-port": (1, "there is no Redis here"),
    "--apps-dir": (1, "apps are kept in the data directory"),
    "--executable-path": (1, "this server needs no other programs"),
}


@dataclass(frozen=True, slots=True)
class Command:
    """What the command line asks for.

    *fds* are listening sockets that somebody else opened; when there are any, host and port of *config* are not
    bound. *issue_admin_token*: print a token and end, in the place of serving. *notices* are lines for the person who
    started the server.
    """

    config: Config
    fds: tuple[int, ...] = ()
    single_process: bool = False
    issue_admin_token: bool = False
    notices: tuple[str, ...] = ()
    #: Where to copy the data directory to, instead of serving.
    backup: Path | None = None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """argparse prints its whole usage here, which hides the one line that matters."""
        raise ConfigError(f"{message}; --help lists the options")


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Command:
    """Understand the command line; the environment (:meth:`Config.from_environment`) gives the defaults.

    Raises :class:`ConfigError` with one line, or one for each refused flag; raises SystemExit(0) after ``--help``
    and ``--version``.
    """
    defaults = Config.from_environment(environ)
    parser = _build_parser(defaults)
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigError(_unknown_text(unknown, parser))
    given = [flag for flag in (*REFUSED, *NEEDLESS) if _given(options, flag)]
    refused = [f"{flag}: {REFUSED[flag][1]}; leave it out" for flag in given if flag in REFUSED]
    if refused:
        raise ConfigError("\n".join(refused))
    return Command(
        config=_to_config(options, defaults),
        fds=tuple(options.fd) if options.fd else _listen_fds(environ),
        single_process=options.single_process,
        issue_admin_token=options.issue_admin_token,
        notices=tuple(f"{flag} is not needed: {NEEDLESS[flag][1]}" for flag in given if flag in NEEDLESS),
        backup=Path(os.path.expanduser(options.backup)) if options.backup else None,
    )


def _build_parser(defaults: Config) -> _Parser:
    parser = _Parser(
        prog="hypha",
        allow_abbrev=False,
        description="Offer Python and JavaScript functions to the world through one server.",
        epilog="Each option can also be set in the environment: HYPHA_PORT=9000 for --port 9000 and so on.",
    )
    parser.add_argument("--version", action="version", version=f"hypha {__version__}")
    _add_address_options(parser, defaults)
    _add_serving_options(parser, defaults)
    _add_oidc_options(parser)
    _add_start_options(parser)
    _add_process_options(parser)
    for flag, (values, _) in (REFUSED | NEEDLESS).items():
        if values == 0:
            parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
        else:
            parser.add_argument(flag, nargs=values, help=argparse.SUPPRESS)
    return parser


def _add_address_options(parser: argparse.ArgumentParser, defaults: Config) -> None:
    group = parser.add_argument_group("address")
    group.add_argument("--host", help=f"name or address to listen on; 0.0.0.0 is the network (now {defaults.host})")
    group.add_argument("--port", help=f"port to listen on; 0 takes a free one (now {defaults.port})")
    group.add_argument("--base-path", metavar="PATH", help="path below which the server lives, for example /hypha")
    group.add_argument("--public-base-url", metavar="URL", help="address that clients are told, behind a proxy")
    group.add_argument("--allow-origins", metavar="ORIGINS", help="web origins, separated by commas, or *")
    group.add_argument(
        "--trusted-proxies", metavar="NETWORKS", help="proxies in front, by whose word a client's address is known"
    )


def _add_serving_options(parser: argparse.ArgumentParser, defaults: Config) -> None:
    group = parser.add_argument_group("what is served")
    group.add_argument(
        "--static-mounts",
        metavar="/PATH:DIR",
        nargs="+",
        action="extend",
        help="serve DIR below /PATH; several values, and several times",
    )
    group.add_argument("--listing", action=argparse.BooleanOptionalAction, help="list directories without index.html")
    group.add_argument(
        "--follow-symlinks", action=argparse.BooleanOptionalAction, help="serve what links out of a mount point to"
    )
    group.add_argument(
        "--enable-server-apps", action="store_true", help="let clients run programs in a browser on this machine"
    )
    group.add_argument("--chromium-path", metavar="PATH", help="the browser for them, if another than is found")
    group.add_argument("--data-dir", metavar="DIR", help=f"what survives a restart (now {defaults.data_dir})")
    group.add_argument(
        "--owner-link",
        action="store_true",
        help="print a link that makes an administrator's account, also when one is there",
    )
    group.add_argument("--limit", metavar="NAME=VALUE", action="append", help="set one limit; several times")


def _add_oidc_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "signing in with OpenID Connect", "The client secret, if there is one, is in HYPHA_OIDC_CLIENT_SECRET."
    )
    group.add_argument("--oidc-issuer", metavar="URL", help="the provider at which people can sign in")
    group.add_argument("--oidc-client-id", metavar="ID", help="under which the provider knows this server")
    group.add_argument(
        "--oidc-domains",
        metavar="DOMAINS",
        help="e-mail domains that need no invitation, separated by commas; * is everybody whom the provider signs in",
    )


def _add_start_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what starts with the server")
    group.add_argument("--services-config", metavar="FILE", help="services to start, in YAML: programs and functions")
    group.add_argument(
        "--startup-functions",
        metavar="FILE:FUNCTION",
        nargs="+",
        action="extend",
        help="functions to run, of a file or a module; several values, and several times",
    )


def _add_process_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("process")
    group.add_argument(
        "--backup",
        metavar="FILE",
        help="copy the data directory into the tar file FILE, also while in use, and end",
    )
    group.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    group.add_argument(
        "--fd", metavar="N", type=_descriptor, action="append", help="serve on the listening socket N, inherited"
    )
    group.add_argument(
        "--single-process", action="store_true", help="serve without a parent process: no restart after a crash"
    )
    group.add_argument(
        "--issue-admin-token",
        action="store_true",
        help="print a token for administrators of the server with this data directory, and end",
    )


def _descriptor(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 2**31 - 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of an open file")
    return int(text)


def _given(options: argparse.Namespace, flag: str) -> bool:
    return bool(getattr(options, flag[2:].replace("-", "_")))


def _to_config(options: argparse.Namespace, defaults: Config) -> Config:
    values: dict[str, Any] = {}
    if options.host is not None:
        values["host"] = options.host
    if options.port is not None:
        values["port"] = parse_port(options.port)
    if options.base_path is not None:
        values["base_path"] = parse_base_path(options.base_path)
    if options.public_base_url is not None:
        values["public_base_url"] = parse_public_base_url(options.public_base_url)
    if options.allow_origins is not None:
        values["allow_origins"] = parse_origins(options.allow_origins)
    if options.static_mounts is not None:
        values["static_mounts"] = parse_mounts(options.static_mounts, Path.cwd())
    if options.listing is not None:
        values["listing"] = options.listing
    if options.follow_symlinks is not None:
        values["follow_symlinks"] = options.follow_symlinks
    if options.data_dir is not None:
        values["data_dir"] = parse_data_dir(options.data_dir)
    if options.limit is not None:
        values["limits"] = parse_limits(dict(_split_limit(text) for text in options.limit), defaults.limits)
    if options.services_config is not None:
        values["services_config"] = parse_services_config(options.services_config)
    if options.startup_functions is not None:
        values["startup_functions"] = tuple(options.startup_functions)
    if options.enable_server_apps:
        values["enable_server_apps"] = True
    if options.owner_link:
        values["owner_link"] = True
    if options.chromium_path is not None:
        values["chromium_path"] = os.path.expanduser(options.chromium_path)
    if options.log_level is not None:
        values["log_level"] = parse_log_level(options.log_level)
    if options.oidc_issuer is not None:
        values["oidc_issuer"] = parse_issuer(options.oidc_issuer)
    if options.oidc_client_id is not None:
        values["oidc_client_id"] = options.oidc_client_id
    if options.trusted_proxies is not None:
        values["trusted_proxies"] = parse_networks(options.trusted_proxies)
    if options.oidc_domains is not None:
        values["oidc_domains"] = parse_domains(options.oidc_domains)
    config = replace(defaults, **values)
    config.check()
    return config


def _split_limit(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--limit {text!r}: write it as NAME=VALUE, for example frame_bytes=1000000")
    return name.strip().lower().replace("-", "_"), value.strip()


def _listen_fds(environ: Mapping[str, str]) -> tuple[int, ...]:
    """The sockets that systemd or a compatible supervisor opened for this very process (sd_listen_fds(3))."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return ()
    count = environ.get("LISTEN_FDS", "")
    if not count.isascii() or not count.isdigit():
        raise ConfigError(f"LISTEN_FDS={count!r} must be the number of sockets that were passed")
    return tuple(range(_FIRST_LISTEN_FD, _FIRST_LISTEN_FD + int(count)))


def _unknown_text(unknown: Sequence[str], parser: argparse.ArgumentParser) -> str:
    import difflib  # not needed by a server that starts

    word = unknown[0].partition("=")[0]
    known = re.findall(r"--[a-z-]+", parser.format_usage())
    near = difflib.get_close_matches(word, [*known, *REFUSED, *NEEDLESS], n=1)
    hint = f"; did you mean {near[0]}?" if near else "; --help lists the options"
    return f"unknown option {word}{hint}"
