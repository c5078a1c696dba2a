"""Crashes at every step of a change: what was acknowledged stays, nothing is left half done.

A crash is simulated by copying all files at that moment (what kill -9 leaves), by cutting the
log (a torn write), or by putting an older database in place (power lost before SQLite's files
were synced; the log was).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from fdfs_storage import paths
from fdfs_storage.binlog import BinlogPosition
from fdfs_storage.names import effects, founding, housekeeping, schema
from fdfs_storage.names.housekeeping import Housekeeping
from fdfs_storage.names.log import Log, LogDamaged, segment_name
from fdfs_storage.names.prepare import CREATE
from fdfs_storage.names.tree import Tree
from fdfs_storage.names.work import Work
from fdfsfuse.core.names_log import Position
from fdfsfuse.proto import names, names_record
from fdfsfuse.proto.names_record import Op, Record
from tests.common.names_server import open_tree
from tests.common.waiting import wait_for

ROOT = names.ROOT_INO
NOW = 1_700_000_000_000_000_000
FILE = stat.S_IFREG | 0o644
SESSION = 1

Make = Op | Callable[[], Op]


def create(name: bytes) -> Op:
    return names.Create(ROOT, name, FILE, 0, 0, NOW)


def put(tree: Tree, name: bytes, data: bytes) -> Make:
    def make() -> Op:
        row = tree.state.db.execute("SELECT ino FROM dirent WHERE name = ?", (name,)).fetchone()
        return tree.preparer.store_content(row[0], data, NOW)

    return make


async def together(
    tree: Tree, makes: list[Make], first_id: int = 0, *, at_once: bool = False
) -> list[int]:
    """Submit changes as one batch, to be carried out at once or by a thread; their statuses."""
    statuses = [-1] * len(makes)
    done = trio.Event()

    def replier(number: int) -> Callable[[int, bytes], None]:
        def reply(status: int, answer: bytes) -> None:
            statuses[number] = status
            if -1 not in statuses:
                done.set()

        return reply

    for number, make in enumerate(makes):
        work_id = first_id + number if first_id else 0
        session = SESSION if first_id else 0
        submit = tree.engine.submit_lazily if at_once else tree.engine.submit
        submit(Work(make, replier(number), session=session, id=work_id))
    if at_once:
        await wait_for(lambda: tree.engine._idle)
        tree.engine.kick()
    await done.wait()
    return statuses


def objects_on_disk(base: Path) -> dict[str, bytes]:
    return {
        f"M00/{path.relative_to(base / 'data')}": path.read_bytes()
        for path in base.glob("data/??/??/*")
    }


def dump(tree: Tree) -> list[str]:
    """All rows, but for outcomes: those that nobody needs are there or not."""
    lines = tree.state.db.iterdump()
    return [line for line in lines if not line.startswith('INSERT INTO "result"')]


def make_file(
    tree: Tree, name: bytes, data: bytes, xattrs: dict[bytes, bytes] | None = None
) -> Make:
    """A file that a mount made on its own, with a number that was reserved for it just before."""

    def make() -> Op:
        ino = tree.state.next_ino - 1
        return tree.preparer.make_file(
            names.CreateFile(ROOT, name, ino, 0o644, 0, 0, NOW, NOW, NOW, NOW, data, xattrs or {})
        )

    return make


def set_xattr(tree: Tree, file: bytes, name: bytes, value: bytes) -> Make:
    def make() -> Op:
        row = tree.state.db.execute("SELECT ino FROM dirent WHERE name = ?", (file,)).fetchone()
        return tree.preparer.set_xattr(names.SetXattr(row[0], name, value, 0, NOW))

    return make


def metadata(tree: Tree) -> dict[bytes, bytes]:
    """The metadata of each file with content."""
    return {
        name: tree.objects.stored_metadata(file_id)
        for name, (_, file_id) in entries(tree).items()
        if file_id
    }


def entries(tree: Tree) -> dict[bytes, tuple[int, str]]:
    rows = tree.state.db.execute(
        "SELECT name, size, ifnull(file_id, '') FROM dirent JOIN inode USING (ino)"
    )
    return {name: (size, file_id) for name, size, file_id in rows}


def garbage(tree: Tree) -> list[int]:
    return [row[0] for row in tree.state.db.execute("SELECT id FROM garbage")]


def check(tree: Tree, base: Path) -> None:
    """Every object belongs to a row, every row has its object, of the right size."""
    db = tree.state.db
    sizes = dict(db.execute("SELECT file_id, size FROM inode WHERE file_id IS NOT NULL"))
    others = {row[0] for row in db.execute("SELECT file_id FROM pending")}
    others |= {
        row[0] for row in db.execute("SELECT file_id FROM garbage WHERE file_id IS NOT NULL")
    }
    found = {name: data for name, data in objects_on_disk(base).items() if not name.endswith("-m")}
    assert set(sizes) <= set(found)
    assert set(found) <= set(sizes) | others
    assert {name: len(found[name]) for name in sizes} == sizes


def before_and_after(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, hook: Callable[[str], None]
) -> None:
    """Call *hook* around each call of ``owner.name``."""
    original = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        hook(f"before {name}")
        result = original(*args, **kwargs)
        hook(f"after {name}")
        return result

    monkeypatch.setattr(owner, name, wrapper)


class Snapshots:
    """What a kill would leave of *base*: copies beside it, made around calls."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[tuple[str, Path]] = []
        self._base = base
        self._monkeypatch = monkeypatch

    def around(self, owner: Any, name: str) -> None:
        before_and_after(self._monkeypatch, owner, name, self._take)

    def _take(self, moment: str) -> None:
        target = self._base.with_name(f"{len(self.taken)}")
        shutil.copytree(self._base, target)
        self.taken.append((moment, target))


