"""What pools remember of an address: its connections, and that nobody answered there."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from fdfsfuse.blocking import pool as blocking
from fdfsfuse.client import pool as with_trio
from fdfsfuse.client import shelf
from fdfsfuse.client.address import Address
from fdfsfuse.client.connection import Connection
from fdfsfuse.errors import ConnectFailed

USUAL_S = 5.0


def test_an_address_where_nobody_answers_is_tried_now_and_then() -> None:
    found = shelf.Shelf[Connection](16, 60.0)
    assert found.connect_timeout(100.0, USUAL_S) == USUAL_S
    found.not_connected(100.0, 105.0)
    assert found.connect_timeout(106.0, USUAL_S) == 0
    assert found.connect_timeout(107.1, USUAL_S) == shelf.DEAD_TIMEOUT_S
    assert found.connect_timeout(107.2, USUAL_S) == 0, "one finds out"
    found.not_connected(107.1, 107.6)
    assert found.connect_timeout(109.0, USUAL_S) == 0
    assert found.connect_timeout(110.0, USUAL_S) == shelf.DEAD_TIMEOUT_S
    found.connected(110.0)
    assert found.connect_timeout(110.1, USUAL_S) == USUAL_S


def test_it_is_forgotten_after_a_while_and_refusals_are_not_remembered() -> None:
    found = shelf.Shelf[Connection](16, 60.0)
    found.not_connected(100.0, 100.01)
    assert found.connect_timeout(100.1, USUAL_S) == USUAL_S
    found.not_connected(100.0, 105.0)
    assert found.connect_timeout(105.0 + shelf.DEAD_FOR_S, USUAL_S) == USUAL_S


def test_a_server_that_is_back_at_the_end_of_a_slow_way_is_found() -> None:
    found = shelf.Shelf[Connection](16, 60.0)
    found.not_connected(100.0, 105.0)
    long_tries = 0
    for second in range(106, 106 + 3 * int(shelf.DEAD_FOR_S)):
        now = float(second)
        timeout_s = found.connect_timeout(now, USUAL_S)
        long_tries += timeout_s == USUAL_S
        if timeout_s:
            found.not_connected(now, now + timeout_s)
    assert 2 <= long_tries <= 3, "and by one request each time"


def test_one_that_gives_up_after_others_were_answered_says_nothing() -> None:
    found = shelf.Shelf[Connection](16, 60.0)
    found.connected(103.0)
    found.not_connected(100.0, 105.0)
    assert found.connect_timeout(106.0, USUAL_S) == USUAL_S


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A listener whose queue is full."""
    monkeypatch.setattr(shelf, "SLOW_S", 0.05)
    monkeypatch.setattr(shelf, "DEAD_RETRY_S", 3600.0)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(10):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener


async def test_the_pool_for_trio_remembers_it(silent: socket.socket) -> None:
    address = Address(*silent.getsockname())
    async with with_trio.Pool(connect_timeout_s=0.2, limit=1) as pool:
        with pytest.raises(ConnectFailed, match="no answer within"):
            await pool.borrow(address)
        with pytest.raises(ConnectFailed, match="just now"):
            await pool.borrow(address)


def test_the_blocking_pool_remembers_it(silent: socket.socket) -> None:
    address = Address(*silent.getsockname())
    pool = blocking.Pool(limit=1, max_idle=1, max_idle_s=60.0, connect_timeout_s=0.2)
    for expected in ("cannot connect", "just now"):
        with pytest.raises(ConnectFailed, match=expected):
            pool.borrow(address, time.monotonic(), time.monotonic() + 60.0)
    pool.close()
