"""Reading: small files in one round trip, read-ahead, replaced objects, the page cache."""

from __future__ import annotations

import errno
import os
import random

import pytest
import trio

from fdfsfuse.errors import StatusError, TreeError
from fdfsfuse.proto import names
from fdfsfuse.vfs.readahead import Plan, plan_read
from fdfsfuse.vfs.recalls import NoKernel
from fdfsfuse.vfs.tree import Changes
from tests.common.waiting import wait_for
from tests.vfs.common import mounted

KIB = 1 << 10
MIB = 1 << 20


@pytest.mark.parametrize(
    ("offset", "end", "position", "streak", "plan"),
    [
        # The first read of a file brings its chunk only, the second one opens the window.
        (0, 10, 0, 1, Plan(False, range(1), range(0))),
        (10, 20, 10, 2, Plan(False, range(1), range(1, 4))),
        # A read across a border needs both chunks.
        (90, 110, 90, 9, Plan(False, range(2), range(2, 4))),
        # The window ends with the file.
        (810, 820, 810, 9, Plan(False, range(8, 9), range(9, 10))),
        (990, 1000, 990, 9, Plan(False, range(9, 10), range(0))),
        # The kernel's own read-ahead comes a little out of order.
        (400, 410, 430, 9, Plan(False, range(4, 5), range(5, 8))),
        (520, 540, 430, 9, Plan(False, range(5, 6), range(6, 9))),
        # Anywhere else is a random read: just what was asked for.
        (700, 720, 430, 9, Plan(True, range(0), range(0))),
        # So is a small one that is not quite near.
        (511, 521, 430, 9, Plan(True, range(0), range(0))),
        (349, 359, 430, 9, Plan(True, range(0), range(0))),
        (100, 110, 430, 0, Plan(True, range(0), range(0))),
    ],
)
def test_plan(offset: int, end: int, position: int, streak: int, plan: Plan) -> None:
    found = plan_read(offset, end, 1000, position, streak, 100, 4)
    assert (found.direct, list(found.now), list(found.ahead)) == (
        plan.direct,
        list(plan.now),
        list(plan.ahead),
    )


async def test_a_small_file_comes_with_open() -> None:
    async with mounted() as m:
        await m.write_file("vol/a", b"hello")
        m.vfs.forget([((await m.lookup("vol/a")).number, 1)])
        before = m.volume.requests.copy()
        assert await m.read_file("vol/a") == b"hello"
        assert m.volume.requests - before == {"Open": 1}


async def test_an_empty_file_asks_for_nothing() -> None:
    async with mounted() as m:
        await m.write_file("vol/a", b"")
        assert await m.read_file("vol/a") == b""
        assert m.volume.requests["read"] == 0


async def test_sequential_reading_runs_ahead() -> None:
    async with mounted(read_chunk_bytes=64 * KIB, read_chunks=4) as m:
        content = random.Random(1).randbytes(MIB + 12345)
        await m.write_file("vol/a", content)
        assert await m.read_file("vol/a", 16 * KIB) == content
        # Each byte was fetched once, in whole chunks.
        offsets = [offset for offset, _ in m.volume.reads]
        assert sorted(offsets) == list(range(0, len(content), 64 * KIB))
        assert m.vfs.context.read_ahead_used == 0


async def test_read_ahead_is_parallel_and_bounded() -> None:
    async with mounted(
        read_chunk_bytes=64 * KIB, read_chunks=4, read_ahead_bytes=6 * 64 * KIB
    ) as m:
        content = bytes(2 * MIB)
        await m.write_file("vol/a", content)
        handles = [await m.open("vol/a") for _ in range(3)]
        for handle in handles:
            await m.vfs.files.read(handle, 0, 4 * KIB)
            await m.vfs.files.read(handle, 4 * KIB, 4 * KIB)
        # Three handles want four chunks each. Six fit, and the last handle still got what it needs.
        assert m.vfs.context.read_ahead_used == 7 * 64 * KIB
        for handle in handles:
            await m.vfs.files.release(handle)
        assert m.vfs.context.read_ahead_used == 0


async def test_random_reads_fetch_just_what_they_need() -> None:
    async with mounted(read_chunk_bytes=64 * KIB) as m:
        content = random.Random(1).randbytes(2 * MIB)
        await m.write_file("vol/a", content)
        handle = await m.open("vol/a")
        for offset in (MIB, 300_000, 1_900_000, 2 * MIB - 10):
            got = bytes(await m.vfs.files.read(handle, offset, 4096))
            assert got == content[offset : offset + 4096]
        assert m.volume.reads == [
            (MIB, 4096),
            (300_000, 4096),
            (1_900_000, 4096),
            (2 * MIB - 10, 10),
        ]


async def test_concurrent_readers_of_one_handle() -> None:
    async with mounted(read_chunk_bytes=64 * KIB) as m:
        content = random.Random(1).randbytes(2 * MIB)
        await m.write_file("vol/a", content)
        handle = await m.open("vol/a")

        async def read(offset: int) -> None:
            got = bytes(await m.vfs.files.read(handle, offset, 32 * KIB))
            assert got == content[offset : offset + 32 * KIB]

        for start in range(0, len(content), 256 * KIB):
            async with trio.open_nursery() as nursery:
                for offset in range(start, start + 256 * KIB, 32 * KIB):
                    nursery.start_soon(read, offset)


