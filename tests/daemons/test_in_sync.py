"""Content of mounts counts when every storage that is in sync has it."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from fdfs_storage import boot
from fdfs_storage.binlog import BinlogPosition
from fdfs_storage.replication.in_sync import NAME, InSync, InSyncDamaged
from fdfsfuse.client.names import NamesSession
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import cluster_status, copies, names, structs
from fdfsfuse.proto.cluster import Brief
from fdfsfuse.proto.fileid import Location
from fdfsfuse.proto.storage import Truncate
from fdfsfuse.proto.tracker import ServerStatus
from tests.common.names_calls import NOW, make, store
from tests.common.waiting import wait_for
from tests.daemons.sync_pair import Node, run_node, sync_config


def at(offset: int) -> BinlogPosition:
    return BinlogPosition(0, offset)


START = at(0)


@dataclass
class FakePeer:
    acked: BinlogPosition = START
    caught_up: bool = True
    is_own_kind: bool = True
    progress_at: float = 0.0

    def push_nowait(self) -> None:
        """Nothing is sent."""

    def receive_nowait(self) -> None:
        """Nothing has arrived."""


class World:
    """A set with peers that the test moves."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.peers: dict[str, FakePeer] = {}
        self.end = at(0)
        self.set = self.restarted()

    def restarted(self) -> InSync:
        in_sync = InSync(lambda: self.directory, self.peers, lambda: self.end, 3.0)
        in_sync.load()
        return in_sync

    def move(self, peer_id: str, offset: int) -> None:
        self.peers[peer_id].acked = at(offset)
        self.peers[peer_id].progress_at = trio.current_time()
        self.set.progress()

    def file(self) -> list[str]:
        return list(json.loads((self.directory / NAME).read_bytes())["in_sync"])

    async def member(self, peer_id: str) -> FakePeer:
        """Add a peer and wait until it counts."""
        peer = self.peers[peer_id] = FakePeer(acked=self.end, progress_at=trio.current_time())
        self.set.at_rest(peer_id)
        await wait_for(lambda: peer_id in self.set.members)
        return peer


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with trio.fail_after(600):
        async with trio.open_nursery() as nursery:
            made = World(tmp_path)
            nursery.start_soon(made.set.run)
            yield made
            nursery.cancel_scope.cancel()


