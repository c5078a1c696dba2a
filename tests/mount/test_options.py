"""What can be mounted and how: options, a volume or a directory as the root, mount(8) and fstab."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fdfsfuse.cli import mount
from fdfsfuse.cli.install_helpers import HELPERS
from fdfsfuse.cli.mount_options import parse_options, parse_source
from fdfsfuse.client.address import Address
from fdfsfuse.errors import ConfigError, UsageError
from fdfsfuse.vfs.options import Ids, VfsOptions
from tests.common.cluster import Cluster
from tests.common.mount import Mount, is_mounted
from tests.common.processes import program

DOCS = Path(__file__).parents[2] / "docs" / "mount.rst"

# --- reading options ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("timeout=1.5", {"timeout_s": 1.5}),
        ("hard", {"hard": True}),
        ("hard,soft", {"hard": False}),
        ("acl", {"acl": True}),
        ("acl,noacl", {"acl": False}),
        ("ids=rw", {"ids": Ids.READ_WRITE}),
        ("uid=1000,gid=50,umask=027", {"uid": 1000, "gid": 50, "umask": 0o27}),
        ("lease=5", {"lease_s": 5.0}),
        ("read_ahead=0", {"read_ahead_bytes": 0}),
        ("read_ahead=16M", {"read_ahead_bytes": 16 << 20}),
        ("write_buffer=1GiB", {"dirty_bytes": 1 << 30}),
        ("cache=512k", {"clean_bytes": 512 << 10}),
        ("attr_timeout=0", {"attr_timeout_s": 0.0}),
        ("cache_entries=5000", {"cached_entries": 5000}),
        ("_netdev,nofail,user,x-systemd.automount,noauto,rw,relatime,user=me", {}),
    ],
)
def test_options_arrive(text: str, wanted: dict[str, Any]) -> None:
    options, default = parse_options([text]).vfs, VfsOptions()
    for name in VfsOptions.__dataclass_fields__:
        assert getattr(options, name) == wanted.get(name, getattr(default, name)), name


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("timeout=0", "must be a number of seconds, 1 or more"),
        ("timeout=soon", "must be a number of seconds"),
        ("timeout", "needs a value"),
        ("lease=0", "must be a number of seconds, 1 or more"),
        ("ids=some", "must be ro, rw or hide"),
        ("uid=me", "must be a numeric id"),
        ("uid=4294967295", "must be a numeric id"),
        ("umask=8", "octal"),
        ("umask=1000", "octal"),
        ("write_buffer=1M", "8M or more"),
        ("read_ahead=much", "must be bytes, or with K, M or G"),
        ("cache=-1", "must be bytes"),
        ("cache_entries=10", "1000 or more"),
        ("log=here", "must be an absolute path or syslog"),
        ("hard=1", "takes no value"),
        ("ro=1", "takes no value"),
        ("alow_other", "did you mean allow_other?"),
        ("readahead=1M", "did you mean read_ahead?"),
        ("frobnicate", "is not an option"),
    ],
)
def test_wrong_options_say_what_is_right(text: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(allowed)):
        parse_options([text])


@pytest.mark.parametrize(
    ("text", "hosts", "top"),
    [
        ("a", ["a:22122"], ""),
        ("a,b:1,", ["a:22122", "b:1"], ""),
        ("fdfs://a,b", ["a:22122", "b:22122"], ""),
        ("fdfs://a/", ["a:22122"], ""),
        ("fdfs://a,b/group1", ["a:22122", "b:22122"], "group1"),
        ("a/group1/some/dir/", ["a:22122"], "group1/some/dir"),
        ("[::1]:5/group1//dir/.", ["[::1]:5"], "group1/dir"),
    ],
)
def test_sources(text: str, hosts: list[str], top: str) -> None:
    trackers, found = parse_source(text)
    assert ([str(tracker) for tracker in trackers], found) == (hosts, top)
    assert all(isinstance(tracker, Address) for tracker in trackers)


@pytest.mark.parametrize(
    "text", ["", ",", "fdfs://", "fdfs:///group1", "a/../b", "a:b", "http://a"]
)
def test_wrong_sources(text: str) -> None:
    with pytest.raises((ConfigError, UsageError)):
        parse_source(text)


# --- a volume or a directory as the root --------------------------------------------------------


@pytest.fixture
def filled(mounted: Mount) -> Path:
    """The root of group1 with some entries."""
    root = mounted.path / "group1"
    (root / "top" / "sub").mkdir(parents=True, exist_ok=True)
    (root / "top" / "file").write_bytes(b"content")
    return root


def _mount(cluster: Cluster, path: Path, top: str, *options: str) -> Mount:
    mount = cluster.mount(path, *options)
    mount.show_only(top)
    return mount


def test_a_directory_as_the_root(filled: Path, cluster: Cluster, tmp_path: Path) -> None:
    with _mount(cluster, tmp_path / "mnt", "group1/top") as mount:
        root = mount.path
        assert sorted(os.listdir(root)) == ["file", "sub"]
        assert root.stat().st_ino == 1
        assert (root / "file").read_bytes() == b"content"
        (root / "new").write_bytes(b"new")
        os.rename(root / "new", root / "sub" / "new")
        os.rename(root / "sub" / "new", root / "again")
        os.link(root / "again", root / "link")
        os.symlink("again", root / "symlink")
        (root / "made").mkdir()
        (root / "made").rmdir()
        root.chmod(0o711)
        os.utime(root, ns=(5, 6))
        os.setxattr(root, "user.x", b"1")
        assert os.listxattr(root) == ["user.x"]
        assert root.stat().st_mtime_ns == 6
        assert root.stat().st_nlink == 3
        assert os.listdir(root / "sub" / "..") == os.listdir(root)
        assert 0 < os.statvfs(root).f_blocks < os.statvfs(filled).f_blocks
        root.chmod(0o755)
        for name in ("again", "link", "symlink"):
            (root / name).unlink()
        os.removexattr(root, "user.x")
    assert sorted(os.listdir(filled / "top")) == ["file", "sub"]


def test_a_volume_as_the_root(filled: Path, cluster: Cluster, tmp_path: Path) -> None:
    with _mount(cluster, tmp_path / "mnt", "group1") as mount:
        assert {"top"} <= set(os.listdir(mount.path))
        assert (mount.path / "top" / "file").read_bytes() == b"content"
        file_id = os.getxattr(mount.path / "top" / "file", "user.fdfs.file_id").decode()
        by_id = mount.path / file_id.removeprefix("group1/")
        assert by_id.read_bytes() == b"content"
        with pytest.raises(OSError, match=errno_text(errno.EPERM)):
            (mount.path / "M00").rmdir()
        (mount.path / "in the root").write_bytes(b"x")
    assert (filled / "in the root").read_bytes() == b"x"
    (filled / "in the root").unlink()


def errno_text(number: int) -> str:
    return re.escape(f"[Errno {number}]")


@pytest.mark.parametrize(
    ("top", "problem"),
    [
        ("group7", "there is no volume group7; there are: group1, group2"),
        ("group1/nowhere", "group1/nowhere: No such file or directory"),
        ("group1/top/file", "group1/top/file: file is not a directory"),
    ],
)
def test_a_root_that_is_not_there(
    top: str, problem: str, filled: Path, cluster: Cluster, tmp_path: Path
) -> None:
    command = [program("fdfs-mount"), f"{cluster.tracker.endpoint}/{top}", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert problem in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not is_mounted(tmp_path)


# --- mount(8) -----------------------------------------------------------------------------------

IN_A_NAMESPACE = """
set -eu
mount -t overlay overlay -o lowerdir="$PREFIX/sbin:/usr/sbin" /usr/sbin
{script}
"""
SCRIPTS = {
    "fdfs": 'mount -t fdfs "$SOURCE" "$MNT" -o allow_other,_netdev,relatime',
    "fuse.fdfs": 'mount -t fuse.fdfs "$SOURCE" "$MNT" -o noatime,timeout=10',
    "fstab": 'echo "$SOURCE $MNT fdfs noauto,_netdev,allow_other,nofail 0 0" > "$PREFIX/fstab"; '
    'mount -T "$PREFIX/fstab" "$MNT"',
    "directory": 'mount -t fdfs "fdfs://$SOURCE/group1" "$MNT"',
    "remounted": 'mount -t fdfs "$SOURCE" "$MNT" -o ro,hard,allow_other; '
    'mount -o remount,rw,noatime "$MNT"; touch "$MNT/group1/there"; mount -o remount,ro "$MNT"; '
    'rm "$MNT/group1/there" && exit 1; [ -e "$MNT/group1/there" ]; '
    'grep "$MNT .* ro,.*noatime" /proc/mounts',
}


@pytest.fixture
def helpers(fuse: None, tmp_path: Path) -> Path:
    """A prefix in which the helpers are installed, for a mount namespace with it over /sbin."""
    if os.geteuid() != 0:
        pytest.skip("mount(8) needs root")
    if os.path.realpath("/sbin") != "/usr/sbin" or not shutil.which("unshare"):
        pytest.skip("needs /sbin -> /usr/sbin and unshare")
    # Not in a chroot whose root is no mount point, for example.
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True)
    if done.returncode != 0:
        why = f"no mount namespace can be made here: {done.stderr.strip()}"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    done = subprocess.run(
        [program("fdfs"), "install-helpers", "--prefix", tmp_path / "prefix"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.rpartition("/")[2] for line in done.stdout.splitlines()] == list(HELPERS)
    return tmp_path / "prefix"


def _in_namespace(
    script: str, helpers: Path, cluster: Cluster, mountpoint: Path
) -> subprocess.CompletedProcess[str]:
    mountpoint.mkdir(exist_ok=True)
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", IN_A_NAMESPACE.format(script=script)],
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(helpers),
            "PREFIX": str(helpers),
            "SOURCE": cluster.tracker.endpoint,
            "MNT": str(mountpoint),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("kind", SCRIPTS)
def test_mount_by_mount(kind: str, helpers: Path, cluster: Cluster, tmp_path: Path) -> None:
    script = f"""
    {SCRIPTS[kind]} </dev/null >/dev/null 2>"$PREFIX/err" || {{ cat "$PREFIX/err" >&2; exit 1; }}
    ls "$MNT"; grep " $MNT " /proc/self/mounts
    until umount "$MNT"; do sleep 0.05; done  # busy while anybody just looks at it
    while pgrep -f "fdfs-mount.* $MNT( |$)" >/dev/null; do sleep 0.05; done
    """
    done = _in_namespace(script, helpers, cluster, tmp_path / "mnt")
    assert done.returncode == 0, done.stderr
    assert ("group1" in done.stdout.splitlines()) == (kind != "directory")
    assert f"{tmp_path / 'mnt'} fuse.fdfs" in done.stdout


@pytest.mark.parametrize(
    ("script", "code", "problem"),
    [
        ('mount -f -t fdfs "$SOURCE" "$MNT"', 0, ""),
        ('mount -t fdfs "$SOURCE" "$MNT" -o remount,ro', 32, "nothing of ours is mounted here"),
        ('mount -t fdfs "$SOURCE" "$MNT" -o timeout=never', 1, "must be a number of seconds"),
        ('mount -t fdfs "$SOURCE/group7" "$MNT"', 32, "there is no volume group7"),
    ],
)
def test_mount_says_what_is_wrong(
    script: str, code: int, problem: str, helpers: Path, cluster: Cluster, tmp_path: Path
) -> None:
    done = _in_namespace(script, helpers, cluster, tmp_path / "mnt")
    assert (done.returncode, problem in done.stderr) == (code, True), done.stderr
    assert not is_mounted(tmp_path / "mnt")


def flags(path: Path) -> set[str]:
    with open("/proc/self/mounts") as table:
        return {
            option
            for line in table
            for option in line.split()[3].split(",")
            if line.split()[1] == str(path)
        }


def test_remounting(fuse: None, cluster: Cluster, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may remount")
    path = tmp_path / "mnt"
    with cluster.mount(path, "nosuid", "nodev", "atime") as mount:

        def remount(options: str) -> subprocess.CompletedProcess[str]:
            command = [*mount.command[:3], "-o", f"remount,{options}"]
            return subprocess.run(command, capture_output=True, text=True, timeout=60)

        before = flags(path)
        with open(path / "group1" / "open", "w") as file:
            file.write("x")
            done = remount("ro")
            assert (done.returncode, "files are open for writing" in done.stderr) == (1, True)
        done = remount("ro,noatime,timeout=5")
        assert (done.returncode, "the other options stay" in done.stderr) == (0, True)
        with pytest.raises(OSError, match="Read-only"):
            (path / "group1" / "open").unlink()
        assert flags(path) - before == {"ro", "noatime"}
        assert remount("rw,atime").returncode == 0
        assert flags(path) - {"relatime"} == before - {"relatime"}
        (path / "group1" / "open").unlink()


def test_helpers_are_removed_and_foreign_ones_are_left(tmp_path: Path) -> None:
    command = [program("fdfs"), "install-helpers", "--prefix", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run([*command, "--remove"], check=True, capture_output=True)
    assert os.listdir(tmp_path / "sbin") == []
    (tmp_path / "sbin" / HELPERS[1]).write_text("#!/bin/sh\n")
    for extra in ([], ["--remove"]):
        done = subprocess.run([*command, *extra], capture_output=True, text=True)
        assert done.returncode == 2
        assert "was not written by fdfsfuse" in done.stderr
    assert os.listdir(tmp_path / "sbin") == [HELPERS[1]]


def test_what_the_guide_shows_is_right() -> None:
    """Sources and options of the fstab lines and units in docs/mount.rst."""
    text = DOCS.read_text(encoding="utf-8")
    lines = re.findall(r"^ +(\S+) +/\S+ +(?:fuse\.)?fdfs +(\S+) +0 +0$", text, re.MULTILINE)
    units = re.findall(r"What=(\S+)\n(?:.*\n)*? +Options=(\S+)", text)
    assert len(lines) >= 2
    assert len(units) >= 1
    for source, options in (*lines, *units):
        parse_source(source)
        parse_options([options])


@pytest.mark.parametrize(
    ("kind", "end"),
    [(socket.SOCK_DGRAM, b""), (socket.SOCK_STREAM, b"\0")],
    ids=["dgram", "stream"],
)
def test_messages_to_syslog(
    kind: socket.SocketKind, end: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not run together, and nothing is logged at their ends."""
    monkeypatch.setattr(mount, "_SYSLOG", tmp_path / "log")
    with socket.socket(socket.AF_UNIX, kind) as listening:
        listening.settimeout(60)
        listening.bind(str(tmp_path / "log"))
        if kind == socket.SOCK_STREAM:
            listening.listen()
        handler = mount._log_handler("syslog")
        receiving = listening.accept()[0] if kind == socket.SOCK_STREAM else listening
        with receiving:
            handler.emit(logging.LogRecord("here", logging.INFO, "", 0, "what happened", (), None))
            handler.close()
            assert receiving.recv(1000).endswith(b"what happened" + end)


def test_the_command_says_what_it_takes() -> None:
    done = subprocess.run([sys.executable, "-m", "fdfsfuse.cli.mount", "--help"], text=True,
                          capture_output=True, check=True)  # fmt: skip
    for option in ("allow_other", "ids=", "timeout=", "hard", "acl", "lease=", "read_ahead="):
        assert option in done.stdout
