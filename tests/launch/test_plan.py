"""hypha/launch/plan.py: what a services file may say, and the one line that each mistake in it is answered with."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypha.errors import ConfigError
from hypha.launch.plan import Checks, CommandEntry, LaunchPlan, ModuleEntry, fill, read_plan

HEAD = "format_version: 1\nservices:\n"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the file is; the current directory is another one."""
    for name in ("conf", "cwd"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "conf"


def plan(base: Path, text: str) -> LaunchPlan:
    path = base / "services.yaml"
    path.write_text(text)
    return read_plan(path)


def entry(base: Path, text: str) -> CommandEntry:
    (found,) = plan(base, HEAD + text).commands
    return found


def mistake(base: Path, text: str) -> str:
    """The message, without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        plan(base, text)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(f"{base / 'services.yaml'}:")
    return said.removeprefix(f"{base / 'services.yaml'}:")


def test_an_entry_with_every_key(base: Path) -> None:
    (base / "there").mkdir()
    found = entry(
        base,
        """
  - name: worker one
    command: python -u "my worker.py" --url={server_url} '{"a":1}'
    workspace: my-lab
    env: {A: text, B: 7, C: true, D: "", E: 1e3, F: null, G: '{'}
    cwd: there
    timeout: 2.5
    check_services: [one, two]
    check_url: http://localhost:7000/health
    on_failure: restart
""",
    )
    assert found == CommandEntry(
        name="worker one",
        words=("python", "-u", "my worker.py", "--url={server_url}", '{"a":1}'),
        workspace="my-lab",
        env={"A": "text", "B": "7", "C": "true", "D": "", "E": "1e3", "F": "", "G": "{"},
        cwd=base / "there",
        checks=Checks(("one", "two"), "http://localhost:7000/health", 2.5, "restart"),
    )


def test_what_is_not_said_has_a_default(base: Path) -> None:
    found = entry(base, "  - command: ./run it\n")
    assert found == CommandEntry("./run", ("./run", "it"), "public", {}, None, Checks((), None, 5.0, "stop"))


def test_a_list_is_taken_item_by_item(base: Path) -> None:
    found = entry(base, "  - command: [prog, 'a b', --n, 5, yes, '{token}', '{']\n")
    assert found.words == ("prog", "a b", "--n", "5", "yes", "{token}", "{")


def test_only_the_known_placeholders_are_replaced_and_once() -> None:
    values = {"server_url": "http://x", "workspace": "{token}", "token": "t"}
    text = "{server_url} {workspace} {token} {} {other} {{token}} {0} {token!r} {"
    assert fill(text, values) == "http://x {token} t {} {other} {t} {0} {token!r} {"


def test_words_are_split_before_placeholders_are_filled_in() -> None:
    found = CommandEntry("n", ("prog", "--url={server_url}"))
    assert found.arguments({"server_url": "a b 'c"}) == ["prog", "--url=a b 'c"]


@pytest.mark.parametrize("word", ["python", "python3"])
def test_python_is_the_interpreter_of_the_server(word: str) -> None:
    assert CommandEntry("n", (word, "python")).arguments({}) == [sys.executable, "python"]
    assert CommandEntry("n", (f"/usr/bin/{word}",)).arguments({}) == [f"/usr/bin/{word}"]


def test_names_are_unique(base: Path) -> None:
    text = "  - {command: python a}\n  - {command: python b}\n  - {name: x, command: python c}\n"
    assert [found.name for found in plan(base, HEAD + text).commands] == ["python", "python-2", "x"]
    assert entry(base, '  - command: ["a\\nb"]\n').name == "a?b"
    again = mistake(base, HEAD + "  - {name: x, command: a}\n  - {name: x, command: b}\n")
    assert again == "4: another service has the name 'x' already"


def test_a_module_is_a_file_of_the_configs_directory_then_of_the_current_one(base: Path) -> None:
    (Path.cwd() / "here.py").touch()
    for name in ("here.py", "there.py"):
        (base / name).touch()
    (Path.cwd() / "only.py").touch()
    text = "".join(f"  - {{module: ./{name}, entrypoint: f}}\n" for name in ("here.py", "there.py", "only.py"))
    found = plan(base, HEAD + text).modules
    assert [item.module for item in found] == [base / "here.py", base / "there.py", Path.cwd() / "only.py"]
    assert [item.name for item in found] == ["here.py", "there.py", "only.py"]
    said = mistake(base, HEAD + "  - module: no.py\n    entrypoint: f\n")
    assert said == f"3: module: there is no file no.py; looked in {base} and {Path.cwd()}"


def test_a_module_is_a_dotted_name_which_is_not_imported(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib" / "pack").mkdir(parents=True)
    (tmp_path / "lib" / "pack" / "__init__.py").write_text("raise SystemExit")
    (tmp_path / "lib" / "pack" / "mod.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    (found,) = plan(base, HEAD + "  - {module: pack.mod, entrypoint: f, kwargs: {a: [1, {b: c}]}}\n").modules
    assert found == ModuleEntry("pack.mod", "pack.mod", "f", {"a": [1, {"b": "c"}]})
    assert "pack" not in sys.modules
    for name in ("pack.none", "none", "pack.mod.none", "sys.path", "a b", "pack..mod"):
        said = mistake(base, HEAD + f"  - {{module: {name}, entrypoint: f}}\n")
        assert said.startswith(f"3: module: there is no module {name} that could be imported")


def test_startup_functions_are_told_apart(base: Path) -> None:
    (Path.cwd() / "mine.py").touch()
    path = base / "services.yaml"
    path.write_text(HEAD + "  - {module: json, entrypoint: dumps}\n")
    found = read_plan(path, ["mine.py:start", "json.decoder:main"])
    assert [(item.name, item.module, item.entrypoint) for item in (*found.functions, *found.modules)] == [
        ("mine.py", Path.cwd() / "mine.py", "start"),
        ("json.decoder", "json.decoder", "main"),
        ("json", "json", "dumps"),
    ]
    assert len(found.functions) == 2
    assert not found.is_empty
    assert found.commands == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine.py", "write it as file.py:function or package.module:function"),
        (":f", "write it as file.py:function"),
        ("json:", "write it as file.py:function"),
        ("json:a b", "write it as file.py:function"),
        ("none.py:f", "there is no file none.py; looked in "),
        ("none_such:f", "there is no module none_such"),
    ],
)
def test_a_startup_function_that_cannot_be(base: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"startup function {text!r}: ")) as caught:
        read_plan(None, [text])
    assert said in str(caught.value)


def test_nothing_to_start(base: Path) -> None:
    assert read_plan(None).is_empty
    assert plan(base, "format_version: 1\nservices: []\n").is_empty
    assert not plan(base, HEAD + "  - command: a\n").is_empty


def test_merge_keys_share_what_services_have_in_common(base: Path) -> None:
    text = """
  - &common
    command: first
    timeout: 9
  - <<: *common
    command: second
"""
    first, second = plan(base, HEAD + text).commands
    assert (first.words, second.words) == (("first",), ("second",))
    assert first.checks == second.checks == Checks(timeout=9.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("services: []\n", "1: format_version is missing"),
        ("format_version: 2\nservices: []\n", "1: format_version is '2', but only 1 is known"),
        ("format_version: '1'\nservices: []\n", "1: format_version is '1'"),
        ("format_version: true\nservices: []\n", "1: format_version is 'true'"),
        ("format_version: 1\n", "1: services is missing"),
        ("format_version: 1\nservices:\n", "2: services is a list"),
        ("format_version: 1\nservices: {command: a}\n", "2: services is a list"),
        ("format_version: 1\nservises: []\n", "2: unknown key 'servises'; did you mean services?"),
        ("- a\n", "1: the file is made of lines like key: value, not a list"),
        ("text\n", "1: the file is made of lines like key: value, not 'text'"),
        ("format_version: 1\nformat_version: 1\n", "2: the key 'format_version' stands in line 1 already"),
        ("{a: 1, a: 2}\n", "1: the key 'a' stands in line 1 already"),
        ("? [a]\n: 1\n", "1: a key is a word"),
        ("a: [\n", "2: this is no YAML: "),
        ("a: *b\n", "1: this is no YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 2\n", "2: this is no YAML: but found another document"),
        ("\ta: 1\n", "1: this is no YAML: "),
    ],
)
def test_a_file_that_cannot_be_used(base: Path, text: str, said: str) -> None:
    assert mistake(base, text).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 5", "a service is made of lines like key: value, not '5'"),
        ("- {}", "a service has a command, or a module with its entrypoint"),
        ("- {name: a}", "a service has a command, or a module with its entrypoint"),
        ("- {comand: a}", "unknown key 'comand'; did you mean command?"),
        ("- {command: a, zzz: 1}", "unknown key 'zzz'; the keys of a service with a command are command, env, cwd, "),
        ("- {command: a, chekc_services: [b]}", "did you mean check_services?"),
        ("- {command: a, module: b.py}", "a service has a command or a module, not both"),
        ("- {command: a, entrypoint: b}", "unknown key 'entrypoint'"),
        ("- {module: json, entrypoint: f, env: {}}", "unknown key 'env'"),
        ("- {module: json}", "entrypoint is missing"),
        ("- {module: json, entrypoint: a-b}", "entrypoint 'a-b' is no name of a function"),
        ("- {module: json, entrypoint: f, kwargs: [1]}", "kwargs is made of lines like key: value, not a list"),
        ("- {module: json, entrypoint: f, kwargs: {1: 2}}", "the name of an argument is a word, not '1'"),
        ("- {module: json, entrypoint: f, kwargs: {a: !!python/name:os.system x}}", "kwargs cannot be read: could not"),
        ("- {command: ''}", "the command is empty"),
        ("- {command: '  '}", "the command is empty"),
        ("- {command: []}", "the command is empty"),
        ("- {command: ['']}", "the command is empty"),
        ("- {command: }", "command is a text, not nothing"),
        ("- {command: 5}", "command is a text, not '5'"),
        ("- {command: {a: b}}", "command is a text, not a map"),
        ("- {command: !!str {a: b}}", "command is a text, not a map"),
        ("- {command: [a, [b]]}", "a word of the command is a text, not a list"),
        ("- {command: [a, null]}", "a word of the command is a text, not nothing"),
        ('- {command: "a\\0b"}', "command is a text, not"),
        ("- command: python 'x.py", "a quote in the command is not closed"),
        ("- {command: a, env: [A]}", "env is made of lines like key: value, not a list"),
        ("- {command: a, env: {A: [1]}}", "env A is a text, not a list"),
        ("- {command: a, env: {A=B: 1}}", "'A=B' is no name of a variable"),
        ("- {command: a, cwd: nowhere}", "there is no directory "),
        ("- {command: a, timeout: 0}", "timeout is a number of seconds above 0"),
        ("- {command: a, timeout: -1}", "timeout is a number of seconds above 0"),
        ("- {command: a, timeout: soon}", "timeout is a number of seconds above 0, at most 86400, not 'soon'"),
        ("- {command: a, timeout: true}", "timeout is a number of seconds above 0"),
        ("- {command: a, timeout: .inf}", "timeout is a number of seconds above 0"),
        ("- {command: a, timeout: .nan}", "timeout is a number of seconds above 0"),
        ("- {command: a, timeout: !!int x}", "timeout is a number of seconds above 0"),
        ("- {command: a, check_services: one}", "check_services is a list"),
        ("- {command: a, check_services: [1]}", "a service id in check_services is a text, not '1'"),
        ("- {command: a, check_services: [ws/c:s]}", "write the id of a service alone"),
        ("- {command: a, check_url: localhost}", "check_url 'localhost': write it as http://host:port/path"),
        ("- {command: a, check_url: 'http://'}", "write it as http://host:port/path"),
        ("- {command: a, check_url: 'http://a:b'}", "write it as http://host:port/path"),
        ("- {command: a, on_failure: ignore}", "on_failure is stop, restart or warn, not 'ignore'"),
        ("- {command: a, workspace: a b}", "'a b' is no name of a workspace"),
        ("- {command: a, workspace: health}", "'health' is no name of a workspace"),
        ("- {command: a, workspace: 5}", "workspace is a text, not '5'; if that is meant, write it in quotes"),
        ("- {command: a, name: ''}", "name is a text of 1 to 256 characters in one line"),
        ('- {command: a, name: "a\\nb"}', "name is a text of 1 to 256 characters in one line"),
    ],
)
def test_a_mistake_in_an_entry_is_told_with_its_line(base: Path, text: str, said: str) -> None:
    line, _, told = mistake(base, f"{HEAD}  - command: fine\n  {text}\n").partition(": ")
    assert line == "4"
    assert said in told


def test_the_line_is_the_one_of_the_mistake(base: Path) -> None:
    text = HEAD + "  - name: a\n    command: b\n    env:\n      A: 1\n      B: [2]\n"
    assert mistake(base, text) == "7: env B is a text, not a list; if that is meant, write it in quotes"


def test_an_empty_file_and_none(base: Path) -> None:
    for text in ("", "# only a remark\n"):
        assert mistake(base, text) == " the file is empty; it begins with format_version: 1"
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file or directory\)"):
        read_plan(base / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        read_plan(base)


def test_bytes_that_are_no_text(base: Path) -> None:
    (base / "services.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError, match=r"services\.yaml:2: the file is no UTF-8 text"):
        read_plan(base / "services.yaml")
    (base / "services.yaml").write_bytes(b"a: \x07\n")
    with pytest.raises(ConfigError, match="this is no YAML"):
        read_plan(base / "services.yaml")


def test_a_large_file_is_not_read(base: Path) -> None:
    (base / "services.yaml").write_text("# " + "x" * 300_000)
    with pytest.raises(ConfigError, match="has more than 262144 bytes"):
        read_plan(base / "services.yaml")


def test_aliases_that_stand_for_much_are_refused(base: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert mistake(base, "\n".join(lines)) == "1: the file stands for more than 20000 values"
    assert mistake(base, "a: &a [*a]\n") == "1: the file stands for more than 20000 values"


def test_brackets_by_the_thousand_are_no_yaml(base: Path) -> None:
    assert mistake(base, "[" * 50_000) == " this is no YAML that can be read"


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_plan_or_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    said = ""
    try:
        read_plan(path)
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said
