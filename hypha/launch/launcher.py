"""Everything that starts with the server, in its order: startup functions one by one, modules, then commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import trio

from hypha.launch.command import Command
from hypha.launch.module import Module, client_ids
from hypha.launch.plan import LaunchPlan
from hypha.launch.supervisor import Host, Supervisor


class Launcher:
    """The services of one server. Used once, by :meth:`run`, when connections are accepted."""

    def __init__(self, plan: LaunchPlan, host: Host, environ: Mapping[str, str]) -> None:
        """*environ*: what programs see of the environment, beside what their entries say."""
        self._host = host
        #: Those of the first start when the server is open, the next ones when those before have settled.
        inside = [*plan.functions, *plan.modules]
        ids = client_ids(entry.name for entry in inside)
        modules = [Module(entry, host, client_id) for entry, client_id in zip(inside, ids, strict=True)]
        first = len(plan.functions)
        self._phases: Sequence[Sequence[Supervisor]] = [
            *([module] for module in modules[:first]),
            modules[first:],
            [Command(entry, host, environ) for entry in plan.commands],
        ]

    @property
    def loaded(self) -> bool:
        """Whether every service is ready now."""
        return all(service.ready for service in self._services())

    def _services(self) -> Iterator[Supervisor]:
        return (service for phase in self._phases for service in phase)

    def retire(self) -> None:
        """The server is about to end. Its clients are sent away, and programs may well end themselves then."""
        for service in self._services():
            service.retire()

    async def run(self) -> None:
        """Start the services and keep them until this is cancelled, which stops all of them at once.

        Returns early when there is none left to keep. Raises :class:`LaunchFailed` in a group when one fails that must
        be there, and :class:`hypha.errors.ConfigError` when one cannot even be begun; none is left running.
        """
        for service in self._services():
            self._host.open_workspace(service.workspace)
        async with trio.open_nursery() as nursery:
            for phase in self._phases:
                for service in phase:
                    nursery.start_soon(service.run)
                for service in phase:
                    await service.settled.wait()
