"""Modules that run in the server's process: their worlds, what they may do there, and what they cannot do to it."""

from __future__ import annotations

import re
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from hypha.broker.session import PeerSession
from hypha.errors import HyphaError, PeerGone, PermissionDenied, RemoteError
from hypha.launch.module import client_ids
from hypha.lazy import Failure, Unservable, explain
from hypha.testing import LiveServer, open_server

pytestmark = pytest.mark.deadline(40)


@pytest.fixture(autouse=True)
def same_interpreter() -> Iterator[None]:
    """Nothing of a module is left in the interpreter of the server."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    assert sys.path == path
    assert [name for name in set(sys.modules) - modules if name.startswith("hypha_module_")] == []


def write(directory: Path, name: str, code: str) -> Path:
    path = directory / name
    path.write_text(textwrap.dedent(code))
    return path


def services(directory: Path, *entries: dict[str, Any]) -> Path:
    return write(directory, "services.yaml", yaml.safe_dump({"format_version": 1, "services": list(entries)}))


def entry(module: str = "mine.py", *services: str, **more: Any) -> dict[str, Any]:
    """A module; *services* are those that are waited for."""
    return {"module": module, "entrypoint": "start", "timeout": 10, "check_services": list(services), **more}


async def loaded(server: LiveServer) -> bool:
    async with await server.open_stream() as stream:
        await stream.send_all(b"GET /health/services_loaded HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return (await stream.receive_some()).startswith(b"HTTP/1.1 200")


@asynccontextmanager
async def running(directory: Path, *entries: dict[str, Any], **more: Any) -> AsyncIterator[LiveServer]:
    """A server of which all services are loaded."""
    async with open_server(services_config=services(directory, *entries), **more) as server:
        with trio.fail_after(15):
            while not await loaded(server):  # noqa: ASYNC110  its health is what is asked here
                await trio.sleep(0.02)
        yield server


async def failure(directory: Path, *entries: dict[str, Any], **more: Any) -> str:
    """What a server says that ends because of its services."""
    with pytest.raises(Unservable) as caught:
        async with open_server(services_config=services(directory, *entries), **more):
            await trio.sleep_forever()
    told = explain(caught.value)
    assert told == Failure(told.text, 1, final=True)
    return told.text.replace(f"{directory}/", "")


# --- the worlds -------------------------------------------------------------------------------------------------


async def test_a_module_for_asyncio(tmp_path: Path) -> None:
    """Everything that its client script could do, unchanged: sleep, httpx, tasks, threads."""
    write(
        tmp_path,
        "mine.py",
        """
        import asyncio, threading
        import httpx

        async def start(server, service_id, greeting="Hello"):
            beats = []

            async def beat():
                while True:
                    beats.append(1)
                    await asyncio.sleep(0.01)

            async def hello(name, progress=None):
                async with asyncio.timeout(5):
                    await asyncio.sleep(0)
                    if progress is not None:
                        await progress("half")
                return f"{greeting} {name}"

            async def numbers(upto):
                for number in range(upto):
                    await asyncio.sleep(0)
                    yield number

            async def facts():
                async with httpx.AsyncClient() as client:
                    url = f"{server.config.public_base_url}/public/services/{service_id}/hello?name=web"
                    answer = await client.get(url)
                found = await server.get_service(service_id)
                while not beats:
                    await asyncio.sleep(0.01)
                return {
                    "web": answer.json(),
                    "self": await found.hello("me"),
                    "numbers": [number async for number in await found.numbers(3)],
                    "listed": [service.id for service in await server.list_services()],
                    "token": await server.generate_token({"workspace": "public"}),
                    "workspace": server.config.workspace,
                    "thread": await asyncio.to_thread(lambda: threading.current_thread().name),
                    "here": threading.current_thread().name,
                }

            server.task = asyncio.create_task(beat())
            api = {"id": service_id, "config": {"visibility": "public"}, "hello": hello, "numbers": numbers}
            await server.register_service({**api, "facts": facts, "add": lambda a, b: a + b})
        """,
    )
    kwargs = {"service_id": "hi", "greeting": "Good day"}
    async with running(tmp_path, entry("mine.py", "hi", kwargs=kwargs)) as server, server.connect() as user:
        service = await user.get_service("hi")
        assert service.id == "public/mine:hi"
        seen: list[str] = []
        assert await service.hello("John", seen.append) == "Good day John"
        assert seen == ["half"]
        assert await service.add(1, 2) == 3
        assert [number async for number in await service.numbers(3)] == [0, 1, 2]
        facts = await service.facts()
        assert (facts.web, facts["self"], facts.numbers) == ("Good day web", "Good day me", [0, 1, 2])
        assert (facts.workspace, facts.here) == ("public", "mine.py")
        assert "public/mine:hi" in facts.listed
        assert facts.token.count(".") == 2


async def test_a_module_for_trio(tmp_path: Path) -> None:
    write(
        tmp_path,
        "mine.py",
        """
        import threading
        import trio

        __hypha_backend__ = "trio"

        async def start(server):
            async def hello(name):
                await trio.sleep(0.001)
                return f"{name} in {threading.current_thread().name}"

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                await server.register_service({"id": "hi", "config": {"visibility": "public"}, "hello": hello})
                assert await (await server.get_service("hi")).hello("me")
        """,
    )
    async with running(tmp_path, entry("mine.py", "hi"), memory=True) as server, server.connect() as user:
        assert await (await user.get_service("hi")).hello("me") == f"me in {threading.current_thread().name}"


async def test_a_module_of_plain_functions(tmp_path: Path) -> None:
    write(
        tmp_path,
        "mine.py",
        """
        import asyncio, threading, time

        def start(server):
            def hello(name, progress):
                time.sleep(0.01)
                progress("half")
                return f"{name} in {server.config.workspace}"

            def fail():
                raise KeyError("mine")

            def numbers(upto):
                yield from range(upto)

            async def later(value, then):
                await asyncio.sleep(0)
                return await asyncio.to_thread(then, value)

            def use():
                found = server.get_service("hi")
                first = next(found.numbers(5))
                iterator = found.numbers(5)
                next(iterator)
                iterator.close()
                try:
                    found.fail()
                except Exception as error:
                    said = str(error)
                names = []
                other = threading.Thread(target=lambda: names.extend(s.id for s in server.list_services()))
                other.start()
                other.join()
                return first, list(found.numbers(3)), list(iterator), said, names

            functions = {"hello": hello, "fail": fail, "numbers": numbers, "later": later, "use": use}
            server.register_service({"id": "hi", "config": {"visibility": "public"}, **functions})
            server.serve()
        """,
    )
    async with running(tmp_path, entry("mine.py", "hi"), memory=True) as server, server.connect() as user:
        service = await user.get_service("hi")
        seen: list[str] = []
        assert await service.hello("me", seen.append) == "me in public"
        assert seen == ["half"]
        assert [number async for number in await service.numbers(3)] == [0, 1, 2]
        assert await service.later(3, lambda value: value + 1) == 4
        first, numbers, rest, said, names = await service.use()
        assert (first, numbers, rest) == (0, [0, 1, 2], [])
        assert "KeyError: 'mine'" in said
        assert "public/mine:hi" in names
        with pytest.raises(RemoteError, match="mine"):
            await service.fail()


async def test_an_asyncio_module_is_imported_in_its_thread_and_loop(tmp_path: Path) -> None:
    """As in a program of its own: connections to SQLite belong to their thread, tasks to their loop."""
    code = """
    import asyncio, sqlite3
    database = sqlite3.connect(":memory:")
    loop = asyncio.get_running_loop()

    async def start(server):
        with database:
            database.execute("CREATE TABLE t (a)")
        database.close()
        assert loop is asyncio.get_running_loop()
        await server.register_service({"id": "hi"})
    """
    write(tmp_path, "mine.py", code)
    async with running(tmp_path, entry("mine.py", "hi"), memory=True):
        pass


async def test_modules_of_the_same_name_share_nothing(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "mine.py", f"async def start(server): await server.register_service({{'id': {name!r}}})")
    async with (
        running(tmp_path, entry("one/mine.py", "one"), entry("two/mine.py", "two"), memory=True) as server,
        server.connect({"token": server.token()}) as member,
    ):
        listed = {service.id for service in await member.list_services()}
        assert listed >= {"public/mine:one", "public/mine.py-2:two"}


async def test_what_is_behind_a_decorator_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        "mine.py",
        """
        import asyncio, functools

        def logged(function):
            @functools.wraps(function)
            def call(*args, **kwargs):
                return function(*args, **kwargs)
            return call

        @logged
        async def start(server, id="one"):
            await asyncio.sleep(0)
            await server.register_service({"id": id})

        class Starter:
            async def __call__(self, server):
                await start(server, "two")

        second = Starter()
        """,
    )
    entries = [entry("mine.py", "one"), entry("mine.py", "two", entrypoint="second", name="other")]
    async with running(tmp_path, *entries, memory=True):
        pass


async def test_services_are_seen_as_their_config_says_and_live_in_their_workspace(tmp_path: Path) -> None:
    write(
        tmp_path,
        "mine.py",
        """
        async def start(server):
            for visibility in ("public", "protected"):
                service = {"id": visibility, "config": {"visibility": visibility}, "hello": lambda: visibility}
                await server.register_service(service)
        """,
    )
    lab = entry("mine.py", "public", "protected", workspace="lab", name="a/b c.py")
    async with running(tmp_path, lab, memory=True) as server:
        async with server.connect() as user:
            assert await (await user.get_service("lab/public")).hello()
            with pytest.raises(PermissionDenied):
                await user.get_service("lab/b-c:protected")
        async with server.connect({"token": server.token("lab", "read_write")}) as member:
            assert {service.id for service in await member.list_services()} >= {"lab/b-c:public", "lab/b-c:protected"}
            assert await (await member.get_service("protected")).hello()


async def test_a_module_finds_what_stands_beside_it(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, f"helper_of_{name}.py", f"NAME = {name!r}\n")
        write(tmp_path / name, f"later_of_{name}.py", f"NAME = {name!r}\n")
        code = f"""
        from __future__ import annotations
        from dataclasses import dataclass
        import helper_of_{name}

        @dataclass
        class Point:
            x: int

        async def start(server):
            def late():
                import later_of_{name}
                return [helper_of_{name}.NAME, later_of_{name}.NAME, Point(1).x]
            await server.register_service({{"id": "hi-{name}", "config": {{"visibility": "public"}}, "late": late}})
        """
        write(tmp_path / name, "mine.py", code)
    entries = [entry(f"{name}/mine.py", f"hi-{name}", name=name) for name in ("one", "two")]
    async with running(tmp_path, *entries, memory=True) as server, server.connect() as user:
        for name in ("one", "two"):
            assert await (await user.get_service(f"hi-{name}")).late() == [name, name, 1]


async def test_a_module_by_its_dotted_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hypha_test_pack").mkdir()
    write(tmp_path / "hypha_test_pack", "__init__.py", "")
    write(tmp_path / "hypha_test_pack", "other.py", "NAME = 'hi'\n")
    code = """
    from .other import NAME
    async def start(server):
        await server.register_service({"id": NAME})
    """
    write(tmp_path / "hypha_test_pack", "mine.py", code)
    monkeypatch.syspath_prepend(tmp_path)
    async with running(tmp_path, entry("hypha_test_pack.mine", "hi"), memory=True):
        pass


def test_client_ids_are_made_of_names() -> None:
    names = ["mine.py", "mine.py-2", "/a/b/c d.py", "pack.mod", "é/", "..", "mine", "mine"]
    assert client_ids(names) == ["mine", "mine.py-2", "c-d", "pack.mod", "module", "module-2", "mine-2", "mine-3"]


# --- failures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("", "cannot start: start in mine.py is not there"),
        ("start = 3", "cannot start: start in mine.py is no function"),
        ("__hypha_backend__ = 'twisted'\nasync def start(server): pass", "__hypha_backend__ of mine.py is 'twisted'"),
        ("__hypha_backend__ = 'trio'\ndef start(server): pass", "start in mine.py is no async function, as"),
        (
            "import no_such_module",
            "the import of mine.py raised ModuleNotFoundError: No module named 'no_such_module' (",
        ),
        ("def start(server:", "the import of mine.py raised SyntaxError: '(' was never closed (mine.py, line 1)"),
        ("import sys; sys.exit('no')", "the import of mine.py called sys.exit('no') (line 1)"),
        ("async def start(): pass", "start in mine.py raised TypeError: start() takes 0 positional arguments"),
        ("async def start(server):\n    raise ValueError('of glass')", "raised ValueError: of glass (line 2)"),
        ("def start(server):\n    raise ValueError('of glass')", "raised ValueError: of glass (line 2)"),
        ("async def start(server):\n    raise SystemExit(3)", "start in mine.py called sys.exit(3) (line 2)"),
        ("def start(server):\n    raise SystemExit(3)", "start in mine.py called sys.exit(3) (line 2)"),
        (
            "async def start(server):\n    raise BaseExceptionGroup('two', [SystemExit(), OSError()])",
            "(2 sub-exceptions)",
        ),
        ("async def start(server):\n    raise KeyboardInterrupt", "start in mine.py raised KeyboardInterrupt (line 2)"),
        ("def start(server):\n    raise KeyboardInterrupt", "start in mine.py raised KeyboardInterrupt (line 2)"),
        ("raise KeyboardInterrupt", "the import of mine.py raised KeyboardInterrupt (line 1)"),
        ("async def start(server):\n    await server.get_service('absent')", "start in mine.py raised hypha.errors."),
        ("async def start(server):\n    await server.disconnect()", "mine.py has disconnected from the server"),
        (
            "class Later:\n    def __await__(self): yield\ndef start(server):\n    return Later()",
            "returns what must be awaited",
        ),
    ],
)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_a_module_that_fails_is_told_in_one_message(code: str, said: str, backend: str, tmp_path: Path) -> None:
    if backend == "trio":
        if "async def start" not in code or "__hypha" in code:
            return
        code = f"{code}\n__hypha_backend__ = 'trio'"
    write(tmp_path, "mine.py", code)
    text = await failure(tmp_path, entry(check_services=[]), memory=True)
    assert text.startswith("mine.py ")
    assert said in text


async def test_arguments_that_do_not_fit(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", "async def start(server, one): pass")
    text = await failure(tmp_path, entry(kwargs={"two": 2}, check_services=[]), memory=True)
    assert "start() got an unexpected keyword argument 'two'" in text


async def test_a_traceback_is_in_the_log_when_it_is_wanted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "mine.py", "async def start(server):\n    raise ValueError('of glass')")
    with caplog.at_level("DEBUG", "hypha.launch.module"):
        await failure(tmp_path, entry(check_services=[]), memory=True)
    (record,) = [record for record in caplog.records if record.name == "hypha.launch.module"]
    assert record.exc_info is not None


async def test_a_service_that_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", "async def start(server): pass")
    text = await failure(tmp_path, entry("mine.py", "absent", timeout=0.3), memory=True)
    assert text == "mine.py did not offer absent in the workspace public within 0.3 s"


async def test_an_import_that_takes_too_long_is_named_and_left_behind(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "mine.py", "import time\ntime.sleep(3)\nasync def start(server): pass")
    text = await failure(tmp_path, entry("mine.py", "absent", timeout=2.2), memory=True)
    assert text == "mine.py did not finish the import of mine.py within 2.2 s"
    assert re.search(r"waiting for mine.py: the import of \S+ \(2.2 s\)", capfd.readouterr().err)
    await trio.sleep(1)  # it ends by itself, in its thread


async def test_a_function_that_does_not_return_is_ready_after_a_second(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", "import asyncio\nasync def start(server): await asyncio.sleep(1000)")
    began = trio.current_time()
    async with running(tmp_path, entry(check_services=[]), memory=True):
        assert 1 <= trio.current_time() - began < 3


BLOCKING = """
import asyncio, time, threading
block = threading.Event()
async def start(server):
    await server.register_service({"id": "stuck", "config": {"visibility": "public"}, "hello": lambda: "hi"})
    while not block.wait(0.01):
        pass
