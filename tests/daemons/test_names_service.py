"""The names service over real sockets: requests of a mount, and what is on the disk afterwards."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from fdfsfuse.client.names import NamesSession
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import metadata, names
from fdfsfuse.proto.header import pack_header
from tests.common.names_server import HOST, NamesServer, names_server
from tests.common.session import BlockingSession

NOW = 1_700_000_000_123_456_789
FILE = stat.S_IFREG | 0o640
DIRECTORY = stat.S_IFDIR | 0o755
ROOT = names.ROOT_INO
BIG = names.SMALL_CONTENT_MAX + 5


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NamesServer]:
    async with names_server(tmp_path) as running:
        yield running


@pytest.fixture
async def session(server: NamesServer) -> AsyncIterator[NamesSession]:
    async with server.session() as opened:
        yield opened


async def make(session: NamesSession, name: bytes, mode: int = FILE, parent: int = ROOT) -> int:
    attr: names.Attr = await session.call(names.Create(parent, name, mode, 1, 2, NOW))
    return attr.ino


async def store(session: NamesSession, ino: int, data: bytes) -> names.Attr:
    attr: names.Attr = await session.call(names.StoreContent(ino, data, NOW))
    return attr


async def status_of(call: Awaitable[Any]) -> int:
    with pytest.raises(StatusError) as caught:
        await call
    assert caught.value.errno is not None
    return caught.value.errno


def content(server: NamesServer, attr: names.Attr) -> bytes:
    return Path(server.tree.objects.path(attr.file_id)).read_bytes()


def all_objects(server: NamesServer) -> set[str]:
    """Every object file of the store."""
    data = Path(server.store.data_directory(0))
    return {f"M00/{path.relative_to(data)}" for path in data.glob("??/??/*")}


async def exchange(server: NamesServer, command: int, body: bytes) -> int:
    """One plain exchange; returns the status."""
    stream = await trio.open_tcp_stream(HOST, server.port)
    async with stream:
        await stream.send_all(pack_header(len(body), command) + body)
        answer = b""
        while len(answer) < 10:
            chunk = await stream.receive_some(10 - len(answer))
            assert chunk
            answer += chunk
        return answer[9]


async def write_object(
    server: NamesServer, file_id: str, offset: int, data: bytes, *, view: int = 1
) -> int:
    head = names.encode(names.WriteObject(file_id, view, offset, len(data)))
    body = len(head).to_bytes(4, "big") + head + data
    return await exchange(server, names.WRITE_OBJECT, body)


async def truncate_object(server: NamesServer, file_id: str, size: int) -> int:
    head = names.encode(names.TruncateObject(file_id, 1, size))
    return await exchange(server, names.TRUNCATE_OBJECT, head)


async def make_big(server: NamesServer, session: NamesSession, name: bytes) -> names.Attr:
    """A file of BIG bytes as a mount writes it."""
    ino = await make(session, name)
    made = await session.call(names.NewObject(ino))
    assert await write_object(server, made.file_id, 0, b"b" * BIG) == 0
    attr: names.Attr = await session.call(names.NameObject(ino, made.file_id, BIG, NOW))
    return attr


async def plain_upload(server: NamesServer, data: bytes) -> str:
    """An object as a plain client would upload it."""
    location = server.store.make_name(len(data), 0, 1_700_000_000, "txt")
    server.store.write_at(location, data)
    await trio.lowlevel.checkpoint()
    return location.name


# --- tree -------------------------------------------------------------------------------------


async def test_create_and_lookup(session: NamesSession) -> None:
    made = await session.call(names.Create(ROOT, b"a", FILE, 1, 2, NOW))
    assert made == names.Attr(made.ino, FILE, 1, 1, 2, 0, 0, NOW, NOW, NOW, 0)
    assert await session.call(names.Lookup(ROOT, b"a")) == made
    assert await session.call(names.GetAttr(made.ino)) == made
    root = await session.call(names.GetAttr(ROOT))
    assert (root.mtime_ns, root.ctime_ns, root.nlink) == (NOW, NOW, 2)


async def test_symlink_fifo_device(session: NamesSession) -> None:
    link = await session.call(
        names.Create(ROOT, b"l", stat.S_IFLNK | 0o777, 0, 0, NOW, 0, b"to/there")
    )
    assert (link.target, link.size) == (b"to/there", 8)
    fifo = await session.call(names.Create(ROOT, b"p", stat.S_IFIFO | 0o600, 0, 0, NOW))
    assert stat.S_ISFIFO(fifo.mode)
    device = await session.call(names.Create(ROOT, b"d", stat.S_IFCHR | 0o600, 0, 0, NOW, 0x103))
    assert (await session.call(names.Lookup(ROOT, b"d"))).rdev == 0x103 == device.rdev
    assert await status_of(store(session, fifo.ino, b"x")) == errno.EINVAL


async def test_set_group_id_directories(session: NamesSession) -> None:
    parent = await session.call(names.Create(ROOT, b"g", DIRECTORY | stat.S_ISGID, 0, 77, NOW))
    child = await session.call(names.Create(parent.ino, b"d", DIRECTORY, 0, 5, NOW))
    assert child.gid == 77
    assert child.mode & stat.S_ISGID
    file = await session.call(names.Create(parent.ino, b"f", FILE, 0, 5, NOW))
    assert (file.gid, file.mode) == (77, FILE)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        (b"", errno.EINVAL),
        (b".", errno.EINVAL),
        (b"..", errno.EINVAL),
        (b"a/b", errno.EINVAL),
        (b"a\0b", errno.EINVAL),
        (b"x" * 256, errno.ENAMETOOLONG),
        (b"M00", errno.EPERM),
        (b"MfF", errno.EPERM),
    ],
)
async def test_bad_names(session: NamesSession, name: bytes, status: int) -> None:
    assert await status_of(make(session, name)) == status


async def test_reserved_names_are_free_below_the_root(session: NamesSession) -> None:
    directory = await make(session, b"d", DIRECTORY)
    await make(session, b"M00", parent=directory)
    await make(session, b"x" * 255)
    await make(session, b"MXX")


@pytest.mark.parametrize(
    "request_",
    [
        names.Create(ROOT, b"a", 0o644, 0, 0, NOW),
        names.Create(ROOT, b"a", 1 << 20, 0, 0, NOW),
        names.Create(ROOT, b"a", FILE, -1, 0, NOW),
        names.Create(ROOT, b"a", FILE, 0, 1 << 32, NOW),
        names.Create(ROOT, b"a", FILE, 0, 0, 1 << 63),
        names.Create(ROOT, b"a", FILE, 0, 0, NOW, rdev=-1),
        names.Create(ROOT, b"a", FILE, 0, 0, NOW, target=b"x"),
        names.SetAttr(ROOT, NOW, mode=-1),
        names.SetAttr(ROOT, NOW, mtime_ns=1 << 63),
        names.ReadDir(ROOT, -1, 5),
        names.ReadDir(ROOT, 0, 0),
        names.Rename(ROOT, b"a", ROOT, b"b", 3, NOW),
        names.Truncate(ROOT, -1, NOW),
        names.LookupObject("../../../etc/passwd-xxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
        names.LookupObject("M00/00/00/" + "x" * 10),
        names.ListObjects("M00/../..", "", 10),
    ],
)
async def test_impossible_values_are_refused(session: NamesSession, request_: Any) -> None:
    assert await status_of(session.call(request_)) == errno.EINVAL


async def test_unknown_inodes_are_stale(session: NamesSession) -> None:
    for request in (
        names.GetAttr(999),
        names.GetAttr(1 << 62),
        names.Lookup(999, b"a"),
        names.Create(999, b"a", FILE, 0, 0, NOW),
        names.Link(999, ROOT, b"x", NOW),
        names.StoreContent(999, b"x", NOW),
        names.ReadDir(999, 0, 10),
        names.Open(999, 10),
        names.SetXattr(999, b"user.a", b"", 0, NOW),
        names.Truncate(999, 0, NOW),
        names.MakeWritable(999),
        names.NewObject(999),
    ):
        assert await status_of(session.call(request)) == errno.ESTALE


async def test_listing_goes_on_while_entries_come_and_go(session: NamesSession) -> None:
    directory = await make(session, b"d", DIRECTORY)
    for number in range(10):
        await make(session, b"f%d" % number, parent=directory)
    first = await session.call(names.ReadDir(directory, 0, 4))
    assert [entry.name for entry in first.entries] == [b"f0", b"f1", b"f2", b"f3"]
    assert not first.end
    await session.call(names.Remove(directory, b"f3", False, NOW))
    await session.call(names.Remove(directory, b"f5", False, NOW))
    await make(session, b"new", parent=directory)
    rest = await session.call(names.ReadDir(directory, first.entries[-1].cookie, 100))
    assert [entry.name for entry in rest.entries] == [b"f4", b"f6", b"f7", b"f8", b"f9", b"new"]
    assert rest.end
    cookies = [entry.cookie for entry in first.entries + rest.entries]
    assert cookies == sorted(set(cookies))


async def test_a_listing_of_long_links_comes_in_pieces(session: NamesSession) -> None:
    directory = await make(session, b"d", DIRECTORY)
    target = b"t" * names.SYMLINK_MAX
    async with trio.open_nursery() as nursery:
        for number in range(300):
            request = names.Create(
                directory, b"%d" % number, stat.S_IFLNK | 0o777, 0, 0, NOW, 0, target
            )
            nursery.start_soon(session.call, request)
    found: set[bytes] = set()
    cookie, end, pages = 0, False, 0
    while not end:
        listing = await session.call(names.ReadDir(directory, cookie, 1024))
        found |= {entry.name for entry in listing.entries}
        cookie, end, pages = listing.entries[-1].cookie, listing.end, pages + 1
    assert len(found) == 300
    assert pages > 1


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
    other = names.CommitWrite(attr.ino, attr.file_id[:-1] + "0", 1, NOW)
    assert await status_of(session.call(other)) == errno.ESTALE


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
    huge = names.Truncate(await make(session, b"a"), 1 << 62, NOW)
    assert await status_of(session.call(huge)) in (errno.EFBIG, errno.ENOSPC, errno.EIO)
    too_much = names.Truncate(ROOT, (1 << 63) - 1, NOW)
    assert await status_of(session.call(too_much)) == errno.EFBIG


# --- xattrs -------------------------------------------------------------------------------------


async def xattrs(session: NamesSession, ino: int) -> dict[bytes, bytes]:
    answer: names.Xattrs = await session.call(names.ListXattrs(ino))
    return answer.xattrs


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
    server.store.pwrite(location, BIG, b"appended")
    server.store.delete(server.tree.objects.locate(small.file_id))
    with trio.fail_after(10):
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


async def test_a_deletion_that_was_missed(tmp_path: Path) -> None:
    async with names_server(tmp_path) as server, server.session() as session:
        attr = await store(session, await make(session, b"a"), b"content")
        server.store.observers.clear()
        server.store.delete(server.tree.objects.locate(attr.file_id))
    async with names_server(tmp_path) as server, server.session() as session:
        with trio.fail_after(10):
            while (await session.call(names.ReadDir(ROOT, 0, 10))).entries:  # noqa: ASYNC110
                await trio.sleep(0.01)


# --- sessions and garbage -------------------------------------------------------------------------


async def wait_for(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - the condition has no event
            await trio.sleep(0.01)


@pytest.fixture
async def quick(tmp_path: Path) -> AsyncIterator[NamesServer]:
    """A server with a short lease and grace period."""
    changes: dict[str, Any] = {"names_session_lease_s": 0.4, "names_garbage_grace_s": 0.4}
    async with names_server(tmp_path, **changes) as running:
        yield running


async def test_replaced_and_removed_objects_are_deleted(quick: NamesServer) -> None:
    plain = await plain_upload(quick, b"untouched")
    async with quick.session() as session:
        ino = await make(session, b"a")
        first = await store(session, ino, b"one")
        second = await store(session, ino, b"two")
        assert {first.file_id, second.file_id, plain} <= all_objects(quick)
        assert await status_of(session.call(names.LookupObject(first.file_id))) == errno.ENOENT
        await wait_for(lambda: all_objects(quick) == {second.file_id, plain})
        removed = await session.call(names.Remove(ROOT, b"a", False, NOW))
        assert removed.nlink == 0
        await wait_for(lambda: all_objects(quick) == {plain})
        assert await status_of(session.call(names.GetAttr(ino))) == errno.ESTALE
        assert (await session.call(names.StatFs())).files == 1
    count = quick.tree.state.db.execute("SELECT count(*) FROM garbage").fetchone()[0]
    assert count == 0


async def test_held_inodes_live_on(quick: NamesServer) -> None:
    async with quick.session() as session:
        ino = await make(session, b"a")
        attr = await store(session, ino, b"one")
        await session.call(names.Holds([ino], []))
        await session.call(names.Remove(ROOT, b"a", False, NOW))
        for _ in range(6):
            await trio.sleep(0.2)
            await session.call(names.KeepAlive())
        assert (await session.call(names.Open(ino, 10))).data == b"one"
        await session.call(names.Holds([], [ino]))
        await wait_for(lambda: attr.file_id not in all_objects(quick))


async def test_a_session_that_ends_leaves_nothing(quick: NamesServer) -> None:
    plain = await plain_upload(quick, b"untouched")
    async with quick.session() as session:
        made = await session.call(names.NewObject(await make(session, b"a")))
        assert await write_object(quick, made.file_id, 0, b"x" * 1000) == 0
        assert made.file_id in all_objects(quick)
    await wait_for(lambda: all_objects(quick) == {plain})


async def test_the_lease_runs_out(quick: NamesServer) -> None:
    def connect_and_die() -> tuple[int, bytes, str]:
        with BlockingSession((HOST, quick.port)) as session:
            ino = session.create(ROOT, b"a").ino
            made = session.call(names.NewObject(ino), names.ObjectMade)
            return session.number, session.token, made.file_id

    number, token, file_id = await trio.to_thread.run_sync(connect_and_die)
    await wait_for(lambda: len(quick.tree.sessions) == 0)
    await wait_for(lambda: file_id not in all_objects(quick))
    request = names.OpenSession(names.VERSION, number, token, "again")
    assert await exchange(quick, names.OPEN_SESSION, names.encode(request)) == names.SESSION_ENDED


async def test_repeated_requests_are_answered_once(server: NamesServer) -> None:
    def run() -> None:
        request = names.Create(ROOT, b"a", FILE, 0, 0, NOW)
        with BlockingSession((HOST, server.port)) as session:
            made = session.call(request, names.Attr)
            put = names.StoreContent(made.ino, b"x", NOW)
            stored = session.call(put, names.Attr)
            # The same ids again, as after a connection that broke before the answers came.
            session.waiting = {1: request, 2: put}
            session.take_up()
            answers = {
                number: answer for number, _, answer in (session.receive(), session.receive())
            }
            assert answers == {1: made, 2: stored}

    await trio.to_thread.run_sync(run)
    assert len(all_objects(server)) == 1


async def test_a_wrong_token_is_refused(server: NamesServer, session: NamesSession) -> None:
    number = next(iter(server.tree.sessions)).number
    request = names.OpenSession(names.VERSION, number, b"x" * 16, "thief")
    status = await exchange(server, names.OPEN_SESSION, names.encode(request))
    assert status == errno.EPERM
    short = names.OpenSession(names.VERSION, 0, b"x", "short")
    assert await exchange(server, names.OPEN_SESSION, names.encode(short)) == errno.EINVAL


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        pack_header(names.FRAME_MAX + 1, names.REQUEST) + b"x" * 100,
        pack_header(5, names.REQUEST) + b"x" * 5,
        pack_header(20, names.ANSWER) + b"x" * 20,
        pack_header(20, names.REQUEST) + names.FRAME_IDS.pack(1, 0) + b"\xc1abc",
        pack_header(17, names.REQUEST) + names.FRAME_IDS.pack(0, 0) + b"\x91",
        pack_header(18, names.REQUEST) + names.FRAME_IDS.pack(1, 0) + b"\x91\x7f",
        b"\xff" * 10,
    ],
)
async def test_bad_frames_cost_the_connection_only(
    server: NamesServer, session: NamesSession, frame: bytes
) -> None:
    stream = await trio.open_tcp_stream(HOST, server.port)
    async with stream:
        body = names.encode(names.OpenSession(names.VERSION, 0, os.urandom(16), "bad"))
        await stream.send_all(pack_header(len(body), names.OPEN_SESSION) + body)
        await stream.receive_some(4096)
        await stream.send_all(frame)
        with trio.fail_after(5):
            try:
                while await stream.receive_some(4096):
                    pass
            except trio.BrokenResourceError:
                pass
    await make(session, b"still works")


async def test_plain_requests_that_are_wrong(server: NamesServer) -> None:
    assert await exchange(server, names.QUERY_VIEW, b"x") == errno.EINVAL
    assert await exchange(server, names.WRITE_OBJECT, b"") == errno.EINVAL
    assert await exchange(server, names.WRITE_OBJECT, b"\xff\xff\xff\xffxxxx") == errno.EINVAL
    assert await exchange(server, names.WRITE_OBJECT, b"\0\0\0\4xxxxyyy") == errno.EINVAL
    assert await exchange(server, names.TRUNCATE_OBJECT, b"x" * 5000) == errno.EINVAL
    assert await exchange(server, names.OPEN_SESSION, b"x" * 5000) == errno.EINVAL
    assert await exchange(server, names.QUERY_VIEW, b"") == 0


async def test_many_requests_in_flight(server: NamesServer, session: NamesSession) -> None:
    directory = await make(session, b"d", DIRECTORY)
    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(make, session, b"f%d" % number, FILE, directory)
    listing = await session.call(names.ReadDir(directory, 0, 1024))
    assert len(listing.entries) == 300
    assert len({entry.attr.ino for entry in listing.entries}) == 300


async def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    started = time.monotonic()
    async with names_server(tmp_path) as server, server.session() as session:
        ino = await make(session, b"a")
        attr = await store(session, ino, b"kept")
        view = server.tree.stored_view
    async with names_server(tmp_path) as server, server.session() as session:
        assert server.tree.stored_view == view
        assert await session.call(names.Lookup(ROOT, b"a")) == attr
        assert (await session.call(names.Open(ino, 10))).data == b"kept"
        await make(session, b"b")
    assert time.monotonic() - started < 20


# --- more than one mount --------------------------------------------------------------------------


async def test_mounts_at_work_together(server: NamesServer) -> None:
    """Changes of several sessions go through the engine's task, those of one alone do not."""
    async with server.session() as first, server.session() as second:
        directory = await make(first, b"d", DIRECTORY)

        async def work(session: NamesSession, prefix: bytes) -> None:
            for number in range(50):
                ino = await make(session, prefix + b"%d" % number, parent=directory)
                await store(session, ino, prefix)

        async with trio.open_nursery() as nursery:
            for session, prefix in ((first, b"a"), (first, b"b"), (second, b"c")):
                nursery.start_soon(work, session, prefix)
        listing = await second.call(names.ReadDir(directory, 0, 1000))
        assert len(listing.entries) == 150
        contents = {content(server, entry.attr) for entry in listing.entries}
        assert contents == {b"a", b"b", b"c"}


