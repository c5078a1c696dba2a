"""Records of several members that arrive in another order than that in which they were made."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from fdfs_storage.replication import replicas
from fdfs_storage.replication.pusher import Pusher
from fdfs_storage.transfer import CHUNK, file_crc32
from fdfsfuse.proto.derived import CreateLink
from fdfsfuse.proto.header import pack_header
from fdfsfuse.proto.storage import AppendHead, StoredFile
from fdfsfuse.proto.sync import DeleteFile, TwoNames
from fdfsfuse.proto.tracker import ServerStatus
from tests.common.waiting import wait_for
from tests.daemons.storage_server import GROUP
from tests.daemons.sync_pair import Node, run_node


class Clock:
    """The clock of a storage, for the times of metadata."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = int(time.time())
        module = SimpleNamespace(time=lambda: self.now)
        monkeypatch.setattr("fdfs_storage.metadata_files.time", module)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def part(a: Node, b: Node) -> None:
    """Let neither send changes to the other."""
    for one, other in ((a, b), (b, a)):
        pusher = one.replication.pushers[other.id]
        # Without anything to send there is no connection yet, perhaps.
        await wait_for(partial(_is_connected, pusher))
        one.meet(other, ServerStatus.OFFLINE)
        one.cut(other)
        while _is_connected(pusher):  # noqa: ASYNC110
            await trio.sleep(0.002)


def _is_connected(pusher: Pusher) -> bool:
    return pusher.link is not None


async def join(a: Node, b: Node) -> None:
    """Let both send their changes to each other, and wait until they have."""
    a.meet(b)
    b.meet(a)
    await a.wait_until_has_all(b)
    await b.wait_until_has_all(a)


async def test_link_that_is_heard_of_before_its_target(tmp_path: Path) -> None:
    """The target comes from another member than the link."""
    with trio.fail_after(60):
        async with (
            run_node(tmp_path / "a", "1") as a,
            run_node(tmp_path / "b", "2") as b,
            run_node(tmp_path / "c", "3") as c,
        ):
            async with a.connect() as client:
                target = await client.upload(b"content")
            a.meet(b)
            await a.wait_until_has_all(b)
            async with b.connect() as client:
                body = CreateLink(GROUP, target, b"s", "txt").encode()
                link = StoredFile.decode((await client.call(20, body))[1]).name
            b.meet(c)
            await b.wait_until_has_all(c)
            assert c.content(link) is None
            a.meet(c)
            await a.wait_until_has_all(c)
            assert c.content(link) == b"content"


async def test_link_whose_name_was_deleted_before(tmp_path: Path) -> None:
    """A name of a slave may be used again, that of a normal file may not."""
    normal = "M00/00/00/fwAAC2MBAgKAKlpyAAAADSjBEwU841.txt"
    slave = normal.replace(".txt", "_small.txt")
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, a.connect() as client:
            for name in (normal, slave):
                assert (await client.call(17, DeleteFile(name, 100, GROUP).encode()))[0] == 2
                body = TwoNames(name, normal.replace("841", "842"), 105, GROUP).encode()
                assert await client.call(19, body) == (0, b"")
            assert not a.path(normal).is_symlink()
            assert a.path(slave).is_symlink()


async def test_metadata_that_was_changed_after_it_was_deleted_elsewhere(
    tmp_path: Path, clock: Clock
) -> None:
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            async with a.connect() as at_a, b.connect() as at_b:
                name = await at_a.upload(b"content")
                await at_a.set_metadata(name, b"k\x02first")
                await join(a, b)
                await part(a, b)
                clock.now += 5
                await at_a.set_metadata(name, b"")
                clock.now += 5
                await at_b.set_metadata(name, b"k\x02later")
                await join(a, b)
            assert a.content(name + "-m") == b.content(name + "-m") == b"k\x02later"


async def test_deletion_by_a_storage_whose_clock_is_behind(tmp_path: Path, clock: Clock) -> None:
    """Its peer made the metadata, and sends that once more before it hears of the deletion."""
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a:
            async with run_node(tmp_path / "b", "2") as b, b.connect() as client:
                name = await client.upload(b"content")
                clock.now += 1000
                await client.set_metadata(name, b"k\x02v")
                await join(a, b)
                await part(a, b)
                clock.now -= 1000
                port = b.port
            async with a.connect() as client:
                await client.set_metadata(name, b"")
            (tmp_path / "b/base/data/sync/1.mark").unlink()
            async with run_node(tmp_path / "b", "2", port=port) as b:
                b.meet(a)
                await b.wait_until_has_all(a)
                await join(a, b)
                assert a.content(name + "-m") is b.content(name + "-m") is None


async def test_large_renamed_file_is_read_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[threading.Thread] = []

    def read(path: str) -> int:
        readers.append(threading.current_thread())
        return file_crc32(path)

    monkeypatch.setattr(replicas, "file_crc32", read)
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            a.meet(b)
            async with a.connect() as client:
                old = await client.upload(bytes(100_000), appender=True)
                await a.wait_until_has_all(b)
                status, body = await client.call(38, old.encode())
                assert status == 0
            await a.wait_until_has_all(b)
            assert b.content(StoredFile.decode(body).name) == bytes(100_000)
    assert len(readers) == 1
    assert readers[0] is not threading.main_thread()


async def test_a_whole_file_goes_over_without_what_is_being_appended(tmp_path: Path) -> None:
    """The client may go away, and what it sent be taken back."""
    with trio.fail_after(60):
        async with (
            run_node(tmp_path / "a", "1") as a,
            run_node(tmp_path / "b", "2") as b,
            a.connect() as client,
        ):
            name = await client.upload(b"begin", appender=True)
            large = await client.upload(bytes(100_000), appender=True)
            begun = {name: 5, large: 100_000}
            async with a.connect() as first, a.connect() as second:
                for breaking, (each, size) in zip((first, second), begun.items(), strict=True):
                    head = AppendHead(each, 2 * CHUNK).encode()
                    data = pack_header(len(head) + 2 * CHUNK, 24) + head + bytes(CHUNK + 1)
                    await breaking.send(data)
                    path = a.path(each)
                    await wait_for(lambda path=path, size=size: path.stat().st_size > size)  # type: ignore[misc]
                a.meet(b)
                await a.wait_until_has_all(b)
                assert {each: len(b.content(each) or b"") for each in begun} == begun
            for each in begun:
                await client.append(each, b" and end")
            await a.wait_until_has_all(b)
            assert b.content(name) == a.content(name) == b"begin and end"
            assert b.content(large) == bytes(100_000) + b" and end"
