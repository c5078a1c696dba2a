"""The echo of `floor.c` in Python: what any server in Python costs per request.

    python echo.py [FILE]

Prints its port, then answers 50 bytes to every request of any client, after a stat() of FILE if
one is given: the least that file info costs in Python.
"""

from __future__ import annotations

import os
import select
import socket
import sys


def main() -> None:
    """Serve until killed."""
    path = sys.argv[1] if len(sys.argv) > 1 else None
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    clients: dict[int, socket.socket] = {}
    buffer, answer = bytearray(1 << 16), bytes(50)
    while True:
        for fd, _ in poll.poll(-1, 64):
            client = clients.get(fd)
            if client is None:
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[client.fileno()] = client
                poll.register(client, select.EPOLLIN)
            elif client.recv_into(buffer):
                if path:
                    os.stat(path)
                client.send(answer)
            else:
                clients.pop(fd).close()


if __name__ == "__main__":
    main()
