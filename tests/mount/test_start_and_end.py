"""A mount's first and last seconds: the command, the background, signals, umount, wrong use."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fdfsfuse.cli.mount_stats import find_reports
from fdfsfuse.errors import FdfsError
from fdfsfuse.fuse.mountpoint import self_test
from tests.common.cluster import Cluster
from tests.common.mount import Mount, is_mounted, unmount
from tests.common.processes import Process, program
from tests.common.waiting import wait_until

MIB = 1 << 20


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


def asleep(pid: int) -> list[str]:
    """The threads of a process that wait for something."""
    states = {path: path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")}
    return [path.parent.name for path, text in states.items() if ") S " in text or ") D " in text]


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
    os.kill(pid, signal.SIGHUP)  # means nothing: it has no terminal
    code, said = fdfs_mount(cluster.tracker.endpoint, mountpoint)
    assert code == 1
    assert "already mounted" in said
    wait_until(lambda: unmount(mountpoint), "umount")
    wait_until(lambda: ended(pid), "the mount process to end")
    assert "mounted on" in log.read_text()
    assert "ERROR" not in log.read_text()


def mount_with_log(cluster: Cluster, mountpoint: Path, log: Path) -> tuple[list[str], int]:
    """Mount in the background: the arguments for it, and the process."""
    arguments = [cluster.tracker.endpoint, str(mountpoint), "-o", f"log={log}"]
    assert fdfs_mount(*arguments)[0] == 0
    return arguments, mount_process(mountpoint)


def test_a_mount_left_by_a_killed_process(
    cluster: Cluster, mountpoint: Path, tmp_path: Path, fuse: None
) -> None:
    arguments, pid = mount_with_log(cluster, mountpoint, tmp_path / "log")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: ended(pid), "the mount process to be gone")
    code, said = fdfs_mount(*arguments)
    assert code == 1
    assert f"fusermount3 -u -z {mountpoint}" in said
    assert unmount(mountpoint, lazy=True)
    assert fdfs_mount(*arguments) == (0, "")
    wait_until(lambda: unmount(mountpoint), "umount")


def test_a_mount_that_is_killed_while_it_is_looked_at(
    cluster: Cluster, mountpoint: Path, tmp_path: Path, fuse: None
) -> None:
    """A request that is under way then gets another error than those that come later."""
    arguments, pid = mount_with_log(cluster, mountpoint, tmp_path / "log")
    os.kill(pid, signal.SIGSTOP)
    try:
        second = subprocess.Popen(
            [program("fdfs-mount"), *arguments], stderr=subprocess.PIPE, text=True
        )
        wait_until(lambda: len(asleep(second.pid)) == 2, "the look at the mount")
    finally:
        os.kill(pid, signal.SIGKILL)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"fusermount3 -u -z {mountpoint}" in said


def test_unmounted_at_once(cluster: Cluster, tmp_path: Path, fuse: None) -> None:
    """Perhaps before the mount has tested itself, which is no failure of the mount."""
    for _ in range(5):
        mount = cluster.mount(tmp_path / "mount")
        mount.path.mkdir(exist_ok=True)
        mount.launch()
        wait_until(partial(is_mounted, mount.path), "the mount")
        mount.unmount()
    self_test(tmp_path, 10.0)  # nothing is mounted there any more


STOPPED_WHILE_IT_MOUNTS = """
import os, signal
from fdfsfuse.cli.mount import main
from fdfsfuse.fuse.control import ControlSocket

enter = ControlSocket.__enter__

def interrupted(self):
    os.kill(os.getpid(), signal.SIGTERM)
    return enter(self)

ControlSocket.__enter__ = interrupted
main()
"""


def test_stopped_as_soon_as_it_is_mounted(
    cluster: Cluster, mountpoint: Path, tmp_path: Path, fuse: None
) -> None:
    command = [sys.executable, "-c", STOPPED_WHILE_IT_MOUNTS]
    process = Process(
        "stopped", [*command, cluster.tracker.endpoint, str(mountpoint), "-f"], tmp_path
    )
    process.launch()
    assert process.wait() == 0
    assert "stopping" in process.log()
    assert not is_mounted(mountpoint)


IMPATIENT = """
from fdfsfuse.cli.mount import main
from fdfsfuse.fuse import runner

