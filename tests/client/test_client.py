"""The clients of files by id: sources and targets, failover, deadlines, what errors say.

Every test that takes `cluster` or `make_client` runs with the trio client and the blocking one.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import pytest
import trio

import fdfsfuse
from fdfsfuse.client.address import Address
from fdfsfuse.client.client import Client
from fdfsfuse.client.sockets import DEAD_PEER_S
from fdfsfuse.client.sources import open_source
from fdfsfuse.errors import (
    ConnectFailed,
    ConnectionProblem,
    DeadlineExceeded,
    IntegrityError,
    NotFoundError,
    StatusError,
    TooFewCopiesError,
    UsageError,
)
from fdfsfuse.proto import copies
from fdfsfuse.proto.fileid import FileKind
from fdfsfuse.proto.storage import StorageCommand
from fdfsfuse.proto.tracker import TrackerCommand
from tests.client.both import CLIENTS, AnyClient, MakeClient
from tests.client.cluster_peer import GROUP, MemoryStorage, MemoryTracker
from tests.client.peers import Peer, PeerConnection, running_peer, unused_address


class Setup(NamedTuple):
    """A client, its tracker, and the storages in the tracker's order."""

    client: AnyClient
    tracker: MemoryTracker
    tracker_address: Address
    storages: list[MemoryStorage]
    peers: list[Peer]


MakeCluster: TypeAlias = Callable[..., AbstractAsyncContextManager[Setup]]


@pytest.fixture(params=CLIENTS)
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    return CLIENTS[request.param]


@pytest.fixture
def cluster(make_client: MakeClient) -> MakeCluster:
    """A tracker and *count* storages of one group, and a client with *options*."""

    @asynccontextmanager
    async def cluster(count: int = 1, **options: Any) -> AsyncIterator[Setup]:
        async with AsyncExitStack() as stack:
            storages = [MemoryStorage() for _ in range(count)]
            peers = [await stack.enter_async_context(running_peer(s.handle)) for s in storages]
            tracker = MemoryTracker(*(peer.address for peer in peers))
            running = await stack.enter_async_context(running_peer(tracker.handle))
            made = make_client(running.address, **{"timeout_s": 60, **options})
            client = await stack.enter_async_context(made)
            yield Setup(client, tracker, running.address, storages, peers)

    return cluster


async def chunks(*items: bytes) -> AsyncIterator[bytes]:
    for item in items:
        yield item


def test_the_package_offers_the_client() -> None:
    assert fdfsfuse.Client is Client
    with pytest.raises(AttributeError):
        fdfsfuse.NoSuchThing  # noqa: B018


async def test_uploads_from_everything(cluster: MakeCluster, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"on disk")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with cluster() as setup:
        client, files = setup.client, setup.storages[0].files

        async def stored(file_id: str) -> bytes:
            group, _, name = file_id.partition("/")
            assert group == GROUP
            return files[name]

        assert await stored(await client.upload(b"bytes")) == b"bytes"
        assert await stored(await client.upload(memoryview(b"view"))) == b"view"
        by_path = await client.upload(path)
        assert by_path.endswith(".jpg")
        assert await stored(by_path) == b"on disk"
        assert await stored(await client.upload(str(path), extension="png")) == b"on disk"
        with path.open("rb") as file:
            file.seek(3)
            assert await stored(await client.upload(file)) == b"disk"
        assert await stored(await client.upload(io.BytesIO(b"memory"))) == b"memory"
        assert await stored(await client.upload(chunks(b"a", b"bc"))) == b"abc"
        assert await stored(await client.upload(chunks(b"a", b"bc"), size=3)) == b"abc"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, fifo.write_bytes, b"piped")
            assert await stored(await client.upload(fifo)) == b"piped"
        with pytest.raises(UsageError, match="directory"):
            await client.upload(tmp_path)
        with pytest.raises(FileNotFoundError):
            await client.upload(tmp_path / "missing")
        with pytest.raises(UsageError):
            await client.upload(b"", extension="seven77")


def test_a_file_in_memory_is_not_locked_while_it_is_sent() -> None:
    with io.BytesIO(b"a memory") as file:
        file.seek(2)
        source = open_source(file).source
        file.write(b"MEMORY and more")
    assert bytes(cast("memoryview", source)) == b"memory"


