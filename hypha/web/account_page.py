"""The text of the account page: all about one account, for who is signed in to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

from hypha.accounts.account import Account, Invitation, SignedIn
from hypha.accounts.oidc import host_of
from hypha.accounts.passwords import MIN_LENGTH
from hypha.accounts.shares import Share
from hypha.broker.access import Level, Principal
from hypha.broker.issued import IssuedToken
from hypha.broker.registry import Workspace
from hypha.web.document import ago, span
from hypha.web.elements import count, hidden, options, problem

#: What a token or a link may live, in seconds: the choices of the page.
LIVES = {3600: "an hour", 86400: "a day", 2592000: "30 days", 31536000: "a year"}
LEVELS = {"read_write": "read and write", "read": "read", "admin": "administer"}
#: What a token opens, beside the names of workspaces, which hold no space: everything, and the server with it.
ALL, ALL_AND_SERVER = " all", " server"
#: What a token may do: as much as its account.
AS_MUCH = ""
PEOPLE_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Crowd:
    """The *people* shown of the *found* ones in whose name or address *wanted* stands, among *all*.

    *waiting*: invitations that were not accepted yet, by their marks.
    """

    wanted: str
    people: list[Account]
    found: int
    all: int
    waiting: list[tuple[str, Invitation]]


@dataclass(frozen=True, slots=True)
class View:
    """What the page shows, of the account of *browser*. *root*: the way there. *now*: seconds since the epoch.

    *provider*: where one can sign in, too. *browsers*: in how many it is signed in. *in_use*: how many programs are
    connected by the id of a token. *crowd*: whom an administrator sees. *done* and *wrong*: what has become of the form
    that was *sent*.
    """

    root: str
    browser: SignedIn
    now: float
    provider: str | None
    browsers: int
    places: list[tuple[Workspace, Level]]
    tokens: list[IssuedToken]
    in_use: Mapping[str, int]
    shares: list[Share]
    crowd: Crowd | None
    done: str | None = None
    wrong: str | None = None
    sent: Mapping[str, str] = field(default_factory=dict)

    @property
    def account(self) -> Account:
        """Whose page it is."""
        return self.browser.account

    def form(self, action: str, **fields: str) -> str:
        """The beginning of a form that acts for the account."""
        return f'method="post" action="{self.root}account/{action}">{hidden(form=self.browser.form, **fields)}'

    def name_of(self, workspace: str) -> str:
        """What its owner reads of a workspace. Text."""
        return "my own workspace" if workspace == self.account.id else workspace


def account_page(view: View) -> str:
    """The whole page."""
    parts = [
        _head(view),
        f'<p class="good" role="status">{escape(view.done)}</p>' if view.done else "",
        problem(view.wrong),
        _who(view),
        _workspaces(view),
        _token_form(view),
        _tokens(view),
        _share_form(view),
        _shares(view),
        _people(view, view.crowd) if view.crowd is not None else "",
        _identity_form(view),
        _password_form(view),
    ]
    return "\n".join(part for part in parts if part)


def _head(view: View) -> str:
    return f"""<header><h1>{escape(view.account.name)}</h1>
<form {view.form("sign-out")}<button>Sign out</button></form>
</header>"""


def _who(view: View) -> str:
    person = view.account
    rows = [("User id", f"<code>{person.id}</code>")]
    if person.email:
        rows.append(("E-mail", escape(person.email)))
    if person.is_admin:
        rows.append(("Role", "administers this server"))
    ways = ["a password"] if person.password is not None else []
    ways += [escape(host_of(person.identity[0]))] if person.identity is not None else []
    rows.append(("Signs in", f"with {' and with '.join(ways)}"))
    rows.append(("Signed in", f"in {count(view.browsers, 'browser')}"))
    inner = "".join(f"<dt>{label}</dt><dd>{value}</dd>" for label, value in rows)
    return f"<h2>Who you are</h2>\n<dl>{inner}</dl>"


# --- workspaces and tokens ----------------------------------------------------------------------------------------


def _workspaces(view: View) -> str:
    items = "".join(_workspace(view, place, level) for place, level in view.places)
    return f'<h2>Your workspaces</h2>\n<ul class="cards">{items}</ul>'


def _workspace(view: View, place: Workspace, level: Level) -> str:
    there = f"{count(len(place.members), 'program')}, {count(sum(1 for _ in place.services()), 'service')}"
    note = "your own, where your programs go" if place.name == view.account.id else place.description
    second = f"<br><small>{escape(note)}</small>" if note else ""
    may = LEVELS.get(level.name.lower(), "")
    return f"<li><div><b>{escape(place.name)}</b>{second}</div><span>{may}</span><span>{there}</span></li>"


def _token_form(view: View) -> str:
    sent = view.sent if "scope" in view.sent else {}
    scopes = [(ALL, "all my workspaces")]
    if view.account.is_admin:
        scopes.append((ALL_AND_SERVER, "all my workspaces, and administering the server"))
    scopes += [(place.name, f"only {view.name_of(place.name)}") for place, _ in view.places]
    levels = [(AS_MUCH, "whatever I may"), *LEVELS.items()]
    return f"""<h2>Make a token</h2>
