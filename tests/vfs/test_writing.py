"""Content on its way to the storage: memory, streams, changes in place, errors, budgets."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from fdfsfuse.errors import ConnectionProblem, StatusError
from fdfsfuse.proto import names
from fdfsfuse.vfs.tree import Changes
from tests.common.fake_volume import NEVER
from tests.common.waiting import wait_for
from tests.vfs.common import Mounted, mounted

MIB = 1 << 20


async def test_a_small_file_costs_two_requests() -> None:
    async with mounted() as m:
        before = m.volume.requests.copy()
        await m.write_file("vol/a", b"hello")
        assert m.volume.requests - before == {"Create": 1, "StoreContent": 1}
        assert m.volume.content("a") == b"hello"
        attr = (await m.lookup("vol/a")).attr
        assert (attr.size, attr.uid, attr.gid) == (5, 1000, 1001)


async def test_nothing_is_stored_before_flush_but_everyone_here_sees_it() -> None:
    async with mounted() as m:
        opened, entry = await m.create("vol/a")
        await m.vfs.files.write(opened.handle, 0, b"one ")
        await m.vfs.files.write(opened.handle, 4, b"two")
        assert m.volume.content("a") == b""
        assert (await m.vfs.tree.getattr(entry.number)).attr.size == 7
        assert (await m.lookup("vol/a")).attr.size == 7
        listed = {item.name: item.entry.attr.size for item in await m.listing("vol")}
        assert listed[b"a"] == 7
        other = await m.open("vol/a")
        assert bytes(await m.vfs.files.read(other, 0, 100)) == b"one two"
        await m.vfs.files.flush(opened.handle)
        assert m.volume.content("a") == b"one two"


async def test_flush_of_a_clean_file_asks_nobody() -> None:
    async with mounted() as m:
        await m.write_file("vol/a", b"x")
        handle = await m.open("vol/a")
        before = m.volume.requests.total()
        for _ in range(3):
            await m.vfs.files.flush(handle)
        await m.vfs.files.release(handle)
        assert m.volume.requests.total() == before


async def test_a_hole_before_the_first_byte_is_zero() -> None:
    async with mounted() as m:
        opened, _ = await m.create("vol/a")
        await m.vfs.files.write(opened.handle, 10, b"x")
        await m.vfs.files.write(opened.handle, 3, b"yz")
        await m.close(opened.handle)
        assert m.volume.content("a") == b"\0\0\0yz\0\0\0\0\0x"


async def test_a_large_file_streams_in_parallel_with_bounded_memory() -> None:
    async with mounted(chunk_bytes=256 << 10, unsent_bytes=MIB) as m:
        content = random.Random(1).randbytes(12 * MIB)
        opened, _ = await m.create("vol/a")
        for start in range(0, len(content), 128 << 10):
            await m.vfs.files.write(opened.handle, start, content[start : start + (128 << 10)])
            assert m.vfs.context.dirty.used <= 3 * MIB
        assert m.volume.most_writing > 1
        await m.close(opened.handle)
        assert m.volume.content("a") == content
        assert m.volume.requests["NameObject"] == 1
        assert m.volume.requests["StoreContent"] == 0
        assert m.vfs.context.dirty.used == 0
        assert m.volume.by_path("a").in_place


async def test_a_small_file_that_outgrows_memory_keeps_its_beginning() -> None:
    async with mounted() as m:
        await m.write_file("vol/a", b"a" * (MIB - 10))
        handle = await m.open("vol/a", os.O_WRONLY | os.O_APPEND)
        await m.vfs.files.write(handle, MIB - 10, b"b" * 20)
        await m.close(handle)
        assert m.volume.content("a") == b"a" * (MIB - 10) + b"b" * 20
        assert m.volume.requests["MakeWritable"] == 1


async def test_a_large_file_is_changed_in_place() -> None:
    async with mounted() as m:
        content = bytearray(random.Random(2).randbytes(3 * MIB))
        await m.write_file("vol/a", bytes(content))
        file_id = m.volume.by_path("a").file_id
        handle = await m.open("vol/a", os.O_RDWR)
        for offset in (5, MIB, 2 * MIB + 17, 3 * MIB - 1, 7):
            await m.vfs.files.write(handle, offset, b"change")
            content[offset : offset + 6] = b"change"
        # Read back through the same mount before anything is published.
        assert bytes(await m.vfs.files.read(handle, MIB - 5, 50)) == content[MIB - 5 : MIB + 45]
        await m.close(handle)
        assert m.volume.content("a") == content
        assert m.volume.by_path("a").file_id == file_id
        assert m.volume.requests["CommitWrite"] == 1


async def test_an_immutable_large_file_is_made_writable_once() -> None:
    async with mounted() as m:
        file_id = m.volume.upload(b"z" * (2 * MIB))
        link = await m.lookup(f"vol/{file_id}")
        parent = (await m.lookup("vol")).number
        await m.vfs.tree.link(link.number, parent, b"a")
        for _ in range(2):
            handle = await m.open("vol/a", os.O_WRONLY)
            await m.vfs.files.write(handle, 1, b"!")
            await m.close(handle)
        assert m.volume.requests["MakeWritable"] == 1
        assert m.volume.content("a") == b"z!" + b"z" * (2 * MIB - 2)
        # The object that an application uploaded was not touched.
        assert m.volume.objects[file_id] == b"z" * (2 * MIB)


async def test_random_writes_overlapping_what_is_under_way_stay_in_order() -> None:
    async with mounted(chunk_bytes=4096, unsent_chunks=8) as m:
        rng = random.Random(3)
        content = bytearray(2 * MIB)
        opened, _ = await m.create("vol/a")
        await m.vfs.files.write(opened.handle, 0, bytes(2 * MIB))
        for _ in range(300):
            offset = rng.randrange(40_000)
            data = rng.randbytes(rng.randrange(1, 9000))
            content[offset : offset + len(data)] = data
            await m.vfs.files.write(opened.handle, offset, data)
            if rng.random() < 0.1:
                start = rng.randrange(45_000)
                got = bytes(await m.vfs.files.read(opened.handle, start, 5000))
                assert got == content[start : start + 5000]
        await m.close(opened.handle)
        assert m.volume.content("a") == content


async def test_scattered_writes_are_sent_together() -> None:
    async with mounted() as m:
        rng = random.Random(4)
        content = bytearray(8 * MIB)
        await m.write_file("vol/a", bytes(content))
        handle = await m.open("vol/a", os.O_RDWR)
        before = m.volume.requests["write"]
        blocks = rng.sample(range(2048), 2 * (names.WRITE_PIECES_MAX + 1))
        for block in blocks:
            data = rng.randbytes(4096)
            await m.vfs.files.write(handle, block * 4096, data)
            content[block * 4096 : block * 4096 + 4096] = data
        await m.close(handle)
        assert m.volume.requests["write"] == before + 2
        assert m.volume.content("a") == content


async def test_scattered_writes_that_overlap_are_sent_in_order() -> None:
    async with mounted() as m:
        content = bytearray(2 * MIB)
        await m.write_file("vol/a", bytes(content))
        handle = await m.open("vol/a", os.O_RDWR)
        before = m.volume.requests["write"]
        pieces = [
            (100_000, b"a" * 100),
            (500, b"b" * 100),
            (100_010, b"c" * 10),  # inside of the first one
            (590, b"d" * 20),  # across the end of the second one: these two cannot go together
            (3, b"e"),
        ]
        for offset, data in pieces:
            await m.vfs.files.write(handle, offset, data)
            content[offset : offset + len(data)] = data
        await m.close(handle)
        assert m.volume.requests["write"] == before + 2
        assert m.volume.content("a") == content


async def test_a_write_that_waits_for_one_that_fails_is_not_overwritten_by_it() -> None:
    chunk = 64 << 10
    async with mounted(chunk_bytes=chunk) as m:
        await m.write_file("vol/a", bytes(2 * MIB))
        handle = await m.open("vol/a", os.O_RDWR)
        m.volume.gate = gate = trio.Event()
        m.volume.fail["write"] = StatusError(errno.ENOSPC)
        await m.vfs.files.write(handle, 0, b"1" * chunk)
        failures: list[int | None] = []

        async def write_over() -> None:
            try:
                await m.vfs.files.write(handle, 0, b"2" * chunk)
            except StatusError as exc:
                failures.append(exc.errno)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_over)
            await wait_for(lambda: m.volume.writing == 1)
            gate.set()
        assert failures == [errno.ENOSPC]
        m.volume.fail.clear()
        # The program tries again.
        await m.vfs.files.flush(handle)
        await m.vfs.files.write(handle, 0, b"2" * chunk)
        await m.close(handle)
        assert m.volume.content("a")[:chunk] == b"2" * chunk
        assert m.vfs.context.dirty.used == 0


async def test_content_that_an_open_brings_while_a_write_waits_for_memory_is_counted_off() -> None:
    async with mounted(dirty_bytes=100_000) as m:
        await m.write_file("vol/a", b"x" * 50_000)
        full, _ = await m.create("vol/full")
        m.volume.fail[names.StoreContent] = StatusError(errno.ENOSPC)
        await m.vfs.files.write(full.handle, 0, bytes(90_000))
        handle = await m.open("vol/a", os.O_RDWR)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.vfs.files.write, handle, 0, b"!")
            await wait_for(lambda: bool(m.vfs.context.dirty._waiters))
            await m.volume.change(names.StoreContent(m.volume.by_path("a").ino, b"y" * 40_000, 1))
            again = await m.open("vol/a")
            assert m.vfs.context.clean_used == 40_000
            m.volume.fail.clear()
            await m.vfs.files.flush(full.handle)
        for opened in (handle, again, full.handle):
            await m.close(opened)
        assert (m.vfs.context.clean_used, m.vfs.context.dirty.used) == (0, 0)


async def test_scattered_writes_that_failed_are_kept() -> None:
    async with mounted() as m:
        await m.write_file("vol/a", bytes(2 * MIB))
        handle = await m.open("vol/a", os.O_RDWR)
        m.volume.fail["write"] = StatusError(errno.ENOSPC)
        for offset in (MIB, 7, 9000):
            await m.vfs.files.write(handle, offset, b"x")
        with pytest.raises(StatusError):
            await m.vfs.files.flush(handle)
        assert m.vfs.context.dirty.used == 3
        m.volume.fail.clear()
        await m.close(handle)
        assert m.vfs.context.dirty.used == 0
        stored = m.volume.content("a")
        assert [stored[offset] for offset in (MIB, 7, 9000)] == [ord("x")] * 3


@pytest.mark.parametrize("size", [0, 3, 2000, 3 * MIB])
@pytest.mark.parametrize("old", [0, 1000, 2 * MIB])
@pytest.mark.parametrize("by_handle", [True, False])
async def test_truncate(old: int, size: int, by_handle: bool) -> None:
    async with mounted() as m:
        content = random.Random(old).randbytes(old)
        entry = await m.write_file("vol/a", content)
        handle = await m.open("vol/a", os.O_RDWR) if by_handle else None
        changed = await m.vfs.set_attributes(entry.number, size, Changes(), handle)
        assert changed.attr.size == size
        wanted = content[:size] + bytes(max(0, size - old))
        if handle is None:
            assert m.volume.content("a") == wanted
            assert not m.vfs.context.states
        else:
            await m.vfs.files.write(handle, size, b"end")
            await m.close(handle)
            assert m.volume.content("a") == wanted + b"end"
        assert m.vfs.context.dirty.used == 0


async def test_open_with_truncation_stores_once() -> None:
    async with mounted() as m:
        await m.write_file("vol/a", b"old content")
        before = m.volume.requests.copy()
        handle = await m.open("vol/a", os.O_WRONLY | os.O_TRUNC)
        assert m.volume.content("a") == b"old content"
        await m.vfs.files.write(handle, 0, b"new")
        await m.close(handle)
        assert m.volume.content("a") == b"new"
        assert (m.volume.requests - before)["StoreContent"] == 1
        handle = await m.open("vol/a", os.O_WRONLY | os.O_TRUNC)
        await m.close(handle)
        assert m.volume.content("a") == b""


async def test_a_time_set_after_the_write_survives_the_flush() -> None:
    async with mounted() as m:
        opened, entry = await m.create("vol/a")
        await m.vfs.files.write(opened.handle, 0, b"data")
        changes = Changes(mode=0o600, atime_ns=1, mtime_ns=123_456_789)
        await m.vfs.set_attributes(entry.number, None, changes, opened.handle)
        assert (await m.vfs.tree.getattr(entry.number)).attr.mtime_ns == 123_456_789
        await m.close(opened.handle)
        attr = m.volume.by_path("a")
        assert (attr.mtime_ns, attr.atime_ns, attr.mode & 0o777) == (123_456_789, 1, 0o600)
        assert m.volume.content("a") == b"data"


async def test_release_without_flush_stores() -> None:
    async with mounted() as m:
        opened, _ = await m.create("vol/a")
        await m.vfs.files.write(opened.handle, 0, b"data")
        await m.vfs.files.release(opened.handle)
        assert m.volume.content("a") == b"data"
        assert not m.vfs.context.states


async def test_unlinked_files_go_on() -> None:
    async with mounted(held_after_s=0.0) as m:
        await m.write_file("vol/a", b"data")
        handle = await m.open("vol/a", os.O_RDWR)
        ino = m.volume.by_path("a").ino
        await wait_for(lambda: ino in m.volume.held)
        parent, name = await m.parent("vol/a")
        await m.vfs.tree.remove(parent, name, directory=False)
        await m.vfs.files.write(handle, 4, b" more")
        await m.vfs.files.flush(handle)
        assert bytes(await m.vfs.files.read(handle, 0, 100)) == b"data more"
        await m.vfs.files.release(handle)
        await wait_for(lambda: ino not in m.volume.held)


async def test_an_error_of_a_late_write_is_told_and_the_data_kept() -> None:
    async with mounted(chunk_bytes=64 << 10) as m:
        opened, _ = await m.create("vol/a")
        await m.vfs.files.write(opened.handle, 0, b"a" * MIB)
        m.volume.fail["write"] = StatusError(errno.ENOSPC)
        await m.vfs.files.write(opened.handle, MIB, b"b" * MIB)
        with pytest.raises(StatusError, match="No space"):
            await m.vfs.files.flush(opened.handle)
        with pytest.raises(StatusError, match="No space"):
            await m.vfs.files.write(opened.handle, 2 * MIB, b"c")
        m.volume.fail.clear()
        await m.vfs.files.flush(opened.handle)
        assert m.volume.content("a") == b"a" * MIB + b"b" * MIB
        await m.close(opened.handle)
        assert m.vfs.context.dirty.used == 0


async def test_what_cannot_be_stored_can_be_cut_off() -> None:
    async with mounted() as m:
        opened, entry = await m.create("vol/a")
        m.volume.fail["write"] = StatusError(errno.ENOSPC)
        await m.vfs.files.write(opened.handle, 0, b"a" * 2 * MIB)
        with pytest.raises(StatusError, match="No space"):
            await m.vfs.set_attributes(entry.number, MIB, Changes(), opened.handle)
        await m.vfs.set_attributes(entry.number, 0, Changes(), opened.handle)
        await m.vfs.files.write(opened.handle, 0, b"small")
        await m.close(opened.handle)
        assert m.volume.content("a") == b"small"
        assert m.vfs.context.dirty.used == 0


async def test_a_write_that_makes_a_file_too_large_fails_at_once() -> None:
    async with mounted() as m:
        opened, _ = await m.create("vol/a")
        await m.vfs.files.write(opened.handle, 0, b"data")
        m.volume.fail["write"] = StatusError(errno.EFBIG)
        with pytest.raises(StatusError, match="too large"):
            await m.vfs.files.write(opened.handle, 1 << 61, b"x")
        m.volume.fail.clear()
        await m.vfs.files.write(opened.handle, 4, b" of it")
        await m.close(opened.handle)
        assert m.volume.content("a") == b"data of it"
        assert m.vfs.context.dirty.used == 0


async def test_a_file_is_opened_while_a_write_far_behind_its_end_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Content that open() brings is not that of the file any more."""
    monkeypatch.setattr("fdfsfuse.vfs.files._FAR", MIB)
    async with mounted() as m, trio.open_nursery() as nursery:
        entry = await m.write_file("vol/a", b"before")
        handle = await m.open("vol/a", os.O_RDWR)
        state = m.vfs.context.states[entry.number]
        write_object, sending, go_on = m.volume.write_object, trio.Event(), trio.Event()

        async def slow(head: names.WriteObject, data: Sequence[bytes]) -> None:
            sending.set()
            await go_on.wait()
            await write_object(head, data)

        monkeypatch.setattr(m.volume, "write_object", slow)
        nursery.start_soon(m.vfs.files.write, handle, 3 * MIB, b"far")
        await sending.wait()
        state.opened(state.attr, b"before")
        go_on.set()
        async with state.lock:
            pass
        assert bytes(await m.vfs.files.read(handle, 3 * MIB - 1, 10)) == b"\0far"
        await m.close(handle)
        assert m.volume.content("a") == b"before" + bytes(3 * MIB - 6) + b"far"
        assert m.vfs.context.dirty.used == m.vfs.context.clean_used == 0


