"""A real mount of real daemons: what a local directory does not show."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.common.cluster import Cluster
from tests.common.mount import Mount
from tests.common.waiting import wait_until

MIB = 1 << 20


@contextmanager
def fails(code: int) -> Iterator[None]:
    """The block raises OSError with this errno."""
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]


def file_id(path: Path) -> str:
    return os.getxattr(path, "user.fdfs.file_id").decode()


# --- content ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4096, 65_536, 65_537, MIB, MIB + 1, 5 * MIB + 7])
def test_content_becomes_an_object_and_comes_back(
    size: int, volume: Path, mounted: Mount, cluster: Cluster
) -> None:
    content = random.Random(size).randbytes(size)
    path = volume / "file.bin"
    path.write_bytes(content)
    assert path.read_bytes() == content
    assert path.stat().st_size == size
    mounted.clear_caches()
    assert path.read_bytes() == content
    if not size:
        with fails(errno.ENODATA):
            os.getxattr(path, "user.fdfs.file_id")
        return
    name = file_id(path)
    assert name.endswith(".bin")
    with cluster.client() as client:
        assert client.download(name) == content
    assert (mounted.path / name).read_bytes() == content
    assert (mounted.path / name).stat().st_ino == path.stat().st_ino


def test_changes_in_place(volume: Path, mounted: Mount) -> None:
    rng = random.Random(1)
    content = bytearray(rng.randbytes(3 * MIB))
    path = volume / "f"
    path.write_bytes(content)
    with path.open("r+b", buffering=0) as file:
        for _ in range(200):
            offset = rng.randrange(len(content))
            data = rng.randbytes(rng.randrange(1, 10_000))
            file.seek(offset)
            file.write(data)
            content[offset : offset + len(data)] = data
    assert path.read_bytes() == content
    with path.open("ab") as file:
        file.write(b"appended")
    os.truncate(path, 2 * MIB)
    content = content[: 2 * MIB]
    mounted.clear_caches()
    assert path.read_bytes() == content


def test_written_data_is_seen_by_everyone_before_it_is_stored(volume: Path) -> None:
    path = volume / "f"
    with path.open("wb", buffering=0) as file:
        file.write(b"one")
        assert path.read_bytes() == b"one"
        assert path.stat().st_size == 3
        file.write(b"two")
        assert path.read_bytes() == b"onetwo"


def test_a_copy_on_another_mount_sees_what_was_closed(
    volume: Path, cluster: Cluster, mounted: Mount, tmp_path: Path
) -> None:
    with cluster.mount(tmp_path / "second") as second:
        other = second.path / volume.relative_to(mounted.path)
        (volume / "f").write_bytes(b"first")
        assert (other / "f").read_bytes() == b"first"
        (volume / "f").write_bytes(b"second version")
        assert (other / "f").read_bytes() == b"second version"
        os.rename(volume / "f", volume / "g")
        (other / "h").write_bytes(b"x" * 2 * MIB)
        assert (volume / "h").read_bytes() == b"x" * 2 * MIB


def test_unlinked_files_stay_readable(volume: Path) -> None:
    path = volume / "f"
    path.write_bytes(b"x" * 2 * MIB)
    with path.open("r+b", buffering=0) as file:
        # Longer than the mount waits before it tells the storage of open files.
        time.sleep(1.5)
        path.unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b"still")
        os.fsync(file.fileno())
        file.seek(0)
        assert file.read() == b"still" + b"x" * (2 * MIB - 5)
    assert list(volume.iterdir()) == []


def test_exclusive_creation(volume: Path) -> None:
    os.close(os.open(volume / "f", os.O_CREAT | os.O_EXCL))
    with fails(errno.EEXIST):
        os.open(volume / "f", os.O_CREAT | os.O_EXCL)


# --- names and attributes -----------------------------------------------------------------------


def test_rename_over_files_and_directories(volume: Path) -> None:
    (volume / "a").write_bytes(b"a")
    (volume / "b").write_bytes(b"b")
    os.rename(volume / "a", volume / "b")
    assert (volume / "b").read_bytes() == b"a"
    (volume / "d").mkdir()
    (volume / "e").mkdir()
    os.rename(volume / "d", volume / "e")
    (volume / "e" / "x").write_bytes(b"")
    (volume / "d").mkdir()
    with fails(errno.ENOTEMPTY):
        os.rename(volume / "d", volume / "e")
    with fails(errno.EISDIR):
        os.rename(volume / "b", volume / "e")
    assert sorted(p.name for p in volume.iterdir()) == ["b", "d", "e"]


def test_links_and_special_files(volume: Path) -> None:
    (volume / "f").write_bytes(b"x")
    os.link(volume / "f", volume / "g")
    assert (volume / "f").stat().st_nlink == 2
    assert (volume / "f").stat().st_ino == (volume / "g").stat().st_ino
    os.symlink("f", volume / "s")
    assert os.readlink(volume / "s") == "f"
    os.mkfifo(volume / "p", 0o600)
    assert stat.S_ISFIFO((volume / "p").stat().st_mode)
    if os.getuid() == 0:
        os.mknod(volume / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        assert (volume / "null").stat().st_rdev == os.makedev(1, 3)


def test_times_have_nanoseconds_and_any_year(volume: Path) -> None:
    path = volume / "f"
    path.write_bytes(b"x")
    for ns in (123_456_789, -1_000_000_001, 4_102_444_800 * 10**9 + 1):
        os.utime(path, ns=(ns + 5, ns))
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (ns + 5, ns)


def test_a_time_set_on_an_open_file_survives_closing_it(volume: Path, mounted: Mount) -> None:
    with (volume / "f").open("wb") as file:
        file.write(b"content")
        file.flush()
        os.utime(file.fileno(), ns=(1, 10**9 + 7))
        os.fchmod(file.fileno(), 0o640)
    mounted.clear_caches()
    found = (volume / "f").stat()
    assert (found.st_mtime_ns, stat.S_IMODE(found.st_mode)) == (10**9 + 7, 0o640)


def test_space(mounted: Mount, cluster: Cluster) -> None:
    found = os.statvfs(mounted.path / "group1")
    local = os.statvfs(cluster.storage().directory)
    # Two volumes on one disk: its size counts twice.
    size = found.f_blocks * found.f_frsize
    assert size == pytest.approx(2 * local.f_blocks * local.f_frsize, rel=0.01)
    assert 0 < found.f_bavail <= found.f_bfree <= found.f_blocks
    assert found.f_namemax == 255


# --- xattrs and ids -----------------------------------------------------------------------------


def test_xattrs_are_metadata_in_both_directions(volume: Path, cluster: Cluster) -> None:
    path = volume / "f"
    path.write_bytes(b"x")
    os.setxattr(path, "user.width", b"1024")
    with cluster.client() as client:
        assert client.get_metadata(file_id(path)) == {"width": "1024"}
        client.set_metadata(file_id(path), {"height": "768"}, b"M")
    wait_until(lambda: "user.height" in os.listxattr(path), "the new metadata to be seen")
    assert sorted(os.listxattr(path)) == ["user.height", "user.width"]
    with fails(errno.EEXIST):
        os.setxattr(path, "user.width", b"1", os.XATTR_CREATE)
    with fails(errno.ENODATA):
        os.setxattr(path, "user.depth", b"1", os.XATTR_REPLACE)
    with fails(errno.EPERM):
        os.setxattr(path, "user.fdfs.crc32", b"1")
    # A new content of the file keeps them.
    path.write_bytes(b"other")
    assert os.getxattr(path, "user.width") == b"1024"


def test_objects_of_applications(volume: Path, mounted: Mount, cluster: Cluster) -> None:
    with cluster.client() as client:
        name = client.upload(b"application", "txt", group="group1")
        client.set_metadata(name, {"width": "5"})
        other = client.upload(b"other", "txt", group="group1")
    path = mounted.path / name
    assert path.read_bytes() == b"application"
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_nlink) == (0o644, 1)
    assert os.getxattr(path, "user.width") == b"5"
    assert path.name in os.listdir(path.parent)
    assert "M00" in os.listdir(mounted.path / "group1")
    changes: list[Callable[[], object]] = [
        path.unlink,
        lambda: path.chmod(0o600),
        lambda: path.open("ab"),
        lambda: (path.parent / "new").write_bytes(b""),
        (mounted.path / "group1" / "M05").mkdir,
    ]
    for change in changes:
        with fails(errno.EPERM):
            change()
    os.rename(path, volume / "mine")
    os.link(mounted.path / other, volume / "linked")
    assert (volume / "mine").read_bytes() == b"application"
    assert os.getxattr(volume / "mine", "user.width") == b"5"
    assert file_id(volume / "mine") == name
    # It has a name now, and shows up there only; its id goes on working.
    wait_until(lambda: not path.parent.exists() or path.name not in os.listdir(path.parent), "")
    assert path.read_bytes() == b"application"
    assert path.stat().st_ino == (volume / "mine").stat().st_ino
    with fails(errno.EBUSY):
        os.rename(path, volume / "again")
    with fails(errno.EBUSY):
        path.unlink()
    os.link(path, volume / "third")
    assert (volume / "mine").stat().st_nlink == 2
    with fails(errno.EXDEV):
        os.rename(volume / "mine", mounted.path / "group2" / "mine")


def test_the_root(mounted: Mount) -> None:
    assert sorted(os.listdir(mounted.path)) == ["group1", "group2"]
    changes: list[Callable[[], object]] = [
        (mounted.path / "new").mkdir,
        (mounted.path / "group1").rmdir,
        lambda: os.rename(mounted.path / "group1", mounted.path / "new"),
    ]
    for change in changes:
        with fails(errno.EPERM):
            change()


# --- failures -----------------------------------------------------------------------------------


def test_a_dead_volume_leaves_the_other_one_alone(tmp_path: Path, fuse: None) -> None:
    with (
        Cluster(tmp_path / "cluster", groups=("one", "two")) as cluster,
        cluster.mount(tmp_path / "mnt", "timeout=5") as mount,
    ):
        one, two = mount.path / "one", mount.path / "two"
        (one / "f").write_bytes(b"one")
        (two / "f").write_bytes(b"two")
        cluster.storage("one").kill()
        with fails(errno.EIO):
            os.listdir(one)
        waited_s = 0.0
        for i in range(20):
            start = time.monotonic()
            with fails(errno.EIO):
                (one / f"x{i}").stat()
            waited_s += time.monotonic() - start
            (two / f"x{i}").write_bytes(b"works")
        # All together, as a busy machine may stop for seconds at any of them.
        assert waited_s < 20 * 5 / 4, "they waited for the dead volume"
        assert sorted(os.listdir(mount.path)) == ["one", "two"]
        cluster.storage("one").start()
        wait_until(lambda: _read(one / "f") == b"one", "the volume to come back")


_WRITER = """
import random, sys
content = random.Random(9).randbytes(1 << 20)
with open(sys.argv[1], "wb", buffering=0) as file:
    for number in range(40):
        if number == 20:
            print("half", flush=True)
        file.write(content)
