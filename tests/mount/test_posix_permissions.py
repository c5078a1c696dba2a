"""What users may do, set-id bits and inherited groups: the mount agrees with a local directory."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.common.cluster import Cluster
from tests.common.mount import Mount
from tests.common.twin import (
    NOREPLACE,
    ROOT,
    Twin,
    User,
    Wanted,
    as_user,
    look,
    look_around,
    outcome,
    remove,
    renameat2,
    restore,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="acts as several users: needs root")


OWNER = User(10001, 10001)
MEMBER = User(10002, 10002, (10001,))
OTHER = User(10003, 10003)
USERS = {"root": ROOT, "owner": OWNER, "member": MEMBER, "other": OTHER}


@pytest.fixture(scope="module")
def mounted(
    fuse: None, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    """A mount for all users, on which set-id bits and devices work."""
    path = tmp_path_factory.mktemp("mnt") / "fdfs"
    with cluster.mount(path, "allow_other", "suid", "dev") as mount:
        yield mount


@pytest.fixture(scope="module")
def nosuid(
    fuse: None, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A volume on a mount for all users, on which set-id bits have no effect."""
    path = tmp_path_factory.mktemp("mnt") / "fdfs"
    with cluster.mount(path, "allow_other") as mount:
        yield mount.path / "group1"


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


def opened(path: str, flags: int) -> None:
    os.close(os.open(path, flags, 0o666))


