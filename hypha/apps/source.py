"""What an app is made of: plain JavaScript with a config, or an ImJoy plugin file (``protocol.md`` 10.2). Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from hypha.apps.probe import parse_probe
from hypha.errors import InvalidArgument

#: The kinds of apps: on the page itself, in a worker of its own, and in Python within a worker.
KINDS = ("window", "web-worker", "web-python")

_BLOCK = re.compile(r"<(config|docs|window|attachment|script|style)\b([^>]*)>(.*?)</\1\s*>", re.DOTALL | re.IGNORECASE)
_LINK = re.compile(r"<link\b[^>]*?\bhref\s*=\s*[\"']([^\"']+)[\"'][^>]*>", re.IGNORECASE)
_LANGUAGE = re.compile(r"\blang\s*=\s*[\"']?([A-Za-z]+)", re.IGNORECASE)
_BY_TAG = ("env", "requirements", "dependencies", "icon", "ui", "type", "flags", "labels", "cover", "passive")
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_SHA2_256 = b"\x12\x20"  # the head of a multihash: which function, and how many bytes
_PLUGIN = "Failed to parse or compile the imjoy plugin, error: "


@dataclass(frozen=True, slots=True)
class Source:
    """An app as it runs. *links* are style sheets, *requirements* scripts that are loaded before *code*."""

    name: str
    kind: str
    code: str
    config: Mapping[str, Any]
    documentation: str = ""
    window: str = ""
    style: str = ""
    links: list[str] = field(default_factory=list)
    requirements: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A map from which :meth:`from_json` makes an equal one."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Source:
        """The inverse of :meth:`to_json`."""
        return cls(**document)


def multihash(text: str) -> str:
    """The base58 of the sha2-256 multihash of *text* in UTF-8: an id that says what it is of."""
    data = _SHA2_256 + hashlib.sha256(text.encode()).digest()
    number, letters = int.from_bytes(data, "big"), []
    while number:
        number, rest = divmod(number, 58)
        letters.append(_ALPHABET[rest])
    return "".join(reversed(letters))


def parse(text: str, config: object = None, template: object = None) -> Source:
    """Read the source of an app: an ImJoy plugin without *config*, the body of an async function with one.

    Raises :class:`InvalidArgument` that says what is wrong.
    """
    if config is None and template in (None, "imjoy"):
        return _plugin(text)
    if not isinstance(config, dict):
        raise InvalidArgument("config must be a map with a type, or be left out for an ImJoy plugin file")
    if template == "imjoy":
        raise InvalidArgument("config must not be given with an ImJoy plugin file: it holds one")
    kind = config.get("type")
    if template not in (None, f"{kind}-plugin.html"):
        raise InvalidArgument(f"there is no template {str(template)[:100]!r}; leave it out")
    return _source(text, _plain(config, ""))


def _plugin(text: str) -> Source:
    blocks: dict[str, list[tuple[str, str]]] = {}
    for name, attributes, content in _BLOCK.findall(text):
        blocks.setdefault(name.lower(), []).append((attributes, content))
    if len(blocks.get("config", ())) != 1 or len(blocks.get("script", ())) != 1:
        raise InvalidArgument(f"{_PLUGIN}it takes one <config> and one <script>; for plain JavaScript give a config")
    (attributes, content), (script_attributes, code) = blocks["config"][0], blocks["script"][0]
    config = _plain(_read_config(_language(attributes) or "json", content), _PLUGIN)
    language = _language(script_attributes) or "javascript"
    if (language == "python") != (config.get("type") == "web-python"):
        raise InvalidArgument(f"{_PLUGIN}a script in {language} does not fit the type {config.get('type')!r}")
    joined = {name: "\n".join(part for _, part in blocks.get(name, ())) for name in ("docs", "window", "style")}
    return _source(
        code,
        config,
        documentation=joined["docs"].strip(),
        window=joined["window"],
        style=joined["style"],
        links=_LINK.findall(_BLOCK.sub("", text)),
    )


def _language(attributes: str) -> str | None:
    match = _LANGUAGE.search(attributes)
    return match[1].lower() if match else None


def _read_config(language: str, text: str) -> dict[str, Any]:
    try:
        if language == "json":
            config = json.loads(text)
        elif language in {"yaml", "yml"}:
            # One that refers to itself again and again is small here and endless when it is written out.
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
                raise InvalidArgument(f"{_PLUGIN}its config refers to parts of itself")
            config = yaml.safe_load(text)
        else:
            raise InvalidArgument(f"{_PLUGIN}a config is written in json or yaml, not in {language}")
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InvalidArgument(f"{_PLUGIN}its config cannot be read: {str(error)[:300]}") from None
    if not isinstance(config, dict):
        raise InvalidArgument(f"{_PLUGIN}its config is not a map")
    return config


def _plain(config: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
    """*config* as JSON keeps it, for its first tag where it differs by tag."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise InvalidArgument(f"{prefix}a config holds texts, numbers, lists and maps, and nothing else") from None
    tags = plain.get("tags")
    if isinstance(tags, list) and tags and isinstance(tags[0], str):
        for key in _BY_TAG:
            if isinstance(plain.get(key), dict) and tags[0] in plain[key]:
                plain[key] = plain[key][tags[0]]
    return plain


def _source(
    code: str,
    config: dict[str, Any],
    *,
    documentation: str = "",
    window: str = "",
    style: str = "",
    links: list[str] | None = None,
) -> Source:
    kind, name = config.get("type"), config.get("name", "untitled app")
    if kind not in KINDS:
        raise InvalidArgument(f"the type of an app is {', '.join(KINDS[:-1])} or {KINDS[-1]}, not {str(kind)[:100]!r}")
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        raise InvalidArgument("the name of an app is a text of at most 200 characters")
    for probe in ("readiness_probe", "liveness_probe"):
        parse_probe(config, probe)
    needs = config.get("requirements") or []
    needs = [needs] if isinstance(needs, str) else needs
    if not isinstance(needs, list) or not all(isinstance(item, str) for item in needs):
        raise InvalidArgument("the requirements of an app are a list of addresses, or of Python packages")
    return Source(name, kind, code, config, documentation, window, style, list(links or ()), needs)
