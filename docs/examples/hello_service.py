"""A service that runs inside the server: ``services_config.yaml`` names this file and its function.

It is written for asyncio, as any program for the published Python clients is.
"""

import asyncio


async def register_services(server, service_id, pause=0.01):
    """Called once, when the server starts. `server` is what `connect_to_server` returns in a program of its own."""

    async def hello(name):
        await asyncio.sleep(pause)  # whatever takes its time
        return f"Hello {name}"

    await server.register_service(
        {
            "id": service_id,
            "name": "Hello from inside the server",
            "config": {"visibility": "public"},
            "hello": hello,
        }
    )
