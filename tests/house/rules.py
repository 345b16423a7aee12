"""The rules of the house that no linter checks without a way around it, as checks of the syntax tree.

Where a rule has exceptions, the files are named here with their number of places, and another number fails.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Check = Callable[[ast.AST], bool]


@dataclass(frozen=True)
class Rule:
    """What must not be written, how it is recognised, and in which files (below ``hypha/``) it may, how often."""

    name: str
    broken_by: Check
    exceptions: Mapping[str, int] = field(default_factory=dict)


def _dotted(node: ast.AST) -> str:
    """``a.b.c`` for a name or an attribute of one, otherwise an empty string."""
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""


def _called(node: ast.AST) -> str:
    return _dotted(node.func) if isinstance(node, ast.Call) else ""


def _keyword(node: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in node.keywords if keyword.arg == name), None)


def _runs_a_shell(node: ast.AST) -> bool:
    if _called(node) in {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}:
        return True
    shell = _keyword(node, "shell") if isinstance(node, ast.Call) else None
    return shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False)


def _loads_yaml_unsafely(node: ast.AST) -> bool:
    name = _called(node)
    if name in {"yaml.load", "yaml.load_all"} and isinstance(node, ast.Call):
        loader = _keyword(node, "Loader") or next(iter(node.args[1:]), None)
        return loader is None or _dotted(loader).rpartition(".")[2] not in {"SafeLoader", "CSafeLoader"}
    return bool(re.fullmatch(r"yaml\.(unsafe|full)_load(_all)?", name))


def _reads_the_environment(node: ast.AST) -> bool:
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    if isinstance(node, ast.ImportFrom):
        return node.module == "os" and any(alias.name in names for alias in node.names)
    return isinstance(node, ast.Attribute) and _dotted(node) in {f"os.{name}" for name in names}


def _catches_everything(node: ast.AST) -> bool:
    """Whether a handler takes every error and does not raise it again at its end."""
    if not isinstance(node, ast.ExceptHandler):
        return False
    kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    broad = any(kind is None or _dotted(kind) in {"Exception", "BaseException"} for kind in kinds)
    last = node.body[-1]
    return broad and not (isinstance(last, ast.Raise) and last.exc is None)


def _hides_everything(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or _called(node).rpartition(".")[2] != "suppress":
        return False
    return any(_dotted(kind) in {"Exception", "BaseException"} for kind in node.args)


def _formats_a_log_line(node: ast.AST) -> bool:
    owner, _, method = _called(node).rpartition(".")
    levels = {"debug", "info", "warning", "error", "critical", "exception", "log"}
    if not isinstance(node, ast.Call) or owner.rpartition(".")[2] not in {"logger", "logging"} or method not in levels:
        return False
    texts = node.args[1 if method == "log" else 0 :][:1]
    return any(not isinstance(text, ast.Constant) for text in texts)


def _trusts_a_token_blindly(node: ast.AST) -> bool:
    if _called(node).endswith("jwt.decode") and isinstance(node, ast.Call):
        algorithms = _keyword(node, "algorithms")
        if not isinstance(algorithms, ast.List | ast.Tuple) or not algorithms.elts:
            return True
        return any(not isinstance(item, ast.Constant) or item.value == "none" for item in algorithms.elts)
    return isinstance(node, ast.Constant) and node.value == "verify_signature"


def _prints(node: ast.AST) -> bool:
    return _called(node) in {"print", "sys.stdout.write", "sys.stderr.write"}


def _names_an_attribute_at_run_time(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or _called(node) not in {"getattr", "setattr", "delattr", "hasattr"}:
        return False
    return len(node.args) < 2 or not isinstance(node.args[1], ast.Constant)


def _runs_text_as_code(node: ast.AST) -> bool:
    return _called(node) in {"eval", "exec", "compile", "__import__", "importlib.import_module"}


def _starts_a_task(node: ast.AST) -> bool:
    return _called(node).rpartition(".")[2] in {"start_soon", "spawn_system_task"}


RULES = (
    Rule("no shell", _runs_a_shell),
    Rule("YAML only by the safe loader", _loads_yaml_unsafely),
    Rule("the environment is read at the edge", _reads_the_environment, {"server.py": 2}),
    Rule(
        "everything is caught only at a barrier",
        _catches_everything,
        {
            "aio.py": 2,  # a function of trio, whose error the event loop shall raise; a job of the executor
            "broker/endpoint.py": 1,  # the call boundary of the server's own functions
            "client/peer.py": 1,  # one message
            "client/serving.py": 1,  # the call boundary of the program's functions
            "client/server.py": 1,  # the block of the program, whose error no nursery shall wrap
            "launch/module.py": 1,  # a module of the person who starts the server, in the server's process
            "lazy.py": 1,  # the start of the application
            "sync.py": 1,  # a call, whose error the thread that waits shall raise
            "testing.py": 1,  # the same, told to the test that opened the server
            "web/guard.py": 1,  # one connection
            "web/proxy.py": 1,  # the call boundary of HTTP
            "worker.py": 1,  # the process
        },
    ),
    Rule("nothing is hidden wholesale", _hides_everything),
    Rule("log lines are constants with arguments", _formats_a_log_line),
    Rule("tokens are verified with named algorithms", _trusts_a_token_blindly),
    Rule("only the banner prints", _prints, {"banner.py": 3}),
    Rule(
        "attributes are named in the source",
        _names_an_attribute_at_run_time,
        {
            "client/face.py": 1,  # what a program asks of the connection, which is its own
            "client/service.py": 1,  # the public attributes of an object that a program registers
            "client/values.py": 2,  # what files have, named in a constant
            "config.py": 3,  # the fields of our own dataclasses
            "command.py": 1,  # the options of our own parser
            "broker/ledger.py": 2,  # the fields of a workspace, all but those that are named in a constant
            "web/guard.py": 1,  # the names of Hypercorn's that are replaced, a table beside it
        },
    ),
    Rule(
        "text is not run as code",
        _runs_text_as_code,
        {"launch/entrypoint.py": 1},  # the module that the person who starts the server names, as python -m would
    ),
    Rule(
        "tasks start where docs/design.md says that they live",
        _starts_a_task,
        {
            "aio.py": 1,  # a function of trio that asyncio waits for, ended with its thread
            "apps/browser.py": 1,  # what ends a wait when the first of several things has happened
            "apps/gate.py": 1,  # the other direction of a connection of the browser, within its task
            "apps/progress.py": 1,  # what tells a caller how far its launch is, within the call that launches
            "apps/runner.py": 2,  # the life of an app; its script, beside the wait for what it offers
            "assembly.py": 5,  # the root nursery: the sweeper, the writer of what is kept, the launcher, the apps, the
            # goodbye of a shutdown
            "broker/endpoint.py": 2,  # calls of the server's own services; callbacks, within the call that offers them
            "broker/modern.py": 1,  # pings of all clients of a workspace, which end within the call that asks for them
            "broker/outbox.py": 1,  # the writer of a full socket
            "client/link.py": 1,  # what serves a connection
            "client/peer.py": 1,  # a generator that another peer iterates
            "client/serving.py": 1,  # a call of another peer
            "client/server.py": 2,  # the client; the program's handler of an event, for as long as it is connected
            "sync.py": 1,  # a call that a thread waits for, ended with the connection
            "testing.py": 1,  # a connection in memory, in the nursery of Hypercorn's
            "web/guard.py": 1,  # a connection of the server's own programs, in the nursery of Hypercorn's
            "launch/launcher.py": 1,  # the life of each service
            "launch/module.py": 2,  # the life of a module: beside its checks, and its function beside its connection
            "launch/process.py": 2,  # a program: its end and its output
            "launch/supervisor.py": 1,  # what ends a wait when the service has ended
            "web/ws.py": 1,  # the connection
            "web/rpc.py": 3,  # a stream: its writer, its server calls; and a message of its client that waits for room
            "web/app_socket.py": 3,  # a websocket at an application: its reader, its clock, its ends; within the call
            "web/exchange.py": 1,  # what reads a request for an application, within the call to it
            "web/functions.py": 1,  # as in web/proxy.py
            "web/proxy.py": 1,  # a call over HTTP, forgotten when its client goes away
            "web/static.py": 1,  # a download, ended when its client goes away
            "worker.py": 2,  # the orders of the parent; that it is ready, which waits for the disk
        },
    ),
)


def breaches(rule: Rule, source: str) -> list[int]:
    """The lines of *source* at which *rule* is broken, its exceptions not considered."""
    return sorted({getattr(node, "lineno", 1) for node in ast.walk(ast.parse(source)) if rule.broken_by(node)})


def violations(rule: Rule, package: Path) -> list[str]:
    """Where *rule* is broken below *package*, and the exceptions whose number is not the one that is written."""
    found: list[str] = []
    places = {str(path.relative_to(package)): breaches(rule, path.read_text()) for path in package.rglob("*.py")}
    for name in sorted({*places, *rule.exceptions}):
        lines, fair = places.get(name, []), rule.exceptions.get(name, 0)
        if len(lines) != fair:
            found.append(f"{package.name}/{name}: lines {lines}, {fair} allowed: {rule.name}")
    return found


def comments(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every comment in *source*."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def bad_comments(source: str) -> list[str]:
    """Postponed work, and exemptions from a checker without a code or without a reason behind it."""
    exemption = re.compile(r"#\s*(noqa|type:\s*ignore)\b")
    explained = re.compile(r"#\s*(noqa: [A-Z]+[0-9]+(, ?[A-Z]+[0-9]+)*|type: ignore\[[\w, -]+\])\W+\w+.*")
    return [
        f"{line}: {text}"
        for line, text in comments(source)
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text) or (exemption.search(text) and not explained.search(text))
    ]
