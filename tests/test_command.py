"""The command line, without a server: what each option becomes, and what each mistake is answered with."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from hypha import __version__
from hypha.command import NEEDLESS, REFUSED, Command, parse
from hypha.config import Config, Limits, Mount
from hypha.errors import ConfigError

#: The command line of the servers whose place this one takes (``promises.md`` B1).
KNOWN = [
    "--host",
    "--port",
    "--allow-origins",
    "--base-path",
    "--redis-uri",
    "--reset-redis",
    "--redis-port",
    "--public-base-url",
    "--triton-servers",
    "--enable-server-apps",
    "--enable-s3",
    "--in-docker",
    "--endpoint-url",
    "--endpoint-url-public",
    "--access-key-id",
    "--secret-access-key",
    "--apps-dir",
    "--rdf-bucket",
    "--workspace-bucket",
    "--executable-path",
    "--static-mounts",
    "--services-config",
    "--startup-functions",
]


def config(*argv: str, **environ: str) -> Config:
    return parse(argv, environ).config


def refusal(*argv: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(argv, environ)
    return str(caught.value)


def test_a_token_is_asked_for_in_the_place_of_a_server() -> None:
    command = parse(["--issue-admin-token", "--data-dir", "elsewhere", "--limit", "token_seconds=60"], {})
    assert (command.issue_admin_token, command.config.data_dir) == (True, Path("elsewhere"))
    assert command.config.limits.token_seconds == 60


def test_nothing_given_is_the_defaults() -> None:
    assert parse([], {}) == Command(Config())
    assert (Config().host, Config().port) == ("127.0.0.1", 9527)


@pytest.mark.parametrize("flags", [["--port=9000"], ["--port", "9000"]])
def test_a_value_is_joined_or_separate(flags: list[str]) -> None:
    assert config(*flags).port == 9000


def test_every_option_arrives(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").touch()
    command = parse(
        [
            *("--host", "0.0.0.0", "--port", "0", "--base-path", "lab/", "--public-base-url", "https://lab.example/h/"),
            *("--allow-origins", "https://a.example,http://b.example:81", "--static-mounts", f"/t:{tmp_path}"),
            *("--trusted-proxies", "127.0.0.1, 10.0.0.0/8"),
            *("--data-dir", "d", "--no-listing", "--follow-symlinks", "--log-level", "DEBUG", "--single-process"),
            *("--services-config", f"{tmp_path}/s.yaml", "--startup-functions", "a.py:f", "b.c:g"),
            *("--startup-functions", "d:h", "--enable-server-apps", "--chromium-path", "/opt/chrome"),
            *("--oidc-issuer", "https://id.example", "--oidc-client-id", "hypha", "--oidc-domains", "Lab.example,*"),
            *("--owner-link", "--limit", "frame_bytes=1000", "--limit", "drain-seconds=0.5", "--fd", "3", "--fd", "5"),
        ],
        {},
    )
    assert command == Command(
        Config(
            host="0.0.0.0",
            port=0,
            base_path="/lab",
            public_base_url="https://lab.example/h",
            data_dir=Path("d"),
            static_mounts=(Mount("/t", tmp_path),),
            listing=False,
            follow_symlinks=True,
            allow_origins=("https://a.example", "http://b.example:81"),
            trusted_proxies=("127.0.0.1/32", "10.0.0.0/8"),
            log_level="debug",
            services_config=tmp_path / "s.yaml",
            startup_functions=("a.py:f", "b.c:g", "d:h"),
            enable_server_apps=True,
            owner_link=True,
            chromium_path="/opt/chrome",
            oidc_issuer="https://id.example",
            oidc_client_id="hypha",
            oidc_domains=("lab.example", "*"),
            limits=Limits(frame_bytes=1000, drain_seconds=0.5),
        ),
        fds=(3, 5),
        single_process=True,
    )


def test_mounts_are_repeated_listed_and_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "abcd":
        (tmp_path / name).mkdir()
    mounts = tuple(Mount(f"/{name}", tmp_path / name) for name in "abcd")
    one = [word for name in "abcd" for word in ("--static-mounts", f"/{name}:{name}")]
    many = ["--static-mounts", *(f"/{name}:{name}" for name in "abcd")]
    mixed = ["--static-mounts", "/a:a", "/b:b", "--port", "1", "--static-mounts=/c:c", "--static-mounts", "/d:d"]
    for flags in (one, many, mixed):
        assert config(*flags).static_mounts == mounts


def test_the_environment_gives_the_defaults() -> None:
    environ = {"HYPHA_PORT": "9000", "HYPHA_HOST": "::1", "HYPHA_LISTING": "0", "HYPHA_LIMIT_FRAME_BYTES": "10"}
    assert config(**environ) == Config(host="::1", port=9000, listing=False, limits=Limits(frame_bytes=10))
    given = config("--port", "1", "--listing", "--limit", "ping_seconds=9", **environ)
    assert given == Config(host="::1", port=1, limits=Limits(frame_bytes=10, ping_seconds=9))


def test_every_known_option_is_answered(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").touch()
    values = {"--port": "1", "--public-base-url": "http://a", "--static-mounts": f"/a:{tmp_path}"}
    values["--services-config"] = f"{tmp_path}/s.yaml"
    values["--oidc-issuer"] = "https://id.example"
    provider = {"HYPHA_OIDC_ISSUER": "https://id.example", "HYPHA_OIDC_CLIENT_ID": "hypha"}
    for flag in KNOWN:
        takes_value = (REFUSED | NEEDLESS).get(flag, (1, ""))[0] != 0 and flag != "--enable-server-apps"
        argv = [flag, values.get(flag, "a://b" if flag == "--allow-origins" else "x")] if takes_value else [flag]
        if flag in REFUSED:
            assert refusal(*argv).startswith(f"{flag}: ")
        else:
            notices = parse(argv, provider if flag.startswith("--oidc-") else {}).notices
            assert [notice.split(" is not needed: ")[0] for notice in notices] == [flag] * (flag in NEEDLESS)


def test_refused_options_are_answered_together_and_one_line_each() -> None:
    lines = refusal("--enable-s3", "--secret-access-key", "canary", "--redis-uri=redis://canary", "--in-docker")
    assert [line.partition(":")[0] for line in lines.splitlines()] == [
        "--redis-uri",
        "--enable-s3",
        "--secret-access-key",
    ]
    assert "canary" not in lines


def test_several_values_of_a_refused_option_are_no_second_mistake() -> None:
    assert refusal("--triton-servers", "http://a", "http://b").startswith("--triton-servers: ")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--prot", "9000"], "unknown option --prot; did you mean --port?"),
        (["--static-mount=/a:b"], "unknown option --static-mount; did you mean --static-mounts?"),
        (["--enable-s4"], "did you mean --enable-s3?"),
        (["serve"], "unknown option serve; --help lists the options"),
        (["--port"], "argument --port: expected one argument; --help lists the options"),
        (["--port", ""], "port '' must be a whole number from 0 to 65535"),
        (["--port", "65536"], "port '65536' must be a whole number from 0 to 65535"),
        (["--port", "-1"], "port '-1' must be a whole number from 0 to 65535"),
        (["--base-path", "/a/../b"], "must not contain '.' or '..'"),
        (["--public-base-url", "lab.example"], "write it as https://host"),
        (["--public-base-url", "https:///x"], "write it as https://host"),
        (["--allow-origins", "example.org"], "https://host"),
        (["--static-mounts"], "expected at least one argument"),
        (["--static-mounts", "tools:./x"], "write it as /path:directory"),
        (["--static-mounts", "/a:/", "/a:/usr"], "already mounted"),
        (["--static-mounts", "/health:/"], "belongs to the server"),
        (["--limit", "frame_bytes"], "write it as NAME=VALUE"),
        (["--limit", "frames=1"], "unknown limit 'frames'"),
        (["--limit", "frame_bytes=much"], "'much' is not a whole number"),
        (["--limit", "frame_bytes=0"], "must be a number above 0"),
        (
            ["--services-config", "none.yaml"],
            "the services file 'none.yaml' cannot be read (No such file or directory)",
        ),
        (["--services-config", "/"], "the services file '/' cannot be read (Is a directory)"),
        (["--services-config"], "argument --services-config: expected one argument"),
        (["--startup-functions"], "argument --startup-functions: expected at least one argument"),
        (["--oidc-issuer", "id.example"], "write it as https://host"),
        (["--oidc-issuer", "http://id.example", "--oidc-client-id", "x"], "only https is safe"),
        (["--oidc-issuer", "https://id.example"], "--oidc-issuer needs --oidc-client-id"),
        (["--oidc-client-id", "x"], "--oidc-client-id needs --oidc-issuer"),
        (["--oidc-domains", "*"], "--oidc-domains needs --oidc-issuer"),
        (["--oidc-domains", "*.example"], "write it as lab.example"),
        (["--oidc-client-secret", "x"], "unknown option --oidc-client-secret"),
        (["--log-level", "loud"], "choose debug, info, warning or error"),
        (["--fd", "three"], "'three' is not the number of an open file"),
        (["--fd", "-3"], "'-3' is not the number of an open file"),
        (["--no-listing=yes"], "ignored explicit argument"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(argv: list[str], said: str) -> None:
    line = refusal(*argv)
    assert said in line
    assert "\n" not in line


def test_a_missing_directory_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / "nowhere") in refusal("--static-mounts", "/a:nowhere")


def test_programs_see_what_is_passed_on_of_the_environment_and_nothing_else() -> None:
    environ = {"PATH": "/bin", "LC_ALL": "C", "HYPHA_PORT": "1", "SECRET": "canary", "LISTEN_FDS": "1", "HOME": "/h"}
    assert config(**environ).environ == {"PATH": "/bin", "LC_ALL": "C", "HOME": "/h"}
    assert config("--port", "2", **environ).environ == {"PATH": "/bin", "LC_ALL": "C", "HOME": "/h"}


def test_a_mistake_in_the_environment_names_the_value() -> None:
    assert "port 'x'" in refusal(HYPHA_PORT="x")


@pytest.mark.parametrize(("flag", "text"), [("--version", f"hypha {__version__}\n"), ("--help", "usage: hypha ")])
def test_questions_about_the_program_are_answered(flag: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([flag], {})
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(text)


def test_help_shows_what_works_and_only_that(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"], {})
    shown = set(re.findall(r"--[a-z][a-z0-9-]+", capsys.readouterr().out))
    assert shown.isdisjoint(REFUSED | NEEDLESS)
    assert {flag for flag in KNOWN if flag not in REFUSED | NEEDLESS} <= shown


def test_sockets_of_a_supervisor_are_taken_only_by_the_process_they_are_for() -> None:
    ours = str(os.getpid())
    assert parse([], {"LISTEN_PID": ours, "LISTEN_FDS": "2"}).fds == (3, 4)
    assert parse(["--fd", "9"], {"LISTEN_PID": ours, "LISTEN_FDS": "2"}).fds == (9,)
    assert parse([], {"LISTEN_PID": "1", "LISTEN_FDS": "2"}).fds == ()
    assert "LISTEN_FDS='many'" in refusal(LISTEN_PID=ours, LISTEN_FDS="many")
