"""The page on which a person gives a waiting program a token (``protocol.md`` 7.4).

One document without anything from elsewhere. It leads who has an account to :mod:`hypha.web.accounts`; for others it
calls the service ``hypha-login`` as everybody may, and is nothing but a form for it.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from string import Template
from urllib.parse import quote, urlencode

from quart import Response, redirect, request
from quart_trio import QuartTrio

from hypha.broker.broker import Broker
from hypha.broker.login import PAGE, Attempt
from hypha.web.document import NO_REFERRER, ago, document, span

_KEPT = ("key", "workspace", "expires_in")

_SCRIPT = """
  const key = new URLSearchParams(location.search).get("key");
  const note = document.getElementById("status");
  const buttons = document.querySelectorAll("button");
  // Account pages are shown in no frame.
  if (window.top !== window) document.querySelector("a.button").target = "_blank";

  async function call(name, values) {
    const headers = { "Content-Type": "application/json" };
    const request = { method: "POST", headers, body: JSON.stringify(values) };
    const answer = await fetch("../../services/hypha-login/" + name, request);
    const value = await answer.json();
    if (!answer.ok) throw new Error(value.detail);
    return value;
  }

  function answers(id, token) {
    document.getElementById(id)?.addEventListener("submit", async (event) => {
      event.preventDefault();
      note.textContent = "One moment ...";
      buttons.forEach((button) => { button.disabled = true; });
      try {
        await call("report", { key, token: await token() });
        document.getElementById("ask").remove();
        note.textContent = "Done. The program goes on; you can close this page.";
        history.replaceState(null, "", location.pathname);
      } catch (error) {
        note.textContent = "That did not work: " + error.message;
        buttons.forEach((button) => { button.disabled = false; });
      }
    });
  }

  answers("anonymous", () => call("generate", {}));
  answers("paste", () => document.getElementById("token").value.trim());
"""

_ASK = Template("""<div id="ask">
<p>$program started to log in $time and waits for a token. It asks for $what.</p>
<p>Go on only if you have started it yourself: with the token it acts in your place.</p>
<p><a class="button" href="../../../account/allow?key=$key">Sign in and let it in</a></p>
$anonymous
<form id="paste" class="tall">
<label>A token of this server
<input id="token" type="password" autocomplete="off" spellcheck="false" required></label>
<button>Give the program this token</button>
</form>
<noscript><p>This page needs JavaScript.</p></noscript>
</div>
<p id="status" role="status"></p>""")

_ANONYMOUS = """<form id="anonymous" class="tall">
<button>Continue as a new anonymous user</button>
<small>The program gets a token for a new user, with a workspace of its own.</small>
</form>"""

_OVER = (
    "<p>No program waits here any more. Start the login again in your program, and open the address that it shows.</p>"
)

_LOGOUT = """<p>A program is logged in as long as it has its token: end the program, or revoke the token in
<a href="../../../account">your account</a>, where you also sign out of this browser. Of who has no account this server
keeps nothing here, so there is nothing to log out of.</p>"""


def add_routes(app: QuartTrio, broker_of: Callable[[], Broker]) -> None:
    """Add the routes to *app*. *broker_of* gives the broker once the server has started."""

    @app.get("/login")
    async def login() -> Response:
        return _to(PAGE if "key" in request.args else "account")

    @app.get(f"/{PAGE}", strict_slashes=False)
    async def page() -> Response:
        if not request.path.endswith("/"):
            return _to("hypha-login/")  # the page's own links are relative
        if "logout" in request.args:
            return _page("Log out", _LOGOUT)
        broker, key = broker_of(), request.args.get("key", "")
        attempt = broker.login.waiting(key)
        if attempt is None:
            return _page("Log in", _OVER)
        return _page("Log in", _question(key, attempt, broker.now() - attempt.since), _SCRIPT)


def _to(place: str) -> Response:
    """A relative redirection: it is right behind every proxy."""
    kept = {name: request.args[name] for name in _KEPT if name in request.args}
    answer = redirect(place + (f"?{urlencode(kept)}" if kept else ""), 302)
    assert isinstance(answer, Response)
    return answer


def _page(title: str, content: str, script: str = "") -> Response:
    content = f"<header><h1>{title}</h1></header>\n{content}"
    # The key stands in the address; and clients may show the page in a frame of theirs, on our own origin.
    return document(title, content, script=script, connects=bool(script), referrer=NO_REFERRER, alone=False)


def asked(attempt: Attempt, age: float) -> tuple[str, str, str]:
    """Which program asks, how long ago, *age* seconds, and for what, which is HTML."""
    language = "that speaks HTTP" if attempt.language == "HTTP" else f"in {attempt.language}"
    where = (
        "everything that your token allows"
        if attempt.workspace is None
        else f"the workspace <b>{escape(attempt.workspace)}</b>"
    )
    time = "" if attempt.expires_in is None else f", for {span(attempt.expires_in)}"
    return f"A program {language}", ago(age), where + time


def _question(key: str, attempt: Attempt, age: float) -> str:
    program, time, what = asked(attempt, age)
    return _ASK.substitute(
        program=program,
        time=time,
        what=what,
        key=quote(key, safe=""),
        # A new user has no part in a workspace that is there already.
        anonymous=_ANONYMOUS if attempt.workspace is None else "",
    )
