"""Changes while the disk is quick: logged at once, shown to other connections a bit later.

Killed at any moment in between, the storage has them all after a restart.
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
import threading
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from fdfs_storage.names import engine
from fdfs_storage.names.housekeeping import Housekeeping
from fdfs_storage.names.log import segment_name
from fdfsfuse.errors import DeadlineExceeded, StatusError
from fdfsfuse.proto import names
from tests.common.names_calls import FILE, NOW, ROOT, make, store
from tests.common.names_server import names_server, open_tree
from tests.common.waiting import wait_for
from tests.daemons.test_names_crash import check, entries


@pytest.fixture(autouse=True)
def disk_counts_as_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, changes take the way that these tests are about."""
    monkeypatch.setattr(engine, "_SLOW_SYNC_S", float("inf"))


@pytest.fixture(autouse=True)
def nothing_is_cleaned_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a test takes: what looks for garbage shows all changes first."""

    async def sleep(self: Housekeeping) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(Housekeeping, "run", sleep)
    monkeypatch.setattr(Housekeeping, "maintain_files", sleep)


async def test_a_kill_loses_nothing_that_was_not_settled(tmp_path: Path) -> None:
    base, crashed = tmp_path / "base", tmp_path / "crashed"
    async with names_server(base) as server, server.session() as session:
        for number in range(5):
            ino = await make(session, b"%d" % number)
            await store(session, ino, b"content %d" % number)
        await session.call(names.Rename(ROOT, b"4", ROOT, b"0", 0, NOW))
        await session.call(names.SetXattr(ino, b"user.k", b"v", 0, NOW))
        tree = server.tree
        assert tree.state.unsettled > 0
        shutil.copytree(base, crashed)
        expected = entries(tree)
        log = base / "data/names" / segment_name(1)
        assert log.stat().st_size > tree.log.size  # zeros are ahead of the records
    assert log.stat().st_size == tree.log.size
    other = sqlite3.connect(crashed / "data/names/state.db")
    assert other.execute("SELECT count(*) FROM dirent").fetchone()[0] < len(expected)
    other.close()
    async with open_tree(crashed, run=False) as tree:
        assert entries(tree) == expected
        check(tree, crashed)
        xattrs = tree.reads.xattrs(names.ListXattrs(ino))
        assert xattrs.xattrs == {b"user.k": b"v"}


async def test_reads_listings_and_refusals_see_what_is_not_settled(tmp_path: Path) -> None:
    async with names_server(tmp_path) as server, server.session() as session:
        ino = await make(session, b"a")
        attr = await store(session, ino, b"content")
        assert server.tree.state.unsettled
        assert (await session.call(names.Lookup(ROOT, b"a"))).file_id == attr.file_id
        with pytest.raises(StatusError):
            await make(session, b"a")  # refused: the batch is undone, those before it are not
        assert server.tree.state.unsettled
        listing = await session.call(names.ListObjects("", "", 10))
        assert listing.entries == []  # the object has a name
        assert not server.tree.state.unsettled
        assert (await session.call(names.Lookup(ROOT, b"a"))).size == 7


async def test_metadata_of_a_plain_client_outlives_a_kill(tmp_path: Path) -> None:
    base, crashed = tmp_path / "base", tmp_path / "crashed"
    async with names_server(base) as server, server.session() as session:
        ino = await make(session, b"a")
        attr = await store(session, ino, b"content")
        await session.call(names.SetXattr(ino, b"user.k", b"ours", 0, NOW))
        assert server.tree.state.unsettled
        location = server.store.locate(attr.file_id)
        server.store.write_metadata(location, b"k\x02theirs")
        shutil.copytree(base, crashed)
    async with open_tree(crashed, run=False) as tree:
        assert tree.objects.stored_metadata(attr.file_id) == b"k\x02theirs"


async def test_what_several_sessions_have_sent_is_synced_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(names_server(tmp_path))
        sessions = [await stack.enter_async_context(server.session()) for _ in range(4)]
        log, batches = server.tree.log, 0
        sync = log.sync

        def counted() -> None:
            nonlocal batches
            batches += 1
            sync()

        monkeypatch.setattr(log, "sync", counted)
        for turn in range(10):
            async with trio.open_nursery() as nursery:
                for number, session in enumerate(sessions):
                    nursery.start_soon(make, session, b"%d-%d" % (turn, number))
        assert len(entries(server.tree)) == 40
        assert batches < 40
        assert server.tree.state.unsettled


async def test_a_slow_disk_is_waited_for_by_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_SLOW_SYNC_S", -1.0)
    monkeypatch.setattr(engine, "_IN_THREAD_FACTOR", 1e12)
    async with names_server(tmp_path) as server, server.session() as session:
        log, in_loop = server.tree.log, []
        sync = log.sync

        def watched() -> None:
            in_loop.append(threading.current_thread() is threading.main_thread())
            sync()

        monkeypatch.setattr(log, "sync", watched)
        for number in range(6):
            await make(session, b"%d" % number)
        assert in_loop == [True] * 4 + [False] * 2
        assert not server.tree.state.unsettled


async def test_nobody_reads_beside_a_batch_while_changes_before_it_cannot_be_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async with names_server(tmp_path) as server, server.session() as session:
        tree, in_loop = server.tree, []
        sync, token = tree.log.sync, trio.lowlevel.current_trio_token()

        def look() -> None:
            sync()
            in_loop.append(threading.current_thread() is threading.main_thread())
            if not in_loop[-1]:
                request = names.Lookup(ROOT, b"a")
                trio.from_thread.run_sync(tree.reads.lookup, request, trio_token=token)

        await make(session, b"a")
        assert tree.state.unsettled
        monkeypatch.setattr(tree.log, "sync", look)
        monkeypatch.setattr(tree.engine, "_in_thread_until", float("inf"))
        with monkeypatch.context() as context:
            context.setattr(tree.state, "settle", full)
            await make(session, b"b")
        assert "cannot be written now" in caplog.text
        await make(session, b"c")
        assert in_loop == [True, False]


async def test_a_change_that_cannot_be_kept_takes_none_before_it_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Undoing it undoes all that was not settled, which is applied again from the log."""

    def full(records: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    async with names_server(tmp_path) as server, server.session() as session:
        ino = await make(session, b"a")
        await store(session, ino, b"content")
        await session.call(names.Rename(ROOT, b"a", ROOT, b"b", 0, NOW))
        tree = server.tree
        assert tree.state.unsettled
        before, position = entries(tree), tree.state.position
        (number,) = (known.number for known in tree.sessions)
        answer = tree.state.results.find(number, 3)
        assert answer is not None
        with monkeypatch.context() as context:
            context.setattr(tree.log, "write", full)
            with pytest.raises(StatusError, match="28"):
                await make(session, b"c")
        assert entries(tree) == before
        assert tree.state.position == position
        assert tree.state.results.find(number, 3) == answer
        assert (await session.call(names.Lookup(ROOT, b"b"))).size == 7
        await make(session, b"d")
        expected = entries(tree)
        assert expected.keys() == {b"b", b"d"}
        shutil.copytree(tmp_path, tmp_path / "crashed")
    async with open_tree(tmp_path / "crashed", run=False) as tree:
        assert entries(tree) == expected
        check(tree, tmp_path / "crashed")


async def test_the_engine_stops_when_the_log_cannot_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, "a bad sector")

    async with names_server(tmp_path) as server, server.session() as session:
        await make(session, b"a")
        tree = server.tree
        assert tree.state.unsettled
        monkeypatch.setattr(tree.log, "write", fail)
        monkeypatch.setattr(tree.log, "retained", fail)
        with pytest.raises(DeadlineExceeded):
            await session.call(names.Create(ROOT, b"b", FILE, 0, 0, NOW), trio.current_time() + 0.3)
        await wait_for(lambda: tree.engine.broken)
    monkeypatch.undo()
    async with open_tree(tmp_path, run=False) as tree:
        assert set(entries(tree)) == {b"a"}


