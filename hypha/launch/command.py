"""A service that is a program: started with what it needs to find the server, and supervised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from hypha.broker.tokens import new_user_id
from hypha.launch.plan import CommandEntry
from hypha.launch.process import Child, running
from hypha.launch.supervisor import Host, Supervisor, with_tail

#: What runs a program: :func:`hypha.launch.process.running`, or a stand-in.
Run = Callable[..., AbstractAsyncContextManager[Child]]


class Command(Supervisor):
    """One entry ``command``. Its token lives as long as the program; its user is the same after each new start.

    A new program can therefore take the client id of the one before at once.
    """

    def __init__(self, entry: CommandEntry, host: Host, environ: Mapping[str, str], run: Run = running) -> None:
        super().__init__(entry.name, entry.workspace, entry.checks, host)
        self._entry = entry
        self._environ = environ
        self._run = run
        self._user = new_user_id()

    async def live(self) -> str:
        server_url = self._host.server_url
        token, token_id = self._host.issue(self.workspace, self._user)
        values = {"server_url": server_url, "workspace": self.workspace, "token": token}
        arguments = self._entry.arguments(values)
        environ = {
            **self._environ,
            "PYTHONUNBUFFERED": "1",  # or the last words of a program that is killed are lost
            **{f"HYPHA_{name.upper()}": text for name, text in values.items()},
            **self._entry.env,
        }
        lack = None
        try:
            async with self._run(
                arguments, name=self.name, environ=environ, cwd=self._entry.cwd, show=self._host.show
            ) as child:
                lack = await self.attend(child.wait)
        except OSError as error:
            return f"{self.name} cannot be started: {error.strerror}: {error.filename or arguments[0]}"
        finally:
            self._host.end(token_id)
        what = lack or f"{child.ending}{'' if self.was_ready else ' before it was ready'}"
        return with_tail(f"{self.name} {what}", child.tail)
