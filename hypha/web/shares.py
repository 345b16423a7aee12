"""Shared services: a page for who has a link, and calls of what the link is for, ``/share/{link}/{function}``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote, unquote

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope
from quart import Response
from quart_trio import QuartTrio

from hypha.accounts.people import People
from hypha.accounts.shares import Share
from hypha.broker.access import Principal
from hypha.broker.broker import Broker
from hypha.errors import HyphaError, NotFound
from hypha.web.document import NO_REFERRER, document, sentence, span
from hypha.web.forms import own_url, to_root
from hypha.web.http import send_error
from hypha.web.lookup import Target, fetch, find, find_function, parameters, required
from hypha.web.proxy import Proxy
from hypha.wire import values

_PATIENCE = 10.0  # seconds for a provider to say what it offers
AWAY = "this is not offered now: its program is not connected, or has no such function; try again later"
_SHOWN = 50  # functions on a page, and characters of a default

#: Answers before which no call was made.
_UNCOUNTED = "[400, 404, 413, 415, 429]"

#: Without a script the forms lead to the answer itself.
SCRIPT = """
  const left = document.getElementById("left");
  const show = (place, text, failed) => {
    place.hidden = false;
    place.textContent = text;
    place.classList.toggle("bad", failed);
  };
  for (const form of document.querySelectorAll("form[data-calls]")) {
    const place = form.querySelector("output"), button = form.querySelector("button");
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const fields = [...new FormData(form)].filter(([, value]) => value !== "");
      show(place, "One moment ...", false);
      button.disabled = true;
      try {
        // A parameter may be called "action", too, and would then be the form's property.
        const answer = await fetch(form.getAttribute("action") + "?" + new URLSearchParams(fields));
        const text = await answer.text();
        if (left && !UNCOUNTED.includes(answer.status)) left.textContent = Math.max(0, left.textContent - 1);
        try {
          const value = JSON.parse(text);
          show(place, answer.ok ? JSON.stringify(value, null, 2) : "That failed: " + value.detail, !answer.ok);
        } catch {
          show(place, text, !answer.ok);
        }
      } catch (error) {
        show(place, "That did not work: " + error.message, true);
      }
      button.disabled = false;
    });
  }
""".replace("UNCOUNTED", _UNCOUNTED)


@dataclass(frozen=True, slots=True)
class Link:
    """What a path below ``/share`` names."""

    secret: str
    function: str


def parse_share_path(path: str) -> Link | None:
    """The call that an undecoded *path* below the base path means, or None when it means none."""
    segments = [unquote(segment) for segment in path.split("/")]
    if len(segments) != 4 or segments[:2] != ["", "share"] or not all(segments[2:]):
        return None
    return Link(segments[2], segments[3])


@dataclass(frozen=True, slots=True)
class _Entry:
    """A link at work. See :class:`hypha.web.proxy.Entry`."""

    people: People
    share: Share

    @property
    def principal(self) -> Principal:
        return self.people.shares.principal(self.share)

    @property
    def not_there(self) -> NotFound:
        return NotFound(AWAY)

    async def spend(self) -> None:
        await self.people.shares.spend(self.share)

    def require_valid(self) -> None:
        self.people.shares.require_valid(self.share)


class SharedCalls:
    """Answers the requests that :func:`parse_share_path` recognises."""

    def __init__(self, people: People, proxy: Proxy) -> None:
        self._people = people
        self._proxy = proxy

    async def serve(self, link: Link, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer one request."""
        try:
            share = self._people.shares.find(link.secret)
            if share.function not in {None, link.function}:
                raise NotFound(f"this link is for the function {share.function}")
        except HyphaError as error:
            await send_error(send, error)
            return
        target = Target(share.workspace, share.service, tuple(link.function.split(".")))
        await self._proxy.serve(target, scope, receive, send, _Entry(self._people, share))


def add_routes(app: QuartTrio, broker_of: Callable[[], Broker], people_of: Callable[[], People]) -> None:
    """Add the page to *app*. *broker_of* and *people_of* give both once the server has started."""

    @app.get("/share/<link>", strict_slashes=False)
    async def shared(link: str) -> Response:
        broker, people = broker_of(), people_of()
        try:
            share = people.shares.find(link)
            content = await _page(broker, people, share, link)
        except HyphaError as error:
            content = f"<header><h1>Not there</h1></header>\n<p>{escape(sentence(str(error)))}</p>"
            return document("Not there", content, error.status, referrer=NO_REFERRER)
        return document(share.label, content, script=SCRIPT, connects=True, referrer=NO_REFERRER)


