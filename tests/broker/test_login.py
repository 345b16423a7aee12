"""The service ``hypha-login``: keys, who may report what, and what a program gets (``protocol.md`` 7.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hypha.broker.access import Level, Principal
from hypha.broker.broker import Credentials
from hypha.broker.own import Visit
from hypha.broker.registration import Registration
from hypha.config import Limits
from hypha.errors import Conflict, InvalidArgument
from hypha.wire.dialect import LEGACY, LEGACY_JAVASCRIPT, MODERN, MODERN_JAVASCRIPT, Dialect
from tests.broker.memory import EPOCH, LOGIN, SERVER_ID, Peer, Rejected, Scene

HOME = f"public/{SERVER_ID}"
UNKNOWN = "KeyError: Invalid key, key does not exist"


@pytest.fixture
async def live(nursery: trio.Nursery, mock_clock: MockClock) -> Scene:
    return Scene(nursery=nursery, wall=lambda: EPOCH + trio.current_time())


async def ask(peer: Peer, function: str, /, *args: Any, **kwargs: Any) -> Any:
    return await peer.ask(f"services.hypha-login.{function}", *args, to=HOME, **kwargs)


async def refused(peer: Peer, function: str, /, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(Rejected) as caught:
        await ask(peer, function, *args, **kwargs)
    return str(caught.value)


def token_for(scene: Scene, *workspaces: str, seconds: float = 1000, email: str | None = None, **more: Any) -> str:
    grants = dict.fromkeys(workspaces, Level.ADMIN)
    user = Principal(id="ada", is_anonymous=False, email=email, grants=grants, **more)
    return scene.broker.tokens.issue(user, expires_in=seconds)


# --- where it is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", [LEGACY, LEGACY_JAVASCRIPT, MODERN, MODERN_JAVASCRIPT], ids=lambda item: item.name)
async def test_every_generation_finds_it_by_its_own_name(live: Scene, dialect: Dialect) -> None:
    peer = live.join("lab/a", dialect=dialect)
    manager = "workspace-manager" if dialect.legacy_manager else f"*/{SERVER_ID}"
    for name in ("public/*:hypha-login", "public/hypha-login", LOGIN, "hypha-login"):
        if name.startswith("public/*") and not dialect.legacy_manager:
            name = f"public/{SERVER_ID}:hypha-login"
        found = await peer.ask("get_service", name, to=manager)
        assert found["check"] | {"_rtarget": HOME, "_rmethod": "services.hypha-login.check"} == found["check"]
        assert {"start", "check", "report", "generate", "profile", "logout"} <= found.keys()
    assert (await peer.ask("services.built-in.get_service", "hypha-login", to=HOME))["id"] == "hypha-login"


async def test_no_client_takes_its_place(live: Scene) -> None:
    squatter, entry = live.join("public/a"), Registration("hypha-login", "x", "t", {"visibility": "public"}, None)
    for register in (
        lambda: squatter.announce("hypha-login", visibility="public"),
        lambda: live.broker.registry.register(squatter.session, entry),
    ):
        with pytest.raises(Conflict, match="'hypha-login' in workspace 'public' is the server's own"):
            register()
    with pytest.raises(InvalidArgument, match="is the server's own"):
        live.broker.admit(Credentials(SERVER_ID, "public", token_for(live, "public")))
    rival = live.join("lab/a")
    rival.announce("hypha-login", visibility="public")
    stranger = live.join("other/b", dialect=MODERN)
    found = await stranger.ask("get_service", "hypha-login", to=f"*/{SERVER_ID}")
    assert found["id"] == LOGIN


async def test_what_it_does_not_have_and_where_it_is_not(live: Scene) -> None:
    peer = live.join("lab/a")
    assert await refused(peer, "nope") == f"KeyError: Method not found: {HOME}:services.hypha-login.nope"
    for to in (f"*/{SERVER_ID}", "public/workspace-manager", "workspace-manager"):
        with pytest.raises(Rejected, match="Method not found"):
            await peer.ask("services.hypha-login.start", to=to)
    assert (await refused(peer, "start", nonsense=1)).startswith("ValueError: start: got an unexpected keyword")
    modern = live.join("lab/b", dialect=MODERN)
    with pytest.raises(Rejected, match="Service not found: nope"):
        await modern.ask("services.built-in.get_service", "nope", to=HOME)


# --- keys -------------------------------------------------------------------------------------------------------


async def test_a_key_is_unguessable_and_stands_in_the_address_of_the_page(live: Scene) -> None:
    peer = live.join("lab/a")
    begun = await ask(peer, "start", workspace="some lab", expires_in=60)
    other = await ask(peer, "start")
    assert len(begun["key"]) >= 43
    assert begun["key"] != other["key"]
    url = urlsplit(begun["login_url"])
    assert url.path == "/public/apps/hypha-login/"
    assert parse_qs(url.query) == {"key": [begun["key"]], "workspace": ["some lab"], "expires_in": ["60"]}
    for name in ("report", "check", "generate"):
        assert begun[f"{name}_url"] == f"http://localhost:9527/public/services/hypha-login/{name}"


@pytest.mark.parametrize(
    "arguments",
    [{"workspace": ""}, {"workspace": "a/b"}, {"workspace": 5}, {"expires_in": 0}, {"expires_in": "60"}]
    + [{"expires_in": value} for value in (-1, True, float("nan"), float("inf"))],
)
async def test_what_cannot_be_asked_for_begins_nothing(live: Scene, arguments: dict[str, Any]) -> None:
    assert (await refused(live.join("lab/a"), "start", **arguments)).startswith("ValueError: ")
    assert live.broker.login._attempts == {}


async def test_a_token_is_fetched_once(live: Scene) -> None:
    program, page = live.join("lab/a"), live.join("other/b")
    key, token = (await ask(program, "start"))["key"], token_for(live, "lab")
    assert await ask(program, "check", key, 0) is None
    assert await ask(program, "check", key, timeout=-1, profile=True) is None
    assert await ask(page, "report", key, token) is None
    assert live.broker.login.waiting(key) is None
    assert await refused(page, "report", key, token) == UNKNOWN  # not twice
    assert await ask(program, "check", key, 0) == token
    assert await refused(program, "check", key, 0) == UNKNOWN


async def test_of_several_that_wait_one_gets_it(live: Scene, nursery: trio.Nursery) -> None:
    first, second = live.join("lab/a"), live.join("lab/b")
    key, token = (await ask(first, "start"))["key"], token_for(live, "lab")
    outcomes: list[str] = []

    async def wait(peer: Peer) -> None:
        try:
            outcomes.append(await ask(peer, "check", key))
        except Rejected as error:
            outcomes.append(str(error))

    for peer in (first, second):
        nursery.start_soon(wait, peer)
    await wait_all_tasks_blocked()
    await ask(first, "report", key, token)
    await wait_all_tasks_blocked()
    assert sorted(outcomes) == sorted([token, UNKNOWN])


async def test_unknown_keys_have_one_answer(live: Scene, mock_clock: MockClock) -> None:
    peer = live.join("lab/a")
    old = (await ask(peer, "start"))["key"]
    mock_clock.jump(180)
    keys: list[Any] = ["", "x" * 43, old, None, 5, ["x"], {}]
    for key in keys:
        assert await refused(peer, "check", key, 0) == UNKNOWN
        for token in ("nonsense", token_for(live, "lab")):
            assert await refused(peer, "report", key, token) == UNKNOWN


async def test_a_key_lives_for_login_seconds_and_is_then_forgotten(live: Scene, mock_clock: MockClock) -> None:
    peer = live.join("lab/a")
    key = (await ask(peer, "start"))["key"]
    mock_clock.jump(179.9)
    live.broker.sweep()
    assert await ask(peer, "check", key, 0) is None
    mock_clock.jump(0.2)
    assert await refused(peer, "check", key, 0) == UNKNOWN
    live.broker.sweep()
    assert live.broker.login._attempts == {}


@pytest.mark.parametrize(("patience", "waited"), [(5, 5), (None, 180), (1e9, 180), (2**62, 180), (float("inf"), 180)])
async def test_waiting_ends(nursery: trio.Nursery, autojump_clock: MockClock, patience: Any, waited: float) -> None:
    scene = Scene(nursery=nursery)
    peer = scene.join("lab/a")
    key = (await ask(peer, "start"))["key"]
    started = trio.current_time()
    text = await refused(peer, "check", key, patience)
    assert text.startswith(f"TimeoutError: Login timeout: nobody has logged in for {waited:g} s")
    assert "login_seconds = 180" in text
    assert trio.current_time() - started == waited


async def test_a_timeout_is_a_number(live: Scene) -> None:
    peer = live.join("lab/a")
    key = (await ask(peer, "start"))["key"]
    rows: list[Any] = ["5", [], float("nan")]
    for patience in rows:
        assert await refused(peer, "check", key, patience) == "ValueError: timeout must be a number of seconds"


async def test_who_waits_is_kept_waiting_by_heartbeats(live: Scene, mock_clock: MockClock) -> None:
    """The client's own limit is shorter than the time that a person takes."""
    peer = live.join("lab/a", dialect=MODERN)
    key = (await ask(peer, "start"))["key"]
    peer.received()
    peer.call(HOME, "services.hypha-login.check", key)
    await wait_all_tasks_blocked()
    for _ in range(3):
        mock_clock.jump(6)
        live.broker.sweep()
        (beat,) = peer.received()
        assert beat["method"].endswith(".heartbeat")