async def make_old(tree: Tree) -> None:
    """A session, and a file that was made before."""
    await together(tree, [names_record.StartSession(b"t" * 16, "m")])
    makes = [create(b"old"), put(tree, b"old", b"old content")]
    assert await together(tree, makes, 1) == [0, 0]


@pytest.mark.parametrize("at_once", [False, True])
async def test_kill_at_each_step_of_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    base = tmp_path / "base"
    snapshots = Snapshots(base, monkeypatch)
    async with open_tree(base) as tree:
        await make_old(tree)
        before = entries(tree)
        snapshots.around(tree.log, "write")
        snapshots.around(tree.log, "sync")
        snapshots.around(tree.objects, "announce")
        snapshots.around(effects, "perform")
        snapshots.around(paths, "write_all")
        snapshots.around(tree.state, "commit")
        makes = [
            create(b"new"),
            put(tree, b"new", b"new content"),
            put(tree, b"old", b"other"),
            names.ReserveInodes(10),
            make_file(tree, b"made", b"whole", {b"user.a": b"1", b"user.b": b"\1"}),
            set_xattr(tree, b"made", b"user.a", b"2"),
            set_xattr(tree, b"old", b"user.c", b"3"),
            set_xattr(tree, b"old", b"user.c", b"4"),
        ]
        assert await together(tree, makes, 3, at_once=at_once) == [0] * 8
        after = entries(tree)
        assert metadata(tree) == {b"new": b"", b"old": b"c\x024", b"made": b"a\x022"}
    monkeypatch.undo()
    steps = ["announce", "sync"] if at_once else ["sync", "announce"]
    assert [moment for moment, _ in snapshots.taken] == [
        "before write",
        "after write",
        *[f"{when} {step}" for step in steps for when in ("before", "after")],
        *["before perform", "before write_all", "after write_all", "after perform"] * 3,
        *["before perform", "after perform"] * 3,  # those of objects that are there
        "before commit",
        "after commit",
    ]
    for moment, crashed in snapshots.taken:
        async with open_tree(crashed) as tree:
            check(tree, crashed)
            if moment == "before write":
                assert entries(tree) == before
                assert tree.state.results.find(SESSION, 3) is None
            else:
                assert entries(tree) == after
                assert tree.state.results.find(SESSION, 10) is not None
                assert metadata(tree) == {b"new": b"", b"old": b"c\x024", b"made": b"a\x022"}
                rows = tree.state.db.execute("SELECT name, value FROM xattr").fetchall()
                assert rows == [(b"user.b", b"\1")]
            assert len(tree.sessions) == 1
            reserved = tree.state.db.execute("SELECT first, count FROM inode_block").fetchall()
            assert reserved == ([] if moment == "before write" else [(4, 10)])
            assert await together(tree, [create(b"later")]) == [0]
            assert tree.state.next_ino == (4 if moment == "before write" else 15)