MAY: dict[str, Callable[[User], object]] = {
    "list": lambda _: sorted(os.listdir("d")),
    "stat": lambda _: look("d/file"),
    "read": lambda _: opened("d/file", os.O_RDONLY),
    "write": lambda _: opened("d/file", os.O_WRONLY),
    "read other's": lambda _: opened("d/others", os.O_RDONLY),
    "write other's": lambda _: opened("d/others", os.O_RDWR),
    "truncate": lambda _: os.truncate("d/file", 7),
    "access": lambda _: [os.access("d/file", mode, effective_ids=True) for mode in range(8)],
    "access directory": lambda _: [os.access("d", mode, effective_ids=True) for mode in range(8)],
    "follow": lambda _: stat.filemode(os.stat("d/link").st_mode),
    "readlink": lambda _: os.readlink("d/link"),
    "create": lambda _: opened("d/new", os.O_RDWR | os.O_CREAT | os.O_EXCL),
    "create unwritable": lambda _: os.close(os.open("d/new", os.O_RDWR | os.O_CREAT, 0)),
    "mkdir": lambda _: os.mkdir("d/new", 0o775),
    "mkfifo": lambda _: os.mkfifo("d/new", 0o640),
    "mknod device": lambda _: os.mknod("d/new", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    "symlink": lambda _: os.symlink("x", "d/new"),
    "link": lambda _: os.link("d/file", "d/new"),
    "link out": lambda _: os.link("d/file", "pub/new"),
    "unlink": lambda _: os.unlink("d/file"),
    "unlink other's": lambda _: os.unlink("d/others"),
    "rmdir": lambda _: os.rmdir("d/sub"),
    "rmdir other's": lambda _: os.rmdir("d/osub"),
    "rename": lambda _: os.rename("d/file", "d/new"),
    "rename other's": lambda _: os.rename("d/others", "d/new"),
    "rename over": lambda _: os.rename("d/file", "d/others"),
    "rename over own": lambda _: os.rename("d/others", "d/file"),
    "rename noreplace": lambda _: renameat2("d/file", "d/new", NOREPLACE),
    "rename out": lambda _: os.rename("d/file", "pub/new"),
    "rename in": lambda _: os.rename("pub/any", "d/new"),
    "rename directory": lambda _: os.rename("d/sub", "d/new"),
    "rename directory out": lambda _: os.rename("d/sub", "pub/new"),
    "rename other's directory out": lambda _: os.rename("d/osub", "pub/new"),
    "chmod": lambda _: os.chmod("d/file", 0o640),
    "chmod sgid": lambda _: os.chmod("d/file", 0o2755),
    "chmod directory": lambda _: os.chmod("d/sub", 0o3777),
    "chmod other's": lambda _: os.chmod("d/others", 0o600),
    "give away": lambda _: os.chown("d/file", 10003, -1),
    "take": lambda user: os.chown("d/others", user.uid, -1),
    "chgrp mine": lambda user: os.chown("d/file", -1, user.gid),
    "chgrp supplementary": lambda _: os.chown("d/file", -1, 10001),
    "chgrp foreign": lambda _: os.chown("d/file", -1, 10009),
    "set times": lambda _: os.utime("d/file", ns=(1, 2)),
    "touch": lambda _: os.utime("d/file"),
    "touch writable": lambda _: os.utime("pub/any"),
    "getxattr": lambda _: os.getxattr("d/file", "user.none"),
    "setxattr": lambda _: os.setxattr("d/file", "user.x", b"1"),
    "setxattr directory": lambda _: os.setxattr("d/sub", "user.x", b"1"),
    "setxattr trusted": lambda _: os.setxattr("d/file", "trusted.x", b"1"),
    "chdir": lambda _: os.chdir("d"),
}
DIRECTORY_MODES = (0o755, 0o700, 0o777, 0o1777, 0o711, 0o666)


@pytest.mark.parametrize("name", USERS)
def test_what_a_user_may_do(name: str, local: Path, volume: Path) -> None:
    user = USERS[name]
    twin = Twin(local, volume)
    for mode in DIRECTORY_MODES:
        entries = {
            "pub": Wanted(stat.S_IFDIR | 0o777, ROOT),
            "pub/any": Wanted(stat.S_IFREG | 0o666, OWNER),
            "d": Wanted(stat.S_IFDIR | mode, OWNER),
            "d/file": Wanted(stat.S_IFREG | 0o664, OWNER),
            "d/others": Wanted(stat.S_IFREG | 0o604, OTHER),
            "d/sub": Wanted(stat.S_IFDIR | 0o755, OWNER),
            "d/osub": Wanted(stat.S_IFDIR | 0o755, OTHER),
            "d/link": Wanted(stat.S_IFLNK | 0o777, OWNER, "file"),
        }
        twin.scene(restore, entries)
        for what, action in MAY.items():

            def attempt(action: Callable[[User], object] = action) -> str:
                with as_user(*user):
                    return outcome(lambda: action(user))

            left = twin.same(f"{name} in {mode:o}: {what}", attempt)
            if left == "None" and what not in ("chdir", "read", "write"):
                twin.same(f"after {name} in {mode:o}: {what}", look_around)
                twin.same("restore", restore, entries)
    twin.check()


def written(path: str, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.write(fd, b"x")
    finally:
        os.close(fd)


def cut_open(path: str, size: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def set_id_of_open_file(path: str) -> list[str]:
    """The mode before, during and after a write through one descriptor."""
    fd = os.open(path, os.O_RDWR)
    modes = [stat.filemode(os.fstat(fd).st_mode)]
    try:
        os.write(fd, b"x")
        modes.append(stat.filemode(os.fstat(fd).st_mode))
        os.fchmod(fd, 0o6755)
        modes.append(stat.filemode(os.fstat(fd).st_mode))
        os.write(fd, b"x")
        modes.append(stat.filemode(os.fstat(fd).st_mode))
    finally:
        os.close(fd)
    return modes


SET_ID: dict[str, Callable[[User], object]] = {
    "write": lambda _: written("file", os.O_WRONLY),
    "append": lambda _: written("file", os.O_WRONLY | os.O_APPEND),
    "write twice": lambda _: set_id_of_open_file("file"),
    "open": lambda _: opened("file", os.O_RDWR),
    "open trunc": lambda _: opened("file", os.O_RDWR | os.O_TRUNC),
    "truncate 0": lambda _: os.truncate("file", 0),
    "truncate 2": lambda _: os.truncate("file", 2),
    "truncate 2 MiB": lambda _: os.truncate("file", 2 << 20),
    "ftruncate": lambda _: cut_open("file", 1),
    "chown same": lambda user: os.chown("file", user.uid, user.gid),
    "chown other": lambda _: os.chown("file", 10003, 10003),
    "chgrp": lambda user: os.chown("file", -1, user.gid),
    "chmod": lambda _: os.chmod("file", 0o6711),
    "chmod sgid": lambda _: os.chmod("file", 0o2640),
    "utimes": lambda _: os.utime("file", ns=(1, 2)),
    "setxattr": lambda _: os.setxattr("file", "user.x", b"1"),
    "rename": lambda _: os.rename("file", "new"),
    "link": lambda _: os.link("file", "new"),
}
SET_ID_MODES = (0o4755, 0o2755, 0o6777, 0o6644)


@pytest.mark.parametrize("name", USERS)
def test_set_id_bits(name: str, local: Path, volume: Path) -> None:
    """Writing, truncating and chown clear them, except for root's writing."""
    compare_set_id_bits(name, local, volume)


@pytest.mark.parametrize("name", USERS)
def test_set_id_bits_without_effect(name: str, local: Path, nosuid: Path) -> None:
    """There we have told the kernel that we clear them."""
    directory = nosuid / name
    directory.mkdir()
    compare_set_id_bits(name, local, directory)


def compare_set_id_bits(name: str, local: Path, volume: Path) -> None:
    user = USERS[name]
    twin = Twin(local, volume)
    groups = {OWNER.gid, user.gid}
    for mode, gid in itertools.product(SET_ID_MODES, sorted(groups)):
        foreign = gid not in (0, user.gid, *user.groups) and user is not ROOT
        if foreign and mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID:
            # Left to the file system by FUSE, which is not told the writer's groups.
            continue
        entries = {
            "file": Wanted(stat.S_IFREG | mode, User(user.uid, gid)),
        }

        def furnish(entries: dict[str, Wanted] = entries) -> None:
            os.chmod(".", 0o777)
            remove("file")
            remove("new")
            restore(entries)

        twin.scene(furnish)
        for what, action in SET_ID.items():

            def attempt(action: Callable[[User], object] = action) -> str:
                with as_user(*user):
                    return outcome(lambda: action(user))

            twin.same(f"{name}, {mode:o} of group {gid}: {what}", attempt)
            twin.same(f"after {name}, {mode:o} of group {gid}: {what}", look_around)
            twin.same("furnish", furnish)
    twin.check()


@pytest.mark.parametrize("parent_mode", [0o777, 0o2777, 0o3777])
def test_groups_of_new_entries(parent_mode: int, local: Path, volume: Path) -> None:
    twin = Twin(local, volume)

    def furnish() -> None:
        os.chown(".", OWNER.uid, OWNER.gid)
        os.chmod(".", parent_mode)

    twin.scene(furnish)
    for name, user in USERS.items():
        for mode in (0o644, 0o2755, 0o6755, 0o2644, 0o1777):

            def attempt(user: User = user, mode: int = mode, name: str = name) -> None:
                with as_user(*user):
                    prefix = f"{name}-{mode:o}"
                    os.close(os.open(f"{prefix}-file", os.O_CREAT | os.O_WRONLY, mode))
                    os.mkdir(f"{prefix}-dir", mode)
                    os.mkfifo(f"{prefix}-fifo", mode)
                    os.symlink("x", f"{prefix}-link")
                    os.mknod(f"{prefix}-node", stat.S_IFREG | mode)

            twin.same(f"{name} makes {mode:o}", attempt)
    twin.same("after all", look_around)
    twin.check()


def test_trusted_xattrs_are_hidden_from_users(local: Path, volume: Path) -> None:
    twin = Twin(local, volume)

    def furnish() -> None:
        Path("file").touch()
        os.setxattr("file", "trusted.a", b"1")
        os.setxattr("file", "user.b", b"2")

    twin.scene(furnish)
    for name, user in USERS.items():

        def attempt(user: User = user) -> list[str]:
            with as_user(*user):
                return sorted(os.listxattr("file"))

        twin.same(name, attempt)
    twin.check()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o027])
def test_umask(umask: int, local: Path, volume: Path) -> None:
    twin = Twin(local, volume)
    twin.scene(lambda: None)

    def attempt() -> None:
        old = os.umask(umask)
        try:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o7777))
            os.mkdir("dir", 0o7777)
            os.mkfifo("fifo", 0o666)
            os.mknod("node", stat.S_IFREG | 0o777)
            os.symlink("x", "link")
        finally:
            os.umask(old)

    twin.same("make", attempt)
    twin.same("after", look_around)
    twin.check()
