"""The text of the account pages. Everything that somebody has chosen is escaped where it is put in."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from hypha.accounts.account import Account, Invitation, SignedIn
from hypha.accounts.oidc import host_of
from hypha.accounts.passwords import MIN_LENGTH
from hypha.accounts.shares import Share
from hypha.broker.access import Level, Principal
from hypha.broker.issued import IssuedToken
from hypha.broker.registry import Workspace
from hypha.web.document import ago, sentence, span

#: What a token may live, in seconds: the choices of the page.
LIVES = {3600: "an hour", 86400: "a day", 2592000: "30 days", 31536000: "a year"}
LEVELS = {"read_write": "read and write", "read": "read", "admin": "administer"}
#: Choices of what a token opens, beside the names of workspaces, which hold no space.
ALL, ALL_AND_SERVER = " all", " server"
PEOPLE_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Crowd:
    """The *people* shown of the *found* ones in whose name or address *wanted* stands, among *all*."""

    wanted: str
    people: list[Account]
    found: int
    all: int


def sign_in(root: str, provider: str | None, key: str = "", problem: str | None = None, name: str = "") -> str:
    """The form to sign in. *provider*: where one can, too. *key*: of the program that waits for a token."""
    why = "<p>A program waits for a token of yours. Sign in to see what it asks for.</p>" if key else ""
    return f"""<header><h1>Sign in</h1></header>
{why}{_problem(problem)}
<form class="tall" method="post" action="{root}account/sign-in">
{_hidden(key=key) if key else ""}
<label>Name or e-mail address
<input name="name" value="{escape(name)}" autocomplete="username" autocapitalize="none" required autofocus></label>
<label>Password
<input name="password" type="password" autocomplete="current-password" required></label>
<button class="main">Sign in</button>
</form>
{_continue(root, provider, **({"key": key} if key else {}))}
<p><small>An account is made with a link, which you get from whoever runs this server.</small></p>"""


def join(
    root: str,
    provider: str | None,
    secret: str,
    invitation: Invitation,
    problem: str | None = None,
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
{what}{_problem(problem)}
<form class="tall" method="post" action="{root}account/join">
{_hidden(link=secret)}
<label>Name <small>(letters, digits and . _ -)</small>
<input name="name" value="{escape(name)}" autocomplete="username" autocapitalize="none" required autofocus></label>
{email}
<label>Password <small>(at least {MIN_LENGTH} characters)</small>
<input name="password" type="password" autocomplete="new-password" minlength="{MIN_LENGTH}" required></label>
<button class="main">Make the account</button>
</form>
{_continue(root, provider, link=secret)}"""


def renew(root: str, secret: str, name: str, problem: str | None = None) -> str:
    """The form for another password."""
    return f"""<header><h1>Choose a password</h1></header>
<p>For the account <b>{escape(name)}</b>. All browsers in which it is signed in are signed out.</p>{_problem(problem)}
<form class="tall" method="post" action="{root}account/join">
{_hidden(link=secret, name=name)}
<label>New password <small>(at least {MIN_LENGTH} characters)</small>
<input name="password" type="password" autocomplete="new-password" minlength="{MIN_LENGTH}" required autofocus></label>
<button class="main">Take it</button>
</form>"""


def account(
    root: str,
    provider: str | None,
    browser: SignedIn,
    now: float,
    browsers: int,
    places: list[tuple[Workspace, Level]],
    tokens: list[IssuedToken],
    shares: list[Share],
    crowd: Crowd | None,
    done: str | None = None,
) -> str:
    """Everything about the account of *browser*.

    *provider*: where one can sign in, too. *crowd*: whom an administrator sees.
    """
    parts = [
        _head(root, browser),
        f'<p class="good" role="status">{escape(done)}</p>' if done else "",
        _who(browser.account, browsers),
        _workspaces(browser, places),
        _token_form(root, browser, places),
        _tokens(root, browser, tokens, now),
        _share_form(root, browser, places),
        _shares(root, browser, shares, now),
        _people(root, browser, crowd) if crowd is not None else "",
        _identity_form(root, provider, browser),
        _password_form(root, browser),
    ]
    return "\n".join(part for part in parts if part)


