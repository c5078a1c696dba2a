"""The tree: volumes, names, ids, listings, extended attributes, inode numbers."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from fdfsfuse.errors import (
    ConnectFailed,
    ConnectionProblem,
    DeadlineExceeded,
    FdfsError,
    StatusError,
    TreeError,
)
from fdfsfuse.proto import names
from fdfsfuse.vfs.directory import MISSING
from fdfsfuse.vfs.numbers import ROOT, IdDirectory, Numbers, id_directory, id_directory_number
from fdfsfuse.vfs.options import Ids
from fdfsfuse.vfs.tree import RENAME_NOREPLACE, Changes
from tests.common.waiting import wait_for
from tests.vfs.common import OWNER, Mounted, mounted


@contextmanager
def fails(code: int) -> Iterator[None]:
    """The block raises an error with this errno."""
    got = None
    try:
        yield
    except (TreeError, StatusError) as exc:
        got = exc.errno
    assert errno.errorcode.get(got or 0) == errno.errorcode[code]


async def make(m: Mounted, path: str, mode: int = stat.S_IFREG | 0o644) -> int:
    parent, name = await m.parent(path)
    return (await m.vfs.tree.create(parent, name, mode, OWNER)).number


async def remove(m: Mounted, path: str, *, directory: bool = False) -> None:
    parent, name = await m.parent(path)
    await m.vfs.tree.remove(parent, name, directory=directory)


async def rename(m: Mounted, old: str, new: str, flags: int = 0) -> None:
    parent, name = await m.parent(old) if "/" in old else (ROOT, old.encode())
    new_parent, new_name = await m.parent(new) if "/" in new else (ROOT, new.encode())
    await m.vfs.tree.rename(parent, name, new_parent, new_name, flags)


# --- the root -----------------------------------------------------------------------------------


async def test_volumes_are_listed_and_never_change() -> None:
    async with mounted("vol", "other") as m:
        assert await m.names() == [b"vol", b"other"]
        assert (await m.lookup("vol")).attr.mode == stat.S_IFDIR | 0o755
        with fails(errno.EPERM):
            await m.vfs.tree.create(ROOT, b"x", stat.S_IFDIR, OWNER)
        with fails(errno.EPERM):
            await m.vfs.tree.remove(ROOT, b"vol", directory=True)
        with fails(errno.EPERM):
            await rename(m, "vol", "x")
        with fails(errno.EPERM):
            await m.vfs.set_attributes(ROOT, None, Changes(mode=0o700), None)


async def test_an_unknown_volume_makes_the_trackers_be_asked() -> None:
    async with mounted(poll_interval_s=10.0**6) as m:
        polls = m.cluster.polls
        with fails(errno.ENOENT):
            await m.lookup("new")
        m.cluster.groups.append("new")
        await wait_for(lambda: m.cluster.polls > polls)
        assert await m.names() == [b"vol", b"new"]
        # Trackers that forget a volume do not take its directory away.
        m.cluster.groups.remove("new")
        assert b"new" in await m.names()


async def test_an_open_file_is_read_as_it_was_where_others_have_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    content = bytes(range(256)) * 8192
    async with mounted("vol", timeout_s=30.0) as m:
        await m.write_file("vol/a", content)
        handle = await m.open("vol/a")
        number = (await m.lookup("vol/a")).number
        m.volume.lease.end()
        m.volume.down = True

        async def read() -> bytes:
            return bytes(await m.vfs.files.read(handle, 4096, 512))

        with pytest.raises(ConnectionProblem):
            await read()
        m.volume.copied = True
        m.volume.down = False
        m.volume.connected = False
        for down in (False, True):
            m.vfs.context.states[number].volume.down = down
            assert await read() == content[4096:4608]
            assert (await m.vfs.tree.getattr(number)).attr.size == len(content)
        # Not when it is known to have changed.
        m.vfs.context.states[number].recalled()
        with pytest.raises(ConnectionProblem):
            await read()
        await m.close(handle)


async def test_a_dead_volume_fails_fast_and_disturbs_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with mounted("vol", "other", timeout_s=30.0) as m:
        await m.write_file("other/a", b"works")
        m.volume.down = True
        start = trio.current_time()
        with pytest.raises(ConnectionProblem):
            await m.lookup("vol/a")
        assert trio.current_time() - start == pytest.approx(30.0)
        start = trio.current_time()
        for _ in range(100):
            with pytest.raises(ConnectionProblem):
                await m.lookup("vol/a")
            assert await m.read_file("other/a") == b"works"
        assert trio.current_time() - start < 1.0
        # The volume's own directory and the space of the mount are answered from memory.
        assert (await m.lookup("vol")).attr.mode == stat.S_IFDIR | 0o755
        assert (await m.vfs.tree.space()).total_bytes > 0
        m.volume.down = False
        await trio.sleep(60)
        with fails(errno.ENOENT):
            await m.lookup("vol/a")


async def test_only_so_many_wait_for_a_volume_that_is_not_connected() -> None:
    async with mounted(max_waiting=3) as m:
        m.volume.connected = False
        m.volume.gate = trio.Event()
        refused: list[FdfsError] = []

        async def look() -> None:
            try:
                await m.lookup("vol/a")
            except ConnectionProblem as exc:
                refused.append(exc)
            except TreeError:
                pass

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(look)
            await wait_for(lambda: len(refused) == 2)
            m.volume.gate.set()


async def test_space_is_the_sum() -> None:
    async with mounted("vol", "other") as m:
        space = await m.vfs.tree.space()
        assert (space.total_bytes, space.available_bytes) == (2000 << 20, 1000 << 20)
        before = m.volume.requests["StatFs"]
        await m.vfs.tree.space()
        assert m.volume.requests["StatFs"] == before


async def test_sessions_end_in_good_order() -> None:
    async with mounted("vol", "other") as m:
        volumes = list(m.vfs.volumes.by_name.values())
        assert not any(volume.ended.is_set() for volume in volumes)
        backends = list(m.cluster.backends.values())
    assert all(volume.ended.is_set() for volume in volumes)
    assert all(backend.closing.is_set() for backend in backends)


# --- names --------------------------------------------------------------------------------------


async def test_all_kinds_of_inodes() -> None:
    async with mounted() as m:
        root = (await m.lookup("vol")).number
        await make(m, "vol/dir", stat.S_IFDIR | 0o750)
        await make(m, "vol/fifo", stat.S_IFIFO | 0o600)
        device = await m.vfs.tree.create(root, b"null", stat.S_IFCHR | 0o666, OWNER, rdev=259)
        link = await m.vfs.tree.create(root, b"link", stat.S_IFLNK | 0o777, OWNER, target=b"a/b")
        assert device.attr.rdev == 259
        assert await m.vfs.tree.readlink(link.number) == b"a/b"
        with fails(errno.EINVAL):
            await m.vfs.tree.readlink(device.number)
        assert await m.names("vol") == [b"dir", b"fifo", b"null", b"link"]


async def test_an_answer_is_used_for_a_getattr_right_after() -> None:
    async with mounted() as m:
        number = await make(m, "vol/a")
        before = m.volume.requests.total()
        assert (await m.vfs.tree.getattr(number)).attr.size == 0
        changed = await m.vfs.set_attributes(number, None, Changes(mode=0o400, uid=5), None)
        assert stat.S_IMODE(changed.attr.mode) == 0o400
        assert (await m.vfs.tree.getattr(number)).attr.uid == 5
        assert m.volume.requests.total() == before + 1


async def test_own_changes_show_in_the_directory_without_asking() -> None:
    async with mounted() as m:
        directory = await make(m, "vol/dir", stat.S_IFDIR | 0o755)
        old = (await m.vfs.set_attributes(directory, None, Changes(mtime_ns=1), None)).attr
        before = m.volume.requests["GetAttr"]
        await m.vfs.tree.create(directory, b"sub", stat.S_IFDIR | 0o755, OWNER)
        new = (await m.vfs.tree.getattr(directory)).attr
        assert new.nlink == old.nlink + 1
        assert new.mtime_ns > old.mtime_ns
        await m.vfs.tree.remove(directory, b"sub", directory=True)
        assert (await m.vfs.tree.getattr(directory)).attr.nlink == old.nlink
        assert m.volume.requests["GetAttr"] == before


async def test_attributes_are_asked_again_when_they_were_recalled() -> None:
    async with mounted() as m:
        number = await make(m, "vol/a")
        ino = m.volume.by_path("a").ino
        await m.volume.change(names.SetAttr(ino, 1, mode=0o111))
        assert stat.S_IMODE((await m.vfs.tree.getattr(number)).attr.mode) == 0o111


async def test_renames() -> None:
    async with mounted("vol", "other") as m:
        await m.write_file("vol/a", b"a")
        await m.write_file("vol/b", b"b")
        with fails(errno.EEXIST):
            await rename(m, "vol/a", "vol/b", RENAME_NOREPLACE)
        await rename(m, "vol/a", "vol/b")
        assert m.volume.content("b") == b"a"
        with fails(errno.ENOENT):
            await m.lookup("vol/a")
        for old, new in (("vol/b", "other/b"), ("vol/b", "b"), ("vol", "other/x")):
            with fails(errno.EXDEV):
                await rename(m, old, new)
        with fails(errno.EINVAL):
            await rename(m, "vol/b", "vol/c", 8)


async def test_links_stay_in_their_volume() -> None:
    async with mounted("vol", "other") as m:
        entry = await m.write_file("vol/a", b"a")
        root, other = (await m.lookup("vol")).number, (await m.lookup("other")).number
        linked = await m.vfs.tree.link(entry.number, root, b"b")
        assert (linked.number, linked.attr.nlink) == (entry.number, 2)
        with fails(errno.EXDEV):
            await m.vfs.tree.link(entry.number, other, b"b")


async def test_create_of_a_name_that_another_mount_made_meanwhile() -> None:
    async with mounted() as m:
        await m.write_file("vol/a", b"theirs")
        opened, entry = await m.create("vol/a")
        assert entry.attr.size == 6
        assert bytes(await m.vfs.files.read(opened.handle, 0, 10)) == b"theirs"
        parent = (await m.lookup("vol")).number
        with fails(errno.EEXIST):
            await m.vfs.files.create(parent, b"a", 0o644, os.O_WRONLY | os.O_EXCL, OWNER)


# --- listings -----------------------------------------------------------------------------------


async def test_a_large_directory_lists_in_pages_without_a_request_per_file() -> None:
    async with mounted() as m:
        await make(m, "vol/dir", stat.S_IFDIR | 0o755)
        for i in range(3000):
            await make(m, f"vol/dir/{i}")
        before = m.volume.requests.copy()
        listed = await m.listing("vol/dir")
        assert [item.name for item in listed[:2]] == [b".", b".."]
        assert [item.name for item in listed[2:]] == [str(i).encode() for i in range(3000)]
        assert (m.volume.requests - before)["ReadDir"] == 3
        before = m.volume.requests.copy()
        for item in listed[2:]:
            await m.vfs.tree.getattr(item.entry.number)
        assert m.volume.requests == before
        # Every entry that the kernel took is known, the dots are not.
        numbers = m.vfs.context.numbers
        assert all(numbers.known(item.entry.number) for item in listed[2:])
        assert not numbers.known(listed[1].entry.number)


async def test_a_listing_goes_on_at_any_position() -> None:
    async with mounted() as m:
        for i in range(20):
            await make(m, f"vol/{i}")
        whole = await m.listing("vol")
        number = (await m.lookup("vol")).number
        handle = m.vfs.directories.get(m.vfs.open_directory(number))
        for start in (5, 17, 0, 2, 21):
            handle.seek(whole[start - 1].next_id if start else 0)
            rest = []
            while (listed := handle.next()) or await handle.fill():
                if listed:
                    handle.taken(listed)
                    rest.append(listed.name)
            assert rest == [item.name for item in whole[start:]]


async def test_a_page_does_not_show_what_was_removed_or_changed_since() -> None:
    async with mounted() as m:
        numbers = [await make(m, f"vol/{name}") for name in "abc"]
        handle = m.vfs.directories.get(m.vfs.open_directory((await m.lookup("vol")).number))
        for _ in range(2):
            dot = handle.next()
            assert dot is not None
            handle.taken(dot)
        await handle.fill()
        await remove(m, "vol/b")
        await m.vfs.set_attributes(numbers[2], None, Changes(mode=0o123), None)
        seen = {}
        while listed := handle.next():
            handle.taken(listed)
            seen[listed.name] = stat.S_IMODE(listed.entry.attr.mode)
        assert seen == {b"a": 0o644, b"c": 0o123}


async def test_a_directory_that_is_known_is_listed_from_memory() -> None:
    async with mounted() as m:
        number = await make(m, "vol/dir", stat.S_IFDIR | 0o755)
        files = [await make(m, f"vol/dir/{name}") for name in "abcde"]
        await m.vfs.set_attributes(files[0], None, Changes(mode=0o600), None)
        await remove(m, "vol/dir/b")
        before = m.volume.requests.copy()
        handle = m.vfs.directories.get(m.vfs.open_directory(number))

        async def rest() -> dict[bytes, int]:
            found = {}
            while (listed := handle.next()) or await handle.fill():
                if listed:
                    handle.taken(listed)
                    found[listed.name] = listed.next_id
            return found

        whole = await rest()
        assert list(whole) == [b".", b"..", b"a", b"c", b"d", b"e"]
        assert m.volume.requests == before
        shown = {item.name: item.entry.attr.mode for item in await m.listing("vol/dir")}
        assert stat.S_IMODE(shown[b"a"]) == 0o600
        # It goes on anywhere, and does not show again what has been removed meanwhile.
        handle.seek(whole[b"a"])
        assert list(await rest()) == [b"c", b"d", b"e"]
        await remove(m, "vol/dir/d")
        await make(m, "vol/dir/f")
        handle.seek(whole[b"a"])
        assert list(await rest()) == [b"c", b"e"]
        handle.seek(0)
        assert list(await rest()) == [b".", b"..", b"a", b"c", b"e", b"f"]
        assert m.volume.requests["ReadDir"] == 0


@pytest.mark.parametrize("what", ["name", "attributes", "lease"])
async def test_a_directory_that_is_not_known_any_more_is_listed_by_the_storage(what: str) -> None:
    async with mounted() as m:
        await make(m, "vol/dir", stat.S_IFDIR | 0o755)
        await make(m, "vol/dir/a")
        (volume,) = m.vfs.volumes.by_name.values()
        directory, file = (m.volume.by_path(path).ino for path in ("dir", "dir/a"))
        if what == "name":
            volume.memory.recall([], [(directory, b"b")])
        elif what == "attributes":
            volume.memory.recall([file], [])
        else:
            m.volume.lease.end()
        assert await m.names("vol/dir") == [b"a"]
        assert m.volume.requests["ReadDir"] == 1
        if what != "lease":
            # Now it is known again, also that there is no "b".
            assert await m.names("vol/dir") == [b"a"]
            assert volume.memory.lookup(directory, b"b") == MISSING
            assert m.volume.requests["ReadDir"] == 1


# --- ids ----------------------------------------------------------------------------------------


async def test_only_unnamed_objects_are_listed_by_id() -> None:
    async with mounted() as m:
        assert b"M00" not in await m.names("vol")
        await m.write_file("vol/named", b"x")
        file_id = m.volume.upload(b"content")
        assert await m.names("vol") == [b"named", b"M00"]
        high, low, base = file_id.split("/")[1:]
        assert await m.names("vol/M00") == [high.encode()]
        assert await m.names(f"vol/M00/{high}") == [low.encode()]
        assert await m.names(f"vol/M00/{high}/{low}") == [base.encode()]
        attr = (await m.lookup(f"vol/{file_id}")).attr
        assert (attr.mode, attr.nlink, attr.uid, attr.gid, attr.size) == (
            stat.S_IFREG | 0o644,
            1,
            7,
            8,
            7,
        )
        assert await m.read_file(f"vol/{file_id}") == b"content"


async def test_the_id_path_of_a_named_object_is_the_same_inode() -> None:
    async with mounted() as m:
        entry = await m.write_file("vol/a", b"content")
        path = f"vol/{m.volume.by_path('a').file_id}"
        assert (await m.lookup(path)).number == entry.number
        assert await m.read_file(path) == b"content"
        root = (await m.lookup("vol")).number
        with fails(errno.EBUSY):
            await remove(m, path)
        with fails(errno.EBUSY):
            await rename(m, path, "vol/b")
        assert (await m.vfs.tree.link(entry.number, root, b"b")).attr.nlink == 2


async def test_names_are_given_to_objects_without_copying() -> None:
    async with mounted() as m:
        file_id = m.volume.upload(b"content")
        old = m.vfs.remember(await m.lookup(f"vol/{file_id}"))
        handle = await m.open(f"vol/{file_id}")
        await rename(m, f"vol/{file_id}", "vol/a")
        assert m.volume.by_path("a").file_id == file_id
        # One inode, under both paths, as long as the kernel knows it.
        assert (await m.lookup("vol/a")).number == old.number
        assert (await m.lookup(f"vol/{file_id}")).number == old.number
        assert (await m.vfs.tree.getattr(old.number)).attr.ino == m.volume.by_path("a").ino
        assert bytes(await m.vfs.files.read(handle, 0, 10)) == b"content"
        await m.vfs.files.release(handle)
        m.vfs.forget([(old.number, 1)])
        assert (await m.lookup("vol/a")).number != old.number
        assert await m.names("vol") == [b"a"]


async def test_ln_of_an_object() -> None:
    async with mounted() as m:
        file_id = m.volume.upload(b"content")
        root = (await m.lookup("vol")).number
        entry = await m.vfs.tree.link((await m.lookup(f"vol/{file_id}")).number, root, b"a")
        assert m.volume.content("a") == b"content"
        assert entry.attr.uid == 7
        other = m.volume.upload(b"other")
        with fails(errno.EEXIST):
            await m.vfs.tree.link((await m.lookup(f"vol/{other}")).number, root, b"a")
        await rename(m, f"vol/{other}", "vol/a")
        assert m.volume.content("a") == b"other"


async def test_unnamed_objects_are_not_changed() -> None:
    async with mounted() as m:
        file_id = m.volume.upload(b"content")
        number = (await m.lookup(f"vol/{file_id}")).number
        with fails(errno.EPERM):
            await m.vfs.set_attributes(number, None, Changes(mode=0o600), None)
        with fails(errno.EPERM):
            await m.vfs.set_attributes(number, 0, Changes(), None)
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
            with fails(errno.EPERM):
                await m.vfs.files.open(number, flags)
        with fails(errno.EPERM):
            await remove(m, f"vol/{file_id}")
        assert file_id in m.volume.objects


async def test_the_id_tree_takes_nothing_new() -> None:
    async with mounted() as m:
        file_id = m.volume.upload(b"content")
        directory = file_id.rpartition("/")[0]
        await m.write_file("vol/a", b"")
        for path in ("vol/M00/XX", f"vol/{directory}/new"):
            with fails(errno.EPERM):
                await make(m, path)
        with fails(errno.EPERM):
            await rename(m, "vol/a", f"vol/{directory}/a")
        with fails(errno.EPERM):
            await remove(m, f"vol/{directory}", directory=True)
        for code, path in ((errno.EPERM, "vol/M00"), (errno.EPERM, "vol/M7F")):
            with fails(code):
                await rename(m, "vol/a", path)
            with fails(code):
                await remove(m, path, directory=True)
        for missing in ("vol/M01", "vol/M00/G0", "vol/M00/00/0", f"vol/{directory}/x", "vol/m00"):
            with fails(errno.ENOENT):
                await m.lookup(missing)


async def test_ids_rw_and_hide() -> None:
    async with mounted(ids=Ids.READ_WRITE) as m:
        file_id = m.volume.upload(b"content")
        await remove(m, f"vol/{file_id}")
        assert file_id not in m.volume.objects
        await m.write_file("vol/a", b"x")
        with fails(errno.EBUSY):
            await remove(m, f"vol/{m.volume.by_path('a').file_id}")
    async with mounted(ids=Ids.HIDE) as m:
        file_id = m.volume.upload(b"content")
        assert await m.names("vol") == []
        with fails(errno.ENOENT):
            await m.lookup("vol/M00")


async def test_many_objects_in_one_directory() -> None:
    async with mounted() as m:
        template = m.volume.upload(b"")
        del m.volume.objects[template]
        directory, _, base = template.rpartition("/")
        wanted = []
        for i in range(2500):
            name = f"{base[:27]}{i:07d}"
            m.volume.objects[f"{directory}/{name}"] = bytearray(b"x")
            wanted.append(name.encode())
        before = m.volume.requests.copy()
        assert await m.names(f"vol/{directory}") == wanted
        assert (m.volume.requests - before)["ListObjects"] == 3


# --- extended attributes ------------------------------------------------------------------------


async def test_xattrs() -> None:
    async with mounted() as m:
        number = (await m.write_file("vol/a", b"x")).number
        xattrs = m.vfs.xattrs
        await xattrs.set(number, b"user.width", b"1024")
        assert await xattrs.get(number, b"user.width") == b"1024"
        before = m.volume.requests["ListXattrs"]
        assert await xattrs.list(number) == [b"user.width"]
        with fails(errno.ENODATA):
            await xattrs.get(number, b"user.height")
        # One fetch brings them all.
        assert m.volume.requests["ListXattrs"] == before
        await xattrs.remove(number, b"user.width")
        assert await xattrs.list(number) == []
        with fails(errno.ENODATA):
            await xattrs.remove(number, b"user.width")
        with fails(errno.ERANGE):
            await xattrs.set(number, b"user." + b"x" * 251, b"")


async def test_xattrs_that_are_asked_all_the_time_cost_nothing() -> None:
    async with mounted() as m:
        number = (await m.write_file("vol/a", b"x")).number
        before = m.volume.requests.total()
        for name in (b"security.selinux", b"system.posix_acl_access", b"system.posix_acl_default"):
            with fails(errno.EOPNOTSUPP):
                await m.vfs.xattrs.get(number, name)
        with fails(errno.ENODATA):
            await m.vfs.xattrs.get(number, b"security.capability")
        assert m.volume.requests.total() == before


@pytest.mark.parametrize("name", [b"security.selinux", b"security.capability"])
async def test_xattrs_that_are_never_there_are_not_taken(name: bytes) -> None:
    async with mounted() as m:
        number = (await m.write_file("vol/a", b"x")).number
        with fails(errno.EOPNOTSUPP):
            await m.vfs.xattrs.set(number, name, b"value")
        assert await m.vfs.xattrs.list(number) == []


async def test_xattrs_of_unnamed_objects_are_their_metadata() -> None:
    async with mounted() as m:
        file_id = m.volume.upload(b"content")
        number = (await m.lookup(f"vol/{file_id}")).number
        await m.vfs.xattrs.set(number, b"user.width", b"1")
        assert m.volume.metadata[file_id] == {b"user.width": b"1"}
        assert await m.vfs.xattrs.list(number) == [b"user.width"]


async def test_hidden_xattrs() -> None:
    async with mounted() as m:
        number = (await m.write_file("vol/a", b"content")).number
        attr = m.volume.by_path("a")
        expected = {
            b"file_id": f"vol/{attr.file_id}".encode(),
            b"source": b"127.0.0.3",
            b"replicas": b"127.0.0.3:23000",
            b"crc32": b"12345678",
            b"created": b"2023-11-14T22:13:20Z",
        }
        for key, value in expected.items():
            assert await m.vfs.xattrs.get(number, b"user.fdfs." + key) == value
            with fails(errno.EPERM):
                await m.vfs.xattrs.set(number, b"user.fdfs." + key, value)
            with fails(errno.EPERM):
                await m.vfs.xattrs.remove(number, b"user.fdfs." + key)
        assert await m.vfs.xattrs.list(number) == []
        for other in (b"user.fdfs.", b"user.fdfs.other"):
            with fails(errno.ENODATA):
                await m.vfs.xattrs.get(number, other)


async def test_what_an_id_does_not_tell_is_asked_for() -> None:
    async with mounted() as m:
        m.volume.objects["M00/00/00/short"] = bytearray(b"legacy")
        number = (await m.write_file("vol/a", b"x")).number
        ino = m.volume.by_path("a").ino
        m.volume.attrs[ino] = replace(m.volume.attrs[ino], file_id="M00/00/00/short")
        m.vfs.volumes.of(number).memory.forget(ino)
        assert await m.vfs.xattrs.get(number, b"user.fdfs.crc32") == b"0000abcd"


async def test_empty_files_and_directories_have_no_hidden_xattrs() -> None:
    async with mounted() as m:
        for number in (await make(m, "vol/a"), (await m.lookup("vol")).number, ROOT):
            with fails(errno.ENODATA):
                await m.vfs.xattrs.get(number, b"user.fdfs.file_id")


async def test_the_self_test_answers_once() -> None:
    async with mounted() as m:
        await m.vfs.xattrs.set(ROOT, b"user.fdfs.selftest", b"value")
        assert await m.vfs.xattrs.get(ROOT, b"user.fdfs.selftest") == b"value"
        with fails(errno.ENODATA):
            await m.vfs.xattrs.get(ROOT, b"user.fdfs.selftest")
        with fails(errno.EPERM):
            await m.vfs.xattrs.set(ROOT, b"user.x", b"value")
        assert await m.vfs.xattrs.list(ROOT) == []


# --- numbers ------------------------------------------------------------------------------------


def test_numbers_of_id_directories() -> None:
    for directory in (IdDirectory(0, 255), IdDirectory(1, 3, 255), IdDirectory(2, 0, 0, 255)):
        number = id_directory_number(32767, directory)
        assert number < 1 << 63
        assert id_directory(number) == directory
    assert id_directory(7 << 48 | 123) is None
    assert IdDirectory(2, 1, 0x0C, 0x1F).path == "M01/0C/1F"


def test_lookup_counts() -> None:
    numbers = Numbers()
    first = numbers.of_object(1, "M00/a")
    assert numbers.of_object(1, "M00/a") == first
    assert numbers.of_object(2, "M00/a") != first
    for _ in range(3):
        numbers.remember(first)
    assert numbers.forget([(first, 2)]) == []
    assert numbers.forget([(first, 1), (12345, 1)]) == [first, 12345]
    numbers.drop(first)
    with pytest.raises(KeyError):
        numbers.inode_and_object(first)
    assert len(numbers) == 0


def test_an_adopted_object_keeps_its_number_until_it_is_forgotten() -> None:
    numbers = Numbers()
    number = numbers.of_object(1, "M00/a")
    numbers.adopted(1, "M00/a", 55)
    assert numbers.of_inode(1, 55) == number
    assert numbers.inode_and_object(number) == (55, "")
    numbers.drop(number)
    assert numbers.of_inode(1, 55) == 1 << 48 | 55


async def test_a_call_that_takes_long_leaves_the_others_alone() -> None:
    async with mounted() as m:
        entry = await m.write_file("vol/a", b"content")
        m.volume.fail[names.Truncate] = DeadlineExceeded("slow")
        with pytest.raises(DeadlineExceeded):
            await m.vfs.set_attributes(entry.number, 2_000_000, Changes(), None)
        assert await m.read_file("vol/a") == b"content"
        m.volume.answering = False
        with pytest.raises(DeadlineExceeded):
            await m.vfs.set_attributes(entry.number, 2_000_000, Changes(), None)
        with pytest.raises(ConnectFailed):
            await m.read_file("vol/a")
