"""The file of ``--services-config`` as a plan. Pure: everything is checked here, before anything starts.

Every error is one line, ``file:line: what is wrong``, and says what to write instead.
"""

from __future__ import annotations

import difflib
import importlib.machinery
import math
import os
import re
import shlex
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from hypha.config import KIB, RESERVED_NAMES
from hypha.errors import ConfigError
from hypha.wire.address import MAX_NAME, PUBLIC_WORKSPACE

OnFailure = Literal["stop", "restart", "warn"]

#: Seconds in which a service must be ready, unless its entry says otherwise.
DEFAULT_TIMEOUT = 5.0

_MAX_FILE = 256 * KIB
_MAX_NODES = 20_000  # with what aliases stand for counted each time
_MAX_TIMEOUT = 86_400.0
_WORKSPACE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~|-]*")
_PLAIN = re.compile(r"[!-~]+")  # printable ASCII without the space
_PLACEHOLDER = re.compile(r"\{(server_url|workspace|token)\}")
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Checks:
    """When a service counts as ready, and what happens when it is not, or not any more.

    *services* must be offered in its workspace and *url* must answer within *timeout* seconds; with neither it is
    ready when it has lived for a second.
    """

    services: tuple[str, ...] = ()
    url: str | None = None
    timeout: float = DEFAULT_TIMEOUT
    on_failure: OnFailure = "stop"


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A program that starts with the server. *words* may hold placeholders; *env* is added to its environment."""

    name: str
    words: tuple[str, ...]
    workspace: str = PUBLIC_WORKSPACE
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    checks: Checks = field(default_factory=Checks)

    def arguments(self, values: Mapping[str, str]) -> list[str]:
        """The words with each placeholder of *values* filled in. Other braces are left alone.

        ``python`` and ``python3`` mean the interpreter of the server: the first one on the PATH often lacks what the
        server's has. Another one is chosen by its path.
        """
        first, *rest = (fill(word, values) for word in self.words)
        return [sys.executable if first in {"python", "python3"} else first, *rest]


@dataclass(frozen=True, slots=True)
class ModuleEntry:
    """A function that runs in the server's process: *entrypoint* of *module*, a file or a dotted name."""

    name: str
    module: Path | str
    entrypoint: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    workspace: str = PUBLIC_WORKSPACE
    checks: Checks = field(default_factory=Checks)


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """What starts with the server: functions of the command line, then modules, then commands."""

    modules: tuple[ModuleEntry, ...] = ()
    commands: tuple[CommandEntry, ...] = ()
    functions: tuple[ModuleEntry, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing starts with the server."""
        return not (self.functions or self.modules or self.commands)


def fill(text: str, values: Mapping[str, str]) -> str:
    """*text* with ``{server_url}``, ``{workspace}`` and ``{token}`` replaced, and nothing else."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text)


def read_plan(path: Path | None, startup_functions: Sequence[str] = ()) -> LaunchPlan:
    """The plan of the file *path*, and of the functions ``module_or_file:function`` of the command line.

    Reads files and nothing else; imports nothing. Raises :class:`ConfigError`.
    """
    names = _Names()
    functions = [_startup_function(text, names) for text in startup_functions]
    entries = _File(path, names).entries() if path is not None else []
    modules = [entry for entry in entries if isinstance(entry, ModuleEntry)]
    commands = [entry for entry in entries if isinstance(entry, CommandEntry)]
    return LaunchPlan(tuple(modules), tuple(commands), tuple(functions))


def _startup_function(text: str, names: _Names) -> ModuleEntry:
    module, _, function = text.rpartition(":")
    if not module or not function.isidentifier():
        raise ConfigError(f"startup function {text!r}: write it as file.py:function or package.module:function")
    try:
        found = _find_module(module, [Path.cwd()])
    except ValueError as error:
        raise ConfigError(f"startup function {text!r}: {error}") from None
    return ModuleEntry(names.unique(found.name if isinstance(found, Path) else found), found, function)


def _find_module(text: str, directories: Sequence[Path]) -> Path | str:
    """The file in the first of *directories* that has it, or a dotted name. Raises ValueError saying why not."""
    if not text.endswith(".py") and "/" not in text:
        if not _is_importable(text):
            raise ValueError(f"there is no module {text} that could be imported; a file is written with its ending .py")
        return text
    for directory in directories:
        candidate = directory / os.path.expanduser(text)
        if candidate.is_file():
            return candidate.resolve()
    places = " and ".join(dict.fromkeys(str(directory) for directory in directories))
    raise ValueError(f"there is no file {text}; looked in {places}")


def _is_importable(name: str) -> bool:
    """Whether ``import name`` would find a module. Unlike importlib.util.find_spec it does not run its packages."""
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    if name in sys.builtin_module_names:
        return True
    where: Sequence[str] | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:depth]), where)
        if spec is None:
            return False
        where = spec.submodule_search_locations
        if where is None and depth < len(parts):
            return False
    return True


