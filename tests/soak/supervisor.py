"""What systemd does with a socket unit: ``supervisor.py COMMAND...`` keeps a listening socket and one server on it.

A server that ends, however that is, is started again at once, with the socket as ``LISTEN_FDS`` says. A line names each
process that was started. Standard library only, and none of the server's code.
"""

from __future__ import annotations

import os
import socket
import sys

_FIRST_FD = 3  # sd_listen_fds(3)


def serve(command: list[str], sock: socket.socket) -> None:
    """In the process that becomes the server."""
    os.dup2(sock.fileno(), _FIRST_FD)
    os.set_inheritable(_FIRST_FD, True)
    os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
    os.execvp(command[0], command)


def main(command: list[str]) -> None:
    """Until it is killed."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print("port", sock.getsockname()[1], flush=True)
    while True:
        pid = os.fork()
        if not pid:
            serve(command, sock)
        print("server", pid, flush=True)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