async def test_uploads_from_files_that_are_none(cluster: MakeCluster, tmp_path: Path) -> None:
    """What is read from them counts, not what their descriptors have."""
    content = b"content" * 100_000
    with gzip.open(tmp_path / "x.gz", "wb") as packed:
        packed.write(content)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("x", content)
    async with cluster() as setup:

        async def stored(file: object) -> bytes:
            file_id = await setup.client.upload(file)
            data: bytes = setup.storages[0].files[file_id.partition("/")[2]]
            return data

        with gzip.open(tmp_path / "x.gz", "rb") as file:
            file.read(7)
            assert await stored(file) == content[7:]
        with zipfile.ZipFile(tmp_path / "x.zip") as archive, archive.open("x") as member:
            assert await stored(member) == content
        for made in (
            tempfile.TemporaryFile(),  # noqa: SIM115
            tempfile.NamedTemporaryFile(),  # noqa: SIM115
            tempfile.SpooledTemporaryFile(max_size=10),  # noqa: SIM115
            tempfile.SpooledTemporaryFile(max_size=10_000_000),  # noqa: SIM115
        ):
            with made as unflushed:
                unflushed.write(content)
                unflushed.seek(7)
                unflushed.write(b"CONTENT")
                unflushed.seek(7)
                assert await stored(unflushed) == b"CONTENT" + content[14:]
        with pytest.raises(UsageError, match="as text"):
            await setup.client.upload(io.StringIO("text"))
        with pytest.raises(UsageError, match="int objects"):
            await setup.client.upload(7)
        assert await stored([b"one ", b"two"]) == b"one two"


async def test_downloads_to_everything(cluster: MakeCluster, tmp_path: Path) -> None:
    async with cluster() as setup:
        client = setup.client
        content = os.urandom(1_500_000)
        file_id = await client.upload(content)
        assert await client.download(file_id) == content
        assert await client.download(file_id, 10, 5) == content[10:15]
        assert await client.download(file_id, 1_499_990, 100) == content[-10:]
        assert await client.download(file_id, 2_000_000) == b""
        target = tmp_path / "copy"
        target.write_bytes(b"old")
        target.chmod(0o600)
        seen: list[int] = []
        assert await client.download_to(file_id, target, progress=seen.append) == len(content)
        assert target.read_bytes() == content
        assert sum(seen) == len(content)
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert await client.download_to(file_id, target, 7, 9) == 9
        assert target.read_bytes() == content[7:16]
        with (tmp_path / "open").open("w+b") as file:
            await client.download_to(file_id, file)
            file.seek(0)
            assert file.read() == content
        async with client.open(file_id, 1_499_000, chunk_size=300) as stream:
            received = b""
            while data := await stream.receive_some():
                received += data
            assert received == content[1_499_000:]
        with pytest.raises(UsageError, match="not a regular file"):
            await client.download_to(file_id, tmp_path)
        for resume in (False, True):
            with pytest.raises(FileNotFoundError) as info:
                await client.download_to(file_id, tmp_path / "none" / "file", resume=resume)
            assert info.value.filename == str(tmp_path / "none" / "file")


async def test_empty_files(cluster: MakeCluster, tmp_path: Path) -> None:
    async with cluster() as setup:
        file_id = await setup.client.upload(b"")
        assert await setup.client.download(file_id) == b""
        assert await setup.client.download_to(file_id, tmp_path / "empty") == 0
        assert (tmp_path / "empty").read_bytes() == b""
        async with setup.client.open(file_id) as stream:
            assert await stream.receive_some() == b""


