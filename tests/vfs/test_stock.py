"""A volume whose storages keep no names: its objects by their ids."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from fdfsfuse.client.address import Address
from fdfsfuse.errors import NoNamesError, StatusError
from fdfsfuse.proto import names
from fdfsfuse.vfs.remote import RemoteBackend, RemoteCluster
from tests.daemons.storage_server import Client, make_config, run_storage
from tests.daemons.tracker_server import TRACKER_IP, running_tracker
from tests.vfs.test_remote import Listener


@asynccontextmanager
async def volume(directory: Path) -> AsyncIterator[tuple[RemoteBackend, Client]]:
    """The backend of group1, and a client of its only storage, which knows no names."""
    with trio.fail_after(60):
        async with (
            running_tracker(directory / "tracker") as tracker,
            run_storage(make_config(directory), source="127.0.0.1") as server,
            server.connect() as client,
            trio.open_nursery() as nursery,
        ):
            space = ((10000, 5000), (10000, 5000))
            await tracker.active("127.0.0.1", port=server.port, space=space)
            cluster = RemoteCluster([Address(TRACKER_IP, tracker.port)], "test", 30.0, 0.0)
            assert await cluster.volumes() == ["group1"]
            backend = cluster.backend("group1")
            nursery.start_soon(backend.run, Listener())
            yield backend, client
            backend.close()
            cluster.close()


async def listed(backend: RemoteBackend, path: str, limit: int = 100) -> list[str]:
    """All entries of a directory, asked for *limit* at a time."""
    found: list[str] = []
    while True:
        after = found[-1] if found else ""
        listing = await backend.call(names.ListObjects(path, after, limit))
        found += [entry.name for entry in listing.entries]
        assert len(listing.entries) <= limit
        if listing.end:
            return found


@pytest.mark.parametrize("limit", [1, 100])
async def test_listing(tmp_path: Path, limit: int) -> None:
    async with volume(tmp_path) as (backend, client):
        uploaded = [await client.upload(b"%d" % number) for number in range(3)]
        uploaded.append(await client.upload(b"grows", appender=True))
        uploaded.append(await client.upload(b"", path=1))
        gone = await client.upload(b"gone")
        await client.set_metadata(uploaded[0], b"a\x021")
        assert await client.delete(gone) == 0
        assert await listed(backend, "", limit) == ["M00", "M01"]
        found = [
            f"{first}/{second}/{third}/{name}"
            for first in ("M00", "M01")
            for second in await listed(backend, first, limit)
            for third in await listed(backend, f"{first}/{second}", limit)
            for name in await listed(backend, f"{first}/{second}/{third}", limit)
        ]
        assert found == sorted(uploaded)


async def test_directories_with_many_objects(tmp_path: Path) -> None:
    async with volume(tmp_path) as (backend, client):
        for _ in range(250):  # a hundred go to each directory
            await client.upload(b"content")
        assert await listed(backend, "M00", 1) == ["00"]
        assert await listed(backend, "M00/00", 1) == ["00", "01", "02"]
        assert len(await listed(backend, "M00/00/01", 7)) == 100
        assert await listed(backend, "M00/03") == []


async def test_objects(tmp_path: Path) -> None:
    async with volume(tmp_path) as (backend, client):
        name = await client.upload(b"content")
        appender = await client.upload(b"0123", appender=True)
        await client.append(appender, b"4567")
        await client.set_metadata(name, b"width\x021024")
        for file_id, content in ((name, b"content"), (appender, b"01234567")):
            attr = await backend.call(names.LookupObject(file_id))
            assert (attr.ino, attr.size, attr.file_id) == (0, len(content), file_id)
            assert (await backend.info(file_id)).size == len(content)
            buffer = bytearray(100)
            count = await backend.read_into(file_id, 2, memoryview(buffer))
            assert buffer[:count] == content[2:]
        entries = (await backend.call(names.ListObjects("M00/00/00", "", 10))).entries
        assert {entry.attr.size for entry in entries} == {7, 8}
        assert await backend.call(names.ListXattrs(0, name)) == names.Xattrs(
            {b"user.width": b"1024"}
        )
        assert await backend.call(names.ListXattrs(0, appender)) == names.Xattrs({})
        await backend.delete_object(name)
        with pytest.raises(StatusError) as caught:
            await backend.call(names.LookupObject(name))
        assert caught.value.errno == errno.ENOENT


async def test_there_are_no_names(tmp_path: Path) -> None:
    async with volume(tmp_path) as (backend, _):
        root = await backend.call(names.GetAttr(names.ROOT_INO))
        assert root.mode == 0o040555
        assert await backend.call(names.ReadDir(names.ROOT_INO, 0, 10)) == names.Listing([], True)
        space = await backend.call(names.StatFs())
        assert (space.total_bytes, space.free_bytes) == (20000 << 20, 10000 << 20)
        with pytest.raises(StatusError) as caught:
            await backend.call(names.Lookup(names.ROOT_INO, b"name"))
        assert caught.value.errno == errno.ENOENT
        with pytest.raises(NoNamesError):
            await backend.call(names.Create(names.ROOT_INO, b"name", 0o100644, 1, 2, 3))
