"""A real mount of real daemons: what a local directory does not show, and starting and ending."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from fdfsfuse.fuse.mountpoint import self_test
from tests.common.cluster import Cluster, Mount, is_mounted, unmount
from tests.common.processes import Process, program
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
    wait_until(
        lambda: "user.height" in os.listxattr(path), "the new metadata to be seen", timeout_s=5
    )
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


# --- starting and ending ------------------------------------------------------------------------


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    if is_mounted(path):
        unmount(path, lazy=True)


def fdfs_mount(*arguments: str | Path, timeout_s: float = 60.0) -> tuple[int, str]:
    """Run fdfs-mount; its exit code and what it said."""
    command = [program("fdfs-mount"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    return done.returncode, done.stdout + done.stderr


def mount_process(path: Path) -> int:
    """The process that serves a mount in the background."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(path).encode() in arguments:
            return int(entry.parent.name)
    raise AssertionError(f"no process serves {path}")


def ended(pid: int) -> bool:
    """Whether a process that is not our child is gone (or is nobody's child any more)."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def test_in_the_background(cluster: Cluster, mountpoint: Path, tmp_path: Path, fuse: None) -> None:
    log = tmp_path / "log"
    code, said = fdfs_mount(cluster.tracker.endpoint, mountpoint, "-o", f"rw,nosuid,log={log}")
    assert (code, said) == (0, "")
    # It answers at once, with no waiting here.
    (mountpoint / "group1" / "background").write_bytes(b"x")
    table = Path("/proc/self/mountinfo").read_text()
    line = next(line for line in table.splitlines() if f" {mountpoint} " in line)
    assert "fuse.fdfs" in line
    assert cluster.tracker.endpoint in line
    assert "nosuid" in line
    pid = mount_process(mountpoint)
    code, said = fdfs_mount(cluster.tracker.endpoint, mountpoint)
    assert code == 1
    assert "already mounted" in said
    assert unmount(mountpoint)
    wait_until(lambda: ended(pid), "the mount process to end")
    assert "mounted on" in log.read_text()
    assert "ERROR" not in log.read_text()


def test_a_mount_left_by_a_killed_process(
    cluster: Cluster, mountpoint: Path, tmp_path: Path, fuse: None
) -> None:
    arguments = [cluster.tracker.endpoint, str(mountpoint), "-o", f"log={tmp_path / 'log'}"]
    assert fdfs_mount(*arguments)[0] == 0
    pid = mount_process(mountpoint)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: ended(pid), "the mount process to be gone")
    code, said = fdfs_mount(*arguments)
    assert code == 1
    assert f"fusermount3 -u -z {mountpoint}" in said
    assert unmount(mountpoint, lazy=True)
    assert fdfs_mount(*arguments) == (0, "")
    assert unmount(mountpoint)


def test_unmounted_at_once(cluster: Cluster, tmp_path: Path, fuse: None) -> None:
    """Perhaps before the mount has tested itself, which is no failure of the mount."""
    for _ in range(5):
        mount = cluster.mount(tmp_path / "mount")
        mount.path.mkdir(exist_ok=True)
        mount.launch()
        wait_until(partial(is_mounted, mount.path), "the mount")
        mount.unmount()
    self_test(tmp_path, 10.0)  # nothing is mounted there any more


def test_sigterm_stores_what_was_written(
    cluster: Cluster, mounted: Mount, tmp_path: Path, volume: Path
) -> None:
    content = random.Random(5).randbytes(3 * MIB)
    mount = cluster.mount(tmp_path / "second")
    mount.mount()
    directory = mount.path / volume.relative_to(mounted.path)
    small = (directory / "small").open("wb", buffering=0)
    large = (directory / "large").open("wb", buffering=0)
    try:
        small.write(b"not flushed")
        large.write(content)
        assert mount.terminate() == 0
    finally:
        for file in (small, large):
            with pytest.raises(OSError, match=r"not connected|aborted"):
                file.close()
    assert not is_mounted(mount.path)
    assert (volume / "small").read_bytes() == b"not flushed"
    assert (volume / "large").read_bytes() == content


def test_nobody_to_ask(mountpoint: Path, fuse: None) -> None:
    code, said = fdfs_mount("127.0.0.1:1", mountpoint, "-o", "timeout=1")
    assert code == 1
    assert "tracker" in said
    assert "127.0.0.1:1" in said
    assert len(said.splitlines()) == 1
    assert not is_mounted(mountpoint)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["127.0.0.1:1", "{path}/missing"], "No such file or directory"),
        (["127.0.0.1:1", "{path}/file"], "not a directory"),
        (["127.0.0.1:0", "{path}"], "port"),
        (["", "{path}"], "tracker"),
        (["127.0.0.1:1", "{path}", "-o", "alow_other"], "allow_other"),
        (["127.0.0.1:1", "{path}", "-o", "ids=all"], "ro, rw or hide"),
        (["127.0.0.1:1", "{path}", "-o", "timeout=soon"], "seconds"),
        (["127.0.0.1:1", "{path}", "-o", "uid=root"], "numeric"),
        (["127.0.0.1:1", "{path}", "-o", "umask=9"], "octal"),
        (["127.0.0.1:1", "{path}", "-o", "ro=1"], "no value"),
        (["127.0.0.1:1", "{path}", "-o", "uid"], "needs a value"),
        (["127.0.0.1:1", "{path}", "-o", "log=here"], "absolute path"),
    ],
)
def test_wrong_use(arguments: list[str], text: str, mountpoint: Path) -> None:
    (mountpoint / "file").write_bytes(b"")
    code, said = fdfs_mount(*(argument.format(path=mountpoint) for argument in arguments))
    assert code == 2
    assert text in said
    assert "Traceback" not in said


def test_help_and_version() -> None:
    code, said = fdfs_mount("--help")
    assert code == 0
    assert "fdfs-mount 192.168.0.1 /mnt/fdfs" in said
    assert fdfs_mount("-V")[0] == 0


def test_options_of_mount_are_accepted(
    cluster: Cluster, mountpoint: Path, tmp_path: Path, fuse: None
) -> None:
    """As mount(8) calls a helper: arguments first, -o last, and options of its own."""
    options = "ro,noatime,_netdev,x-systemd.automount,user,noauto,uid=5,umask=022,ids=hide"
    log = f"log={tmp_path / 'log'}"
    assert fdfs_mount(cluster.tracker.endpoint, mountpoint, "-o", f"{options},{log}") == (0, "")
    try:
        assert mountpoint.stat().st_uid == 5
        with fails(errno.EROFS):
            (mountpoint / "group1" / "x").mkdir()
        assert not (mountpoint / "group1" / "M00").exists()
    finally:
        assert unmount(mountpoint)


FAULT = """
import sys
from fdfsfuse.cli.mount import main
from fdfsfuse.fuse.operations import Operations