async def test_what_one_mount_holds_another_may_remove(quick: NamesServer) -> None:
    async with quick.session() as first, quick.session() as second:
        ino = await make(first, b"a")
        attr = await store(first, ino, b"one")
        await first.call(names.Holds([ino], []))
        await second.call(names.Remove(ROOT, b"a", False, NOW))
        await second.call(names.Holds([ino], [ino]))
        for _ in range(5):
            await trio.sleep(0.2)
            assert (await first.call(names.Open(ino, 10))).data == b"one"
            await second.call(names.KeepAlive())
    await wait_for(lambda: attr.file_id not in all_objects(quick))


async def test_a_full_disk_is_an_error_and_no_more(
    server: NamesServer, session: NamesSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on the short way that a mount alone takes."""
    ino = await make(session, b"a")

    def full(records: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(server.tree.log, "append", full)
    assert await status_of(make(session, b"b")) == errno.ENOSPC
    assert await status_of(store(session, ino, b"data")) == errno.ENOSPC
    monkeypatch.undo()
    await make(session, b"b")
    assert content(server, await store(session, ino, b"data")) == b"data"


async def test_a_mount_that_takes_no_answers_is_not_read_from(server: NamesServer) -> None:
    """Its requests wait in its own socket; others are served."""
    directory = 0
    async with server.session() as session:
        directory = await make(session, b"d", DIRECTORY)
        for number in range(100):
            await make(session, b"x" * 200 + b"%d" % number, parent=directory)
        stream = await trio.open_tcp_stream(HOST, server.port)
        async with stream:
            body = names.encode(names.OpenSession(names.VERSION, 0, os.urandom(16), "slow"))
            await stream.send_all(pack_header(len(body), names.OPEN_SESSION) + body)
            await stream.receive_some(4096)
            request = names.encode(names.ReadDir(directory, 0, 100))
            with trio.move_on_after(1.0) as scope:
                for number in range(1, 100_000):
                    frame = names.FRAME_IDS.pack(number, number) + request
                    await stream.send_all(pack_header(len(frame), names.REQUEST) + frame)
            assert scope.cancelled_caught
            await session.call(names.KeepAlive())
