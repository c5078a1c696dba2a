"""Connections and the pool against peers that are slow, refuse, break off or send garbage."""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from fdfsfuse.client.address import Address
from fdfsfuse.client.connection import Connection, connect
from fdfsfuse.client.pool import Pool
from fdfsfuse.client.sources import FileRange
from fdfsfuse.errors import (
    ConnectFailed,
    ConnectionBroken,
    DeadlineExceeded,
    FdfsError,
    ProtocolError,
    StatusError,
    UsageError,
)
from fdfsfuse.proto.header import pack_header, pack_response
from tests.client.peers import PeerConnection, Request, running_peer, unused_address
from tests.common.waiting import wait_for

ECHO = 11


async def echo(connection: PeerConnection) -> None:
    """Answers every request with its body; 99 with status 2, 98 with status 22 and a close."""
    while True:
        request = await connection.receive()
        if request.command == 99:
            await connection.answer(status=errno.ENOENT)
        elif request.command == 98:
            await connection.answer(status=errno.EINVAL)
            return
        else:
            await connection.answer(request.body)


async def test_requests_and_statuses() -> None:
    async with running_peer(echo) as peer:
        connection = await connect(peer.address)
        assert await connection.request(ECHO, b"hello") == b"hello"
        assert await connection.request(ECHO) == b""
        with pytest.raises(StatusError) as info:
            await connection.request(99)
        assert info.value.errno == errno.ENOENT
        assert connection.usable
        with pytest.raises(StatusError):
            await connection.request(98)
        assert not connection.usable, "storages close after 22"
        with pytest.raises(ConnectionBroken):
            await connection.request(ECHO)


async def test_an_answer_in_single_bytes() -> None:
    async def drip(connection: PeerConnection) -> None:
        while True:
            request = await connection.receive()
            for byte in pack_response(request.body):
                await connection.send(bytes((byte,)))
                await trio.lowlevel.checkpoint()

    async with running_peer(drip) as peer:
        connection = await connect(peer.address)
        assert await connection.request(ECHO, b"0123456789") == b"0123456789"
        buffer = bytearray(20)
        assert await connection.request_into(ECHO, b"abcdef", memoryview(buffer)) == 6
        assert buffer[:7] == b"abcdef\0"
        connection.close()


@pytest.mark.parametrize(
    "answer",
    [
        pack_header(-1, 100),
        pack_header(3, 100, 2) + b"abc",
        pack_header(0, 101),
        pack_header(1 << 40, 100),
        pack_header(2, 100) + b"abc",
    ],
    ids=["negative", "error with body", "not a response", "huge", "more than announced"],
)
async def test_garbage_closes_the_connection(answer: bytes) -> None:
    async def garbage(connection: PeerConnection) -> None:
        await connection.receive()
        await connection.send(answer)
        await trio.sleep_forever()

    async with running_peer(garbage) as peer:
        connection = await connect(peer.address)
        with pytest.raises(ProtocolError):
            await connection.request(ECHO, b"x")
        assert not connection.usable
        connection = await connect(peer.address)
        with pytest.raises(ProtocolError):
            await connection.request_into(ECHO, b"x", memoryview(bytearray(100)))
        assert not connection.usable


async def test_an_answer_that_breaks_off() -> None:
    async def break_off(connection: PeerConnection) -> None:
        await connection.receive()
        await connection.send(pack_header(10, 100) + b"only")

    async with running_peer(break_off) as peer:
        connection = await connect(peer.address)
        with pytest.raises(ConnectionBroken):
            await connection.request(ECHO)
        assert connection.answered
        assert not connection.usable


async def test_a_cancelled_exchange_closes_the_connection() -> None:
    async def silent(connection: PeerConnection) -> None:
        await connection.receive()
        await trio.sleep_forever()

    async with running_peer(silent) as peer:
        connection = await connect(peer.address)
        with trio.move_on_after(0.02) as scope:
            await connection.request(ECHO)
        assert scope.cancelled_caught
        assert not connection.usable


async def test_unexpected_bodies_of_commands_are_skipped() -> None:
    async with running_peer(echo) as peer:
        connection = await connect(peer.address)
        await connection.command(24, b"e" * 5000)
        assert await connection.request(ECHO, b"in step") == b"in step"
        await connection.command_stream(24, b"head", b"body", 4)
        assert await connection.request(ECHO, b"in step") == b"in step"
        connection.close()