async def test_a_write_far_behind_the_end_cuts_off_nothing_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They may have made the file larger than this mount knows."""
    monkeypatch.setattr("fdfsfuse.vfs.files._FAR", MIB)
    async with mounted() as m:
        await m.write_file("vol/a", b"a" * 2 * MIB)
        handle = await m.open("vol/a", os.O_RDWR)
        await m.vfs.files.write(handle, 0, b"own")
        attr = m.volume.by_path("a")
        assert attr.in_place
        far = names.WriteObject(attr.file_id, m.volume.view, 6 * MIB, MIB, [])
        await m.volume.write_object(far, [b"c" * MIB])
        await m.volume.call(names.CommitWrite(attr.ino, attr.file_id, 7 * MIB, 1))
        await m.vfs.files.write(handle, 4 * MIB, b"b")
        await m.vfs.files.flush(handle)
        there = bytes(2 * MIB) + b"b" + bytes(2 * MIB - 1) + b"c" * MIB
        assert m.volume.content("a") == b"own" + b"a" * (2 * MIB - 3) + there
        m.volume.fail["write"] = StatusError(errno.ENOSPC)
        await m.vfs.files.write(handle, 9 * MIB, b"d")
        with pytest.raises(StatusError, match="No space"):
            await m.vfs.files.flush(handle)
        m.volume.fail.clear()
        await m.close(handle)
        there += bytes(2 * MIB) + b"d"
        assert m.volume.content("a") == b"own" + b"a" * (2 * MIB - 3) + there
        assert m.vfs.context.dirty.used == 0


async def test_a_small_file_that_cannot_be_stored_is_kept_for_the_next_flush() -> None:
    async with mounted() as m:
        opened, _ = await m.create("vol/a")
        await m.vfs.files.write(opened.handle, 0, b"data")
        m.volume.fail[names.StoreContent] = StatusError(errno.EIO)
        with pytest.raises(StatusError):
            await m.vfs.files.flush(opened.handle)
        m.volume.fail.clear()
        await m.vfs.files.flush(opened.handle)
        assert m.volume.content("a") == b"data"
        await m.close(opened.handle)


async def test_what_cannot_be_stored_at_all_gives_its_memory_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mounted() as m:
        m.volume.fail.update({"write": StatusError(errno.ENOSPC)})
        m.volume.fail[names.StoreContent] = StatusError(errno.ENOSPC)
        for name, size in (("vol/small", 10), ("vol/large", 2 * MIB)):
            opened, _ = await m.create(name)
            await m.vfs.files.write(opened.handle, 0, b"d" * size)
            with pytest.raises(StatusError):
                await m.vfs.files.flush(opened.handle)
            await m.vfs.files.release(opened.handle)
        assert m.vfs.context.dirty.used == 0
        assert "could not be stored" in caplog.text


async def test_writers_wait_while_memory_is_short_and_idle_files_are_stored() -> None:
    async with mounted(dirty_bytes=256 << 10, write_back_s=NEVER) as m:
        handles = []
        for i in range(20):
            opened, _ = await m.create(f"vol/{i}")
            await m.vfs.files.write(opened.handle, 0, bytes([i]) * (60 << 10))
            assert m.vfs.context.dirty.used <= 256 << 10
            handles.append(opened.handle)
        for handle in handles:
            await m.close(handle)
        for i in range(20):
            assert m.volume.content(str(i)) == bytes([i]) * (60 << 10)


async def test_content_that_nobody_flushes_is_stored_after_a_while() -> None:
    async with mounted(write_back_s=0.0) as m:
        opened, _ = await m.create("vol/log")
        await m.vfs.files.write(opened.handle, 0, b"line\n")
        await wait_for(lambda: m.volume.content("log") == b"line\n")
        await m.close(opened.handle)


async def test_write_back_tells_its_error_to_the_next_call() -> None:
    async with mounted(write_back_s=0.0) as m:
        opened, _ = await m.create("vol/log")
        await m.vfs.files.write(opened.handle, 0, b"line\n")
        m.volume.fail[names.StoreContent] = StatusError(errno.EDQUOT)
        await wait_for(lambda: m.volume.requests["StoreContent"] > 0)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(StatusError, match="quota"):
            await m.vfs.files.write(opened.handle, 5, b"more\n")
        m.volume.fail.clear()
        await m.vfs.files.write(opened.handle, 5, b"more\n")
        await m.close(opened.handle)
        assert m.volume.content("log") == b"line\nmore\n"


async def test_a_replaced_object_is_followed_when_it_is_changed_in_memory() -> None:
    async with mounted() as m:
        await m.write_file("vol/a", b"first version")
        handle = await m.open("vol/a", os.O_RDWR)
        # Another mount stores something else meanwhile.
        ino = m.volume.by_path("a").ino
        await m.volume.change(names.StoreContent(ino, b"SECOND", 5))
        await m.vfs.files.write(handle, 0, b"_")
        await m.close(handle)
        assert m.volume.content("a") == b"_ECOND"


async def test_store_all_counts_what_is_left() -> None:
    async with mounted() as m:
        for name in ("vol/a", "vol/b"):
            opened, _ = await m.create(name)
            await m.vfs.files.write(opened.handle, 0, name.encode())
        assert await m.vfs.files.store_all() == 0
        assert m.volume.content("a") == b"vol/a"
        opened, _ = await m.create("vol/c")
        await m.vfs.files.write(opened.handle, 0, b"c")
        m.volume.fail[names.StoreContent] = StatusError(errno.EIO)
        assert await m.vfs.files.store_all() == 1


async def check_model(m: Mounted, rng: random.Random) -> None:
    """Random changes of one file against a bytearray, with sizes around the limit of memory."""
    model = bytearray()
    opened, entry = await m.create("vol/model")
    handle = opened.handle
    for _ in range(60):
        action = rng.random()
        offset = rng.choice([0, len(model), rng.randrange(len(model) + 1), MIB - 3])
        if action < 0.5:
            data = rng.randbytes(rng.choice([1, 100, 5000, 300_000]))
            await m.vfs.files.write(handle, offset, data)
            model.extend(bytes(max(0, offset - len(model))))
            model[offset : offset + len(data)] = data
        elif action < 0.6:
            size = rng.choice([0, offset, len(model) + 1000])
            await m.vfs.set_attributes(entry.number, size, Changes(), handle)
            model = model[:size] + bytes(max(0, size - len(model)))
        elif action < 0.7:
            await m.close(handle)
            handle = await m.open("vol/model", os.O_RDWR)
        elif action < 0.8:
            await m.vfs.files.flush(handle)
            assert m.volume.content("model") == model
        else:
            got = bytes(await m.vfs.files.read(handle, offset, 70_000))
            assert got == model[offset : offset + len(got)]
            assert len(got) >= min(70_000, len(model) - offset) or len(got) > 0
        assert (await m.vfs.tree.getattr(entry.number)).attr.size == len(model)
    await m.close(handle)
    assert m.volume.content("model") == model
    assert m.vfs.context.dirty.used == 0
    assert m.vfs.context.clean_used == 0


@pytest.mark.parametrize("seed", range(12))
async def test_random_changes_match_a_model(seed: int) -> None:
    async with mounted(chunk_bytes=64 << 10) as m:
        await check_model(m, random.Random(seed))


async def test_a_file_opened_again_while_its_last_handle_is_stored() -> None:
    async with mounted() as m:
        opened, entry = await m.create("vol/a")
        await m.vfs.files.write(opened.handle, 0, b"first")
        m.volume.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.vfs.files.release, opened.handle)
            await trio.testing.wait_all_tasks_blocked()
            second = (await m.vfs.files.open(entry.number, os.O_RDWR)).handle
            nursery.start_soon(m.vfs.files.write, second, 5, b" second")
            await trio.testing.wait_all_tasks_blocked()
            m.volume.gate.set()
        await m.vfs.files.release(second)
        assert m.volume.content("a") == b"first second"
        assert not m.vfs.context.states
        assert m.vfs.context.dirty.used == 0


@pytest.mark.parametrize("size", [10, 2 * MIB])
async def test_a_read_sees_the_writes_that_came_before_it(size: int) -> None:
    async with mounted() as m:
        opened, _ = await m.create("vol/a")
        files, handle = m.vfs.files, opened.handle
        await files.write(handle, 0, b"a" * size)
        m.volume.gate = trio.Event()
        read: list[bytes] = []

        async def read_start() -> None:
            read.append(bytes(await files.read(handle, 0, 6)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(files.flush, handle)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(files.write, handle, 0, b"new")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(read_start)
            await trio.testing.wait_all_tasks_blocked()
            m.volume.gate.set()
        assert read == [b"newaaa"]
        await m.close(handle)
        assert m.volume.content("a") == b"new" + b"a" * (size - 3)


async def test_a_volume_that_is_down_takes_nothing_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with mounted("vol", "other", dirty_bytes=100_000, write_back_s=NEVER) as m:
        opened, _ = await m.create("vol/a")
        await m.vfs.files.write(opened.handle, 0, b"x" * 90_000)
        m.volume.down = True
        with pytest.raises(ConnectionProblem):
            await m.vfs.files.flush(opened.handle)
        with pytest.raises(ConnectionProblem):
            await m.vfs.files.write(opened.handle, 90_000, b"y")
        other, _ = await m.create("other/a")
        # What could not be stored is kept, so there is no room; nobody waits for ever.
        with pytest.raises(ConnectionProblem, match="no memory"):
            await m.vfs.files.write(other.handle, 0, b"z" * 50_000)
        m.volume.down = False
        await trio.sleep(10)
        await m.vfs.files.flush(opened.handle)
        await m.vfs.files.write(other.handle, 0, b"z" * 50_000)
        await m.close(other.handle)
        assert m.volume.content("a") == b"x" * 90_000
