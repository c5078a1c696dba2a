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
from fdfsfuse.vfs.numbers import ROOT
from fdfsfuse.vfs.xattrs import SELF_TEST

FUSE_DEVICE = Path("/dev/fuse")
_FUSE_CONF = Path("/etc/fuse.conf")


class MountFailed(FdfsError):
    """The mount does not work; the text says why."""


def check_mountpoint(path: Path) -> None:
    """See whether something can be mounted on *path*.

    Raises:
        ConfigError: it is no directory: the wrong argument.
        MountFailed: it is one, but in use, or its mount has died.
    """
    try:
        # The attributes of a mount that has died may still be cached; this is always asked for.
        os.statvfs(path)
        mode = path.stat().st_mode
    except OSError as exc:
        if exc.errno == errno.ENOTCONN:
            raise MountFailed(
                f"{path}: the process of an earlier mount has died. "
                f"Clean up with: fusermount3 -u -z {path}"
            ) from None
        raise ConfigError(f"{path}: {exc.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise ConfigError(f"{path}: not a directory")
    if _mounted(path)[1] == "fuse.fdfs":
        raise MountFailed(f"{path}: already mounted")


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


def device_of(path: Path) -> str:
    """``major:minor`` of the mount on *path*, or '' when nothing is mounted there."""
    return _mounted(path)[0]


def _mounted(path: Path) -> tuple[str, str]:
    """Device and type of what is mounted on *path* (last), or two empty strings.

    *path* is without symlinks. Asks the kernel's table only, never the mount, which may hang.
    """
    found = ("", "")
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            left, _, right = line.partition(" - ")
            fields = left.split(" ")
            if _unescape(fields[4]) == str(path):
                found = fields[2], right.split(" ", 1)[0]
    return found


def _unescape(text: str) -> str:
    for char in " \t\n\\":
        text = text.replace(f"\\{ord(char):03o}", char)
    return text


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
    if problem and device_of(path):
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
