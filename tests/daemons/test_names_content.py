"""The names service over real sockets: content, xattrs, objects by id; what is on the disk."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trio

from fdfs_storage import files
from fdfs_storage.disk_pace import DiskPace
from fdfs_storage.names import connection, reads, writes
from fdfs_storage.names.operations import Operations
from fdfs_storage.names.reads import Reads, WouldBlock, warm
from fdfs_storage.paths import metadata_location
from fdfs_storage.replication.deleted import Deleted
from fdfs_storage.replication.replicas import Replicas
from fdfsfuse.client.names import NamesSession
from fdfsfuse.proto import metadata, names
from fdfsfuse.proto.fileid import decode_name
from tests.common.names_calls import (
    BIG,
    DIRECTORY,
    NOW,
    ROOT,
    all_objects,
    content,
    exchange,
    make,
    make_big,
    plain_upload,
    status_of,
    store,
    truncate_object,
    write_object,
)
from tests.common.names_server import NamesServer, names_server
from tests.common.sizes import can_have

# --- content ------------------------------------------------------------------------------------


async def test_small_content(server: NamesServer, session: NamesSession) -> None:
    ino = await make(session, b"photo.jpg")
    attr = await store(session, ino, b"hello")
    assert (attr.size, attr.mtime_ns, attr.version, attr.in_place) == (5, NOW, 1, False)
    assert attr.file_id.endswith(".jpg")
    assert content(server, attr) == b"hello"
    opened = await session.call(names.Open(ino, 100))
    assert opened == names.Opened(attr, b"hello")
    assert (await session.call(names.Open(ino, 4))).data is None
    binlog = (Path(server.config.base_path) / "data/sync/binlog.000").read_text()
    assert f" C {attr.file_id}\n" in binlog


async def test_files_that_follow_come_along(session: NamesSession) -> None:
    d = await make(session, b"d", DIRECTORY)
    inos = {}
    for name in (b"m", b"z", b"empty", b"a", b"long"):
        inos[name] = await make(session, name, parent=d)
        if name != b"empty":
            await store(session, inos[name], name * (1000 if name == b"long" else 3))
    await make(session, b"sub", DIRECTORY, parent=d)

    async def following(
        ino: int, count: int, by_name: bool = False
    ) -> list[tuple[bytes, bytes | None]]:
        opened = await session.call(names.Open(ino, 100, count, by_name))
        assert opened.parent == (0 if not count else ROOT if ino == d else d)
        for entry in opened.following:
            assert entry.attr == await session.call(names.Lookup(d, entry.name))
        return [(entry.name, entry.data) for entry in opened.following]

    listed = [(b"z", b"zzz"), (b"empty", b""), (b"a", b"aaa"), (b"long", None), (b"sub", None)]
    assert await following(inos[b"m"], 10) == listed
    assert await following(inos[b"m"], 2) == listed[:2]
    assert await following(inos[b"long"], 1) == [(b"sub", None)]
    assert await following(inos[b"a"], 10, True) == [
        (b"empty", b""),
        (b"long", None),
        (b"m", b"mmm"),
        (b"sub", None),
        (b"z", b"zzz"),
    ]
    assert await following(inos[b"m"], 0) == []
    assert await following(inos[b"z"], 10, True) == []
    assert await following(d, 5) == []
    assert await status_of(session.call(names.Open(d, 1, -1))) == errno.EINVAL


async def test_files_that_follow_are_bounded(session: NamesSession) -> None:
    size = 60_000
    first = await make(session, b"first")
    for number in range(80):
        ino = await make(session, b"%02d" % number)
        if number < 20:
            await store(session, ino, b"x" * size)
    opened = await session.call(names.Open(first, 1 << 16, 1_000_000))
    assert len(opened.following) == names.FOLLOWING_DATA_MAX // size
    assert {len(entry.data or b"") for entry in opened.following} == {size}
    opened = await session.call(names.Open(first, 100, 1_000_000))
    assert len(opened.following) == names.FOLLOWING_MAX


async def test_an_answer_with_files_that_follow_fits_a_frame(session: NamesSession) -> None:
    first = await make(session, b"first")
    await store(session, first, b"x" * names.SMALL_CONTENT_MAX)
    ino = await make(session, b"a")
    await store(session, ino, b"y" * names.FOLLOWING_DATA_MAX)
    opened = await session.call(names.Open(first, names.SMALL_CONTENT_MAX, 64))
    assert (len(opened.data), opened.following) == (names.SMALL_CONTENT_MAX, [])
    ino = await make(session, b"links", DIRECTORY)
    half = await make(session, b"half", parent=ino)
    await store(session, half, b"x" * (names.SMALL_CONTENT_MAX - 100_000))
    target = b"t" * names.SYMLINK_MAX
    for number in range(60):
        name = b"%d" % number
        await session.call(names.Create(ino, name, 0o120777, 1, 2, NOW, target=target))
    opened = await session.call(names.Open(half, names.SMALL_CONTENT_MAX, 64))
    assert len(opened.following) == 100_000 // names.SYMLINK_MAX


async def test_what_never_comes_into_memory_is_left_out(
    session: NamesSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    inos = [await make(session, b"%d" % number) for number in range(5)]
    for ino in inos:
        await store(session, ino, b"data")
    content = Reads._content

    def cold(reads: Reads, attr: names.Attr, flags: int) -> bytes | None:
        if attr.ino == inos[2]:
            raise WouldBlock
        return content(reads, attr, flags)

    monkeypatch.setattr(Reads, "_content", cold)
    opened = await session.call(names.Open(inos[0], 100, 10))
    assert opened.data == b"data"
    assert [entry.data for entry in opened.following] == [b"data", None]


def cold_until_warmed(
    server: NamesServer, patch: pytest.MonkeyPatch, *, stays: bool, warmed: Iterable[str] = ()
) -> None:
    """Let contents be on the disk only, but for those of the objects *warmed*.

    *stays*: what is read from there stays in memory.
    """
    warmed = {server.tree.objects.path(file_id) for file_id in warmed}
    content = Reads._content

    def read(reads: Reads, attr: names.Attr, flags: int) -> bytes | None:
        if server.tree.objects.path(attr.file_id) not in warmed:
            raise WouldBlock
        return content(reads, attr, flags)

    def warm_and_note(contents: list[tuple[str, int]]) -> None:
        warm(contents)
        if stays:
            warmed.update(path for path, _ in contents)

    patch.setattr(Reads, "_content", read)
    patch.setattr(connection, "warm", warm_and_note)


async def make_files(session: NamesSession, count: int) -> list[int]:
    """Files in the root with the content ``data``."""
    inos = [await make(session, b"%d" % number) for number in range(count)]
    for ino in inos:
        await store(session, ino, b"data")
    return inos


@pytest.mark.parametrize("first_is_warm", [False, True])
async def test_what_follows_comes_from_the_disk_as_well(
    server: NamesServer, session: NamesSession, monkeypatch: pytest.MonkeyPatch, first_is_warm: bool
) -> None:
    inos = await make_files(session, 5)
    first: names.Attr = await session.call(names.GetAttr(inos[0]))
    warmed = [first.file_id] if first_is_warm else []
    cold_until_warmed(server, monkeypatch, stays=True, warmed=warmed)
    opened = await session.call(names.Open(inos[0], 100, 3))
    assert opened.data == b"data"
    assert [entry.data for entry in opened.following] == [b"data"] * 3
    assert (await session.call(names.Open(inos[4], 100))).data == b"data"


async def test_content_that_does_not_stay_in_memory_is_read_all_the_same(
    server: NamesServer, session: NamesSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    inos = await make_files(session, 3)
    cold_until_warmed(server, monkeypatch, stays=False)
    opened = await session.call(names.Open(inos[0], 100, 3))
    assert (opened.data, opened.following) == (b"data", [])


def test_warming_takes_no_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []

    def note(path: str, size: int) -> bytes:
        read.append(path)
        if path == "gone":
            raise FileNotFoundError
        return b""

    monkeypatch.setattr(reads, "read_content", note)
    warm([("gone", 1), ("a", 1), ("b", 1)])
    assert read == ["gone", "a", "b"]
    monkeypatch.setattr(reads, "_WARM_S", -1.0)
    warm([("c", 1), ("d", 1)])
    assert read[3:] == ["c"]


async def test_content_takes_its_ctime_from_its_mtime(session: NamesSession) -> None:
    """As the mount shows it before: nothing changes for programs when content is stored."""
    ino = await make(session, b"a")
    request = names.StoreContent(ino, b"x", NOW + 5)
    assert (await session.call(request)).ctime_ns == NOW + 5
    request = names.StoreContent(ino, b"y", NOW - 7)
    attr = await session.call(request)
    assert (attr.mtime_ns, attr.ctime_ns) == (NOW - 7, NOW + 5)
    for size in (1, 2, 2):
        attr = await session.call(names.Truncate(ino, size, attr.ctime_ns + 1))
        assert attr.mtime_ns == attr.ctime_ns
    assert attr.ctime_ns == NOW + 8


async def test_content_is_based_on_a_version(server: NamesServer, session: NamesSession) -> None:
    """A store that does not know of the last change is refused, and leaves nothing behind."""
    ino = await make(session, b"a")
    first = await session.call(names.StoreContent(ino, b"one", NOW, 0))
    objects = all_objects(server)
    late = names.StoreContent(ino, b"two", NOW, 0)
    assert await status_of(session.call(late)) == names.CONTENT_CHANGED
    made = await session.call(names.NewObject(ino))
    late_object = names.NameObject(ino, made.file_id, 0, NOW, 0)
    assert await status_of(session.call(late_object)) == names.CONTENT_CHANGED
    assert await session.call(names.GetAttr(ino)) == first
    assert all_objects(server) == objects | {made.file_id}
    await session.call(names.NameObject(ino, made.file_id, 0, NOW, first.version))
    assert (await store(session, ino, b"anything")).version == 3


@pytest.mark.parametrize("mtime_s", [0, 1_000_000_000, 4_000_000_000])
async def test_an_object_has_the_time_at_which_it_was_made(
    server: NamesServer, session: NamesSession, mtime_s: int
) -> None:
    """The time of the file may be any. By the others FastDFS judges who has which object."""
    ino = await make(session, b"a")
    before = int(time.time())
    attr = await session.call(names.StoreContent(ino, b"x", mtime_s * 10**9))
    assert attr.mtime_ns == mtime_s * 10**9
    created = decode_name(attr.file_id).timestamp
    assert before <= created <= time.time()
    path = Path(server.tree.objects.path(attr.file_id))
    assert path.stat().st_mtime == created
    line = (Path(server.config.base_path) / "data/sync/binlog.000").read_text().splitlines()[-1]
    assert line == f"{created} C {attr.file_id}"


async def test_empty_content_has_no_object(server: NamesServer, session: NamesSession) -> None:
    ino = await make(session, b"a")
    assert (await session.call(names.Open(ino, 10))).data == b""
    await store(session, ino, b"x")
    attr = await store(session, ino, b"")
    assert (attr.file_id, attr.size) == ("", 0)


@pytest.mark.parametrize("size", [1, 64 << 10, (64 << 10) + 1, names.SMALL_CONTENT_MAX])
async def test_content_sizes(server: NamesServer, session: NamesSession, size: int) -> None:
    data = os.urandom(size)
    attr = await store(session, await make(session, b"a"), data)
    assert content(server, attr) == data
    assert (await session.call(names.Open(attr.ino, size))).data == data


@pytest.mark.parametrize(
    ("name", "ending"),
    [(b"a.tar.gz", ".gz"), (b"a.toolong1", ""), (b".bashrc", ""), (b"x.\xe4", "")],
)
async def test_extensions(session: NamesSession, name: bytes, ending: str) -> None:
    attr = await store(session, await make(session, name), b"x")
    if ending:
        assert attr.file_id.endswith(ending)
    else:
        assert "." not in attr.file_id


async def test_large_content(server: NamesServer, session: NamesSession) -> None:
    ino = await make(session, b"a.bin")
    made = await session.call(names.NewObject(ino))
    assert made.view == 1
    assert made.file_id.endswith(".bin")
    assert await write_object(server, made.file_id, 0, b"x" * 300_000) == 0
    assert await write_object(server, made.file_id, 300_000, b"y" * BIG) == 0
    size = 300_000 + BIG
    wrong = names.NameObject(ino, made.file_id, size + 1, NOW)
    assert await status_of(session.call(wrong)) == errno.EINVAL
    attr = await session.call(names.NameObject(ino, made.file_id, size, NOW))
    assert (attr.size, attr.in_place, attr.file_id) == (size, True, made.file_id)
    assert content(server, attr) == b"x" * 300_000 + b"y" * BIG
    again = names.NameObject(ino, made.file_id, size, NOW)
    assert await status_of(session.call(again)) == errno.ESTALE


async def test_in_place_changes(server: NamesServer, session: NamesSession) -> None:
    attr = await make_big(server, session, b"a")
    assert await write_object(server, attr.file_id, BIG + 100, b"end") == 0
    assert await truncate_object(server, attr.file_id, BIG + 102) == 0
    done = await session.call(names.CommitWrite(attr.ino, attr.file_id, BIG + 102, NOW + 1))
    assert (done.size, done.mtime_ns, done.version) == (BIG + 102, NOW + 1, attr.version + 1)
    assert content(server, done).endswith(b"b" + b"\0" * 100 + b"en")
    digit = "1" if attr.file_id.endswith("0") else "0"
    other = names.CommitWrite(attr.ino, attr.file_id[:-1] + digit, 1, NOW)
    assert await status_of(session.call(other)) == errno.ESTALE


async def test_a_slow_truncation_does_not_undo_what_was_committed_meanwhile(
    server: NamesServer, session: NamesSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    attr = await make_big(server, session, b"a")
    original = Operations._sync
    cut, committed = trio.Event(), trio.Event()

    async def sync(self: Operations, file_id: str) -> None:
        await original(self, file_id)
        if not cut.is_set():
            cut.set()
            await committed.wait()

    monkeypatch.setattr(Operations, "_sync", sync)
    async with server.session() as other, trio.open_nursery() as nursery:
        nursery.start_soon(session.call, names.Truncate(attr.ino, 10, NOW + 1))
        await cut.wait()
        assert await write_object(server, attr.file_id, 100, b"end") == 0
        done = await other.call(names.CommitWrite(attr.ino, attr.file_id, 103, NOW + 2))
        assert done.size == 103
        committed.set()
    attr = await session.call(names.GetAttr(attr.ino))
    assert attr.size == 103
    assert content(server, attr) == b"b" * 10 + b"\0" * 90 + b"end"


async def write_pieces(server: NamesServer, file_id: str, *pieces: tuple[int, bytes]) -> int:
    first, *more = [(offset, len(data)) for offset, data in pieces]
    head = names.encode(names.WriteObject(file_id, 1, *first, more))
    data = b"".join(data for _, data in pieces)
    return await exchange(server, names.WRITE_OBJECT, len(head).to_bytes(4, "big") + head + data)


def take_way(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let writes take one of the ways that data, and the disk, may make them take."""
    if way == "streamed":
        monkeypatch.setattr(writes, "GATHER_MAX", 0)
    monkeypatch.setattr(DiskPace, "is_quick", lambda self, now: way != "in a thread")


