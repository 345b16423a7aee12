"""The documentation says all that is there and nothing that is not, and its examples run as they stand."""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import fields
from itertools import count
from pathlib import Path

import httpx
import pytest
import trio
from packaging.requirements import Requirement

from hypha import command, errors
from hypha.accounts.people import People
from hypha.broker.broker import Broker
from hypha.config import PASSED_ON, PASSED_ON_PREFIXES, Config, Limits
from hypha.launch.plan import read_plan
from hypha.web import accounts, administration, app_pages, assets, listing, login, oidc, shares
from hypha.web.pages import create_app
from tests.house import environments, npm, processes
from tests.house.certificate import CERTIFICATE, KEY
from tests.house.examples import RUNNABLE, blocks, examples, pages
from tests.house.processes import Running, Server
from tests.house.steps import ROOT

#: The examples that the tests below run. Every named block of the documentation is here.
RUN = {
    "README.md": {"install", "client-install", "worker", "client", "curl"},
    "docs/tutorial.md": {"worker", "caller", "curl", "protected-worker", "protected-caller"},
    "docs/client.md": {"worker", "caller", "script", "values"},
    "docs/javascript.md": {"page", "module", "node"},  # tests/clients/test_own_javascript.py
    "docs/testing.md": {"ini", "hello", "memory", "conftest", "fixture"},  # tests/test_testing.py
    # app: tests/apps/test_example.py
    "docs/how-to.md": {
        *("mounts", "limit", "javascript", "login", "hypercorn", "https", "app"),
        *("share", "administer", "block"),
    },
}

ADDRESS = "http://localhost:9000"
NUMBERS = count(1)


# --- the reference ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> str:
    return (ROOT / "docs" / "reference.md").read_text()


