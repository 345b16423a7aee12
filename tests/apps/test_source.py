"""Sources of apps, as clients of the original write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hypha.apps.page import page
from hypha.apps.python import Pyodide
from hypha.apps.source import Source, multihash, parse
from hypha.errors import InvalidArgument

PLUGIN = """
<docs lang="markdown">
# What it does
</docs>
<config lang="json">
{"name": "Plugin", "type": "web-worker", "tags": ["gpu", "cpu"], "requirements": {"gpu": ["https://a.example/g.js"]}}
</config>
<link rel="stylesheet" href="https://a.example/s.css">
<window><b id="x">x</b></window>
<style>b { color: red }</style>
<script lang="javascript">
api.export({ add: (a, b) => a < b })
</script>
"""


def test_plain_javascript() -> None:
    source = parse("api.export({})", {"type": "window", "name": "A"})
    assert (source.name, source.kind, source.code) == ("A", "window", "api.export({})")
    assert Source.from_json(json.loads(json.dumps(source.to_json()))) == source
    assert parse("1", {"type": "web-worker"}, "web-worker-plugin.html").kind == "web-worker"


def test_an_imjoy_plugin() -> None:
    source = parse(PLUGIN)
    assert (source.name, source.kind, source.documentation) == ("Plugin", "web-worker", "# What it does")
    assert source.code.strip() == "api.export({ add: (a, b) => a < b })"
    assert (source.window, source.style) == ('<b id="x">x</b>', "b { color: red }")
    assert source.links == ["https://a.example/s.css"]
    assert source.requirements == ["https://a.example/g.js"]  # of the first tag
    assert parse(PLUGIN, None, "imjoy") == source


def test_a_config_in_yaml_and_a_script_in_python() -> None:
    text = "<config lang=yaml>\nname: P\ntype: web-python\n</config><script lang='python'>\nprint(1)\n</script>"
    source = parse(text)
    assert (source.name, source.kind, source.code) == ("P", "web-python", "\nprint(1)\n")


@pytest.mark.parametrize(
    ("text", "config", "template", "reason"),
    [
        ("api.export({})", None, None, "Failed to parse or compile the imjoy plugin, error: it takes one <config>"),
        (PLUGIN.replace("{", "[", 1), None, None, "its config cannot be read"),
        (PLUGIN.replace("json", "toml"), None, None, "not in toml"),
        (PLUGIN.replace("web-worker", "iframe"), None, None, "window, web-worker or web-python, not 'iframe'"),
        (PLUGIN.replace("web-worker", "web-python"), None, None, "a script in javascript does not fit"),
        (PLUGIN + "<script>1</script>", None, None, "one <script>"),
        (PLUGIN, {"type": "window"}, "imjoy", "must not be given"),
        ("1", {}, None, "not 'None'"),
        ("1", {"type": "window"}, "other.html", "no template"),
        ("1", {"type": "window", "name": ""}, None, "the name of an app"),
        ("1", {"type": "window", "requirements": [1]}, None, "the requirements"),
        ("1", {"type": "window", "x": b"bytes"}, None, "texts, numbers, lists and maps"),
        ("1", [], None, "must be a map"),
        ("<config lang=yaml>\na: &a [1]\nb: *a\n</config><script>1</script>", None, None, "refers to parts of itself"),
        ("<config lang=yaml>\n- 1\n</config><script>1</script>", None, None, "not a map"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, config: Any, template: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(text, config, template)
    assert reason in str(caught.value)


def test_a_hash_is_known_to_others() -> None:
    # Of the bytes "multihash", as its specification has it: 12209cbc07c3f991725836a3aa2a581ca2029198aa420b9d99bc0e131d
    # 9f3e2cbe47, in base58.
    assert multihash("multihash") == "QmYtUc4iTCbbfVSDNKvtQqrfyezPPnFvE33wFmutw9PBBk"


def test_a_source_does_not_end_its_element_of_the_page() -> None:
    text = page(parse("const end = '</script><!--';", {"type": "window", "name": "<b>"}), Pyodide())
    assert "&lt;b&gt;" in text
    (document,) = [part.partition("</script>")[0] for part in text.split('type="application/json">')[1:]]
    assert json.loads(document)["code"] == "const end = '</script><!--';"