async def test_kill_while_objects_are_made_and_the_log_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    snapshots = Snapshots(base, monkeypatch)
    async with open_tree(base) as tree:
        await make_old(tree)
        before, size = entries(tree), tree.log.size
        snapshots.around(tree.log, "write")
        snapshots.around(tree.log, "start_sync")
        snapshots.around(tree.objects, "announce")
        snapshots.around(effects, "perform")
        snapshots.around(tree.log, "sync")
        makes = [
            put(tree, b"old", b"other"),
            names.ReserveInodes(10),
            make_file(tree, b"made", b"whole", {b"user.a": b"1"}),
        ]
        assert await together(tree, makes, 3, at_once=True) == [0] * 3
        after = entries(tree)
    monkeypatch.undo()
    steps = ["write", "start_sync", "announce", "perform", "perform", "sync"]
    assert [moment for moment, _ in snapshots.taken] == [
        f"{when} {step}" for step in steps for when in ("before", "after")
    ]
    unsynced = shutil.copytree(dict(snapshots.taken)["before sync"], tmp_path / "unsynced")
    for _, crashed in snapshots.taken[1:]:
        async with open_tree(crashed) as tree:
            check(tree, crashed)
            assert entries(tree) == after
            assert metadata(tree) == {b"old": b"", b"made": b"a\x021"}
            assert tree.state.results.find(SESSION, 5) is not None
    # A loss of power may keep the objects, but not the records.
    os.truncate(unsynced / "data/names" / segment_name(1), size)
    async with open_tree(unsynced) as tree:
        assert entries(tree) == before
        assert await together(tree, [put(tree, b"old", b"other")], 3, at_once=True) == [0]
        assert entries(tree)[b"old"][0] == 5


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_batch_writes_the_metadata_of_a_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    async with open_tree(tmp_path) as tree:
        await together(tree, [create(b"a"), put(tree, b"a", b"AAA")])
        written: list[str] = []
        before_and_after(monkeypatch, tree.objects.store, "write_metadata", written.append)
        makes = [set_xattr(tree, b"a", b"user.%d" % n, b"%d" % n) for n in (1, 2, 3)]
        assert await together(tree, makes, at_once=at_once) == [0] * 3
        assert len(written) == 2
        assert metadata(tree) == {b"a": b"1\x021\x012\x022\x013\x023"}
        # Not what a new object of the same batch starts with, either.
        makes = [
            put(tree, b"a", b"new"),
            set_xattr(tree, b"a", b"user.2", b"4"),
            create(b"b"),
            put(tree, b"b", b"BBB"),
            set_xattr(tree, b"b", b"user.x", b"y"),
        ]
        assert await together(tree, makes, at_once=at_once) == [0] * 5
        assert len(written) == 6
        assert metadata(tree) == {b"a": b"1\x021\x012\x024\x013\x023", b"b": b"x\x02y"}


async def test_the_log_cut_at_each_byte_of_the_last_batch(tmp_path: Path) -> None:
    base = tmp_path / "base"
    async with open_tree(base) as tree:
        assert await together(tree, [create(b"a"), put(tree, b"a", b"AAA")]) == [0, 0]
        database = tmp_path / "database"
        shutil.copytree(base / "data/names", database)
        first_size = tree.log.size
        assert (
            await together(tree, [create(b"b"), put(tree, b"b", b"BBB"), create(b"c")]) == [0] * 3
        )
        whole = entries(tree)
        last_object = whole[b"b"][1]
    log = (base / "data/names" / segment_name(1)).read_bytes()
    records = [names_record.HEADER_SIZE + len(r.payload) for r in names_record.Reader(log)]
    ends = [sum(records[: number + 1]) for number in range(len(records))]
    assert ends[1] == first_size
    for size in range(first_size, len(log) + 1):
        shutil.rmtree(base / "data/names")
        shutil.copytree(database, base / "data/names")
        (base / "data/names" / segment_name(1)).write_bytes(log[:size])
        # What the cut batch did to objects was not done either.
        (base / "data" / last_object[4:]).unlink(missing_ok=True)
        async with open_tree(base, run=False) as tree:
            complete = sum(end <= size for end in ends)
            assert tree.log.last.index == complete == tree.engine.committed
            expected = {b"a": whole[b"a"]}
            if complete >= 3:
                expected[b"b"] = whole[b"b"] if complete >= 4 else (0, "")
            if complete == 5:
                expected[b"c"] = (0, "")
            assert entries(tree) == expected
            check(tree, base)
            assert tree.log.size == ends[complete - 1]