async def setxattr(self, inode, name, value, ctx):
    await self._vfs.xattrs.set(inode, b"\\0\\0" + name[2:], value)

Operations.setxattr = setxattr
main()
"""


@pytest.mark.parametrize("flags", [[], ["-f"]])
def test_a_libfuse_that_spoils_xattr_names_is_refused(
    flags: list[str], cluster: Cluster, mountpoint: Path, tmp_path: Path, fuse: None
) -> None:
    command = [sys.executable, "-c", FAULT, cluster.tracker.endpoint, str(mountpoint), *flags]
    command += ["-o", f"log={tmp_path / 'log'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "extended attributes" in done.stderr
    assert "Traceback" not in done.stderr
    wait_until(lambda: not is_mounted(mountpoint), "the mount to be gone")


def test_a_defect_of_ours_is_an_error_of_one_call(
    cluster: Cluster, mountpoint: Path, tmp_path: Path, fuse: None
) -> None:
    fault = """
from fdfsfuse.cli.mount import main
from fdfsfuse.vfs.tree import Tree

async def readlink(self, number):
    return [][number]

Tree.readlink = readlink
main()
"""
    command = [sys.executable, "-c", fault, cluster.tracker.endpoint, str(mountpoint), "-f"]
    process = Process("faulty", command, tmp_path)
    process.start()
    process.allow_log("Traceback|ERROR")
    link = mountpoint / "group1" / "faulty-link"
    os.symlink("target", link)
    with fails(errno.EIO):
        os.readlink(link)
    (mountpoint / "group1" / "still").write_bytes(b"works")
    assert (mountpoint / "group1" / "still").read_bytes() == b"works"
    assert process.terminate() == 0
    assert "readlink" in process.log()
    assert "/group1/faulty-link" in process.log()
    assert "IndexError" in process.log()


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
        for i in range(20):
            start = time.monotonic()
            with fails(errno.EIO):
                (one / f"x{i}").stat()
            assert time.monotonic() - start < 5, "it waited for the dead volume"
            (two / f"x{i}").write_bytes(b"works")
        assert sorted(os.listdir(mount.path)) == ["one", "two"]
        cluster.storage("one").start()
        wait_until(lambda: _read(one / "f") == b"one", "the volume to come back")


def test_a_storage_that_is_killed_while_it_is_written_to(tmp_path: Path, fuse: None) -> None:
    content = random.Random(9).randbytes(MIB)
    with (
        Cluster(tmp_path / "cluster", groups=("one",)) as cluster,
        cluster.mount(tmp_path / "mnt") as mount,
    ):
        large = mount.path / "one" / "large"
        storage = cluster.storage("one")
        with large.open("wb", buffering=0) as file:
            for i in range(40):
                file.write(content)
                if i == 20:
                    storage.kill()
                    storage.start()
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
