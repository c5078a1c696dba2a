"""The whole way: from cp on the mount to a plain FastDFS client and back."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fdfsfuse.proto.fileid import FileKind, decode_name
from tests.common.cluster import Cluster
from tests.common.mount import Mount, is_mounted, unmount
from tests.common.plain import PlainClient
from tests.common.processes import program
from tests.common.treeload import status_of
from tests.common.trees import run
from tests.common.waiting import wait_until

MEBI = 1 << 20


def file_id(path: Path) -> str:
    """What the mount says is the file id of a file."""
    return os.getxattr(path, "user.fdfs.file_id").decode()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[PlainClient]:
    with cluster.client() as plain:
        yield plain


# --- out of the mount ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 100, 4096, MEBI - 1, MEBI, MEBI + 1, 5_000_003])
def test_copied_file_is_a_fastdfs_object(
    volume: Path, client: PlainClient, cluster: Cluster, tmp_path: Path, size: int
) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "photo.jpg").write_bytes(data)
    run(["cp", tmp_path / "photo.jpg", volume / "photo.jpg"])
    name = file_id(volume / "photo.jpg")
    assert name.startswith("group1/M00/")
    assert name.endswith(".jpg")
    assert client.download(name) == data
    assert client.download(name, size // 2, 10) == data[size // 2 :][:10]
    length, mtime, crc = client.info(name)
    assert length == size
    assert abs(mtime - time.time()) < 100
    path = cluster.storage("group1").path_of(name.split("/", 1)[1])
    assert path.read_bytes() == data
    info = decode_name(name.split("/", 1)[1])
    assert info.source == cluster.storage("group1").address
    if info.kind is FileKind.NORMAL:
        assert (info.size, info.crc32) == (size, zlib.crc32(data))
        assert crc == zlib.crc32(data)
    assert os.getxattr(volume / "photo.jpg", "user.fdfs.source").decode()
    assert int(os.getxattr(volume / "photo.jpg", "user.fdfs.crc32"), 16) == zlib.crc32(data)


def test_empty_file_has_no_object(volume: Path, cluster: Cluster) -> None:
    (volume / "empty").touch()
    assert status_of(lambda: os.getxattr(volume / "empty", "user.fdfs.file_id")) == errno.ENODATA
    assert (volume / "empty").read_bytes() == b""


def test_overwriting_keeps_metadata_and_drops_the_old_object(
    volume: Path, client: PlainClient
) -> None:
    path = volume / "note.txt"
    path.write_bytes(b"first")
    os.setxattr(path, "user.width", b"1024")
    first = file_id(path)
    path.write_bytes(b"second")
    second = file_id(path)
    assert first != second
    assert client.download(second) == b"second"
    assert client.get_metadata(second) == {"width": "1024"}
    assert os.getxattr(path, "user.width") == b"1024"


def test_every_volume_stores_its_own_files(mounted: Mount, client: PlainClient) -> None:
    assert sorted(os.listdir(mounted.path)) == ["group1", "group2"]
    for group in ("group1", "group2"):
        path = mounted.path / group / "where.txt"
        path.write_text(group)
        name = file_id(path)
        assert name.startswith(group + "/")
        assert client.download(name) == group.encode()
        path.unlink()


def test_root_cannot_be_changed(mounted: Mount) -> None:
    for change in (
        lambda: (mounted.path / "new").mkdir(),
        lambda: (mounted.path / "group1").rename(mounted.path / "other"),
        lambda: (mounted.path / "group1").rmdir(),
        lambda: (mounted.path / "file").touch(),
        lambda: (mounted.path / "link").symlink_to("group1"),
    ):
        assert status_of(change) in (errno.EPERM, errno.EBUSY, errno.EXDEV, errno.EROFS)
    assert sorted(os.listdir(mounted.path)) == ["group1", "group2"]


# --- metadata and xattrs ------------------------------------------------------------------------


def test_metadata_and_xattrs_are_the_same(volume: Path, client: PlainClient) -> None:
    path = volume / "photo.jpg"
    path.write_bytes(b"picture")
    name = file_id(path)
    os.setxattr(path, "user.width", b"1024")
    os.setxattr(path, "user.height", b"768")
    assert client.get_metadata(name) == {"height": "768", "width": "1024"}
    client.set_metadata(name, {"width": "2048", "camera": "box"}, b"M")
    wait_until(lambda: "user.camera" in os.listxattr(path), "the client's metadata")
    xattrs = {key: os.getxattr(path, key) for key in os.listxattr(path)}
    assert xattrs == {"user.width": b"2048", "user.height": b"768", "user.camera": b"box"}
    client.set_metadata(name, {"only": "this"})
    wait_until(lambda: os.listxattr(path) == ["user.only"], "overwritten metadata")
    os.removexattr(path, "user.only")
    assert client.get_metadata(name) == {}


def test_xattrs_that_metadata_cannot_hold_stay_with_the_name(
    volume: Path, client: PlainClient
) -> None:
    path = volume / "file"
    path.write_bytes(b"content")
    name = file_id(path)
    values = {
        "user." + "n" * 65: b"long name",
        "user.long": b"v" * 257,
        "user.binary": b"\x01\x02\x00",
        "user.fits": b"yes",
    }
    for key, value in values.items():
        os.setxattr(path, key, value)
    assert client.get_metadata(name) == {"fits": "yes"}
    assert {key: os.getxattr(path, key) for key in os.listxattr(path)} == values
    path.rename(volume / "renamed")
    path = volume / "renamed"
    path.write_bytes(b"new content")
    assert {key: os.getxattr(path, key) for key in os.listxattr(path)} == values


def test_hidden_xattrs_are_readable_and_not_listed(volume: Path) -> None:
    path = volume / "file"
    path.write_bytes(b"content")
    assert os.listxattr(path) == []
    for key in ("file_id", "source", "replicas", "crc32", "created"):
        assert os.getxattr(path, f"user.fdfs.{key}")
        assert status_of(partial(os.setxattr, path, f"user.fdfs.{key}", b"x")) in (
            errno.EPERM,
            errno.EACCES,
            errno.EOPNOTSUPP,
        )


# --- objects of plain clients -------------------------------------------------------------------


def test_upload_shows_under_its_id(mounted: Mount, client: PlainClient) -> None:
    data = b"from a FastDFS client" * 100
    name = client.upload(data, "txt", group="group1")
    client.set_metadata(name, {"width": "5"})
    path = mounted.path / name
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert path.stat().st_nlink == 1
    assert os.getxattr(path, "user.width") == b"5"
    assert os.getxattr(path, "user.fdfs.file_id").decode() == name
    wait_until(lambda: str(path) in walk_files(mounted.path / "group1/M00"), "the listing")
    assert not [entry for entry in walk_files(mounted.path / "group1/M00") if "-m" in entry[-3:]]
    for change in (
        lambda: path.chmod(0o600),
        lambda: path.unlink(),
        lambda: path.write_bytes(b"changed"),
        lambda: path.rename(path.with_name("other")),
        lambda: path.with_name("new").touch(),
        lambda: path.parent.joinpath("sub").mkdir(),
    ):
        assert status_of(change) in (errno.EPERM, errno.EACCES, errno.EROFS)
    assert path.read_bytes() == data
    os.setxattr(path, "user.height", b"6")
    assert client.get_metadata(name) == {"height": "6", "width": "5"}
    assert status_of(lambda: os.setxattr(path, "user.long", b"x" * 300)) == errno.E2BIG
    client.delete(name)
    wait_until(lambda: not path.exists(), "the deleted object to go")


def walk_files(path: Path) -> set[str]:
    """All files below *path* by their full path; nothing when it is not there."""
    return {os.path.join(base, name) for base, _, names in os.walk(path) for name in names}


def test_mv_gives_an_object_a_name_without_copying(
    volume: Path, mounted: Mount, client: PlainClient, cluster: Cluster
) -> None:
    data = random.Random(1).randbytes(3_000_000)
    name = client.upload(data, "bin", group="group1")
    client.set_metadata(name, {"width": "5"})
    on_disk = cluster.storage("group1").path_of(name.split("/", 1)[1])
    before = on_disk.stat().st_ino
    run(["mv", mounted.path / name, volume / "named.bin"])
    assert on_disk.stat().st_ino == before
    named = volume / "named.bin"
    assert named.read_bytes() == data
    assert file_id(named) == name
    assert os.getxattr(named, "user.width") == b"5"
    assert client.download(name) == data
    # It is listed once, but the id still leads to the same inode.
    assert str(mounted.path / name) not in walk_files(mounted.path / "group1/M00")
    by_id = mounted.path / name
    assert by_id.stat().st_ino == named.stat().st_ino
    assert by_id.read_bytes() == data
    for change in (by_id.unlink, lambda: by_id.rename(volume / "again")):
        assert status_of(change) == errno.EBUSY
    os.link(by_id, volume / "second name")
    assert (volume / "second name").stat().st_nlink == 2
    named.chmod(0o600)
    assert stat.S_IMODE(by_id.stat().st_mode) == 0o600


def test_ln_and_mv_over_an_existing_file(volume: Path, mounted: Mount, client: PlainClient) -> None:
    first = client.upload(b"first", "txt", group="group1")
    second = client.upload(b"second", "txt", group="group1")
    os.link(mounted.path / first, volume / "target")
    assert (volume / "target").read_bytes() == b"first"
    with pytest.raises(FileExistsError):
        os.link(mounted.path / second, volume / "target")
    os.rename(mounted.path / second, volume / "target")
    assert (volume / "target").read_bytes() == b"second"
    assert file_id(volume / "target") == second
    assert client.download(second) == b"second"


def test_objects_cannot_be_named_in_another_volume(mounted: Mount, client: PlainClient) -> None:
    name = client.upload(b"group1's", "txt", group="group1")
    for move in (os.rename, os.link):
        assert (
            status_of(partial(move, mounted.path / name, mounted.path / "group2" / "stolen"))
            == errno.EXDEV
        )
    assert client.download(name) == b"group1's"


def test_rm_rf_of_a_volume_spares_the_objects_of_clients(fuse: None, tmp_path: Path) -> None:
    with (
        Cluster(tmp_path / "cluster") as cluster,
        cluster.mount(tmp_path / "mnt") as mount,
        cluster.client() as client,
    ):
        kept = {client.upload(b"%d" % i * 50, "txt"): b"%d" % i * 50 for i in range(20)}
        volume = mount.path / "group1"
        for number in range(20):
            (volume / f"dir{number % 3}").mkdir(exist_ok=True)
            (volume / f"dir{number % 3}" / f"file{number}").write_bytes(b"own")
        wait_until(lambda: "M00" in os.listdir(volume), "M00 to be listed")
        subprocess.run(["rm", "-rf", *volume.iterdir()], capture_output=True)
        assert {p.name for p in volume.iterdir()} == {"M00"}
        for name, data in kept.items():
            assert client.download(name) == data


def test_reserved_names(mounted: Mount) -> None:
    for name in ("M00", "M01", "MFF"):
        path = mounted.path / "group1" / name
        assert status_of(path.mkdir) in (errno.EPERM, errno.EEXIST)
    (mounted.path / "group1" / "M00x").mkdir()
    (mounted.path / "group1" / "M00x").rmdir()


def test_nonsense_below_m00(mounted: Mount, client: PlainClient) -> None:
    name = client.upload(b"x", "txt", group="group1")
    base = mounted.path / "group1"
    client.set_metadata(name, {"a": "b"})
    for path in (
        "M00/00/00/nothing",
        "M00/ZZ",
        "M00/00/00/" + "A" * 44,
        "M77/00/00",
        "M00/00/0",
        name.split("/", 1)[1] + "-m",
        "M00/00/00/../../../data",
    ):
        assert not (base / path).exists(), path
    assert b"\0" not in (base / name.split("/", 1)[1]).read_bytes()


def test_clients_change_named_objects_by_id(
    volume: Path, mounted: Mount, client: PlainClient
) -> None:
    """Deleting an object by its id removes its names, soon."""
    path = volume / "file"
    path.write_bytes(b"content")
    client.delete(file_id(path))

    def gone() -> bool:
        try:
            return path.read_bytes() == b""
        except OSError:
            return True

    wait_until(gone, "the name to lose its object")


def test_appender_of_a_client_grows_on_the_mount(mounted: Mount, client: PlainClient) -> None:
    name = client.upload(b"one", "log", group="group1", appender=True)
    path = mounted.path / name
    assert path.read_bytes() == b"one"
    client.append(name, b" two")
    wait_until(lambda: path.read_bytes() == b"one two", "the appended bytes")
    assert path.stat().st_size == 7


# --- several mounts and volumes -----------------------------------------------------------------


def test_two_mounts_see_each_other(
    volume: Path, mounted: Mount, cluster: Cluster, tmp_path: Path
) -> None:
    with cluster.mount(tmp_path / "second") as second:
        there = second.path / "group1" / volume.name
        (volume / "file").write_bytes(b"from the first")
        wait_until(lambda: (there / "file").exists(), "the file on the other mount")
        assert (there / "file").read_bytes() == b"from the first"
        (there / "file").write_bytes(b"from the second, longer")
        wait_until(
            lambda: (volume / "file").read_bytes() == b"from the second, longer", "the new content"
        )
        (there / "dir").mkdir()
        (there / "file").rename(there / "dir" / "moved")
        wait_until(lambda: (volume / "dir" / "moved").exists(), "the rename")
        wait_until(lambda: not (volume / "file").exists(), "the old name to go")
        with pytest.raises(FileExistsError):
            (volume / "dir").mkdir()


def test_exclusive_creation_is_exclusive_between_mounts(
    volume: Path, mounted: Mount, cluster: Cluster, tmp_path: Path
) -> None:
    with cluster.mount(tmp_path / "second") as second:
        directories = [volume, second.path / "group1" / volume.name]
        winners: list[tuple[int, int]] = []

        def take(side: int) -> None:
            for number in range(100):
                try:
                    os.close(
                        os.open(
                            directories[side] / f"lock{number}",
                            os.O_CREAT | os.O_EXCL | os.O_WRONLY,
                        )
                    )
                except FileExistsError:
                    continue
                winners.append((number, side))

        threads = [threading.Thread(target=take, args=(side,)) for side in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(number for number, _ in winners) == list(range(100))
        wait_until(lambda: len(os.listdir(volume)) == 100, "all locks to be seen")


def test_volume_appears_by_itself(fuse: None, tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", groups=("group1", "group2")) as cluster:
        late = cluster.storage("group2")
        # A tracker that has never heard of group2.
        for storage in cluster.storages:
            storage.terminate()
        cluster.tracker.terminate()
        run(["rm", "-rf", cluster.tracker.base_path])
        cluster.tracker.base_path.mkdir()
        cluster.tracker.start()
        cluster.storage("group1").start()
        mount = cluster.mount(tmp_path / "mnt")
        mount.path.mkdir()
        mount.launch()
        wait_until(lambda: is_mounted(mount.path), "the mount")
        wait_until(lambda: os.listdir(mount.path) == ["group1"], "group1")
        late.start()
        wait_until(lambda: len(os.listdir(mount.path)) == 2, "group2 to appear")
        (mount.path / "group2" / "file").write_bytes(b"late")
        assert (mount.path / "group2" / "file").read_bytes() == b"late"
        mount.unmount()


def test_a_dead_volume_does_not_hurt_the_others(fuse: None, tmp_path: Path) -> None:
    with (
        Cluster(tmp_path / "cluster", groups=("group1", "group2")) as cluster,
        cluster.mount(tmp_path / "mnt", "timeout=6") as mount,
    ):
        (mount.path / "group1" / "file").write_bytes(b"1")
        (mount.path / "group2" / "file").write_bytes(b"2")
        cluster.storage("group2").kill()
        assert status_of(lambda: (mount.path / "group2" / "new").mkdir()) == errno.EIO
        begin = time.monotonic()
        assert sorted(os.listdir(mount.path)) == ["group1", "group2"]
        assert (mount.path / "group1" / "file").read_bytes() == b"1"
        (mount.path / "group1" / "new").mkdir()
        assert time.monotonic() - begin < 6, "no call waited for the dead volume"
        cluster.storage("group2").start()

        def again() -> bool:
            try:
                return (mount.path / "group2" / "file").read_bytes() == b"2"
            except OSError:
                return False

        wait_until(again, "group2 to be back")
        (mount.path / "group2" / "new").mkdir()


# --- background, signals, stale mounts ----------------------------------------------------------


def test_background_mount_answers_when_the_command_returns(
    fuse: None, cluster: Cluster, tmp_path: Path
) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    command = [program("fdfs-mount"), cluster.tracker.endpoint, str(path)]
    log = tmp_path / "log"
    try:
        done = subprocess.run([*command, "-o", f"log={log}"], capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert is_mounted(path)
        (path / "group1" / "background").write_bytes(b"works")
        (path / "group1" / "background").unlink()
        again = subprocess.run(command, capture_output=True, timeout=120, text=True)
        assert again.returncode == 1
        assert "Traceback" not in again.stderr
        assert again.stderr.strip()
    finally:
        wait_until(lambda: unmount(path) or not is_mounted(path), "umount")
    wait_until(lambda: not is_mounted(path), "the end of the mount")


def test_mount_says_why_it_cannot(fuse: None, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "file").touch()
    for arguments in (
        ["127.0.0.1:1", str(tmp_path / "mnt"), "-o", "timeout=1"],
        [cluster.tracker.endpoint, str(tmp_path / "missing")],
        [cluster.tracker.endpoint, str(tmp_path / "file")],
        [cluster.tracker.endpoint, str(tmp_path / "mnt"), "-o", "ids=nonsense"],
        ["not an address:x", str(tmp_path / "mnt")],
        [],
    ):
        done = subprocess.run(
            [program("fdfs-mount"), *arguments], capture_output=True, timeout=120, text=True
        )
        assert done.returncode in (1, 2), arguments
        assert done.stderr.strip()
        assert "Traceback" not in done.stderr
        assert not is_mounted(tmp_path / "mnt")


def test_sigterm_flushes_and_unmounts(fuse: None, cluster: Cluster, tmp_path: Path) -> None:
    mount = cluster.mount(tmp_path / "mnt")
    mount.mount()
    path = mount.path / "group1" / f"flushed-{tmp_path.name}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"written, not closed" * 1000)
    assert mount.terminate() == 0
    assert not is_mounted(mount.path)
    assert status_of(lambda: os.close(fd)) == errno.ENOTCONN
    with cluster.mount(tmp_path / "again") as again:
        path = again.path / "group1" / path.name
        assert path.read_bytes() == b"written, not closed" * 1000
        path.unlink()


def test_stale_mount_is_recognised(fuse: None, cluster: Cluster, tmp_path: Path) -> None:
    mount = cluster.mount(tmp_path / "mnt")
    mount.mount()
    mount.kill()
    try:
        done = subprocess.run(
            [program("fdfs-mount"), cluster.tracker.endpoint, str(mount.path)],
            capture_output=True,
            timeout=120,
            text=True,
        )
        assert done.returncode == 1
        assert "fusermount3 -u" in done.stderr, "it gives advice"
        assert "Traceback" not in done.stderr
    finally:
        mount.cleanup()
    mount.mount()
    assert (mount.path / "group1").is_dir()
    mount.unmount()
