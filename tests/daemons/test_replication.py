"""Two or three storages of one group: every change reaches the others, once."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from fdfs_storage.binlog import BinlogPosition
from fdfs_storage.transfer import crc32
from fdfsfuse.proto import structs, sync
from fdfsfuse.proto.derived import CreateLink
from fdfsfuse.proto.mark import Mark
from fdfsfuse.proto.storage import FileRequest, ModifyHead, SlaveHead, StoredFile, Truncate
from fdfsfuse.proto.tracker import ServerStatus
from tests.common.waiting import wait_for
from tests.daemons.storage_server import GROUP, Client
from tests.daemons.sync_pair import Node, run_node
from tests.daemons.trunk_file import trunk_name, write_slot


@asynccontextmanager
async def pair(tmp_path: Path, *, stock: bool = False) -> AsyncIterator[tuple[Node, Node]]:
    with trio.fail_after(60):
        async with (
            run_node(tmp_path / "a", "1") as a,
            run_node(tmp_path / "b", "2", stock=stock) as b,
        ):
            a.meet(b)
            b.meet(a)
            yield a, b


async def change_everything(client: Client) -> tuple[str, str, str]:
    """Each kind of change once; returns (normal, appender, deleted)."""
    normal = await client.upload(b"content")
    gone = await client.upload(b"unwanted")
    assert await client.delete(gone) == 0
    await client.set_metadata(normal, b"a\x021")
    await client.set_metadata(normal, b"a\x022")
    appender = await client.upload(b"0123456789", appender=True)
    await client.append(appender, b"abcdef")
    body = ModifyHead(appender, 2, 3).encode() + b"XYZ"
    assert await client.call(34, body) == (0, b"")
    assert await client.call(36, Truncate(appender, 12).encode()) == (0, b"")
    head = SlaveHead(normal, 5, "_s", "txt").encode()
    assert (await client.call(21, head + b"slave"))[0] == 0
    return normal, appender, gone


@pytest.mark.parametrize("stock", [False, True])
async def test_every_change_reaches_the_peer_and_does_not_come_back(
    tmp_path: Path, stock: bool
) -> None:
    async with pair(tmp_path, stock=stock) as (a, b):
        async with a.connect() as client:
            normal, appender, gone = await change_everything(client)
            linked = await client.call(20, _link(normal))
            renamed = await client.upload(b"to be renamed", appender=True)
            status, body = await client.call(38, renamed.encode())
            assert linked[0] == status == 0
        await a.wait_until_has_all(b)
        await b.wait_until_has_all(a)
        assert b.content(normal) == b"content"
        assert b.content(normal + "-m") == b"a\x022"
        assert b.content(appender) == b"01XYZ56789ab"
        assert b.content(gone) is None
        assert b.content(body[16:].decode()) == b"to be renamed"
        assert b.content(renamed) is None
        assert b.content(linked[1][16:].decode()) == b"content"
        assert a.files() == b.files()
        assert all(line[0].isupper() for line in a.lines())
        assert all(line[0].islower() for line in b.lines())


async def test_files_in_trunk_files_of_an_adopted_store_path(tmp_path: Path) -> None:
    small, large = b"inside a trunk file", random.Random(1).randbytes(300_000)
    names = [trunk_name(small), trunk_name(large, number=2, slot_size=400_000)]
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            for name, content in zip(names, (small, large), strict=True):
                write_slot(tmp_path / "a" / "path0", name, content)
                a.store.binlog.append(f"1700000000 C {name}\n".encode())
            a.meet(b)
            b.meet(a)
            await a.wait_until_has_all(b)
            async with a.connect() as at_source, b.connect() as at_replica:
                for name, content in zip(names, (small, large), strict=True):
                    assert await at_replica.download(name) == content
                # What is sent again is recognised.
                a.store.binlog.append(f"1700000000 C {names[0]}\n".encode())
                await at_source.set_metadata(names[0], b"a\x021")
                await a.wait_until_has_all(b)
                assert await at_replica.get_metadata(names[0]) == (0, b"a\x021")
                assert await at_source.delete(names[0]) == 0
                await a.wait_until_has_all(b)
                body = FileRequest(GROUP, names[0]).encode()
                assert (await at_replica.call(22, body))[0] == errno.ENOENT
                assert await at_replica.download(names[1]) == large
            assert b.lines() == [
                f"c {names[0]}",
                f"c {names[1]}",
                f"c {names[0]}",
                f"c {names[0]}-m",
                f"d {names[0]}",
                f"d {names[0]}-m",
            ]


def _link(name: str) -> bytes:
    return CreateLink(GROUP, name, b"s", "txt").encode()


async def test_large_files_and_parts(tmp_path: Path) -> None:
    rng = random.Random(1)
    async with pair(tmp_path) as (a, b):
        async with a.connect() as client:
            content = rng.randbytes(3 << 20)
            normal = await client.upload(content)
            appender = await client.upload(b"begin", appender=True)
            await client.append(appender, content)
        await a.wait_until_has_all(b)
        assert b.content(normal) == content
        assert b.content(appender) == b"begin" + content
        records = a.store.binlog.read(BinlogPosition(0, 0))
        times = {record.name: record.timestamp for record, _ in records}
        # Of the record: the source may have finished writing in the second before.
        assert int(b.path(normal).stat().st_mtime) == times[normal]


async def test_parts_of_a_file_that_went_over_whole_are_not_sent_again(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with (
            run_node(tmp_path / "a", "1") as a,
            run_node(tmp_path / "b", "2") as b,
            a.connect() as client,
        ):
            name = await client.upload(bytes(9 << 20), appender=True)
            for i in range(20):
                await client.append(name, b"%d" % i * 1000)
            a.meet(b)
            await a.wait_until_has_all(b)
            assert b.content(name) == a.content(name)
            assert b.lines() == [f"c {name}"]
            await client.append(name, b"more")
            await a.wait_until_has_all(b)
            assert b.content(name) == a.content(name)
            assert len(b.lines()) == 2


async def test_a_restarted_source_goes_on_at_its_mark(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with run_node(tmp_path / "b", "2") as b:
            async with run_node(tmp_path / "a", "1") as a:
                a.meet(b)
                async with a.connect() as client:
                    first = await client.upload(b"first")
                await a.wait_until_has_all(b)
            count = len(b.lines())
            async with run_node(tmp_path / "a", "1") as a:
                async with a.connect() as client:
                    second = await client.upload(b"second")
                a.meet(b)
                await a.wait_until_has_all(b)
            assert b.content(first) == b"first"
            assert b.content(second) == b"second"
            assert len(b.lines()) == count + 1


async def test_no_mark_is_saved_of_lines_that_may_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the power: what is logged after the restart would be taken for sent."""
    marks: list[tuple[int, int]] = []
    async with pair(tmp_path) as (a, b):
        await a.wait_until_has_all(b)
        binlog, files = a.store.binlog, a.replication._marks
        sync, save, synced = binlog.sync, files.save, 0

        def note_sync() -> None:
            nonlocal synced
            end = binlog.position.offset
            sync()
            synced = end

        def note_save(peer_id: str, mark: Mark) -> None:
            marks.append((mark.offset, synced))
            save(peer_id, mark)

        monkeypatch.setattr(binlog, "sync", note_sync)
        monkeypatch.setattr(files, "save", note_save)
        async with a.connect() as client:
            await client.upload(b"content")
        await a.wait_until_has_all(b)
        (pusher,) = a.replication.pushers.values()
        await pusher.write_mark()
    assert any(mark for mark, _ in marks)
    assert all(mark <= until for mark, until in marks)