async def test_an_older_database_is_brought_up_from_the_log(tmp_path: Path) -> None:
    base, older = tmp_path / "base", tmp_path / "older"
    async with open_tree(base, names_garbage_grace_s=0.0, names_session_lease_s=0.1) as tree:
        shutil.copytree(base / "data/names", older)
        await together(tree, [create(b"a"), put(tree, b"a", b"one"), create(b"b")])
        await together(tree, [put(tree, b"a", b"two"), put(tree, b"b", b"bbb")])
        await together(tree, [names_record.MakePending("M00/00/00/" + "p" * 34)])
        ino = tree.state.db.execute("SELECT ino FROM dirent WHERE name = x'61'").fetchone()[0]
        request = names.SetXattr(ino, b"user.k", b"v", 0, NOW)
        await together(tree, [lambda: tree.preparer.set_xattr(request)])
        await wait_for(lambda: not garbage(tree) and not tree.engine.is_busy)
        expected, objects = dump(tree), objects_on_disk(base)
        assert len(objects) == 4  # a, its metadata, b, the pending one
    for missing in (False, True):
        for name in ("state.db", "state.db-wal", "state.db-shm"):
            (base / "data/names" / name).unlink(missing_ok=True)
            if (older / name).exists():
                shutil.copy(older / name, base / "data/names" / name)
        if missing:
            for file_id in objects:
                (base / "data" / file_id[4:]).unlink()
        async with open_tree(base, run=False) as tree:
            assert dump(tree) == expected
        assert objects_on_disk(base) == objects


async def test_a_deletion_that_a_crash_cut_short_is_completed(tmp_path: Path) -> None:
    """The file of the object is gone, its metadata is not."""
    async with open_tree(tmp_path, names_garbage_grace_s=0.0, names_session_lease_s=0.1) as tree:
        await together(tree, [create(b"a"), put(tree, b"a", b"one")])
        ((ino, old),) = tree.state.db.execute("SELECT ino, file_id FROM inode WHERE file_id > ''")
        request = names.SetXattr(ino, b"user.k", b"v", 0, NOW)
        await together(tree, [lambda: tree.preparer.set_xattr(request)])
        await together(tree, [put(tree, b"a", b"two")])
        (tmp_path / "data" / old[4:]).unlink()
        assert old + "-m" in objects_on_disk(tmp_path)
        await wait_for(lambda: not garbage(tree))
        new = entries(tree)[b"a"][1]
        assert objects_on_disk(tmp_path).keys() == {new, new + "-m"}


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("failing", ["write", "sync", "perform", "commit"])
async def test_a_step_that_fails_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, at_once: bool
) -> None:
    async with open_tree(tmp_path) as tree:
        first: list[Make] = [create(b"a"), put(tree, b"a", b"one")]
        assert await together(tree, first, at_once=at_once) == [0, 0]
        tree.engine.settle()
        before, objects, size = dump(tree), objects_on_disk(tmp_path), tree.log.size
        calls: list[int] = []

        def no_space(*args: Any, **kwargs: Any) -> Any:
            """Fails, for `perform` in the middle of the batch."""
            calls.append(1)
            if failing == "perform" and len(calls) < 2:
                return original(*args)
            if failing == "write":
                tree.log._write([b"half a record"])
            raise OSError(errno.ENOSPC, "no space")

        owner = {"perform": effects, "commit": tree.state}.get(failing, tree.log)
        original = getattr(owner, failing)
        monkeypatch.setattr(owner, failing, no_space)
        makes = [create(b"b"), put(tree, b"b", b"bbb"), put(tree, b"a", b"two")]
        told = tree.objects.store.binlog.position.offset
        assert await together(tree, makes, at_once=at_once) == [errno.ENOSPC] * 3
        monkeypatch.undo()
        binlog = tree.objects.store.binlog
        lines = binlog.read(BinlogPosition(0, told))
        announced = failing != "write" and (at_once or failing != "sync")
        # What peers may have been sent is taken back.
        assert Counter(r.op for r, _ in lines) == ({"C": 2, "D": 2} if announced else {})
        assert dump(tree) == before
        assert objects_on_disk(tmp_path) == objects
        assert tree.log.size == size
        assert tree.objects.in_flight == set()
        assert await together(tree, [create(b"b"), put(tree, b"b", b"bbb")]) == [0, 0]
        expected = dump(tree)
    async with open_tree(tmp_path, run=False) as tree:
        assert dump(tree) == expected
        check(tree, tmp_path)