async def test_who_gives_up_loses_nothing(live: Scene) -> None:
    """A program whose connection ends while it waits may come and fetch the token all the same."""
    program = live.join("lab/a")
    key, token = (await ask(program, "start"))["key"], token_for(live, "lab")
    with trio.CancelScope() as scope:
        scope.cancel()
        await live.broker.login.check(VISIT, key)
    await ask(program, "report", key, token)
    assert await ask(program, "check", key) == token


VISIT = Visit(Principal(id="x", is_anonymous=True), "x", "http://localhost:9527", "HTTP")


async def test_the_logins_that_wait_are_bounded_exactly(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    scene = Scene(Limits(login_keys=2, login_seconds=10), nursery)
    peer = scene.join("lab/a")
    first, second = [(await ask(peer, "start"))["key"] for _ in range(2)]
    told: list[str] = []

    async def wait() -> None:
        told.append(await refused(peer, "check", first))

    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    third = (await ask(peer, "start"))["key"]
    await wait_all_tasks_blocked()
    assert told == [UNKNOWN]  # the oldest is gone, and who waits for it knows
    assert await refused(peer, "report", first, token_for(scene, "lab")) == UNKNOWN
    token = token_for(scene, "lab")
    for key in (second, third):
        await ask(peer, "report", key, token)
        assert await ask(peer, "check", key) == token


# --- tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda scene: "nonsense", "not one of this server"),
        (lambda scene: "", "not one of this server"),
        (lambda scene: 5, "a token is text"),
        (lambda scene: token_for(scene, "lab", seconds=-100), "the token has expired"),
        (lambda scene: token_for(scene, "lab")[:-2] + "xx", "not one of this server"),
        (lambda scene: scene.broker.resumption_token(scene.join("lab/r").session), "not meant for this use"),
    ],
    ids=["nonsense", "empty", "no text", "expired", "forged", "reconnection token"],
)
async def test_only_a_good_token_is_reported_and_the_key_waits_on(
    live: Scene, make: Callable[[Scene], Any], text: str
) -> None:
    peer = live.join("lab/a")
    key = (await ask(peer, "start"))["key"]
    assert text in await refused(peer, "report", key, make(live))
    assert await ask(peer, "check", key, 0) is None
    await ask(peer, "report", key, token_for(live, "lab"))