class _Names:
    """Names of services, each of which is there once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, name: str) -> bool:
        """False when another service has it."""
        free = name not in self._taken
        self._taken.add(name)
        return free

    def unique(self, name: str) -> str:
        """*name* in one line, with a number when others have it: it was not chosen by a person."""
        name = "".join(letter if letter.isprintable() else "?" for letter in name[:MAX_NAME])
        candidates = (f"{name}-{number}" if number else name for number in (0, *range(2, _MAX_NODES + 2)))
        return next(candidate for candidate in candidates if self.take(candidate))


class _File:
    """One file, read whole. What is wrong in it is told with its line."""

    def __init__(self, path: Path, names: _Names) -> None:
        self._path = path
        self._names = names
        self._base = path.parent.absolute()
        self._loader = self._open()

    def entries(self) -> list[CommandEntry | ModuleEntry]:
        """The services of the file. Raises :class:`ConfigError`."""
        root = self._compose()
        if root is None:
            raise ConfigError(f"{self._path}: the file is empty; it begins with format_version: 1")
        self._check_nodes(root)
        readers: dict[str, Callable[[yaml.Node], Any]] = {
            "format_version": self._version,
            "services": self._services,
        }
        found = self._read(root, "the file", readers)
        for key in readers:
            if key not in found:
                raise self._wrong(root, f"{key} is missing; the file begins with format_version: 1, then services:")
        return cast("list[CommandEntry | ModuleEntry]", found["services"])

    def _text(self) -> str:
        try:
            with open(self._path, "rb") as file:
                data = file.read(_MAX_FILE + 1)
        except OSError as error:
            raise ConfigError(f"the services file {self._path} cannot be read ({error.strerror})") from None
        if len(data) > _MAX_FILE:
            raise ConfigError(f"the services file {self._path} has more than {_MAX_FILE} bytes")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise ConfigError(f"{self._path}:{line}: the file is no UTF-8 text") from None

    def _open(self) -> yaml.SafeLoader:
        try:
            return yaml.SafeLoader(self._text())
        except yaml.YAMLError as error:  # characters that no YAML may hold
            raise ConfigError(f"{self._path}: this is no YAML: {str(error).splitlines()[0]}") from None

    def _compose(self) -> yaml.Node | None:
        try:
            return self._loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{self._path}:{mark.line + 1}" if mark is not None else str(self._path)
            raise ConfigError(f"{where}: this is no YAML: {error.problem or error.context}") from None
        except (yaml.YAMLError, RecursionError, ValueError):
            # Brackets by the thousand; and what Python makes of a version like %YAML 1.x.
            raise ConfigError(f"{self._path}: this is no YAML that can be read") from None

    def _check_nodes(self, root: yaml.Node) -> None:
        """Refuse keys that stand twice, and aliases that stand for more than a person would write."""
        todo, count = [root], 0
        while todo:
            node = todo.pop()
            count += 1
            if count > _MAX_NODES:
                raise self._wrong(root, f"the file stands for more than {_MAX_NODES} values")
            if isinstance(node, yaml.MappingNode):
                self._check_keys(node)
                todo += [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                todo += node.value

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._wrong(key, "a key is a word")
            if (key.tag, key.value) in seen:
                line = seen[key.tag, key.value]
                raise self._wrong(key, f"the key {key.value!r} stands in line {line} already")
            seen[key.tag, key.value] = _line(key)

    # --- entries ----------------------------------------------------------------------------------------------

    def _version(self, node: yaml.Node) -> int:
        if node.tag != _TAG + "int" or node.value != "1":
            raise self._wrong(node, f"format_version is {_shown(node)}, but only 1 is known: write format_version: 1")
        return 1

    def _services(self, node: yaml.Node) -> list[CommandEntry | ModuleEntry]:
        return [self._entry(item) for item in self._items(node, "services")]

    def _entry(self, node: yaml.Node) -> CommandEntry | ModuleEntry:
        kinds = {key.value for key, _ in self._pairs(node, "a service")}
        if {"command", "module"} <= kinds:
            raise self._wrong(node, "a service has a command or a module, not both")
        if "module" in kinds:
            return self._module_entry(node)
        if "command" in kinds:
            return self._command_entry(node)
        readers = self._command_readers() | self._module_readers()
        self._read(node, "a service", readers)
        raise self._wrong(node, "a service has a command, or a module with its entrypoint")

    def _command_entry(self, node: yaml.Node) -> CommandEntry:
        found = self._read(node, "a service with a command", self._command_readers())
        return CommandEntry(
            name=self._name(node, found, found["command"][0]),
            words=found["command"],
            workspace=found.get("workspace", PUBLIC_WORKSPACE),
            env=found.get("env", {}),
            cwd=found.get("cwd"),
            checks=_checks(found),
        )

    def _module_entry(self, node: yaml.Node) -> ModuleEntry:
        found = self._read(node, "a service with a module", self._module_readers())
        if "entrypoint" not in found:
            raise self._wrong(node, "entrypoint is missing: the function of the module that is called")
        module = found["module"]
        return ModuleEntry(
            name=self._name(node, found, module.name if isinstance(module, Path) else module),
            module=module,
            entrypoint=found["entrypoint"],
            kwargs=found.get("kwargs", {}),
            workspace=found.get("workspace", PUBLIC_WORKSPACE),
            checks=_checks(found),
        )

    def _name(self, node: yaml.Node, found: Mapping[str, Any], default: str) -> str:
        if "name" not in found:
            return self._names.unique(default)
        name: str = found["name"]
        if not self._names.take(name):
            raise self._wrong(node, f"another service has the name {name!r} already")
        return name

    def _common_readers(self) -> dict[str, Callable[[yaml.Node], Any]]:
        return {
            "name": self._short_text("name"),
            "workspace": self._workspace,
            "timeout": self._timeout,
            "check_services": self._check_services,
            "check_url": self._check_url,
            "on_failure": self._on_failure,
        }

    def _command_readers(self) -> dict[str, Callable[[yaml.Node], Any]]:
        own = {"command": self._command, "env": self._env, "cwd": self._cwd}
        return own | self._common_readers()

    def _module_readers(self) -> dict[str, Callable[[yaml.Node], Any]]:
        own = {"module": self._module, "entrypoint": self._entrypoint, "kwargs": self._kwargs}
        return own | self._common_readers()

    # --- values -----------------------------------------------------------------------------------------------

    def _command(self, node: yaml.Node) -> tuple[str, ...]:
        if isinstance(node, yaml.SequenceNode):
            words = [self._as_written(item, "a word of the command") for item in node.value]
        else:
            try:
                words = shlex.split(self._text_of(node, "command"))
            except ValueError:
                raise self._wrong(node, "a quote in the command is not closed") from None
        if not words or not words[0].strip():
            raise self._wrong(node, "the command is empty")
        return tuple(words)

    def _env(self, node: yaml.Node) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, value in self._pairs(node, "env"):
            if not key.value or "=" in key.value or "\0" in key.value:
                raise self._wrong(key, f"{key.value!r} is no name of a variable")
            found[key.value] = "" if value.tag == _TAG + "null" else self._as_written(value, f"env {key.value}")
        return found

    def _cwd(self, node: yaml.Node) -> Path:
        path = self._base / os.path.expanduser(self._text_of(node, "cwd"))
        if not path.is_dir():
            raise self._wrong(node, f"there is no directory {path}")
        return path

    def _module(self, node: yaml.Node) -> Path | str:
        text = self._text_of(node, "module")
        try:
            return _find_module(text, [self._base, Path.cwd()])
        except ValueError as error:
            raise self._wrong(node, f"module: {error}") from None

    def _entrypoint(self, node: yaml.Node) -> str:
        text = self._text_of(node, "entrypoint")
        if not text.isidentifier():
            raise self._wrong(node, f"entrypoint {text!r} is no name of a function")
        return text

    def _kwargs(self, node: yaml.Node) -> dict[str, Any]:
        for key, _ in self._pairs(node, "kwargs"):
            if key.tag != _TAG + "str":
                raise self._wrong(key, f"the name of an argument is a word, not {_shown(key)}")
        try:
            return dict(self._loader.construct_document(node))
        except (yaml.YAMLError, ValueError, TypeError) as error:
            reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
            raise self._wrong(node, f"kwargs cannot be read: {reason}") from None

    def _workspace(self, node: yaml.Node) -> str:
        name = self._text_of(node, "workspace")
        if not _WORKSPACE_NAME.fullmatch(name) or len(name) > MAX_NAME or name in RESERVED_NAMES:
            raise self._wrong(node, f"{name!r} is no name of a workspace; it may hold letters, digits and . _ ~ | -")
        return name

    def _timeout(self, node: yaml.Node) -> float:
        try:
            seconds = self._loader.construct_object(node) if node.tag in {_TAG + "int", _TAG + "float"} else 0.0
        except (yaml.YAMLError, ValueError):
            seconds = 0.0
        if not 0 < seconds <= _MAX_TIMEOUT or not math.isfinite(seconds):
            raise self._wrong(
                node, f"timeout is a number of seconds above 0, at most {_MAX_TIMEOUT:g}, not {_shown(node)}"
            )
        return float(seconds)

    def _check_services(self, node: yaml.Node) -> tuple[str, ...]:
        ids = [self._text_of(item, "a service id in check_services") for item in self._items(node, "check_services")]
        for text in ids:
            if not text or len(text) > MAX_NAME or "/" in text or ":" in text:
                raise self._wrong(node, f"{text!r}: write the id of a service alone, without workspace and client")
        return tuple(ids)

    def _check_url(self, node: yaml.Node) -> str:
        text = self._text_of(node, "check_url")
        if not is_http_url(text):
            raise self._wrong(node, f"check_url {text!r}: write it as http://host:port/path")
        return text

    def _on_failure(self, node: yaml.Node) -> OnFailure:
        text = self._text_of(node, "on_failure")
        for known in ("stop", "restart", "warn"):
            if text == known:
                return known
        raise self._wrong(node, f"on_failure is stop, restart or warn, not {text!r}")

    def _short_text(self, what: str) -> Callable[[yaml.Node], str]:
        def read(node: yaml.Node) -> str:
            text = self._text_of(node, what)
            if not text.strip() or len(text) > MAX_NAME or not text.isprintable():
                raise self._wrong(node, f"{what} is a text of 1 to {MAX_NAME} characters in one line")
            return text

        return read

    # --- nodes ------------------------------------------------------------------------------------------------

    def _read(self, node: yaml.Node, what: str, readers: Mapping[str, Callable[[yaml.Node], Any]]) -> dict[str, Any]:
        """The value of each key, read by its reader. Unknown keys are refused, with the nearest known one."""
        found: dict[str, Any] = {}
        for key, value in self._pairs(node, what):
            if key.value not in readers:
                near = difflib.get_close_matches(key.value, readers, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise self._wrong(key, f"unknown key {key.value!r}{hint}; the keys of {what} are {', '.join(readers)}")
            found[key.value] = readers[key.value](value)
        return found

    def _pairs(self, node: yaml.Node, what: str) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self._wrong(node, f"{what} is made of lines like key: value, not {_shown(node)}")
        self._loader.flatten_mapping(node)
        yield from node.value

    def _items(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise self._wrong(node, f"{what} is a list: write each item in a line of its own, behind - ")
        return list(node.value)

    def _text_of(self, node: yaml.Node, what: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag != _TAG + "str" or "\0" in node.value:
            raise self._wrong(node, f"{what} is a text, not {_shown(node)}; if that is meant, write it in quotes")
        return str(node.value)

    def _as_written(self, node: yaml.Node, what: str) -> str:
        """A number or a truth value as the text that stands in the file."""
        if not isinstance(node, yaml.ScalarNode) or node.tag == _TAG + "null" or "\0" in node.value:
            raise self._wrong(node, f"{what} is a text, not {_shown(node)}; if that is meant, write it in quotes")
        return str(node.value)

    def _wrong(self, node: yaml.Node, text: str) -> ConfigError:
        return ConfigError(f"{self._path}:{_line(node)}: {text}")


def is_http_url(text: str) -> bool:
    """Whether *text* is an address that can be asked: http or https, a host, perhaps a port and a path."""
    try:
        parts = urllib.parse.urlsplit(text)
        return (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0
            and _PLAIN.fullmatch(text) is not None
        )
    except ValueError:
        return False  # a port that is no number


def _checks(found: Mapping[str, Any]) -> Checks:
    return Checks(
        found.get("check_services", ()),
        found.get("check_url"),
        found.get("timeout", DEFAULT_TIMEOUT),
        found.get("on_failure", "stop"),
    )


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _shown(node: yaml.Node) -> str:
    """*node* in a few words."""
    if isinstance(node, yaml.ScalarNode):
        return "nothing" if node.tag == _TAG + "null" else repr(node.value[:80])
    return "a list" if isinstance(node, yaml.SequenceNode) else "a map"