async def chunks(size: int, count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield bytes((number % 251,)) * size


async def test_bodies_from_memory_files_and_iterators() -> None:
    received: list[Request] = []

    async def store(connection: PeerConnection) -> None:
        while True:
            received.append(await connection.receive())
            await connection.answer(b"id")

    content = os.urandom(3_000_000)
    with tempfile.TemporaryFile() as file:
        file.write(b"skip" + content)
        file.flush()
        async with running_peer(store) as peer:
            connection = await connect(peer.address)
            size = len(content)
            assert await connection.send_stream(11, b"head", content, size) == b"id"
            await connection.send_stream(11, b"head", FileRange(file.fileno(), 4, size), size)
            await connection.send_stream(11, b"head", chunks(70_000, 30), 2_100_000)
            await connection.send_stream(11, b"head", b"", 0)
            await connection.send_stream(11, b"head", FileRange(file.fileno(), 0, 0), 0)
            connection.close()
    expected = b"".join([bytes((number,)) * 70_000 for number in range(30)])
    assert [r.body[4:] for r in received] == [content, content, expected, b"", b""]


@pytest.mark.parametrize("size", [99, 101])
async def test_bodies_of_another_size_than_announced(size: int) -> None:
    async with running_peer(echo) as peer:
        connection = await connect(peer.address)
        with pytest.raises(UsageError):
            await connection.send_stream(11, b"", chunks(10, 10), size)
        assert not connection.usable


async def test_a_file_that_became_shorter_ends_the_upload() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"short")
        file.flush()
        async with running_peer(echo) as peer:
            connection = await connect(peer.address)
            with pytest.raises(UsageError, match="shorter"):
                await connection.send_stream(11, b"", FileRange(file.fileno(), 0, 100), 100)


async def test_an_early_refusal_of_a_large_body_is_heard() -> None:
    async def refuse(connection: PeerConnection) -> None:
        await connection.receive_exactly(10)
        await connection.answer(status=errno.ENOSPC)
        await trio.sleep_forever()

    async with running_peer(refuse) as peer:
        connection = await connect(peer.address)
        with trio.fail_after(60), pytest.raises(StatusError) as info:
            await connection.send_stream(11, b"", chunks(1000, 10_000_000), 10**10)
        assert info.value.errno == errno.ENOSPC
        assert not connection.usable


async def test_streamed_answers() -> None:
    async with running_peer(echo) as peer:
        connection = await connect(peer.address)
        content = os.urandom(1_000_000)
        stream = await connection.start_stream(ECHO, content)
        assert stream.remaining == len(content)
        start = await stream.receive_some(10)
        rest = b""
        while data := await stream.receive_some():
            rest += data
        stream.end()
        assert start + rest == content
        assert connection.usable
        stream = await connection.start_stream(ECHO, content)
        await stream.receive_some(10)
        stream.end()
        assert not connection.usable, "the rest of the answer was not read"


async def test_bodies_of_many_pieces() -> None:
    async with running_peer(echo) as peer:
        connection = await connect(peer.address)
        for pieces in ([b"a", b"", b"bc"], [b"x" * 1000] * 3000, [b"y" * 3_000_000] * 2, []):
            size = sum(map(len, pieces))
            answer = await connection.send_stream(
                ECHO, b"head", pieces, size, max_answer=10_000_000
            )
            assert answer == b"head" + b"".join(pieces)
        connection.close()


async def test_connecting_fails_clearly(tmp_path: Path) -> None:
    address = await unused_address()
    with pytest.raises(ConnectFailed, match="refused"):
        await connect(address)
    with pytest.raises(ConnectFailed, match="cannot find the host"):
        await connect(Address("no-such-host.invalid", 1))


async def test_a_peer_that_never_accepts() -> None:
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = Address(*listener.getsockname())
        waiting: list[Connection] = []

        async def fill_the_queue() -> None:
            for _ in range(10):
                waiting.append(await connect(address, 0.05))

        with pytest.raises(ConnectFailed, match="no answer within"):
            await fill_the_queue()
        for connection in waiting:
            connection.close()


# --- the pool ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", [b"", pack_header(6, 100)[:4], pack_header(6, 100), pack_header(6, 100) + b"abc"]
)
async def test_an_exchange_ends_at_its_deadline(answer: bytes) -> None:
    async def stops(connection: PeerConnection) -> None:
        if (await connection.receive()).body:
            await connection.answer(b"abcdef")
            await connection.receive()
        await connection.send(answer)
        await trio.sleep_forever()

    async with running_peer(stops) as peer, Pool() as pool:
        body, buffer = b"x", memoryview(bytearray(6))

        async def exchange(connection: Connection) -> int:
            return await connection.request_into(ECHO, body, buffer)

        async def call(after_s: float) -> int:
            deadline = trio.current_time() + after_s
            return await pool.call(peer.address, exchange, repeatable=True, deadline=deadline)

        assert await call(60) == 6
        body = b""
        for _ in range(2):  # on a kept connection, and on a new one
            with pytest.raises(DeadlineExceeded):
                await call(0.05)
            assert pool.borrow_nowait(peer.address) is None
        body = b"x"
        assert await call(60) == 6


