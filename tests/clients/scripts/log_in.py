"""A program that logs in, and connects with what it was given: ``log_in.py URL [setting=JSON...]``.

It says the context of its login, then what it got, who it is, and where it may go.
"""

from __future__ import annotations

import json
from typing import Any

from peer import connected, run

try:
    from imjoy_rpc.hypha import login
except ModuleNotFoundError:
    from hypha_rpc import login, logout


async def main(url: str, *arguments: str) -> None:
    settings = {name: json.loads(value) for name, _, value in (text.partition("=") for text in arguments)}

    async def show(context: Any) -> None:
        print("context", json.dumps(dict(context)), flush=True)

    if "logout" in settings:
        await logout({"server_url": url, "logout_callback": show})
        return
    given = await login({"server_url": url, "login_callback": show, "login_timeout": 20, **settings})
    token = given if isinstance(given, str) else given["token"]
    wanted = {"workspace": settings["workspace"]} if "workspace" in settings else {}
    async with connected(url, token=token, **wanted) as server:
        assert await server.echo("in") == "in"
        print("in", json.dumps([given if isinstance(given, str) else dict(given), server.config.workspace]), flush=True)


run(main)