<p><small>A program that connects with it is you: its services keep their place in your workspace. A token for only one
workspace is somebody else's, whose <code>parent</code> is you.</small></p>
<form class="tall" {view.form("tokens")}
<label>What it is for
<input name="label" value="{escape(sent.get("label", ""))}" maxlength="100" required
placeholder="the microscope in room 3"></label>
<div class="two">
<label>Opens <select name="scope">{options(scopes, sent.get("scope", ALL))}</select></label>
<label>There it may <small>(for only one)</small>
<select name="level">{options(levels, sent.get("level", AS_MUCH))}</select></label>
<label>Lives for <select name="life">{_lives(sent)}</select></label>
</div>
<button class="main">Make a token</button>
</form>"""


def _lives(sent: Mapping[str, str]) -> str:
    return options(((str(seconds), text) for seconds, text in LIVES.items()), sent.get("life", "2592000"))


def _tokens(view: View) -> str:
    items = "".join(_token(view, item) for item in view.tokens)
    listed = f'<ul class="cards">{items}</ul>' if items else "<p>You have none.</p>"
    return f"<h2>Your tokens</h2>\n{listed}"


def _token(view: View, token: IssuedToken) -> str:
    label, programs = escape(token.label or ""), view.in_use.get(token.id, 0)
    used = "never used" if token.last_used is None else f"used {ago(view.now - token.last_used)}"
    if programs:
        used = f"<b>in use by {count(programs, 'program')}</b>"
    times = f"made {ago(view.now - token.issued_at)}, ends in {span(token.expires_at - view.now)}, {used}"
    return f"""<li><div><b>{label}</b><br><small>opens {_opened(view, token.holder)}; {times}</small></div>
<form {view.form("tokens/revoke", id=token.id)}
<button aria-label="Revoke {label}">Revoke</button></form></li>"""


def _opened(view: View, holder: Principal) -> str:
    """What a token opens, which is all that its account may do, or one workspace for a user of its own."""
    if not holder.issuers:
        return "all my workspaces, and the server" if holder.is_admin else "all my workspaces"
    levels = ((name, LEVELS.get(level.name.lower(), "")) for name, level in holder.grants.items())
    return ", ".join(f"only {escape(view.name_of(name))} ({may})" for name, may in levels)


# --- links --------------------------------------------------------------------------------------------------------


def _share_form(view: View) -> str:
    sent = view.sent if "service" in view.sent else {}
    writable = [place for place, level in view.places if level >= Level.READ_WRITE]
    offered = {(place.name, service.id): service.name for place in writable for service in place.services()}
    services = [
        (f"{place} {service}", name if place == view.account.id else f"{name} in {place}")
        for (place, service), name in offered.items()
    ]
    if not services:
        return "<h2>Share</h2>\n<p>When a program of yours offers a service, you can share it here by a link.</p>"
    return f"""<h2>Share</h2>
<p><small>Whoever has the link can call the service, on a page and over HTTP, without an account.</small></p>
<form class="tall" {view.form("shares")}
<label>Service <select name="service">{options(services, sent.get("service", ""))}</select></label>
<label>Whom it is for
<input name="label" value="{escape(sent.get("label", ""))}" maxlength="100" required
placeholder="the reviewers of our paper"></label>
<div class="two">
<label>Only the function
<input name="function" value="{escape(sent.get("function", ""))}" placeholder="all" autocapitalize="none"></label>
<label>At most so many calls
<input name="calls" value="{escape(sent.get("calls", ""))}" inputmode="numeric" pattern="[0-9]*" placeholder="any">
</label>
<label>Lives for <select name="life">{_lives(sent)}</select></label>
</div>
<button>Make a link</button>
</form>"""


def _shares(view: View) -> str:
    items = "".join(_share(view, item) for item in view.shares)
    return f'<h2>Your links</h2>\n<ul class="cards">{items}</ul>' if items else ""


def _share(view: View, item: Share) -> str:
    what = f"{item.service}.{item.function}" if item.function else item.service
    most = "" if item.calls is None else f" of {item.calls}"
    last = "" if item.last is None else f", the last {ago(view.now - item.last)}"
    where = view.name_of(item.workspace)
    told = f"{what} in {where}; calls: {item.used}{most}{last}; ends in {span(item.until - view.now)}"
    return f"""<li><div><b>{escape(item.label)}</b><br><small>{escape(told)}</small></div>
