"""Reading ahead over the files of a directory: when it is done, and that it shows nothing old."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable, Iterable

import pytest
import trio
import trio.testing

from fdfsfuse.errors import StatusError, TreeError
from fdfsfuse.proto import names
from fdfsfuse.vfs.ahead import Ahead, Contents
from tests.common.fake_volume import FakeBackend
from tests.common.waiting import wait_for
from tests.vfs.common import Mounted, mounted

MOST = 32


def take(ahead: Ahead, directory: int, files: Iterable[int], order: list[int]) -> tuple[int, int]:
    """Open *files* where the storage tells of them in *order*: (calls, entries in vain)."""
    calls, asked = 0, 0
    held: set[int] = set()
    for ino in files:
        if ino in held:
            held.discard(ino)
            ahead.used(directory, ino)
            continue
        calls += 1
        count, by_name, _ = ahead.missed(directory, ino)
        if count:
            assert count <= MOST
            at = sorted(order).index(ino) if not by_name else order.index(ino)
            behind = (sorted(order) if not by_name else order)[at + 1 : at + 1 + count]
            held |= set(behind)
            asked += len(behind)
            ahead.came(directory, set(behind))
    return calls, len(held)


def test_one_file_after_the_other_takes_few_calls() -> None:
    ahead = Ahead(MOST)
    files = list(range(100, 600))
    calls, vain = take(ahead, 1, files, files)
    assert calls < 25
    assert vain == 0
    # The next directory begins with what this one has earned.
    files = list(range(1000, 1030))
    assert take(ahead, 2, files, files) == (1, 0)


def test_the_order_of_the_names_is_found_out() -> None:
    # Inode numbers do not rise from name to name.
    by_name = random.Random(1).sample(range(100, 600), 500)
    calls, _ = take(Ahead(MOST), 1, by_name, by_name)
    assert calls < 80


def test_who_waits_for_what_comes_is_not_forgotten_with_the_directory() -> None:
    ahead = Ahead(MOST)
    while not ahead.missed(1, 5).entries:
        pass
    coming = ahead.coming(1)
    assert coming is not None
    for directory in range(2, 1000):
        ahead.missed(directory, 5)
    assert ahead.coming(1) is coming
    ahead.came(1, set())
    assert coming.is_set()
    assert ahead.coming(1) is None


def test_at_random_little_is_asked_for_in_vain() -> None:
    rng = random.Random(2)
    files = list(range(100_000))
    calls, vain = take(Ahead(MOST), 1, [rng.randrange(100_000) for _ in range(3000)], files)
    assert vain < calls / 3


def test_directories_of_which_one_file_is_read_are_not_read_ahead_for_long() -> None:
    ahead = Ahead(MOST)
    take(ahead, 1, range(100), list(range(100)))
    asked = [ahead.missed(directory, directory * 100).entries for directory in range(2, 100)]
    assert sum(map(bool, asked)) <= 4


def test_where_few_of_many_files_are_read_they_are_not_read_ahead_for_long() -> None:
    ahead, vain = Ahead(MOST), 0
    for directory in range(1, 50):
        files = list(range(directory * 100, directory * 100 + 100))
        vain += take(ahead, directory, files[:2], files)[1]
    assert vain == 0
    take(ahead, 50, range(10_000, 10_100), list(range(10_000, 10_100)))
    for directory in range(51, 100):
        files = list(range(directory * 1000, directory * 1000 + 100))
        vain += take(ahead, directory, files[:2], files)[1]
    assert vain < 100


def test_small_directories_take_a_call_each() -> None:
    ahead = Ahead(MOST)
    take(ahead, 1, range(100, 200), list(range(100, 200)))
    for directory in range(2, 50):
        files = list(range(directory * 1000, directory * 1000 + 5))
        assert take(ahead, directory, files, files) == (1, 0)


def test_one_call_at_a_time_asks_for_more() -> None:
    ahead = Ahead(MOST)
    counts = [ahead.missed(1, ino).entries for ino in range(60)]
    assert len(list(filter(None, counts))) == 1
    ahead.came(1, set())
    assert any(ahead.missed(1, ino).entries for ino in range(60, 100))
    assert ahead.missed(0, 5).entries == 0


def test_more_is_asked_for_when_half_of_what_came_is_used() -> None:
    ahead = Ahead(MOST)
    count = next(w.entries for ino in range(3) if (w := ahead.missed(1, ino)).entries)
    assert not ahead.onward(1).entries  # the first are on their way still
    ahead.came(1, set(range(3, 3 + count)), 2 + count)
    for ino in range(3, 3 + count // 2):
        assert not ahead.onward(1).entries
        ahead.used(1, ino)
    onward = ahead.onward(1)
    assert (onward.after, onward.entries >= count) == (2 + count, True)
    assert not ahead.onward(1).entries
    # Nothing is asked for behind the last one.
    ahead.came(1, {100}, 0)
    for ino in (*range(3, 3 + count), 100):
        ahead.used(1, ino)
    assert not ahead.onward(1).entries


def test_content_is_bounded_and_of_one_version() -> None:
    contents = Contents(100)
    for number in range(10):
        contents.put(number, 1, b"x" * 30)
    assert contents.used == 90
    assert contents.take(6, 1) is None
    assert contents.take(7, 2) is None
    assert contents.take(8, 1) == b"x" * 30
    assert contents.take(8, 1) is None
    contents.put(9, 2, b"y")
    assert contents.used == 1
    contents.put(1, 1, b"z" * 101)
    assert contents.used == 0
    contents.put(1, 1, b"z")
    contents.clear()
    assert (contents.used, contents.take(1, 1)) == (0, None)


# --- in the mount ---------------------------------------------------------------------------------

COUNT = 60


async def store(volume: FakeBackend, name: bytes, data: bytes, parent: int = 1) -> int:
    """A file that another mount makes."""
    ino: int = (await volume.change(names.Create(parent, name, 0o100644, 0, 0, 1))).ino
    await volume.change(names.StoreContent(ino, data, 1))
    return ino


def path(number: int) -> str:
    return f"vol/f{number:03}"


async def prepare(m: Mounted) -> None:
    for number in range(COUNT):
        await store(m.volume, b"f%03d" % number, b"content %d" % number)


async def read(m: Mounted, number: int) -> bytes:
    """As a program does, behind a kernel that knows nothing."""
    try:
        return await m.read_file(path(number))
    finally:
        m.vfs.context.pages.drop((await m.lookup(path(number))).number)


async def test_files_in_a_row_come_in_few_calls() -> None:
    async with mounted() as m:
        await prepare(m)
        before = m.volume.requests.copy()
        for number in range(COUNT):
            assert await read(m, number) == b"content %d" % number
        grown = m.volume.requests - before
        assert grown["Open"] <= 6
        assert grown["Lookup"] <= 6
        assert grown["read"] == 0
        assert m.vfs.context.contents.used == 0


async def test_who_misses_a_file_waits_for_those_that_are_on_their_way() -> None:
    async with mounted() as m:
        await prepare(m)
        for number in range(2):
            await read(m, number)
        third = (await m.lookup(path(2))).number
        m.volume.requests.clear()
        gate = m.volume.gate = trio.Event()
        contents: dict[int, bytes] = {}

        async def keep(number: int) -> None:
            contents[number] = await read(m, number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.vfs.files.open, third, os.O_RDONLY)
            await wait_for(lambda: m.volume.requests["Open"] == 1)
            for number in range(3, 6):
                nursery.start_soon(keep, number)
            await trio.testing.wait_all_tasks_blocked()
            m.volume.gate = None
            gate.set()
        assert contents == {number: b"content %d" % number for number in range(3, 6)}
        assert m.volume.requests == {"Open": 1}


async def test_listed_files_come_in_few_calls() -> None:
    async with mounted() as m:
        await prepare(m)
        listed = [entry.entry.number for entry in await m.listing("vol") if entry.counts]
        before = m.volume.requests.copy()
        for number in listed[:COUNT]:
            handle = (await m.vfs.files.open(number, os.O_RDONLY)).handle
            assert bytes(await m.vfs.files.read(handle, 0, 7)) == b"content"
            await m.close(handle)
        assert (m.volume.requests - before).total() <= 6


async def test_attributes_in_a_row_come_in_few_calls() -> None:
    async with mounted() as m:
        await prepare(m)
        before = m.volume.requests.copy()
        for number in range(COUNT):
            assert (await m.lookup(path(number))).attr == m.volume.by_path(f"f{number:03}")
        assert (m.volume.requests - before).total() <= 8
        assert m.vfs.context.contents.used == 0


async def test_xattrs_in_a_row_come_in_few_calls_and_are_never_old() -> None:
    async with mounted() as m:
        await prepare(m)
        last = m.volume.by_path(f"f{COUNT - 1:03}").ino
        listed = [entry.entry.number for entry in await m.listing("vol") if entry.counts][:COUNT]
        before = m.volume.requests.copy()
        for number in listed[:-1]:
            assert await m.vfs.xattrs.list(number) == []
        assert (m.volume.requests - before).total() <= 8
        await m.volume.change(names.SetXattr(last, b"user.a", b"1", 0, 3))
        assert await m.vfs.xattrs.list(listed[-1]) == [b"user.a"]


async def test_xattrs_that_are_known_are_not_replaced_by_what_follows() -> None:
    async with mounted() as m:
        await prepare(m)
        numbers = [(await m.lookup(path(number))).number for number in range(20)]
        for number in numbers[10:]:
            await m.vfs.xattrs.set(number, b"user.a", b"%d" % number)
        for number in numbers:
            await m.vfs.xattrs.list(number)
        for number in numbers[10:]:
            assert await m.vfs.xattrs.get(number, b"user.a") == b"%d" % number


async def test_that_nothing_is_told_of_what_follows_is_no_error() -> None:
    async with mounted() as m:
        await prepare(m)
        m.volume.fail[names.Open] = StatusError(5)
        for number in range(COUNT):
            await m.lookup(path(number))


async def _replace(m: Mounted, name: bytes) -> None:
    await store(m.volume, b"other", b"another file")
    await m.volume.change(names.Rename(1, b"other", 1, name, 0, 3))


async def _store(m: Mounted, name: bytes) -> None:
    ino = m.volume.by_path(name.decode()).ino
    await m.volume.change(names.StoreContent(ino, b"new", 3))


async def _truncate(m: Mounted, name: bytes) -> None:
    ino = m.volume.by_path(name.decode()).ino
    await m.volume.change(names.Truncate(ino, 3, 3))


async def _unlink(m: Mounted, name: bytes) -> None:
    await m.volume.change(names.Remove(1, name, False, 3))


async def _rename(m: Mounted, name: bytes) -> None:
    await m.volume.change(names.Rename(1, name, 1, b"renamed", 0, 3))


async def _lease(m: Mounted, name: bytes) -> None:
    """It is changed while the mount is away for longer than its lease."""
    listener, m.volume.listener = m.volume.listener, None
    await _store(m, name)
    assert listener is not None
    listener.lease_lost()
    m.volume.listener = listener


CHANGES = [_replace, _store, _truncate, _unlink, _rename, _lease]


async def seen(m: Mounted, number: int) -> bytes | None:
    try:
        return await read(m, number)
    except (TreeError, StatusError):
        return None


@pytest.mark.parametrize("change", CHANGES)
async def test_what_changed_after_it_came_is_read_anew(
    change: Callable[[Mounted, bytes], Awaitable[None]],
) -> None:
    async with mounted() as m:
        await prepare(m)
        for number in range(4):
            await read(m, number)
        assert m.vfs.context.contents.used > 0
        await change(m, b"f005")
        here = m.volume.directories[1].entries
        expected = m.volume.content("f005") if b"f005" in here else None
        assert expected != b"content 5"
        assert await seen(m, 4) == b"content 4"
        assert await seen(m, 5) == expected


@pytest.mark.parametrize("change", CHANGES)
async def test_what_changed_while_it_came_is_read_anew(
    change: Callable[[Mounted, bytes], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recall overtakes the answer, which is older."""
    async with mounted() as m:
        await prepare(m)
        for number in range(2):
            await read(m, number)
        await m.lookup(path(2))
        call, gate, answered = m.volume.call, trio.Event(), trio.Event()

        async def late(request: names.Request, *, timeout_s: float | None = None) -> object:
            answer = await call(request, timeout_s=timeout_s)
            answered.set()
            await gate.wait()
            return answer

        monkeypatch.setattr(m.volume, "call", late)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, m, 2)
            await answered.wait()
            await change(m, b"f005")
            gate.set()
        monkeypatch.undo()
        here = m.volume.directories[1].entries
        expected = m.volume.content("f005") if b"f005" in here else None
        assert await seen(m, 5) == expected
        assert await seen(m, 4) == b"content 4"


async def test_without_read_ahead_no_file_is_read_ahead() -> None:
    async with mounted(read_ahead_bytes=0) as m:
        await prepare(m)
        listed = [entry.entry.number for entry in await m.listing("vol") if entry.counts]
        before = m.volume.requests.copy()
        for number in listed[:COUNT]:
            await m.close((await m.vfs.files.open(number, os.O_RDONLY)).handle)
        assert (m.volume.requests - before)["Open"] == COUNT
        assert m.vfs.context.contents.used == 0
