"""A new member gets everything from its source, then changes from all; also after restarts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import trio

from fdfs_storage.binlog import BinlogPosition
from fdfs_storage.replication.mark_files import BootNote, MarkFiles
from fdfsfuse.proto.changelog import ChangelogLine
from fdfsfuse.proto.cluster import SyncSource
from fdfsfuse.proto.mark import Mark
from fdfsfuse.proto.storage import Truncate
from fdfsfuse.proto.tracker import ServerStatus
from tests.common.waiting import wait_for
from tests.daemons.sync_pair import Node, run_node

S = ServerStatus


def mark_path(directory: Path, peer_id: str) -> Path:
    return directory / "base/data/sync" / f"{peer_id}.mark"


def reported(node: Node) -> list[ServerStatus]:
    return [brief.status for brief in node.members.reports]


def lose(node: Node, name: str, content: bytes) -> None:
    """Leave *content* of a file; its time is that of what was there."""
    path = node.path(name)
    info = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


async def test_a_new_member_is_filled_while_changes_go_on(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            a.meet(b)
            b.meet(a)
            async with a.connect() as at_a, b.connect() as at_b:
                names = [await at_a.upload(b"from a %d" % i) for i in range(40)]
                names += [await at_b.upload(b"from b %d" % i) for i in range(40)]
                grows = await at_b.upload(b"01234", appender=True)
                await at_b.append(grows, b"56789")
                await b.wait_until_has_all(a)
                assert await at_a.delete(names.pop()) == 0
                await at_a.set_metadata(names[0], b"k\x02v")
                async with run_node(tmp_path / "c", "3") as c:
                    source = SyncSource("1", int(time.time()))
                    a.meet(c, S.WAIT_SYNC, source)
                    b.meet(c, S.WAIT_SYNC, source)
                    names += [await at_a.upload(b"later %d" % i) for i in range(20)]
                    late = await at_b.upload(b"late from b")
                    await wait_for(lambda: reported(a) == [S.SYNCING, S.OFFLINE])
                    assert reported(b) == []
                    assert a.members.members[-1].status is S.OFFLINE
                    a.meet(c, S.ACTIVE, source)
                    b.meet(c, S.ACTIVE, source)
                    await at_b.append(grows, b"abc")
                    await a.wait_until_has_all(c)
                    await b.wait_until_has_all(c)
                    await b.wait_until_has_all(a)
                    assert c.content(late) == b"late from b"
                    assert c.content(grows) == b"0123456789abc"
                    assert c.files() == a.files() == b.files()
                    assert set(names) <= {f"M00/{name}" for name in c.files()}
                    assert all(line[0].islower() for line in c.lines())
                await wait_for(
                    lambda: Mark.decode(mark_path(tmp_path / "a", "3").read_bytes()).sync_old_done
                )
        done = Mark.decode(mark_path(tmp_path / "a", "3").read_bytes())
        assert (done.need_sync_old, done.sync_old_done, done.until) == (True, True, source.until)
        assert not Mark.decode(mark_path(tmp_path / "b", "3").read_bytes()).need_sync_old


async def test_source_and_destination_restart_in_the_middle(tmp_path: Path) -> None:
    source = SyncSource("1", int(time.time()))
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a:
            async with a.connect() as client:
                for i in range(300):
                    await client.upload(b"%d" % i * 200)
            expected = a.files()
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            a.meet(b, S.WAIT_SYNC, source)
            await wait_for(lambda: len(b.files()) > 10)
        async with run_node(tmp_path / "b", "2") as b:
            async with run_node(tmp_path / "a", "1") as a:
                a.meet(b, S.SYNCING, source)
                await wait_for(lambda: len(b.files()) > 100)
            async with run_node(tmp_path / "a", "1") as a:
                a.meet(b, S.SYNCING, source)
                await wait_for(lambda: reported(a) == [S.OFFLINE])
                assert b.files() == expected


async def test_completion_that_was_not_told_is_told_after_a_restart(tmp_path: Path) -> None:
    source = SyncSource("1", int(time.time()))
    with trio.fail_after(60):
        async with run_node(tmp_path / "b", "2") as b:
            async with run_node(tmp_path / "a", "1") as a:
                async with a.connect() as client:
                    await client.upload(b"content")
                a.meet(b, S.WAIT_SYNC, source)
                await wait_for(lambda: S.OFFLINE in reported(a))
            async with run_node(tmp_path / "a", "1") as a:
                a.meet(b, S.SYNCING, source)  # the tracker did not hear it
                await wait_for(lambda: reported(a) == [S.OFFLINE])


async def test_a_member_that_comes_back_empty_gets_everything_again(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a:
            async with a.connect() as client:
                name = await client.upload(b"content")
            async with run_node(tmp_path / "b", "2") as b:
                a.meet(b)
                await a.wait_until_has_all(b)
            a.members.set(b.brief(S.DELETED))
            await wait_for(lambda: "2" not in a.replication.pushers)
            line = ChangelogLine(1, "group1", "2", S.DELETED)
            a.members.on_changelog(line)
            a.members.on_changelog(line)  # another tracker tells it as well
            assert not mark_path(tmp_path / "a", "2").exists()
            assert list((tmp_path / "a/base/data/sync").glob("2.mark.20*"))
            async with run_node(tmp_path / "new", "2") as b:
                a.meet(b, S.WAIT_SYNC, SyncSource("1", int(time.time())))
                await wait_for(lambda: S.OFFLINE in reported(a))
                assert b.content(name) == b"content"


async def test_a_member_that_begins_anew_while_it_is_pushed_to(tmp_path: Path) -> None:
    """It came back at once, and is known to be empty only when changes go to it again."""
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            async with a.connect() as client:
                name = await client.upload(b"content")
            a.meet(b)
            await a.wait_until_has_all(b)
            b.path(name).unlink()
            a.meet(b, S.INIT)
            a.meet(b, S.WAIT_SYNC, SyncSource("1", int(time.time())))
            await wait_for(lambda: S.OFFLINE in reported(a))
            assert b.content(name) == b"content"


async def test_a_mark_follows_its_peer_to_another_id(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a:
            async with run_node(tmp_path / "b", "2") as b:
                a.meet(b)
                await a.wait_until_has_all(b)
            a.members.set(b.brief(S.IP_CHANGED))
            await wait_for(lambda: "2" not in a.replication.pushers)
            a.members.on_changelog(ChangelogLine(1, "group1", "2", S.IP_CHANGED, "4"))
            assert not mark_path(tmp_path / "a", "2").exists()
            assert mark_path(tmp_path / "a", "4").exists()


def test_marks_follow_the_port_of_their_storage(tmp_path: Path) -> None:
    mark = Mark(0, 5)
    MarkFiles(tmp_path, 23000, by_id=False).save("10.0.0.2", mark)
    MarkFiles(tmp_path, 23000, by_id=False).save_boot(
        "10.0.0.2", BootNote("b", BinlogPosition(0, 5))
    )
    moved = MarkFiles(tmp_path, 24000, by_id=False)
    moved.take_from_port(23000)
    assert moved.load("10.0.0.2", "10.0.0.2") == mark
    assert moved.load_boot("10.0.0.2") is not None
    moved.take_from_port(24000)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "10.0.0.2_24000.boot",
        "10.0.0.2_24000.mark",
    ]


async def test_marks_that_are_of_no_use(tmp_path: Path) -> None:
    """Damaged: from the start. Inside of a line: that line again. Behind the end: at the end."""
    with trio.fail_after(60):
        async with run_node(tmp_path / "b", "2") as b:
            async with run_node(tmp_path / "a", "1") as a:
                async with a.connect() as client:
                    names = [await client.upload(b"%d" % i) for i in range(3)]
                a.meet(b)
                await a.wait_until_has_all(b)
                end = a.store.binlog.position.offset
            path = mark_path(tmp_path / "a", "2")
            for data, again in (
                (b"binlog_index=0\n", 3),
                (Mark(0, end - 5).encode(), 1),
                (Mark(0, end + 1000).encode(), 0),
                (Mark(7, 5).encode(), 0),
            ):
                path.write_bytes(data)
                before = len(b.lines())
                async with run_node(tmp_path / "a", "1") as a:
                    a.meet(b)
                    await a.wait_until_has_all(b)
                assert len(b.lines()) - before == again
            assert [b.content(name) for name in names] == [b"0", b"1", b"2"]


async def test_a_peer_that_lost_its_power_gets_the_last_stretch_again(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a:
            async with run_node(tmp_path / "b", "2", boot_id="first") as b:
                a.meet(b)
                port = b.port
                await a.wait_until_has_all(b)
                async with a.connect() as client:
                    whole = await client.upload(b"content")
                    zeros = await client.upload(b"more content")
                    gone = await client.upload(b"even more content")
                    grows = await client.upload(b"0123", appender=True)
                    await client.append(grows, b"4567")
                    await client.append(grows, b"89")
                    assert await client.call(36, Truncate(grows, 9).encode()) == (0, b"")
                    await client.set_metadata(whole, b"k\x02v")
                await a.wait_until_has_all(b)
                expected = b.files()
                lose(b, zeros, bytes(12))
                b.path(gone).unlink()
                lose(b, grows, b"0123" + bytes(5))
                lose(b, whole + "-m", b"\0\0\0")
            async with run_node(tmp_path / "b", "2", boot_id="second", port=port) as b:
                await wait_for(lambda: b.files() == expected)
                await a.wait_until_has_all(b)
                count = len(b.lines())
            async with run_node(tmp_path / "b", "2", boot_id="second", port=port) as b:
                async with a.connect() as client:
                    await client.upload(b"last")
                await a.wait_until_has_all(b)
                assert len(b.lines()) == count + 1
