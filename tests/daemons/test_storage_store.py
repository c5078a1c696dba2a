"""Objects on disk: names, the binlog, restarts, and what crashes leave."""

from __future__ import annotations

import errno
import gzip
import os
import random
import shutil
import subprocess
import time
import zlib
from pathlib import Path
from unittest.mock import Mock

import pytest
import trio

from fdfs_storage import deletions, directories, files
from fdfs_storage.binlog import Binlog, BinlogPosition
from fdfs_storage.store import Store
from fdfsfuse.core.conf_file import ReservedSpace
from fdfsfuse.core.config import StorageConfig
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.fileid import Location, decode_name, time_of_name
from tests.daemons.storage_server import make_config, open_store, run_storage


def put(store: Store, content: bytes, *, appender: bool = False) -> Location:
    """Store *content* as an object."""
    now = int(time.time())
    location = store.creations.make_name(
        len(content), zlib.crc32(content), now, "txt", appender=appender, path_index=0
    )
    store.creations.write_at(location, content, now)
    return location


def read(store: Store, location: Location) -> bytes:
    return Path(store.path(location)).read_bytes()


def log_of(config: StorageConfig) -> Path:
    return Path(config.base_path, "data/sync/binlog.000")


def refused(store: Store, status: int, size: int, path: int | None) -> None:
    with pytest.raises(StatusError) as caught:
        store.creations.make_name(size, 0, 0, "", path_index=path)
    assert caught.value.errno == status


async def test_sub_directories_are_made_once(tmp_path: Path) -> None:
    config = make_config(tmp_path, subdirs=3)
    (await open_store(config)).close()
    data = tmp_path / "path1/data"
    found = sorted(str(path.relative_to(data)) for path in data.glob("*/*"))
    assert found == [f"0{high}/0{low}" for high in range(3) for low in range(3)]
    os.rmdir(data / "01/01")
    (await open_store(config)).close()
    assert not (data / "01/01").exists()  # left alone: 00/00 and the last one are there
    os.rmdir(data / "02/02")
    (await open_store(config)).close()
    assert (data / "01/01").exists()