async def _page(broker: Broker, people: People, share: Share, link: str) -> str:
    account = people.accounts.get(share.account)
    owner = account.name if account is not None else ""
    left = "" if share.calls is None else f' Calls that are left: <b id="left">{share.calls - share.used}</b>.'
    forms = ""
    if share.calls is not None and share.used >= share.calls:
        title, description = (
            share.service,
            "All calls of this link are used up. Ask for another one.",
        )
    else:
        try:
            title, description, functions = await _offered(broker, share, people.shares.principal(share))
            forms = "".join(_form(f"{own_url(broker)}/share/{quote(link)}", link, *item) for item in functions)
        except HyphaError:
            title, description = share.service, "It is not offered now: its program is not connected. Try again later."
    return f"""<header><h1>{escape(title)}</h1></header>
<p>{escape(description)}</p>
{forms}
<p><small>Shared by {escape(owner)} ({escape(share.label)}). Whoever has the link can call this. It ends in
{span(share.until - broker.clock())}.{left}</small></p>"""


async def require_function(broker: Broker, principal: Principal, workspace: str, service: str, name: str) -> None:
    """See that a service has a function, as far as *principal* may call it. Raises :class:`NotFound`."""
    target = Target(workspace, service, tuple(name.split(".")))
    found, _ = await find(broker, target, principal)
    await find_function(broker, found, [target.keys])


async def _offered(
    broker: Broker, share: Share, principal: Principal
) -> tuple[str, str, list[tuple[str, dict[str, Any] | None, frozenset[str]]]]:
    """Name and description of the service, and its functions with their parameters, None where none are known.

    The last part are the names of those that must be given. Raises what :func:`find` and :func:`fetch` raise.
    """
    target = Target(share.workspace, share.service, ())
    service, _ = await find(broker, target, principal)
    names: Iterable[str] = [share.function] if share.function else _methods(await fetch(broker, service, _PATIENCE))
    paths = [(name, tuple(name.split("."))) for name in names]
    found = [(name, parameters(service, keys) or None, required(service, keys)) for name, keys in paths]
    return service.name, service.description or "", found


def _methods(interface: dict[str, Any]) -> list[str]:
    names = (name for name, value in interface.items() if isinstance(name, str) and values.is_method(value))
    return sorted(name for name in names if not name.startswith("_"))[:_SHOWN]


def _form(address: str, link: str, name: str, known: dict[str, Any] | None, needed: frozenset[str]) -> str:
    """A form that calls the function *name*. *known*: its parameters, *needed*: those that must be given."""
    path = f"share/{quote(link)}/{quote(name, safe='')}"
    if known is None:
        example = " -H 'Content-Type: application/json' -d '{}'"
        fields = """<label>Arguments <small>(as JSON: a map of names to values, or a list)</small>
<textarea name="_args" rows="3" spellcheck="false">{}</textarea></label>"""
    else:
        arguments = {parameter: _EXAMPLES.get(_type(schema), "...") for parameter, schema in known.items()}
        example = " -H 'Content-Type: application/json' -d " + _quoted(json.dumps(arguments))
        fields = "".join(_field(parameter, schema, parameter in needed) for parameter, schema in known.items())
    return f"""<h2>{escape(name)}</h2>
<form class="tall" data-calls method="get" action="{to_root()}{path}">
{fields}
<button class="main">Call {escape(name)}</button>
<output hidden></output>
</form>
<pre>{escape(f"curl {address}/{quote(name, safe='')}{example}")}</pre>"""


#: What stands for a value of a type, as JSON schema names them, and as hypha-rpc does that finds no pydantic.
_EXAMPLES: dict[str, Any] = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}
_EXAMPLES |= {"int": 1, "float": 1.5, "bool": True, "list": [], "dict": {}}


def _type(schema: object) -> str:
    told = schema.get("type") if isinstance(schema, dict) else None
    return told if isinstance(told, str) else ""


def _field(name: str, schema: object, needed: bool) -> str:
    told = schema.get("description") if isinstance(schema, dict) else None
    kind = _type(schema)
    notes = [kind if kind in _EXAMPLES else "", told[:300] if isinstance(told, str) else ""]
    note = "; ".join(part for part in notes if part)
    small = f" <small>({escape(note)})</small>" if note else ""
    more = " required" if needed else ""
    default = schema.get("default") if isinstance(schema, dict) else None
    if isinstance(default, str | int | float):
        more += f' placeholder="{escape(str(default)[:_SHOWN])}"'
    return f'<label>{escape(name)}{small}\n<input name="{escape(name)}" autocomplete="off"{more}></label>'


def _quoted(text: str) -> str:
    """*text* as one word of a shell."""
    return "'" + text.replace("'", "'\\''") + "'"