async def test_an_engine_that_cannot_undo_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EIO, "broken")

    async with open_tree(tmp_path) as tree:
        assert await together(tree, [create(b"a")]) == [0]
        monkeypatch.setattr(tree.state, "commit", broken)
        monkeypatch.setattr(tree.log, "cut", broken)
        assert await together(tree, [create(b"b")]) == [names.NOT_PRIMARY]
        monkeypatch.undo()
        assert await together(tree, [create(b"c")]) == [names.NOT_PRIMARY]
        assert tree.engine.broken
    async with open_tree(tmp_path, run=False) as tree:
        # Not acknowledged, but in the log: it may be there, whole.
        assert set(entries(tree)) == {b"a", b"b"}


async def test_a_mistake_in_one_change_does_not_take_the_others_along(tmp_path: Path) -> None:
    def mistake() -> Op:
        raise ZeroDivisionError

    async with open_tree(tmp_path) as tree:
        makes: list[Make] = [create(b"a"), mistake, create(b"a"), create(b"b")]
        assert await together(tree, makes) == [0, errno.EIO, errno.EEXIST, 0]
        assert set(entries(tree)) == {b"a", b"b"}


async def test_a_mistake_leaves_nothing_of_what_its_batch_had_planned(tmp_path: Path) -> None:
    """The others are decided once more, as if for the first time."""

    def mistake() -> Op:
        raise ZeroDivisionError

    def tag() -> Op:
        return tree.preparer.set_xattr(names.SetXattr(ino, b"user.k", b"v", CREATE, NOW))

    async with open_tree(tmp_path) as tree:
        assert await together(tree, [create(b"a"), put(tree, b"a", b"content")]) == [0, 0]
        ino = tree.reads.lookup(names.Lookup(ROOT, b"a")).ino
        assert await together(tree, [tag, mistake]) == [0, errno.EIO]
        assert tree.reads.xattrs(names.ListXattrs(ino)).xattrs == {b"user.k": b"v"}


@pytest.mark.parametrize("point", ["before delete", "after delete"])
async def test_collecting_goes_on_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    base, crashed = tmp_path / "base", tmp_path / "crashed"
    quick: dict[str, Any] = {"names_garbage_grace_s": 0.1, "names_session_lease_s": 0.1}
    async with open_tree(base, **quick) as tree:
        plain = tree.objects.store.creations.make_name(5, 0, 0, "")
        tree.objects.store.creations.write_at(plain, b"plain")

        def snapshot(moment: str) -> None:
            if moment == point and not crashed.exists():
                shutil.copytree(base, crashed)

        before_and_after(monkeypatch, tree.objects, "delete", snapshot)
        await together(tree, [create(b"a"), put(tree, b"a", b"one"), create(b"b")])
        await together(tree, [put(tree, b"a", b"two"), names.Remove(ROOT, b"b", False, NOW)])
        with trio.fail_after(60):
            while len(objects_on_disk(base)) != 2:  # noqa: ASYNC110
                await trio.sleep(0.01)
    monkeypatch.undo()
    async with open_tree(crashed, **quick) as tree:
        with trio.fail_after(60):
            while tree.state.db.execute("SELECT 1 FROM garbage").fetchone():  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert set(objects_on_disk(crashed)) == {plain.name, entries(tree)[b"a"][1]}
        assert tree.state.inodes == 2


async def write_in_place(tree: Tree, name: bytes, data: bytes, *, commit: bool) -> None:
    """Put *data* at the end of the content, and the new size into the inode, if that is wanted."""
    file_id = entries(tree)[name][1]
    with open(tree.objects.path(file_id), "ab") as file:
        file.write(data)
        size = file.tell()
    if commit:
        ino = tree.state.db.execute("SELECT ino FROM dirent WHERE name = ?", (name,)).fetchone()[0]
        await tree.engine.change(names_record.Resize(ino, file_id, size, NOW))


@pytest.fixture
async def cut_short(tmp_path: Path) -> Path:
    """A storage that died when "b" had got 5 bytes in place, of which the log does not know."""
    async with open_tree(tmp_path) as tree:
        await together(tree, [create(b"a"), create(b"b")])
        for (ino,) in tree.state.db.execute("SELECT ino FROM dirent ORDER BY name").fetchall():
            made = tree.preparer.new_pending(ino)
            await tree.engine.change(made)
            await tree.engine.change(tree.preparer.name_pending(0, ino, made.file_id, 0, NOW))
        await write_in_place(tree, b"b", b"crash", commit=False)
        assert entries(tree)[b"b"][0] == 0
    return tmp_path


