"""The rules of the house hold, each rule finds what it is there for, and what we depend on fits together."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.house import rules
from tests.house.steps import ROOT

FAULTS = {
    "no shell": (
        "import os\nos.system('ls')",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)",
    ),
    "YAML only by the safe loader": (
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
    ),
    "the environment is read at the edge": ("os.environ['A']", "os.getenv('A')", "from os import environ"),
    "everything is caught only at a barrier": (
        "try: f()\nexcept Exception: pass",
        "try: f()\nexcept: pass",
        "try: f()\nexcept (OSError, BaseException) as e: log(e)",
        "try: f()\nexcept* Exception: pass",
    ),
    "nothing is hidden wholesale": ("with contextlib.suppress(Exception): f()", "suppress(OSError, BaseException)"),
    "log lines are constants with arguments": (
        "logger.info(f'{x} came')",
        "logger.warning('%s came' % x)",
        "logging.error('a ' + x)",
        "self.logger.log(10, '{}'.format(x))",
    ),
    "tokens are verified with named algorithms": (
        "jwt.decode(t, k)",
        "jwt.decode(t, k, algorithms=header['alg'])",
        "jwt.decode(t, k, algorithms=['none'])",
        "jwt.decode(t, k, algorithms=['HS256'], options={'verify_signature': False})",
    ),
    "only the banner prints": ("print('x')", "sys.stderr.write('x')"),
    "attributes are named in the source": ("getattr(x, name)", "setattr(x, f'{n}', 1)", "hasattr(x, name)"),
    "text is not run as code": ("eval(text)", "importlib.import_module(name)"),
    "tasks start where docs/design.md says that they live": ("nursery.start_soon(f)", "spawn_system_task(f)"),
}

FAIR = """
import os
subprocess.run(["ls"], shell=False)
yaml.safe_load(text), yaml.load(text, Loader=yaml.SafeLoader)
os.path.join("a", "b")
try: f()
except ValueError: pass
try: f()
except BaseException:
    undo()
    raise
with suppress(OSError): f()
logger.info("%s came", x)
logger.log(10, "%s came", x)
jwt.decode(t, k, algorithms=["HS256"])
getattr(x, "name", None)
nursery.cancel_scope.cancel()
"""


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.name)
def test_the_rule_holds(rule: rules.Rule) -> None:
    assert rules.violations(rule, ROOT / "hypha") == []


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.name)
def test_the_rule_finds_its_faults_and_nothing_else(rule: rules.Rule) -> None:
    for fault in FAULTS[rule.name]:
        assert rules.breaches(rule, fault), fault
    assert rules.breaches(rule, FAIR) == []


def test_the_number_of_exceptions_is_held(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("print('x')\nprint('y')")
    rule = next(rule for rule in rules.RULES if rule.name == "only the banner prints")
    assert rules.violations(replace(rule, exceptions={"a.py": 2}), tmp_path) == []
    for wrong in ({}, {"a.py": 1}, {"a.py": 3}, {"a.py": 2, "gone.py": 1}):
        assert len(rules.violations(replace(rule, exceptions=wrong), tmp_path)) == 1


def test_comments_postpone_nothing_and_exemptions_have_reasons() -> None:
    sources = [*ROOT.glob("hypha/**/*.py"), *ROOT.glob("tests/**/*.py")]
    assert [f"{path}:{bad}" for path in sources for bad in rules.bad_comments(path.read_text())] == []


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("f()  # TODO: more", True),
        ("f()  # noqa", True),
        ("f()  # noqa: S603", True),
        ("f()  # noqa: S603  our own module", False),
        ("f()  # type: ignore", True),
        ("f()  # type: ignore[arg-type]", True),
        ("f()  # type: ignore[arg-type]  # its types are wrong", False),
        ("f()  # why", False),
    ],
)
def test_a_bad_comment_is_found(line: str, bad: bool) -> None:
    assert bool(rules.bad_comments(line)) == bad


def test_what_we_depend_on_fits_together() -> None:
    """The server, the published client and the tools are in this one environment (issue 2, point 1)."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    import imjoy_rpc.hypha

    assert imjoy_rpc.hypha.connect_to_server
