"""Two mounts change one file at the same time: neither loses what the other one stored."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from fdfsfuse.errors import DeadlineExceeded
from fdfsfuse.proto import names
from tests.common.fake_sessions import Machine, SharedVolume
from tests.common.waiting import wait_for
from tests.vfs.common import OWNER
from tests.vfs.test_coherence import machines

MIB = 1 << 20


class Shared:
    """A file of one name on two machines, and what the storage has of it."""

    def __init__(self, shared: SharedVolume, pair: list[Machine], parents: list[int]) -> None:
        self.shared = shared
        self.pair = pair
        self._parents = parents

    async def open(self, machine: int, flags: int = os.O_RDWR) -> int:
        vfs = self.pair[machine].vfs
        entry = await vfs.tree.lookup(self._parents[machine], b"file")
        vfs.remember(entry)
        return (await vfs.files.open(entry.number, flags)).handle

    async def write(self, machine: int, handle: int, offset: int, data: bytes) -> None:
        await self.pair[machine].vfs.files.write(handle, offset, data)

    async def read(self, machine: int, handle: int, offset: int, length: int) -> bytes:
        return bytes(await self.pair[machine].vfs.files.read(handle, offset, length))

    async def size(self, machine: int) -> int:
        entry = await self.pair[machine].vfs.tree.lookup(self._parents[machine], b"file")
        return entry.attr.size

    async def flush(self, machine: int, handle: int) -> None:
        await self.pair[machine].vfs.files.flush(handle)

    async def close(self, machine: int, handle: int) -> None:
        await self.flush(machine, handle)
        await self.pair[machine].vfs.files.release(handle)

    @property
    def attr(self) -> names.Attr:
        """The file, as the storage has it."""
        storage = self.shared.storage
        return storage.attrs[storage.directories[1].entries[b"file"][1]]

    @property
    def content(self) -> bytes:
        attr = self.attr
        content = bytes(self.shared.storage.objects[attr.file_id]) if attr.file_id else b""
        assert len(content) == attr.size
        return content


@asynccontextmanager
async def shared_file(content: bytes, seed: int = 1) -> AsyncIterator[Shared]:
    async with machines(random.Random(seed)) as (shared, pair):
        parents = [(await machine.vfs.tree.lookup(1, b"vol")).number for machine in pair]
        vfs = pair[0].vfs
        flags = os.O_RDWR | os.O_CREAT
        opened, entry = await vfs.files.create(parents[0], b"file", 0o644, flags, OWNER)
        vfs.remember(entry)
        file = Shared(shared, pair, parents)
        await file.write(0, opened.handle, 0, content)
        await file.close(0, opened.handle)
        yield file
        assert all(machine.vfs.context.dirty.used == 0 for machine in pair)


@pytest.mark.parametrize("first", [0, 1])
async def test_disjoint_ranges_are_all_kept(first: int) -> None:
    async with shared_file(b"-" * 10) as file:
        handles = [await file.open(0), await file.open(1)]
        await file.write(0, handles[0], 2, b"00")
        await file.write(1, handles[1], 6, b"11")
        await file.close(first, handles[first])
        await file.close(1 - first, handles[1 - first])
        assert file.content == b"--00--11--"


async def test_what_both_append_is_all_kept_and_read_in_the_right_place() -> None:
    async with shared_file(b"old\n") as file:
        flags = os.O_RDWR | os.O_APPEND
        handles = [await file.open(0, flags), await file.open(1, flags)]
        await file.write(0, handles[0], 4, b"of one\n")
        await file.write(1, handles[1], 4, b"of the other\n")
        await file.flush(0, handles[0])
        # The second one has been told, and goes behind it before it stores anything.
        assert await file.read(1, handles[1], 0, 100) == b"old\nof one\nof the other\n"
        # Its kernel takes the end to be where it was.
        await file.write(1, handles[1], 17, b"and more\n")
        assert await file.size(1) == 33
        await file.close(1, handles[1])
        await file.close(0, handles[0])
        assert file.content == b"old\nof one\nof the other\nand more\n"


async def test_what_is_appended_goes_to_the_end_whatever_the_kernel_was_told() -> None:
    """An answer with attributes need not reach a kernel that writes at the same time."""
    async with shared_file(b"old\n") as file:
        flags = os.O_RDWR | os.O_APPEND
        one, two = await file.open(0, flags), await file.open(1, flags)
        await file.write(1, two, 4, b"of the other\n")
        await file.close(1, two)
        assert await file.size(0) == 17
        await file.write(0, one, 4, b"of one\n")
        # Not so a page of a mapping.
        await file.write(0, one, 0, b"OLD")
        await file.close(0, one)
        assert file.content == b"OLD\nof the other\nof one\n"


async def test_cutting_off_and_writing_at_once() -> None:
    async with shared_file(b"0123456789") as file:
        one, two = await file.open(0), await file.open(1)
        entry = await file.pair[0].vfs.tree.lookup(file._parents[0], b"file")
        await file.pair[0].vfs.files.truncate(entry.number, 4, one)
        await file.write(1, two, 2, b"x")
        await file.write(1, two, 8, b"y")
        await file.close(1, two)
        await file.close(0, one)
        assert file.content == b"01x3"


async def test_a_file_that_is_replaced_as_a_whole_has_one_content_or_the_other() -> None:
    async with shared_file(b"old") as file:
        flags = os.O_WRONLY | os.O_TRUNC
        handles = [await file.open(0, flags), await file.open(1, flags)]
        await file.write(0, handles[0], 0, b"a long content")
        await file.write(1, handles[1], 0, b"short")
        await file.close(0, handles[0])
        await file.close(1, handles[1])
        assert file.content == b"short"


async def test_a_refused_store_is_made_again_although_nobody_was_told() -> None:
    """As when the storage has wanted to be rid of the inode (``unused``) in between."""
    async with shared_file(b"-" * 6) as file:
        one, two = await file.open(0), await file.open(1)
        await file.write(0, one, 0, b"00")
        await file.write(1, two, 4, b"11")
        session = file.shared.sessions[1]
        listener, session.listener = session.listener, None
        await file.close(0, one)
        session.listener = listener
        await file.close(1, two)
        assert file.content == b"00--11"


@pytest.mark.parametrize("later", [b"", b"later\n"])
async def test_a_store_without_an_answer_does_not_append_twice(later: bytes) -> None:
    async with shared_file(b"old\n") as file:
        handle = await file.open(0, os.O_WRONLY | os.O_APPEND)
        await file.write(0, handle, 4, b"new\n")
        session, real = file.shared.sessions[0], file.shared.sessions[0].call

        async def lost(request: names.Request, *, timeout_s: float | None = None) -> None:
            await real(request)
            raise DeadlineExceeded("the answer was lost")

        session.call = lost  # type: ignore[method-assign]
        with pytest.raises(DeadlineExceeded):
            await file.flush(0, handle)
        session.call = real  # type: ignore[method-assign]
        (volume,) = file.pair[0].vfs.volumes.by_name.values()
        await wait_for(lambda: not volume.down)
        if later:
            await file.write(0, handle, 8, later)
        await file.close(0, handle)
        assert file.content == b"old\nnew\n" + later


@pytest.mark.parametrize("other_size", [10, MIB, 2 * MIB])
async def test_a_file_that_grows_beyond_memory_on_one_side(other_size: int) -> None:
    async with shared_file(b"-" * 1000) as file:
        one, two = await file.open(0, os.O_RDWR | os.O_APPEND), await file.open(1)
        await file.write(0, one, 1000, b"appended")
        await file.write(1, two, 900, b"o" * other_size)
        await file.close(1, two)
        await file.close(0, one)
        size = max(1000, 900 + other_size)
        expected = (b"-" * 900 + b"o" * other_size).ljust(1000, b"-")
        assert len(expected) == size
        assert file.content == expected + b"appended"


@pytest.mark.parametrize("change", ["write", "truncate"])
async def test_a_file_that_outgrows_memory_while_it_is_loaded(change: str) -> None:
    async with shared_file(b"-" * 1000) as file:
        one, two = await file.open(0), await file.open(1)
        session, real = file.shared.sessions[0], file.shared.sessions[0].call

        async def overtaken(request: names.Request, *, timeout_s: float | None = None) -> object:
            if isinstance(request, names.Open):
                session.call = real  # type: ignore[method-assign]
                await file.write(1, two, 0, b"+" * 2 * MIB)
                await file.close(1, two)
            return await real(request)

        (state,) = file.pair[0].vfs.context.states.values()
        state._drop_content()
        session.call = overtaken  # type: ignore[method-assign]
        if change == "write":
            await file.write(0, one, 5, b"mine")
        else:
            await file.pair[0].vfs.files.truncate(state.number, 500, one)
        await file.close(0, one)
        expected = b"+" * 5 + b"mine" + b"+" * (2 * MIB - 9) if change == "write" else b"+" * 500
        assert file.content == expected


async def test_two_streams_into_a_new_file() -> None:
    """Each makes an object of its own; the second one finds the file named already."""
    async with shared_file(b"") as file:
        one, two = await file.open(0), await file.open(1)
        for number in range(8):
            await file.write(0, one, number * MIB // 2, b"0" * (MIB // 2))
            await file.write(1, two, 4 * MIB + number * MIB // 2, b"1" * (MIB // 2))
        await file.close(0, one)
        await file.close(1, two)
        assert file.content == b"0" * 4 * MIB + b"1" * 4 * MIB


async def test_an_object_that_is_replaced_while_it_is_changed_in_place() -> None:
    async with shared_file(b"-" * 2 * MIB) as file:
        one = await file.open(0)
        await file.write(0, one, 5, b"sent")
        await file.write(0, one, MIB, b"sent, too")
        assert await file.read(0, one, 3, 8) == b"--sent--"
        await file.write(0, one, 100, b"not sent yet")
        two = await file.open(1, os.O_WRONLY | os.O_TRUNC)
        await file.write(1, two, 0, b"+" * 20)
        await file.close(1, two)
        assert file.content == b"+" * 20
        await file.write(0, one, 0, b"!")
        await file.close(0, one)
        expected = bytearray(MIB + 9)
        for offset, data in ((0, b"+" * 20), (0, b"!"), (5, b"sent"), (100, b"not sent yet")):
            expected[offset : offset + len(data)] = data
        expected[MIB:] = b"sent, too"
        assert file.content == expected


SIZE = 2000


class Random:
    """Each side has bytes of its own in turns, and appends records of its own."""

    def __init__(self, file: Shared, rng: random.Random, size: int) -> None:
        self.file = file
        self.rng = rng
        self.size = size
        self.expected = bytearray(b"-" * size)
        self.records: set[bytes] = set()

    async def run(self, machine: int) -> None:
        for _ in range(6):
            await self._use(machine, await self.file.open(machine), self._change)
            flags = os.O_RDWR | os.O_APPEND
            # What both append in place at the same time is not brought together.
            if machine == 0 or self.size == SIZE:
                await self._use(machine, await self.file.open(machine, flags), self._append)

    async def _use(self, machine: int, handle: int, step: object) -> None:
        assert callable(step)
        for _ in range(self.rng.randrange(1, 5)):
            await step(machine, handle)
            if self.rng.random() < 0.2:
                await self.file.flush(machine, handle)
            if self.rng.random() < 0.2:
                await self.file.read(machine, handle, self.rng.randrange(self.size), 100)
            await trio.lowlevel.checkpoint()
        await self.file.close(machine, handle)

    async def _change(self, machine: int, handle: int) -> None:
        block = self.rng.randrange(self.size // 20) * 20 + machine * 10
        data = self.rng.randbytes(self.rng.randrange(1, 10))
        self.expected[block : block + len(data)] = data
        await self.file.write(machine, handle, block, data)

    async def _append(self, machine: int, handle: int) -> None:
        record = b"%08d;" % self.rng.randrange(10**8)
        self.records.add(record)
        await self.file.write(machine, handle, await self.file.size(machine), record)


@pytest.mark.parametrize("size", [SIZE, MIB - 150])
@pytest.mark.parametrize("seed", range(4))
async def test_random_changes_of_both(seed: int, size: int, long_run: bool) -> None:
    for number in range(50 if long_run else 1):
        rng = random.Random(seed + 100 * number)
        async with shared_file(b"-" * size, seed) as file:
            work = Random(file, rng, size)
            async with trio.open_nursery() as nursery:
                for machine in (0, 1):
                    nursery.start_soon(work.run, machine)
            assert file.content[:size] == work.expected
            appended = file.content[size:]
            found = {appended[i : i + 9] for i in range(0, len(appended), 9)}
            assert found == work.records
            assert len(appended) == 9 * len(work.records)
