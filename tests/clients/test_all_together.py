"""One workspace holds all five clients; each offers a service, and each calls every one of them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

from tests.clients.conftest import StartClient, StartJavascript
from tests.clients.scripted import SCRIPTS
from tests.house.environments import GENERATIONS, MODERN
from tests.house.processes import Running, Server

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"

#: Name in the workspace -> name on the page, and the version or the package that is run.
CLIENTS = {
    "a": ("imjoy-rpc 0.5.6, Python", GENERATIONS[0]),
    "bp": ("imjoy-rpc 0.5.59, Python", GENERATIONS[1]),
    "bj": ("imjoy-rpc 0.5.59, JavaScript", "imjoy-rpc"),
    "cp": ("hypha-rpc 0.21.47, Python", MODERN),
    "cj": ("hypha-rpc 0.21.40, JavaScript", "hypha-rpc"),
}

JAVASCRIPT = """
    const [own, all, workspace, token] = args;
    const names = all.split(",");
    const server = await connect({ client_id: own, workspace, token });
    await server.registerService({
      id: `of-${own}`,
      greet: (who) => `${own} greets ${who}`,
      ask: async (question) => await question(own),
    });
    console.log("ready");
    const isThere = (ids, name) => ids.some((id) => id.endsWith(`:of-${name}`));
    await until(async () => {
      const ids = (await server.listServices()).map((service) => service.id);
      return names.every((name) => isThere(ids, name));
    });
    for (const name of names) {
      const other = await server.getService(`of-${name}`);
      assert.equal(await other.greet(own), `${name} greets ${own}`);
      assert.equal(await other.ask((who) => `${who} asks ${own}`), `${name} asks ${own}`);
      console.log(`called ${name}`);
    }
    console.log("done");
    await new Promise(() => {});
"""


async def test_each_client_calls_every_other_in_one_workspace(
    start_client: StartClient, start_javascript: StartJavascript, server: Server
) -> None:
    names = ",".join(CLIENTS)

    def start(name: str, *place: str) -> AbstractAsyncContextManager[Running]:
        version = CLIENTS[name][1]
        if version.endswith("-rpc"):
            return start_javascript(JAVASCRIPT, server.url, name, names, *place, library=version)
        settings = [f"{key}={value}" for key, value in zip(("workspace", "token"), place, strict=False)]
        return start_client(version, SCRIPTS / "all_together.py", server.url, name, names, *settings)

    async with AsyncExitStack() as stack:
        first, *others = CLIENTS
        running = {first: await stack.enter_async_context(start(first))}
        workspace, token = (await running[first].wait_for(r"^ready (\S+) (\S+)$")).groups()
        for name in others:
            running[name] = await stack.enter_async_context(start(name, workspace, token))
        called = {}
        for name, process in running.items():
            await process.wait_for("^done$")
            called[name] = {other for other in CLIENTS if f"called {other}\n" in process.report()}
    shown = PAGE.read_text().partition("<!-- pairs -->\n")[2].partition("<!-- end of pairs -->")[0]
    assert shown == table(called), f"put this into {PAGE.name}:\n{table(called)}"


def table(called: dict[str, set[str]]) -> str:
    """Callers below one another, whom they called side by side."""
    lines = ["| caller | " + " | ".join(title for title, _ in CLIENTS.values()) + " |", "|---" * 6 + "|"]
    for name, (title, _) in CLIENTS.items():
        cells = ("yes" if other in called[name] else "no" for other in CLIENTS)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