runner._STORE_S = 1.0
main()
"""


def test_stopped_while_a_request_waits_for_ever(tmp_path: Path, fuse: None) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        mount = cluster.mount(tmp_path / "mnt", "hard")
        mount.command[:1] = [sys.executable, "-c", IMPATIENT]
        mount.mount()
        storage = cluster.storage()
        storage.signal(signal.SIGSTOP)
        problems: list[OSError] = []

        def make() -> None:
            try:
                (mount.path / "group1" / "d" / "e").mkdir()
            except OSError as exc:
                problems.append(exc)

        maker = threading.Thread(target=make)
        maker.start()
        try:
            wait_until(lambda: find_reports(str(mount.path))[0]["waiting"], "a request to wait")
            assert mount.terminate() == 0
        finally:
            storage.signal(signal.SIGCONT)
        maker.join(60)
        assert [exc.errno in (errno.ENOTCONN, errno.ECONNABORTED) for exc in problems] == [True]
        assert not is_mounted(mount.path)


def test_the_end_of_the_terminal_ends_a_mount_in_the_foreground(
    cluster: Cluster, mountpoint: Path, fuse: None
) -> None:
    command = [program("fdfs-mount"), "-f", cluster.tracker.endpoint, str(mountpoint)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: is_mounted(mountpoint) and os.listdir(mountpoint), "the mount")
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert not is_mounted(mountpoint)


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


def test_a_tracker_that_hangs_hides_no_other_one(
    cluster: Cluster, mountpoint: Path, tmp_path: Path, fuse: None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        trackers = f"127.0.0.1:{silent.getsockname()[1]},{cluster.tracker.endpoint}"
        # That one alone takes more than all this time.
        options = f"timeout=1,log={tmp_path / 'log'}"
        assert fdfs_mount(trackers, mountpoint, "-o", options) == (0, "")
    wait_until(lambda: unmount(mountpoint), "umount")


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
        with pytest.raises(OSError, match="Read-only"):
            (mountpoint / "group1" / "x").mkdir()
        assert not (mountpoint / "group1" / "M00").exists()
    finally:
        wait_until(lambda: unmount(mountpoint), "umount")


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


SILENT = """
import trio
from fdfsfuse.cli.mount import main
from fdfsfuse.fuse.operations import Operations

async def setxattr(self, inode, name, value, ctx):
    await trio.sleep_forever()

Operations.setxattr = setxattr
main()
"""


def test_interrupted_while_the_mount_is_tested(
    cluster: Cluster, mountpoint: Path, tmp_path: Path, fuse: None
) -> None:
    command = [sys.executable, "-c", SILENT, cluster.tracker.endpoint, str(mountpoint)]
    process = Process("interrupted", [*command, "-o", f"log={tmp_path / 'log'}"], tmp_path)
    process.launch()

    def tested() -> bool:
        try:
            (report,) = find_reports(str(mountpoint))
        except FdfsError:
            return False
        return bool(report["operations"].get("setxattr", {}).get("running"))

    try:
        wait_until(tested, "the self test")
        process.signal(signal.SIGINT)
        assert process.wait() != 0
        wait_until(lambda: not is_mounted(mountpoint), "the mount to be gone")
    finally:
        if is_mounted(mountpoint):
            os.kill(mount_process(mountpoint), signal.SIGKILL)


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
    with pytest.raises(OSError, match="Input/output error"):
        os.readlink(link)
    (mountpoint / "group1" / "still").write_bytes(b"works")
    assert (mountpoint / "group1" / "still").read_bytes() == b"works"
    assert process.terminate() == 0
    assert "readlink" in process.log()
    assert "/group1/faulty-link" in process.log()
    assert "IndexError" in process.log()