async def test_a_failed_download_leaves_the_old_file(cluster: MakeCluster, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    async with cluster() as setup:
        file_id = await setup.client.upload(b"x" * 100_000)
        setup.storages[0].cuts = [50_000, 0]
        setup.tracker.requests.clear()
        with pytest.raises(ConnectionProblem):
            await setup.client.download_to(file_id, target)
        missing = file_id[:-7] + "9999999"
        with pytest.raises(StatusError) as info:
            await setup.client.download_to(missing, target)
        assert info.value.errno == errno.ENOENT
        assert missing in str(info.value)
    assert [p.name for p in tmp_path.iterdir()] == ["target"]
    assert target.read_bytes() == b"old"


async def test_another_storage_goes_on_with_a_broken_download(
    cluster: MakeCluster, tmp_path: Path
) -> None:
    async with cluster(2) as setup:
        first, second = setup.storages
        content = os.urandom(3_000_000)
        file_id = await setup.client.upload(content)
        name = file_id.partition("/")[2]
        for storage in (first, second):
            storage.files[name] = content
            storage.requests.clear()
        # The tracker has moved on to the second storage.
        second.cuts = [1_000_000]
        assert await setup.client.download_to(file_id, tmp_path / "copy") == len(content)
        assert (tmp_path / "copy").read_bytes() == content
        assert first.requests == second.requests == [StorageCommand.DOWNLOAD]
        second.cuts = [10]
        assert await setup.client.download(file_id) == content


async def test_a_storage_goes_on_with_a_download_that_it_broke_off(
    cluster: MakeCluster, tmp_path: Path
) -> None:
    async with cluster() as setup:
        content = os.urandom(1_000_000)
        file_id = await setup.client.upload(content)
        storage = setup.storages[0]
        storage.cuts = [300_000] * 3
        async with setup.client.open(file_id, verify=True) as stream:
            assert b"".join([chunk async for chunk in stream]) == content
        storage.cuts = [300_000] * 3
        assert await setup.client.download_to(file_id, tmp_path / "copy", verify=True) == 1_000_000
        assert (tmp_path / "copy").read_bytes() == content
        storage.cuts = [0]
        with pytest.raises(ConnectionProblem):
            await setup.client.download_to(file_id, tmp_path / "copy")


async def test_a_download_is_resumed_later(cluster: MakeCluster, tmp_path: Path) -> None:
    async with cluster() as setup:
        content = os.urandom(1_000_000)
        storage, target = setup.storages[0], tmp_path / "target"
        file_id = await setup.client.upload(content)
        for _ in range(2):
            storage.cuts = [300_000, 0]
            with pytest.raises(ConnectionProblem):
                await setup.client.download_to(file_id, target, resume=True)
        (part,) = tmp_path.iterdir()
        assert part.read_bytes() == content[:600_000]
        seen: list[int] = []
        size = await setup.client.download_to(
            file_id, target, resume=True, verify=True, progress=seen.append
        )
        assert size == len(content)
        assert sum(seen) == 400_000
        assert list(tmp_path.iterdir()) == [target]
        assert target.read_bytes() == content
        # What turns out to be damaged is not gone on with.
        storage.cuts = [300_000, 0]
        with pytest.raises(ConnectionProblem):
            await setup.client.download_to(file_id, target, resume=True)
        part.write_bytes(b"x" + part.read_bytes()[1:])
        with pytest.raises(IntegrityError, match="CRC-32"):
            await setup.client.download_to(file_id, target, resume=True, verify=True)
        assert list(tmp_path.iterdir()) == [target]
        assert target.read_bytes() == content


async def test_verified_downloads(cluster: MakeCluster, tmp_path: Path) -> None:
    async with cluster() as setup:
        client, files = setup.client, setup.storages[0].files
        for content in (b"", b"small", os.urandom(200_000)):
            normal = await client.upload(content)
            appender = await client.upload(content, appender=True)
            await client.append(appender, b"more")
            slave = await client.upload_slave(normal, "_1", content + b"small")
            for file_id in (normal, appender, slave):
                expected = files[file_id.partition("/")[2]]
                assert await client.download(file_id, verify=True) == expected
                assert await client.download_to(file_id, tmp_path / "x", verify=True) == len(
                    expected
                )
        name = normal.partition("/")[2]
        for damaged, message in ((content[:-1] + b"?", "CRC-32"), (content + b"?", "bytes")):
            files[name] = damaged
            with pytest.raises(IntegrityError, match=message):
                await client.download(normal, verify=True)
            with pytest.raises(IntegrityError, match=message) as info:
                await client.download_to(normal, tmp_path / "y", verify=True)
            assert info.value.errno == errno.EIO
        assert [path.name for path in tmp_path.iterdir()] == ["x"]
        with pytest.raises(UsageError, match="whole files"):
            await client.download(normal, 1, verify=True)


async def test_a_storage_that_lacks_the_file_is_not_the_last_word(cluster: MakeCluster) -> None:
    async with cluster(2) as setup:
        file_id = await setup.client.upload(b"here")
        assert not setup.storages[1].files
        assert await setup.client.download(file_id) == b"here"
        assert (await setup.client.info(file_id)).size == 4


async def test_uploads_go_to_another_storage_when_one_is_gone(cluster: MakeCluster) -> None:
    async with cluster() as setup:
        setup.tracker.storages.insert(0, await unused_address())
        file_id = await setup.client.upload(b"content")
        assert len(setup.storages[0].files) == 1
        setup.tracker.storages = [await unused_address()]
        with pytest.raises(ConnectFailed):
            await setup.client.upload(b"content")
        with pytest.raises(ConnectFailed):
            await setup.client.delete(file_id)


async def test_uploads_wait_for_replicas(cluster: MakeCluster) -> None:
    async with cluster() as setup:
        storage, client = setup.storages[0], setup.client
        storage.copies = [1, 1, 2]
        await client.upload(b"content", replicas=2)
        assert storage.copies == []
        await client.upload(b"content")
        storage.refuse[copies.WAIT_FOR_COPIES] = errno.EINVAL
        with pytest.raises(TooFewCopiesError, match="stock FastDFS") as caught:
            await client.upload(b"other", replicas=2)
        storage.refuse.clear()
        assert await client.download(caught.value.file_id) == b"other"
        storage.copies = [2] * 100
        with pytest.raises(TooFewCopiesError, match="on 2 servers, not 3"):
            await client.upload(b"content", replicas=3)
        with pytest.raises(UsageError):
            await client.upload(b"content", replicas=0)


async def test_info_and_metadata(cluster: MakeCluster) -> None:
    async with cluster() as setup:
        client = setup.client
        file_id = await client.upload(b"hello", metadata={"width": "1024", "name": "ä"})
        details = await client.info(file_id)
        assert (details.kind, details.size, details.created) == (FileKind.NORMAL, 5, 7)
        assert details.crc32 == 0x3610A686
        assert await client.get_metadata(file_id) == {"width": "1024", "name": "ä"}
        await client.set_metadata(file_id, {})
        assert await client.get_metadata(file_id) == {}
        with pytest.raises(UsageError, match="does not fit"):
            await client.set_metadata(file_id, {"n" * 65: "v"})
        await client.delete(file_id)
        for attempt in (client.info, client.get_metadata, client.delete):
            with pytest.raises(StatusError) as info:
                await attempt(file_id)
            assert info.value.errno == errno.ENOENT


async def test_a_file_whose_metadata_failed_is_deleted_again(cluster: MakeCluster) -> None:
    async with cluster() as setup:
        setup.storages[0].refuse = {StorageCommand.SET_METADATA: errno.ENOSPC}
        with pytest.raises(StatusError):
            await setup.client.upload(b"content", metadata={"a": "b"})
        assert not setup.storages[0].files


async def test_appenders(cluster: MakeCluster) -> None:
    async with cluster() as setup:
        client = setup.client
        file_id = await client.upload(b"one", appender=True)
        await client.append(file_id, b"two")
        assert await client.download(file_id) == b"onetwo"
        assert (await client.info(file_id)).kind is FileKind.APPENDER
        normal = await client.upload(b"fixed")
        with pytest.raises(UsageError, match="not an appender"):
            await client.append(normal, b"x")
        with pytest.raises(UsageError, match="not an appender"):
            await client.truncate(normal, 1)
        with pytest.raises(UsageError, match="not an appender"):
            await client.modify(normal, 0, b"x")


async def test_slaves_and_existence(cluster: MakeCluster) -> None:
    async with cluster() as setup:
        client = setup.client
        master = await client.upload(b"large", extension="jpg")
        slave = await client.upload_slave(master, "_small", b"small", metadata={"width": "9"})
        assert slave == master.removesuffix(".jpg") + "_small.jpg"
        assert await client.download(slave) == b"small"
        assert await client.get_metadata(slave) == {"width": "9"}
        assert await client.exists(slave)
        with pytest.raises(StatusError) as info:
            await client.upload_slave(master, "_small", b"again")
        assert info.value.errno == errno.EEXIST
        with pytest.raises(UsageError, match="not a prefix"):
            await client.upload_slave(master, "", b"x")
        await client.delete(slave)
        assert not await client.exists(slave)
        assert await client.exists(master)


async def test_what_trackers_do_not_know(cluster: MakeCluster) -> None:
    async with cluster() as setup:
        file_id = await setup.client.upload(b"x")
        setup.tracker.storages.clear()
        with pytest.raises(ConnectionProblem, match="no storage of volume group1"):
            await setup.client.download(file_id)
        with pytest.raises(ConnectionProblem, match="takes uploads"):
            await setup.client.upload(b"x")
        with pytest.raises(NotFoundError) as info:
            await setup.client.upload(b"x", group="group9")
        assert info.value.errno == errno.ENOENT
        assert info.value.strerror == "there is no volume group9; there are: group1"
        with pytest.raises(UsageError):
            await setup.client.info("nonsense")


async def test_trackers_are_tried_in_turn(cluster: MakeCluster, make_client: MakeClient) -> None:
    async with cluster() as setup:
        healthy = setup.tracker_address
        async with running_peer(MemoryTracker().handle) as ignorant:
            trackers: list[str | Address] = [await unused_address(), str(ignorant.address), healthy]
            async with make_client(trackers) as client:
                await client.upload(b"x")
                await client.upload(b"y")
                # The one that worked is asked first from then on.
                assert ignorant.connections == 1
            async with make_client([await unused_address(), await unused_address()]) as client:
                with pytest.raises(ConnectionProblem, match="no tracker answers"):
                    await client.upload(b"x")


async def test_a_tracker_that_hangs_leaves_time_for_the_others(
    cluster: MakeCluster, make_client: MakeClient
) -> None:
    """Although there is no more than one tracker may take."""

    async def silent(connection: PeerConnection) -> None:
        await connection.receive()
        await trio.sleep_forever()

    async with cluster() as setup, running_peer(silent) as hangs:
        trackers = [str(hangs.address), setup.tracker_address]
        async with make_client(trackers, timeout_s=5.0) as client:
            await client.upload(b"x")
            assert hangs.connections == 1


async def test_deadlines_are_about_progress(make_client: MakeClient) -> None:
    async def silent(connection: PeerConnection) -> None:
        await connection.receive()
        await trio.sleep_forever()

    async def slow(connection: PeerConnection) -> None:
        await connection.receive()
        await connection.send((1200).to_bytes(8, "big") + b"\x64\0")
        for _ in range(12):
            await trio.sleep(0.05)
            await connection.send(b"x" * 100)

    file_id = f"{GROUP}/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt"
    async with running_peer(silent) as storage:
        tracker = MemoryTracker(storage.address)
        async with running_peer(tracker.handle) as running, make_client(running.address) as client:
            with pytest.raises(DeadlineExceeded):
                await client.info(file_id, timeout_s=0.1)
            storage.handler = slow
            with trio.fail_after(DEAD_PEER_S):
                async with client.open(file_id) as stream:
                    received = 0
                    while data := await stream.receive_some():
                        received += len(data)
            assert received == 1200


async def test_deadlines_of_whole_operations(make_client: MakeClient) -> None:
    async def silent(connection: PeerConnection) -> None:
        await connection.receive()
        await trio.sleep_forever()

    async def endless(connection: PeerConnection) -> None:
        await connection.receive()
        await connection.send((1 << 40).to_bytes(8, "big") + b"\x64\0")
        while True:
            await connection.send(bytes(1 << 20))

    file_id = f"{GROUP}/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt"
    async with running_peer(silent) as storage:
        tracker = MemoryTracker(storage.address)
        async with running_peer(tracker.handle) as running, make_client(running.address) as client:
            with pytest.raises(DeadlineExceeded, match="the deadline has passed"):
                await client.info(file_id, deadline_s=0.05)
            with pytest.raises(DeadlineExceeded, match="the deadline has passed"):
                await client.download(file_id, deadline_s=0.05)
            with pytest.raises(DeadlineExceeded, match="the deadline has passed"):
                await client.upload(b"small", deadline_s=0.05)
            with pytest.raises(DeadlineExceeded, match="the deadline has passed"):
                await client.upload(bytes(20_000_000), deadline_s=0.05)
            storage.handler = endless
            with (
                Path(os.devnull).open("wb") as target,
                pytest.raises(DeadlineExceeded, match="the deadline has passed"),
            ):
                await client.download_to(file_id, target, deadline_s=0.2)


async def test_cancellation_leaves_no_connection_in_the_middle_of_something() -> None:
    """Or the next request would get the answer to this one."""
    storage = MemoryStorage()

    async def slow(connection: PeerConnection) -> None:
        await connection.receive()
        waiting.set()
        await go_on.wait()
        await connection.answer(b"late")

    async with running_peer(storage.handle) as peer:
        tracker = MemoryTracker(peer.address)
        async with running_peer(tracker.handle) as running:
            async with Client(running.address) as client:
                file_id = await client.upload(b"content")
            for name in ("info", "download", "delete", "upload"):
                async with Client(running.address) as client:
                    peer.handler, waiting, go_on = slow, trio.Event(), trio.Event()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(
                            getattr(client, name), file_id.encode() if name == "upload" else file_id
                        )
                        with trio.fail_after(60):
                            await waiting.wait()
                        nursery.cancel_scope.cancel()
                    go_on.set()
                    peer.handler = storage.handle
                    assert await client.download(file_id) == b"content"
                    shelf = client.pool._hosts[peer.address].shelf
                    assert shelf.total == len(shelf._idle) == 1


async def test_a_body_where_none_belongs_is_skipped(cluster: MakeCluster) -> None:
    """Storages echo the request to empty appends and the like (wire.md section 5, trap 5)."""
    async with cluster() as setup:
        file_id = await setup.client.upload(b"one", appender=True)
        setup.storages[0].echo = b"M00/00/00/echo"
        await setup.client.append(file_id, b"")
        await setup.client.set_metadata(file_id, {"a": "b"})
        setup.storages[0].echo = b""
        assert await setup.client.get_metadata(file_id) == {"a": "b"}
        assert setup.peers[0].connections == 1


async def test_a_refused_upload_is_the_last_of_its_connection(cluster: MakeCluster) -> None:
    """A storage may take the rest of the body for requests, and answer them."""
    async with cluster() as setup:
        file_id = await setup.client.upload(b"content")
        setup.storages[0].refuse = {StorageCommand.UPLOAD: errno.ENOSPC}
        with pytest.raises(StatusError):
            await setup.client.upload(b"x" * 1000)
        assert setup.peers[0].connections == 1
        assert await setup.client.download(file_id) == b"content"
        assert setup.peers[0].connections == 2


async def test_storages_behind_another_address(make_client: MakeClient) -> None:
    storage = MemoryStorage()
    async with running_peer(storage.handle) as peer:
        tracker = MemoryTracker(Address("192.0.2.7", 23000))
        mapped = {"192.0.2.7:23000": str(peer.address)}
        async with running_peer(tracker.handle) as running:
            async with make_client(running.address, address_map=mapped) as client:
                file_id = await client.upload(b"content", metadata={"a": "b"})
                assert await client.download(file_id) == b"content"
                assert await client.get_metadata(file_id) == {"a": "b"}
                await client.delete(file_id)
            assert not storage.files


async def test_listings() -> None:
    storages = [Address("127.0.0.1", 1000), Address("127.0.0.1", 2000)]
    tracker = MemoryTracker(*storages)
    async with running_peer(tracker.handle) as running, Client(running.address) as client:
        groups = await client.tracker.list_groups()
        assert [stat.group for stat in groups] == [GROUP]
        found = await client.tracker.list_storages(GROUP)
        assert [stat.storage_id for stat in found] == ["s0", "s1"]
        candidates = await client.tracker.find_candidates(GROUP)
        assert [c.address for c in candidates] == storages
        assert tracker.requests.count(TrackerCommand.LIST_STORAGES) == 2