async def test_a_deadline_ends_the_wait_for_a_connection_as_well() -> None:
    async with running_peer(echo) as peer, Pool(limit=1) as pool:

        async def exchange(connection: Connection) -> bytes:
            return await connection.request(ECHO, b"x")

        async with pool.connection(peer.address):
            with pytest.raises(DeadlineExceeded):
                await pool.call(peer.address, exchange, repeatable=True, deadline=0.0)
        deadline = trio.current_time() + 60
        call = pool.call(peer.address, exchange, repeatable=True, deadline=deadline)
        assert await call == b"x"
        async with pool.connection(peer.address) as connection:
            assert connection.reused
            assert connection.deadline == math.inf
        assert peer.connections == 1


async def test_the_pool_reuses_connections() -> None:
    async with running_peer(echo) as peer, Pool() as pool:
        for _ in range(5):
            async with pool.connection(peer.address) as connection:
                await connection.request(ECHO, b"x")
        assert peer.connections == 1
        async with pool.connection(peer.address) as a, pool.connection(peer.address) as b:
            assert a is not b
            await b.request(ECHO)
        assert peer.connections == 2


async def test_broken_connections_do_not_go_back() -> None:
    async with running_peer(echo) as peer, Pool() as pool:
        with pytest.raises(StatusError):
            async with pool.connection(peer.address) as connection:
                await connection.request(98)
        async with pool.connection(peer.address) as connection:
            await connection.request(ECHO)
        assert peer.connections == 2


async def test_a_connection_closed_while_idle_is_not_used() -> None:
    close = trio.Event()

    async def once(connection: PeerConnection) -> None:
        await connection.answer((await connection.receive()).body)
        await close.wait()

    async with running_peer(once) as peer, Pool() as pool:
        async with pool.connection(peer.address) as connection:
            await connection.request(ECHO)
        close.set()
        await wait_for(lambda: not connection.alive())
        async with pool.connection(peer.address) as connection:
            assert await connection.request(ECHO, b"new") == b"new"
        assert peer.connections == 2


async def closing_on_second_request(connection: PeerConnection) -> None:
    await connection.answer((await connection.receive()).body)
    await connection.receive()


async def ask(connection: Connection) -> bytes:
    return await connection.request(ECHO, b"q")


async def test_a_stale_connection_is_replaced_for_reads_only() -> None:
    async with running_peer(closing_on_second_request) as peer, Pool() as pool:
        assert await pool.call(peer.address, ask, repeatable=True) == b"q"
        assert await pool.call(peer.address, ask, repeatable=True) == b"q"
        assert peer.connections == 2
        with pytest.raises(ConnectionBroken):
            await pool.call(peer.address, ask, repeatable=False)
        assert peer.connections == 2


async def test_a_new_connection_that_breaks_is_no_stale_one() -> None:
    async def close_at_once(connection: PeerConnection) -> None:
        await connection.receive()

    async with running_peer(close_at_once) as peer, Pool() as pool:
        with pytest.raises(ConnectionBroken):
            await pool.call(peer.address, ask, repeatable=True)
        assert peer.connections == 1


async def test_the_limit_makes_borrowers_wait() -> None:
    async with running_peer(echo) as peer, Pool(limit=2) as pool:
        first = await pool.borrow(peer.address)
        second = await pool.borrow(peer.address)
        got: list[Connection] = []

        async def borrow() -> None:
            got.append(await pool.borrow(peer.address))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(borrow)
            nursery.start_soon(borrow)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not got
            pool.give_back(first)
            second.close()
            pool.give_back(second)
        assert first in got
        assert peer.connections <= 3
        for connection in got:
            pool.give_back(connection)


async def test_failed_connects_leave_room() -> None:
    address = await unused_address()
    async with Pool(limit=1) as pool:
        for _ in range(3):
            with pytest.raises(ConnectFailed):
                await pool.borrow(address)


async def test_idle_connections_age(autojump_clock: trio.testing.MockClock) -> None:
    async with running_peer(echo) as peer, Pool(max_idle_s=60, connect_timeout_s=1e9) as pool:
        connection = await pool.borrow(peer.address)
        pool.give_back(connection)
        await trio.sleep(59)
        assert await pool.borrow(peer.address) is connection
        pool.give_back(connection)
        await trio.sleep(61)
        newer = await pool.borrow(peer.address)
        assert newer is not connection
        assert not connection.usable
        pool.give_back(newer)
    assert not newer.usable
    with pytest.raises(FdfsError, match="closed"):
        await pool.borrow(peer.address)


async def test_an_answer_right_behind_the_last_byte_is_no_early_one() -> None:
    """The peer may have answered before the sender looks again."""
    async with running_peer(echo) as peer:
        connection = await connect(peer.address)

        async def one_chunk_then_wait() -> AsyncIterator[bytes]:
            yield b"x" * 100
            await trio.sleep(0.05)

        for _ in range(3):
            source = one_chunk_then_wait()
            assert await connection.send_stream(11, b"", source, 100) == b"x" * 100
        connection.close()
