"""Changes of names that a mount answers before the storage has."""

from __future__ import annotations

import errno
import random
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from fdfsfuse.errors import DeadlineExceeded, StatusError, TreeError
from fdfsfuse.proto import names
from fdfsfuse.vfs import ownchanges
from fdfsfuse.vfs.directory import MISSING
from fdfsfuse.vfs.tree import Changes
from fdfsfuse.vfs.volume import Volume
from tests.common.fake_sessions import Machine
from tests.vfs.common import OWNER, Mounted, mounted, wait_until
from tests.vfs.test_coherence import NAMES, check, directories, machines

DIRECTORY = stat.S_IFDIR | 0o755


class Granted(Mounted):
    """``vol/d`` is empty, and granted to this mount."""

    at: int

    @property
    def of(self) -> Volume:
        (volume,) = self.vfs.volumes.by_name.values()
        return volume

    def stored(self) -> set[bytes]:
        """What the storage has in ``vol/d``."""
        return set(self.volume.directories[self.volume.by_path("d").ino].entries)

    async def fsync(self) -> None:
        """fsync of ``vol/d``."""
        await self.vfs.tell_of_directory(self.vfs.open_directory(self.at))

    def stall(self) -> trio.Event:
        """The storage answers nothing until the event is set."""
        self.volume.gate = trio.Event()
        return self.volume.gate


@asynccontextmanager
async def granted(**options: Any) -> AsyncIterator[Granted]:
    async with mounted(**options) as mount:
        found = Granted(mount.vfs, mount.cluster)
        top = (await found.lookup("vol")).number
        tree = found.vfs.tree
        found.at = (await tree.create(top, b"d", DIRECTORY, OWNER)).number
        await tree.create(found.at, b"x", DIRECTORY, OWNER)
        await wait_until(lambda: bool(options.get("dirsync")) or len(found.volume.granted) == 2)
        await tree.remove(found.at, b"x", directory=True)
        # Now it has numbers for more.
        await tree.create(found.at, b"x", DIRECTORY, OWNER)
        await tree.remove(found.at, b"x", directory=True)
        await found.of.wait_for_changes()
        found.volume.requests.clear()
        yield found


async def test_changes_are_answered_while_the_storage_stalls() -> None:
    async with granted() as mount:
        tree, at = mount.vfs.tree, mount.at
        await tree.create(at, b"first", DIRECTORY, OWNER)
        await mount.of.wait_for_changes()
        mount.volume.requests.clear()
        gate = mount.stall()
        made = await tree.create(at, b"a", DIRECTORY | stat.S_ISVTX, OWNER, umask=0o022)
        inner = await tree.create(made.number, b"b", DIRECTORY, OWNER)
        link = await tree.create(at, b"l", stat.S_IFLNK | 0o777, OWNER, target=b"to")
        await tree.rename(at, b"l", made.number, b"m", 0)
        await tree.rename(at, b"first", at, b"second", 0)
        changed = await tree.set_attributes(inner.number, Changes(mode=0o700, mtime_ns=5))
        await tree.create(at, b"gone", DIRECTORY, OWNER)
        await tree.remove(at, b"gone", directory=True)
        assert mount.stored() == {b"first"}
        # What this mount shows is what will be.
        shown = [await tree.getattr(entry.number) for entry in (made, inner, link)]
        with pytest.raises(TreeError) as caught:
            await tree.lookup(at, b"l")
        assert caught.value.errno == errno.ENOENT
        assert (await tree.lookup(made.number, b"m")).number == link.number
        gate.set()
        await mount.fsync()
        assert mount.stored() == {b"a", b"second"}
        stored = [mount.volume.by_path(path) for path in ("d/a", "d/a/b", "d/a/m")]
        assert [entry.attr for entry in shown] == stored
        assert changed.attr == stored[1]
        assert (await tree.getattr(at)).attr == mount.volume.by_path("d")
        assert mount.of.own_changes.refused == 0
        assert mount.volume.requests["GetAttr"] == 0


async def test_a_file_is_replaced_while_the_storage_stalls() -> None:
    async with granted() as mount:
        tree, at = mount.vfs.tree, mount.at
        for name, data in (("old", b"1"), ("new", b"22")):
            with pytest.raises((TreeError, StatusError)):
                await mount.lookup(f"vol/d/{name}")
            opened, _ = await mount.create(f"vol/d/{name}")
            await mount.vfs.files.write(opened.handle, 0, data)
            await mount.close(opened.handle)
        old = await mount.lookup("vol/d/old")
        gate = mount.stall()
        with trio.fail_after(5):
            await tree.rename(at, b"new", at, b"old", 0)
        assert (await tree.getattr(old.number)).attr.nlink == 0
        assert mount.volume.content("d/old") == b"1"
        with trio.fail_after(5):
            await tree.remove(at, b"old", directory=False)
        gate.set()
        await mount.of.wait_for_changes()
        assert mount.stored() == set()
        assert mount.of.own_changes.count >= 2
        assert mount.of.own_changes.refused == 0