def new_token(root: str, text: str, label: str, url: str) -> str:
    """A token, this once, and how it is used."""
    config = f'{{\n    "server_url": {json.dumps(url)},\n    "token": token,\n}}'
    return f"""<header><h1>Your new token</h1></header>
<p>For <b>{escape(label)}</b>. Copy it now: it is not shown again. Whoever has it can act in your place.</p>
{_to_copy("token", text, "Copy the token", rows=8)}
<h2>In a program</h2>
<pre>from hypha_rpc import connect_to_server

server = await connect_to_server({escape(config)})</pre>
<p><small>With imjoy-rpc the first line is <code>from imjoy_rpc.hypha import connect_to_server</code>.</small></p>
<p><a href="{root}account">Back to your account</a></p>"""


def new_link(root: str, title: str, told: str, url: str) -> str:
    """A link that holds a secret, this once."""
    return f"""<header><h1>{escape(title)}</h1></header>
<p>{escape(told)}</p>
{_to_copy("link", url, "Copy the link", rows=3)}
<p><a href="{root}account">Back to your account</a></p>"""


def elsewhere(root: str, provider: str, address: str) -> str:
    """On the way to *provider*, whose page is at *address*."""
    return f"""<header><h1>You go on to {escape(provider)}</h1></header>
<p><a class="button" href="{escape(address)}">Continue with {escape(provider)}</a></p>
<p><a href="{root}account">No, back</a></p>"""


def allow(root: str, browser: SignedIn, key: str, program: str, time: str, what: str) -> str:
    """Whether a program gets a token. *what* is HTML."""
    return f"""<header><h1>Let a program in?</h1></header>
<p>{escape(program)} started to log in {escape(time)} and waits for a token. It asks for {what}.</p>
<p>Go on only if you have started it yourself: with the token it acts in your place, as <b>{_name(browser)}</b>.</p>
<form class="tall" method="post" action="{root}account/allow">
{_hidden(form=browser.form, key=key)}
<button class="main">Give it a token</button>
</form>
<p><a href="{root}account">No, go to my account</a></p>"""


def message(root: str, title: str, text: str) -> str:
    """A few words, and the way back."""
    return f"""<header><h1>{escape(title)}</h1></header>
<p>{escape(text)}</p>
<p><a href="{root}account">Your account</a></p>"""


# --- the parts of the account page ------------------------------------------------------------------------------


def _head(root: str, browser: SignedIn) -> str:
    return f"""<header><h1>{_name(browser)}</h1>
<form method="post" action="{root}account/sign-out">{_hidden(form=browser.form)}<button>Sign out</button></form>
</header>"""


def _who(person: Account, browsers: int) -> str:
    rows = [("User id", f"<code>{person.id}</code>")]
    if person.email:
        rows.append(("E-mail", escape(person.email)))
    rows.append(("Role", "administers this server" if person.is_admin else "user"))
    ways = ["a password"] if person.password is not None else []
    ways += [escape(host_of(person.identity[0]))] if person.identity is not None else []
    rows.append(("Signs in", f"with {' and with '.join(ways)}"))
    rows.append(("Signed in", f"in {browsers} browser{'s' if browsers > 1 else ''}"))
    inner = "".join(f"<dt>{label}</dt><dd>{value}</dd>" for label, value in rows)
    return f"<h2>Who you are</h2>\n<dl>{inner}</dl>"


def _workspaces(browser: SignedIn, places: list[tuple[Workspace, Level]]) -> str:
    items = "".join(_workspace(browser, place, level) for place, level in places)
    return f'<h2>Your workspaces</h2>\n<ul class="cards">{items}</ul>'


def _workspace(browser: SignedIn, place: Workspace, level: Level) -> str:
    services, clients = sum(1 for _ in place.services()), len(place.members)
    there = f"{clients} program{'' if clients == 1 else 's'}, {services} service{'' if services == 1 else 's'}"
    own = place.name == browser.account.id
    note = "your own, where your programs go" if own else place.description
    second = f"<br><small>{escape(note)}</small>" if note else ""
    may = LEVELS.get(level.name.lower(), "")
    return f"<li><div><b>{escape(place.name)}</b>{second}</div><span>{may}</span><span>{there}</span></li>"