async def test_reading_goes_on_with_the_object_that_replaced_the_old_one() -> None:
    async with mounted(read_chunk_bytes=64 * KIB, open_data_bytes=0) as m:
        await m.write_file("vol/a", b"a" * 500_000)
        handle = await m.open("vol/a")
        assert bytes(await m.vfs.files.read(handle, 0, 10)) == b"a" * 10
        attr = m.volume.by_path("a")
        await m.volume.call(names.StoreContent(attr.ino, b"b" * 400_000, 5))
        del m.volume.objects[attr.file_id]
        assert bytes(await m.vfs.files.read(handle, 399_990, 100)) == b"b" * 10
        assert bytes(await m.vfs.files.read(handle, 450_000, 100)) == b""


async def test_an_object_that_is_being_cut_off_has_its_new_size_soon() -> None:
    """A storage cuts the object off, and has others do so, before it tells the new size."""
    async with (
        mounted(read_chunk_bytes=64 * KIB, open_data_bytes=0) as m,
        trio.open_nursery() as nursery,
    ):
        entry = await m.write_file("vol/a", b"a" * 500_000)
        handle = await m.open("vol/a")
        attr = m.volume.by_path("a")
        del m.volume.objects[attr.file_id][100_000:]
        read = []
        truncated = []

        async def read_behind() -> None:
            read.append(bytes(await m.vfs.files.read(handle, 400_000, 10)))

        async def truncate() -> None:
            truncated.append(await m.vfs.set_attributes(entry.number, 90_000, Changes(), None))

        nursery.start_soon(read_behind)
        nursery.start_soon(truncate)
        before = m.volume.requests["Open"]
        await wait_for(lambda: m.volume.requests["read"] >= 8)
        assert not read
        assert m.volume.requests["Open"] - before >= 3
        await m.volume.call(names.Truncate(attr.ino, 100_000, 5))
        await wait_for(lambda: bool(read and truncated))
        assert read == [b""]
        assert m.volume.content("a") == b"a" * 90_000


async def test_an_object_that_is_gone_for_good_is_an_error() -> None:
    async with mounted(open_data_bytes=0) as m:
        await m.write_file("vol/a", b"a" * 500_000)
        handle = await m.open("vol/a")
        m.volume.objects.clear()
        with pytest.raises(TreeError) as caught:
            await m.vfs.files.read(handle, 0, 10)
        assert caught.value.errno == errno.EIO


async def test_an_error_of_read_ahead_reaches_the_reader_and_is_not_kept() -> None:
    async with mounted(read_chunk_bytes=64 * KIB, open_data_bytes=0) as m:
        await m.write_file("vol/a", b"a" * 500_000)
        handle = await m.open("vol/a")
        m.volume.fail["read"] = StatusError(errno.EIO)
        with pytest.raises(StatusError):
            await m.vfs.files.read(handle, 0, 10)
        m.volume.fail.clear()
        assert bytes(await m.vfs.files.read(handle, 0, 10)) == b"a" * 10


async def test_pages_are_kept_only_for_the_version_they_are_of() -> None:
    async with mounted() as m:
        entry = await m.write_file("vol/a", b"mine")
        open_file = m.vfs.files.open
        # This mount wrote it: the kernel's pages are of this version, and no content is sent.
        before = m.volume.requests.copy()
        assert (await open_file(entry.number, os.O_RDONLY)).keep_cache
        # Somebody else stores something: not kept, then kept again.
        await m.volume.change(names.StoreContent(m.volume.by_path("a").ino, b"theirs", 5))
        assert not (await open_file(entry.number, os.O_RDONLY)).keep_cache
        assert (await open_file(entry.number, os.O_RDONLY)).keep_cache
        # The kernel forgot the inode, and with it the pages.
        m.vfs.forget([(entry.number, 1)])
        assert not (await open_file(entry.number, os.O_RDONLY)).keep_cache
        assert (m.volume.requests - before)["read"] == 0


async def test_content_changed_by_two_mounts_is_not_taken_for_our_pages() -> None:
    async with mounted() as m:
        entry = await m.write_file("vol/a", b"one")
        handle = await m.open("vol/a", os.O_WRONLY)
        await m.volume.change(names.StoreContent(m.volume.by_path("a").ino, b"theirs", 5))
        await m.vfs.files.write(handle, 0, b"ours")
        await m.close(handle)
        assert not (await m.vfs.files.open(entry.number, os.O_RDONLY)).keep_cache


class StoringKernel(NoKernel):
    """A kernel that takes pages."""

    def __init__(self) -> None:
        self.pages: dict[int, bytes] = {}
        self.offset = 0

    def store_pages(self, number: int, content: bytes, offset: int = 0) -> bool:
        self.pages[number], self.offset = content, offset
        return True


