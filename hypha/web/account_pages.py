"""The text of the pages on which people sign in, join, and get what is shown once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from urllib.parse import urlencode

from hypha.accounts.account import Invitation, SignedIn
from hypha.accounts.passwords import MIN_LENGTH
from hypha.web.elements import hidden, problem, to_copy


def sign_in(
    root: str, provider: str | None, key: str = "", wrong: str | None = None, name: str = "", *, first: bool = False
) -> str:
    """The form to sign in. *provider*: where one can, too. *key*: of the program that waits for a token.

    *first*: whether nobody has an account yet.
    """
    if first and provider is None:
        return f"""<header><h1>Nobody has an account here yet</h1></header>
<p>The first one is made with the link that stands in the terminal in which this server was started, below its
addresses. It administers the server, and invites others.</p>
<p><a href="{root}.">What this server is</a></p>"""
    why = "<p>A program waits for a token of yours. Sign in to see what it asks for.</p>" if key else ""
    return f"""<header><h1>Sign in</h1></header>
{why}{problem(wrong)}
<form class="tall" method="post" action="{root}account/sign-in">
{hidden(key=key) if key else ""}
<label>Name or e-mail address
<input name="name" value="{escape(name)}" autocomplete="username" autocapitalize="none" required autofocus></label>
<label>Password
<input name="password" type="password" autocomplete="current-password" required></label>
<button class="main">Sign in</button>
</form>
{_continue(root, provider, **({"key": key} if key else {}))}
<p><small>An account is made with a link, which you get from whoever runs this server; so is another password, if you
have forgotten yours.</small></p>"""


def join(
    root: str,
    provider: str | None,
    secret: str,
    invitation: Invitation,
    wrong: str | None = None,
    name: str = "",
) -> str:
    """The form to make an account, with a password or, where there is one, with what *provider* says."""
    first = bool(invitation.roles)
    what = (
        "<p>This account administers the server and invites others.</p>"
        if first
        else "<p>You are invited to this server. With an account your programs keep their place here.</p>"
    )
    if first:
        email = """<label>E-mail address <small>(may stay empty)</small>
<input name="email" type="email" autocomplete="email"></label>"""
    else:
        email = f"<p>Your e-mail address here: {escape(invitation.email)}</p>" if invitation.email else ""
    return f"""<header><h1>Make your account</h1></header>
{what}{problem(wrong)}
<form class="tall" method="post" action="{root}account/join">
{hidden(link=secret)}
<label>Name <small>(letters, digits and . _ -)</small>
<input name="name" value="{escape(name)}" autocomplete="username" autocapitalize="none" required autofocus></label>
{email}
<label>Password <small>(at least {MIN_LENGTH} characters)</small>
<input name="password" type="password" autocomplete="new-password" minlength="{MIN_LENGTH}" required></label>
<button class="main">Make the account</button>
</form>
{_continue(root, provider, link=secret)}"""


def renew(root: str, secret: str, name: str, wrong: str | None = None) -> str:
    """The form for another password."""
    return f"""<header><h1>Choose a password</h1></header>
<p>For the account <b>{escape(name)}</b>. All browsers in which it is signed in are signed out.</p>{problem(wrong)}
<form class="tall" method="post" action="{root}account/join">
{hidden(link=secret, name=name)}
<label>New password <small>(at least {MIN_LENGTH} characters)</small>
<input name="password" type="password" autocomplete="new-password" minlength="{MIN_LENGTH}" required autofocus></label>
<button class="main">Set the password</button>
</form>"""


def new_token(root: str, text: str, label: str, url: str) -> str:
    """A token, this once, and how it is used."""
    return f"""<header><h1>Your new token</h1></header>
<p>For <b>{escape(label)}</b>. Copy it now: it is not shown again. Whoever has it can act in your place.</p>
{to_copy("token", text, "Copy the token", rows=9)}
<h2>In a program</h2>
<pre>import asyncio
from hypha_rpc import connect_to_server

async def main():
    server = await connect_to_server({{
        "server_url": {escape(json.dumps(url))},
        "token": "PASTE THE TOKEN HERE",
    }})
    print("connected to", server.config.workspace)
    await server.disconnect()

asyncio.run(main())</pre>
<p><small>With imjoy-rpc the second line is <code>from imjoy_rpc.hypha import connect_to_server</code>.</small></p>
<h2>Over HTTP</h2>
<pre>{escape(f'curl -H "Authorization: Bearer TOKEN" {url}/WORKSPACE/services/SERVICE/FUNCTION')}</pre>
<p><a href="{root}account">Back to your account</a></p>"""


def new_link(root: str, title: str, told: str, url: str) -> str:
    """A link that holds a secret, this once."""
    return f"""<header><h1>{escape(title)}</h1></header>
<p>{escape(told)}</p>
{to_copy("link", url, "Copy the link", rows=3)}
<p><a href="{root}account">Back to your account</a></p>"""


def elsewhere(root: str, provider: str, address: str) -> str:
    """On the way to *provider*, whose page is at *address*."""
    return f"""<header><h1>You go on to {escape(provider)}</h1></header>
<p><a class="button" href="{escape(address)}">Continue with {escape(provider)}</a></p>
<p><a href="{root}account">No, back</a></p>"""


def allow(root: str, browser: SignedIn, key: str, program: str, time: str, what: str, life: str) -> str:
    """Whether a program gets a token. *what* is HTML. *life*: how long the token is good."""
    return f"""<header><h1>Let a program in?</h1></header>
<p>{escape(program)} started to log in {escape(time)} and waits for a token. It asks for a token that
opens {what} and is good for {life}.</p>
<p>Go on only if you have started it yourself: with the token it acts in your place, as
<b>{escape(browser.account.name)}</b>.</p>
<form class="tall" method="post" action="{root}account/allow">
{hidden(form=browser.form, key=key)}
<button class="main">Give it a token</button>
</form>
<p><a href="{root}account">No, go to my account</a></p>"""


def led_here(root: str, key: str, program: str, time: str) -> str:
    """What another site's link to a question shows first."""
    return f"""<header><h1>A program waits for you</h1></header>
<p>{escape(program)} started to log in {escape(time)} and waits for a token of yours. Another site has led you
here: if you have not started that program yourself, go no further.</p>
<p><a class="button" href="{root}account/allow?{escape(urlencode({"key": key}))}">I have started it: see what it asks
for</a></p>
<p><a href="{root}account">No, go to my account</a></p>"""


def sure(root: str, browser: SignedIn, action: str, fields: Mapping[str, str], title: str, text: str) -> str:
    """Asks once more before *action*, a path below the root, is done for good."""
    return f"""<header><h1>{escape(title)}</h1></header>
<p>{escape(text)}</p>
<form class="tall" method="post" action="{root}{action}">
{hidden(form=browser.form, sure="yes", **fields)}
<button class="main">{escape(title.rstrip("?"))}</button>
</form>
<p><a href="{root}account">No, back</a></p>"""


def message(root: str, title: str, text: str) -> str:
    """A few words, and the way back."""
    return f"""<header><h1>{escape(title)}</h1></header>
<p>{escape(text)}</p>
<p><a href="{root}account">Your account</a></p>"""


def _continue(root: str, provider: str | None, **fields: str) -> str:
    """The other way to sign in, where there is one."""
    if provider is None:
        return ""
    return f"""<form class="tall" method="post" action="{root}account/oidc">
{hidden(**fields)}
<button>Continue with {escape(provider)}</button>
</form>"""
