"""Changes of names that a mount answers before the storage has."""

from __future__ import annotations

import errno
import random
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from fdfsfuse.core import acl
from fdfsfuse.errors import DeadlineExceeded, StatusError, TreeError
from fdfsfuse.proto import names
from fdfsfuse.vfs import ownchanges
from fdfsfuse.vfs.directory import MISSING
from fdfsfuse.vfs.tree import Changes
from fdfsfuse.vfs.volume import Volume
from fdfsfuse.vfs.xattrs import HIDDEN
from tests.common.fake_sessions import Machine
from tests.common.waiting import wait_for
from tests.vfs.common import OWNER, Mounted, mounted
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
        await wait_for(lambda: bool(options.get("dirsync")) or len(found.volume.granted) == 2)
        await tree.remove(found.at, b"x", directory=True)
        # Now it has numbers for more.
        await tree.create(found.at, b"x", DIRECTORY, OWNER)
        await tree.remove(found.at, b"x", directory=True)
        await found.of.wait_for_changes()
        found.volume.requests.clear()
        yield found


class Clock:
    """Time that passes only where a test says so."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """However long a test takes, no change counts as one without an answer for long."""
    clock = Clock()
    monkeypatch.setattr(ownchanges, "time", clock)
    return clock


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
        with trio.fail_after(60):
            await tree.rename(at, b"new", at, b"old", 0)
        assert (await tree.getattr(old.number)).attr.nlink == 0
        assert mount.volume.content("d/old") == b"1"
        with trio.fail_after(60):
            await tree.remove(at, b"old", directory=False)
        gate.set()
        await mount.of.wait_for_changes()
        assert mount.stored() == set()
        assert mount.of.own_changes.count >= 2
        assert mount.of.own_changes.refused == 0


async def made(mount: Granted, name: str) -> int:
    """The number of a file in ``vol/d`` that was made, written and closed just now."""
    opened, entry = await mount.create(f"vol/d/{name}")
    await mount.vfs.files.write(opened.handle, 0, b"data")
    await mount.close(opened.handle)
    return entry.number


async def test_what_it_has_made_is_changed_while_the_storage_stalls() -> None:
    async with granted() as mount:
        tree, at, xattrs = mount.vfs.tree, mount.at, mount.vfs.xattrs
        file = await made(mount, "file")
        opened = await mount.open("vol/d/file")
        directory = (await tree.create(at, b"directory", DIRECTORY, OWNER)).number
        link = (await tree.create(at, b"link", stat.S_IFLNK | 0o777, OWNER, target=b"to")).number
        await mount.of.wait_for_changes()
        gate = mount.stall()
        with trio.fail_after(60):
            empty = (await tree.create(at, b"empty", stat.S_IFREG | 0o640, OWNER)).number
            shown = {}
            for number in (file, directory, link, empty):
                await xattrs.set(number, b"user.x", b"1")
                await xattrs.set(number, b"user.y", b"2")
                await xattrs.remove(number, b"user.x")
                await xattrs.set(number, b"user.y", b"3")
                await tree.set_attributes(number, Changes(mode=0o711, uid=5, mtime_ns=6))
                assert await xattrs.list(number) == [b"user.y"]
                assert await xattrs.get(number, b"user.y") == b"3"
                shown[number] = (await tree.getattr(number)).attr
            await tree.rename(at, b"file", at, b"renamed", 0)
            shown[file] = (await tree.getattr(file)).attr
            await xattrs.set(file, b"user.z", b"4")
        assert mount.stored() == {b"file", b"directory", b"link"}
        assert not any(mount.volume.xattrs.values())
        gate.set()
        await mount.vfs.files.sync(opened)
        storage = mount.volume
        for name, number in (("directory", directory), ("link", link), ("empty", empty)):
            assert storage.by_path(f"d/{name}") == shown[number]
            assert storage.xattrs[shown[number].ino] == {b"user.y": b"3"}
        assert (await tree.getattr(file)).attr == storage.by_path("d/renamed")
        assert storage.xattrs[shown[file].ino] == {b"user.y": b"3", b"user.z": b"4"}
        assert mount.of.own_changes.refused == 0
        assert storage.requests["GetAttr"] == storage.requests["ListXattrs"] == 0
        await mount.close(opened)


async def test_what_others_may_know_is_changed_there() -> None:
    async with granted() as mount:
        tree, at, xattrs = mount.vfs.tree, mount.at, mount.vfs.xattrs
        top = (await mount.lookup("vol")).number
        await tree.create(top, b"other", DIRECTORY, OWNER)
        other = (await mount.lookup("vol/other")).number

        async def told(name: str) -> int:
            number = await made(mount, name)
            assert mount.of.memory.is_secret(number & 0xFFFFFFFF)
            return number

        linked = await told("linked")
        await tree.link(linked, top, b"name")
        await tree.remove(top, b"name", directory=False)
        moved = await told("moved")
        await tree.rename(at, b"moved", other, b"moved", 0)
        await tree.rename(other, b"moved", at, b"moved", 0)
        named = await told("named")
        assert (await xattrs.get(named, HIDDEN + b"file_id")).startswith(b"vol/M00/")
        unlinked = await told("unlinked")
        opened = await mount.open("vol/d/unlinked")
        mount.volume.held.add(unlinked & 0xFFFFFFFF)
        await tree.remove(at, b"unlinked", directory=False)
        before = await told("before")
        mount.of.memory.revoke([mount.volume.by_path("d").ino])
        await mount.of.call(names.Grant(mount.volume.by_path("d").ino))
        large = await told("large")
        acls = await told("acls")
        await mount.of.wait_for_changes()
        count = mount.of.own_changes.count
        for number in (linked, moved, named, unlinked, before):
            assert not mount.of.memory.is_secret(number & 0xFFFFFFFF)
            await xattrs.set(number, b"user.x", b"1")
            assert mount.volume.xattrs[number & 0xFFFFFFFF] == {b"user.x": b"1"}
            await tree.set_attributes(number, Changes(mode=0o600))
            assert stat.S_IMODE(mount.volume.attrs[number & 0xFFFFFFFF].mode) == 0o600
        await xattrs.set(large, b"user.x", b"1" * names.XATTRS_SMALL_MAX)
        await mount.of.call(names.SetXattr(acls & 0xFFFFFFFF, acl.ACCESS, b"an acl", 0, 1))
        assert mount.of.own_changes.count == count
        await mount.close(opened)


async def test_who_is_told_the_file_id_finds_the_xattrs_at_the_object() -> None:
    async with granted() as mount:
        file = await made(mount, "file")
        gate = mount.stall()
        await mount.vfs.xattrs.set(file, b"user.x", b"1")
        count = mount.of.own_changes.count
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.vfs.xattrs.get, file, HIDDEN + b"file_id")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(mount.vfs.xattrs.set, file, b"user.x", b"2")
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 2
            gate.set()
        assert mount.of.own_changes.count == count
        assert mount.volume.xattrs[file & 0xFFFFFFFF] == {b"user.x": b"2"}


async def test_what_the_storage_refuses_of_a_file_is_told_to_its_fsync() -> None:
    async with granted() as mount:
        file = await made(mount, "file")
        opened = await mount.open("vol/d/file")
        mount.volume.fail[names.SetXattr] = StatusError(errno.ENOSPC)
        await mount.vfs.xattrs.set(file, b"user.x", b"1")
        with pytest.raises(TreeError) as caught:
            await mount.vfs.files.sync(opened)
        assert caught.value.errno == errno.ENOSPC
        await mount.vfs.files.sync(opened)
        assert await mount.vfs.xattrs.list(file) == []
        with pytest.raises(StatusError):
            await mount.vfs.xattrs.set(file, b"user.x", b"1")
        await mount.close(opened)


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
            await wait_for(lambda: mount.of.waiting == 1)
            assert mount.volume.requests["ReadDir"] == 0
            # While it waits, nothing further is answered here.
            assert await mount.of.own_changes.remove(names.Remove(1, b"d", True, 1)) is None
            gate.set()
        assert listed == [b"a"]


async def test_a_change_that_is_not_on_its_way_is_waited_for() -> None:
    async with granted() as mount:
        tree, at = mount.vfs.tree, mount.at
        made = (await tree.create(at, b"made", DIRECTORY, OWNER)).number
        for change in (
            partial(tree.create, at, b"a", DIRECTORY, OWNER),
            partial(tree.rename, at, b"a", at, b"b", 0),
            partial(tree.remove, at, b"b", directory=True),
            partial(tree.set_attributes, made, Changes(mode=0o700)),
            partial(mount.vfs.xattrs.set, made, b"user.x", b"1"),
        ):
            await mount.of.wait_for_changes()
            gate = mount.stall()
            count = mount.of.own_changes.count
            mount.volume.all_sent = False
            async with trio.open_nursery() as nursery:
                nursery.start_soon(change)
                await trio.testing.wait_all_tasks_blocked()
                assert mount.of.own_changes.count == count + 1
                assert nursery.child_tasks
                gate.set()
            mount.volume.all_sent = True


async def test_changes_wait_behind_one_without_an_answer_for_long(clock: Clock) -> None:
    async with granted() as mount:
        tree, count = mount.vfs.tree, mount.of.own_changes.count
        gate = mount.stall()
        with trio.fail_after(60):
            for name in (b"a", b"b"):
                await tree.create(mount.at, name, DIRECTORY, OWNER)
                clock.now += 0.6
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tree.create, mount.at, b"c", DIRECTORY, OWNER)
                await trio.testing.wait_all_tasks_blocked()
                assert nursery.child_tasks
                gate.set()
        assert mount.of.own_changes.count == count + 2
        assert mount.stored() == {b"a", b"b", b"c"}


async def test_without_an_answer_in_time_who_waits_fails(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with granted(timeout_s=30.0) as mount:
        mount.stall()
        await mount.vfs.tree.create(mount.at, b"a", DIRECTORY, OWNER)
        mount.volume.answering = False
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
        await wait_for(lambda: len(mount.of.memory.granted) == 2)
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
            await wait_for(lambda: mount.of.waiting == 1)
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


Xattrs = dict[bytes, bytes]


async def change_xattrs(
    machine: Machine, place: int, model: dict[bytes, Xattrs], rng: random.Random
) -> None:
    """Make a file, or change one at random; what nobody else knows of may be answered ahead."""
    name, key = rng.choice(NAMES), rng.choice((b"user.a", b"user.b"))
    xattrs = model.get(name)
    if xattrs is None:
        handle = await machine.make(place, name)
        assert handle is not None
        xattrs = model[name] = {}
        number = await machine.lookup(place, name)
        if rng.randrange(2):
            await machine.setxattr(number, key, b"early")
            xattrs[key] = b"early"
        await machine.vfs.files.write(handle, 0, b"data")
        await machine.vfs.files.flush(handle)
        await machine.vfs.files.release(handle)
        machine.kernel.attrs.pop(number, None)
        return
    number = await machine.lookup(place, name)
    kind = rng.randrange(8)
    if kind <= 3:
        value = b"%d" % rng.randrange(10**6)
        await machine.setxattr(number, key, value)
        xattrs[key] = value
    elif kind == 4 and key in xattrs:
        await machine.removexattr(number, key)
        del xattrs[key]
    elif kind == 5:
        await machine.chmod(number, rng.randrange(0o1000))
    elif kind == 6:
        new_name = rng.choice(NAMES)
        await machine.rename(place, name, place, new_name)
        model[new_name] = model.pop(name)
    else:
        assert await machine.xattrs(number) == xattrs


@pytest.mark.parametrize("seed", range(20))
async def test_all_xattrs_are_seen_at_once(seed: int) -> None:
    """As `test_all_changes_are_seen_at_once`."""
    rng = random.Random(seed)
    async with machines(rng) as (shared, pair):
        places: list[int] = []
        for turn in range(10):
            one, other = pair if rng.randrange(2) else reversed(pair)
            (place,) = await directories(one, [b"new%d" % turn])
            places.append(place)
            model: dict[bytes, Xattrs] = {}
            for _ in range(rng.randrange(30)):
                await change_xattrs(one, place, model, rng)
            assert await directories(other, [b"new%d" % turn]) == [place]
            for name, xattrs in model.items():
                number = await other.lookup(place, name)
                assert await other.xattrs(number) == xattrs
            for _ in range(rng.randrange(10)):
                await change_xattrs(rng.choice(pair), place, model, rng)
        for machine in pair:
            await check(shared, machine, places)
        volumes = [volume for m in pair for volume in m.vfs.volumes.by_name.values()]
        assert any(volume.own_changes.count for volume in volumes)
        assert sum(volume.own_changes.refused for volume in volumes) == 0