async def test_of_a_file_that_was_written_pages_are_completed() -> None:
    kernel = StoringKernel()
    async with mounted(kernel=kernel) as m:
        entry = await m.write_file("vol/a", b"x" * 4096 + b"last")
        assert (kernel.pages, kernel.offset) == ({entry.number: b"last"}, 4096)
        data = bytes(range(251)) * 100
        opened, entry = await m.create("vol/c")
        for start in range(0, len(data), 5120):
            await m.vfs.files.write(opened.handle, start, data[start : start + 5120])
        await m.close(opened.handle)
        assert (kernel.pages[entry.number], kernel.offset) == (data[4096:], 4096)
        kernel.pages.clear()
        # Not of one that was only read, whose pages are all full, or that others have changed.
        assert await m.read_file("vol/a") == b"x" * 4096 + b"last"
        await m.write_file("vol/b", b"x" * 8192)
        handle = await m.open("vol/b", os.O_RDWR)
        other = await m.open("vol/b")
        await m.vfs.files.write(handle, 0, b"short")
        await m.vfs.files.truncate(entry.number, 5, None)
        kernel.pages.clear()
        await m.close(handle)
        assert kernel.pages == {}
        await m.volume.change(names.StoreContent(m.volume.by_path("b").ino, b"theirs", 5))
        await m.close(other)
        assert kernel.pages == {}


async def test_the_first_open_brings_the_pages_of_a_small_file() -> None:
    kernel = StoringKernel()
    async with mounted(kernel=kernel) as m:
        entry = await m.write_file("vol/a", b"mine")
        m.vfs.forget([(entry.number, 1)])
        kernel.pages.clear()
        opened = await m.vfs.files.open(entry.number, os.O_RDONLY)
        assert (opened.keep_cache, opened.stored) == (True, 4)
        assert kernel.pages == {entry.number: b"mine"}
        # While it is open the kernel may have locked its pages.
        await m.volume.change(names.StoreContent(m.volume.by_path("a").ino, b"theirs", 5))
        m.vfs.context.pages.drop(entry.number)
        assert not (await m.vfs.files.open(entry.number, os.O_RDONLY)).keep_cache
        assert kernel.pages == {entry.number: b"mine"}


async def test_pages_that_were_recalled_on_their_way_are_not_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = StoringKernel()
    async with mounted(kernel=kernel) as m:
        entry = await m.write_file("vol/a", b"old")
        m.vfs.forget([(entry.number, 1)])
        kernel.pages.clear()
        call = m.volume.call

        async def overtaken(request: names.Request, *, timeout_s: float | None = None) -> object:
            answer = await call(request, timeout_s=timeout_s)
            monkeypatch.undo()
            await m.volume.change(names.StoreContent(m.volume.by_path("a").ino, b"new", 5))
            return answer

        monkeypatch.setattr(m.volume, "call", overtaken)
        opened = await m.vfs.files.open(entry.number, os.O_RDONLY)
        assert not opened.keep_cache
        assert kernel.pages == {}
        assert bytes(await m.vfs.files.read(opened.handle, 0, 10)) == b"new"


async def test_a_name_whose_content_is_gone_is_an_error_and_can_be_removed() -> None:
    """As when the target of a link was deleted by its id."""
    async with mounted() as m:
        await m.write_file("vol/a", b"x" * 200_000)
        handle = await m.open("vol/a")
        del m.volume.objects[m.volume.by_path("a").file_id]
        with pytest.raises(TreeError) as caught:
            await m.vfs.files.read(handle, 0, 100)
        assert caught.value.errno == errno.EIO
        await m.close(handle)
        await m.vfs.tree.remove((await m.lookup("vol")).number, b"a", directory=False)
        assert b"a" not in await m.names("vol")


async def test_what_was_read_ahead_of_an_object_is_dropped_when_it_has_changed() -> None:
    """By a FastDFS client, in place: neither id nor size tells."""
    async with mounted(attr_timeout_s=0.0, read_chunk_bytes=64 * KIB) as m:
        file_id = m.volume.upload(b"a" * MIB)
        handle = await m.open(f"vol/{file_id}")
        for offset in (0, 4 * KIB):
            assert await m.vfs.files.read(handle, offset, 4 * KIB) == b"a" * 4 * KIB
        m.volume.modify(file_id, b"b" * MIB)
        assert (await m.lookup(f"vol/{file_id}")).attr.size == MIB
        for offset in (8 * KIB, 0, 64 * KIB):
            assert await m.vfs.files.read(handle, offset, 4 * KIB) == b"b" * 4 * KIB
        await m.close(handle)


async def test_pages_of_an_object_are_kept_until_it_has_changed() -> None:
    async with mounted(attr_timeout_s=0.0) as m:
        file_id = m.volume.upload(b"content")
        number = m.vfs.remember(await m.lookup(f"vol/{file_id}")).number
        kept = []
        for change in (None, None, b"changed"):
            if change is not None:
                m.volume.modify(file_id, change)
            opened = await m.vfs.files.open(number, os.O_RDONLY)
            kept.append(opened.keep_cache)
            await m.close(opened.handle)
        assert kept == [False, True, False]
