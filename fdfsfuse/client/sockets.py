"""What every connection of a client has, trio or not."""

from __future__ import annotations

import errno
import os
import select
import socket

TIMEOUT_S = 30.0
"""How long an operation may take without any progress, unless the caller says something else."""
CONNECT_TIMEOUT_S = 5.0
DEAD_PEER_S = 12
"""The kernel breaks a connection whose peer has acknowledged nothing for about this long."""
FIRST_READ = 4096
"""Bytes that are asked for when an answer is expected, if it may not be longer."""
_LARGEST_FIRST_READ = 64 << 10


def first_read(limit: int) -> int:
    """Bytes to ask for when an answer of at most *limit* bytes is expected."""
    return min(limit + 10, _LARGEST_FIRST_READ) if limit > FIRST_READ else FIRST_READ


def readable(sock: socket.socket) -> select.poll:
    """Its ``poll(0)`` tells whether there is something to receive, the end included.

    Half the price of receiving, which says by an exception that there is nothing.
    """
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return poll


def set_options(sock: socket.socket) -> None:
    """No delays, and a machine that vanished is noticed by the kernel: no request needs a timer.

    Raises:
        OSError: a connection to a free port of this machine has met itself.
    """
    if sock.getsockname() == sock.getpeername():
        raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_PEER_S // 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_S * 1000)