@pytest.mark.parametrize("named_by", ["start", "report"])
async def test_a_narrower_token_is_for_one_workspace_and_no_longer(live: Scene, named_by: str) -> None:
    peer = live.join("lab/a")
    live.workspace("other")
    less = {"workspace": "lab", "expires_in": 60}
    key = (await ask(peer, "start", **(less if named_by == "start" else {})))["key"]
    full = token_for(live, "lab", "other")
    await ask(peer, "report", key, full, **(less if named_by == "report" else {}))
    profile = await ask(peer, "check", key, profile=True)
    holder = live.broker.tokens.verify(profile["token"])
    assert (holder.grants, holder.home, holder.parent) == ({"lab": Level.READ_WRITE}, "lab", "ada")
    assert holder.id != "ada"
    assert profile["workspace"] == "lab"
    assert 59 <= profile["expires_in"] <= 60
    assert profile["user_id"] == "ada"


async def test_a_time_alone_shortens_the_same_token(live: Scene) -> None:
    peer = live.join("lab/a")
    key = (await ask(peer, "start", expires_in=60))["key"]
    await ask(peer, "report", key, token_for(live, "lab", client="only-this"))
    holder = live.broker.tokens.verify(await ask(peer, "check", key))
    assert (holder.id, holder.client, holder.grants) == ("ada", "only-this", {"lab": Level.ADMIN})
    assert holder.expires_at is not None
    assert holder.expires_at <= EPOCH + trio.current_time() + 60