@pytest.mark.parametrize("stock", [False, True])
async def test_repeats_change_nothing(tmp_path: Path, stock: bool) -> None:
    with trio.fail_after(60):
        async with run_node(tmp_path / "b", "2", stock=stock) as b:
            async with run_node(tmp_path / "a", "1") as a:
                a.meet(b)
                async with a.connect() as client:
                    await change_everything(client)
                await a.wait_until_has_all(b)
                files = b.files()
            (tmp_path / "a/base/data/sync/2.mark").unlink()
            async with run_node(tmp_path / "a", "1") as a:
                a.meet(b)
                await a.wait_until_has_all(b)
            assert b.files() == files


async def test_a_peer_that_was_away_gets_everything(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a:
            async with run_node(tmp_path / "b", "2") as b:
                a.meet(b)
                port = b.port
                async with a.connect() as client:
                    await client.upload(b"first")
                await a.wait_until_has_all(b)
            async with a.connect() as client:
                names = [await client.upload(b"%d" % i) for i in range(100)]
            async with run_node(tmp_path / "b", "2", port=port) as b:
                await a.wait_until_has_all(b)
                assert [b.content(name) for name in names] == [b"%d" % i for i in range(100)]
                assert a.files() == b.files()


async def test_changes_at_both_sides(tmp_path: Path) -> None:
    async with pair(tmp_path) as (a, b):
        async with a.connect() as at_a, b.connect() as at_b:
            names = [await at_a.upload(b"%d" % i) for i in range(50)]
            names += [await at_b.upload(b"%d" % i) for i in range(50)]
            await a.wait_until_has_all(b)
            await b.wait_until_has_all(a)
            for name in names[::2]:
                assert await at_b.delete(name) == 0
            for name in names[1::2]:
                await at_a.set_metadata(name, b"k\x02v")
        await a.wait_until_has_all(b)
        await b.wait_until_has_all(a)
        assert a.files() == b.files()
        assert len(a.files()) == 100


@pytest.mark.parametrize("slave", [False, True])
async def test_a_deleted_file_does_not_come_back(tmp_path: Path, slave: bool) -> None:
    """a sends its creation again before it hears of the deletion at b."""
    with trio.fail_after(60):
        async with run_node(tmp_path / "b", "2") as b:
            async with run_node(tmp_path / "a", "1") as a:
                a.meet(b)
                async with a.connect() as client:
                    name = await client.upload(b"content")
                    if slave:
                        head = SlaveHead(name, 5, "_s", "txt").encode()
                        _, body = await client.call(21, head + b"slave")
                        name = StoredFile.decode(body).name
                await a.wait_until_has_all(b)
            (tmp_path / "a/base/data/sync/2.mark").unlink()
            async with b.connect() as client:
                assert await client.delete(name) == 0
            async with run_node(tmp_path / "a", "1") as a:
                a.meet(b)
                await a.wait_until_has_all(b)
                assert b.content(name) is None
                b.meet(a)
                await b.wait_until_has_all(a)
                assert a.content(name) is None


@pytest.mark.parametrize("cut_at", [12, 8])
async def test_bytes_that_were_cut_off_before_they_were_sent(tmp_path: Path, cut_at: int) -> None:
    """The peer has 10 bytes; what it is sent next lies behind bytes that it never gets as such."""
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            a.meet(b)
            async with a.connect() as client:
                name = await client.upload(b"0123456789", appender=True)
                await a.wait_until_has_all(b)
                a.meet(b, ServerStatus.OFFLINE)
                a.cut(b)
                await wait_for(lambda: a.replication.pushers[b.id].link is None)
                for command, head, data in (
                    (34, ModifyHead(name, 10, 6), b"abcdef"),
                    (36, Truncate(name, cut_at), b""),
                    (36, Truncate(name, 20), b""),
                    (34, ModifyHead(name, 15, 9), b"ABCDEFGHI"),
                ):
                    assert await client.call(command, head.encode() + data) == (0, b"")
            a.meet(b)
            await a.wait_until_has_all(b)
            assert a.content(name) == b.content(name)
            assert len(a.content(name) or b"") == 24


async def test_renamed_file_that_was_there_already_is_in_the_binlog(tmp_path: Path) -> None:
    """A recovered disk has files that the binlog does not name; others recover by that binlog."""
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            async with a.connect() as client:
                old = await client.upload(b"content", appender=True)
                status, body = await client.call(38, old.encode())
                assert status == 0
            new = StoredFile.decode(body).name
            b.path(new).write_bytes(b"content")
            a.meet(b)
            await a.wait_until_has_all(b)
            assert b.lines() == [f"c {new}"]


async def test_appender_whose_new_name_was_deleted_before_the_peer_came_back(
    tmp_path: Path,
) -> None:
    """The peer has the old name, which no record speaks of any more but the one of its renaming."""
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            a.meet(b)
            async with a.connect() as client:
                old = await client.upload(b"content", appender=True)
                await a.wait_until_has_all(b)
                assert b.content(old) == b"content"
                a.meet(b, ServerStatus.OFFLINE)
                a.cut(b)
                await wait_for(lambda: a.replication.pushers[b.id].link is None)
                status, body = await client.call(38, old.encode())
                assert status == 0
                assert await client.delete(StoredFile.decode(body).name) == 0
            a.meet(b)
            await a.wait_until_has_all(b)
            assert a.files() == b.files() == {}


@pytest.mark.parametrize("deletion_first", [True, False])
async def test_metadata_of_a_file_that_was_deleted_elsewhere(
    tmp_path: Path, deletion_first: bool
) -> None:
    """a sets it and dies, b deletes the file without it: in the end both have neither."""
    with trio.fail_after(60):
        async with run_node(tmp_path / "b", "2") as b:
            async with run_node(tmp_path / "a", "1") as a:
                a.meet(b)
                async with a.connect() as client:
                    name = await client.upload(b"content")
                await a.wait_until_has_all(b)
                a.meet(b, ServerStatus.OFFLINE)
                async with a.connect() as client:
                    await client.set_metadata(name, b"a\x021")
            async with b.connect() as client:
                assert await client.delete(name) == 0
            async with run_node(tmp_path / "a", "1") as a:
                one, other = (b, a) if deletion_first else (a, b)
                one.meet(other)
                await one.wait_until_has_all(other)
                other.meet(one)
                await other.wait_until_has_all(one)
                assert a.files() == b.files() == {}


async def test_creation_that_is_overtaken_by_its_deletion(tmp_path: Path) -> None:
    """c hears from b that a file of a was deleted, before a has sent it; c restarts in between."""
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            async with a.connect() as client:
                name = await client.upload(b"content")
            a.meet(b)
            await a.wait_until_has_all(b)
            async with b.connect() as client:
                assert await client.delete(name) == 0
            async with run_node(tmp_path / "c", "3") as c:
                b.meet(c)
                await b.wait_until_has_all(c)
            async with run_node(tmp_path / "c", "3") as c:
                a.meet(c)
                await a.wait_until_has_all(c)
                assert c.content(name) is None


async def test_truncation_that_a_skipped_append_went_before(tmp_path: Path) -> None:
    """a's appended bytes are gone before they are sent; the truncation must bring the peer on."""
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            async with a.connect() as client:
                name = await client.upload(b"", appender=True)
                a.meet(b)
                await a.wait_until_has_all(b)
                a.cut(b)
                await client.append(name, b"0123456789")
                assert await client.call(36, Truncate(name, 4).encode()) == (0, b"")
            await a.wait_until_has_all(b)
            assert b.content(name) == b"0123"


async def test_damaged_content_is_not_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            async with a.connect() as client:
                good = await client.upload(b"good")
                bad = await client.upload(b"good, but it will not last")
                a.path(bad).write_bytes(b"evil, and of the same size")
                last = await client.upload(b"last")
            a.meet(b)
            await a.wait_until_has_all(b)
            assert b.content(good) == b"good"
            assert b.content(bad) is None
            assert b.content(last) == b"last"
            assert f"{bad} is damaged here" in caplog.text


@pytest.mark.parametrize("there", ["same", "damaged", "short", "link", "nothing"])
@pytest.mark.parametrize("content", [b"whole", b"evil!"])
async def test_a_file_that_is_sent_where_something_has_its_name(
    tmp_path: Path, there: str, content: bytes
) -> None:
    with trio.fail_after(60):
        async with run_node(tmp_path / "b", "2") as b, b.connect() as sender:
            name = b.store.creations.make_name(5, crc32(b"whole"), 1, "").name
            path = b.path(name)
            if there == "link":
                path.symlink_to("nowhere")
            elif there != "nothing":
                path.write_bytes({"same": b"whole", "damaged": b"whale", "short": b"who"}[there])
            hello = sync.Hello(sync.VERSION, GROUP, "1")
            assert (await sender.call(150, structs.encode(hello)))[0] == 0
            head = sync.FileHead(name, 5, 1, GROUP)
            status, _ = await sender.call(16, head.encode() + content)
            if there == "same":
                assert (status, b.content(name)) == (errno.EEXIST, b"whole")
            elif content == b"whole":
                assert (status, b.content(name)) == (0, b"whole")
                assert not path.is_symlink()
            else:
                assert status == errno.EBADMSG
                assert b.content(name) != content
            logged = status in (0, errno.EEXIST)
            assert b.lines() == [f"c {name}"] * logged


async def test_a_removed_peer(tmp_path: Path) -> None:
    async with pair(tmp_path) as (a, b):
        await a.wait_until_has_all(b)
        a.members.set(b.brief(ServerStatus.DELETED))
        await wait_for(lambda: "2" not in a.replication.pushers)
        async with a.connect() as client:
            name = await client.upload(b"content")
        a.meet(b)
        await a.wait_until_has_all(b)
        assert b.content(name) == b"content"