async def test_changes_that_the_database_dropped_stop_the_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with names_server(tmp_path) as server, server.session() as session:
        await make(session, b"a")
        state = server.tree.state
        assert state.unsettled
        state.db.execute("ROLLBACK")  # as SQLite does by itself on some errors of the disk
        server.tree.engine.settle()
        assert server.tree.engine.broken
        with pytest.raises(DeadlineExceeded):  # and not ENOENT, although it was acknowledged
            await session.call(names.Lookup(ROOT, b"a"), trio.current_time() + 0.3)
    async with open_tree(tmp_path, run=False) as tree:
        assert set(entries(tree)) == {b"a"}


async def test_nothing_is_made_on_top_of_changes_that_the_database_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with names_server(tmp_path) as server, server.session() as session:
        await make(session, b"a")
        tree = server.tree
        assert tree.state.unsettled
        tree.state.db.execute("ROLLBACK")
        with pytest.raises(StatusError):
            await make(session, b"b")
        assert set(entries(tree)) == {b"a"}  # applied again from the log
        await make(session, b"c")
        tree.state.db.execute("ROLLBACK")
        monkeypatch.setattr(tree.engine, "_in_thread_until", float("inf"))
        with pytest.raises(DeadlineExceeded):
            await session.call(names.Create(ROOT, b"d", FILE, 0, 0, NOW), trio.current_time() + 0.3)
        await wait_for(lambda: tree.engine.broken)
    async with open_tree(tmp_path, run=False) as tree:
        assert set(entries(tree)) == {b"a", b"c"}
