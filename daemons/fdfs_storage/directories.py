"""The sub directories of a store path: ``data/HH/HH`` (protocol/disk.md section 1)."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import secrets
import struct
from pathlib import Path
from typing import Final

from fdfsfuse.proto.fileid import sub_directory

logger = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".fdfs-"
"""Temporary files and directories are ``data/.fdfs-*``; what a crash leaves is removed at start."""
# As in linux/fs.h.
_LONG: Final = struct.Struct("l")
_GET_FLAGS: Final = 2 << 30 | _LONG.size << 16 | ord("f") << 8 | 1
_SET_FLAGS: Final = 1 << 30 | _LONG.size << 16 | ord("f") << 8 | 2
_TOP_DIRECTORY: Final = 0x20000


def prepare(store_path: str, subdir_count: int) -> None:
    """Make a store path usable: create missing sub directories, remove leftover temporaries.

    Sub directories are created when ``data`` is missing, or ``00/00`` or the last one is;
    otherwise they are left alone. Takes seconds for 256 x 256 new ones: call it in a thread.

    Raises:
        OSError: the path cannot be written.
    """
    data = Path(store_path, "data")
    data.mkdir(parents=True, exist_ok=True)
    last = f"{subdir_count - 1:02X}/{subdir_count - 1:02X}"
    if not ((data / "00/00").is_dir() and (data / last).is_dir()):
        logger.info("creating %d sub directories in %s", subdir_count**2, data)
        with contextlib.suppress(OSError):  # not every file system knows of it
            spread(data)
        for high in range(subdir_count):
            _make_anywhere(data, f"{high:02X}")
            for low in range(subdir_count):
                os.makedirs(f"{data}/{high:02X}/{low:02X}", mode=0o755, exist_ok=True)
    for entry in os.scandir(data):
        if not entry.name.startswith(TEMPORARY_PREFIX):
            continue
        if entry.is_file(follow_symlinks=False):
            logger.info("removing the leftover %s", entry.path)
            os.unlink(entry.path)
        elif entry.is_dir(follow_symlinks=False):
            os.rmdir(entry.path)


def spread(directory: Path) -> None:
    """Have the sub directories that will be made in *directory* spread over the disk (chattr +T).

    Else ext4 puts them, and their files, into the block group of *directory* while there is room.
    Without a journal it does not use an inode again for minutes after its file was deleted, and
    passes by all of these whenever it makes a file in that group: with some thousands of them,
    from whatever was there before, a file took 500 to 1,000 us, where 25 to 40 are usual.

    Raises:
        OSError: the file system has no such thing.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        (flags,) = _LONG.unpack(fcntl.ioctl(fd, _GET_FLAGS, bytes(_LONG.size)))
        fcntl.ioctl(fd, _SET_FLAGS, _LONG.pack(flags | _TOP_DIRECTORY))
    finally:
        os.close(fd)


def _make_anywhere(data: Path, name: str) -> None:
    """Make a directory, unless it exists, in a block group that does not depend on its name.

    ext4 takes one by the hash of the name: all stores on a disk would have theirs in the same.
    """
    if (data / name).is_dir():
        return
    temporary = data / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    temporary.mkdir(mode=0o755)
    temporary.rename(data / name)


def supports_unnamed_files(store_path: str) -> bool:
    """True when files can be made without a name here and named later (O_TMPFILE, linkat).

    All common Linux file systems do; NFS and old overlay mounts do not.
    """
    data = f"{store_path}/data"
    probe = f"{data}/{TEMPORARY_PREFIX}probe-{os.getpid()}"
    try:
        fd = os.open(data, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        link_unnamed(fd, probe)
        os.unlink(probe)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def link_unnamed(fd: int, path: str) -> None:
    """Name the file behind *fd*, which was opened with O_TMPFILE.

    Raises:
        FileExistsError: *path* exists; it is never replaced.
    """
    # src_dir_fd makes os.link call linkat(2) with AT_SYMLINK_FOLLOW, which link(2) would not do.
    os.link(str(fd), path, src_dir_fd=_own_descriptors(), follow_symlinks=True)


@functools.cache
def _own_descriptors() -> int:
    """``/proc/self/fd``, open: walking there each time would cost as much as the link itself."""
    return os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


# After a fork it would show the descriptors of the parent.
os.register_at_fork(after_in_child=_own_descriptors.cache_clear)


def next_directory_by_hash(text: str, subdir_count: int) -> str:
    """The directory by the PJW hash of *text* (protocol/file-id.md section 6, mode 1)."""
    value = 0
    for byte in text.encode("ascii"):
        value = (value << 4) + byte & 0xFFFFFFFF
        top = value & 0xF0000000
        if top:
            value ^= top >> 24
            value &= ~top
    value &= 0xFFFF
    return sub_directory((value >> 8) % subdir_count, (value & 0xFF) % subdir_count)