async def test_alone_nothing_waits(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        assert not w.set.counts
        assert not w.set.hold(at(100), lambda: None)
        await w.set.wait(at(100))


async def test_waiting_for_all_that_are_in_sync(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.member("a")
        await w.member("b")
        assert w.file() == ["a", "b"]
        w.end = at(100)
        released: list[str] = []
        assert w.set.hold(at(50), lambda: released.append("half"))
        assert w.set.hold(at(100), lambda: released.append("all"))
        w.move("a", 100)
        assert released == []
        w.move("b", 60)
        assert released == ["half"]
        w.move("b", 100)
        assert released == ["half", "all"]
        assert not w.set.hold(at(100), lambda: None)


async def test_stock_storages_are_not_waited_for(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.peers["c"] = FakePeer(is_own_kind=False)
        w.set.at_rest("c")
        await w.member("a")
        assert w.file() == ["a"]


async def test_a_peer_is_in_sync_only_with_what_was_acknowledged_before(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.end = at(100)  # acknowledged, while there was nobody to wait for
        w.peers["a"] = FakePeer(acked=at(90))
        w.set.at_rest("a")
        await wait_for(lambda: w.set.counts)
        assert w.set.hold(at(100), lambda: None)
        assert not (tmp_path / NAME).exists()
        w.move("a", 100)
        await wait_for(lambda: "a" in w.set.members)
        assert w.file() == ["a"]


async def test_a_peer_that_loses_touch_while_it_joins(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.end = at(100)
        w.peers["a"] = FakePeer(acked=at(90))
        w.set.at_rest("a")
        await wait_for(lambda: w.set.counts)
        w.peers["a"].caught_up = False
        w.set.progress()
        await w.set.wait(at(100))
        assert not w.set.counts


def test_a_silent_peer_is_put_out_on_disk_first(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            w.peers["a"] = FakePeer()
            w.set.members = frozenset({"a"})
            w.end = at(100)
            seen: list[list[str]] = []
            started = trio.current_time()
            w.set.changed = lambda: seen.append([*w.set.members, "told"])
            w.set.hold(at(100), lambda: seen.append(w.file()))
            await wait_for(lambda: len(seen) == 2)
            assert seen == [["told"], []]
            assert trio.current_time() - started >= 3.0
            assert "did not get on" in w.set.put_out["a"]
            assert w.restarted().members == frozenset()

    trio.run(run, clock=MockClock(rate=10))


async def test_a_removed_peer_does_not_count(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.member("a")
        w.end = at(100)
        del w.peers["a"]
        w.set.forget("a", "it was removed from the group")
        await w.set.wait(at(100))
        assert w.file() == []


def test_a_damaged_file_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    for text in ("", "\xff", "[]", '{"in_sync": 5}'):
        (tmp_path / NAME).write_text(text)
        with pytest.raises(InSyncDamaged, match=r"in_sync\.json is damaged"):
            World(tmp_path)


# --- with storages ---------------------------------------------------------------------------


@asynccontextmanager
async def volume(tmp_path: Path) -> AsyncIterator[tuple[Node, Node, NamesSession]]:
    """A storage with a tree, another one that is in sync, and a mount's session."""
    config = replace(sync_config(tmp_path / "a"), names_replica_timeout_s=20.0)
    with trio.fail_after(60):
        async with (
            run_node(tmp_path / "a", "1", names=True, config=config) as a,
            run_node(tmp_path / "b", "2") as b,
            a.session() as session,
        ):
            a.meet(b)
            b.meet(a)
            await wait_for(lambda: "2" in a.replication.in_sync.members)
            yield a, b, session


async def write_object(node: Node, file_id: str, offset: int, data: bytes) -> None:
    """A WRITE_OBJECT that must succeed."""
    head = names.encode(names.WriteObject(file_id, 1, offset, len(data)))
    async with node.connect() as client:
        body = len(head).to_bytes(4, "big") + head + data
        assert await client.call(names.WRITE_OBJECT, body) == (0, b"")


async def test_content_is_on_both_when_a_mount_is_answered(tmp_path: Path) -> None:
    async with volume(tmp_path) as (a, b, session):
        for number in range(20):
            ino = await make(session, b"small%d" % number)
            attr = await store(session, ino, b"content %d" % number)
            assert b.content(attr.file_id) == b"content %d" % number
        ino = await make(session, b"large")
        made = await session.call(names.NewObject(ino))
        await write_object(a, made.file_id, 0, b"0123456789" * 1000)
        attr = await session.call(names.NameObject(ino, made.file_id, 10000, NOW))
        assert b.content(attr.file_id) == b"0123456789" * 1000
        await write_object(a, made.file_id, 20000, b"behind a hole")
        await session.call(names.CommitWrite(ino, made.file_id, 20013, NOW))
        assert (
            b.content(attr.file_id) == (b"0123456789" * 1000).ljust(20000, b"\0") + b"behind a hole"
        )
        await session.call(names.Truncate(ino, 5, NOW))
        assert b.content(attr.file_id) == b"01234"


async def test_zeros_behind_the_end_are_not_sent(tmp_path: Path) -> None:
    """They would take the room on the disk that a hole does not."""
    async with volume(tmp_path) as (_, b, session):
        empty, full = await make(session, b"empty"), await make(session, b"full")
        await store(session, full, b"content")
        for ino, kept_blocks in ((empty, 0), (full, 8)):
            for size in (1 << 30, 1 << 31):
                attr = await session.call(names.Truncate(ino, size, NOW))
                status = b.path(attr.file_id).stat()
                assert (status.st_size, status.st_blocks <= kept_blocks) == (size, True)


async def test_peers_are_sent_content_before_it_is_made_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with volume(tmp_path) as (a, b, session):
        stream = a.replication.pushers["2"]._stream
        assert stream is not None
        before = 0
        file_ids: list[str] = []

        def make_late(location: Location, data: bytes, mtime: int) -> None:
            file_ids.append(location.name)
            assert stream is not None
            assert stream.sent == before + 1
            assert a.content(location.name) is None
            original(location, data, mtime)

        original = a.store.creations.make
        sizes = (1, 4000, 70_000, 1 << 20)  # the last two are too large to be kept in memory
        inos = [await make(session, b"file%d" % size) for size in sizes]
        await a.wait_until_has_all(b)
        await trio.testing.wait_all_tasks_blocked(0.01)
        monkeypatch.setattr(a.store.creations, "make", make_late)
        for ino, size in zip(inos, sizes, strict=True):
            before = stream.sent
            attr = await store(session, ino, bytes([size % 251]) * size)
            assert attr.file_id == file_ids[-1]
            for node in (a, b):
                assert node.content(attr.file_id) == bytes([size % 251]) * size
        assert not a.store.changes.coming


@pytest.mark.parametrize("made", [0, 1])
async def test_content_that_cannot_be_made_here_is_taken_back_from_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: int
) -> None:
    async with volume(tmp_path) as (a, b, session):
        ino = await make(session, b"file")
        old = await store(session, ino, b"old")
        left = [made]

        def failing(original: Callable[..., None]) -> Callable[..., None]:
            def fail(*args: Any) -> None:
                if not left[0]:
                    raise OSError(errno.ENOSPC, "no space")
                left[0] -= 1
                original(*args)

            return fail

        assert a.names is not None
        assert a.names.tree is not None
        for way in ("create", "name"):
            monkeypatch.setattr(a.store.paths, way, failing(getattr(a.store.paths, way)))
        if made:  # the object is, but not its metadata
            monkeypatch.setattr(a.names.tree.objects, "metadata", lambda file_id: b"k\x02v")
        with pytest.raises(StatusError) as caught:
            await store(session, ino, b"new")
        assert caught.value.errno == errno.ENOSPC
        monkeypatch.undo()
        await a.wait_until_has_all(b)
        assert a.files() == b.files()
        assert len(a.files()) == 1
        own = [line[0] for line in a.lines() if not line.endswith("-m")]
        assert own == ["C", "C", "D"]
        assert [line[0] for line in b.lines()] == ["c", "c", "d"]
        assert not a.store.changes.coming
        assert (await session.call(names.GetAttr(ino))).file_id == old.file_id
        attr = await store(session, ino, b"once more")
        assert b.content(attr.file_id) == b"once more"


async def test_a_mount_goes_on_without_a_storage_that_is_gone(tmp_path: Path) -> None:
    config = replace(sync_config(tmp_path / "a"), names_replica_timeout_s=0.2)
    with trio.fail_after(60):
        async with (
            run_node(tmp_path / "a", "1", names=True, config=config) as a,
            a.session() as session,
        ):
            async with run_node(tmp_path / "b", "2") as b:
                a.meet(b)
                port = b.port
                await wait_for(lambda: "2" in a.replication.in_sync.members)
            ino = await make(session, b"file")
            attr = await store(session, ino, b"content")
            listed = tmp_path / "a/base/data/names" / NAME
            assert json.loads(listed.read_bytes()) == {"in_sync": []}
            async with run_node(tmp_path / "b", "2", port=port) as b:
                await wait_for(lambda: "2" in a.replication.in_sync.members)
                assert b.content(attr.file_id) == b"content"
                attr = await store(session, ino, b"more content")
                # Not "is there": with so short a timeout a busy machine may put it out again.
                await wait_for(lambda: b.content(attr.file_id) == b"more content")


async def test_a_mount_hears_who_is_in_sync_before_what_they_lack_is_acknowledged(
    tmp_path: Path,
) -> None:
    config = replace(sync_config(tmp_path / "a"), names_replica_timeout_s=2.0)
    heard: list[Any] = []
    with trio.fail_after(60):
        async with (
            run_node(tmp_path / "a", "1", names=True, config=config) as a,
            run_node(tmp_path / "b", "2") as b,
            a.session(on_push=heard.append) as session,
        ):
            await wait_for(lambda: heard == [names.InSync([])])
            a.meet(b)
            await wait_for(lambda: heard[-1] == names.InSync(["2"]))
            f = await make(session, b"f")
            async with a.session(on_push=heard.append):
                await wait_for(lambda: len(heard) == 3)
                assert heard[2] == names.InSync(["2"])
            b.server_stops()
            a.cut(b)
            await store(session, f, b"without b")
            assert heard[3] == names.InSync([])


async def test_a_machine_that_was_restarted_is_out_of_sync_until_it_has_all_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with trio.fail_after(60):
        async with (
            run_node(tmp_path / "a", "1", names=True) as a,
            a.session() as session,
        ):
            async with run_node(tmp_path / "b", "2", boot_id="first") as b:
                a.meet(b)
                port = b.port
                await wait_for(lambda: "2" in a.replication.in_sync.members)
                ino = await make(session, b"file")
                attr = await store(session, ino, b"content")
                b.path(attr.file_id).unlink()  # it had not been written to the disk
            async with run_node(tmp_path / "b", "2", boot_id="second", port=port) as b:
                await wait_for(lambda: "out of sync: its machine was restarted" in caplog.text)
                await wait_for(lambda: "2" in a.replication.in_sync.members)
                assert b.content(attr.file_id) == b"content"


@pytest.mark.parametrize("left", [b"", b"conte\0\0", None])
async def test_copies_outlive_it_that_the_machine_of_the_names_loses_its_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bytes | None
) -> None:
    config = sync_config(tmp_path / "a")
    with trio.fail_after(60):
        async with run_node(tmp_path / "b", "2") as b:
            async with run_node(tmp_path / "a", "1", names=True, config=config) as a:
                a.meet(b)
                await wait_for(lambda: "2" in a.replication.in_sync.members)
                async with a.session() as session:
                    attr = await store(session, await make(session, b"file"), b"content")
                a.store.write_metadata(a.store.locate(attr.file_id), b"k\x02v")
                await a.wait_until_has_all(b)
                lost = a.path(attr.file_id)
            if left is None:
                lost.unlink()
            else:
                lost.write_bytes(left)
            monkeypatch.setattr(boot, "boot_id", lambda: "another boot")
            async with run_node(tmp_path / "a", "1", names=True, config=config) as a:
                a.meet(b)
                await a.wait_until_has_all(b)
                for node in (b, a):
                    assert node.content(attr.file_id) == b"content"
                    assert node.content(attr.file_id + "-m") == b"k\x02v"


async def test_changes_by_id_on_the_other_storage_reach_the_tree(tmp_path: Path) -> None:
    async with volume(tmp_path) as (a, b, session):
        gone = await make(session, b"gone")
        attr = await store(session, gone, b"content")
        ino = await make(session, b"grows")
        made = await session.call(names.NewObject(ino))
        await write_object(a, made.file_id, 0, b"0123456789")
        await session.call(names.NameObject(ino, made.file_id, 10, NOW))
        async with b.connect() as client:
            assert await client.delete(attr.file_id) == 0
            await client.append(made.file_id, b"more")
            assert await client.call(36, Truncate(made.file_id, 12).encode()) == (0, b"")
        await b.wait_until_has_all(a)
        assert a.names is not None
        assert a.names.tree is not None
        reads = a.names.tree.reads
        await wait_for(lambda: reads.lookup(names.Lookup(names.ROOT_INO, b"grows")).size == 12)
        await wait_for(lambda: not reads.has_inode(attr.file_id))


async def replication_status(node: Node) -> dict[str, cluster_status.PeerReplication]:
    async with node.connect() as client:
        status, body = await client.call(142)
    assert status == 0
    report = structs.decode(cluster_status.ReplicationStatus, body)
    assert report.storage_id == node.id
    return {peer.peer_id: peer for peer in report.peers}


async def test_status(tmp_path: Path) -> None:
    async with volume(tmp_path) as (a, b, _session):
        assert await replication_status(a) == {
            "2": cluster_status.PeerReplication("2", "idle", True, estimate_s=0.0)
        }
        assert (await replication_status(b))["1"].in_sync is False
        b.server_stops()
        a.cut(b)
        await wait_for(lambda: bool(a.replication.pushers["2"].problem))
        async with a.connect() as client:
            await client.upload(b"12345")
            await client.upload(b"1234567")
        peer = (await replication_status(a))["2"]
        assert (peer.state, peer.in_sync) == ("failing", True)
        assert "connect" in peer.reason
        assert (peer.records_left, peer.bytes_left, peer.estimate_s) == (2, 12, None)
        assert 0 <= peer.delay_s < 60


async def test_a_large_backlog_is_estimated(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a:
            a.members.sources["2"] = None
            a.members.set(Brief(ServerStatus.ACTIVE, 1, "2", "127.0.0.1"))
            line = b"1795352879 C M00/00/00/fwAAFWsC6S-AbOvlAAAADcRYHyQ154.txt\n"
            a.store.binlog.append(line * 5000)
            peer = (await replication_status(a))["2"]
            assert (peer.records_left, peer.bytes_left) == (5000, 5000 * 13)


async def test_waiting_for_copies(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:

            async def wait(name: str, count: int, timeout_s: float) -> tuple[int, bytes]:
                request = copies.WaitForCopies("group1", name, count, timeout_s)
                async with a.connect() as client:
                    return await client.call(160, structs.encode(request))

            async with a.connect() as client:
                name = await client.upload(b"content")
            assert await wait(name, 1, 30) == (0, structs.encode(copies.Copies(1)))
            assert await wait(name, 2, 0) == (0, structs.encode(copies.Copies(1)))
            async with trio.open_nursery() as nursery:
                answers: list[tuple[int, bytes]] = []

                async def keep(count: int) -> None:
                    answers.append(await wait(name, count, 30))

                for count in (2, 2, 2):
                    nursery.start_soon(keep, count)
                await wait_for(lambda: a.replication._progress.statistics().tasks_waiting == 3)
                a.meet(b)
            assert answers == [(0, structs.encode(copies.Copies(2)))] * 3
            assert b.content(name) == b"content"
            async with b.connect() as client:
                other = await client.upload(b"other")
            b.meet(a)
            await b.wait_until_has_all(a)
            assert (await wait(other, 2, 0))[0] == errno.EREMOTE
            assert (await wait(name[:-3] + "bin", 2, 0))[0] == errno.ENOENT
            assert (await wait(name, 0, 0))[0] == errno.EINVAL
            assert (await wait(name, 1, 1e9))[0] == errno.EINVAL