def section(text: str, title: str) -> str:
    """What stands under the heading *title*, up to the next heading of its depth."""
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of the rows of every table in *text*, without its head."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [cells for cells in lines if cells[0].startswith("`") or not cells[0]]


def code(cell: str) -> list[str]:
    """The parts of *cell* that are written as code."""
    return re.findall(r"`([^`]+)`", cell)


def test_every_option_is_documented(reference: str) -> None:
    documented = set(re.findall(r"(?<![\w-])(--?[a-z][a-z0-9-]*)`", section(reference, "Options")))
    assert documented == {option for action in parser_actions() for option in action.option_strings}


def test_options_that_are_only_answered_are_told_apart(reference: str) -> None:
    chapter = section(reference, "Options").partition("### Options of other Hypha servers")[2]
    refused, _, needless = chapter.partition("These are answered with a line")
    assert set(re.findall(r"`(--[a-z0-9-]+)`", refused)) == set(command.REFUSED)
    assert set(re.findall(r"`(--[a-z0-9-]+)`", needless)) == set(command.NEEDLESS)


def test_every_setting_has_its_variable_and_default(reference: str) -> None:
    table = [cells for cells in rows(section(reference, "Options")) if cells[1] and "LIMIT" not in cells[1]]
    documented = {code(cells[1])[0]: "".join(code(cells[2])) for cells in table}
    spelled = {True: "1", False: "0", None: ""}
    defaults = {}
    for item in (item for item in fields(Config) if item.compare):  # what it is told; the rest is where it runs
        value = getattr(Config(), item.name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else spelled.get(value, str(value))
        defaults[f"HYPHA_{item.name.upper()}"] = text
    del defaults["HYPHA_LIMITS"]
    assert documented == defaults


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("HYPHA_HOST", "::1"),
        ("HYPHA_PORT", "1"),
        ("HYPHA_BASE_PATH", "/b"),
        ("HYPHA_PUBLIC_BASE_URL", "https://a.example"),
        ("HYPHA_ALLOW_ORIGINS", "https://a.example"),
        ("HYPHA_STATIC_MOUNTS", f"/t:{ROOT}"),
        ("HYPHA_LISTING", "0"),
        ("HYPHA_FOLLOW_SYMLINKS", "1"),
        ("HYPHA_DATA_DIR", "elsewhere"),
        ("HYPHA_LOG_LEVEL", "debug"),
        ("HYPHA_SERVICES_CONFIG", str(ROOT / "README.md")),
        ("HYPHA_STARTUP_FUNCTIONS", "a.py:f"),
        ("HYPHA_ENABLE_SERVER_APPS", "1"),
        ("HYPHA_CHROMIUM_PATH", "chrome"),
        ("HYPHA_OWNER_LINK", "1"),
        ("HYPHA_OIDC_ISSUER", "https://a.example"),
        ("HYPHA_OIDC_CLIENT_ID", "a"),
        ("HYPHA_OIDC_CLIENT_SECRET", "a"),
        ("HYPHA_OIDC_DOMAINS", "a.example"),
        ("HYPHA_LIMIT_DRAIN_SECONDS", "7"),
    ],
)
def test_every_documented_variable_is_read(variable: str, text: str, reference: str) -> None:
    assert variable in reference or variable.startswith("HYPHA_LIMIT_")
    assert Config.from_environment({variable: text}) != Config()
    assert Config.from_environment({variable: ""}) == Config()


def test_every_limit_is_documented_with_its_default(reference: str) -> None:
    documented = {code(cells[0])[0]: cells[1] for cells in rows(section(reference, "Limits"))}
    units = {"bytes": " bytes", "seconds": " s", "session_grace": " s"}
    wanted = {}
    for item in fields(Limits):
        unit = next((text for word, text in units.items() if word in item.name), "")
        wanted[item.name] = f"{getattr(Limits(), item.name):.12g}{unit}"
    assert documented == wanted


def test_every_variable_that_programs_see_is_documented(reference: str) -> None:
    block = section(reference, "What starts with the server").partition("\n    PATH ")[2].partition("\n\n")[0]
    words = {"PATH", *block.partition(" and the same")[0].split()}
    proxies = {word.upper() for word in words if word.endswith("_proxy")}
    assert words | proxies == PASSED_ON | {f"{prefix}*" for prefix in PASSED_ON_PREFIXES}


def test_every_key_of_a_service_that_is_a_program_is_documented(reference: str, tmp_path: Path) -> None:
    keys = {code(cells[0])[0] for cells in rows(section(reference, "What starts with the server"))}
    path = tmp_path / "s.yaml"
    path.write_text("format_version: 1\nservices:\n- {command: a, zzzzz: 1}\n")
    with pytest.raises(errors.ConfigError) as caught:
        read_plan(path)
    assert keys == set(str(caught.value).partition("command are ")[2].split(", "))


class Healthy:
    """A server that is well."""

    is_ready = services_loaded = True


def no_broker() -> Broker:
    raise AssertionError("the routes are only looked at")


def no_people() -> People:
    raise AssertionError("the routes are only looked at")


def test_every_address_is_documented(reference: str) -> None:
    documented = {code(cells[0])[0].rpartition(" ")[2] for cells in rows(section(reference, "Addresses"))}
    app = create_app(Healthy())
    assets.add_routes(app)
    for pages_of in (listing, login, administration):
        pages_of.add_routes(app, no_broker)
    for pages_with_people in (accounts, shares):
        pages_with_people.add_routes(app, no_broker, no_people)
    oidc.add_routes(app, no_broker, no_people, lambda: None)
    app_pages.add_routes(app, lambda: None, {})
    routes = {re.sub(r"<(\w+?)(_id)?>", r"{\1}", rule.rule) for rule in app.url_map.iter_rules()}
    branches = {"/{workspace}/services/{service}/{function}", "/{workspace}/apps/{service}/{path}"}
    branches |= {"/share/{link}/{function}"}
    assert documented == routes | {"/ws", "/rpc"} | branches


def test_every_error_is_documented(reference: str) -> None:
    documented = {(*code(cells[0]), *cells[1:3]) for cells in rows(section(reference, "Errors"))}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.HyphaError)]
    known = {(kind.code, str(kind.status), str(kind.close_code)) for kind in kinds}
    assert documented == known - {("error", "500", "1011")}


def parser_actions() -> list[argparse.Action]:
    """The options of the command line. argparse has no public list of them."""
    return command._build_parser(Config())._actions


# --- the pages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_example_is_run_or_says_why_not(page: Path) -> None:
    found = blocks(page.read_text())
    assert [block.code for block in found if block.language in RUNNABLE and not (block.name or block.excused)] == []
    names = [block.name for block in found if block.name]
    assert sorted(names) == sorted(RUN.get(str(page.relative_to(ROOT)), set()))


@pytest.mark.parametrize("page", [*pages(), ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_link_inside_leads_somewhere(page: Path) -> None:
    headings = {path: _anchors(path) for path in pages()}
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            assert path.exists(), target
            assert not anchor or anchor in headings[path], target


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_test_that_is_named_as_proof_exists(page: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text()):
        tree = ast.parse((ROOT / path).read_text())
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, functions)}, f"{path}::{name}"


# --- the examples -----------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of this tree as a fresh clone would be."""
    names = (".git", ".venv", ".tests", ".hypha", "*cache*", "build", "dist", "*.egg-info")
    return Path(shutil.copytree(ROOT, tmp_path / "clone", ignore=shutil.ignore_patterns(*names)))


