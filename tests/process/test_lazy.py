"""The application that is built at its first call: what goes wrong at its start is told once, with an exit code."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import trio

from hypha.errors import ConfigError, LimitExceeded
from hypha.lazy import Application, Failure, LazyApp, Message, Receive, Send, explain
from hypha.server import app as the_server

CONFIG = ConfigError("the port is red; paint it")


class Lifespan:
    """The server's side of one lifespan, which starts and then stops at once."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self._received = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive(self) -> Message:
        await trio.lowlevel.checkpoint()
        return next(self._received)

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(message)


async def run(application: Application) -> tuple[list[Message], list[Failure]]:
    """What the server and the owner of a lazy app are told during one lifespan."""
    failures: list[Failure] = []
    lifespan = Lifespan()
    await LazyApp(lambda: application, failures.append)({"type": "lifespan"}, lifespan.receive, lifespan.send)
    return lifespan.sent, failures


async def well(scope: Message, receive: Receive, send: Send) -> None:
    for step in ("startup", "shutdown"):
        assert await receive() == {"type": f"lifespan.{step}"}
        await send({"type": f"lifespan.{step}.complete"})


def raising(error: Exception) -> Application:
    async def application(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        raise error

    return application


async def test_a_start_without_trouble_is_passed_on() -> None:
    assert await run(well) == ([{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}], [])


async def test_nothing_is_built_before_the_first_call_and_nothing_twice() -> None:
    built: list[str] = []

    def make() -> Application:
        built.append("one")
        return well

    app = LazyApp(make, lambda _: None)
    assert built == []
    for _ in range(2):
        lifespan = Lifespan()
        await app({"type": "lifespan"}, lifespan.receive, lifespan.send)
    assert built == ["one"]


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (CONFIG, Failure("the port is red; paint it", 2)),
        (ExceptionGroup("nursery", [ExceptionGroup("nursery", [CONFIG])]), Failure("the port is red; paint it", 2)),
        (ExceptionGroup("two", [LimitExceeded("full"), CONFIG]), Failure("the port is red; paint it", 2)),
        (LimitExceeded("full"), Failure("full", 1)),
    ],
)
async def test_an_error_for_people_is_told_in_its_own_words(error: Exception, failure: Failure) -> None:
    sent, failures = await run(raising(error))
    assert failures == [failure]
    assert sent == [{"type": "lifespan.startup.failed", "message": failure.text}]


async def test_a_fault_of_ours_is_a_reference_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    sent, (failure,) = await run(raising(ZeroDivisionError("secret")))
    assert failure.code == 1
    assert "secret" not in failure.text
    assert "ZeroDivisionError: secret" in caplog.text
    assert failure.text.split("reference ")[1].split(";")[0] in caplog.text
    assert sent == [{"type": "lifespan.startup.failed", "message": failure.text}]


async def test_an_error_of_the_builder_is_told_too() -> None:
    def make() -> Application:
        raise CONFIG

    failures: list[Failure] = []
    lifespan = Lifespan()
    await LazyApp(make, failures.append)({"type": "lifespan"}, lifespan.receive, lifespan.send)
    assert failures == [Failure(str(CONFIG), 2)]
    assert lifespan.sent == [{"type": "lifespan.startup.failed", "message": str(CONFIG)}]


async def test_a_failure_that_the_application_reports_is_told_once() -> None:
    class ServerRefuses(Exception):
        pass

    class Strict(Lifespan):
        async def send(self, message: Message) -> None:
            await super().send(message)
            raise ServerRefuses  # as Hypercorn does

    async def reporting(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.failed", "message": "no room"})

    failures: list[Failure] = []
    lifespan = Strict()
    with pytest.raises(ServerRefuses):
        await LazyApp(lambda: reporting, failures.append)({"type": "lifespan"}, lifespan.receive, lifespan.send)
    assert failures == [Failure("no room", 1)]
    assert len(lifespan.sent) == 1


async def test_a_lifespan_that_dies_while_serving_is_told() -> None:
    async def dying(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.complete"})
        raise LimitExceeded("the disk is full")

    sent, failures = await run(dying)
    assert failures == [Failure("the disk is full", 1)]
    assert sent == [{"type": "lifespan.startup.complete"}]


async def test_cancellation_is_no_failure() -> None:
    async def waiting(scope: Message, receive: Receive, send: Send) -> None:
        await trio.sleep_forever()

    failures: list[Failure] = []
    lifespan = Lifespan()
    with trio.move_on_after(0) as scope:
        await LazyApp(lambda: waiting, failures.append)({"type": "lifespan"}, lifespan.receive, lifespan.send)
    assert scope.cancelled_caught
    assert (failures, lifespan.sent) == ([], [])


async def test_other_calls_go_through_with_their_errors() -> None:
    seen: list[Any] = []

    async def application(scope: Message, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])
        raise CONFIG

    lifespan = Lifespan()
    with pytest.raises(ConfigError):
        await LazyApp(lambda: application, lambda _: None)({"type": "http"}, lifespan.receive, lifespan.send)
    assert seen == ["http"]


def test_hypercorn_takes_the_server_for_an_asgi_application() -> None:
    # It looks at this, and takes everything else for WSGI.
    assert inspect.iscoroutinefunction(the_server.__call__)


def test_an_error_without_words_still_has_some(caplog: pytest.LogCaptureFixture) -> None:
    assert explain(RuntimeError()).text.startswith("internal error, reference ")