@pytest.mark.parametrize("way", ["on the loop", "in a thread", "streamed"])
async def test_several_pieces_in_one_request(
    server: NamesServer, session: NamesSession, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    attr = await make_big(server, session, b"a")
    take_way(way, monkeypatch)
    before = server.store.binlog.position
    pieces = (7, b"one"), (BIG, b"end"), (5, b""), (0, b"two")
    assert await write_pieces(server, attr.file_id, *pieces) == 0
    assert content(server, attr) == b"twobbbbone" + b"b" * (BIG - 10) + b"end"
    lines = [(record.op, record.numbers) for record, _ in server.store.binlog.read(before)]
    assert lines == [("M", (7, 3)), ("A", (BIG, 3)), ("M", (0, 3))]
    assert await write_pieces(server, attr.file_id, (1, b"")) == 0
    assert not server.store.intents.take_left()


@pytest.mark.parametrize("way", ["on the loop", "in a thread", "streamed"])
async def test_pieces_that_the_disk_has_no_space_for(
    server: NamesServer, session: NamesSession, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """What was written all the same, replicas are told of; the next request is carried out."""
    attr = await make_big(server, session, b"a")
    take_way(way, monkeypatch)
    before = server.store.binlog.position
    pwrite_all = files.pwrite_all

    def write(fd: int, data: memoryview, offset: int) -> None:
        if offset == 100:
            raise OSError(errno.ENOSPC, "full")
        pwrite_all(fd, data, offset)

    for module in (files, writes):
        monkeypatch.setattr(module, "pwrite_all", write)
    status = await write_pieces(server, attr.file_id, (7, b"one"), (100, b"two"), (0, b"x"))
    assert status == errno.ENOSPC
    assert content(server, attr) == b"b" * 7 + b"one" + b"b" * (BIG - 10)
    logged = {record.numbers for record, _ in server.store.binlog.read(before)}
    assert logged >= {(7, 3)}
    assert await write_pieces(server, attr.file_id, (0, b"yes")) == 0
    assert content(server, attr).startswith(b"yesb")
    assert not server.store.intents.take_left()


async def test_absurd_pieces(server: NamesServer, session: NamesSession) -> None:
    attr = await make_big(server, session, b"a")
    assert await write_pieces(server, attr.file_id, (0, b"x"), (1 << 63, b"y")) == errno.EFBIG
    many = [(number, b"x") for number in range(names.WRITE_PIECES_MAX + 2)]
    assert await write_pieces(server, attr.file_id, *many) == errno.EINVAL
    for lengths in ((2, -1), (-1, 2), (1, 1), (0, 0)):
        head = names.encode(names.WriteObject(attr.file_id, 1, 0, lengths[0], [(5, lengths[1])]))
        body = len(head).to_bytes(4, "big") + head + b"x"
        assert await exchange(server, names.WRITE_OBJECT, body) == errno.EINVAL
    assert content(server, attr) == b"b" * BIG


async def test_what_must_not_be_written_to(server: NamesServer, session: NamesSession) -> None:
    small = await store(session, await make(session, b"a"), b"small")
    big = await make_big(server, session, b"b")
    plain = await plain_upload(server, b"plain")
    missing = big.file_id[:-7] + "9999999"
    assert await write_object(server, small.file_id, 0, b"x") == errno.EINVAL
    assert await write_object(server, plain, 0, b"x") == errno.EINVAL
    assert await write_object(server, missing, 0, b"x") == errno.ENOENT
    assert await write_object(server, "M00/00/00/../../../x" + "y" * 30, 0, b"x") == errno.EINVAL
    assert await write_object(server, big.file_id, 0, b"x", view=2) == names.NOT_PRIMARY
    assert await write_object(server, big.file_id, 1 << 63, b"x") == errno.EFBIG
    assert await write_object(server, big.file_id, (1 << 63) - 2, b"x") == errno.EFBIG
    assert await truncate_object(server, small.file_id, 0) == errno.EINVAL
    assert content(server, small) == b"small"


async def test_make_writable(server: NamesServer, session: NamesSession) -> None:
    ino = await make(session, b"a")
    small = await store(session, ino, b"x" * 1000)
    results: list[names.Attr] = []

    async def call() -> None:
        results.append(await session.call(names.MakeWritable(ino)))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(call)
    attr = results[0]
    assert results == [attr] * 3
    assert attr.in_place
    assert attr.file_id != small.file_id
    assert (attr.version, attr.size, attr.mtime_ns) == (small.version, 1000, NOW)
    assert content(server, attr) == b"x" * 1000
    empty = await make(session, b"e")
    writable = await session.call(names.MakeWritable(empty))
    assert writable.in_place
    assert content(server, writable) == b""


@pytest.mark.parametrize(
    ("before", "size"),
    [
        (0, 0),
        (0, 10),
        (0, BIG),
        (10, 0),
        (10, 4),
        (10, 10),
        (10, 100),
        (10, BIG),
        (BIG, 0),
        (BIG, 10),
        (BIG, BIG),
        (BIG, BIG + 10),
    ],
)
async def test_truncate(server: NamesServer, session: NamesSession, before: int, size: int) -> None:
    if before == BIG:
        attr = await make_big(server, session, b"a")
    else:
        ino = await make(session, b"a")
        attr = await store(session, ino, b"b" * before)
    done = await session.call(names.Truncate(attr.ino, size, NOW + 5))
    assert (done.size, done.mtime_ns) == (size, NOW + 5)
    assert done == await session.call(names.GetAttr(attr.ino))
    expected = (b"b" * before)[:size].ljust(size, b"\0")
    if size:
        assert content(server, done) == expected
        assert done.in_place == (size > names.SMALL_CONTENT_MAX or before == BIG)
    else:
        assert done.file_id == ""


async def test_truncate_of_what_is_no_file(session: NamesSession) -> None:
    assert await status_of(session.call(names.Truncate(ROOT, 0, NOW))) == errno.EISDIR
    too_much = names.Truncate(ROOT, (1 << 63) - 1, NOW)
    assert await status_of(session.call(too_much)) == errno.EFBIG


@pytest.fixture
def too_large(tmp_path: Path) -> int:
    """A size that the disk of the storage refuses."""
    if can_have(tmp_path, 1 << 62):
        pytest.skip("a file can have any size here")
    return 1 << 62


async def test_truncate_to_more_than_the_disk_can_have(
    session: NamesSession, too_large: int
) -> None:
    huge = names.Truncate(await make(session, b"a"), too_large, NOW)
    assert await status_of(session.call(huge)) in (errno.EFBIG, errno.ENOSPC, errno.EIO)


# --- xattrs -------------------------------------------------------------------------------------


async def xattrs(session: NamesSession, ino: int) -> dict[bytes, bytes]:
    answer: names.Xattrs = await session.call(names.ListXattrs(ino))
    return answer.xattrs


async def test_xattrs_that_follow_come_along(
    session: NamesSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "_XATTRS_S", 60.0)
    d = await make(session, b"d", DIRECTORY)
    inos = [await make(session, name, parent=d) for name in (b"c", b"a", b"d", b"b")]
    c, a, last, b = inos
    await store(session, b, b"content")
    for ino, name in ((c, b"user.c"), (b, b"user.b"), (b, b"trusted.b")):
        await session.call(names.SetXattr(ino, name, b"v", 0, NOW))

    async def following(ino: int, count: int, by_name: bool = False) -> Any:
        answer = await session.call(names.ListXattrs(ino, "", count, by_name))
        assert answer.xattrs == await xattrs(session, ino)
        return answer.following

    of_b = {b"user.b": b"v", b"trusted.b": b"v"}
    assert await following(c, 10) == {a: {}, last: {}, b: of_b}
    assert await following(c, 1) == {a: {}}
    assert await following(a, 2, True) == {b: of_b, c: {b"user.c": b"v"}}
    for ino, count in ((b, 10), (c, 0), (ROOT, 10)):
        assert await following(ino, count) == {}
    assert await status_of(session.call(names.ListXattrs(c, "", -1))) == errno.EINVAL


async def test_xattrs_that_follow_have_a_limit(session: NamesSession) -> None:
    d = await make(session, b"d", DIRECTORY)
    inos = [await make(session, b"%d" % number, parent=d) for number in range(100)]
    answer = await session.call(names.ListXattrs(inos[0], "", 1 << 40))
    assert 1 <= len(answer.following) <= names.FOLLOWING_MAX
    for ino in inos[:10]:
        for name in (b"trusted.a", b"trusted.b"):
            await session.call(names.SetXattr(ino, name, bytes(names.XATTR_VALUE_MAX), 0, NOW))
    answer = await session.call(names.ListXattrs(inos[0], "", 64))
    assert list(answer.following) in (inos[1:2], inos[1:3])


async def test_xattrs_are_the_metadata_of_the_object(
    server: NamesServer, session: NamesSession
) -> None:
    ino = await make(session, b"a")
    await session.call(names.SetXattr(ino, b"user.width", b"1024", 0, NOW))
    await session.call(names.SetXattr(ino, b"user.long", b"v" * 300, 0, NOW))
    await session.call(names.SetXattr(ino, b"trusted.t", b"t", 0, NOW))
    attr = await store(session, ino, b"content")
    location = server.tree.objects.locate(attr.file_id)
    assert server.store.read_metadata(location) == b"width\x021024"
    server.store.write_metadata(location, metadata.encode([(b"width", b"7"), (b"new", b"n")]))
    expected = {
        b"user.width": b"7",
        b"user.new": b"n",
        b"user.long": b"v" * 300,
        b"trusted.t": b"t",
    }
    assert await xattrs(session, ino) == expected
    # A new object starts with a copy; without an object all of them stay with the inode.
    attr = await store(session, ino, b"other")
    assert await xattrs(session, ino) == expected
    assert server.store.read_metadata(server.tree.objects.locate(attr.file_id)) is not None
    await store(session, ino, b"")
    assert await xattrs(session, ino) == expected
    attr = await session.call(names.MakeWritable(ino))
    assert await xattrs(session, ino) == expected
    assert server.store.read_metadata(server.tree.objects.locate(attr.file_id)) is not None


async def test_metadata_that_others_gave_to_an_object_is_kept(
    server: NamesServer, session: NamesSession
) -> None:
    ino = await make(session, b"a")
    locate, read = server.tree.objects.locate, server.store.read_metadata
    attr = await store(session, ino, b"content")
    server.store.write_metadata(locate(attr.file_id), b"by\x02a client")
    attr = await store(session, ino, b"other")
    assert read(locate(attr.file_id)) == b"by\x02a client"
    server.store.write_metadata(locate(attr.file_id), b"")
    attr = await store(session, ino, b"content")
    assert read(locate(attr.file_id)) is None
    peers = Replicas(server.store, Deleted.load(server.store.changes))
    place, now_s = metadata_location(locate(attr.file_id)), int(time.time())
    peers.put_small(place, memoryview(b"by\x02a peer"), now_s, "c", again=False)
    attr = await store(session, ino, b"other")
    assert read(locate(attr.file_id)) == b"by\x02a peer"


async def test_an_xattr_changes_its_place(server: NamesServer, session: NamesSession) -> None:
    ino = await make(session, b"a")
    attr = await store(session, ino, b"content")
    location = server.tree.objects.locate(attr.file_id)
    for value in (b"short", b"l" * 300, b"again", b"\1"):
        await session.call(names.SetXattr(ino, b"user.x", value, 0, NOW))
        assert await xattrs(session, ino) == {b"user.x": value}
    assert server.store.read_metadata(location) is None
    await session.call(names.RemoveXattr(ino, b"user.x", NOW))
    assert await xattrs(session, ino) == {}


async def test_xattr_errors(server: NamesServer, session: NamesSession) -> None:
    ino = await make(session, b"a")
    call = session.call
    assert await status_of(call(names.RemoveXattr(ino, b"user.x", NOW))) == errno.ENODATA
    assert await status_of(call(names.SetXattr(ino, b"user.x", b"", 2, NOW))) == errno.ENODATA
    await call(names.SetXattr(ino, b"user.x", b"1", 1, NOW))
    assert await status_of(call(names.SetXattr(ino, b"user.x", b"2", 1, NOW))) == errno.EEXIST
    big = names.SetXattr(ino, b"user.x", b"v" * 65537, 0, NOW)
    assert await status_of(call(big)) == errno.E2BIG
    long_name = names.SetXattr(ino, b"user." + b"n" * 251, b"", 0, NOW)
    assert await status_of(call(long_name)) == errno.ERANGE
    reserved = names.SetXattr(ino, b"user.fdfs.crc32", b"", 0, NOW)
    assert await status_of(call(reserved)) == errno.EPERM
    file_id = await plain_upload(server, b"plain")
    await call(names.SetXattr(0, b"user.a", b"1", 0, NOW, file_id))
    assert (await call(names.ListXattrs(0, file_id))).xattrs == {b"user.a": b"1"}
    too_big = names.SetXattr(0, b"user.a", b"v" * 300, 0, NOW, file_id)
    assert await status_of(call(too_big)) == errno.E2BIG
    assert await status_of(call(names.ListXattrs(0, file_id[:-7] + "1234567"))) == errno.ENOENT


# --- objects by id ------------------------------------------------------------------------------


async def test_objects_without_name(server: NamesServer, session: NamesSession) -> None:
    async def listing(path: str) -> list[str]:
        answer = await session.call(names.ListObjects(path, "", 1000))
        assert answer.end
        return [entry.name for entry in answer.entries]

    named = await store(session, await make(session, b"a"), b"named")
    pending = await session.call(names.NewObject(await make(session, b"b")))
    assert await listing("") == []
    file_id = await plain_upload(server, b"plain")
    path, base = os.path.split(file_id)
    assert await listing("") == ["M00"]
    assert await listing("M00") == [path[4:6]]
    assert await listing(path[:6]) == [path[7:9]]
    assert await listing(path) == [base]
    attr = await session.call(names.LookupObject(file_id))
    assert (attr.ino, attr.size, attr.nlink, attr.file_id) == (0, 5, 1, file_id)
    assert await session.call(names.LookupObject(named.file_id)) == named
    hidden = names.LookupObject(pending.file_id)
    assert await status_of(session.call(hidden)) == errno.ENOENT
    renamed = await session.call(names.Adopt(file_id, ROOT, b"adopted.txt", False, 3, 4, NOW))
    assert (renamed.moved.size, renamed.moved.uid, renamed.moved.mode) == (
        5,
        3,
        stat.S_IFREG | 0o644,
    )
    assert await listing("") == []
    assert await session.call(names.LookupObject(file_id)) == renamed.moved
    paths = await session.call(names.Paths(file_id))
    assert paths.paths == [b"/adopted.txt"]
    again = names.Adopt(file_id, ROOT, b"other", False, 3, 4, NOW)
    assert await status_of(session.call(again)) == errno.EBUSY
    server.store.delete(server.tree.objects.locate(await plain_upload(server, b"gone")))
    assert await listing("") == []


async def test_object_listing_pages(server: NamesServer, session: NamesSession) -> None:
    uploaded = sorted([await plain_upload(server, b"%d" % n) for n in range(25)])
    path = os.path.dirname(uploaded[0])
    found: list[str] = []
    after, end = "", False
    while not end:
        page = await session.call(names.ListObjects(path, after, 10))
        found += [entry.name for entry in page.entries]
        assert all(entry.attr is not None for entry in page.entries)
        after, end = page.entries[-1].name, page.end
    assert found == [os.path.basename(file_id) for file_id in uploaded]


async def test_plain_clients_change_named_objects(
    server: NamesServer, session: NamesSession
) -> None:
    big = await make_big(server, session, b"big")
    small = await store(session, await make(session, b"small"), b"small")
    await session.call(names.Link(small.ino, ROOT, b"second", NOW))
    await store(session, await make(session, b"kept"), b"kept")
    location = server.tree.objects.locate(big.file_id)
    server.store.appenders.pwrite(location, BIG, b"appended")
    server.store.delete(server.tree.objects.locate(small.file_id))
    with trio.fail_after(60):
        while (await session.call(names.GetAttr(big.ino))).size != BIG + 8:  # noqa: ASYNC110
            await trio.sleep(0.01)
    for name in (b"small", b"second"):
        assert await status_of(session.call(names.Lookup(ROOT, name))) == errno.ENOENT
    await session.call(names.Lookup(ROOT, b"kept"))
    # What happens to objects without a name costs no record.
    before = server.tree.engine.committed
    server.store.delete(server.tree.objects.locate(await plain_upload(server, b"x")))
    await session.call(names.KeepAlive())
    assert server.tree.engine.committed == before


@pytest.mark.parametrize("missed", [False, True])
async def test_a_plain_client_makes_an_appender_a_normal_file(tmp_path: Path, missed: bool) -> None:
    async with names_server(tmp_path) as server, server.session() as session:
        big = await make_big(server, session, b"big")
        store, old = server.store, server.tree.objects.locate(big.file_id)
        new = store.creations.make_normal_name(old, BIG, 0, 1_700_000_000)
        if missed:
            store.changes.observers.clear()
        store.rename(old, new)
        if not missed:
            await _wait_for_object(session, big.ino, new.name)
    async with names_server(tmp_path) as server, server.session() as session:
        await _wait_for_object(session, big.ino, new.name)
        assert (await session.call(names.GetAttr(big.ino))).size == BIG


async def _wait_for_object(session: NamesSession, ino: int, file_id: str) -> None:
    with trio.fail_after(60):
        while (await session.call(names.GetAttr(ino))).file_id != file_id:  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_a_deletion_that_was_missed(tmp_path: Path) -> None:
    async with names_server(tmp_path) as server, server.session() as session:
        attr = await store(session, await make(session, b"a"), b"content")
        server.store.changes.observers.clear()
        server.store.delete(server.tree.objects.locate(attr.file_id))
    async with names_server(tmp_path) as server, server.session() as session:
        with trio.fail_after(60):
            while (await session.call(names.ReadDir(ROOT, 0, 10))).entries:  # noqa: ASYNC110
                await trio.sleep(0.01)