<form {view.form("shares/revoke", id=item.id)}
<button aria-label="Revoke {escape(item.label)}">Revoke</button></form></li>"""


# --- people -------------------------------------------------------------------------------------------------------


def _people(view: View, crowd: Crowd) -> str:
    items = "".join(_person(view, person) for person in crowd.people)
    waiting = "".join(_waiting(view, mark, invitation) for mark, invitation in crowd.waiting)
    invitations = f'<h3>Links that wait to be used</h3>\n<ul class="cards">{waiting}</ul>' if waiting else ""
    return f"""<h2 id="people">People</h2>
{_search(view, crowd) if crowd.all > PEOPLE_SHOWN else ""}
<ul class="cards">{items}</ul>
{invitations}
<form class="tall" {view.form("invitations")}
<label>E-mail address of somebody new <small>(optional; with it come the workspaces that are shared with it)</small>
<input name="email" type="email" autocomplete="off"></label>
<button>Make an invitation link</button>
</form>"""


def _search(view: View, crowd: Crowd) -> str:
    found = f"{len(crowd.people)} of {crowd.found} are shown" if crowd.found > PEOPLE_SHOWN else f"{crowd.found} found"
    return f"""<form class="tall" method="get" action="{view.root}account#people">
<label>Find by name or address <small>({found})</small>
<input type="search" name="find" value="{escape(crowd.wanted)}" autocomplete="off" autocapitalize="none"></label>
<button>Find</button>
</form>"""


def _person(view: View, person: Account) -> str:
    email = f" {escape(person.email)}" if person.email else ""
    role = "administers this server" if person.is_admin else ""
    name = escape(person.name)
    deeds = (
        ""
        if person is view.account
        else f"""<details><summary aria-label="More about {name}">More</summary>
<form {view.form("people/password", id=person.id)}<button>Link for another password</button></form>
<form {view.form("people/remove", id=person.id)}<button>Remove the account ...</button></form>
</details>"""
    )
    return f"<li><div><b>{name}</b>{email}</div><span>{role}</span>{deeds}</li>"


def _waiting(view: View, mark: str, invitation: Invitation) -> str:
    ends = f"ends in {span(invitation.until - view.now)}"
    return f"""<li><div>{escape(_invites(view, invitation))}<br><small>{ends}</small></div>
<form {view.form("invitations/withdraw", id=mark)}<button>Withdraw</button></form></li>"""


def _invites(view: View, invitation: Invitation) -> str:
    """What a link is for. Text."""
    if invitation.account is not None:
        known = view.crowd.people if view.crowd is not None else []
        names = [person.name for person in known if person.id == invitation.account]
        return f"another password for {names[0] if names else invitation.account}"
    if invitation.roles:
        return "an account that administers the server"
    return f"an account for {invitation.email or 'whoever has the link'}"


# --- signing in ---------------------------------------------------------------------------------------------------


def _identity_form(view: View) -> str:
    """To connect the account with a provider, or not to be connected any more where there is another way in."""
    identity = view.account.identity
    if identity is not None and view.account.password is not None:
        host = escape(host_of(identity[0]))
        return f"""<h2>Signing in with {host}</h2>
<p>Whoever is signed in there as you comes in here.</p>
<form {view.form("oidc/disconnect")}
<button>Disconnect {host}</button></form>"""
    if view.provider is None or identity is not None:
        return ""
    host = escape(view.provider)
    return f"""<h2>Signing in with {host}</h2>
<p>Connect this account with yours there, and come in without a password.</p>
<form {view.form("oidc")}
<button>Connect {host}</button></form>"""


def _password_form(view: View) -> str:
    if view.account.password is None:
        return """<h2>Password</h2>
<p>This account has none. Whoever administers this server can make a link with which you choose one.</p>"""
    is_open = " open" if "old" in view.sent else ""
    return f"""<h2>Password</h2>
<details{is_open}><summary>Change it, and sign out all other browsers</summary>
<form class="tall" {view.form("password")}
<input name="name" value="{escape(view.account.name)}" autocomplete="username" hidden>
<label>Password now <input name="old" type="password" autocomplete="current-password" required></label>
<label>New password <small>(at least {MIN_LENGTH} characters)</small>
<input name="new" type="password" autocomplete="new-password" minlength="{MIN_LENGTH}" required></label>
<button>Change the password</button>
</form></details>"""
