"""Events that members write down: who reads which, for how long they are kept, and what is no event."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from hypha.broker.access import Level
from hypha.broker.journal import Journal
from hypha.broker.kept import pack
from hypha.config import Limits
from hypha.wire.calls import encode_value
from hypha.wire.dialect import MODERN
from tests.broker.managing import MANAGER, ask, is_written, refused
from tests.broker.memory import EPOCH, Scene


class Wall:
    """Seconds since the epoch, as a test wants them."""

    now = EPOCH

    def __call__(self) -> float:
        return self.now


async def test_members_read_their_own_events_and_administrators_all(live: Scene) -> None:
    a, b = live.join("lab/a", dialect=MODERN), live.join("lab/b", dialect=MODERN)
    reader = live.join("lab/r", principal=live.principal("r", "lab", Level.READ), dialect=MODERN)
    admin = live.join("lab/d", principal=live.principal("d", "lab", Level.ADMIN), dialect=MODERN)
    far = live.join("far/c", dialect=MODERN)
    assert await ask(a, "log_event", "run.started", {"seed": 1, "raw": b"\0"}) is None
    assert await ask(a, "log", "a line") is None
    assert await ask(b, "log_event", "run.started") is None
    assert "Permission denied" in await refused(reader, "log_event", "x")
    first, second = await ask(a, "get_events")
    assert first == {
        "id": 1,
        "event_type": "run.started",
        "workspace": "lab",
        "user_id": "user-of-a",
        "timestamp": datetime.fromtimestamp(EPOCH, UTC).isoformat(),
        "data": {"seed": 1, "raw": b"\0"},
    }
    assert (second["event_type"], second["data"]) == ("log", "a line")
    (third,) = await ask(b, "get_events", "run.started")
    assert (third["id"], third["data"]) == (3, None)
    assert await ask(admin, "get_events") == [first, second, third]
    assert await ask(admin, "get_event_stats") == [
        {"event_type": "run.started", "count": 2},
        {"event_type": "log", "count": 1},
    ]
    assert await ask(a, "get_event_stats", "log") == [{"event_type": "log", "count": 1}]
    for peer in (reader, far):
        assert await ask(peer, "get_events") == await ask(peer, "get_event_stats") == []


async def test_a_line_stands_in_the_log_of_the_server_too(live: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    await ask(live.join("lab/a", dialect=MODERN), "log", "two\nlines")
    assert "lab/a says 'two\\nlines'" in caplog.text


async def test_events_of_a_time(nursery: trio.Nursery) -> None:
    wall = Wall()
    scene = Scene(nursery=nursery, wall=wall)
    a = scene.join("lab/a", dialect=MODERN)
    for _ in range(5):
        await ask(a, "log_event", "tick")
        wall.now += 1
    text = datetime.fromtimestamp(EPOCH + 3, UTC).isoformat()
    rows: list[tuple[dict[str, Any], list[int]]] = [
        ({"start_time": EPOCH + 3}, [4, 5]),
        ({"end_time": int(EPOCH)}, [1]),
        ({"start_time": text}, [4, 5]),
        ({"end_time": text.replace("+00:00", "Z")}, [1, 2, 3, 4]),
        ({"start_time": EPOCH + 1, "end_time": text.removesuffix("+00:00")}, [2, 3, 4]),
        ({"event_type": "other"}, []),
    ]
    for selected, numbers in rows:
        assert [event["id"] for event in await ask(a, "get_events", **selected)] == numbers, selected
        counted = [{"event_type": "tick", "count": len(numbers)}] if numbers else []
        assert await ask(a, "get_event_stats", **selected) == counted
    for name in ("get_events", "get_event_stats"):
        times: list[Any] = ["yesterday", [1], {}]
        for wrong in times:
            assert "ISO 8601" in await refused(a, name, start_time=wrong)


async def test_the_data_of_an_event_is_bounded_exactly(nursery: trio.Nursery) -> None:
    a = Scene(Limits(event_bytes=100), nursery).join("lab/a", dialect=MODERN)
    await ask(a, "log_event", "x", b"." * 98)
    for name, *args in (("log_event", "x", b"." * 99), ("log", b"." * 99)):
        assert "event_bytes = 100" in await refused(a, name, *args)
    assert len(await ask(a, "get_events")) == 1


async def test_what_is_no_event_is_refused(live: Scene) -> None:
    a = live.join("lab/a", dialect=MODERN)
    kinds: list[Any] = [None, "", "two words", 5, "x" * 257]
    for wrong in kinds:
        assert "an event type is a text" in await refused(a, "log_event", wrong)
    assert await ask(a, "get_events") == []


async def test_an_event_that_could_not_be_read_again_is_refused(live: Scene) -> None:
    """However deep the data is: what is taken fits into the answer in which it is read."""
    a = live.join("lab/a", dialect=MODERN)
    deepest = next(depth for depth in itertools.count(400) if not is_written(nested(depth + 1)))
    assert "cannot be sent" in await refused(a, "log_event", "x", nested(deepest - 8))
    await ask(a, "log_event", "x", nested(deepest - 16))
    (event,) = await ask(a, "get_events")
    assert encode_value(event["data"]) == encode_value(nested(deepest - 16))  # too deep to be compared


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


async def test_others_have_their_turn_between_two_readers(live: Scene) -> None:
    """However many read at once, each has a step of the scheduler of its own; between two of ours there are two."""
    peers = [live.join(f"lab/{number}", dialect=MODERN) for number in range(10)]
    for name in ("get_events", "list_service_types"):
        for peer in peers:
            peer.call(MANAGER, f"services.default.{name}", session="s")
        answered = 0
        while answered < len(peers):
            await trio.lowlevel.checkpoint()
            came = sum(bool(peer.received()) for peer in peers)
            assert came <= 2
            answered += came


def test_the_newest_events_are_kept_and_the_room_is_exact() -> None:
    journal = Journal()
    size = 200 + len("kind") + 10
    for number in range(5):
        journal.add("kind", "u", EPOCH, bytes(10), 3 * size)
        assert [event.number for event in journal] == list(range(max(1, number - 1), number + 2))
    journal.add("kind", "u", EPOCH, bytes(11), 3 * size)
    assert [event.number for event in journal] == [5, 6]
    journal.add("kind", "u", EPOCH, bytes(10), 3 * size + 1)
    assert [event.number for event in journal] == [5, 6, 7]


async def test_the_events_of_a_workspace_have_so_much_room(nursery: trio.Nursery) -> None:
    room = 3 * (200 + len("x") + len(pack(None)))
    a = Scene(Limits(events_bytes_per_workspace=room), nursery).join("lab/a", dialect=MODERN)
    for _ in range(4):
        await ask(a, "log_event", "x")
    assert [event["id"] for event in await ask(a, "get_events")] == [2, 3, 4]


async def test_events_go_with_their_workspace(live: Scene) -> None:
    a = live.join("lab/a", dialect=MODERN)
    await ask(a, "log_event", "x")
    a.leave()
    assert await ask(live.join("lab/a", dialect=MODERN), "get_events") == []
