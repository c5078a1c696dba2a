"""Files that a mount makes on its own: what the storage is told of them, and when."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import pytest
import trio
import trio.testing

from fdfsfuse.core import acl
from fdfsfuse.errors import (
    ConnectFailed,
    ConnectionProblem,
    DeadlineExceeded,
    StatusError,
    TreeError,
)
from fdfsfuse.proto import names
from fdfsfuse.vfs.context import Entry
from fdfsfuse.vfs.openfiles import Opened
from fdfsfuse.vfs.tree import Changes
from fdfsfuse.vfs.volume import Volume
from fdfsfuse.vfs.xattrs import HIDDEN
from tests.common.waiting import wait_for
from tests.vfs.common import OWNER, Mounted, mounted

PLACE = "vol/d"


class Making(Mounted):
    """Its directory ``vol/d`` was made by this mount, which therefore knows all names there."""

    @property
    def ino(self) -> int:
        return self.volume.directories[1].entries[b"d"][1]

    @property
    def of(self) -> Volume:
        (volume,) = self.vfs.volumes.by_name.values()
        return volume

    async def make(self, name: str, mode: int = 0o644) -> tuple[Opened, Entry]:
        """open(O_CREAT), as the kernel does it: a lookup comes first."""
        with pytest.raises((TreeError, StatusError)):
            await self.lookup(f"{PLACE}/{name}")
        return await self.create(f"{PLACE}/{name}", mode)

    async def settled(self) -> None:
        """Until the storage has made all changes."""
        await self.of.wait_for_changes()

    def forget_a_name(self) -> None:
        """Not all names of the directory are known any more: a listing needs the storage."""
        self.of.memory.recall([], [(self.ino, b"other")])

    def stored(self) -> set[bytes]:
        """What the storage has."""
        return set(self.volume.directories[self.ino].entries)

    def spent(self) -> dict[str, int]:
        """Requests since the last time."""
        spent = dict(self.volume.requests)
        self.volume.requests.clear()
        return spent


@asynccontextmanager
async def making(**options: Any) -> AsyncIterator[Making]:
    async with mounted(**options) as mount:
        found = Making(mount.vfs, mount.cluster)
        parent = (await found.lookup("vol")).number
        await found.vfs.tree.create(parent, b"d", stat.S_IFDIR | 0o755, OWNER)
        await wait_for(lambda: 1 in found.volume.granted)
        found.spent()
        yield found


async def test_one_request_stores_all_that_happened_to_a_file() -> None:
    async with making() as mount:
        files, tree = mount.vfs.files, mount.vfs.tree
        for name in ("a", "b"):
            opened, entry = await mount.make(name, 0o600)
            number = entry.number
            await files.write(opened.handle, 0, b"first part, ")
            await tree.set_attributes(number, Changes(mode=0o4751))
            await files.write(opened.handle, 12, b"second part")
            await tree.set_attributes(number, Changes(uid=5, gid=6))
            shown = await tree.set_attributes(number, Changes(atime_ns=7, mtime_ns=8))
            assert (await mount.lookup(f"{PLACE}/{name}")).attr == shown.attr
            assert await mount.vfs.xattrs.list(number) == []
            assert bytes(await files.read(opened.handle, 6, 4)) == b"part"
            assert mount.stored() == ({b"a"} if name == "b" else set())
            await mount.close(opened.handle)
            attr = mount.volume.by_path(f"d/{name}")
            expected = (stat.S_IFREG | 0o4751, 5, 6, 23, 7, 8, shown.attr.ctime_ns)
            assert expected == (
                attr.mode, attr.uid, attr.gid, attr.size,
                attr.atime_ns, attr.mtime_ns, attr.ctime_ns,
            )  # fmt: skip
            again = (await tree.getattr(number)).attr
            assert again == attr
            assert (again.ino, again.ctime_ns) == (shown.attr.ino, shown.attr.ctime_ns)
            assert mount.volume.content(f"d/{name}") == b"first part, second part"
        assert mount.spent() == {"Grant": 1, "ReserveInodes": 1, "CreateFile": 2}
        parent = await mount.lookup(PLACE)
        assert parent.attr.mtime_ns == mount.volume.by_path("d").mtime_ns


async def test_an_empty_file_and_one_that_is_written_again() -> None:
    async with making() as mount:
        opened, entry = await mount.make("a")
        await mount.close(opened.handle)
        assert mount.stored() == {b"a"}
        handle = await mount.open(f"{PLACE}/a", os.O_RDWR)
        await mount.vfs.files.write(handle, 0, b"data")
        await mount.close(handle)
        assert mount.volume.content("d/a") == b"data"
        assert mount.spent() == {
            "Grant": 1, "ReserveInodes": 1, "CreateFile": 1, "StoreContent": 1,
        }  # fmt: skip
        assert (await mount.vfs.tree.getattr(entry.number)).attr == mount.volume.by_path("d/a")


async def test_requests_that_concern_a_file_wait_until_the_storage_knows_it() -> None:
    async with making() as mount:
        tree, xattrs = mount.vfs.tree, mount.vfs.xattrs
        place = (await mount.lookup(PLACE)).number
        top = (await mount.lookup("vol")).number

        async def check(name: bytes, after: dict[str, int], remains: bytes = b"") -> None:
            await mount.settled()
            assert mount.spent() == {"CreateFile": 1, **after}
            assert mount.stored() == ({remains or name} if remains != b"-" else set())
            await mount.close(opened.handle)
            for left in mount.stored():
                await tree.remove(place, left, directory=False)
            await mount.settled()
            mount.spent()

        opened, entry = await mount.make("first")
        await mount.close(opened.handle)
        await tree.remove(place, b"first", directory=False)
        await mount.settled()
        mount.spent()

        opened, entry = await mount.make("a")
        mount.forget_a_name()
        assert await mount.names(PLACE) == [b"a"]
        await check(b"a", {"ReadDir": 1})
        opened, entry = await mount.make("a")
        await tree.rename(place, b"a", place, b"b", 0)
        await check(b"a", {"Rename": 1}, b"b")
        opened, entry = await mount.make("a")
        await tree.link(entry.number, top, b"other")
        await check(b"a", {"Link": 1})
        opened, entry = await mount.make("a")
        await tree.remove(place, b"a", directory=False)
        await check(b"a", {"Remove": 1}, b"-")
        opened, entry = await mount.make("a")
        with pytest.raises(StatusError) as caught:
            await tree.remove(top, b"d", directory=True)
        assert caught.value.errno == errno.ENOTEMPTY
        await check(b"a", {"Remove": 1})
        opened, entry = await mount.make("a")
        await xattrs.set(entry.number, b"user.x", b"y" * names.XATTRS_SMALL_MAX)
        await check(b"a", {"SetXattr": 1})
        opened, entry = await mount.make("a")
        await tree.set_attributes(place, Changes(mtime_ns=1))
        assert mount.volume.by_path("d").mtime_ns == 1
        await check(b"a", {"SetAttr": 1})
        # What concerns others does not.
        opened, entry = await mount.make("a")
        with pytest.raises(TreeError):
            await xattrs.get(entry.number, HIDDEN + b"file_id")
        await tree.create(top, b"e", stat.S_IFDIR | 0o755, OWNER)
        assert mount.spent() == {"Create": 1}
        assert mount.stored() == set()
        await mount.close(opened.handle)


async def test_xattrs_come_along_with_a_file() -> None:
    async with making() as mount:
        xattrs, tree = mount.vfs.xattrs, mount.vfs.tree
        opened, entry = await mount.make("a")
        number = entry.number
        await xattrs.set(number, b"user.x", b"1")
        await mount.vfs.files.write(opened.handle, 0, b"data")
        await xattrs.set(number, b"user.y", b"2")
        await xattrs.set(number, b"user.x", b"3")
        await xattrs.set(number, b"security.z", b"\0")
        await tree.set_attributes(number, Changes(mode=0o600))
        await xattrs.remove(number, b"user.y")
        assert await xattrs.list(number) == [b"security.z", b"user.x"]
        assert await xattrs.get(number, b"user.x") == b"3"
        for name in (b"user.y", b"user.none"):
            with pytest.raises(TreeError) as caught:
                await xattrs.get(number, name)
            assert caught.value.errno == errno.ENODATA
        assert mount.stored() == set()
        shown = (await tree.getattr(number)).attr
        await mount.close(opened.handle)
        assert mount.spent() == {"Grant": 1, "ReserveInodes": 1, "CreateFile": 1}
        assert (await tree.getattr(number)).attr.ctime_ns == shown.ctime_ns
        assert await xattrs.list(number) == [b"security.z", b"user.x"]
        mount.of.memory.clear()
        assert await xattrs.list(number) == [b"security.z", b"user.x"]
        assert await xattrs.get(number, b"user.x") == b"3"


async def test_acls_that_say_no_more_than_a_mode_are_one() -> None:
    minimal = [acl.Entry(acl.OWNER, 6), acl.Entry(acl.OWNING_GROUP, 4), acl.Entry(acl.OTHERS, 1)]
    more = [*minimal[:2], acl.Entry(acl.MASK, 4), minimal[2]]
    async with making(acl=True) as mount:
        xattrs, tree = mount.vfs.xattrs, mount.vfs.tree
        opened, entry = await mount.make("a", 0o2777)
        number = entry.number
        await xattrs.set(number, acl.ACCESS, acl.encode(minimal))
        await xattrs.remove(number, acl.DEFAULT)
        with pytest.raises(TreeError) as caught:
            await xattrs.remove(number, b"user.none")
        assert caught.value.errno == errno.ENODATA
        assert mount.stored() == set()
        assert stat.S_IMODE((await tree.getattr(number)).attr.mode) == 0o2641
        await mount.close(opened.handle)
        gate = mount.volume.gate = trio.Event()
        await xattrs.set(number, acl.ACCESS, acl.encode([acl.Entry(acl.OWNER, 7), *minimal[1:]]))
        gate.set()
        await mount.settled()
        assert stat.S_IMODE(mount.volume.by_path("d/a").mode) == 0o2741
        assert mount.spent() == {"Grant": 1, "ReserveInodes": 1, "CreateFile": 1, "SetAttr": 1}
        # One that has to be kept, and what takes it away.
        await xattrs.set(number, acl.ACCESS, acl.encode(more))
        assert mount.spent() == {"SetXattr": 1}
        await xattrs.list(number)
        await xattrs.set(number, acl.ACCESS, acl.encode(minimal))
        assert mount.spent() == {"ListXattrs": 1, "SetXattr": 1}
        # Somebody else may set one at any time.
        await xattrs.list(number)
        mount.volume.xattrs.clear()
        mount.of.memory.recall([number & 0xFFFFFFFF], [])
        await xattrs.list(number)
        await xattrs.set(number, acl.ACCESS, acl.encode(minimal))
        assert mount.spent() == {"ListXattrs": 2, "SetXattr": 1}


async def test_a_file_that_grows_large() -> None:
    async with making() as mount:
        opened, entry = await mount.make("a")
        await mount.vfs.xattrs.set(entry.number, b"user.x", b"1")
        data = bytes(range(256)) * 4096
        for start in (0, 1 << 20):
            await mount.vfs.files.write(opened.handle, start, data)
        await mount.close(opened.handle)
        assert mount.volume.content("d/a") == data * 2
        assert mount.spent().keys() >= {"CreateFile", "NewObject", "NameObject"}
        mount.of.memory.clear()
        assert await mount.vfs.xattrs.list(entry.number) == [b"user.x"]


async def test_a_file_that_stays_open_is_told_after_a_while() -> None:
    async with making(write_back_s=0.0) as mount:
        opened, _ = await mount.make("a")
        await wait_for(lambda: mount.stored() == {b"a"})
        await mount.close(opened.handle)


async def test_fsync_of_the_directory_and_the_end_of_the_mount_tell() -> None:
    async with making() as mount:
        await mount.make("a")
        directory = mount.vfs.open_directory((await mount.lookup(PLACE)).number)
        await mount.vfs.tell_of_directory(directory)
        assert mount.stored() == {b"a"}
        await mount.make("b")
        assert await mount.vfs.files.store_all() == 0
        assert mount.stored() == {b"a", b"b"}


async def test_fsync_of_a_directory_fails_when_a_file_cannot_be_told() -> None:
    async with making() as mount:
        opened, _ = await mount.make("a")
        directory = mount.vfs.open_directory((await mount.lookup(PLACE)).number)
        mount.volume.fail[names.CreateFile] = StatusError(errno.ENOSPC)
        with pytest.raises(TreeError) as caught:
            await mount.vfs.tell_of_directory(directory)
        assert caught.value.errno == errno.EIO
        mount.volume.fail.clear()
        await mount.vfs.tell_of_directory(directory)
        assert mount.stored() == {b"a"}
        await mount.close(opened.handle)


async def test_a_recalled_grant_is_given_back_when_all_is_told() -> None:
    async with making() as mount:
        opened, _ = await mount.make("a")
        await mount.vfs.files.write(opened.handle, 0, b"so far")
        volume = mount.volume
        assert volume.listener is not None
        volume.gate = trio.Event()
        volume.listener.recalled(names.Recall(9, [], [], [], [], grants=[mount.ino]))
        await trio.testing.wait_all_tasks_blocked()
        assert volume.confirmed == []
        volume.gate.set()
        await wait_for(lambda: volume.confirmed == [(9, [])])
        assert volume.content("d/a") == b"so far"
        await mount.vfs.files.write(opened.handle, 6, b", and more")
        await mount.close(opened.handle)
        assert volume.content("d/a") == b"so far, and more"
        # It has to be granted again.
        mount.spent()
        volume.grants = False
        for name in ("b", "c"):
            opened, _ = await mount.make(name)
            assert name.encode() in mount.stored()
            await mount.close(opened.handle)
        assert mount.spent() == {"Grant": 1, "Create": 2}


@pytest.mark.parametrize("certain", [True, False])
async def test_in_a_directory_with_a_default_acl_the_storage_makes_all_files(
    certain: bool,
) -> None:
    async with making(acl=True) as mount:
        opened, _ = await mount.make("a")
        await mount.close(opened.handle)
        directory = await mount.lookup(PLACE)
        if not certain:
            mount.volume.fail[names.SetXattr] = StatusError(errno.EIO)
        value = acl.encode([acl.Entry(tag, 7) for tag in (acl.OWNER, acl.OWNING_GROUP, acl.OTHERS)])
        with nullcontext() if certain else pytest.raises(StatusError):
            await mount.vfs.xattrs.set(directory.number, acl.DEFAULT, value)
        await mount.vfs.tree.getattr(directory.number)
        mount.volume.grants = False
        mount.spent()
        await mount.make("b")
        assert mount.stored() == {b"a", b"b"}
        assert mount.spent()["Create"] == 1


async def test_a_grant_that_was_recalled_before_its_answer_is_none() -> None:
    async with making() as mount:
        volume = mount.volume
        volume.gate = trio.Event()
        assert volume.listener is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.make, "a")
            await trio.testing.wait_all_tasks_blocked()
            assert mount.volume.requests["Grant"] == 1
            volume.listener.recalled(names.Recall(9, [], [], [], [], grants=[mount.ino]))
            await wait_for(lambda: volume.confirmed == [(9, [])])
            volume.gate.set()
        assert mount.stored() == {b"a"}
        assert mount.spent()["Create"] == 1


async def test_a_storage_that_cannot_be_told_gets_no_confirmation() -> None:
    async with making() as mount:
        opened, _ = await mount.make("a")
        volume = mount.volume
        assert volume.listener is not None
        volume.fail[names.CreateFile] = DeadlineExceeded("cut off")
        recall = names.Recall(9, [], [], [], [], all_grants=True)
        volume.listener.recalled(recall)
        await wait_for(lambda: mount.volume.requests["CreateFile"] == 1)
        await trio.testing.wait_all_tasks_blocked()
        assert volume.confirmed == []
        volume.fail.clear()
        await wait_for(lambda: not next(iter(mount.vfs.volumes.by_name.values())).down)
        volume.listener.recalled(recall)
        await wait_for(lambda: volume.confirmed == [(9, [])])
        assert mount.stored() == {b"a"}
        await mount.close(opened.handle)


async def test_who_comes_too_late_hears_of_it_at_close() -> None:
    async with making() as mount:
        opened, entry = await mount.make("a")
        # The grant ended with the lease, and another mount was faster.
        await mount.volume.change(names.Create(mount.ino, b"a", 0o100644, 0, 0, 5))
        with pytest.raises(TreeError) as caught:
            await mount.vfs.files.flush(opened.handle)
        assert caught.value.errno == errno.ESTALE
        await mount.vfs.files.release(opened.handle)
        found = await mount.lookup(f"{PLACE}/a")
        assert found.number != entry.number
        assert found.attr == mount.volume.by_path("d/a")
        assert await mount.vfs.files.store_all() == 0


async def test_nothing_is_asked_that_would_not_be_answered_right() -> None:
    async with making() as mount:
        opened, _ = await mount.make("a")
        top = (await mount.lookup("vol")).number
        mount.volume.fail[names.CreateFile] = DeadlineExceeded("cut off")
        with pytest.raises(ConnectFailed):
            await mount.vfs.tree.remove(top, b"d", directory=True)
        assert mount.stored() == set()
        mount.volume.fail.clear()
        (at,) = mount.vfs.volumes.by_name.values()
        await wait_for(lambda: not at.down)
        assert await mount.names(PLACE) == [b"a"]
        await mount.close(opened.handle)


@pytest.mark.parametrize(("later", "renamed"), [(b"", False), (b", and more", True)])
async def test_a_file_that_was_made_without_an_answer_is_made_once(
    later: bytes, renamed: bool
) -> None:
    async with making() as mount:
        files, volume = mount.vfs.files, mount.volume
        opened, entry = await mount.make("a")
        await files.write(opened.handle, 0, b"data")
        await mount.vfs.xattrs.set(entry.number, b"user.x", b"1")
        real = volume.call

        async def lost(request: names.Request, *, timeout_s: float | None = None) -> None:
            await real(request)
            raise DeadlineExceeded("the answer was lost")

        volume.call = lost  # type: ignore[method-assign]
        with pytest.raises(DeadlineExceeded):
            await files.flush(opened.handle)
        volume.call = real  # type: ignore[method-assign]
        await wait_for(lambda: not mount.of.down)
        if renamed:
            await volume.change(names.Rename(mount.ino, b"a", mount.ino, b"b", 0, 9))
        await mount.vfs.xattrs.set(entry.number, b"user.y", b"2")
        await files.write(opened.handle, 4, later)
        await mount.close(opened.handle)
        assert mount.stored() == {b"b" if renamed else b"a"}
        found = volume.by_path("d/b" if renamed else "d/a")
        assert (found.ino, found.size) == (entry.attr.ino, 4 + len(later))
        assert (await mount.vfs.tree.getattr(entry.number)).attr == found
        assert volume.xattrs[found.ino] == {b"user.x": b"1", b"user.y": b"2"}
        assert not mount.of.own_files


@pytest.mark.parametrize("mtime_ns", [None, 1, 1 << 62])
async def test_attributes_of_a_file_that_was_made_without_an_answer(mtime_ns: int | None) -> None:
    async with making() as mount:
        files, volume = mount.vfs.files, mount.volume
        opened, entry = await mount.make("a")
        await files.write(opened.handle, 0, b"data")
        real = volume.call

        async def lost(request: names.Request, *, timeout_s: float | None = None) -> None:
            await real(request)
            raise DeadlineExceeded("the answer was lost")

        volume.call = lost  # type: ignore[method-assign]
        with pytest.raises(DeadlineExceeded):
            await files.flush(opened.handle)
        changes = Changes(mode=0o600, mtime_ns=mtime_ns)
        with pytest.raises(ConnectionProblem):
            await mount.vfs.set_attributes(entry.number, None, changes, opened.handle)
        volume.call = real  # type: ignore[method-assign]
        await wait_for(lambda: not mount.of.down)
        shown = await mount.vfs.set_attributes(entry.number, None, changes, opened.handle)
        assert stat.S_IMODE(shown.attr.mode) == 0o600
        await mount.close(opened.handle)
        await mount.of.own_changes.wait()
        found = volume.by_path("d/a")
        assert stat.S_IMODE(found.mode) == 0o600
        assert found == (await mount.vfs.tree.getattr(entry.number)).attr
        assert found.mtime_ns == (mtime_ns or found.mtime_ns)
        assert found.ctime_ns <= time.time_ns()


async def test_a_full_storage_is_told_to_who_has_the_file_open() -> None:
    async with making() as mount:
        opened, _ = await mount.make("a")
        mount.volume.fail[names.CreateFile] = StatusError(errno.ENOSPC)
        mount.forget_a_name()
        assert await mount.names(PLACE) == []
        with pytest.raises(StatusError):
            await mount.vfs.files.write(opened.handle, 0, b"data")
        await mount.vfs.files.write(opened.handle, 0, b"data")
        with pytest.raises(StatusError):
            await mount.vfs.files.flush(opened.handle)
        mount.volume.fail.clear()
        await mount.close(opened.handle)
        assert mount.volume.content("d/a") == b"data"


async def test_the_name_of_a_file_that_cannot_be_told_is_not_taken_once_more() -> None:
    async with making() as mount:
        files, listener = mount.vfs.files, mount.volume.listener
        first, _ = await mount.make("a")
        mount.volume.fail[names.CreateFile] = StatusError(errno.ENOSPC)
        assert listener is not None
        listener.lease_lost()
        # A listing does not have it, and tells that it has everything.
        assert await mount.names(PLACE) == []
        second, entry = await mount.make("a")
        mount.volume.fail.clear()
        with pytest.raises(TreeError) as caught:
            await files.flush(first.handle)
        assert caught.value.errno == errno.ESTALE
        await files.release(first.handle)
        await files.write(second.handle, 0, b"second")
        await mount.close(second.handle)
        assert mount.volume.by_path("d/a").ino == entry.attr.ino
        assert mount.volume.content("d/a") == b"second"
        assert await files.store_all() == 0


async def test_a_lost_lease_ends_all_grants() -> None:
    async with making() as mount:
        await mount.make("a")
        first = mount.volume._next_ino
        assert mount.volume.listener is not None
        mount.volume.listener.lease_lost()
        await wait_for(lambda: mount.stored() == {b"a"})
        await mount.lookup(PLACE)
        mount.spent()
        opened, _ = await mount.make("b")
        await mount.close(opened.handle)
        spent = mount.spent()
        assert (spent["Grant"], spent["CreateFile"]) == (1, 1)
        # Numbers that were reserved for a session are used in that session.
        assert mount.volume.by_path("d/b").ino == first


async def test_what_is_inherited_later_is_the_storages_affair() -> None:
    async with making(acl=True) as mount:
        opened, _ = await mount.make("a")
        await mount.close(opened.handle)
        place = (await mount.lookup(PLACE)).number
        await mount.vfs.xattrs.set(place, acl.DEFAULT, b"an ACL")
        mount.volume.grants = False
        mount.spent()
        opened, _ = await mount.make("b")
        await mount.close(opened.handle)
        spent = mount.spent()
        assert (spent["Create"], spent.get("CreateFile")) == (1, None)


@pytest.mark.parametrize("name", ["M00", "MFF"])
async def test_names_that_look_like_store_paths_are_left_to_the_storage(name: str) -> None:
    async with making() as mount:
        volume = next(iter(mount.vfs.volumes.by_name.values()))
        with pytest.raises(TreeError):
            await mount.lookup("vol/none")
        assert await volume.own_files.number_for(1, b"none")
        assert not await volume.own_files.number_for(1, name.encode())


async def test_the_group_of_a_set_group_id_directory_is_handed_on() -> None:
    async with making() as mount:
        place = (await mount.lookup(PLACE)).number
        await mount.vfs.tree.set_attributes(place, Changes(mode=0o2755, gid=77))
        opened, entry = await mount.make("a")
        assert entry.attr.gid == 77
        await mount.close(opened.handle)
        attr = mount.volume.by_path("d/a")
        assert (attr.uid, attr.gid, attr.mode) == (OWNER.uid, 77, stat.S_IFREG | 0o644)