@pytest.mark.slow
async def test_the_readme_works_on_a_fresh_machine(nursery: trio.Nursery, clone: Path, tmp_path: Path) -> None:
    """The first command, the client's install, the worker, the client and curl, as a person would paste them."""
    page = examples("README.md")
    home = tmp_path / "home"
    home.mkdir()
    async with shell(nursery, page["install"].replace("--port=9000", "--port=0"), clone) as server:
        url = (await server.wait_for(r"^ +open +(http://localhost:\d+)"))[1]
        assert size_of(clone / ".venv") <= 35e6
        assert len(beyond_the_mandated(clone / ".venv")) <= 6
        install = f"{sys.executable} -m venv client && . client/bin/activate && {page['client-install']}"
        done = await processes.run(nursery, ["bash", "-ec", install], cwd=home, seconds=200)
        assert done.returncode == 0, done.stderr
        python = home / "client" / "bin" / "python"
        async with script(nursery, python, page["worker"], url, home) as worker:
            workspace = (await worker.wait_for(rf"^{url}/([^/]+)/services/hello-world/hello\?name=John$"))[1]
            async with script(nursery, python, page["client"], url, home) as client:
                assert (await client.wait()).stdout.endswith("Hello John\n")
            async with shell(nursery, adapt(page["curl"], url, workspace), home) as curl:
                assert (await curl.wait()).stdout == '"Hello John"'
        await stop(server)


def size_of(venv: Path) -> int:
    """The bytes of what is installed in *venv*, without pip and setuptools (``decisions.md`` 25)."""
    (packages,) = venv.glob("lib/*/site-packages")
    parts = [
        part
        for part in packages.iterdir()
        if not re.match(r"(_distutils_hack|pip|pkg_resources|setuptools)", part.name)
    ]
    files = [path for part in parts for path in ([part] if part.is_file() else part.rglob("*"))]
    return sum(path.stat().st_size for path in files if path.is_file())


