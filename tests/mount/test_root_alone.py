"""A mount that only root may use: permissions are not checked, and root sees no difference."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fdfsfuse.fuse import mountpoint
from fdfsfuse.fuse.mountpoint import permissions_matter
from tests.common.cluster import Cluster
from tests.common.mount import Mount
from tests.common.processes import program
from tests.common.twin import Twin, User, Wanted, as_user, inside, look_around, restore

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root's mounts: needs root")

OTHER = User(10003, 10003)
KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFLNK)
WEAK = ("setpriv", "--bounding-set=-fsetid")
MODES = (0, 0o644, 0o100, 0o010, 0o001, 0o777)


@needs_root
def test_root_may_do_what_it_may_elsewhere(local: Path, volume: Path) -> None:
    twin = Twin(local, volume)
    for kind, mode in itertools.product(KINDS, MODES):
        entry = Wanted(kind | mode, OTHER, "." if kind == stat.S_IFLNK else "")
        twin.scene(restore, {"x": entry})
        what = f"{stat.filemode(entry.mode)}: "
        for how in range((os.X_OK | os.W_OK | os.R_OK) + 1):
            twin.same(f"{what}access {how}", os.access, "x", how)
        twin.same(f"{what}chdir", os.chdir, "x")
        twin.same(f"{what}unlink", os.unlink, "x")
    for mode in MODES:
        script = Wanted(stat.S_IFREG | mode, OTHER, content=b"#!/bin/sh\nexit 7\n")
        sticky = Wanted(stat.S_IFDIR | stat.S_ISVTX | mode, OTHER)
        twin.scene(restore, {"script": script, "sticky": sticky})
        twin.same(f"{mode:o}: execute", subprocess.call, ["./script"])
        twin.same(f"{mode:o}: truncate", os.truncate, "script", 3)
        twin.same(f"{mode:o}: mkdir", os.mkdir, "sticky/mine")
        twin.same(f"{mode:o}: rename", os.rename, "sticky/mine", "sticky/yours")
        twin.same(f"{mode:o}: rmdir", os.rmdir, "sticky/yours")
        twin.same(f"{mode:o}: chmod", os.chmod, "script", 0o4711)
        twin.same(f"{mode:o}: look", look_around)
    twin.check()


@needs_root
def test_nobody_else_gets_in(mounted: Mount, volume: Path) -> None:
    volume.chmod(0o777)
    with as_user(*OTHER), pytest.raises(PermissionError):
        os.listdir(volume)


@needs_root
def test_nor_does_who_acts_for_somebody_else(mounted: Mount, volume: Path) -> None:
    """As servers of NFS do, which are root all the same."""
    (volume / "secret").write_text("x")
    (volume / "secret").chmod(0o600)
    (volume / "open").mkdir()
    (volume / "open").chmod(0o777)
    with inside(volume), acting_for(OTHER):
        for action in (
            lambda: Path("secret").read_text(),
            lambda: Path("secret").chmod(0o666),
            lambda: Path("secret").unlink(),
            lambda: Path("secret").rename("open/mine"),
            lambda: Path("open/mine").write_text("y"),
            lambda: Path("open/mine").mkdir(),
            lambda: os.listdir("open"),
        ):
            with pytest.raises(PermissionError):
                action()
    assert (volume / "secret").read_text() == "x"
    assert not os.listdir(volume / "open")


SET_ID: dict[str, tuple[str, ...]] = {
    "write": ("dd", "if=/dev/zero", "of=x", "count=1", "conv=notrunc"),
    "write, unprivileged": (*WEAK, "dd", "if=/dev/zero", "of=x", "count=1", "conv=notrunc"),
    "replace": ("cp", "other", "x"),
    "truncate": ("truncate", "--size=1", "x"),
    "chown": ("chown", "10003", "x"),
    "chown same": ("chown", "0:0", "x"),
    "chgrp": ("chgrp", "10003", "x"),
    "chmod": ("chmod", "6711", "x"),
    "touch": ("touch", "--date=@1", "x"),
}


@needs_root
def test_set_id_bits(local: Path, volume: Path) -> None:
    twin = Twin(local, volume)
    kinds = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO)
    for kind, mode in itertools.product(kinds, (0o4755, 0o2755, 0o6777, 0o6644)):
        entries = {"x": Wanted(kind | mode, User(0, 0)), "other": Wanted(stat.S_IFREG | 0o644)}
        for what, command in SET_ID.items():
            if kind == stat.S_IFREG or command[0] in ("chown", "chgrp", "chmod"):
                twin.scene(restore, entries)
                twin.same(f"{mode:o}: {what}", subprocess.call, command)
                twin.same(f"{mode:o}: after {what}", look_around)
        twin.scene(restore, entries)
        twin.same(f"{mode:o}: chown to nobody", os.chown, "x", -1, -1)
        twin.same(f"{mode:o}: after chown to nobody", look_around)
    twin.check()


@needs_root
def test_set_id_bits_of_an_open_file(mounted: Mount, volume: Path) -> None:
    """Who acts for somebody else may not write to it, as that would clear them."""
    path = volume / "file"
    path.touch()
    path.chmod(0o4755)
    with path.open("ab", 0) as file:
        file.write(b"x")
        with acting_for(OTHER), pytest.raises(PermissionError):
            file.write(b"y")
    assert path.read_text() == "x"
    assert path.stat().st_mode == stat.S_IFREG | 0o4755


@contextlib.contextmanager
def acting_for(user: User) -> Iterator[None]:
    libc = ctypes.CDLL(None)
    libc.setfsgid(user.gid)
    libc.setfsuid(user.uid)
    try:
        yield
    finally:
        libc.setfsuid(0)
        libc.setfsgid(0)


@needs_root
@pytest.mark.parametrize(
    ("options", "checked"), [((), 0), (("default_permissions",), 19), (("allow_other",), 19)]
)
def test_what_checking_costs(
    options: tuple[str, ...], checked: int, fuse: None, cluster: Cluster, tmp_path: Path
) -> None:
    """Each change in a directory makes the kernel forget its attributes."""
    with cluster.mount(tmp_path / "mnt", *options) as mount:
        volume = mount.path / "group1"
        before = requests(mount, "getattr")
        for number in range(10):
            (volume / f"d{number}").mkdir()
            (volume / f"d{number}").rmdir()
        assert checked <= requests(mount, "getattr") - before < checked + 10


def requests(mount: Mount, operation: str) -> int:
    command = [program("fdfs"), "mount-stats", str(mount.path), "--json"]
    found = json.loads(subprocess.check_output(command, timeout=60))
    return int(found["operations"].get(operation, {"count": 0})["count"])


@pytest.mark.parametrize(
    ("user", "allow_other", "capabilities", "matter"),
    [
        (0, False, "CapEff:\t000001ffffffffff", False),
        (0, True, "CapEff:\t000001ffffffffff", True),
        (1000, False, "CapEff:\t0000000000000000", True),
        (0, False, "CapEff:\t00000000a80425f9", True),  # without CAP_DAC_OVERRIDE
        (0, False, "CapEff:\t0000000000000000", True),
        (0, False, "Name:\tx", True),
    ],
)
def test_when_permissions_matter(
    user: int,
    allow_other: bool,
    capabilities: str,
    matter: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status = tmp_path / "status"
    status.write_text(f"Uid:\t{user}\t{user}\n{capabilities}\nThreads:\t1\n")
    monkeypatch.setattr(mountpoint, "_OWN_STATUS", status)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert permissions_matter(allow_other=allow_other) is matter


def test_what_is_not_known_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoint, "_OWN_STATUS", tmp_path / "none")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert permissions_matter(allow_other=False)