"""
GREETER = """
async def start(server):
    async def hello(name):
        return "Hello " + name
    await server.register_service({"id": "hi", "config": {"visibility": "public"}, "hello": hello})
"""


async def test_a_module_that_blocks_holds_up_nobody_else(tmp_path: Path) -> None:
    """Neither the other module, nor the server, nor even its own plain functions; nor the end for long."""
    write(tmp_path, "mine.py", GREETER)
    write(tmp_path, "stuck.py", BLOCKING)
    blocks: list[Any] = []
    async with running(tmp_path, entry("mine.py", "hi"), entry("stuck.py", "stuck"), memory=True) as server:
        blocks += [module.block for name, module in sys.modules.items() if name.endswith("_stuck")]
        async with server.connect() as user:
            with trio.fail_after(5):
                for _ in range(20):
                    assert await (await user.get_service("hi")).hello("x") == "Hello x"
                assert await (await user.get_service("stuck")).hello() == "hi"
        began = trio.current_time()
    assert trio.current_time() - began < 4
    for block in blocks:
        block.set()


async def test_a_function_that_exits_ends_its_module_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "mine.py", GREETER)
    code = """
    import sys
    async def start(server):
        async def leave():
            sys.exit(3)
        await server.register_service({"id": "leaver", "config": {"visibility": "public"}, "leave": leave})
    """
    write(tmp_path, "other.py", code)
    entries = [entry("mine.py", "hi"), entry("other.py", "leaver", on_failure="restart")]
    async with running(tmp_path, *entries, memory=True) as server, server.connect() as user:
        with pytest.raises(HyphaError):
            await (await user.get_service("leaver")).leave()
        assert await (await user.get_service("hi")).hello("x") == "Hello x"


async def test_tasks_that_a_module_leaves_behind_end_with_it(tmp_path: Path) -> None:
    code = f"""
    import asyncio
    from pathlib import Path

    tasks = []

    async def wait(name):
        try:
            await asyncio.sleep(1000)
        finally:
            (Path({str(tmp_path)!r}) / name).touch()

    async def start(server):
        tasks.append(asyncio.create_task(wait("task")))
        await server.register_service({{"id": "hi"}})
        await wait("function")
    """
    write(tmp_path, "mine.py", code)
    async with running(tmp_path, entry("mine.py", "hi"), memory=True):
        pass
    assert (tmp_path / "task").exists()
    assert (tmp_path / "function").exists()


async def test_after_a_failure_the_module_is_imported_anew(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = f"""
    from pathlib import Path
    log = open({str(log)!r}, "a")
    async def start(server):
        with log:
            log.write("start ")
        if len(Path({str(log)!r}).read_text().split()) < 2:
            raise ValueError("not yet")
        await server.register_service({{"id": "hi"}})
    """
    write(tmp_path, "mine.py", code)
    async with running(tmp_path, entry("mine.py", "hi", on_failure="restart"), memory=True) as server:
        assert log.read_text() == "start start "
        async with server.connect({"token": server.token()}) as member:
            assert (await member.get_service("hi")).id == "public/mine:hi"


async def test_with_warn_the_server_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "mine.py", "async def start(server):\n    raise ValueError('of glass')")
    path = services(tmp_path, entry(on_failure="warn", check_services=[]))
    async with open_server(memory=True, services_config=path) as server:
        said = ""
        with trio.fail_after(5):
            while "of glass" not in said:
                await trio.sleep(0.01)
                said += capfd.readouterr().err
        assert not await loaded(server)


# --- startup functions, and the order ---------------------------------------------------------------------------


def logging_module(path: Path, word: str) -> str:
    return f"""
    import asyncio
    async def start(server):
        await asyncio.sleep(0.05)
        assert server.config.workspace == "public"
        with open({str(path)!r}, "a") as log:
            log.write("{word} ")
        await server.generate_token({{"permission": "admin"}})
    """


async def test_functions_one_by_one_then_modules_then_commands(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for word in ("first", "second", "third"):
        write(tmp_path, f"{word}.py", logging_module(log, word))
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"open({str(log)!r}, 'a').write('program'); import time; time.sleep(99)",
    ]
    functions = (f"{tmp_path}/first.py:start", f"{tmp_path}/second.py:start")
    path = services(tmp_path, {"name": "prog", "command": command}, entry("third.py"))
    async with open_server(services_config=path, startup_functions=functions) as server:
        with trio.fail_after(10):
            while not await loaded(server):  # noqa: ASYNC110  its health is what is asked here
                await trio.sleep(0.02)
    assert log.read_text() == "first second third program"


async def test_a_startup_function_that_fails_ends_the_start(tmp_path: Path) -> None:
    write(tmp_path, "first.py", "async def start(server):\n    raise ValueError('of glass')")
    with pytest.raises(Unservable, match=r"^first\.py failed: start in .*/first\.py raised ValueError: of glass "):
        async with open_server(memory=True, startup_functions=(f"{tmp_path}/first.py:start",)):
            await trio.sleep_forever()


async def test_commands_do_not_wait_for_a_module_that_fails_again_and_again(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", "async def start(server):\n    raise ValueError('of glass')")
    command = [sys.executable, "-I", "-S", "-c", f"open({str(tmp_path / 'there')!r}, 'w'); import time; time.sleep(99)"]
    path = services(tmp_path, entry(on_failure="restart", check_services=[]), {"name": "prog", "command": command})
    async with open_server(services_config=path) as server:
        with trio.fail_after(5):
            while not (tmp_path / "there").exists():  # noqa: ASYNC110  a program tells it
                await trio.sleep(0.01)
        assert not await loaded(server)


# --- the connection ---------------------------------------------------------------------------------------------


def session_of(server: LiveServer, client: str) -> PeerSession:
    """What the server knows of the module *client*."""
    broker = server._assembly._open_rooms().broker
    (session,) = [session for session in broker.registry.sessions() if session.address.client == client]
    return session


async def test_a_module_comes_back_when_its_connection_is_lost(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", GREETER)
    async with running(tmp_path, entry("mine.py", "hi"), memory=True) as server, server.connect() as user:
        first = session_of(server, "mine").transport
        first.close(1012, "once more")
        with trio.fail_after(10):
            while not await loaded(server) or session_of(server, "mine").transport is first:  # noqa: ASYNC110  as above
                await trio.sleep(0.02)
        assert await (await user.get_service("hi")).hello("x") == "Hello x"


async def test_a_module_that_the_server_does_not_want_any_more_has_failed(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", GREETER)

    async def lose() -> None:
        async with running(tmp_path, entry("mine.py", "hi"), memory=True) as server:
            session = session_of(server, "mine")
            server._assembly._open_rooms().broker.tokens.end(session.principal.tokens[-1])
            session.transport.close(1012, "and never again")
            await trio.sleep_forever()

    with pytest.raises(Unservable, match=r"^mine\.py has lost its connection to the server: .*revoked"):
        await lose()


async def test_a_thread_that_goes_on_for_too_long_learns_that_the_server_has_ended(tmp_path: Path) -> None:
    code = """
    import threading, time
    ended, told = threading.Event(), []

    def start(server):
        server.register_service({"id": "hi"})
        ended.wait(20)
        try:
            server.list_services()
        except Exception as error:
            told.append(error)
    """
    write(tmp_path, "mine.py", code)
    async with running(tmp_path, entry("mine.py", "hi"), memory=True):
        (module,) = [module for name, module in sys.modules.items() if name.startswith("hypha_module_")]
    module.ended.set()
    with trio.fail_after(5):
        while not module.told:  # noqa: ASYNC110  a thread tells it
            await trio.sleep(0.01)
    (error,) = module.told
    assert isinstance(error, PeerGone)
