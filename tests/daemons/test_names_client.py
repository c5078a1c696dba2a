"""The client's names session with a real storage that is killed and comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from fdfsfuse.client.address import Address
from fdfsfuse.client.client import Client
from fdfsfuse.client.names import NamesSession, open_session
from fdfsfuse.client.views import query_view
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import names
from fdfsfuse.proto.names import ROOT_INO
from tests.common.cluster import Cluster


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[Client]:
    async with Client(Address(cluster.tracker.address, cluster.tracker.port)) as client:
        yield client


@asynccontextmanager
async def session_of(client: Client, group: str = "group1") -> AsyncIterator[NamesSession]:
    async with open_session(
        lambda: client.tracker.find_candidates(group), client="test"
    ) as session:
        yield session


def make(name: bytes, mode: int = 0o100644) -> names.Create:
    return names.Create(ROOT_INO, name, mode, 0, 0, 1)


async def test_calls_span_a_crash_of_the_storage(client: Client, cluster: Cluster) -> None:
    storage = cluster.storage("group1")
    async with session_of(client) as session:
        made = await session.call(make(b"before"))
        view = session.view
        storage.kill()
        async with trio.open_nursery() as nursery:
            # Waits while the storage is away.
            nursery.start_soon(session.call, make(b"meanwhile"), trio.current_time() + 60)
            storage.launch()
            await trio.to_thread.run_sync(storage.wait_ready)
        assert session.view == view
        assert (await session.call(names.Lookup(ROOT_INO, b"before"))).ino == made.ino
        assert (await session.call(names.Lookup(ROOT_INO, b"meanwhile"))).nlink == 1
        with pytest.raises(StatusError):
            await session.call(make(b"meanwhile"))
    await trio.to_thread.run_sync(cluster.wait_active)


async def test_changes_happen_once_although_connections_break(client: Client) -> None:
    """A retry that was carried out twice would answer EEXIST."""
    async with session_of(client) as session:
        await session.call(make(b"d", 0o40755))
        done = False

        async def breaker() -> None:
            while not done:
                await trio.sleep(0.01)
                session._disconnect()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(breaker)
            for number in range(60):
                await session.call(make(b"%d" % number), trio.current_time() + 30)
            done = True
        listing = await session.call(names.ReadDir(ROOT_INO, 0, 1000))
        found = {entry.name for entry in listing.entries}
        assert {b"%d" % number for number in range(60)} <= found


async def test_an_object_is_written_in_pieces(client: Client) -> None:
    async with session_of(client) as session:
        file = await session.call(make(b"large"))
        made = await session.call(names.NewObject(file.ino))
        assert session.address is not None
        connection = await client.pool.borrow(session.address)

        async def write(head: names.WriteObject, data: bytes | list[bytes]) -> None:
            encoded = names.encode(head)
            front = len(encoded).to_bytes(4, "big") + encoded
            await connection.command_stream(names.WRITE_OBJECT, front, data, head.length)

        pieces = [b"a" * 10, b"", b"b" * 100_000]
        await write(names.WriteObject(made.file_id, made.view, 0, 100_010), pieces)
        await write(names.WriteObject(made.file_id, made.view, 5, 3), b"XYZ")
        cut = names.encode(names.TruncateObject(made.file_id, made.view, 20))
        await connection.command(names.TRUNCATE_OBJECT, cut)
        client.pool.give_back(connection)
        attr = await session.call(names.NameObject(file.ino, made.file_id, 20, 7))
        assert attr.size == 20
        assert await client.download("group1/" + made.file_id) == b"aaaaaXYZaabbbbbbbbbb"
        assert await query_view(session.address) == session.view
        paths = await session.call(names.Paths(made.file_id))
        assert paths.paths == [b"/large"]
