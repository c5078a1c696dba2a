"""Loopback addresses and ports that nothing else uses, so that test runs do not meet."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterator, Sequence

_network = random.Random(os.urandom(8))


@contextlib.contextmanager
def reserved_port(addresses: Sequence[str]) -> Iterator[int]:
    """A port that nobody else is given on *addresses* while daemons are started that listen there.

    The sockets here do not hinder it: they do not listen, and they have SO_REUSEADDR, as those of
    daemons do. They get it when they are bound, so that they do not meet each other.
    """
    while True:
        with contextlib.ExitStack() as stack:
            port = 0
            try:
                for address in addresses:
                    sock = stack.enter_context(socket.socket())
                    sock.bind((address, port))
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    port = sock.getsockname()[1]
            except OSError:
                continue
            yield port
            return


def free_port(addresses: Sequence[str]) -> int:
    """A port that is free on all *addresses* (storages of a group share their port)."""
    with reserved_port(addresses) as port:
        return port


def loopback_network() -> str:
    """The first three numbers of loopback addresses that nobody else uses: ``127.83.7``."""
    return f"127.{_network.randrange(16, 255)}.{_network.randrange(1, 255)}"