def _token_form(root: str, browser: SignedIn, places: list[tuple[Workspace, Level]]) -> str:
    everything = [(ALL, "all my workspaces")]
    if browser.account.is_admin:
        everything.append((ALL_AND_SERVER, "all my workspaces, and administering the server"))
    names = [place.name for place, _ in places]
    scopes = _options([*everything, *((name, f"only {name}") for name in names)])
    lives = _options(((str(seconds), text) for seconds, text in LIVES.items()), chosen="2592000")
    return f"""<h2>Make a token</h2>
<p><small>A program that connects with it is you: its services keep their place in your workspace.</small></p>
<form class="tall" method="post" action="{root}account/tokens">
{_hidden(form=browser.form)}
<label>What it is for
<input name="label" maxlength="100" required placeholder="the microscope in room 3"></label>
<div class="two">
<label>Opens <select name="scope">{scopes}</select></label>
<label>There it may <select name="level">{_options(LEVELS.items())}</select></label>
<label>Lives for <select name="life">{lives}</select></label>
</div>
<button class="main">Make a token</button>
</form>"""


def _tokens(root: str, browser: SignedIn, tokens: list[IssuedToken], now: float) -> str:
    items = "".join(_token(root, browser, item, now) for item in tokens)
    listed = f'<ul class="cards">{items}</ul>' if items else "<p>None that is good now.</p>"
    return f"<h2>Your tokens</h2>\n{listed}"


def _token(root: str, browser: SignedIn, token: IssuedToken, now: float) -> str:
    label = escape(token.label or "")
    used = "never used" if token.last_used is None else f"used {ago(now - token.last_used)}"
    times = f"made {ago(now - token.issued_at)}, ends in {span(token.expires_at - now)}, {used}"
    return f"""<li><div><b>{label}</b><br><small>opens {_opened(token.holder)}; {times}</small></div>
<form method="post" action="{root}account/tokens/revoke">{_hidden(form=browser.form, id=token.id)}
<button aria-label="Revoke {label}">Revoke</button></form></li>"""


def _opened(holder: Principal) -> str:
    """What a token opens, which is all that its account may do, or one workspace for a user of its own."""
    if not holder.issuers:
        return "all and the server" if holder.is_admin else "all"
    levels = ((name, LEVELS.get(level.name.lower(), "")) for name, level in holder.grants.items())
    return ", ".join(f"{escape(name)} ({may})" for name, may in levels)


def _share_form(root: str, browser: SignedIn, places: list[tuple[Workspace, Level]]) -> str:
    writable = [place for place, level in places if level >= Level.READ_WRITE]
    offered = {(place.name, service.id): service.name for place in writable for service in place.services()}
    services = _options(
        (f"{place} {service}", name if place == browser.account.id else f"{name} in {place}")
        for (place, service), name in offered.items()
    )
    if not services:
        return "<h2>Share</h2>\n<p>When a program of yours offers a service, you can share it here by a link.</p>"
    lives = _options(((str(seconds), text) for seconds, text in LIVES.items()), chosen="2592000")
    return f"""<h2>Share</h2>
<p><small>Whoever has the link can call the service, on a page and over HTTP, without an account.</small></p>
<form class="tall" method="post" action="{root}account/shares">
{_hidden(form=browser.form)}
<label>Service <select name="service">{services}</select></label>
<label>Whom it is for
<input name="label" maxlength="100" required placeholder="the reviewers of our paper"></label>
<div class="two">
<label>Only the function <input name="function" placeholder="all" autocapitalize="none"></label>
<label>At most so many calls <input name="calls" inputmode="numeric" pattern="[0-9]*" placeholder="any"></label>
<label>Lives for <select name="life">{lives}</select></label>
</div>
<button>Make a link</button>
</form>"""


def _shares(root: str, browser: SignedIn, shares: list[Share], now: float) -> str:
    items = "".join(_share(root, browser, item, now) for item in shares)
    return f'<h2>Your links</h2>\n<ul class="cards">{items}</ul>' if items else ""


def _share(root: str, browser: SignedIn, item: Share, now: float) -> str:
    what = f"{item.service}.{item.function}" if item.function else item.service
    most = "" if item.calls is None else f" of {item.calls}"
    last = "" if item.last is None else f", the last {ago(now - item.last)}"
    told = f"{what} in {item.workspace}; calls: {item.used}{most}{last}; ends in {span(item.until - now)}"
    return f"""<li><div><b>{escape(item.label)}</b><br><small>{escape(told)}</small></div>
<form method="post" action="{root}account/shares/revoke">{_hidden(form=browser.form, id=item.id)}
<button aria-label="Revoke {escape(item.label)}">Revoke</button></form></li>"""