async def test_restart_keeps_everything(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    async with run_storage(config) as server, server.connect() as client:
        name = await client.upload(b"content")
        appender = await client.upload(b"begin", appender=True)
        await client.append(appender, b"-more")
        await client.set_metadata(name, b"a\x021")
        gone = await client.upload(b"gone")
        assert await client.delete(gone) == 0
        before = server.files()
    log = log_of(config).read_bytes()
    async with run_storage(config) as server, server.connect() as client:
        assert server.files() == before
        assert await client.download(name) == b"content"
        assert await client.download(appender) == b"begin-more"
        assert await client.get_metadata(name) == (0, b"a\x021")
        assert await client.delete(gone) == errno.ENOENT
        assert log_of(config).read_bytes() == log
        assert server.store.counters.success_upload_count == 3
        assert server.store.counters.dist_write_file_count == 3


async def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    store = await open_store(config)
    put(store, b"x")
    store.close()
    whole = log_of(config).read_bytes()
    log_of(config).write_bytes(whole + b"1795352879 C M00/00/0")
    store = await open_store(config)
    assert log_of(config).read_bytes() == whole
    location = put(store, b"y")
    store.close()
    assert log_of(config).read_bytes().startswith(whole)
    assert log_of(config).read_text().endswith(f" C {location.name}\n")


async def test_a_torn_line_without_any_newline_is_cut_off(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    log_of(config).parent.mkdir(parents=True)
    log_of(config).write_bytes(b"1" * 200_000)
    (await open_store(config)).close()
    assert log_of(config).read_bytes() == b""


async def test_interrupted_deletion_and_truncation_are_finished(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    store = await open_store(config)
    deleted, truncated, again = (
        put(store, b"a"),
        put(store, b"12345", appender=True),
        put(store, b"b"),
    )
    other = put(store, b"other")
    half = put(store, b"c")
    store.write_metadata(deleted, b"k\x02v")
    store.write_metadata(half, b"k\x02v")
    store.close()
    # What a crash between the binlog line and its execution leaves:
    with log_of(config).open("a") as log:
        log.write(f"1795352879 D {deleted.name}\n1795352879 D {deleted.name}-m\n")
        log.write(f"1795352879 T {truncated.name} 5 2\n")
        log.write(f"1795352879 D {again.name}\n1795352880 c {again.name}\n")
        log.write(f"1795352879 D {half.name}\n")
    store = await open_store(config)
    assert not store.exists(half)
    assert store.read_metadata(half) is None
    assert log_of(config).read_text().endswith(f" D {half.name}-m\n")
    assert not store.exists(deleted)
    assert store.read_metadata(deleted) is None
    assert read(store, truncated) == b"12"
    assert read(store, again) == b"b"
    assert read(store, other) == b"other"
    store.close()


async def test_what_a_crash_interrupted_as_a_binlog_file_ended_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path)
    store = await open_store(config)
    monkeypatch.setattr("fdfs_storage.binlog.FILE_SIZE_MAX", 100)
    deleted = put(store, b"content")
    content = Path(store.path(deleted))
    store.delete(deleted)
    assert store.binlog.position == BinlogPosition(1, 0)
    store.close()
    content.write_bytes(b"content")
    store = await open_store(config)
    assert not store.exists(deleted)
    store.close()


@pytest.mark.parametrize("op", ["C", "c"])
async def test_a_part_of_a_new_file_is_removed_at_start(tmp_path: Path, op: str) -> None:
    """Be it an upload or what a peer was sending."""
    config = make_config(tmp_path)
    store = await open_store(config)
    whole, part, other = (
        store.creations.create(0, content, zlib.crc32(content), "bin")
        for content in (b"whole", b"cut off", b"other")
    )
    appender = put(store, b"initial", appender=True)
    store.close()
    text = log_of(config).read_text().replace(" C ", f" {op} ")
    lines = text.splitlines(keepends=True)
    assert [line.split()[2] for line in lines] == [
        location.name for location in (whole, part, other, appender)
    ]

    async def start_with(last: Location) -> list[bool]:
        """Which of the files are there after a start with *last* as the last in the binlog."""
        log_of(config).write_text(
            "".join(sorted(lines, key=lambda line: line.split()[2] == last.name))
        )
        store = await open_store(config)
        store.close()
        return [store.exists(location) for location in (whole, part, other, appender)]

    os.truncate(store.path(part), 3)
    os.truncate(store.path(appender), 3)
    assert await start_with(whole) == [True, True, True, True]
    assert await start_with(appender) == [True, True, True, True]
    assert await start_with(part) == [True, False, True, True]
    assert log_of(config).read_text().endswith(f" {op} {part.name}\n"), "no peer hears of it"
    assert await start_with(part) == [True, False, True, True]


@pytest.mark.parametrize(
    ("ending", "content", "later_s"),
    [("_s1.jpg", b"slave", 0), ("160.jpg", b"a larger slave", 0), ("160.jpg", b"slave", 1)],
)
async def test_a_slave_with_a_name_as_long_as_a_normal_one_stays(
    tmp_path: Path, ending: str, content: bytes, later_s: int
) -> None:
    """Its name tells size and time of its master; of a part of a normal file they are its own."""
    config = make_config(tmp_path)
    store = await open_store(config)
    master = store.creations.create(0, b"master", zlib.crc32(b"master"), "jpg")
    slave = store.locate(master.name[:-7] + ending)
    new = store.creations.open_new_at(master)
    new.write(content)
    store.creations.commit_at(new, slave)
    new.close()
    store.close()
    made_s = time_of_name(master.name) + later_s
    lines = log_of(config).read_text().splitlines(keepends=True)
    log_of(config).write_text(f"{lines[0]}{made_s} C {slave.name}\n")
    store = await open_store(config)
    assert read(store, slave) == content
    store.close()


async def test_an_upload_that_does_not_fit_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(make_config(tmp_path))

    def fill_up(fd: int, data: bytes) -> None:
        os.write(fd, data[:2])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("fdfs_storage.paths.write_all", fill_up)
    with pytest.raises(StatusError) as caught:
        store.creations.create(0, b"abc", 0, "bin")
    assert caught.value.errno == errno.ENOSPC
    assert [path for path in (tmp_path / "path0").rglob("*") if path.is_file()] == []
    store.close()


async def test_leftover_temporaries_are_removed_at_start(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    store = await open_store(config)
    location = put(store, b"x")
    store.close()
    left = Path(store.data_directory(0), f"{directories.TEMPORARY_PREFIX}77-1")
    left.write_bytes(b"half an upload")
    directory = Path(store.data_directory(0), f"{directories.TEMPORARY_PREFIX}0123")
    directory.mkdir()
    store = await open_store(config)
    assert not left.exists()
    assert not directory.exists()
    assert store.exists(location)
    store.close()


@pytest.fixture
def spread(tmp_path: Path) -> Path:
    """A directory whose sub directories are spread; skips where the file system cannot do that."""
    path = tmp_path / "any"
    path.mkdir()
    try:
        directories.spread(path)
    except OSError as exc:
        pytest.skip(f"not on this file system: {exc}")
    return path


@pytest.mark.skipif(shutil.which("lsattr") is None, reason="needs lsattr of e2fsprogs")
async def test_new_sub_directories_are_spread_where_the_file_system_can(
    tmp_path: Path, spread: Path
) -> None:
    assert is_top_directory(spread)
    store = await open_store(make_config(tmp_path))
    data = Path(store.data_directory(0))
    assert is_top_directory(data)
    assert not is_top_directory(data / "00")
    store.close()


def is_top_directory(path: Path) -> bool:
    return "T" in subprocess.check_output(["lsattr", "-d", path], text=True).split()[0]


@pytest.mark.parametrize("unnamed", [True, False])
async def test_an_uncommitted_file_leaves_nothing(tmp_path: Path, unnamed: bool) -> None:
    store = await open_store(make_config(tmp_path))
    store.paths.unnamed = [unnamed, unnamed]  # False: a file system without O_TMPFILE
    new = store.creations.open_new(0, 3)
    new.write(b"abc")
    new.close()
    assert [path for path in (tmp_path / "path0").rglob("*") if path.is_file()] == []
    new = store.creations.open_new(0, 3)
    new.write(b"abc")
    location = store.creations.commit(new, 3, zlib.crc32(b"abc"), "txt")
    new.close()
    files = [path for path in (tmp_path / "path0").rglob("*") if path.is_file()]
    assert files == [Path(store.path(location))]
    store.close()


async def test_metadata_of_any_length_is_read_whole(tmp_path: Path) -> None:
    store = await open_store(make_config(tmp_path))
    location = put(store, b"content")
    for size in (1, 447, 448, 449, 65_983, 65_984, 65_985, 200_000):
        text = os.urandom(size)
        store.write_metadata(location, text)
        assert store.read_metadata(location) == text
    store.close()


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("can_exchange", [False, True])
@pytest.mark.parametrize("unnamed", [False, True])
async def test_metadata_is_replaced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool, can_exchange: bool, unnamed: bool
) -> None:
    store = await open_store(make_config(tmp_path))
    if not can_exchange:
        monkeypatch.setattr(files, "_renameat2", None)
    store.paths.unnamed[0] = store.paths.unnamed[0] and unnamed
    location = put(store, b"content")
    for text in (b"a\x021", b"b\x02other", b"b"):
        store.write_metadata(location, text, kept=kept)
        assert store.read_metadata(location) == text
    found = [path for path in Path(store.data_directory(0)).rglob("*") if path.is_file()]
    assert len(found) == 2  # and no temporary file
    store.close()


def test_files_are_exchanged(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    with pytest.raises(FileNotFoundError):
        files.exchange(str(one), str(two))
    two.write_bytes(b"2")
    if not files.exchange(str(one), str(two)):
        pytest.skip("this file system cannot exchange files")
    assert (one.read_bytes(), two.read_bytes()) == (b"2", b"1")


async def test_names_are_never_given_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path, paths=1)
    (await open_store(config)).close()

    class NoChance(random.Random):
        def getrandbits(self, bits: int, /) -> int:
            return (1 << bits) - 2

    store = Store(
        Path(config.base_path),
        config.store_paths,
        subdir_count=4,
        distribute_by_hash=False,
        rotate_count=100,
        rng=NoChance(1),
    )
    store.configure("127.0.0.11", ReservedSpace(1))
    monkeypatch.setattr(time, "time", lambda: 1700000000.5)
    names: set[str] = set()
    for _ in range(100):
        location = store.creations.create(0, b"1", 2, "")
        names.add(location.name)
        names.add(store.creations.make_name(1, 2, 1700000000, "").name)
        names.add(store.creations.make_normal_name(location, 1, 2, 1700000000).name)
        store.delete(location)
    assert len({name[10:] for name in names}) == 300
    # Names of 4 GiB and more have no bits that tell them apart.
    large = store.creations.make_normal_name(location, 5 << 30, 2, 1700000000)
    Path(store.path(large)).touch()
    with pytest.raises(StatusError) as caught:
        store.creations.make_normal_name(location, 5 << 30, 2, 1700000000)
    assert caught.value.errno == errno.EBUSY
    monkeypatch.setattr(os, "open", Mock(side_effect=FileExistsError))
    with pytest.raises(StatusError) as caught:
        store.creations.create(0, b"1", 2, "")
    assert caught.value.errno == errno.EBUSY
    monkeypatch.undo()
    store.close()


async def test_a_name_that_is_taken_is_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number may be that of a run before, at a time that was set back."""
    store = await open_store(make_config(tmp_path))
    taken = put(store, b"content")
    free = Location(taken.path_index, f"{taken.directory}/{'x' * 27}.txt")
    given = iter((taken, free))
    monkeypatch.setattr(store.creations._naming, "new_location", lambda *_: next(given))
    assert put(store, b"content") == free
    assert read(store, taken) == b"content"
    store.close()


async def test_directories_take_turns(tmp_path: Path) -> None:
    config = make_config(tmp_path, subdirs=2, rotate_count=2)
    store = await open_store(config)
    places = []
    for _ in range(6):
        location = store.creations.make_name(1, 2, 3, "", path_index=0)
        places.append((location.high, location.low))
    assert places == [(0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (1, 0)]
    store.close()
    store = await open_store(config)
    location = store.creations.make_name(1, 2, 3, "", path_index=0)
    assert (location.high, location.low) == (1, 1)
    store.close()


def test_hash_mode_uses_the_pjw_hash() -> None:
    # "printf" by hand: the 32-bit PJW (ELF) hash is 0x077905a6.
    assert directories.next_directory_by_hash("printf", 256) == "05/A6"
    assert directories.next_directory_by_hash("printf", 16) == "05/06"


async def test_store_paths_are_chosen(tmp_path: Path) -> None:
    store = await open_store(make_config(tmp_path, paths=3, readonly=(1,)))
    chosen = [store.creations.make_name(1, 2, 3, "").path_index for _ in range(4)]
    assert set(chosen) == {0, 2}
    assert store.creations.make_name(1, 2, 3, "", path_index=2).path_index == 2
    assert store.creations.make_name(1, 2, 3, "", path_index=1).path_index != 1
    store.close()


async def test_reserved_space_is_kept_free(tmp_path: Path) -> None:
    store = await open_store(make_config(tmp_path))
    free_mb = store.space()[0].free_mb
    total_mb = store.space()[0].total_mb
    refused(store, errno.ENOSPC, (free_mb + 1) << 20, 0)
    store.configure("127.0.0.11", ReservedSpace(total_mb * 2))
    refused(store, errno.ENOSPC, 1, None)
    store.configure("127.0.0.11", ReservedSpace(0, 1.0))
    refused(store, errno.ENOSPC, 1, 0)
    space = store.total_space()
    assert space.available_bytes == 0
    assert space.free_bytes <= space.total_bytes == total_mb << 20
    store.close()


async def test_observers_hear_of_every_change(tmp_path: Path) -> None:
    store = await open_store(make_config(tmp_path))
    heard: list[tuple[str, str]] = []
    store.changes.observers.append(lambda op, location, _other: heard.append((op, location.name)))
    location = put(store, b"begin", appender=True)
    name = location.name
    store.appenders.pwrite(location, 5, b"-more")
    store.appenders.pwrite(location, 0, b"B")
    store.appenders.truncate(location, 3)
    store.appenders.truncate(location, 3)
    store.write_metadata(location, b"a\x021")
    store.write_metadata(location, b"a\x022")
    store.delete(location)
    assert heard == [
        ("C", name),
        ("A", name),
        ("M", name),
        ("T", name),
        ("C", f"{name}-m"),
        ("U", f"{name}-m"),
        ("D", name),
        ("D", f"{name}-m"),
    ]
    store.close()


async def test_large_files_are_unlinked_in_the_background(tmp_path: Path) -> None:
    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        name = await client.upload(bytes(17 << 20))
        assert await client.delete(name) == 0
        with trio.fail_after(60):
            while server.files():  # noqa: ASYNC110 - nothing to wait on
                await trio.sleep(0.01)


async def test_old_files_lose_their_names_at_once_and_their_blocks_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left() -> list[Path]:
        return [path for path in (tmp_path / "path0").rglob("*") if path.is_file()]

    store = await open_store(make_config(tmp_path))
    store.delete(put(store, b"young"))
    assert left() == []
    monkeypatch.setattr(deletions, "_ON_DISK_S", -1)
    monkeypatch.setattr(deletions, "_DOOMED_MAX", 2)
    locations = [put(store, b"old") for _ in range(3)]
    for location in locations:
        store.delete(location)
    assert not any(store.exists(location) for location in locations)
    assert [path.name.startswith(directories.TEMPORARY_PREFIX) for path in left()] == [True] * 2
    await store._deletions.finish()
    assert left() == []
    store.delete(put(store, b"the last"))
    assert len(left()) == 1
    store.close()
    assert left() == []


async def test_old_files_can_be_deleted_from_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source, None, target)

    store = await open_store(make_config(tmp_path))
    location = put(store, b"old")
    monkeypatch.setattr(deletions, "_ON_DISK_S", -1)
    with monkeypatch.context() as context:
        context.setattr(os, "rename", no_space)
        store.delete(location)
    assert not [path for path in (tmp_path / "path0").rglob("*") if path.is_file()]
    store.close()


async def test_slave_stored_as_a_link_takes_its_target_along(tmp_path: Path) -> None:
    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        target = await client.upload(b"target")
        outside = tmp_path / "outside"
        outside.write_bytes(b"stays")
        for goal in (Path(server.store.path(server.store.locate(target))), outside):
            slave = target[:-4] + "_slave_of_it.txt"
            os.symlink(goal, server.store.path(server.store.locate(slave)))
            assert await client.delete(slave) == 0
        assert server.files() == []
        assert outside.read_bytes() == b"stays"


async def test_mtime_of_the_file_is_the_time_in_its_name(tmp_path: Path) -> None:
    store = await open_store(make_config(tmp_path))
    location = store.creations.make_name(1, 2, 1_500_000_000, "")
    store.creations.write_at(location, b"x", 1_500_000_000)
    assert store.stat(location).st_mtime == decode_name(location.name).timestamp
    store.close()


class TestBinlog:
    """disk.md section 5."""

    def test_records_are_read_from_a_position(self, tmp_path: Path) -> None:
        binlog = Binlog.open(tmp_path)
        positions = []
        for number in range(5):
            positions.append(binlog.position)
            binlog.append(f"{number} C M00/00/00/file{number}\n".encode())
        found = list(binlog.read(positions[3]))
        assert [record.name[-1] for record, _ in found] == ["3", "4"]
        assert found[-1][1] == binlog.position
        assert list(binlog.read(binlog.position)) == []
        binlog.close()

    def test_malformed_lines_of_a_c_server_are_skipped(self, tmp_path: Path) -> None:
        binlog = Binlog.open(tmp_path)
        binlog.append(b"1 L  M00/00/00/target\n2 l \n3 C M00/00/00/file\n")
        assert [record.timestamp for record, _ in binlog.read(BinlogPosition(0, 0))] == [3]
        binlog.close()

    @pytest.mark.parametrize(("old_index", "current"), [("1\n", 1), (None, 2)])
    def test_without_its_index(self, tmp_path: Path, old_index: str | None, current: int) -> None:
        """Before V6 the index was another file."""
        directory = tmp_path / "data/sync"
        directory.mkdir(parents=True)
        for number in range(3):
            (directory / f"binlog.{number:03d}").write_text(f"{number} C M00/00/00/file\n")
        if old_index is not None:
            (directory / "binlog.index").write_text(old_index)
        binlog = Binlog.open(tmp_path)
        assert binlog.position == BinlogPosition(current, 19)
        binlog.close()

    @pytest.mark.parametrize("work", [b"zip", b"unzip"])
    def test_a_compression_that_broke_off(self, tmp_path: Path, work: bytes) -> None:
        directory = tmp_path / "data/sync"
        directory.mkdir(parents=True)
        lines = b"1 C M00/00/00/file\n2 C M00/00/00/file\n"
        plain, packed = directory / "binlog.000", directory / "binlog.000.gz"
        plain.write_bytes(lines if work == b"zip" else lines[:25])
        packed.write_bytes(gzip.compress(lines)[: 10 if work == b"zip" else None])
        (directory / ".binlog.000.flag").write_bytes(work)
        (directory / "binlog_index.dat").write_text("current_write=1\ncurrent_compress=0\n")
        binlog = Binlog.open(tmp_path)
        assert [record.timestamp for record, _ in binlog.read(BinlogPosition(0, 0))] == [1, 2]
        assert plain.exists() != packed.exists()
        assert not (directory / ".binlog.000.flag").exists()
        binlog.close()

    def test_the_next_file_is_begun(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fdfs_storage.binlog.FILE_SIZE_MAX", 100)
        binlog = Binlog.open(tmp_path)
        line = b"1795352879 C M00/00/00/file\n"
        for _ in range(5):
            binlog.append(line)
        directory = tmp_path / "data/sync"
        assert (directory / "binlog.000").read_bytes() == line * 4
        assert (directory / "binlog.001").read_bytes() == line
        index = (directory / "binlog_index.dat").read_text()
        assert index == "current_write=1\ncurrent_compress=0\n"
        assert len(list(binlog.read(BinlogPosition(0, 0)))) == 5
        assert binlog.tail_lines(1000) == [line] * 5
        assert binlog.tail_lines(2 * len(line) + 3) == [line] * 2
        assert binlog.tail_lines(len(line)) == [line]
        (directory / "binlog.000").unlink()
        assert binlog.tail_lines(1000) == [line]
        binlog.close()
        again = Binlog.open(tmp_path)
        assert again.position == BinlogPosition(1, len(line))
        again.close()

    def test_what_cannot_be_written_leaves_no_part(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        binlog = Binlog.open(tmp_path)
        binlog.append(b"1 C M00/00/00/file\n")
        real = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:5]))
        with pytest.raises(OSError, match="no space"):
            binlog.append(b"2 C M00/00/00/file\n")
        monkeypatch.undo()
        binlog.append(b"3 C M00/00/00/file\n")
        assert [record.timestamp for record in binlog.tail()] == [1, 3]
        assert all(record.op == ops.CREATE for record in binlog.tail())
        binlog.close()
