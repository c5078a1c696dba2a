"""What only the blocking client has: threads, forks, limits without an event loop."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import pytest

from fdfsfuse import blocking
from fdfsfuse.blocking.connection import Connection, connect
from fdfsfuse.blocking.pool import Pool
from fdfsfuse.client.address import Address
from fdfsfuse.errors import ConnectFailed, DeadlineExceeded, UsageError
from tests.common.cluster import Cluster
from tests.common.waiting import wait_until

FILE_ID = "group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt"


@pytest.fixture
def client(cluster: Cluster) -> Iterator[blocking.Client]:
    with blocking.Client(cluster.tracker.endpoint, timeout_s=60) as client:
        yield client


@contextlib.contextmanager
def listener() -> Iterator[socket.socket]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def in_threads(count: int, work: Callable[[int], object]) -> None:
    """Call work(0), work(1) ... at once; the first problem is raised."""
    problems: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as exc:
            problems.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def test_many_threads_share_few_connections(cluster: Cluster) -> None:
    with blocking.Client(cluster.tracker.endpoint, connections=2, timeout_s=60) as client:

        def work(number: int) -> None:
            content = bytes([number]) * (1000 * number + 1)
            for _ in range(5):
                file_id = client.upload(content)
                assert client.download(file_id, verify=True) == content
                client.delete(file_id)

        in_threads(8, work)
        assert all(1 <= shelf.total <= 2 for shelf in client._pool._shelves.values())


def test_a_forked_process_gets_connections_of_its_own(client: blocking.Client) -> None:
    file_id = client.upload(b"content")
    ours = {id(shelf) for shelf in client._pool._shelves.values()}
    with warnings.catch_warnings():
        # Of threads that are not ours, and wait for nothing that the child needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            fine = not client._pool._shelves and client.download(file_id) == b"content"
        except BaseException:
            fine = False
        os._exit(0 if fine else 1)
    # At the same time, on the connections from before.
    assert client.download(file_id) == b"content"
    assert os.waitpid(child, 0)[1] == 0
    assert client.download(file_id) == b"content"
    assert {id(shelf) for shelf in client._pool._shelves.values()} == ours


def test_deadlines(cluster: Cluster) -> None:
    def redirected(address: Address) -> Address:
        return Address(*silent.getsockname())

    with (
        listener() as silent,
        blocking.Client(cluster.tracker.endpoint, address_map=redirected) as client,
    ):
        before = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="no progress"):
            client.info(FILE_ID, timeout_s=0.05)
        with pytest.raises(DeadlineExceeded, match="the deadline has passed"):
            client.info(FILE_ID, deadline_s=0.05)
        with pytest.raises(DeadlineExceeded, match="the deadline has passed"):
            client.upload(bytes(20_000_000), deadline_s=0.05)
        assert time.monotonic() - before >= 0.15
        silent_address = Address(*silent.getsockname())
        for address, shelf in client._pool._shelves.items():
            idle = len(shelf._idle)
            assert shelf.total == idle, "what is in the middle of something is closed"
            assert not idle or address != silent_address


def test_the_limit_of_connections() -> None:
    pool = Pool(limit=1, max_idle=1, max_idle_s=60, connect_timeout_s=5)
    with listener() as server:
        address = Address(*server.getsockname())

        def borrow(timeout_s: float = 60) -> Connection:
            now = time.monotonic()
            return pool.borrow(address, now, now + timeout_s)

        first = borrow()
        with pytest.raises(ConnectFailed, match="all 1 connections"):
            borrow(0.01)
        got: list[Connection] = []
        waiter = threading.Thread(target=lambda: got.append(borrow()))
        waiter.start()
        wait_until(lambda: pool._waiting == 1, "the thread to wait")
        assert not got
        pool.give_back(first)
        waiter.join()
        assert got == [first]
        pool.close()
        pool.give_back(first)
        assert not first.usable
        with pytest.raises(UsageError, match="closed"):
            borrow()


def test_room_at_one_address_wakes_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although another thread waits for another address, and longer."""
    refuse = threading.Event()
    refused: list[ConnectFailed] = []

    def try_to_connect(address: Address, timeout_s: float) -> Connection:
        if address.host == "nobody":
            refuse.wait(60)
            raise ConnectFailed("refused")
        return connect(address, timeout_s)

    monkeypatch.setattr("fdfsfuse.blocking.pool.connect", try_to_connect)
    pool = Pool(limit=1, max_idle=1, max_idle_s=60, connect_timeout_s=5)

    def borrow(address: Address) -> Connection:
        now = time.monotonic()
        return pool.borrow(address, now, now + 3600)

    def fail() -> None:
        with pytest.raises(ConnectFailed) as caught:
            borrow(Address("nobody", 1))
        refused.append(caught.value)

    with listener() as server:
        busy = Address(*server.getsockname())
        first = borrow(busy)
        others: list[Connection] = []
        threads = [threading.Thread(target=lambda: others.append(borrow(busy)), daemon=True)]
        threads += [threading.Thread(target=fail, daemon=True) for _ in range(2)]
        threads[0].start()
        wait_until(lambda: pool._waiting == 1, "a thread to wait for the busy one")
        threads[1].start()
        wait_until(lambda: len(pool._shelves) == 2, "a thread to connect")
        threads[2].start()
        wait_until(lambda: pool._waiting == 2, "another one to wait for that")
        refuse.set()
        wait_until(lambda: len(refused) == 2, "both to hear that nobody is there")
        pool.give_back(first)
        for thread in threads:
            thread.join()
        pool.give_back(others[0])
        pool.close()


def test_a_connection_that_the_server_closed_is_noticed(client: blocking.Client) -> None:
    file_id = client.upload(b"one", appender=True)
    for shelf in client._pool._shelves.values():
        for connection in shelf._idle:
            connection.sock.shutdown(socket.SHUT_RDWR)
    client.append(file_id, b" two")
    assert client.download(file_id) == b"one two"


def test_streams(client: blocking.Client) -> None:
    content = os.urandom(200_000)
    file_id = client.upload(content)
    with client.open(file_id, chunk_size=1000) as stream:
        assert stream.read(10) == content[:10]
        assert stream.read(0) == b""
        assert stream.read(5000) == content[10:5010]
        assert b"".join(stream) == content[5010:]
        assert stream.read() == b""
    stream = client.open(file_id)
    stream.read(1)
    stream.close()
    assert stream.read() == b""
    with pytest.raises(FileNotFoundError):
        client.open(FILE_ID)


def test_a_forgotten_client_is_closed(cluster: Cluster) -> None:
    client = blocking.Client(cluster.tracker.endpoint)
    client.upload(b"content")
    pool = client._pool
    kept = [connection for shelf in pool._shelves.values() for connection in shelf._idle]
    assert kept
    del client
    assert not any(connection.usable for connection in kept)