def _people(root: str, browser: SignedIn, crowd: Crowd) -> str:
    items = "".join(_person(root, browser, person) for person in crowd.people)
    return f"""<h2 id="people">People</h2>
{_search(root, crowd) if crowd.all > PEOPLE_SHOWN else ""}
<ul class="cards">{items}</ul>
<form class="tall" method="post" action="{root}account/invitations">
{_hidden(form=browser.form)}
<label>E-mail address of somebody new <small>(may stay empty; what is shared with it is theirs)</small>
<input name="email" type="email" autocomplete="off"></label>
<button>Make an invitation link</button>
</form>"""


def _search(root: str, crowd: Crowd) -> str:
    count = f"{len(crowd.people)} of {crowd.found} are shown" if crowd.found > PEOPLE_SHOWN else f"{crowd.found} found"
    return f"""<form class="tall" method="get" action="{root}account#people">
<label>Find by name or address <small>({count})</small>
<input type="search" name="find" value="{escape(crowd.wanted)}" autocomplete="off" autocapitalize="none"></label>
<button>Find</button>
</form>"""


def _person(root: str, browser: SignedIn, person: Account) -> str:
    email = f" {escape(person.email)}" if person.email else ""
    role = "administers this server" if person.is_admin else "user"
    name = escape(person.name)
    fields = _hidden(form=browser.form, id=person.id)
    deeds = (
        ""
        if person is browser.account
        else f"""<details><summary aria-label="More about {name}">More</summary>
<form method="post" action="{root}account/people/password">{fields}<button>Link for another password</button></form>
<form method="post" action="{root}account/people/remove">{fields}<button>Remove with all that is theirs</button></form>
</details>"""
    )
    return f"<li><div><b>{name}</b>{email}</div><span>{role}</span>{deeds}</li>"


def _identity_form(root: str, provider: str | None, browser: SignedIn) -> str:
    """To connect the account with a provider, or not to be connected any more where there is another way in."""
    identity = browser.account.identity
    if identity is not None and browser.account.password is not None:
        host = escape(host_of(identity[0]))
        return f"""<h2>Signing in with {host}</h2>
<p>Whoever is signed in there as you are comes in here.</p>
<form method="post" action="{root}account/oidc/disconnect">{_hidden(form=browser.form)}
<button>Disconnect {host}</button></form>"""
    if provider is None or identity is not None:
        return ""
    return f"""<h2>Signing in with {escape(provider)}</h2>
<p>Connect this account with yours there, and come in without a password.</p>
<form method="post" action="{root}account/oidc">{_hidden(form=browser.form)}
<button>Connect {escape(provider)}</button></form>"""


def _password_form(root: str, browser: SignedIn) -> str:
    if browser.account.password is None:
        return """<h2>Password</h2>
<p>This account has none. Whoever administers this server can make a link with which you choose one.</p>"""
    return f"""<h2>Password</h2>
<details><summary>Change it, and sign out all other browsers</summary>
<form class="tall" method="post" action="{root}account/password">
{_hidden(form=browser.form)}
<input name="name" value="{_name(browser)}" autocomplete="username" hidden>
<label>Password now <input name="old" type="password" autocomplete="current-password" required></label>
<label>New password <small>(at least {MIN_LENGTH} characters)</small>
<input name="new" type="password" autocomplete="new-password" minlength="{MIN_LENGTH}" required></label>
<button>Change the password</button>
</form></details>"""


# --- small pieces -----------------------------------------------------------------------------------------------


def _name(browser: SignedIn) -> str:
    return escape(browser.account.name)


def _hidden(**fields: str) -> str:
    return "".join(f'<input type="hidden" name="{name}" value="{escape(value)}">' for name, value in fields.items())


def _continue(root: str, provider: str | None, **fields: str) -> str:
    """The other way to sign in, where there is one."""
    if provider is None:
        return ""
    return f"""<form class="tall" method="post" action="{root}account/oidc">
{_hidden(**fields)}
<button>Continue with {escape(provider)}</button>
</form>"""


def _problem(text: str | None) -> str:
    return f'<p class="bad" role="alert">{escape(sentence(text))}</p>' if text else ""


def _options(choices: Iterable[tuple[str, str]], chosen: str = "") -> str:
    return "".join(
        f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{escape(text)}</option>'
        for value, text in choices
    )


def _to_copy(name: str, text: str, label: str, rows: int) -> str:
    return f"""<textarea id="{name}" rows="{rows}" readonly aria-label="{name}" spellcheck="false">
{escape(text)}</textarea>
<p><button type="button" class="main" data-copies="{name}" hidden>{label}</button></p>"""
