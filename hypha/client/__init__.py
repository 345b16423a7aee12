"""The client for trio programs: ``async with connect_to_server({"server_url": ...}) as server``."""

from hypha.client.remote import RemoteFunction, RemoteGenerator, Service
from hypha.client.server import Server, connect_to_server
from hypha.client.values import Record

__all__ = ["Record", "RemoteFunction", "RemoteGenerator", "Server", "Service", "connect_to_server"]
