"""POSIX ACLs with ``-o acl``: the mount agrees with a local file system, and the kernel checks."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fdfsfuse.core import acl
from fdfsfuse.core.acl import GROUP, MASK, OTHERS, OWNER, OWNING_GROUP, USER, Entry
from tests.common.cluster import Cluster
from tests.common.mount import Mount
from tests.common.trees import run
from tests.common.twin import ROOT, Twin, User, as_user, look, look_around, outcome

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts with ACLs")

ACCESS, DEFAULT = acl.ACCESS.decode(), acl.DEFAULT.decode()
ANNA, BERT, CARL = User(10001, 10001), User(10002, 10002, (10005,)), User(10003, 10003)


@pytest.fixture(scope="module")
def mounted(
    fuse: None, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    with cluster.mount(tmp_path_factory.mktemp("mnt") / "fdfs", "acl", "allow_other") as mount:
        yield mount


@pytest.fixture
def twin(local: Path, volume: Path) -> Twin:
    try:
        os.setxattr(local, ACCESS, some_acl(0o7))
    except OSError:
        pytest.skip("no local file system that keeps ACLs")
    os.removexattr(local, ACCESS)
    made = Twin(local, volume)
    made.scene(lambda: None)
    return made


def some_acl(mask: int, *named: Entry, owner: int = 7, group: int = 5, others: int = 0) -> bytes:
    entries: Sequence[Entry] = (
        Entry(OWNER, owner),
        *(entry for entry in named if entry.tag == USER),
        Entry(OWNING_GROUP, group),
        *(entry for entry in named if entry.tag == GROUP),
        Entry(MASK, mask),
        Entry(OTHERS, others),
    )
    return acl.encode(entries)


MINIMAL = acl.encode([Entry(OWNER, 6), Entry(OWNING_GROUP, 0), Entry(OTHERS, 4)])
NAMED = some_acl(6, Entry(USER, 6, ANNA.uid), Entry(GROUP, 4, 10005), group=7, others=1)


def acls(path: str) -> list[str]:
    """Mode and ACLs of one entry."""
    shown = [str(look(path))]
    if not os.path.islink(path):
        for name in (ACCESS, DEFAULT):
            shown.append(outcome(lambda name=name: os.getxattr(path, name).hex()))
        shown += sorted(os.listxattr(path))
    return shown


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
@pytest.mark.parametrize("default", [b"", MINIMAL, NAMED, some_acl(0), some_acl(7, others=7)])
def test_what_new_entries_inherit(umask: int, default: bytes, twin: Twin) -> None:
    def make() -> str:
        os.close(os.open("before", os.O_CREAT | os.O_WRONLY, 0o666))
        if default:
            os.setxattr(".", DEFAULT, default)
        old = os.umask(umask)
        try:
            for mode in (0, 0o600, 0o640, 0o666, 0o777):
                os.close(os.open(f"file{mode:o}", os.O_CREAT | os.O_WRONLY, mode))
                os.mkdir(f"dir{mode:o}", mode)
                os.mkfifo(f"fifo{mode:o}", mode)
                os.mknod(f"node{mode:o}", stat.S_IFREG | mode)
            os.symlink("x", "link")
            os.mkdir("dir777/below", 0o777)
            os.close(os.open("dir777/below/file", os.O_CREAT | os.O_WRONLY, 0o666))
        finally:
            os.umask(old)
        names = [*sorted(os.listdir(".")), "dir777/below", "dir777/below/file"]
        return "\n".join(f"{name} {acls(name)}" for name in names)

    twin.same("inherit", make)
    twin.check()


CHANGES: dict[str, Callable[[], object]] = {
    "set": lambda: os.setxattr("file", ACCESS, NAMED),
    "set other": lambda: os.setxattr("file", ACCESS, some_acl(1, Entry(USER, 7, 10002))),
    "set minimal": lambda: os.setxattr("file", ACCESS, MINIMAL),
    "set again": lambda: os.setxattr("file", ACCESS, NAMED),
    "chmod": lambda: os.chmod("file", 0o751),
    "chmod special": lambda: os.chmod("file", 0o4640),
    "chmod nothing": lambda: os.chmod("file", 0),
    "link": lambda: os.link("file", "file2"),
    "rename": lambda: os.rename("file2", "file"),
    "chown": lambda: os.chown("file", 10001, 10001),
    "remove": lambda: os.removexattr("file", ACCESS),
    "remove again": lambda: os.removexattr("file", ACCESS),
    "default of a file": lambda: os.setxattr("file", DEFAULT, NAMED),
    "remove default of a file": lambda: os.removexattr("file", DEFAULT),
    "set default": lambda: os.setxattr("dir", DEFAULT, NAMED),
    "set both": lambda: os.setxattr("dir", ACCESS, some_acl(7, Entry(GROUP, 7, 50))),
    "chmod directory": lambda: os.chmod("dir", 0o2710),
    "set default minimal": lambda: os.setxattr("dir", DEFAULT, MINIMAL),
    "remove default": lambda: os.removexattr("dir", DEFAULT),
    "remove default again": lambda: os.removexattr("dir", DEFAULT),
    "no version": lambda: os.setxattr("file", ACCESS, b"\x01\0\0\0" + NAMED[4:]),
    "cut off": lambda: os.setxattr("file", ACCESS, NAMED[:-1]),
    "without mask": lambda: os.setxattr("file", ACCESS, NAMED[:-16] + NAMED[-8:]),
    "without owner": lambda: os.setxattr("file", ACCESS, NAMED[:4] + NAMED[12:]),
    "disorder": lambda: os.setxattr("file", ACCESS, NAMED[:4] + NAMED[12:20] + NAMED[4:12]),
    "permission 8": lambda: os.setxattr("file", ACCESS, NAMED[:6] + b"\x08" + NAMED[7:]),
    "symlink": lambda: os.setxattr("link", ACCESS, NAMED, follow_symlinks=False),
}


def test_mode_and_acl_keep_step(twin: Twin) -> None:
    def furnish() -> None:
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o644))
        os.mkdir("dir", 0o755)
        os.symlink("file", "link")

    twin.scene(furnish)
    for what, change in CHANGES.items():
        twin.same(what, change)
        for name in ("file", "dir"):
            twin.same(f"{name} after {what}", acls, name)
    twin.same("after all", look_around)
    twin.check()


USERS = {"anna": ANNA, "bert": BERT, "carl": CARL, "owner": User(10009, 10009), "root": ROOT}
"""Those who may change the ACL come last."""


@pytest.mark.parametrize("mask", range(8))
def test_the_kernel_checks_access(mask: int, twin: Twin) -> None:
    def furnish() -> None:
        os.mkdir("dir", 0o755)
        for name in ("file", "dir/sub"):
            if name == "file":
                os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600))
            else:
                os.mkdir(name)
            os.chown(name, 10009, 10003)
            named = (Entry(USER, 7, ANNA.uid), Entry(GROUP, 3, 10005))
            os.setxattr(name, ACCESS, some_acl(mask, *named, group=5, others=4))

    twin.scene(furnish)
    for name, user in USERS.items():

        def attempt(user: User = user) -> list[str]:
            with as_user(*user):
                found = [str(os.access("file", mode, effective_ids=True)) for mode in range(8)]
                found.append(outcome(lambda: os.listdir("dir/sub")))
                found.append(outcome(lambda: os.close(os.open("file", os.O_RDWR))))
                found.append(outcome(lambda: os.rmdir("dir/sub/none")))
                found.append(outcome(lambda: os.mkdir("dir/sub/x")))
                found.append(outcome(lambda: os.rmdir("dir/sub/x")))
                found.append(outcome(lambda: os.setxattr("file", ACCESS, MINIMAL)))
            return found

        twin.same(f"{name}, mask {mask}", attempt)
    twin.check()


@pytest.mark.parametrize("user", [ANNA, BERT, ROOT])
def test_acls_of_foreign_groups_take_the_set_group_id(user: User, twin: Twin) -> None:
    for gid in (user.gid, 10005, 10007):
        for mode in (0o2755, 0o6745, 0o2644):

            def attempt(gid: int = gid, mode: int = mode) -> list[str]:
                Path("f").touch()
                os.chown("f", user.uid, gid)
                os.chmod("f", mode)
                with as_user(*user):
                    os.setxattr("f", ACCESS, NAMED)
                return acls("f")

            twin.same(f"{mode:o} of group {gid}", attempt)
    twin.check()


def test_the_tools(volume: Path, mounted: Mount) -> None:
    """setfacl, getfacl and cp -a, and what another mount without ACLs shows."""
    (volume / "dir").mkdir()
    run(["setfacl", "-d", "-m", "u:10001:rwx,g:10005:rx", volume / "dir"])
    (volume / "dir" / "file").write_bytes(b"x")
    run(["cp", "-a", volume / "dir", volume / "copy"])
    shown = run(["getfacl", "-cpn", volume / "copy" / "file"]).stdout.decode().split()
    assert "user:10001:rwx" in shown
    assert "mask::rw-" in shown
    mounted.clear_caches()
    run(["setfacl", "-b", volume / "copy" / "file"])
    assert ACCESS not in os.listxattr(volume / "copy" / "file")
    run(["setfacl", "-k", volume / "copy"])
    assert os.listxattr(volume / "copy") == []


def test_without_the_option(mounted: Mount, volume: Path, cluster: Cluster, tmp_path: Path) -> None:
    """ACLs are neither shown nor set; modes are those with the mask."""
    path = volume / "file"
    path.touch()
    os.setxattr(path, ACCESS, NAMED)
    with cluster.mount(tmp_path / "other") as other:
        there = other.path / path.relative_to(mounted.path)
        assert stat.S_IMODE(there.stat().st_mode) == 0o761
        assert os.listxattr(there) == []
        for call in (lambda: os.getxattr(there, ACCESS), lambda: os.setxattr(there, ACCESS, NAMED)):
            with pytest.raises(OSError, match="not supported"):
                call()
        there.chmod(0o700)
    assert acl.permissions(acl.decode(os.getxattr(path, ACCESS))) == 0o700