"""
"""A process of its own: starting a storage in this one would flush a copy of the descriptor."""


def test_a_storage_that_is_killed_while_it_is_written_to(tmp_path: Path, fuse: None) -> None:
    content = random.Random(9).randbytes(MIB)
    with (
        Cluster(tmp_path / "cluster", groups=("one",)) as cluster,
        cluster.mount(tmp_path / "mnt", "timeout=120") as mount,
    ):
        large = mount.path / "one" / "large"
        storage = cluster.storage("one")
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, large], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"half\n"
            storage.kill()
            storage.start()
        assert writer.returncode == 0
        for i in range(20):
            (mount.path / "one" / f"small{i}").write_bytes(content[:4096])
            if i == 10:
                storage.kill()
                storage.start()
        mount.remount()
        assert large.read_bytes() == content * 40
        for i in range(20):
            assert (mount.path / "one" / f"small{i}").read_bytes() == content[:4096]


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def test_what_is_not_there_says_so(volume: Path) -> None:
    (volume / "file").write_bytes(b"x" * 10)
    with pytest.raises(OSError, match="not supported") as caught:
        os.open(volume, os.O_TMPFILE | os.O_RDWR, 0o600)
    assert caught.value.errno == errno.EOPNOTSUPP
    with (volume / "file").open("r+b", buffering=0) as file:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.fallocate(file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(100)) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 10
        assert os.lseek(file.fileno(), 3, os.SEEK_DATA) == 3
