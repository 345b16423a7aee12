"""Pages for people: one look, one policy, and nothing from elsewhere.

A page is one document. Its style and its script stand in it and are named in its policy by their hashes, so that no
text which finds its way into a page is ever run.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from string import Template

from quart import Response

STYLE = """
  :root { color-scheme: light dark; --line: #8888; --soft: #8882; --mark: #0a66c2; }
  @media (prefers-color-scheme: dark) { :root { --mark: #7ab8ff; } }
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem 4rem; }
  h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; }
  h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
  header { display: flex; flex-wrap: wrap; gap: 1rem; align-items: center; justify-content: space-between; }
  a { color: var(--mark); }
  label { display: block; margin-top: .9rem; }
  label small, p small { opacity: .75; }
  .two { align-items: end; }
  input, select, textarea, button, a.button { font: inherit; padding: .55rem .75rem; border: 1px solid var(--line);
    border-radius: .4rem; box-sizing: border-box; color: inherit; background: Canvas; }
  input, select { min-height: 2.75rem; }
  form.tall input, form.tall select, textarea { display: block; width: 100%; margin-top: .25rem; }
  button, a.button { cursor: pointer; font-weight: 600; }
  button:disabled { cursor: default; opacity: .5; }
  button.main, a.button { background: var(--mark); border-color: var(--mark); color: Canvas; }
  a.button { display: block; text-align: center; text-decoration: none; }
  form.tall button { width: 100%; margin-top: 1.2rem; }
  :focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; }
  textarea, pre, code { font-family: ui-monospace, monospace; font-size: .875rem; }
  h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .75rem 1rem; background: var(--soft);
    border-radius: .4rem; }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; margin: .5rem 0; }
  dt { opacity: .75; }
  dd { margin: 0; overflow-wrap: anywhere; }
  ul.cards { list-style: none; margin: 0; padding: 0; }
  ul.cards li { display: flex; flex-wrap: wrap; gap: .4rem 1rem; align-items: center; justify-content: space-between;
    padding: .7rem 0; border-top: 1px solid var(--line); }
  ul.cards li > div { flex: 1 1 14rem; min-width: 0; overflow-wrap: anywhere; }
  .two { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); column-gap: 1rem; }
  .bad { border-left: .3rem solid #d33; padding: .4rem .8rem; background: var(--soft); }
  .good { border-left: .3rem solid #2a8; padding: .4rem .8rem; background: var(--soft); }
  summary { cursor: pointer; }
  details form { margin-top: .6rem; }
  [hidden] { display: none !important; }
  output { display: block; white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, monospace;
    font-size: .875rem; padding: .75rem 1rem; margin-top: .8rem; border: 1px solid var(--line); border-radius: .4rem; }
  output { max-height: 20rem; overflow: auto; }
"""

#: Copying needs a script; without one the text is there to be selected.
SCRIPT = """
  for (const button of document.querySelectorAll("button[data-copies]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const field = document.getElementById(button.dataset.copies);
      field.select();
      // The old way first: the new one exists on https and localhost only, and may ask.
      try {
        if (!document.execCommand("copy")) await navigator.clipboard.writeText(field.value);
        button.textContent = "Copied";
      } catch {
        button.textContent = "It is selected: copy it by hand";
      }
    });
  }
"""

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>$title - Hypha</title>
<style>$style</style>
<main>
$content
</main>
$script
</html>
""")


def _source(text: str) -> str:
    """An inline script or style as a source of the Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_HEADERS = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}
_ALONE = {"X-Frame-Options": "DENY", "Cross-Origin-Opener-Policy": "same-origin"}


#: Of a page nobody else learns the address. One without forms that must say where they come from can keep it from pages
#: of our own origin, too.
SAME_ORIGIN, NO_REFERRER = "same-origin", "no-referrer"


def document(
    title: str,
    content: str,
    status: int = 200,
    *,
    script: str = SCRIPT,
    connects: bool = False,
    referrer: str = SAME_ORIGIN,
    alone: bool = True,
) -> Response:
    """A page. *content* is HTML, *title* is text. *connects*: whether its script may ask the server.

    *referrer*: who learns its address, from where a link or the history of its tab leads. *alone*: whether no frame may
    hold it, and no opener keep its window.
    """
    element, scripts = (f"<script>{script}</script>", _source(script)) if script else ("", "'none'")
    text = _PAGE.substitute(title=escape(title), style=STYLE, content=content, script=element)
    connections, frames = ("'self'" if allowed else "'none'" for allowed in (connects, not alone))
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src {_source(STYLE)}; img-src data:; "
        f"connect-src {connections}; "
        f"base-uri 'none'; form-action 'self'; frame-ancestors {frames}"
    )
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": referrer, **_HEADERS, **(_ALONE if alone else {})}
    return Response(text, status=status, mimetype="text/html", headers=headers)


def span(seconds: float) -> str:
    """A time in the largest unit of which it has one."""
    units = [("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)]
    unit, length = next((item for item in units if seconds >= item[1]), units[-1])
    count = max(1, round(seconds / length))
    return f"{count} {unit}" + ("s" if count > 1 else "")


def sentence(text: str) -> str:
    """The text of an error as people write."""
    return f"{text[:1].upper()}{text[1:]}."


def ago(seconds: float) -> str:
    """How long something is past."""
    return "just now" if seconds < 60 else f"{span(seconds)} ago"