async def test_what_the_storage_would_refuse_is_left_to_it() -> None:
    async with granted() as mount:
        tree, at = mount.vfs.tree, mount.at
        made = await tree.create(at, b"a", DIRECTORY, OWNER)
        await mount.of.wait_for_changes()
        before = mount.of.own_changes.count
        # The directory is known whole, so this name is known to be free.
        assert mount.of.memory.lookup(mount.volume.by_path("d").ino, b"n" * 256) == MISSING
        gate = mount.stall()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.rename, at, b"a", at, b"n" * 256, 0)
            nursery.start_soon(tree.set_attributes, made.number, Changes(mtime_ns=1 << 63))
            await trio.testing.wait_all_tasks_blocked()
            assert mount.of.own_changes.count == before
            gate.set()


async def test_who_reads_waits_for_what_was_answered() -> None:
    async with granted() as mount:
        gate = mount.stall()
        await mount.vfs.tree.create(mount.at, b"a", DIRECTORY, OWNER)
        listed: list[bytes] = []

        async def read() -> None:
            listed.extend(await mount.names("vol/d"))

        async with trio.open_nursery() as nursery:
            mount.of.memory._directories.clear()
            nursery.start_soon(read)
            await wait_until(lambda: mount.of.waiting == 1)
            assert mount.volume.requests["ReadDir"] == 0
            # While it waits, nothing further is answered here.
            assert mount.of.own_changes.remove(names.Remove(1, b"d", True, 1)) is None
            gate.set()
        assert listed == [b"a"]


async def test_without_an_answer_in_time_who_waits_fails() -> None:
    async with granted(timeout_s=0.05) as mount:
        mount.stall()
        await mount.vfs.tree.create(mount.at, b"a", DIRECTORY, OWNER)
        with pytest.raises(DeadlineExceeded):
            await mount.fsync()
        mount.of.memory.clear()
        with pytest.raises(DeadlineExceeded):
            await mount.lookup("vol/d")
        assert mount.of.down


async def test_what_the_storage_refuses_is_told_to_fsync_once() -> None:
    async with granted() as mount:
        tree, own = mount.vfs.tree, mount.of.own_changes
        made = await tree.create(mount.at, b"a", DIRECTORY, OWNER)
        await mount.of.wait_for_changes()
        mount.volume.fail[names.Create] = StatusError(errno.ENOSPC)
        mount.volume.fail[names.Remove] = StatusError(errno.EIO)
        await tree.create(mount.at, b"b", DIRECTORY, OWNER)
        await tree.remove(mount.at, b"a", directory=True)
        with pytest.raises(TreeError) as caught:
            await mount.fsync()
        assert caught.value.errno == errno.EIO
        await mount.fsync()
        assert own.refused == 2
        assert await mount.names("vol/d") == [b"a"]
        assert (await mount.lookup("vol/d/a")).number == made.number
        assert (await tree.getattr(made.number)).attr.nlink == 2
        # For a while errors come where they belong.
        with pytest.raises(StatusError):
            await tree.create(mount.at, b"c", DIRECTORY, OWNER)
        mount.volume.fail.clear()
        own._suspended_until = 0.0
        count = own.count
        await tree.create(mount.at, b"d", DIRECTORY, OWNER)
        await wait_until(lambda: len(mount.of.memory.granted) == 2)
        await tree.create(mount.at, b"e", DIRECTORY, OWNER)
        await mount.fsync()
        assert own.count == count + 1
        assert mount.stored() == {b"a", b"d", b"e"}


