"""Every system call on every kind of path: the mount and a local directory agree on each errno."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.common.cluster import Cluster
from tests.common.mount import Mount
from tests.common.twin import EXCHANGE, NOREPLACE, Twin, Wanted, look_around, renameat2, restore

NAME_MAX = "n" * 255
LONG_PATH = "/".join(["."] * 2044) + "/fileABC"
assert len(LONG_PATH) == 4095
PATHS = (
    "file",
    "empty",
    "missing",
    "missing/x",
    "file/x",
    "dir",
    "dir/child",
    "emptydir",
    "link",
    "dirlink",
    "dirlink/child",
    "dirlink/missing",
    "dangling",
    "loop",
    "loop/x",
    "fifo",
    "sock",
    "char",
    "hard",
    NAME_MAX,
    "n" * 256,
    "emptydir/" + "m" * 256,
    "file/",
    "dir/",
    "emptydir/",
    "missing/",
    "link/",
    "dirlink/",
    "dangling/",
    ".",
    "..",
    "dir/.",
    "dir/..",
    "emptydir/.",
    "",
    LONG_PATH,
    LONG_PATH + "x",
    "\udcff\udcfe",
    "with\nnewline",
)


pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes devices: needs root")


@pytest.fixture(scope="module")
def mounted(
    fuse: None, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    """A mount on which devices can be opened."""
    with cluster.mount(tmp_path_factory.mktemp("mnt") / "fdfs", "dev") as mount:
        yield mount


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    old = os.umask(0o022)
    yield
    os.umask(old)


FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755
LINK = stat.S_IFLNK | 0o777
SCENE = {
    "file": Wanted(FILE, content=b"content"),
    "with\nnewline": Wanted(FILE, content=b"content"),
    "fileABC": Wanted(FILE, content=b"content"),
    "empty": Wanted(FILE),
    "dir": Wanted(DIRECTORY),
    "dir/child": Wanted(FILE, content=b"child"),
    "emptydir": Wanted(DIRECTORY),
    "link": Wanted(LINK, target="file"),
    "dirlink": Wanted(LINK, target="dir"),
    "dangling": Wanted(LINK, target="nowhere"),
    "loop": Wanted(LINK, target="loop"),
    "fifo": Wanted(stat.S_IFIFO | 0o644),
    "sock": Wanted(stat.S_IFSOCK | 0o644),
    "char": Wanted(stat.S_IFCHR | 0o644),
    "hard": Wanted(FILE, content=b"content", link="file"),
}
"""One entry of each kind."""


def furnish() -> None:
    restore(SCENE)


def opened(flags: int) -> Callable[[str], object]:
    """open() with *flags*, then what fstat says of size and type."""

    def call(path: str) -> object:
        fd = os.open(path, flags | os.O_NONBLOCK, 0o640)
        try:
            status = os.fstat(fd)
            size = status.st_size if stat.S_ISREG(status.st_mode) else None
            return stat.filemode(status.st_mode), size
        finally:
            os.close(fd)

    return call


def entered(path: str) -> None:
    os.chdir(path)


OPERATIONS: dict[str, Callable[[str], object]] = {
    "open rdonly": opened(os.O_RDONLY),
    "open rdwr": opened(os.O_RDWR),
    "open creat": opened(os.O_WRONLY | os.O_CREAT),
    "open creat excl": opened(os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "open trunc": opened(os.O_WRONLY | os.O_TRUNC),
    "open creat trunc": opened(os.O_RDWR | os.O_CREAT | os.O_TRUNC),
    "open append": opened(os.O_WRONLY | os.O_APPEND),
    "open directory": opened(os.O_RDONLY | os.O_DIRECTORY),
    "open nofollow": opened(os.O_RDONLY | os.O_NOFOLLOW),
    "open creat nofollow": opened(os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW),
    "open path": opened(os.O_PATH),
    "stat": lambda path: stat.filemode(os.stat(path).st_mode),
    "lstat": lambda path: stat.filemode(os.lstat(path).st_mode),
    "access r": lambda path: os.access(path, os.R_OK),
    "access x": lambda path: os.access(path, os.X_OK),
    "readlink": os.readlink,
    "list": lambda path: sorted(os.listdir(path)) if path != ".." else None,
    "chdir": entered,
    "statvfs": lambda path: os.statvfs(path).f_namemax,
    "chmod": lambda path: os.chmod(path, 0o751),
    "chown": lambda path: os.chown(path, -1, os.getegid()),
    "lchown": lambda path: os.lchown(path, -1, os.getegid()),
    "utimens": lambda path: os.utime(path, ns=(1, 2)),
    "lutimens": lambda path: os.utime(path, ns=(1, 2), follow_symlinks=False),
    "truncate 0": lambda path: os.truncate(path, 0),
    "truncate 10": lambda path: os.truncate(path, 10),
    "truncate -1": lambda path: os.truncate(path, -1),
    "listxattr": lambda path: os.listxattr(path),
    "getxattr": lambda path: os.getxattr(path, "user.none"),
    "setxattr": lambda path: os.setxattr(path, "user.some", b"value"),
    "lsetxattr": lambda path: os.setxattr(path, "user.some", b"value", 0, follow_symlinks=False),
    "removexattr": lambda path: os.removexattr(path, "user.none"),
    "mkdir": lambda path: os.mkdir(path, 0o755),
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "mkfifo": lambda path: os.mkfifo(path, 0o644),
    "mknod file": lambda path: os.mknod(path, stat.S_IFREG | 0o644),
    "mknod socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o644),
    "mknod device": lambda path: os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(259, 70000)),
    "symlink": lambda path: os.symlink("target", path),
    "symlink empty": lambda path: os.symlink("", path),
    "symlink 4095": lambda path: os.symlink("t" * 4095, path),
    "symlink 4096": lambda path: os.symlink("t" * 4096, path),
}

PAIR_PATHS = (
    "file",
    "hard",
    "empty",
    "missing",
    "missing/x",
    "file/x",
    "dir",
    "dir/child",
    "dir/new",
    "emptydir",
    "emptydir/new",
    "link",
    "dirlink",
    "dirlink/child",
    "dangling",
    "loop",
    "fifo",
    "sock",
    NAME_MAX,
    "n" * 256,
    "file/",
    "dir/",
    "missing/",
    "dirlink/",
    ".",
    "..",
    "dir/.",
    "",
)
FEW_PATHS = ("file", "dir", "emptydir", "dirlink", "dangling", "missing", "dir/child")
PAIRS: dict[str, tuple[tuple[str, ...], Callable[[str, str], object]]] = {
    "rename": (PAIR_PATHS, os.rename),
    "link": (PAIR_PATHS, lambda old, new: os.link(old, new, follow_symlinks=False)),
    "link follow": (FEW_PATHS, lambda old, new: os.link(old, new, follow_symlinks=True)),
    "rename noreplace": (FEW_PATHS, lambda old, new: renameat2(old, new, NOREPLACE)),
    "rename exchange": (FEW_PATHS, lambda old, new: renameat2(old, new, EXCHANGE)),
    "rename both": (FEW_PATHS, lambda old, new: renameat2(old, new, NOREPLACE | EXCHANGE)),
}
"""By name: the first paths, each tried with all of PAIR_PATHS, and the call."""


def failed(left: str) -> bool:
    """Whether an outcome is an errno: those that change nothing need no new scene."""
    return left.startswith("E") and left.isupper()


CHANGING = ("open creat", "mkdir", "mkfifo", "mknod", "symlink", "rmdir", "unlink")
"""Operations that make or remove names."""


@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_path(operation: str, local: Path, volume: Path) -> None:
    twin = Twin(local, volume)
    action = OPERATIONS[operation]
    twin.scene(furnish)
    for path in PATHS:
        left = twin.same(f"{operation} {path[:60]!r}", action, path)
        if not failed(left) and operation.startswith(CHANGING):
            twin.same(f"after {operation} {path[:60]!r}", look_around)
            twin.same("restore", furnish)
    twin.same(f"after {operation}", look_around)
    twin.check()


@pytest.mark.parametrize("operation", PAIRS)
def test_two_paths(operation: str, local: Path, volume: Path) -> None:
    twin = Twin(local, volume)
    paths, action = PAIRS[operation]
    twin.scene(furnish)
    for old in paths:
        for new in PAIR_PATHS:
            what = f"{operation} {old[:30]!r} {new[:30]!r}"
            left = twin.same(what, action, old, new)
            if not failed(left):
                twin.same(f"after {what}", look_around)
                twin.same("restore", furnish)
    twin.same(f"after {operation}", look_around)
    twin.check()
