"""Mounting and remounting without libfuse's help, for what it cannot ask of the kernel.

With POSIX ACLs the umask must be left to us, because a default ACL takes its place. The kernel does
so for mounts made with the flag MS_POSIXACL, which neither libfuse nor fusermount3 can set.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from fdfsfuse.fuse.mountpoint import FUSE_DEVICE, MountFailed
from fdfsfuse.fuse.mounttable import device_of

_MS_NOSUID, _MS_NODEV, _MS_REMOUNT = 1 << 1, 1 << 2, 1 << 5
_MS_POSIXACL, _MS_RELATIME = 1 << 16, 1 << 21
_FLAGS = {
    "ro": 1,
    "noexec": 1 << 3,
    "sync": 1 << 4,
    "dirsync": 1 << 7,
    "noatime": 1 << 10,
}
_REMOUNTED = {
    "ro": (_FLAGS["ro"], "rw"),
    "nosuid": (_MS_NOSUID, "suid"),
    "nodev": (_MS_NODEV, "dev"),
    "noexec": (_FLAGS["noexec"], "exec"),
}
"""Flags that can be changed, and the options that clear them. statvfs() has the same as mount()."""
_REMOUNTED_ATIME = {"noatime": _FLAGS["noatime"], "atime": _MS_RELATIME}
"""One of both, as a remount without any leaves it as it is. By default times are relative."""
_MNT_DETACH = 2
_PROBLEMS = {
    errno.EPERM: "only root may do this",
    errno.EBUSY: "files are open for writing; fuser -vm tells by whom",
}


def remount(mountpoint: Path, options: frozenset[str]) -> None:
    """Change flags of the mount on *mountpoint* as *options* say: ro, rw, nosuid, suid ...

    Raises:
        MountFailed: the kernel refuses.
        OSError: the mount does not answer.
    """
    now = os.statvfs(mountpoint).f_flag
    flags = _MS_REMOUNT | now & _FLAGS["sync"]
    for name, (flag, opposite) in _REMOUNTED.items():
        if name in options or (now & flag and opposite not in options):
            flags |= flag
    for name, flag in _REMOUNTED_ATIME.items():
        flags |= flag if name in options else 0
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, os.fsencode(mountpoint), None, ctypes.c_ulong(flags), None):
        code = ctypes.get_errno()
        problem = _PROBLEMS.get(code, os.strerror(code))
        raise MountFailed(f"cannot remount {mountpoint}: {problem}")


class KernelMount:
    """A mount of our own: `source` for pyfuse3.init, then `close` after pyfuse3.close.

    Raises:
        MountFailed: the kernel refuses.
    """

    def __init__(
        self, mountpoint: Path, source: str, subtype: str, options: frozenset[str]
    ) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._mountpoint = mountpoint
        self._fd = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        flags = _MS_POSIXACL
        flags |= 0 if "suid" in options else _MS_NOSUID
        flags |= 0 if "dev" in options else _MS_NODEV
        for name, flag in _FLAGS.items():
            flags |= flag if name in options else 0
        data = f"fd={self._fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        data += ",default_permissions"
        if "allow_other" in options:
            data += ",allow_other"
        arguments = (os.fsencode(source), os.fsencode(mountpoint), f"fuse.{subtype}".encode())
        if self._libc.mount(*arguments, ctypes.c_ulong(flags), data.encode()):
            problem = os.strerror(ctypes.get_errno())
            os.close(self._fd)
            raise MountFailed(f"cannot mount on {mountpoint}: {problem}")
        self._device = device_of(mountpoint)

    @property
    def descriptor_path(self) -> str:
        """What libfuse takes instead of a mount point. It closes the descriptor in the end."""
        return f"/dev/fd/{self._fd}"

    def close(self) -> None:
        """Unmount, unless that has been done."""
        if self._device and device_of(self._mountpoint) == self._device:
            self._libc.umount2(os.fsencode(self._mountpoint), _MNT_DETACH)