async def test_what_cannot_be_foreseen_is_asked() -> None:
    async with granted() as mount:
        tree, at, own = mount.vfs.tree, mount.at, mount.of.own_changes
        top = (await mount.lookup("vol")).number
        await tree.create(at, b"a", DIRECTORY, OWNER)
        b = (await tree.create(at, b"b", DIRECTORY, OWNER)).number
        await tree.create(b, b"c", DIRECTORY, OWNER)
        opened, entry = await mount.create("vol/d/f")
        await mount.close(opened.handle)
        await tree.link(entry.number, at, b"g")
        await mount.of.wait_for_changes()
        count = own.count
        for refused, wanted in (
            (tree.remove(at, b"b", directory=True), errno.ENOTEMPTY),
            (tree.remove(at, b"a", directory=False), errno.EISDIR),
            (tree.remove(at, b"missing", directory=False), errno.ENOENT),
            (tree.rename(at, b"a", at, b"f", 1), errno.EEXIST),
            (tree.create(at, b"a", DIRECTORY, OWNER), errno.EEXIST),
        ):
            with pytest.raises((TreeError, StatusError)) as caught:
                await refused
            assert caught.value.errno == wanted
        await tree.rename(at, b"a", top, b"a", 0)
        await tree.remove(at, b"g", directory=False)
        assert own.count == count
        assert mount.stored() == {b"b", b"f"}


async def test_only_so_many_are_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownchanges, "UNANSWERED_MAX", 3)
    async with granted() as mount:
        gate = mount.stall()
        done: list[int] = []

        async def make() -> None:
            for number in range(5):
                await mount.vfs.tree.create(mount.at, b"%d" % number, DIRECTORY, OWNER)
                done.append(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make)
            await wait_until(lambda: mount.of.waiting == 1)
            assert done == [0, 1, 2]
            gate.set()
        await mount.of.wait_for_changes()
        assert mount.stored() == {b"%d" % number for number in range(5)}


async def test_with_dirsync_every_change_is_waited_for() -> None:
    async with granted(dirsync=True) as mount:
        tree, at = mount.vfs.tree, mount.at
        entry = await tree.create(at, b"a", DIRECTORY, OWNER)
        assert mount.stored() == {b"a"}
        await tree.set_attributes(entry.number, Changes(mode=0o700))
        assert stat.S_IMODE(mount.volume.by_path("d/a").mode) == 0o700
        await tree.rename(at, b"a", at, b"b", 0)
        assert mount.stored() == {b"b"}
        await tree.remove(at, b"b", directory=True)
        assert mount.stored() == set()
        assert mount.of.own_changes.count == 0


Place = dict[bytes, str]


async def change(machine: Machine, place: int, model: Place, rng: random.Random) -> None:
    """A random change, which ends as it would on any file system."""
    name, new_name = rng.choice(NAMES), rng.choice(NAMES)
    there, target = model.get(name), model.get(new_name)
    kind = rng.randrange(6)
    expected = 0
    try:
        if kind <= 1:
            expected = errno.EEXIST if there else 0
            await machine.create(place, name, DIRECTORY)
            model[name] = "directory"
        elif kind == 2:
            expected = errno.EEXIST if there else 0
            await machine.create(place, name, stat.S_IFLNK | 0o777, b"t")
            model[name] = "link"
        elif kind == 3:
            directory = rng.random() < 0.5
            if there is None:
                expected = errno.ENOENT
            elif directory != (there == "directory"):
                expected = errno.ENOTDIR if directory else errno.EISDIR
            await machine.unlink(place, name, directory=directory)
            del model[name]
        elif kind == 4 and name != new_name and "directory" not in (there, target):
            expected = 0 if there else errno.ENOENT
            await machine.rename(place, name, place, new_name)
            model[new_name] = model.pop(name)
        else:
            number = await machine.lookup(place, name)
            assert bool(number) == bool(there)
            if there == "directory":
                await machine.chmod(number, rng.randrange(0o1000))
    except (TreeError, StatusError) as exc:
        refused = exc.errno
    else:
        refused = 0
    assert refused == expected, (kind, name, there, target)


@pytest.mark.parametrize("seed", range(20))
async def test_all_changes_are_seen_at_once(seed: int) -> None:
    """Who looks later sees what one mount did at a time, as if the storage had been waited for."""
    rng = random.Random(seed)
    async with machines(rng) as (shared, pair):
        places: list[int] = []
        for turn in range(10):
            one, other = pair if rng.randrange(2) else reversed(pair)
            (place,) = await directories(one, [b"new%d" % turn])
            places.append(place)
            model: Place = {}
            for _ in range(rng.randrange(20)):
                await change(one, place, model, rng)
            assert await directories(other, [b"new%d" % turn]) == [place]
            for name in NAMES if rng.randrange(2) else ():
                assert bool(await other.lookup(place, name)) == (name in model)
            assert await other.list(place) == model.keys()
            for _ in range(rng.randrange(5)):
                await change(rng.choice(pair), place, model, rng)
        for machine in pair:
            await check(shared, machine, places)
        volumes = [volume for m in pair for volume in m.vfs.volumes.by_name.values()]
        assert any(volume.own_changes.count for volume in volumes)
        assert sum(volume.own_changes.refused for volume in volumes) == 0