async def test_a_token_never_becomes_wider_or_longer(live: Scene) -> None:
    peer = live.join("lab/a")
    live.workspace("other")
    for place in ("other", "nowhere"):
        key = (await ask(peer, "start", workspace=place))["key"]
        text = await refused(peer, "report", key, token_for(live, "lab"))
        assert text == f"PermissionError: User has no permission to workspace: {place}"
    for expires_in in (1e9, 1000):
        key = (await ask(peer, "start", workspace="lab", expires_in=expires_in))["key"]
        await ask(peer, "report", key, token_for(live, "lab", seconds=100))
        assert (await ask(peer, "check", key, profile=True))["expires_in"] <= 100
    key = (await ask(peer, "start"))["key"]
    assert (await refused(peer, "report", key, token_for(live, "lab"), expires_in=-1)).startswith("ValueError")


async def test_who_the_user_is_stands_in_the_token(live: Scene) -> None:
    peer = live.join("lab/a")
    said = {"email": "eve@lab.example", "email_verified": True, "user_id": "root", "name": "Ada", "picture": "x.png"}
    for email, told in (("ada@lab.example", ("ada@lab.example", True)), (None, ("eve@lab.example", False))):
        key = (await ask(peer, "start"))["key"]
        await ask(peer, "report", key, token_for(live, "lab", email=email, home="lab"), **said)
        profile = await ask(peer, "check", key, profile=True)
        assert (profile["email"], profile["email_verified"]) == told
        assert (profile["user_id"], profile["name"], profile["nickname"]) == ("ada", "Ada", None)
        assert (profile["workspace"], profile["picture"]) == ("lab", "x.png")
    key = (await ask(peer, "start"))["key"]
    for field in ("email", "name", "nickname", "picture"):
        for value in ("x" * 1001, 5, ["x"]):
            text = await refused(peer, "report", key, token_for(live, "lab"), **{field: value})
            assert text == f"ValueError: {field} must be a text of at most 1000 characters"
    assert await ask(peer, "check", key, 0) is None


async def test_generate_makes_a_token_of_the_caller_for_the_caller(live: Scene) -> None:
    peer = live.join("lab/a", principal=live.principal("ada", "lab"))
    whole = live.broker.tokens.verify(await ask(peer, "generate"))
    assert (whole.id, whole.grants) == ("ada", {"lab": Level.READ_WRITE})
    less = live.broker.tokens.verify(await ask(peer, "generate", workspace="lab", expires_in=60))
    assert (less.parent, less.grants, less.home) == ("ada", {"lab": Level.READ_WRITE}, "lab")
    assert "no permission to workspace: other" in await refused(peer, "generate", workspace="other")
    assert (await refused(peer, "generate", expires_in=0)).startswith("ValueError")


async def test_profile_and_logout(live: Scene) -> None:
    peer = live.join("lab/a", principal=live.principal("ada", "lab"))
    who = {"user_id": "ada", "email": None, "is_anonymous": False, "workspace": None}
    assert await ask(peer, "profile") == who
    address = {"logout_url": "http://localhost:9527/public/apps/hypha-login/?logout"}
    assert await ask(peer, "logout", {}) == await ask(peer, "logout") == address


async def test_no_token_and_no_key_is_logged(live: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    peer = live.join("lab/a")
    key, token = (await ask(peer, "start"))["key"], token_for(live, "lab")
    await refused(peer, "report", key, token, expires_in="x")
    await ask(peer, "report", key, token)
    await ask(peer, "check", key)
    await refused(peer, "report", key, token)
    assert key not in caplog.text
    assert token not in caplog.text