def beyond_the_mandated(venv: Path) -> set[str]:
    """The distributions in *venv* that the mandated ones do not bring by themselves."""
    (packages,) = venv.glob("lib/*/site-packages")
    found = {_name(dist.name): dist.requires or [] for dist in importlib.metadata.distributions(path=[str(packages)])}
    todo = ["trio", "trio-websocket", "hypercorn", "quart-trio", "pip", "setuptools"]
    brought: set[str] = set()
    while todo:
        name = todo.pop()
        if name in found and name not in brought:
            brought.add(name)
            needs = map(Requirement, found[name])
            todo += [_name(need.name) for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return set(found) - brought


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with processes.serving(tmp_path_factory.mktemp("docs-server")) as running:
        yield running


@pytest.fixture(params=environments.CLIENTS[:2], ids=lambda environment: environment.name)
def client_python(request: pytest.FixtureRequest) -> Path:
    environment: environments.Environment = request.param
    return environment.python


@pytest.mark.slow
async def test_the_tutorial_offers_and_calls(
    nursery: trio.Nursery, server: Server, client_python: Path, tmp_path: Path
) -> None:
    page = examples("docs/tutorial.md")
    async with script(nursery, client_python, page["worker"], server.url, tmp_path) as worker:
        workspace = (await worker.wait_for("^workspace: (.+)$"))[1]
        async with script(nursery, client_python, page["caller"], server.url, tmp_path) as caller:
            assert (await caller.wait()).stdout.split("\n") == ["42", "step 1", "step 2", "step 3", ""]
        async with shell(nursery, adapt(page["curl"], server.url, workspace), tmp_path) as curl:
            assert (await curl.wait()).stdout == "42[1, 2]"


@pytest.mark.slow
async def test_the_tutorial_keeps_a_service_to_its_workspace(
    nursery: trio.Nursery, server: Server, client_python: Path, tmp_path: Path
) -> None:
    page = examples("docs/tutorial.md")
    async with script(nursery, client_python, page["protected-worker"], server.url, tmp_path) as worker:
        workspace = (await worker.wait_for("^workspace: (.+)$"))[1]
        token = (await worker.wait_for("^token: (.+)$"))[1]
        caller = page["protected-caller"]
        async with script(nursery, client_python, caller, server.url, tmp_path, workspace, token) as inside:
            assert re.fullmatch(r"called by \S+\n", (await inside.wait()).stdout)
        stranger = caller.replace(', "workspace": workspace, "token": token', "").replace(
            'ours = await server.get_service("ours")',
            'print(await asyncio.gather(server.get_service("ours"), return_exceptions=True))\n'
            "    return await server.disconnect()",
        )
        async with script(nursery, client_python, stranger, server.url, tmp_path, "none", "none") as outside:
            assert "Service not found" in (await outside.wait()).stdout


@pytest.mark.slow
async def test_our_own_client(nursery: trio.Nursery, server: Server, tmp_path: Path) -> None:
    page = examples("docs/client.md")
    python = Path(sys.executable)
    expected = {
        "caller": ["42", "step 1", "step 2", "step 3", ""],
        "script": ["Hello John", ""],
        "values": ["999999000000", "2", "True", ""],
    }
    async with script(nursery, python, page["worker"], server.url, tmp_path) as worker:
        await worker.wait_for("^workspace: (.+)$")
        for name, lines in expected.items():
            async with script(nursery, python, page[name], server.url, tmp_path) as running:
                result = await running.wait()
                assert (result.stdout.split("\n"), result.stderr) == (lines, "")


@pytest.mark.slow
async def test_the_recipe_for_files(nursery: trio.Nursery, tmp_path: Path) -> None:
    async with recipe(nursery, "mounts", tmp_path) as (server, url):
        async with shell(nursery, f"curl -s {url}/tools/", tmp_path) as curl:
            assert (await curl.wait()).stdout == "<h1>Tools</h1>\n"
        await stop(server)


@pytest.mark.slow
async def test_the_recipe_for_limits(nursery: trio.Nursery, tmp_path: Path) -> None:
    async with recipe(nursery, "limit", tmp_path) as (server, _):
        await stop(server)


@pytest.mark.slow
async def test_the_recipe_for_logging_in(nursery: trio.Nursery, server: Server, tmp_path: Path) -> None:
    python, code = environments.CLIENTS[1].python, examples("docs/how-to.md")["login"]
    async with script(nursery, python, code, server.url, tmp_path) as program:
        key = (await program.wait_for(r"login at .*/public/apps/hypha-login/\?key=(\S+)$"))[1]
        async with httpx.AsyncClient(base_url=f"{server.url}/public/services/hypha-login") as page:
            token = (await page.post("/generate")).json()
            await page.post("/report", json={"key": key, "token": token})
        assert re.search(r"^workspace: \w+$", (await program.wait()).stdout, re.MULTILINE)


@pytest.mark.slow
async def test_the_recipe_for_sharing_a_workspace(
    nursery: trio.Nursery, server: Server, client_python: Path, tmp_path: Path
) -> None:
    code = examples("docs/how-to.md")["share"]
    async with script(nursery, client_python, code, server.url, tmp_path) as program:
        lines = (await program.wait()).stdout.splitlines()
    told = [line for line in lines if line.startswith(("clients:", "read"))]
    assert told == ["clients: ['colleague'] services: 1", "read", "read_write", "clients: []"]


@pytest.mark.slow
async def test_the_recipes_for_a_server_for_others(nursery: trio.Nursery, server: Server, tmp_path: Path) -> None:
    page, python = examples("docs/how-to.md"), Path(sys.executable).parent
    home = server.log.parent  # where it was started, and so where its data directory is
    administer = adapt(page["administer"], server.url, "")
    async with shell(nursery, administer, home, path=python) as program:
        answers = (await program.wait()).stdout.splitlines()
    made, token, quota, users = map(json.loads, answers)
    assert (made["name"], made["persistent"], quota) == ("our-lab", True, {"clients": 20, "services": 100})
    (listed,) = [user for user in users if user["user"] in made["owners"]]
    assert listed["workspaces"] == ["our-lab"]
    tutorial = examples("docs/tutorial.md")["protected-worker"]
    settings = f'"server_url": "{ADDRESS}", "workspace": "our-lab", "client_id": "loud", "token": "{token["token"]}"'
    worker = tutorial.replace(f'"server_url": "{ADDRESS}"', settings)
    async with script(nursery, environments.CLIENTS[1].python, worker, server.url, tmp_path) as running:
        await running.wait_for("^workspace: our-lab$")
        block = adapt(page["block"], server.url, "our-lab").replace("CLIENT", "loud").replace("USER", token["user"])
        async with shell(nursery, block, home, path=python) as program:
            clients, blocked = map(json.loads, (await program.wait()).stdout.splitlines())
    assert [client["id"] for client in clients] == ["our-lab/loud"]
    assert [(entry["user"], entry["reason"]) for entry in blocked] == [(token["user"], "too loud")]


@pytest.mark.slow
async def test_the_recipe_for_javascript(nursery: trio.Nursery, server: Server, node: str, tmp_path: Path) -> None:
    file = tmp_path / "hello.js"
    file.write_text(adapt(examples("docs/how-to.md")["javascript"], server.url, ""))
    modules = {"NODE_PATH": str(npm.modules())}
    async with processes.start(nursery, [node, file], cwd=tmp_path, environ=modules) as running:
        result = await running.wait()
    assert "Hello John" in result.stdout.split("\n"), result


@pytest.mark.slow
async def test_the_recipe_for_hypercorn(nursery: trio.Nursery, tmp_path: Path) -> None:
    code = examples("docs/how-to.md")["hypercorn"].replace(":9000", ":0")
    async with shell(nursery, code, tmp_path, path=Path(sys.executable).parent) as server:
        url = (await server.wait_for(r"Running on (http://127.0.0.1:\d+)", "stderr"))[1]
        async with shell(nursery, f"curl -s {url}/health/readiness", tmp_path) as curl:
            assert (await curl.wait()).stdout.strip() == '{"status":"OK"}'
        await stop(server)


@pytest.mark.slow
async def test_the_recipe_for_https(nursery: trio.Nursery, tmp_path: Path) -> None:
    code = examples("docs/how-to.md")["https"].replace(":9443", ":0")
    (tmp_path / "cert.pem").write_text(CERTIFICATE)
    (tmp_path / "key.pem").write_text(KEY)
    async with shell(nursery, code, tmp_path, path=Path(sys.executable).parent) as server:
        port = (await server.wait_for(r"Running on https://0.0.0.0:(\d+)", "stderr"))[1]
        page = f"curl -s --cacert cert.pem https://localhost:{port}/health/readiness"
        async with shell(nursery, page, tmp_path) as curl:
            assert (await curl.wait()).stdout.strip() == '{"status":"OK"}'
        program = tmp_path / "client.py"
        program.write_text(_SECURE_CLIENT)
        trusting = {"SSL_CERT_FILE": str(tmp_path / "cert.pem")}
        address = f"https://localhost:{port}"
        async with processes.start(
            nursery, [environments.CLIENTS[-1].python, program, address], cwd=tmp_path, environ=trusting
        ) as client:
            assert (await client.wait()).stdout.splitlines()[0] == f"5000000 {address}"
        await stop(server)


_SECURE_CLIENT = """
import asyncio
import sys

from hypha_rpc import connect_to_server

async def main():
    async with connect_to_server({"server_url": sys.argv[1]}) as server:
        await server.register_service({"id": "echo", "echo": lambda data: data})
        service = await server.get_service("echo")
        print(len(await service.echo(bytes(5_000_000))), server.config.public_base_url)

asyncio.run(main())
"""


@asynccontextmanager
async def recipe(nursery: trio.Nursery, name: str, cwd: Path) -> AsyncIterator[tuple[Running, str]]:
    """The server of a recipe, on a free port, and its address."""
    code = examples("docs/how-to.md")[name].replace("--port=9000", "--port=0")
    async with shell(nursery, code, cwd, path=Path(sys.executable).parent) as server:
        yield server, (await server.wait_for(r"^ +open +(http://\S+)"))[1]


@asynccontextmanager
async def shell(nursery: trio.Nursery, code: str, cwd: Path, *, path: Path | None = None) -> AsyncIterator[Running]:
    """Run *code* in bash, which stops at the first error. *path* comes first where it looks for programs."""
    prefix = f"PATH={path}:$PATH\n" if path else ""
    async with processes.start(nursery, ["bash", "-ec", prefix + code], cwd=cwd) as running:
        yield running


@asynccontextmanager
async def script(
    nursery: trio.Nursery, python: Path, code: str, url: str, cwd: Path, *arguments: str
) -> AsyncIterator[Running]:
    """Save *code*, adapted to the server at *url*, and run it with *python*."""
    assert ADDRESS in code
    file = cwd / f"script-{next(NUMBERS)}.py"
    file.write_text(adapt(code, url, ""))
    async with processes.start(nursery, [python, file, *arguments], cwd=cwd) as running:
        yield running


def adapt(code: str, url: str, workspace: str) -> str:
    """What the reader is told to change: the server's address and the workspace."""
    return code.replace(ADDRESS, url).replace("WORKSPACE", workspace).replace("curl ", "curl -s ")


async def stop(server: Running) -> None:
    """Press Ctrl-C, and see that the server ends well."""
    os.killpg(server.pid, signal.SIGINT)
    result = await server.wait()
    assert result.returncode == 0, result
    assert "Traceback" not in result.stderr, result