async def test_a_size_that_was_not_recorded_is_found_at_start(cut_short: Path) -> None:
    async with open_tree(cut_short) as tree:
        await wait_for(lambda: entries(tree)[b"b"][0] == 5)
        assert entries(tree)[b"a"][0] == 0


async def test_a_size_found_at_start_does_not_undo_what_was_written_since(
    cut_short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Housekeeping._find_changed

    def find_changed(self: Housekeeping, rows: list[tuple[str, int]]) -> Any:
        found = original(self, rows)
        trio.from_thread.run(partial(write_in_place, tree, b"b", b" and more", commit=True))
        return found

    monkeypatch.setattr(Housekeeping, "_find_changed", find_changed)
    async with open_tree(cut_short, run=False) as tree, trio.open_nursery() as nursery:
        nursery.start_soon(tree.engine.run)
        await tree.housekeeping.reconcile()
        nursery.cancel_scope.cancel()
        assert entries(tree)[b"b"][0] == len(b"crash and more")


async def test_sizes_are_recorded_once_the_log_can_be_written_again(
    cut_short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0
    original = Log.write

    def write(self: Log, records: Any) -> None:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise OSError(errno.ENOSPC, "no space")
        original(self, records)

    monkeypatch.setattr(Log, "write", write)
    monkeypatch.setattr(housekeeping, "_RETRY_S", 0.01)
    async with open_tree(cut_short) as tree:
        # What a try that is going to fail has changed can be seen meanwhile.
        await wait_for(lambda: tries == 3 and entries(tree)[b"b"][0] == 5)


async def test_others_get_their_turn_while_much_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_tree(tmp_path) as tree:
        turns = 0
        deleted_in: list[int] = []
        before_and_after(monkeypatch, tree.objects, "delete", lambda _: deleted_in.append(turns))
        await together(tree, [create(b"a")])
        for number in range(129):
            await together(tree, [put(tree, b"a", b"%d" % number)])
        async with trio.open_nursery() as nursery:

            async def take_turns() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(take_turns)
            await tree.housekeeping._delete(garbage(tree))
            nursery.cancel_scope.cancel()
        assert len(deleted_in) == 2 * 128
        # Twice in a row at most: the loop takes its tasks in any order.
        assert max(Counter(deleted_in).values()) <= 2 * 2 * 16
        assert not garbage(tree)
        assert len(objects_on_disk(tmp_path)) == 1


async def test_what_the_storage_was_making_is_dropped_at_the_start(tmp_path: Path) -> None:
    async with open_tree(tmp_path) as tree:
        await together(tree, [create(b"a"), lambda: tree.preparer.new_pending(2)])
        assert len(objects_on_disk(tmp_path)) == 1
    quick: dict[str, Any] = {"names_garbage_grace_s": 0.1, "names_session_lease_s": 0.1}
    async with open_tree(tmp_path, **quick) as tree:
        with trio.fail_after(60):
            while objects_on_disk(tmp_path):  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert tree.state.db.execute("SELECT count(*) FROM pending").fetchone() == (0,)


async def test_sizes_of_objects_changed_in_place_are_taken_from_the_disk(tmp_path: Path) -> None:
    async with open_tree(tmp_path) as tree:
        made: list[str] = []

        def pending() -> Op:
            op = tree.preparer.new_pending(2)
            made.append(op.file_id)
            return op

        await together(tree, [create(b"a"), pending])
        await together(tree, [lambda: tree.preparer.name_pending(0, 2, made[0], 0, NOW)])
        tree.objects.truncate(made[0], 1000)
    async with open_tree(tmp_path) as tree:
        with trio.fail_after(60):
            while entries(tree)[b"a"] != (1000, made[0]):  # noqa: ASYNC110
                await trio.sleep(0.01)


# --- log files ----------------------------------------------------------------------------------


def records(first: int, count: int, view: int = 1) -> list[Record]:
    return [Record(view, index, b"payload %d" % index) for index in range(first, first + count)]


def open_log(directory: Path, applied: int = 0, **options: Any) -> tuple[Log, list[Record]]:
    log = Log(directory, **options)
    found = list(log.open(Position(1 if applied else 0, applied)))
    return log, found


def test_segments_follow_each_other_and_are_trimmed(tmp_path: Path) -> None:
    log, found = open_log(tmp_path, segment_size=200)
    assert found == []
    for index in range(1, 21):
        log.append(records(index, 1))
    assert len(log.segments) > 3
    log.close()
    log, found = open_log(tmp_path, segment_size=200)
    assert found == records(1, 20)
    second, third = log.segments[1:3]
    assert log.trimmable(third - 2) == [1]
    assert log.trimmable(third - 1) == [1, second]
    assert log.segments[-1] not in log.trimmable(10**6)
    log.trim(log.trimmable(third - 1))
    log.close()
    log, found = open_log(tmp_path, applied=third - 1)
    assert found == records(third, 21 - third)
    log.close()
    with pytest.raises(LogDamaged, match="are missing"):
        open_log(tmp_path, applied=1)


def test_a_sync_that_was_started_ends_with_the_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end must not be taken for that of the next one."""
    log, _ = open_log(tmp_path)
    log.append(records(1, 1))
    mark = log.mark()
    log.write(records(2, 1))
    log.start_sync()
    log.cut(mark)
    synced: list[int] = []
    with monkeypatch.context() as context:
        context.setattr(os, "fdatasync", synced.append)
        log.append(records(2, 2))
    assert len(synced) == 1
    log.close()
    assert open_log(tmp_path)[1] == records(1, 3)


def test_damage_that_is_no_torn_tail_is_refused(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, segment_size=100)
    for index in range(1, 10):
        log.append(records(index, 1))
    log.close()
    first, second = (tmp_path / segment_name(index) for index in log.segments[:2])
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    with pytest.raises(LogDamaged, match="cannot be read"):
        open_log(tmp_path)
    # Behind the damage nothing is missing: the state has it.
    log, found = open_log(tmp_path, applied=log.segments[1] - 1)
    assert found[0].index == log.segments[1]
    log.close()
    data[-1] ^= 1
    first.write_bytes(data)
    second.unlink()
    with pytest.raises(LogDamaged):
        open_log(tmp_path)


def test_a_torn_tail_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log, _ = open_log(tmp_path)
    log.append(records(1, 3))
    log.close()
    path = tmp_path / segment_name(1)
    path.write_bytes(path.read_bytes()[:-5])
    log, found = open_log(tmp_path)
    assert found == records(1, 2)
    assert "28 bytes behind record 2 cut off" in caplog.text
    log.append(records(3, 1))
    log.close()
    assert open_log(tmp_path)[1] == records(1, 3)


def test_a_state_that_knows_more_than_the_log(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path)
    log.append(records(1, 3))
    log.close()
    log, found = open_log(tmp_path, applied=7)
    assert found == []
    log.append(records(8, 1))
    log.close()
    log, found = open_log(tmp_path, applied=7)
    assert found == records(8, 1)
    log.close()


async def test_trimming_a_running_log(tmp_path: Path) -> None:
    async with open_tree(tmp_path) as tree:
        tree.log._segment_size = 500
        for number in range(30):
            await together(tree, [create(b"%d" % number)])
        await wait_for(lambda: len(tree.log.segments) == 1)
        assert tree.log.segments[0] > 1, "there were others"
        await tree.housekeeping.checkpoint(soft=0, hard=0)
        assert (tmp_path / "data/names/state.db-wal").stat().st_size == 0
        expected = dump(tree)
    async with open_tree(tmp_path, run=False) as tree:
        assert dump(tree) == expected


async def test_a_tree_without_its_database_is_refused(tmp_path: Path) -> None:
    async with open_tree(tmp_path) as tree:
        await together(tree, [create(b"a")])
    (tmp_path / "data/names/state.db").unlink()
    with pytest.raises(Exception, match=r"has no state\.db"):
        async with open_tree(tmp_path):
            pass


async def test_founding_is_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(errno.EIO, "broken")

    for owner, name in ((schema, "create"), (os, "rename")):
        monkeypatch.setattr(owner, name, fail)
        with pytest.raises(OSError, match="broken"):
            founding.found(tmp_path / "names", "a", "0" * 32, NOW)
        monkeypatch.undo()
        assert not (tmp_path / "names").exists()
    founding.found(tmp_path / "names", "a", "0" * 32, NOW)
    founding.found(tmp_path / "names", "a", "1" * 32, NOW)
    assert '"0000' in (tmp_path / "names/view.json").read_text()
