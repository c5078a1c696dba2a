"""Looking at a mount from outside: before mounting, and whether it works afterwards.

`self_test` must not run on the thread that serves the mount: it would wait for itself.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from fdfsfuse.errors import ConfigError, FdfsError
from fdfsfuse.fuse.mounttable import FILE_SYSTEM_TYPE, mounted_on
from fdfsfuse.vfs.numbers import ROOT
from fdfsfuse.vfs.xattrs import SELF_TEST

FUSE_DEVICE = Path("/dev/fuse")
_FUSE_CONF = Path("/etc/fuse.conf")
_OWN_STATUS = Path("/proc/self/status")
_OVERRIDING = 1 << 1 | 1 << 2 | 1 << 3
"""CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER (capabilities(7))."""
_ANSWER_S = 10.0


_DIED = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a mount without a process answers; the second one to who asked while it died."""


class MountFailed(FdfsError):
    """The mount does not work; the text says why."""


class MountDied(MountFailed):
    """What is mounted there has no process any more."""


def check_mountpoint(path: Path) -> None:
    """See whether something can be mounted on *path*.

    Raises:
        ConfigError: it is no directory: the wrong argument.
        MountDied: it is one, and what is mounted there has died.
        MountFailed: it is one, but in use, or what is mounted there hangs.
    """
    modes: list[int] = []
    problems: list[OSError] = []

    def look() -> None:
        try:
            # The attributes of a mount that has died may still be cached; this is always asked for.
            os.statvfs(path)
            modes.append(path.stat().st_mode)
        except OSError as exc:
            problems.append(exc)

    _in_thread(look, _ANSWER_S)
    for exc in problems:
        if exc.errno in _DIED:
            raise MountDied(
                f"{path}: the process of an earlier mount has died. "
                f"Clean up with: fusermount3 -u -z {path}"
            )
        raise ConfigError(f"{path}: {exc.strerror}")
    entry = mounted_on(path)
    if entry is not None and entry.type == FILE_SYSTEM_TYPE:
        raise MountFailed(f"{path}: already mounted")
    if not modes:
        raise MountFailed(f"{path} does not answer")
    if not stat.S_ISDIR(modes[0]):
        raise ConfigError(f"{path}: not a directory")


def check_fuse(*, allow_other: bool, acl: bool) -> None:
    """Raise MountFailed when this machine or user may not mount."""
    if not FUSE_DEVICE.exists():
        raise MountFailed(f"{FUSE_DEVICE} does not exist: the fuse module is not loaded")
    if os.geteuid() == 0:
        return
    if acl:
        raise MountFailed("-o acl: only root may do this")
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise MountFailed(f"{FUSE_DEVICE}: no permission to use it; only root may mount here")
    if shutil.which("fusermount3") is None:
        raise MountFailed("fusermount3 is missing (package fuse3); without it only root may mount")
    if allow_other and not _user_allow_other():
        raise MountFailed(
            f"-o allow_other: only root may do this, unless {_FUSE_CONF} says user_allow_other"
        )


def _user_allow_other() -> bool:
    try:
        lines = _FUSE_CONF.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def permissions_matter(*, allow_other: bool) -> bool:
    """Whether permissions could refuse anything to those whom the kernel lets use the mount.

    Without allow_other these are processes of the user who mounts. When that is root they may do
    everything, as with NFS; but not if what makes root that powerful was taken from this process.
    """
    if allow_other or os.geteuid() != 0:
        return True
    try:
        lines = dict(line.split(":", 1) for line in _OWN_STATUS.read_text().splitlines())
        return int(lines["CapEff"], 16) & _OVERRIDING != _OVERRIDING
    except (OSError, KeyError, ValueError):
        return True


def self_test(path: Path, timeout_s: float) -> None:
    """See whether the mount answers and passes xattr names on unharmed.

    Somebody may unmount it meanwhile: that is no failure.

    Raises:
        MountFailed: it does not, or not within *timeout_s*.
    """
    problem: list[str] = ["the mount does not answer"]

    def test() -> None:
        problem[:] = [text] if (text := _test(path)) else []

    _in_thread(test, timeout_s)
    if problem and mounted_on(path) is not None:
        raise MountFailed(problem[0])


def _test(path: Path) -> str:
    try:
        if path.stat().st_ino != ROOT:
            return "something else is mounted here"
    except OSError as exc:
        return f"the mount does not answer: {exc.strerror}"
    value = secrets.token_bytes(8)
    try:
        os.setxattr(path, SELF_TEST, value)
        if os.getxattr(path, SELF_TEST) == value:
            return ""
    except OSError as exc:
        if exc.errno == errno.EROFS:
            return ""  # nothing is set through this mount, and reading was never broken
    return (
        "the names of extended attributes do not pass through this libfuse unharmed: "
        "3.13.0 to 3.14.0 have this defect, install another version"
    )


def _in_thread(function: Callable[[], None], timeout_s: float) -> None:
    """A system call on a mount that hangs cannot be cancelled: its thread is left behind."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(timeout_s)
